package front

import (
	"net/http"
	"net/url"
	"strings"

	"gatehouse/internal/reach"
)

// What is wrong with the way from a browser to the issuer shows in what arrives. It is told to the operator, once a
// minute for each kind, since the browser shows a page that helps nobody. Nothing but these words is made of what a
// stranger sends.

// underHost records a page that was asked for under another host than the issuer's. name is the canonical host, "" for
// what is none.
func (f *Front) underHost(r *http.Request, name string) {
	reason, said, fix := "other-host", &f.warned.other, "let only "+f.Issuer.Host+" lead here; if browsers are to sign in under the other name, correct issuer in the file and restart"
	switch listed := f.listed(name); {
	case listed && f.near():
		reason, said, fix = "app-host", &f.warned.app, "browsers cannot reach "+f.Issuer.Host+": set issuer to the URL by which they come through the gateway, and restart"
	case listed:
		reason, said, fix = "app-host", &f.warned.app, "this is an app's host: let "+f.base+" lead here on "+f.Issuer.Host+" only, and start a sign-in at the app"
	case name != "" && reach.ScopeOf(name) != reach.Anywhere:
		reason, said, fix = "near-host", &f.warned.near, "this is no name for browsers: let whoever sends them here use "+f.Issuer.String()
	}
	f.astray.WithLabelValues(reason).Inc()
	if said.due(f.Now()) {
		f.Log.WarnContext(r.Context(), "a page was asked for under another host than the issuer's, and answered 421",
			"got", clip(r.Host), "want", f.Issuer.Host, "fix", fix, "ip", remoteIP(r), "request_id", requestID(r))
	}
}

func (f *Front) listed(name string) bool {
	if f.Hosts == nil || name == "" {
		return false
	}
	_, ok := f.Hosts.Lookup(name)
	return ok
}

// near reports whether the issuer's own name is one that browsers cannot reach.
func (f *Front) near() bool { return reach.ScopeOf(f.host) != reach.Anywhere }

// withoutPath records a request that is for nobody, but would be for the issuer with its path before it: a gateway has
// cut it off.
func (f *Front) withoutPath(r *http.Request) {
	if f.base == "" || r.URL.Path == f.base || strings.HasPrefix(r.URL.Path, f.base+"/") {
		return
	}
	_, pattern := f.mux.Handler(&http.Request{Method: r.Method, Host: r.Host, URL: &url.URL{Path: f.base + r.URL.Path}})
	if pattern == "" || pattern == "/" {
		return
	}
	f.astray.WithLabelValues("path").Inc()
	if f.warned.path.due(f.Now()) {
		f.Log.WarnContext(r.Context(), "a request came without the issuer's path, and was answered 404",
			"got", clip(r.URL.Path), "want", f.base+clip(r.URL.Path), "fix", "let the gateway leave paths as they are: no rewrite and no prefix removed", "request_id", requestID(r))
	}
}

// overHTTPS tells of a gateway that speaks TLS before an issuer on http. The header is believed for this one word only.
func (f *Front) overHTTPS(r *http.Request) {
	if f.Issuer.Scheme == "http" && r.Header.Get("X-Forwarded-Proto") == "https" && f.warned.scheme.due(f.Now()) {
		f.Log.WarnContext(r.Context(), "browsers come over https, and the issuer is http: its cookies and links are made for http",
			"want", "https://"+f.Issuer.Host+f.Issuer.Path, "fix", "set issuer to that URL, and restart", "request_id", requestID(r))
	}
}
