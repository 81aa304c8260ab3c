package provider

import (
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"golang.org/x/oauth2"

	"gatehouse/internal/inproc"
	"gatehouse/internal/seal"
	"gatehouse/provider/front"

	"github.com/dexidp/dex/storage"
)

const withTOTP = "mfa: {authenticators: [{id: totp, type: TOTP, config: {issuer: Test}}], defaultMFAChain: [totp]}\n"

// code returns the one-time code of a user at a time.
func (w *world) code(user string, at time.Time) string {
	w.t.Helper()
	u, err := w.store.GetUserIdentity(w.t.Context(), user, "local")
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := url.Parse(u.MFASecrets["totp"].Secret)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := totp.GenerateCode(key.Query().Get("secret"), at)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// ssoCookies are the browser's cookies of Dex's session.
func (b *browser) ssoCookies() (out []*http.Cookie) {
	b.w.t.Helper()
	u, err := url.Parse(issuer + "/auth")
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, c := range b.c.Jar.Cookies(u) {
		if strings.HasSuffix(c.Name, "gatehouse-sso") {
			out = append(out, c)
		}
	}
	return out
}

// A step of a sign-in is not for a browser with another user's session: who has the victim's password would pass the
// second factor with an account of their own.
func TestSecondFactorOfAnotherUserDoesNotCount(t *testing.T) {
	w, clk := variant(t, withTOTP)
	victim := w.browser().get("https://app.example.com/")
	victim.signIn("admin@example.com", "password")
	victim.do(http.MethodPost, victim.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil)
	if !strings.HasPrefix(victim.page, "hello admin") {
		t.Fatalf("got %d %s", victim.code, victim.page)
	}

	own := w.browser().get("https://app.example.com/admin")
	own.signIn("user@example.com", "password")
	factor := own.last.String()
	stolen := w.browser().get("https://app.example.com/")
	stolen.signIn("admin@example.com", "password")

	own.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	own.do(http.MethodPost, factor, url.Values{"totp": {w.code("u2", clk.now())}}, nil)
	next, err := own.last.Parse(own.head.Get("Location"))
	if err != nil || !strings.Contains(next.RawQuery, "hmac=") {
		t.Fatalf("led to %v, %v", next, err)
	}
	home, err := url.Parse("https://sso.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range stolen.ssoCookies() {
		own.c.Jar.SetCookies(home, []*http.Cookie{{Name: c.Name, Value: c.Value, Path: "/", Secure: true}})
	}
	own.c.CheckRedirect = nil

	own.get(next.String())
	if own.code != http.StatusBadRequest {
		t.Errorf("the step went on: %d %s", own.code, own.page)
	}
	stolen.get("https://x.apps.example.com/secret")
	if strings.HasPrefix(stolen.page, "hello") {
		t.Errorf("the victim's session passes without its second factor: %s", stolen.page)
	}

	// Even a code that Dex made of the mixture, past our check of the step, is worth nothing.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, next.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(&http.Cookie{Name: "gatehouse-sso", Value: stolen.ssoCookies()[0].Value})
	mixed, err := inproc.Serve(w.provider.current.Load().dex, r)
	if err != nil {
		t.Fatal(err)
	}
	defer mixed.Body.Close()
	callback := mixed.Header.Get("Location")
	if !strings.HasPrefix(callback, issuer+front.CallbackPath+"?code=") {
		t.Fatalf("dex answered %d, %q", mixed.StatusCode, callback)
	}
	if own.get(callback); own.code != http.StatusBadRequest {
		t.Errorf("a code of one user with the session of another: %d %s", own.code, own.page)
	}
}

func TestSecondFactorIsLimited(t *testing.T) {
	w, clk := variant(t, withTOTP)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	b.do(http.MethodPost, b.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil)
	clk.add(2 * time.Minute)
	for i := range 6 {
		b = w.browser().get("https://app.example.com/") // a new sign-in each time
		b.signIn("admin@example.com", "password")
		if b.do(http.MethodPost, b.last.String(), url.Values{"totp": {"00000" + fmt.Sprint(i)}}, nil); i < 5 && b.code != 401 {
			t.Fatalf("code %d: status %d", i, b.code)
		}
	}
	if b.code != http.StatusTooManyRequests {
		t.Errorf("after 5 wrong codes: %d, want 429", b.code)
	}
	b.get("https://app.example.com/")
	if b.do(http.MethodPost, b.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil); b.code == 200 {
		t.Errorf("the right code within the window: %d %s", b.code, b.page)
	}
}

func TestReloadedCallbackBeginsAgain(t *testing.T) {
	w, clk := variant(t, withTOTP)
	b := w.browser().get("https://app.example.com/page")
	b.signIn("admin@example.com", "password")
	b.c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == "/dex"+front.CallbackPath {
			return http.ErrUseLastResponse
		}
		return nil
	}
	b.do(http.MethodPost, b.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil)
	callback := b.head.Get("Location")
	b.c.CheckRedirect = nil
	for range 2 {
		if b.get(callback); !strings.HasPrefix(b.page, "hello admin") {
			t.Fatalf("got %d %s", b.code, b.page)
		}
	}
}

