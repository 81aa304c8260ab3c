package eg

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/internal/demo"
)

// A recorder is the app: the demo's, which has no auth logic, with an open page and an echo over WebSocket beside.
type recorder struct {
	reached atomic.Int32 // requests
}

func serveApp(t *testing.T) *recorder {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", app)
	if err != nil {
		t.Fatal(err)
	}
	rec, sample := new(recorder), demo.SampleApp()
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec.reached.Add(1)
		switch {
		case r.Header.Get("Upgrade") == "websocket":
			echo(w)
		case r.URL.Path == "/healthz":
			r.URL.Path = "/headers"
			fallthrough
		default:
			sample.ServeHTTP(w, r)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return rec
}

// echo answers with what the client sends after the upgrade, byte by byte: no proxy looks into the frames.
func echo(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	_ = rw.Flush()
	_, _ = io.Copy(c, rw)
}

// An answer is what came of one request.
type answer struct {
	status int
	proto  string
	header http.Header
	body   string
	at     *url.URL
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s %v %.300s", a.status, a.header.Get("Location"), a.at, a.body)
}

// seen are the headers that reached the app; nil if the request did not.
func (a answer) seen() map[string]string {
	var h map[string]string
	if a.status != http.StatusOK || json.Unmarshal([]byte(a.body), &h) != nil {
		return nil
	}
	return h
}

// rejected tells whether Envoy refused a request's headers: by 400 in HTTP/1.1, in HTTP/2 by a reset of the stream.
func rejected(a answer, err error) bool {
	return err == nil && a.status == http.StatusBadRequest || err != nil && strings.Contains(err.Error(), "stream error: ")
}

// answerTime is how long anybody waits for an answer: longer than the check's 2 s, shorter than Envoy Gateway's default
// of 10 s for it.
const answerTime = 8 * time.Second

// navigation is what browsers send when a person opens a page.
var navigation = []string{"Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}

// ask sends one request of a stranger, with header lines as they are.
func (w *world) ask(t *testing.T, target string, lines ...string) (answer, error) {
	t.Helper()
	c := &http.Client{Transport: w.transport(t), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer c.CloseIdleConnections()
	return ask(t.Context(), c, target, lines...)
}

func (w *world) mustAsk(t *testing.T, target string, lines ...string) answer {
	t.Helper()
	a, err := w.ask(t, target, lines...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ask(ctx context.Context, c *http.Client, target string, lines ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		req.Header[name] = append(req.Header[name], value) // not Add: the name goes out as it is written
	}
	return do(c, req)
}

func do(c *http.Client, req *http.Request) (answer, error) {
	res, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return answer{status: res.StatusCode, header: res.Header, body: talk(res.Body), at: res.Request.URL}, nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return answer{status: res.StatusCode, proto: res.Proto, header: res.Header, body: string(body), at: res.Request.URL}, err
}

// talk sends a line through an upgraded connection and returns what comes back.
func talk(c io.ReadCloser) string {
	rw, ok := c.(io.ReadWriter)
	if !ok {
		return "not writable"
	}
	if _, err := io.WriteString(rw, "hello\n"); err != nil {
		return err.Error()
	}
	line, err := bufio.NewReader(rw).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return line
}

// A browser keeps cookies and follows redirects.
type browser struct {
	*http.Client

	trail []string // of the URLs without their queries
}

func (w *world) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{}
	b.Client = &http.Client{Jar: jar, Transport: b.recording(w.transport(t))}
	return b
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (b *browser) recording(tr http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		b.trail = append(b.trail, r.Method+" "+r.URL.Host+r.URL.Path)
		return tr.RoundTrip(r)
	})
}

var formRE = regexp.MustCompile(`(?s)<form[^>]* method="post" action="([^"]+)"`)

// signIn opens a page of the app and signs in on the form that this leads to.
func (b *browser) signIn(t *testing.T, target string) (answer, error) {
	t.Helper()
	page, err := ask(t.Context(), b.Client, target, navigation...)
	if err != nil {
		return page, err
	}
	m := formRE.FindStringSubmatch(page.body)
	if m == nil {
		return page, fmt.Errorf("no form: %s", page)
	}
	action, err := page.at.Parse(html.UnescapeString(m[1]))
	if err != nil {
		return page, err
	}
	form := url.Values{"login": {user}, "password": {password}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, action.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return page, err
	}
	req.Header = http.Header{
		"Content-Type": {"application/x-www-form-urlencoded"}, "Origin": {issuerURL}, "Accept": {"text/html"},
		"Sec-Fetch-Mode": {"navigate"}, "Sec-Fetch-Dest": {"document"},
	}
	return do(b.Client, req)
}

// signedIn returns a browser that has a session.
func (w *world) signedIn(t *testing.T) *browser {
	t.Helper()
	b := w.browser(t)
	a, err := b.signIn(t, appURL+"/headers")
	if err != nil || a.seen()["kubeflow-userid"] != user {
		t.Fatalf("the sign-in ended with %v, %s", err, a)
	}
	return b
}

// pin is the hash of a certificate's key as Chromium's ignore-certificate-errors-spki-list takes it.
func pin(t *testing.T, certificate []byte) string {
	t.Helper()
	block, _ := pem.Decode(certificate)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}
