package provider

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/inproc"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// An answer is a JSON answer to a program.
type jsonAnswer struct {
	code int
	head http.Header
	body map[string]any
}

// program sends a request to a handler as a program does.
func (w *world) program(h http.Handler, method, target string, form url.Values, header http.Header) jsonAnswer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, issuer+target, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.RequestURI = ""
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	maps.Copy(r.Header, header)
	resp, err := inproc.Serve(h, r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := jsonAnswer{code: resp.StatusCode, head: resp.Header}
	_ = json.NewDecoder(resp.Body).Decode(&a.body) // some have none
	return a
}

func bearer(raw string) http.Header { return http.Header{"Authorization": {"Bearer " + raw}} }

func credentials(form url.Values) url.Values {
	form.Set("client_id", "web")
	form.Set("client_secret", "not-a-default-secret-5591")
	return form
}

func (w *world) introspect(raw string) jsonAnswer {
	w.t.Helper()
	return w.program(w.provider.Handler(), http.MethodPost, "/token/introspect", credentials(url.Values{"token": {raw}}), nil)
}

// dex is Dex itself, without anything of ours before it.
func (w *world) dex() http.Handler { return w.provider.current.Load().dex }

// tokenFor signs in for these scopes.
func (w *world) tokenFor(b *browser, scopes ...string) *oauth2.Token {
	w.t.Helper()
	c, verifier := webClient(), oauth2.GenerateVerifier()
	c.Scopes = scopes
	b.get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", "n")))
	if b.last.Host != "web.example.com" {
		b.signIn("admin@example.com", "password")
	}
	tok, err := c.Exchange(w.direct(w.t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		w.t.Fatal(err)
	}
	return tok
}

func kindsOf(tok *oauth2.Token) map[string]string {
	id, _ := tok.Extra("id_token").(string)
	return map[string]string{"access token": tok.AccessToken, "ID Token": id}
}

// Of a token that was just issued we say what Dex says, field by field.
func TestFreshTokenIsToldAsByDex(t *testing.T) {
	for _, scopes := range [][]string{
		{"openid"},
		{"openid", "email"},
		{"openid", "profile"},
		{"openid", "groups"},
		{"openid", "email", "profile", "groups", "federated:id"},
		{"openid", "email", "offline_access"},
		{"openid", "email", "groups", "audience:server:client_id:other"},
	} {
		t.Run(strings.Join(scopes, " "), func(t *testing.T) {
			clk := &clock{}
			text := strings.Replace(logoutConfig, "{id: other, ", "{id: other, trustedPeers: [web], ", 1)
			w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			tok := w.tokenFor(w.browser(), scopes...)
			for kind, raw := range kindsOf(tok) {
				ours, theirs := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(raw)), w.program(w.dex(), http.MethodGet, "/userinfo", nil, bearer(raw))
				if ours.code != 200 || theirs.code != 200 || !reflect.DeepEqual(ours.body, theirs.body) {
					t.Errorf("userinfo with the %s:\n%d %v, Dex says\n%d %v", kind, ours.code, ours.body, theirs.code, theirs.body)
				}
				ours, theirs = w.introspect(raw), w.program(w.dex(), http.MethodPost, "/token/introspect", url.Values{"token": {raw}}, nil)
				if ours.body["jti"] == "" {
					t.Errorf("introspection of the %s: no jti", kind)
				}
				delete(ours.body, "jti") // Dex has a place for it, and leaves it empty
				if ours.code != 200 || !reflect.DeepEqual(ours.body, theirs.body) {
					t.Errorf("introspection of the %s:\n%d %v, Dex says\n%d %v", kind, ours.code, ours.body, theirs.code, theirs.body)
				}
			}
			if tok.RefreshToken == "" {
				return
			}
			ours, theirs := w.introspect(tok.RefreshToken), w.program(w.dex(), http.MethodPost, "/token/introspect", url.Values{"token": {tok.RefreshToken}}, nil)
			// What Dex tells wrongly: an expiry that it does not have, a type that is of access tokens, and claims beyond the scopes. It does not tell the scopes and the session.
			if theirs.body["exp"] != theirs.body["iat"] || theirs.body["token_type"] != "Bearer" || ours.body["scope"] != strings.Join(scopes, " ") {
				t.Errorf("the refresh token: %v, Dex says %v", ours.body, theirs.body)
			}
			ext, _ := ours.body["ext"].(map[string]any)
			if ext["sid"] != w.onlySession() || ext["email"] != "admin@example.com" || ext["groups"] != nil || ext["name"] != nil {
				t.Errorf("the refresh token: ext %v", ext)
			}
			for _, name := range []string{"exp", "token_type", "username", "ext", "scope"} {
				delete(ours.body, name)
				delete(theirs.body, name)
			}
			if !reflect.DeepEqual(ours.body, theirs.body) {
				t.Errorf("the refresh token:\n%v, Dex says\n%v", ours.body, theirs.body)
			}
		})
	}
}

