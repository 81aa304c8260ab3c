package reload

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// failsToStart serves text from another file of the same folder, waits until that fails, and returns what it said.
func (w *world) failsToStart(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(w.gatehouse.Folder, "second.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, peers.Binary(t), "serve", "--config", file)
	cmd.Dir, cmd.WaitDelay = w.gatehouse.Folder, time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Errorf("it started (%v):\n%s", err, out)
	}
	return string(out)
}

// Two processes would decide about each other's users, each by a file of its own.
func TestASecondProcessOnOneDatabaseDoesNotStart(t *testing.T) {
	with := func(w *world, users string) string {
		return w.head + "staticPasswords:\n" + users + w.gateway + signedIn
	}
	w := newWorld(t, func(w *world) string { return with(w, w.user("alice@example.com", "alice", "admins")) })
	app := "http://" + host + "/"
	alice := w.newPerson(t)
	alice.signIn(t, alice.visit(t, app), "alice@example.com")

	second := with(w, w.user("bob@example.com", "bob", "staff"))
	for what, text := range map[string]string{
		"with the same ports": second,
		"with other ports":    w.otherPorts(t, second),
	} {
		said := w.failsToStart(t, text)
		pid := "process " + strconv.Itoa(w.gatehouse.Pid())
		for _, want := range []string{filepath.Join(w.gatehouse.Folder, "gatehouse.db"), "another gatehouse", pid} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: it does not say %q:\n%s", what, want, said)
			}
		}
		if at := alice.visit(t, app); !strings.Contains(at.body, "x-user-a=alice@example.com") {
			t.Errorf("%s: the session afterwards: status %d at %s", what, at.status, at.url)
		}
	}

	w.gatehouse.Kill(t) // leaves the lock's file behind, and not the lock
	w.gatehouse.Restart(t)
	if at := alice.visit(t, app); !strings.Contains(at.body, "x-user-a=alice@example.com") {
		t.Errorf("the session after a crash: status %d at %s", at.status, at.url)
	}
}

// otherPorts is text with a free port for every one of its listeners.
func (w *world) otherPorts(t *testing.T, text string) string {
	t.Helper()
	for _, address := range w.ports {
		text = strings.ReplaceAll(text, address, peers.FreeAddr(t))
	}
	return text
}

// What cannot serve must not act on its file: here on a user who is not in it.
func TestAStartThatFailsSignsNobodyOut(t *testing.T) {
	with := func(w *world, users string) string {
		return w.head + "staticPasswords:\n" + users + w.gateway + signedIn
	}
	w := newWorld(t, func(w *world) string { return with(w, w.user("alice@example.com", "alice", "admins")) })
	app := "http://" + host + "/"
	alice := w.newPerson(t)
	alice.signIn(t, alice.visit(t, app), "alice@example.com")
	w.gatehouse.Stop(t)

	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", w.ports[len(w.ports)-1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if said := w.failsToStart(t, with(w, w.user("bob@example.com", "bob", "staff"))); !strings.Contains(said, "address already in use") {
		t.Errorf("it says:\n%s", said)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	w.gatehouse.Restart(t)
	if at := alice.visit(t, app); !strings.Contains(at.body, "x-user-a=alice@example.com") {
		t.Errorf("the session afterwards: status %d at %s", at.status, at.url)
	}
}

// The socket of a process that runs is not taken from it, even where nothing else is shared.
func TestALiveAdminSocketIsNotTakenAway(t *testing.T) {
	socket := ""
	with := func(w *world) string {
		socket = filepath.Join(peers.Folder(t), "admin.sock")
		w.gateway = strings.Replace(w.gateway, strconv.Quote(w.ports[2]), strconv.Quote("unix:"+socket), 1)
		return w.head + "staticPasswords:\n" + w.user("alice@example.com", "alice", "admins") + w.gateway + signedIn
	}
	text := ""
	w := newWorld(t, func(w *world) string { text = with(w); return text })
	list := func() {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), peers.Binary(t), "sessions", "list", "--admin", "unix:"+socket)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "ID") {
			t.Errorf("sessions list: %v: %s", err, out)
		}
	}
	list()
	said := w.failsToStart(t, strings.Replace(w.otherPorts(t, text), "gatehouse.db", "other.db", 1))
	if !strings.Contains(said, socket) || !strings.Contains(said, "another program answers there") {
		t.Errorf("it says:\n%s", said)
	}
	list()
	w.gatehouse.Kill(t)
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("a killed process leaves no socket: the test shows nothing: %v", err)
	}
	w.gatehouse.Restart(t)
	list()
}
