package netns

import (
	"net"
	"os"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestNetworkOfItsOwn(t *testing.T) {
	if os.Getpid() != 1 {
		t.Errorf("the process has the id %d, want 1: what it starts would outlive it", os.Getpid())
	}
	for _, addr := range []string{"127.0.0.1:443", "10.244.0.9:443"} {
		var c net.ListenConfig
		l, err := c.Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Error(err)
			continue
		}
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Error(err)
		} else {
			_ = conn.Close()
		}
		_ = l.Close()
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links { // a kernel may put tunnels, which are down, into each namespace
		if l.Flags&net.FlagUp != 0 && l.Flags&net.FlagLoopback == 0 {
			t.Errorf("%s is up: the tests could reach more than this machine", l.Name)
		}
	}
}
