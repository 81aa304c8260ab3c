package browser

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"gatehouse/test/peers"
)

// A scenario is what a person does, in a browser of their own.
type scenario struct {
	name string
	play func(t *testing.T, browser context.Context, s *stack)
}

// anywhere must go well wherever issuer and app are.
func anywhere() []scenario {
	return []scenario{
		{"in by keyboard to the page asked for, and out", inAndOut},
		{"wrong password, then the right one", wrongPassword},
		{"a script is answered 401 after the sign-out, and a reload asks", scriptAfterSignOut},
	}
}

// races, and forgeries, take other ways through the code where issuer and app share a host.
func races() []scenario {
	return []scenario{
		{"three tabs complete one after the other", threeTabs},
		{"a tab whose sign-in another one overtook completes", overtaken},
		{"nobody is signed in by the form of another site", forgedSignIn},
		{"nobody is signed out by the form of another site", forgedSignOut},
	}
}

// pages look the same everywhere.
func pages() []scenario {
	return []scenario{
		{"a user without the group is told who is signed in", denied},
		{"a typed sign-out address asks first", signOutQuestion},
	}
}

// acrossSites must go well where issuer and apps are on sites of their own.
func acrossSites() []scenario {
	return []scenario{
		{"signed in at one site is signed in at the other", otherSite},
		{"the policy names the app, or Chromium stops the form", formAction},
	}
}

func TestOneSite(t *testing.T) {
	play(t, oneSite(), slices.Concat(anywhere(), races(), pages()))
}

func TestTwoSites(t *testing.T) {
	play(t, twoSites(), slices.Concat(anywhere(), races(), acrossSites()))
}

// TestTwoSitesOverTLS is about the cookies with the prefix __Host- and the Sec-Fetch headers.
func TestTwoSitesOverTLS(t *testing.T) {
	play(t, twoSitesOverTLS(), slices.Concat(anywhere(), acrossSites()))
}

func play(t *testing.T, l layout, all []scenario) {
	s := serve(t, l, nil)
	browser := peers.Chromium(t, names())
	for _, one := range all {
		t.Run(one.name, func(t *testing.T) { one.play(t, browser, s) })
	}
}

const (
	appTitle       = "You are signed in"
	deniedTitle    = "You don’t have access to this page"
	crossSiteTitle = "This form came from another site"
)

func inAndOut(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	page := s.app + "/?report=2026&q=a%20b+c&next=//evil.test"
	b.open(t, page)
	b.asked(t, s)
	b.shot(t, "sign-in")
	if got := b.eval(t, `document.cookie`); got != "" {
		t.Errorf("a script on the sign-in page sees the cookies %q, want none", got)
	}
	focusOrder(t, b)
	b.remember(t, false)
	b.signIn(t, adminUser, password)
	b.at(t, page, appTitle)
	b.shot(t, "app")
	b.quiet(t)
	countRequests(t, b, s)
	if got := b.eval(t, `document.querySelector("dl").innerText`); !strings.Contains(got, adminUser) || !strings.Contains(got, "admins") {
		t.Errorf("the app sees %q, want %s in group admins", got, adminUser)
	}
	checkCookies(t, b, s)
	if !b.cookies(t, s)[ssoCookie(s)].Session {
		t.Error("the issuer's cookie outlives the browser, though the user did not want that")
	}

	b.click(t, "Sign out")
	b.signedOut(t, s)
	b.shot(t, "signed-out")
	b.quiet(t)
	if got := slices.Sorted(maps.Keys(b.cookies(t, s))); slices.Contains(got, sessionCookie(s)) {
		t.Errorf("after the sign-out the browser has the cookies %q, want none that is named %s", got, sessionCookie(s))
	}
	b.run(t, chromedp.NavigateBack())
	if !s.secure { // over the question
		b.run(t, chromedp.NavigateBack())
	}
	b.asked(t, s)
	b.open(t, page)
	b.asked(t, s)
	b.run(t, chromedp.Reload())
	b.asked(t, s)
	b.quiet(t)
}

// focusOrder goes through the sign-in page with the Tab key, and back to where it began.
func focusOrder(t *testing.T, b *tab) {
	t.Helper()
	order := []string{"login", "password", "remember_me", "submit"}
	for i, want := range order {
		if i > 0 {
			b.keys(t, kb.Tab)
		}
		b.focused(t, want)
	}
	for range order[1:] {
		b.run(t, chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(8))) // Shift
	}
	b.focused(t, "login")
}

