package provider

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jws"
	dto "github.com/prometheus/client_model/go"

	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
	"gatehouse/test/peers"

	"github.com/dexidp/dex/storage"
)

// A told is a client that takes logout tokens, on a real listener.
type told struct {
	t      *testing.T
	server *httptest.Server

	mu     sync.Mutex
	status int // answered
	asked  int
	tokens []string // of the requests that were answered with 2xx
	peak   int
	now    int
	hold   chan struct{} // nil: answers at once
}

func newTold(t *testing.T) *told {
	t.Helper()
	c := &told{t: t, status: http.StatusOK}
	c.server = httptest.NewServer(c)
	t.Cleanup(c.server.Close)
	return c
}

func (c *told) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	c.mu.Lock()
	c.asked++
	c.now++
	c.peak = max(c.peak, c.now)
	status, hold := c.status, c.hold
	if status/100 == 2 && r.Method == http.MethodPost && r.URL.Path == "/out" {
		c.tokens = append(c.tokens, r.PostForm.Get("logout_token"))
	}
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	if status/100 == 3 {
		w.Header().Set("Location", c.server.URL+"/elsewhere")
	}
	w.WriteHeader(status)
}

func (c *told) answer(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

func (c *told) got() (asked int, tokens []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked, slices.Clone(c.tokens)
}

// withClient is testConfig whose client wants to be told.
func withClient(uri string) string {
	return strings.Replace(testConfig, "{id: web, ", fmt.Sprintf("{id: web, backchannelLogoutURI: %q, refreshTokenLifetime: session, ", uri), 1)
}

// counter returns the value of a metric without labels.
func (w *world) counter(name string) float64 {
	w.t.Helper()
	all, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(f *dto.MetricFamily) bool { return f.GetName() == name })
	if i < 0 {
		w.t.Fatalf("no metric %s", name)
	}
	m := all[i].GetMetric()[0]
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

func (w *world) notices() []store.Notice {
	w.t.Helper()
	var all []store.Notice
	if err := w.store.Notices(w.t.Context(), func(n store.Notice) bool { all = append(all, n); return true }); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// onlySession is the id of the one session there is.
func (w *world) onlySession() string {
	w.t.Helper()
	all, err := w.store.ListAuthSessions(w.t.Context())
	if err != nil || len(all) != 1 {
		w.t.Fatalf("%d sessions, %v", len(all), err)
	}
	return all[0].ID
}

func TestClientIsToldOfEveryEnd(t *testing.T) {
	for name, end := range map[string]func(w *world, b *browser, text string) error{
		"sign-out": func(w *world, _ *browser, _ string) error {
			_, err := w.provider.SignOut(w.t.Context(), w.onlySession())
			return err
		},
		"revoked": func(w *world, _ *browser, _ string) error { return w.provider.Revoke(w.t.Context(), w.onlySession()) },
		"blocked": func(w *world, _ *browser, _ string) error {
			_, err := w.provider.Block(w.t.Context(), "local", "u1", w.now().Add(time.Hour))
			return err
		},
		"not in the file any more": func(w *world, _ *browser, text string) error {
			w.reload(edited(w.t, text, removeAdmin, ""))
			return nil
		},
		"somebody else signs in with this browser": func(w *world, b *browser, _ string) error {
			b.get("https://app.example.com/")
			b.get(clientURL("verifier") + "&prompt=login")
			b.signIn("user@example.com", "password")
			if b.last.Host != "web.example.com" {
				return fmt.Errorf("at %s: %s", b.last, b.page)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, clk := newTold(t), &clock{}
			text := withClient(c.server.URL + "/out")
			w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			b := w.browser()
			tok, err := w.signInClient(b)
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := tok.Extra("id_token").(string)
			id, err := w.provider.Keys().Verify(t.Context(), raw, "web")
			if err != nil {
				t.Fatal(err)
			}
			if err := end(w, b, text); err != nil {
				t.Fatal(err)
			}
			peers.Eventually(t, time.Minute, "the client is told", func() bool { _, got := c.got(); return len(got) == 1 })
			_, got := c.got()
			w.isLogoutToken(got[0], id)
			peers.Eventually(t, time.Minute, "an empty outbox", func() bool { return len(w.notices()) == 0 })
			if w.counter("gatehouse_outbox_delivered_total") != 1 || w.counter("gatehouse_outbox_failed_total") != 0 {
				t.Error("it is not counted")
			}
			tok.Expiry = time.Unix(1, 0)
			if _, err := webClient().TokenSource(w.direct(t.Context()), tok).Token(); err == nil {
				t.Error("the refresh token, which is bound to the session, is still good")
			}
		})
	}
}

// isLogoutToken checks a token by OpenID Connect Back-Channel Logout 1.0 section 2.4, and that it is good for nothing else.
func (w *world) isLogoutToken(raw string, id IDToken) {
	w.t.Helper()
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		w.t.Fatalf("no JWT: %q", raw)
	}
	var head, claims map[string]any
	for i, v := range []*map[string]any{&head, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(b, v) != nil {
			w.t.Fatalf("%q", parts[i])
		}
	}
	if head["typ"] != "logout+jwt" || head["alg"] != "RS256" || head["kid"] == "" {
		w.t.Errorf("header %v", head)
	}
	events, _ := claims["events"].(map[string]any)
	event, _ := events[logoutEvent].(map[string]any)
	if len(events) != 1 || event == nil || len(event) != 0 {
		w.t.Errorf("events %v", claims["events"])
	}
	iat, _ := claims["iat"].(float64)
	exp, _ := claims["exp"].(float64)
	if claims["iss"] != issuer || claims["aud"] != "web" || claims["sub"] != id.Subject || claims["sid"] != id.SessionID || claims["jti"] == "" || exp-iat != 120 {
		w.t.Errorf("claims %v", claims)
	}
	if _, there := claims["nonce"]; there {
		w.t.Error("a logout token has no nonce")
	}
	if _, err := jws.Verify([]byte(raw), jws.WithKeySet(*w.provider.Keys().keys.Load())); err != nil {
		w.t.Errorf("the signature: %v", err)
	}
	ctx := w.t.Context()
	for _, audience := range []string{"", "web", front.GatewayClient} {
		if _, err := w.provider.Keys().Verify(ctx, raw, audience); err == nil {
			w.t.Errorf("it is good as an ID Token or bearer for %q", audience)
		}
	}
	if CheckHint(raw) == nil {
		w.t.Error("it is good as a hint")
	}
	if !front.Void(raw) {
		w.t.Error("it may be exchanged")
	}
	b := w.browser()
	if b.do(http.MethodGet, issuer+"/userinfo", nil, http.Header{"Authorization": {"Bearer " + raw}}); b.code != http.StatusUnauthorized {
		w.t.Errorf("userinfo: %d", b.code)
	}
	form := url.Values{"token": {raw}, "client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"}}
	if b.do(http.MethodPost, issuer+"/token/introspect", form, nil); !strings.Contains(b.page, `"active":false`) {
		w.t.Errorf("introspection: %s", b.page)
	}
}

