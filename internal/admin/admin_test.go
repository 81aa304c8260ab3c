package admin

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// table is a Sessions of one session.
type table struct{ revoked []string }

func (*table) List(context.Context) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		yield(Session{ID: "0123", User: "alice@example.com", Groups: []string{"a"}, SignedInAt: time.Unix(1, 0).UTC()}, nil)
	}
}

func (s *table) Revoke(_ context.Context, id string) error {
	if id != "0123" {
		return ErrNotFound
	}
	s.revoked = append(s.revoked, id)
	return nil
}

func options(s Sessions) Options {
	return Options{Sessions: s, Users: &people{}, Keys: &people{}, Version: "1", Log: slog.New(slog.DiscardHandler)}
}

func TestGuard(t *testing.T) {
	for name, tt := range map[string]struct {
		host, header string
		want         int
	}{
		"a browser's request: no header":      {"127.0.0.1:5559", "", 403},
		"rebound name":                        {"evil.example.com", "1", 403},
		"name that only begins like loopback": {"127.0.0.1.evil.example.com", "1", 403},
		"address of the pod":                  {"192.0.2.1:5559", "1", 403},
		"no host":                             {"", "1", 403},
		"loopback":                            {"127.0.0.1:5559", "1", 200},
		"another loopback address":            {"127.8.8.8", "1", 200},
		"IPv6 loopback":                       {"[::1]:5559", "1", 200},
		"localhost":                           {"localhost:5559", "1", 200},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/sessions", nil)
			r.Host = tt.host
			if tt.header != "" {
				r.Header.Set(Header, tt.header)
			}
			w := httptest.NewRecorder()
			Handler(options(&table{})).ServeHTTP(w, r)
			if w.Code != tt.want {
				t.Errorf("status %d, want %d", w.Code, tt.want)
			}
		})
	}
}

func TestClientOverTCPAndUnix(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "admin.sock")} {
		t.Run(network, func(t *testing.T) {
			l, err := new(net.ListenConfig).Listen(t.Context(), network, address)
			if err != nil {
				t.Fatal(err)
			}
			s := &table{}
			srv := &http.Server{Handler: Handler(options(s)), ReadHeaderTimeout: time.Minute}
			go func() { _ = srv.Serve(l) }()
			t.Cleanup(func() { _ = srv.Close() })

			c := NewClient(network, l.Addr().String())
			var got, want []Session
			for item, err := range c.Sessions(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, item)
			}
			for item, err := range s.List(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, item)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if err := c.Revoke(t.Context(), "0123"); err != nil || len(s.revoked) != 1 {
				t.Errorf("revoke: %v, %v", err, s.revoked)
			}
			if err := c.Revoke(t.Context(), "../version"); !errors.Is(err, ErrNotFound) {
				t.Errorf("revoke of nothing: %v", err)
			}
		})
	}
}
