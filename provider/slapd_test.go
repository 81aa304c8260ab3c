package provider

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/config"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// slapdConfig is an issuer's configuration with an OpenLDAP server.
func slapdConfig(dir *peers.SlapdServer) string {
	return `
issuer: https://sso.example.com/dex
storage: {type: memory}
oauth2: {skipApprovalScreen: true, passwordConnector: people}
connectors:
- type: ldap
  id: people
  name: People
  config:
    preset: openldap
    host: ` + dir.Host + `
    rootCA: ` + dir.CA + `
    bindDN: ` + dir.ServiceDN + `
    bindPW: ` + dir.ServicePassword + `
    userSearch: {baseDN: "` + dir.PeopleDN + `"}
    groupSearch: {baseDN: "` + dir.GroupsDN + `"}
    timeouts: {dial: 1m, request: 1m}
staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"]}
gateway:
  hosts: [sso.example.com, app.example.com]
  default: signed-in
`
}

// slapdWorld is an issuer in front of a real OpenLDAP server.
func slapdWorld(t *testing.T) (*world, *clock, *peers.SlapdServer) {
	t.Helper()
	dir, clk := peers.Slapd(t, peers.SlapdOptions{}), &clock{}
	return newWorld(t, slapdConfig(dir), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk), clk, dir
}

func (w *world) signInAs(user, password string) *browser {
	w.t.Helper()
	b := w.browser().get("https://app.example.com/")
	b.do(http.MethodPost, b.action(), url.Values{"login": {user}, "password": {password}}, ownOrigin())
	return b
}

func TestSignInAtOpenLDAP(t *testing.T) {
	w, clk, dir := slapdWorld(t)
	if b := w.signInAs("alice", dir.Password); !strings.HasPrefix(b.page, "hello alice@example.test") || !strings.Contains(b.page, "g3-leaf") {
		t.Fatalf("alice: %d %s", b.code, b.page)
	}
	text := func(b *browser) string {
		return regexp.MustCompile(`req=[^"]*|value="[^"]*"`).ReplaceAllString(b.page, "")
	}
	wrong, nobody := w.signInAs("bob", "guess"), w.signInAs("nobody", "guess")
	if wrong.code != 401 || nobody.code != 401 || text(wrong) != text(nobody) {
		t.Errorf("wrong password: %d\n%s\nunknown user: %d\n%s", wrong.code, wrong.page, nobody.code, nobody.page)
	}
	for _, password := range []string{dir.Password, "guess"} { // the directory does not look at it
		if b := w.signInAs("locked", password); b.code != 401 || text(b) != text(nobody) {
			t.Errorf("a locked account with %q: %d %s", password, b.code, b.page)
		}
	}
	if !strings.Contains(w.audit.String(), `"result":"account-locked","connector":"people","user":"locked"`) {
		t.Errorf("audit: %s", w.audit)
	}

	// We stop before the directory locks the account, and so does whoever changes the spelling.
	tried := 0
	for ; tried < 10; tried++ {
		if b := w.signInAs([]string{"bob", "bob@example.test", "BOB"}[tried%3], "guess"); b.code == http.StatusTooManyRequests {
			break
		}
	}
	if tried == 10 {
		t.Error("ten guesses at an account")
	}
	clk.add(time.Hour)
	if b := w.signInAs("bob", dir.Password); !strings.HasPrefix(b.page, "hello bob@example.test") {
		t.Errorf("after many guesses the account is locked at the directory: %d %s", b.code, b.page)
	}
}

func TestResetPasswordIsChangedAtOpenLDAP(t *testing.T) {
	w, _, dir := slapdWorld(t)
	b := w.signInAs("reset", dir.Password)
	if b.code != 403 || !strings.Contains(b.page, "password of your own") {
		t.Fatalf("%d %s", b.code, b.page)
	}
	form := url.Values{"login": {"reset"}, "password": {dir.Password}, "new_password": {"x"}, "new_password_again": {"x"}}
	action := b.action()
	if b.do(http.MethodPost, action, form, ownOrigin()); b.code != 422 || !strings.Contains(b.page, "does not meet") {
		t.Errorf("a weak password: %d %s", b.code, b.page)
	}
	form["new_password"], form["new_password_again"] = []string{"Correct-Horse-9"}, []string{"Correct-Horse-9"}
	if b.do(http.MethodPost, action, form, ownOrigin()); !strings.HasPrefix(b.page, "hello reset@example.test") {
		t.Fatalf("%d %s", b.code, b.page)
	}
	if b := w.signInAs("reset", "Correct-Horse-9"); !strings.HasPrefix(b.page, "hello") {
		t.Errorf("with the new password: %d %s", b.code, b.page)
	}
	if b := w.signInAs("reset", dir.Password); b.code != 401 {
		t.Errorf("with the old one: %d", b.code)
	}
	if logs := w.audit.String() + w.logs.String(); strings.Contains(logs, "Correct-Horse-9") || strings.Contains(logs, `"`+dir.Password+`"`) {
		t.Error("a password is in a log")
	}
}

