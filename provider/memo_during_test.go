package provider

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwt"
	"golang.org/x/oauth2"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// A betweenDriver runs something once, after a number of calls.
type betweenDriver struct {
	store.Driver

	mu   sync.Mutex
	left int // calls until then
	run  func()
	ran  chan struct{}
}

func (d *betweenDriver) arm(n int, run func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left, d.run, d.ran = n, run, make(chan struct{})
}

// disarm reports whether it has run, and waits until that is over: it may be a background task's call that it came after.
func (d *betweenDriver) disarm() bool {
	d.mu.Lock()
	ran := d.run == nil
	d.run = nil
	d.mu.Unlock()
	if ran {
		<-d.ran
	}
	return ran
}

func (d *betweenDriver) called() {
	d.mu.Lock()
	run := d.run
	if run == nil || d.left > 0 {
		d.left--
		d.mu.Unlock()
		return
	}
	d.run = nil // it calls, too
	d.mu.Unlock()
	run()
	close(d.ran)
}

func (d *betweenDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	defer d.called()
	return d.Driver.Read(ctx, kind, id)
}

func (d *betweenDriver) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	defer d.called()
	return d.Driver.Scan(ctx, q)
}

func (d *betweenDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	defer d.called()
	return d.Driver.Write(ctx, ops)
}

// robotAt gets what the outside client is given for the robot, by a response type. The browser agrees if it is asked to.
func (w *world) robotAt(b *browser, responseType, more string) (tokens []string) {
	w.t.Helper()
	verifier := oauth2.GenerateVerifier()
	target := strings.Replace(clientURL(verifier), "response_type=code", "response_type="+url.QueryEscape(responseType), 1)
	if b.get(target + more); strings.HasSuffix(b.last.Path, "/login") {
		b.signIn("robot", "not-a-default-5591")
	}
	if m := reqFieldRE.FindStringSubmatch(b.page); m != nil && b.last.Path == "/dex/approval" {
		b.do(http.MethodPost, b.last.String(), url.Values{"approval": {"approve"}, "req": {m[1]}}, http.Header{"Origin": {"https://sso.example.com"}})
	}
	if b.last.Host != "web.example.com" {
		return nil
	}
	answer, err := url.ParseQuery(b.last.Fragment)
	if err != nil {
		w.t.Fatal(err)
	}
	tokens = []string{answer.Get("access_token"), answer.Get("id_token")}
	if code := b.last.Query().Get("code"); code != "" {
		if tok, err := webClient().Exchange(w.direct(w.t.Context()), code, oauth2.VerifierOption(verifier)); err == nil {
			id, _ := tok.Extra("id_token").(string)
			tokens = append(tokens, tok.AccessToken, id)
		}
	}
	return tokens
}

// robotWays are how a browser comes to the outside client: what it did before, and what it asks for.
var robotWays = map[string]struct { // never assigned to
	before func(w *world, b *browser)
	more   string
}{
	"for the first time": {func(*world, *browser) {}, ""},
	"by single sign-on":  {func(_ *world, b *browser) { b.get("https://app.example.com/").signIn("robot", "not-a-default-5591") }, ""},
	"once more":          {func(w *world, b *browser) { w.robotAt(b, "code", "") }, ""},
	"by password again":  {func(w *world, b *browser) { w.robotAt(b, "code", "") }, "&prompt=login"},
	"after consent":      {func(w *world, b *browser) { w.robotAt(b, "code", "") }, "&prompt=consent"},
}

// TestCutOffBetweenAnyTwoCalls cuts the user off after each call of the storage in a sign-in at an outside client, as another replica would: the request knows
// what it has read before. Nothing is given out then that nobody could end, and nothing is left that a block has ended.
func TestCutOffBetweenAnyTwoCalls(t *testing.T) {
	const most = 100 // calls in a sign-in
	text := strings.Replace(quickConfig, "  skipApprovalScreen: true\n", "  skipApprovalScreen: true\n  responseTypes: [code, token, id_token]\n", 1)
	keys := madeKeys(t)
	cuts := map[string]func(w *world) error{
		"block": func(w *world) error {
			_, err := w.provider.Block(w.t.Context(), "fast", robotID, Forever)
			return err
		},
		"sign-out everywhere": func(w *world) error {
			_, err := w.provider.RevokeUser(w.t.Context(), "fast", robotID)
			return err
		},
	}
	for _, responseType := range []string{"code", "id_token token"} {
		for way, how := range robotWays {
			for cut, do := range cuts {
				t.Run(strings.Join([]string{responseType, way, cut}, ", "), func(t *testing.T) {
					n, given := 0, 0
					for ; n < most; n++ {
						clk, d := &clock{}, &betweenDriver{Driver: store.MemoryDriver()}
						w := betweenWorld(t, text, d, keys, clk)
						b := w.browser()
						how.before(w, b)
						d.arm(n, func() {
							if err := do(w); err != nil {
								t.Error(err)
							}
						})
						tokens := w.robotAt(b, responseType, how.more)
						given += len(tokens)
						if !d.disarm() {
							break
						}
						w.endsWithItsSession(fmt.Sprintf("call %d", n), tokens)
						if cut == "block" {
							w.nothingComesAlive(t)
						}
					}
					if n < 5 || n == most || given == 0 {
						t.Errorf("%d calls, %d tokens: the test shows nothing", n, given)
					}
				})
			}
		}
	}
}

func betweenWorld(t *testing.T, text string, d store.Driver, keys store.Keys, clk *clock) *world {
	t.Helper()
	st := keyedStore(t, d, keys, clk)
	return newWorld(t, text, st, seal.NewKey(), clk)
}

// endsWithItsSession checks that whatever the robot's client was given is of a session, and no good without it.
func (w *world) endsWithItsSession(when string, tokens []string) {
	w.t.Helper()
	for _, raw := range tokens {
		if raw == "" {
			continue
		}
		tok, err := jwt.ParseInsecure([]byte(raw))
		if err != nil {
			w.t.Fatal(err)
		}
		sid, _ := tok.Get("sid")
		id, _ := sid.(string)
		if id == "" {
			w.t.Errorf("%s: a token of no session", when)
			continue
		}
		if _, err := w.store.GetAuthSession(w.t.Context(), id); err != nil && w.browser().userinfo(raw) == http.StatusOK {
			w.t.Errorf("%s: a token is good whose session is over", when)
		}
	}
	refresh, err := w.store.ListRefreshTokens(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range refresh {
		o, err := w.store.GetOfflineSessions(w.t.Context(), robotID, "fast")
		if ref := o.Refresh[r.ClientID]; err != nil || ref == nil || ref.SessionID == "" {
			w.t.Errorf("%s: a refresh token of no session: %v", when, err)
		} else if _, err := w.store.GetAuthSession(w.t.Context(), ref.SessionID); err != nil {
			w.t.Errorf("%s: a refresh token of a session that is over", when)
		}
	}
}

// What Dex asks for does not decide alone: a code of no session is not stored.
func TestNoCodeWithoutASession(t *testing.T) {
	w := memoryWorldOf(t, quickConfig)
	s := w.provider.current.Load().storage
	code := storage.AuthCode{ID: "a-code", ClientID: "web", ConnectorID: "fast", Claims: storage.Claims{UserID: robotID}, Expiry: w.now().Add(time.Minute)}
	if err := s.CreateAuthCode(t.Context(), code); !errors.Is(err, errNoSession) {
		t.Errorf("got %v", err)
	}
	if _, err := w.store.GetAuthCode(t.Context(), code.ID); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("stored: %v", err)
	}
}
