package eg

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"gatehouse/test/peers"
)

// TestOverlay is what users, scripts and attackers meet at the overlay as it is shipped.
func TestOverlay(t *testing.T) {
	w := start(t, layout{})
	for _, tc := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"a browser is led to the issuer, a script is told", strangers},
		{"a sign-in takes five requests", signIn},
		{"identity headers are Gatehouse's alone", identity},
		{"a path with two readings is refused", paths},
		{"the issuer's paths go through the check too", issuer},
		{"WebSocket is for those who are signed in", webSocket},
		{"no address that a client sends is believed", clientAddress},
		{"Chromium signs in and out", chromium},
		{"the gateway goes on without its control plane", controlPlane},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, w) })
	}
}

func strangers(t *testing.T, w *world) {
	before := w.app.reached.Load()
	a := w.mustAsk(t, appURL+"/", navigation...)
	if l := a.header.Get("Location"); a.status != http.StatusFound || !strings.HasPrefix(l, issuerURL+"/dex/auth/local/login?req=") {
		t.Errorf("a browser got %s, want 302 to the issuer's sign-in", a)
	}
	a = w.mustAsk(t, appURL+"/")
	var body struct {
		LoginURL string `json:"login_url"`
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != http.StatusUnauthorized || body.LoginURL != appURL+"/_gatehouse/sign-in" {
		t.Errorf("a script got %s, %v, want 401 with the URL of the sign-in", a, err)
	}
	if n := w.app.reached.Load() - before; n != 0 {
		t.Errorf("%d requests of nobody reached the app", n)
	}
	if a := w.mustAsk(t, appURL+"/healthz"); a.seen() == nil {
		t.Errorf("got %s, want the page that a rule opens to anyone", a)
	}
}

func signIn(t *testing.T, w *world) {
	b := w.browser(t)
	target := appURL + "/headers?a=b"
	a, err := b.signIn(t, target)
	if err != nil {
		t.Fatal(err)
	}
	h := a.seen()
	if a.at.String() != target || h["kubeflow-userid"] != user || h["kubeflow-groups"] != "admins" || h["cookie"] != "" {
		t.Errorf("ended at %s with %v", a.at, h)
	}
	if len(b.trail) != 5 {
		t.Errorf("%d requests, want 5:\n%s", len(b.trail), strings.Join(b.trail, "\n"))
	}
	for path, want := range map[string]int{"/admin/x": http.StatusOK, "/_gatehouse/whoami": http.StatusOK} {
		if a, err := ask(t.Context(), b.Client, appURL+path); err != nil || a.status != want {
			t.Errorf("%s: got %s, %v, want %d", path, a, err, want)
		}
	}
}

func identity(t *testing.T, w *world) {
	b := w.signedIn(t)
	forged := []string{"Kubeflow-Userid: root@corp.test", "Kubeflow-Userid: root2@corp.test", "Kubeflow-Groups: root", "Kubeflow.userid: root@corp.test"}
	for name, c := range map[string]*http.Client{user: b.Client, "": {Transport: w.transport(t)}} {
		a, err := ask(t.Context(), c, appURL+"/healthz", forged...)
		h := a.seen()
		if err != nil || h == nil || h["kubeflow-userid"] != name || strings.Contains(a.body, "root") {
			t.Errorf("as %q: the app sees %v, %v", name, h, err)
		}
		before := w.app.reached.Load()
		for _, line := range []string{"kubeflow_userid: root@corp.test", "x_y: z"} {
			if a, err := ask(t.Context(), c, appURL+"/healthz", line); !rejected(a, err) || w.app.reached.Load() != before {
				t.Errorf("as %q, with %q: got %s, %v, want a refusal", name, line, a, err)
			}
		}
	}
}

func paths(t *testing.T, w *world) {
	b := w.signedIn(t)
	for path, want := range map[string]int{
		"/a%2Fb": http.StatusBadRequest, "/a%2fb": http.StatusBadRequest, "/a%5Cb": http.StatusBadRequest, "/healthz%2F..%2Fheaders": http.StatusBadRequest,
		"/headers;a=b": http.StatusBadRequest, "//headers": http.StatusOK, "/x/../headers": http.StatusOK, "/%68eaders": http.StatusOK,
	} {
		a, err := ask(t.Context(), b.Client, appURL+path)
		if err != nil || a.status != want {
			t.Errorf("%s: got %s, %v, want %d", path, a, err, want)
		}
	}
	for _, path := range []string{"/dex%2Fauth", "/dex/%5Cauth"} {
		if a := w.mustAsk(t, issuerURL+path); a.status != http.StatusBadRequest {
			t.Errorf("%s: got %s, want 400", path, a)
		}
	}
	before := w.app.reached.Load()
	for _, path := range []string{"/healthz/../headers", "/healthz/%2e%2e/headers", "//headers", "/healthz/..;/headers"} {
		if a := w.mustAsk(t, appURL+path); a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest || w.app.reached.Load() != before {
			t.Errorf("nobody asked for %s and got %s", path, a)
		}
	}
}

// issuer counts the checks of its pages, and that a route ends at a whole segment.
func issuer(t *testing.T, w *world) {
	before := w.checks(t, "issuer")
	a := w.mustAsk(t, issuerURL+"/dex/.well-known/openid-configuration")
	if a.status != http.StatusOK || !strings.Contains(a.body, `"`+issuerURL+`/dex"`) {
		t.Errorf("got %s, want the issuer's configuration", a)
	}
	if got := w.checks(t, "issuer") - before; got != 1 {
		t.Errorf("%v checks of the issuer's pages, want 1", got)
	}
	for _, path := range []string{"/", "/dexter", "/_gatehouse/sign-in"} {
		if a := w.mustAsk(t, issuerURL+path); a.status != http.StatusNotFound {
			t.Errorf("%s on the issuer's host: got %s, want 404", path, a)
		}
	}
}

func webSocket(t *testing.T, w *world) {
	b := w.signedIn(t)
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	if a := w.mustAsk(t, appURL+"/socket", upgrade...); a.status != http.StatusUnauthorized {
		t.Errorf("nobody got %s, want 401", a)
	}
	if a, err := ask(t.Context(), b.Client, appURL+"/socket", upgrade...); err != nil || a.status != http.StatusSwitchingProtocols || a.body != "hello\n" {
		t.Errorf("got %s, %v, want 101 and an echo", a, err)
	}
}

// clientAddress: with clientRemoteIP as the file has it in a comment, the issuer knows the browser's address, and no other.
func clientAddress(t *testing.T, w *world) {
	before := len(w.gatehouse.Log())
	b := w.browser(t)
	inner := b.Transport
	b.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		r.Header["X-Forwarded-For"] = []string{"203.0.113.9"}
		r.Header["X-Envoy-External-Address"] = []string{"203.0.113.9"}
		return inner.RoundTrip(r)
	})
	a, err := b.signIn(t, appURL+"/public/headers")
	if err != nil {
		t.Fatal(err)
	}
	if h := a.seen(); h["x-forwarded-for"] != "203.0.113.9,"+client || h["x-envoy-external-address"] != client {
		t.Errorf("the app sees %v, want %s as the last address", h, client)
	}
	log := ""
	peers.Eventually(t, wait, "the audit log has the sign-in", func() bool {
		log = w.gatehouse.Log()[before:]
		return strings.Contains(log, `"msg":"sign-in"`) && strings.Contains(log, `"path":"/public/headers"`)
	})
	if !strings.Contains(log, `"ip":"`+client+`"`) || strings.Contains(log, "203.0.113.9") {
		t.Errorf("the sign-in is not logged as from %s:\n%s", client, log)
	}
}

