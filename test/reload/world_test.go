// Package reload changes the configuration of the built Gatehouse while it answers, and sees that every answer is of one
// configuration and that nobody is lost.
package reload

import (
	"context"
	"fmt"
	"html"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatehouse/test/peers"
)

const (
	host     = "app.example.test" // of the issuer and of the app
	password = "open sesame 7"
	limit    = time.Minute // for what takes a second on a machine with nothing else to do
)

// A world is Gatehouse, asked directly.
type world struct {
	gatehouse *peers.GatehouseServer
	web       string   // address of the issuer
	ports     []string // of all listeners: the issuer, telemetry, admin, checks
	checks    authv3.AuthorizationClient
	head      string // what is the same in every file
	gateway   string // likewise, of the gateway block
	hash      string // of password
}

// newWorld starts Gatehouse with the file that first returns.
func newWorld(t *testing.T, first func(w *world) string) *world {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), 10)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{web: peers.FreeAddr(t), hash: string(hash)}
	telemetry, admin, check := peers.FreeAddr(t), peers.FreeAddr(t), peers.FreeAddr(t)
	w.ports = []string{w.web, telemetry, admin, check}
	w.head = fmt.Sprintf(`issuer: http://%s/dex
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: %q}
telemetry: {http: %q}
enablePasswordDB: true
oauth2: {skipApprovalScreen: true, passwordConnector: local}
staticClients:
- {id: app, secret: a-secret-of-this-test, name: App, redirectURIs: [http://127.0.0.1/cb]}
`, host, w.web, telemetry)
	w.gateway = fmt.Sprintf("gateway:\n  grpc: %q\n  admin: %q\n  hosts: [%q]\n", check, admin, "http://"+host)
	w.gatehouse = peers.Gatehouse(t, first(w))
	conn, err := grpc.NewClient(check, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	w.checks = authv3.NewAuthorizationClient(conn)
	return w
}

// user is an entry of staticPasswords.
func (w *world) user(email, id, groups string) string {
	return fmt.Sprintf("- {email: %s, username: %s, userID: %s, groups: [%s], hash: %q}\n", email, id, id, groups, w.hash)
}

// write puts text in the place of the configuration file, as an editor does.
func (w *world) write(t *testing.T, text string) {
	t.Helper()
	fresh := w.gatehouse.Config + ".new"
	if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, w.gatehouse.Config); err != nil {
		t.Fatal(err)
	}
}

// metric returns the value of a metric without labels.
func (w *world) metric(t *testing.T, name string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.gatehouse.Telemetry+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("there is no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// takenUp writes text and waits until it is the configuration.
func (w *world) takenUp(t *testing.T, text string) {
	t.Helper()
	before := w.metric(t, "gatehouse_config_generation")
	w.write(t, text)
	peers.Eventually(t, limit, "the file is taken up", func() bool { return w.metric(t, "gatehouse_config_generation") > before })
}

// check asks whether a request of a script may pass, as Envoy does.
func (w *world) check(ctx context.Context, path, cookie string, header map[string]string) (*authv3.CheckResponse, error) {
	h := map[string]string{
		":authority": host, ":path": path, ":method": http.MethodGet, ":scheme": "http", "accept": "*/*",
		"sec-fetch-mode": "cors", "sec-fetch-dest": "empty", "sec-fetch-site": "same-origin", "x-user-a": "forged", "x-user-b": "forged",
	}
	if cookie != "" {
		h["cookie"] = cookie
	}
	maps.Copy(h, header)
	return w.checks.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: http.MethodGet, Headers: h, Path: path, Host: host, Scheme: "http"},
	}}})
}

// A person is a browser: its requests go to the issuer, or through a check to an app that only says who it sees.
type person struct {
	w      *world
	client http.Client
	direct http.Transport
}

func (w *world) newPerson(t *testing.T) *person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{w: w}
	p.direct.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, host+":") {
			addr = w.web
		}
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	t.Cleanup(p.direct.CloseIdleConnections)
	p.client = http.Client{Jar: jar, Transport: p, Timeout: 30 * time.Second}
	return p
}

