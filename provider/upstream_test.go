package provider

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// An idp is an upstream identity provider with one user, and the connector that leads to it.
type idp struct {
	mu     sync.Mutex
	groups []string
	err    error // of a refresh
	n      int   // of the token that is good
	asked  int
	mute   bool // it gives no token
}

// tokenWord is in all of its tokens.
const tokenWord = "kept-from-everybody"

func (p *idp) identity() connector.Identity {
	p.n++
	return connector.Identity{UserID: "ida", Username: "Ida", Email: "ida@example.org", EmailVerified: true, Groups: slices.Clone(p.groups), ConnectorData: fmt.Appendf(nil, "%s-%d", tokenWord, p.n)}
}

func (p *idp) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// LoginURL implements connector.CallbackConnector: the user is signed in there.
func (p *idp) LoginURL(_ connector.Scopes, callbackURL, state string) (string, []byte, error) {
	return callbackURL + "?" + url.Values{"state": {state}}.Encode(), nil, nil
}

// HandleCallback implements connector.CallbackConnector.
func (p *idp) HandleCallback(s connector.Scopes, _ []byte, _ *http.Request) (connector.Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !s.OfflineAccess || !s.Groups {
		return connector.Identity{}, fmt.Errorf("got the scopes %+v, want offline access and groups", s)
	}
	id := p.identity()
	if p.mute {
		id.ConnectorData = nil
	}
	return id, nil
}

// Refresh implements connector.RefreshConnector.
func (p *idp) Refresh(_ context.Context, _ connector.Scopes, id connector.Identity) (connector.Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if want := fmt.Sprintf("%s-%d", tokenWord, p.n); p.err == nil && string(id.ConnectorData) != want {
		return id, errors.New(`oidc: failed to get refresh token: oauth2: "invalid_grant" "used already"`)
	}
	if p.err != nil {
		return id, p.err
	}
	return p.identity(), nil
}

// upstreamWorld is a world with the connector "up" that leads to an identity provider.
func upstreamWorld(t *testing.T, p *idp, st *store.Store, clk *clock) *world {
	t.Helper()
	text := strings.Replace(testConfig, "gateway:\n", "connectors:\n- {type: oidc, id: up, name: Upstream, config: {issuer: https://idp.example.org, clientID: c, clientSecret: a secret of this test, redirectURI: "+issuer+"/callback}}\ngateway:\n", 1)
	return newWorldWith(t, text, st, seal.NewKey(), clk, func(c storage.Connector) (connector.Connector, error) {
		if c.ID == dexconnectors.LocalConnector {
			return nil, errors.New("not here")
		}
		if p == nil {
			return nil, errors.New("discovery: connection refused")
		}
		return p, nil
	})
}

func (w *world) signsInUpstream() *browser {
	w.t.Helper()
	b := w.browser().get("https://app.example.com/page")
	if b.get(b.link()); !strings.HasPrefix(b.page, "hello ida@example.org") {
		w.t.Fatalf("got %d %s", b.code, b.page)
	}
	return b
}

// grants is what is kept to ask about the user with.
func (w *world) grants() (tokens []string) {
	w.t.Helper()
	g, err := w.store.GrantsOf(w.t.Context(), "ida", "up")
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		w.t.Fatal(err)
	}
	for _, one := range g.List {
		tokens = append(tokens, string(one.Data))
	}
	return tokens
}

// errUpstreamRefused is the error by which an identity provider refuses a token.
var errUpstreamRefused = errors.New(`oidc: failed to get refresh token: oauth2: "invalid_grant" "account disabled"`)

func TestUpstreamUsersAreAskedAbout(t *testing.T) {
	clk, p := &clock{}, &idp{groups: []string{"staff"}}
	w := upstreamWorld(t, p, store.Memory(store.Options{Now: clk.now}), clk)
	b := w.signsInUpstream()
	s := w.sessionOf("ida@example.org")
	clk.add(9 * time.Minute)
	p.set(func() { p.groups = []string{"night-shift"} })
	if err := w.vouch(s); err != nil || p.asked != 0 {
		t.Errorf("after nine minutes: asked %d times: %v", p.asked, err)
	}
	clk.add(time.Hour)
	if err := w.vouch(s); err != nil {
		t.Fatal(err)
	}
	if b.get("https://app.example.com/page"); b.page != "hello ida@example.org [night-shift] at /page" || p.asked != 1 {
		t.Errorf("idle for an hour: asked %d times, and then %s", p.asked, b.page)
	}
	if got := w.grants(); len(got) != 1 || got[0] != tokenWord+"-2" {
		t.Errorf("kept %v, want the token of the last answer", got)
	}
	clk.add(time.Hour)
	p.set(func() { p.err = errUpstreamRefused })
	if err := w.vouch(s); !errors.Is(err, identity.ErrEnded) {
		t.Errorf("refused after another hour: got %v, want the end before anybody is let in", err)
	}
	eventually(t, "the session ends", func() bool {
		_, err := w.provider.Session(t.Context(), s.ID)
		return errors.Is(err, ErrNoSession)
	})
	w.audited(`"reason":"upstream-refused","by":"directory"`)
	p.set(func() { p.err = nil })
	clk.add(time.Second) // what begins in the millisecond of the refusal is over
	w.signsInUpstream()
	again := w.sessionOf("ida@example.org")
	clk.add(time.Hour)
	if err := w.vouch(again); err != nil {
		t.Errorf("signed in again: %v", err)
	}
}