func chromium(t *testing.T, w *world) { w.chromium(t) }

// chromium signs in and out in a real browser.
func (w *world) chromium(t *testing.T) {
	t.Helper()
	tab, page := w.tab(t), appURL+"/?a=b"
	open(t, tab, page)
	until(t, tab, `location.href.startsWith("`+issuerURL+`/dex/auth/") && document.querySelector("input[name=password]") !== null`)
	until(t, tab, `document.querySelector("input[name=login]").value = "`+user+`", document.querySelector("input[name=password]").value = "`+password+`", document.querySelector("form").requestSubmit(), true`)
	until(t, tab, `location.href === "`+page+`" && document.querySelector("dl").innerText.includes("`+user+`") && document.querySelector("dl").innerText.includes("admins")`)
	until(t, tab, `[...document.querySelectorAll("a")].find(a => a.textContent === "Sign out").click(), true`)
	until(t, tab, `location.href === "`+appURL+`/_gatehouse/sign-out" && document.body.innerText.includes("You are signed out")`)
	open(t, tab, page)
	until(t, tab, `location.href.startsWith("`+issuerURL+`/dex/auth/")`)
}

// tab is Chromium's, which takes the certificates for good.
func (w *world) tab(t *testing.T) context.Context {
	t.Helper()
	host, _, _ := strings.Cut(edge, ":")
	return peers.Chromium(t, map[string]string{issuerHost: host, appHost: host}, chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(w.pins, ",")))
}

func open(t *testing.T, tab context.Context, target string) {
	t.Helper()
	if err := chromedp.Run(tab, chromedp.Navigate(target)); err != nil {
		t.Fatal(err)
	}
}

// until waits until a script returns true in the tab, whose page may be changing.
func until(t *testing.T, tab context.Context, script string) {
	t.Helper()
	peers.Eventually(t, wait, script, func() bool {
		ctx, cancel := context.WithTimeout(tab, answerTime)
		defer cancel()
		var ok bool
		return chromedp.Run(ctx, chromedp.Evaluate(script, &ok)) == nil && ok
	})
}

// controlPlane stops Envoy Gateway, not its Envoy, for the time of a sign-in.
func controlPlane(t *testing.T, w *world) {
	defer freeze(t, w.gateway.Pid())()
	w.signedIn(t)
}
