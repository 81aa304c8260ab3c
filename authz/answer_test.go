package authz

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
)

// TestAnswers pins the form of every answer: ATTACKS.md rules 1, 2, 5 and 7, and the answers by kind of client.
func TestAnswers(t *testing.T) {
	const html, json = "text/html,application/xhtml+xml", "application/json"
	tests := []struct {
		rule    string
		req     request
		signed  bool // the request has the cookie of a live session
		code    int
		problem Problem
	}{
		// Rule 1: a path that is not its own normal form is never guessed at.
		{"double slash", get("//admin", browser), true, 400, ProblemBadRequest},
		{"double slash on the way to a public path", get("/admin//../public/x", browser), false, 400, ProblemBadRequest},
		{"encoded slash", get("/public%2fx", browser), false, 400, ProblemBadRequest},
		{"encoded backslash", get("/public%5cx", browser), false, 400, ProblemBadRequest},
		{"encoded NUL", get("/public/%00", browser), false, 400, ProblemBadRequest},
		{"double encoding", get("/public/%252e%252e/admin", browser), false, 400, ProblemBadRequest},
		{"dot segments", get("/public/../admin", browser), true, 400, ProblemBadRequest},
		{"encoded dot segments", get("/public/%2e%2e/admin", browser), true, 400, ProblemBadRequest},
		{"path parameter", get("/public/;a=b", browser), false, 400, ProblemBadRequest},
		{"fragment", get("/public/#x", browser), false, 400, ProblemBadRequest},
		{"no slash", get("admin", browser), true, 400, ProblemBadRequest},
		{"overlong UTF-8", get("/public/%c0%ae", browser), false, 400, ProblemBadRequest},
		{"raw non-ASCII bytes", get("/public/é", browser), false, 400, ProblemBadRequest},
		{"no path", get("", browser), true, 400, ProblemBadRequest},
		{"no method", get("/public/x", "").by(""), true, 400, ProblemBadRequest},
		{"lower-case method", get("/public/x", "").by("get"), true, 400, ProblemBadRequest},
		{"query takes no part in rules", get("/x?y=/public/", script), false, 401, ProblemSession},
		{"a prefix ends at a segment", get("/publicity", script), false, 401, ProblemSession},
		{"OPTIONS is no hole", get("/x", script).by("OPTIONS"), false, 401, ProblemSession},
		{"PROPFIND is no hole", get("/x", script).by("PROPFIND"), false, 401, ProblemSession},
		{"a health checker is nobody", get("/x", script, "user-agent", "kube-probe/1.30"), false, 401, ProblemSession},
		{"x-envoy-original-path is not believed", get("/x", script, "x-envoy-original-path", "/public/x"), false, 401, ProblemSession},

		// Rule 2: one canonical, listed host.
		{"comma in host", get("/public/x", browser).on("app.example.com,evil.com"), false, 400, ProblemBadRequest},
		{"user in host", get("/public/x", browser).on("app.example.com@evil.com"), false, 400, ProblemBadRequest},
		{"empty host", get("/public/x", browser).on(""), false, 400, ProblemBadRequest},
		{"two ports", get("/public/x", browser).on("app.example.com:80:90"), false, 400, ProblemBadRequest},
		{"unlisted host", get("/public/x", browser).on("evil.com"), false, 403, ProblemUnlistedHost},
		{"unlisted host, script", get("/public/x", script).on("evil.com"), false, 403, ProblemUnlistedHost},
		{"suffix of a listed host", get("/public/x", browser).on("evil-app.example.com"), false, 403, ProblemUnlistedHost},
		{"parent of a wildcard", get("/public/x", browser).on("apps.example.com"), false, 403, ProblemUnlistedHost},
		{"x-forwarded-host is not believed", get("/public/x", browser, "x-forwarded-host", appHost).on("evil.com"), false, 403, ProblemUnlistedHost},
		{"own path of an unlisted host", get("/_gatehouse/sign-in", browser).on("evil.com"), false, 403, ProblemUnlistedHost},
		{"upper case, dot and port are the same host", get("/public/x", "").on("APP.example.com.:443"), false, 200, ""},

		// Rule 5: an invalid bearer is 401, never a silent fall back to the cookie.
		{"bearer", get("/x", script, "authorization", "Bearer x"), false, 401, ProblemBearer},
		{"bearer and good cookie", get("/x", browser, "authorization", "Bearer x"), true, 401, ProblemBearer},
		{"bearer of any case", get("/x", "", "authorization", "bEARER x"), true, 401, ProblemBearer},
		{"bearer without token", get("/x", "", "authorization", "Bearer"), true, 401, ProblemBearer},
		{"second of two credentials", get("/x", "", "authorization", "Basic x,Bearer y"), true, 401, ProblemBearer},
		{"bearer on a public path", get("/public/x", "", "authorization", "Bearer x"), true, 200, ""},
		{"Basic is not ours", get("/x", "", "authorization", "Basic Bearer"), true, 200, ""},

		// Rule 7: a denial is no redirect; a redirect is for navigations only.
		{"group denial, navigation", get("/admin/x", browser), true, 403, ProblemDenied},
		{"group denial, script", get("/admin/x", script), true, 403, ProblemDenied},
		{"navigation", get("/x", browser), false, 302, ""},
		{"navigation by HEAD", get("/x", browser).by("HEAD"), false, 302, ""},
		{"navigation without Sec-Fetch", get("/x", "", "accept", html), false, 302, ""},
		{"posted form", get("/x", browser).by("POST"), false, 401, ProblemSession},
		{"posted form without Sec-Fetch", get("/x", "", "accept", html).by("POST"), false, 401, ProblemSession},
		{"fetch", get("/x", script), false, 401, ProblemSession},
		{"fetch that accepts HTML", get("/x", script, "accept", html), false, 401, ProblemSession},
		{"XMLHttpRequest", get("/x", "", "x-requested-with", "XMLHttpRequest", "accept", html), false, 401, ProblemSession},
		{"JSON", get("/x", "", "accept", json), false, 401, ProblemSession},
		{"WebSocket", get("/x", "websocket", "upgrade", "websocket"), false, 401, ProblemSession},
		{"WebSocket without Sec-Fetch", get("/x", "", "upgrade", "WebSocket", "accept", html), false, 401, ProblemSession},
		{"gRPC", get("/x", "", "content-type", "application/grpc+proto").by("POST"), false, 401, ProblemSession},
		{"unknown client", get("/x", "", "accept", "*/*"), false, 401, ProblemSession},
		{"signed in", get("/x", browser), true, 200, ""},
		{"public", get("/public/x", script), false, 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			f := newFixture(t)
			if tt.signed {
				tt.req.headers["cookie"] = f.cookie(appHost, "alice")
			}
			got := f.do(tt.req)
			if got.code != tt.code {
				t.Fatalf("got %d %v %s, want %d", got.code, got.headers, got.body, tt.code)
			}
			if tt.problem != "" && got.problem(t) != tt.problem {
				t.Errorf("got problem %q, want %q", got.problem(t), tt.problem)
			}
			if (got.code == 401) != strings.HasPrefix(got.header("www-authenticate"), `Bearer realm="gatehouse"`) {
				t.Errorf("got %d with challenge %q", got.code, got.header("www-authenticate"))
			}
			if got.upstream == nil {
				checkOwnAnswer(t, f, got)
			}
			if e := f.events(); len(e) != 1 || int(e[0]["status"].(float64)) != tt.code {
				t.Errorf("got audit %v, want one event with status %d", e, tt.code)
			}
		})
	}
}

