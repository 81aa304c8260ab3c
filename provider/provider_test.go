package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/oauth2"

	"gatehouse/internal/config"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/inproc"
	"gatehouse/internal/passwords"
	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/web"

	dexconnectors "github.com/dexidp/dex/server/connectors"
)

const issuer = "https://sso.example.com/dex"

// hash is of "password", at the lowest cost that is accepted.
const hash = "$2a$10$QVJfnjKvZWOgC/LpKnnbTOx5FmyXj.xtukO9ymtaFjt/ZnuewQirO"

const testConfig = `
issuer: https://sso.example.com/dex
storage: {type: memory}
enablePasswordDB: true
oauth2: {skipApprovalScreen: true, passwordConnector: local}
expiry: {refreshTokens: {reuseInterval: 0s}}
sessions: {ssoSharedWithDefault: all}
staticPasswords:
- {email: admin@example.com, username: admin, userID: u1, groups: [admins, staff], hash: "` + hash + `"}
- {email: user@example.com, username: user, userID: u2, groups: [team-a], hash: "` + hash + `"}
staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"]}
gateway:
  hosts: [sso.example.com, app.example.com, "*.apps.example.com"]
  default: signed-in
`

// world is an issuer, the app hosts of a small gateway of the test's own, and an outside client's host.
type world struct {
	t        *testing.T
	provider *Provider
	store    *store.Store
	ring     *seal.Ring
	hosts    *hosts.Set
	now      func() time.Time
	audit    *lockedBuffer
	logs     *lockedBuffer
	metrics  *prometheus.Registry
}

type clock struct {
	mu    sync.Mutex
	off   time.Duration
	still time.Time // of a clock that stands still
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.still.IsZero() {
		return c.still.Add(c.off)
	}
	return time.Now().UTC().Add(c.off)
}

