package provider

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

const bye = "https://web.example.com/bye?x=1"

// logoutConfig is testConfig whose client has a page for the end, and another client with another.
var logoutConfig = strings.NewReplacer(
	"{id: web, ", `{id: web, postLogoutRedirectURIs: ["`+bye+`"], `,
	"gateway:\n", `- {id: other, name: Other, secret: not-a-default-secret-5592, redirectURIs: ["https://other.example.com/cb"], postLogoutRedirectURIs: ["https://other.example.com/bye"]}
gateway:
`).Replace(testConfig)

func logoutWorld(t *testing.T, text string) (*world, *clock) {
	t.Helper()
	clk := &clock{}
	return newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk), clk
}

// signedIn is a browser with a session, and the ID Token that the client "web" has of it.
func (w *world) signedIn() (*browser, string) {
	w.t.Helper()
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	b.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return b, raw
}

func (w *world) sessionCount() int {
	w.t.Helper()
	all, err := w.store.ListAuthSessions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return len(all)
}

func logoutURL(kv ...string) string {
	q := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		q.Add(kv[i], kv[i+1])
	}
	return issuer + "/logout?" + q.Encode()
}

func TestLogoutWithAHintOfThisSession(t *testing.T) {
	for name, tt := range map[string]struct {
		params []string
		want   string // where it leads; "" for our own page
	}{
		"to our own page":                {nil, ""},
		"to the client's":                {[]string{"post_logout_redirect_uri", bye}, bye},
		"to the client's with its state": {[]string{"post_logout_redirect_uri", bye, "state", "a b&c=d"}, bye + "&state=a+b%26c%3Dd"},
		"with the client's id":           {[]string{"post_logout_redirect_uri", bye, "client_id", "web"}, bye},
		"a state alone":                  {[]string{"state", "s"}, ""},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(name+" by "+method, func(t *testing.T) {
				w, clk := logoutWorld(t, logoutConfig)
				b, hint := w.signedIn()
				clk.add(2 * time.Hour) // beyond nothing
				target := logoutURL(append(tt.params, "id_token_hint", hint)...)
				if method == http.MethodPost {
					u, q, _ := strings.Cut(target, "?")
					form, err := url.ParseQuery(q)
					if err != nil {
						t.Fatal(err)
					}
					b.do(http.MethodPost, u, form, http.Header{"Origin": {"https://web.example.com"}}) // a form of the client
				} else {
					b.get(target)
				}
				if got := b.head.Get("Location"); got != tt.want || tt.want == "" && (b.code != 200 || !strings.Contains(b.page, "You are signed out")) {
					t.Errorf("got %d to %q, want %q: %s", b.code, got, tt.want, b.page)
				}
				if n := w.sessionCount(); n != 0 {
					t.Errorf("%d sessions", n)
				}
				if c := b.head.Get("Set-Cookie"); !strings.HasPrefix(c, "__Host-gatehouse-sso=;") || !strings.Contains(c, "Max-Age=0") {
					t.Errorf("the cookie stays: %q", c)
				}
				b.get(target) // once more, as after "back"
				if got := b.head.Get("Location"); got != tt.want {
					t.Errorf("the second time to %q, want %q", got, tt.want)
				}
			})
		}
	}
}

func TestHintMayHaveExpired(t *testing.T) {
	w, clk := variant(t, "expiry: {idTokens: 10m}\n", "expiry: {refreshTokens: {reuseInterval: 0s}}\n", "", "{id: web, ", `{id: web, postLogoutRedirectURIs: ["`+bye+`"], `)
	b, hint := w.signedIn()
	clk.add(time.Hour)
	if _, err := w.provider.Keys().Verify(t.Context(), hint, "web"); err == nil {
		t.Fatal("it has not expired")
	}
	if b.get(logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye)); b.head.Get("Location") != bye || w.sessionCount() != 0 {
		t.Errorf("got %d to %q: %s", b.code, b.head.Get("Location"), b.page)
	}
}

