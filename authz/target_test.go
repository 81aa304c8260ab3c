package authz

import (
	"net/url"
	"strings"
	"testing"
)

// targets are redirect targets as attackers write them: ATTACKS.md, redirects.
var targets = []struct{ rule, target, want string }{
	{"path", "/a", "/a"},
	{"path, query and fragment", "/a/b?c=d&e=%2F%0A#/f", "/a/b?c=d&e=%2F%0A#/f"},
	{"root", "/", "/"},
	{"own origin", "https://app.example.com", "/"},
	{"own origin and path", "https://app.example.com/a?b", "/a?b"},
	{"own origin and query", "https://app.example.com?b", "/?b"},
	{"4 KiB", "/" + strings.Repeat("a", maxTarget-1), "/" + strings.Repeat("a", maxTarget-1)},

	{"nothing", "", ""},
	{"4 KiB and a byte", "/" + strings.Repeat("a", maxTarget), ""},
	{"relative", "a", ""},
	{"query only", "?a", ""},
	{"two slashes", "//evil.com", ""},
	{"three slashes", "///evil.com", ""},
	{"two slashes further on", "/a//evil.com", ""},
	{"backslash", `/\evil.com`, ""},
	{"two backslashes", `\\evil.com`, ""},
	{"backslash in the path", `/a\b`, ""},
	{"backslash in the query", `/a?b=\c`, ""},
	{"encoded backslash", "/%5cevil.com", ""},
	{"encoded slash", "/%2fevil.com", ""},
	{"tab", "/\t/evil.com", ""},
	{"encoded tab", "/%09/evil.com", ""},
	{"encoded line break", "/%0d%0aset-cookie:a", ""},
	{"line break", "/a\r\nset-cookie: a=b", ""},
	{"line break in the query", "/a?b\nc", ""},
	{"NUL", "/a\x00", ""},
	{"blank in front", " /a", ""},
	{"blank", "/a b", ""},
	{"non-ASCII", "/é", ""},
	{"ideographic full stop", "/。evil", ""},
	{"dot segments", "/../evil", ""},
	{"dot segments and slashes", "/a/..//evil.com", ""},
	{"one dot and slashes", "/.//evil.com", ""},
	{"encoded dot segments", "/%2e%2e//evil.com", ""},
	{"path parameter", "/;@evil.com", ""},
	{"other host", "https://evil.com", ""},
	{"other listed host", "https://x.apps.example.com/", ""},
	{"issuer", "https://auth.example.com/dex", ""},
	{"scheme without slashes", "https:evil.com", ""},
	{"scheme and one slash", "https:/evil.com", ""},
	{"other scheme", "http://app.example.com/", ""},
	{"javascript", "javascript:alert(1)", ""},
	{"data", "data:text/html,x", ""},
	{"suffix", "https://app.example.com.evil.com/", ""},
	{"prefix", "https://evil-app.example.com/", ""},
	{"longer last label", "https://app.example.comx/", ""},
	{"user", "https://app.example.com@evil.com/", ""},
	{"user and password", "https://app.example.com:x@evil.com/", ""},
	{"backslash after the host", `https://app.example.com\@evil.com/`, ""},
	{"port", "https://app.example.com:444/", ""},
	{"default port", "https://app.example.com:443/", ""},
	{"upper case", "HTTPS://APP.EXAMPLE.COM/", ""},
	{"slashes after the origin", "https://app.example.com//evil.com", ""},
	{"markup", `/"><script>alert(1)</script>`, ""},
	{"markup in the query", "/?<script>", ""},
	{"sign-out", "/_gatehouse/sign-out", ""},
	{"sign-in again", "/_gatehouse/sign-in?rd=/", ""},
	{"alias of sign-out", "/oauth2/sign_out", ""},
	{"prefix itself", "/_gatehouse", ""},
	{"own origin and sign-out", "https://app.example.com/_gatehouse/sign-out#", ""},
	{"encoded own path", "/_gatehouse/sign%2dout", ""},
	{"beside the prefix", "/_gatehouse2", "/_gatehouse2"},
}

func TestReturnPath(t *testing.T) {
	f := newFixture(t)
	for _, tt := range targets {
		got, ok := f.current.Load().returnPath(tt.target, appHost)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %.80q: got %.80q, %v, want %.80q", tt.rule, tt.target, got, ok, tt.want)
		}
	}
	if got, ok := f.current.Load().returnPath("/a", "evil.com"); ok {
		t.Errorf("unlisted host: got %q", got)
	}
	shared := newFixture(t, func(c *Config) { c.Issuer = Issuer{Host: appHost, Path: "/dex", Origin: appOrigin} })
	if got, ok := shared.current.Load().returnPath("/dex/logout", appHost); ok {
		t.Errorf("the issuer's path: got %q", got)
	}
}

// TestReturnTargets runs the same table through sign-in, by both its paths and signed in or not.
func TestReturnTargets(t *testing.T) {
	f := newFixture(t)
	for _, tt := range targets {
		want := tt.want
		if want == "" {
			want = "/"
		}
		for _, path := range []string{"/_gatehouse/sign-in", "/oauth2/start"} {
			r := get(path+"?rd="+url.QueryEscape(tt.target), browser)
			if got := f.asked(f.do(r)); got.Return != want || got.Host != appHost {
				t.Errorf("%s: got %.80q on %q, want %.80q", tt.rule, got.Return, got.Host, want)
			}
			r.headers["cookie"] = f.cookie(appHost, "alice")
			if got := f.do(r); got.code != 303 || got.header("location") != appOrigin+want {
				t.Errorf("%s, signed in: got %d to %.80q, want 303 to %.80q", tt.rule, got.code, got.header("location"), want)
			}
		}
	}
	for rule, query := range map[string]string{
		"given twice": "rd=/a&rd=/b", "broken escape": "rd=/a%zz", "other name": "next=/a", "semicolon": "rd=/a;b=c", "none": "",
	} {
		if got := f.asked(f.do(get("/_gatehouse/sign-in?"+query, browser))); got.Return != "/" {
			t.Errorf("%s: got %q, want /", rule, got.Return)
		}
	}
}

// FuzzReturnPath holds that what is accepted leads, as net/url reads it, to the same host and to no path of ours.
func FuzzReturnPath(f *testing.F) {
	for _, tt := range targets {
		f.Add(tt.target)
	}
	g := newFixture(f).current.Load()
	f.Fuzz(func(t *testing.T, target string) {
		got, ok := g.returnPath(target, appHost)
		if !ok {
			return
		}
		base, err := url.Parse(appOrigin + "/base")
		if err != nil {
			t.Fatal(err)
		}
		sent, _, _ := strings.Cut(got, "#") // the fragment stays in the browser, and net/url is stricter with it
		u, err := base.Parse(sent)
		if err != nil {
			t.Fatalf("%q is accepted as %q: %v", target, got, err)
		}
		if u.Scheme != "https" || u.Host != appHost || u.User != nil || !strings.HasPrefix(got, "/") || strings.ContainsAny(got, "\r\n\t\\ ") {
			t.Errorf("%q is accepted as %q, which leads to %s", target, got, u)
		}
		if under(u.Path, "/_gatehouse") || u.Path == "/oauth2/sign_out" {
			t.Errorf("%q is accepted as %q, a path of ours", target, got)
		}
	})
}