// A neighbour below the same domain can set cookies for the whole domain.
func TestPlantedSessionIsNobodys(t *testing.T) {
	w, _ := memoryWorld(t)
	attacker := w.browser().get("https://app.example.com/")
	attacker.signIn("user@example.com", "password")
	planted := attacker.ssoCookies()
	if len(planted) != 1 || planted[0].Name != "__Host-gatehouse-sso" {
		t.Fatalf("cookies %v, want one with the __Host- prefix", planted)
	}
	neighbour, err := url.Parse("https://evil.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	victim := w.browser()
	victim.c.Jar.SetCookies(neighbour, []*http.Cookie{{Name: "gatehouse-sso", Value: planted[0].Value, Path: "/dex", Domain: "example.com"}})
	if victim.get("https://app.example.com/page"); victim.last.Path != "/dex/auth/local/login" {
		t.Errorf("a planted cookie signs in: %d %s", victim.code, victim.page)
	}
	// Two under the real name, should a browser let that happen, are nobody's.
	attacker.c.Jar.SetCookies(neighbour, []*http.Cookie{{Name: planted[0].Name, Value: planted[0].Value, Path: "/dex", Domain: "example.com"}})
	if attacker.get("https://x.apps.example.com/"); attacker.last.Path != "/dex/auth/local/login" {
		t.Errorf("two cookies sign in: %d %s", attacker.code, attacker.page)
	}
}

const withSAML = `
connectors:
- {type: saml, id: up, name: SAML, config: {ssoURL: "https://idp.example.org/sso", insecureSkipSignatureValidation: true, usernameAttr: name, emailAttr: email, redirectURI: "https://sso.example.com/dex/callback"}}
`

// samlResponse answers the AuthnRequest of an id, as an identity provider would.
func samlResponse(id, user string) string {
	now := time.Now().UTC()
	at := func(d time.Duration) string { return now.Add(d).Format("2006-01-02T15:04:05Z") }
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" ID="r1" InResponseTo="%[1]s" Version="2.0" IssueInstant="%[2]s">
<samlp:Status><samlp:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:Success"/></samlp:Status>
<saml:Assertion ID="a1" Version="2.0" IssueInstant="%[2]s"><saml:Subject><saml:NameID>%[4]s</saml:NameID><saml:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer">
<saml:SubjectConfirmationData InResponseTo="%[1]s" NotOnOrAfter="%[3]s" Recipient="https://sso.example.com/dex/callback"/></saml:SubjectConfirmation></saml:Subject>
<saml:AttributeStatement><saml:Attribute Name="email"><saml:AttributeValue>%[4]s@example.org</saml:AttributeValue></saml:Attribute>
<saml:Attribute Name="name"><saml:AttributeValue>%[4]s</saml:AttributeValue></saml:Attribute></saml:AttributeStatement></saml:Assertion></samlp:Response>`,
		id, at(0), at(5*time.Minute), user))
}

var relayRE = regexp.MustCompile(`name="RelayState" value="([^"]*)"`)