// stop makes the clock stand still, but for add.
func (c *clock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.still = time.Now().UTC()
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

// lockedBuffer is written by handlers and by what goes on in the background, and read by the test meanwhile.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) Len() int { return len(l.String()) }

func (l *lockedBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// audited waits until the audit log has each of want: what ends in the background has ended before that is written.
func (w *world) audited(want ...string) {
	w.t.Helper()
	for _, text := range want {
		eventually(w.t, "the audit log has "+text, func() bool { return strings.Contains(w.audit.String(), text) })
	}
}

// newWorld starts a provider on a store; text is its configuration. Without a key the ring is that of the store.
func newWorld(t *testing.T, text string, st *store.Store, key []byte, clk *clock) *world {
	t.Helper()
	return newWorldWith(t, text, st, key, clk, nil)
}

// newWorldWith is the same, with connectors that resolve opens.
func newWorldWith(t *testing.T, text string, st *store.Store, key []byte, clk *clock, resolve dexconnectors.ResolveFunc) *world {
	t.Helper()
	cfg, _, err := config.Parse("gatehouse.yaml", []byte(text), config.Options{Connector: CheckConnector})
	if err != nil {
		t.Fatal(err)
	}
	ring, stored, err := ringOf(t, st, key, clk)
	if err != nil {
		t.Fatal(err)
	}
	if stored != nil {
		key = stored.Oldest()
	}
	pages, err := testPages()
	if err != nil {
		t.Fatal(err)
	}
	giveKeys(t, cfg, st, clk)
	w := &world{t: t, store: st, ring: ring, now: clk.now, audit: new(lockedBuffer), logs: new(lockedBuffer), metrics: prometheus.NewRegistry()}
	if cfg.Gateway != nil {
		w.hosts = cfg.Gateway.HostSet
	}
	w.provider, err = New(t.Context(), Options{
		Config: cfg, Store: st, Ring: ring, CookieKey: key, StoredRing: stored, Pages: pages, Registry: w.metrics, Now: clk.now, resolve: resolve, patience: time.Minute, Match: testMatch(),
		Log: slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), Audit: slog.New(slog.NewJSONHandler(w.audit, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// testPages, testKey and what testMatch finds are made once: under the race detector they would take most of the time of most tests. They never change.
var (
	testPages = sync.OnceValues(func() (*web.Pages, error) { return web.New(web.Options{}) })
	testMatch = sync.OnceValue(matchOnce)
	testKey   = sync.OnceValues(func() (*jose.JSONWebKey, error) { return newSigningKey("RS256") })
)

// matchOnce compares a password with a hash once, and remembers.
func matchOnce() identity.Match {
	var known sync.Map
	return func(ctx context.Context, hash, password []byte) (bool, error) {
		pair := [2]string{string(hash), string(password)}
		if ok, there := known.Load(pair); there {
			return ok.(bool), nil
		}
		ok, err := passwords.Match(ctx, hash, password)
		if err == nil {
			known.Store(pair, ok)
		}
		return ok, err
	}
}

// giveKeys gives signing keys to a storage that has none, as the first start would.
func giveKeys(t *testing.T, cfg *config.Config, st *store.Store, clk *clock) {
	t.Helper()
	if cfg.Signer.Config.Algorithm != "RS256" {
		return
	}
	key, err := testKey()
	if err != nil {
		t.Fatal(err)
	}
	err = st.UpdateSigningKeys(t.Context(), func(k store.Keys) (store.Keys, error) {
		if k.SigningKey == nil {
			k.SigningKey, k.SigningKeyPub, k.Published = key, public(key), clk.now()
			k.NextRotation = clk.now().Add(cfg.Signer.Config.KeysRotationPeriod.Std())
		}
		return k, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ringOf(t *testing.T, st *store.Store, key []byte, clk *clock) (*seal.Ring, *StoredRing, error) {
	t.Helper()
	if key != nil {
		ring, err := seal.NewRing([][]byte{key}, front.Purposes()...)
		return ring, nil, err
	}
	stored, _, err := OpenStoredRing(t.Context(), st, clk.now, slog.New(slog.DiscardHandler), front.Purposes()...)
	if err != nil {
		return nil, nil, err
	}
	return stored.Ring(), stored, nil
}

func memoryWorld(t *testing.T) (*world, *clock) {
	t.Helper()
	clk := &clock{}
	return newWorld(t, testConfig, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk), clk
}

// gate is what the authorizer does on an app host, as far as the provider can tell.
func (w *world) gate(rw http.ResponseWriter, r *http.Request) {
	host, _ := hosts.Canonical(r.Host)
	names := handoff.Names(true)
	pre := handoff.NewPreCookie(w.now())
	if c, err := r.Cookie(names.Login); err == nil {
		if p, ok := handoff.ParsePreCookie(c.Value); ok {
			pre = p
		}
	}
	set := func(name, value string) {
		http.SetCookie(rw, &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	}
	if r.URL.Path == "/_gatehouse/session" {
		t, err := handoff.OpenTicket(w.ring, r.URL.Query().Get("t"), w.now())
		if err != nil || t.Host != host || !pre.Bound(t.Bind) {
			http.Error(rw, "bad ticket", http.StatusBadRequest)
			return
		}
		set(names.Login, pre.Next(w.now(), false).String())
		set(names.Session, handoff.SealCookie(w.ring, host, t.Session, w.now()))
		http.Redirect(rw, r, t.Return, http.StatusSeeOther)
		return
	}
	if c, err := r.Cookie(names.Session); err == nil {
		if id, _, err := handoff.OpenCookie(nil, w.ring, host, c.Value); err == nil {
			if s, err := w.provider.Session(r.Context(), string(id)); err == nil {
				_, _ = fmt.Fprintf(rw, "hello %s %v at %s", s.Email, s.Groups, r.URL.RequestURI())
				return
			}
		}
	}
	set(names.Login, pre.String())
	q := handoff.Request{Host: host, Return: r.URL.RequestURI(), Bind: pre.Bind(), Expiry: w.now().Add(handoff.RequestLifetime)}
	http.Redirect(rw, r, issuer+w.provider.SignInPath()+"?req="+url.QueryEscape(q.Seal(w.ring)), http.StatusFound)
}

// A browser follows redirects, keeps cookies and remembers what it asked for.
type browser struct {
	w    *world
	c    *http.Client
	log  []string
	last *url.URL
	page string
	code int
	head http.Header
}

func (w *world) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	b := &browser{w: w}
	b.c = &http.Client{Jar: jar, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		b.log = append(b.log, r.Method+" "+r.URL.Host+r.URL.Path)
		b.last = r.URL
		h := http.Handler(http.HandlerFunc(w.gate))
		switch {
		case r.URL.Host == "sso.example.com" && strings.HasPrefix(r.URL.Path, "/dex"):
			h = w.provider.Handler()
		case r.URL.Host == "web.example.com":
			h = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "client") })
		}
		return inproc.Serve(h, r)
	})}
	return b
}

// forget drops all cookies: another browser.
func (b *browser) forget() {
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.c.Jar = jar
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (b *browser) do(method, target string, form url.Values, header http.Header) *browser {
	b.w.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(b.w.t.Context(), method, target, body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	maps.Copy(r.Header, header)
	resp, err := b.c.Do(r)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.page, b.code, b.head = string(page), resp.StatusCode, resp.Header
	return b
}

func (b *browser) get(target string) *browser {
	b.w.t.Helper()
	return b.do(http.MethodGet, target, nil, nil)
}

var formRE = regexp.MustCompile(`<form[^>]*action="([^"]*)"`)

// action is the target of the page's first form.
func (b *browser) action() string {
	b.w.t.Helper()
	m := formRE.FindStringSubmatch(b.page)
	if m == nil {
		b.w.t.Fatalf("no form on the page at %s (%d): %s", b.last, b.code, b.page)
	}
	u, err := b.last.Parse(html.UnescapeString(m[1]))
	if err != nil {
		b.w.t.Fatal(err)
	}
	return u.String()
}

func (b *browser) signIn(user, password string) {
	b.w.t.Helper()
	b.do(http.MethodPost, b.action(), url.Values{"login": {user}, "password": {password}}, http.Header{"Origin": {"https://sso.example.com"}})
}

func (b *browser) requests() []string {
	l := b.log
	b.log = nil
	return l
}

func TestSignInTakesFourRequestsOrFive(t *testing.T) {
	for host, want := range map[string]int{"sso.example.com": 4, "app.example.com": 5, "x.apps.example.com": 5} {
		t.Run(host, func(t *testing.T) {
			w, _ := memoryWorld(t)
			b := w.browser()
			b.get("https://" + host + "/page?x=1")
			if p := b.last.Path; p != "/dex/auth/local/login" {
				t.Fatalf("the sign-in page lives at %s", p)
			}
			b.signIn("admin@example.com", "password")
			if want := "hello admin@example.com [admins staff] at /page?x=1"; b.page != want {
				t.Fatalf("got %d %q, want %q", b.code, b.page, want)
			}
			if got := b.requests(); len(got) != want {
				t.Errorf("%d requests, want %d: %v", len(got), want, got)
			}
			b.get("https://" + host + "/page")
			if got := b.requests(); len(got) != 1 {
				t.Errorf("signed in and yet %v", got)
			}
			b.get("https://other.apps.example.com/there")
			if got := b.requests(); len(got) != 4 || b.code != 200 || !strings.HasPrefix(b.page, "hello admin") {
				t.Errorf("single sign-on on another host: %d %q after %v", b.code, b.page, got)
			}
		})
	}
}

func TestPageAcceptsAScriptsPost(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	// To the page's own URL, with nothing but the two fields and no Origin.
	b.do(http.MethodPost, b.last.String(), url.Values{"login": {"user@example.com"}, "password": {"password"}}, nil)
	if !strings.HasPrefix(b.page, "hello user@example.com") {
		t.Errorf("got %d %q", b.code, b.page)
	}
}

func TestSignInFormIsRefused(t *testing.T) {
	form := url.Values{"login": {"admin@example.com"}, "password": {"password"}}
	for name, tt := range map[string]struct {
		prepare func(w *world, b *browser) string // returns where to post
		header  http.Header
		want    int
	}{
		"from another origin":          {header: http.Header{"Origin": {"https://app.example.com"}}, want: 403},
		"from origin null":             {header: http.Header{"Origin": {"null"}}, want: 403},
		"with two origins":             {header: http.Header{"Origin": {"https://sso.example.com", "https://sso.example.com"}}, want: 403},
		"cross-site by Sec-Fetch-Site": {header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, want: 403},
		"by a script that never fetched the page": {prepare: func(_ *world, b *browser) string {
			b.get("https://app.example.com/")
			u := b.last.String()
			b.forget()
			return u
		}, want: 400},
		"of an outside client, in another browser": {prepare: func(w *world, b *browser) string {
			other := w.browser()
			other.get(clientURL("v"))
			u := other.action()
			b.get(clientURL("v"))
			return u
		}, header: http.Header{"Origin": {"https://sso.example.com"}}, want: 400},
		"with a damaged request": {prepare: func(_ *world, b *browser) string {
			b.get("https://app.example.com/")
			return strings.Replace(b.last.String(), "req=", "req=A", 1)
		}, want: 400},
		"without a request": {prepare: func(*world, *browser) string { return issuer + "/auth/local/login" }, want: 400},
		"at a connector that does not exist": {prepare: func(_ *world, b *browser) string {
			b.get("https://app.example.com/")
			return strings.Replace(b.last.String(), "/auth/local/", "/auth/ldap/", 1)
		}, want: 404},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := memoryWorld(t)
			b := w.browser()
			target := ""
			if tt.prepare != nil {
				target = tt.prepare(w, b)
			} else {
				target = b.get("https://app.example.com/").last.String()
			}
			b.do(http.MethodPost, target, form, tt.header)
			if b.code != tt.want {
				t.Errorf("status %d, want %d: %s", b.code, tt.want, b.page)
			}
			if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("%d sessions (%v), want none", len(all), err)
			}
		})
	}
}

func TestBodyIsCapped(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	b.do(http.MethodPost, b.last.String(), url.Values{"login": {"a"}, "password": {strings.Repeat("x", 10<<20)}}, nil)
	if b.code != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d, want 413", b.code)
	}
}

func TestExpiredPageBeginsAgain(t *testing.T) {
	w, clk := memoryWorld(t)
	b := w.browser().get("https://app.example.com/deep?x=1")
	page := b.last.String()
	clk.add(handoff.RequestLifetime + time.Second)
	b.do(http.MethodPost, page, url.Values{"login": {"admin@example.com"}, "password": {"password"}}, nil)
	if b.last.Path != "/dex/auth/local/login" || b.code != 200 {
		t.Fatalf("at %s, %d", b.last, b.code)
	}
	b.signIn("admin@example.com", "password")
	if want := "hello admin@example.com [admins staff] at /deep?x=1"; b.page != want {
		t.Errorf("got %q, want %q", b.page, want)
	}
}

func TestWrongPasswordSaysTheSameForEveryone(t *testing.T) {
	w, _ := memoryWorld(t)
	text := func(user string) string {
		b := w.browser().get("https://app.example.com/")
		b.signIn(user, "wrong")
		if b.code != 401 {
			t.Fatalf("%s: status %d", user, b.code)
		}
		return strings.ReplaceAll(regexp.MustCompile(`req=[^"]*|[A-Z2-7]{26}`).ReplaceAllString(b.page, ""), user, "USER") // without the request's id
	}
	if known, unknown := text("admin@example.com"), text("nobody@example.com"); known != unknown {
		t.Errorf("known:\n%s\nunknown:\n%s", known, unknown)
	}
}

func TestThrottledPageSaysWhen(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	for range 5 {
		b.signIn("admin@example.com", "wrong")
	}
	b.signIn("admin@example.com", "password")
	if b.code != http.StatusTooManyRequests || b.head.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q", b.code, b.head.Get("Retry-After"))
	}
}

func TestNothingIsStoredBeforeAPasswordIsAccepted(t *testing.T) {
	clk := &clock{}
	counting := &countingDriver{}
	st := counting.wrap(t, clk)
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	counting.reset()
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "wrong")
	w.browser().get(clientURL("verifier"))
	if n := counting.count(); n != 0 {
		t.Errorf("%d writes before a password was accepted", n)
	}
	b.signIn("admin@example.com", "password")
	if !strings.HasPrefix(b.page, "hello") {
		t.Fatalf("got %d %q", b.code, b.page)
	}
	n := counting.count()
	t.Logf("%d writes for a whole sign-in", n)
	if n > 5 {
		t.Errorf("%d writes for a whole sign-in, want at most 5", n)
	}
}

