package envoy

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// handoffRows attack what travels between the app's host and the issuer.
func handoffRows() []row {
	const family = "hand-off"
	return []row{
		{family: family, name: "replayed in the same browser", play: replayTicket},
		{family: family, name: "in another browser", play: stolenTicket},
		{family: family, name: "planted in a browser that is signing in", play: plantedTicket},
		{family: family, name: "on another host", play: ticketOfAnotherHost},
		{family: family, name: "damaged", play: damagedTicket},
		{family: family, name: "after a sign-out", play: ticketAfterSignOut},
		{family: family, name: "without the pre-cookie it is explained", play: ticketWithoutPreCookie},
		{family: family, name: "browser without cookies is told", play: browserWithoutCookies},
		{family: family, name: "sealed request damaged", play: damagedRequest},
		{family: family, name: "sealed request in another browser", play: stolenRequest},
		{family: family, name: "form of another site", play: formOfAnotherSite},
		{family: family, name: "form without its page", play: formWithoutPage},
		{family: family, name: "planted session cookies are replaced", play: plantedCookies},
		{family: family, name: "another user in the same browser", play: anotherUser},
		{family: family, name: "wrong password", on: []string{"hardened"}, play: wrongPassword},
		{family: family, name: "no parameter", target: "/_gatehouse/session", both: refused(http.StatusBadRequest), check: isExplained},
		{family: family, name: "two parameters", target: "/_gatehouse/session?t=a&t=b", both: refused(http.StatusBadRequest), check: isExplained},
		{family: family, name: "a cookie in its place", as: user, target: "/_gatehouse/session?t=AAAA", both: refused(http.StatusBadRequest), check: isExplained},
		{family: family, name: "8 kB", target: "/_gatehouse/session?t=" + strings.Repeat("A", 9<<10), both: refused(http.StatusBadRequest), check: isExplained},
		{family: family, name: "HEAD redeems nothing", method: "HEAD", target: "/_gatehouse/session?t=x", both: refused(http.StatusMethodNotAllowed)},
		{family: family, name: "unlisted host", host: unlistedHost, target: "/_gatehouse/session?t=x", both: refused(http.StatusForbidden)},
	}
}

// isExplained checks that a refusal is a page for people, with the request's id, and sets no session.
func isExplained(t testing.TB, _ *world, p *page) {
	t.Helper()
	id := p.header.Get("X-Request-Id")
	if !strings.HasPrefix(p.header.Get("Content-Type"), "text/html") || !strings.Contains(p.body, "<h1>") || id == "" || !strings.Contains(p.body, id) {
		t.Errorf("not explained with its request id %q: %s", id, p)
	}
	hasNoSession(t, p)
}

func hasNoSession(t testing.TB, p *page) {
	t.Helper()
	if v, set := p.cookie(sessionCookie); set {
		t.Errorf("a session cookie of %d bytes was set: %s", len(v), p)
	}
}

// ticket takes a browser to where the issuer hands it to the app's host, and returns that URL without opening it.
func (w *world) ticket(t testing.TB, e *edge) (b *browser, target string) {
	t.Helper()
	b = w.knownBrowser(t, e)
	p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers?page", nil))
	p = must(t)(b.step(t.Context(), http.MethodGet, p.location(), nil))
	target = p.location()
	if !strings.HasPrefix(target, "http://"+appHost+"/_gatehouse/session?t=") {
		t.Fatalf("no hand-off: %s", p)
	}
	return b, target
}

func replayTicket(t testing.TB, w *world, e *edge) {
	b, ticket := w.ticket(t, e)
	first := must(t)(b.step(t.Context(), http.MethodGet, ticket, nil))
	if _, set := first.cookie(sessionCookie); !set || first.location() != "http://"+appHost+"/headers?page" {
		t.Fatalf("not redeemed: %s", first)
	}
	signedIn := must(t)(b.step(t.Context(), http.MethodGet, ticket, nil))
	hasNoSession(t, signedIn)
	if got := signedIn.location(); got != "http://"+appHost+"/headers?page" {
		t.Errorf("signed in already: leads to %q", got)
	}
	b.forgetApp()
	again := must(t)(b.step(t.Context(), http.MethodGet, ticket, nil))
	hasNoSession(t, again)
	if got := again.location(); got != "http://"+appHost+"/headers?page" {
		t.Errorf("begins again: leads to %q", got)
	}
	if p := must(t)(b.step(t.Context(), http.MethodGet, again.location(), nil)); p.status != http.StatusFound {
		t.Errorf("signed in by a replay: %s", p)
	}
}

func stolenTicket(t testing.TB, w *world, e *edge) {
	_, ticket := w.ticket(t, e)
	thief := w.browser(e)
	p := must(t)(thief.step(t.Context(), http.MethodGet, ticket, nil))
	if p.status != http.StatusBadRequest {
		t.Errorf("got %s, want 400", p)
	}
	isExplained(t, w, p)
}