func TestLogoutAsks(t *testing.T) {
	for name, tt := range map[string]struct {
		target func(w *world, hint string) string
		want   string // where a yes leads
	}{
		"without a hint": {func(*world, string) string { return logoutURL() }, ""},
		"with a client's id": {func(*world, string) string {
			return logoutURL("client_id", "web", "post_logout_redirect_uri", bye, "state", "s")
		}, bye + "&state=s"},
		"with a hint of another browser's session": {func(w *world, _ string) string { return logoutURL("id_token_hint", w.otherHint("admin@example.com")) }, ""},
		"with a hint of another user": {func(w *world, _ string) string {
			return logoutURL("id_token_hint", w.otherHint("user@example.com"), "post_logout_redirect_uri", bye)
		}, bye},
		"with a hint of a key that is no more ours": {func(w *world, _ string) string { return logoutURL("id_token_hint", w.formerHint()) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := logoutWorld(t, logoutConfig)
			b, hint := w.signedIn()
			target := tt.target(w, hint)
			before := w.sessionCount()
			b.get(target)
			if b.code != 200 || !strings.Contains(b.page, "Sign out?") || !strings.Contains(b.page, "admin@example.com") || w.sessionCount() != before {
				t.Fatalf("got %d to %q, %d of %d sessions: %s", b.code, b.head.Get("Location"), w.sessionCount(), before, b.page)
			}
			csp := b.head.Get("Content-Security-Policy")
			if wants := "form-action 'self'"; tt.want != "" && !strings.Contains(csp, wants+" https://web.example.com;") || !strings.Contains(csp, wants) {
				t.Errorf("the policy is %s", csp)
			}
			action := b.action()
			for from, header := range map[string]http.Header{
				"another site":  {"Origin": {"https://evil.example"}},
				"nowhere":       {"Origin": {"null"}},
				"the same site": {"Sec-Fetch-Site": {"same-site"}},
			} {
				if b.do(http.MethodPost, action, url.Values{}, header); b.code != 403 || w.sessionCount() != before {
					t.Errorf("a yes from %s: %d, %d of %d sessions", from, b.code, w.sessionCount(), before)
				}
			}
			b.do(http.MethodPost, action, url.Values{}, http.Header{"Origin": {"https://sso.example.com"}})
			if got := b.head.Get("Location"); got != tt.want || w.sessionCount() != before-1 {
				t.Errorf("a yes: got %d to %q, want %q, %d of %d sessions", b.code, got, tt.want, w.sessionCount(), before)
			}
		})
	}
}

