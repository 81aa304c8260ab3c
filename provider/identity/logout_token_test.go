package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

var someDay = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// documents serves an OpenID Provider's metadata and keys, whatever these are.
func documents(t *testing.T, keys func(w http.ResponseWriter, r *http.Request)) (*logoutVerifier, string) {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, server.URL, server.URL+"/keys")
	})
	mux.HandleFunc("/keys", keys)
	config, err := json.Marshal(map[string]any{"issuer": server.URL, "clientID": "us"})
	if err != nil {
		t.Fatal(err)
	}
	v, err := newLogoutVerifier(config, documentsLimit)
	if err != nil {
		t.Fatal(err)
	}
	return v, server.URL
}

func claimsAt(issuer string, now time.Time) map[string]any {
	return map[string]any{"iss": issuer, "aud": "us", "iat": now.Unix(), "exp": now.Unix() + 120, "jti": "j", "sub": "s", "events": map[string]any{logoutEvent: map[string]any{}}}
}

func signed(t testing.TB, alg jwa.SignatureAlgorithm, key any, claims any) string {
	t.Helper()
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.Sign(b, jws.WithKey(alg, key))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func published(t testing.TB, keys ...any) []byte {
	t.Helper()
	set := jwk.NewSet()
	for _, raw := range keys {
		k, err := jwk.FromRaw(raw)
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.PublicKey()
		if err != nil || set.AddKey(public) != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Keys of every type, none of which says its id or its algorithm, and some that nobody knows.
func TestLogoutTokenOfEveryAlgorithm(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curves := map[jwa.SignatureAlgorithm]elliptic.Curve{jwa.ES256: elliptic.P256(), jwa.ES384: elliptic.P384(), jwa.ES512: elliptic.P521()}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[jwa.SignatureAlgorithm]any{
		jwa.RS256: rsaKey, jwa.RS384: rsaKey, jwa.RS512: rsaKey, jwa.PS256: rsaKey, jwa.PS384: rsaKey, jwa.PS512: rsaKey, jwa.EdDSA: edwards,
	}
	all := []any{rsaKey, edwards}
	for alg, curve := range curves {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[alg], all = k, append(all, k)
	}
	document := strings.Replace(string(published(t, all...)), `{"keys":[`, `{"keys":[{"kty":"NEW","x":"y"},{"kty":"oct","k":"c2VjcmV0"},`, 1)
	v, issuer := documents(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, document) })
	for _, alg := range algorithms {
		if _, err := v.verify(t.Context(), signed(t, alg, keys[alg], claimsAt(issuer, someDay)), someDay); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
	if _, err := v.verify(t.Context(), signed(t, jwa.HS256, []byte("secret"), claimsAt(issuer, someDay)), someDay); err == nil {
		t.Error("a published secret signs")
	}
}

func TestKeysOfAnOpenIDProviderAreBounded(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := published(t, key)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) }))
	defer elsewhere.Close()
	for name, tt := range map[string]struct {
		keys http.HandlerFunc
		want bool
	}{
		"as they should be": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) }, true},
		"with much around them": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat(" ", maxDocument)+string(good))
		}, false},
		"101 of them": {func(w http.ResponseWriter, _ *http.Request) {
			one := strings.TrimSuffix(strings.TrimPrefix(string(good), `{"keys":[`), `]}`)
			_, _ = io.WriteString(w, `{"keys":[`+strings.Repeat(one+",", maxKeys)+one+`]}`)
		}, false},
		"none":                  {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"keys":[]}`) }, false},
		"no JSON":               {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `<html>`) }, false},
		"an error":              {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound); _, _ = w.Write(good) }, false},
		"moved to another host": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, false},
		"moved within the host": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "" {
				http.Redirect(w, r, "/keys?x", http.StatusFound)
				return
			}
			_, _ = w.Write(good)
		}, true},
		"moved for ever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			v, issuer := documents(t, tt.keys)
			if _, err := v.verify(t.Context(), signed(t, jwa.RS256, key, claimsAt(issuer, someDay)), someDay); (err == nil) != tt.want {
				t.Errorf("got %v, want good: %v", err, tt.want)
			}
		})
	}
}

// Whatever comes, it is taken only if it says what a logout token has to say.
func FuzzLogoutToken(f *testing.F) {
	v := &logoutVerifier{issuer: "https://op.example", clientID: "us"}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	good := claimsAt(v.issuer, someDay)
	f.Add(signed(f, jwa.RS256, key, good))
	for _, name := range []string{"iss", "aud", "iat", "exp", "jti", "sub", "events"} {
		without := claimsAt(v.issuer, someDay)
		delete(without, name)
		f.Add(signed(f, jwa.RS256, key, without))
	}
	f.Add("e30.e30.")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, raw string) {
		token, err := parseLogoutToken(raw)
		if err != nil {
			return
		}
		l, err := v.check(token.claims, someDay)
		if err != nil {
			return
		}
		if token.alg == jwa.NoSignature || strings.HasPrefix(token.alg.String(), "HS") {
			t.Errorf("alg %s", token.alg)
		}
		if l.ID == "" || l.Subject == "" && l.SessionID == "" || l.Expiry.After(someDay.Add(maxLogoutAge+logoutSkew)) {
			t.Errorf("taken as %+v", l)
		}
		var c map[string]any // not a struct, which would take a name in any case
		if err := json.Unmarshal(mustPayload(t, raw), &c); err != nil {
			t.Fatal(err)
		}
		events, _ := c["events"].(map[string]any)
		_, event := events[logoutEvent].(map[string]any)
		if _, nonce := c["nonce"]; c["iss"] != v.issuer || nonce || !event {
			t.Errorf("taken: %v", c)
		}
	})
}

func mustPayload(t *testing.T, raw string) []byte {
	t.Helper()
	m, err := jws.Parse([]byte(raw))
	if err != nil {
		t.Fatalf("jwx does not take it: %v", err)
	}
	return m.Payload()
}