func TestClientThatIsDownIsToldOnceItIsUp(t *testing.T) {
	for _, status := range []int{500, 503, 429, 408} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			c, clk := newTold(t), &clock{}
			w := newWorld(t, withClient(c.server.URL+"/out"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			if _, err := w.signInClient(w.browser()); err != nil {
				t.Fatal(err)
			}
			c.answer(status)
			clk.stop() // no try is due until the test says so
			if _, err := w.provider.SignOut(t.Context(), w.onlySession()); err != nil {
				t.Fatal(err)
			}
			for tries := 1; tries <= 4; tries++ {
				peers.Eventually(t, time.Minute, "a try", func() bool {
					asked, _ := c.got()
					all := w.notices()
					return asked == tries && len(all) == 1 && all[0].Tries == tries && all[0].Due.Sub(clk.now()) == backOff(tries)
				})
				w.provider.outbox.look() // too early
				if tries == 4 {
					c.answer(http.StatusNoContent)
				}
				clk.add(backOff(tries) + time.Second)
				w.provider.outbox.look()
			}
			peers.Eventually(t, time.Minute, "the client is told", func() bool { _, got := c.got(); return len(got) == 1 && len(w.notices()) == 0 })
			if asked, _ := c.got(); asked != 5 {
				t.Errorf("asked %d times, want 5", asked)
			}
			if w.counter("gatehouse_outbox_delivered_total") != 1 {
				t.Error("it is not counted")
			}
		})
	}
}

