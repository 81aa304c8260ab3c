package provider

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/oauth2"

	"gatehouse/connectors"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

// otherHash is of "another password".
func otherHash(t *testing.T) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte("another password"), bcrypt.DefaultCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// newAdminPassword is text with another password for the admin.
func newAdminPassword(t *testing.T, text string) string {
	t.Helper()
	const of = `userID: u1, groups: [admins, staff], hash: "`
	return edited(t, text, of+hash, of+otherHash(t))
}

// enter signs in at an app.
func (w *world) enter(user, password string) *browser {
	w.t.Helper()
	b := w.browser().get("https://app.example.com/")
	b.signIn(user, password)
	return b
}

func TestChangedPasswordEndsWhatBeganBefore(t *testing.T) {
	w := everyWorld(t)
	h := w.hold()
	user := w.enter("user@example.com", "password")
	next := newAdminPassword(t, everyWay(t))
	w.reload(next)
	for _, row := range cutRows() {
		if !row.again && row.try(w, h) {
			t.Errorf("with the old password goes on: %s", row.name)
		}
	}
	w.nothingOf("u1", "local")
	if b := w.enter("admin@example.com", "password"); b.code != http.StatusUnauthorized {
		t.Errorf("the old password: %d", b.code)
	}
	if got := w.grant("admin@example.com", "password"); got != http.StatusUnauthorized {
		t.Errorf("the old password at the password grant: %d", got)
	}
	b := w.enter("admin@example.com", "another password")
	if !hello(b) || !hello(user.get("https://app.example.com/")) {
		t.Errorf("the new password: %d; another user: %d", b.code, user.code)
	}
	w.reload(edited(t, next, "name: The Web App", "name: Another name"))
	if !hello(b.get("https://app.example.com/")) {
		t.Error("a reload that changes no password ends a session")
	}
	if got := w.audit.String(); !strings.Contains(got, `"msg":"password changed","by":"configuration","connector":"local","user_id":"u1"`) {
		t.Errorf("audit: %s", got)
	}
}

