package authz

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
)

const loginCookie = "__Host-gatehouse-login"

// TestHandoff pins what a hand-off is worth where, when and in which browser.
func TestHandoff(t *testing.T) {
	mine, other := handoff.NewPreCookie(epoch), handoff.NewPreCookie(epoch)
	good := handoff.Ticket{Session: "alice", Host: appHost, Return: "/a?b=c", Bind: mine.Bind()}
	with := func(change func(*handoff.Ticket)) handoff.Ticket {
		k := good
		change(&k)
		return k
	}
	expired := with(func(k *handoff.Ticket) { k.Expiry = epoch })
	looping := mine
	looping.Rounds = handoff.MaxRounds
	for _, tt := range []struct {
		rule      string
		ticket    handoff.Ticket
		cookies   []string
		code      int
		problem   Problem
		location  string
		signsIn   bool
		preCookie string // "", "kept", "counted", "cleared" or "new"
	}{
		{"in time, place and browser", good, []string{loginCookie + "=" + mine.String()}, 303, "", "/a?b=c", true, "new"},
		{"other browser", good, []string{loginCookie + "=" + other.String()}, 303, "", "/a?b=c", false, "kept"},
		{"other browser, signed in", good, []string{loginCookie + "=" + other.String(), "bob"}, 303, "", "/a?b=c", false, "kept"},
		{"no pre-cookie", good, nil, 400, ProblemNoCookies, "", false, "kept"},
		{"no pre-cookie, signed in", good, []string{"bob"}, 303, "", "/a?b=c", false, "kept"},
		{"garbage for a pre-cookie", good, []string{loginCookie + "=" + mine.Random}, 400, ProblemNoCookies, "", false, "kept"},
		{"a second pre-cookie was planted", good, []string{loginCookie + "=" + mine.String(), loginCookie + "=" + other.String()}, 400, ProblemNoCookies, "", false, "kept"},
		{"the http host's pre-cookie", good, []string{"gatehouse-dev-login=" + mine.String()}, 400, ProblemNoCookies, "", false, "kept"},
		{"expired", expired, []string{loginCookie + "=" + mine.String()}, 303, "", "/a?b=c", false, "counted"},
		{"expired, signed in", expired, []string{loginCookie + "=" + mine.String(), "bob"}, 303, "", "/a?b=c", false, "kept"},
		{"last moment", with(func(k *handoff.Ticket) { k.Expiry = epoch.Add(1) }), []string{loginCookie + "=" + mine.String()}, 303, "", "/a?b=c", true, "new"},
		{"other host", with(func(k *handoff.Ticket) { k.Host = "x.apps.example.com" }), []string{loginCookie + "=" + mine.String()}, 400, ProblemLink, "", false, "kept"},
		{"no host", with(func(k *handoff.Ticket) { k.Host = "" }), []string{loginCookie + "=" + mine.String()}, 400, ProblemLink, "", false, "kept"},
		{"no binding", with(func(k *handoff.Ticket) { k.Bind = "" }), []string{loginCookie + "=" + mine.String()}, 303, "", "/a?b=c", false, "kept"},
		{"ended session", with(func(k *handoff.Ticket) { k.Session = "dead" }), []string{loginCookie + "=" + mine.String()}, 303, "", "/a?b=c", false, "counted"},
		{"return to another host", with(func(k *handoff.Ticket) { k.Return = "//evil.com" }), []string{loginCookie + "=" + mine.String()}, 303, "", "/", true, "new"},
		{"return to sign-out", with(func(k *handoff.Ticket) { k.Return = "/_gatehouse/sign-out" }), []string{loginCookie + "=" + mine.String()}, 303, "", "/", true, "new"},
		{"loop", good, []string{loginCookie + "=" + looping.String()}, 400, ProblemLoop, "", false, "cleared"},
		{"many sign-ins of somebody who is signed in are no loop", good, []string{loginCookie + "=" + looping.String(), "bob"}, 303, "", "/a?b=c", true, "new"},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			f := newFixture(t)
			f.signIn("bob", func(*session.Session) {})
			cookies := append([]string{}, tt.cookies...)
			for i, c := range cookies {
				if c == "bob" {
					cookies[i] = f.cookie(appHost, "bob")
				}
			}
			r := f.do(get(f.ticket(tt.ticket), browser, "cookie", strings.Join(cookies, "; ")))
			if r.code != tt.code {
				t.Fatalf("got %d %v %s, want %d", r.code, r.headers, r.body, tt.code)
			}
			if tt.problem != "" && r.problem(t) != tt.problem {
				t.Errorf("got problem %q, want %q", r.problem(t), tt.problem)
			}
			if tt.location != "" && r.header("location") != appOrigin+tt.location {
				t.Errorf("got location %q, want %q", r.header("location"), appOrigin+tt.location)
			}
			session := r.set("__Host-gatehouse")
			if (session != "") != tt.signsIn {
				t.Errorf("got set-cookie %v, want a session: %v", r.headers["set-cookie"], tt.signsIn)
			}
			if tt.signsIn {
				if got := f.do(get("/x", "", "cookie", "__Host-gatehouse="+session)).upstream["kubeflow-userid"]; got != "alice@example.com" {
					t.Errorf("the cookie is of %q, want alice", got)
				}
			}
			if got := preCookieFate(r, mine); got != tt.preCookie {
				t.Errorf("pre-cookie is %s, want %s: %v", got, tt.preCookie, r.headers["set-cookie"])
			}
		})
	}
}

