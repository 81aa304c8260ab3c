package provider

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/oauth2"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

var errFault = errors.New("the database has lost the connection")

// faultKey marks the context of what a faultDriver fails for: what goes on in the background does not count.
type faultKey struct{}

// A faultDriver fails the nth operation of those that count, and all that follow if it is down for good.
type faultDriver struct {
	store.Driver

	mu    sync.Mutex
	armed bool
	at, n int
	ever  bool
	after bool // writes are made, and nobody hears of it
	hit   bool
}

func (d *faultDriver) fails(ctx context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.armed || ctx.Value(faultKey{}) == nil {
		return false
	}
	n := d.n
	d.n++
	fails := n == d.at || d.ever && n > d.at
	d.hit = d.hit || fails
	return fails
}

// arm fails from the nth operation on, and the result tells whether there was one.
func (d *faultDriver) arm(at int, ever, after bool) (disarm func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.at, d.n, d.ever, d.after, d.hit = true, at, 0, ever, after, false
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.armed = false
		return d.hit
	}
}

func (d *faultDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if d.fails(ctx) {
		return store.Record{}, errFault
	}
	return d.Driver.Read(ctx, kind, id)
}

func (d *faultDriver) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	if d.fails(ctx) {
		return func(yield func(store.Record, error) bool) { yield(store.Record{}, errFault) }
	}
	return d.Driver.Scan(ctx, q)
}

func (d *faultDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if !d.fails(ctx) {
		return d.Driver.Write(ctx, ops)
	}
	if d.after {
		if _, err := d.Driver.Write(ctx, ops); err != nil {
			return 0, err
		}
	}
	return 0, errFault
}

func faultWorld(t *testing.T, text string) (*world, *faultDriver) {
	t.Helper()
	clk, d := &clock{}, &faultDriver{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	return newWorld(t, text, st, seal.NewKey(), clk), d
}

// counted is a handler whose requests count for a faultDriver.
func counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, true)))
	})
}

// counts makes a browser's requests count.
func (b *browser) counts() *browser {
	inner := b.c.Transport
	b.c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		return inner.RoundTrip(r.WithContext(context.WithValue(r.Context(), faultKey{}, true)))
	})
	return b
}

// mostOps is more than any request makes.
const mostOps = 200

// A store that fails says nothing about a token: no client is to throw away one that is good.
func TestStoreThatFailsSaysNothingOfAToken(t *testing.T) {
	w, d := faultWorld(t, logoutConfig)
	b := w.browser()
	tok := w.tokenFor(b, "openid", "email", "offline_access")
	w.tellsOrIsUnknown(d, "signed in", tok)
	if err := w.provider.Revoke(t.Context(), w.onlySession()); err != nil {
		t.Fatal(err)
	}
	w.tellsOrIsUnknown(d, "signed out", tok) // with a refresh token that outlives the session
}

func (w *world) tellsOrIsUnknown(d *faultDriver, when string, tok *oauth2.Token) {
	w.t.Helper()
	h := counted(w.provider.Handler())
	for name, ask := range map[string]func() jsonAnswer{
		"userinfo": func() jsonAnswer { return w.program(h, http.MethodGet, "/userinfo", nil, bearer(tok.AccessToken)) },
		"introspection of an access token": func() jsonAnswer {
			return w.program(h, http.MethodPost, "/token/introspect", credentials(url.Values{"token": {tok.AccessToken}}), nil)
		},
		"introspection of a refresh token": func() jsonAnswer {
			return w.program(h, http.MethodPost, "/token/introspect", credentials(url.Values{"token": {tok.RefreshToken}}), nil)
		},
	} {
		for _, ever := range []bool{false, true} {
			for at := range mostOps {
				disarm := d.arm(at, ever, false)
				a := ask()
				if !disarm() {
					if at < 3 || a.code != 200 || a.body["active"] == false {
						w.t.Errorf("%s, %s: %d operations, and %d %v", when, name, at, a.code, a.body)
					}
					break
				}
				if a.code != http.StatusServiceUnavailable || a.head.Get("Retry-After") == "" {
					w.t.Errorf("%s, %s, when operation %d fails (and all that follow: %t): %d %v", when, name, at, ever, a.code, a.body)
				}
			}
		}
	}
}

