package provider

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/jwt"

	"github.com/go-jose/go-jose/v4"

	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// appToken is one that the gateway hands to an app for the first user of testConfig.
func (w *world) appToken() string {
	w.t.Helper()
	now := w.now().Truncate(time.Second)
	raw, err := w.provider.SignAppToken(&AppToken{
		ConnectorID: "local", UserID: "u1", Email: "admin@example.com", Name: "A", Groups: []string{"admins", "a,b"}, Audience: "apps",
		IssuedAt: now, Expiry: now.Add(5 * time.Minute),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func headOf(t *testing.T, raw string) jws.Headers {
	t.Helper()
	m, err := jws.ParseString(raw)
	if err != nil {
		t.Fatal(err)
	}
	return m.Signatures()[0].ProtectedHeaders()
}

// published fetches the issuer's keys over HTTP, as an app does.
func (w *world) published() jwk.Set {
	w.t.Helper()
	s := httptest.NewServer(w.provider.Handler())
	defer s.Close()
	set, err := jwk.Fetch(w.t.Context(), s.URL+"/dex/keys", jwk.WithHTTPClient(s.Client()))
	if err != nil {
		w.t.Fatal(err)
	}
	return set
}

// TestAppTokenVerifies pins that an app verifies a token with jwx and the published keys, whatever the algorithm, and that its subject is
// that of the user's ID Tokens.
func TestAppTokenVerifies(t *testing.T) {
	for _, algorithm := range []string{"RS256", "ES256"} {
		w, _ := variant(t, "signer: {type: local, config: {algorithm: "+algorithm+"}}\n")
		tok, err := jwt.ParseString(w.appToken(), jwt.WithKeySet(w.published(), jws.WithRequireKid(true)), jwt.WithIssuer(issuer), jwt.WithAudience("apps"),
			jwt.WithRequiredClaim(jwt.ExpirationKey))
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		head := headOf(t, w.appToken())
		if head.Type() != front.AppTokenType || head.Algorithm().String() != algorithm || head.KeyID() == "" {
			t.Errorf("%s: header %v", algorithm, head)
		}
		claims := tok.PrivateClaims()
		if groups, _ := claims["groups"].([]any); len(groups) != 2 || groups[1] != "a,b" || claims["email"] != "admin@example.com" || claims["sid"] != nil {
			t.Errorf("%s: claims %v", algorithm, claims)
		}
		if algorithm == "RS256" { // under ES256 Dex's own endpoints do not work
			oidc, err := w.signInClient(w.browser())
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := oidc.Extra("id_token").(string)
			if id, err := w.provider.Keys().Verify(t.Context(), raw, "web"); err != nil || id.Subject != tok.Subject() {
				t.Errorf("subject %q, that of the ID Token is %q (%v)", tok.Subject(), id.Subject, err)
			}
		}
	}
}

// TestAppTokenIsNotTakenBack pins that nothing of the issuer takes a token for an app, whose signature and issuer are good.
func TestAppTokenIsNotTakenBack(t *testing.T) {
	w, _ := variant(t, "", "oauth2: {", "oauth2: {grantTypes: [authorization_code, refresh_token, password, 'urn:ietf:params:oauth:grant-type:token-exchange'], ")
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := tok.Extra("id_token").(string)
	raw := w.appToken()
	parts := strings.Split(raw, ".")
	// go-oidc reads the claims between the first two dots, go-jose the signature of the JSON serialization (RFC 7515 section 7.2).
	hidden := `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `","x":".` + parts[1] + `."}`
	for name, forged := range map[string]string{"as it is": raw, "JSON": jsonForm(raw), "JSON with dots": hidden} {
		for _, audience := range []string{"", "apps", "web"} {
			if id, err := w.provider.Keys().Verify(t.Context(), forged, audience); err == nil {
				t.Errorf("%s: verified for %q: %+v", name, audience, id)
			}
		}
		if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + forged}}); b.code != http.StatusUnauthorized {
			t.Errorf("%s: userinfo: %d %s", name, b.code, b.page)
		}
		b.do(http.MethodPost, issuer+"/token/introspect", url.Values{"token": {forged}, "client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"}}, nil)
		if !strings.Contains(b.page, `"active":false`) {
			t.Errorf("%s: introspection: %d %s", name, b.code, b.page)
		}
		if got := hinted(w, forged); got != "invalid_request" {
			t.Errorf("%s: as a hint of an authorization request: got %q", name, got)
		}
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			target, form := issuer+"/logout", url.Values{"id_token_hint": {forged}}
			if method == http.MethodGet {
				target, form = target+"?"+form.Encode(), nil
			}
			if got := lastCode(w, method, target, form); got != http.StatusBadRequest {
				t.Errorf("%s: as a hint of %s /logout: got %d, want 400", name, method, got)
			}
		}
	}
	if got := hinted(w, good); got == "invalid_request" {
		t.Error("an ID Token is refused as a hint: the test shows nothing")
	}
	if got := lastCode(w, http.MethodGet, issuer+"/logout?"+url.Values{"id_token_hint": {good}}.Encode(), nil); got == http.StatusBadRequest {
		t.Errorf("an ID Token is refused as a hint of /logout: %d", got)
	}
}