// plantedTicket is login CSRF: a victim who is at a sign-in page of its own opens the attacker's link.
func plantedTicket(t testing.TB, w *world, e *edge) {
	_, ticket := w.ticket(t, e)
	victim := w.browser(e)
	must(t)(victim.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil)) // gives it a pre-cookie
	hasNoSession(t, must(t)(victim.step(t.Context(), http.MethodGet, ticket, nil)))
	if p := must(t)(victim.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil)); p.status != http.StatusFound {
		t.Errorf("the victim is signed in: %s", p)
	}
}

func ticketOfAnotherHost(t testing.TB, w *world, e *edge) {
	b, ticket := w.ticket(t, e)
	for _, host := range []string{otherHost, wildHost, issuerHost} {
		b.setCookie(host, loginCookie, b.cookie("http://"+appHost+"/", loginCookie))
		p := must(t)(b.step(t.Context(), http.MethodGet, strings.Replace(ticket, appHost, host, 1), nil))
		if p.status != http.StatusBadRequest {
			t.Errorf("%s: got %s, want 400", host, p)
		}
		isExplained(t, w, p)
	}
}

func damagedTicket(t testing.TB, w *world, e *edge) {
	b, ticket := w.ticket(t, e)
	sealed := parse(ticket).Query().Get("t")
	for _, bad := range []string{damage(sealed), sealed + "A", sealed[:len(sealed)-1], sealed + "%0a", damageAt(sealed, 0), b.cookie(issuer+"/", ssoCookie)} {
		p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/_gatehouse/session?t="+bad, nil))
		if p.status != http.StatusBadRequest {
			t.Errorf("got %s, want 400", p)
		}
		isExplained(t, w, p)
	}
	if _, set := must(t)(b.step(t.Context(), http.MethodGet, ticket, nil)).cookie(sessionCookie); !set {
		t.Error("the good one does not work any more")
	}
}

func ticketAfterSignOut(t testing.TB, w *world, e *edge) {
	b := w.signedIn(t, e, user)
	b.forgetApp()
	p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil))
	ticket := must(t)(b.step(t.Context(), http.MethodGet, p.location(), nil)).location()
	other := b.clone()
	must(t)(other.visit(t.Context(), "http://"+otherHost+"/headers"))
	w.signOut(t, other, otherHost)
	p = must(t)(b.step(t.Context(), http.MethodGet, ticket, nil))
	hasNoSession(t, p)
	if p.status != http.StatusSeeOther {
		t.Errorf("got %s, want a new sign-in", p)
	}
}

func ticketWithoutPreCookie(t testing.TB, w *world, e *edge) {
	b, ticket := w.ticket(t, e)
	b.forget(appHost, loginCookie, "/")
	p := must(t)(b.step(t.Context(), http.MethodGet, ticket, nil))
	if p.status != http.StatusBadRequest || !strings.Contains(strings.ToLower(p.body), "cookie") {
		t.Errorf("got %s, want 400 and a word about cookies", p)
	}
	isExplained(t, w, p)
}

// browserWithoutCookies goes the whole way, with the right password, and must be told why it does not arrive.
func browserWithoutCookies(t testing.TB, w *world, e *edge) {
	bare := func(method, target, body string, header ...string) *page {
		p, err := fetch(t.Context(), e.http, method, target, body, append(header, "Accept: text/html")...)
		if err != nil {
			t.Fatal(err)
		}
		w.note(p)
		return p
	}
	p := bare(http.MethodGet, bare(http.MethodGet, "http://"+appHost+"/headers", "").location(), "")
	action, err := p.action()
	if err != nil {
		t.Fatal(err)
	}
	p = bare(http.MethodPost, action, w.credentials(user).Encode(), "Content-Type: application/x-www-form-urlencoded", "Origin: http://"+issuerHost)
	if p.location() != "" {
		p = bare(http.MethodGet, p.location(), "")
	}
	if p.status != http.StatusBadRequest || !strings.Contains(strings.ToLower(p.body), "cookie") {
		t.Errorf("got %s, want 400 and a word about cookies", p)
	}
	hasNoSession(t, p)
}

func damagedRequest(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	good := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil)).location()
	sealed := parse(good).Query().Get("req")
	must(t)(b.step(t.Context(), http.MethodGet, good, nil)) // gives it the issuer's pre-cookie
	for _, bad := range []string{damage(sealed), sealed + "A", "", damageAt(sealed, 0), strings.Repeat("A", 20<<10), b.cookie("http://"+appHost+"/", loginCookie)} {
		target := issuer + "/auth/local/login?req=" + bad
		p := must(t)(b.step(t.Context(), http.MethodGet, target, nil))
		if p.status != http.StatusBadRequest {
			t.Errorf("page: got %s, want 400", p)
		}
		p = must(t)(b.step(t.Context(), http.MethodPost, target, w.credentials(user), "Origin: http://"+issuerHost))
		if _, set := p.cookie(ssoCookie); p.status != http.StatusBadRequest || set {
			t.Errorf("form: got %s, want 400", p)
		}
		if p := must(t)(b.step(t.Context(), http.MethodGet, issuer+"/auth?req="+bad, nil)); p.status != http.StatusBadRequest {
			t.Errorf("choice: got %s, want 400", p)
		}
	}
}

