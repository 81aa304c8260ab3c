package envoy

import (
	"bytes"
	"compress/flate"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A forger makes tokens of a good one: it knows what everybody can know, the issuer's public key and one user's token.
type forger struct {
	token           string // access token of user for the outside client
	head, claims    map[string]any
	header, payload string // as they stand in the token
	sig             string
	public          *rsa.PublicKey
	n               string // its modulus as the key set shows it
	own             *rsa.PrivateKey
	trap            string // URL where keys would be fetched, if anybody did
	session         string // the sealed cookie of a browser
}

// forger gets a token and keys; they are made once.
func (w *world) forger(t testing.TB, e *edge) *forger {
	t.Helper()
	if w.forged != nil {
		return w.forged
	}
	f := &forger{token: w.goodToken(t, e), trap: "http://" + w.app.addr + "/keys", session: w.known.cookie(issuer+"/", ssoCookie)}
	parts := strings.Split(f.token, ".")
	f.header, f.payload, f.sig = parts[0], parts[1], parts[2]
	for part, v := range map[string]*map[string]any{f.header: &f.head, f.payload: &f.claims} {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	var set struct {
		Keys []struct{ Kid, N string }
	}
	p := must(t)(fetch(t.Context(), e.http, http.MethodGet, issuer+"/keys", ""))
	jsonBody(t, p, &set)
	for _, k := range set.Keys {
		if k.Kid == f.head["kid"] {
			f.n = k.N
		}
	}
	n, err := base64.RawURLEncoding.DecodeString(f.n)
	if err != nil || len(n) == 0 {
		t.Fatalf("no key %v in %s: %v", f.head["kid"], p, err)
	}
	f.public = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	if f.own, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	w.forged = f
	return f
}

// goodToken is an access token of user for the outside client, of a session that lives as long as the table runs.
func (w *world) goodToken(t testing.TB, e *edge) string {
	t.Helper()
	w.outsideTokens(t, e)
	s, _ := w.tokens["access_token"].(string)
	return s
}

func (w *world) idToken(t testing.TB, e *edge) string {
	t.Helper()
	w.outsideTokens(t, e)
	s, _ := w.tokens["id_token"].(string)
	return s
}

func (w *world) outsideTokens(t testing.TB, e *edge) {
	t.Helper()
	if w.tokens != nil {
		return
	}
	status, got := w.token(t, e, w.client.id, codeForm(w.codeFor(t, e, nil)))
	if status != http.StatusOK {
		t.Fatalf("%d %v", status, got)
	}
	w.tokens = got
}

func part(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // never: maps of strings and numbers
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// with returns a header or claims with some changed; nil removes.
func with(m map[string]any, change map[string]any) map[string]any {
	out := maps.Clone(m)
	maps.Copy(out, change)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

// raised are the claims that the attacker would like to have.
func (f *forger) raised() string {
	return part(with(f.claims, map[string]any{"email": administrator, "groups": []string{"admins"}, "aud": "gatehouse", "exp": 4102444800}))
}

// hs256 signs with what the attacker takes for the shared key.
func (f *forger) hs256(key []byte) string {
	text := part(with(f.head, map[string]any{"alg": "HS256"})) + "." + f.raised()
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// rs256 signs with the attacker's own key under a header of their choice.
func (f *forger) rs256(head map[string]any) string {
	text := part(with(f.head, head)) + "." + f.raised()
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, f.own, crypto.SHA256, sum[:])
	if err != nil {
		panic(err) // never: key and hash fit
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func (f *forger) jwk() map[string]any {
	return map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": f.head["kid"], "e": "AQAB", "n": base64.RawURLEncoding.EncodeToString(f.own.N.Bytes())}
}

func (f *forger) der() []byte {
	b, err := x509.MarshalPKIXPublicKey(f.public)
	if err != nil {
		panic(err) // never: it is an RSA key
	}
	return b
}

func (f *forger) es256() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // never (crypto/rand)
	}
	text := part(with(f.head, map[string]any{"alg": "ES256"})) + "." + f.raised()
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic(err) // never
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func (f *forger) eddsa() string {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // never (crypto/rand)
	}
	text := part(with(f.head, map[string]any{"alg": "EdDSA"})) + "." + f.raised()
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(text)))
}

// jwe is a token of five parts with a header of the attacker's.
func (f *forger) jwe(head map[string]any) string {
	bomb := &bytes.Buffer{}
	z, err := flate.NewWriter(bomb, flate.BestCompression)
	if err != nil {
		panic(err) // never: the level is one
	}
	_, _ = z.Write(make([]byte, 8<<20)) // into memory
	_ = z.Close()
	return part(head) + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 40)) + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 12)) + "." +
		base64.RawURLEncoding.EncodeToString(bomb.Bytes()) + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 16))
}

