package envoy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// A page is an answer.
type page struct {
	url    *url.URL
	status int
	header http.Header
	body   string
}

func (p *page) location() string { return p.header.Get("Location") }

// cookie returns a cookie that the answer sets.
func (p *page) cookie(name string) (value string, set bool) {
	for _, c := range (&http.Response{Header: p.header}).Cookies() {
		if c.Name == name && c.MaxAge >= 0 {
			return c.Value, true
		}
	}
	return "", false
}

func (p *page) String() string {
	if p == nil {
		return "no answer"
	}
	body := p.body
	if len(body) > 300 {
		body = body[:300] + "…"
	}
	return fmt.Sprintf("%d at %s, Location %q, %q", p.status, p.url, p.location(), body)
}

// maxBody bounds what is read of an answer, in bytes.
const maxBody = 4 << 20

func newPage(u *url.URL, res *http.Response) (*page, error) {
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	return &page{url: u, status: res.StatusCode, header: res.Header, body: string(b)}, err
}

// fetch sends one request. header holds lines such as "Accept: text/html".
func fetch(ctx context.Context, tr http.RoundTripper, method, target, body string, header ...string) (*page, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return newPage(req.URL, res)
}

// A message is a request as it goes over the wire: nothing in it is checked or corrected.
type message struct {
	method, target, host string
	lines                []string // header lines
	body                 string
	chunks               string // body in chunks, as they go over the wire

	http2 bool
	forge func(*authv3.CheckRequest) // what a checker asks in place of what Envoy would
	wire  func([]byte) []byte        // and how that goes over the wire
}

// send writes a message on a connection of its own and reads the answer.
func (e *edge) send(ctx context.Context, m message) (*page, error) {
	switch {
	case e.direct != nil:
		return e.direct.send(ctx, m)
	case m.http2:
		return e.sendHTTP2(ctx, m)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	lines := slices.Clone(m.lines)
	if !hasLine(lines, "Connection") {
		lines = append(lines, "Connection: close")
	}
	if m.body != "" && !hasLine(lines, "Content-Length") {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(m.body)))
	}
	text := m.method + " " + m.target + " HTTP/1.1\r\nHost: " + m.host + "\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n" + m.body + m.chunks
	// Envoy may refuse in the middle of a long request: then there is an answer although the write failed.
	_, writeErr := io.WriteString(conn, text)
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: m.method})
	if err != nil {
		return nil, errors.Join(writeErr, err)
	}
	return newPage(&url.URL{Scheme: "http", Host: m.host, Opaque: m.target}, res)
}

func hasLine(lines []string, name string) bool {
	return slices.ContainsFunc(lines, func(l string) bool {
		return len(l) > len(name) && l[len(name)] == ':' && strings.EqualFold(l[:len(name)], name)
	})
}

// A browser keeps cookies and follows redirects, as far as they lead to hosts of its world.
type browser struct {
	w     *world
	edge  *edge
	jar   *cookiejar.Jar
	trail []string // "GET http://…", every request that was sent
}

func (w *world) browser(e *edge) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(err) // never: there are no options
	}
	return &browser{w: w, edge: e, jar: jar}
}

// clone returns a browser with the same cookies.
func (b *browser) clone() *browser {
	c := b.w.browser(b.edge)
	for _, origin := range b.w.origins() {
		for _, path := range []string{"/", "/dex/"} {
			u := &url.URL{Scheme: "http", Host: strings.TrimPrefix(origin, "http://"), Path: path}
			for _, k := range b.jar.Cookies(u) {
				if k.Name == ssoCookie {
					k.Path = "/dex"
				} else {
					k.Path = "/"
				}
				c.jar.SetCookies(u, []*http.Cookie{k})
			}
		}
	}
	return c
}

func parse(target string) *url.URL {
	u, err := url.Parse(target)
	if err != nil {
		panic(err) // the tests' own
	}
	return u
}

// cookie returns the value of a cookie that the browser would send to a URL.
func (b *browser) cookie(target, name string) string {
	for _, c := range b.jar.Cookies(parse(target)) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

// setCookie plants a cookie on a whole host.
func (b *browser) setCookie(host, name, value string) {
	b.jar.SetCookies(&url.URL{Scheme: "http", Host: host, Path: "/"}, []*http.Cookie{{Name: name, Value: value, Path: "/"}})
}

// forget removes a cookie.
func (b *browser) forget(host, name, path string) {
	b.jar.SetCookies(&url.URL{Scheme: "http", Host: host, Path: path + "/"}, []*http.Cookie{{Name: name, Path: path, MaxAge: -1}})
}

// forgetApp signs the browser out of the app's host as a restart would: the issuer still knows it.
func (b *browser) forgetApp() { b.forget(appHost, sessionCookie, "/") }

// step sends one request and keeps the cookies of the answer.
func (b *browser) step(ctx context.Context, method, target string, form url.Values, header ...string) (*page, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	if !hasLine(header, "Accept") {
		header = append(header, "Accept: text/html,*/*;q=0.8")
	}
	for _, c := range b.jar.Cookies(u) {
		header = append(header, "Cookie: "+c.Name+"="+c.Value)
	}
	header = joinCookies(header)
	if form != nil {
		header = append(header, "Content-Type: application/x-www-form-urlencoded")
	}
	b.trail = append(b.trail, method+" "+target)
	p, err := fetch(ctx, b.edge.http, method, target, form.Encode(), header...)
	if err != nil {
		return nil, err
	}
	b.absorb(u, p)
	return p, nil
}

// joinCookies makes one line of all Cookie lines, as browsers do.
func joinCookies(lines []string) (out []string) {
	var cookies []string
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, "Cookie: "); ok {
			cookies = append(cookies, v)
		} else {
			out = append(out, l)
		}
	}
	if len(cookies) > 0 {
		out = append(out, "Cookie: "+strings.Join(cookies, "; "))
	}
	return out
}