func TestClientThatRefusesIsNotAskedAgain(t *testing.T) {
	for status, why := range map[int]string{400: "it answered 400", 404: "it answered 404", 302: "redirects are not followed", 307: "redirects are not followed"} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			c, clk := newTold(t), &clock{}
			w := newWorld(t, withClient(c.server.URL+"/out"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			if _, err := w.signInClient(w.browser()); err != nil {
				t.Fatal(err)
			}
			c.answer(status)
			sid := w.onlySession()
			if _, err := w.provider.SignOut(t.Context(), sid); err != nil {
				t.Fatal(err)
			}
			peers.Eventually(t, time.Minute, "it is given up", func() bool { return len(w.notices()) == 0 })
			if asked, _ := c.got(); asked != 1 {
				t.Errorf("asked %d times", asked)
			}
			if w.counter("gatehouse_outbox_failed_total") != 1 || !strings.Contains(w.logs.String(), why) {
				t.Errorf("not told: %s", w.logs)
			}
			if strings.Contains(w.logs.String(), sid) {
				t.Error("the log has the session's id")
			}
		})
	}
}

func TestNoticeIsGivenUpAfterAnHour(t *testing.T) {
	c, clk := newTold(t), &clock{}
	w := newWorld(t, withClient(c.server.URL+"/out"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	if _, err := w.signInClient(w.browser()); err != nil {
		t.Fatal(err)
	}
	c.server.Close()
	clk.stop()
	if _, err := w.provider.SignOut(t.Context(), w.onlySession()); err != nil {
		t.Fatal(err)
	}
	peers.Eventually(t, time.Minute, "a try", func() bool {
		all := w.notices()
		return len(all) == 1 && all[0].Tries == 1 && all[0].Due.Sub(clk.now()) == noticeFirst
	})
	clk.add(time.Hour)
	w.provider.outbox.look()
	peers.Eventually(t, time.Minute, "it is given up", func() bool { return len(w.notices()) == 0 })
	if w.counter("gatehouse_outbox_failed_total") != 1 {
		t.Error("it is not counted")
	}
}

func TestSignOutDoesNotWaitForClients(t *testing.T) {
	c, clk := newTold(t), &clock{}
	c.hold = make(chan struct{})
	w := newWorld(t, withClient(c.server.URL+"/out"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	if _, err := w.signInClient(w.browser()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.provider.SignOut(t.Context(), w.onlySession()); err != nil {
		t.Fatal(err)
	}
	peers.Eventually(t, time.Minute, "the client is asked", func() bool { asked, _ := c.got(); return asked == 1 })
	if len(w.notices()) != 1 { // it is under way, and we are here
		t.Error("the sign-out has waited")
	}
	close(c.hold)
	peers.Eventually(t, time.Minute, "the client is told", func() bool { return len(w.notices()) == 0 })
}

// The process dies before it tells, or while it does; another one on the same store tells.
func TestAnotherReplicaTells(t *testing.T) {
	for name, claimed := range map[string]bool{"died before": false, "died while telling": true} {
		clk := &clock{}
		for kind, st := range bothStores(t, clk) {
			t.Run(name+", "+kind, func(t *testing.T) {
				c, key := newTold(t), seal.NewKey()
				text := withClient(c.server.URL + "/out")
				first := newWorld(t, text, st, key, clk)
				if _, err := first.signInClient(first.browser()); err != nil {
					t.Fatal(err)
				}
				s, err := st.GetAuthSession(t.Context(), first.onlySession())
				if err != nil {
					t.Fatal(err)
				}
				// What the first one has stored when it dies.
				g := first.provider.acquire()
				list := g.notices(t.Context(), &s, clk.now())
				g.release()
				if err := st.EndSession(t.Context(), s.ID, list); err != nil || len(list) != 1 {
					t.Fatal(err, list)
				}
				if claimed {
					if _, ok, err := st.ClaimNotice(t.Context(), list[0].ID, clk.now(), noticeLease); err != nil || !ok {
						t.Fatal(ok, err)
					}
				}
				second := newWorld(t, text, st, key, clk)
				if claimed {
					second.provider.outbox.look()
					if asked, _ := c.got(); asked != 0 {
						t.Error("told while the lease runs")
					}
					clk.add(noticeLease)
				}
				second.provider.outbox.look()
				peers.Eventually(t, time.Minute, "the client is told", func() bool { _, got := c.got(); return len(got) == 1 && len(second.notices()) == 0 })
				first.provider.outbox.look()
				if asked, _ := c.got(); asked != 1 {
					t.Errorf("told %d times", asked)
				}
			})
		}
	}
}

func TestTwoReplicasTellOnce(t *testing.T) {
	clk, key := &clock{}, seal.NewKey()
	for kind, st := range bothStores(t, clk) {
		t.Run(kind, func(t *testing.T) {
			c := newTold(t)
			text := withClient(c.server.URL + "/out")
			worlds := []*world{newWorld(t, text, st, key, clk), newWorld(t, text, st, key, clk)}
			const n = 20
			for i := range n {
				if _, err := worlds[i%2].signInClient(worlds[i%2].browser()); err != nil {
					t.Fatal(err)
				}
			}
			all, err := st.ListAuthSessions(t.Context())
			if err != nil || len(all) != n {
				t.Fatal(len(all), err)
			}
			var wg sync.WaitGroup
			for i, s := range all {
				wg.Go(func() {
					if _, err := worlds[i%2].provider.SignOut(t.Context(), s.ID); err != nil {
						t.Error(err)
					}
					worlds[0].provider.outbox.look()
					worlds[1].provider.outbox.look()
				})
			}
			wg.Wait()
			peers.Eventually(t, time.Minute, "all are told", func() bool { _, got := c.got(); return len(got) >= n && len(worlds[0].notices()) == 0 })
			asked, got := c.got()
			slices.Sort(got)
			if asked != n || len(slices.Compact(got)) != n {
				t.Errorf("asked %d times with %d tokens, want %d", asked, len(got), n)
			}
		})
	}
}

// A thousand users who are removed from a directory at once.
func TestManyEndsDoNotFlood(t *testing.T) {
	c, clk := newTold(t), &clock{}
	w := newWorld(t, withClient(c.server.URL+"/out"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	ctx, now := t.Context(), clk.now()
	const n = 1000
	g := w.provider.acquire()
	for i := range n {
		s := storage.AuthSession{
			ID: fmt.Sprint("s", i), UserID: fmt.Sprint("u", i), ConnectorID: "local", CreatedAt: now, LastActivity: now, IdleExpiry: now.Add(time.Hour), AbsoluteExpiry: now.Add(time.Hour),
			ClientStates: map[string]*storage.ClientAuthState{"web": {AuthenticatedAt: now}},
		}
		if err := w.store.CreateAuthSession(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := w.provider.endAll(ctx, g, "local", s.UserID, cause{by: byDirectory}, always); err != nil {
			t.Fatal(err)
		}
	}
	g.release()
	peers.Eventually(t, 3*time.Minute, "all are told", func() bool { _, got := c.got(); return len(got) == n && len(w.notices()) == 0 })
	if c.peak > perClient {
		t.Errorf("%d requests at a time, want at most %d", c.peak, perClient)
	}
	t.Logf("%d ends told, %d requests at a time at most", n, c.peak)
}

// While one client is down, with a backlog, the others are told, and the one is tried by few of its notices.
func TestClientThatIsDownHoldsUpNobody(t *testing.T) {
	down, up, clk := newTold(t), newTold(t), &clock{}
	text := strings.Replace(withClient(down.server.URL+"/out"), "gateway:\n", fmt.Sprintf("- {id: other, name: Other, secret: not-a-default-secret-5592, redirectURIs: [\"https://other.example.com/cb\"], backchannelLogoutURI: %q}\ngateway:\n", up.server.URL+"/out"), 1)
	w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	down.answer(http.StatusBadGateway)
	ctx, now := t.Context(), clk.now()
	const n = 300
	for i := range n {
		s := storage.AuthSession{
			ID: fmt.Sprint("s", i), UserID: fmt.Sprint("u", i), ConnectorID: "local", CreatedAt: now, IdleExpiry: now.Add(time.Hour), AbsoluteExpiry: now.Add(time.Hour),
			ClientStates: map[string]*storage.ClientAuthState{"web": {}, "other": {}},
		}
		if err := w.store.CreateAuthSession(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := w.provider.Revoke(ctx, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	peers.Eventually(t, 3*time.Minute, "the other client is told", func() bool { _, got := up.got(); return len(got) == n })
	peers.Eventually(t, 3*time.Minute, "a backlog", func() bool { return len(w.notices()) == n })
	rests := int(clk.now().Sub(now) / noticeFirst) // that are over by now, on a slow machine
	if asked, _ := down.got(); asked == 0 || asked > perClient+rests {
		t.Errorf("the one that is down was asked %d times, want at most %d, and %d when it had rested", asked, perClient, rests)
	}
	down.answer(http.StatusOK)
	clk.add(noticeMost + time.Second)
	w.provider.outbox.look()
	peers.Eventually(t, 3*time.Minute, "the backlog is told", func() bool { _, got := down.got(); return len(got) == n && len(w.notices()) == 0 })
}

// A notice without an end, as a process leaves it that dies between the two where there are no transactions.
func TestNoticeOfALivingSessionIsDropped(t *testing.T) {
	c, clk := newTold(t), &clock{}
	w := newWorld(t, withClient(c.server.URL+"/out"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	if _, err := w.signInClient(w.browser()); err != nil {
		t.Fatal(err)
	}
	s, err := w.store.GetAuthSession(t.Context(), w.onlySession())
	if err != nil {
		t.Fatal(err)
	}
	clk.stop()
	orphan(t, w, &s)
	peers.Eventually(t, time.Minute, "a look", func() bool {
		w.provider.outbox.look()
		all := w.notices()
		return len(all) == 1 && all[0].Tries == 1 && all[0].Due.Sub(clk.now()) == noticeFirst
	})
	clk.add(noticeDoubt)
	peers.Eventually(t, time.Minute, "it is dropped", func() bool { w.provider.outbox.look(); return len(w.notices()) == 0 })
	if asked, _ := c.got(); asked != 0 {
		t.Errorf("the client was told %d times of an end that was none", asked)
	}
	if w.counter("gatehouse_outbox_failed_total") != 0 {
		t.Error("it is counted as a failure")
	}
}

// orphan leaves the notice of a session that lives.
func orphan(t *testing.T, w *world, s *storage.AuthSession) {
	t.Helper()
	g := w.provider.acquire()
	defer g.release()
	list := g.notices(t.Context(), s, w.now())
	other := *s
	other.ID = "another"
	if err := w.store.CreateAuthSession(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := w.store.EndSession(t.Context(), other.ID, list); err != nil {
		t.Fatal(err)
	}
}
