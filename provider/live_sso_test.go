package provider

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/oauth2"

	"gatehouse/internal/seal"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/test/peers"

	"github.com/dexidp/dex/storage"
)

// clientUser gets tokens for the outside client, by the session of the browser if it has one.
func (b *browser) clientUser(user, password string) *oauth2.Token {
	b.w.t.Helper()
	c := issued{verifier: oauth2.GenerateVerifier()}
	b.get(clientURL(c.verifier))
	if b.last.Host != "web.example.com" {
		b.signIn(user, password)
	}
	if c.code = b.last.Query().Get("code"); c.code == "" {
		b.w.t.Fatalf("%s: no code at %s: %d %s", user, b.last, b.code, b.page)
	}
	return b.w.mustExchange(c)
}

func (b *browser) userinfo(token string) (status int) {
	b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + token}})
	return b.code
}

// Who uses no app behind the gateway is asked about, too: before another client gets a code, and before a token is said to be good.
func TestUsersOfOtherClientsAreAskedAbout(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	w, clk, _ := brokenWorld(t, strings.Replace(slapdConfig(dir), "    preset: openldap\n", "    preset: openldap\n    watch: \"off\"\n", 1))
	browsers, tokens := map[string]*browser{}, map[string]*oauth2.Token{}
	for _, u := range []string{"alice", "bob", "many"} {
		browsers[u] = w.browser()
		tokens[u] = browsers[u].clientUser(u, dir.Password)
	}
	clk.add(3 * time.Hour)
	for _, u := range []string{"alice", "bob"} {
		tokens[u] = browsers[u].clientUser(u, "") // single sign-on
		if raw, _ := tokens[u].Extra("id_token").(string); browsers[u].userinfo(raw) != http.StatusOK {
			t.Errorf("%s: userinfo where nothing has changed: %d", u, browsers[u].code)
		}
	}
	admin := dir.Admin(t)
	var errs []error
	for _, u := range []string{"alice", "bob"} {
		r := ldapv3.NewModifyRequest(dir.UserDN(u), nil)
		r.Replace("pwdAccountLockedTime", []string{"000001010000Z"})
		errs = append(errs, admin.Modify(r))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	clk.add(3 * time.Hour)
	alice := browsers["alice"].get(clientURL(oauth2.GenerateVerifier()))
	if alice.last.Host == "web.example.com" || !alice.form() {
		t.Errorf("single sign-on of a disabled user leads to %s, want the sign-in page: %d %s", alice.last, alice.code, alice.page)
	}
	if alice.get("https://app.example.com/"); !alice.form() {
		t.Errorf("and at the gateway to %s: %d %s", alice.last, alice.code, alice.page)
	}
	bob := browsers["bob"]
	raw, _ := tokens["bob"].Extra("id_token").(string)
	if bob.userinfo(raw) != http.StatusUnauthorized {
		t.Errorf("userinfo of a disabled user: %d %s", bob.code, bob.page)
	}
	eventually(t, "what a disabled user has is revoked", func() bool { // who may not go on is refused at once, and what they have ends then
		refresh, err := w.store.ListRefreshTokens(t.Context())
		return err == nil && !slices.ContainsFunc(refresh, func(r storage.RefreshToken) bool { return r.Claims.Email == "bob@example.test" })
	})
	bob.holds("disabled", tokens["bob"], false)

	dir.Kill(t)
	many := browsers["many"].get(clientURL(oauth2.GenerateVerifier()))
	if many.last.Host == "web.example.com" || many.code != http.StatusServiceUnavailable {
		t.Errorf("single sign-on while nobody can be asked: %d at %s, want 503", many.code, many.last)
	}
}

// Whoever came by a connector that is not there any more, or has another id, can be asked about by nobody: they go on for as long as while a directory
// is down, and no longer.
func TestUsersOfAConnectorThatIsGone(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	w, clk, _ := brokenWorld(t, slapdConfig(dir))
	w.signInAs("alice", dir.Password)
	alice := w.sessionOf("alice@example.test")
	renamed := strings.NewReplacer("id: people", "id: folk", "passwordConnector: people", "passwordConnector: folk").Replace(slapdConfig(dir))
	goesOn := func(what string, minutes int) {
		t.Helper()
		for range minutes {
			clk.add(time.Minute)
			if err := w.vouch(alice); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	w.reload(renamed)
	goesOn("just renamed", 12)
	w.reload(slapdConfig(dir))
	goesOn("a mistake that was taken back", 12)
	w.reload(renamed)
	goesOn("renamed again", 12)
	for range 8 {
		clk.add(time.Minute)
		_ = w.vouch(alice)
	}
	if err := w.vouch(alice); !errors.Is(err, identity.ErrEnded) {
		t.Errorf("renamed for good: got %v, want the end", err)
	}
	eventually(t, "the session ends", func() bool {
		_, err := w.provider.Session(t.Context(), alice.ID)
		return errors.Is(err, ErrNoSession)
	})
}

// Each reload opens the directory anew, and watches it anew.
func TestReloadedDirectoriesLeaveNothing(t *testing.T) {
	dir, clk := peers.Slapd(t, peers.SlapdOptions{}), &clock{}
	text := func(i int) string {
		return strings.Replace(slapdConfig(dir), "    preset: openldap\n", fmt.Sprintf("    preset: openldap\n    usernamePrompt: \"User %d\"\n", i), 1)
	}
	w := newWorld(t, text(0), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	w.signInAs("alice", dir.Password)
	alice := w.sessionOf("alice@example.test")
	measure := func() (goroutines int, heap uint64) {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	reload := func(i int) {
		w.reload(text(i))
		clk.add(time.Minute)
		if err := w.vouch(alice); err != nil {
			t.Fatalf("reload %d: %v", i, err)
		}
	}
	for i := range 20 {
		reload(i + 1)
	}
	peers.Eventually(t, 30*time.Second, "the watch works", func() bool {
		all, err := w.metrics.Gather()
		return err == nil && slices.ContainsFunc(all, func(f *dto.MetricFamily) bool {
			return f.GetName() == "gatehouse_watch_up" && f.GetMetric()[0].GetGauge().GetValue() == 1
		})
	})
	goroutines, heap := measure()
	for i := range 100 {
		reload(i + 100)
	}
	var now int
	var after uint64
	defer func() {
		t.Logf("goroutines %d -> %d, heap %d -> %d kB after 100 reloads", goroutines, now, heap>>10, after>>10)
	}()
	eventually(t, "goroutines end, and what they held is free", func() bool { // the former number may have had some of an earlier test
		now, after = measure()
		return now <= goroutines+4 && after <= heap+2<<20
	})
}