// A block makes an identity of somebody who never signed in. It says nothing of them, whatever their tokens say.
func TestTokenOfWhoWasBlockedAndNeverSignedIn(t *testing.T) {
	w := everyWorld(t)
	_, answer := w.formPost("/token", url.Values{
		"grant_type": {"password"}, "scope": {"openid email profile groups"}, "username": {"admin@example.com"}, "password": {"password"},
		"client_id": {"box"}, "client_secret": {"another-secret-5591"},
	})
	raw, _ := answer["access_token"].(string)
	before := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(raw))
	if _, err := w.provider.Block(t.Context(), "local", "u1", Forever); err != nil {
		t.Fatal(err)
	}
	if a := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(raw)); a.code != 401 {
		t.Errorf("blocked: %d %v", a.code, a.body)
	}
	if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
		t.Fatal(err)
	}
	if a := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, bearer(raw)); a.code != 200 || fmt.Sprint(a.body) != fmt.Sprint(before.body) || a.body["email"] != "admin@example.com" {
		t.Errorf("after the block: %d %v, before it %v", a.code, a.body, before.body)
	}
}

// A refresh token that nothing refers to is none: Dex does not take it either.
func TestRefreshTokenWithoutReferenceIsNone(t *testing.T) {
	w, _ := memoryWorld(t)
	tok := w.tokenFor(w.browser(), "openid", "offline_access")
	if a := w.introspect(tok.RefreshToken); a.body["active"] != true {
		t.Fatalf("%v", a.body)
	}
	err := w.store.UpdateOfflineSessions(t.Context(), "u1", "local", func(o storage.OfflineSessions) (storage.OfflineSessions, error) {
		delete(o.Refresh, "web")
		return o, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if a := w.introspect(tok.RefreshToken); len(a.body) != 1 || a.body["active"] != false {
		t.Errorf("%d %v", a.code, a.body)
	}
}

// The end of one session takes no refresh token from another one of the same user.
func TestEndOfASessionLeavesTheTokensOfAnother(t *testing.T) {
	w, _ := logoutWorld(t, strings.Replace(logoutConfig, "{id: web, ", "{id: web, refreshTokenLifetime: session, ", 1))
	first, second := w.browser(), w.browser()
	old := w.tokenFor(first, "openid", "offline_access")
	tok := w.tokenFor(second, "openid", "offline_access") // takes the place of old
	if a := w.introspect(old.RefreshToken); a.body["active"] != false {
		t.Errorf("the former token: %v", a.body)
	}
	if _, err := w.provider.SignOut(t.Context(), w.idOf(first)); err != nil {
		t.Fatal(err)
	}
	if a := w.introspect(tok.RefreshToken); a.body["active"] != true {
		t.Errorf("after the end of the other session: %v", a.body)
	}
	if _, err := w.provider.SignOut(t.Context(), w.idOf(second)); err != nil {
		t.Fatal(err)
	}
	if a := w.introspect(tok.RefreshToken); a.body["active"] != false {
		t.Errorf("after the end of its own: %v", a.body)
	}
}

// A leaver ends sessions of the victim by one request.
type leaver struct {
	leave func(w *world, victim, other *browser, hint string)
	own   bool // the victim's own session
	other bool // the other one
}

// Whatever fails while sessions end: who is told that they are over, is out. Who is told to try again, can.
func TestSignOutWithAStoreThatFails(t *testing.T) {
	press := func(what func(b *browser) string) func(w *world, victim, other *browser, hint string) {
		return func(_ *world, victim, _ *browser, _ string) {
			victim.do(http.MethodPost, account, url.Values{"token": {victim.token()}, "end": {what(victim)}}, own)
		}
	}
	say := func(what string) func(*browser) string { return func(*browser) string { return what } }
	text := strings.Replace(logoutConfig, "{id: web, ", "{id: web, refreshTokenLifetime: session, ", 1)
	for name, l := range map[string]leaver{
		"logout by hint": {func(_ *world, victim, _ *browser, hint string) {
			victim.get(logoutURL("id_token_hint", hint, "post_logout_redirect_uri", bye))
		}, true, false},
		"this session": {press(func(b *browser) string { return b.refs()[0] }), true, false},
		"another":      {press(func(b *browser) string { return b.refs()[1] }), false, true},
		"all others":   {press(say("others")), false, true},
		"all":          {press(say("all")), true, true},
	} {
		for _, mode := range []struct{ ever, after bool }{{true, false}, {false, true}} {
			t.Run(fmt.Sprintf("%s, %+v", name, mode), func(t *testing.T) {
				w, d := faultWorld(t, text)
				w.t = t
				for at := range mostOps {
					if !w.leaveWithFault(d, l, at, mode.ever, mode.after) {
						if at < 3 {
							t.Errorf("only %d operations", at)
						}
						return
					}
				}
				t.Error("no end of operations")
			})
		}
	}
}

// leaveWithFault reports whether the fault was met.
func (w *world) leaveWithFault(d *faultDriver, l leaver, at int, ever, after bool) bool {
	w.t.Helper()
	for _, id := range w.sessionIDs("admin@example.com") {
		if err := w.provider.Revoke(w.t.Context(), id); err != nil {
			w.t.Fatal(err)
		}
	}
	victim, other := w.member("admin@example.com"), w.member("admin@example.com")
	tok := w.tokenFor(victim, "openid", "offline_access")
	hint, _ := tok.Extra("id_token").(string)
	mine, theirs := w.idOf(victim), w.idOf(other)
	victim.get(account)
	victim.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	victim.counts()
	lives := func(id string) bool {
		_, err := w.store.GetAuthSession(w.t.Context(), id)
		return err == nil
	}
	disarm := d.arm(at, ever, after)
	l.leave(w, victim, other, hint)
	hit := disarm()
	told := victim.code == http.StatusSeeOther || victim.code == http.StatusOK
	what := fmt.Sprintf("when operation %d fails: %d to %q", at, victim.code, victim.head.Get("Location"))
	switch {
	case told && (l.own && lives(mine) || l.other && lives(theirs)):
		w.t.Errorf("%s: told that it is done, and it is not", what)
	case !told && victim.code != http.StatusServiceUnavailable:
		w.t.Errorf("%s", what)
	case !told && lives(mine) && len(victim.ssoCookies()) != 1:
		w.t.Errorf("%s: the session lives, and its cookie is gone", what)
	case !l.own && !lives(mine), !l.other && !lives(theirs):
		w.t.Errorf("%s: a session ended that nobody asked for", what)
	}
	if !told && lives(mine) && (l.own || lives(theirs)) {
		victim.get(account)
		if l.leave(w, victim, other, hint); l.own && lives(mine) || l.other && lives(theirs) {
			w.t.Errorf("%s: and again %d", what, victim.code)
		}
	}
	if l.own {
		if told { // bound, and over: to nobody is it good
			if a := w.introspect(tok.RefreshToken); a.body["active"] != false {
				w.t.Errorf("%s: the refresh token is told to be good: %v", what, a.body)
			}
		}
		again := w.program(w.provider.Handler(), http.MethodPost, "/token", credentials(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tok.RefreshToken}}), nil)
		if again.code != http.StatusBadRequest {
			w.t.Errorf("%s: a refresh token that ends with the session: %d %v", what, again.code, again.body)
		}
	}
	return hit
}

