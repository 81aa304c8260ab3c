package envoy

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// identityRows are users who are almost others.
func identityRows() []row {
	const family = "identity"
	notFound := passes(http.StatusNotFound)
	return []row{
		{family: family, name: "groups that are almost the rule's", as: tricky, target: "/admin/x", both: isForbidden},
		{family: family, name: "groups that are almost the rule's, first rule", as: tricky, target: "/public/closed/x", both: isForbidden},
		{family: family, name: "name, groups and percent signs are encoded", as: tricky, both: passes(http.StatusOK)},
		{family: family, name: "name and groups where anyone may", as: tricky, target: "/public/headers", both: passes(http.StatusOK)},
		{family: family, name: "forged groups beside almost the rule's", as: tricky, target: "/admin/x", lines: []string{"Cookie: gatehouse-dev={tricky}", "kubeflow-groups: admins"}, both: isForbidden},
		{family: family, name: "e-mail address of a rule, in other case", as: user, target: "/by-mail/x", both: notFound},
		{family: family, name: "e-mail address of a rule, another user", as: tricky, target: "/by-mail/x", both: isForbidden},
		{family: family, name: "e-mail address of a rule, an administrator", as: administrator, target: "/by-mail/x", both: isForbidden},
		{family: family, name: "e-mail address of a rule, nobody", target: "/by-mail/x", both: signInFirst},
		{family: family, name: "e-mail address of a rule, by a header", as: tricky, target: "/by-mail/x", lines: []string{"Cookie: gatehouse-dev={tricky}", "kubeflow-userid: user@example.com"}, both: isForbidden},
		{family: family, name: "connector and id of a rule", as: user, target: "/by-id/x", both: notFound},
		{family: family, name: "connector and id of a rule, another user", as: tricky, target: "/by-id/x", both: isForbidden},
		{family: family, name: "connector and id of a rule, nobody", target: "/by-id/x", both: signInFirst},
		{family: family, name: "spellings of a user's name", on: []string{"hardened"}, play: spellings},
		{family: family, name: "guesses count together, with a dotted capital I", on: []string{"hardened"}, play: dottedGuesses},
		{family: family, name: "guesses count together, whatever the spelling", on: []string{"hardened"}, play: guesses},
	}
}

// spellings signs in with what some part of a program could take for the name of another user.
func spellings(t testing.TB, w *world, e *edge) {
	page := must(t)(w.browser(e).visit(t.Context(), "http://"+appHost+"/headers"))
	action, err := page.action()
	if err != nil {
		t.Fatal(err)
	}
	for name, login := range inOrder(map[string]string{
		"null byte": user + "\x00", "null byte and another": user + "\x00" + administrator, "two at signs": user + "@evil.example", "two addresses": user + "," + administrator,
		"full-width": "\uff41dmin@example.com", "dotless i": "adm\u0131n@example.com", "zero-width": "admin\u200b@example.com",
		"combining": "a\u0301dmin@example.com", "bad UTF-8": "admin\xff@example.com", "wildcard": "*", "filter": "*)(uid=*", "distinguished name": "uid=admin,dc=example", "quoted": `"admin"@example.com`,
		"user id": "id-admin", "connector and user id": "local:id-admin", "user name": "admin", "line break": "admin@example.com\r\nuser@example.com",
	}) {
		b := w.browser(e)
		must(t)(b.visit(t.Context(), "http://"+appHost+"/headers")) // for its pre-cookies
		p := must(t)(b.step(t.Context(), http.MethodPost, action, url.Values{"login": {login}, "password": {w.passwords[user]}}, "Origin: http://"+issuerHost))
		if _, set := p.cookie(ssoCookie); set || p.status != http.StatusUnauthorized {
			t.Errorf("%s, with the password of a user: got %s, want 401", name, p)
		}
	}
}

// dottedGuesses guesses under a spelling that the store takes for the same name (unicode.ToLower).
func dottedGuesses(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	page := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	spellings := []string{"\u0130nvited@example.com", "\u0130nv\u0130ted@example.com", invited}
	for i := range 6 {
		login := spellings[i%len(spellings)]
		p := must(t)(b.submit(t.Context(), page, url.Values{"login": {login}, "password": {"not-the-right-password"}}))
		if p.status != http.StatusUnauthorized && i < 5 {
			t.Fatalf("guess %d, for %q: got %s, want 401", i, login, p)
		}
		if p.status != http.StatusTooManyRequests && i >= 5 {
			t.Errorf("guess %d, for %q: got %s, want 429", i, login, p)
		}
	}
	p := must(t)(b.submit(t.Context(), page, url.Values{"login": {spellings[0]}, "password": {w.passwords[invited]}}))
	if _, set := p.cookie(ssoCookie); set {
		t.Error("and the right password signs in under that spelling")
	}
}

// guesses are wrong passwords for one user under several spellings: then not even the right one is tried.
func guesses(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	page := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	same := []string{locked, strings.ToUpper(locked), "Limited@Example.com", " " + locked, "\uff2cIMITED@example.com"}
	for _, login := range same {
		p := must(t)(b.submit(t.Context(), page, url.Values{"login": {login}, "password": {"not-the-right-password"}}))
		if p.status != http.StatusUnauthorized {
			t.Errorf("a guess for %q: got %s, want 401", login, p)
		}
	}
	for _, login := range same {
		p := must(t)(b.submit(t.Context(), page, url.Values{"login": {login}, "password": {w.passwords[locked]}}))
		if _, set := p.cookie(ssoCookie); set || p.status != http.StatusTooManyRequests || p.header.Get("Retry-After") == "" {
			t.Errorf("the password of %q after five guesses: got %s, want 429 and Retry-After", login, p)
		}
	}
}
