package browser

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"gatehouse/test/peers"
)

// TestNewPasswordOnThePage signs in with a password that has to be changed, and chooses a new one by keyboard alone. The form's POST leads over the
// issuer to an app on another site.
func TestNewPasswordOnThePage(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	s := serve(t, twoSites(), func(string) string {
		return fmt.Sprintf(`connectors:
- type: ldap
  id: people
  name: People
  config:
    {preset: openldap, host: %q, rootCA: %q, bindDN: %q, bindPW: %q, userSearch: {baseDN: %q}, timeouts: {dial: 1m, request: 1m}}
`, dir.Host, dir.CA, dir.ServiceDN, dir.ServicePassword, dir.PeopleDN)
	})
	const (
		title   = "Choose a new password"
		changed = "Correct-Horse-9"
	)
	b := newPerson(t, peers.Chromium(t, names()), s)
	page := s.app + "/?after=change"
	b.open(t, page)
	b.headed(t, s.issuer+"/auth/people/login?req=", "Sign in")
	b.signIn(t, "reset", dir.Password)
	b.headed(t, s.issuer+"/auth/people/login?req=", title)
	b.shot(t, "new-password")
	b.quiet(t, "status of 403")
	b.focused(t, "password")
	b.keys(t, dir.Password, kb.Tab, "short", kb.Tab, "short", kb.Enter)
	b.headed(t, s.issuer+"/auth/people/password?req=", title)
	b.until(t, "the error", `document.querySelector("#error")?.innerText.startsWith("The new password does not meet")`)
	b.shot(t, "new-password-rejected")
	b.quiet(t, "status of 422")
	for _, field := range []string{"password", "new_password", "new_password_again"} {
		if got := b.eval(t, `document.querySelector("#`+field+`").value`); got != "" {
			t.Errorf("%s came back in the page", field)
		}
	}
	if got := b.eval(t, `document.querySelector("#login").value`); got != "reset" {
		t.Errorf("the user name is %q", got)
	}
	b.focused(t, "password")
	b.keys(t, dir.Password, kb.Tab, changed, kb.Tab, changed, kb.Enter)
	b.at(t, page, appTitle)
	b.quiet(t)

	again := newPerson(t, peers.Chromium(t, names()), s)
	again.open(t, page)
	again.headed(t, s.issuer+"/auth/people/login?req=", "Sign in")
	again.signIn(t, "reset", changed)
	again.at(t, page, appTitle)
	again.quiet(t)
}
