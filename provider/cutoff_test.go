package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/handoff"
	"gatehouse/internal/inproc"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

const (
	deviceGrant   = "urn:ietf:params:oauth:grant-type:device_code"
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// everyWay is a configuration with every way to become somebody, or to stay so.
func everyWay(t *testing.T) string {
	t.Helper()
	return edited(t, testConfig,
		"oauth2: {", `oauth2: {grantTypes: [authorization_code, refresh_token, password, "`+deviceGrant+`", "`+exchangeGrant+`"], `,
		"staticClients:\n", "staticClients:\n- {id: tv, name: A television, public: true, redirectURIs: [\"/dex/device/callback\"]}\n- {id: box, name: A box, secret: another-secret-5591}\n",
		"gateway:\n", strings.Replace(withSAML, "id: up, name: SAML", "id: saml, name: SAML", 1)+"- {type: mockCallback, id: up, name: Upstream}\n"+"gateway:\n")
}

func everyWorld(t *testing.T) *world {
	t.Helper()
	return memoryWorldOf(t, everyWay(t))
}

// formPost posts a form to the issuer as a program does, and returns the answer.
func (w *world) formPost(path string, form url.Values) (status int, answer map[string]any) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := inproc.Serve(w.provider.Handler(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		w.t.Fatalf("%s: %d: %v", path, resp.StatusCode, err)
	}
	return resp.StatusCode, answer
}

// withSecret adds the credentials of the outside client.
func withSecret(form url.Values) url.Values {
	form.Set("client_id", "web")
	form.Set("client_secret", "not-a-default-secret-5591")
	return form
}

// A device is one that shows its user a code.
type device struct{ client, secret, code, userCode string }

func (w *world) newDevice(client, secret, scope string) device {
	w.t.Helper()
	form := url.Values{"client_id": {client}, "scope": {scope}}
	if secret != "" {
		form.Set("client_secret", secret)
	}
	status, answer := w.formPost("/device/code", form)
	code, _ := answer["device_code"].(string)
	userCode, _ := answer["user_code"].(string)
	if status != http.StatusOK || code == "" || userCode == "" {
		w.t.Fatalf("no device code: %d %v", status, answer)
	}
	return device{client, secret, code, userCode}
}

// agree has the admin agree, in a browser, and reports whether that worked.
func (d device) agree(b *browser) bool { return d.agreed(b, "admin@example.com", "password") }

func (d device) agreed(b *browser, user, password string) bool {
	b.w.t.Helper()
	b.get(issuer + "/device?user_code=" + url.QueryEscape(d.userCode))
	b.do(http.MethodPost, issuer+"/device/auth/verify_code", url.Values{"user_code": {d.userCode}}, http.Header{"Origin": {"https://sso.example.com"}})
	if strings.HasSuffix(b.last.Path, "/login") {
		b.signIn(user, password)
	}
	return b.code == http.StatusOK && b.last.Path == "/dex/device/callback"
}

// gets reports whether the device gets its tokens.
func (d device) gets(w *world) bool {
	w.t.Helper()
	form := url.Values{"grant_type": {deviceGrant}, "device_code": {d.code}, "client_id": {d.client}}
	if d.secret != "" {
		form.Set("client_secret", d.secret)
	}
	status, answer := w.formPost("/token", form)
	return status == http.StatusOK && answer["access_token"] != nil
}

// holdings are what the admin has, of every kind, before something happens.
type holdings struct {
	app      *browser // signed in at an app
	client   *oauth2.Token
	granted  string // refresh token of the password grant, for the client box
	code     issued
	done     device // whose user has agreed
	waiting  device
	agreeing *browser // signed in, to agree for waiting
}

func (w *world) hold() *holdings {
	w.t.Helper()
	h := &holdings{app: w.browser().get("https://app.example.com/"), agreeing: w.browser().get("https://app.example.com/")}
	h.app.signIn("admin@example.com", "password")
	h.agreeing.signIn("admin@example.com", "password")
	var err error
	if h.client, err = w.signInClient(w.browser()); err != nil {
		w.t.Fatal(err)
	}
	status, answer := w.formPost("/token", url.Values{
		"grant_type": {"password"}, "scope": {"openid offline_access"}, "username": {"admin@example.com"}, "password": {"password"},
		"client_id": {"box"}, "client_secret": {"another-secret-5591"},
	})
	if h.granted, _ = answer["refresh_token"].(string); h.granted == "" {
		w.t.Fatalf("password grant: %d %v", status, answer)
	}
	h.code = w.browser().newCode("n")
	h.done, h.waiting = w.newDevice("tv", "", "openid offline_access"), w.newDevice("tv", "", "openid offline_access")
	if b := w.browser(); !h.done.agree(b) {
		w.t.Fatalf("a device's user may not agree: %d at %s", b.code, b.last)
	}
	return h
}

// A row is one way in. try reports whether it is open.
type cutRow struct {
	name string
	try  func(w *world, h *holdings) bool
	// again: it opens again when the block is over. What was given out before it does not.
	again bool
}

func hello(b *browser) bool { return b.code == http.StatusOK && strings.HasPrefix(b.page, "hello") }

// cutRows are the rows of a user at the local connector.
func cutRows() []cutRow {
	active := func(w *world, token string) bool {
		_, answer := w.formPost("/token/introspect", withSecret(url.Values{"token": {token}}))
		return answer["active"] == true
	}
	refresh := func(w *world, form url.Values, token string) bool {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", token)
		status, _ := w.formPost("/token", form)
		return status == http.StatusOK
	}
	return []cutRow{
		{"session at an app", func(_ *world, h *holdings) bool { return hello(h.app.get("https://app.example.com/x")) }, false},
		{"single sign-on at another host", func(_ *world, h *holdings) bool { return hello(h.app.get("https://x.apps.example.com/")) }, false},
		{"single sign-on at an outside client", func(_ *world, h *holdings) bool {
			return h.app.get(clientURL("v")).last.Query().Get("code") != ""
		}, false},
		{"userinfo", func(w *world, h *holdings) bool { return w.browser().userinfo(h.client.AccessToken) == http.StatusOK }, false},
		{"introspection of an access token", func(w *world, h *holdings) bool { return active(w, h.client.AccessToken) }, false},
		{"introspection of a refresh token", func(w *world, h *holdings) bool { return active(w, h.client.RefreshToken) }, false},
		{"refresh", func(w *world, h *holdings) bool { return refresh(w, withSecret(url.Values{}), h.client.RefreshToken) }, false},
		{"refresh without a session", func(w *world, h *holdings) bool {
			return refresh(w, url.Values{"client_id": {"box"}, "client_secret": {"another-secret-5591"}}, h.granted)
		}, false},
		{"code that is not exchanged yet", func(w *world, h *holdings) bool { _, err := w.exchange(h.code); return err == nil }, false}, // it takes the place of the refresh token above
		{"device whose user has agreed", func(w *world, h *holdings) bool { return h.done.gets(w) }, false},
		{"device whose user is signed in and agrees now", func(w *world, h *holdings) bool {
			h.agreeing.get(issuer + "/device?user_code=" + url.QueryEscape(h.waiting.userCode))
			h.agreeing.do(http.MethodPost, issuer+"/device/auth/verify_code", url.Values{"user_code": {h.waiting.userCode}}, http.Header{"Origin": {"https://sso.example.com"}})
			return h.agreeing.last.Path == "/dex/device/callback" && h.waiting.gets(w)
		}, false},
		{"password", func(w *world, _ *holdings) bool {
			b := w.browser().get("https://app.example.com/")
			b.signIn("admin@example.com", "password")
			return hello(b)
		}, true},
		{"password at an outside client", func(w *world, _ *holdings) bool {
			_, err := w.signInClient(w.browser())
			return err == nil
		}, true},
		{"password grant", func(w *world, _ *holdings) bool { return w.grant("admin@example.com", "password") == http.StatusOK }, true},
		{"password of a device's user", func(w *world, _ *holdings) bool {
			d := w.newDevice("tv", "", "openid offline_access")
			return d.agree(w.browser()) && d.gets(w)
		}, true},
	}
}

// upstreamRows are the rows of users of other connectors: kilgore of "up", ina of "saml".
func upstreamRows() []cutRow {
	return []cutRow{
		{"upstream sign-in", func(w *world, _ *holdings) bool {
			b := w.browser().get("https://app.example.com/")
			return hello(b.get(b.link()))
		}, true},
		{"token exchange", func(w *world, _ *holdings) bool {
			status, answer := w.formPost("/token", withSecret(url.Values{
				"grant_type": {exchangeGrant}, "connector_id": {"up"}, "subject_token": {"x"}, "scope": {"openid"},
				"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
			}))
			return status == http.StatusOK && answer["access_token"] != nil
		}, true},
		{"SAML sign-in", func(w *world, _ *holdings) bool {
			b := w.browser().get("https://app.example.com/")
			b.get(strings.Replace(b.samlLink(), "&amp;", "&", -1))
			relay := relayRE.FindStringSubmatch(b.page)
			if relay == nil {
				w.t.Fatalf("got %d %s", b.code, b.page)
			}
			b.do(http.MethodPost, issuer+"/callback", url.Values{"RelayState": {relay[1]}, "SAMLResponse": {samlResponse(relay[1], "ina")}},
				http.Header{"Origin": {"https://idp.example.org"}, "Sec-Fetch-Site": {"cross-site"}})
			return hello(b)
		}, true},
	}
}

// samlLink is the page's link to the connector "saml".
func (b *browser) samlLink() string {
	b.w.t.Helper()
	_, rest, ok := strings.Cut(b.page, `href="/dex/auth/saml?req=`)
	if !ok {
		b.w.t.Fatalf("no link to saml on %s", b.page)
	}
	sealed, _, _ := strings.Cut(rest, `"`)
	return issuer + "/auth/saml?req=" + sealed
}

// users are those whom rows are about, by connector.
var cutUsers = [][2]string{{"local", "u1"}, {"up", "0-385-28089-0"}, {"saml", "ina"}} // never assigned to

// TestBlockedUserEverywhere holds each way in against a world where it is open: a row that is closed anyway shows nothing.
func TestBlockedUserEverywhere(t *testing.T) {
	open := everyWorld(t)
	free := open.hold()
	w := everyWorld(t)
	h := w.hold()
	for _, u := range cutUsers {
		if _, err := w.provider.Block(t.Context(), u[0], u[1], Forever); err != nil { // two of them have never signed in
			t.Fatal(err)
		}
	}
	w.nothingOf("u1", "local")
	rows := append(cutRows(), upstreamRows()...)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if !row.try(open, free) {
				t.Error("it is closed without a block")
			}
			if row.try(w, h) {
				t.Error("a blocked user gets in")
			}
		})
	}
	w.nothingOf("u1", "local")
	for _, u := range cutUsers {
		if err := w.provider.Unblock(t.Context(), u[0], u[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range rows {
		t.Run(row.name+", after the block", func(t *testing.T) {
			if got := row.try(w, h); got != row.again {
				t.Errorf("open %v, want %v", got, row.again)
			}
		})
	}
}

// nothingOf checks that the store has neither sessions nor refresh tokens of a user.
func (w *world) nothingOf(userID, connectorID string) {
	w.t.Helper()
	sessions, err := w.store.SessionsOf(w.t.Context(), userID, connectorID)
	if err != nil || len(sessions) != 0 {
		w.t.Errorf("stored: %d sessions, %v", len(sessions), err)
	}
	refresh, err := w.store.ListRefreshTokens(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range refresh {
		if r.Claims.UserID == userID && r.ConnectorID == connectorID {
			w.t.Errorf("stored: a refresh token for %s", r.ClientID)
		}
	}
	if o, err := w.store.GetOfflineSessions(w.t.Context(), userID, connectorID); err == nil && len(o.Refresh) != 0 {
		w.t.Errorf("stored: %d references to refresh tokens", len(o.Refresh))
	}
}

// A first sign-in fills the identity that a block has made, and keeps the block.
func TestFirstSignInOfWhoWasBlocked(t *testing.T) {
	w, clk := memoryWorld(t)
	if _, err := w.provider.Block(t.Context(), "local", "u2", clk.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	enter := func() *browser {
		b := w.browser().get("https://app.example.com/")
		b.signIn("user@example.com", "password")
		return b
	}
	if b := enter(); b.code != http.StatusForbidden || !strings.Contains(b.page, "may not sign in") {
		t.Errorf("got %d %s", b.code, b.page)
	}
	if u, err := w.store.GetUserIdentity(t.Context(), "u2", "local"); err != nil || !u.LastLogin.IsZero() || u.BlockedUntil.IsZero() {
		t.Errorf("stored: %+v, %v", u, err)
	}
	clk.add(2 * time.Hour)
	if b := enter(); b.page != "hello user@example.com [team-a] at /" {
		t.Errorf("got %d %q", b.code, b.page)
	}
	u, err := w.store.GetUserIdentity(t.Context(), "u2", "local")
	if err != nil || u.Claims.Email != "user@example.com" || u.LastLogin.IsZero() || u.Consents == nil {
		t.Errorf("stored: %+v, %v", u, err)
	}
	// Consent is written into the map that the block has made.
	if _, err := w.signInClient(w.browser()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", ":", "local:", ":u2", "nobody:u2", "u2", "local:u2:x:", "user@example.com "} {
		if u, err := w.provider.FindUser(t.Context(), name); err == nil && (name != "local:u2:x:" || u.UserID != "u2:x:" || !u.LastLogin.IsZero()) {
			t.Errorf("%q is %+v", name, u)
		}
	}
}

// blockingDriver calls block once: just before, or just after, a write of a kind, when it has skipped some.
type blockingDriver struct {
	store.Driver
	kind  store.Kind
	skip  int
	after bool
	block func()
}

func (d *blockingDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if ops[0].Record.Kind != d.kind || d.block == nil { // in this order: others write other kinds meanwhile
		return d.Driver.Write(ctx, ops)
	}
	block := d.block
	if d.skip > 0 {
		d.skip--
		return d.Driver.Write(ctx, ops)
	}
	d.block = nil // it writes, too
	if !d.after {
		block()
	}
	seq, err := d.Driver.Write(ctx, ops)
	if d.after {
		block()
	}
	return seq, err
}

// quickConfig has a connector whose passwords cost nothing: user robot.
const (
	quickConfig = `
issuer: https://sso.example.com/dex
storage: {type: memory}
oauth2:
  skipApprovalScreen: true
  passwordConnector: fast
  grantTypes: [authorization_code, refresh_token, password, "urn:ietf:params:oauth:grant-type:device_code"]
connectors:
- {type: mockPassword, id: fast, name: Without a hash, config: {username: robot, password: not-a-default-5591}}
staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"]}
- {id: tv, name: A television, public: true, redirectURIs: ["/dex/device/callback"]}
gateway:
  hosts: [sso.example.com, app.example.com]
  default: signed-in
`
	robotID = "0-385-28089-0"
)

// robotAtClient signs the robot in at the outside client and exchanges the code.
func robotAtClient(w *world, b *browser, prompt string) {
	verifier := oauth2.GenerateVerifier()
	if b.get(clientURL(verifier) + prompt); strings.HasSuffix(b.last.Path, "/login") {
		b.signIn("robot", "not-a-default-5591")
	}
	_, _ = webClient().Exchange(w.direct(w.t.Context()), b.last.Query().Get("code"), oauth2.VerifierOption(verifier)) // it may fail, and should
}

// duringWays are sign-ins that something happens in the midst of.
var duringWays = map[string]func(w *world){ // never assigned to
	"at an app": func(w *world) {
		b := w.browser().get("https://app.example.com/")
		b.signIn("robot", "not-a-default-5591")
	},
	"at an outside client": func(w *world) { robotAtClient(w, w.browser(), "") },
	"again, in the same browser": func(w *world) {
		b := w.browser()
		robotAtClient(w, b, "")
		robotAtClient(w, b, "&prompt=login")
	},
	"of a device": func(w *world) {
		d := w.newDevice("tv", "", "openid offline_access")
		d.agreed(w.browser(), "robot", "not-a-default-5591")
		if d.gets(w) && w.blockedRobot() {
			w.t.Error("the device of a blocked user gets its tokens")
		}
	},
	"by password grant": func(w *world) {
		w.formPost("/token", withSecret(url.Values{
			"grant_type": {"password"}, "scope": {"openid offline_access"}, "username": {"robot"}, "password": {"not-a-default-5591"},
		}))
	},
}

// TestBlockDuringASignIn blocks at each write of each sign-in, before and after it. Afterwards nothing is left that would come alive with the
// end of the block.
func TestBlockDuringASignIn(t *testing.T) {
	const most = 40 // writes of one kind in a sign-in
	keys := madeKeys(t)
	hit := map[store.Kind]int{}
	for way, run := range duringWays {
		for _, kind := range []store.Kind{
			store.KindIdentity, store.KindSession, store.KindAuthCode, store.KindRefreshToken, store.KindOffline, store.KindSpentCode, store.KindDeviceToken,
		} {
			for n := range most {
				before, after := blockDuring(t, keys, run, kind, n, false), blockDuring(t, keys, run, kind, n, true)
				if before == nil || after == nil {
					break // it writes fewer of this kind
				}
				hit[kind]++
				for when, w := range map[string]*world{"before": before, "after": after} {
					t.Run(fmt.Sprintf("%s, %s write %d of %s", way, when, n, kind), w.nothingComesAlive)
				}
			}
		}
	}
	for _, kind := range []store.Kind{store.KindIdentity, store.KindSession, store.KindAuthCode, store.KindRefreshToken, store.KindOffline, store.KindDeviceToken} {
		if hit[kind] == 0 {
			t.Errorf("nothing writes a %s: the test shows nothing about it", kind)
		}
	}
	t.Logf("blocked at the writes of %v", hit)
}

// madeKeys are signing keys for many worlds: to make them takes longer than all else.
func madeKeys(t *testing.T) store.Keys {
	t.Helper()
	w := memoryWorldOf(t, quickConfig)
	keys, err := w.store.SigningKeys(t.Context())
	if err != nil || keys.SigningKey == nil {
		t.Fatalf("no signing keys: %v", err)
	}
	return keys
}

func memoryWorldOf(t *testing.T, text string) *world {
	t.Helper()
	clk := &clock{}
	return newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
}

// blockDuring blocks the robot at the nth write of a kind in a sign-in; nil: there is none.
func blockDuring(t *testing.T, keys store.Keys, run func(*world), kind store.Kind, n int, after bool) *world {
	t.Helper()
	clk := &clock{}
	d := &blockingDriver{Driver: store.MemoryDriver(), kind: kind, skip: n, after: after}
	st := keyedStore(t, d, keys, clk)
	w := newWorld(t, quickConfig, st, seal.NewKey(), clk)
	d.block = func() {
		if _, err := w.provider.Block(t.Context(), "fast", robotID, Forever); err != nil {
			t.Error(err)
		}
	}
	run(w)
	if d.block != nil {
		return nil
	}
	return w
}

func (w *world) blockedRobot() bool {
	u, err := w.store.GetUserIdentity(w.t.Context(), robotID, "fast")
	return err == nil && u.BlockedUntil.Equal(Forever)
}

// A midBlock runs something when a block has listed the sessions that it ends.
type midBlock struct {
	store.Driver
	run func()
}

func (d *midBlock) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	all := d.Driver.Scan(ctx, q)
	if q.Kind != store.KindSession || q.Owner == "" || d.run == nil { // in this order: others scan other kinds meanwhile
		return all
	}
	run := d.run
	d.run = nil // it reads, too
	return func(yield func(store.Record, error) bool) {
		for r, err := range all {
			if !yield(r, err) {
				return
			}
		}
		run()
	}
}

// Whoever begins to sign in while a block ends what there is, does not get in behind its back.
func TestSignInDuringABlock(t *testing.T) {
	for way, run := range duringWays {
		t.Run(way, func(t *testing.T) {
			clk := &clock{}
			d := &midBlock{Driver: store.MemoryDriver()}
			st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, quickConfig, st, seal.NewKey(), clk)
			d.run = func() { run(w) }
			if _, err := w.provider.Block(t.Context(), "fast", robotID, Forever); err != nil {
				t.Fatal(err)
			}
			if d.run != nil {
				t.Fatal("nobody signed in meanwhile: the test shows nothing")
			}
			w.nothingComesAlive(t)
		})
	}
}

func (w *world) nothingComesAlive(t *testing.T) {
	w.t = t
	w.nothingOf(robotID, "fast")
	if err := w.provider.Unblock(t.Context(), "fast", robotID); err != nil {
		t.Fatal(err)
	}
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%d sessions come alive, %v", len(all), err)
	}
}

func TestSignOutEverywhere(t *testing.T) {
	w := everyWorld(t)
	h := w.hold()
	other := w.browser().get("https://app.example.com/")
	other.signIn("user@example.com", "password")
	all, err := w.store.SessionsOf(t.Context(), "u1", "local")
	if err != nil || len(all) < 3 {
		t.Fatal(all, err)
	}
	kept := h.app.sessionAt("app.example.com")
	ended, err := w.provider.SignOutEverywhere(t.Context(), "local", "u1", kept, byUser)
	if err != nil || ended != len(all)-1 {
		t.Errorf("ended %d of %d, %v", ended, len(all), err)
	}
	if !hello(h.app.get("https://app.example.com/x")) {
		t.Error("the session that was to be kept is over")
	}
	if hello(h.agreeing.get("https://app.example.com/x")) {
		t.Error("another session goes on")
	}
	if !hello(other.get("https://app.example.com/x")) {
		t.Error("another user is signed out")
	}
	if refresh, err := w.store.ListRefreshTokens(t.Context()); err != nil || len(refresh) != 0 {
		t.Errorf("%d refresh tokens, %v", len(refresh), err)
	}
	if got := w.audit.String(); !strings.Contains(got, `"msg":"sign-out everywhere","by":"user","connector":"local","user_id":"u1"`) || strings.Contains(got, kept) {
		t.Errorf("audit: %s", got)
	}
	if n, err := w.provider.RevokeUser(t.Context(), "local", "u1"); err != nil || n != 1 {
		t.Errorf("ended %d more, %v", n, err)
	}
	if hello(h.app.get("https://app.example.com/x")) {
		t.Error("the last session goes on")
	}
}

// sessionAt is the id of the browser's session, as the cookie of an app host has it.
func (b *browser) sessionAt(host string) string {
	b.w.t.Helper()
	for _, c := range b.c.Jar.Cookies(&url.URL{Scheme: "https", Host: host, Path: "/"}) {
		if id, _, err := handoff.OpenCookie(nil, b.w.ring, host, c.Value); err == nil {
			return string(id)
		}
	}
	b.w.t.Fatal("the browser has no session")
	return ""
}