// otherHint is an ID Token of a session in another browser.
func (w *world) otherHint(user string) string {
	w.t.Helper()
	b, verifier := w.browser(), oauth2.GenerateVerifier()
	b.get(clientURL(verifier))
	b.signIn(user, "password")
	tok, err := webClient().Exchange(w.direct(w.t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		w.t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	return raw
}

// formerHint is an ID Token of the same issuer, signed by a key that nobody here knows.
func (w *world) formerHint() string {
	w.t.Helper()
	clk := &clock{}
	before := newWorld(w.t, logoutConfig, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	_, hint := before.signedIn()
	return hint
}

func TestAnswerIsForItsSessionAndItsTime(t *testing.T) {
	w, clk := logoutWorld(t, logoutConfig)
	own := http.Header{"Origin": {"https://sso.example.com"}}
	b, _ := w.signedIn()
	b.get(logoutURL())
	action := b.action()
	victim, _ := w.signedIn()
	if victim.do(http.MethodPost, action, url.Values{}, own); w.sessionCount() != 2 || !strings.Contains(victim.page, "Sign out?") {
		t.Errorf("another browser's question: got %d, %d sessions: %s", victim.code, w.sessionCount(), victim.page)
	}
	for name, target := range map[string]string{
		"damaged": action + "x", "empty": issuer + "/logout?req=",
		"sealed for another purpose": issuer + "/logout?req=" + w.ring.Seal(front.PurposeLoggedOut, "", []byte(`{"e":"2999-01-01T00:00:00Z"}`)),
	} {
		if b.do(http.MethodPost, target, url.Values{}, own); b.code != 400 || w.sessionCount() != 2 {
			t.Errorf("%s: got %d, %d sessions", name, b.code, w.sessionCount())
		}
	}
	clk.add(time.Hour + time.Second)
	if b.do(http.MethodPost, action, url.Values{}, own); b.code != 400 || w.sessionCount() != 2 {
		t.Errorf("too late: got %d, %d sessions", b.code, w.sessionCount())
	}
}

func TestLogoutRequestIsRefused(t *testing.T) {
	w, _ := logoutWorld(t, logoutConfig)
	b, hint := w.signedIn()
	twice := func(name, value string) string { return logoutURL("id_token_hint", hint, name, value, name, value) }
	for name, target := range map[string]string{
		"a hint that is none":              logoutURL("id_token_hint", "x"),
		"a hint that was changed":          logoutURL("id_token_hint", hint[:len(hint)-6]+"AAAAAA"),
		"a hint of 20 kB":                  logoutURL("id_token_hint", hint+strings.Repeat("A", 20<<10)),
		"another client's id":              logoutURL("id_token_hint", hint, "client_id", "other"),
		"another client's page":            logoutURL("id_token_hint", hint, "post_logout_redirect_uri", "https://other.example.com/bye"),
		"a page without hint or client_id": logoutURL("post_logout_redirect_uri", bye),
		"an unknown client":                logoutURL("client_id", "nobody", "post_logout_redirect_uri", bye),
		"the gateway's client":             logoutURL("client_id", front.GatewayClient, "post_logout_redirect_uri", issuer+front.CallbackPath),
		"two hints":                        twice("id_token_hint", hint),
		"two client ids":                   twice("client_id", "web"),
		"two pages":                        twice("post_logout_redirect_uri", bye),
		"two states":                       logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye, "state", "a", "state", "b"),
		"a state of 3 kB":                  logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye, "state", strings.Repeat("s", 3<<10)),
	} {
		if b.get(target); b.code != 400 || b.head.Get("Location") != "" || w.sessionCount() != 1 {
			t.Errorf("%s: got %d to %q, %d sessions", name, b.code, b.head.Get("Location"), w.sessionCount())
		}
	}
	if b.do(http.MethodHead, logoutURL("id_token_hint", hint), nil, nil); b.code != 405 || w.sessionCount() != 1 {
		t.Errorf("HEAD: got %d, %d sessions", b.code, w.sessionCount())
	}
}

// Nothing but what the client has registered, letter by letter.
func TestPostLogoutRedirectURIIsExact(t *testing.T) {
	const base = "https://web.example.com/bye"
	w, _ := logoutWorld(t, strings.Replace(logoutConfig, bye, base, 1))
	b, hint := w.signedIn()
	for _, uri := range []string{
		base + "/", base + "?", base + "?x=1", base + "#", base + "#x", base + "/..", base + "/../bye", base + "%2f", base + "%00", base + " ", " " + base, base + "\t", base + "\r\nX: y", base + ";a=b",
		"https://web.example.com", "https://web.example.com/", "https://web.example.com/BYE", "HTTPS://web.example.com/bye", "https://WEB.example.com/bye", "http://web.example.com/bye",
		"https://web.example.com:443/bye", "https://web.example.com./bye", "https://web.example.com.evil.example/bye", "https://evil-web.example.com/bye", "https://evilweb.example.com/bye",
		"https://web.example.com@evil.example/bye", "https://evil.example/https://web.example.com/bye", "https://evil.example/?" + base, "https://evil.example#" + base, "https://user:pass@web.example.com/bye",
		"//web.example.com/bye", "///web.example.com/bye", "/\\evil.example", "\\\\evil.example", "//evil.example", "/%09/evil.example", "https:evil.example", "https:/web.example.com/bye", "https:\\\\web.example.com\\bye",
		"javascript:alert(1)", "data:text/html,x", "web.example.com/bye", "/bye", "https://xn--web-.example.com/bye", "https://web.example.com/by\u0435", base + "," + "https://evil.example", base + " https://evil.example",
		"https://web.example.com/cb", "https://web.example.com/%62ye", "ｈttps://web.example.com/bye", "https://*", "*",
	} {
		for name, target := range map[string]string{
			"by hint":      logoutURL("id_token_hint", hint, "post_logout_redirect_uri", uri),
			"by client_id": logoutURL("client_id", "web", "post_logout_redirect_uri", uri),
			"signed out":   logoutURL("client_id", "web", "post_logout_redirect_uri", uri),
		} {
			who := b
			if name == "signed out" {
				who = w.browser()
				who.c.CheckRedirect = b.c.CheckRedirect
			}
			who.get(target)
			if who.code != 400 || who.head.Get("Location") != "" || who.head.Get("Refresh") != "" || strings.Contains(who.page, "evil.example") || w.sessionCount() != 1 {
				t.Errorf("%s %q: got %d to %q, %d sessions", name, uri, who.code, who.head.Get("Location"), w.sessionCount())
			}
		}
	}
	if b.get(logoutURL("id_token_hint", hint, "post_logout_redirect_uri", base)); b.head.Get("Location") != base {
		t.Errorf("and what is registered: got %d to %q", b.code, b.head.Get("Location"))
	}
}

// A leavingConnector has an upstream with an end_session_endpoint. It signs everybody in as Kilgore.
type leavingConnector struct{}

const endSession = "https://idp.example.org/end"

func (leavingConnector) LoginURL(_ connector.Scopes, callback, state string) (string, []byte, error) {
	return callback + "?" + url.Values{"state": {state}}.Encode(), nil, nil
}

func (leavingConnector) HandleCallback(connector.Scopes, []byte, *http.Request) (connector.Identity, error) {
	return connector.Identity{UserID: "k", Username: "Kilgore", Email: "kilgore@example.com", EmailVerified: true}, nil
}

func (leavingConnector) LogoutURL(_ context.Context, back string) (string, error) {
	return endSession + "?" + url.Values{"post_logout_redirect_uri": {back}, "client_id": {"us"}}.Encode(), nil
}

func (leavingConnector) HandleLogoutCallback(context.Context, *http.Request) error { return nil }

func TestUpstreamIsLeftLast(t *testing.T) {
	clk := &clock{}
	text := strings.Replace(logoutConfig, "gateway:\n", "connectors:\n- {type: mockCallback, id: up, name: Upstream}\ngateway:\n", 1)
	w := newWorldWith(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk, func(storage.Connector) (connector.Connector, error) { return leavingConnector{}, nil })
	in := func() (*browser, string) {
		b, verifier := w.browser(), oauth2.GenerateVerifier()
		b.get(clientURL(verifier) + "&connector_id=up")
		tok, err := webClient().Exchange(w.direct(t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
		if err != nil {
			t.Fatal(err)
		}
		hint, _ := tok.Extra("id_token").(string)
		b.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		return b, hint
	}
	upstream := func(address string) url.Values {
		u, err := url.Parse(address)
		if err != nil || !strings.HasPrefix(address, endSession+"?") || u.Query().Get("post_logout_redirect_uri") != issuer+"/logout/callback" || u.Query().Get("client_id") != "us" {
			t.Fatalf("leads to %q", address)
		}
		return u.Query()
	}

	b, hint := in()
	b.get(logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye, "state", "s"))
	if w.sessionCount() != 0 {
		t.Error("the session waits for the upstream")
	}
	state := upstream(b.head.Get("Location")).Get("state")
	if b.get(issuer + "/logout/callback?" + url.Values{"state": {state}}.Encode()); b.head.Get("Location") != bye+"&state=s" {
		t.Errorf("from the upstream: got %d to %q", b.code, b.head.Get("Location"))
	}
	for name, state := range map[string]string{
		"none": "", "damaged": state + "x", "our own for something else": w.ring.Seal(front.PurposeLogout, "", []byte(`{"t":{"c":"web","r":"`+bye+`"},"e":"2999-01-01T00:00:00Z"}`)),
		"a page that is not registered": w.ring.Seal(front.PurposeLoggedOut, "", []byte(`{"t":{"c":"web","r":"https://evil.example"},"e":"2999-01-01T00:00:00Z"}`)),
	} {
		if b.get(issuer + "/logout/callback?" + url.Values{"state": {state}}.Encode()); b.code != 200 || b.head.Get("Location") != "" || !strings.Contains(b.page, "You are signed out") {
			t.Errorf("from the upstream with %s state: got %d to %q", name, b.code, b.head.Get("Location"))
		}
	}
	clk.add(time.Hour)
	if b.get(issuer + "/logout/callback?" + url.Values{"state": {state}}.Encode()); b.code != 200 || b.head.Get("Location") != "" {
		t.Errorf("too late: got %d to %q", b.code, b.head.Get("Location"))
	}

	b, _ = in()
	b.get(logoutURL())
	b.do(http.MethodPost, b.action(), url.Values{}, http.Header{"Origin": {"https://sso.example.com"}})
	next, ok := strings.CutPrefix(b.head.Get("Refresh"), "0; url=")
	if b.code != 200 || !ok || w.sessionCount() != 0 {
		t.Fatalf("by the form: got %d, Refresh %q, %d sessions", b.code, b.head.Get("Refresh"), w.sessionCount())
	}
	if got := upstream(next).Get("state"); got != "" {
		t.Errorf("a state that leads nowhere: %q", got)
	}
}

// Signing out must work while the store does, and must not pretend where it does not.
func TestLogoutWithoutStoreIsNone(t *testing.T) {
	w, _, d := brokenWorld(t, logoutConfig)
	b, hint := w.signedIn()
	d.broken.Store(true)
	if b.get(logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye)); b.code != 503 || b.head.Get("Location") != "" || strings.Contains(strings.Join(b.head["Set-Cookie"], " "), "Max-Age=0") {
		t.Errorf("got %d to %q with %q", b.code, b.head.Get("Location"), b.head["Set-Cookie"])
	}
	d.broken.Store(false)
	if b.get(logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye)); b.head.Get("Location") != bye || w.sessionCount() != 0 {
		t.Errorf("then: got %d to %q", b.code, b.head.Get("Location"))
	}
}

