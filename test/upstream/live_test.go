package upstream

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/demo"
	"gatehouse/internal/seal"
	"gatehouse/test/peers"
)

// How often the provider is asked about a user here, and how long its last answer serves while it does not answer.
const (
	revalidate = 5 * time.Second
	stale      = 20 * time.Second
	staleLong  = 2 * time.Minute // where no test waits for that

	aWait = 900 * time.Millisecond // hardly less than a request waits for an answer about its user
)

// A cluster is replicas of Gatehouse on one storage, each behind its own Envoy, under the same names; and an identity provider that rotates refresh
// tokens, each of which ends its sign-in if it comes twice.
type cluster struct {
	*stack // the first replica

	replicas []*stack
}

func serveCluster(t *testing.T, replicas int, storage string, serves time.Duration) *cluster {
	t.Helper()
	listen := peers.FreeAddr(t)
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	base := stack{issuer: "http://auth.example.test:" + port + "/dex", app: "http://app.other.test:" + port, key: seal.NewKey()}
	base.op = peers.OIDCProvider(t, peers.OIDCOptions{
		ClientID: "gatehouse", ClientSecret: clientSecret, RedirectURIs: []string{base.issuer + "/callback"}, Rotate: true,
		PostLogoutRedirectURIs: []string{base.issuer + "/logout/callback"}, Users: people("staff"),
	})
	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	c := &cluster{}
	for i := range replicas {
		s := base
		if s.edge = listen; i > 0 {
			s.edge = peers.FreeAddr(t)
		}
		web, grpc := peers.FreeAddr(t), peers.FreeAddr(t)
		s.gatehouse = peers.Gatehouse(t, s.liveConfig(t, storage, web, grpc, serves))
		peers.Envoy(t, demo.Edge{Listen: s.edge, Check: grpc, Hosts: []demo.VirtualHost{
			{Name: "auth", Domains: []string{"auth.example.test", "auth.example.test:*"}, Routes: []demo.Route{{Prefix: "/dex", Upstream: web}}},
			{Name: "apps", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: app.Listener.Addr().String()}}},
		}})
		c.replicas = append(c.replicas, &s)
	}
	c.stack = c.replicas[0]
	return c
}

// people are the users of the provider: all of them in a group, but for those who have gone.
func people(group string, gone ...string) (users []peers.User) {
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin"} {
		if !strings.Contains(strings.Join(gone, " "), name) {
			users = append(users, peers.User{Sub: name, Email: name + "@company.test", Name: name, Groups: []string{group}})
		}
	}
	return users
}

