package upstream

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// outside is a client of Gatehouse that is told of sign-outs, on a listener of its own.
type outside struct {
	server *httptest.Server

	mu     sync.Mutex
	tokens []map[string]any // claims of the logout tokens that it was sent
}

const (
	outsideID     = "wiki-of-others"
	outsideSecret = "another secret of this test"
	outsideHome   = "http://client.fourth.test/cb"
	outsideBye    = "http://client.fourth.test/bye"
)

func newOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{}
	o.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(r.FormValue("logout_token"), ".")
		var claims map[string]any
		if len(parts) == 3 {
			if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
				_ = json.Unmarshal(b, &claims) // the test looks at what there is
			}
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.tokens = append(o.tokens, claims)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(o.server.Close)
	return o
}

func (o *outside) told(sid string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.tokens {
		if c["sid"] == sid {
			return true
		}
	}
	return false
}

func (o *outside) config() string {
	return fmt.Sprintf(`oauth2: {skipApprovalScreen: true}
sessions: {ssoSharedWithDefault: all}
staticClients:
- {id: %s, name: Others, secret: %s, redirectURIs: [%q], postLogoutRedirectURIs: [%q], backchannelLogoutURI: %q}
`, outsideID, outsideSecret, outsideHome, outsideBye, o.server.URL+"/out")
}

// idToken signs the browser on at the outside client, and returns the ID Token and its claims.
func (s *stack) idToken(t *testing.T, p *person) (raw string, claims map[string]any) {
	t.Helper()
	q := url.Values{"client_id": {outsideID}, "redirect_uri": {outsideHome}, "response_type": {"code"}, "scope": {"openid email"}}
	to, err := url.Parse(p.step(t, s.issuer+"/auth?"+q.Encode()).header.Get("Location"))
	if err != nil || to.Query().Get("code") == "" {
		t.Fatalf("signing on at the outside client leads to %s, %v", to, err)
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {outsideHome}, "client_id": {outsideID}, "client_secret": {outsideSecret}}
	var got struct {
		IDToken string `json:"id_token"`
	}
	answer := p.send(t, s.issuer+"/token", form)
	if err := json.Unmarshal([]byte(answer.body), &got); err != nil || got.IDToken == "" {
		t.Fatalf("token: %d %s", answer.status, answer.body)
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(got.IDToken, ".")[1])
	if err != nil || json.Unmarshal(b, &claims) != nil {
		t.Fatalf("ID Token: %v", err)
	}
	return got.IDToken, claims
}

// leaveProvider signs the browser out at the identity provider itself, as its own pages do.
func (s *stack) leaveProvider(t *testing.T, p *person) page {
	t.Helper()
	return s.confirm(t, p, p.visit(t, s.op.Issuer+"/session/end"))
}

// confirm says yes to the provider's question, and follows nothing.
func (s *stack) confirm(t *testing.T, p *person, question page) page {
	t.Helper()
	xsrf := question.link(t, `name="xsrf" value="([^"]*)"`)
	form := url.Values{"xsrf": {xsrf[strings.LastIndexByte(xsrf, '/')+1:]}, "logout": {"yes"}}
	still := p.client
	still.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return p.do(t, &still, http.MethodPost, question.link(t, `action="([^"]*)"`), form, "Content-Type", "application/x-www-form-urlencoded")
}

// TestLogout signs out at, and by, a certified OpenID Provider.
func TestLogout(t *testing.T) {
	o := newOutside(t)
	s := serveWith(t, o.config())
	t.Run("who signs out at the provider is signed out here, and at our clients", func(t *testing.T) { outAtProvider(t, s, o) })
	t.Run("a client's sign-out leads over the provider back to the client", func(t *testing.T) { outByClient(t, s, o) })
	t.Run("a client's sign-out without a hint asks", func(t *testing.T) { outByClientAsks(t, s, o) })
	t.Run("the provider's tokens are for its connector", func(t *testing.T) { strangersToken(t, s) })
}

