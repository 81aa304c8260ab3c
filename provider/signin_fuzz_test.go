package provider

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/config"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
	"gatehouse/test/whatwg"
	"gatehouse/web"
)

// fuzzConfig has a directory that compares passwords without bcrypt, and signs without RSA: both would take all the time.
const fuzzConfig = `
issuer: https://sso.example.com/dex
storage: {type: memory}
oauth2: {skipApprovalScreen: true}
sessions: {ssoSharedWithDefault: all}
signer: {type: local, config: {keysRotationPeriod: 8760h, algorithm: ES256}}
connectors:
- {type: mockPassword, id: pw, name: Directory, config: {username: alice, password: right-one}}
- {type: mockCallback, id: up, name: Upstream}
staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"], postLogoutRedirectURIs: ["https://web.example.com/bye"]}
gateway:
  hosts: [sso.example.com, app.example.com, "*.apps.example.com"]
  default: signed-in
`

// mark is in all that a client sends and must be escaped; hush in each wrong password.
const (
	mark = `"'><i id=q>`
	hush = "pW-secret-"
)

// A stall is an issuer that a fuzz target knocks at.
type stall struct {
	handler http.Handler
	ring    *seal.Ring
	hosts   *hosts.Set
	clk     *clock
	logs    *lockedBuffer // everything that was logged
	pre     handoff.PreCookie
	start   time.Time
}

