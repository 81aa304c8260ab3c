package peers

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"github.com/chromedp/chromedp"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"gatehouse/internal/demo"
)

// checker allows what has the header let-me-in, and tells the app the path and address that it saw.
type checker struct {
	auth.UnimplementedAuthorizationServer
}

func (checker) Check(_ context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	h := r.GetAttributes().GetRequest().GetHttp()
	if h.GetHeaders()["let-me-in"] == "" {
		return &auth.CheckResponse{Status: &status.Status{Code: 7}}, nil
	}
	return &auth.CheckResponse{HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
		Headers: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-checked", Value: h.GetPath()}}},
	}}}, nil
}

func serveChecker(t *testing.T) string {
	t.Helper()
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	auth.RegisterAuthorizationServer(s, checker{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func serveApp(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(demo.SampleApp())
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// raw sends one request line and header lines as they are, and returns the status and the decoded body.
func raw(t *testing.T, s *EnvoyServer, target string, header ...string) (code int, body map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://app.example.test/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = "//app.example.test" + target // sent as it is
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header[name] = append(req.Header[name], value)
	}
	res, err := s.Transport(t).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(text, &body) // Envoy's own refusals are no JSON
	return res.StatusCode, body
}

func TestEnvoyChecksEveryRouteAndKeepsHostsApart(t *testing.T) {
	app, check := serveApp(t), serveChecker(t)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"from":"issuer"}`) }))
	t.Cleanup(other.Close)
	issuer := other.Listener.Addr().String()
	edge := demo.Edge{Check: check, Hosts: []demo.VirtualHost{
		{Name: "app", Domains: []string{"app.example.test", "app.example.test:*"}, Routes: []demo.Route{
			{Prefix: "/dex", Upstream: issuer},
			{Prefix: "/open", Upstream: app, Unchecked: true},
			{Prefix: "/", Upstream: app},
		}},
	}}
	hardened := Envoy(t, edge)
	edge.Relaxed = true
	relaxed := Envoy(t, edge)
	const in = "Let-Me-In: yes"
	tests := []struct {
		name   string
		server *EnvoyServer
		target string
		header []string
		status int
		key    string // of the JSON answer
		want   string
	}{
		{name: "an unchecked answer never reaches the app", server: hardened, target: "/headers", status: 403},
		{name: "the issuer is checked too", server: hardened, target: "/dex/auth", status: 403},
		{name: "a checked request reaches the app", server: hardened, target: "/nothing?a=1", header: []string{in}, status: 404, key: "path", want: "/nothing?a=1"},
		{name: "a route may be unchecked", server: hardened, target: "/open", status: 404, key: "path", want: "/open"},
		{name: "a prefix ends at a segment", server: hardened, target: "/dexter", header: []string{in}, status: 404, key: "path", want: "/dexter"},
		{name: "the prefix itself is the issuer's", server: hardened, target: "/dex?x=/y", header: []string{in}, status: 200, key: "from", want: "issuer"},
		{name: "below the prefix is the issuer's", server: hardened, target: "/dex/keys", header: []string{in}, status: 200, key: "from", want: "issuer"},
		{name: "dot segments are resolved", server: hardened, target: "/a/../b", header: []string{in}, status: 404, key: "path", want: "/b"},
		{name: "slashes are merged", server: hardened, target: "//b", header: []string{in}, status: 404, key: "path", want: "/b"},
		{name: "an escaped slash is refused", server: hardened, target: "/a%2fb", header: []string{in}, status: 400},
		{name: "an underscore in a name is refused", server: hardened, target: "/", header: []string{in, "Kubeflow_userid: x"}, status: 400},
		{name: "a sent client address is overwritten", server: hardened, target: "/headers", header: []string{in, "X-Real-Ip: 192.0.2.1"}, status: 200, key: "x-real-ip", want: "127.0.0.1"},
		{name: "a sent header of Envoy's own is removed", server: hardened, target: "/headers", header: []string{in, "X-Envoy-Original-Path: /public", "X-Envoy-Retry-On: 5xx", "X-Envoy-Internal: true"}, status: 200, key: "x-envoy-original-path"},
		{name: "nobody counts as internal", server: hardened, target: "/headers", header: []string{in}, status: 200, key: "x-envoy-internal"},
		{name: "the relaxed manager lets dot segments through", server: relaxed, target: "/a/../b", header: []string{in}, status: 404, key: "path", want: "/a/../b"},
		{name: "the relaxed manager lets escaped slashes through", server: relaxed, target: "/a%2fb", header: []string{in}, status: 404, key: "path", want: "/a%2fb"},
		{name: "the relaxed manager lets underscores through", server: relaxed, target: "/headers", header: []string{in, "Kubeflow_userid: x"}, status: 200, key: "kubeflow_userid", want: "x"},
		{name: "the relaxed manager checks too", server: relaxed, target: "/headers", status: 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, body := raw(t, tt.server, tt.target, tt.header...)
			if code != tt.status {
				t.Errorf("got status %d, want %d", code, tt.status)
			}
			if got, _ := body[tt.key].(string); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.key, got, tt.want)
			}
		})
	}
}

func TestEnvoyAnswers503WithoutTheCheck(t *testing.T) {
	s := Envoy(t, demo.Edge{Check: FreeAddr(t), Hosts: []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: serveApp(t)}}}}})
	if code, _ := raw(t, s, "/public/headers"); code != http.StatusServiceUnavailable {
		t.Errorf("got status %d, want 503", code)
	}
}

func TestATakenPortIsTold(t *testing.T) {
	taken := serveApp(t)
	binary, err := demo.FindEnvoy(t.Context(), "", Root(t))
	if err != nil {
		t.Fatal(err)
	}
	// Envoy sets SO_REUSEPORT, which an ordinary listener does not, so the bind fails.
	_, err = startEnvoy(t, binary, demo.Edge{Listen: taken, Hosts: []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: taken}}}}}, nil)
	if !portTaken(err) {
		t.Errorf("got %v, want an error that says that the address is in use", err)
	}
}

func TestFreeAddrIsGivenOutOnce(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		addr := FreeAddr(t)
		if seen[addr] {
			t.Fatalf("%s was given out twice", addr)
		}
		if reserve(addr) {
			t.Fatalf("%s could be reserved again", addr)
		}
		seen[addr] = true
	}
}

// A relying party of the OpenID provider, just enough to do the code flow of OpenID Connect Core 1.0 section 3.1.
type relyingParty struct {
	op       *OIDCServer
	callback string
}

const (
	clientID     = "gatehouse"
	clientSecret = "only-for-tests"
)

// visit sends a new browser through a sign-in and returns the query with which it comes back.
func (rp relyingParty) visit(t *testing.T, browser *http.Client) url.Values {
	t.Helper()
	q := url.Values{
		"client_id": {clientID}, "redirect_uri": {rp.callback}, "response_type": {"code"}, "scope": {"openid email profile groups offline_access"},
		"state": {"some-state"}, "nonce": {"some-nonce"}, "prompt": {"consent"},
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rp.op.Issuer+"/auth?"+q.Encode(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := browser.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	loc, err := res.Location()
	if err != nil || !strings.HasPrefix(loc.String(), rp.callback) {
		text, _ := io.ReadAll(res.Body)
		t.Fatalf("ended at %s with status %d, want a redirect to %s: %s", res.Request.URL, res.StatusCode, rp.callback, text)
	}
	return loc.Query()
}

// token asks the token endpoint; status is 200 with an ID Token or the endpoint's error.
func (rp relyingParty) token(t *testing.T, form url.Values) (code int, answer map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, rp.op.Issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(clientID, clientSecret)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return fetch(t, req)
}

func fetch(t *testing.T, req *http.Request) (code int, answer map[string]any) {
	t.Helper()
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", req.URL, err)
	}
	return res.StatusCode, answer
}

// claims verifies an ID Token with the provider's published keys.
func (rp relyingParty) claims(t *testing.T, idToken string) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rp.op.Issuer+"/jwks", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	_, set := fetch(t, req)
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	tok, err := jwt.ParseSigned(idToken, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := tok.Claims(keys, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func newBrowser(t *testing.T, callback string) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, CheckRedirect: func(req *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(req.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}

func TestOIDCProviderSignsInRefusesAndForgets(t *testing.T) {
	rp := relyingParty{callback: "http://127.0.0.1:1/callback"}
	rp.op = OIDCProvider(t, OIDCOptions{
		ClientID: clientID, ClientSecret: clientSecret, RedirectURIs: []string{rp.callback},
		Users: []User{{Sub: "alice", Email: "alice@up.example.test", Name: "Alice", Groups: []string{"staff", "ops"}}, {Sub: "bob", Email: "bob@up.example.test"}},
	})
	browser := newBrowser(t, rp.callback)

	back := rp.visit(t, browser)
	if back.Get("state") != "some-state" || back.Get("iss") != rp.op.Issuer {
		t.Errorf("came back with %v, want the state sent and iss %s", back, rp.op.Issuer)
	}
	code, answer := rp.token(t, url.Values{"grant_type": {"authorization_code"}, "code": {back.Get("code")}, "redirect_uri": {rp.callback}})
	if code != http.StatusOK {
		t.Fatalf("token: got status %d, want 200: %v", code, answer)
	}
	claims := rp.claims(t, text(answer["id_token"]))
	if got, want := claims["sub"], "alice"; got != want {
		t.Errorf("sub: got %v, want %v", got, want)
	}
	if got, want := claims["email"], "alice@up.example.test"; got != want {
		t.Errorf("email: got %v, want %v", got, want)
	}
	if got, want := claims["nonce"], "some-nonce"; got != want {
		t.Errorf("nonce: got %v, want %v", got, want)
	}
	if groups, _ := claims["groups"].([]any); len(groups) != 2 || groups[0] != "staff" || groups[1] != "ops" {
		t.Errorf("groups: got %v, want [staff ops]", claims["groups"])
	}

	// The same browser, although it is signed in there: the script decides anew.
	rp.op.SignInAs(t, "bob")
	back = rp.visit(t, browser)
	_, answer2 := rp.token(t, url.Values{"grant_type": {"authorization_code"}, "code": {back.Get("code")}, "redirect_uri": {rp.callback}})
	if got, want := rp.claims(t, text(answer2["id_token"]))["sub"], "bob"; got != want {
		t.Errorf("after SignInAs: sub: got %v, want %v", got, want)
	}
	rp.op.Refuse(t, "access_denied", "not today")
	back = rp.visit(t, browser)
	if got, want := back.Get("error")+": "+back.Get("error_description"), "access_denied: not today"; got != want || back.Get("code") != "" {
		t.Errorf("refused: got %q (code %q), want %q and no code", got, back.Get("code"), want)
	}

	// A refresh sees changed users; for one who is gone it fails.
	refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {text(answer["refresh_token"])}}
	rp.op.SetUsers(t, User{Sub: "alice", Email: "alice@new.example.test"})
	code, answer = rp.token(t, refresh)
	if code != http.StatusOK || rp.claims(t, text(answer["id_token"]))["email"] != "alice@new.example.test" {
		t.Errorf("refresh: got status %d and %v, want 200 and the new e-mail", code, answer)
	}
	if rotated := text(answer["refresh_token"]); rotated != "" {
		refresh.Set("refresh_token", rotated)
	}
	rp.op.SetUsers(t)
	if code, answer = rp.token(t, refresh); code != http.StatusBadRequest || answer["error"] != "invalid_grant" {
		t.Errorf("refresh of a user who is gone: got status %d and %v, want 400 invalid_grant", code, answer)
	}
}

func text(v any) string { s, _ := v.(string); return s }

func TestChromiumResolvesOnlyTheGivenNames(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "host "+r.Host) }))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tab := Chromium(t, map[string]string{"app.example.test": "127.0.0.1", "auth.example.net": "127.0.0.1"})
	for _, name := range []string{"app.example.test", "auth.example.net", "127.0.0.1", "localhost"} {
		var body string
		if err := chromedp.Run(tab, chromedp.Navigate("http://"+name+":"+port+"/"), chromedp.Text("body", &body)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := "host " + name + ":" + port; body != want {
			t.Errorf("got page %q, want %q", body, want)
		}
	}
	if err := chromedp.Run(tab, chromedp.Navigate("http://www.example.com:"+port+"/")); err == nil || !strings.Contains(err.Error(), "ERR_NAME_NOT_RESOLVED") {
		t.Errorf("an unlisted name: got error %v, want ERR_NAME_NOT_RESOLVED", err)
	}
}

func TestEventuallyStopsAtTheLimit(t *testing.T) {
	calls := 0
	if within(t, 30*time.Millisecond, func() bool { calls++; return false }) {
		t.Error("a condition that is never true was reported as met")
	}
	if calls < 2 {
		t.Errorf("asked %d times, want at least twice", calls)
	}
}