// idOf is the session of a browser.
func (w *world) idOf(b *browser) string {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, account, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	sessions := w.provider.current.Load().front.Sessions
	for _, c := range b.ssoCookies() {
		r.AddCookie(&http.Cookie{Name: sessions.Config.CookieName, Value: c.Value})
	}
	id, _, ok := sessions.ParseCookie(r)
	if !ok {
		w.t.Fatal("the browser has no session")
	}
	return id
}

// A block that the operator was told of is one, and one that failed half way can be made again.
func TestBlockWithAStoreThatFails(t *testing.T) {
	w, d := faultWorld(t, everyWay(t))
	ctx := context.WithValue(t.Context(), faultKey{}, true)
	for _, mode := range []struct{ ever, after bool }{{true, false}, {false, true}} {
		for at := range mostOps {
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil && !errors.Is(err, ErrNoUser) {
				t.Fatal(err)
			}
			app := w.member("admin@example.com")
			tok, err := w.signInClient(w.browser())
			if err != nil {
				t.Fatal(err)
			}
			disarm := d.arm(at, mode.ever, mode.after)
			_, err = w.provider.Block(ctx, "local", "u1", Forever)
			hit := disarm()
			u, bad := w.store.GetUserIdentity(t.Context(), "u1", "local")
			blocked := bad == nil && u.BlockedUntil.Equal(Forever)
			if err == nil && !blocked {
				t.Errorf("%+v, operation %d: not blocked", mode, at)
			}
			if err != nil {
				if _, err := w.provider.Block(ctx, "local", "u1", Forever); err != nil {
					t.Errorf("%+v, operation %d: again: %v", mode, at, err)
				}
			}
			w.nothingOf("u1", "local")
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
				t.Fatal(err)
			}
			if app.in() {
				t.Errorf("%+v, operation %d: a session is there after the block", mode, at)
			}
			if a := w.introspect(tok.RefreshToken); a.body["active"] != false {
				t.Errorf("%+v, operation %d: a refresh token after the block: %v", mode, at, a.body)
			}
			if !hit {
				break
			}
		}
	}
}

