package provider

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
)

// An op is an OpenID Provider of the test's own, on a real listener: what it signs can be anything.
type op struct {
	t      *testing.T
	server *httptest.Server
	now    func() time.Time

	mu        sync.Mutex
	key       jwk.Key // it signs with; guarded by mu, as all of the following
	published []jwk.Key
	asked     map[string]int
	down      bool
	id        map[string]any // claims of the next ID Token
	metadata  map[string]any // that take the place of others
	asking    func()         // called once, when an ID Token is asked for
}

const opClient, opSecret = "us at the op", "not-a-default-secret-7715"

func newOP(t *testing.T, clk *clock) *op {
	t.Helper()
	o := &op{t: t, now: clk.now, asked: map[string]int{}, id: map[string]any{"sub": "alice", "sid": "up-1", "name": "Alice", "email": "alice@up.example", "email_verified": true, "groups": []string{"staff"}}}
	o.server = httptest.NewServer(o)
	t.Cleanup(o.server.Close)
	raw, err := opKey()
	if err != nil {
		t.Fatal(err)
	}
	o.publish(keyOf(t, raw, "k1"))
	return o
}

// opKey is the first key of each: to make one takes longer than a sign-in.
var opKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newRSAKey(t *testing.T, id string) jwk.Key {
	t.Helper()
	raw, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return keyOf(t, raw, id)
}

func keyOf(t *testing.T, raw any, id string) jwk.Key {
	t.Helper()
	k, err := jwk.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Set(jwk.KeyIDKey, id); err != nil {
		t.Fatal(err)
	}
	return k
}

// rotate makes a new key and publishes it alone.
func (o *op) rotate(id string) {
	o.t.Helper()
	o.publish(newRSAKey(o.t, id))
}

func (o *op) publish(k jwk.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.key, o.published = k, []jwk.Key{k}
}

func (o *op) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	if asking := o.asking; asking != nil && r.URL.Path == "/token" {
		o.asking = nil
		o.mu.Unlock()
		asking()
		o.mu.Lock()
	}
	defer o.mu.Unlock()
	o.asked[r.URL.Path]++
	if o.down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	var answer any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		doc := map[string]any{"issuer": o.server.URL, "authorization_endpoint": o.server.URL + "/auth", "token_endpoint": o.server.URL + "/token", "jwks_uri": o.server.URL + "/keys"}
		maps.Copy(doc, o.metadata)
		answer = doc
	case "/keys":
		set := jwk.NewSet()
		for _, k := range o.published {
			public, err := k.PublicKey()
			if err != nil || set.AddKey(public) != nil {
				o.t.Error(err)
			}
		}
		answer = set
	case "/token":
		now := o.now().Unix()
		claims := map[string]any{"iss": o.server.URL, "aud": opClient, "iat": now, "exp": now + 300}
		maps.Copy(claims, o.id)
		answer = map[string]any{"access_token": "x", "token_type": "Bearer", "expires_in": 300, "id_token": o.signWith(o.key, jwa.RS256, nil, claims)}
	default:
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (o *op) count(path string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[path]
}

// signWith signs claims; a header of nil is left out.
func (o *op) signWith(k jwk.Key, alg jwa.SignatureAlgorithm, head map[string]any, claims any) string {
	o.t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		o.t.Fatal(err)
	}
	h := jws.NewHeaders()
	for name, v := range head {
		if err := h.Set(name, v); err != nil {
			o.t.Fatal(err)
		}
	}
	signed, err := jws.Sign(payload, jws.WithKey(alg, k, jws.WithProtectedHeaders(h)))
	if err != nil {
		o.t.Fatal(err)
	}
	return string(signed)
}

// token is a logout token that is good but for what change does to its claims.
func (o *op) token(change func(map[string]any)) string {
	o.t.Helper()
	claims := o.claims()
	if change != nil {
		change(claims)
	}
	return o.signWith(o.key, jwa.RS256, map[string]any{"typ": "logout+jwt"}, claims)
}

func (o *op) claims() map[string]any {
	now := o.now().Unix()
	return map[string]any{
		"iss": o.server.URL, "aud": opClient, "iat": now, "exp": now + 120, "jti": rand.Text(), "sub": "alice", "sid": "up-1",
		"events": map[string]any{logoutEvent: map[string]any{}},
	}
}