func newStall(f *testing.F) *stall {
	f.Helper()
	cfg, _, err := config.Parse("gatehouse.yaml", []byte(fuzzConfig), config.Options{Connector: CheckConnector})
	if err != nil {
		f.Fatal(err)
	}
	key := bytes.Repeat([]byte{5}, seal.KeySize)
	ring, err := seal.NewRing([][]byte{key}, front.Purposes()...)
	if err != nil {
		f.Fatal(err)
	}
	pages, err := web.New(web.Options{})
	if err != nil {
		f.Fatal(err)
	}
	s := &stall{ring: ring, hosts: cfg.Gateway.HostSet, clk: &clock{}, logs: new(lockedBuffer), start: time.Now()}
	log := slog.New(slog.NewJSONHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p, err := New(f.Context(), Options{
		Config: cfg, Store: store.Memory(store.Options{Now: s.clk.now}), Ring: ring, CookieKey: key, Pages: pages, Registry: prometheus.NewRegistry(),
		Now: s.clk.now, Log: log, Audit: log,
	})
	if err != nil {
		f.Fatal(err)
	}
	s.handler, s.pre = p.Handler(), handoff.NewPreCookie(s.clk.now())
	return s
}

// request returns a sealed request of the gateway.
func (s *stall) request(host, back string, life time.Duration) string {
	return handoff.Request{Host: host, Return: back, Bind: s.pre.Bind(), Expiry: s.clk.now().Add(life)}.Seal(s.ring)
}

// A form is what is posted at the sign-in page.
type form struct {
	host, connector, query string
	header                 http.Header
	cookies                []string
	body                   []byte
	known                  bool // the query has a good request
}

func (s *stall) form(d *dice, body, text, origin string) form {
	x := form{host: "sso.example.com", connector: "pw", header: http.Header{}, body: []byte(body)}
	if d.roll(12) == 11 {
		x.host = d.of("SSO.example.com:443", "evil.com", "app.example.com", "sso.example.com.evil.com")
	}
	if d.roll(12) == 11 {
		x.connector = d.of("up", "local", "", "pw/../pw") + url.PathEscape(text)
	}
	req := s.request("app.example.com", "/page", handoff.RequestLifetime)
	switch d.roll(10) {
	case 6:
		x.query = "req=" + s.request("sso.example.com", "/page", handoff.RequestLifetime)
		x.known = true
	case 7:
		x.query = "req=" + d.of(s.request("evil.com", "/", time.Hour), s.request("app.example.com", "/", -1), req[1:], s.request("", "", time.Hour))
	case 8:
		x.query = url.Values{"req": {text}}.Encode()
	case 9:
		x.query = text
	default:
		x.query, x.known = "req="+req, true
	}
	x.header.Set("Content-Type", d.of("application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=utf-8", "APPLICATION/x-www-form-urlencoded",
		"multipart/form-data; boundary=b", "application/json", "text/plain", "", "application/x-www-form-urlencoded;", text))
	switch d.roll(10) {
	case 6, 7:
		x.header["Origin"] = []string{d.of("null", "https://evil.com", "https://sso.example.com.evil.com", "http://sso.example.com", "https://sso.example.com/", "https://SSO.example.com", "", origin)}
	case 8:
		x.header["Origin"] = []string{"https://sso.example.com", "https://sso.example.com"}
	case 9:
	default:
		x.header["Origin"] = []string{"https://sso.example.com"}
	}
	if d.roll(4) == 3 {
		x.header.Set("Sec-Fetch-Site", d.of("same-origin", "cross-site", "same-site", "none", origin))
	}
	switch d.roll(6) {
	case 4:
		x.cookies = []string{"__Host-gatehouse-issuer-login=" + text}
	case 5:
	default:
		x.cookies = []string{"__Host-gatehouse-issuer-login=" + s.pre.String()}
	}
	for _, h := range []string{"Accept-Language", "User-Agent", "X-Request-Id", "X-Forwarded-For"} {
		x.header.Set(h, mark+text)
	}
	s.credentials(d, &x, text)
	return x
}

// credentials fills in the form.
func (s *stall) credentials(d *dice, x *form, text string) {
	fields := url.Values{"login": {"alice"}, "password": {"right-one"}}
	switch d.roll(10) {
	case 4:
		fields.Set("password", hush+text)
	case 5:
		fields.Set("login", mark+text)
		fields.Set("password", hush+text)
	case 6:
		fields = url.Values{"login": {"alice", mark}, "password": {"", "right-one"}}
	case 7:
		fields = url.Values{"login": {" alice\x00"}, "password": {hush}}
	case 8:
		x.query += "&" + fields.Encode() // of the query, which is not the form
		return
	case 9:
		return
	}
	x.body = append([]byte(fields.Encode()+"&"), x.body...)
	if d.roll(12) == 11 {
		x.body = append(x.body, bytes.Repeat([]byte("&a=b"), 20_000)...)
	}
}

// maxForm is what is read of a form, in bytes.
const maxForm = 64 << 10

// right reports whether a form proves alice, as DESIGN.md says it: by the fields of the body alone, from a page of the issuer or from a script
// that has fetched the page.
func (s *stall) right(x *form) bool {
	kind, _, err := mime.ParseMediaType(x.header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" || len(x.body) > maxForm || !x.known || x.connector != "pw" {
		return false
	}
	if host, ok := hosts.Canonical(x.host); !ok || host != "sso.example.com" {
		return false
	}
	if fields, err := url.ParseQuery(string(x.body)); err != nil || strings.TrimSpace(fields.Get("login")) != "alice" || fields.Get("password") != "right-one" {
		return false
	}
	if u, err := url.ParseQuery(x.query); err != nil || len(u) == 0 {
		return false
	}
	if origins := x.header["Origin"]; len(origins) > 0 {
		return len(origins) == 1 && origins[0] == "https://sso.example.com"
	}
	site := x.header.Get("Sec-Fetch-Site")
	return (site == "" || site == "same-origin") && slices.Contains(x.cookies, "__Host-gatehouse-issuer-login="+s.pre.String())
}

// A meter counts what is read of a body.
type meter struct {
	io.Reader
	n int
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.n += n
	return n, err
}

// FuzzSignInForm posts forms at the sign-in page. It holds that a session comes of the right credentials in a form of the issuer's own
// page, and of nothing else; that nothing is a fault of the server; that no more of a body is read than is allowed; and that neither what
// was typed stands on a page as it is, nor a password anywhere.
func FuzzSignInForm(f *testing.F) {
	s := newStall(f)
	for i := range 12 {
		for _, c := range [][]byte{
			{},
			{byte(i)},
			{0, byte(i)},
			{0, 0, byte(i)},
			{0, 0, 7, byte(i)},
			{0, 0, 0, byte(i)},
			{0, 0, 0, 0, byte(i), byte(i)},
			{0, 0, 0, 0, 6, byte(i)},
			{0, 0, 0, 0, 9, 3, byte(i)},
			{0, 0, 0, 0, 9, 0, byte(i)},
			{0, 0, 0, 0, 0, 0, 0, byte(i)},
			{0, 0, 0, 0, 0, 0, 0, byte(i), 11},
			{11, byte(i)},
			{0, 11, byte(i)},
		} {
			f.Add(c, "remember_me=on", "x", "https://sso.example.com:443")
		}
	}
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9}, "login=alice&password=right-one", "</script><script>alert(1)</script>", "")
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9}, "login=alice;password=right-one&%zz", "\r\nSet-Cookie: a=b", "")
	f.Fuzz(func(t *testing.T, choices []byte, body, text, origin string) {
		s.clk.add(16 * time.Minute) // failures are forgotten
		x := s.form(&dice{choices}, body, text, origin)
		m := &meter{Reader: bytes.NewReader(x.body)}
		r := &http.Request{
			Method: http.MethodPost, URL: &url.URL{Path: "/dex/auth/" + x.connector + "/login", RawQuery: x.query}, Host: x.host, Header: x.header,
			Body: io.NopCloser(m), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: "192.0.2.7:1", ContentLength: int64(len(x.body)),
		}
		if len(x.cookies) > 0 {
			r.Header["Cookie"] = x.cookies
		}
		s.logs.Reset()
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		s.checkAnswer(t, w)
		if m.n > maxForm+4<<10 {
			t.Fatalf("%d bytes of the body were read", m.n)
		}
		signedIn := s.session(w)
		if want := s.right(&x); signedIn != want {
			t.Fatalf("%s?%s %v %q: got %d %v, want a session: %v; %s", r.URL.Path, x.query, x.header, x.body[:min(len(x.body), 300)], w.Code, w.Header(), want, s.logs)
		}
	})
}

