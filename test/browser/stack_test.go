// Package browser signs people in and out with a real Chromium, against the built Gatehouse behind a real Envoy: with
// issuer and app on one site and on two, over http and over https. Set GATEHOUSE_SCREENSHOTS to a folder to look at
// the pages.
package browser

import (
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// The static users. Both have the same password.
const (
	adminUser = "admin@example.com" // of the group admins
	plainUser = "user@example.com"  // of the group team-a
	password  = "open sesame 7"
)

// A layout says where issuer and apps are. They share Envoy's port.
type layout struct {
	name    string
	scheme  string
	auth    string // host of the issuer
	app     string // host of the app
	wiki    string // host of another app, on a third site; empty: none
	sibling string // a host on the site of the issuer or the app, whose pages are an attacker's

	// secure says that browsers treat the app as a secure context, and so send Sec-Fetch-* headers.
	secure bool

	strict bool // cookie.sameSite is strict

	directory bool // there are no static users, only those of the connectors
}

func oneSite() layout {
	return layout{name: "one-site", scheme: "http", auth: "localhost", app: "localhost", sibling: "localhost", secure: true}
}

func twoSites() layout {
	return layout{
		name: "two-sites", scheme: "http", auth: "auth.example.test", app: "app.other.test", wiki: "wiki.third.test",
		sibling: "evil.other.test",
	}
}

func twoSitesOverTLS() layout {
	l := twoSites()
	l.name, l.scheme, l.secure = "two-sites-tls", "https", true
	return l
}

// names are all hosts of all layouts, as Chromium is to find them.
func names() map[string]string {
	all := map[string]string{}
	for _, name := range []string{"auth.example.test", "app.other.test", "wiki.third.test", "evil.other.test", "evil.test", "auth.one.test", "app.one.test"} {
		all[name] = "127.0.0.1"
	}
	return all
}

// A stack is Gatehouse with a sample app behind Envoy.
type stack struct {
	layout

	issuer    string // URL, without a slash at the end
	app, wiki string // origins
	edge      string // Envoy's ip:port
	gatehouse *peers.GatehouseServer
}

// serve starts a stack. connectors returns lines of the config file for an issuer; nil: there are static users only.
func serve(t *testing.T, l layout, connectors func(issuer string) string) *stack {
	t.Helper()
	listen, web, grpc := peers.FreeAddr(t), peers.FreeAddr(t), peers.FreeAddr(t)
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	origin := func(host string) string { return l.scheme + "://" + host + ":" + port }
	s := &stack{layout: l, issuer: origin(l.auth) + "/dex", app: origin(l.app), edge: listen}
	hosts := []string{s.app}
	if l.wiki != "" {
		s.wiki = origin(l.wiki)
		hosts = append(hosts, s.wiki)
	}
	lines := ""
	if connectors != nil {
		lines = connectors(s.issuer)
	}
	text := config(t, s.issuer, hosts, lines, web, grpc, l.strict)
	if l.directory {
		before, rest, _ := strings.Cut(text, "enablePasswordDB:")
		_, gateway, _ := strings.Cut(rest, "\ngateway:")
		text = before + "gateway:" + gateway
	}
	s.gatehouse = peers.Gatehouse(t, text)

	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	edge := demo.Edge{Listen: listen, Check: grpc, Hosts: virtualHosts(l, web, app.Listener.Addr().String())}
	if l.scheme == "https" {
		serveTLS(t, edge, l.auth, l.app, l.wiki)
	} else {
		peers.Envoy(t, edge)
	}
	return s
}

func virtualHosts(l layout, issuer, app string) []demo.VirtualHost {
	login, rest := demo.Route{Prefix: "/dex", Upstream: issuer}, demo.Route{Prefix: "/", Upstream: app}
	if l.auth == l.app {
		return []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{login, rest}}}
	}
	return []demo.VirtualHost{
		{Name: "auth", Domains: []string{l.auth, l.auth + ":*"}, Routes: []demo.Route{login}},
		{Name: "apps", Domains: []string{"*"}, Routes: []demo.Route{rest}},
	}
}

func config(t *testing.T, issuer string, hosts []string, connectors, web, grpc string, strict bool) string {
	t.Helper()
	sameSite := "lax"
	if strict {
		sameSite = "strict"
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), 10)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`issuer: %s
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: %q, clientRemoteIP: {header: X-Real-IP, trustedProxies: [127.0.0.1/32]}}
telemetry: {http: %q}
%s
enablePasswordDB: true
staticPasswords:
- {email: %s, username: admin, name: Ada Admin, userID: id-admin, groups: [admins], hash: %[6]q}
- {email: %[7]s, username: user, name: Uma User, userID: id-user, groups: [team-a], hash: %[6]q}
gateway:
  grpc: %[8]q
  admin: %[9]q
  hosts: [%[10]s]
  cookie: {sameSite: %[11]s}
  identity: {headers: {kubeflow-userid: email, kubeflow-groups: groups}}
  rules:
  - {name: admin, paths: ["/admin", "/admin/**"], groups: [admins]}
  default: signed-in
`, issuer, web, peers.FreeAddr(t), connectors, adminUser, hash, plainUser, grpc, peers.FreeAddr(t), `"`+strings.Join(hosts, `", "`)+`"`, sameSite)
}
