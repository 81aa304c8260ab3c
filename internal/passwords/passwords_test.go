package passwords

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// child makes this test program the other process.
const child = "GATEHOUSE_TEST_PASSWORDS"

func TestMain(m *testing.M) {
	switch os.Getenv(child) {
	case "serve":
		if Serve(os.Stdin, os.Stdout) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "broken":
		os.Exit(1)
	case "slow": // it answers nobody, and ends with whoever asks
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A world counts what a pool starts, and what fails.
type world struct {
	*Pool
	started, failed atomic.Int32
	last            atomic.Pointer[exec.Cmd]
}

func newWorld(t *testing.T, kind string, most int) *world {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	w.Pool = New(Options{
		Most: most, Idle: time.Hour, Failed: func(error) { w.failed.Add(1) },
		Command: func() *exec.Cmd {
			w.started.Add(1)
			c := exec.CommandContext(context.WithoutCancel(t.Context()), self)
			c.Env = []string{child + "=" + kind}
			w.last.Store(c)
			return c
		},
	})
	t.Cleanup(w.Close)
	return w
}

func hashOf(t testing.TB, password string) []byte {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestMatch(t *testing.T) {
	w := newWorld(t, "serve", 1)
	right := hashOf(t, "right")
	for _, tt := range []struct {
		rule           string
		hash, password string
		want, bad      bool
	}{
		{"right", string(right), "right", true, false},
		{"wrong", string(right), "wrong", false, false},
		{"empty", string(right), "", false, false},
		{"NUL and line break", string(right), "right\x00\n", false, false},
		{"longer than bcrypt looks at", string(right), strings.Repeat("x", 500), false, false},
		{"no hash", "", "right", false, true},
		{"half a hash", string(right[:30]), "right", false, true},
		{"too long", string(right), strings.Repeat("x", maxPart+1), false, true},
		{"far too long", string(right), strings.Repeat("x", 1<<16), false, true},
		{"right, after all that", string(right), "right", true, false},
	} {
		got, err := w.Match(t.Context(), []byte(tt.hash), []byte(tt.password))
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: got %v, %v, want %v and an error: %v", tt.rule, got, err, tt.want, tt.bad)
		}
		if err != nil && (strings.Contains(err.Error(), "$2a$") || strings.Contains(err.Error(), "right")) {
			t.Errorf("%s: the error tells a secret: %v", tt.rule, err)
		}
	}
	if w.started.Load() != 1 || w.failed.Load() != 0 {
		t.Errorf("got %d processes and %d failures, want 1 and 0", w.started.Load(), w.failed.Load())
	}
}

// TestProcessThatFails pins that a sign-in works where no process does, and that each failure is told.
func TestProcessThatFails(t *testing.T) {
	right := hashOf(t, "right")
	for _, kind := range []string{"broken", "missing"} {
		w := newWorld(t, kind, 1)
		if kind == "missing" {
			w.o.Command = func() *exec.Cmd { return exec.CommandContext(t.Context(), "/does/not/exist") }
		}
		for range 2 {
			if ok, err := w.Match(t.Context(), right, []byte("right")); !ok || err != nil {
				t.Errorf("%s: got %v, %v, want a match", kind, ok, err)
			}
		}
		if ok, err := w.Match(t.Context(), right, []byte("wrong")); ok || err != nil || w.failed.Load() != 3 {
			t.Errorf("%s: got %v, %v and %d failures, want no match and 3", kind, ok, err, w.failed.Load())
		}
	}
}

// TestKilledProcessIsReplaced pins that one process which dies costs no sign-in.
func TestKilledProcessIsReplaced(t *testing.T) {
	w := newWorld(t, "serve", 1)
	right := hashOf(t, "right")
	for round := range 3 {
		if ok, err := w.Match(t.Context(), right, []byte("right")); !ok || err != nil {
			t.Fatalf("round %d: got %v, %v, want a match", round, ok, err)
		}
		_ = w.last.Load().Process.Kill() // it may have been replaced
	}
	if w.started.Load() < 2 {
		t.Errorf("got %d processes, want another one", w.started.Load())
	}
}

// TestMost pins how many processes there are at once, and that waiting for one ends with the context.
func TestMost(t *testing.T) {
	w := newWorld(t, "serve", 2)
	right := hashOf(t, "right")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if ok, err := w.Match(t.Context(), right, []byte("right")); !ok || err != nil {
				t.Errorf("got %v, %v, want a match", ok, err)
			}
		})
	}
	wg.Wait()
	if n := w.started.Load(); n < 1 || n > 2 {
		t.Errorf("got %d processes, want at most 2", n)
	}
}

func TestGivingUp(t *testing.T) {
	w := newWorld(t, "slow", 1)
	for _, rule := range []string{"while it is compared", "while another is"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if ok, err := w.Match(ctx, hashOf(t, "x"), []byte("x")); ok || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %v, %v, want a deadline error", rule, ok, err)
		}
		cancel()
	}
}

// TestIdleProcessEnds pins that memory is given back, and that Close leaves no process.
func TestIdleProcessEnds(t *testing.T) {
	w := newWorld(t, "serve", 1)
	w.o.Idle = time.Millisecond
	right := hashOf(t, "right")
	gone := func(c *exec.Cmd) bool { return errors.Is(c.Process.Signal(syscall.Signal(0)), os.ErrProcessDone) }
	wait := func(c *exec.Cmd) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for tick := time.NewTicker(time.Millisecond); !gone(c); {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal("the process does not end")
			}
		}
	}
	for range 2 {
		if ok, err := w.Match(t.Context(), right, []byte("right")); !ok || err != nil {
			t.Fatalf("got %v, %v, want a match", ok, err)
		}
		wait(w.last.Load())
	}
	w.o.Idle = time.Hour
	if ok, err := w.Match(t.Context(), right, []byte("right")); !ok || err != nil {
		t.Fatalf("got %v, %v, want a match", ok, err)
	}
	w.Close()
	wait(w.last.Load())
	if n := w.failed.Load(); n != 0 {
		t.Errorf("got %d failures, want 0", n)
	}
}

// FuzzServe holds that whatever comes in is answered with a byte for each request, or ends the process: never a yes for
// what is no hash.
func FuzzServe(f *testing.F) {
	f.Add(encode([]byte("$2a$04$abc"), []byte("x")))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.Count(in, []byte("$2")) > 0 && len(in) > 60 { // a real hash may cost hours
			return
		}
		var out bytes.Buffer
		_ = Serve(bytes.NewReader(in), &out)
		if bytes.IndexByte(out.Bytes(), answerYes) >= 0 {
			t.Fatalf("%x is taken for a password and its hash", in)
		}
	})
}