// RoundTrip implements http.RoundTripper.
func (p *person) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != host || strings.HasPrefix(r.URL.Path, "/dex") {
		return p.direct.RoundTrip(r)
	}
	answer, err := p.w.check(r.Context(), r.URL.RequestURI(), r.Header.Get("Cookie"), map[string]string{
		"accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "none",
	})
	if err != nil {
		return nil, err
	}
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: http.NoBody}
	if no := answer.GetDeniedResponse(); no != nil {
		res.StatusCode = int(no.GetStatus().GetCode())
		for _, h := range no.GetHeaders() {
			res.Header.Add(h.GetHeader().GetKey(), value(h.GetHeader().GetValue(), h.GetHeader().GetRawValue()))
		}
		res.Body = io.NopCloser(strings.NewReader(no.GetBody()))
		return res, nil
	}
	var seen []string
	for _, h := range answer.GetOkResponse().GetHeaders() {
		if k := h.GetHeader().GetKey(); k != "cookie" {
			seen = append(seen, k+"="+value(h.GetHeader().GetValue(), h.GetHeader().GetRawValue()))
		}
	}
	res.Body = io.NopCloser(strings.NewReader("app " + strings.Join(seen, " ")))
	return res, nil
}

func value(text string, raw []byte) string {
	if text != "" {
		return text
	}
	return string(raw)
}

// A page is what a browser shows in the end.
type page struct {
	url    *url.URL
	status int
	body   string
}

func (p *person) do(t *testing.T, r *http.Request) page {
	t.Helper()
	res, err := p.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return page{res.Request.URL, res.StatusCode, string(body)}
}

func (p *person) visit(t *testing.T, address string) page {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p.do(t, r)
}

var action = regexp.MustCompile(`<form[^>]*action="([^"]*)"`)

// signIn posts the form of a sign-in page, with the password that all have.
func (p *person) signIn(t *testing.T, at page, user string) page {
	t.Helper()
	m := action.FindStringSubmatch(at.body)
	if m == nil {
		t.Fatalf("no form at %s: status %d: %s", at.url, at.status, at.body)
	}
	to, err := at.url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"login": {user}, "password": {password}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to.String(), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "http://"+host)
	return p.do(t, r)
}

// cookies is the header with which the browser comes to the app.
func (p *person) cookies(t *testing.T) string {
	t.Helper()
	var list []string
	for _, c := range p.client.Jar.Cookies(&url.URL{Scheme: "http", Host: host, Path: "/"}) {
		list = append(list, c.Name+"="+c.Value)
	}
	if len(list) == 0 {
		t.Fatal("the browser has no cookies")
	}
	return strings.Join(list, "; ")
}

// grant asks for tokens by password, and returns the status.
func (w *world) grant(t *testing.T, user, password string) int {
	t.Helper()
	form := url.Values{"grant_type": {"password"}, "scope": {"openid"}, "username": {user}, "password": {password}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+w.web+"/dex/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("app", "a-secret-of-this-test")
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// kubernetes puts text in the place of the configuration as a volume of a ConfigMap does: gatehouse.yaml -> ..data/gatehouse.yaml
// stays, and ..data is turned to a new folder.
func (w *world) kubernetes(t *testing.T, version int, text string) {
	t.Helper()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(w.gatehouse.Folder, name) }
	folder, data := fmt.Sprintf("..version_%d", version), in("..data")
	before, _ := os.Readlink(data)
	try(os.Mkdir(in(folder), 0o700))
	try(os.WriteFile(filepath.Join(in(folder), "gatehouse.yaml"), []byte(text), 0o600))
	try(os.Symlink(folder, in("..data_tmp")))
	try(os.Rename(in("..data_tmp"), data))
	if _, err := os.Readlink(w.gatehouse.Config); err != nil { // the first time
		try(os.Symlink("..data/gatehouse.yaml", in("link")))
		try(os.Rename(in("link"), w.gatehouse.Config))
	}
	if before != "" {
		try(os.RemoveAll(in(before)))
	}
}