// clientURL is an authorization request of the outside client.
func clientURL(verifier string) string {
	return webClient().AuthCodeURL("state", oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", "n"))
}

func webClient() *oauth2.Config {
	return &oauth2.Config{
		ClientID: "web", ClientSecret: "not-a-default-secret-5591", RedirectURL: "https://web.example.com/cb",
		Endpoint: oauth2.Endpoint{AuthURL: issuer + "/auth", TokenURL: issuer + "/token", AuthStyle: oauth2.AuthStyleInHeader},
		Scopes:   []string{"openid", "email", "groups", "offline_access"},
	}
}

func (w *world) direct(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: inproc.Transport{Handler: w.provider.Handler()}})
}

// signInClient gets tokens for the outside client in a new browser.
func (w *world) signInClient(b *browser) (*oauth2.Token, error) {
	verifier := oauth2.GenerateVerifier()
	b.get(clientURL(verifier))
	if b.last.Host != "web.example.com" {
		b.signIn("admin@example.com", "password")
	}
	code := b.last.Query().Get("code")
	if code == "" {
		return nil, fmt.Errorf("no code at %s: %d %s", b.last, b.code, b.page)
	}
	return webClient().Exchange(w.direct(w.t.Context()), code, oauth2.VerifierOption(verifier))
}

