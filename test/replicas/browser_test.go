package replicas

import (
	"context"
	"encoding/json"
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
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A browser has its cookies, and comes through Envoy.
type browser struct {
	f    *fleet
	http http.RoundTripper
	jar  http.CookieJar

	// alternate has each request to the issuer go to the next replica, past Envoy.
	alternate bool
	next      int
	went      []string // names of the replicas, where it alternates
}

// A page is an answer.
type page struct {
	url    *url.URL
	status int
	header http.Header
	body   string
	took   time.Duration
}

// title is the heading of a page of Gatehouse's.
func (p page) title() string {
	if m := titleRE.FindStringSubmatch(p.body); m != nil {
		return html.UnescapeString(m[1])
	}
	return ""
}

func (p page) String() string {
	text := p.title()
	if text == "" {
		text = p.body
	}
	where := *p.url
	where.RawQuery = ""
	return fmt.Sprintf("status %d at %s: %.300s", p.status, &where, text)
}

func (f *fleet) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{f: f, http: f.envoy.Transport(t), jar: jar}
}

// at is the same browser with the same cookies, as they are now and as they become, that comes to another fleet.
func (b *browser) at(t *testing.T, other *fleet) *browser {
	t.Helper()
	return &browser{f: other, http: other.envoy.Transport(t), jar: b.jar}
}