// forgeries are tokens that are worth nothing.
var forgeries = map[string]func(f *forger) string{
	"alg none": func(f *forger) string {
		return part(with(f.head, map[string]any{"alg": "none"})) + "." + f.raised() + "."
	},
	"alg None": func(f *forger) string {
		return part(with(f.head, map[string]any{"alg": "None"})) + "." + f.raised() + "."
	},
	"alg nOnE, with a signature": func(f *forger) string {
		return part(with(f.head, map[string]any{"alg": "nOnE"})) + "." + f.raised() + "." + f.sig
	},
	"alg none, good claims": func(f *forger) string {
		return part(with(f.head, map[string]any{"alg": "none"})) + "." + f.payload + "."
	},
	"alg empty": func(f *forger) string { return part(with(f.head, map[string]any{"alg": ""})) + "." + f.raised() + "." },
	"alg missing": func(f *forger) string {
		return part(with(f.head, map[string]any{"alg": nil})) + "." + f.raised() + "." + f.sig
	},
	"HS256 with the modulus":         func(f *forger) string { return f.hs256(f.public.N.Bytes()) },
	"HS256 with the modulus as text": func(f *forger) string { return f.hs256([]byte(f.n)) },
	"HS256 with the key in DER":      func(f *forger) string { return f.hs256(f.der()) },
	"HS256 with the key in PEM": func(f *forger) string {
		return f.hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: f.der()}))
	},
	"HS256 with the key in PKCS 1": func(f *forger) string {
		return f.hs256(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(f.public)}))
	},
	"HS256 with an empty key": func(f *forger) string { return f.hs256(nil) },
	"another key, same kid":   func(f *forger) string { return f.rs256(nil) },
	"another key in jwk":      func(f *forger) string { return f.rs256(map[string]any{"jwk": f.jwk()}) },
	"another key behind jku":  func(f *forger) string { return f.rs256(map[string]any{"jku": f.trap, "kid": "x"}) },
	"another key behind x5u":  func(f *forger) string { return f.rs256(map[string]any{"x5u": f.trap, "kid": "x"}) },
	"another key in x5c": func(f *forger) string {
		return f.rs256(map[string]any{"x5c": []string{base64.StdEncoding.EncodeToString(f.der())}, "kid": "x"})
	},
	"another key, jku beside the kid": func(f *forger) string { return f.rs256(map[string]any{"jku": f.trap, "x5u": f.trap}) },
	"kid that is a path":              func(f *forger) string { return f.rs256(map[string]any{"kid": "../../../../dev/null"}) },
	"kid that is a query":             func(f *forger) string { return f.rs256(map[string]any{"kid": "x' UNION SELECT 'k"}) },
	"kid that is a URL":               func(f *forger) string { return f.rs256(map[string]any{"kid": f.trap}) },
	"kid of 32 kB":                    func(f *forger) string { return f.rs256(map[string]any{"kid": strings.Repeat("k", 32<<10)}) },
	"kid that is no text":             func(f *forger) string { return f.rs256(map[string]any{"kid": []int{1}}) },
	"no kid":                          func(f *forger) string { return f.rs256(map[string]any{"kid": nil}) },
	"ES256":                           func(f *forger) string { return f.es256() },
	"EdDSA":                           func(f *forger) string { return f.eddsa() },
	"PS256 for RS256": func(f *forger) string {
		return part(with(f.head, map[string]any{"alg": "PS256"})) + "." + f.payload + "." + f.sig
	},
	"crit": func(f *forger) string { return f.rs256(map[string]any{"crit": []string{"exp"}, "exp": 1}) },
	"unencoded payload": func(f *forger) string {
		return part(with(f.head, map[string]any{"b64": false, "crit": []string{"b64"}})) + "." + f.payload + "." + f.sig
	},
	"claims of another":        func(f *forger) string { return f.header + "." + f.raised() + "." + f.sig },
	"claims longer by a blank": func(f *forger) string { return f.header + "." + part(f.claims) + "IA." + f.sig },
	"no signature":             func(f *forger) string { return f.header + "." + f.payload + "." },
	"half a signature":         func(f *forger) string { return f.header + "." + f.payload + "." + f.sig[:len(f.sig)/2] },
	"a signature less one":     func(f *forger) string { return f.header + "." + f.payload + "." + f.sig[:len(f.sig)-1] },
	"damaged signature":        func(f *forger) string { return f.header + "." + f.payload + "." + damage(f.sig) },
	"empty":                    func(*forger) string { return "" },
	"a dot":                    func(*forger) string { return "." },
	"two dots":                 func(*forger) string { return ".." },
	"20,000 dots":              func(*forger) string { return strings.Repeat(".", 20000) },
	"two parts":                func(f *forger) string { return f.header + "." + f.payload },
	"four parts":               func(f *forger) string { return f.token + "." + f.sig },
	"five parts":               func(f *forger) string { return f.token + "." + f.payload + "." + f.sig },
	"twice":                    func(f *forger) string { return f.token + "," + f.token },
	"nested": func(f *forger) string {
		return part(with(f.head, map[string]any{"cty": "JWT"})) + "." + base64.RawURLEncoding.EncodeToString([]byte(f.token)) + "." + f.sig
	},
	"encrypted with a billion rounds": func(f *forger) string {
		return f.jwe(map[string]any{"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": 2000000000, "p2s": "AAAAAAAA"})
	},
	"encrypted, a compressed bomb": func(f *forger) string { return f.jwe(map[string]any{"alg": "dir", "enc": "A128GCM", "zip": "DEF"}) },
	"encrypted for the public key": func(f *forger) string {
		return f.jwe(map[string]any{"alg": "RSA-OAEP", "enc": "A256GCM", "kid": f.head["kid"]})
	},
	"a session cookie": func(f *forger) string { return f.session },
	"header nested 10,000 deep": func(f *forger) string {
		return base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat(`{"a":`, 5000)+"1"+strings.Repeat("}", 5000))) + "." + f.payload + "." + f.sig
	},
}