func TestOutsideClient(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	id, err := w.provider.Keys().Verify(t.Context(), raw, "web")
	if err != nil || id.SessionID == "" || id.Nonce != "n" {
		t.Errorf("id token: %+v, %v", id, err)
	}
	if _, err := w.provider.Keys().Verify(t.Context(), raw, front.GatewayClient); err == nil {
		t.Error("another client's token is good for the gateway")
	}
	code := b.last.Query().Get("code")
	if _, err := webClient().Exchange(w.direct(t.Context()), code, oauth2.VerifierOption("x")); err == nil {
		t.Error("a code is accepted twice")
	}
	b.requests()
	b.get("https://app.example.com/")
	if !strings.HasPrefix(b.page, "hello admin") {
		t.Errorf("the gateway does not know the session of the client: %d %s", b.code, b.page)
	}
}

// bothStores are the stores there are, by name.
func bothStores(t *testing.T, clk *clock) map[string]*store.Store {
	t.Helper()
	sqlite, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "g.db"), store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sqlite.Close() })
	return map[string]*store.Store{"memory": store.Memory(store.Options{Now: clk.now}), "sqlite": sqlite}
}

func TestRefreshThreeTimes(t *testing.T) {
	clk := &clock{}
	for name, st := range bothStores(t, clk) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testConfig, st, seal.NewKey(), clk)
			tok, err := w.signInClient(w.browser())
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				clk.add(time.Minute)
				old := tok.RefreshToken
				tok.Expiry = time.Unix(1, 0)
				if tok, err = webClient().TokenSource(w.direct(t.Context()), tok).Token(); err != nil {
					t.Fatalf("refresh %d: %v", i+1, err)
				}
				if tok.RefreshToken == old {
					t.Errorf("refresh %d: the token was not rotated", i+1)
				}
			}
		})
	}
}

