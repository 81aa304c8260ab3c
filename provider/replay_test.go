package provider

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/inproc"
	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
)

// An issued is an authorization code of the outside client, and how to exchange it.
type issued struct {
	code, verifier string
	nonce          string
}

// newCode gets a code for the outside client, in a browser that is signed in after it. nonce may be empty.
func (b *browser) newCode(nonce string) issued {
	b.w.t.Helper()
	c := issued{verifier: oauth2.GenerateVerifier(), nonce: nonce}
	opts := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(c.verifier)}
	if nonce != "" {
		opts = append(opts, oauth2.SetAuthURLParam("nonce", nonce))
	}
	b.get(webClient().AuthCodeURL("state", opts...))
	if b.last.Host != "web.example.com" {
		b.signIn("admin@example.com", "password")
	}
	if c.code = b.last.Query().Get("code"); c.code == "" {
		b.w.t.Fatalf("no code at %s: %d %s", b.last, b.code, b.page)
	}
	return c
}

func (w *world) exchange(c issued) (*oauth2.Token, error) {
	return webClient().Exchange(w.direct(w.t.Context()), c.code, oauth2.VerifierOption(c.verifier))
}

func (w *world) mustExchange(c issued) *oauth2.Token {
	w.t.Helper()
	tok, err := w.exchange(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return tok
}

// tokenRequest posts a form to the token endpoint and returns the status and the error code.
func (w *world) tokenRequest(ctx context.Context, client, secret string, form url.Values) (status int, code string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(client, secret)
	resp, err := inproc.Serve(w.provider.Handler(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct{ Error string }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, body.Error
}

// holds checks whether the tokens of a family are good everywhere, or nowhere.
func (b *browser) holds(when string, tok *oauth2.Token, want bool) {
	b.w.t.Helper()
	id, _ := tok.Extra("id_token").(string)
	for name, raw := range map[string]string{"access token": tok.AccessToken, "ID Token": id} {
		if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + raw}}); (b.code == 200) != want {
			b.w.t.Errorf("%s: userinfo with the %s: %d, want good: %v", when, name, b.code, want)
		}
	}
	for name, raw := range map[string]string{"access": tok.AccessToken, "refresh": tok.RefreshToken} {
		form := url.Values{"token": {raw}, "client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"}}
		if b.do(http.MethodPost, issuer+"/token/introspect", form, nil); strings.Contains(b.page, `"active":true`) != want {
			b.w.t.Errorf("%s: introspection of the %s token: %s, want good: %v", when, name, b.page, want)
		}
	}
	status, _ := b.w.tokenRequest(b.w.t.Context(), "web", "not-a-default-secret-5591", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tok.RefreshToken}})
	if (status == 200) != want {
		b.w.t.Errorf("%s: refresh: %d, want good: %v", when, status, want)
	}
}

func TestReplayedCodeEndsItsFamilyAlone(t *testing.T) {
	for _, nonce := range []string{"n", ""} {
		clk := &clock{}
		for name, st := range bothStores(t, clk) {
			t.Run(name+", nonce "+nonce, func(t *testing.T) {
				w := newWorld(t, testConfig, st, seal.NewKey(), clk)
				b := w.browser()
				earlier := w.mustExchange(b.newCode("earlier")) // of the same session; its refresh token gives way to the next one
				clk.add(5 * time.Second)
				c := b.newCode(nonce)
				tok := w.mustExchange(c)
				clk.add(5 * time.Second)
				tok.Expiry = time.Unix(1, 0)
				rotated, err := webClient().TokenSource(w.direct(t.Context()), tok).Token()
				if err != nil {
					t.Fatal(err)
				}
				clk.add(5 * time.Second)
				if _, err := w.exchange(c); err == nil {
					t.Fatal("a code is accepted twice")
				}
				b.holds("first token", tok, false)
				b.holds("refreshed token", rotated, false)
				if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + earlier.AccessToken}}); b.code != 200 {
					t.Errorf("userinfo with a token of another code: %d", b.code)
				}
				if b.get("https://app.example.com/"); !strings.HasPrefix(b.page, "hello admin") {
					t.Errorf("the session ended: %d %s", b.code, b.page)
				}
				later := w.mustExchange(b.newCode("")) // at once, by single sign-on
				if _, err := w.exchange(c); err == nil {
					t.Fatal("a code is accepted the third time")
				}
				b.holds("tokens of a code after the replay", later, true)
				if !strings.Contains(w.audit.String(), `"msg":"code replayed","client":"web"`) || strings.Count(w.audit.String(), "code replayed") != 1 {
					t.Error("not once in the audit log")
				}
			})
		}
	}
}

