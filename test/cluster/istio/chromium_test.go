package istio

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"gatehouse/test/peers"
)

// chromium signs in as a person does. It takes the certificates for good ones, so that it uses one HTTP/2 connection for all hosts
// of a certificate, as browsers do and Go's client does not.
func (s *site) chromium(t *testing.T) {
	tab := peers.Chromium(t, map[string]string{issuerHost: gatewayPod, appHost: gatewayPod}, chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(s.pins, ",")))
	var at, text string
	if err := chromedp.Run(tab,
		chromedp.Navigate("https://"+appHost+"/report?year=2026"),
		chromedp.WaitVisible(`input[name="login"]`),
		chromedp.Location(&at),
		chromedp.SendKeys(`input[name="login"]`, you),
		chromedp.SendKeys(`input[name="password"]`, s.password),
		chromedp.Submit(`input[name="password"]`),
		chromedp.WaitNotPresent(`input[name="password"]`),
		chromedp.WaitVisible("pre"),
		chromedp.Text("pre", &text),
	); err != nil {
		t.Fatalf("%v; at %s: %.500s", err, at, text)
	}
	if !strings.HasPrefix(at, issuer+"/auth") {
		t.Errorf("asked for the password at %s, want the issuer", at)
	}
	if err := chromedp.Run(tab, chromedp.Location(&at)); err != nil {
		t.Fatal(err)
	}
	if at != "https://"+appHost+"/report?year=2026" || !strings.Contains(text, you) {
		t.Errorf("ends at %s, where the app sees %s", at, text)
	}
}