// An opWorld is a world with that provider behind the connector "op".
type opWorld struct {
	*world

	op     *op
	clk    *clock
	driver *countingDriver
	key    []byte
	text   string
}

func newOPWorld(t *testing.T, options string) *opWorld {
	t.Helper()
	clk, d := &clock{}, &countingDriver{}
	o := newOP(t, clk)
	text := strings.Replace(logoutConfig, "gateway:\n", fmt.Sprintf(`connectors:
- {type: mockCallback, id: mock, name: Mock}
- type: oidc
  id: op
  name: The OP
  config: {issuer: %q, clientID: %q, clientSecret: %q, redirectURI: %q, insecureEnableGroups: true%s}
gateway:
`, o.server.URL, opClient, opSecret, issuer+"/callback", options), 1)
	key := seal.NewKey()
	return &opWorld{world: newWorld(t, text, d.wrap(t, clk), key, clk), op: o, clk: clk, driver: d, key: key, text: text}
}

// signInAs signs somebody in through the provider, in a new browser, and returns the id of the session.
func (w *opWorld) signInAs(sub, sid string) (*browser, string) {
	w.t.Helper()
	before := map[string]bool{}
	all, err := w.store.ListAuthSessions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		before[s.ID] = true
	}
	b, back := w.atProvider(sub, sid)
	b.get(back)
	if want := "hello alice@up.example [staff] at /"; b.page != want {
		w.t.Fatalf("got %d %q, want %q", b.code, b.page, want)
	}
	if all, err = w.store.ListAuthSessions(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		if !before[s.ID] {
			return b, s.ID
		}
	}
	w.t.Fatal("no session")
	return nil, ""
}

// atProvider brings a new browser as far as the provider, where it is somebody, and returns where it comes back to.
func (w *opWorld) atProvider(sub, sid string) (b *browser, back string) {
	w.t.Helper()
	w.op.mu.Lock()
	w.op.id["sub"], w.op.id["sid"], w.op.id["uid"] = sub, sid, "id of "+sub
	if sid == "" {
		delete(w.op.id, "sid")
	}
	w.op.mu.Unlock()
	b = w.browser().get("https://app.example.com/")
	follow := b.c.CheckRedirect
	b.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	m := strings.Index(b.page, "/dex/auth/op?req=")
	if m < 0 {
		w.t.Fatalf("no link to the provider: %s", b.page)
	}
	link, _, _ := strings.Cut(b.page[m:], `"`)
	b.get("https://sso.example.com" + link)
	u, err := url.Parse(b.head.Get("Location"))
	if err != nil || !strings.HasPrefix(u.String(), w.op.server.URL+"/auth?") {
		w.t.Fatalf("leads to %q", b.head.Get("Location"))
	}
	b.c.CheckRedirect = follow
	return b, issuer + "/callback?" + url.Values{"code": {"c"}, "state": {u.Query().Get("state")}}.Encode()
}

// logout sends a logout token.
func (w *world) logout(token string) *browser {
	w.t.Helper()
	return w.browser().do(http.MethodPost, issuer+front.UpstreamLogoutPath+"op", url.Values{"logout_token": {token}}, nil)
}

