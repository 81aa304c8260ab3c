package envoy

import (
	"net/http"
	"strings"
	"testing"
)

// Verdicts of the rows below; never written to.
var (
	signInFirst = refused(http.StatusFound)
	isForbidden = refused(http.StatusForbidden)
	isAmbiguous = refused(http.StatusBadRequest)
)

// pathCases are spellings of paths, with their verdicts for nobody behind each Envoy, and for a user behind the hardened one.
var pathCases = []struct {
	name, target      string
	hardened, relaxed *verdict // for nobody
	user              *verdict // for a user, behind the hardened one; nil: as for nobody
}{
	{"plain", "/admin/x", signInFirst, signInFirst, isForbidden},
	{"the prefix itself", "/admin", signInFirst, signInFirst, isForbidden},
	{"two slashes", "//admin/x", signInFirst, isAmbiguous, isForbidden},
	{"two slashes within", "/admin//x", signInFirst, isAmbiguous, isForbidden},
	{"dot segments", "/public/../admin/x", signInFirst, isAmbiguous, isForbidden},
	{"escaped dot segments", "/public/%2e%2e/admin/x", signInFirst, isAmbiguous, isForbidden},
	{"half escaped dot segments", "/public/.%2E/admin/x", signInFirst, isAmbiguous, isForbidden},
	{"dot segment", "/./admin/x", signInFirst, isAmbiguous, isForbidden},
	{"dot segment at the end", "/public/../admin/.", signInFirst, isAmbiguous, isForbidden},
	{"escaped slash", "/%2fadmin/x", byEnvoy(400), isAmbiguous, nil},
	{"escaped slash within", "/public/..%2fadmin/x", byEnvoy(400), isAmbiguous, nil},
	{"escaped backslash", "/public/..%5cadmin/x", byEnvoy(400), isAmbiguous, nil},
	{"backslash", `/public/..\admin\x`, signInFirst, isAmbiguous, isForbidden},
	{"doubly escaped slash", "/public/..%252fadmin/x", isAmbiguous, isAmbiguous, nil},
	{"doubly escaped dots", "/public/%252e%252e/admin/x", isAmbiguous, isAmbiguous, nil},
	{"parameter", "/admin;a=b/x", isAmbiguous, isAmbiguous, nil},
	{"parameter and dot segments", "/public/..;/admin/x", signInFirst, isAmbiguous, isForbidden},
	{"escaped parameter", "/public/..%3b/admin/x", isAmbiguous, isAmbiguous, nil},
	{"null byte", "/public/%00/../../admin/x", byEnvoy(400), isAmbiguous, nil},
	{"null byte at the end", "/admin/x%00", byEnvoy(400), isAmbiguous, nil},
	{"line break", "/public/%0a", isAmbiguous, isAmbiguous, nil},
	{"escaped letters", "/%61dmin/x", signInFirst, isAmbiguous, isForbidden},
	{"overlong slash", "/public/..%c0%afadmin/x", isAmbiguous, isAmbiguous, nil},
	{"bad UTF-8", "/public/%ff", isAmbiguous, isAmbiguous, nil},
	{"bad escape", "/public/%zz", isAmbiguous, isAmbiguous, nil},
	{"cut escape", "/public/%2", isAmbiguous, isAmbiguous, nil},
	{"raw non-ASCII", "/admin/\xc3\xbc", byEnvoy(400), byEnvoy(400), nil},
	{"escaped fragment", "/admin/x%23/public/x", signInFirst, signInFirst, isForbidden},
	{"query", "/admin/x?x=/public", signInFirst, signInFirst, isForbidden},
	{"query that looks like a path", "/admin/x?/../public/x", signInFirst, signInFirst, isForbidden},
	{"query with dot segments before it", "/admin?/../../public", signInFirst, signInFirst, isForbidden},
	{"case", "/ADMIN/x", signInFirst, signInFirst, passes(http.StatusNotFound)},
	{"longer than a rule's prefix", "/publicity", signInFirst, signInFirst, passes(http.StatusNotFound)},
	{"longer than a rule's path", "/healthzz", signInFirst, signInFirst, passes(http.StatusNotFound)},
	{"below a rule's path", "/healthz/x", signInFirst, signInFirst, passes(http.StatusNotFound)},
	{"longer than our prefix", "/_gatehousex/session", signInFirst, signInFirst, passes(http.StatusNotFound)},
	{"longer than the issuer's path", "/dexter", signInFirst, signInFirst, passes(http.StatusNotFound)},
	{"no slash", "admin/x", byEnvoy(400), byEnvoy(400), nil},
	{"asterisk", "*", byEnvoy(400), byEnvoy(400), nil},
	{"too long", "/" + strings.Repeat("a", 9<<10), isAmbiguous, isAmbiguous, nil},
	{"our prefix, unknown", "/_gatehouse/admin", refused(http.StatusNotFound), refused(http.StatusNotFound), nil},
}

