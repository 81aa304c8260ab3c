package admin

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// people is a Users, and a Keys, that notes what it was told to do. It knows "alice", and "twice" as two.
type people struct {
	all  iter.Seq2[User, error]
	done []string
}

var alice = User{User: "alice@example.com", Connector: "local", UserID: "u1", Groups: []string{"a"}, LastSignIn: time.Unix(1, 0).UTC()}

func (p *people) Users(_ context.Context, blocked bool) iter.Seq2[User, error] {
	if blocked {
		return func(func(User, error) bool) {}
	}
	if p.all != nil {
		return p.all
	}
	return func(yield func(User, error) bool) { yield(alice, nil) }
}

func (p *people) act(what, name string) (Outcome, error) {
	switch name {
	case "alice":
		p.done = append(p.done, what)
		return Outcome{User: alice, Ended: 3}, nil
	case "twice":
		return Outcome{}, &AmbiguousError{Candidates: []User{alice, {Connector: "ldap", UserID: "x", Groups: []string{}}}}
	}
	return Outcome{}, ErrNoUser
}

func (p *people) Block(_ context.Context, name string, until time.Time) (Outcome, error) {
	return p.act("block until "+until.Format(time.RFC3339), name)
}

func (p *people) Unblock(_ context.Context, name string) (Outcome, error) {
	return p.act("unblock", name)
}

func (p *people) SignOut(_ context.Context, name string) (Outcome, error) {
	return p.act("sign out", name)
}

func (p *people) RotateKeys(_ context.Context, now bool) (Rotation, error) {
	p.done = append(p.done, map[bool]string{true: "rotate now", false: "rotate"}[now])
	return Rotation{KeyID: "k2", SignsFrom: time.Unix(2, 0).UTC(), Withdrawn: []string{"k1"}}, nil
}

// dial serves a handler of p and returns a client of it.
func dial(t *testing.T, p *people) *Client {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	o := options(&table{})
	o.Users, o.Keys = p, p
	srv := &http.Server{Handler: Handler(o), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return NewClient("unix", l.Addr().String())
}

func TestUsersAreActedOnByName(t *testing.T) {
	p := &people{}
	c := dial(t, p)
	day := time.Date(2126, 1, 2, 0, 0, 0, 0, time.UTC)
	want := Outcome{User: alice, Ended: 3}
	for name, do := range map[string]func(string) (Outcome, error){
		"block until 2126-01-02T00:00:00Z": func(n string) (Outcome, error) { return c.Block(t.Context(), n, day) },
		"block until 0001-01-01T00:00:00Z": func(n string) (Outcome, error) { return c.Block(t.Context(), n, time.Time{}) },
		"unblock":                          func(n string) (Outcome, error) { return c.Unblock(t.Context(), n) },
		"sign out":                         func(n string) (Outcome, error) { return c.SignOut(t.Context(), n) },
	} {
		p.done = nil
		if got, err := do("alice"); err != nil || !reflect.DeepEqual(got, want) || len(p.done) != 1 || p.done[0] != name {
			t.Errorf("%s: got %+v, %v; done %v", name, got, err, p.done)
		}
		if _, err := do("nobody"); !errors.Is(err, ErrNoUser) {
			t.Errorf("%s of nobody: %v", name, err)
		}
		several, ok := errors.AsType[*AmbiguousError](func() error { _, err := do("twice"); return err }())
		if !ok || len(several.Candidates) != 2 || several.Candidates[1].UserID != "x" {
			t.Errorf("%s of two: %+v", name, several)
		}
		if len(p.done) != 1 {
			t.Errorf("%s did something to nobody: %v", name, p.done)
		}
	}
	p.done = nil
	if _, err := c.Block(t.Context(), "alice", time.Now().Add(-time.Second)); err == nil || !strings.Contains(err.Error(), "over already") || len(p.done) != 0 {
		t.Errorf("a block that is over, which would lift another: %v; done %v", err, p.done)
	}
	p.done = nil
	r, err := c.RotateKeys(t.Context(), true)
	if err != nil || r.KeyID != "k2" || r.Withdrawn[0] != "k1" || p.done[0] != "rotate now" {
		t.Errorf("got %+v, %v; done %v", r, err, p.done)
	}
}

// A long list is never held: whoever makes it is only as far ahead as a socket's buffers are long.
func TestLongListIsStreamed(t *testing.T) {
	const many = 200_000
	var made atomic.Int64
	c := dial(t, &people{all: func(yield func(User, error) bool) {
		for range many {
			made.Add(1)
			if !yield(alice, nil) {
				return
			}
		}
	}})
	n := 0
	for u, err := range c.Users(t.Context(), false, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 && (made.Load() == many || !reflect.DeepEqual(u, alice)) {
			t.Fatalf("all %d were made before the first arrived, as %+v", made.Load(), u)
		}
	}
	if n != many {
		t.Errorf("got %d users, want %d", n, many)
	}
}

func TestListThatBreaksIsNotTakenForAll(t *testing.T) {
	for name, at := range map[string]int{"at once": 0, "in its first part": 5, "later": 5000} {
		c := dial(t, &people{all: func(yield func(User, error) bool) {
			for range at {
				if !yield(alice, nil) {
					return
				}
			}
			yield(User{}, errors.New("the store is gone"))
		}})
		var last error
		for _, err := range c.Users(t.Context(), false, 0) {
			last = err
		}
		if last == nil {
			t.Errorf("%s: no error", name)
		}
	}
	none := 0
	for _, err := range dial(t, &people{}).Users(t.Context(), true, 0) {
		if none++; err != nil {
			t.Error(err)
		}
	}
	if none != 0 {
		t.Errorf("got %d users, want none", none)
	}
}

// FuzzActs holds that something is done by a POST of the one object that asks for it only.
func FuzzActs(f *testing.F) {
	for _, path := range []string{"/v1/users/block", "/v1/users/unblock", "/v1/users/sign-out", "/v1/keys/rotate", "/v1/users/block/", "/v1/users/../users/block"} {
		for _, body := range []string{
			`{"user":"alice"}`, `{"user":"alice","until":"2126-01-02T00:00:00Z"}`, `{"user":"alice"}{}`, `{"user":"alice","x":1}`, `{"now":true}`, `{}`, ``,
			`["alice"]`, `{"user":"ALICE"}`, "{\"user\":\"\xff\"}", `{"user":"alice","until":"x"}`, `null`, `{"USER":"alice"}`, `{"user":"bob","user":"alice"}`,
		} {
			f.Add("POST", path, body, "1")
			f.Add("GET", path, body, "1")
			f.Add("POST", path, body, "")
		}
	}
	f.Fuzz(func(t *testing.T, method, path, body, header string) {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " ?#%\x00\x7f") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' }) {
			return
		}
		p := &people{}
		o := options(&table{})
		o.Users, o.Keys = p, p
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
		r.Method, r.URL.Path, r.Host = method, path, "localhost"
		if header != "" {
			r.Header.Set(Header, header)
		}
		w := httptest.NewRecorder()
		Handler(o).ServeHTTP(w, r)
		if len(p.done) == 0 {
			return
		}
		var object map[string]any
		if method != http.MethodPost || header == "" || json.Unmarshal([]byte(body), &object) != nil {
			t.Fatalf("%s %s of %q with %q: done %v", method, path, body, header, p.done)
		}
		if path != "/v1/keys/rotate" && object["user"] != "alice" && object["USER"] != "alice" && !strings.Contains(strings.ToLower(body), "alice") {
			t.Fatalf("%q: done %v", body, p.done)
		}
	})
}
