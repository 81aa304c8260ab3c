package provider

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// grantedToken is an access token of the password grant, which is of no session.
func (w *world) grantedToken() string {
	w.t.Helper()
	status, answer := w.formPost("/token", url.Values{
		"grant_type": {"password"}, "scope": {"openid"}, "username": {"admin@example.com"}, "password": {"password"},
		"client_id": {"box"}, "client_secret": {"another-secret-5591"},
	})
	token, _ := answer["access_token"].(string)
	if token == "" {
		w.t.Fatalf("password grant: %d %v", status, answer)
	}
	return token
}

// What was issued before a block does not come alive with its end, whether somebody ends it or it ends by itself; and what is issued afterwards is good.
func TestTokensFromBeforeABlockStayDead(t *testing.T) {
	for name, end := range map[string]func(w *world, clk *clock){
		"unblocked": func(w *world, _ *clock) {
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
				t.Fatal(err)
			}
		},
		"over": func(_ *world, clk *clock) { clk.add(time.Hour) },
		"over, and unblocked": func(w *world, clk *clock) {
			clk.add(time.Hour)
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
				t.Fatal(err)
			}
		},
		"blocked twice, and unblocked": func(w *world, clk *clock) {
			if _, err := w.provider.Block(t.Context(), "local", "u1", Forever); err != nil {
				t.Fatal(err)
			}
			clk.add(time.Minute)
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			clk := &clock{}
			w := newWorld(t, edited(t, everyWay(t), "expiry: {", "expiry: {idTokens: 24h, "), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			state := func(token string) [2]bool {
				_, answer := w.formPost("/token/introspect", withSecret(url.Values{"token": {token}}))
				return [2]bool{w.browser().userinfo(token) == http.StatusOK, answer["active"] == true}
			}
			good, dead := [2]bool{true, true}, [2]bool{}
			before := w.grantedToken()
			if got := state(before); got != good {
				t.Fatalf("at first: %v", got)
			}
			clk.add(10 * time.Second)
			if _, err := w.provider.Block(t.Context(), "local", "u1", clk.now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if got := state(before); got != dead {
				t.Errorf("while the user is blocked: %v", got)
			}
			clk.add(10 * time.Second)
			end(w, clk)
			after := w.grantedToken()
			if got := state(before); got != dead {
				t.Errorf("after the block a token from before is good: userinfo, introspection: %v", got)
			}
			if got := state(after); got != good {
				t.Errorf("one from after it is not: %v", got)
			}
			// Nothing is to be unblocked: that ends nothing.
			clk.add(10 * time.Second)
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
				t.Fatal(err)
			}
			if got := state(after); got != good {
				t.Errorf("after another unblock: %v", got)
			}
			if b := w.enter("admin@example.com", "password"); !hello(b) || b.get(issuer+"/account").code != http.StatusOK {
				t.Errorf("a new sign-in: %d at %s", b.code, b.last)
			}
		})
	}
}