// preCookieFate says what becomes of the browser's pre-cookie.
func preCookieFate(r result, old handoff.PreCookie) string {
	if !strings.Contains(r.header("set-cookie"), loginCookie+"=") {
		return "kept"
	}
	c, ok := handoff.ParsePreCookie(r.set(loginCookie))
	switch {
	case !ok:
		return "cleared"
	case c.Random != old.Random:
		return "new"
	case c.Rounds == old.Rounds+1:
		return "counted"
	}
	return "changed"
}

// TestHandoffIsRedeemedOnce pins that a browser which redeemed a hand-off cannot do it again, not even after a sign-out.
func TestHandoffIsRedeemedOnce(t *testing.T) {
	f := newFixture(t)
	pre := handoff.NewPreCookie(epoch)
	path := f.ticket(handoff.Ticket{Session: "alice", Host: appHost, Return: "/a", Bind: pre.Bind()})
	first := f.do(get(path, browser, "cookie", loginCookie+"="+pre.String()))
	second := f.do(get(path, browser, "cookie", loginCookie+"="+first.set(loginCookie)))
	if first.set("__Host-gatehouse") == "" || second.set("__Host-gatehouse") != "" || second.header("location") != appOrigin+"/a" {
		t.Errorf("got %v, then %v", first.headers, second.headers)
	}
}

// TestHandoffTampered pins that nothing but what was sealed for a hand-off is one.
func TestHandoffTampered(t *testing.T) {
	f := newFixture(t)
	pre := handoff.NewPreCookie(epoch)
	k := handoff.Ticket{Session: "alice", Host: appHost, Return: "/a", Bind: pre.Bind(), Expiry: epoch.Add(time.Minute)}
	sealed := k.Seal(f.ring)
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, Purposes()...)
	if err != nil {
		t.Fatal(err)
	}
	request := handoff.Request{Host: appHost, Return: "/a", Bind: pre.Bind(), Expiry: k.Expiry}.Seal(f.ring)
	for rule, query := range map[string]string{
		"nothing": "", "empty": "t=", "garbage": "t=x", "truncated": "t=" + sealed[:len(sealed)-4], "changed": "t=" + damaged(sealed, 0),
		"twice": "t=" + sealed + "&t=" + sealed, "other installation": "t=" + k.Seal(ring), "a request": "t=" + request,
		"a cookie": "t=" + handoff.SealCookie(f.ring, appHost, "alice", epoch), "64 kB": "t=" + strings.Repeat("A", 64<<10),
		"broken query": "t=" + sealed + "&%zz",
	} {
		r := f.do(get("/_gatehouse/session?"+query, browser, "cookie", loginCookie+"="+pre.String()))
		if r.code != 400 || r.problem(t) != ProblemLink || r.header("set-cookie") != "" {
			t.Errorf("%s: got %d %v, want 400 without cookies", rule, r.code, r.headers)
		}
	}
	for _, method := range []string{"HEAD", "POST", "OPTIONS"} {
		r := f.do(get("/_gatehouse/session?t="+url.QueryEscape(sealed), browser, "cookie", loginCookie+"="+pre.String()).by(method))
		if r.code != 405 || r.header("allow") != "GET" {
			t.Errorf("%s: got %d, want 405", method, r.code)
		}
	}
}

// A jarOf is a browser that keeps cookies, save those that a test makes it lose.
type jarOf map[string]string

func (j jarOf) take(r result, lose string) {
	for _, v := range r.headers["set-cookie"] {
		pair, attributes, _ := strings.Cut(v, ";")
		name, value, _ := strings.Cut(pair, "=")
		switch {
		case name == lose:
		case strings.Contains(attributes, "Max-Age=0"):
			delete(j, name)
		default:
			j[name] = value
		}
	}
}

func (j jarOf) String() string {
	var list []string
	for name, value := range j {
		list = append(list, name+"="+value)
	}
	return strings.Join(list, "; ")
}

