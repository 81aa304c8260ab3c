// Package admin is the operator's listener: on the loopback interface or a unix socket only, never behind the gateway.
//
// A loopback peer proves nothing inside a mesh, where a sidecar connects from there too, and a browser can be made to
// send requests to it. So every request must carry the header X-Gatehouse-Admin, which no browser sends across
// origins without asking, and a Host that names the loopback interface.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Header must be present, with any value, on every request.
const Header = "X-Gatehouse-Admin"

// ErrNotFound means that there is no session of that name.
var ErrNotFound = errors.New("admin: no such session")

// A Session is one signed-in browser. ID is the hash by which logs know the session, never the session's id.
type Session struct {
	ID           string    `json:"id"`
	User         string    `json:"user"`
	Connector    string    `json:"connector"`
	UserID       string    `json:"user_id"`
	Groups       []string  `json:"groups"`
	SignedInAt   time.Time `json:"signed_in_at"`
	LastActivity time.Time `json:"last_activity"`
	ExpiresAt    time.Time `json:"expires_at"`
	Address      string    `json:"address"`
	UserAgent    string    `json:"user_agent"`
}

// Sessions is what the listener acts on. Revoke ends the session of a hash, or fails with ErrNotFound.
type Sessions interface {
	List(ctx context.Context) ([]Session, error)
	Revoke(ctx context.Context, id string) error
}

// Options for Handler.
type Options struct {
	Sessions Sessions
	Version  string
	Log      *slog.Logger
}

// Handler serves the listener.
func Handler(o Options) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"version": o.Version})
	})
	m.HandleFunc("GET /v1/sessions", func(w http.ResponseWriter, r *http.Request) {
		all, err := o.Sessions.List(r.Context())
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		answer(w, http.StatusOK, all)
	})
	m.HandleFunc("DELETE /v1/sessions/{id}", func(w http.ResponseWriter, r *http.Request) {
		err := o.Sessions.Revoke(r.Context(), r.PathValue("id"))
		switch {
		case errors.Is(err, ErrNotFound):
			refuse(w, http.StatusNotFound, err)
		case err != nil:
			refuse(w, http.StatusServiceUnavailable, err)
		default:
			o.Log.InfoContext(r.Context(), "session revoked by an operator", "session", r.PathValue("id"))
			w.WriteHeader(http.StatusNoContent)
		}
	})
	return guard(m)
}

func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if host != "localhost" && host != unixHost && (ip == nil || !ip.IsLoopback()) {
			refuse(w, http.StatusForbidden, errors.New("admin: the Host of the request is not the loopback interface"))
			return
		}
		if r.Header.Get(Header) == "" {
			refuse(w, http.StatusForbidden, errors.New("admin: the header "+Header+" is missing"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the operator may be gone
}

func refuse(w http.ResponseWriter, status int, err error) {
	answer(w, status, map[string]string{"error": err.Error()})
}

// unixHost is the Host of requests over a unix socket.
const unixHost = "gatehouse.admin"

// A Client talks to the listener of a running gatehouse.
type Client struct {
	http *http.Client
	base string
}

// NewClient returns a client of an address as in gateway.admin: host:port or unix:/path.
func NewClient(network, address string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	base := "http://" + address
	if network == "unix" {
		base = "http://" + unixHost
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 30 * time.Second}, base: base}
}

// List implements Sessions.
func (c *Client) List(ctx context.Context) (all []Session, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/sessions", &all)
	return all, err
}

// Revoke implements Sessions.
func (c *Client) Revoke(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/sessions/"+url.PathEscape(id), nil)
}

// maxAnswer bounds what the client reads, in bytes.
const maxAnswer = 256 << 20

func (c *Client) do(ctx context.Context, method, path string, out any) error {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, http.NoBody) //nolint:gosec // G704: the operator says where
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	r.Header.Set(Header, "1")
	resp, err := c.http.Do(r) //nolint:gosec // G704: the operator says where
	if err != nil {
		return fmt.Errorf("admin: is gatehouse running, and is its gateway.admin this address? %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var e struct{ Error string }
		if json.Unmarshal(body, &e) != nil || e.Error == "" {
			return fmt.Errorf("admin: %s: this does not look like the admin listener of gatehouse", resp.Status)
		}
		if e.Error == ErrNotFound.Error() {
			return ErrNotFound
		}
		return fmt.Errorf("admin: %s: %s", resp.Status, e.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}