func TestDiscoveryTellsOfLogout(t *testing.T) {
	w, _ := logoutWorld(t, logoutConfig)
	var doc map[string]any
	if err := json.Unmarshal([]byte(w.browser().get(issuer+"/.well-known/openid-configuration").page), &doc); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{"end_session_endpoint": issuer + "/logout", "backchannel_logout_supported": true, "backchannel_logout_session_supported": true} {
		if doc[k] != want {
			t.Errorf("%s: got %v, want %v", k, doc[k], want)
		}
	}
}

// `keys rotate --now` withdraws what hints were signed with, and nobody is signed out: nor may it take the way out from anybody.
func TestHintOfAWithdrawnKeyAsks(t *testing.T) {
	w, _ := logoutWorld(t, logoutConfig)
	b, hint := w.signedIn()
	if _, err := w.provider.RotateKeys(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	b.get(logoutURL("id_token_hint", hint, "client_id", "web", "post_logout_redirect_uri", bye))
	if b.code != 200 || !strings.Contains(b.page, "Sign out?") || w.sessionCount() != 1 {
		t.Fatalf("got %d to %q, %d sessions", b.code, b.head.Get("Location"), w.sessionCount())
	}
	b.do(http.MethodPost, b.action(), url.Values{}, http.Header{"Origin": {"https://sso.example.com"}})
	if b.head.Get("Location") != bye || w.sessionCount() != 0 {
		t.Errorf("a yes: got %d to %q, %d sessions", b.code, b.head.Get("Location"), w.sessionCount())
	}
}