// A logout token that was answered with 200 has ended its session, and one that was not can be sent again.
func TestUpstreamLogoutWithAStoreThatFails(t *testing.T) {
	for _, after := range []bool{false, true} {
		w := newOPWorld(t, "")
		d := w.driver.faults
		for at := range mostOps {
			sid := fmt.Sprintf("up-%d", at)
			_, id := w.signInAs("alice", sid)
			_, keeps := w.signInAs("bob", "up-bob")
			lives := func(id string) bool {
				_, err := w.store.GetAuthSession(t.Context(), id)
				return err == nil
			}
			token := w.op.token(func(c map[string]any) { c["sid"] = sid; delete(c, "sub") })
			send := func() *browser {
				return w.browser().counts().do(http.MethodPost, issuer+"/backchannel/op", url.Values{"logout_token": {token}}, nil)
			}
			disarm := d.arm(at, !after, after)
			b := send()
			hit := disarm()
			if b.code == http.StatusOK && lives(id) || b.code != http.StatusOK && (b.code != http.StatusServiceUnavailable || b.head.Get("Retry-After") == "") {
				t.Errorf("when operation %d fails: %d, and the session lives: %t", at, b.code, lives(id))
			}
			if b.code != http.StatusOK {
				if again := send(); lives(id) || again.code != http.StatusOK && !after { // it may have been noted as used, and nobody heard of it
					t.Errorf("when operation %d fails, and again: %d, and the session lives: %t", at, again.code, lives(id))
				}
			}
			if !lives(keeps) {
				t.Errorf("when operation %d fails: another user is signed out", at)
			}
			if !hit {
				if at < 3 {
					t.Errorf("only %d operations", at)
				}
				break
			}
		}
	}
}

