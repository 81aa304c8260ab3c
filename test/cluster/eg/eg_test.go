package eg

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"syscall"
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
			if a, err := ask(t.Context(), c, appURL+"/healthz", line); err != nil || a.status != http.StatusBadRequest || w.app.reached.Load() != before {
				t.Errorf("as %q, with %q: got %s, %v, want 400", name, line, a, err)
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

func clientAddress(t *testing.T, w *world) {
	b := w.signedIn(t)
	a, err := ask(t.Context(), b.Client, appURL+"/headers", "X-Forwarded-For: 203.0.113.9", "X-Real-Ip: 203.0.113.9", "X-Envoy-External-Address: 203.0.113.9")
	if err != nil {
		t.Fatal(err)
	}
	h := a.seen()
	if got := h["x-forwarded-for"]; !strings.HasSuffix(got, ",127.0.0.1") {
		t.Errorf("x-forwarded-for is %q, want the client's own address as the last", got)
	}
	if got := h["x-envoy-external-address"]; got != "127.0.0.1" {
		t.Errorf("x-envoy-external-address is %q, want 127.0.0.1", got)
	}
}

func chromium(t *testing.T, w *world) { w.chromium(t) }

// chromium signs in and out in a real browser.
func (w *world) chromium(t *testing.T) {
	t.Helper()
	names := map[string]string{issuerHost: "127.0.0.1", appHost: "127.0.0.1"}
	tab := peers.Chromium(t, names, chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(w.pins, ",")))
	ctx, cancel := context.WithTimeout(tab, wait)
	defer cancel()
	var at, seen string
	if err := chromedp.Run(ctx,
		chromedp.Navigate(appURL+"/?a=b"),
		chromedp.WaitVisible(`input[name=password]`),
		chromedp.Location(&at),
		chromedp.SendKeys(`input[name=login]`, user),
		chromedp.SendKeys(`input[name=password]`, password+"\r"),
		chromedp.WaitVisible(`dl`), // of the app
		chromedp.Text(`dl`, &seen),
	); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(at, issuerURL+"/dex/") || !strings.Contains(seen, user) || !strings.Contains(seen, "admins") {
		t.Errorf("signed in at %s, the app sees %q", at, seen)
	}
	var left string
	if err := chromedp.Run(ctx, chromedp.Location(&at), chromedp.Click(`//a[contains(., "Sign out")] | //button[contains(., "Sign out")]`, chromedp.BySearch)); err != nil {
		t.Fatal(err)
	}
	if at != appURL+"/?a=b" {
		t.Errorf("the sign-in ended at %s", at)
	}
	peers.Eventually(t, wait, "the app asks again", func() bool {
		return chromedp.Run(ctx, chromedp.Navigate(appURL+"/"), chromedp.WaitVisible(`body`), chromedp.Location(&left)) == nil &&
			strings.HasPrefix(left, issuerURL+"/dex/auth/local/login")
	})
}

// controlPlane stops Envoy Gateway, not its Envoy, for the time of a sign-in.
func controlPlane(t *testing.T, w *world) {
	if err := w.gateway.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.gateway.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	w.signedIn(t)
}
