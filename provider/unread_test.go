package provider

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// A blink is a driver that cannot read records of one kind, if any.
type blink struct {
	store.Driver
	shut atomic.Pointer[store.Kind]
}

func (d *blink) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if shut := d.shut.Load(); shut != nil && *shut == kind {
		return store.Record{}, errors.New("the database has another primary now")
	}
	return d.Driver.Read(ctx, kind, id)
}

// A refresh token that is bound to a session stays when nobody can say whether that goes on. Dex deletes it.
func TestRefreshTokenStaysWhenItsSessionCannotBeRead(t *testing.T) {
	clk, d := &clock{}, &blink{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, withClient("https://web.example.com/out"), st, seal.NewKey(), clk)
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	refresh := func() {
		b.do(http.MethodPost, issuer+"/token", url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {tok.RefreshToken}, "client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"},
		}, nil)
	}
	d.shut.Store(new(store.KindSession))
	if refresh(); b.code != http.StatusServiceUnavailable || !strings.Contains(b.page, "temporarily_unavailable") {
		t.Errorf("while the session cannot be read: %d %s", b.code, b.page)
	}
	d.shut.Store(nil)
	if refresh(); b.code != http.StatusOK {
		t.Errorf("afterwards: %d %s", b.code, b.page)
	}
	if err := w.provider.Revoke(t.Context(), w.onlySession()); err != nil {
		t.Fatal(err)
	}
	if refresh(); b.code != http.StatusBadRequest {
		t.Errorf("after the end of the session: %d %s", b.code, b.page)
	}
}

// A session that cannot be read keeps the others of its user from nothing.
func TestSignOutEverywherePassesOverASessionThatCannotBeRead(t *testing.T) {
	clk, d := &clock{}, store.MemoryDriver()
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	for range 3 {
		w.browser().get("https://app.example.com/").signIn("admin@example.com", "password")
	}
	all, err := st.SessionsOf(t.Context(), "u1", "local")
	if err != nil || len(all) != 3 {
		t.Fatal(len(all), err)
	}
	bad, err := d.Read(t.Context(), store.KindSession, all[1].ID)
	if err != nil {
		t.Fatal(err)
	}
	bad.Data = []byte("\x00sealed\x01by a key that is gone")
	if _, err := d.Write(t.Context(), []store.Op{{Verb: store.Put, Record: bad}}); err != nil {
		t.Fatal(err)
	}
	ended, err := w.provider.RevokeUser(t.Context(), "local", "u1")
	if !errors.Is(err, store.ErrSealed) || ended != 2 {
		t.Errorf("%d sessions ended, %v: want 2, and that one could not be read", ended, err)
	}
	for i, want := range []bool{true, false, true} {
		if _, err := w.provider.Session(t.Context(), all[i].ID); errors.Is(err, ErrNoSession) != want {
			t.Errorf("session %d: %v", i, err)
		}
	}
}

// A token is neither good nor bad while the storage does not say: a client that is told so keeps it.
func TestTokenIsNotRefusedWhenTheStorageDoesNotAnswer(t *testing.T) {
	clk, d := &clock{}, &blink{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	look := func(when string, code int) {
		t.Helper()
		if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + tok.AccessToken}}); b.code != code {
			t.Errorf("%s: userinfo: %d %s, want %d", when, b.code, b.page, code)
		}
		for _, token := range []string{tok.AccessToken, tok.RefreshToken} {
			b.do(http.MethodPost, issuer+"/token/introspect", url.Values{"token": {token}, "client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"}}, nil)
			if b.code != code || code == http.StatusOK && !strings.Contains(b.page, `"active":true`) {
				t.Errorf("%s: introspection: %d %s, want %d", when, b.code, b.page, code)
			}
		}
	}
	look("at first", http.StatusOK)
	for _, kind := range []store.Kind{store.KindIdentity, store.KindMark} {
		d.shut.Store(&kind)
		look("without "+string(kind), http.StatusServiceUnavailable)
		d.shut.Store(nil)
		look("with it again", http.StatusOK)
	}
	if _, err := w.provider.SignOut(t.Context(), w.onlySession()); err != nil {
		t.Fatal(err)
	}
	look("after the sign-out, as a token that is not bound to the session", http.StatusOK)
	d.shut.Store(new(store.KindOffline))
	if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + tok.AccessToken}}); b.code != http.StatusServiceUnavailable {
		t.Errorf("whether it outlives the session: %d %s", b.code, b.page)
	}
	d.shut.Store(nil)
	if _, err := w.provider.Block(t.Context(), "local", "u1", Forever); err != nil {
		t.Fatal(err)
	}
	if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + tok.AccessToken}}); b.code != http.StatusUnauthorized {
		t.Errorf("of a blocked user: %d %s", b.code, b.page)
	}
}
