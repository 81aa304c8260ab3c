package browser

import (
	"context"
	"fmt"
	"testing"

	"gatehouse/test/peers"
)

// TestSignOutLeadsToTheUpstream signs in at an identity provider on a third site, and out there too: the form's POST is
// answered at the app, and the way leads over the provider to the issuer.
func TestSignOutLeadsToTheUpstream(t *testing.T) {
	var op *peers.OIDCServer
	s := serve(t, twoSites(), func(issuer string) string {
		op = peers.OIDCProvider(t, peers.OIDCOptions{
			ClientID: "gatehouse", ClientSecret: "a secret of this test", RedirectURIs: []string{issuer + "/callback"},
			PostLogoutRedirectURIs: []string{issuer + "/logout/callback"},
			Users:                  []peers.User{{Sub: "alice", Email: "alice@company.test", Name: "Alice", Groups: []string{"staff"}}},
		})
		return fmt.Sprintf(`connectors:
- type: oidc
  id: company
  name: Company
  config: {issuer: %q, clientID: gatehouse, clientSecret: a secret of this test, redirectURI: %q, scopes: [profile, email, groups], insecureEnableGroups: true}
`, op.Issuer, issuer+"/callback")
	})
	browser := peers.Chromium(t, names())
	t.Run("out by the form", func(t *testing.T) { overUpstream(t, browser, s, op.Issuer) })
}

func overUpstream(t *testing.T, browser context.Context, s *stack, upstream string) {
	b := newPerson(t, browser, s)
	page := s.app + "/?from=company"
	b.open(t, page)
	b.asked(t, s)
	b.shot(t, "sign-in-upstream")
	b.click(t, "Continue with Company")
	b.at(t, page, appTitle)
	if got := b.eval(t, `document.querySelector("dl strong").innerText`); got != "alice@company.test" {
		t.Errorf("the app sees %q, want alice@company.test", got)
	}
	b.quiet(t)
	b.takeRequests()

	b.click(t, "Sign out")
	b.headed(t, s.app+"/_gatehouse/sign-out", "Sign out?")
	b.click(t, "Sign out")
	b.at(t, s.issuer+"/logout/callback", "You are signed out")
	b.shot(t, "signed-out-upstream")
	if !visited(b.takeRequests(), upstream+"/session/end") {
		t.Error("the browser was not sent to the identity provider's end_session_endpoint")
	}
	b.open(t, page)
	b.asked(t, s)
}