// Methods, hosts and forms that nobody means: nothing ends, nothing is stored, nothing is told.
func TestOddRequestsToTheNewEndpoints(t *testing.T) {
	w, _ := logoutWorld(t, logoutConfig)
	victim := w.member("admin@example.com")
	tok := w.tokenFor(victim, "openid", "email", "offline_access")
	hint, _ := tok.Extra("id_token").(string)
	victim.get(account)
	victim.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	form := url.Values{"token": {victim.token()}, "end": {"all"}, "_method": {"DELETE"}}
	for _, method := range []string{http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodPatch, http.MethodDelete, "PROPFIND", "get", "post"} {
		for _, target := range []string{
			account, account + "?" + form.Encode(), logoutURL("id_token_hint", hint), logoutURL("id_token_hint", hint) + "&req=x", issuer + "/backchannel/op?logout_token=x",
			issuer + "/token/introspect?" + credentials(url.Values{"token": {tok.AccessToken}}).Encode(),
		} {
			for _, override := range []string{"", "POST", "DELETE"} {
				head := http.Header{"Origin": {"https://sso.example.com"}}
				if override != "" {
					head.Set("X-Http-Method-Override", override)
				}
				victim.do(method, target, form, head)
				if w.sessionCount() != 1 || strings.Contains(victim.page, tok.AccessToken) || strings.Contains(victim.page, `"active":true`) {
					t.Fatalf("%s %s (%s): %d, %d sessions", method, target, override, victim.code, w.sessionCount())
				}
				if method == http.MethodTrace && victim.code == http.StatusOK {
					t.Errorf("TRACE %s is answered", target)
				}
			}
		}
	}
	// A body of another type is no form.
	for _, kind := range []string{"application/json", "text/plain", "multipart/form-data; boundary=x", ""} {
		victim.do(http.MethodPost, account, url.Values{"token": {victim.get(account).token()}, "end": {"all"}}, http.Header{"Origin": {"https://sso.example.com"}, "Content-Type": {kind}})
		if w.sessionCount() != 1 || victim.code < 400 {
			t.Fatalf("%q: %d, %d sessions", kind, victim.code, w.sessionCount())
		}
	}
	// Pages are the issuer's own host's, whatever else leads here.
	for _, host := range []string{"sso.example.com.evil.example", "evil.example", "sso.example.com@evil.example", "sso.example.com,evil.example", "evil.example:443", ""} {
		for _, path := range []string{"/account", "/account/password", "/logout", "/logout/callback"} {
			inner := w.provider.Handler()
			a := w.program(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				r.Host = host
				inner.ServeHTTP(rw, r)
			}), http.MethodGet, path, nil, nil)
			if a.code != http.StatusMisdirectedRequest || a.head.Get("Location") != "" || len(a.head["Set-Cookie"]) != 0 {
				t.Errorf("%q%s: %d to %q", host, path, a.code, a.head.Get("Location"))
			}
		}
	}
}

// What is no access token is none at userinfo and introspection, whoever signed it; and it is no hint either.
func TestOddTokensAreNone(t *testing.T) {
	w, _ := logoutWorld(t, logoutConfig)
	b, good := w.signedIn()
	odd := map[string]string{
		"a token for an app":   w.resigned(good, "gatehouse-app+jwt"),
		"a logout token":       w.resigned(good, "logout+jwt"),
		"an access token type": w.resigned(good, "at+jwt"),
		"with blanks":          good + "\n",
		"with a comma":         good + "," + good,
		"a fourth part":        good + "." + "e30",
		"without a signature":  good[:strings.LastIndex(good, ".")+1],
	}
	parts := strings.Split(good, ".")
	odd["of no algorithm"] = "eyJhbGciOiJub25lIn0." + parts[1] + "."
	for name, raw := range odd {
		if a := w.program(w.provider.Handler(), http.MethodGet, "/userinfo", nil, http.Header{"Authorization": {"Bearer " + raw}}); a.code != 401 || len(a.body) != 2 {
			t.Errorf("%s: userinfo %d %v", name, a.code, a.body)
		}
		if a := w.introspect(raw); a.code != 200 || len(a.body) != 1 || a.body["active"] != false {
			t.Errorf("%s: introspection %d %v", name, a.code, a.body)
		}
		if b.get(logoutURL("id_token_hint", raw, "post_logout_redirect_uri", bye)); b.code != 400 || b.head.Get("Location") != "" || w.sessionCount() != 1 {
			t.Errorf("%s: logout %d to %q, %d sessions", name, b.code, b.head.Get("Location"), w.sessionCount())
		}
	}
	if a := w.introspect(good); a.body["active"] != true {
		t.Errorf("and the good one: %v", a.body)
	}
}