// session reports whether an answer gives the browser a session: by a cookie of the issuer or of the gateway, or by a hand-off.
func (s *stall) session(w *httptest.ResponseRecorder) bool {
	_, query, _ := strings.Cut(w.Header().Get("Location"), "/_gatehouse/session?")
	return strings.HasPrefix(query, "t=") || slices.ContainsFunc(w.Result().Cookies(), func(c *http.Cookie) bool {
		return c.Value != "" && c.MaxAge >= 0 && !strings.HasSuffix(c.Name, "-login")
	})
}

// checkAnswer holds what is true of every answer to a browser.
func (s *stall) checkAnswer(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	body := w.Body.String()
	if w.Code >= 500 {
		t.Fatalf("got %d: %s", w.Code, s.logs)
	}
	if strings.Contains(body, mark) || strings.Contains(body, "<i id=q") {
		t.Fatalf("got %d, and what a client sent stands on the page as it is:\n%s", w.Code, body)
	}
	for where, text := range map[string]string{"page": body, "log": s.logs.String(), "header": fmt.Sprint(w.Header())} {
		if strings.Contains(text, hush) || strings.Contains(text, "right-one") {
			t.Fatalf("a password is in a %s: %s", where, text)
		}
	}
	h := w.Header()
	if strings.HasPrefix(h.Get("Content-Type"), "text/html") && body != "" && h.Get("Location") == "" && !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Fatalf("got %d: a page with the policy %q", w.Code, h.Get("Content-Security-Policy"))
	}
	for _, target := range []string{h.Get("Location"), strings.TrimPrefix(h.Get("Refresh"), "0; url=")} {
		s.checkTarget(t, target)
	}
}