// hinted is the error of a silent authorization request with a hint.
func hinted(w *world, hint string) string {
	b := w.browser().get(clientURL("verifier") + "&prompt=none&" + url.Values{"id_token_hint": {hint}}.Encode())
	return b.last.Query().Get("error")
}

func lastCode(w *world, method, target string, form url.Values) int {
	return w.browser().do(method, target, form, nil).code
}

// TestTypesOfTokens pins which types of a good signature are taken: none, and JWT.
func TestTypesOfTokens(t *testing.T) {
	m := newMint(t)
	for typ, ok := range map[string]bool{
		"": true, `"typ":"JWT",`: true, `"typ":"jwt",`: true,
		`"typ":"gatehouse-app+jwt",`: false, `"typ":"GATEHOUSE-APP+JWT",`: false, `"typ":"application/gatehouse-app+jwt",`: false, `"typ":"at+jwt",`: false,
		`"typ":"",`: false, `"typ":null,`: false, `"typ":["JWT"],`: false,
	} {
		input := b64(`{`+typ+`"alg":"ES256","kid":"current"}`) + "." + b64(m.payload(&dice{}, ""))
		raw := input + "." + b64(m.sign(&dice{}, input))
		if _, err := m.set.Verify(t.Context(), raw, "gatehouse"); (err == nil) != ok {
			t.Errorf("%s: got %v, want accepted %v", typ, err, ok)
		}
		if err := CheckHint(raw); (err == nil) != ok {
			t.Errorf("%s as a hint: got %v, want accepted %v", typ, err, ok)
		}
	}
}