func (s *stack) liveConfig(t *testing.T, storage, web, grpc string, serves time.Duration) string {
	t.Helper()
	keys := filepath.Join(peers.Folder(t), "keys")
	if err := os.WriteFile(keys, []byte(base64.StdEncoding.EncodeToString(s.key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`issuer: %s
storage: %s
web: {http: %q, clientRemoteIP: {header: X-Real-IP, trustedProxies: [127.0.0.1/32]}}
telemetry: {http: %q}
connectors:
- type: oidc
  id: company
  name: The company
  config: {issuer: %q, clientID: gatehouse, clientSecret: %s, redirectURI: %q, scopes: [profile, email, groups, offline_access], promptType: consent, insecureEnableGroups: true}
gateway:
  grpc: %q
  admin: %q
  hosts: [%q]
  keys: {file: %q}
  session: {revalidate: %s, staleIfUnavailable: %s}
  identity: {headers: {kubeflow-userid: email, kubeflow-groups: groups}}
  default: signed-in
`, s.issuer, storage, web, peers.FreeAddr(t), s.op.Issuer, clientSecret, s.issuer+"/callback", grpc, peers.FreeAddr(t), s.app, keys, revalidate, serves)
}

// enter signs a user in at a replica.
func (s *stack) enter(t *testing.T, user string) *person {
	t.Helper()
	s.op.SignInAs(t, user)
	p := s.newPerson(t)
	if got := p.seen(t, s.app)["kubeflow-userid"]; got != user+"@company.test" {
		t.Fatalf("kubeflow-userid: got %q, want %s", got, user)
	}
	p.forget()
	return p
}

// at returns the same browser, led to another replica.
func (p *person) at(t *testing.T, s *stack) *person {
	t.Helper()
	other := s.newPerson(t)
	other.client.Jar = p.client.Jar
	return other
}

// look asks for the app's page as a script would, which no redirect hides anything from. It returns the groups that reach the app. A 503 after as long as
// a request waits says no more than that the machine was slow just now: it looks again.
func (p *person) look(t *testing.T) (status int, groups string) {
	t.Helper()
	var pg page
	for range 20 {
		began := time.Now()
		pg = p.step(t, p.s.app+"/headers", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty")
		if pg.status != http.StatusServiceUnavailable || time.Since(began) < aWait {
			break
		}
	}
	if m := regexp.MustCompile(`"kubeflow-groups":\s*"([^"]*)"`).FindStringSubmatch(pg.body); m != nil {
		groups = m[1]
	}
	return pg.status, groups
}

// becomes looks until the answer is of a status, and has never been another than that and 200. Others look meanwhile.
func (p *person) becomes(t *testing.T, limit time.Duration, what string, want int, others ...*person) (took time.Duration) {
	t.Helper()
	began := time.Now()
	peers.Eventually(t, limit, what, func() bool {
		for _, o := range others {
			o.look(t)
		}
		got, _ := p.look(t)
		if got != want && got != http.StatusOK {
			t.Fatalf("%s: got status %d, want 200 and in the end %d", what, got, want)
		}
		return got == want
	})
	return time.Since(began)
}

// waits lets a user be idle.
func waits(t *testing.T, d time.Duration) {
	t.Helper()
	until := time.Now().Add(d)
	peers.Eventually(t, d+10*time.Second, "nothing happens", func() bool { return time.Now().After(until) })
}

func TestLive(t *testing.T) {
	c := serveCluster(t, 1, "{type: sqlite, config: {file: gatehouse.db}}", stale)
	for _, tt := range []struct {
		name string
		test func(t *testing.T, c *cluster)
	}{
		{"groups change without a new sign-in", groupsChange},
		{"who is gone is signed out", gone},
		{"who comes back after a while is asked about first", idle},
		{"who is revoked at the provider is signed out", revoked},
		{"a browser that signs out takes nobody with it", twoBrowsers},
		{"a provider that is down signs nobody out", down},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, c) })
	}
	for _, want := range []string{
		`gatehouse_revalidations_total{connector="company",result="changed"}`, `gatehouse_revalidations_total{connector="company",result="ended"}`,
		`gatehouse_revalidations_total{connector="company",result="unavailable"}`, `gatehouse_revalidation_lookup_seconds_count{connector="company"}`,
		`gatehouse_revalidation_oldest_seconds{connector="company"}`,
	} {
		if !strings.Contains(c.metrics(t), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	if r := c.op.Refreshes(t); r.Reused != 0 {
		t.Errorf("%d refresh tokens were used twice", r.Reused)
	}
	if strings.Contains(c.gatehouse.Log(), "panic") {
		t.Error("there was a panic")
	}
}

func (s *stack) metrics(t *testing.T) string {
	t.Helper()
	return s.newPerson(t).step(t, "http://"+s.gatehouse.Telemetry+"/metrics").body
}

func groupsChange(t *testing.T, c *cluster) {
	p := c.enter(t, "alice")
	c.op.SetUsers(t, people("night-shift")...)
	defer c.op.SetUsers(t, people("staff")...)
	began := time.Now()
	peers.Eventually(t, time.Minute, "the new group reaches the app", func() bool {
		status, groups := p.look(t)
		if status != http.StatusOK {
			t.Fatalf("got status %d", status)
		}
		return groups == "night-shift"
	})
	t.Logf("after %s", time.Since(began).Round(time.Millisecond))
	if p.wasAt(c.op.Issuer) || p.wasAt(c.issuer) {
		t.Errorf("the browser was at %q", p.been)
	}
}

func gone(t *testing.T, c *cluster) {
	skip := len(c.gatehouse.Log())
	p, other := c.enter(t, "alice"), c.enter(t, "bob")
	c.op.SetUsers(t, people("staff", "alice")...)
	defer c.op.SetUsers(t, people("staff")...)
	t.Logf("after %s", p.becomes(t, time.Minute, "who is gone is refused", http.StatusUnauthorized).Round(time.Millisecond))
	c.audited(t, skip, "the end of the session", func(e event) bool {
		return e.Msg == "sign-out" && e.UserID == "alice" && e.Reason == "upstream-refused"
	})
	if status, _ := other.look(t); status != http.StatusOK {
		t.Errorf("somebody else: got status %d", status)
	}
}

func idle(t *testing.T, c *cluster) {
	p, other := c.enter(t, "carol"), c.enter(t, "dave")
	c.op.SetUsers(t, people("day-shift", "carol")...)
	defer c.op.SetUsers(t, people("staff")...)
	waits(t, 2*revalidate+time.Second)
	if status, _ := p.look(t); status != http.StatusUnauthorized {
		t.Errorf("the first request of who is gone: got status %d, want 401", status)
	}
	if status, groups := other.look(t); status != http.StatusOK || groups != "day-shift" {
		t.Errorf("the first request of who has new groups: got status %d and %q, want 200 and day-shift", status, groups)
	}
}

func revoked(t *testing.T, c *cluster) {
	p := c.enter(t, "erin")
	c.op.Revoke(t, "erin")
	t.Logf("after %s", p.becomes(t, time.Minute, "who is revoked is refused", http.StatusUnauthorized).Round(time.Millisecond))
}

// twoBrowsers has the later sign-in of two end, at the provider too: what the earlier one was given is still good.
func twoBrowsers(t *testing.T, c *cluster) {
	first, second := c.enter(t, "dave"), c.enter(t, "dave")
	second.step(t, c.app+"/_gatehouse/sign-out", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
	c.op.RevokeLast(t, "dave")
	asked := len(c.op.Refreshes(t).Of("dave"))
	peers.Eventually(t, time.Minute, "the provider is asked twice more", func() bool {
		if status, _ := first.look(t); status != http.StatusOK {
			t.Fatalf("got status %d", status)
		}
		return len(c.op.Refreshes(t).Of("dave")) >= asked+2
	})
}

func down(t *testing.T, c *cluster) {
	p, other := c.enter(t, "alice"), c.enter(t, "bob")
	for _, how := range []string{"down", "invalid_client"} {
		c.op.Token(t, how)
		served := p.becomes(t, stale+time.Minute, "503 once the last answer is too old: "+how, http.StatusServiceUnavailable, other)
		if served < stale/2 {
			t.Errorf("%s: the last answer served for %s, want about %s", how, served, stale)
		}
		c.op.Token(t, "")
		var back time.Time
		began := time.Now()
		peers.Eventually(t, time.Minute, "and on it goes", func() bool {
			status, _ := p.look(t)
			if status != http.StatusOK && status != http.StatusServiceUnavailable {
				t.Fatalf("got status %d", status)
			}
			back = time.Now()
			return status == http.StatusOK
		})
		t.Logf("%s: served for %s, and %s after it was back", how, served.Round(time.Millisecond), back.Sub(began).Round(time.Millisecond))
	}
	c.gatehouse.Logged(t, "connector cannot be asked", "connector answers again")
}

// TestLiveOfReplicas has two processes ask about the same users: the provider would end the sign-in of each token that comes twice.
func TestLiveOfReplicas(t *testing.T) {
	db := peers.Postgres(t, peers.PostgresOptions{})
	host, port, err := net.SplitHostPort(db.Addr)
	if err != nil {
		t.Fatal(err)
	}
	c := serveCluster(t, 2, fmt.Sprintf("{type: postgres, config: {host: %q, port: %s, database: postgres, user: %s, password: %s, ssl: {mode: disable}}}", host, port, db.User, db.Password), staleLong)
	t.Run("both ask at once", func(t *testing.T) { bothAsk(t, c) })
	t.Run("one dies while it asks", func(t *testing.T) { oneDies(t, c) })
	if r := c.op.Refreshes(t); r.Reused != 0 {
		t.Errorf("%d refresh tokens were used twice", r.Reused)
	}
}

func bothAsk(t *testing.T, c *cluster) {
	const periods = 5
	users := []string{"alice", "bob", "carol", "dave"}
	var browsers []*person
	for _, u := range users {
		p := c.enter(t, u)
		browsers = append(browsers, p, p.at(t, c.replicas[1]))
	}
	before := c.op.Refreshes(t)
	requests := 0
	peers.Eventually(t, 3*time.Minute, "five periods", func() bool {
		for _, p := range browsers {
			if status, _ := p.look(t); status != http.StatusOK {
				t.Fatalf("got status %d after %d requests", status, requests)
			}
			requests++
		}
		return len(c.op.Refreshes(t).Of("alice"))-len(before.Of("alice")) >= periods
	})
	after := c.op.Refreshes(t)
	for _, u := range users {
		at := after.Of(u)[len(before.Of(u)):]
		for i := 1; i < len(at); i++ {
			if gap := time.Duration(at[i]-at[i-1]) * time.Millisecond; gap < revalidate/2 {
				t.Errorf("%s was asked about %s after the last time, want once in %s", u, gap, revalidate)
			}
		}
		t.Logf("%s: asked about %d times", u, len(at))
	}
	if n := after.Refused - before.Refused; n != 0 {
		t.Errorf("%d refreshes were refused", n)
	}
	t.Logf("%d requests by two replicas, nobody signed out", requests)
}

func oneDies(t *testing.T, c *cluster) {
	first := c.enter(t, "erin")
	second := first.at(t, c.replicas[1])
	c.op.Token(t, "stall")
	defer c.op.Token(t, "")
	peers.Eventually(t, time.Minute, "the first replica asks", func() bool {
		if status, _ := first.look(t); status != http.StatusOK {
			t.Fatalf("got status %d", status)
		}
		return c.op.Refreshes(t).Stalled == 1
	})
	c.replicas[0].gatehouse.Kill(t)
	c.op.Token(t, "")
	died, asked := time.Now(), len(c.op.Refreshes(t).Of("erin"))
	peers.Eventually(t, 2*time.Minute, "the second replica asks, and everybody goes on", func() bool {
		if status, _ := second.look(t); status != http.StatusOK {
			t.Fatalf("got status %d", status)
		}
		return len(c.op.Refreshes(t).Of("erin")) > asked
	})
	t.Logf("%s after the death of the other", time.Since(died).Round(time.Millisecond))
	c.replicas[0].gatehouse.Restart(t)
	if status, _ := first.look(t); status != http.StatusOK {
		t.Errorf("at the replica that is back: got status %d", status)
	}
}
