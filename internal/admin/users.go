package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
	"unicode/utf8"
)

// maxBody bounds a request, maxName the name of a user in it, both in bytes.
const (
	maxBody = 4 << 10
	maxName = 1 << 10
)

// A target is what a request about one user says.
type target struct {
	User  string    `json:"user"`
	Until time.Time `json:"until,omitzero"` // of a block
}

func (o Options) users(m *http.ServeMux) {
	m.HandleFunc("GET /v1/users", func(w http.ResponseWriter, r *http.Request) {
		list(o.Log, w, r, o.Users.Users(r.Context(), r.URL.Query().Get("blocked") == "true"))
	})
	m.HandleFunc("POST /v1/users/block", func(w http.ResponseWriter, r *http.Request) {
		o.act(w, r, func(ctx context.Context, t target) (Outcome, error) { return o.Users.Block(ctx, t.User, t.Until) })
	})
	m.HandleFunc("POST /v1/users/unblock", func(w http.ResponseWriter, r *http.Request) {
		o.act(w, r, func(ctx context.Context, t target) (Outcome, error) { return o.Users.Unblock(ctx, t.User) })
	})
	m.HandleFunc("POST /v1/users/sign-out", func(w http.ResponseWriter, r *http.Request) {
		o.act(w, r, func(ctx context.Context, t target) (Outcome, error) { return o.Users.SignOut(ctx, t.User) })
	})
}

// act does something with the user whom the request names.
func (o Options) act(w http.ResponseWriter, r *http.Request, do func(context.Context, target) (Outcome, error)) {
	var t target
	if err := read(w, r, &t); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if !t.Until.IsZero() && !t.Until.After(time.Now()) { // it would lift a block that there is
		refuse(w, http.StatusBadRequest, fmt.Errorf(`admin: "until": %s is over already`, t.Until.Format(time.RFC3339)))
		return
	}
	if t.User == "" || len(t.User) > maxName {
		refuse(w, http.StatusBadRequest, fmt.Errorf(`admin: "user": got %d bytes, want 1 to %d`, len(t.User), maxName))
		return
	}
	done, err := do(r.Context(), t)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, done)
}

func (o Options) keys(m *http.ServeMux) {
	m.HandleFunc("POST /v1/keys/rotate", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Now bool `json:"now"`
		}
		if err := read(w, r, &in); err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		done, err := o.Keys.RotateKeys(r.Context(), in.Now)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusOK, done)
	})
}

// read reads a body that is one JSON object of known fields.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return fmt.Errorf("admin: body: want at most %d bytes: %w", maxBody, err)
	}
	if !utf8.Valid(b) {
		return errors.New("admin: body: want UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("admin: body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("admin: body: want one JSON object and nothing after it")
	}
	return nil
}

// Block is that of Users.
func (c *Client) Block(ctx context.Context, name string, until time.Time) (done Outcome, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/users/block", target{User: name, Until: until}, &done)
	return done, err
}

// Unblock is that of Users.
func (c *Client) Unblock(ctx context.Context, name string) (done Outcome, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/users/unblock", target{User: name}, &done)
	return done, err
}

// SignOut is that of Users.
func (c *Client) SignOut(ctx context.Context, name string) (done Outcome, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/users/sign-out", target{User: name}, &done)
	return done, err
}

// RotateKeys implements Keys.
func (c *Client) RotateKeys(ctx context.Context, now bool) (done Rotation, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/keys/rotate", map[string]bool{"now": now}, &done)
	return done, err
}
