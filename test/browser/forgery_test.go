package browser

import (
	"context"
	"html/template"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// attack is the page of another site: a form that looks harmless.
const attack = `<!DOCTYPE html><title>Prize</title><h1>Prize</h1>
{{ if .NoReferrer }}<meta name="referrer" content="no-referrer">{{ end }}
<form method="post" action="{{ .Action }}">{{ range $name, $value := .Fields }}<input type="hidden" name="{{ $name }}" value="{{ $value }}">{{ end }}
<button>Collect</button></form>
<a href="{{ .Action }}">Look</a>
{{ with .Image }}<img src="{{ . }}" alt="" id="image">{{ end }}`

type attackPage struct {
	Action     string
	Fields     map[string]string
	NoReferrer bool   // the form's Origin is then null
	Image      string // loaded with the page; empty: none
}

// attacker serves one page under every name that leads to it, and returns the port.
func attacker(t *testing.T, page attackPage) string {
	t.Helper()
	parsed := template.Must(template.New("attack").Parse(attack))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := parsed.Execute(w, page); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// A place is where an attacker's page is.
type place struct {
	name       string
	host       string
	noReferrer bool
}

func places(s *stack) []place {
	return []place{
		{name: "a foreign site", host: "evil.test"},
		{name: "a foreign site that hides its origin", host: "evil.test", noReferrer: true},
		{name: "another origin of the same site", host: s.sibling},
	}
}

// forgedSignIn must not sign a person in as the attacker.
func forgedSignIn(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.app+"/") // has what a browser gets from us on the way
	b.asked(t, s)
	theirs, own := signInPage(t, s), b.eval(t, `location.href`) // the latter is more than an attacker can know
	for _, from := range places(s) {
		for name, action := range map[string]string{"the attacker's request": theirs, "the person's request": own} {
			port := attacker(t, attackPage{
				Action: action, Fields: map[string]string{"login": plainUser, "password": password}, NoReferrer: from.noReferrer,
			})
			b.open(t, "http://"+from.host+":"+port+"/")
			b.click(t, "Collect")
			b.headed(t, s.issuer+"/auth/local/login", crossSiteTitle)
			for cookie := range b.cookies(t, s) {
				if cookie == ssoCookie(s) || cookie == sessionCookie(s) {
					t.Errorf("from %s, with %s: the browser was given the cookie %s", from.name, name, cookie)
				}
			}
		}
	}
	b.shot(t, "forged-sign-in")
	b.open(t, s.app+"/")
	b.asked(t, s)
}

// signInPage returns the address of a sign-in page of another browser.
func signInPage(t *testing.T, s *stack) string {
	t.Helper()
	tr := insecureTransport(t, s.edge)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.app+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	to, err := url.Parse(res.Header.Get("Location"))
	if err != nil || !strings.HasPrefix(to.String(), s.issuer+"/auth/local/login?req=") {
		t.Fatalf("got status %d and Location %q, want a sign-in page", res.StatusCode, res.Header.Get("Location"))
	}
	return to.String()
}

// forgedSignOut must not sign a person out: by a form, by a link, or by a picture.
func forgedSignOut(t *testing.T, browser context.Context, s *stack) {
	b := newPerson(t, browser, s)
	b.open(t, s.app+"/")
	b.asked(t, s)
	b.signIn(t, adminUser, password)
	b.at(t, s.app+"/", appTitle)
	address := s.app + "/_gatehouse/sign-out"
	for _, from := range places(s) {
		page := "http://" + from.host + ":" + attacker(t, attackPage{Action: address, Image: address, NoReferrer: from.noReferrer}) + "/"
		b.open(t, page)
		b.until(t, "the picture was asked for", `document.querySelector("#image").complete`)
		b.click(t, "Collect")
		b.headed(t, address, crossSiteTitle)
		b.open(t, s.app+"/?form-from="+from.host)
		b.at(t, s.app+"/?form-from="+from.host, appTitle)

		b.open(t, page)
		b.click(t, "Look")
		b.at(t, address, "Sign out?")
		b.open(t, s.app+"/?link-from="+from.host)
		b.at(t, s.app+"/?link-from="+from.host, appTitle)
	}
}
