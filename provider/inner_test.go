package provider

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
)

// signedInner is an ID Token as Dex makes it for the gateway.
func (w *world) signedInner(k innerKey, change func(claims map[string]any)) string {
	w.t.Helper()
	claims := map[string]any{
		"iss": w.provider.issuer.String(), "sub": "user", "aud": front.GatewayClient, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
		"sid": "a-session",
	}
	if change != nil {
		change(claims)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		w.t.Fatal(err)
	}
	signed, err := k.signer.Sign(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// What the gateway's own exchange is answered is good there, and nowhere else; and nothing else is good there.
func TestInnerTokens(t *testing.T) {
	w, _ := memoryWorld(t)
	p := w.provider
	good := w.signedInner(p.inner, nil)
	if tok, err := p.inner.verify(t.Context(), p.keys, good, front.GatewayClient); err != nil || tok.SessionID != "a-session" {
		t.Fatalf("%+v, %v", tok, err)
	}
	if _, err := p.keys.Verify(t.Context(), good, front.GatewayClient); err == nil {
		t.Error("the keys of the issuer take it")
	}
	if status := w.browser().userinfo(good); status != http.StatusUnauthorized {
		t.Errorf("userinfo answers it with %d", status)
	}
	if a := w.introspect(good); a.code != http.StatusOK || a.body["active"] == true {
		t.Errorf("introspection says %d %v", a.code, a.body)
	}
	if got := hinted(w, good); got != "invalid_request" {
		t.Errorf("a silent authorization with it as a hint: %q", got)
	}
	if _, err := p.verifyHint(t.Context(), good); err == nil {
		t.Error("it is a hint for a sign-out")
	}
	other, err := newInnerKey()
	if err != nil {
		t.Fatal(err)
	}
	outside, err := w.signInClient(w.browser())
	if err != nil {
		t.Fatal(err)
	}
	idToken, _ := outside.Extra("id_token").(string)
	parts := strings.Split(good, ".")
	bad := map[string]string{
		"of another process":        w.signedInner(other, nil),
		"of another audience":       w.signedInner(p.inner, func(c map[string]any) { c["aud"] = "web" }),
		"of another issuer":         w.signedInner(p.inner, func(c map[string]any) { c["iss"] = "https://evil.example/dex" }),
		"that has expired":          w.signedInner(p.inner, func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"without an end":            w.signedInner(p.inner, func(c map[string]any) { delete(c, "exp") }),
		"without a user":            w.signedInner(p.inner, func(c map[string]any) { delete(c, "sub") }),
		"of an outside client":      idToken,
		"an access token of theirs": outside.AccessToken,
		"without a signature":       parts[0] + "." + parts[1] + ".",
		"that says none":            base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"inner"}`)) + "." + parts[1] + ".",
	}
	for name, raw := range bad {
		if tok, err := p.inner.verify(t.Context(), p.keys, raw, front.GatewayClient); err == nil {
			t.Errorf("a token %s is taken: %+v", name, tok)
		}
	}
}

// Nobody outside is given a token that only this process can verify.
func TestOutsideTokensAreSigned(t *testing.T) {
	w, _ := memoryWorld(t)
	tok, err := w.signInClient(w.browser())
	if err != nil {
		t.Fatal(err)
	}
	idToken, _ := tok.Extra("id_token").(string)
	for _, raw := range []string{idToken, tok.AccessToken} {
		parsed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.RS256, jose.HS256})
		if err != nil || parsed.Signatures[0].Header.Algorithm != string(jose.RS256) {
			t.Errorf("%v %v", parsed, err)
		}
	}
}

// firstTime signs the robot in for the first time ever, while something happens just before their identity is stored.
func firstTime(t *testing.T, meanwhile func(*world)) (*world, *browser) {
	t.Helper()
	keys, clk := madeKeys(t), &clock{}
	d := &blockingDriver{Driver: store.MemoryDriver(), kind: store.KindIdentity}
	st := keyedStore(t, d, keys, clk)
	w := newWorld(t, quickConfig, st, seal.NewKey(), clk)
	d.block = func() { meanwhile(w) }
	b := w.browser().get("https://app.example.com/")
	b.signIn("robot", "not-a-default-5591")
	if d.block != nil {
		t.Fatal("no identity was stored: the test shows nothing")
	}
	return w, b
}

// Two browsers sign in for the first time ever, as one user, at once: both get in.
func TestTwoFirstSignInsAtOnce(t *testing.T) {
	var other *browser
	w, b := firstTime(t, func(w *world) {
		other = w.browser().get("https://app.example.com/")
		other.signIn("robot", "not-a-default-5591")
	})
	if !hello(b) || !hello(other) {
		t.Errorf("got %d %s, and %d %s", b.code, b.page, other.code, other.page)
	}
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%d sessions, %v", len(all), err)
	}
}

// A block that comes first has made the identity: it stays as the block has made it.
func TestBlockDuringAFirstSignIn(t *testing.T) {
	w, b := firstTime(t, func(w *world) {
		if _, err := w.provider.Block(t.Context(), "fast", robotID, Forever); err != nil {
			t.Error(err)
		}
	})
	u, err := w.store.GetUserIdentity(t.Context(), robotID, "fast")
	if hello(b) || err != nil || !u.BlockedUntil.Equal(Forever) || !u.LastLogin.IsZero() || u.Claims.Email != "" {
		t.Errorf("got %d; %+v, %v", b.code, u, err)
	}
	w.nothingComesAlive(t)
}