// twoReplicas are two providers on one store, each with a file of its own.
func twoReplicas(t *testing.T, text string) (a, b *world) {
	t.Helper()
	clk, key := &clock{}, seal.NewKey()
	st := store.Memory(store.Options{Now: clk.now})
	a, b = newWorld(t, text, st, key, clk), newWorld(t, text, st, key, clk)
	for _, w := range []*world{a, b} {
		if err := w.provider.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// asAt is the same browser, whose requests go to another replica.
func (b *browser) asAt(w *world) *browser {
	other := w.browser()
	other.c.Jar = b.c.Jar
	return other
}

func TestPasswordChangedInOneReplicasFile(t *testing.T) {
	a, b := twoReplicas(t, testConfig)
	old := b.enter("admin@example.com", "password")
	if !hello(old) {
		t.Fatal(old.code)
	}
	next := newAdminPassword(t, testConfig)
	a.reload(next)
	if hello(old.get("https://app.example.com/")) {
		t.Error("a session from before goes on at the other replica")
	}
	for _, password := range []string{"password", "another password"} {
		if got := b.enter("admin@example.com", password); got.code != http.StatusUnauthorized {
			t.Errorf("%q at the replica whose file is older: %d", password, got.code)
		}
	}
	if got := b.grant("admin@example.com", "password"); got != http.StatusUnauthorized {
		t.Errorf("the old password at its password grant: %d", got)
	}
	if !hello(b.enter("user@example.com", "password")) {
		t.Error("another user is refused there")
	}
	fresh := a.enter("admin@example.com", "another password")
	if !hello(fresh) || !hello(fresh.asAt(b).get("https://app.example.com/")) {
		t.Error("the new session is not good everywhere")
	}
	b.reload(next)
	if !hello(fresh.get("https://app.example.com/")) {
		t.Error("the other replica's reload ends the session that began with the new password")
	}
	if !hello(b.enter("admin@example.com", "another password")) {
		t.Error("the new password is refused after the reload")
	}
}

func TestUserRemovedFromOneReplicasFile(t *testing.T) {
	a, b := twoReplicas(t, testConfig)
	old, user := b.enter("admin@example.com", "password"), b.enter("user@example.com", "password")
	a.reload(edited(t, testConfig, removeAdmin, ""))
	if hello(old.get("https://app.example.com/")) {
		t.Error("the session goes on at the other replica")
	}
	if got := b.enter("admin@example.com", "password"); got.code != http.StatusUnauthorized {
		t.Errorf("sign-in at the replica whose file is older: %d", got.code)
	}
	if !hello(user.get("https://app.example.com/")) {
		t.Error("another user is signed out")
	}
	a.reload(testConfig)
	if !hello(a.enter("admin@example.com", "password")) || !hello(b.enter("admin@example.com", "password")) {
		t.Error("the user is back in the file, and refused")
	}
}

// A password that is changed while somebody signs in with the old one does not let them in, nor leave a session.
func TestPasswordChangesDuringASignIn(t *testing.T) {
	keys := madeKeys(t)
	for _, kind := range []store.Kind{store.KindIdentity, store.KindSession} {
		for _, after := range []bool{false, true} {
			for n := range 2 {
				clk, key := &clock{}, seal.NewKey()
				d := &blockingDriver{Driver: store.MemoryDriver(), kind: kind, skip: n, after: after}
				st := keyedStore(t, d, keys, clk)
				w, other := newWorld(t, testConfig, st, key, clk), newWorld(t, testConfig, st, key, clk)
				if err := w.provider.Reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				next := newAdminPassword(t, testConfig)
				d.block = func() { other.reload(next) }
				w.enter("admin@example.com", "password")
				if d.block != nil {
					continue
				}
				if all, err := w.store.SessionsOf(t.Context(), "u1", "local"); err != nil || len(all) != 0 {
					t.Errorf("at write %d of %s (after: %v): %d sessions, %v", n, kind, after, len(all), err)
				}
			}
		}
	}
}

func TestPasswordChangedWhileNothingRan(t *testing.T) {
	clk, key := &clock{}, seal.NewKey()
	st := store.Memory(store.Options{Now: clk.now})
	w := newWorld(t, testConfig, st, key, clk)
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin, user := w.enter("admin@example.com", "password"), w.enter("user@example.com", "password")
	w = newWorld(t, newAdminPassword(t, testConfig), st, key, clk)
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hello(admin.asAt(w).get("https://app.example.com/")) || !hello(user.asAt(w).get("https://app.example.com/")) {
		t.Error("the admin is signed in, or another user is not")
	}
}

// Whoever marks a new secret may be killed before it has ended what was before.
func TestMarkThatNobodyActedOn(t *testing.T) {
	clk, key := &clock{}, seal.NewKey()
	st := store.Memory(store.Options{Now: clk.now})
	w := newWorld(t, testConfig, st, key, clk)
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := w.enter("admin@example.com", "password")
	next := newAdminPassword(t, testConfig)
	p, err := w.provider.Prepare(parse(t, next))
	if err != nil {
		t.Fatal(err)
	}
	p.Use() // and no Settle
	if !hello(admin.get("https://app.example.com/")) {
		t.Fatal("the session was ended already: the test shows nothing")
	}
	w = newWorld(t, next, st, key, clk)
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hello(admin.asAt(w).get("https://app.example.com/")) {
		t.Error("the session goes on")
	}
	for m, err := range st.Marks(t.Context()) {
		if err != nil || m.Pending {
			t.Errorf("left: %+v, %v", m, err)
		}
	}
}

// A boxed is what the confidential client box has.
type boxed struct {
	token, refresh string
	code           issued
	waiting, done  device
}

const boxSecret = "another-secret-5591"

// boxWay is everyWay with a redirect URI for box, and a client that asks about its tokens.
func boxWay(t *testing.T) string {
	t.Helper()
	return edited(t, everyWay(t), "{id: box, name: A box, secret: another-secret-5591}",
		`{id: box, name: A box, secret: another-secret-5591, redirectURIs: ["https://web.example.com/cb", "/dex/device/callback"]}`)
}

func (w *world) box() *boxed {
	w.t.Helper()
	verifier := oauth2.GenerateVerifier()
	c := webClient()
	c.ClientID, c.ClientSecret = "box", boxSecret
	b := w.browser().get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	b.signIn("admin@example.com", "password")
	tok, err := c.Exchange(w.direct(w.t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		w.t.Fatal(err)
	}
	x := &boxed{token: tok.AccessToken, refresh: tok.RefreshToken, waiting: w.newDevice("box", boxSecret, "openid"), done: w.newDevice("box", boxSecret, "openid")}
	b.get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	x.code = issued{code: b.last.Query().Get("code"), verifier: verifier}
	if x.code.code == "" || !x.done.agree(w.browser()) {
		w.t.Fatalf("code %q; device at %s", x.code.code, b.last)
	}
	return x
}

// open lists what of it still works with a secret.
func (x *boxed) open(w *world, secret string) (works []string) {
	w.t.Helper()
	note := func(what string, ok bool) {
		if ok {
			works = append(works, what)
		}
	}
	with := func(form url.Values) url.Values {
		form.Set("client_id", "box")
		form.Set("client_secret", secret)
		return form
	}
	note("userinfo", w.browser().userinfo(x.token) == http.StatusOK)
	_, answer := w.formPost("/token/introspect", withSecret(url.Values{"token": {x.token}}))
	note("introspection of the access token", answer["active"] == true)
	_, answer = w.formPost("/token/introspect", with(url.Values{"token": {x.refresh}})) // only its own client may
	note("introspection of the refresh token", answer["active"] == true)
	status, answer := w.formPost("/token", with(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {x.refresh}}))
	note("refresh", status == http.StatusOK)
	if next, ok := answer["refresh_token"].(string); ok && status == http.StatusOK {
		x.refresh = next
	}
	status, _ = w.formPost("/token", with(url.Values{
		"grant_type": {"authorization_code"}, "code": {x.code.code}, "code_verifier": {x.code.verifier}, "redirect_uri": {"https://web.example.com/cb"},
	}))
	note("code", status == http.StatusOK)
	d := x.done
	d.secret = secret
	note("device whose user has agreed", d.gets(w))
	d = x.waiting
	d.secret = secret
	note("device whose user agrees now", d.agree(w.browser()) && d.gets(w))
	return works
}

func TestClientCutOff(t *testing.T) {
	changed := func(t *testing.T) string {
		return edited(t, boxWay(t), "secret: "+boxSecret, "secret: a-third-secret-5591")
	}
	removed := func(t *testing.T) string {
		return edited(t, boxWay(t), `- {id: box, name: A box, secret: another-secret-5591, redirectURIs: ["https://web.example.com/cb", "/dex/device/callback"]}`+"\n", "")
	}
	control, _ := twoReplicas(t, boxWay(t))
	if got := control.box().open(control, boxSecret); len(got) != 7 {
		t.Fatalf("works without a change: %q, want all 7", got)
	}
	for name, tt := range map[string]struct {
		text   func(*testing.T) string
		secret string
	}{
		"another secret": {changed, "a-third-secret-5591"},
		"removed":        {removed, boxSecret},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := twoReplicas(t, boxWay(t))
			x := b.box()
			user := b.enter("user@example.com", "password")
			a.reload(tt.text(t))
			for where, w := range map[string]*world{"here": a, "at the replica whose file is older": b} {
				for _, secret := range []string{boxSecret, tt.secret} {
					if got := x.open(w, secret); len(got) != 0 {
						t.Errorf("%s with %s: still works: %q", where, secret, got)
					}
				}
			}
			if !hello(user.get("https://app.example.com/")) {
				t.Error("a user is signed out")
			}
			refresh, err := a.store.ListRefreshTokens(t.Context())
			if err != nil || len(refresh) != 0 {
				t.Errorf("%d refresh tokens are left, %v", len(refresh), err)
			}
			if !strings.Contains(a.audit.String(), `"msg":"client cut off","by":"configuration","client":"box"`) {
				t.Errorf("audit: %s", a.audit)
			}
			// As it was before: what was given out then stays refused.
			a.reload(boxWay(t))
			if got := x.open(b, boxSecret); len(got) != 0 {
				t.Errorf("after the change was taken back: works: %q", got)
			}
			clock := time.Now().Add(2 * time.Second) // tokens know whole seconds
			eventually(t, "the next second", func() bool { return time.Now().After(clock) })
			if got := a.box().open(a, boxSecret); len(got) != 7 {
				t.Errorf("what is given out from now on: works: %q, want all 7", got)
			}
		})
	}
}