// joseRows show forged tokens wherever a token is read.
func joseRows() (all []row) {
	const family = "JOSE"
	for name, make := range inOrder(forgeries) {
		all = append(all, row{family: family, name: name, on: []string{"hardened", "direct", "issuer"}, play: func(t testing.TB, w *world, e *edge) {
			w.isForged(t, e, make(w.forger(t, w.issuer)))
		}})
	}
	return append(all,
		row{family: family, name: "JSON serialization, of a session that has ended", on: atIssuer(), play: jsonOfTheEnded},
		row{family: family, name: "JSON serialization", on: atIssuer(), play: jsonOfTheLiving},
		row{family: family, name: "a good token is good at the issuer, and for no app", on: []string{"hardened", "direct", "issuer"}, play: func(t testing.TB, w *world, e *edge) {
			token := w.forger(t, w.issuer).token
			if p := w.userinfo(t, e, token); p.status != http.StatusOK || !strings.Contains(p.body, user) {
				t.Errorf("userinfo: %s", p)
			}
			if p := w.introspect(t, e, token); p.status != http.StatusOK || !strings.Contains(p.body, `"active":true`) {
				t.Errorf("introspection: %s", p)
			}
			for _, minted := range []string{token, w.idToken(t, w.issuer)} {
				w.isNoBearer(t, e, minted)
			}
		}},
	)
}

// jsonForms are the other serializations of a token (RFC 7515 section 7.2), without a dot.
func jsonForms(token string) []string {
	p := strings.Split(token, ".")
	return []string{
		fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, p[1], p[0], p[2]),
		fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, p[1], p[0], p[2]),
	}
}

