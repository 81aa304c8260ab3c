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

// A blink is a driver that cannot read sessions for as long as it is shut.
type blink struct {
	store.Driver
	shut atomic.Bool
}

func (d *blink) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if kind == store.KindSession && d.shut.Load() {
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
	d.shut.Store(true)
	if refresh(); b.code != http.StatusServiceUnavailable || !strings.Contains(b.page, "temporarily_unavailable") {
		t.Errorf("while the session cannot be read: %d %s", b.code, b.page)
	}
	d.shut.Store(false)
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