// A name is that of one user or of none: whoever chooses an address or an id at a provider of theirs hides nobody, and takes nobody's place.
func TestNamesThatOthersChose(t *testing.T) {
	w := memoryWorldOf(t, everyWay(t))
	known := func(connector, id, email string) {
		err := w.store.CreateUserIdentity(t.Context(), storage.UserIdentity{UserID: id, ConnectorID: connector, Claims: storage.Claims{UserID: id, Email: email}, LastLogin: w.now()})
		if err != nil {
			t.Fatal(err)
		}
	}
	known("up", "mallory", "USER@example.com")    // the address of a local user who never signed in
	known("up", "kelvin", "\u212Aim@example.com") // which is lower case k
	known("up", "kim", "kim@example.com")
	known("up", "dots", "d\u0131m@example.com") // a dotless i is no i
	known("up", "colon", "saml:ida")            // an address that names somebody else
	known("saml", "a:b", "ab@example.com")
	for name, want := range map[string]string{
		"user@example.com": "2", "kim@example.com": "2", "dim@example.com": "0", "saml:ida": "2", "saml:a:b": "saml a:b", "SAML:a:b": "0", "up:kim": "up kim",
		"ab@example.com": "saml a:b", "ab@example.com ": "0", "ａb@example.com": "0", "nobody:kim": "0", "local:u2": "local u2",
	} {
		u, err := w.provider.FindUser(t.Context(), name)
		got := ""
		switch several, ok := errors.AsType[*AmbiguousError](err); {
		case ok:
			got = fmt.Sprint(len(several.Users))
		case errors.Is(err, ErrNoUser):
			got = "0"
		case err != nil:
			t.Fatal(err)
		default:
			got = u.ConnectorID + " " + u.UserID
		}
		if got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

// Whatever kid a stranger names, userinfo, introspection, logout and back-channel logout write nothing.
func TestStrangersWriteNothing(t *testing.T) {
	w := newOPWorld(t, "")
	w.signInAs("alice", "up-1")
	hint := w.adminHint()
	w.clk.stop() // or there would be pauses after which the provider is asked again
	w.driver.reset()
	h := w.provider.Handler()
	for i := range 200 {
		head := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"RS256","kid":"k%d"}`, i))
		raw := head + hint[strings.Index(hint, "."):]
		w.program(h, http.MethodGet, "/userinfo", nil, bearer(raw))
		w.introspect(raw)
		w.browser().get(logoutURL("id_token_hint", raw))
		w.browser().get(logoutURL("client_id", "web", "post_logout_redirect_uri", bye, "state", strings.Repeat("x", 1<<10)))
		w.logout(w.op.token(nil)[:40] + raw)
		w.logout(head + strings.TrimPrefix(w.op.token(nil), strings.SplitN(w.op.token(nil), ".", 2)[0]))
		w.browser().get(account)
	}
	if n := w.driver.count(); n != 0 {
		t.Errorf("%d writes", n)
	}
	for _, path := range []string{"/keys", "/.well-known/openid-configuration"} {
		if n := w.op.count(path); n > 3 {
			t.Errorf("the provider was asked for %s %d times", path, n)
		}
	}
}

// adminHint signs in at the local connector, where there are others, and returns the ID Token.
func (w *world) adminHint() string {
	w.t.Helper()
	b, c, verifier := w.browser(), webClient(), oauth2.GenerateVerifier()
	b.get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	b.signIn("admin@example.com", "password")
	tok, err := c.Exchange(w.direct(w.t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		w.t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	return raw
}
