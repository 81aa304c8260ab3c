package envoy

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// issuerRows attack the issuer, at its own port and through Envoy.
func issuerRows() []row {
	return slices.Concat(redirectURIRows(), codeRows(), grantRows(), logoutRows(), issuerHostRows(), issuerMethodRows())
}

// atIssuer are the edges that scenes at the issuer run at.
func atIssuer() []string { return []string{"hardened", "issuer"} }

// redirectURIs are almost the one that the client has registered, http://client.example.test/cb.
var redirectURIs = map[string]string{
	"slash behind": clientOrigin + "/cb/", "query": clientOrigin + "/cb?x=1", "empty query": clientOrigin + "/cb?", "fragment": clientOrigin + "/cb#x", "empty fragment": clientOrigin + "/cb#",
	"case of the path": clientOrigin + "/CB", "case of the host": "http://CLIENT.example.test/cb", "case of the scheme": "HTTP://client.example.test/cb", "port": "http://client.example.test:80/cb", "other port": "http://client.example.test:8080/cb",
	"scheme": "https://client.example.test/cb", "no scheme": "//client.example.test/cb", "path only": "/cb", "user": "http://client.example.test@evil.example/cb", "user of ours": "http://evil.example@client.example.test/cb",
	"suffix": clientOrigin + ".evil.example/cb", "prefix": "http://evil-client.example.test/cb", "sub-domain": "http://x.client.example.test/cb", "dot segments": clientOrigin + "/cb/../cb", "escaped dot segments": clientOrigin + "/x/%2e%2e/cb",
	"escaped letter": clientOrigin + "/%63b", "escaped slash": clientOrigin + "%2fcb", "backslash": `http://client.example.test\@evil.example/cb`, "tab": "http://client.example.test/\tcb", "blank behind": clientOrigin + "/cb ", "blank before": " " + clientOrigin + "/cb",
	"line break": clientOrigin + "/cb\r\nLocation: http://evil.example/", "null byte": clientOrigin + "/cb\x00.evil.example", "trailing dot": "http://client.example.test./cb", "script": "javascript:alert(1)//client.example.test/cb", "data": "data:text/html,x",
	"two at once": clientOrigin + "/cb," + "http://evil.example/", "wildcard": "http://*.example.test/cb", "loopback": "http://127.0.0.1/cb", "localhost": "http://localhost:1/cb", "out of band": "urn:ietf:wg:oauth:2.0:oob",
	"another client's": clientOrigin + "/elsewhere", "the gateway's own": issuer + "/gatehouse/callback", "after logout": clientOrigin + "/bye",
}

func redirectURIRows() (all []row) {
	const family = "redirects"
	for name, uri := range inOrder(redirectURIs) {
		all = append(all, row{family: family, name: "redirect_uri: " + name, on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			w.refusesURI(t, e, url.Values{"redirect_uri": {uri}})
		}})
	}
	for name, form := range inOrder(map[string]url.Values{
		"missing": {}, "empty": {"redirect_uri": {""}}, "evil one first": {"redirect_uri": {"http://evil.example/", clientOrigin + "/cb"}},
		"with an error": {"redirect_uri": {"http://evil.example/"}, "response_type": {"x"}}, "silently": {"redirect_uri": {"http://evil.example/"}, "prompt": {"none"}},
		"with a client that is none": {"redirect_uri": {clientOrigin + "/cb"}, "client_id": {"nobody"}}, "with two clients": {"redirect_uri": {clientOrigin + "/elsewhere"}, "client_id": {"outside", "elsewhere"}},
	}) {
		all = append(all, row{family: family, name: "redirect_uri " + name, on: atIssuer(), play: func(t testing.TB, w *world, e *edge) { w.refusesURI(t, e, form) }})
	}
	return append(all,
		row{family: family, name: "redirect_uri: good one first leads nowhere else", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			b := w.knownBrowser(t, e)
			form := outsideQuery("openid")
			form["redirect_uri"] = []string{clientOrigin + "/cb", "http://evil.example/"}
			if p := must(t)(b.step(t.Context(), http.MethodGet, issuer+"/auth?"+form.Encode(), nil)); p.location() != "" && !strings.HasPrefix(p.location(), clientOrigin+"/cb?") && !w.own(p.location()) {
				t.Errorf("leads to %q", p.location())
			}
		}},
		row{family: family, name: "response_mode changes no place", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			for _, mode := range []string{"fragment", "form_post", "web_message", "query.jwt", "x\r\ny: z"} {
				form := outsideQuery("openid")
				form.Set("response_mode", mode)
				p := must(t)(w.knownBrowser(t, e).step(t.Context(), http.MethodGet, issuer+"/auth?"+form.Encode(), nil))
				if l := p.location(); !strings.HasPrefix(l, clientOrigin+"/cb?") && (l != "" || strings.Contains(p.body, "code=")) {
					t.Errorf("%s: %s", mode, p)
				}
			}
		}},
	)
}