func outAtProvider(t *testing.T, s *stack, o *outside) {
	skip := s.logged(t)
	one, two := s.newPerson(t), s.newPerson(t)
	for _, p := range []*person{one, two} {
		p.visit(t, p.back(t, "company", s.app+"/headers").String())
		if got := p.seen(t, s.app)["kubeflow-userid"]; got != "alice@company.test" {
			t.Fatalf("kubeflow-userid: got %q", got)
		}
	}
	_, claims := s.idToken(t, one)
	_, other := s.idToken(t, two)
	sid, _ := claims["sid"].(string)
	otherSID, _ := other["sid"].(string)

	begun := time.Now()
	s.leaveProvider(t, one)
	peers.Eventually(t, time.Minute, "the session of the browser that signed out at the provider ends", func() bool {
		return strings.HasPrefix(one.visit(t, s.app+"/headers").url.String(), s.issuer+"/auth/local/login?req=")
	})
	t.Logf("refused %s after the sign-out at the provider began", time.Since(begun).Round(time.Millisecond))
	if got := two.seen(t, s.app)["kubeflow-userid"]; got != "alice@company.test" {
		t.Errorf("the same user in another browser is signed out too: got %q", got)
	}
	s.audited(t, skip, "the provider's logout", func(e event) bool { return e.Msg == "upstream logout" && e.Connector == "company" })
	s.audited(t, skip, "the sign-out", func(e event) bool { return e.Msg == "sign-out" && e.UserID == "alice" })
	peers.Eventually(t, time.Minute, "our client is told", func() bool { return o.told(sid) })
	if o.told(otherSID) {
		t.Error("our client is told of the session that goes on")
	}
	if log := s.op.Log(); strings.Contains(log, "expected 200 OK") {
		t.Errorf("the provider is not content with our answer:\n%s", log)
	}
}

func outByClient(t *testing.T, s *stack, o *outside) {
	p := s.newPerson(t)
	p.visit(t, p.back(t, "company", s.app+"/headers").String())
	hint, claims := s.idToken(t, p)
	sid, _ := claims["sid"].(string)
	out := p.step(t, s.issuer+"/logout?"+url.Values{"id_token_hint": {hint}, "post_logout_redirect_uri": {outsideBye}, "state": {"their state"}}.Encode())
	away := out.header.Get("Location")
	if !strings.HasPrefix(away, s.op.Issuer+"/session/end?") {
		t.Fatalf("got status %d to %q, want the provider's end_session_endpoint", out.status, away)
	}
	// Whatever becomes of the browser at the provider, here it is over.
	if pg := p.visit(t, s.app+"/headers"); !strings.HasPrefix(pg.url.String(), s.issuer+"/auth/local/login?req=") {
		t.Errorf("before the provider's answer the app is at %s, want the sign-in page", pg.url)
	}
	peers.Eventually(t, time.Minute, "the client is told", func() bool { return o.told(sid) })

	back := s.confirm(t, p, p.visit(t, away))
	to := back.header.Get("Location")
	if !strings.HasPrefix(to, s.issuer+"/logout/callback?state=") {
		t.Fatalf("the provider leads to %q, status %d: %s", to, back.status, back.body)
	}
	if got, want := p.step(t, to).header.Get("Location"), outsideBye+"?state=their+state"; got != want {
		t.Errorf("in the end at %q, want %q", got, want)
	}
	if log := s.op.Log(); strings.Contains(log, "expected 200 OK") { // it tells us of the end that we began
		t.Errorf("the provider is not content with our answer:\n%s", log)
	}
}

func outByClientAsks(t *testing.T, s *stack, _ *outside) {
	p := s.newPerson(t)
	p.visit(t, p.back(t, "company", s.app+"/headers").String())
	question := p.visit(t, s.issuer+"/logout?"+url.Values{"client_id": {outsideID}, "post_logout_redirect_uri": {outsideBye}}.Encode())
	question.tells(t, http.StatusOK, "Sign out?", "alice@company.test")
	if got := p.seen(t, s.app)["kubeflow-userid"]; got != "alice@company.test" {
		t.Errorf("the question alone signs out: %q", got)
	}
	out := p.send(t, question.link(t, `<form class="actions" method="post" action="([^"]*)"`), nil)
	next, ok := strings.CutPrefix(out.header.Get("Refresh"), "0; url=")
	if out.tells(t, http.StatusOK, "You are signed out"); !ok {
		t.Fatalf("Refresh: got %q, want the provider's end_session_endpoint", out.header.Get("Refresh"))
	}
	to := s.confirm(t, p, p.visit(t, next)).header.Get("Location")
	if got := p.step(t, to).header.Get("Location"); got != outsideBye {
		t.Errorf("in the end at %q, want %q", got, outsideBye)
	}
}

// strangersToken sends what is no logout token of the provider.
func strangersToken(t *testing.T, s *stack) {
	before := s.stored(t)
	for _, connector := range []string{"company", "dead", "local", "nobody"} {
		for _, token := range []string{"", "x.y.z", strings.Repeat("A", 20<<10)} {
			res, err := http.PostForm(strings.Replace(s.backchannel, "company", connector, 1), url.Values{"logout_token": {token}}) //nolint:noctx // it is answered at once
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusNotFound {
				t.Errorf("%s: got status %d: %s", connector, res.StatusCode, body)
			}
		}
	}
	if got := s.stored(t); got != before {
		t.Errorf("what anybody sent is stored:\n%s\nbefore\n%s", got, before)
	}
}