// pathRows are spellings of paths that rules could be passed by. Each is sent by nobody; those that end at the
// administrators' pages by a user without the right to see them too.
func pathRows() (all []row) {
	const family = "paths"
	signIn, ambiguous := signInFirst, isAmbiguous
	for _, p := range pathCases {
		all = append(all, row{family: family, name: p.name, target: p.target, hardened: p.hardened, relaxed: p.relaxed})
		r := row{family: family, name: p.name + ", by a user", as: user, target: p.target, hardened: p.hardened, relaxed: p.relaxed}
		if p.user != nil {
			r.hardened = p.user
			if r.relaxed == signIn {
				r.relaxed = p.user
			}
		}
		all = append(all, r)
	}
	return append(all,
		// Istio's gateway cuts a fragment off before anybody sees it: what is decided on is what goes on.
		row{family: family, name: "fragment", target: "/admin/x#/public/x", both: byEnvoy(400), istio: signIn},
		row{family: family, name: "fragment, by a user", as: user, target: "/admin/x#/public/x", both: byEnvoy(400), istio: isForbidden},
		row{family: family, name: "fragment of what is open", target: "/public/x#/../admin/x?a=b", both: byEnvoy(400), istio: passes(http.StatusNotFound), check: appSeesPath("/public/x")},
		row{family: family, name: "the first rule opens", target: "/admin/open", both: passes(http.StatusOK)},
		row{family: family, name: "the first rule opens that path only", target: "/admin/open/x", both: signIn},
		row{family: family, name: "the first rule opens no other spelling", target: "/admin/Open", both: signIn},
		row{family: family, name: "the first rule closes", target: "/public/closed/x", both: signIn},
		row{family: family, name: "the first rule closes, to a user", as: user, target: "/public/closed/x", both: isForbidden},
		row{family: family, name: "the first rule closes, not to an administrator", as: administrator, target: "/public/closed/x", both: passes(http.StatusNotFound)},
		row{family: family, name: "an administrator gets there", as: administrator, target: "/admin/x", both: passes(http.StatusOK)},
		row{family: family, name: "anyone gets to what is open", target: "/public/headers", both: passes(http.StatusOK)},
		row{family: family, name: "open means the path above too", target: "/public", both: passes(http.StatusNotFound)},
		row{family: family, name: "a user gets to the rest", as: user, both: passes(http.StatusOK)},
		// The issuer's path is open on the issuer's own host only, and is no way to an app there.
		row{family: family, name: "issuer, dot segments", host: issuerHost, target: "/dex/../headers", hardened: signIn, relaxed: ambiguous},
		row{family: family, name: "issuer, escaped slash", host: issuerHost, target: "/dex%2f..%2fheaders", hardened: byEnvoy(400), relaxed: ambiguous},
		row{family: family, name: "issuer, longer than its path", host: issuerHost, target: "/dexter", both: signIn},
		row{family: family, name: "issuer, other case", host: issuerHost, target: "/DEX/keys", both: signIn},
		row{family: family, name: "issuer, parameter", host: issuerHost, target: "/dex;/keys", both: ambiguous},
		row{family: family, name: "issuer's path on an app's host", target: "/dex/keys", both: signIn},
		row{family: family, name: "issuer's page on an app's host", as: user, target: "/dex/auth?req=x", both: refused(http.StatusMisdirectedRequest)},
		row{family: family, name: "issuer, not on its list", host: issuerHost, target: "/dex/healthz", both: refused(404), issuer: refused(404)},
		row{family: family, name: "issuer, no listing of files", host: issuerHost, target: "/dex/static/", both: refused(404), issuer: refused(404)},
		row{family: family, name: "issuer, file outside", host: issuerHost, target: "/dex/static/..%2f..%2fetc%2fpasswd", hardened: byEnvoy(400), relaxed: ambiguous, issuer: refused(404)},
		row{family: family, name: "issuer, admin paths", host: issuerHost, target: "/v1/sessions", issuer: refused(404)},
		row{family: family, name: "issuer, metrics", host: issuerHost, target: "/metrics", issuer: refused(404)},
		row{family: family, name: "issuer, profiles", host: issuerHost, target: "/debug/pprof/", issuer: refused(404)},
	)
}