// outsideQuery is an authorization request of the outside client.
func outsideQuery(scope string) url.Values {
	return url.Values{"client_id": {"outside"}, "response_type": {"code"}, "scope": {scope}, "redirect_uri": {clientOrigin + "/cb"}, "state": {"a-state"}, "nonce": {rand.Text()}}
}

// refusesURI asks for a code as a browser that the issuer knows, which would get one at once, by GET and by POST.
func (w *world) refusesURI(t testing.TB, e *edge, change url.Values) {
	t.Helper()
	form := outsideQuery("openid")
	form.Del("redirect_uri")
	maps.Copy(form, change)
	b := w.knownBrowser(t, e)
	for _, p := range []*page{
		must(t)(b.step(t.Context(), http.MethodGet, issuer+"/auth?"+form.Encode(), nil)),
		must(t)(b.step(t.Context(), http.MethodGet, issuer+"/auth/local?"+form.Encode(), nil)),
		must(t)(b.step(t.Context(), http.MethodPost, issuer+"/auth", form)),
	} {
		if p.location() != "" || p.status < 400 || p.status > 499 || p.header.Get("Refresh") != "" {
			t.Errorf("got %s, want a refusal without a redirect", p)
		}
	}
}

// verifier is a code verifier (RFC 7636 section 4.1).
const verifier = "a-verifier-of-forty-three-characters-at-least-0"

// challenge is its S256 challenge.
func challenge() string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// codeRows exchange authorization codes as only the client that asked may.
func codeRows() (all []row) {
	const family = "provider"
	for name, c := range inOrder(map[string]struct {
		ask, exchange url.Values
		good          bool
	}{
		"S256, good":                 {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{"code_verifier": {verifier}}, true},
		"S256, none":                 {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{}, false},
		"S256, empty":                {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{"code_verifier": {""}}, false},
		"S256, wrong":                {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{"code_verifier": {verifier + "x"}}, false},
		"S256, the challenge":        {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{"code_verifier": {challenge()}}, false},
		"S256, downgraded":           {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{"code_verifier": {challenge()}, "code_challenge_method": {"plain"}}, false},
		"S256, two":                  {url.Values{"code_challenge": {challenge()}, "code_challenge_method": {"S256"}}, url.Values{"code_verifier": {"x", verifier}}, false},
		"no method is plain, hashed": {url.Values{"code_challenge": {challenge()}}, url.Values{"code_verifier": {verifier}}, false},
		"plain, wrong":               {url.Values{"code_challenge": {verifier}, "code_challenge_method": {"plain"}}, url.Values{"code_verifier": {verifier + "x"}}, false},
		"plain, none":                {url.Values{"code_challenge": {verifier}, "code_challenge_method": {"plain"}}, url.Values{}, false},
		"verifier without challenge": {url.Values{}, url.Values{"code_verifier": {verifier}}, false},
		"redirect_uri of another":    {url.Values{}, url.Values{"redirect_uri": {clientOrigin + "/elsewhere"}}, false},
		"redirect_uri missing":       {url.Values{}, url.Values{"redirect_uri": {}}, false},
		"redirect_uri foreign":       {url.Values{}, url.Values{"redirect_uri": {"http://evil.example/"}}, false},
		"code damaged":               {url.Values{}, url.Values{"code": {"aaaaaaaaaaaaaaaaaaaaaaaaa"}}, false},
		"code twice":                 {url.Values{}, url.Values{"code": {"x", "y"}}, false},
		"nothing wrong":              {url.Values{}, url.Values{}, true},
	}) {
		all = append(all, row{family: family, name: "code, PKCE: " + name, on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			form := codeForm(w.codeFor(t, e, c.ask))
			maps.Copy(form, c.exchange)
			status, got := w.token(t, e, w.client.id, form)
			if c.good != (status == http.StatusOK) || !c.good && (status != http.StatusBadRequest || got["access_token"] != nil) {
				t.Errorf("%d %v, want success: %v", status, got, c.good)
			}
		}})
	}
	return append(all,
		row{family: family, name: "PKCE method that is none", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			for _, method := range []string{"S512", "none", "s256", "S256 "} {
				w.isRefused(t, e, "/auth?"+join(outsideQuery("openid"), url.Values{"code_challenge": {challenge()}, "code_challenge_method": {method}}).Encode(), "", "")
			}
		}},
		row{family: family, name: "a replayed code ends what it led to", on: atIssuer(), play: replayEndsFamily},
		row{family: family, name: "one code, many at once", on: atIssuer(), play: codeRace},
		row{family: family, name: "one refresh token, many at once", on: atIssuer(), play: refreshRace},
		row{family: family, name: "an old refresh token is refused", on: atIssuer(), play: oldRefresh},
		row{family: family, name: "refresh widens no scope", on: atIssuer(), play: refreshScope},
		row{family: family, name: "consent to two requests at once", on: []string{"hardened"}, play: approvalMix},
		row{family: family, name: "consent is not for another browser", on: []string{"hardened", "direct"}, play: approvalTheft},
	)
}

