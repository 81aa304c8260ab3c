package provider

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// sambaWorld is an issuer in front of a real Active Directory domain.
func sambaWorld(t *testing.T, dir *peers.SambaServer) (*world, *clock) {
	t.Helper()
	text := `
issuer: https://sso.example.com/dex
storage: {type: memory}
oauth2: {skipApprovalScreen: true}
connectors:
- type: ldap
  id: ad
  name: AD
  config:
    preset: activedirectory
    host: ` + dir.Host + `
    rootCA: ` + dir.CA + `
    bindDN: ` + dir.ServiceDN + `
    bindPW: ` + dir.ServicePassword + `
    userSearch: {baseDN: "` + dir.BaseDN + `"}
    groupSearch: {baseDN: "` + dir.BaseDN + `"}
    timeouts: {dial: 1m, request: 1m}
staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"]}
gateway:
  hosts: [sso.example.com, app.example.com]
  default: signed-in
`
	clk := &clock{}
	return newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk), clk
}

func TestSignInAtActiveDirectory(t *testing.T) {
	dir := peers.Samba(t, peers.SambaOptions{})
	t.Run("account states", func(t *testing.T) {
		w, _ := sambaWorld(t, dir)
		for _, tt := range []struct {
			user          string
			status        int
			shows, result string
		}{
			{"alice", 200, "hello ", "ok"},
			{"disabled", 403, "may not sign in", "account-disabled"},
			{"expired", 403, "account has expired", "account-expired"},
			{"hours", 403, "at this time", "outside-hours"},
			{"wks", 403, "certain computers", "other-workstation"},
			{"mustchange", 403, "a password of your own", "password-must-change"},
			{"pwexpired", 403, "Your password has expired. Choose a new one", "password-expired"},
			{"nobody", 401, "not right", "wrong-credentials"},
		} {
			if b := w.signInAs(tt.user, dir.Password); b.code != tt.status || !strings.Contains(b.page, tt.shows) {
				t.Errorf("%s: status %d, want %d and %q on the page:\n%s", tt.user, b.code, tt.status, tt.shows, b.page)
			}
			if !strings.Contains(w.audit.String(), `"result":"`+tt.result+`","connector":"ad"`) {
				t.Errorf("%s: audit lacks %q: %s", tt.user, tt.result, w.audit)
			}
			if b := w.signInAs(tt.user, "guess"); b.code != 401 || !strings.Contains(b.page, "not right") {
				t.Errorf("%s with a wrong password: %d %s", tt.user, b.code, b.page)
			}
		}
	})
	t.Run("a password that must be changed", func(t *testing.T) {
		w, _ := sambaWorld(t, dir)
		b := w.signInAs("mustchange", dir.Password)
		form := url.Values{"login": {"mustchange"}, "password": {dir.Password}, "new_password": {"abc"}, "new_password_again": {"abc"}}
		action := b.action()
		if b.do(http.MethodPost, action, form, ownOrigin()); b.code != 422 || !strings.Contains(b.page, "does not meet") {
			t.Errorf("a weak password: %d %s", b.code, b.page)
		}
		form["new_password"], form["new_password_again"] = []string{"Correct-Horse-9"}, []string{"Correct-Horse-9"}
		if b.do(http.MethodPost, action, form, ownOrigin()); !strings.HasPrefix(b.page, "hello ") {
			t.Fatalf("%d %s", b.code, b.page)
		}
		if b := w.signInAs("mustchange", "Correct-Horse-9"); !strings.HasPrefix(b.page, "hello ") {
			t.Errorf("with the new password: %d %s", b.code, b.page)
		}
	})
	t.Run("guesses by every spelling", func(t *testing.T) {
		w, clk := sambaWorld(t, dir)
		spellings := []string{"u00", `ADTEST\u00`, "u00@ad.example.test", "U00"}
		for i := range 12 {
			w.signInAs(spellings[i%len(spellings)], "guess")
		}
		for _, s := range spellings[1:3] {
			if b := w.signInAs(s, dir.Password); b.code == http.StatusOK {
				t.Errorf("%s is let in in spite of the guesses", s)
			}
		}
		clk.add(time.Hour)
		if b := w.signInAs(`ADTEST\u00`, dir.Password); !strings.HasPrefix(b.page, "hello ") {
			t.Errorf("the domain has locked the account: %d %s", b.code, b.page)
		}
	})
}