// Whoever has read a code somewhere, but cannot exchange it, must not be able to end anything.
func TestCodeInOtherHandsEndsNothing(t *testing.T) {
	w, _ := variant(t, "", "staticClients:\n", "staticClients:\n- {id: other, name: Another, secret: not-a-default-secret-7712, redirectURIs: [\"https://web.example.com/cb\"]}\n")
	b := w.browser()
	c := b.newCode("n")
	tok := w.mustExchange(c)
	good := url.Values{"grant_type": {"authorization_code"}, "code": {c.code}, "redirect_uri": {"https://web.example.com/cb"}, "code_verifier": {c.verifier}}
	for name, tt := range map[string]struct{ client, secret, field, value string }{
		"another client":     {"other", "not-a-default-secret-7712", "", ""},
		"a wrong secret":     {"web", "not-a-default-secret-7712", "", ""},
		"a wrong verifier":   {"web", "not-a-default-secret-5591", "code_verifier", strings.Repeat("x", 43)},
		"no verifier":        {"web", "not-a-default-secret-5591", "code_verifier", ""},
		"another place":      {"web", "not-a-default-secret-5591", "redirect_uri", "https://web.example.com/other"},
		"another code":       {"web", "not-a-default-secret-5591", "code", "aaaaaaaaaaaaaaaaaaaaaaaaa"},
		"the code's own key": {"web", "not-a-default-secret-5591", "code", store.SpentCodeID(c.code)},
	} {
		form := maps.Clone(good)
		if tt.field != "" {
			form.Set(tt.field, tt.value)
		}
		if status, _ := w.tokenRequest(t.Context(), tt.client, tt.secret, form); status != 400 && status != 401 {
			t.Errorf("%s: %d", name, status)
		}
	}
	b.holds("after all of them", tok, true)
	if status, code := w.tokenRequest(t.Context(), "web", "not-a-default-secret-5591", good); status != 400 || code != "invalid_grant" {
		t.Errorf("the client itself: %d %s", status, code)
	}
	tok.RefreshToken = "" // rotated by holds
	if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + tok.AccessToken}}); b.code != 401 {
		t.Errorf("and after the client itself: %d", b.code)
	}
}

// meanwhile replays a code at the moment when the first exchange stores its refresh token.
type meanwhile struct {
	store.Driver
	replay func()
}

func (d *meanwhile) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if r := ops[0].Record; r.Kind == store.KindSpentCode && ops[0].Verb == store.Put && d.replay != nil {
		replay := d.replay
		d.replay = nil // it writes, too
		replay()
	}
	return d.Driver.Write(ctx, ops)
}

func TestReplayBeforeTheFirstExchangeEnds(t *testing.T) {
	clk := &clock{}
	d := &meanwhile{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	c := w.browser().newCode("n")
	d.replay = func() {
		if _, err := w.exchange(c); err == nil {
			t.Error("a code is accepted twice")
		}
	}
	if tok, err := w.exchange(c); err == nil {
		t.Errorf("the first exchange brings a refresh token, which nobody would revoke: %q", tok.RefreshToken)
	}
	if all, err := w.store.ListRefreshTokens(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("stored: %d refresh tokens, %v", len(all), err)
	}
}

func TestSpentCodesAreForgotten(t *testing.T) {
	w, clk := memoryWorld(t)
	c := w.browser().newCode("n")
	w.mustExchange(c)
	if _, err := w.exchange(c); err == nil {
		t.Fatal("a code is accepted twice")
	}
	left := func() (spent, replays bool) {
		if _, err := w.store.GarbageCollect(t.Context(), clk.now()); err != nil {
			t.Fatal(err)
		}
		_, err := w.store.GetSpentCode(t.Context(), store.SpentCodeID(c.code))
		all, listErr := w.store.ReplaysOf(t.Context(), "u1", "local")
		if listErr != nil {
			t.Fatal(listErr)
		}
		return err == nil, len(all) > 0
	}
	if spent, replays := left(); !spent || !replays {
		t.Errorf("at first: %v, %v", spent, replays)
	}
	clk.add(time.Hour) // Dex's codes are good for 30 minutes
	if spent, replays := left(); spent || !replays {
		t.Errorf("when the code has expired: spent %v, replays %v", spent, replays)
	}
	clk.add(24 * time.Hour)
	if spent, replays := left(); spent || replays {
		t.Errorf("when the tokens have expired: spent %v, replays %v", spent, replays)
	}
}

// together lets refreshes of one token read it before any of them rotates it.
type together struct {
	store.Driver
	reads sync.WaitGroup
	on    bool
}

func (d *together) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	r, err := d.Driver.Read(ctx, kind, id)
	// Dex reads it after its look at the token, and before it rotates; before Dex it is read to ask who the user is now.
	if d.on && kind == store.KindIdentity && front.ExchangeOf(ctx) != nil {
		d.reads.Done()
		d.reads.Wait()
	}
	return r, err
}

func TestLosersOfARefreshAreToldSo(t *testing.T) {
	clk := &clock{}
	d := &together{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	tok := w.mustExchange(w.browser().newCode("n"))
	const n = 4
	d.reads.Add(n)
	d.on = true
	type answer struct {
		status int
		code   string
	}
	answers := make(chan answer, n)
	for range n {
		go func() {
			var a answer
			a.status, a.code = w.tokenRequest(t.Context(), "web", "not-a-default-secret-5591", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tok.RefreshToken}})
			answers <- a
		}()
	}
	got := map[answer]int{}
	for range n {
		got[<-answers]++
	}
	if got[answer{200, ""}] != 1 || got[answer{400, "invalid_grant"}] != n-1 {
		t.Errorf("got %v, want one success and %d times invalid_grant", got, n-1)
	}
}

// broken is a storage whose refresh tokens cannot be written.
type broken struct {
	store.Driver
	on bool
}

func (d *broken) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if d.on && ops[0].Record.Kind == store.KindRefreshToken {
		return 0, context.DeadlineExceeded
	}
	return d.Driver.Write(ctx, ops)
}

func TestRefreshOnABrokenStorageIsNoInvalidGrant(t *testing.T) {
	clk := &clock{}
	d := &broken{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	tok := w.mustExchange(w.browser().newCode("n"))
	d.on = true
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tok.RefreshToken}}
	if status, code := w.tokenRequest(t.Context(), "web", "not-a-default-secret-5591", form); status != 500 || code == "invalid_grant" {
		t.Errorf("got %d %s: a client that reads invalid_grant throws a good token away", status, code)
	}
	d.on = false
	if status, _ := w.tokenRequest(t.Context(), "web", "not-a-default-secret-5591", form); status != 200 {
		t.Errorf("afterwards: %d", status)
	}
}
