package provider

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// unreadDriver fails one read, or all from one on.
type unreadDriver struct {
	store.Driver

	reads, failAt atomic.Int64 // failAt 0: none
	all           atomic.Bool
}

func (d *unreadDriver) fail(n int64, all bool) {
	d.reads.Store(0)
	d.all.Store(all)
	d.failAt.Store(n)
}

func (d *unreadDriver) read() error {
	n, at := d.reads.Add(1), d.failAt.Load()
	if at > 0 && (n == at || n > at && d.all.Load()) {
		return errors.New("connection refused")
	}
	return nil
}

func (d *unreadDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if err := d.read(); err != nil {
		return store.Record{}, err
	}
	return d.Driver.Read(ctx, kind, id)
}

func (d *unreadDriver) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	if err := d.read(); err != nil {
		return func(yield func(store.Record, error) bool) { yield(store.Record{}, err) }
	}
	return d.Driver.Scan(ctx, q)
}

// unreadWorld has a storage that can be made to fail.
func unreadWorld(t *testing.T) (*world, *unreadDriver) {
	t.Helper()
	clk, d := &clock{}, &unreadDriver{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	return newWorld(t, logoutConfig, st, seal.NewKey(), clk), d
}

// Who comes from a client of the issuer is told to try again, as everybody is.
func TestAuthorizationWhileTheStorageCannotBeRead(t *testing.T) {
	w, d := unreadWorld(t)
	b := w.browser()
	d.fail(1, true)
	b.get(webClient().AuthCodeURL("state"))
	if b.code != http.StatusServiceUnavailable || !strings.Contains(b.page, "Signing in is not possible right now") {
		t.Errorf("got %d %q", b.code, b.page)
	}
	d.fail(0, false)
	if b.get(webClient().AuthCodeURL("state")); b.code != http.StatusOK || !b.form() {
		t.Errorf("afterwards: got %d %q", b.code, b.page)
	}
}

// Whichever read of the storage fails, no client is told that its token is not good.
func TestTokenWhileTheStorageCannotBeRead(t *testing.T) {
	w, d := unreadWorld(t)
	over := w.tokenFor(w.browser(), "openid", "email", "offline_access") // goes on after its session
	if err := w.provider.Revoke(t.Context(), w.onlySession()); err != nil {
		t.Fatal(err)
	}
	tok := w.tokenFor(w.browser(), "openid", "email", "offline_access")
	for name, ask := range map[string]func() jsonAnswer{
		"userinfo": func() jsonAnswer {
			return w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(tok.AccessToken))
		},
		"userinfo after the session": func() jsonAnswer {
			return w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(over.AccessToken))
		},
		"introspection of the access token": func() jsonAnswer { return w.introspect(tok.AccessToken) },
		"introspection of a refresh token":  func() jsonAnswer { return w.introspect(tok.RefreshToken) },
	} {
		d.fail(0, false)
		good := func(a jsonAnswer) bool { return a.code == 200 && a.body["active"] != false }
		if a := ask(); !good(a) {
			t.Fatalf("%s: %d %v", name, a.code, a.body)
		}
		reads, unknown := d.reads.Load(), 0
		for n := int64(1); n <= reads; n++ {
			for _, all := range []bool{false, true} {
				d.fail(n, all)
				switch a := ask(); {
				case a.code == 503 && a.head.Get("Retry-After") != "":
					unknown++
				case !good(a):
					t.Errorf("%s, read %d of %d fails, and those after it (%v): %d %v", name, n, reads, all, a.code, a.body)
				}
			}
		}
		if unknown == 0 {
			t.Errorf("%s: no read of %d failed", name, reads)
		}
	}
}
