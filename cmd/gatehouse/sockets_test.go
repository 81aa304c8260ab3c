package main

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// A socket that nobody has open any more is in the way and is removed. One that is alive stays somebody else's.
func TestOnlyADeadSocketIsRemoved(t *testing.T) {
	path := filepath.Join(peers.Folder(t), "admin.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := removeDeadSocket(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "another program answers there") {
		t.Errorf("a live one: %v", err)
	}
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("the live one afterwards: %v", err)
	}
	_ = c.Close()

	l.(*net.UnixListener).SetUnlinkOnClose(false) //nolint:forcetypeassert // of this network
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := removeDeadSocket(t.Context(), path); err != nil {
		t.Errorf("a dead one: %v", err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the dead one is still there: %v", err)
	}
	if err := removeDeadSocket(t.Context(), path); err != nil {
		t.Errorf("none: %v", err)
	}

	if err := os.WriteFile(path, []byte("a file of the operator's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeDeadSocket(t.Context(), path); err != nil {
		t.Errorf("a file: %v", err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeType != 0 {
		t.Errorf("a file that is no socket: %v, %v; want it untouched", info, err)
	}
}