// absorb takes what an answer tells a browser to keep, and notes the secrets in it.
func (b *browser) absorb(u *url.URL, p *page) {
	b.jar.SetCookies(u, (&http.Response{Header: p.header}).Cookies())
	b.w.note(p)
}

// note remembers the secrets in an answer: cookies and what travels in the URLs.
func (w *world) note(p *page) {
	for _, c := range (&http.Response{Header: p.header}).Cookies() {
		w.secrets.add(c.Value)
	}
	if u, err := url.Parse(p.location()); err == nil {
		for _, name := range []string{"t", "code", "k", "req", "state"} {
			w.secrets.add(u.Query().Get(name))
		}
	}
}

// errForeign is a redirect to where Gatehouse must never send anybody.
var errForeign = errors.New("redirect to a foreign place")

// own reports whether a browser that follows location stays at the world's own hosts: it is an absolute URL that begins
// with one of their origins, or a path that no browser could read as another host's.
func (w *world) own(location string) bool {
	if strings.ContainsFunc(location, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
		return false
	}
	if _, err := url.Parse(location); err != nil {
		return false
	}
	for _, o := range w.origins() {
		if rest, ok := strings.CutPrefix(location, o); ok && (rest == "" || rest[0] == '/' || rest[0] == '?') {
			return true
		}
	}
	return strings.HasPrefix(location, "/") && !strings.HasPrefix(location, "//")
}

// follow goes on from an answer until it is no redirect, or leads to the outside client.
func (b *browser) follow(ctx context.Context, p *page) (*page, error) {
	for range 10 {
		if p.status/100 != 3 || strings.HasPrefix(p.location(), clientOrigin+"/") {
			return p, nil
		}
		if !b.w.own(p.location()) {
			return p, fmt.Errorf("%w: %q", errForeign, p.location())
		}
		next, err := p.url.Parse(p.location())
		if err != nil {
			return p, err
		}
		if p, err = b.step(ctx, http.MethodGet, next.String(), nil); err != nil {
			return p, err
		}
	}
	return p, errors.New("more than ten redirects: " + strings.Join(b.trail, " "))
}

// visit opens a URL and follows redirects.
func (b *browser) visit(ctx context.Context, target string) (*page, error) {
	p, err := b.step(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	return b.follow(ctx, p)
}

var formRE = regexp.MustCompile(`(?s)<form[^>]* method="post" action="([^"]+)"`)

// action returns where the page's first form posts to.
func (p *page) action() (string, error) {
	m := formRE.FindStringSubmatch(p.body)
	if m == nil {
		return "", fmt.Errorf("no form on the page: %s", p)
	}
	u, err := p.url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// submit posts the page's form without following the answer.
func (b *browser) submit(ctx context.Context, p *page, form url.Values) (*page, error) {
	target, err := p.action()
	if err != nil {
		return nil, err
	}
	b.w.secrets.add(parse(target).Query().Get("k"), parse(target).Query().Get("req"))
	return b.step(ctx, http.MethodPost, target, form, "Origin: "+parse(target).Scheme+"://"+parse(target).Host)
}

func (w *world) credentials(mail string) url.Values {
	return url.Values{"login": {mail}, "password": {w.passwords[mail]}}
}

// signIn opens a URL, signs in and ends where that leads.
func (b *browser) signIn(ctx context.Context, target, mail string) (*page, error) {
	p, err := b.visit(ctx, target)
	if err != nil {
		return nil, err
	}
	if p, err = b.submit(ctx, p, b.w.credentials(mail)); err != nil {
		return nil, err
	}
	return b.follow(ctx, p)
}

// must fails the test on an error.
func must(t testing.TB) func(p *page, err error) *page {
	return func(p *page, err error) *page {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
}

// signedIn returns a browser whose user is signed in at the app's host.
func (w *world) signedIn(t testing.TB, e *edge, mail string) *browser {
	t.Helper()
	b := w.browser(e)
	if p := must(t)(b.signIn(t.Context(), "http://"+appHost+"/headers", mail)); p.status != http.StatusOK {
		t.Fatalf("sign-in of %s: %s", mail, p)
	}
	return b
}