// countRequests checks that nothing foreign was loaded, and that the sign-in took no more redirects than needed: four
// requests where issuer and app share a host, else five.
func countRequests(t *testing.T, b *tab, s *stack) {
	t.Helper()
	want := 4
	if s.layout.auth != s.layout.app {
		want = 5
	}
	pages := 0
	requests := b.takeRequests()
	for _, r := range requests {
		switch {
		case strings.HasPrefix(r, "data:"): // the icon
		case strings.HasSuffix(r, " Document") && (strings.HasPrefix(r, s.app+"/") || strings.HasPrefix(r, s.issuer+"/")):
			pages++
		default:
			t.Errorf("the sign-in loaded %s", r)
		}
	}
	if pages != want {
		t.Errorf("the sign-in took %d requests, want %d:\n%s", pages, want, strings.Join(requests, "\n"))
	}
}

func sessionCookie(s *stack) string {
	if s.scheme == "https" {
		return "__Host-gatehouse"
	}
	return "gatehouse-dev"
}

// checkCookies checks what a signed-in browser keeps, and that no page or app can see any of it.
func checkCookies(t *testing.T, b *tab, s *stack) {
	t.Helper()
	prefix := sessionCookie(s)
	want := map[string]string{ // name -> path
		prefix: "/", prefix + "-login": "/", prefix + "-issuer-login": "/", ssoCookie(s): ssoPath(s),
	}
	got := b.cookies(t, s)
	for name, c := range got {
		path, known := want[name]
		if !known {
			t.Errorf("the browser has a cookie %s, want only %q", name, slices.Sorted(maps.Keys(want)))
			continue
		}
		if c.Path != path || !c.HTTPOnly || !c.Session && name != ssoCookie(s) || c.Secure != (s.scheme == "https") || c.SameSite != network.CookieSameSiteLax ||
			strings.HasPrefix(c.Domain, ".") || len(c.Value) > 200 {
			t.Errorf("cookie %s: got path %s, HttpOnly %t, session %t, Secure %t, SameSite %s, domain %s, %d bytes; want path %s, HttpOnly, "+
				"a session cookie, Secure on https only, Lax, of one host, at most 200 bytes",
				name, c.Path, c.HTTPOnly, c.Session, c.Secure, c.SameSite, c.Domain, len(c.Value), path)
		}
	}
	for name := range want {
		if got[name] == nil {
			t.Errorf("the browser has no cookie %s", name)
		}
	}
	if seen := b.eval(t, `document.cookie = "theme=dark; path=/"; document.cookie`); seen != "theme=dark" {
		t.Errorf("a script of the app sees the cookies %q, want only its own", seen)
	}
	other := b.another(t)
	other.open(t, s.app+"/headers")
	var headers map[string]string
	if err := json.Unmarshal([]byte(other.eval(t, `document.body.innerText`)), &headers); err != nil {
		t.Fatal(err)
	}
	if got := headers["cookie"]; got != "theme=dark" {
		t.Errorf("the app is sent the cookies %q, want only its own", got)
	}
	if got := headers["kubeflow-userid"]; got != adminUser {
		t.Errorf("kubeflow-userid: got %q, want %q", got, adminUser)
	}
	other.quiet(t)
}

