package config

import (
	"errors"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"gatehouse/authz/policy"
	"gatehouse/internal/hosts"
	"gatehouse/internal/nearest"
)

func (k *checker) gateway() {
	g := k.c.Gateway
	if g == nil {
		if _, there := k.nodes["gateway"]; there {
			k.errorf("gateway", "is empty: add hosts, or remove the line for a provider only")
		}
		return
	}
	if g.GRPC == "" && !k.failed("gateway.grpc") {
		k.errorf("gateway.grpc", "is empty: set the address for Envoy, such as 0.0.0.0:9001, or remove the line")
	}
	k.gatewayTLS(g)
	k.admin(g)
	k.hosts(g)
	k.prefix(g)
	k.sameSite(g)
	k.keys(g)
	k.between("gateway.session.staleIfUnavailable", g.Session.StaleIfUnavailable, 0, Duration(24*time.Hour))
	k.between("gateway.session.storageGrace", g.Session.StorageGrace, Duration(10*time.Second), Duration(24*time.Hour))
	if g.Drain != nil {
		k.between("gateway.drain", *g.Drain, 0, Duration(5*time.Minute))
	}
	if k.has("gateway.session.revalidate") {
		k.between("gateway.session.revalidate", g.Session.Revalidate, Duration(5*time.Second), Duration(time.Hour))
	}
	if n := g.Session.Cache; n < 100 || n > 10_000_000 {
		k.errorf("gateway.session.cache", "want 100 to 10000000 sessions, got %d", n)
	}
	k.identityHeaders(g)
	k.appToken(g)
	k.oneOf("gateway.clients", string(g.Clients), string(ClientsStrict), string(ClientsKubeflow))
	k.oneOf("gateway.default", g.Default, "signed-in", "deny")
	for _, key := range []struct{ path, value string }{
		{"gateway.clients", string(g.Clients)}, {"gateway.default", g.Default}, {"gateway.cookie.sameSite", string(g.Cookie.SameSite)},
	} {
		if key.value == "" && !k.failed(key.path) {
			k.errorf(key.path, "is empty: give it a value, or remove the line")
		}
	}
	k.rules(g)
}

// maxSocketPath is what fits into sockaddr_un on Linux, in bytes.
const maxSocketPath = 107

func splitAdmin(admin string) (network, address string) {
	if socket, ok := strings.CutPrefix(admin, "unix:"); ok {
		return "unix", socket
	}
	if port, ok := strings.CutPrefix(admin, "localhost:"); ok {
		return "tcp", "127.0.0.1:" + port // never asked of a resolver
	}
	return "tcp", admin
}

func (k *checker) admin(g *Gateway) {
	const at = "gateway.admin"
	network, address := splitAdmin(g.Admin)
	if network == "unix" {
		if !path.IsAbs(address) || path.Clean(address) != address || len(address) > maxSocketPath {
			k.errorf(at, "want unix: and a clean absolute path of at most %d bytes, such as unix:/run/gatehouse/admin.sock, got %q", maxSocketPath, g.Admin)
		}
		return
	}
	if address == "" {
		if !k.failed(at) {
			k.errorf(at, "is empty: set 127.0.0.1:5559 or unix:/path, or remove the line")
		}
		return
	}
	l, ok := k.listener(at, address)
	if !ok {
		return
	}
	if ip, err := netip.ParseAddr(l.host); err != nil || !ip.IsLoopback() {
		k.errorf(at, "want a loopback address such as 127.0.0.1:5559, or unix:/path, got %q: whoever reaches it rules the gateway", g.Admin)
	}
}

func (k *checker) hosts(g *Gateway) {
	const at = "gateway.hosts"
	if len(g.Hosts) == 0 {
		if !k.failedBelow(at) {
			k.errorf(at, "is missing: list the hosts of your apps, such as [kubeflow.example.com, \"*.apps.example.com\"]")
		}
		return
	}
	scheme := "https"
	if k.c.IssuerURL != nil {
		scheme = k.c.IssuerURL.Scheme
	}
	set, err := hosts.Parse(g.Hosts, scheme)
	g.HostSet = set
	for _, e := range flatten(err) {
		entry, ok := errors.AsType[*hosts.EntryError](e)
		if !ok {
			k.errorf(at, "%v", e)
			continue
		}
		if p := element(at, entry.Index); entry.Entry != "" || !k.failed(p) {
			k.errorf(p, "%q: %v", withoutUser(entry.Entry), entry.Err)
		}
	}
	for i, entry := range g.Hosts {
		k.host(element(at, i), entry, scheme)
	}
	if k.c.IssuerURL == nil {
		return
	}
	if name, ok := hosts.Canonical(k.c.IssuerURL.Host); ok {
		if _, shared := set.Lookup(name); shared {
			k.sharedHost(g.Hosts, name)
			k.sharedRoot(at, name)
		}
	}
}

