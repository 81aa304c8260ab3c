package netns

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
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

// TestPod: two pods have the same ports, are reached at their addresses, reach the tests' network, and not each other's loopback.
func TestPod(t *testing.T) {
	back := listen(t, Node+":7001", "the node")
	for _, ip := range []string{"10.244.0.10", "10.244.0.11"} {
		p, err := NewPod(netip.MustParseAddr(ip))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Run(func() error {
			listen(t, ":7000", ip)
			listen(t, "127.0.0.1:7002", "loopback of "+ip)
			if got := said(t, back); got != "the node" {
				t.Errorf("%s hears %q of the node", ip, got)
			}
			if got := said(t, "127.0.0.1:7002"); got != "loopback of "+ip {
				t.Errorf("%s hears %q of its loopback", ip, got)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if got := said(t, ip+":7000"); got != ip {
			t.Errorf("%s says %q", ip, got)
		}
		if got := said(t, ip+":7002"); got != "" {
			t.Errorf("the loopback of %s is open: %q", ip, got)
		}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if got := said(t, ip+":7000"); got != "" {
				t.Errorf("%s still says %q without its cable", ip, got)
			}
		})
	}
}

// listen says something to whoever connects.
func listen(t *testing.T, addr, what string) string {
	t.Helper()
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, what)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// said is what is said at addr, nothing if nobody is there.
func said(t *testing.T, addr string) string {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(context.WithoutCancel(t.Context()), "tcp", addr)
	if err != nil {
		return ""
	}
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
