package authz

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gatehouse/authz/session"
	"gatehouse/internal/audit"
)

// signOutAction returns the path that the page which asks posts to.
func signOutAction(t *testing.T, f *fixture, cookie string) string {
	t.Helper()
	r := f.do(get("/_gatehouse/sign-out", browser, "cookie", cookie, "sec-fetch-site", "none", "sec-fetch-dest", "document"))
	_, rest, ok := strings.Cut(r.body, `"Action":"`)
	action, _, _ := strings.Cut(rest, `"`)
	if r.code != 200 || !ok || !strings.HasPrefix(action, "/_gatehouse/sign-out?k=") {
		t.Fatalf("got %d %s, want the page that asks", r.code, r.body)
	}
	if csp := r.header("content-security-policy"); !strings.Contains(csp, "frame-ancestors 'none'") || !strings.Contains(csp, "form-action 'self' https://auth.example.com;") {
		t.Errorf("got content policy %q", csp)
	}
	return action
}

// TestSignOut pins who may sign a browser out: ATTACKS.md, logout CSRF.
func TestSignOut(t *testing.T) {
	f := newFixture(t)
	f.signIn("bob", func(*session.Session) {})
	alice, bob := f.cookie(appHost, "alice"), f.cookie(appHost, "bob")
	action, bobs := signOutAction(t, f, alice), signOutAction(t, f, bob)
	for _, tt := range []struct {
		rule    string
		req     request
		cookie  string
		code    int
		signOut bool
	}{
		{"form of another site", get(action, browser, "origin", "https://evil.com", "sec-fetch-site", "cross-site").by("POST"), alice, 403, false},
		{"form of a sandboxed page", get(action, browser, "origin", "null").by("POST"), alice, 403, false},
		{"form of a sibling", get(action, browser, "origin", "https://x.example.com", "sec-fetch-site", "same-site").by("POST"), alice, 403, false},
		{"origin with a port", get(action, browser, "origin", appOrigin+":443").by("POST"), alice, 403, false},
		{"origin of the other scheme", get(action, browser, "origin", "http://app.example.com").by("POST"), alice, 403, false},
		{"empty origin", get(action, browser, "origin", "").by("POST"), alice, 403, false},
		{"no origin, cross-site", get(action, browser, "sec-fetch-site", "cross-site").by("POST"), alice, 403, false},
		{"no origin, same-site", get(action, browser, "sec-fetch-site", "same-site").by("POST"), alice, 403, false},
		{"no token", get("/_gatehouse/sign-out", browser, "origin", appOrigin).by("POST"), alice, 403, false},
		{"token of another session", get(bobs, browser, "origin", appOrigin).by("POST"), alice, 403, false},
		{"changed token", get(action+"A", browser, "origin", appOrigin).by("POST"), alice, 403, false},
		{"cookie for a token", get("/_gatehouse/sign-out?k="+strings.TrimPrefix(alice, "__Host-gatehouse="), browser, "origin", appOrigin).by("POST"), alice, 403, false},
		{"GET from another site", get("/_gatehouse/sign-out", browser, "sec-fetch-site", "cross-site", "sec-fetch-dest", "document"), alice, 200, false},
		{"GET from a sibling", get("/_gatehouse/sign-out", browser, "sec-fetch-site", "same-site", "sec-fetch-dest", "document"), alice, 200, false},
		{"GET typed in", get("/oauth2/sign_out", browser, "sec-fetch-site", "none", "sec-fetch-dest", "document"), alice, 200, false},
		{"GET of a frame", get("/_gatehouse/sign-out", browser, "sec-fetch-site", "same-origin", "sec-fetch-dest", "iframe"), alice, 200, false},
		{"GET of an image", get("/_gatehouse/sign-out", "no-cors", "sec-fetch-site", "same-origin", "sec-fetch-dest", "image"), alice, 200, false},
		{"GET of an old browser", get("/_gatehouse/sign-out", "", "accept", "text/html"), alice, 200, false},
		{"HEAD", get("/_gatehouse/sign-out", browser, "sec-fetch-site", "same-origin", "sec-fetch-dest", "document").by("HEAD"), alice, 200, false},
		{"DELETE", get(action, browser, "origin", appOrigin).by("DELETE"), alice, 405, false},
		{"form", get(action, browser, "origin", appOrigin, "sec-fetch-site", "same-origin").by("POST"), alice, 200, true},
		{"form by a script of the user", get(action, "").by("POST"), alice, 200, true},
		{"GET from the same origin", get("/_gatehouse/sign-out", browser, "sec-fetch-site", "same-origin", "sec-fetch-dest", "document"), alice, 200, true},
		{"GET from the same origin, Kubeflow's path", get("/oauth2/sign_out", browser, "sec-fetch-site", "same-origin", "sec-fetch-dest", "document"), alice, 200, true},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			f.signIn("alice", func(*session.Session) {})
			tt.req.headers["cookie"] = tt.cookie
			r := f.do(tt.req)
			if r.code != tt.code {
				t.Fatalf("got %d %s, want %d", r.code, r.body, tt.code)
			}
			if _, live := f.sessions.live["alice"]; live == tt.signOut {
				t.Errorf("the session is live: %v", live)
			}
			if cleared := strings.Contains(r.header("set-cookie"), "__Host-gatehouse=; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=0"); cleared != tt.signOut {
				t.Errorf("got set-cookie %q", r.header("set-cookie"))
			}
			if tt.signOut && !strings.Contains(r.header("set-cookie"), loginCookie+"=; ") {
				t.Errorf("the pre-cookie stays: %q", r.header("set-cookie"))
			}
			if tt.signOut && f.do(get("/x", script, "cookie", tt.cookie)).code != 401 {
				t.Error("the old cookie still works")
			}
		})
	}
}