// sharedHost warns of apps on the issuer's host. A wildcard may cover it unseen: whoever may make routes then has that host for an app.
func (k *checker) sharedHost(list []string, issuer string) {
	const at = "gateway.hosts"
	wildcard := -1
	for i, entry := range list {
		_, name := splitHost(entry, "")
		if name == issuer {
			k.warnf(at, "%s is the issuer's host too, where credentials are shown: give the issuer a host of its own", issuer)
			return
		}
		if suffix, ok := strings.CutPrefix(name, "*"); ok && strings.HasSuffix(issuer, suffix) {
			wildcard = i
		}
	}
	if wildcard >= 0 {
		_, name := splitHost(list[wildcard], "")
		k.warnf(element(at, wildcard), "%q covers the issuer's host %s, so that an app could serve pages there, where credentials are shown: "+
			`list the apps by name, or by a wildcard beside the issuer, such as "*.apps.example.com"`, name, issuer)
	}
}

// sharedRoot refuses an issuer that leaves no path to the apps on its host.
func (k *checker) sharedRoot(at, name string) {
	if k.c.IssuerURL.Path == "" {
		k.errorf(at, "%s is the issuer's host, and the issuer has no path: it would take every request; give the issuer a path such as /dex", name)
	}
}

func (k *checker) host(at, entry, scheme string) {
	if k.failed(at) {
		return
	}
	own, name := splitHost(entry, scheme)
	if own == "http" {
		k.warnf(at, "%s is served over http: its cookies cross the network in clear; use https for anything but a try", name)
	}
	if base, wild := strings.CutPrefix(name, "*."); wild {
		if suffix, _ := publicsuffix.PublicSuffix(base); suffix == base {
			k.errorf(at, "%q covers names that belong to others (publicsuffix.org): list a domain of your own", name)
		}
	}
}

// splitHost returns the scheme and the name without port of a valid entry of gateway.hosts.
func splitHost(entry, defaultScheme string) (scheme, name string) {
	scheme, name, ok := strings.Cut(entry, "://")
	if !ok {
		scheme, name = defaultScheme, entry
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
		name = name[:i]
	}
	return scheme, name
}

var prefixSegment = regexp.MustCompile(`^/[A-Za-z0-9_~-][A-Za-z0-9._~-]*$`)

func (k *checker) prefix(g *Gateway) {
	const at = "gateway.prefix"
	switch {
	case !prefixSegment.MatchString(g.Prefix):
		if g.Prefix != "" || !k.failed(at) {
			k.errorf(at, "want a slash and one segment of letters, digits and . _ ~ -, such as /_gatehouse, got %q", g.Prefix)
		}
	case g.Prefix == "/oauth2":
		k.errorf(at, "/oauth2 is for the sign-in links of Kubeflow's clients: take another one")
	case k.c.IssuerURL != nil && (k.c.IssuerURL.Path == g.Prefix || strings.HasPrefix(k.c.IssuerURL.Path, g.Prefix+"/")):
		k.errorf(at, "is the path of the issuer, or above it: take another one, such as /_gatehouse")
	}
}

func (k *checker) sameSite(g *Gateway) {
	const at = "gateway.cookie.sameSite"
	k.oneOf(at, string(g.Cookie.SameSite), string(SameSiteLax), string(SameSiteStrict))
	if g.Cookie.SameSite != SameSiteStrict || k.c.IssuerURL == nil || k.failedBelow("gateway.hosts") {
		return
	}
	issuer := site(k.c.IssuerURL.Scheme, strings.TrimSuffix(k.c.IssuerURL.Host, portSuffix(k.c.IssuerURL)))
	for _, entry := range g.Hosts {
		scheme, name := splitHost(entry, k.c.IssuerURL.Scheme)
		if site(scheme, strings.TrimPrefix(name, "*.")) != issuer {
			k.errorf(at, "strict needs every host on the site of the issuer, and %q is on another: the cookie would be missing after each sign-in; use lax", entry)
		}
	}
}

