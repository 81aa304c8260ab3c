package admin

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// crowd is a Sessions of many, which counts how many it has made.
type crowd struct {
	table
	many int
	made atomic.Int64
}

func (s *crowd) List(context.Context) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		for range s.many {
			s.made.Add(1)
			if !yield(Session{ID: "0123", User: "alice@example.com", UserAgent: "an agent with a name that is as long as they are", Groups: []string{"a", "b"}}, nil) {
				return
			}
		}
	}
}

func (s *crowd) dial(t *testing.T) *Client {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: Handler(options(s)), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return NewClient("unix", l.Addr().String())
}

// failing is a crowd of which the rest cannot be listed.
type failing struct{ crowd }

func (s *failing) List(ctx context.Context) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		for item, err := range s.crowd.List(ctx) {
			if !yield(item, err) {
				return
			}
		}
		yield(Session{}, errors.New("the storage is gone"))
	}
}

// Whoever lists is told why a list ends before its time: by the refusal, or where it has begun already by the log.
func TestListThatFails(t *testing.T) {
	for many, want := range map[int]string{
		0: "503 Service Unavailable: the storage is gone", 1: "503 Service Unavailable: the storage is gone", 5000: "the list is not complete: see the log of gatehouse",
	} {
		var logged bytes.Buffer
		s := &failing{crowd{many: many}}
		o := options(s)
		o.Log = slog.New(slog.NewTextHandler(&logged, nil))
		srv := httptest.NewServer(Handler(o))
		n := 0
		var last error
		for _, err := range NewClient("tcp", srv.Listener.Addr().String()).Sessions(t.Context(), 0) {
			if last = err; err == nil {
				n++
			}
		}
		srv.Close() // after the handler
		if last == nil || !strings.Contains(last.Error(), want) || n > many {
			t.Errorf("of %d: %d listed, then %v: want %q", many, n, last, want)
		}
		if told := strings.Contains(logged.String(), "the storage is gone"); told != (many == 5000) {
			t.Errorf("of %d: logged %q", many, logged.String())
		}
	}
}

// A hundred thousand sessions are never held: neither where they are made nor where they are read.
func TestManySessionsAreStreamed(t *testing.T) {
	s := &crowd{many: 100_000}
	c := s.dial(t)
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	for _, err := range c.Sessions(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 && s.made.Load() == int64(s.many) {
			t.Fatalf("all %d were made before the first arrived", s.many)
		}
		if n == s.many/2 {
			runtime.GC()
			runtime.ReadMemStats(&during)
		}
	}
	if n != s.many {
		t.Errorf("got %d sessions, want %d", n, s.many)
	}
	if held := int64(during.HeapAlloc) - int64(before.HeapAlloc); held > 8<<20 {
		t.Errorf("half way %d bytes are held: want few, whatever the length", held)
	}
}

func TestListEndsAtItsLimit(t *testing.T) {
	s := &crowd{many: 5000}
	c := s.dial(t)
	for limit, want := range map[int]int{1: 1, 7: 7, 4999: 4999, 5000: 5000, 5001: 5000, 0: 5000} {
		s.made.Store(0)
		n := 0
		for _, err := range c.Sessions(t.Context(), limit) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if made := s.made.Load(); n != want || made != int64(want) {
			t.Errorf("limit %d: got %d sessions, and %d were made: want %d", limit, n, made, want)
		}
	}
	for _, limit := range []string{"0", "-1", "x", "1e3", "99999999999999999999"} {
		for _, path := range []string{"/v1/sessions", "/v1/users"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path+"?limit="+limit, nil)
			r.Host = "localhost"
			r.Header.Set(Header, "1")
			w := httptest.NewRecorder()
			if Handler(options(s)).ServeHTTP(w, r); w.Code != http.StatusBadRequest {
				t.Errorf("%s, limit %s: got %d %s", path, limit, w.Code, w.Body)
			}
		}
	}
	u := dial(t, &people{})
	n := 0
	for _, err := range u.Users(t.Context(), false, 1) {
		if n++; err != nil {
			t.Error(err)
		}
	}
	if n != 1 {
		t.Errorf("got %d users, want 1", n)
	}
}

// slow is a ResponseWriter that notes the time that each part of an answer was given.
type slow struct {
	*httptest.ResponseRecorder
	deadlines []time.Time
}

// SetWriteDeadline is what http.ResponseController calls.
func (s *slow) SetWriteDeadline(at time.Time) error {
	s.deadlines = append(s.deadlines, at)
	return nil
}

// Each part of a long list has a time of its own: who pages through it is not cut off by the server's time for a whole answer.
func TestPartsOfAListHaveTheirOwnTime(t *testing.T) {
	w := &slow{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/sessions", nil)
	r.Host = "localhost"
	r.Header.Set(Header, "1")
	Handler(options(&crowd{many: 5000})).ServeHTTP(w, r)
	if w.Code != http.StatusOK || len(w.deadlines) < 10 {
		t.Fatalf("got %d, %d deadlines for %d bytes", w.Code, len(w.deadlines), w.Body.Len())
	}
	for i := 1; i < len(w.deadlines); i++ {
		if w.deadlines[i].Before(w.deadlines[i-1]) {
			t.Errorf("deadline %d is before the one of the part before", i)
		}
	}
}
