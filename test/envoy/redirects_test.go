package envoy

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// evilTargets are redirect targets that lead elsewhere, at least in some browser or parser. Each must end at "/".
var evilTargets = map[string]string{
	"slash backslash":               `/\evil.example`,
	"two slashes":                   "//evil.example",
	"three slashes":                 "///evil.example",
	"slash backslash slash":         `/\/evil.example`,
	"tab":                           "/\t/evil.example",
	"tab before":                    "\t//evil.example",
	"escaped tab":                   "/%09/evil.example",
	"line feed":                     "/\n/evil.example",
	"carriage return":               "/x\r\nLocation: http://evil.example/",
	"escaped line break":            "/x%0d%0aLocation:%20http://evil.example/",
	"blank":                         " //evil.example",
	"null byte":                     "/x\x00//evil.example",
	"scheme without slashes":        "http:evil.example",
	"https without slashes":         "https:evil.example",
	"scheme with one slash":         "http:/evil.example",
	"scheme with three slashes":     "http:///evil.example",
	"two backslashes":               `\\evil.example`,
	"absolute":                      "http://evil.example/",
	"absolute https":                "https://evil.example/",
	"upper-case scheme":             "HTTP://EVIL.EXAMPLE/",
	"suffix of our name":            "http://evil-app.example.test/",
	"our name as a prefix":          "http://app.example.test.evil.example/",
	"our name as user":              "http://app.example.test@evil.example/",
	"our name and port as user":     "http://app.example.test:80@evil.example/",
	"our name in the fragment":      "http://evil.example#http://app.example.test/",
	"our name in the query":         "http://evil.example?http://app.example.test/",
	"backslash after our name":      `http://app.example.test\@evil.example/`,
	"our name and a foreign port":   "http://app.example.test:8081/",
	"our name and another scheme":   "https://app.example.test/",
	"our name and a trailing dot":   "http://app.example.test./",
	"our name in upper case":        "http://APP.EXAMPLE.TEST/",
	"unlisted host":                 "http://unlisted.example.test/",
	"listed, but another":           "http://portal.example.org/",
	"script":                        "javascript:alert(1)",
	"data":                          "data:text/html,x",
	"escaped backslash":             "/%5cevil.example",
	"escaped slashes":               "/%2f%2fevil.example",
	"dot segment":                   "/.//evil.example",
	"dot segments":                  "/..//evil.example",
	"dot segment later":             "/x/..//evil.example",
	"escaped dots":                  "/%2e%2e//evil.example",
	"full-width slash":              "/\uff0fevil.example",
	"non-ASCII":                     "/ü",
	"relative":                      "evil.example",
	"sign-out":                      "/_gatehouse/sign-out",
	"sign-in, which would go round": "/oauth2/start?rd=/x",
	"empty":                         "",
	"too long":                      "/" + strings.Repeat("a", 5<<10),
}

// goodTargets lead where they say.
var goodTargets = map[string]string{
	"path and query":       "/headers?a=1&b=//evil.example",
	"own origin":           "http://app.example.test/headers?x",
	"own origin, no path":  "http://app.example.test",
	"fragment":             "/headers#part",
	"escaped blank":        "/a%20b",
	"like a rule's prefix": "/publicity",
}

func redirectRows() (all []row) {
	const family = "redirects"
	for name, target := range inOrder(evilTargets) {
		query := "?rd=" + url.QueryEscape(target)
		for _, entrance := range []string{"/_gatehouse/sign-in", "/oauth2/start"} {
			all = append(all, row{
				family: family, name: "rd " + name + " at " + entrance, as: user, target: entrance + query,
				both: refused(http.StatusSeeOther), check: leadsTo("http://app.example.test/"),
			})
		}
		all = append(all, row{family: family, name: "rd " + name + " after a sign-in", play: afterSignIn("/oauth2/start"+query, "http://app.example.test/")})
	}
	for name, target := range inOrder(goodTargets) {
		want := "http://app.example.test" + strings.TrimPrefix(target, "http://app.example.test")
		if target == "http://app.example.test" {
			want += "/"
		}
		query := "?rd=" + url.QueryEscape(target)
		all = append(all,
			row{
				family: family, name: "good rd: " + name, as: user, target: "/oauth2/start" + query,
				both: refused(http.StatusSeeOther), check: leadsTo(want),
			},
			row{family: family, name: "good rd after a sign-in: " + name, play: afterSignIn("/_gatehouse/sign-in"+query, want)})
	}
	all = append(all,
		row{
			family: family, name: "two targets", as: user, target: "/oauth2/start?rd=/headers&rd=http://evil.example/",
			both: refused(http.StatusSeeOther), check: leadsTo("http://app.example.test/"),
		},
		row{
			family: family, name: "semicolon between parameters", as: user, target: "/oauth2/start?x=1;rd=http://evil.example/",
			both: refused(http.StatusSeeOther), check: leadsTo("http://app.example.test/"),
		},
		row{family: family, name: "sign-out does not lead anywhere", target: "/oauth2/sign_out?rd=http://evil.example/", both: refused(http.StatusOK), check: leadsTo("")},
		row{family: family, name: "next at sign-out", target: "/_gatehouse/sign-out?next=//evil.example/&redirect=//evil.example", both: refused(http.StatusOK), check: leadsTo("")},
	)
	return append(all, returnRows()...)
}