// And then the user changes.
func TestTokenIsToldAsItsUserIsNow(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser()
	tok, small := w.tokenFor(b, "openid", "email", "profile", "groups", "offline_access"), w.tokenFor(b, "openid")
	w.reload(edited(t, testConfig, "username: admin, userID: u1, groups: [admins, staff]", "username: boss, preferredUsername: chief, userID: u1, groups: [ops]"))
	for kind, raw := range kindsOf(tok) {
		got := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(raw))
		if fmt.Sprint(got.body["groups"]) != "[ops]" || got.body["name"] != "boss" || got.body["preferred_username"] != "chief" || got.body["email"] != "admin@example.com" {
			t.Errorf("userinfo with the %s: %v", kind, got.body)
		}
		if old := w.program(w.dex(), http.MethodGet, "/userinfo", nil, bearer(raw)); fmt.Sprint(old.body["groups"]) != "[admins staff]" {
			t.Errorf("Dex knows better: %v: is this still needed?", old.body)
		}
	}
	for kind, raw := range map[string]string{"access token": tok.AccessToken, "refresh token": tok.RefreshToken} {
		got := w.introspect(raw)
		ext, _ := got.body["ext"].(map[string]any)
		if got.body["active"] != true || got.body["username"] != "chief" || fmt.Sprint(ext["groups"]) != "[ops]" || ext["name"] != "boss" {
			t.Errorf("introspection of the %s: %v", kind, got.body)
		}
	}
	for kind, raw := range kindsOf(small) { // what a client was not given it does not get later
		got := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(raw))
		for _, name := range []string{"email", "email_verified", "name", "preferred_username", "groups"} {
			if v, there := got.body[name]; there {
				t.Errorf("the %s without scopes tells %s: %v", kind, name, v)
			}
		}
	}
	w.reload(edited(t, testConfig, "username: admin, userID: u1, groups: [admins, staff]", "username: boss, userID: u1"))
	if got := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(tok.AccessToken)); got.body["groups"] != nil || got.body["preferred_username"] != nil {
		t.Errorf("without groups: %v", got.body)
	}
}