// TestSignOutFormExpires pins that a page which asks is good for an hour.
func TestSignOutFormExpires(t *testing.T) {
	f := newFixture(t)
	cookie := f.cookie(appHost, "alice")
	post := get(signOutAction(t, f, cookie), browser, "origin", appOrigin, "cookie", cookie).by("POST")
	f.now = epoch.Add(signOutFormLifetime)
	if got := f.do(post); got.code != 403 || got.problem(t) != ProblemForm {
		t.Errorf("after an hour: got %d %s, want 403", got.code, got.body)
	}
	f.now = epoch.Add(signOutFormLifetime - time.Second)
	if got := f.do(post); got.code != 200 {
		t.Errorf("within the hour: got %d %s, want 200", got.code, got.body)
	}
}

// TestSignOutGoesOn pins where a browser is sent after a sign-out.
func TestSignOutGoesOn(t *testing.T) {
	for _, tt := range []struct {
		rule, next        string
		getCode, postCode int
		location, refresh string
	}{
		{"nowhere", "", 200, 200, "", ""},
		{"issuer", "https://auth.example.com/dex/signed-out?a=b", 303, 303, "https://auth.example.com/dex/signed-out?a=b", ""},
		{"upstream, which the form's policy refuses", "https://idp.example.org/logout", 303, 200, "https://idp.example.org/logout", "0; url=https://idp.example.org/logout"},
		{"origin that only begins like the issuer's", "https://auth.example.com.evil.org/", 303, 200, "https://auth.example.com.evil.org/", "0; url=https://auth.example.com.evil.org/"},
		{"no URL", "/x", 200, 200, "", ""},
		{"script", "javascript:alert(1)", 200, 200, "", ""},
		{"line break", "https://auth.example.com/\r\nset-cookie: a", 200, 200, "", ""},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			f := newFixture(t)
			f.sessions.err["next"] = errors.New(tt.next)
			cookie := f.cookie(appHost, "alice")
			action := signOutAction(t, f, cookie)
			r := f.do(get(action, browser, "origin", appOrigin, "cookie", cookie).by("POST"))
			want := ""
			if tt.postCode == 303 {
				want = tt.location
			}
			if r.code != tt.postCode || r.header("location") != want || r.header("refresh") != tt.refresh {
				t.Errorf("POST: got %d %v", r.code, r.headers)
			}
			f.signIn("alice", func(*session.Session) {})
			r = f.do(get("/_gatehouse/sign-out", browser, "sec-fetch-site", "same-origin", "sec-fetch-dest", "document", "cookie", cookie))
			if r.code != tt.getCode || r.header("location") != tt.location {
				t.Errorf("GET: got %d %v", r.code, r.headers)
			}
		})
	}
}