// checkOwnAnswer pins what every answer of our own has.
func checkOwnAnswer(t *testing.T, f *fixture, r result) {
	t.Helper()
	for name, want := range map[string]string{
		"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "same-origin", "x-request-id": "rid-1",
	} {
		if got := r.header(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if r.body != "" && !strings.Contains(r.body, "rid-1") {
		t.Errorf("body %q lacks the request id", r.body)
	}
	csp := r.header("content-security-policy")
	if html := strings.HasPrefix(r.header("content-type"), "text/html"); html && !strings.HasPrefix(csp, "default-src 'none'; ") {
		t.Errorf("a page has the content policy %q", csp)
	}
	if e := f.events(); e[0]["request_id"] != "rid-1" {
		t.Errorf("audit has the request id %v", e[0]["request_id"])
	}
}

// TestKubeflowClients pins the answers that Kubeflow's own clients expect.
func TestKubeflowClients(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Clients = ClientsKubeflow })
	for _, tt := range []struct {
		rule string
		req  request
		code int
	}{
		{"unknown GET", get("/x", "", "accept", "*/*"), 302},
		{"unknown HEAD", get("/x", "", "accept", "*/*").by("HEAD"), 302},
		{"unknown POST", get("/x", "").by("POST"), 403},
		{"unknown DELETE", get("/x", "").by("DELETE"), 403},
		{"fetch", get("/x", script), 401},
		{"gRPC", get("/x", "", "content-type", "application/grpc").by("POST"), 401},
		{"bearer", get("/x", "", "authorization", "Bearer x"), 401},
	} {
		if got := f.do(tt.req); got.code != tt.code {
			t.Errorf("%s: got %d, want %d", tt.rule, got.code, tt.code)
		}
	}
}

