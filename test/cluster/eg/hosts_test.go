package eg

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Names in certificates.
var (
	apart  = map[string][]string{issuerHost: {issuerHost}, appHost: {appHost}}
	shared = map[string][]string{issuerHost: {issuerHost, appHost}, appHost: {issuerHost, appHost}}
	wild   = map[string][]string{issuerHost: {issuerHost}, appHost: {"*.corp.test"}}
)

// TestCertificatesApart: where each listener's certificate names its own host, HTTP/2 is spoken.
func TestCertificatesApart(t *testing.T) {
	w := start(t, layout{names: apart})
	w.speaks(t, "h2")
	b := w.signedIn(t)
	if a, err := ask(t.Context(), b.Client, appURL+"/headers"); err != nil || a.proto != "HTTP/2.0" {
		t.Errorf("the sign-in went by %q, %v, want HTTP/2.0", a.proto, err)
	}
	w.cross(t, "h2")
	identity(t, w)
	w.chromium(t)
}

// TestSharedCertificates: where a certificate of one listener names hosts of the other, Envoy Gateway offers no HTTP/2 to
// either, so that no browser takes the connection of one host for the other.
func TestSharedCertificates(t *testing.T) {
	for name, names := range map[string]map[string][]string{"both hosts": shared, "a wildcard for the apps": wild} {
		t.Run(name, func(t *testing.T) {
			w := start(t, layout{names: names})
			w.speaks(t, "http/1.1")
			w.cross(t, "http/1.1")
			identity(t, w)
			w.chromium(t)
		})
	}
}

// TestForcedHTTP2 is why nobody must offer HTTP/2 all the same: Chromium asks for the sign-in on the connection that it has
// for the app, and ends there.
func TestForcedHTTP2(t *testing.T) {
	w := start(t, layout{names: shared, change: func(list map[string]object) {
		list["ClientTrafficPolicy gatehouse"]["spec"].(object)["tls"] = object{"alpnProtocols": []any{"h2", "http/1.1"}}
	}})
	w.speaks(t, "h2")
	w.signedIn(t) // by a client that does not share connections
	if err := chromedp.Run(w.tab(t), chromedp.Navigate(appURL+"/")); err == nil || !strings.Contains(err.Error(), "ERR_HTTP_RESPONSE_CODE_FAILURE") {
		t.Errorf("got %v, want a page that is not there", err)
	}
}

// speaks tells whether Envoy chooses a protocol for both hosts, if it may be HTTP/2 or HTTP/1.1.
func (w *world) speaks(t *testing.T, want string) {
	t.Helper()
	for _, host := range []string{issuerHost, appHost} {
		c := w.dial(t, host, "h2", "http/1.1")
		if got := c.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("%s: got protocol %q, want %s", host, got, want)
		}
		_ = c.Close()
	}
}

// cross asks for a host on another one's connection: each listener knows its own hosts only. (The answer is 404, not 421
// after which a browser would try again on a connection of its own.)
func (w *world) cross(t *testing.T, protocol string) {
	t.Helper()
	for _, tc := range []struct {
		from, to string
		want     int
	}{
		{issuerHost, appHost, http.StatusNotFound},
		{appHost, issuerHost, http.StatusNotFound},
		{appHost, appHost, http.StatusOK},
	} {
		if status := w.misdirect(t, protocol, tc.from, "https://"+tc.to+"/healthz"); status != tc.want {
			t.Errorf("to %s on a connection for %s: got %d, want %d", tc.to, tc.from, status, tc.want)
		}
	}
}

// TestRouteForTheIssuersHost: no route of another namespace takes over the issuer's pages, wherever it asks to be attached.
func TestRouteForTheIssuersHost(t *testing.T) {
	var more strings.Builder
	for name, parent := range map[string]string{
		"any": "{name: gatehouse, namespace: gatehouse}", "issuer": "{name: gatehouse, namespace: gatehouse, sectionName: issuer}",
		"apps": "{name: gatehouse, namespace: gatehouse, sectionName: apps}",
	} {
		fmt.Fprintf(&more, `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: hostile-%s, namespace: apps}
spec:
  parentRefs: [%s]
  hostnames: [auth.corp.test]
  rules:
  - matches: [{path: {type: PathPrefix, value: /dex/auth}}]
    backendRefs: [{group: gateway.envoyproxy.io, kind: Backend, name: app}]
`, name, parent)
	}
	w := start(t, layout{more: more.String(), names: apart})
	w.signedIn(t)
	before := w.app.reached.Load()
	if a := w.mustAsk(t, issuerURL+"/dex/auth/local/login", navigation...); w.app.reached.Load() != before || a.status == http.StatusNotFound {
		t.Errorf("the app got the password form's request: %s", a)
	}
	for _, proto := range []string{"h2", "http/1.1"} {
		if status := w.misdirect(t, proto, appHost, issuerURL+"/dex/auth/local/login"); w.app.reached.Load() != before || status != http.StatusNotFound {
			t.Errorf("%s: got %d, want 404, and the app nothing", proto, status)
		}
	}
}

func (w *world) dial(t *testing.T, host string, protocols ...string) *tls.Conn {
	t.Helper()
	d := tls.Dialer{NetDialer: dialer(), Config: &tls.Config{RootCAs: w.roots, ServerName: host, NextProtos: protocols, MinVersion: tls.VersionTLS12}}
	c, err := d.DialContext(t.Context(), "tcp", edge)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	return c.(*tls.Conn)
}

// misdirect asks for a URL on a connection that was made for a host.
func (w *world) misdirect(t *testing.T, protocol, from, target string) int {
	t.Helper()
	tr := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		return w.dial(t, from, protocol), nil
	}}
	defer tr.CloseIdleConnections()
	a, err := ask(t.Context(), &http.Client{Transport: tr}, target)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"}[protocol]; a.proto != want {
		t.Errorf("%s was asked for by %s, want %s", target, a.proto, want)
	}
	return a.status
}

// checks is how many checks were decided for a reason.
func (w *world) checks(t *testing.T, reason string) int {
	t.Helper()
	a, err := ask(t.Context(), new(http.Client), "http://"+w.gatehouse.Telemetry+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(a.body) {
		var value int
		if strings.HasPrefix(line, "gatehouse_checks_total{") && strings.Contains(line, `reason="`+reason+`"`) {
			if _, err := fmt.Sscan(line[strings.LastIndex(line, " "):], &value); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			n += value
		}
	}
	return n
}
