// Package peers starts the real programs that the test suites talk to: Envoy, the built Gatehouse, an OpenID provider
// and Chromium. Each listens on the loopback address only and is stopped by its id when the test ends. A program that
// is not installed fails the test with the command that installs it.
package peers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/demo/process"
)

// startTimeout is how long a program may take to answer, and Patience how long it may take to end, or a page to come: generous, since
// machines that run tests are busy. No test is about either.
const (
	startTimeout = 60 * time.Second
	Patience     = time.Minute
)

// Root returns the product's folder: the nearest one above the test's folder with the go.mod of the module gatehouse. The
// modules of tests inside it are passed by.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(mod), "module gatehouse\n") {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod of gatehouse above the test's folder: run the tests from the source tree")
		}
		dir = parent
	}
}

// tool returns the path of a program in .tools/bin.
func tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(Root(t), ".tools", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not installed: run `make tools` in %s", name, Root(t))
	}
	return path
}

// Folder returns a new short-named folder, which is removed when the test ends: t.TempDir's names can be too long
// for a unix socket.
func Folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gh-") //nolint:usetesting // the name must be short, see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	return dir
}

// removeAll removes dir, into which a dying child may still write for a moment.
func removeAll(t testing.TB, dir string) {
	t.Helper()
	var err error
	within(t, Patience, func() bool {
		err = os.RemoveAll(dir)
		return err == nil
	})
	if err != nil {
		t.Errorf("remove the test's folder: %v", err)
	}
}

// FreeAddr returns a loopback ip:port on which nobody listens. It is given out once only among all running tests:
// the port lies outside the range that the system takes ports of outgoing connections from, and a lock that lives as
// long as this test process keeps other test processes off it.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func freeAddr() (string, error) {
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.IntN(20000)))
		if reserve(addr) {
			return addr, nil
		}
	}
	return "", errors.New("no free port between 10000 and 29999 in 100 tries")
}

func reserve(addr string) bool {
	var c net.ListenConfig
	l, err := c.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = l.Close() }()
	return lock("gatehouse-test-" + addr)
}

// Eventually waits until ok returns true, at most for limit, and else fails the test with what it was waiting for.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !within(t, limit, ok) {
		t.Fatalf("not within %s: %s", limit, what)
	}
}

func within(t testing.TB, limit time.Duration, ok func() bool) bool {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return ok()
		}
	}
	return true
}

// start runs a program until the test ends. ready is asked until it says yes; if the program ends before, or is not
// ready in time, start returns an error with the end of the program's log.
func start(t testing.TB, s process.Spec, ready func(*process.Process) bool) (*process.Process, error) {
	t.Helper()
	// Not the test's context: that ends before Cleanup, and a child is to be stopped in order.
	p, err := process.Start(context.WithoutCancel(t.Context()), s)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { stop(t, p) })
	ended := func() bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	}
	isReady := false
	within(t, startTimeout, func() bool {
		isReady = !ended() && ready(p)
		return isReady || ended()
	})
	switch {
	case isReady:
		return p, nil
	case ended():
		return nil, p.Err()
	}
	return nil, fmt.Errorf("%s was not ready within %s; the end of its log:\n%s", filepath.Base(s.Path), startTimeout, p.Tail(4000))
}

func stop(t testing.TB, p *process.Process) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Errorf("%v; the end of its log:\n%s", err, p.Tail(2000))
	}
	if t.Failed() {
		t.Logf("the end of the log of process %d:\n%s", p.Pid(), p.Tail(4000))
	}
}

// portTaken reports whether a program ended because another one listens on its address.
func portTaken(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "address already in use")
}
