package provider

import (
	"encoding/base32"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// variant is testConfig with replacements and lines added before the gateway block.
func variant(t *testing.T, add string, replace ...string) (*world, *clock) {
	t.Helper()
	text := strings.NewReplacer(replace...).Replace(testConfig)
	text = strings.Replace(text, "gateway:\n", add+"gateway:\n", 1)
	clk := &clock{}
	return newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk), clk
}

const upstream = `
connectors:
- {type: mockCallback, id: up, name: Upstream}
`

// link returns the page's link to the connector "up".
func (b *browser) link() string {
	b.w.t.Helper()
	m := regexp.MustCompile(`href="([^"]*/auth/up\?req=[^"]*)"`).FindStringSubmatch(b.page)
	if m == nil {
		b.w.t.Fatalf("no link to the upstream on %s", b.page)
	}
	u, err := b.last.Parse(html.UnescapeString(m[1]))
	if err != nil {
		b.w.t.Fatal(err)
	}
	return u.String()
}

func TestUpstreamSignIn(t *testing.T) {
	w, _ := variant(t, upstream)
	b := w.browser().get("https://app.example.com/page?x=1")
	b.get(b.link())
	if want := "hello kilgore@kilgore.trout [authors] at /page?x=1"; b.page != want {
		t.Errorf("got %d %q, want %q", b.code, b.page, want)
	}
}

func TestOnlyUpstreamIsEnteredWithoutAChoice(t *testing.T) {
	w, _ := variant(t, upstream, "enablePasswordDB: true", "enablePasswordDB: false", "oauth2: {skipApprovalScreen: true, passwordConnector: local}", "oauth2: {skipApprovalScreen: true}",
		testConfig[strings.Index(testConfig, "staticPasswords"):strings.Index(testConfig, "staticClients")], "")
	b := w.browser().get("https://app.example.com/")
	if !strings.HasPrefix(b.page, "hello kilgore") {
		t.Errorf("got %d %q at %s", b.code, b.page, b.last)
	}
}

func TestUpstreamStateIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(w *world, b *browser, clk *clock, callback string) string // returns what to open
		want  string                                                         // of the page, or where it leads
	}{
		"tampered": {func(_ *world, _ *browser, _ *clock, u string) string {
			return strings.Replace(u, "state=", "state=A", 1)
		}, "400"},
		"in another browser": {func(_ *world, b *browser, _ *clock, u string) string { b.forget(); return u }, "400"},
		"expired": {func(_ *world, _ *browser, clk *clock, u string) string {
			clk.add(handoff.RequestLifetime + time.Second)
			return u
		}, "/dex/auth/local/login"},
		"a session's cookie in its place": {func(w *world, _ *browser, _ *clock, _ string) string {
			return issuer + "/callback?state=" + handoff.SealCookie(w.ring, "app.example.com", "s", w.now())
		}, "400"},
	} {
		t.Run(name, func(t *testing.T) {
			w, clk := variant(t, upstream)
			b := w.browser().get("https://app.example.com/")
			follow := b.c.CheckRedirect
			b.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			b.get(b.link())
			callback := b.head.Get("Location")
			if !strings.HasPrefix(callback, issuer+"/callback?state=") {
				t.Fatalf("led to %q", callback)
			}
			b.c.CheckRedirect = follow
			target := tt.spoil(w, b, clk, callback)
			b.get(target)
			if got := b.last.Path; tt.want != "400" && got != tt.want {
				t.Errorf("at %s, want %s", got, tt.want)
			}
			if tt.want == "400" && b.code != 400 {
				t.Errorf("status %d, want 400", b.code)
			}
			if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("%d sessions, %v", len(all), err)
			}
		})
	}
}

func TestUpstreamRefusalIsTold(t *testing.T) {
	w, _ := variant(t, `
connectors:
- type: oauth
  id: up
  name: Upstream
  config: {clientID: x, clientSecret: "5591-4711-secret", redirectURI: "https://sso.example.com/dex/callback", authorizationURL: "https://up.example.org/a", tokenURL: "https://up.example.org/t", userInfoURL: "https://up.example.org/u"}
`)
	b := w.browser().get("https://app.example.com/")
	b.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	b.get(b.link())
	u, err := url.Parse(b.head.Get("Location"))
	if err != nil || u.Host != "up.example.org" {
		t.Fatalf("led to %v, %v", u, err)
	}
	if n := len(u.Query().Get("state")); n > maxStateWanted {
		t.Errorf("the state has %d bytes, want at most %d", n, maxStateWanted)
	}
	b.get(issuer + "/callback?" + url.Values{"state": {u.Query().Get("state")}, "error": {"access_denied"}, "error_description": {"<b>not today</b>"}}.Encode())
	if b.code != http.StatusBadGateway || !strings.Contains(b.page, "&lt;b&gt;not today&lt;/b&gt;") {
		t.Errorf("got %d %s", b.code, b.page)
	}
}

// maxStateWanted is a length of the state parameter that identity providers take.
const maxStateWanted = 2000