// jsonOfTheEnded shows tokens of a session that has ended.
func jsonOfTheEnded(t testing.TB, w *world, e *edge) {
	b, code := w.outsideAs(t, e, administrator, "openid email")
	_, got := w.token(t, e, w.client.id, codeForm(code))
	token, _ := got["access_token"].(string)
	b.edge = w.gateway()
	must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	if p := w.introspect(t, e, token); !strings.Contains(p.body, `"active":true`) {
		t.Fatalf("before the sign-out: %s", p)
	}
	w.signOut(t, b, appHost)
	for _, form := range append(jsonForms(token), token) {
		if p := w.introspect(t, e, form); !strings.Contains(p.body, `"active":false`) {
			t.Errorf("introspection after the sign-out of %.12s…: %s", form, p)
		}
		if p := w.userinfo(t, e, form); p.status != http.StatusUnauthorized {
			t.Errorf("userinfo after the sign-out of %.12s…: %s", form, p)
		}
	}
}

// jsonOfTheLiving shows tokens of a session that lives: docs/divergences.md says that only the compact form is taken.
func jsonOfTheLiving(t testing.TB, w *world, e *edge) {
	for _, form := range jsonForms(w.forger(t, w.issuer).token) {
		if p := w.introspect(t, e, form); !strings.Contains(p.body, `"active":false`) {
			t.Errorf("introspection of %.12s…: %s", form, p)
		}
		if p := w.userinfo(t, e, form); p.status != http.StatusUnauthorized {
			t.Errorf("userinfo of %.12s…: %s", form, p)
		}
		w.isNoBearer(t, e, form)
	}
}

func (w *world) userinfo(t testing.TB, e *edge, token string) *page {
	t.Helper()
	return must(t)(fetch(t.Context(), e.http, http.MethodGet, issuer+"/userinfo", "", "Authorization: Bearer "+token))
}

func (w *world) introspect(t testing.TB, e *edge, token string) *page {
	t.Helper()
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(w.client.id, w.client.secret)
	return must(t)(fetch(t.Context(), e.http, http.MethodPost, issuer+"/token/introspect", url.Values{"token": {token}}.Encode(), "Content-Type: application/x-www-form-urlencoded",
		"Authorization: "+r.Header.Get("Authorization")))
}

// isForged checks that a token opens nothing: no userinfo, no app, no logout, and that nobody fetches a key for it.
func (w *world) isForged(t testing.TB, e *edge, token string) {
	t.Helper()
	w.app.take() // of the sign-in before the first
	// Envoy refuses what does not fit into its limit for headers.
	if p := w.userinfo(t, e, token); p.status != http.StatusUnauthorized && p.status != http.StatusRequestHeaderFieldsTooLarge || strings.Contains(p.body, "@example.com") {
		t.Errorf("userinfo: %s", p)
	}
	if p := w.introspect(t, e, token); strings.Contains(p.body, `"active":true`) || p.status >= 500 {
		t.Errorf("introspection: %s", p)
	}
	b := w.knownBrowser(t, e)
	form := url.Values{"id_token_hint": {token}, "post_logout_redirect_uri": {clientOrigin + "/bye"}}
	if p := must(t)(b.clone().step(t.Context(), http.MethodPost, issuer+"/logout", form, "Origin: http://evil.example")); strings.HasPrefix(p.location(), clientOrigin) || p.status >= 500 {
		t.Errorf("logout: %s", p)
	}
	w.stillKnown(t, b)
	w.isNoBearer(t, e, token)
	if a := w.app.take(); len(a) != 0 {
		t.Errorf("fetched, or passed: %+v", a)
	}
}

// isNoBearer shows a token to the gateway, in place of and beside a cookie.
func (w *world) isNoBearer(t testing.TB, e *edge, token string) {
	t.Helper()
	if !e.checked {
		return
	}
	for _, target := range []string{"/headers", "/admin/x", "/_gatehouse/whoami"} {
		if p := must(t)(fetch(t.Context(), e.http, http.MethodGet, "http://"+appHost+target, "", "Authorization: Bearer "+token)); p.status != http.StatusUnauthorized && p.status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: got %s, want 401", target, p)
		}
	}
	if p := must(t)(fetch(t.Context(), e.http, http.MethodGet, "http://"+appHost+"/headers", "", "Cookie: "+sessionCookie+"="+token, "Accept: text/html")); p.status == http.StatusOK {
		t.Errorf("as a cookie: %s", p)
	}
}
