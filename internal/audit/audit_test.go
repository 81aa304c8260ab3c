package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A sink records writes; it blocks while its gate is closed and fails as it is told.
type sink struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes []int
	gate   chan struct{} // nil: open
	fail   func(p []byte) (n int, err error)
}

func (s *sink) Write(p []byte) (int, error) {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, len(p))
	if s.fail != nil {
		if n, err := s.fail(p); err != nil {
			s.buf.Write(p[:n])
			return n, err
		}
	}
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func write(t *testing.T, w io.Writer, line string) {
	t.Helper()
	if n, err := io.WriteString(w, line); n != len(line) || err != nil {
		t.Fatalf("got %d, %v, want %d, nil", n, err, len(line))
	}
}

func TestLinesArriveInOrder(t *testing.T) {
	var out sink
	w := NewWriter(&out, 0)
	var want strings.Builder
	for i := range 10_000 {
		write(t, w, fmt.Sprintf("line %d\n", i))
		fmt.Fprintf(&want, "line %d\n", i)
	}
	write(t, w, "no newline")
	write(t, w, "")
	want.WriteString("no newline\n")
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != want.String() {
		t.Errorf("got %d bytes, want %d, or another order", len(got), want.Len())
	}
	if got := w.Dropped(); got != 0 {
		t.Errorf("got %d dropped, want 0", got)
	}
}

func TestBlockedLogNeverBlocksWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &sink{gate: make(chan struct{})}
		w := NewWriter(out, 100)
		line := strings.Repeat("x", 19) + "\n"
		write(t, w, line)
		settle() // the goroutine is blocked with the first line
		for range 7 {
			write(t, w, line) // four fit, with room for a newline that one could lack
		}
		if got := w.Dropped(); got != 3 {
			t.Fatalf("got %d dropped, want 3", got)
		}
		close(out.gate)
		settle()
		write(t, w, "after\n")
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := strings.Repeat(line, 5) + `{"level":"WARN","msg":"audit events dropped","count":3}` + "\nafter\n"
		if got := out.String(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestDropsAreToldWithoutAnotherEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &sink{gate: make(chan struct{})}
		w := NewWriter(out, 10)
		write(t, w, "first\n")
		settle()
		write(t, w, "second is too long\n")
		close(out.gate)
		settle()
		want := "first\n" + `{"level":"WARN","msg":"audit events dropped","count":1}` + "\n"
		if got := out.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFailedWritesAreDropsAndLinesStayWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := true
		out := &sink{fail: func(p []byte) (int, error) {
			if full {
				return len(p) / 2, errors.New("no space left on device")
			}
			return 0, nil
		}}
		w := NewWriter(out, 0)
		write(t, w, "abcdefg\n")
		settle()
		if got := w.Dropped(); got != 1 {
			t.Fatalf("got %d dropped, want 1", got)
		}
		out.mu.Lock()
		full = false
		out.mu.Unlock()
		write(t, w, "whole\n")
		settle()
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := "abcd\nwhole\n" + `{"level":"WARN","msg":"audit events dropped","count":1}` + "\n"
		if got := out.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestDeadLogIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &sink{fail: func([]byte) (int, error) { return 0, io.ErrClosedPipe }}
		w := NewWriter(out, 0)
		for range 3 {
			write(t, w, "x\n")
			settle()
		}
		if got := len(out.writes); got > 5 { // three lines; the second and the third find drops to tell
			t.Errorf("got %d writes for 3 lines, want at most 5", got)
		}
		if got := w.Dropped(); got != 3 {
			t.Errorf("got %d dropped, want 3", got)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFailingReportIsTriedAtTheNextEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports := 0
		out := &sink{gate: make(chan struct{}), fail: func(p []byte) (int, error) {
			if bytes.Contains(p, []byte("WARN")) {
				if reports++; reports < 3 {
					return 0, errors.New("no space left on device")
				}
			}
			return 0, nil
		}}
		w := NewWriter(out, 10)
		write(t, w, "a\n")
		settle()
		write(t, w, "is dropped: too long\n")
		close(out.gate)
		settle()
		write(t, w, "b\n")
		settle()
		write(t, w, "c\n")
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := "a\nb\nc\n" + `{"level":"WARN","msg":"audit events dropped","count":1}` + "\n"
		if got := out.String(); got != want || reports != 3 {
			t.Errorf("got %q after %d reports, want %q after 3", got, reports, want)
		}
	})
}

func TestChunksAreWholeLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &sink{gate: make(chan struct{})}
		w := NewWriter(out, 0)
		write(t, w, "first\n")
		settle()
		for range 10 {
			write(t, w, strings.Repeat("x", 999)+"\n")
		}
		write(t, w, strings.Repeat("y", 3*chunkSize)+"\n")
		write(t, w, "last\n")
		close(out.gate)
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []int{6, 4000, 4000, 2000, 3*chunkSize + 1, 5}
		if got := fmt.Sprint(out.writes); got != fmt.Sprint(want) {
			t.Errorf("got writes of %s bytes, want %v", got, want)
		}
	})
}

func TestCloseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &sink{gate: make(chan struct{})}
		w := NewWriter(out, 0)
		write(t, w, "first\n")
		settle()
		write(t, w, "second\n")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := w.Close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "7 bytes are waiting") {
			t.Errorf("got %v, want a deadline error with the size", err)
		}
		if n, err := w.Write([]byte("late\n")); n != 0 || !errors.Is(err, ErrClosed) {
			t.Errorf("got %d, %v after Close, want 0, ErrClosed", n, err)
		}
		close(out.gate)
		for range 2 {
			if err := w.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		want := "first\nsecond\n" + `{"level":"WARN","msg":"audit events dropped","count":1}` + "\n"
		if got := out.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestSlogWritesThroughIt(t *testing.T) {
	var out sink
	w := NewWriter(&out, 0)
	log := slog.New(slog.NewJSONHandler(w, nil))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 500 {
				log.Info("check", slog.Int("i", i), slog.Int("j", j), slog.String("path", "/a\nb"))
			}
		})
	}
	wg.Wait()
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 8*500 {
		t.Fatalf("got %d lines, want %d", len(lines), 8*500)
	}
	for _, l := range lines {
		if !json.Valid([]byte(l)) {
			t.Fatalf("got line %q, want JSON", l)
		}
	}
}

func TestWriteAllocations(t *testing.T) {
	w := NewWriter(io.Discard, 0)
	line := []byte(strings.Repeat("x", 400) + "\n")
	for range 2 * DefaultLimit / len(line) { // grow both buffers
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	got := testing.AllocsPerRun(10_000, func() {
		if _, err := w.Write(line); err != nil {
			t.Error(err)
		}
	})
	if got > 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestHash(t *testing.T) {
	const id = "abc"
	got := Hash(id)
	if len(got) != 12 || strings.Trim(got, "0123456789abcdef") != "" {
		t.Errorf("got %q, want 12 hex digits", got)
	}
	if got != Hash(id) || got == Hash("abd") || got == "ba7816bf8f01" {
		t.Errorf("got %q, want it stable, of the id and not its plain SHA-256", got)
	}
}

func BenchmarkWrite(b *testing.B) {
	w := NewWriter(io.Discard, 0)
	line := []byte(strings.Repeat("x", 400) + "\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Write(line); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(w.Dropped())/float64(b.N), "dropped/op")
	if err := w.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkSlog(b *testing.B) {
	w := NewWriter(io.Discard, 0)
	log := slog.New(slog.NewJSONHandler(w, nil))
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(b.Context(), slog.LevelInfo, "check",
			slog.String("host", "kubeflow.example.com"), slog.String("path", "/jupyter/api"), slog.Int("status", 200))
	}
	if err := w.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// settle waits until what was written has been gathered and whoever goes on has gone on.
func settle() {
	time.Sleep(gatherTime)
	synctest.Wait()
}

// TestLinesAreGathered pins that many lines cost one write, and that Close does not wait for more of them.
func TestLinesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writes := 0
		out := &sink{fail: func(p []byte) (int, error) { writes++; return len(p), nil }}
		w := NewWriter(out, 0)
		for range 10 {
			write(t, w, "line\n")
			synctest.Wait() // whoever writes would, if nothing held it back
		}
		settle()
		if writes != 1 {
			t.Errorf("got %d writes of 10 lines, want 1", writes)
		}
		write(t, w, "last\n")
		start := time.Now()
		if err := w.Close(t.Context()); err != nil || writes != 2 || time.Since(start) != 0 {
			t.Errorf("got %v, %d writes after %v, want 2 at once", err, writes, time.Since(start))
		}
	})
}
