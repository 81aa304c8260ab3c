package upstream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/test/peers"
)

// maxState is what identity providers are known to accept in the parameter state, in bytes.
const maxState = 2000

func TestUpstream(t *testing.T) {
	s := serve(t)
	for _, tt := range []struct {
		name string
		test func(t *testing.T, s *stack)
	}{
		{"a provider that is down at the start is told, and others work", downAtStart},
		{"nothing is stored before the provider has answered", nothingStored},
		{"a long way back does not make a long state", longReturn},
		{"identity and groups reach the app, the other site and the audit log", inAndOut},
		{"the form's sign-out leads to the provider too", outByForm},
		{"a refusal is told and audited, and the next try works", refusal},
		{"a state works in its own browser only", otherBrowser},
		{"a state that is not as it was is refused", tampered},
		{"a state that is too old begins anew", expired},
		{"an answer works once", replayed},
		{"a provider that is down halfway is told", downHalfway},
		{"a provider that is silent halfway is told", silentHalfway},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, s) })
	}
}

// TestSilentAtStart has a provider that takes the request for its metadata and never answers.
func TestSilentAtStart(t *testing.T) {
	peers.Binary(t) // building it would count
	web, begun := peers.FreeAddr(t), time.Now()
	issuer := "http://" + web + "/dex"
	gatehouse := peers.Gatehouse(t, fmt.Sprintf(`issuer: %s
storage: {type: memory}
web: {http: %q}
telemetry: {http: %q}
connectors:
- {type: oidc, id: mute, name: Mute, config: {issuer: %q, clientID: gatehouse, clientSecret: %s, redirectURI: %q}}
enablePasswordDB: true
`, issuer, web, peers.FreeAddr(t), serveSilence(t), clientSecret, issuer+"/callback"))
	if took, limit := time.Since(begun), 40*time.Second; took > limit {
		t.Errorf("Gatehouse was ready after %s, want at most %s", took, limit)
	}
	gatehouse.Logged(t, `"mute"`)
}

func downAtStart(t *testing.T, s *stack) {
	peers.Eventually(t, time.Minute, "a warning with the connector dead and its address "+s.dead, func() bool {
		for line := range strings.Lines(s.gatehouse.Log()) {
			var e struct{ Level string }
			if json.Unmarshal([]byte(line), &e) == nil && (e.Level == "ERROR" || e.Level == "WARN") && strings.Contains(line, `"dead"`) && strings.Contains(line, s.dead) {
				return true
			}
		}
		return false
	})
	p := s.newPerson(t)
	signIn := p.visit(t, s.app+"/headers")
	if strings.Contains(signIn.body, "The dead one") {
		t.Error("the sign-in page offers the provider that is down")
	}
	p.send(t, signIn.link(t, `<form method="post" action="([^"]*)"`), url.Values{"login": {staticUser}, "password": {password}})
	if got := p.seen(t, s.app)["kubeflow-userid"]; got != staticUser {
		t.Errorf("kubeflow-userid: got %q, want %q", got, staticUser)
	}
}

func nothingStored(t *testing.T, s *stack) {
	p := s.newPerson(t)
	before := s.stored(t)
	to := p.back(t, "company", s.app+"/headers")
	if got := s.stored(t); got != before {
		t.Errorf("before the provider's answer was delivered the database has\n%s, want as before the sign-in\n%s", got, before)
	}
	if n := len(to.Query().Get("state")); n == 0 || n >= maxState {
		t.Errorf("the state has %d bytes, want less than %d", n, maxState)
	}
	p.visit(t, to.String())
	if got := s.stored(t); got == before || !strings.Contains(got, "session") {
		t.Errorf("after the sign-in the database has\n%s, want a session", got)
	}
}

func longReturn(t *testing.T, s *stack) {
	for _, tt := range []struct {
		name string
		path string
		want string
	}{
		{"kept", "/headers?" + strings.Repeat("a", 600), "/headers?" + strings.Repeat("a", 600)},
		{"given up", "/headers?" + strings.Repeat("a", 3000), "/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := s.newPerson(t)
			to := p.back(t, "company", s.app+tt.path)
			if n := len(to.Query().Get("state")); n >= maxState {
				t.Errorf("the state has %d bytes, want less than %d", n, maxState)
			}
			if got := p.visit(t, to.String()).url.String(); got != s.app+tt.want {
				t.Errorf("ended at %s, want %s", got, s.app+tt.want)
			}
		})
	}
}