func join(a, b url.Values) url.Values {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// codeFor gets a code for the outside client, as a browser that the issuer knows.
func (w *world) codeFor(t testing.TB, e *edge, change url.Values) string {
	t.Helper()
	p := must(t)(w.knownBrowser(t, e).step(t.Context(), http.MethodGet, issuer+"/auth?"+join(outsideQuery("openid email offline_access"), change).Encode(), nil))
	code := parse(p.location()).Query().Get("code")
	if !strings.HasPrefix(p.location(), clientOrigin+"/cb?") || code == "" {
		t.Fatalf("no code: %s", p)
	}
	return code
}

func refreshForm(token any) url.Values {
	s, _ := token.(string)
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {s}}
}

func replayEndsFamily(t testing.TB, w *world, e *edge) {
	code := w.codeFor(t, e, nil)
	status, first := w.token(t, e, w.client.id, codeForm(code))
	if status != http.StatusOK {
		t.Fatalf("the code: %d %v", status, first)
	}
	w.token(t, e, w.client.id, codeForm(code))
	if status, got := w.token(t, e, w.client.id, refreshForm(first["refresh_token"])); status == http.StatusOK {
		t.Errorf("the refresh token of a replayed code works: %v", got["token_type"])
	}
	token, _ := first["access_token"].(string)
	if p := w.userinfo(t, e, token); p.status != http.StatusUnauthorized {
		t.Errorf("userinfo with the access token of a replayed code: %s", p)
	}
}

// race sends a request eight times at once and returns the successful answers.
func (w *world) race(t testing.TB, e *edge, form url.Values) (won []map[string]any) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			status, got := w.token(t, e, w.client.id, form)
			mu.Lock()
			defer mu.Unlock()
			if status == http.StatusOK {
				won = append(won, got)
			} else if got["error"] == nil || got["access_token"] != nil {
				t.Errorf("got %d %v", status, got)
			}
		})
	}
	wg.Wait()
	return won
}

// codeRace exchanges a code eight times at once: that is a replay, which ends what the one success led to, if it comes to one at all.
func codeRace(t testing.TB, w *world, e *edge) {
	won := w.race(t, e, codeForm(w.codeFor(t, e, nil)))
	if len(won) > 1 {
		t.Errorf("%d of 8 exchanges of one code succeeded, want 1 at most", len(won))
	}
	for _, got := range won {
		if status, _ := w.token(t, e, w.client.id, refreshForm(got["refresh_token"])); status == http.StatusOK {
			t.Error("the refresh token of a code that was replayed meanwhile works")
		}
	}
}