func TestFiftySignInsAtOnce(t *testing.T) {
	clk := &clock{}
	for name, st := range bothStores(t, clk) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testConfig, st, seal.NewKey(), clk)
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					b := w.browser()
					if b.get("https://app.example.com/"); b.code != 200 {
						t.Errorf("page %d: %d", i, b.code)
						return
					}
					b.signIn("admin@example.com", "password")
					for try := 0; try < 60 && strings.Contains(b.page, "Too many people are signing in"); try++ { // on a busy machine
						<-time.After(time.Second) // as the answer's Retry-After says
						b.get("https://app.example.com/")
						b.signIn("admin@example.com", "password")
					}
					if !strings.HasPrefix(b.page, "hello admin") {
						t.Errorf("sign-in %d: %d %s", i, b.code, b.page)
					}
				})
			}
			wg.Wait()
			if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 50 {
				t.Errorf("%d sessions (%v), want 50", len(all), err)
			}
		})
	}
}

func TestInternalClientCannotBeUsedFromOutside(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser()
	b.get(issuer + "/auth?" + url.Values{"client_id": {front.GatewayClient}, "redirect_uri": {issuer + front.CallbackPath}, "response_type": {"code"}, "scope": {"openid"}}.Encode())
	if b.code != 400 {
		t.Errorf("authorization: %d", b.code)
	}
	for name, h := range map[string]http.Header{"basic": {"Authorization": {"Basic Z2F0ZWhvdXNlOg=="}}, "form": nil} {
		form := url.Values{"grant_type": {"authorization_code"}, "code": {"x"}}
		if h == nil {
			form.Set("client_id", front.GatewayClient)
		}
		if b.do(http.MethodPost, issuer+"/token", form, h); b.code != 401 {
			t.Errorf("token, %s: %d", name, b.code)
		}
	}
	for _, path := range []string{"/device/code", "/device", "/token/introspect/x", "/healthz", "/static/", "/theme/", "/"} {
		if b.get(issuer + path); b.code != 404 && b.code != 405 {
			t.Errorf("%s: %d, want 404", path, b.code)
		}
	}
	if b.do(http.MethodPost, issuer+"/device/code", url.Values{"client_id": {"web"}}, nil); b.code != 404 {
		t.Errorf("device code: %d, want 404", b.code)
	}
	if b.get(issuer + front.CallbackPath + "?code=x&state=y"); b.code != 400 {
		t.Errorf("callback with a forged state: %d", b.code)
	}
	if b.get(issuer + "/callback?code=x&state=known-auth-request"); b.code != 400 {
		t.Errorf("upstream callback with a forged state: %d", b.code)
	}
}