// returnRows begin at an app's page: where one wanted to go is where one must not be sent without care.
func returnRows() (all []row) {
	const family = "redirects"
	for name, target := range inOrder(map[string]string{
		"two slashes": "//evil.example/x", "three slashes": "///evil.example", "backslash": `/\evil.example`, "escaped tab": "/%09/evil.example",
		"dot segment": "/.//evil.example", "dot segments": "/x/..//evil.example", "absolute form": "http://evil.example/x",
		"absolute form with our name as user": "http://app.example.test@evil.example/x",
	}) {
		all = append(all, row{family: family, name: "return to " + name, on: []string{"hardened", "relaxed"}, play: returnPath(target)})
	}
	for name, path := range inOrder(map[string]string{
		"unregistered": "?post_logout_redirect_uri=http://evil.example/", "unregistered, with a client": "?client_id=outside&post_logout_redirect_uri=http://evil.example/",
		"prefix of a registered one": "?client_id=outside&post_logout_redirect_uri=http://client.example.test/bye.evil.example",
		"two slashes":                "?client_id=outside&post_logout_redirect_uri=//evil.example",
		"registered, without a hint": "?client_id=outside&post_logout_redirect_uri=http://client.example.test.evil.example/bye",
		"back, of an upstream":       "/callback?state=x&redirect_uri=http://evil.example/&post_logout_redirect_uri=http://evil.example/",
	}) {
		all = append(all, row{family: family, name: "post-logout: " + name, play: func(t testing.TB, w *world, e *edge) {
			p := must(t)(w.browser(e).step(t.Context(), http.MethodGet, issuer+"/logout"+path, nil))
			if l := p.location(); l != "" && !w.own(l) {
				t.Errorf("leads to %q", l)
			}
		}})
	}
	return all
}

func leadsTo(want string) func(testing.TB, *world, *page) {
	return func(t testing.TB, _ *world, p *page) {
		t.Helper()
		if got := p.location(); got != want {
			t.Errorf("leads to %q, want %q", got, want)
		}
	}
}

// afterSignIn is a browser that the issuer knows, so that the whole way is there but the password: it must end at want.
func afterSignIn(path, want string) func(testing.TB, *world, *edge) {
	return func(t testing.TB, w *world, e *edge) {
		b := w.knownBrowser(t, e)
		p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+path, nil))
		got := b.lastRedirect(t, p)
		if got != want {
			t.Errorf("ended at %q, want %q: %v", got, want, b.trail)
		}
	}
}

// knownBrowser returns a browser with a session at the issuer and none at the app.
func (w *world) knownBrowser(t testing.TB, e *edge) *browser {
	t.Helper()
	if w.known == nil {
		w.known = w.signedIn(t, w.gateway(), user)
		w.known.forgetApp()
	}
	b := w.known.clone()
	b.edge = e
	return b
}

// gateway returns an edge that leads to the app.
func (w *world) gateway() *edge {
	if w.hardened != nil {
		return w.hardened
	}
	return w.direct
}

// lastRedirect follows redirects of Gatehouse until one leads out of the sign-in, and returns where to, without going there.
func (b *browser) lastRedirect(t testing.TB, p *page) string {
	t.Helper()
	for range 10 {
		l := p.location()
		if l == "" || !b.w.own(l) {
			return l
		}
		if u := parse(l); !strings.HasPrefix(l, issuer+"/") && u.Path != "/_gatehouse/session" {
			return l
		}
		p = must(t)(b.step(t.Context(), http.MethodGet, l, nil))
	}
	t.Fatalf("no end: %v", b.trail)
	return ""
}

// returnPath sends a hostile request line as a browser that the issuer knows, and goes on to the end.
func returnPath(target string) func(testing.TB, *world, *edge) {
	return func(t testing.TB, w *world, e *edge) {
		b := w.knownBrowser(t, e)
		p := must(t)(e.send(t.Context(), message{method: http.MethodGet, target: target, host: appHost, lines: []string{"Accept: text/html"}}))
		b.absorb(parse("http://"+appHost+"/"), p)
		end := b.lastRedirect(t, p)
		if end != "" && !w.own(end) {
			t.Errorf("ended at %q: %v", end, b.trail)
		}
		if end == "" && p.status != http.StatusBadRequest && p.status != http.StatusForbidden {
			t.Errorf("got %s, want a redirect, 400 or 403", p)
		}
		if n := len(w.app.take()); n != 0 {
			t.Errorf("%d requests reached the app", n)
		}
	}
}
