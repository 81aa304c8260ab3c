package provider

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"
	"golang.org/x/oauth2"

	"gatehouse/test/peers"
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
	bob.holds("disabled", tokens["bob"], false)

	dir.Kill(t)
	many := browsers["many"].get(clientURL(oauth2.GenerateVerifier()))
	if many.last.Host == "web.example.com" || many.code != http.StatusServiceUnavailable {
		t.Errorf("single sign-on while nobody can be asked: %d at %s, want 503", many.code, many.last)
	}
}