func TestConsentIsAskedForOutsideClients(t *testing.T) {
	w, _ := variant(t, "", "skipApprovalScreen: true", "skipApprovalScreen: false")
	b := w.browser().get(clientURL("verifier"))
	b.signIn("admin@example.com", "password")
	if b.last.Path != "/dex/approval" || b.code != 200 {
		t.Fatalf("at %s, %d", b.last, b.code)
	}
	if csp := b.head.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' https://web.example.com;") {
		t.Errorf("the approval's form may not lead to the client: %s", csp)
	}
	form := url.Values{"approval": {"approve"}}
	if m := regexp.MustCompile(`name="req" value="([^"]+)"`).FindStringSubmatch(b.page); m != nil {
		form.Set("req", m[1])
	}
	b.do(http.MethodPost, b.last.String(), form, nil)
	if b.last.Host != "web.example.com" || b.last.Query().Get("code") == "" {
		t.Errorf("at %s, %d %s", b.last, b.code, b.page)
	}
	gateway := w.browser().get("https://app.example.com/")
	if gateway.signIn("admin@example.com", "password"); !strings.HasPrefix(gateway.page, "hello") {
		t.Errorf("the gateway asked for consent: %s", gateway.last)
	}
}

func TestSecondFactor(t *testing.T) {
	w, clk := variant(t, "mfa: {authenticators: [{id: totp, type: TOTP, config: {issuer: Test}}], defaultMFAChain: [totp]}\n")
	b := w.browser().get("https://app.example.com/page")
	b.signIn("admin@example.com", "password")
	if b.last.Path != "/dex/mfa/totp" {
		t.Fatalf("at %s, %d %s", b.last, b.code, b.page)
	}
	if csp := b.head.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' https://app.example.com;") {
		t.Errorf("the form may not lead to the app: %s", csp)
	}
	all, err := w.store.ListUserIdentities(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	key, err := url.Parse(all[0].MFASecrets["totp"].Secret)
	if err != nil {
		t.Fatal(err)
	}
	secret := key.Query().Get("secret")
	if _, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret); err != nil {
		t.Fatal(err)
	}
	code, err := totp.GenerateCode(secret, clk.now())
	if err != nil {
		t.Fatal(err)
	}
	b.do(http.MethodPost, b.last.String(), url.Values{"totp": {code}}, nil)
	if want := "hello admin@example.com [admins staff] at /page"; b.page != want {
		t.Fatalf("got %d %q at %s", b.code, b.page, b.last)
	}
	// Another host is reached without a second factor, since the session has passed it.
	b.requests()
	b.get("https://x.apps.example.com/")
	if !strings.HasPrefix(b.page, "hello") || slices.ContainsFunc(b.requests(), func(s string) bool { return strings.Contains(s, "mfa") }) {
		t.Errorf("at %s", b.last)
	}
}

func TestPromptNone(t *testing.T) {
	w, _ := memoryWorld(t)
	silent := func(b *browser) string {
		b.get(clientURL("verifier") + "&prompt=none")
		return b.last.Query().Get("error")
	}
	b := w.browser()
	if got := silent(b); got != "login_required" {
		t.Errorf("nobody signed in: %q at %s", got, b.last)
	}
	b.get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	if got := silent(b); got != "" || b.last.Query().Get("code") == "" {
		t.Errorf("signed in: %q at %s", got, b.last)
	}
}

func TestRedirectURIsAreExact(t *testing.T) {
	w, _ := memoryWorld(t)
	for _, uri := range []string{
		"https://web.example.com/cb/", "https://web.example.com/cb?x=1", "https://web.example.com/cb#x", "https://web.example.com.evil.example/cb", "https://evil.example/cb",
		"http://web.example.com/cb", "https://web.example.com@evil.example/cb", "//web.example.com/cb", "javascript:alert(1)", "",
	} {
		u, err := url.Parse(clientURL("verifier"))
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set("redirect_uri", uri)
		u.RawQuery = q.Encode()
		if b := w.browser().get(u.String()); b.code != 400 || len(b.log) != 1 {
			t.Errorf("%q: %d after %v", uri, b.code, b.log)
		}
	}
}

func TestSignInPageIsLockedDown(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	csp := b.head.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "form-action 'self' https://app.example.com;", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("the policy %q lacks %q", csp, want)
		}
	}
	if strings.Contains(csp, "script-src") || strings.Contains(b.page, "<script") {
		t.Error("the sign-in page has a script")
	}
	for k, want := range map[string]string{"Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
		if got := b.head.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	if m := formRE.FindStringSubmatch(b.page); m == nil || !strings.HasPrefix(m[1], "/dex/auth/local/login?req=") {
		t.Errorf("the first form is %v", m)
	}
}

func TestConnectorThatTheClientChoseIsUsed(t *testing.T) {
	w, _ := variant(t, upstream)
	b := w.browser().get("https://app.example.com/")
	b.get(b.link())
	b.get(clientURL("verifier") + "&connector_id=local")
	if b.last.Path != "/dex/auth/local/login" || b.code != 200 {
		t.Errorf("at %s, %d: the session of another connector was taken", b.last, b.code)
	}
	b.get(clientURL("verifier") + "&connector_id=up")
	if b.last.Host != "web.example.com" || b.last.Query().Get("code") == "" {
		t.Errorf("at %s, %d", b.last, b.code)
	}
	if b.get(clientURL("verifier") + "&connector_id=nobody"); b.code != 404 {
		t.Errorf("an unknown connector: %d", b.code)
	}
}

func TestGatewayEntersNoConnectorThatServesOtherGrantsOnly(t *testing.T) {
	w, _ := variant(t, `
connectors:
- {type: mockPassword, id: robots, name: Robots, grantTypes: [password], config: {username: robot, password: not-a-default-5591}}
`)
	if got, want := w.provider.SignInPath(), "/auth/local/login"; got != want {
		t.Errorf("the gateway sends browsers to %s, want %s", got, want)
	}
	b := w.browser().get("https://app.example.com/page")
	b.signIn("admin@example.com", "password")
	if want := "hello admin@example.com [admins staff] at /page"; b.page != want {
		t.Errorf("got %d %q, want %q", b.code, b.page, want)
	}
}