// refreshRace refreshes eight times at once. Within expiry.refreshTokens.reuseInterval an answer may be lost and asked for again,
// but all answers are one family: of the tokens that they bring one at most is good for another.
func refreshRace(t testing.TB, w *world, e *edge) {
	_, got := w.token(t, e, w.client.id, codeForm(w.codeFor(t, e, nil)))
	won := w.race(t, e, refreshForm(got["refresh_token"]))
	tokens := map[any]bool{}
	for _, a := range won {
		tokens[a["refresh_token"]] = true
	}
	if len(won) == 0 || len(tokens) != 1 {
		t.Errorf("%d of 8 refreshes succeeded, with %d different tokens, want one", len(won), len(tokens))
	}
}

// oldRefresh shows a refresh token that is two generations old: it must not work, whatever the reuse interval.
func oldRefresh(t testing.TB, w *world, e *edge) {
	_, got := w.token(t, e, w.client.id, codeForm(w.codeFor(t, e, nil)))
	old := got["refresh_token"]
	for range 2 {
		var status int
		if status, got = w.token(t, e, w.client.id, refreshForm(got["refresh_token"])); status != http.StatusOK {
			t.Fatalf("refresh: %d %v", status, got)
		}
	}
	if status, again := w.token(t, e, w.client.id, refreshForm(old)); status != http.StatusBadRequest {
		t.Errorf("a token of two generations ago: %d %v", status, again)
	}
	for _, bad := range []string{"", "x", damage(fmt.Sprint(got["refresh_token"])), fmt.Sprint(got["access_token"]), fmt.Sprint(got["refresh_token"]) + "A"} {
		if status, again := w.token(t, e, w.client.id, refreshForm(bad)); status != http.StatusBadRequest {
			t.Errorf("a token that is none: %d %v", status, again)
		}
	}
}

func refreshScope(t testing.TB, w *world, e *edge) {
	_, got := w.token(t, e, w.client.id, codeForm(w.codeFor(t, e, nil)))
	form := refreshForm(got["refresh_token"])
	form.Set("scope", "openid email offline_access groups profile")
	if status, got := w.token(t, e, w.client.id, form); status != http.StatusBadRequest {
		t.Errorf("got %d %v, want 400", status, got)
	}
}

// approvalTheft leaves a browser at the page that asks for consent. Whoever has its link, or only the id in it, gets no code in
// another browser, signed in as somebody else or not at all (CVE-2022-39222).
func approvalTheft(t testing.TB, w *world, e *edge) {
	b := w.knownBrowser(t, e)
	id, good := b.consent(t)
	other := w.signedIn(t, e, administrator)
	for name, thief := range map[string]*browser{"nobody": w.browser(e), "another user": other} {
		for _, hmac := range []string{good, "", damage(good), "AAAA"} {
			target := issuer + "/approval?" + url.Values{"req": {id}, "hmac": {hmac}}.Encode()
			for _, p := range []*page{
				must(t)(thief.step(t.Context(), http.MethodGet, target, nil)),
				must(t)(thief.step(t.Context(), http.MethodPost, target, url.Values{"approval": {"approve"}, "req": {id}, "hmac": {hmac}}, "Origin: http://"+issuerHost)),
			} {
				if p.status < 400 || strings.Contains(p.location(), "code=") {
					t.Errorf("%s, hmac %.4q: got %s", name, hmac, p)
				}
			}
		}
	}
	for _, hmac := range []string{"", damage(good)} {
		target := issuer + "/approval?" + url.Values{"req": {id}, "hmac": {hmac}}.Encode()
		if p := must(t)(b.clone().step(t.Context(), http.MethodPost, target, url.Values{"approval": {"approve"}, "req": {id}}, "Origin: http://"+issuerHost)); strings.Contains(p.location(), "code=") {
			t.Errorf("the same browser without the right hmac: %s", p)
		}
	}
}

// consent takes a browser to the page that asks for consent and returns the parameters of its link.
func (b *browser) consent(t testing.TB) (req, hmac string) {
	t.Helper()
	form := join(outsideQuery("openid email"), url.Values{"prompt": {"consent"}})
	p := must(t)(b.visit(t.Context(), issuer+"/auth?"+form.Encode()))
	if !strings.HasSuffix(p.url.Path, "/approval") || p.status != http.StatusOK {
		t.Fatalf("not asked for consent: %s", p)
	}
	return p.url.Query().Get("req"), p.url.Query().Get("hmac")
}