func wrongPassword(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	page := s.app + "/?after=error"
	b.open(t, page)
	b.asked(t, s)
	b.remember(t, false)
	b.signIn(t, adminUser, "not it")
	b.until(t, "the error", `document.querySelector("#error")?.innerText.startsWith("These sign-in details are not right")`)
	b.shot(t, "wrong-password")
	b.quiet(t, "status of 401")
	for _, tt := range []struct{ name, script, want string }{
		{"the title begins with the error", `document.title.split(":")[0]`, "Error"},
		{"the error is announced", `document.querySelector("#error").getAttribute("role")`, "alert"},
		{"the user name is kept", `document.querySelector("#login").value`, adminUser},
		{"the password is not kept", `document.querySelector("#password").value`, ""},
		{"the choice not to be remembered is kept", `String(document.querySelector("#remember_me").checked)`, "false"},
		{"the field points at the error", `document.querySelector("#password").getAttribute("aria-describedby")`, "error"},
	} {
		if got := b.eval(t, tt.script); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	b.focused(t, "password")
	b.remember(t, true)
	b.run(t, chromedp.Focus("#password"))
	b.keys(t, password, kb.Enter)
	b.at(t, page, appTitle)
	b.quiet(t)
	if got := b.cookies(t, s); got[ssoCookie(s)].Session || !got[sessionCookie(s)].Session {
		t.Error("want the issuer's cookie to outlive the browser, since the user wants it, and the app's cookie not to")
	}
}

func denied(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	page := s.app + "/admin/x"
	b.open(t, page)
	b.asked(t, s)
	b.signIn(t, plainUser, password)
	b.at(t, page, deniedTitle)
	b.shot(t, "denied")
	b.quiet(t, "status of 403")
	text := b.eval(t, `document.querySelector("main").innerText`)
	for _, want := range []string{"You are signed in as " + plainUser, "Rule\nadmin", "Request ID"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page says %q, want %q in it", text, want)
		}
	}
	b.click(t, "Sign in as someone else")
	b.signedOut(t, s)
	b.click(t, "Sign in again")
	b.asked(t, s)
	b.signIn(t, adminUser, password)
	b.at(t, s.app+"/", appTitle)
	b.click(t, "/admin/x")
	b.at(t, page, "Administration")
	b.quiet(t)
}

func threeTabs(t *testing.T, browser context.Context, s *stack) {
	first := newPerson(t, browser, s)
	tabs := []*tab{first, first.another(t), first.another(t)}
	pages := []string{s.app + "/?tab=1", s.app + "/admin/?tab=2", s.app + "/?tab=3"}
	for i, b := range tabs {
		b.open(t, pages[i])
		b.asked(t, s)
	}
	for _, i := range []int{1, 0, 2} {
		tabs[i].signIn(t, adminUser, password)
		tabs[i].until(t, "the page asked for", `location.href === `+quote(pages[i])+` && document.querySelector("h1")`)
	}
	for i, b := range tabs {
		b.run(t, chromedp.Reload())
		b.until(t, "the page asked for", `location.href === `+quote(pages[i])+` && document.querySelector("h1")`)
		b.quiet(t)
	}
}

// overtaken is a race of two tabs that were opened at once: each was given a pre-cookie, and the browser keeps one.
func overtaken(t *testing.T, browser context.Context, s *stack) {
	first := newPerson(t, browser, s)
	page := s.app + "/?first"
	first.open(t, page)
	first.asked(t, s)
	first.run(t, network.DeleteCookies(sessionCookie(s)+"-login").WithURL(s.app+"/"))
	second := first.another(t)
	second.open(t, s.app+"/?second")
	second.asked(t, s)
	first.signIn(t, adminUser, password)
	first.at(t, page, appTitle)
	second.signIn(t, adminUser, password)
	second.at(t, s.app+"/?second", appTitle)
	first.quiet(t)
	second.quiet(t)
}

