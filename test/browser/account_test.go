package browser

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"gatehouse/test/peers"
)

const (
	accountTitle   = "Your account"
	signedOutTitle = "You are signed out"
)

// TestAccountPage has a person see where they are signed in and end it, with issuer and app on one site and on two.
func TestAccountPage(t *testing.T) {
	scenarios := []scenario{
		{"another browser is signed out, and everywhere", endsOther},
		{"the page is for people who have signed in, and leads back", accountFirst},
		{"the page that says no leads to the account", accountFromDenied},
		{"a form of another site ends nothing", forgedEnd},
		{"a page in a frame is not shown", framed},
	}
	for _, l := range []layout{oneSite(), twoSites(), twoSitesOverTLS()} {
		t.Run(l.name, func(t *testing.T) {
			if l.scheme == "https" { // is about the cookies; the attacker's pages are not https
				scenarios = scenarios[:2]
			}
			play(t, l, scenarios)
		})
	}
}

// account opens the account page of a browser that is signed in.
func (b *tab) account(t *testing.T, s *stack) {
	t.Helper()
	b.open(t, s.issuer+"/account")
	b.headed(t, s.issuer+"/account", accountTitle)
}

// press clicks the button of the account page with a value; "" for that of the first session that is not this browser's.
func (b *tab) press(t *testing.T, value string) {
	t.Helper()
	selector := `button[value="` + value + `"]`
	if value == "" {
		selector = `.cards > li:nth-child(2) button`
	}
	b.run(t, chromedp.Click(selector, chromedp.ByQuery))
}

func endsOther(t *testing.T, browser context.Context, s *stack) {
	desk, phone := newPerson(t, browser, s), newPerson(t, browser, s)
	const evil = `<script>alert("x")</script><b>Phone</b>`
	phone.run(t, emulation.SetUserAgentOverride(evil))
	for _, b := range []*tab{desk, phone} {
		b.open(t, s.app+"/")
		b.asked(t, s)
		b.signIn(t, adminUser, password)
		b.at(t, s.app+"/", appTitle)
		b.takeRequests()
	}
	desk.account(t, s)
	if got := desk.eval(t, `String(document.querySelectorAll(".cards > li").length)`); got != "2" {
		t.Errorf("the page shows %s sessions, want 2", got)
	}
	for i, want := range []string{"Chrome, Linux This browser", evil} {
		if got := desk.eval(t, fmt.Sprintf(`document.querySelectorAll(".cards > li")[%d].innerText`, i)); !strings.HasPrefix(strings.Join(strings.Fields(got), " "), want) {
			t.Errorf("session %d is shown as %q, want %q", i, got, want)
		}
	}
	if got := desk.eval(t, `document.cookie`); got != "" {
		t.Errorf("a script on the page sees the cookies %q", got)
	}
	for _, r := range desk.takeRequests() {
		if !strings.HasPrefix(r, "data:") && !strings.HasPrefix(r, s.issuer+"/account") {
			t.Errorf("the page loaded %s", r)
		}
	}
	desk.portraits(t, "account")

	// By keyboard: the second session's button comes right after the first one's.
	desk.run(t, chromedp.Focus(`.cards > li:nth-child(1) button`, chromedp.ByQuery))
	desk.keys(t, kb.Tab, kb.Enter)
	desk.until(t, "what was done", `document.querySelector("[role=status]")?.innerText === "That session has ended."`)
	desk.quiet(t)
	phone.open(t, s.app+"/")
	phone.asked(t, s)
	desk.open(t, s.app+"/")
	desk.at(t, s.app+"/", appTitle)

	phone.signIn(t, adminUser, password)
	phone.at(t, s.app+"/", appTitle)
	desk.account(t, s)
	desk.press(t, "all")
	desk.headed(t, s.issuer+"/logout/callback", signedOutTitle)
	for _, b := range []*tab{desk, phone} {
		b.quiet(t)
		b.open(t, s.app+"/")
		b.asked(t, s)
		b.open(t, s.issuer+"/account")
		b.headed(t, s.issuer+"/auth/local/login?req=", "Sign in")
		b.quiet(t)
	}
}

func accountFirst(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.issuer+"/account?next=//evil.test")
	b.headed(t, s.issuer+"/auth/local/login?req=", "Sign in")
	b.signIn(t, plainUser, "not it")
	b.until(t, "the error", `document.querySelector("#error")?.innerText.startsWith("These sign-in details are not right")`)
	b.quiet(t, "status of 401")
	b.focused(t, "password")
	b.keys(t, password, kb.Enter)
	b.headed(t, s.issuer+"/account", accountTitle)
	if got := b.eval(t, `document.querySelector("main").innerText`); !strings.Contains(got, plainUser) || !strings.Contains(got, "team-a") || !strings.Contains(got, "Uma User") {
		t.Errorf("the page says %q", got)
	}
	b.open(t, s.app+"/")
	b.at(t, s.app+"/", appTitle) // by single sign-on
	b.open(t, s.issuer+"/account")
	b.run(t, chromedp.Click(`.cards button`, chromedp.ByQuery))
	b.headed(t, s.issuer+"/logout/callback", signedOutTitle)
	if _, ok := b.cookies(t, s)[ssoCookie(s)]; ok {
		t.Error("the browser keeps the issuer's cookie")
	}
	b.run(t, chromedp.NavigateBack())
	b.headed(t, s.issuer+"/auth/local/login?req=", "Sign in")
	b.quiet(t)
}