// approvalMix names the thief's own request in one place and the victim's in another: whichever is read, no code is the victim's.
func approvalMix(t testing.TB, w *world, e *edge) {
	thief := w.signedIn(t, e, administrator)
	for i := range 4 {
		req, hmac := w.knownBrowser(t, e).consent(t)
		own, ownHMAC := thief.consent(t)
		query, body := url.Values{"req": {own}, "hmac": {ownHMAC}}, url.Values{"req": {req}, "hmac": {hmac}, "approval": {"approve"}}
		switch i {
		case 1:
			query, body = url.Values{"req": {req}, "hmac": {hmac}}, url.Values{"req": {own}, "hmac": {ownHMAC}, "approval": {"approve"}}
		case 2:
			query, body = url.Values{"req": {own, req}, "hmac": {ownHMAC, hmac}}, url.Values{"approval": {"approve"}}
		case 3:
			query, body = url.Values{}, url.Values{"req": {own, req}, "hmac": {hmac, ownHMAC}, "approval": {"approve"}}
		}
		p := must(t)(thief.step(t.Context(), http.MethodPost, issuer+"/approval?"+query.Encode(), body, "Origin: http://"+issuerHost))
		code := parse(p.location()).Query().Get("code")
		if code == "" {
			continue
		}
		_, got := w.token(t, e, w.client.id, codeForm(code))
		token, _ := got["access_token"].(string)
		if p := w.userinfo(t, e, token); strings.Contains(p.body, user) {
			t.Errorf("%d: a code of the victim's: %s", i, p)
		}
	}
}