func scriptAfterSignOut(t *testing.T, browser context.Context, s *stack) {
	stays := newPerson(t, browser, s)
	page := s.app + "/headers?stays" // JSON: the app's own page forbids itself every fetch
	stays.open(t, page)
	stays.asked(t, s)
	stays.signIn(t, plainUser, password)
	stays.until(t, "the page asked for", `location.href === `+quote(page))
	const ask = `fetch("/headers", {redirect: "manual"}).then(async r => JSON.stringify({
		status: r.status, type: r.type, challenge: r.headers.get("www-authenticate"), body: await r.text()}))`
	type answer struct {
		Status                int
		Type, Challenge, Body string
	}
	asked := func() (a answer) {
		if err := json.Unmarshal([]byte(stays.eval(t, ask)), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := asked(); a.Status != 200 || !strings.Contains(a.Body, plainUser) {
		t.Fatalf("signed in: got status %d and %s, want 200 and the headers", a.Status, a.Body)
	}
	leaves := stays.another(t)
	leaves.open(t, s.app+"/")
	leaves.at(t, s.app+"/", appTitle)
	leaves.click(t, "Sign out")
	leaves.signedOut(t, s)

	a := asked()
	var refusal struct {
		Error     string `json:"error"`
		LoginURL  string `json:"login_url"`
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(a.Body), &refusal); err != nil {
		t.Fatalf("signed out: got %s %d %q, want JSON: %v", a.Type, a.Status, a.Body, err)
	}
	if a.Status != 401 || a.Type != "basic" || a.Challenge == "" {
		t.Errorf("signed out: got %s %d with challenge %q, want 401 with a challenge and no redirect", a.Type, a.Status, a.Challenge)
	}
	if want := s.app + "/_gatehouse/sign-in"; refusal.LoginURL != want || refusal.Error == "" || refusal.RequestID == "" {
		t.Errorf("signed out: got %+v, want the login URL %s, an error and a request id", refusal, want)
	}
	stays.quiet(t, "status of 401")
	stays.run(t, chromedp.Reload())
	stays.asked(t, s)
	stays.quiet(t)
	leaves.quiet(t)
}

func signOutQuestion(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.app+"/")
	b.asked(t, s)
	b.signIn(t, adminUser, password)
	b.at(t, s.app+"/", appTitle)
	address := s.app + "/_gatehouse/sign-out"
	b.open(t, address)
	b.at(t, address, "Sign out?")
	b.shot(t, "sign-out")
	if text := b.eval(t, `document.querySelector("main").innerText`); !strings.Contains(text, "You are signed in as "+adminUser) {
		t.Errorf("the page says %q, want who is signed in", text)
	}
	b.keys(t, kb.Tab)
	b.focused(t, "submit")
	b.keys(t, kb.Enter)
	b.headed(t, address, "You are signed out")
	b.open(t, s.app+"/")
	b.asked(t, s)
	b.quiet(t)
}

func otherSite(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.app+"/")
	b.asked(t, s)
	b.signIn(t, plainUser, password)
	b.at(t, s.app+"/", appTitle)
	b.open(t, s.wiki+"/?page=home")
	b.at(t, s.wiki+"/?page=home", appTitle)
	// What ends at one site ends at the other.
	b.click(t, "Sign out")
	if !s.secure {
		b.headed(t, s.wiki, "Sign out?")
		b.click(t, "Sign out")
	}
	b.headed(t, s.wiki, "You are signed out")
	b.open(t, s.app+"/")
	b.asked(t, s)
	b.quiet(t)
}

// formAction proves that Chromium applies form-action to the redirects after the POST, so that the other tests show
// something: with the app's origin taken out of the policy, the same sign-in goes nowhere.
func formAction(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	chromedp.ListenTarget(b.ctx, func(event any) {
		if e, ok := event.(*fetch.EventRequestPaused); ok {
			go b.withoutApp(e, s.app) // a listener must not wait for the browser
		}
	})
	b.open(t, s.app+"/")
	b.asked(t, s)
	b.run(t, fetch.Enable().WithPatterns([]*fetch.RequestPattern{{URLPattern: s.issuer + "/auth/*", RequestStage: fetch.RequestStageResponse}}),
		chromedp.Reload(), fetch.Disable())
	b.asked(t, s)
	b.signIn(t, adminUser, password)
	const violation = `violates the following Content Security Policy directive: "form-action 'self'"`
	peers.Eventually(t, patience, "Chromium refuses the redirect after the POST", func() bool { return b.complained(violation) })
	b.asked(t, s)
}

// withoutApp answers for the server, without the app in the policy: a response that is only changed on its way keeps
// the policy that it came with.
func (b *tab) withoutApp(e *fetch.EventRequestPaused, app string) {
	err := chromedp.Run(b.ctx, chromedp.ActionFunc(func(ctx context.Context) error {
		body, err := fetch.GetResponseBody(e.RequestID).Do(ctx)
		if err != nil {
			return err
		}
		for _, h := range e.ResponseHeaders {
			if strings.EqualFold(h.Name, "content-security-policy") {
				h.Value = strings.ReplaceAll(h.Value, " "+app, "")
			}
		}
		return fetch.FulfillRequest(e.RequestID, e.ResponseStatusCode).WithResponseHeaders(e.ResponseHeaders).
			WithBody(base64.StdEncoding.EncodeToString(body)).Do(ctx)
	}))
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.complaints = append(b.complaints, "answer for the server: "+err.Error())
	}
}

// ssoCookie is the issuer's session cookie, and ssoPath its path: of the host alone where the scheme allows that.
func ssoCookie(s *stack) string {
	if s.scheme == "https" {
		return "__Host-gatehouse-sso"
	}
	return "gatehouse-sso"
}

func ssoPath(s *stack) string {
	if s.scheme == "https" {
		return "/"
	}
	return "/dex"
}