// answer sends one request.
func answer(rt http.RoundTripper, req *http.Request) (page, error) {
	start := time.Now()
	res, err := rt.RoundTrip(req)
	if err != nil {
		return page{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	return page{req.URL, res.StatusCode, res.Header, string(body), time.Since(start)}, err
}

// step sends one request with the browser's cookies.
func (b *browser) step(ctx context.Context, method, address string, form url.Values) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err != nil {
		return page{}, err
	}
	req.Header.Set("Accept", "text/html")
	req.Header.Set("Sec-Fetch-Mode", "navigate")
	req.Header.Set("Sec-Fetch-Dest", "document")
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, c := range b.jar.Cookies(req.URL) {
		req.AddCookie(c)
	}
	rt := b.http
	if b.alternate && req.URL.Hostname() == issuerHost {
		i := b.next % len(b.f.replicas)
		b.next++
		rt, b.went = b.f.direct[i], append(b.went, b.f.replicas[i].name)
	}
	p, err := answer(rt, req)
	if err != nil {
		return p, fmt.Errorf("%s %s: %w", method, req.URL.Redacted(), err)
	}
	b.jar.SetCookies(req.URL, (&http.Response{Header: p.header}).Cookies())
	return p, nil
}

// maxSteps is how many redirects a visit follows.
const maxSteps = 12

// visit follows redirects, but not to the outside client, where nobody is.
func (b *browser) visit(ctx context.Context, method, address string, form url.Values) (page, error) {
	for range maxSteps {
		p, err := b.step(ctx, method, address, form)
		if err != nil || p.status < 300 || p.status >= 400 {
			return p, err
		}
		next, err := p.url.Parse(p.header.Get("Location"))
		if err != nil {
			return p, err
		}
		if strings.HasPrefix(next.String(), clientURL) {
			return p, nil
		}
		method, address, form = http.MethodGet, next.String(), nil
	}
	return page{}, fmt.Errorf("%s: more than %d redirects", address, maxSteps)
}

var titleRE = regexp.MustCompile(`<h1[^>]*>([^<]*)</h1>`)

var formRE = regexp.MustCompile(`<form method="post" action="([^"]*)"`)

// action is where the form of a page leads.
func (p page) action() (string, error) {
	m := formRE.FindStringSubmatch(p.body)
	if m == nil {
		return "", fmt.Errorf("no form: %s", p)
	}
	u, err := p.url.Parse(strings.ReplaceAll(m[1], "&amp;", "&"))
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

func credentials(mail string) url.Values { return url.Values{"login": {mail}, "password": {password}} }

// submit fills in the form of a page and returns the answer to that.
func (b *browser) submit(ctx context.Context, p page, mail string) (page, error) {
	action, err := p.action()
	if err != nil {
		return p, err
	}
	return b.step(ctx, http.MethodPost, action, credentials(mail))
}

// signIn opens the app and signs in at the page that comes.
func (b *browser) signIn(ctx context.Context, mail string) error {
	p, err := b.visit(ctx, http.MethodGet, b.f.app+"/headers", nil)
	if err != nil {
		return err
	}
	action, err := p.action()
	if err != nil {
		return err
	}
	if p, err = b.visit(ctx, http.MethodPost, action, credentials(mail)); err != nil {
		return err
	}
	return b.isAt(p, mail)
}

// isAt says why a page is not that of the app for a user.
func (b *browser) isAt(p page, mail string) error {
	var seen map[string]string
	if p.status != http.StatusOK || p.url.String() != b.f.app+"/headers" {
		return fmt.Errorf("want the app: %s", p)
	}
	if err := json.Unmarshal([]byte(p.body), &seen); err != nil {
		return err
	}
	if seen["kubeflow-userid"] != mail {
		return fmt.Errorf("the app sees %q, want %q", seen["kubeflow-userid"], mail)
	}
	return nil
}

// look opens the app without going on to a sign-in.
func (b *browser) look(ctx context.Context) (page, error) {
	return b.step(ctx, http.MethodGet, b.f.app+"/headers", nil)
}

// groups are those that the app sees, or why it sees none.
func (b *browser) groups(ctx context.Context) string {
	p, err := b.look(ctx)
	if err != nil {
		return err.Error()
	}
	var seen map[string]string
	if p.status != http.StatusOK {
		return p.String()
	}
	if err := json.Unmarshal([]byte(p.body), &seen); err != nil {
		return err.Error()
	}
	return seen["kubeflow-groups"]
}

// signedIn returns a browser of a user.
func (f *fleet) signedIn(t *testing.T, mail string) *browser {
	t.Helper()
	b := f.browser(t)
	if err := b.signIn(t.Context(), mail); err != nil {
		t.Fatalf("sign-in of %s: %v", mail, err)
	}
	return b
}

// stays fails the test where somebody is not signed in any more.
func stays(t *testing.T, when string, b *browser, mail string) {
	t.Helper()
	p, err := b.look(t.Context())
	if err == nil {
		err = b.isAt(p, mail)
	}
	if err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

// A load is requests of signed-in users without end.
type load struct {
	sent, failed atomic.Int64
	first        atomic.Pointer[string] // the first failure
	stop         func()

	mu   sync.Mutex
	took []time.Duration
}

// pace is how often each browser of a load asks: it is a load, and not a flood that starves the health checks of a busy machine.
const pace = 8 * time.Millisecond

// nobody is the mail of browsers that are not signed in.
const nobody = ""

// underLoad starts a load by browsers that are signed in as mail.
func underLoad(t *testing.T, mail string, browsers ...*browser) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, done := &load{}, make(chan struct{}, len(browsers))
	for _, b := range browsers {
		go func() {
			defer func() { done <- struct{}{} }()
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for ctx.Err() == nil {
				l.ask(ctx, b, mail)
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		}()
	}
	l.stop = func() {
		cancel()
		for range browsers {
			<-done
		}
		browsers = nil // it may be stopped twice
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) ask(ctx context.Context, b *browser, mail string) {
	p, err := b.look(ctx)
	switch {
	case err == nil && mail != nobody:
		err = b.isAt(p, mail)
	case err == nil && p.status != http.StatusFound:
		err = fmt.Errorf("want the way to the sign-in: %s", p)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return
	}
	l.sent.Add(1)
	l.mu.Lock()
	l.took = append(l.took, p.took)
	l.mu.Unlock()
	if err != nil {
		text := time.Now().Format(time.TimeOnly) + " " + err.Error()
		l.failed.Add(1)
		l.first.CompareAndSwap(nil, &text)
	}
}

// percentile is how long p per cent of the requests took at most.
func (l *load) percentile(p int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.took) == 0 {
		return 0
	}
	slices.Sort(l.took)
	return l.took[(len(l.took)-1)*p/100].Round(10 * time.Microsecond)
}

// done stops the load, says how it was, and fails the test where a request has failed.
func (l *load) done(t *testing.T, during string) {
	t.Helper()
	l.stop()
	t.Logf("%s: %d requests, %d failed; half of them took up to %s, 99%% up to %s, the slowest %s",
		during, l.sent.Load(), l.failed.Load(), l.percentile(50), l.percentile(99), l.percentile(100))
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%s: %d of %d requests failed, the first: %s", during, n, l.sent.Load(), *l.first.Load())
	}
	if l.sent.Load() == 0 {
		t.Errorf("%s: nothing was sent", during)
	}
}
