package browser

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"gatehouse/test/peers"
)

// With sameSite: strict the browser withholds the cookie from a navigation that began on another site, redirects
// included: a link in a mail must lead in all the same, and not round in circles.
func TestLinkFromAnotherSiteWithStrictCookies(t *testing.T) {
	oneHost, twoHosts := oneSite(), oneSite()
	oneHost.strict = true
	twoHosts.name, twoHosts.auth, twoHosts.app, twoHosts.secure, twoHosts.strict = "one-site-two-hosts", "auth.one.test", "app.one.test", false, true
	browser := peers.Chromium(t, names())
	for _, l := range []layout{oneHost, twoHosts} {
		t.Run(l.name, func(t *testing.T) {
			s := serve(t, l, nil)
			page := s.app + "/?from=mail"
			mail := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				_, _ = fmt.Fprintf(w, `<title>Mail</title><h1>Mail</h1><a href="%s">Report</a>`, page)
			}))
			t.Cleanup(mail.Close)
			_, port, err := net.SplitHostPort(mail.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			foreign := "http://evil.test:" + port + "/"
			b := newPerson(t, browser, s)
			b.open(t, foreign)
			b.click(t, "Report")
			b.asked(t, s)
			b.signIn(t, adminUser, password)
			b.at(t, page, appTitle)
			for range 2 {
				b.open(t, foreign)
				b.click(t, "Report")
				b.at(t, page, appTitle)
			}
		})
	}
}