// TestUnlistedHost names the host and redirects nowhere.
func TestUnlistedHost(t *testing.T) {
	f := newFixture(t)
	r := f.do(get("/x", browser).on("Evil.example.net:444"))
	if r.code != 403 || !strings.Contains(r.body, `"Host":"evil.example.net"`) || r.header("location") != "" || r.header("set-cookie") != "" {
		t.Errorf("got %d %v %s, want 403 with the host and without redirect and cookie", r.code, r.headers, r.body)
	}
}

// TestIssuerPath pins that the issuer's own path, and nothing beside it, passes for anyone.
func TestIssuerPath(t *testing.T) {
	f := newFixture(t)
	sent := []string{
		"cookie", "gatehouse-sso=1; __Host-gatehouse-issuer-login=2; a=b", "authorization", "Bearer x",
		"kubeflow-userid", "evil", "kubeflow_userid", "evil", "Kubeflow.Groups", "evil", "x-auth~display!name", "evil",
	}
	r := f.do(get("/dex/token?a=b", script, sent...).on(issuerHost).by("POST"))
	if r.code != 200 {
		t.Fatalf("got %d, want 200", r.code)
	}
	for name, want := range map[string]string{
		"cookie": sent[1], "authorization": sent[3], "kubeflow-userid": "", "kubeflow_userid": "", "kubeflow.groups": "", "x-auth~display!name": "",
	} {
		if got := r.upstream[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, tt := range []struct {
		rule string
		req  request
		code int
	}{
		{"the path itself", get("/dex", browser).on(issuerHost), 200},
		{"a longer segment", get("/dexter", browser).on(issuerHost), 403},
		{"other case", get("/Dex/auth", browser).on(issuerHost), 403},
		{"the root of an unlisted issuer host", get("/", browser).on(issuerHost), 403},
		{"own path of an unlisted issuer host", get("/_gatehouse/whoami", script).on(issuerHost), 403},
		{"the path on another host", get("/dex/auth", browser), 302},
		{"dot segments", get("/dex/../admin", browser).on(issuerHost), 400},
	} {
		if got := f.do(tt.req); got.code != tt.code {
			t.Errorf("%s: got %d, want %d", tt.rule, got.code, tt.code)
		}
	}
	root := newFixture(t, func(c *Config) { c.Issuer = Issuer{Host: appHost, Origin: appOrigin} })
	if got := root.do(get("/auth", browser)); got.code != 200 {
		t.Errorf("issuer at the root: got %d, want 200", got.code)
	}
	if got := root.do(get("/_gatehouse/whoami", script)); got.code != 401 {
		t.Errorf("own path beside an issuer at the root: got %d, want 401", got.code)
	}
}

// TestSessionFailures pins that a session that cannot be verified is no session, and no anonymous caller either.
func TestSessionFailures(t *testing.T) {
	unavailable := &session.UnavailableError{Err: errors.New("disk on fire")}
	for _, tt := range []struct {
		rule    string
		err     error
		path    string
		code    int
		problem Problem
	}{
		{"store down", unavailable, "/x", 503, ProblemUnavailable},
		{"unknown error", errors.New("?"), "/x", 503, ProblemUnavailable},
		{"blocked", session.ErrBlocked, "/x", 403, ProblemBlocked},
		{"store down, public path", unavailable, "/public/x", 200, ""},
		{"blocked, public path", session.ErrBlocked, "/public/x", 200, ""},
		{"store down, whoami", unavailable, "/_gatehouse/whoami", 503, ProblemUnavailable},
		{"blocked, whoami", session.ErrBlocked, "/_gatehouse/whoami", 403, ProblemBlocked},
		{"store down, sign-in", unavailable, "/_gatehouse/sign-in", 503, ProblemUnavailable},
		{"blocked, sign-in as somebody else", session.ErrBlocked, "/_gatehouse/sign-in", 302, ""},
		{"store down, sign-out", unavailable, "/_gatehouse/sign-out", 503, ProblemUnavailable},
		{"blocked, sign-out", session.ErrBlocked, "/_gatehouse/sign-out", 200, ""},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			f := newFixture(t)
			f.sessions.err["alice"] = tt.err
			r := f.do(get(tt.path, browser, "cookie", f.cookie(appHost, "alice"), "kubeflow-userid", "alice@example.com"))
			if r.code != tt.code {
				t.Fatalf("got %d %s, want %d", r.code, r.body, tt.code)
			}
			if tt.problem != "" && r.problem(t) != tt.problem {
				t.Errorf("got problem %q, want %q", r.problem(t), tt.problem)
			}
			if retry := r.header("retry-after"); (tt.code == 503) != (retry == "5") {
				t.Errorf("got retry-after %q", retry)
			}
			if r.upstream["kubeflow-userid"] != "" {
				t.Errorf("an unverified caller is %q upstream", r.upstream["kubeflow-userid"])
			}
			if strings.Contains(r.body, "fire") {
				t.Errorf("body %q tells the cause", r.body)
			}
		})
	}
}

