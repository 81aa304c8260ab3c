package directory

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"gatehouse/test/peers"
)

// disable locks a user for good, as an administrator does.
func disable(t *testing.T, dir *peers.SlapdServer, user string) {
	t.Helper()
	r := ldap.NewModifyRequest(dir.UserDN(user), nil)
	r.Replace("pwdAccountLockedTime", []string{"000001010000Z"})
	if err := dir.Admin(t).Modify(r); err != nil {
		t.Fatal(err)
	}
}

// A user who was disabled gets no session on another app host by single sign-on, though nobody tells that they were.
func TestNoSingleSignOnOfADisabledUser(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	s := serve(t, openLDAP(t, dir, table{"watch": "off"}), table{"revalidate": "5s"})
	alice, bob := s.signIn(t, "alice", dir.Password), s.signIn(t, "bob", dir.Password)
	host := 0
	visit := func(p *person) page { // a host where the browser has not been
		host++
		return p.do(t, http.MethodGet, fmt.Sprintf("http://app%d.second.test:%s/headers", host, s.port), nil)
	}
	answered := func(p *person) (pg page) { // by a directory that may need longer than a request waits
		peers.Eventually(t, 2*time.Minute, "who the user is now is known", func() bool {
			pg = visit(p)
			return pg.status != http.StatusServiceUnavailable
		})
		return pg
	}
	if pg := answered(alice); pg.status != http.StatusOK || !strings.Contains(pg.url.Host, "second.test") {
		t.Fatalf("single sign-on: got status %d at %s", pg.status, pg.url)
	}
	disable(t, dir, "alice")
	first := host + 1
	last := time.Now() // that anybody was asked about; a request within ten seconds would pass
	peers.Eventually(t, 2*time.Minute, "what is known is too old", func() bool { return time.Since(last) > 11*time.Second })
	if pg := answered(alice); !strings.HasSuffix(pg.url.Path, "/login") {
		t.Errorf("single sign-on of a disabled user: got status %d at %s: %s", pg.status, pg.url, pg.body)
	}
	for n := first; n <= host; n++ {
		if client := fmt.Sprintf(`"client":"gateway app%d.second.test`, n); strings.Contains(s.gatehouse.Log(), client) {
			t.Error("the issuer signed the user on at the host that refused them")
		}
	}
	if pg := alice.do(t, http.MethodGet, s.app+"/headers", nil); !strings.HasSuffix(pg.url.Path, "/login") {
		t.Errorf("the first host: got status %d at %s", pg.status, pg.url)
	}
	if pg := answered(bob); pg.status != http.StatusOK || !strings.Contains(pg.url.Host, "second.test") {
		t.Errorf("another user: got status %d at %s", pg.status, pg.url)
	}
}

// A running process asks as often as a new configuration says.
func TestRevalidateIsReloaded(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	s := serve(t, openLDAP(t, dir, table{"watch": "off"}), table{"revalidate": "1h"})
	alice, bob := s.signIn(t, "alice", dir.Password), s.signIn(t, "bob", dir.Password)
	disable(t, dir, "alice")
	if alice.seen(t) == nil {
		t.Fatal("asked about within an hour")
	}
	text, err := os.ReadFile(s.gatehouse.Config)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "revalidate: 1h", "revalidate: 5s", 1)
	if changed == string(text) {
		t.Fatalf("no revalidate in %s", text)
	}
	if err := os.WriteFile(s.gatehouse.Config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	peers.Eventually(t, 2*time.Minute, "the configuration is taken up", func() bool { return s.metric(t, "gatehouse_config_generation") == 2 })
	peers.Eventually(t, 2*time.Minute, "a disabled user is out", func() bool { return alice.seen(t) == nil })
	peers.Eventually(t, 2*time.Minute, "another user goes on", func() bool { return bob.seen(t) != nil }) // once the directory has answered in time
}
