package replicas

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"gatehouse/test/peers"
)

// Two replicas ask one directory about the same user at the same time, again and again: nobody is signed out by that. Once the user is locked, both
// refuse, and the session is ended.
func TestBothAskAboutOneUser(t *testing.T) {
	const every = 5 * time.Second
	t.Parallel()
	s, dir := peers.Postgres(t, peers.PostgresOptions{}), peers.Slapd(t, peers.SlapdOptions{})
	f := newFleet(t, 2, onPostgres(s, s.Addr), table{"revalidate": every.String()}, table{
		"type": "ldap", "id": "corp", "name": "Corp", "config": table{
			"preset": "openldap", "domain": "example.test", "host": dir.Host, "rootCA": dir.CA, "bindDN": dir.ServiceDN, "bindPW": dir.ServicePassword, "watch": "off",
		},
	})
	alice, bobby := f.corp(t, "alice", dir.Password), f.corp(t, "bob", dir.Password)
	l := underLoad(t, "alice@example.test", alice)
	before := f.metrics(t, `gatehouse_revalidations_total{connector="corp",result="same"}`)
	asked := func() (n []float64) {
		n = f.metrics(t, `gatehouse_revalidations_total{connector="corp",result="same"}`)
		for i := range n {
			n[i] -= before[i]
		}
		return n
	}
	peers.Eventually(t, within, "each replica has asked twice", func() bool { n := asked(); return n[0] >= 2 && n[1] >= 2 })
	t.Logf("the replicas have asked %v times about users who are in use on both, every %s", asked(), every)
	l.done(t, "both ask about the same user")

	r := ldap.NewModifyRequest(dir.UserDN("alice"), nil)
	r.Replace("pwdAccountLockedTime", []string{"000001010000Z"})
	if err := dir.Admin(t).Modify(r); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	refusedBy := f.watch(t, alice)()
	for i, at := range refusedBy {
		t.Logf("locked in the directory, refused by %s after %s", f.replicas[i].name, at.Sub(start).Round(100*time.Millisecond))
	}
	ended := func() (n int) {
		for _, r := range f.replicas {
			n += strings.Count(lines(r.Log(), `"by":"directory"`), `"msg":"sign-out"`)
		}
		return n
	}
	peers.Eventually(t, within, "an audit log has the end of the session", func() bool { return ended() > 0 })
	f.known(t, "bob@example.test", bobby)
	for _, r := range f.replicas {
		if bad := lines(r.Log(), `"level":"ERROR"`); bad != "" {
			t.Errorf("%s: %s", r.name, bad)
		}
	}
	// Twice where both were told at the same moment: the second one found it gone, or was as quick.
	n := ended()
	t.Logf("the audit logs of both have the end of the session %d times", n)
	if n > 2 {
		t.Errorf("the session was ended %d times in the audit logs of all replicas, want once, or once by each", n)
	}
}

// corp signs in at the directory.
func (f *fleet) corp(t *testing.T, name, password string) *browser {
	t.Helper()
	b := f.browser(t)
	p, err := b.visit(t.Context(), http.MethodGet, f.issuer+"/auth/corp?"+url.Values{
		"client_id": {clientID}, "redirect_uri": {clientURL}, "response_type": {"code"}, "scope": {"openid"},
	}.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	action, err := p.action()
	if err != nil {
		t.Fatal(err)
	}
	if p, err = b.visit(t.Context(), http.MethodPost, action, url.Values{"login": {name}, "password": {password}}); err == nil {
		p, err = b.visit(t.Context(), http.MethodGet, f.app+"/headers", nil) // by single sign-on
	}
	if err == nil {
		err = b.isAt(p, name+"@example.test")
	}
	if err != nil {
		t.Fatal(fmt.Errorf("sign-in of %s: %w", name, err))
	}
	return b
}