// An upstream that gives nothing to ask with leaves its users as they are, at a reading of the storage now and then.
func TestUpstreamUsersWhoCannotBeAskedAbout(t *testing.T) {
	clk, p := &clock{}, &idp{groups: []string{"staff"}, mute: true}
	w := upstreamWorld(t, p, store.Memory(store.Options{Now: clk.now}), clk)
	b := w.signsInUpstream()
	s := w.sessionOf("ida@example.org")
	for range 20 {
		clk.add(30 * time.Minute)
		if err := w.vouch(s); err != nil {
			t.Fatal(err)
		}
	}
	if b.get("https://app.example.com/page"); b.page != "hello ida@example.org [staff] at /page" || p.asked != 0 || len(w.grants()) != 0 {
		t.Errorf("asked %d times, kept %v: %s", p.asked, w.grants(), b.page)
	}
	if n := strings.Count(w.logs.String(), "gave no refresh token"); n != 1 {
		t.Errorf("told %d times, want once", n)
	}
}

// What is given to ask with is in one place, in no log, and gone with the user's last session.
func TestUpstreamGrantsAreKeptInOnePlace(t *testing.T) {
	clk, p := &clock{}, &idp{groups: []string{"staff"}}
	w := upstreamWorld(t, p, store.Memory(store.Options{Now: clk.now}), clk)
	ctx := t.Context()
	client := w.browser()
	client.get(clientURL("v"))
	client.get(client.link())
	tok := w.mustExchange(issued{verifier: "v", code: client.last.Query().Get("code")})
	if tok.RefreshToken == "" || len(w.grants()) != 1 {
		t.Fatalf("a refresh token: %t, kept: %v", tok.RefreshToken != "", w.grants())
	}
	offline, err := w.store.GetOfflineSessions(ctx, "ida", "up")
	if err != nil {
		t.Fatal(err)
	}
	refresh, err := w.store.ListRefreshTokens(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{offline, refresh} {
		if text, err := json.Marshal(v); err != nil || len(offline.ConnectorData) > 0 || len(refresh[0].ConnectorData) > 0 {
			t.Errorf("Dex has the token, too: %s, %v", text, err)
		}
	}
	clk.add(time.Hour)
	sid := w.sessionOf("ida@example.org").ID
	if _, err := w.provider.SignOut(ctx, sid); err != nil {
		t.Fatal(err)
	}
	if got := w.grants(); len(got) != 1 {
		t.Errorf("kept %v, want the token: the client has one of ours still", got)
	}
	b := w.signsInUpstream()
	clk.add(time.Hour)
	b.get("https://app.example.com/page")
	if _, err := w.provider.Block(ctx, "up", "ida", clk.now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := w.grants(); len(got) != 0 {
		t.Errorf("kept %v of a user with neither sessions nor refresh tokens", got)
	}
	if strings.Contains(w.logs.String(), tokenWord) || strings.Contains(w.audit.String(), tokenWord) {
		t.Errorf("a log has the token: %s", w.logs)
	}
}

// A refresh token of ours is good only as long as the upstream says so.
func TestUpstreamIsAskedBeforeARefresh(t *testing.T) {
	clk, p := &clock{}, &idp{groups: []string{"staff"}}
	w := upstreamWorld(t, p, store.Memory(store.Options{Now: clk.now}), clk)
	client := w.browser()
	client.get(clientURL("v"))
	client.get(client.link())
	tok := w.mustExchange(issued{verifier: "v", code: client.last.Query().Get("code")})
	use := func() (status int, code string) {
		t.Helper()
		return w.tokenRequest(t.Context(), "web", "not-a-default-secret-5591", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tok.RefreshToken}})
	}
	clk.add(time.Hour)
	p.set(func() { p.err = errors.New("oidc: failed to get refresh token: dial tcp: connection refused") })
	if status, code := use(); status != http.StatusServiceUnavailable {
		t.Errorf("while nobody can be asked: got %d %s, want 503", status, code)
	}
	raw, err := base64.RawURLEncoding.DecodeString(tok.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	for name, odd := range map[string]string{ // Dex reads the first of them
		"a field more": base64.RawURLEncoding.EncodeToString(append(raw, 3<<3, 1)), "an id": "abc", "nothing": "",
	} {
		if status, code := w.tokenRequest(t.Context(), "web", "not-a-default-secret-5591", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {odd}}); status != http.StatusBadRequest {
			t.Errorf("%s: got %d %s, want 400", name, status, code)
		}
	}
	clk.add(time.Minute)
	p.set(func() { p.err = errUpstreamRefused })
	eventually(t, "it is refused", func() bool {
		clk.add(time.Minute)
		status, code := use()
		if status == http.StatusOK {
			t.Fatal("the refresh token is good")
		}
		return status == http.StatusBadRequest && code == "invalid_grant"
	})
}

// A process that starts while the upstream is down serves what it said last, for a while, and nobody is signed out.
func TestUpstreamThatIsDownAtTheStart(t *testing.T) {
	clk, p := &clock{}, &idp{groups: []string{"staff"}}
	st := store.Memory(store.Options{Now: clk.now})
	w := upstreamWorld(t, p, st, clk)
	w.signsInUpstream()
	clk.add(time.Hour)
	if err := w.vouch(w.sessionOf("ida@example.org")); err != nil {
		t.Fatal(err)
	}
	clk.add(11 * time.Minute)
	w = upstreamWorld(t, nil, st, clk)
	s := w.sessionOf("ida@example.org")
	eventually(t, "the last answer serves", func() bool { return w.vouch(s) == nil })
	clk.add(15 * time.Minute)
	if err := w.vouch(s); err == nil || errors.Is(err, identity.ErrEnded) {
		t.Errorf("and later: got %v, want that it is not known", err)
	}
}
