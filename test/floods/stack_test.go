// Package floods sends more than the built Gatehouse is made for, and looks at what it does to the rest: anonymous
// requests by the ten thousand must leave nothing behind, and a storm of sign-ins must leave the checks alone.
//
// The tests run one after the other: each wants the machine to itself.
package floods

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatehouse/test/peers"
)

// The names are reserved ones (RFC 6761): only the dialer of these tests knows where they are.
const (
	issuerHost   = "auth.example.test"
	appHost      = "app.example.test"
	issuer       = "http://" + issuerHost + "/dex"
	password     = "open sesame 7"
	clientSecret = "a-secret-of-the-outside-client"
	users        = 200 // user-0@example.com and so on
)

// within is how long anything may take on a busy machine.
const within = 60 * time.Second

func userName(i int) string { return fmt.Sprintf("user-%d@example.com", i%users) }

// A stack is Gatehouse with the ports that Envoy and browsers have.
type stack struct {
	gatehouse *peers.GatehouseServer
	web, grpc string
}

// start serves SQLite and many users, whose hashes have the lowest cost that the configuration takes.
func start(t testing.TB) *stack {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{web: peers.FreeAddr(t), grpc: peers.FreeAddr(t)}
	var b strings.Builder
	fmt.Fprintf(&b, `issuer: %s
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: %q, clientRemoteIP: {header: X-Real-IP, trustedProxies: [127.0.0.1/32]}}
telemetry: {http: %q}
oauth2: {skipApprovalScreen: true, passwordConnector: local, grantTypes: [authorization_code, refresh_token, password]}
enablePasswordDB: true
staticClients:
- {id: outside, name: Outside, secret: %s, redirectURIs: ["http://client.example.test/cb"]}
gateway:
  grpc: %q
  admin: %q
  hosts: [%s, %s, "*.apps.example.test"]
  rules:
  - {name: public, paths: ["/public/**"], allow: anyone}
  - {name: admin, paths: ["/admin/**"], groups: [admins]}
  default: signed-in
staticPasswords:
`, issuer, s.web, peers.FreeAddr(t), clientSecret, s.grpc, peers.FreeAddr(t), issuerHost, appHost)
	for i := range users {
		fmt.Fprintf(&b, "- {email: %s, username: user-%d, userID: id-%d, groups: [team-a], hash: %q}\n", userName(i), i, i, h)
	}
	s.gatehouse = peers.Gatehouse(t, b.String())
	return s
}

// A caller is who sends requests: an Envoy and a browser in one.
type caller struct {
	s     *stack
	conn  *grpc.ClientConn
	check authv3.AuthorizationClient
	http  *http.Client
}

// caller opens no connection before it is used.
func (s *stack) caller(t testing.TB) *caller {
	t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{
		MaxIdleConnsPerHost: 512,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.web)
		},
	}
	return &caller{s: s, conn: conn, check: authv3.NewAuthorizationClient(conn), http: &http.Client{
		Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// close ends all connections.
func (c *caller) close() {
	_ = c.conn.Close()
	c.http.CloseIdleConnections()
}

// checkRequest is what Envoy makes of a request.
func checkRequest(method, host, target string, headers map[string]string) *authv3.CheckRequest {
	h := map[string]string{":authority": host, ":path": target, ":method": method, ":scheme": "http"}
	maps.Copy(h, headers)
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{
			Id: "1234567890", Method: method, Headers: h, Path: target, Host: host, Scheme: "http", Protocol: "HTTP/2",
		},
	}}}
}

// navigation are the headers of a browser that goes to a page.
func navigation(cookies string) map[string]string {
	h := map[string]string{
		"accept": "text/html,application/xhtml+xml", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document",
		"user-agent": "Mozilla/5.0 (X11; Linux x86_64)", "x-request-id": "3f6d8a10-1111-2222-3333-444455556666",
	}
	if cookies != "" {
		h["cookie"] = cookies
	}
	return h
}

// denied is the answer of a check that sends the browser on.
type denied struct{ status, location, cookies string }

func (c *caller) deniedCheck(ctx context.Context, target, cookies string) (denied, error) {
	r, err := c.check.Check(ctx, checkRequest(http.MethodGet, appHost, target, navigation(cookies)))
	if err != nil {
		return denied{}, err
	}
	d := denied{status: r.GetDeniedResponse().GetStatus().GetCode().String()}
	var set []string
	for _, h := range r.GetDeniedResponse().GetHeaders() {
		switch strings.ToLower(h.GetHeader().GetKey()) {
		case "location":
			d.location = h.GetHeader().GetValue()
		case "set-cookie":
			if pair, _, _ := strings.Cut(h.GetHeader().GetValue(), ";"); !strings.HasSuffix(pair, "=") {
				set = append(set, pair)
			}
		}
	}
	d.cookies = strings.Join(set, "; ")
	if d.location == "" {
		return d, fmt.Errorf("check of %s: got %s without a location", target, d.status)
	}
	return d, nil
}

// A reply is an answer of the issuer.
type reply struct {
	status        int
	body, cookies string
	header        http.Header
}

// do sends a request to the issuer; form is nil for a GET. lines are headers, as "Name: value".
func (c *caller) do(ctx context.Context, target string, form url.Values, lines ...string) (reply, error) {
	method, body := http.MethodGet, io.Reader(http.NoBody)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return reply{}, err
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", "http://"+issuerHost)
	}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Header.Add(name, value)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	var set []string
	for _, k := range resp.Cookies() {
		set = append(set, k.Name+"="+k.Value)
	}
	return reply{status: resp.StatusCode, body: string(b), cookies: strings.Join(set, "; "), header: resp.Header}, err
}

// signInPage returns the address of a sign-in page, as a check of an anonymous navigation names it, with the app host's cookie.
func (c *caller) signInPage(ctx context.Context) (page, cookies string, err error) {
	d, err := c.deniedCheck(ctx, "/pipeline/", "")
	return d.location, d.cookies, err
}

// post shows the sign-in page and posts its form, as one browser does.
func (c *caller) post(ctx context.Context, page, user, pass string, lines ...string) (reply, error) {
	p, err := c.do(ctx, page, nil, lines...)
	if err != nil {
		return p, err
	}
	if p.status != http.StatusOK || !strings.Contains(p.body, `name="password"`) {
		return p, fmt.Errorf("sign-in page: got %d", p.status)
	}
	return c.do(ctx, page, url.Values{"login": {user}, "password": {pass}}, append(lines, "Cookie: "+p.cookies)...)
}

// signIn returns the app host's session cookie of a user.
func (c *caller) signIn(t testing.TB, user string) string {
	t.Helper()
	page, cookies, err := c.signInPage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.post(t.Context(), page, user, password)
	if err != nil {
		t.Fatal(err)
	}
	back, err := url.Parse(p.header.Get("Location"))
	if err != nil || back.Host != appHost {
		t.Fatalf("sign-in of %s: got %d to %q, want a redirect to the app", user, p.status, p.header.Get("Location"))
	}
	d, err := c.deniedCheck(t.Context(), back.RequestURI(), cookies)
	if err != nil {
		t.Fatal(err)
	}
	return d.cookies
}

// metrics returns the text of /metrics.
func (s *stack) metrics(t testing.TB) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.gatehouse.Telemetry+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s, %v", resp.Status, err)
	}
	return string(b)
}