// TestNewPasswordEndsWhatBeganWithTheOldOne changes a password on the page, in one of several browsers.
func TestNewPasswordEndsWhatBeganWithTheOldOne(t *testing.T) {
	dir, clk := &staff{password: "right"}, &clock{}
	text := edited(t, directoryConfig, "gateway:\n", `staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"]}
sessions: {ssoSharedWithDefault: all}
gateway:
`)
	w := newWorldWith(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk,
		func(storage.Connector) (connector.Connector, error) { return dir, nil })
	for _, signedIn := range []bool{true, false} {
		t.Run(map[bool]string{true: "in a browser that is signed in", false: "in one that is not"}[signedIn], func(t *testing.T) {
			w.t = t
			dir.set(func() { dir.password = "right" })
			home := w.browser().get("https://app.example.com/")
			form := strings.Replace(home.action(), "/auth/ad/login", "/auth/ad/password", 1)
			if signedIn {
				home.signIn("ann", "right")
			}
			away, other := w.enter("ann", "right"), w.browser()
			other.get("https://app.example.com/")
			other.do(http.MethodPost, strings.Replace(other.action(), "/ad/", "/local/", 1), url.Values{"login": {"admin@example.com"}, "password": {"password"}}, ownOrigin())
			tok := w.browser().clientUser("ann", "right")
			if !hello(away) || !hello(other) {
				t.Fatal(away.code, other.code)
			}
			kept := ""
			if signedIn {
				kept = home.sessionAt("app.example.com")
			}
			home.do(http.MethodPost, form, url.Values{
				"login": {"ann"}, "password": {"right"}, "new_password": {"much better"}, "new_password_again": {"much better"},
			}, ownOrigin())
			if !hello(home.get("https://app.example.com/")) {
				t.Fatalf("the browser is not signed in: %d at %s", home.code, home.last)
			}
			if got := home.sessionAt("app.example.com"); signedIn && got != kept {
				t.Error("the browser's session is another one")
			}
			if hello(away.get("https://app.example.com/")) || w.browser().userinfo(tok.AccessToken) == http.StatusOK {
				t.Error("what began with the old password goes on")
			}
			if !hello(other.get("https://app.example.com/")) {
				t.Error("another user is signed out")
			}
		})
	}
}

// Whoever knew the old password is out, even where the directory does not answer after it has taken the new one.
func TestNewPasswordEndsSessionsWithoutASignIn(t *testing.T) {
	w, dir := staffWorld(t)
	home := w.browser().get("https://app.example.com/")
	form := strings.Replace(home.action(), "/auth/ad/login", "/auth/ad/password", 1)
	away := w.enter("ann", "right")
	if !hello(away) {
		t.Fatal(away.code, away.page)
	}
	dir.set(func() { dir.then = &connectors.Refusal{Reason: connectors.Unavailable} })
	home.do(http.MethodPost, form, url.Values{
		"login": {"ann"}, "password": {"right"}, "new_password": {"much better"}, "new_password_again": {"much better"},
	}, ownOrigin())
	if home.code != http.StatusServiceUnavailable {
		t.Errorf("got %d at %s", home.code, home.last)
	}
	if hello(away.get("https://app.example.com/")) || w.sessionCount() != 0 {
		t.Error("what began with the old password goes on")
	}
}
