package envoy

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/jwt"

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// appAudience is who the tokens of these tests are for.
const appAudience = "kubeflow-apps"

// jwtFilter is the filter of docs/apps.md that verifies the token behind the check, for this issuer and an audience: everything needs one,
// but for the issuer, and for paths that are open to anyone, where it may be missing.
func jwtFilter(t *testing.T, audience string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(peers.Root(t), "docs", "apps.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "```yaml\n- name: envoy")
	text, _, end := strings.Cut("- name: envoy"+text, "```")
	for _, part := range []string{"https://auth.example.com/dex", "gatehouse-issuer", "[kubeflow-apps]"} {
		if !found || !end || !strings.Contains(text, part) {
			t.Fatalf("docs/apps.md has no filter with %s", part)
		}
	}
	text = strings.NewReplacer("https://auth.example.com/dex", issuer, "auth.example.com", issuerHost, "gatehouse-issuer", "upstream-1", "[kubeflow-apps]", "["+audience+"]").Replace(text)
	const indent = "          "
	return indent + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+indent) + "\n"
}

// tokenWorld is a world whose apps get a token, with an Envoy that wants one for the audience behind the check.
func tokenWorld(t *testing.T, audience string) *world {
	t.Helper()
	w, e := newBareWorld(t, "memory", func(text string) string {
		const headers = "kubeflow-name: name}"
		if strings.Count(text, headers) != 1 {
			t.Fatal("the configuration has another form")
		}
		return strings.Replace(text, headers, headers+", token: {audience: "+appAudience+"}", 1)
	})
	// As in deploy/envoy/envoy.yaml, and not as in the demo: the issuer's path is the issuer's on its own host alone.
	all := e.Hosts[0]
	e.Hosts = []demo.VirtualHost{
		{Name: "issuer", Domains: []string{issuerHost}, Routes: all.Routes},
		{Name: "apps", Domains: all.Domains, Routes: all.Routes[len(all.Routes)-1:]},
	}
	w.hardened = verifying(t, e, audience)
	return w
}

func verifying(t *testing.T, e demo.Edge, audience string) *edge {
	t.Helper()
	filter := jwtFilter(t, audience)
	proxy := peers.Envoy(t, e, func(config string) string {
		const router = "          - name: envoy.filters.http.router\n"
		if strings.Count(config, router) != 1 {
			t.Fatal("Envoy's configuration has another form")
		}
		return strings.Replace(config, router, filter+router, 1)
	})
	return newEdge(t, "hardened", proxy.Addr, proxy)
}

// TestAppToken pins that what follows the check verifies the token by the issuer's published keys: Envoy's jwt_authn, and an app with
// jwx; and that nobody takes it back.
func TestAppToken(t *testing.T) {
	w := tokenWorld(t, appAudience)
	b := w.signedIn(t, w.hardened, user)
	w.app.take()
	if p := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers")); p.status != http.StatusOK {
		t.Fatalf("through jwt_authn: %s", p)
	}
	seen := w.app.take()
	if len(seen) != 1 {
		t.Fatalf("got %d requests at the app", len(seen))
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(seen[0].header.Get("X-Jwt-Payload"), "="))
	var claims struct{ Email, Iss, Aud string }
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Email != user || claims.Iss != issuer || claims.Aud != appAudience {
		t.Errorf("Envoy verified %q (%v)", payload, err)
	}
	raw, bearer := strings.CutPrefix(seen[0].header.Get("Authorization"), "Bearer ")
	if !bearer {
		t.Fatal("the app got no bearer token")
	}
	set, err := jwk.Fetch(t.Context(), issuer+"/keys", jwk.WithHTTPClient(&http.Client{Transport: w.issuer.http}))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := jwt.ParseString(raw, jwt.WithKeySet(set, jws.WithRequireKid(true)), jwt.WithIssuer(issuer), jwt.WithAudience(appAudience))
	if err != nil {
		t.Fatalf("jwx: %v", err)
	}
	if id, _ := tok.Get("email"); id != user {
		t.Errorf("jwx: email %v", id)
	}
	t.Run("the issuer's path on an app's host", func(t *testing.T) {
		w.app.take()
		must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/dex/headers", nil, "X-Jwt-Payload: bWFkZSB1cA"))
		seen := w.app.take()
		if len(seen) != 1 || strings.TrimRight(seen[0].header.Get("X-Jwt-Payload"), "=") != strings.Split(raw, ".")[1] {
			t.Errorf("got %+v at the app, want the payload of the token", seen)
		}
	})
	t.Run("open to anyone", func(t *testing.T) { anyoneWithoutToken(t, w, b) })
	for _, e := range []*edge{w.hardened, w.direct, w.issuer} {
		t.Run("not taken back, "+e.name, func(t *testing.T) {
			w.knownBrowser(t, e) // who signs in before anything is counted
			w.isForged(t, e, raw)
		})
	}
}

// anyoneWithoutToken pins that a path that is open to anyone passes without a token, with the user's own for a user, and never with one
// that the client sent.
func anyoneWithoutToken(t *testing.T, w *world, b *browser) {
	for _, lines := range [][]string{nil, {"Authorization: Bearer a.b.c"}, {"Authorization: Basic YTpi"}} {
		w.app.take()
		p := must(t)(fetch(t.Context(), w.hardened.http, http.MethodGet, "http://"+appHost+"/public/headers", "", lines...))
		seen := w.app.take()
		if p.status != http.StatusOK || len(seen) != 1 || seen[0].header.Get("Authorization") != "" || seen[0].header.Get("X-Jwt-Payload") != "" {
			t.Errorf("%q: got %s and %+v at the app, want 200 without a token", lines, p, seen)
		}
	}
	must(t)(b.visit(t.Context(), "http://"+appHost+"/public/headers"))
	if seen := w.app.take(); len(seen) != 1 || seen[0].header.Get("X-Jwt-Payload") == "" {
		t.Errorf("a user: got %+v, want the token", seen)
	}
}

// TestAppTokenOfAnotherAudience pins that it is the filter that verifies: for another audience no app is reached.
func TestAppTokenOfAnotherAudience(t *testing.T) {
	w := tokenWorld(t, "others")
	b := w.browser(w.hardened)
	p := must(t)(b.signIn(t.Context(), "http://"+appHost+"/headers", user))
	if seen := w.app.take(); p.status != http.StatusForbidden || len(seen) != 0 {
		t.Errorf("got %s and %d requests at the app, want 403 by Envoy", p, len(seen))
	}
}