func TestSAML(t *testing.T) {
	clk := &clock{}
	counting := &countingDriver{}
	w := newWorld(t, strings.Replace(testConfig, "gateway:\n", withSAML+"gateway:\n", 1), counting.wrap(t, clk), seal.NewKey(), clk)
	counting.reset()
	b := w.browser().get("https://app.example.com/page?x=1")
	b.get(b.link())
	relay := relayRE.FindStringSubmatch(b.page)
	if relay == nil || b.action() != "https://idp.example.org/sso" {
		t.Fatalf("got %d %s", b.code, b.page)
	}
	if csp := b.head.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action https://idp.example.org") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %s", csp)
	}
	for i := range 20 {
		w.browser().get(issuer + "/auth/up?" + strings.SplitN(clientURL("v"), "?", 2)[1] + "&x=" + fmt.Sprint(i))
	}
	if n := counting.count(); n != 0 {
		t.Errorf("%d writes before anybody was proven", n)
	}
	answer := url.Values{"RelayState": {relay[1]}, "SAMLResponse": {samlResponse(relay[1], "ida")}}
	crossSite := http.Header{"Origin": {"https://idp.example.org"}, "Sec-Fetch-Site": {"cross-site"}}

	// In a browser that did not ask, the answer is worth nothing: an attacker would sign a victim in as themselves.
	victim := w.browser()
	if victim.do(http.MethodPost, issuer+"/callback", answer, crossSite); victim.code != 400 {
		t.Errorf("posted in another browser: %d", victim.code)
	}
	victim.get("https://app.example.com/")
	if strings.HasPrefix(victim.page, "hello") {
		t.Errorf("the victim's browser is signed in: %s", victim.page)
	}
	b.do(http.MethodPost, issuer+"/callback", url.Values{"RelayState": {"_other"}, "SAMLResponse": answer["SAMLResponse"]}, crossSite)
	if b.code != 400 {
		t.Errorf("another request's RelayState: %d", b.code)
	}
	if b.do(http.MethodPost, issuer+"/callback", answer, crossSite); b.page != "hello ida@example.org [] at /page?x=1" {
		t.Errorf("got %d %q at %s", b.code, html.UnescapeString(b.page), b.last)
	}
	if !strings.Contains(w.audit.String(), `"result":"ok","connector":"up","user":"ida@example.org"`) {
		t.Errorf("no sign-in event: %s", w.audit)
	}
	if b.do(http.MethodPost, issuer+"/callback", answer, crossSite); b.code != 400 {
		t.Errorf("the answer again: %d", b.code)
	}
}

// A browser sends no SameSite=Lax cookie with a form that another site posts, not even where issuer and app share a host.
func TestSAMLWhereIssuerAndAppShareAHost(t *testing.T) {
	w, _ := variant(t, withSAML)
	b := w.browser().get("https://sso.example.com/page?x=1")
	b.get(b.link())
	relay := relayRE.FindStringSubmatch(b.page)
	if relay == nil {
		t.Fatalf("got %d %s", b.code, b.page)
	}
	all := b.c.Jar
	b.forget()
	home, err := url.Parse(issuer)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all.Cookies(home) {
		if strings.HasSuffix(c.Name, "-saml") {
			b.c.Jar.SetCookies(home, []*http.Cookie{{Name: c.Name, Value: c.Value, Path: "/", Secure: true}})
		}
	}
	b.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	b.do(http.MethodPost, issuer+"/callback", url.Values{"RelayState": {relay[1]}, "SAMLResponse": {samlResponse(relay[1], "ida")}}, nil)
	next := b.head.Get("Location")
	b.c.CheckRedirect = nil
	b.c.Jar = all
	if b.get(next); b.page != "hello ida@example.org [] at /page?x=1" {
		t.Errorf("got %d %q at %s", b.code, b.page, b.last)
	}
}