// signInRound is a sign-in with a live session at the issuer: from the app to the issuer and back to the app. It returns
// the answer that is not a redirect.
func signInRound(f *fixture, j jarOf, lose string, rounds int) (last result, redirects int) {
	path := "/a"
	for redirects < rounds {
		r := f.do(get(path, browser, "cookie", j.String()))
		j.take(r, lose)
		switch r.code {
		case 302:
			req := f.asked(r)
			path = f.ticket(handoff.Ticket{Session: "alice", Host: req.Host, Return: req.Return, Bind: req.Bind})
		case 303:
			path = strings.TrimPrefix(r.header("location"), appOrigin)
		default:
			return r, redirects
		}
		redirects++
	}
	return result{}, redirects
}

// TestLoops pins that a browser which cannot keep a cookie gets an explanation, whichever cookie it is, and that the
// next try of its user begins anew.
func TestLoops(t *testing.T) {
	for lose, want := range map[string]Problem{"": "", "__Host-gatehouse": ProblemLoop, loginCookie: ProblemNoCookies} {
		f := newFixture(t)
		j := jarOf{}
		r, redirects := signInRound(f, j, lose, 100)
		if want == "" {
			if r.code != 200 || redirects != 2 {
				t.Errorf("a good browser: got %d after %d redirects, want 200 after 2", r.code, redirects)
			}
			continue
		}
		if r.code != 400 || r.problem(t) != want || redirects > 2*handoff.MaxRounds {
			t.Errorf("without %s: got %d %s after %d redirects, want 400 %s", lose, r.code, r.body, redirects, want)
		}
		if r, _ := signInRound(f, j, "", 100); r.code != 200 {
			t.Errorf("once the browser keeps %s: got %d, want 200", lose, r.code)
		}
	}
}

// TestSkewedClocks pins that hand-offs which are always too old are explained.
func TestSkewedClocks(t *testing.T) {
	f := newFixture(t)
	j := jarOf{}
	j.take(f.do(get("/a", browser)), "")
	for range handoff.MaxRounds {
		pre, _ := handoff.ParsePreCookie(j[loginCookie])
		r := f.do(get(f.ticket(handoff.Ticket{Session: "alice", Host: appHost, Return: "/a", Bind: pre.Bind(), Expiry: epoch}), browser, "cookie", j.String()))
		if r.code != 303 {
			t.Fatalf("got %d %s", r.code, r.body)
		}
		j.take(r, "")
	}
	if r := f.do(get("/a", browser, "cookie", j.String())); r.code != 400 || r.problem(t) != ProblemLoop {
		t.Errorf("got %d %s, want the loop explained", r.code, r.body)
	}
}

// TestManyTabs pins that tabs which start at once all arrive: each got a pre-cookie of its own, and the browser kept one.
func TestManyTabs(t *testing.T) {
	f := newFixture(t)
	j := jarOf{}
	var asked []handoff.Request
	for range 10 {
		r := f.do(get("/a", browser)) // none has seen the others' cookies
		j.take(r, "")
		asked = append(asked, f.asked(r))
	}
	for _, req := range asked {
		r := f.do(get(f.ticket(handoff.Ticket{Session: "alice", Host: appHost, Return: req.Return, Bind: req.Bind}), browser, "cookie", j.String()))
		j.take(r, "")
		if r, _ := signInRound(f, j, "", 10); r.code != 200 {
			t.Fatalf("got %d %s, want 200", r.code, r.body)
		}
	}
}

// TestSameSite pins the attributes of the session cookie.
func TestSameSite(t *testing.T) {
	for _, tt := range []struct {
		host, want string
		change     func(*Config)
	}{
		{appHost, "; Path=/; HttpOnly; Secure; SameSite=Lax", func(*Config) {}},
		{appHost, "; Path=/; HttpOnly; Secure; SameSite=Strict", func(c *Config) { c.SameSite = 3 }},
		{"plain.example.com", "; Path=/; HttpOnly; SameSite=Lax", func(*Config) {}},
	} {
		f := newFixture(t, tt.change)
		https, _ := f.config.Hosts.Lookup(tt.host)
		names := handoff.Names(https)
		pre := handoff.NewPreCookie(epoch)
		r := f.do(get(f.ticket(handoff.Ticket{Session: "alice", Host: tt.host, Bind: pre.Bind()}), browser, "cookie", names.Login+"="+pre.String()).on(tt.host))
		if got := r.headers["set-cookie"]; len(got) != 2 || got[0] != names.Session+"="+r.set(names.Session)+tt.want {
			t.Errorf("%s: got %q, want the session cookie to end in %q", tt.host, got, tt.want)
		}
		// A redirect that began on another site would come without a Strict cookie, again and again.
		if strict := strings.HasSuffix(tt.want, "Strict"); strict != (r.code == 200 && r.set("refresh") == "" && len(r.headers["refresh"]) == 1) {
			t.Errorf("%s: got %d, refresh %q", tt.host, r.code, r.headers["refresh"])
		}
	}
}
