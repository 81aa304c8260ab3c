package istio

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// A browser follows redirects and keeps cookies, over HTTP/2 where the gateway does.
type browser struct{ http *http.Client }

func (c *cluster) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.Certificate)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &browser{http: &http.Client{Transport: tr, Jar: jar, Timeout: 20 * time.Second}}
}

// A page is an answer, and where it came from after redirects.
type page struct {
	status int
	url    *url.URL
	header http.Header
	body   string
}

func (p *page) String() string {
	return fmt.Sprintf("%d from %s: %s %.300q", p.status, p.url, p.header.Get("Location"), p.body)
}

// get sends a request as a browser that opens target. Each line is a header, "Name: value".
func (b *browser) get(ctx context.Context, target string, lines ...string) (*page, error) {
	return b.send(ctx, http.MethodGet, target, nil, append([]string{"Accept: text/html"}, lines...)...)
}

func (b *browser) send(ctx context.Context, method, target string, form url.Values, lines ...string) (*page, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		req.Header[name] = append(req.Header[name], value) // as it is spelled
	}
	res, err := b.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return &page{res.StatusCode, res.Request.URL, res.Header, string(text)}, nil
}

// open is get, and must be answered.
func (b *browser) open(t *testing.T, target string, lines ...string) *page {
	t.Helper()
	p, err := b.get(t.Context(), target, lines...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// still is the same browser that does not follow redirects.
func (b *browser) still() *browser {
	c := *b.http
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &browser{http: &c}
}

var formAction = regexp.MustCompile(`(?s)<form[^>]* action="([^"]*)"`)

// signIn opens the app, fills in the form that it leads to, and returns the page behind.
func (b *browser) signIn(t *testing.T, password string) *page {
	t.Helper()
	const target = "https://" + appHost + "/"
	p := b.open(t, target)
	m := formAction.FindStringSubmatch(p.body)
	if p.status != http.StatusOK || m == nil || p.url.Host != issuerHost {
		t.Fatalf("%s leads to %s, want the issuer's form", target, p)
	}
	action, err := p.url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	p, err = b.send(t.Context(), http.MethodPost, action.String(), url.Values{"login": {you}, "password": {password}},
		"Accept: text/html", "Origin: https://"+issuerHost)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// hashOf is what an operator puts into the configuration.
func hashOf(t *testing.T, password string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), peers.Binary(t), "hash-password") // #nosec G204 -- the test's own
	cmd.Stdin = strings.NewReader(password)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