func TestIntrospectionNeedsAClient(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(user, secret string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, issuer+"/token/introspect", strings.NewReader(url.Values{"token": {tok.AccessToken}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if user != "" {
			r.SetBasicAuth(user, secret)
		}
		resp, err := inproc.Serve(w.provider.Handler(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	for name, tt := range map[string]struct {
		user, secret string
		want         int
	}{
		"nobody": {"", "", 401}, "wrong secret": {"web", "x", 401}, "internal": {front.GatewayClient, "", 401}, "client": {"web", "not-a-default-secret-5591", 200},
	} {
		if got := ask(tt.user, tt.secret); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestSignOutEndsEverythingOfTheSession(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	all, err := w.provider.Sessions(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	var seen []Change
	cancel := w.provider.Subscribe(func(c Change) { seen = append(seen, c) })
	defer cancel()
	if _, err := w.provider.SignOut(t.Context(), all[0].ID); err != nil {
		t.Fatal(err)
	}
	if len(seen) == 0 || seen[0].SessionID != all[0].ID {
		t.Errorf("changes %+v: the gateway was not told", seen)
	}
	if _, err := w.provider.Session(t.Context(), all[0].ID); !errors.Is(err, ErrNoSession) {
		t.Errorf("after the sign-out: %v", err)
	}
	if _, err := w.provider.Touch(t.Context(), all[0].ID, w.now()); !errors.Is(err, ErrNoSession) {
		t.Errorf("a touch revived it: %v", err)
	}
	b.get("https://app.example.com/")
	if b.last.Path != "/dex/auth/local/login" {
		t.Errorf("at %s: signed straight back in", b.last)
	}
	if _, err := w.provider.SignOut(t.Context(), all[0].ID); err != nil {
		t.Errorf("a second sign-out: %v", err)
	}
}

func TestSessionIDIsNewUnlessTheSameUserProvesALiveOne(t *testing.T) {
	w, clk := memoryWorld(t)
	id := func() string {
		t.Helper()
		all, err := w.provider.Sessions(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%d sessions, %v", len(all), err)
		}
		return all[0].ID
	}
	b := w.browser().get("https://app.example.com/")
	page := b.last.String()
	b.signIn("admin@example.com", "password")
	first := id()
	clk.add(5 * time.Minute)
	b.do(http.MethodPost, page, url.Values{"login": {"admin@example.com"}, "password": {"password"}}, http.Header{"Origin": {"https://sso.example.com"}})
	if second := id(); second != first {
		t.Error("the same user in the same browser got another session")
	}
	b.do(http.MethodPost, page, url.Values{"login": {"user@example.com"}, "password": {"password"}}, http.Header{"Origin": {"https://sso.example.com"}})
	if third := id(); third == first {
		t.Error("another user took over the session id")
	}
}

func TestBlockedUserIsCutOff(t *testing.T) {
	w, clk := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.provider.Block(t.Context(), "local", "u1", clk.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	b.get("https://app.example.com/")
	if b.last.Path != "/dex/auth/local/login" {
		t.Fatalf("at %s, %d", b.last, b.code)
	}
	if b.signIn("admin@example.com", "password"); b.code != 403 {
		t.Errorf("sign-in of a blocked user: %d", b.code)
	}
	tok.Expiry = time.Unix(1, 0)
	if _, err := webClient().TokenSource(w.direct(t.Context()), tok).Token(); err == nil {
		t.Error("the refresh token of a blocked user works")
	}
	clk.add(2 * time.Hour)
	b = w.browser().get("https://app.example.com/")
	if b.signIn("admin@example.com", "password"); !strings.HasPrefix(b.page, "hello") {
		t.Errorf("after the block: %d %s", b.code, b.page)
	}
}

func TestKeysRotateAndOldTokensVerify(t *testing.T) {
	w, clk := memoryWorld(t)
	tok, err := w.signInClient(w.browser())
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	before := w.provider.Keys().keys.Load()
	clk.add(7 * time.Hour)
	// Another replica rotates: this one does not know until it meets the new key.
	cache := &keyCache{Store: w.provider.store, now: clk.now, set: &KeySet{issuer: issuer, now: clk.now}}
	if _, err := rotateOnce(t.Context(), cache, clk.now); err != nil {
		t.Fatal(err)
	}
	clk.add(cache.lead())
	other, err := rotateOnce(t.Context(), cache, clk.now) // nothing is due
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.provider.Keys().Verify(t.Context(), raw, "web"); err != nil {
		t.Errorf("token of the old key: %v", err)
	}
	if _, err := w.provider.Keys().Verify(t.Context(), other, "web"); err == nil || strings.Contains(err.Error(), "key") {
		t.Errorf("a token of the new key was not even looked at: %v", err)
	}
	if w.provider.Keys().keys.Load() == before {
		t.Error("the new key was not read")
	}
}

func TestVerifyRefuses(t *testing.T) {
	w, clk := memoryWorld(t)
	tok, err := w.signInClient(w.browser())
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	parts := strings.Split(raw, ".")
	for name, token := range map[string]string{
		"empty": "", "garbage": "a.b.c", "truncated": raw[:len(raw)-10], "without signature": parts[0] + "." + parts[1] + ".",
		"alg none":   "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"alg HS256":  "eyJhbGciOiJIUzI1NiIsImtpZCI6IngifQ." + parts[1] + "." + parts[2],
		"many dots":  strings.Repeat(".", 1000),
		"over 16 kB": strings.Repeat("a", 17<<10),
	} {
		if _, err := w.provider.Keys().Verify(t.Context(), token, "web"); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	clk.add(25 * time.Hour)
	if _, err := w.provider.Keys().Verify(t.Context(), raw, "web"); err == nil {
		t.Error("an expired token is accepted")
	}
}

func TestDiscoveryNamesWhatIsOpen(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get(issuer + "/.well-known/openid-configuration")
	var doc struct {
		Issuer string   `json:"issuer"`
		Grants []string `json:"grant_types_supported"`
		Algs   []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := json.Unmarshal([]byte(b.page), &doc); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.page, "device") {
		t.Errorf("the document offers what is closed: %s", b.page)
	}
	if doc.Issuer != issuer || fmt.Sprint(doc.Algs) != "[RS256]" || fmt.Sprint(doc.Grants) != "[authorization_code password refresh_token]" {
		t.Errorf("%+v", doc)
	}
}

func TestPagesAreOfTheIssuersHostOnly(t *testing.T) {
	w, _ := memoryWorld(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://app.example.com/dex/auth/local/login?req=x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := inproc.Serve(w.provider.Handler(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("status %d, want 421", resp.StatusCode)
	}
}

func TestNoSecretInAnyLog(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "a-wrong-password-4711")
	b.signIn("admin@example.com", "password")
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	all, err := w.provider.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	logs := w.logs.String() + w.audit.String()
	for name, secret := range map[string]string{
		"a session id": all[0].ID, "a wrong password": "a-wrong-password-4711", "an id token": raw, "a refresh token": tok.RefreshToken,
		"a client secret": "not-a-default-secret-5591", "a password hash": hash, "a code": b.last.Query().Get("code"),
	} {
		if secret == "" || strings.Contains(logs, secret) {
			t.Errorf("%s is in the log", name)
		}
	}
	if n := strings.Count(w.audit.String(), `"sign-in"`); n != 3 {
		t.Errorf("%d sign-in events, want 3: %s", n, w.audit.String())
	}
}

func TestCheckConnector(t *testing.T) {
	for name, tt := range map[string]struct{ kind, config, want string }{
		"good":          {"ldap", `{"host":"ldap.example.com:636","userSearch":{"baseDN":"ou=people","username":"uid","idAttr":"uid","emailAttr":"mail"}}`, ""},
		"unknown type":  {"ldapp", `{}`, `unknown connector type "ldapp"`},
		"unknown field": {"ldap", `{"hots":"x"}`, `unknown field "hots"`},
		"wrong type":    {"ldap", `{"host":1}`, "host: got a number"},
	} {
		err := CheckConnector(tt.kind, []byte(tt.config))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