func TestPasswordGrantIsNotLockedByItsClient(t *testing.T) {
	w, _ := memoryWorld(t)
	grant := func(user, password string) int {
		form := url.Values{"grant_type": {"password"}, "scope": {"openid"}, "username": {user}, "password": {password}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("web", "not-a-default-secret-5591")
		resp, err := inproc.Serve(w.provider.Handler(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	for i := range 51 {
		if got := grant(fmt.Sprintf("nobody%d@example.com", i), "x"); got != 401 {
			t.Fatalf("wrong password: %d", got)
		}
	}
	if got := grant("admin@example.com", "password"); got != 200 {
		t.Errorf("the right password after others' wrong ones: %d", got)
	}
}

func TestMaxAgeIsOfThisBrowser(t *testing.T) {
	w, clk := memoryWorld(t)
	old := w.browser().get("https://app.example.com/")
	old.signIn("admin@example.com", "password")
	clk.add(5 * time.Hour)
	w.browser().get("https://app.example.com/").signIn("admin@example.com", "password") // elsewhere
	if old.get(clientURL("v") + "&max_age=60"); old.last.Path != "/dex/auth/local/login" {
		t.Errorf("max_age was met by a sign-in elsewhere: at %s", old.last)
	}
	if old.get(clientURL("v") + "&max_age=60&prompt=none"); old.last.Query().Get("error") != "login_required" {
		t.Errorf("silently: at %s", old.last)
	}
	if old.get(clientURL("v") + "&max_age=36000"); old.last.Query().Get("code") == "" {
		t.Errorf("an old sign-in that is young enough: at %s", old.last)
	}
}

func TestDexsOwnChooserIsOutOfReach(t *testing.T) {
	w, _ := memoryWorld(t)
	if b := w.browser().get(clientURL("v") + "&hmac=x"); b.last.Path != "/dex/auth/local/login" {
		t.Errorf("at %s, %d", b.last, b.code)
	}
	q := url.Values{"client_id": {front.GatewayClient}, "redirect_uri": {issuer + front.CallbackPath}, "response_type": {"code"}, "scope": {"openid"}, "hmac": {"x"}}
	if b := w.browser().get(issuer + "/auth?" + q.Encode()); b.code != 400 {
		t.Errorf("the gateway's client: %d", b.code)
	}
}

// jsonForm rewraps a token in the JWS JSON serialization (RFC 7515 section 7.2.2), whose header anybody can fill.
func jsonForm(raw string) string {
	p := strings.Split(raw, ".")
	return fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q,"header":{"x":".%s..."}}`, p[0], p[1], p[2], p[1])
}

func TestTokensEndWithTheSession(t *testing.T) {
	for name, tt := range map[string]struct {
		scope, lifetime string
		expires         bool // the session, instead of being signed out
		outlives        bool
	}{
		"of a client without refresh tokens":              {"openid email groups", "", false, false},
		"of a client whose refresh tokens are its own":    {"openid email groups offline_access", "", false, true},
		"of a client bound to the session":                {"openid email groups offline_access", "refreshTokenLifetime: session, ", false, false},
		"of a client bound to a session that expires":     {"openid email groups offline_access", "refreshTokenLifetime: session, ", true, false},
		"of a client of its own when the session expires": {"openid email groups offline_access", "", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			w, clk := variant(t, "", "{id: web, ", "{id: web, "+tt.lifetime)
			b := w.browser()
			verifier := oauth2.GenerateVerifier()
			c := webClient()
			c.Scopes = strings.Fields(tt.scope)
			b.get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", "n")))
			b.signIn("admin@example.com", "password")
			tok, err := c.Exchange(w.direct(t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
			if err != nil {
				t.Fatal(err)
			}
			good := func(when string, want bool) {
				t.Helper()
				for _, scheme := range []string{"Bearer", "bearer", "BEARER"} {
					b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {scheme + " " + tok.AccessToken}})
					if (b.code == 200) != want {
						t.Errorf("%s: userinfo by %q: %d", when, scheme, b.code)
					}
				}
				for form, raw := range map[string]string{"compact": tok.AccessToken, "JSON": jsonForm(tok.AccessToken)} {
					b.do(http.MethodPost, issuer+"/token/introspect", url.Values{"token": {raw}, "client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"}}, nil)
					if got := strings.Contains(b.page, `"active":true`); got != (want && form == "compact") {
						t.Errorf("%s: introspection of the %s form: %s", when, form, b.page)
					}
				}
			}
			good("at first", true)
			all, err := w.provider.Sessions(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			if tt.expires {
				clk.add(13 * time.Hour)
			} else if _, err := w.provider.SignOut(t.Context(), all[0].ID); err != nil {
				t.Fatal(err)
			}
			good("after the session's end", tt.outlives)
			if _, err := w.provider.Block(t.Context(), "local", "u1", w.now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			good("of a blocked user", false)
		})
	}
}

// Who knows the password could else register a key of their own and pass.
func TestSecurityKeyIsNotAddedByPassword(t *testing.T) {
	w, _ := variant(t, "mfa: {authenticators: [{id: key, type: WebAuthn, config: {rpDisplayName: Test}}], defaultMFAChain: [key]}\n")
	register := func() int {
		b := w.browser().get("https://app.example.com/")
		b.signIn("admin@example.com", "password")
		if b.last.Path != "/dex/mfa/webauthn" {
			t.Fatalf("at %s, %d", b.last, b.code)
		}
		return b.do(http.MethodPost, issuer+"/mfa/webauthn/register/begin?"+b.last.RawQuery, url.Values{}, nil).code
	}
	if got := register(); got != 200 {
		t.Fatalf("the first key: %d", got)
	}
	err := w.store.UpdateUserIdentity(t.Context(), "u1", "local", func(u storage.UserIdentity) (storage.UserIdentity, error) {
		u.WebAuthnCredentials = map[string][]storage.WebAuthnCredential{"key": {{CredentialID: []byte("owner's")}}}
		return u, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := register(); got != 403 {
		t.Errorf("a second key: %d", got)
	}
}

func TestCodeEndsWithTheUser(t *testing.T) {
	w, clk := memoryWorld(t)
	verifier := oauth2.GenerateVerifier()
	b := w.browser().get(clientURL(verifier))
	b.signIn("admin@example.com", "password")
	if _, err := w.provider.Block(t.Context(), "local", "u1", clk.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := webClient().Exchange(w.direct(t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier)); err == nil {
		t.Error("the code of a blocked user is exchanged")
	}
}

func TestForgedLogout(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	b.do(http.MethodPost, issuer+"/logout", url.Values{}, http.Header{"Origin": {"https://app.example.com"}, "Sec-Fetch-Site": {"same-site"}})
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 1 || b.code != 403 {
		t.Errorf("status %d, %d sessions, %v", b.code, len(all), err)
	}
	b.do(http.MethodPost, issuer+"/logout", url.Values{}, http.Header{"Origin": {"https://sso.example.com"}})
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 1 || !strings.Contains(b.page, "Sign out?") {
		t.Errorf("without an answer to the question: status %d, %d sessions, %v", b.code, len(all), err)
	}
	b.do(http.MethodPost, b.action(), url.Values{}, http.Header{"Origin": {"https://sso.example.com"}})
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("from our own page: %d sessions, %v", len(all), err)
	}
}

func TestHugeUserNameIsClippedEverywhere(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	before := w.audit.Len()
	b.signIn(strings.Repeat("x", 60_000), "y")
	if n := w.audit.Len() - before; b.code != 401 || n > 1000 || len(b.page) > 12_000 {
		t.Errorf("status %d, %d bytes of audit, a page of %d", b.code, n, len(b.page))
	}
}

func TestClientAddressIsTheLastUntrustedHopOfAllLines(t *testing.T) {
	find := front.ClientIP("X-Forwarded-For", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	for name, tt := range map[string]struct {
		peer  string
		lines []string
		want  string
	}{
		"a proxy that adds a line of its own": {"10.0.0.1:5", []string{"1.2.3.4", "203.0.113.9"}, "203.0.113.9"},
		"a proxy that adds to the line":       {"10.0.0.1:5", []string{"1.2.3.4, 203.0.113.9"}, "203.0.113.9"},
		"no proxy":                            {"203.0.113.9:5", []string{"1.2.3.4"}, "203.0.113.9"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, issuer, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr, r.Header = tt.peer, http.Header{"X-Forwarded-For": tt.lines}
		if got, err := find(r); err != nil || got != tt.want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, tt.want)
		}
	}
}

func TestThrottledPasswordGrantIsNoMistakeOfTheClient(t *testing.T) {
	w, _ := memoryWorld(t)
	for range 5 {
		if got := w.grant("user@example.com", "wrong"); got != 401 {
			t.Fatalf("a wrong password: %d", got)
		}
	}
	form := url.Values{
		"grant_type": {"password"}, "scope": {"openid"}, "username": {"user@example.com"}, "password": {"password"},
		"client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"},
	}
	resp := w.from("203.0.113.9", issuer+"/token", form)
	if resp.status != http.StatusTooManyRequests || resp.Error != "temporarily_unavailable" || resp.wait <= 0 || resp.wait > 15*time.Minute {
		t.Errorf("got %+v", resp)
	}
	if got := w.audit.String(); !strings.Contains(got, `"result":"throttled","connector":"local","user":"user@example.com","client":"web"`) {
		t.Errorf("audit: %s", got)
	}
	if got := w.grant("admin@example.com", "password"); got != 200 {
		t.Errorf("another user: %d", got)
	}
}

// One proxy that does not say where its clients are must not make one client of all.
func TestNoNetworkIsCountedWithoutTheClientsAddress(t *testing.T) {
	w, clk := variant(t, proxied+`
connectors:
- {type: mockPassword, id: fast, name: Without a hash, config: {username: robot, password: not-a-default-5591}}
`)
	try := func(client, user, password string) int {
		b := w.browser().get("https://app.example.com/")
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.action(), strings.NewReader(url.Values{"login": {user}, "password": {password}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = "10.0.0.1:5"
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", "https://sso.example.com")
		if client != "" {
			r.Header.Set("X-Forwarded-For", client)
		}
		for _, c := range b.c.Jar.Cookies(b.last) {
			r.AddCookie(c)
		}
		resp, err := inproc.Serve(w.provider.Handler(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	warnings := func() int { return strings.Count(w.logs.String(), "does not say where a client is") }
	for i := range 51 {
		if got := try("", fmt.Sprintf("nobody%d@example.com", i), "x"); got != 401 {
			t.Fatalf("guess %d without an address: %d", i, got)
		}
	}
	if got := try("", "robot", "not-a-default-5591"); got != 303 {
		t.Errorf("the right password after others' wrong ones: %d", got)
	}
	if n := warnings(); n != 1 {
		t.Errorf("%d warnings within a minute, want 1", n)
	}
	clk.add(time.Minute)
	for _, header := range []string{"10.0.0.7", "unknown"} { // of no use either
		if got := try(header, "nobody@example.com", "x"); got != 401 {
			t.Errorf("%s: %d", header, got)
		}
	}
	if n := warnings(); n != 2 {
		t.Errorf("%d warnings after a minute, want 2", n)
	}
	for i := range 50 {
		if got := try("203.0.113.9", fmt.Sprintf("nobody%d@example.org", i), "x"); got != 401 {
			t.Fatalf("guess %d with an address: %d", i, got)
		}
	}
	if got := try("203.0.113.9", "robot", "not-a-default-5591"); got != 429 {
		t.Errorf("the right password from a network that guessed: %d", got)
	}
	if got := try("203.0.113.10", "robot", "not-a-default-5591"); got != 303 {
		t.Errorf("from another network: %d", got)
	}
}