// hostCases are spellings of hosts that are not ours.
var hostCases = []struct {
	name, host string
	v          *verdict
}{
	{"unlisted", unlistedHost, isForbidden},
	{"suffix of ours", "evil-app.example.test", isForbidden},
	{"ours as a prefix", "app.example.test.evil.example", isForbidden},
	{"the domain of a wildcard itself", "apps.example.test", isForbidden},
	{"a wildcard without its dot", "xapps.example.test", isForbidden},
	{"address", "127.0.0.1", isForbidden},
	{"address with port", "127.0.0.1:9001", isForbidden},
	{"IPv6 address", "[::1]", isForbidden},
	{"localhost", "localhost", isForbidden},
	{"comma", "app.example.test,evil.example", isAmbiguous},
	{"comma behind", "evil.example,app.example.test", isAmbiguous},
	{"user", "evil.example@app.example.test", isAmbiguous},
	{"user of another", "app.example.test@evil.example", isAmbiguous},
	{"two ports", "app.example.test:80:90", isAmbiguous},
	{"port that is none", "app.example.test:http", isAmbiguous},
	{"empty port", "app.example.test:", isAmbiguous},
	{"path", "app.example.test/public", byEnvoy(400)},
	{"query", "app.example.test?x", byEnvoy(400)},
	{"fragment", "app.example.test#x", byEnvoy(400)},
	{"backslash", `app.example.test\x`, byEnvoy(400)},
	{"escape", "app.example.test%2e", isAmbiguous},
	{"asterisk", "*.apps.example.test", isAmbiguous},
	{"leading dot", ".app.example.test", isAmbiguous},
	{"two dots", "app..example.test", isAmbiguous},
	{"two trailing dots", "app.example.test..", isAmbiguous},
	{"underscore", "app_example.apps.example.test", isAmbiguous},
	{"too long", strings.Repeat("a.", 130) + "apps.example.test", isAmbiguous},
	{"label too long", strings.Repeat("a", 64) + ".apps.example.test", isAmbiguous},
	{"empty", noHost, isAmbiguous},
	{"non-ASCII", "\xc3\xa4pp.example.test", byEnvoy(400)},
	{"blank", "app.example.test evil.example", byEnvoy(400)},
}