// site returns what browsers compare (HTML, "schemelessly same site" plus the scheme): the registrable domain, or
// the host where it has none.
func site(scheme, host string) string {
	if domain, err := publicsuffix.EffectiveTLDPlusOne(host); err == nil && !strings.HasPrefix(host, "[") {
		if _, ipErr := netip.ParseAddr(host); ipErr != nil {
			host = domain
		}
	}
	return scheme + "://" + host
}

func (k *checker) identityHeaders(g *Gateway) {
	const at = "gateway.identity.headers"
	attributes := []string{
		string(AttributeEmail), string(AttributeName), string(AttributePreferredUsername), string(AttributeGroups),
		string(AttributeUserID), string(AttributeConnector),
	}
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(g.Identity.Headers)) {
		p := child(at, name)
		alias := plain(name)
		switch {
		case name != strings.ToLower(name):
			k.errorf(p, "want a header name in lower case: write %s", strings.ToLower(name))
		case !isHeaderName(name):
			k.errorf(p, "%q is not the name of a header", name)
		case reservedHeader(alias):
			k.errorf(p, "%s is a header of the connection or of the proxy: take a name of your own, such as x-user", name)
		case seen[alias] != "":
			k.errorf(p, "is the same as %s to many servers, which take - _ and . for one another: remove one", seen[alias])
		}
		seen[alias] = name
		if value := string(g.Identity.Headers[name]); value == "" && !k.failed(p) {
			k.errorf(p, "want %s, got nothing", ours(orList(attributes)))
		} else {
			k.oneOf(p, value, attributes...)
		}
	}
}

// plain returns the form of a header name in which its aliases are equal.
func plain(name string) string {
	return strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name))
}

// reservedHeader reports names that an identity header must not have: those of the connection (RFC 9110 section
// 7.6.1), those that say what a message is, and those that proxies set or trust.
func reservedHeader(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
		"trailers", "transfer-encoding", "upgrade", "http2-settings",
		"host", "cookie", "set-cookie", "authorization", "www-authenticate", "content-length", "content-type",
		"content-encoding", "expect", "origin", "referer", "forwarded", "via", "x-real-ip", "x-request-id",
		"x-original-uri", "x-original-url", "x-rewrite-url", "x-http-method-override":
		return true
	}
	return strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "sec-")
}

// isHeaderName reports whether s is a token in lower case (RFC 9110 section 5.6.2).
func isHeaderName(s string) bool { return isToken(s) && s == strings.ToLower(s) }