func accountFromDenied(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.app+"/admin/x")
	b.asked(t, s)
	b.signIn(t, plainUser, password)
	b.at(t, s.app+"/admin/x", deniedTitle)
	b.quiet(t, "status of 403")
	b.click(t, accountTitle)
	b.headed(t, s.issuer+"/account", accountTitle)
	b.quiet(t)
}

// forgedEnd has a page of an attacker send the form, from each place that an attacker may have.
func forgedEnd(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.issuer+"/account")
	b.headed(t, s.issuer+"/auth/local/login?req=", "Sign in")
	b.signIn(t, plainUser, password)
	b.headed(t, s.issuer+"/account", accountTitle)
	for _, from := range places(s) {
		token := b.eval(t, `document.querySelector("[name=token]").value`) // which is more than an attacker can know
		port := attacker(t, attackPage{Action: s.issuer + "/account", Fields: map[string]string{"token": token, "end": "all"}, NoReferrer: from.noReferrer})
		b.open(t, "http://"+from.host+":"+port+"/")
		b.click(t, "Collect")
		b.headed(t, s.issuer+"/account", crossSiteTitle)
		b.account(t, s)
	}
}

// framed puts the page into one of an attacker's on the same site: clicks there are not the user's.
func framed(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.issuer+"/account")
	b.headed(t, s.issuer+"/auth/local/login?req=", "Sign in")
	b.signIn(t, plainUser, password)
	b.headed(t, s.issuer+"/account", accountTitle)
	b.quiet(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if _, err := fmt.Fprintf(w, `<!DOCTYPE html><title>Prize</title><iframe src="%s/account"></iframe>`, s.issuer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b.open(t, "http://"+s.sibling+":"+port+"/")
	peers.Eventually(t, patience, "the browser refuses to show it", func() bool { return b.complained("frame-ancestors") })
}

// portraits saves the page as it looks in light and dark, on a desk and on a phone, in English and in German.
func (b *tab) portraits(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("GATEHOUSE_SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{360, 1280} {
			for _, lang := range []string{"en", "de"} {
				var png []byte
				features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}
				b.run(t, chromedp.EmulateViewport(width, 900), emulation.SetEmulatedMedia().WithFeatures(features),
					network.SetExtraHTTPHeaders(network.Headers{"Accept-Language": lang}), chromedp.Reload(), chromedp.FullScreenshot(&png, 100))
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%s-%s-%s-%d.png", b.shots, name, lang, scheme, width)), png, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	b.run(t, network.SetExtraHTTPHeaders(network.Headers{}), emulation.ClearDeviceMetricsOverride(), chromedp.Reload())
	b.headed(t, "", accountTitle)
}

// TestNewPasswordFromTheAccountPage changes a password that has not expired.
func TestNewPasswordFromTheAccountPage(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	s := serve(t, oneSite(), func(string) string { return people(dir) })
	const changed = "Correct-Horse-9"
	b := newPerson(t, peers.Chromium(t, names()), s)
	b.open(t, s.issuer+"/account")
	b.headed(t, s.issuer+"/auth/people/login?req=", "Sign in")
	b.signIn(t, "alice", dir.Password)
	b.headed(t, s.issuer+"/account", accountTitle)
	b.click(t, "Change password")
	b.headed(t, s.issuer+"/auth/people/password?req=", "Choose a new password")
	b.shot(t, "wanted-password")
	b.quiet(t)
	b.focused(t, "password")
	b.run(t, chromedp.SetValue("#login", "alice", chromedp.ByQuery))
	b.keys(t, "not it", kb.Tab, changed, kb.Tab, changed, kb.Enter)
	b.until(t, "the error", `document.querySelector("#error")?.innerText.startsWith("The current password is not right")`)
	b.quiet(t, "status of 401")
	b.focused(t, "password")
	b.keys(t, dir.Password, kb.Tab, changed, kb.Tab, changed, kb.Enter)
	b.headed(t, s.issuer+"/account", accountTitle)
	b.quiet(t)

	again := newPerson(t, peers.Chromium(t, names()), s)
	again.open(t, s.app+"/")
	again.headed(t, s.issuer+"/auth/people/login?req=", "Sign in")
	again.signIn(t, "alice", changed)
	again.at(t, s.app+"/", appTitle)
	again.quiet(t)
}

func people(dir *peers.SlapdServer) string {
	return fmt.Sprintf(`connectors:
- type: ldap
  id: people
  name: People
  config:
    {preset: openldap, host: %q, rootCA: %q, bindDN: %q, bindPW: %q, userSearch: {baseDN: %q}, timeouts: {dial: 1m, request: 1m}}
`, dir.Host, dir.CA, dir.ServiceDN, dir.ServicePassword, dir.PeopleDN)
}
