package envoy

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// scripts are what would run in a page that shows it as it came.
var scripts = map[string]string{
	"element": "<script>zq90()</script>", "attribute": `" autofocus onfocus=zq90() x="`, "attribute, single": "' onfocus=zq90() x='", "image": "<img src=x onerror=zq90()>", "end of an element": "</title></h1><svg onload=zq90()>",
	"template": "{{.}}${zq90()}<%= zq90() %>", "URL": "javascript:zq90()", "UTF-7": "+ADw-script+AD4-zq90()", "null byte": "<\x00script>zq90()</script>", "bad UTF-8": "\xff\"><script>zq90()</script>", "line separator": "\u2028<script>zq90()</script>",
}

// scriptRows put scripts wherever a page could show them.
func scriptRows() (all []row) {
	const family = "XSS"
	for name, script := range inOrder(scripts) {
		s := url.QueryEscape(script)
		for place, target := range inOrder(map[string]string{
			"client_id": issuer + "/auth?client_id=" + s, "scope": issuer + "/auth?client_id=outside&response_type=code&redirect_uri=" + clientOrigin + "/cb&scope=openid+" + s,
			"response_type": issuer + "/auth?client_id=outside&scope=openid&redirect_uri=" + clientOrigin + "/cb&response_type=" + s, "redirect_uri": issuer + "/auth?client_id=outside&response_type=code&scope=openid&redirect_uri=" + s,
			"connector": issuer + "/auth/" + url.PathEscape(script) + "?client_id=outside", "connector_id": issuer + "/auth?client_id=outside&response_type=code&scope=openid&redirect_uri=" + clientOrigin + "/cb&connector_id=" + s,
			"error of an upstream": issuer + "/callback?state=x&error=" + s + "&error_description=" + s, "error of our own": issuer + "/gatehouse/callback?error=" + s + "&error_description=" + s + "&state=" + s,
			"req": issuer + "/auth/local/login?req=" + s, "approval": issuer + "/approval?req=" + s + "&hmac=" + s, "logout": issuer + "/logout?state=" + s + "&post_logout_redirect_uri=" + s + "&id_token_hint=" + s + "&client_id=" + s,
			"path": issuer + "/" + url.PathEscape(script), "rd": "http://" + appHost + "/_gatehouse/sign-in?rd=" + s, "ticket": "http://" + appHost + "/_gatehouse/session?t=" + s, "sign-out": "http://" + appHost + "/_gatehouse/sign-out?rd=" + s + "&k=" + s,
			"our path": "http://" + appHost + "/_gatehouse/" + url.PathEscape(script), "app's path": "http://" + appHost + "/admin/" + url.PathEscape(script),
		}) {
			all = append(all, row{family: family, name: place + ": " + name, on: []string{"hardened", "direct"}, play: func(t testing.TB, w *world, e *edge) {
				p := must(t)(w.signedInAt(t, e).step(t.Context(), http.MethodGet, target, nil))
				runsNothing(t, p)
				if l := p.location(); l != "" && !w.own(l) && !strings.HasPrefix(l, clientOrigin+"/cb?") {
					t.Errorf("leads to %q", l)
				}
			}})
		}
		all = append(all,
			row{family: family, name: "user's name at the sign-in: " + name, on: []string{"hardened"}, play: func(t testing.TB, w *world, e *edge) {
				b := w.browser(e)
				p := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
				p = must(t)(b.submit(t.Context(), p, url.Values{"login": {script}, "password": {""}}))
				runsNothing(t, p)
			}},
			row{family: family, name: "request's headers: " + name, on: []string{"hardened", "direct"}, play: func(t testing.TB, w *world, e *edge) {
				clean := strings.Map(func(r rune) rune {
					if r < ' ' || r > '~' {
						return -1
					}
					return r
				}, script)
				for _, line := range []string{"X-Request-Id", "Accept-Language", "User-Agent", "Referer", "X-Forwarded-Host"} {
					for _, target := range []string{"http://" + appHost + "/admin/x", issuer + "/nothing", issuer + "/logout", "http://" + unlistedHost + "/"} {
						runsNothing(t, must(t)(w.signedInAt(t, e).step(t.Context(), http.MethodGet, target, nil, line+": "+clean)))
					}
				}
			}})
	}
	return append(all,
		row{family: family, name: "name of a user on every page", on: []string{"hardened", "direct"}, play: func(t testing.TB, w *world, e *edge) {
			b := w.signedIn(t, e, tricky)
			for _, target := range []string{"/admin/x", "/_gatehouse/sign-out", "/_gatehouse/nothing", "/_gatehouse/whoami"} {
				runsNothing(t, must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+target, nil)))
			}
			form := join(outsideQuery("openid email profile"), url.Values{"prompt": {"consent"}})
			p := must(t)(b.visit(t.Context(), issuer+"/auth?"+form.Encode()))
			if !strings.HasSuffix(p.url.Path, "/approval") {
				t.Errorf("not asked for consent: %s", p)
			}
			runsNothing(t, p)
			runsNothing(t, must(t)(b.step(t.Context(), http.MethodGet, issuer+"/logout", nil)))
		}},
	)
}

// signedInAt returns a browser with a session at the app's host.
func (w *world) signedInAt(t testing.TB, e *edge) *browser {
	t.Helper()
	if w.inside == nil {
		w.inside = w.signedIn(t, w.gateway(), user)
	}
	b := w.inside.clone()
	b.edge = e
	return b
}

// runsNothing checks that an answer is no page, or one that no browser runs anything of: by its policy, and by what it holds.
func runsNothing(t testing.TB, p *page) {
	t.Helper()
	kind := p.header.Get("Content-Type")
	if p.header.Get("X-Content-Type-Options") != "nosniff" && p.body != "" {
		t.Errorf("may be sniffed: %s, %v", p, p.header)
	}
	if strings.Contains(fmt.Sprint(p.header), "<script") {
		t.Errorf("headers: %v", p.header)
	}
	if !strings.HasPrefix(kind, "text/html") {
		if p.body != "" && kind != "application/json" && !strings.HasPrefix(kind, "text/plain") {
			t.Errorf("content type %q: %s", kind, p)
		}
		return
	}
	csp := p.header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "base-uri 'none'", "frame-ancestors", "form-action"} {
		if !strings.Contains(csp, want) {
			t.Errorf("the policy %q lacks %q: %s", csp, want, p)
		}
	}
	if strings.Contains(csp, "script-src") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
		t.Errorf("policy %q", csp)
	}
	for z := html.NewTokenizer(strings.NewReader(p.body)); z.Next() != html.ErrorToken; {
		token := z.Token()
		switch token.Data {
		case "script", "object", "embed", "iframe", "base":
			if token.Type == html.StartTagToken || token.Type == html.SelfClosingTagToken {
				t.Errorf("the page holds %s", token)
			}
		}
		for _, a := range token.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Val)), "javascript:") && (a.Key == "href" || a.Key == "src" || a.Key == "action") {
				t.Errorf("the page holds %s", token)
			}
		}
	}
}