// hostRows are spellings of hosts. A good one is the app's host, whoever asks under it.
func hostRows() (all []row) {
	const family = "hosts"
	unlisted, ambiguous := isForbidden, isAmbiguous
	for _, h := range hostCases {
		for _, target := range []string{"/headers", "/public/headers"} {
			all = append(all, row{family: family, name: h.name + " " + target, as: user, host: h.host, target: target, both: h.v, check: leadsTo("")})
		}
	}
	for name, host := range inOrder(map[string]string{
		"upper case": "APP.Example.TEST", "port": "app.example.test:80", "other port": "app.example.test:8443", "trailing dot": "app.example.test.",
		"all at once": "App.example.test.:81",
	}) {
		all = append(all,
			row{family: family, name: "good: " + name, as: user, host: host, both: passes(http.StatusOK)},
			row{family: family, name: "good: " + name + ", nobody", host: host, target: "/admin/x", both: refused(http.StatusFound), check: leadsToIssuer},
			row{family: family, name: "good: " + name + ", the rules hold", as: user, host: host, target: "/admin/x", both: refused(http.StatusForbidden)},
			row{
				family: family, name: "good: " + name + ", URLs have the listed name", as: user, host: host, target: "/oauth2/start?rd=/x",
				both: refused(http.StatusSeeOther), check: leadsTo("http://app.example.test/x"),
			})
	}
	return append(all,
		row{family: family, name: "wildcard", as: user, host: wildHost, both: passes(http.StatusOK)},
		row{family: family, name: "wildcard at depth", host: "a.b.apps.example.test", both: refused(http.StatusFound), check: leadsToIssuer},
		row{family: family, name: "two Host headers", as: user, lines: []string{"Host: unlisted.example.test"}, both: ambiguous},
		row{family: family, name: "the same Host header twice", as: user, lines: []string{"Host: app.example.test"}, both: ambiguous},
		row{family: family, name: "absolute form decides", as: user, host: unlistedHost, target: "http://app.example.test/headers", both: passes(http.StatusOK), check: appSeesHost(appHost)},
		row{family: family, name: "absolute form of an unlisted host", as: user, target: "http://unlisted.example.test/public/x", both: unlisted},
		row{family: family, name: "absolute form, the rules hold", as: user, host: issuerHost, target: "http://app.example.test/admin/x", lines: []string{"Cookie: gatehouse-dev={user}"}, both: refused(http.StatusForbidden)},
		row{family: family, name: "absolute form with the issuer's path for an app", host: issuerHost, target: "http://app.example.test/dex/x", both: refused(http.StatusFound)},
		row{family: family, name: "absolute form with a user", target: "http://app.example.test@evil.example/public/x", both: unlisted, direct: ambiguous},
		row{family: family, name: "X-Forwarded-Host is no host", as: user, host: unlistedHost, lines: []string{"X-Forwarded-Host: app.example.test", "Forwarded: host=app.example.test"}, both: unlisted},
		row{
			family: family, name: "X-Forwarded-Host builds no URL", lines: []string{"X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: //evil.example"},
			both: refused(http.StatusFound), check: leadsToIssuer,
		},
		row{
			family: family, name: "X-Forwarded-Host builds no URL of the issuer", host: issuerHost, target: "/dex/.well-known/openid-configuration",
			lines: []string{"X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https"}, both: refused(http.StatusOK), issuer: refused(http.StatusOK),
			check: func(t testing.TB, _ *world, p *page) {
				if strings.Contains(p.body, "evil") || !strings.Contains(p.body, `"issuer": "`+issuer+`"`) {
					t.Errorf("discovery: %s", p.body)
				}
			},
		},
	)
}

// appSeesPath checks, where a request is not refused, that what the app is asked for is what Gatehouse decided on.
func appSeesPath(want string) func(testing.TB, *world, *page) {
	return func(t testing.TB, _ *world, p *page) {
		t.Helper()
		if p.status == http.StatusBadRequest {
			return
		}
		var echo struct{ Path string }
		jsonBody(t, p, &echo)
		if echo.Path != want {
			t.Errorf("the app sees the path %q, want %q", echo.Path, want)
		}
	}
}