func TestRefreshTokenIsIntrospected(t *testing.T) {
	inactive := func(t *testing.T, what string, a jsonAnswer) {
		t.Helper()
		if a.code != 200 || len(a.body) != 1 || a.body["active"] != false {
			t.Errorf("%s: %d %v", what, a.code, a.body)
		}
	}
	clk := &clock{}
	text := strings.NewReplacer("expiry: {refreshTokens: {reuseInterval: 0s}}", "expiry: {refreshTokens: {reuseInterval: 5s, absoluteLifetime: 10h, validIfNotUsedFor: 1h}}", "{id: web, ", "{id: web, refreshTokenLifetime: session, ").Replace(logoutConfig)
	w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	clk.stop() // a former token is good for seconds
	tok := w.tokenFor(w.browser(), "openid", "offline_access")
	began := clk.now()
	expiry := func(what string, raw string, want time.Time) {
		t.Helper()
		a := w.introspect(raw)
		exp, _ := a.body["exp"].(float64)
		if d := time.Unix(int64(exp), 0).Sub(want); a.body["active"] != true || d > time.Minute || d < -time.Minute {
			t.Errorf("%s: %v, want an expiry at %s", what, a.body, want)
		}
	}
	expiry("a new one", tok.RefreshToken, began.Add(time.Hour))
	form := url.Values{"token": {tok.RefreshToken}, "client_id": {"other"}, "client_secret": {"not-a-default-secret-5592"}}
	inactive(t, "to another client", w.program(w.provider.Handler(), http.MethodPost, "/token/introspect", form, nil))
	inactive(t, "damaged", w.introspect(tok.RefreshToken[:len(tok.RefreshToken)-4]+"AAAA"))
	inactive(t, "no token", w.introspect("x"))

	clk.add(50 * time.Minute)
	old := tok.RefreshToken
	tok.Expiry = time.Unix(1, 0)
	tok, err := webClient().TokenSource(w.direct(t.Context()), tok).Token()
	if err != nil {
		t.Fatal(err)
	}
	expiry("used", tok.RefreshToken, clk.now().Add(time.Hour))
	expiry("the former, for a moment", old, clk.now().Add(time.Hour))
	clk.add(6 * time.Second)
	inactive(t, "the former", w.introspect(old))
	clk.add(time.Hour)
	inactive(t, "not used for too long", w.introspect(tok.RefreshToken))

	tok = w.tokenFor(w.browser(), "openid", "offline_access")
	all, err := w.store.ListAuthSessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := slices.MaxFunc(all, func(a, b storage.AuthSession) int { return a.CreatedAt.Compare(b.CreatedAt) })
	expiry("another one", tok.RefreshToken, clk.now().Add(time.Hour))
	// By the store, so that the token is left as a process leaves it that dies.
	if err := w.store.DeleteAuthSession(t.Context(), last.ID); err != nil {
		t.Fatal(err)
	}
	inactive(t, "when its session is over", w.introspect(tok.RefreshToken))

	tok = w.tokenFor(w.browser(), "openid", "offline_access")
	access := tok.AccessToken
	if a := w.introspect(tok.RefreshToken); a.body["active"] != true {
		t.Fatalf("%v", a.body)
	}
	if err := w.store.UpdateUserIdentity(t.Context(), "u1", "local", func(u storage.UserIdentity) (storage.UserIdentity, error) {
		u.BlockedUntil = clk.now().Add(time.Hour)
		return u, nil
	}); err != nil {
		t.Fatal(err)
	}
	inactive(t, "of a blocked user", w.introspect(tok.RefreshToken))
	inactive(t, "an access token of a blocked user", w.introspect(access))
}

func TestRefreshTokenThatNeverExpires(t *testing.T) {
	w, _ := memoryWorld(t)
	tok := w.tokenFor(w.browser(), "openid", "offline_access")
	if a := w.introspect(tok.RefreshToken); a.body["active"] != true || a.body["exp"] != nil {
		t.Errorf("%v: want no expiry", a.body)
	}
}

func TestTokenOfAClientThatIsGone(t *testing.T) {
	w, _ := logoutWorld(t, logoutConfig)
	tok := w.tokenFor(w.browser(), "openid", "offline_access")
	w.reload(edited(t, logoutConfig, "{id: web, ", "{id: web2, "))
	for _, raw := range []string{tok.AccessToken, tok.RefreshToken} {
		form := url.Values{"token": {raw}, "client_id": {"other"}, "client_secret": {"not-a-default-secret-5592"}}
		if a := w.program(w.provider.Handler(), http.MethodPost, "/token/introspect", form, nil); a.code != 200 || a.body["active"] != false {
			t.Errorf("%d %v", a.code, a.body)
		}
	}
}

// Dex's own endpoints know RS256 only.
func TestTokensOfES256AreTold(t *testing.T) {
	w, _ := variant(t, "signer: {type: local, config: {algorithm: ES256}}\n")
	tok := w.tokenFor(w.browser(), "openid", "email")
	if a := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(tok.AccessToken)); a.code != 200 || a.body["email"] != "admin@example.com" {
		t.Errorf("userinfo: %d %v", a.code, a.body)
	}
	if a := w.introspect(tok.AccessToken); a.body["active"] != true {
		t.Errorf("introspection: %v", a.body)
	}
	hint, _ := tok.Extra("id_token").(string)
	if w.browser().get(logoutURL("id_token_hint", hint)).code != 200 {
		t.Error("it is no hint")
	}
}