// TestSubjectTokens pins what is kept from a token exchange.
func TestSubjectTokens(t *testing.T) {
	w, _ := memoryWorld(t)
	raw := w.appToken()
	upper := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"Gatehouse-App+JWT"}`)) + raw[strings.IndexByte(raw, '.'):]
	for subject, void := range map[string]bool{
		raw: true, upper: true, raw[:3] + " " + raw[3:]: true, raw[:3] + "\n" + raw[3:]: true, "\t" + raw: true, jsonForm(raw): true, // go-jose takes them all
		"opaque": false, "opaque/with+signs~|=": false, "e30.e30.x": false, "": false,
	} {
		if got := front.Void(subject); got != void {
			t.Errorf("%.60s: got void %v, want %v", subject, got, void)
		}
	}
}

// TestAppTokenOfANewKey pins that a new key signs tokens for apps only once everybody can know it, that what signs is always published
// until the token expires, and that a fresh process signs with what there is.
func TestAppTokenOfANewKey(t *testing.T) {
	w, clk := memoryWorld(t)
	clk.stop()
	first := headOf(t, w.appToken()).KeyID()
	clk.add(7 * time.Hour)
	if _, err := rotateOnce(t.Context(), w.provider.keyCache, clk.now); err != nil {
		t.Fatal(err)
	}
	next := w.provider.keyCache.current.Load().Next
	if next == nil || next.Key.KeyID == first {
		t.Fatal("the key was not rotated")
	}
	second := next.Key.KeyID
	set := w.published()
	for _, id := range []string{first, second} {
		if _, there := set.LookupKeyID(id); !there {
			t.Errorf("key %s is not published", id)
		}
	}
	if got := headOf(t, w.appToken()).KeyID(); got != first {
		t.Errorf("right after the rotation: got key %s, want the former %s", got, first)
	}
	clk.add(publishedFirst)
	if got := headOf(t, w.appToken()).KeyID(); got != second {
		t.Errorf("once it is known: got key %s, want the new %s", got, second)
	}
	cache := &keyCache{Store: w.store, now: clk.now, set: &KeySet{issuer: issuer, now: clk.now}}
	if _, err := cache.forApps(clk.now()); err == nil {
		t.Error("signed without a key")
	}
	if err := cache.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if key, err := cache.forApps(clk.now()); err != nil || key.KeyID != second {
		t.Errorf("a fresh process: got %v, want %s", err, second)
	}
	// A former key that is not published long enough signs no more.
	k := *w.provider.keyCache.effective()
	old := k.VerificationKeys[0].PublicKey.KeyID
	if !verifies(&k.Keys, old, k.VerificationKeys[0].Expiry) || verifies(&k.Keys, old, k.VerificationKeys[0].Expiry.Add(1)) || verifies(&k.Keys, "other", clk.now()) {
		t.Error("whether a key stays published is not looked at")
	}
}

// TestAppTokenLength pins that a token is no longer than what it says.
func TestAppTokenLength(t *testing.T) {
	w, _ := memoryWorld(t)
	groups := []string{"R&D", "<all>"}
	raw, err := w.provider.SignAppToken(&AppToken{ConnectorID: "local", UserID: "u1", Groups: groups, Audience: "apps", IssuedAt: w.now(), Expiry: w.now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil || !strings.Contains(string(b), `"groups":["R&D","<all>"],`) {
		t.Errorf("got %s (%v)", b, err)
	}
}

// TestAppTokenClaimNames pins the claims: no more than documented, and no secret.
func TestAppTokenClaimNames(t *testing.T) {
	w, _ := memoryWorld(t)
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(w.appToken(), ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range claims {
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "aud email exp federated_claims groups iat iss name sub" {
		t.Errorf("got %s", got)
	}
	if got := fmt.Sprint(claims["federated_claims"]); got != "map[connector_id:local user_id:u1]" {
		t.Errorf("got %s, want the user at the connector", got)
	}
}

// otherReplica is what another process, or the next one, knows of the keys.
func (w *world) otherReplica() *keyCache {
	w.t.Helper()
	c := &keyCache{Store: w.store, now: w.now, set: &KeySet{issuer: issuer, now: w.now}}
	if err := c.read(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// TestAppTokenOfManyNewKeys pins that no key signs tokens for apps that has not been published for long enough while there is one that has, however
// fast keys follow one another, in the process that made them, in another one, and after a restart; and that what signs stays published until the
// token expires, however short that is for ID Tokens.
func TestAppTokenOfManyNewKeys(t *testing.T) {
	for _, tt := range []struct {
		every, idTokens string
		step            time.Duration
	}{{"10m", "24h", 10 * time.Minute}, {"1m", "6m", time.Minute}, {"29m", "5m", 29 * time.Minute}, {"6h", "5m", 15 * time.Minute}} {
		w, clk := variant(t, "signer: {type: local, config: {algorithm: ES256, keysRotationPeriod: "+tt.every+"}}\n", "reuseInterval: 0s}", "reuseInterval: 0s}, idTokens: "+tt.idTokens)
		clk.stop()                     // or minutes of a slow machine would count
		seen := map[string]time.Time{} // since when it is published
		first := clk.now()
		for id := range w.publishedIDs() {
			seen[id] = first.Add(-publishedFirst)
		}
		signers := map[string]bool{}
		for range 100 {
			clk.add(tt.step)
			w.rotate()
			now, published := clk.now(), w.publishedIDs()
			for id := range published {
				if _, known := seen[id]; !known {
					seen[id] = now
				}
			}
			for _, at := range []time.Duration{0, tt.step / 2} {
				for who, c := range map[string]*keyCache{"this process": w.provider.keyCache, "a fresh one": w.otherReplica()} {
					clk.add(at)
					key, err := c.forApps(clk.now().Add(time.Hour))
					if err != nil {
						t.Fatal(err)
					}
					if since := clk.now().Sub(seen[key.KeyID]); since < publishedFirst {
						t.Errorf("every %s, %s: signed with a key that is published for %v", tt.every, who, since)
					}
					if !published[key.KeyID] || !w.staysPublished(key.KeyID, clk.now().Add(time.Hour)) {
						t.Errorf("every %s, %s: the key that signs does not stay published", tt.every, who)
					}
					signers[key.KeyID] = true
					clk.add(-at)
				}
			}
			if k, err := w.store.SigningKeys(t.Context()); err != nil || len(k.Former) > maxFormerKeys {
				t.Errorf("every %s: got %d former keys (%v), want %d at most", tt.every, len(k.Former), err, maxFormerKeys)
			}
			if t.Failed() {
				break
			}
		}
		if len(signers) < 4 {
			t.Errorf("every %s: %d keys have signed, want them to follow one another", tt.every, len(signers))
		}
	}
}

// rotate lets Dex look whether a new key is due.
func (w *world) rotate() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	s, err := w.provider.openSigner(w.provider.current.Load().config)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Start(ctx)
}

// publishedIDs are the ids of the keys that are published now.
func (w *world) publishedIDs() map[string]bool {
	out := map[string]bool{}
	set := *w.provider.keys.keys.Load()
	for i := range set.Len() {
		key, _ := set.Key(i)
		out[key.KeyID()] = true
	}
	return out
}

// staysPublished reports whether the stored keys say that a key is published until then.
func (w *world) staysPublished(id string, until time.Time) bool {
	w.t.Helper()
	stored, err := w.store.SigningKeys(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	k := keysAt(stored, w.now())
	return k.SigningKey.KeyID == id || verifies(&k.Keys, id, until)
}

// TestAppTokenOfAWithdrawnKey pins that a key which is published no more signs no more, at once, in every process, and that nothing of it is left.
func TestAppTokenOfAWithdrawnKey(t *testing.T) {
	w, clk := memoryWorld(t)
	clk.stop()
	first := headOf(t, w.appToken()).KeyID()
	clk.add(7 * time.Hour)
	if _, err := rotateOnce(t.Context(), w.provider.keyCache, clk.now); err != nil {
		t.Fatal(err)
	}
	if got := headOf(t, w.appToken()).KeyID(); got != first {
		t.Fatalf("right after the rotation: got key %s, want the former %s", got, first)
	}
	clk.add(w.provider.keyCache.lead())
	if got := headOf(t, w.appToken()).KeyID(); got != first || w.provider.keyCache.current.Load().Next != nil {
		t.Fatalf("once the new one signs: got key %s, want the former %s still", got, first)
	}
	other := w.otherReplica()
	err := w.provider.keyCache.UpdateKeys(t.Context(), func(k storage.Keys) (storage.Keys, error) {
		k.VerificationKeys = nil
		return k, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := headOf(t, w.appToken()).KeyID(); got == first {
		t.Error("the withdrawn key signs")
	}
	if k, err := w.store.SigningKeys(t.Context()); err != nil || len(k.Former) != 0 {
		t.Errorf("got %d former keys (%v) in the storage, want none", len(k.Former), err)
	}
	if err := other.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	for who, c := range map[string]*keyCache{"another process": other, "a fresh one": w.otherReplica()} {
		if key, err := c.forApps(clk.now().Add(time.Minute)); err != nil || key.KeyID == first {
			t.Errorf("%s: got %v, want the key that is left", who, err)
		}
	}
}

// TestAppTokenOutlivesNoKey pins that no key signs that is published no longer than the token is good, and what signs in its place.
func TestAppTokenOutlivesNoKey(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	key := func(id string) *jose.JSONWebKey { return &jose.JSONWebKey{KeyID: id, Algorithm: "ES256"} }
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		rule                     string
		oldest, former, current  time.Time     // since when they are published
		oldestStays, formerStays time.Duration // how long they stay
		want                     string
	}{
		{"the current, once it is known", ago(90 * time.Minute), ago(time.Hour), ago(publishedFirst), time.Hour, time.Hour, "current"},
		{"the former, before that", ago(90 * time.Minute), ago(time.Hour), ago(publishedFirst - 1), time.Hour, time.Hour, "former"},
		{"the oldest, where that is new as well", ago(90 * time.Minute), ago(time.Minute), ago(0), time.Hour, time.Hour, "oldest"},
		{"a new one, where the known one ends", ago(90 * time.Minute), ago(time.Minute), ago(0), time.Minute, time.Hour, "former"},
		{"the newest, where all others end", ago(90 * time.Minute), ago(time.Hour), ago(0), time.Minute, time.Minute, "current"},
		{"one of before times were noted", time.Time{}, time.Time{}, ago(0), time.Hour, time.Hour, "former"},
		{"to the second", ago(90 * time.Minute), ago(time.Hour), ago(0), time.Hour, 5 * time.Minute, "former"},
	} {
		c := &keyCache{now: func() time.Time { return now }}
		c.current.Store(&store.Keys{
			Keys: storage.Keys{SigningKey: key("current"), VerificationKeys: []storage.VerificationKey{
				{PublicKey: key("oldest"), Expiry: now.Add(tt.oldestStays)}, {PublicKey: key("former"), Expiry: now.Add(tt.formerStays)},
			}},
			Published: tt.current, Former: []store.FormerKey{{Key: key("oldest"), Published: tt.oldest}, {Key: key("former"), Published: tt.former}},
		})
		if got, err := c.forApps(now.Add(5 * time.Minute)); err != nil || got.KeyID != tt.want {
			t.Errorf("%s: got %v (%v), want %s", tt.rule, got, err, tt.want)
		}
	}
}
