// Package admin is the operator's listener: on the loopback interface or a unix socket only, never behind the gateway.
//
// A loopback peer proves nothing inside a mesh, where a sidecar connects from there too, and a browser can be made to
// send requests to it. So every request must carry the header X-Gatehouse-Admin, which no browser sends across
// origins without asking, and a Host that names the loopback interface.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
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

// ErrNoUser means that there is no user of that name.
var ErrNoUser = errors.New("admin: no such user")

// An AmbiguousError means that a name is that of several users: nothing was done. Candidates are some of them.
type AmbiguousError struct{ Candidates []User }

func (e *AmbiguousError) Error() string { return "admin: several users are known by this name" }

// A Session is one signed-in browser. ID is the hash by which logs know the session, never the session's id. Of one that cannot be read nothing is known but that, and
// whose it is: Error says why.
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
	Error        string    `json:"error,omitempty"`
}

// A User is somebody who signed in, or was blocked. Times that never were are left out. Of one who cannot be read nothing is known but connector, id and sessions: Error
// says why.
type User struct {
	User       string    `json:"user"` // e-mail
	Name       string    `json:"name"`
	Connector  string    `json:"connector"`
	UserID     string    `json:"user_id"`
	Groups     []string  `json:"groups"`
	LastSignIn time.Time `json:"last_sign_in,omitzero"`
	// BlockedUntil is set while the user is blocked only.
	BlockedUntil time.Time `json:"blocked_until,omitzero"`
	Sessions     int       `json:"sessions"` // that live
	Error        string    `json:"error,omitempty"`
}

// An Outcome is what was done to a user.
type Outcome struct {
	User  User `json:"user"`
	Ended int  `json:"sessions_ended"`
	// Overlooked is how many users cannot be read: any of them may have the e-mail address that this one was found by.
	Overlooked int `json:"users_unread,omitempty"`
}

// A Rotation is what became of the signing keys.
type Rotation struct {
	KeyID     string    `json:"key_id"` // of the new key
	SignsFrom time.Time `json:"signs_from"`
	Withdrawn []string  `json:"withdrawn"` // ids of keys that verify nothing any more
}

// Sessions is what the listener does with sessions. List yields all sessions, those that cannot be read among them, and ends after an error. Revoke ends the
// session of a hash, or fails with ErrNotFound.
type Sessions interface {
	List(ctx context.Context) iter.Seq2[Session, error]
	Revoke(ctx context.Context, id string) error
}

// Users is what the listener does with users. A name is an e-mail address or "connector:user id"; the methods that take one fail with
// ErrNoUser, or with an *AmbiguousError and have done nothing.
type Users interface {
	// Users yields all users, or those who are blocked or cannot be read. The sequence ends after an error.
	Users(ctx context.Context, blocked bool) iter.Seq2[User, error]
	Block(ctx context.Context, name string, until time.Time) (Outcome, error)
	Unblock(ctx context.Context, name string) (Outcome, error)
	SignOut(ctx context.Context, name string) (Outcome, error)
}

// Keys is what the listener does with signing keys: RotateKeys makes a new one, which signs at once and alone if now is set.
type Keys interface {
	RotateKeys(ctx context.Context, now bool) (Rotation, error)
}

// Options for Handler.
type Options struct {
	Sessions Sessions
	Users    Users
	Keys     Keys
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
		list(o.Log, w, r, o.Sessions.List(r.Context()))
	})
	m.HandleFunc("DELETE /v1/sessions/{id}", func(w http.ResponseWriter, r *http.Request) {
		if err := o.Sessions.Revoke(r.Context(), r.PathValue("id")); err != nil {
			fail(w, err)
			return
		}
		o.Log.InfoContext(r.Context(), "session revoked by an operator", "session", r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	})
	o.users(m)
	o.keys(m)
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

// A refusal is the answer to what was not done.
type refusal struct {
	Error      string `json:"error"`
	Candidates []User `json:"candidates,omitempty"`
}

func refuse(w http.ResponseWriter, status int, err error) {
	answer(w, status, refusal{Error: err.Error()})
}

// fail refuses with the status that fits the error.
func fail(w http.ResponseWriter, err error) {
	if several, ok := errors.AsType[*AmbiguousError](err); ok {
		answer(w, http.StatusConflict, refusal{Error: err.Error(), Candidates: several.Candidates})
		return
	}
	status := http.StatusServiceUnavailable
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoUser) {
		status = http.StatusNotFound
	}
	refuse(w, status, err)
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
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, ResponseHeaderTimeout: clientTimeout}}, base: base}
}

// clientTimeout is how long the client waits for an answer, or for the beginning of a list.
const clientTimeout = 75 * time.Second

// Revoke is that of Sessions.
func (c *Client) Revoke(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/sessions/"+url.PathEscape(id), nil, nil)
}

// maxAnswer bounds what the client reads at once, in bytes: what was done to one user.
const maxAnswer = 16 << 20

// do sends in, unless it is nil, and reads the answer into out.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// send returns the answer to a request that was not refused. Whoever calls it closes the body.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	body := io.Reader(http.NoBody)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body) //nolint:gosec // G704: the operator says where
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	r.Header.Set(Header, "1")
	resp, err := c.http.Do(r) //nolint:gosec // G704: the operator says where
	if err != nil {
		return nil, fmt.Errorf("admin: is gatehouse running, and is its gateway.admin this address? %w", err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return nil, refused(resp.Status, text)
}

// maxRefusal bounds the answer to a request that was refused, in bytes.
const maxRefusal = 1 << 20

// refused is the error that an answer tells.
func refused(status string, text []byte) error {
	var e refusal
	switch {
	case json.Unmarshal(text, &e) != nil || e.Error == "":
		return fmt.Errorf("admin: %s: this does not look like the admin listener of gatehouse", status)
	case e.Error == ErrNotFound.Error():
		return ErrNotFound
	case e.Error == ErrNoUser.Error():
		return ErrNoUser
	case len(e.Candidates) > 0:
		return &AmbiguousError{e.Candidates}
	}
	return fmt.Errorf("admin: %s: %s", status, e.Error)
}