func TestUserinfoByTheBook(t *testing.T) {
	w, _ := variant(t, "web: {allowedOrigins: [\"https://spa.example.com\", \"https://two.example.com\"], headers: {X-Frame-Options: DENY}}\n")
	tok := w.tokenFor(w.browser(), "openid", "email")
	h := w.provider.Handler()
	for name, tt := range map[string]struct {
		method    string
		header    http.Header
		want      int
		challenge string
	}{
		"GET":          {http.MethodGet, bearer(tok.AccessToken), 200, ""},
		"POST":         {http.MethodPost, bearer(tok.AccessToken), 200, ""},
		"DELETE":       {http.MethodDelete, bearer(tok.AccessToken), 405, ""},
		"no token":     {http.MethodGet, nil, 401, "Bearer"},
		"basic":        {http.MethodGet, http.Header{"Authorization": {"Basic eDp5"}}, 401, "Bearer"},
		"a bad token":  {http.MethodGet, bearer("x.y.z"), 401, `Bearer error="invalid_token"`},
		"two in one":   {http.MethodGet, bearer(tok.AccessToken + " " + tok.AccessToken), 401, `Bearer error="invalid_token"`},
		"a longer one": {http.MethodGet, bearer(tok.AccessToken + "A"), 401, `Bearer error="invalid_token"`},
	} {
		a := w.program(h, tt.method, "/userinfo", nil, tt.header)
		if a.code != tt.want || a.head.Get("WWW-Authenticate") != tt.challenge || a.head.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d, challenge %q, Cache-Control %q", name, a.code, a.head.Get("WWW-Authenticate"), a.head.Get("Cache-Control"))
		}
	}
	for _, path := range []string{"/userinfo", "/token/introspect"} {
		for origin, want := range map[string]string{"https://spa.example.com": "https://spa.example.com", "https://two.example.com": "https://two.example.com", "https://evil.example": "", "null": "", "https://spa.example.com.evil.example": ""} {
			header := bearer(tok.AccessToken)
			header.Set("Origin", origin)
			method, form := http.MethodGet, url.Values(nil)
			if path != "/userinfo" {
				method, form = http.MethodPost, credentials(url.Values{"token": {tok.AccessToken}})
				header.Del("Authorization")
			}
			ours, theirs := w.program(h, method, path, form, header), w.program(w.dex(), method, path, form, header)
			for _, a := range []jsonAnswer{ours, theirs} {
				if got := a.head.Get("Access-Control-Allow-Origin"); a.code != 200 || got != want || a.head.Get("X-Frame-Options") != "DENY" {
					t.Errorf("%s from %s: %d, allowed %q, want %q", path, origin, a.code, got, want)
				}
			}
			if ours.head.Get("Vary") != "Origin" {
				t.Errorf("%s from %s: Vary %q", path, origin, ours.head.Get("Vary"))
			}
		}
	}
	preflight := w.program(h, http.MethodOptions, "/userinfo", nil, http.Header{"Origin": {"https://spa.example.com"}, "Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"authorization"}})
	if preflight.code != 200 || preflight.head.Get("Access-Control-Allow-Origin") != "https://spa.example.com" {
		t.Errorf("preflight: %d %v", preflight.code, preflight.head)
	}
}

func TestIntrospectionByTheBook(t *testing.T) {
	w, _ := memoryWorld(t)
	tok := w.tokenFor(w.browser(), "openid")
	h := w.provider.Handler()
	for name, tt := range map[string]struct {
		form   url.Values
		want   int
		active any
	}{
		"good":                {credentials(url.Values{"token": {tok.AccessToken}}), 200, true},
		"with a wrong hint":   {credentials(url.Values{"token": {tok.AccessToken}, "token_type_hint": {"refresh_token"}}), 200, true},
		"no token":            {credentials(url.Values{}), 400, nil},
		"an empty token":      {credentials(url.Values{"token": {""}}), 400, nil},
		"two tokens":          {credentials(url.Values{"token": {tok.AccessToken, tok.AccessToken}}), 400, nil},
		"a bad token":         {credentials(url.Values{"token": {"x.y.z"}}), 200, false},
		"no client":           {url.Values{"token": {tok.AccessToken}}, 401, nil},
		"a client's id alone": {url.Values{"token": {tok.AccessToken}, "client_id": {"web"}}, 401, nil},
		"an unknown client":   {url.Values{"token": {tok.AccessToken}, "client_id": {"x"}, "client_secret": {"y"}}, 401, nil},
	} {
		a := w.program(h, http.MethodPost, "/token/introspect", tt.form, nil)
		if a.code != tt.want || a.body["active"] != tt.active || a.head.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v", name, a.code, a.body)
		}
	}
	if a := w.program(h, http.MethodPost, "/token/introspect?token="+tok.AccessToken, credentials(url.Values{}), nil); a.code != 400 {
		t.Errorf("a token in the query: %d", a.code)
	}
}