// grantRows ask the token endpoint as nobody may.
func grantRows() (all []row) {
	const family = "provider"
	for name, c := range inOrder(map[string]struct{ form, id, secret string }{
		"password":                   {"grant_type=password&username=user@example.com&password=x&scope=openid", "outside", "{secret}"},
		"client credentials":         {"grant_type=client_credentials&scope=openid", "outside", "{secret}"},
		"token exchange":             {"grant_type=urn:ietf:params:oauth:grant-type:token-exchange&connector_id=local&subject_token=x&subject_token_type=urn:ietf:params:oauth:token-type:access_token", "outside", "{secret}"},
		"JWT bearer":                 {"grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion=x", "outside", "{secret}"},
		"device":                     {"grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code=x", "outside", "{secret}"},
		"implicit":                   {"grant_type=implicit", "outside", "{secret}"},
		"no grant type":              {"code=x", "outside", "{secret}"},
		"two grant types":            {"grant_type=x&grant_type=authorization_code&code=x", "outside", "{secret}"},
		"wrong secret":               {"grant_type=authorization_code&code={code}", "outside", "x"},
		"empty secret":               {"grant_type=authorization_code&code={code}", "outside", ""},
		"secret and more":            {"grant_type=authorization_code&code={code}", "outside", "{secret}x"},
		"client in upper case":       {"grant_type=authorization_code&code={code}", "OUTSIDE", "{secret}"},
		"client with a null byte":    {"grant_type=authorization_code&code={code}", "outside%00", "{secret}"},
		"client with a blank":        {"grant_type=authorization_code&code={code}", "outside ", "{secret}"},
		"no client":                  {"grant_type=authorization_code&code={code}", "", ""},
		"client without its secret":  {"grant_type=authorization_code&code={code}&client_id=outside", "", ""},
		"client assertion":           {"grant_type=authorization_code&code={code}&client_id=outside&client_assertion=x&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "", ""},
		"another client beside":      {"grant_type=authorization_code&code={code}&client_id=outside", "elsewhere", "{secret}"},
		"a refresh token for a code": {"grant_type=refresh_token&refresh_token={code}", "outside", "{secret}"},
	}) {
		all = append(all, row{family: family, name: "grant: " + name, on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			form := c.form
			if strings.Contains(form, "{code}") {
				form = strings.ReplaceAll(form, "{code}", w.codeFor(t, e, nil)) + "&redirect_uri=" + url.QueryEscape(clientOrigin+"/cb")
			}
			r := &http.Request{Header: http.Header{}}
			lines := []string{"Content-Type: application/x-www-form-urlencoded"}
			if c.id != "" {
				r.SetBasicAuth(c.id, strings.ReplaceAll(c.secret, "{secret}", w.client.secret))
				lines = append(lines, "Authorization: "+r.Header.Get("Authorization"))
			}
			p := must(t)(fetch(t.Context(), e.http, http.MethodPost, issuer+"/token", form, lines...))
			if p.status != http.StatusBadRequest && p.status != http.StatusUnauthorized && p.status != http.StatusForbidden || strings.Contains(p.body, "_token\":") {
				t.Errorf("got %s, want a refusal", p)
			}
		}})
	}
	return append(all,
		row{family: family, name: "request objects are not fetched", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			trap := "http://" + w.app.addr + "/request.jwt"
			for _, change := range []url.Values{{"request_uri": {trap}}, {"request": {"eyJhbGciOiJub25lIn0.e30."}}, {"claims_locales": {trap}}, {"id_token_hint": {"x"}, "request_uri": {trap}}} {
				b := w.browser(e)
				p := must(t)(b.step(t.Context(), http.MethodGet, issuer+"/auth?"+join(outsideQuery("openid"), change).Encode(), nil))
				if strings.Contains(p.location(), "code=") {
					t.Errorf("%v: %s", change, p)
				}
			}
			if a := w.app.take(); len(a) != 0 {
				t.Errorf("fetched: %+v", a)
			}
		}},
		row{family: family, name: "multipart forms name no other client", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			body := "--x\r\nContent-Disposition: form-data; name=\"client_id\"\r\n\r\ngatehouse\r\n--x\r\nContent-Disposition: form-data; name=\"grant_type\"\r\n\r\nclient_credentials\r\n--x--\r\n"
			for _, path := range []string{"/token", "/token/introspect", "/auth?client_id=outside"} {
				p := must(t)(fetch(t.Context(), e.http, http.MethodPost, issuer+path, body, "Content-Type: multipart/form-data; boundary=x"))
				if p.status < 400 || p.status > 499 || strings.Contains(p.body, "_token") {
					t.Errorf("%s: got %s, want a refusal", path, p)
				}
			}
		}},
		row{family: family, name: "token in the query is no credential", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			token := w.goodToken(t, e)
			for _, target := range []string{"/userinfo?access_token=" + token, "/userinfo?Authorization=Bearer+" + token} {
				if p := must(t)(fetch(t.Context(), e.http, http.MethodGet, issuer+target, "")); p.status != http.StatusUnauthorized {
					t.Errorf("%.30s: got %s, want 401", target, p)
				}
			}
		}},
		row{family: family, name: "large bodies are refused", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			for _, path := range []string{"/token", "/token/introspect", "/auth", "/auth/local/login?req=x", "/callback"} {
				p := must(t)(fetch(t.Context(), e.http, http.MethodPost, issuer+path, "a="+strings.Repeat("b", 200<<10), "Content-Type: application/x-www-form-urlencoded"))
				if p.status < 400 || p.status > 499 {
					t.Errorf("%s: got %s, want a refusal", path, p)
				}
			}
		}},
		row{family: family, name: "no other site may read an answer", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			for _, path := range []string{"/token", "/userinfo", "/keys", "/.well-known/openid-configuration", "/auth", "/logout", "/token/introspect"} {
				for _, method := range []string{http.MethodOptions, http.MethodGet, http.MethodPost} {
					p := must(t)(fetch(t.Context(), e.http, method, issuer+path, "", "Origin: http://evil.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"))
					if got := p.header.Get("Access-Control-Allow-Origin"); got != "" {
						t.Errorf("%s %s: Access-Control-Allow-Origin %q", method, path, got)
					}
				}
			}
		}},
	)
}