// TestSignOutFails pins that a sign-out which did not happen is not told as one.
func TestSignOutFails(t *testing.T) {
	f := newFixture(t)
	cookie := f.cookie(appHost, "alice")
	post := get(signOutAction(t, f, cookie), browser, "origin", appOrigin, "cookie", cookie).by("POST")
	f.sessions.err["sign-out"] = errors.New("disk full")
	r := f.do(post)
	if r.code != 503 || r.header("set-cookie") != "" || strings.Contains(r.body, "disk") {
		t.Errorf("got %d %v %s, want 503 with the cookies kept", r.code, r.headers, r.body)
	}
	if !strings.Contains(f.log.String(), "disk full") {
		t.Error("the cause is not logged")
	}
}

// TestSignOutOfNobody pins that a request without cookies changes nothing in the browser: another site may have sent it.
func TestSignOutOfNobody(t *testing.T) {
	f := newFixture(t)
	if r := f.do(get("/_gatehouse/sign-out", "no-cors", "sec-fetch-site", "cross-site")); r.code != 200 || r.header("set-cookie") != "" {
		t.Errorf("got %d %v", r.code, r.headers)
	}
	if r := f.do(get("/_gatehouse/sign-out", browser, "cookie", f.cookie(appHost, "dead"))); r.code != 200 || r.header("set-cookie") == "" {
		t.Errorf("dead session: got %d %v, want its cookie cleared", r.code, r.headers)
	}
}

func TestWhoAmI(t *testing.T) {
	f := newFixture(t)
	r := f.do(get("/_gatehouse/whoami", script, "cookie", f.cookie(appHost, "alice")))
	want := `{"user":"u-alice","email":"alice@example.com","name":"Name of alice","groups":["team-a","team-b"],"connector":"local",` +
		`"session":{"id_hash":"` + audit.Hash("alice") + `","signed_in_at":"2026-11-25T11:59:00Z","expires_at":"2026-11-25T13:00:00Z"}}`
	if r.code != 200 || r.body != want || r.header("content-type") != "application/json" {
		t.Errorf("got %d %s, want %s", r.code, r.body, want)
	}
	f.signIn("bare", func(s *session.Session) { s.Identity.Groups = nil })
	if r := f.do(get("/_gatehouse/whoami", script, "cookie", f.cookie(appHost, "bare"))); !strings.Contains(r.body, `"groups":[]`) {
		t.Errorf("no groups: got %s", r.body)
	}
	r = f.do(get("/_gatehouse/whoami", script))
	if r.code != 401 || r.body != `{"error":"session-needed","login_url":"https://app.example.com/_gatehouse/sign-in","request_id":"rid-1"}` {
		t.Errorf("anonymous: got %d %s", r.code, r.body)
	}
	if r := f.do(get("/_gatehouse/whoami", script, "cookie", f.cookie(appHost, "alice"), "authorization", "Bearer x")); r.code != 401 {
		t.Errorf("bearer: got %d, want 401", r.code)
	}
}

// TestOwnPathsNeverReachTheApp pins that what is ours is answered here, whoever asks.
func TestOwnPathsNeverReachTheApp(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{
		"/_gatehouse", "/_gatehouse/", "/_gatehouse/session", "/_gatehouse/sign-in", "/_gatehouse/sign-out", "/_gatehouse/whoami",
		"/_gatehouse/whoami/", "/_gatehouse/Whoami", "/_gatehouse/x/y", "/oauth2/start", "/oauth2/sign_out", "/_gatehouse?a=b",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "OPTIONS"} {
			for _, cookie := range []string{"", f.cookie(appHost, "alice")} {
				r := f.do(get(path, browser, "cookie", cookie, "origin", appOrigin).by(method))
				if r.upstream != nil {
					t.Errorf("%s %s reaches the app", method, path)
				}
				known := path == "/oauth2/start" || path == "/oauth2/sign_out" ||
					strings.HasPrefix(path, "/_gatehouse/s") || path == "/_gatehouse/whoami"
				if (r.code == 404) == known {
					t.Errorf("%s %s: got %d", method, path, r.code)
				}
				f.signIn("alice", func(*session.Session) {})
			}
		}
	}
	for _, path := range []string{"/_gatehouse2", "/_Gatehouse/sign-out", "/oauth2", "/oauth2/start/", "/oauth2/sign_outs"} {
		if r := f.do(get(path, browser, "cookie", f.cookie(appHost, "alice"))); r.upstream == nil {
			t.Errorf("%s is the app's: got %d", path, r.code)
		}
	}
}