// stolenRequest signs in with a page that was made for another browser: whoever does is signed in at the issuer, as they
// wished, but the app's host gives the session to the browser that asked only.
func stolenRequest(t testing.TB, w *world, e *edge) {
	attacker, victim := w.browser(e), w.browser(e)
	p := must(t)(attacker.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil))
	p = must(t)(victim.step(t.Context(), http.MethodGet, p.location(), nil))
	p = must(t)(victim.submit(t.Context(), p, w.credentials(user)))
	ticket := p.location()
	hasNoSession(t, must(t)(victim.step(t.Context(), http.MethodGet, ticket, nil)))
	if _, set := must(t)(attacker.step(t.Context(), http.MethodGet, "http://"+otherHost+"/_gatehouse/session?"+parse(ticket).RawQuery, nil)).cookie(sessionCookie); set {
		t.Error("redeemed on another host")
	}
}

func formOfAnotherSite(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	p := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	action, err := p.action()
	if err != nil {
		t.Fatal(err)
	}
	for _, lines := range [][]string{
		{"Origin: http://evil.example"},
		{"Origin: null"},
		{"Origin: http://" + appHost},
		{"Origin: https://" + issuerHost},
		{"Origin: http://" + issuerHost + ".evil.example"},
		{"Origin: http://" + issuerHost, "Origin: http://evil.example"},
		{"Sec-Fetch-Site: cross-site"},
		{"Sec-Fetch-Site: same-site"},
	} {
		p := must(t)(b.step(t.Context(), http.MethodPost, action, w.credentials(user), lines...))
		if _, set := p.cookie(ssoCookie); p.status != http.StatusForbidden || set {
			t.Errorf("%v: got %s, want 403", lines, p)
		}
	}
}

// formWithoutPage is a script that posts what another browser was shown.
func formWithoutPage(t testing.TB, w *world, e *edge) {
	p := must(t)(w.browser(e).visit(t.Context(), "http://"+appHost+"/headers"))
	action, err := p.action()
	if err != nil {
		t.Fatal(err)
	}
	p = must(t)(w.browser(e).step(t.Context(), http.MethodPost, action, w.credentials(user)))
	if _, set := p.cookie(ssoCookie); p.status != http.StatusBadRequest || set {
		t.Errorf("got %s, want 400", p)
	}
}

// plantedCookies is session fixation: what an attacker put into the browser beforehand counts for nothing after the sign-in.
func plantedCookies(t testing.TB, w *world, e *edge) {
	attacker := w.signedIn(t, e, user)
	planted := attacker.cookie("http://"+appHost+"/", sessionCookie)
	sso := attacker.cookie(issuer+"/", ssoCookie)
	w.signOut(t, attacker, appHost)
	b := w.browser(e)
	b.setCookie(appHost, sessionCookie, planted)
	b.jar.SetCookies(parse(issuer+"/"), []*http.Cookie{{Name: ssoCookie, Value: sso, Path: "/dex"}})
	if p := must(t)(b.signIn(t.Context(), "http://"+appHost+"/headers", administrator)); p.status != http.StatusOK {
		t.Fatal(p)
	}
	if b.cookie("http://"+appHost+"/", sessionCookie) == planted || b.cookie(issuer+"/", ssoCookie) == sso {
		t.Error("a planted cookie lives on")
	}
	h, err := seenByApp(t.Context(), attacker, "http://"+appHost+"/public/headers")
	if err != nil || h["kubeflow-userid"] != "" {
		t.Errorf("the attacker is %q, %v", h["kubeflow-userid"], err)
	}
}

// anotherUser signs in with a password over a live session of another user: the former session is over.
func anotherUser(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	first := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	if p := must(t)(b.signIn(t.Context(), "http://"+appHost+"/headers", user)); p.status != http.StatusOK {
		t.Fatal(p)
	}
	old := b.clone()
	p := must(t)(b.submit(t.Context(), first, w.credentials(administrator))) // the tab that was open all the time
	if p = must(t)(b.follow(t.Context(), p)); p.status != http.StatusOK {
		t.Fatal(p)
	}
	if p := must(t)(old.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil)); p.status != http.StatusFound {
		t.Errorf("the former session lives on: %s", p)
	}
	if p := must(t)(b.visit(t.Context(), "http://"+otherHost+"/headers")); !strings.Contains(p.body, administrator) {
		t.Errorf("the browser is not signed in as the new user: %s", p)
	}
}

func wrongPassword(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	p := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	w.secrets.add("not-the-right-password")
	for _, form := range []url.Values{
		{"login": {user}, "password": {"not-the-right-password"}},
		{"login": {user}},
		{"login": {user}, "password": {""}},
		{"login": {user}, "password": {strings.Repeat("p", 2000)}},
		{"login": {"nobody@example.com"}, "password": {"not-the-right-password"}},
	} {
		p := must(t)(b.submit(t.Context(), p, form))
		if _, set := p.cookie(ssoCookie); p.status != http.StatusUnauthorized || set {
			t.Errorf("got %s, want 401", p)
		}
	}
}