func isToken(s string) bool {
	return s != "" && len(s) <= maxKey && !strings.ContainsFunc(s, func(c rune) bool {
		return c <= ' ' || c > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}

var ruleName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func (k *checker) rules(g *Gateway) {
	compiled := make([]policy.Rule, len(g.Rules))
	bad := make([]bool, len(g.Rules))
	names := map[string]int{}
	for i := range g.Rules {
		r, at := &g.Rules[i], element("gateway.rules", i)
		r.Line = k.line(at)
		before := len(k.errs)
		k.rule(at, r)
		if first, dup := names[r.Name]; dup && r.Name != "" {
			k.errorf(at, "there is a rule of that name at line %d already: give each its own", k.line(element("gateway.rules", first)))
		} else {
			names[r.Name] = i
		}
		bad[i] = len(k.errs) > before || k.failedBelow(at)
		compiled[i] = policy.Rule{
			Name: r.Name, Line: r.Line, Hosts: r.Hosts, Paths: r.Paths, Methods: r.Methods,
			Anyone: r.Allow == "anyone", Groups: r.Groups, Users: r.Users,
		}
	}
	byDefault := policy.DefaultSignedIn
	if g.Default == "deny" {
		byDefault = policy.DefaultDeny
	}
	var err error
	if g.Policy, err = policy.New(compiled, byDefault); err != nil {
		k.ruleErrors(err, bad)
	}
	for _, w := range g.Policy.Warnings() {
		k.warnf(k.rulePath(w), "%v", w.Err)
	}
}

func (k *checker) rule(at string, r *Rule) {
	switch {
	case r.Name == "":
		if !k.failed(at + ".name") {
			k.errorf(at, "needs a name: it stands in the log, in metrics and in explain")
		}
	case !ruleName.MatchString(r.Name):
		k.errorf(at+".name", "want 1 to 64 letters, digits and . _ -, got %q", r.Name)
	case r.Name == "default" || r.Name == "issuer":
		k.errorf(at+".name", "%s is the name of a built-in rule: take another one", r.Name)
	}
	k.oneOf(at+".allow", r.Allow, "anyone")
	guarded := len(r.Groups) > 0 || len(r.Users) > 0
	switch {
	case r.Allow != "" && guarded:
		k.errorf(at, "allow: anyone and groups or users exclude each other: remove one")
	case r.Allow == "" && !guarded && !k.failedBelow(at+".allow") && !k.failedBelow(at+".groups") && !k.failedBelow(at+".users"):
		k.errorf(at, "needs allow: anyone or at least one of groups, users")
	}
	for _, key := range []string{"hosts", "paths", "methods"} {
		if k.has(at+"."+key) && k.emptyList(r, key) && !k.failedBelow(at+"."+key) {
			k.errorf(at+"."+key, "is an empty list, which would match everything: remove the key, or fill the list")
		}
	}
	for i, pattern := range r.Hosts {
		k.ruleHost(element(at+".hosts", i), pattern)
	}
	for i, user := range r.Users {
		k.ruleUser(element(at+".users", i), user)
	}
}

func (k *checker) emptyList(r *Rule, key string) bool {
	return len(map[string][]string{"hosts": r.Hosts, "paths": r.Paths, "methods": r.Methods}[key]) == 0
}

// ruleHost reports a host of a rule that no request can have: the rule would never match, and say nothing.
func (k *checker) ruleHost(at, pattern string) {
	g := k.c.Gateway
	if g.HostSet == nil || pattern == "" || k.failedBelow("gateway.hosts") {
		return
	}
	base, wild := strings.CutPrefix(pattern, "*.")
	if name, ok := hosts.Canonical(base); !ok || name != base {
		return // for the policy to say
	}
	if _, listed := g.HostSet.Lookup(base); listed && !wild {
		return
	}
	for _, entry := range g.Hosts {
		_, name := splitHost(entry, "https")
		listed, wildEntry := strings.CutPrefix(name, "*.")
		if wild && (strings.HasSuffix(name, "."+base) || listed == base && wildEntry) ||
			wild && wildEntry && strings.HasSuffix(base, "."+listed) {
			return
		}
	}
	k.errorf(at, "%q matches no host of gateway.hosts, so the rule would never match: add the host there, or correct it", pattern)
}

// ruleUser warns of a user connector:userID of a connector that is not there.
func (k *checker) ruleUser(at, user string) {
	connector, _, ok := strings.Cut(user, ":")
	known := k.knownConnectors()
	if !ok || connector == "" || known[connector] || k.failedBelow("connectors") || k.failed("enablePasswordDB") {
		return
	}
	hint := ""
	if near := nearest.Word(connector, slices.Sorted(maps.Keys(known))); near != "" {
		hint = "; did you mean " + near + "?"
	}
	k.warnf(at, "there is no connector %q, so this is nobody: want %s%s", connector, k.connectorNames(), hint)
}

// ruleErrors reports what the policy says of rules. Of a rule with a mistake already, only what is wrong with one
// of its fields is news.
func (k *checker) ruleErrors(err error, bad []bool) {
	for _, e := range flatten(err) {
		r, ok := errors.AsType[*policy.RuleError](e)
		if !ok || r.Index < 0 || r.Index >= len(bad) {
			k.errorf("gateway.rules", "%v", e)
			continue
		}
		if bad[r.Index] && (r.Field == "" || r.Field == "name") {
			continue
		}
		if at := k.rulePath(r); r.Field == "" || !k.failedBelow(at) {
			k.errorf(at, "%v", r.Err)
		}
	}
}

// rulePath returns where a mistake of a rule is: at the entry of a list, if the message starts with one.
func (k *checker) rulePath(e *policy.RuleError) string {
	at := element("gateway.rules", e.Index)
	if e.Field == "" {
		return at
	}
	at = child(at, e.Field)
	r := k.c.Gateway.Rules[e.Index]
	values := map[string][]string{"hosts": r.Hosts, "paths": r.Paths, "methods": r.Methods, "groups": r.Groups, "users": r.Users}[e.Field]
	for i, v := range values {
		if strings.HasPrefix(e.Err.Error(), strconv.Quote(v)+":") {
			return element(at, i)
		}
	}
	return at
}