func inAndOut(t *testing.T, s *stack) {
	p, skip := s.newPerson(t), s.logged(t)
	landed := p.visit(t, p.back(t, "company", s.app+"/admin/x?a=1&b=%20").String())
	if got, want := landed.url.String(), s.app+"/admin/x?a=1&b=%20"; got != want || landed.status != http.StatusOK {
		t.Errorf("got status %d at %s, want 200 at %s", landed.status, got, want)
	}
	headers := p.seen(t, s.app)
	for name, want := range map[string]string{"kubeflow-userid": "alice@company.test", "kubeflow-groups": "staff,ops", "cookie": ""} {
		if got := headers[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	signedIn := s.audited(t, skip, "the sign-in", func(e event) bool { return e.Msg == "sign-in" && e.Result == "ok" && e.Connector == "company" })
	if signedIn.UserID != "alice" || signedIn.User != "alice@company.test" || signedIn.Client != "gateway app.other.test" || signedIn.RequestID == "" {
		t.Errorf("the sign-in is audited as %+v", signedIn)
	}
	allowed := s.audited(t, skip, "the decision", func(e event) bool {
		return e.Msg == "decision" && e.Decision == "allow" && e.User == "alice@company.test"
	})
	if allowed.Session == "" || allowed.Session != signedIn.Session {
		t.Errorf("one audit log calls one session %q at its sign-in and %q in decisions, want one name", signedIn.Session, allowed.Session)
	}

	p.forget()
	if got := p.seen(t, s.wiki)["kubeflow-userid"]; got != "alice@company.test" {
		t.Errorf("at the other app: kubeflow-userid: got %q, want alice@company.test", got)
	}
	if p.wasAt(s.op.Issuer) || !p.wasAt(s.issuer) {
		t.Errorf("signing on at the other app led over %q, want over the issuer and not over the identity provider", p.been)
	}

	cookies := s.stored(t)
	out := p.step(t, s.app+"/_gatehouse/sign-out", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
	s.leads(t, p, out.header.Get("Location"))
	if got := s.stored(t); got == cookies {
		t.Errorf("the sign-out has changed nothing in the database:\n%s", got)
	}
	for _, app := range []string{s.app, s.wiki} {
		if pg := p.visit(t, app+"/headers"); !strings.HasPrefix(pg.url.String(), s.issuer+"/auth/local/login?req=") {
			t.Errorf("after the sign-out %s leads to %s, want the sign-in page", app, pg.url)
		}
	}
	s.audited(t, skip, "the sign-out", func(e event) bool { return e.Msg == "sign-out" && e.UserID == "alice" && e.Session == signedIn.Session })
}

// leads checks that an address is the provider's end_session_endpoint (OpenID Connect RP-Initiated Logout 1.0), as the
// provider accepts it, and that the browser ends at the issuer's own page.
func (s *stack) leads(t *testing.T, p *person, address string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if !strings.HasPrefix(address, s.op.Issuer+"/session/end?") || q.Get("client_id") != "gatehouse" || q.Get("post_logout_redirect_uri") != s.issuer+"/logout/callback" {
		t.Fatalf("the sign-out leads to %q, want the end_session_endpoint of %s with client_id and the way back", address, s.op.Issuer)
	}
	question := p.visit(t, address)
	xsrf := question.link(t, `name="xsrf" value="([^"]*)"`)
	end := p.send(t, question.link(t, `action="([^"]*)"`), url.Values{"xsrf": {xsrf[strings.LastIndexByte(xsrf, '/')+1:]}, "logout": {"yes"}})
	if got := end.url.String(); !strings.HasPrefix(got, s.issuer+"/logout/callback") {
		t.Errorf("the provider's sign-out ends at %s, want the issuer", got)
	}
	end.tells(t, http.StatusOK, "You are signed out")
}

func outByForm(t *testing.T, s *stack) {
	p := s.newPerson(t)
	p.visit(t, p.back(t, "company", s.app+"/headers").String())
	question := p.visit(t, s.app+"/_gatehouse/sign-out")
	question.tells(t, http.StatusOK, "Sign out?", "alice@company.test")
	out := p.send(t, question.link(t, `<form class="actions" method="post" action="([^"]*)"`), nil)
	out.tells(t, http.StatusOK, "You are signed out")
	next, ok := strings.CutPrefix(out.header.Get("Refresh"), "0; url=")
	if !ok {
		t.Fatalf("Refresh: got %q, want the provider's end_session_endpoint", out.header.Get("Refresh"))
	}
	if link := out.link(t, `href="(http[^"]*/session/end[^"]*)"`); link != next {
		t.Errorf("the page's link leads to %s, want %s", link, next)
	}
	s.leads(t, p, next)

	// Somebody else at the same browser is somebody else.
	s.op.SignInAs(t, "bob")
	defer s.op.SignInAs(t, "alice")
	p.visit(t, p.back(t, "company", s.app+"/headers").String())
	headers := p.seen(t, s.app)
	if headers["kubeflow-userid"] != "bob@company.test" || headers["kubeflow-groups"] != "sales" {
		t.Errorf("got %q in %q, want bob@company.test in sales", headers["kubeflow-userid"], headers["kubeflow-groups"])
	}
	if pg := p.visit(t, s.app+"/admin/x"); pg.status != http.StatusForbidden {
		t.Errorf("/admin/x: got status %d, want 403", pg.status)
	}
}

func refusal(t *testing.T, s *stack) {
	p, skip, before := s.newPerson(t), s.logged(t), s.stored(t)
	s.op.Refuse(t, "access_denied", "not <b>today</b>")
	defer s.op.SignInAs(t, "alice")
	told := p.visit(t, p.back(t, "company", s.app+"/headers").String())
	told.tells(t, http.StatusBadGateway, "The identity provider did not sign you in", "not &lt;b&gt;today&lt;/b&gt;")
	if p.signedIn(t) {
		t.Error("a browser that was refused is signed in")
	}
	if got := s.stored(t); got != before {
		t.Errorf("after a refusal the database has\n%s, want as before\n%s", got, before)
	}
	s.audited(t, skip, "the refusal", func(e event) bool {
		return e.Msg == "sign-in" && e.Result == "upstream-refused" && e.Connector == "company" && e.RequestID != ""
	})
	s.op.SignInAs(t, "alice")
	p.visit(t, p.back(t, "company", s.app+"/headers").String())
	if got := p.seen(t, s.app)["kubeflow-userid"]; got != "alice@company.test" {
		t.Errorf("the next try: kubeflow-userid: got %q, want alice@company.test", got)
	}
}

func otherBrowser(t *testing.T, s *stack) {
	victim, attacker := s.newPerson(t), s.newPerson(t)
	stolen := attacker.back(t, "company", s.app+"/headers")
	for _, visitor := range []struct {
		name   string
		person *person
	}{
		{"one without cookies", victim},
		{"one with a sign-in of its own", s.newPerson(t)},
	} {
		if visitor.person != victim {
			visitor.person.chosen(t, "company", s.app+"/headers")
		}
		visitor.person.visit(t, stolen.String()).tells(t, http.StatusBadRequest, "This sign-in began in another browser")
		if visitor.person.signedIn(t) {
			t.Errorf("%s is signed in with the answer that another one was given", visitor.name)
		}
	}
	// What was refused is not used up.
	if got := attacker.visit(t, stolen.String()).url.String(); got != s.app+"/headers" {
		t.Errorf("in its own browser the answer leads to %s, want the app", got)
	}
}

func tampered(t *testing.T, s *stack) {
	p := s.newPerson(t)
	signIn := p.visit(t, s.app+"/headers")
	to := p.back(t, "company", s.app+"/headers")
	state := to.Query().Get("state")
	flipped := []byte(state)
	if flipped[len(flipped)/2]++; !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", rune(flipped[len(flipped)/2])) {
		flipped[len(flipped)/2] = 'A'
	}
	other, err := seal.NewRing([][]byte{seal.NewKey()}, purposeUpstream)
	if err != nil {
		t.Fatal(err)
	}
	opened := s.open(t, state)
	for _, tt := range []struct{ name, state string }{
		{"one character changed", string(flipped)},
		{"cut", state[:len(state)-4]},
		{"empty", ""},
		{"no state of ours", "gatehouse-state"},
		{"sealed for something else", signIn.url.Query().Get("req")},
		{"sealed by somebody else", other.Seal(purposeUpstream, "", opened)},
		{"40 kB", strings.Repeat("A", 40<<10)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := to.Query()
			q.Set("state", tt.state)
			p.visit(t, s.issuer+"/callback?"+q.Encode()).tells(t, http.StatusBadRequest, "This link has expired")
			if p.signedIn(t) {
				t.Error("the browser is signed in")
			}
		})
	}
}

// purposeUpstream is what Gatehouse seals the state for.
const purposeUpstream seal.Purpose = "upstream state"

func (s *stack) ring(t *testing.T) *seal.Ring {
	t.Helper()
	r, err := seal.NewRing([][]byte{s.key}, purposeUpstream)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// open opens a state with the operator's key.
func (s *stack) open(t *testing.T, state string) []byte {
	t.Helper()
	b, err := s.ring(t).Open(nil, purposeUpstream, "", state)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func expired(t *testing.T, s *stack) {
	for _, tt := range []struct {
		name  string
		left  time.Duration
		lands string
	}{
		{"a minute left", time.Minute, s.app + "/headers"},
		{"just over", -time.Millisecond, s.issuer + "/auth/local/login"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := s.newPerson(t)
			to := p.back(t, "company", s.app+"/headers")
			var state map[string]any
			if err := json.Unmarshal(s.open(t, to.Query().Get("state")), &state); err != nil {
				t.Fatal(err)
			}
			if _, ok := state["e"].(string); !ok {
				t.Fatalf("the state has no expiry: %v", state)
			}
			state["e"] = time.Now().Add(tt.left).UTC()
			aged, err := json.Marshal(state)
			if err != nil {
				t.Fatal(err)
			}
			q := to.Query()
			q.Set("state", s.ring(t).Seal(purposeUpstream, "", aged))
			landed := p.visit(t, s.issuer+"/callback?"+q.Encode())
			if got := landed.url; got.Scheme+"://"+got.Host+got.Path != tt.lands {
				t.Errorf("ended at %s, want %s", got, tt.lands)
			}
			if got, want := p.signedIn(t), tt.left > 0; got != want {
				t.Errorf("signed in: got %t, want %t", got, want)
			}
		})
	}
}

func replayed(t *testing.T, s *stack) {
	p := s.newPerson(t)
	to := p.back(t, "company", s.app+"/headers").String()
	p.visit(t, to)
	before := s.stored(t)
	p.visit(t, to).tells(t, http.StatusServiceUnavailable, "Signing in is not possible right now")
	if got := s.stored(t); got != before {
		t.Errorf("after the second use the database has\n%s, want as before\n%s", got, before)
	}
	if got := p.seen(t, s.app)["kubeflow-userid"]; got != "alice@company.test" {
		t.Errorf("kubeflow-userid: got %q, want alice@company.test still", got)
	}
}

func downHalfway(t *testing.T, s *stack) { halfway(t, s, "gone", 20*time.Second) }

// silentHalfway must end well before Envoy's 30 s, whose own answer says nothing.
func silentHalfway(t *testing.T, s *stack) { halfway(t, s, "silent", 25*time.Second) }

func halfway(t *testing.T, s *stack, connector string, limit time.Duration) {
	t.Helper()
	p, skip := s.newPerson(t), s.logged(t)
	to := p.back(t, connector, s.app+"/headers")
	begun := time.Now()
	p.visit(t, to.String()).tells(t, http.StatusServiceUnavailable, "Signing in is not possible right now", "Try again in a moment")
	if took := time.Since(begun); took > limit {
		t.Errorf("the answer took %s, want at most %s", took, limit)
	}
	if p.signedIn(t) {
		t.Error("the browser is signed in")
	}
	s.audited(t, skip, "the failure", func(e event) bool { return e.Msg == "sign-in" && e.Result == "unavailable" && e.Connector == connector })
	// The same browser gets in another way.
	signIn := p.visit(t, s.app+"/headers")
	p.send(t, signIn.link(t, `<form method="post" action="([^"]*)"`), url.Values{"login": {staticUser}, "password": {password}})
	if got := p.seen(t, s.app)["kubeflow-userid"]; got != staticUser {
		t.Errorf("kubeflow-userid: got %q, want %q", got, staticUser)
	}
}
