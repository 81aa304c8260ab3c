package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"gatehouse/internal/inproc"
)

// maxHops bounds one in-process flow: authorization, callback, continuation and redirect, with room.
const maxHops = 10

// errWantsCredentials means that Dex asks for a sign-in: there is no session that it takes for this request.
var errWantsCredentials = errors.New("front: dex asks for credentials")

// An answer is what Dex answered at last, with all cookies that it set on the way.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	cookies map[string]*http.Cookie
}

// location returns the redirect's target, "" where it is none.
func (a *answer) location() string {
	if a.status/100 != 3 {
		return ""
	}
	return a.header.Get("Location")
}

// relay sends the answer to the browser.
func (a *answer) relay(w http.ResponseWriter) {
	for k, v := range a.header {
		if k != "Set-Cookie" && k != "Content-Length" {
			w.Header()[k] = v
		}
	}
	a.relayCookies(w)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the browser may be gone
}

func (a *answer) relayCookies(w http.ResponseWriter) {
	for _, c := range a.cookies {
		http.SetCookie(w, c)
	}
}

// ask sends one GET to Dex as the browser of orig would, without following anything.
func (f *Front) ask(ctx context.Context, orig *http.Request, target string, jar map[string]*http.Cookie) (*answer, error) {
	step := &Step{}
	r, err := http.NewRequestWithContext(context.WithValue(ctx, stepKey{}, step), http.MethodGet, f.origin+target, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("front: %w", err)
	}
	r.RemoteAddr = orig.RemoteAddr
	for _, h := range []string{"User-Agent", "Accept-Language", "X-Request-Id"} {
		if v := orig.Header.Get(h); v != "" {
			r.Header.Set(h, v)
		}
	}
	for _, c := range orig.Cookies() {
		if _, newer := jar[c.Name]; !newer {
			r.AddCookie(c)
		}
	}
	for _, c := range jar {
		if c.MaxAge >= 0 {
			r.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value}) //nolint:gosec // G124: in a request, where a cookie is a name and a value
		}
	}
	resp, err := inproc.Serve(f.Dex, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if step.SessionUnread {
		return nil, errSessionUnread
	}
	body := make([]byte, resp.ContentLength) // it is in memory already, all of it
	if _, err := io.ReadFull(resp.Body, body); err != nil {
		return nil, fmt.Errorf("front: %w", err)
	}
	for _, c := range resp.Cookies() {
		jar[c.Name] = c
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: body, cookies: jar}, nil
}

// drive follows Dex's redirects in process until the answer belongs to the browser: the client's redirect URI, the
// gateway's, or a page (second factor, consent). It fails with errWantsCredentials when Dex would show a sign-in.
// ctx carries the flight, and the proof where a user was proven.
func (f *Front) drive(ctx context.Context, orig *http.Request, fly *flight, target string, proven bool) (*answer, error) {
	jar := map[string]*http.Cookie{}
	for range maxHops {
		a, err := f.ask(ctx, orig, target, jar)
		if err != nil {
			return nil, err
		}
		if a.status >= 400 {
			return a, fmt.Errorf("front: dex answered %d at %s", a.status, pathOf(target))
		}
		next, inside := strings.CutPrefix(a.location(), f.origin)
		if !inside && !strings.HasPrefix(next, "/") {
			return a, fly.land(ctx, f.Storage)
		}
		switch p := pathOf(next); {
		case p == f.base+"/callback" && !proven:
			return nil, errWantsCredentials
		case p == f.base+"/callback", p == f.base+"/auth", strings.HasPrefix(p, f.base+"/auth/"):
			target = next
		default: // CallbackPath, /approval, /mfa or a page
			return a, fly.land(ctx, f.Storage)
		}
	}
	return nil, errors.New("front: dex redirects without end")
}

func pathOf(target string) string {
	p, _, _ := strings.Cut(target, "?")
	return p
}

// authPath is Dex's authorization endpoint for one connector.
func (f *Front) authPath(connector string, q url.Values) string {
	return f.base + "/auth/" + url.PathEscape(connector) + "?" + q.Encode()
}

func cloneQuery(q url.Values) url.Values {
	n := make(url.Values, len(q))
	for k, v := range q {
		n[k] = append([]string(nil), v...)
	}
	return n
}