// Dex's own grants go through the same connector. (A refresh takes the stored identity, which revalidation keeps current.)
func TestDexGrantsAtOpenLDAP(t *testing.T) {
	w, _, dir := slapdWorld(t)
	ctx := w.direct(t.Context())
	if _, err := webClient().PasswordCredentialsToken(ctx, "alice", dir.Password); err != nil {
		t.Error(err)
	}
	if _, err := webClient().PasswordCredentialsToken(ctx, "alice", "guess"); err == nil {
		t.Error("a wrong password is good for a token")
	}
	verifier := oauth2.GenerateVerifier()
	b := w.browser().get(clientURL(verifier))
	b.signIn("alice", dir.Password)
	tok, err := webClient().Exchange(ctx, b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	again, err := webClient().TokenSource(ctx, &oauth2.Token{RefreshToken: tok.RefreshToken}).Token()
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := again.Extra("id_token").(string)
	var claims struct {
		Email  string
		Groups []string
	}
	if parts := strings.Split(raw, "."); len(parts) == 3 {
		body, _ := base64.RawURLEncoding.DecodeString(parts[1])
		_ = json.Unmarshal(body, &claims)
	}
	if claims.Email != "alice@example.test" || !slices.Contains(claims.Groups, "g3-leaf") {
		t.Errorf("claims after a refresh: %+v", claims)
	}
}

// A directory whose block and files are what they were is the same over a reload, and so stays open; with a new CA it is another.
func TestDirectoryFollowsItsFiles(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyCA := func(more string) {
		pem, err := os.ReadFile(dir.CA)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ca, append(pem, more...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copyCA("")
	text := strings.Replace(slapdConfig(dir), dir.CA, ca, 1)
	raw := parse(t, text).Connectors[0].Config.JSON()
	if got := ConnectorFiles("ldap", raw); !slices.Equal(got, []string{ca}) {
		t.Fatalf("files: %q, want the CA's", got)
	}
	load := func() *config.Config {
		c := parse(t, text)
		digest, err := os.ReadFile(ca)
		if err != nil {
			t.Fatal(err)
		}
		c.Connectors[0].Files = config.Files{ca: string(digest)}
		return c
	}
	clk := &clock{}
	w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	before := connectorVersion(load().Connectors[0])
	if again := connectorVersion(load().Connectors[0]); again != before {
		t.Error("it is another connector although nothing has changed")
	}
	copyCA("\n# renewed\n")
	c := load()
	if connectorVersion(c.Connectors[0]) == before {
		t.Error("it is the same connector although its CA is another")
	}
	next, err := w.provider.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	next.Use()
	if err := next.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b := w.signInAs("alice", dir.Password); !strings.HasPrefix(b.page, "hello ") {
		t.Errorf("after the reload: %d %s", b.code, b.page)
	}
}

func TestDirectoryIsMeasured(t *testing.T) {
	dir, dead, clk := peers.Slapd(t, peers.SlapdOptions{}), peers.FreeAddr(t), &clock{}
	text := strings.Replace(slapdConfig(dir), "host: "+dir.Host, "hosts: ["+dead+", "+dir.Host+"]", 1)
	clk.stop() // a host that failed is put aside for seconds
	w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	if b := w.signInAs("alice", dir.Password); !strings.HasPrefix(b.page, "hello") {
		t.Fatalf("alice: %d %s", b.code, b.page)
	}
	got := w.samples(t, "gatehouse_directory_")
	for name, atLeast := range map[string]float64{
		"gatehouse_directory_dials_total people " + dead: 1, "gatehouse_directory_failed_dials_total people " + dead: 1, "gatehouse_directory_host_aside people " + dead: 1,
		"gatehouse_directory_dials_total people " + dir.Host: 1, "gatehouse_directory_failovers_total people": 1,
		"gatehouse_directory_binds_total people": 1, "gatehouse_directory_searches_total people": 2, "gatehouse_directory_connections people": 1,
	} {
		if got[name] < atLeast {
			t.Errorf("%s is %v, want at least %v", name, got[name], atLeast)
		}
	}
	for _, name := range []string{"failed_dials_total people " + dir.Host, "host_aside people " + dir.Host} {
		if v, ok := got["gatehouse_directory_"+name]; !ok || v != 0 {
			t.Errorf("%s is %v (there: %v), want 0", name, v, ok)
		}
	}

	// Whatever is typed makes no new series, and a host that is named twice does not end the scrape.
	w.signInAs("nobody at all", "guess")
	if again := w.samples(t, "gatehouse_directory_"); len(again) != len(got) {
		t.Errorf("got %d series, want %d as before: %v", len(again), len(got), again)
	}
	twice := strings.Replace(slapdConfig(dir), "host: "+dir.Host, "hosts: ["+dir.Host+", "+dir.Host+"]", 1)
	if got := newWorld(t, twice, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk).samples(t, "gatehouse_directory_host_aside"); len(got) != 1 {
		t.Errorf("a host that is named twice: got %v, want one series", got)
	}
}

// samples returns the samples of the metrics whose name begins so, by name and the values of the labels.
func (w *world) samples(t *testing.T, prefix string) map[string]float64 {
	t.Helper()
	all, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), prefix) {
			continue
		}
		for _, m := range f.GetMetric() {
			var name strings.Builder
			name.WriteString(f.GetName())
			for _, l := range m.GetLabel() {
				name.WriteString(" " + l.GetValue())
			}
			out[name.String()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}