// checkTarget holds that a redirect leads to the issuer, a listed host or the outside client.
func (s *stall) checkTarget(t *testing.T, target string) {
	t.Helper()
	if target == "" {
		return
	}
	p := whatwg.Resolve(whatwg.Place{Scheme: "https", Host: "sso.example.com"}, target)
	_, listed := s.hosts.Lookup(p.Host)
	if p.User || p.Scheme != "https" || !listed && p.Host != "web.example.com" {
		t.Fatalf("a redirect to %q, which is at %+v", target, p)
	}
	if strings.HasPrefix(target, "//") || strings.HasPrefix(target, `/\`) {
		t.Fatalf("a redirect to %q, which has no scheme and yet a host", target)
	}
}

// browser signs alice in and returns the issuer's cookies.
func (s *stall) browser(f *testing.F) string {
	f.Helper()
	form := url.Values{"login": {"alice"}, "password": {"right-one"}}.Encode()
	r := httptest.NewRequestWithContext(f.Context(), http.MethodPost, "https://sso.example.com/dex/auth/pw/login?req="+s.request("app.example.com", "/", time.Hour), strings.NewReader(form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "https://sso.example.com")
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	all := []string{"__Host-gatehouse-issuer-login=" + s.pre.String(), "__Host-gatehouse-login=" + s.pre.String()}
	for _, c := range w.Result().Cookies() {
		all = append(all, c.Name+"="+c.Value)
	}
	if len(all) < 3 {
		f.Fatalf("not signed in: %d %v %s", w.Code, w.Header(), s.logs)
	}
	return strings.Join(all, "; ")
}

// FuzzRedirects follows the links that attackers could send, in a browser that is signed in and in one that is not. It holds that each redirect
// leads, as browsers read it, to the issuer, to a listed host or to the registered URL of the client.
func FuzzRedirects(f *testing.F) {
	s := newStall(f)
	cookies := []string{s.browser(f), "", "__Host-gatehouse-issuer-login=" + s.pre.String()}
	paths := []string{
		"/auth", "/auth/pw", "/auth/up", "/auth/pw/login", "/auth/up/login", "/callback", "/gatehouse/callback", "/logout", "/logout/callback", "/approval", "/mfa",
		"/mfa/totp", "/static/main.css", "/token", "/userinfo", "/.well-known/openid-configuration", "/keys", "/device/callback", "//evil.com", "/..//evil.com", "",
	}
	targets := []string{"/", "//evil.com", `/\evil.com`, "/\t/evil.com", "https:evil.com", "https://evil.com", "javascript:alert(1)", "https://app.example.com@evil.com/", ".evil.com", "@evil.com", "https://web.example.com.evil.com/cb", "https://web.example.com/cb", ""}
	for i := range paths {
		for j, target := range targets {
			f.Add([]byte{byte(i), byte(j), byte(i + j), 0, byte(i), byte(j)}, target, "a=b")
		}
	}
	f.Fuzz(func(t *testing.T, choices []byte, target, raw string) {
		d := &dice{choices}
		path := paths[d.roll(len(paths))]
		life := []time.Duration{handoff.RequestLifetime, -time.Minute, -time.Hour}[d.roll(3)]
		q := url.Values{}
		for range 1 + d.roll(3) {
			switch d.roll(6) {
			case 0: // what the gateway seals is checked before; here it is not
				q.Set("req", s.request(d.of("app.example.com", "sso.example.com", "x.apps.example.com", "evil.com", target), "/"+target, life))
			case 1:
				q.Set("req", s.request("app.example.com", target, life))
			case 2:
				q["client_id"], q["response_type"], q["scope"] = []string{"web"}, []string{d.of("code", "token", "")}, []string{"openid"}
				q.Set("redirect_uri", d.of("https://web.example.com/cb", target, "https://web.example.com/cb"+target))
				q.Set("prompt", d.of("", "none", "login", target))
			case 3:
				q.Set("post_logout_redirect_uri", d.of(target, "https://web.example.com/bye", "https://web.example.com/bye"+target))
				q.Set("client_id", "web")
			case 4:
				for _, k := range []string{"rd", "next", "return", "redirect_uri", "back", "state", "RelayState", "code", "error", "error_description"} {
					q.Set(k, target)
				}
			case 5:
				q.Set("state", d.of(s.request("app.example.com", target, life), target, mark+target))
			}
		}
		r := &http.Request{
			Method: d.of(http.MethodGet, http.MethodPost, http.MethodHead), URL: &url.URL{Path: "/dex" + path, RawQuery: q.Encode() + d.of("", "&", "&"+raw, ";")},
			Host: d.of("sso.example.com", "sso.example.com", "evil.com"), Header: http.Header{"Origin": {"https://sso.example.com"}}, Body: http.NoBody,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: "192.0.2.7:1",
		}
		if c := cookies[d.roll(len(cookies))]; c != "" {
			r.Header.Set("Cookie", c)
		}
		s.logs.Reset()
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		s.checkAnswer(t, w)
	})
}
