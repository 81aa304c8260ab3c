package floods

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// atOnce is more sign-ins than any machine's queue takes: five seconds of hashing.
const atOnce = 1500

func TestFullQueueIsAnHonest503(t *testing.T) {
	s := start(t)
	c := s.caller(t)
	defer c.close()
	page, _, err := c.signInPage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	form, err := c.do(t.Context(), page, nil)
	if err != nil {
		t.Fatal(err)
	}
	flood, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range atOnce {
		wg.Go(func() { // each from a network of its own, so that none gives way; and again and again, so that the queue stays full
			for flood.Err() == nil {
				_, _ = c.do(flood, page, url.Values{"login": {rand.Text() + "@example.com"}, "password": {"wrong"}}, from(i), "Cookie: "+form.cookies)
				select {
				case <-flood.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	peers.Eventually(t, within, "sign-ins are turned away", func() bool { return s.metric(t, "gatehouse_sign_in_queue_refused_total") > 0 })

	// The queue may have room for a moment: then the right password gets in.
	for user := range users {
		p, err := c.do(t.Context(), page, url.Values{"login": {userName(user)}, "password": {password}}, from(atOnce+user), "Cookie: "+form.cookies)
		if err != nil {
			t.Fatal(err)
		}
		if p.status == http.StatusServiceUnavailable {
			judgePage(t, p)
			break
		}
		if user == users-1 {
			t.Errorf("no sign-in was turned away, the last one got %d", p.status)
		}
	}
	for user := range users {
		p, err := c.do(t.Context(), issuer+"/token", url.Values{
			"client_id": {"outside"}, "client_secret": {clientSecret}, "grant_type": {"password"}, "scope": {"openid"}, "username": {userName(user)}, "password": {password},
		})
		if err != nil {
			t.Fatal(err)
		}
		if p.status == http.StatusServiceUnavailable {
			judgeToken(t, p)
			break
		}
		if user == users-1 {
			t.Errorf("no password grant was turned away, the last one got %d: %s", p.status, p.body)
		}
	}
	if s.metric(t, "gatehouse_sign_in_queue_length") == 0 {
		t.Error("the metric says that nobody waits")
	}
	stop()
	wg.Wait()
	peers.Eventually(t, within, "who has gone leaves the queue", func() bool { return s.metric(t, "gatehouse_sign_in_queue_length") == 0 })
	s.busyIsAudited(t)

	// Being turned away is no wrong password, however often.
	c.signIn(t, userName(0))
}

func judgePage(t *testing.T, p reply) {
	t.Helper()
	if n, err := strconv.Atoi(p.header.Get("Retry-After")); err != nil || n < 1 || n > 60 {
		t.Errorf("page: Retry-After %q, want seconds", p.header.Get("Retry-After"))
	}
	if !strings.Contains(p.body, "Too many people are signing in right now") || !strings.Contains(p.body, "try again") || !strings.Contains(p.body, `name="password"`) {
		t.Errorf("the page does not say what to do, or has no form:\n%s", p.body)
	}
}

// judgeToken wants an error response of RFC 6749 section 5.2.
func judgeToken(t *testing.T, p reply) {
	t.Helper()
	var got struct{ Error string }
	if err := json.Unmarshal([]byte(p.body), &got); err != nil || got.Error != "temporarily_unavailable" {
		t.Errorf("token endpoint: %s (%v)", p.body, err)
	}
	if p.header.Get("Retry-After") == "" || p.header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(p.header.Get("Content-Type"), "application/json") {
		t.Errorf("token endpoint: headers %v", p.header)
	}
}

// busyIsAudited wants an event for both ways to sign in.
func (s *stack) busyIsAudited(t *testing.T) {
	t.Helper()
	peers.Eventually(t, time.Minute, "the audit log has busy sign-ins of both", func() bool {
		clients := map[string]bool{}
		for line := range strings.Lines(s.gatehouse.Log()) {
			var e struct{ Msg, Log, Result, Client string }
			if json.Unmarshal([]byte(line), &e) == nil && e.Log == "audit" && e.Msg == "sign-in" && e.Result == "busy" {
				clients[e.Client] = true
			}
		}
		return clients["gateway "+appHost] && clients["outside"]
	})
}

// metric returns the value of one without labels.
func (s *stack) metric(t *testing.T, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(s.metrics(t))
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
