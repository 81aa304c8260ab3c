package upstream

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A person is a browser with its cookies, and where it has been.
type person struct {
	s      *stack
	client http.Client
	been   []string // URLs without query
}

// A page is what the browser shows in the end.
type page struct {
	url    *url.URL
	status int
	header http.Header
	body   string
}

func (s *stack) newPerson(t *testing.T) *person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{s: s}
	p.client = http.Client{Jar: jar, Transport: s.transport(t), Timeout: time.Minute, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 15 {
			return fmt.Errorf("redirected %d times", len(via))
		}
		r.Header.Del("Referer")
		return nil
	}}
	return p
}

// visit goes to an address and follows where it leads.
func (p *person) visit(t *testing.T, address string) page {
	t.Helper()
	return p.do(t, &p.client, http.MethodGet, address, nil)
}

// step goes to an address and follows nothing.
func (p *person) step(t *testing.T, address string, header ...string) page {
	t.Helper()
	still := p.client
	still.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return p.do(t, &still, http.MethodGet, address, nil, header...)
}

// send posts a form and follows where it leads.
func (p *person) send(t *testing.T, address string, form url.Values) page {
	t.Helper()
	return p.do(t, &p.client, http.MethodPost, address, form, "Content-Type", "application/x-www-form-urlencoded")
}

func (p *person) do(t *testing.T, c *http.Client, method, address string, form url.Values, header ...string) page {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	for r := res.Request; r != nil; {
		u := *r.URL
		u.RawQuery = ""
		p.been = append(p.been, u.String())
		if r.Response == nil {
			break
		}
		r = r.Response.Request
	}
	return page{url: res.Request.URL, status: res.StatusCode, header: res.Header, body: string(body)}
}

// wasAt reports whether the browser was at or below an address since the last forget.
func (p *person) wasAt(address string) bool {
	for _, b := range p.been {
		if b == address || strings.HasPrefix(b, address+"/") {
			return true
		}
	}
	return false
}

func (p *person) forget() { p.been = nil }

// has reports whether the browser has a cookie for an address.
func (p *person) has(t *testing.T, address, name string) bool {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.client.Jar.Cookies(u) {
		if c.Name == name {
			return true
		}
	}
	return false
}

// signedIn reports whether the browser has a session, at the app or at the issuer.
func (p *person) signedIn(t *testing.T) bool {
	t.Helper()
	return p.has(t, p.s.app+"/", "gatehouse-dev") || p.has(t, p.s.issuer+"/auth", "gatehouse-sso")
}

// link returns the URL that the first group of a pattern finds on the page.
func (pg page) link(t *testing.T, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(pg.body)
	if m == nil {
		t.Fatalf("no %s on the page at %s, status %d: %s", pattern, pg.url, pg.status, pg.body)
	}
	u, err := pg.url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return u.String()
}

// chosen opens a page of the app, chooses a connector on the sign-in page, and returns the redirect to the identity provider.
func (p *person) chosen(t *testing.T, connector, address string) *url.URL {
	t.Helper()
	signIn := p.visit(t, address)
	away := p.step(t, signIn.link(t, `href="([^"]*/auth/`+connector+`\?req=[^"]*)"`))
	to, err := away.url.Parse(away.header.Get("Location"))
	if err != nil || !strings.HasPrefix(to.String(), p.s.op.Issuer+"/auth?") {
		t.Fatalf("choosing %s: got status %d and Location %q, want the authorization endpoint of %s", connector, away.status, away.header.Get("Location"), p.s.op.Issuer)
	}
	return to
}

// back is chosen and the visit to the identity provider: it returns the callback that the browser is sent to, before it goes there.
func (p *person) back(t *testing.T, connector, address string) *url.URL {
	t.Helper()
	next := p.chosen(t, connector, address).String()
	for range 10 {
		away := p.step(t, next)
		to, err := away.url.Parse(away.header.Get("Location"))
		if err != nil || away.header.Get("Location") == "" {
			t.Fatalf("the identity provider answers %d: %s", away.status, away.body)
		}
		if strings.HasPrefix(to.String(), p.s.issuer+"/callback?") {
			return to
		}
		next = to.String()
	}
	t.Fatal("the identity provider redirects without end")
	return nil
}

// seen returns the headers that reach the app, of a signed-in browser.
func (p *person) seen(t *testing.T, app string) map[string]string {
	t.Helper()
	pg := p.visit(t, app+"/headers")
	var headers map[string]string
	if err := json.Unmarshal([]byte(pg.body), &headers); err != nil || pg.url.String() != app+"/headers" {
		t.Fatalf("got status %d at %s, want the app's headers: %s", pg.status, pg.url, pg.body)
	}
	return headers
}

// tells checks an error page.
func (pg page) tells(t *testing.T, status int, texts ...string) {
	t.Helper()
	if pg.status != status {
		t.Errorf("got status %d at %s, want %d", pg.status, pg.url, status)
	}
	for _, want := range texts {
		if !strings.Contains(pg.body, want) {
			t.Errorf("the page at %s does not say %q: %s", pg.url, want, pg.body)
		}
	}
	if got := pg.header.Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("Content-Type: got %q, want a page", got)
	}
}