// living returns which of the sessions live.
func (w *opWorld) living(ids map[string]string) string {
	w.t.Helper()
	var out []string
	for _, name := range []string{"a1", "a2", "other", "b1"} {
		if _, err := w.store.GetAuthSession(w.t.Context(), ids[name]); ids[name] != "" && err == nil {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

func TestUpstreamEndsItsSessions(t *testing.T) {
	set := func(kv ...any) func(map[string]any) {
		return func(c map[string]any) {
			for i := 0; i < len(kv); i += 2 {
				if kv[i+1] == nil {
					delete(c, kv[i].(string))
				} else {
					c[kv[i].(string)] = kv[i+1]
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		options string
		change  func(map[string]any)
		want    string // that live then, of a1 (alice, session up-1), a2 (alice, up-2), b1 (bob, up-3) and other (alice, of whose session the provider said nothing)
	}{
		"sid":                               {"", set("sub", nil), "a2 other b1"},
		"sub":                               {"", set("sid", nil), "b1"},
		"sub and sid":                       {"", nil, "a2 b1"},
		"sid of nobody":                     {"", set("sub", nil, "sid", "x"), "a1 a2 other b1"},
		"sub of nobody":                     {"", set("sid", nil, "sub", "x"), "a1 a2 other b1"},
		"bob":                               {"", set("sid", nil, "sub", "bob"), "a1 a2 other"},
		"audiences":                         {"", set("aud", []string{"x", opClient}), "a2 b1"},
		"a time in parts of a second":       {"", func(c map[string]any) { c["iat"] = float64(c["iat"].(int64)) - 0.5 }, "a2 b1"},
		"a clock that is a bit ahead":       {"", func(c map[string]any) { c["iat"] = c["iat"].(int64) + 50 }, "a2 b1"},
		"an event with something in it":     {"", set("events", map[string]any{logoutEvent: map[string]any{"x": 1}, "other": 1}), "a2 b1"},
		"sub, where users have other ids":   {", userIDKey: uid", set("sid", nil), "b1"},
		"sid, where users have other ids":   {", userIDKey: uid", set("sub", nil), "a2 other b1"},
		"both, where users have other ids":  {", userIDKey: uid", nil, "a2 b1"},
		"a user's id, where sub is another": {", userIDKey: uid", set("sid", nil, "sub", "id of alice"), "a1 a2 other b1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOPWorld(t, tt.options)
			ids, browsers := map[string]string{}, map[string]*browser{}
			browsers["a1"], ids["a1"] = w.signInAs("alice", "up-1")
			browsers["a2"], ids["a2"] = w.signInAs("alice", "up-2")
			browsers["b1"], ids["b1"] = w.signInAs("bob", "up-3")
			_, ids["other"] = w.signInAs("alice", "")
			if b := w.logout(w.op.token(tt.change)); b.code != 200 || b.page != "" || b.head.Get("Cache-Control") != "no-store" {
				t.Errorf("got %d %q", b.code, b.page)
			}
			if got := w.living(ids); got != tt.want {
				t.Errorf("%q live, want %q", got, tt.want)
			}
			for name, b := range browsers {
				if in := strings.HasPrefix(b.get("https://app.example.com/").page, "hello"); in != strings.Contains(tt.want, name) {
					t.Errorf("the browser of %s is signed in: %v", name, in)
				}
			}
			if !strings.Contains(w.audit.String(), `"msg":"upstream logout","connector":"op"`) {
				t.Errorf("not audited: %s", w.audit)
			}
		})
	}
}

func TestUpstreamLogoutTokenIsRefused(t *testing.T) {
	w := newOPWorld(t, "")
	_, sid := w.signInAs("alice", "up-1")
	w.clk.stop() // the good one is good for minutes
	o, now := w.op, w.clk.now().Unix()
	key, typ := o.key, map[string]any{"typ": "logout+jwt"}
	without := func(names ...string) func(map[string]any) {
		return func(c map[string]any) {
			for _, n := range names {
				delete(c, n)
			}
		}
	}
	with := func(name string, v any) func(map[string]any) { return func(c map[string]any) { c[name] = v } }
	good := o.token(nil)
	parts := strings.Split(good, ".")
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	modulus, err := json.Marshal(public)
	if err != nil {
		t.Fatal(err)
	}
	idToken := map[string]any{"iss": o.server.URL, "aud": opClient, "iat": now, "exp": now + 300, "sub": "alice", "sid": "up-1", "nonce": "n", "jti": "x"}
	events := map[string]any{logoutEvent: map[string]any{}}
	for name, token := range map[string]string{
		"empty": "", "no JWT": "x", "two parts": parts[0] + "." + parts[1], "four parts": good + ".x", "JSON": jsonForm(good), "padded": parts[0] + "=." + parts[1] + "." + parts[2],
		"a line break": parts[0] + "\n." + parts[1] + "." + parts[2], "20 kB": o.token(with("x", strings.Repeat("A", 20<<10))), "a blank in front": " " + good,
		"signature cut": parts[0] + "." + parts[1] + ".", "signature changed": parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])), "payload changed": parts[0] + "." + strings.Split(o.token(with("sub", "bob")), ".")[1] + "." + parts[2],
		"alg none":                       b64(`{"alg":"none"}`) + "." + parts[1] + ".",
		"alg none, signed":               b64(`{"alg":"none","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"alg HS256 with the public key":  o.signWith(keyOf(t, modulus, "k1"), jwa.HS256, typ, o.claims()),
		"another key of the same id":     o.signWith(newRSAKey(t, "k1"), jwa.RS256, typ, o.claims()),
		"another key of another id":      o.signWith(newRSAKey(t, "k9"), jwa.RS256, typ, o.claims()),
		"another type of key":            o.signWith(keyOf(t, ec, "k1"), jwa.ES256, typ, o.claims()),
		"another algorithm than it says": b64(`{"alg":"RS512","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"a key of its own":               o.signWith(newRSAKey(t, "k1"), jwa.RS256, map[string]any{"typ": "logout+jwt", "jku": o.server.URL + "/evil"}, o.claims()),
		"crit":                           o.signWith(key, jwa.RS256, map[string]any{"typ": "logout+jwt", "crit": []string{"x"}, "x": 1}, o.claims()),
		"typ of an access token":         o.signWith(key, jwa.RS256, map[string]any{"typ": "at+jwt"}, o.claims()),
		"typ of another event":           o.signWith(key, jwa.RS256, map[string]any{"typ": "secevent+jwt"}, o.claims()),
		"an ID Token":                    o.signWith(key, jwa.RS256, nil, idToken),
		"an ID Token with an event":      o.token(with("nonce", "n")),
		"a nonce that is null":           o.token(with("nonce", nil)),
		"no iss":                         o.token(without("iss")),
		"another iss":                    o.token(with("iss", "https://evil.example")),
		"iss with a slash":               o.token(with("iss", o.server.URL+"/")),
		"no aud":                         o.token(without("aud")),
		"another aud":                    o.token(with("aud", "x")),
		"aud of others":                  o.token(with("aud", []string{"x", "y"})),
		"aud of nobody":                  o.token(with("aud", []string{})),
		"aud that is an object":          o.token(with("aud", map[string]any{opClient: 1})),
		"no iat":                         o.token(without("iat")),
		"iat as text":                    o.token(with("iat", fmt.Sprint(now))),
		"iat long ago":                   o.token(with("iat", now-11*60)),
		"iat in the future":              o.token(with("iat", now+5*60)),
		"iat that is huge":               o.token(with("iat", 1e300)),
		"no exp":                         o.token(without("exp")),
		"exp passed":                     o.token(with("exp", now-61)),
		"exp as text":                    o.token(with("exp", "9999999999")),
		"not good yet":                   o.token(with("nbf", now+300)),
		"no jti":                         o.token(without("jti")),
		"an empty jti":                   o.token(with("jti", "")),
		"a long jti":                     o.token(with("jti", strings.Repeat("j", 256))),
		"no events":                      o.token(without("events")),
		"another event":                  o.token(with("events", map[string]any{"x": map[string]any{}})),
		"an event in capitals":           o.token(with("events", map[string]any{strings.ToUpper(logoutEvent): map[string]any{}})),
		"an event that is no object":     o.token(with("events", map[string]any{logoutEvent: true})),
		"an event that is null":          o.token(with("events", map[string]any{logoutEvent: nil})),
		"events as a list":               o.token(with("events", []string{logoutEvent})),
		"neither sub nor sid":            o.token(without("sub", "sid")),
		"an empty sub":                   o.token(with("sub", "")),
		"sub as a number":                o.token(with("sub", 1)),
		"a long sub":                     o.token(with("sub", strings.Repeat("s", 256))),
		"an empty sid":                   o.token(with("sid", "")),
		"sid as a list":                  o.token(with("sid", []string{"up-1"})),
		"claims in a list":               o.signWith(key, jwa.RS256, typ, []any{map[string]any{"events": events}}),
		"one of our own":                 w.ownLogoutToken(sid),
	} {
		w.driver.reset()
		if b := w.logout(token); b.code != 400 || !strings.Contains(b.page, `"error":"invalid_request"`) {
			t.Errorf("%s: got %d %q", name, b.code, b.page)
		}
		if n := w.driver.count(); n != 0 {
			t.Errorf("%s: %d writes", name, n)
		}
		if _, err := w.store.GetAuthSession(t.Context(), sid); err != nil {
			t.Fatalf("%s: the session: %v", name, err)
		}
	}
	for name, tt := range map[string]struct {
		method, connector string
		form              url.Values
		want              int
	}{
		"no token":                      {http.MethodPost, "op", url.Values{}, 400},
		"two tokens":                    {http.MethodPost, "op", url.Values{"logout_token": {good, good}}, 400},
		"a token in the query":          {http.MethodPost, "op?logout_token=" + url.QueryEscape(good), url.Values{}, 400},
		"GET":                           {http.MethodGet, "op?logout_token=" + url.QueryEscape(good), nil, 405},
		"a connector that is not there": {http.MethodPost, "nobody", url.Values{"logout_token": {good}}, 404},
		"a connector without discovery": {http.MethodPost, "mock", url.Values{"logout_token": {good}}, 404},
		"the local users":               {http.MethodPost, "local", url.Values{"logout_token": {good}}, 404},
		"a form of 100 kB":              {http.MethodPost, "op", url.Values{"logout_token": {good}, "x": {strings.Repeat("x", 100<<10)}}, 413},
	} {
		if b := w.browser().do(tt.method, issuer+"/backchannel/"+tt.connector, tt.form, nil); b.code != tt.want && (tt.want != 405 || b.code != 404) {
			t.Errorf("%s: got %d, want %d: %s", name, b.code, tt.want, b.page)
		}
	}
	if b := w.logout(good); b.code != 200 {
		t.Errorf("and the good one: got %d %q", b.code, b.page)
	}
	if strings.Contains(w.logs.String(), parts[2]) || strings.Contains(w.logs.String(), parts[1]) {
		t.Error("the log has a token")
	}
}

// ownLogoutToken is what we send to our clients.
func (w *world) ownLogoutToken(sid string) string {
	w.t.Helper()
	raw, err := w.provider.signLogout(w.t.Context(), store.Notice{ClientID: opClient, SessionID: sid, UserID: "alice", ConnectorID: "op"})
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func TestUpstreamLogoutTokenWorksOnce(t *testing.T) {
	w := newOPWorld(t, "")
	second := newWorld(t, w.text, w.store, w.key, w.clk) // another replica
	w.signInAs("alice", "up-1")
	token := w.op.token(nil)
	if b := w.logout(token); b.code != 200 || w.sessionCount() != 0 {
		t.Fatalf("got %d %q", b.code, b.page)
	}
	w.clk.add(2 * time.Second) // a provider may use a name again
	w.signInAs("alice", "up-1")
	for name, replica := range map[string]*world{"here": w.world, "at another replica": second} {
		if b := replica.logout(token); b.code != 400 || w.sessionCount() != 1 {
			t.Errorf("again, %s: got %d, %d sessions", name, b.code, w.sessionCount())
		}
	}
	// What is remembered is forgotten once the token has expired by itself.
	w.clk.add(12 * time.Minute)
	if _, err := w.store.GarbageCollect(t.Context(), w.clk.now()); err != nil {
		t.Fatal(err)
	}
	if b := w.logout(token); b.code != 400 || w.sessionCount() != 1 {
		t.Errorf("after its expiry: got %d, %d sessions", b.code, w.sessionCount())
	}
	if b := second.logout(w.op.token(nil)); b.code != 200 || w.sessionCount() != 0 {
		t.Errorf("another one: got %d, %d sessions", b.code, w.sessionCount())
	}
}

func TestUpstreamKeysAreFetchedSeldom(t *testing.T) {
	w := newOPWorld(t, "")
	w.signInAs("alice", "up-1")
	w.clk.stop() // or there would be pauses between the strangers
	before := w.op.count("/keys")
	stranger := newRSAKey(t, "k7")
	for range 50 {
		if b := w.logout(w.op.signWith(stranger, jwa.RS256, nil, w.op.claims())); b.code != 400 {
			t.Fatalf("got %d %q", b.code, b.page)
		}
		w.logout("x.y.z")
	}
	if n := w.op.count("/keys") - before; n != 1 {
		t.Errorf("50 strangers made us fetch the keys %d times, want 1", n)
	}
	w.op.rotate("k2") // is known after the pause
	if b := w.logout(w.op.token(nil)); b.code != 400 {
		t.Errorf("within the pause: got %d", b.code)
	}
	w.clk.add(31 * time.Second)
	if b := w.logout(w.op.token(nil)); b.code != 200 || w.sessionCount() != 0 {
		t.Errorf("after the rotation: got %d %q, %d sessions", b.code, b.page, w.sessionCount())
	}
	if n := w.op.count("/keys") - before; n != 2 {
		t.Errorf("the keys were fetched %d times, want 2", n)
	}
}

func TestUpstreamIsDown(t *testing.T) {
	w := newOPWorld(t, "")
	w.signInAs("alice", "up-1")
	w.op.mu.Lock()
	w.op.down = true
	w.op.mu.Unlock()
	w.driver.reset()
	if b := w.logout(w.op.token(nil)); b.code != 503 || b.head.Get("Retry-After") == "" || w.driver.count() != 0 || w.sessionCount() != 1 {
		t.Errorf("got %d %q, %d writes, %d sessions", b.code, b.page, w.driver.count(), w.sessionCount())
	}
	w.op.mu.Lock()
	w.op.down = false
	w.op.mu.Unlock()
	w.clk.add(31 * time.Second)
	if b := w.logout(w.op.token(nil)); b.code != 200 || w.sessionCount() != 0 {
		t.Errorf("then: got %d %q", b.code, b.page)
	}
	w.clk.add(2 * time.Second)
	w.signInAs("alice", "up-1")
	w.op.mu.Lock()
	w.op.down = true
	w.op.mu.Unlock()
	w.clk.add(2 * time.Hour) // old keys are better than none
	if b := w.logout(w.op.token(nil)); b.code != 200 || w.sessionCount() != 0 {
		t.Errorf("with old keys: got %d %q", b.code, b.page)
	}
}

// What the metadata says is not taken from anybody.
func TestUpstreamMetadataIsChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		metadata map[string]any
		options  string
		want     int
	}{
		"another issuer":                  {map[string]any{"issuer": "https://evil.example"}, "", 503},
		"keys in a file":                  {map[string]any{"jwks_uri": "file:///etc/passwd"}, "", 503},
		"keys nowhere":                    {map[string]any{"jwks_uri": ""}, "", 503},
		"keys where the file says":        {map[string]any{"jwks_uri": "http://127.0.0.1:1/"}, ", providerDiscoveryOverrides: {jwksURL: KEYS}", 200},
		"an issuer that has another name": {map[string]any{"issuer": "https://alias.example"}, ", issuerAlias: \"https://alias.example\"", 200},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOPWorld(t, "")
			w.signInAs("alice", "up-1")
			w.op.mu.Lock()
			w.op.metadata = tt.metadata
			w.op.mu.Unlock()
			change := func(c map[string]any) {
				if iss, ok := tt.metadata["issuer"].(string); ok && tt.want == 200 {
					c["iss"] = iss
				}
			}
			if tt.options != "" {
				w.reload(strings.Replace(w.text, "insecureEnableGroups: true", "insecureEnableGroups: true"+strings.ReplaceAll(tt.options, "KEYS", fmt.Sprintf("%q", w.op.server.URL+"/keys")), 1))
			}
			if b := w.logout(w.op.token(change)); b.code != tt.want {
				t.Errorf("got %d %q, want %d", b.code, b.page, tt.want)
			}
		})
	}
}

// No group that was made of a claim gets out, whichever way an identity comes.
func TestUpstreamSessionIsNoGroup(t *testing.T) {
	w := newOPWorld(t, "")
	_, sid := w.signInAs("alice", "up-1")
	s, err := w.provider.Session(t.Context(), sid)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Groups) != 1 || s.Groups[0] != "staff" {
		t.Errorf("groups %q", s.Groups)
	}
	w.op.mu.Lock()
	delete(w.op.id, "groups")
	w.op.mu.Unlock()
	all, err := w.store.ListUserIdentities(t.Context())
	if err != nil || len(all) != 1 || strings.Contains(fmt.Sprint(all[0].Claims), "up-1") {
		t.Errorf("%+v, %v", all, err)
	}
	if strings.Contains(w.logs.String()+w.audit.String(), "up-1") {
		t.Error("a log has the upstream's session id")
	}
}

// Two who were signed in through one session of the provider are signed out together.
func TestUpstreamSessionOfTwoBrowsers(t *testing.T) {
	w := newOPWorld(t, "")
	w.signInAs("alice", "up-1")
	w.signInAs("alice", "up-1")
	if b := w.logout(w.op.token(func(c map[string]any) { delete(c, "sub") })); b.code != 200 || w.sessionCount() != 0 {
		t.Errorf("got %d, %d sessions", b.code, w.sessionCount())
	}
	if left, err := w.store.UpstreamSessions(t.Context(), "op", claimSession, "up-1"); err != nil || len(left) != 0 {
		t.Errorf("%d links are left, %v", len(left), err)
	}
}