// logoutRows ask the issuer's logout to lead elsewhere, or to end the session of a user who did not ask.
func logoutRows() (all []row) {
	const family = "session"
	for name, c := range inOrder(map[string]struct {
		method string
		lines  []string
		want   int
	}{
		"form of another site":          {http.MethodPost, []string{"Origin: http://evil.example"}, 403},
		"form without an origin":        {http.MethodPost, []string{"Origin: null"}, 403},
		"form of an app":                {http.MethodPost, []string{"Origin: http://" + appHost}, 403},
		"form of the same site":         {http.MethodPost, []string{"Sec-Fetch-Site: same-site"}, 403},
		"form of two origins":           {http.MethodPost, []string{"Origin: http://" + issuerHost, "Origin: http://evil.example"}, 403},
		"link of another site":          {http.MethodGet, []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"}, 200},
		"image":                         {http.MethodGet, []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"}, 200},
		"HEAD":                          {http.MethodHead, nil, 405},
		"form with another's origin":    {http.MethodPost, []string{"Origin: http://" + issuerHost + ".evil.example"}, 403},
		"form of the issuer over https": {http.MethodPost, []string{"Origin: https://" + issuerHost}, 403},
	}) {
		all = append(all, row{family: family, name: "forged logout: " + name, on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			b := w.knownBrowser(t, e)
			p := must(t)(b.clone().step(t.Context(), c.method, issuer+"/logout", url.Values{}, c.lines...))
			if p.status != c.want {
				t.Errorf("got %s, want %d", p, c.want)
			}
			w.stillKnown(t, b)
		}})
	}
	all = append(all, row{family: family, name: "forged logout: hint of another user", on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
		_, code := w.outsideAs(t, e, administrator, "openid email")
		_, got := w.token(t, e, w.client.id, codeForm(code))
		hint, _ := got["id_token"].(string)
		b := w.knownBrowser(t, e)
		for _, uri := range []string{"", clientOrigin + "/bye"} {
			form := url.Values{"id_token_hint": {hint}, "post_logout_redirect_uri": {uri}}
			for _, p := range []*page{
				must(t)(b.clone().step(t.Context(), http.MethodPost, issuer+"/logout", form, "Origin: http://evil.example", "Sec-Fetch-Site: cross-site")),
				must(t)(b.clone().step(t.Context(), http.MethodGet, issuer+"/logout?"+form.Encode(), nil, "Sec-Fetch-Site: cross-site")),
			} {
				if p.location() != "" {
					t.Errorf("leads on without asking: %s", p)
				}
			}
			w.stillKnown(t, b)
		}
	}})
	for name, uri := range inOrder(redirectURIs) {
		uri = strings.ReplaceAll(strings.ReplaceAll(uri, "/cb", "/bye"), "/CB", "/BYE")
		if uri == clientOrigin+"/bye" {
			continue
		}
		all = append(all, row{family: "redirects", name: "post_logout_redirect_uri: " + name, on: atIssuer(), play: func(t testing.TB, w *world, e *edge) {
			b := w.knownBrowser(t, e)
			for _, form := range []url.Values{{"post_logout_redirect_uri": {uri}, "id_token_hint": {w.idToken(t, e)}}, {"post_logout_redirect_uri": {uri}, "client_id": {"outside"}}} {
				p := must(t)(b.clone().step(t.Context(), http.MethodGet, issuer+"/logout?"+form.Encode(), nil))
				if l := p.location(); l != "" && !w.own(l) || strings.Contains(p.body, "evil.example") {
					t.Errorf("leads on: %s", p)
				}
			}
		}})
	}
	return all
}

// stillKnown checks that the issuer's session of a browser lives.
func (w *world) stillKnown(t testing.TB, b *browser) {
	t.Helper()
	p := must(t)(b.clone().step(t.Context(), http.MethodGet, issuer+"/auth?"+outsideQuery("openid").Encode(), nil))
	if parse(p.location()).Query().Get("code") == "" {
		t.Errorf("the session has ended: %s", p)
	}
}