// TestExpiredIdentity pins that an identity is good before its expiry, not at it, whatever the view says.
func TestExpiredIdentity(t *testing.T) {
	f := newFixture(t)
	f.signIn("bob", func(s *session.Session) { s.Identity.Expiry = epoch.Add(time.Minute) })
	req := get("/public/x", "", "cookie", f.cookie(appHost, "bob"))
	f.now = epoch.Add(time.Minute - 1)
	if got := f.do(req).upstream["kubeflow-userid"]; got != "bob@example.com" {
		t.Errorf("before expiry: got %q", got)
	}
	f.now = epoch.Add(time.Minute)
	if got := f.do(req).upstream["kubeflow-userid"]; got != "" {
		t.Errorf("at expiry: got %q, want nobody", got)
	}
}

// TestBeforeApply pins that a server without a configuration refuses.
func TestBeforeApply(t *testing.T) {
	f := newFixture(t)
	f.current.Store(nil)
	if got := f.do(get("/public/x", browser)); got.code != 503 {
		t.Errorf("got %d, want 503", got.code)
	}
	if got := f.events()[0]["reason"]; got != "no-config" {
		t.Errorf("got reason %q", got)
	}
}

// TestDefaultDeny pins that a denial of everybody does not depend on who asks.
func TestDefaultDeny(t *testing.T) {
	p, err := policy.New(nil, policy.DefaultDeny)
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, func(c *Config) { c.Policy = p })
	for _, cookie := range []string{"", f.cookie(appHost, "alice")} {
		if got := f.do(get("/x", browser, "cookie", cookie)); got.code != 403 || got.problem(t) != ProblemDenied {
			t.Errorf("got %d %s, want 403", got.code, got.body)
		}
	}
}

// TestSignInRequest pins what a redirect to the issuer carries.
func TestSignInRequest(t *testing.T) {
	f := newFixture(t)
	r := f.do(get("/a/b?c=d&e=%20f", browser))
	pre, ok := handoff.ParsePreCookie(r.set("__Host-gatehouse-login"))
	if !ok {
		t.Fatalf("got set-cookie %q, want a pre-cookie", r.header("set-cookie"))
	}
	if got, want := r.header("set-cookie"), "; Path=/; HttpOnly; Secure; SameSite=Lax"; !strings.HasSuffix(got, want) {
		t.Errorf("got set-cookie %q, want it to end in %q", got, want)
	}
	req := f.asked(r)
	if req.Host != appHost || req.Return != "/a/b?c=d&e=%20f" || !pre.Bound(req.Bind) || !req.Expiry.Equal(epoch.Add(handoff.RequestLifetime)) {
		t.Errorf("got request %+v", req)
	}

	again := f.do(get("/other", browser, "cookie", "__Host-gatehouse-login="+pre.String()))
	if got := again.header("set-cookie"); got != "" {
		t.Errorf("a second tab replaces the pre-cookie: %q", got)
	}
	if req := f.asked(again); !pre.Bound(req.Bind) || req.Return != "/other" {
		t.Errorf("second tab: got request %+v", req)
	}

	plain := f.do(get("/x", browser).on("plain.example.com:9999"))
	if got := plain.header("set-cookie"); !strings.HasPrefix(got, "gatehouse-dev-login=") || strings.Contains(got, "Secure") {
		t.Errorf("http host: got set-cookie %q", got)
	}
}

// TestReturnIsCapped pins that no return path makes the redirect too long for what must read it.
func TestReturnIsCapped(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct{ rule, path, want string }{
		{"4 KiB", "/?" + strings.Repeat("a", maxTarget-2), "/?" + strings.Repeat("a", maxTarget-2)},
		{"one byte more", "/?" + strings.Repeat("a", maxTarget-1), "/"},
		{"what JSON makes six times longer", "/?" + strings.Repeat("&", maxTarget-2), "/"},
		{"60 kB", "/?" + strings.Repeat("a", 60<<10), "/"},
	} {
		if got := f.asked(f.do(get(tt.path, browser))).Return; got != tt.want {
			t.Errorf("%s: got a return path of %d bytes, want %d", tt.rule, len(got), len(tt.want))
		}
	}
}
