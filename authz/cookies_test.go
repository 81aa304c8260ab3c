package authz

import (
	"strings"
	"testing"

	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
)

// TestSessionCookie pins ATTACKS.md rule 4 and what a cookie must not be.
func TestSessionCookie(t *testing.T) {
	f := newFixture(t)
	f.signIn("bob", func(*session.Session) {})
	alice, bob, dead := f.cookie(appHost, "alice"), f.cookie(appHost, "bob"), f.cookie(appHost, "nobody")
	value := strings.TrimPrefix(alice, "__Host-gatehouse=")
	otherRing, err := seal.NewRing([][]byte{seal.NewKey()}, Purposes()...)
	if err != nil {
		t.Fatal(err)
	}
	ticket := handoff.Ticket{Session: "alice", Host: appHost, Expiry: epoch.Add(handoff.TicketLifetime)}.Seal(f.ring)
	long := strings.Repeat("x", 64<<10)
	for _, tt := range []struct {
		rule, cookie string
		user         string // whom the app sees
		rest         string // which cookies the app sees
	}{
		{"none", "", "", ""},
		{"one", alice, "alice", ""},
		{"among others", "a=1; " + alice + "; b=2", "alice", "a=1; b=2"},
		{"first", alice + "; b=2", "alice", "b=2"},
		{"last", "a=1; " + alice, "alice", "a=1"},
		{"without blanks", "a=1;" + alice + ";b=2", "alice", "a=1; b=2"},
		{"joined by a comma", "a=1," + alice, "alice", "a=1"},
		{"joined by a comma in front", alice + ",a=1", "alice", "a=1"},
		{"an app's cookie with a comma", "a=1,2; " + alice + "; b=3,c=4", "alice", "a=1,2; b=3,c=4"},
		{"blanks and tabs around the name", "a=1;\t __Host-gatehouse =" + value, "alice", "a=1"},

		{"garbage", "__Host-gatehouse=garbage; a=1", "", "a=1"},
		{"empty value", "__Host-gatehouse=; a=1", "", "a=1"},
		{"no value", "__Host-gatehouse; a=1", "", "a=1"},
		{"64 kB", "__Host-gatehouse=" + long + "; a=1", "", "a=1"},
		{"64 kB of another cookie", "a=" + long + "; " + alice, "alice", "a=" + long},
		{"quoted", `__Host-gatehouse="` + value + `"`, "", ""},
		{"truncated", alice[:len(alice)-1], "", ""},
		{"one letter changed", damaged(alice, len(alice)-5) + "; a=1", "", "a=1"},
		{"another host's", f.cookie("x.apps.example.com", "alice"), "", ""},
		{"unknown key", "__Host-gatehouse=" + handoff.SealCookie(otherRing, appHost, "alice", epoch), "", ""},
		{"a hand-off is no cookie", "__Host-gatehouse=" + ticket, "", ""},
		{"dead session", dead, "", ""},
		{"the name for http", "gatehouse-dev=" + value + "; a=1", "", "a=1"},
		{"another case of the name is an app's", "__host-gatehouse=" + value, "", "__host-gatehouse=" + value},
		{"a longer name is an app's", "__Host-gatehouse-2=1", "", "__Host-gatehouse-2=1"},

		{"two of one user", alice + "; " + alice, "", ""},
		{"two users", alice + "; " + bob, "", ""},
		{"two users by a comma", alice + "," + bob, "", ""},
		{"live and dead", dead + "; " + alice, "alice", ""},
		{"live and garbage", "__Host-gatehouse=x; " + alice + "; a=1", "alice", "a=1"},
		{"as many as are looked at", strings.Repeat("__Host-gatehouse=x;", maxCandidates-1) + alice, "alice", ""},
		{"one more", strings.Repeat("__Host-gatehouse=x;", maxCandidates) + alice, "", ""},
		{"200", strings.Repeat("__Host-gatehouse=x; ", 200) + alice + "; a=1", "", "a=1"},
		{"200 of others", strings.Repeat("c=1; ", 200) + alice, "alice", strings.TrimSuffix(strings.Repeat("c=1; ", 200), "; ")},

		{"all of ours", "__Host-gatehouse-login=1; gatehouse-dev-login=2; __Host-gatehouse-issuer-login=3; " +
			"gatehouse-dev-issuer-login=4; gatehouse-sso=5; gatehouse-dev=6; a=1", "", "a=1"},
		{"only ours", "__Host-gatehouse-login=1; gatehouse-sso=2;", "", ""},
		{"none of ours stays as it is", "a=1,b=2 ;c;; =d", "", "a=1,b=2 ;c;; =d"},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			r := f.do(get("/public/x", "", "cookie", tt.cookie))
			if r.code != 200 {
				t.Fatalf("got %d %s", r.code, r.body)
			}
			want := ""
			if tt.user != "" {
				want = tt.user + "@example.com"
			}
			if got := r.upstream["kubeflow-userid"]; got != want {
				t.Errorf("got user %q, want %q", got, want)
			}
			if got := r.upstream["cookie"]; got != tt.rest {
				t.Errorf("got cookies %.200q, want %.200q", got, tt.rest)
			}
			if _, present := r.upstream["cookie"]; present && tt.rest == "" && tt.cookie != "" {
				t.Error("an empty cookie header stays")
			}
		})
	}
}

// TestCookieOfPlainHost pins that an http host has its own name.
func TestCookieOfPlainHost(t *testing.T) {
	f := newFixture(t)
	const host = "plain.example.com"
	good := f.cookie(host, "alice")
	if !strings.HasPrefix(good, "gatehouse-dev=") {
		t.Fatalf("got cookie %q", good)
	}
	for cookie, want := range map[string]string{
		good: "alice@example.com", strings.Replace(good, "gatehouse-dev", "__Host-gatehouse", 1): "",
	} {
		if got := f.do(get("/x", "", "cookie", cookie).on(host + ":8080")).upstream["kubeflow-userid"]; got != want {
			t.Errorf("%.30q: got %q, want %q", cookie, got, want)
		}
	}
}

// TestUnverifiedAmongSeveral pins that one cookie that cannot be verified is not ignored in favour of another.
func TestUnverifiedAmongSeveral(t *testing.T) {
	f := newFixture(t)
	f.signIn("bob", func(*session.Session) {})
	f.sessions.err["bob"] = &session.UnavailableError{}
	if got := f.do(get("/x", "", "cookie", f.cookie(appHost, "alice")+"; "+f.cookie(appHost, "bob"))); got.code != 503 {
		t.Errorf("got %d, want 503", got.code)
	}
}

func FuzzCutCookies(f *testing.F) {
	owned := []string{"__Host-gatehouse", "gatehouse-sso"}
	for _, s := range []string{"", "a=1", "__Host-gatehouse=x", "a=1; __Host-gatehouse=x,b=2", ";;,,", " gatehouse-sso ;a", ",gatehouse-sso=,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, cookie string) {
		var before, after jar
		before.scan(cookie, handoff.Names(true), owned)
		cut := cutCookies(cookie, owned)
		after.scan(cut, handoff.Names(true), owned)
		if after.ours {
			t.Errorf("%q becomes %q, which has a cookie of ours", cookie, cut)
		}
		if before.others != after.others {
			t.Errorf("%q becomes %q: there were others: %v, there are: %v", cookie, cut, before.others, after.others)
		}
		if len(cut) > len(cookie)+strings.Count(cookie, ";")+strings.Count(cookie, ",") {
			t.Errorf("%q grows to %q", cookie, cut)
		}
	})
}