// issuerHostRows name other hosts to the issuer: its pages are for its own, and nothing is built from a name that a client chose.
func issuerHostRows() (all []row) {
	const family = "hosts"
	wrong := refused(http.StatusMisdirectedRequest)
	sane := func(t testing.TB, _ *world, p *page) {
		t.Helper()
		if strings.Contains(fmt.Sprint(p.header)+p.body, "evil") || len(p.header.Values("Set-Cookie")) != 0 {
			t.Errorf("got %s, %v", p, p.header)
		}
	}
	for name, host := range inOrder(map[string]string{
		"another": "evil.example", "suffix": issuerHost + ".evil.example", "prefix": "evil-" + issuerHost, "user": "evil.example@" + issuerHost, "address": "127.0.0.1", "an app's": appHost,
	}) {
		status := wrong
		if strings.Contains(host, "@") {
			status = refused(http.StatusBadRequest) // net/http
		}
		for _, target := range []string{"/dex/auth?client_id=outside", "/dex/auth/local/login?req=x", "/dex/logout", "/dex/account", "/dex/callback?state=x", "/dex/gatehouse/callback", "/dex/approval", "/dex/mfa"} {
			all = append(all, row{family: family, name: "issuer's page under " + name + ": " + target, host: host, target: target, issuer: status, check: sane})
		}
	}
	for _, lines := range [][]string{
		{"X-Forwarded-Host: evil.example"},
		{"X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example", "X-Forwarded-Port: 1"},
		{"Forwarded: host=evil.example;proto=https"},
		{"X-Original-Host: evil.example", "X-Host: evil.example"},
		{"X-Forwarded-Prefix: /evil", "X-Original-URL: /evil", "X-Rewrite-URL: /evil"},
	} {
		name, _, _ := strings.Cut(lines[0], ":")
		for _, target := range []string{"/dex/.well-known/openid-configuration", "/dex/auth?" + outsideQuery("openid").Encode(), "/dex/logout"} {
			v := refused(http.StatusOK)
			check := sane
			if strings.HasPrefix(target, "/dex/auth?") {
				v = refused(http.StatusSeeOther)
				check = func(t testing.TB, _ *world, p *page) {
					t.Helper()
					if l := p.location(); !strings.HasPrefix(l, "/dex/auth/local/login?req=") {
						t.Errorf("leads to %q", l)
					}
				}
			}
			path, _, _ := strings.Cut(target, "?")
			all = append(all, row{family: family, name: "issuer believes no " + name + ": " + path, host: issuerHost, target: target, lines: lines, both: v, issuer: v, check: check})
		}
	}
	return append(all,
		row{family: family, name: "issuer, two Host headers", host: issuerHost, target: "/dex/logout", lines: []string{"Host: evil.example"}, both: isAmbiguous, issuer: isAmbiguous},
		row{family: family, name: "issuer, no host", host: noHost, target: "/dex/logout", issuer: wrong},
		row{family: family, name: "issuer, absolute form of another host", host: issuerHost, target: "http://evil.example/dex/logout", both: isForbidden, issuer: wrong},
		row{family: family, name: "issuer, discovery under another name", host: "evil.example", target: "/dex/.well-known/openid-configuration", both: isForbidden, issuer: refused(http.StatusOK), check: func(t testing.TB, w *world, p *page) {
			if p.status == http.StatusOK {
				sane(t, w, p)
			}
		}},
	)
}

// issuerMethodRows use methods that the issuer's paths do not have.
func issuerMethodRows() (all []row) {
	const family = "methods"
	for _, c := range []struct{ path, has string }{
		{"/dex/token", "OPTIONS POST"},
		{"/dex/keys", "GET HEAD OPTIONS"},
		{"/dex/auth/local/login", "GET HEAD POST"},
		{"/dex/logout", "GET HEAD POST"},
		{"/dex/account", "GET HEAD POST"},
		{"/dex/account/password", "GET HEAD"},
		{"/dex/token/introspect", "POST"},
		{"/dex/.well-known/openid-configuration", "GET HEAD OPTIONS"},
		{"/dex/callback", "GET HEAD POST"},
		{"/dex/gatehouse/callback", "GET HEAD"},
		{"/dex/auth", "GET HEAD POST"},
		{"/dex/approval", "GET HEAD POST"},
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} {
			if slices.Contains(strings.Fields(c.has), method) {
				continue
			}
			v := refused(http.StatusNotFound)
			all = append(all, row{family: family, name: method + " " + c.path, host: issuerHost, method: method, target: c.path, lines: []string{"X-HTTP-Method-Override: POST", "Content-Length: 0"}, both: v, issuer: v, check: leadsTo("")})
		}
	}
	for _, path := range []string{"/dex/device", "/dex/device/code", "/dex/device/token", "/dex/device/callback", "/dex/device/auth/verify_code", "/dex/", "/dex", "/dex/healthz", "/dex/theme/x", "/dex/account/", "/dex/account/x", "/dex/accounts", "/dex/api", "/dex/auth/local/", "/dex/auth/local/login/x", "/dex/debug/pprof/", "/dex/metrics"} {
		for _, method := range []string{"GET", "POST"} {
			v := refused(http.StatusNotFound)
			all = append(all, row{family: family, name: method + " " + path + " is closed", host: issuerHost, method: method, target: path, lines: []string{"Content-Length: 0"}, both: v, issuer: v, check: leadsTo("")})
		}
	}
	return all
}
