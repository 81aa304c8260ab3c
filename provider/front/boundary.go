package front

import (
	"net/http"
	"strings"
)

// hostPrefix makes a cookie one of this host alone (RFC 6265bis section 4.1.3.2). Dex's session cookie has a path, so
// it cannot have the prefix by itself: a neighbour below the same domain could plant its own session in a browser.
const hostPrefix = "__Host-"

// CookieNames are the names of the issuer's cookies that no app may see, where Dex's session cookie is called name.
func CookieNames(name string) []string {
	return []string{name, hostPrefix + name, samlCookie, formCookie(true), formCookie(false)}
}

// outerName is the name of Dex's session cookie as browsers have it.
func (f *Front) outerName() string {
	if f.Issuer.Scheme == "https" {
		return hostPrefix + f.Sessions.Config.CookieName
	}
	return f.Sessions.Config.CookieName
}

// inward gives Dex its session cookie under the name that it knows: the one that only this host can have set. One that
// came under the inner name, and several under the outer one, are nobody's.
func (f *Front) inward(r *http.Request) {
	inner, outer := f.Sessions.Config.CookieName, f.outerName()
	if inner == outer {
		return
	}
	var kept, own []*http.Cookie
	for _, c := range r.Cookies() {
		switch c.Name {
		case inner:
		case outer:
			own = append(own, c)
		default:
			kept = append(kept, c)
		}
	}
	r.Header.Del("Cookie")
	for _, c := range kept {
		r.AddCookie(c)
	}
	if len(own) == 1 {
		r.AddCookie(&http.Cookie{Name: inner, Value: own[0].Value}) //nolint:gosec // G124: in a request, where a cookie is a name and a value
	}
}

// outward renames Dex's session cookie on its way to the browser.
type outward struct {
	http.ResponseWriter
	inner, outer string
	sent         bool
}

func (o *outward) WriteHeader(code int) {
	if !o.sent {
		o.sent = true
		o.rename()
	}
	o.ResponseWriter.WriteHeader(code)
}

func (o *outward) Write(p []byte) (int, error) {
	if !o.sent {
		o.WriteHeader(http.StatusOK)
	}
	return o.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (o *outward) Unwrap() http.ResponseWriter { return o.ResponseWriter }

func (o *outward) rename() {
	h := o.Header()
	lines := h["Set-Cookie"]
	for i, line := range lines {
		if !strings.HasPrefix(line, o.inner+"=") {
			continue
		}
		c, err := http.ParseSetCookie(line)
		if err != nil {
			lines[i] = o.outer + "=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"
			continue
		}
		c.Name, c.Path, c.Secure, c.HttpOnly, c.SameSite = o.outer, "/", true, true, http.SameSiteLaxMode
		lines[i] = c.String()
	}
}