// appSeesHost checks that the app takes the request for the host that Gatehouse decided on.
func appSeesHost(want string) func(testing.TB, *world, *page) {
	return func(t testing.TB, _ *world, p *page) {
		t.Helper()
		var h map[string]string
		jsonBody(t, p, &h)
		if h["host"] != want {
			t.Errorf("the app sees host %q, want %q", h["host"], want)
		}
	}
}

func leadsToIssuer(t testing.TB, _ *world, p *page) {
	t.Helper()
	if l := p.location(); !strings.HasPrefix(l, issuer+"/auth/local/login?req=") {
		t.Errorf("leads to %q, want the issuer's sign-in", l)
	}
}

// methodRows ask for closed pages by every method, and for an open one by those that it is not open to.
func methodRows() (all []row) {
	const family = "methods"
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL"} {
		nobody := refused(http.StatusUnauthorized)
		if method == "GET" || method == "HEAD" {
			nobody = refused(http.StatusFound)
		}
		all = append(all,
			row{family: family, name: method + " by nobody", method: method, target: "/admin/x", both: nobody},
			row{family: family, name: method + " by a user", as: user, method: method, target: "/admin/x", both: refused(http.StatusForbidden)},
			row{family: family, name: method + " by an administrator", as: administrator, method: method, target: "/admin/x", both: passes(http.StatusOK)})
		if method != "GET" {
			all = append(all, row{family: family, name: method + " where only GET is open", method: method, target: "/healthz", both: nobody})
		}
	}
	preflight := []string{"Origin: http://evil.example", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization"}
	return append(all,
		row{family: family, name: "GET where GET is open", target: "/healthz", both: passes(http.StatusNotFound)},
		row{family: family, name: "preflight", method: "OPTIONS", target: "/admin/x", lines: preflight, both: refused(http.StatusUnauthorized)},
		row{family: family, name: "lower case", method: "get", target: "/admin/x", as: user, both: byEnvoy(400)},
		row{family: family, name: "mixed case", method: "Get", target: "/public/x", both: byEnvoy(400)},
		row{family: family, name: "method that Envoy does not know", method: "QUERY", target: "/admin/x", as: user, both: byEnvoy(400), direct: isForbidden},
		row{family: family, name: "CONNECT", method: "CONNECT", target: "app.example.test:80", as: user, both: byEnvoy(404)},
		row{family: family, name: "OPTIONS of everything", method: "OPTIONS", target: "*", as: user, both: byEnvoy(404)},
		row{family: family, name: "no method of HTTP", method: "GE\x00T", target: "/public/x", both: byEnvoy(400)},
		row{family: family, name: "override", method: "GET", target: "/healthz", lines: []string{"X-HTTP-Method-Override: DELETE"}, both: passes(http.StatusNotFound)},
		row{family: family, name: "override of a closed one", method: "POST", target: "/healthz", lines: []string{"X-HTTP-Method-Override: GET", "X-HTTP-Method: GET"}, both: refused(http.StatusUnauthorized)},
		row{family: family, name: "health checkers are nobody special", target: "/admin/x", lines: []string{"User-Agent: kube-probe/1.31", "Accept: */*"}, both: refused(http.StatusUnauthorized)},
		row{family: family, name: "nor is Google's", target: "/headers", lines: []string{"User-Agent: GoogleHC/1.0"}, both: refused(http.StatusFound)},
		row{family: family, name: "nor Envoy's", target: "/headers", lines: []string{"User-Agent: Envoy/HC", "x-envoy-internal: true"}, both: refused(http.StatusFound)},
		row{family: family, name: "PUT at an own path", method: "PUT", as: user, target: "/_gatehouse/sign-out", both: refused(http.StatusMethodNotAllowed)},
		row{family: family, name: "POST of a hand-off", method: "POST", as: user, target: "/_gatehouse/session?t=x", both: refused(http.StatusMethodNotAllowed)},
		row{family: family, name: "upgrade to h2c", as: "", target: "/admin/x", lines: []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"}, both: refused(http.StatusFound)},
	)
}
