package istio

import (
	"fmt"
	"html"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// onKubernetes installs two replicas that keep everything in the API server, by the document's commands.
func (c *cluster) onKubernetes(t *testing.T) {
	s := c.install(t, c.ingressGateway(t), func(w *checkout) {
		w.names(t)
		w.provider(t)
		w.run(t, block(t, "docs/install.md", "## Two replicas", "type: kubernetes"))
	})
	s.two(t)
	t.Run("the account may do what it needs and no more", s.rights)
	t.Run("the resource applied twice", func(t *testing.T) {
		out := s.work.run(t, "kubectl apply -f deploy/store-kubernetes/crd.yaml; kubectl apply -k deploy/overlays/ha")
		for line := range strings.Lines(out) { // kubectl always patches the selector of a PodDisruptionBudget
			if !strings.HasSuffix(line, " unchanged\n") && !strings.HasPrefix(line, "poddisruptionbudget.policy/gatehouse ") {
				t.Errorf("the same again changes something: %s", line)
			}
		}
	})
	t.Run("one of them hangs", s.oneHangs)
	t.Run("one of them is killed", s.oneIsKilled)
	t.Run("API server away", func(t *testing.T) {
		s.storageAway(t, func() {
			if err := s.apiProc.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			peers.Eventually(t, limit, "every thread has stopped", func() bool { return stopped(t, s.apiProc.Pid()) })
		}, func() {
			if err := s.apiProc.Signal(syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("removed", s.removed)
}

// two is what holds of two replicas on any storage.
func (s *site) two(t *testing.T) {
	t.Run("both serve, and sign in by turns", s.byTurns)
	t.Run("a session that is ended through one", func(t *testing.T) {
		s.cutOff(t, func(addr string) {
			list := s.exec(t, addr, "sessions", "list", "--admin", "127.0.0.1:5559")
			for line := range strings.SplitSeq(list, "\n") {
				if id, _, _ := strings.Cut(line, " "); strings.Contains(line, you) {
					s.exec(t, addr, "sessions", "revoke", "--admin", "127.0.0.1:5559", id)
				}
			}
		})
	})
	t.Run("a user who is blocked through one", s.blocked)
	t.Run("keys rotated through one", s.keysRotated)
	t.Run("replaced without a failed request", s.replaced)
}

func (s *site) removed(t *testing.T) {
	s.work.run(t, "kubectl delete -k deploy/overlays/ha; kubectl -n istio-system delete --ignore-not-found secret gatehouse-env gatehouse-files")
	s.waitOpen(t)
}

// replicas are the addresses of the two pods.
func (s *site) replicas(t *testing.T) (one, other string) {
	t.Helper()
	all := s.node.addresses()
	if len(all) != 2 {
		t.Fatalf("got pods at %v, want two", all)
	}
	return all[0], all[1]
}

// byTurns: the gateway asks one pod and the other, for checks and for pages, so that no step of a sign-in need be where the one before was.
func (s *site) byTurns(t *testing.T) {
	one, other := s.replicas(t)
	both := false
	for i := 0; i < 6 || !both && i < 60; i++ {
		s.isYou(t, s.browser(t).signIn(t, s.password))
		if rand.N(2) == 0 { // a sign-in has as many steps as another: each could begin where the one before did
			s.you.open(t, issuer+"/.well-known/openid-configuration")
		}
		both = s.serves(t, one) && s.serves(t, other)
	}
	if !both {
		t.Error("nothing is shown of two replicas")
	}
}

// serves reports whether a pod has taken a sign-in and answered a check.
func (s *site) serves(t *testing.T, addr string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.node.dir, addr+".log"))
	if err != nil {
		t.Fatal(err)
	}
	passwords, checks := strings.Count(string(b), `"msg":"sign-in"`), s.checksAt(t, addr)
	t.Logf("%s has taken %d sign-ins and answered %d checks", addr, passwords, checks)
	return passwords > 0 && checks > 0
}

// asked returns the least number of checks that either replica has answered from now on. The gateway takes one or the other as it likes.
func (s *site) asked(t *testing.T) (least func() int) {
	t.Helper()
	one, other := s.replicas(t)
	ones, others := s.checksAt(t, one), s.checksAt(t, other)
	return func() int { return min(s.checksAt(t, one)-ones, s.checksAt(t, other)-others) }
}

// known has both replicas meet the session of a browser.
func (s *site) known(t *testing.T, b *browser) {
	t.Helper()
	least := s.asked(t)
	peers.Eventually(t, limit, "both know the session", func() bool {
		for range 6 {
			s.isYou(t, b.open(t, "https://"+appHost+"/"))
		}
		return least() > 0
	})
}

// cutOff: what is done through one replica the other obeys within a second. (A busy machine gets three.)
func (s *site) cutOff(t *testing.T, do func(addr string)) {
	b := s.browser(t)
	s.isYou(t, b.signIn(t, s.password))
	s.known(t, b)
	one, _ := s.replicas(t)
	least := s.asked(t)
	do(one)
	done, pulse := time.Now(), peers.NewPulse(t)
	var last time.Duration // when it was let in for the last time
	for refused := 0; refused < 20 || least() < 5; {
		if p := b.still().open(t, "https://"+appHost+"/"); p.status == http.StatusOK {
			last, refused = time.Since(done), 0
		} else {
			refused++
		}
		if time.Since(done) > limit {
			t.Fatalf("the session goes on, or one of them is not asked: let in after %s, the last %d times refused, one asked %d times", last, refused, least())
		}
	}
	if last == 0 {
		t.Logf("refused by both as soon as the command through %s had returned", one)
		return
	}
	t.Logf("let in for the last time %s after the command through %s had returned", last.Round(time.Millisecond), one)
	if last-pulse.Still() > 3*time.Second {
		t.Errorf("let in for %s, want 1s at most", last)
	}
}

// blocked: neither the session nor the password is good any more, until the user is unblocked through the other replica.
func (s *site) blocked(t *testing.T) {
	_, other := s.replicas(t)
	s.cutOff(t, func(addr string) { s.exec(t, addr, "users", "block", you, "--admin", "127.0.0.1:5559") })
	for range 2 { // at both
		if p := s.browser(t).tryPassword(t, s.password); p.status == http.StatusOK && p.url.Host == appHost {
			t.Errorf("signed in although blocked: %s", p)
		}
	}
	s.exec(t, other, "users", "unblock", you, "--admin", "127.0.0.1:5559")
	s.eventuallySignedIn(t)
}

// keysRotated: nobody is signed out by it, and tokens of the new key are good at both at once: a sign-in has one that either makes and either verifies.
func (s *site) keysRotated(t *testing.T) {
	one, _ := s.replicas(t)
	s.exec(t, one, "keys", "rotate", "--now", "--admin", "127.0.0.1:5559")
	for range 6 {
		s.isYou(t, s.you.open(t, "https://"+appHost+"/"))
		s.isYou(t, s.browser(t).signIn(t, s.password))
	}
}

// eventuallySignedIn signs you in as soon as that is possible again.
func (s *site) eventuallySignedIn(t *testing.T) {
	t.Helper()
	var last *page
	defer func() {
		if t.Failed() {
			t.Logf("the last answer: %s", last)
		}
	}()
	peers.Eventually(t, limit, "signed in", func() bool {
		s.you = s.browser(t)
		last = s.you.tryPassword(t, s.password)
		return last.status == http.StatusOK && last.url.Host == appHost
	})
}

// tryPassword is a new browser's way to the app, as far as it comes.
func (b *browser) tryPassword(t *testing.T, password string) *page {
	t.Helper()
	p := b.open(t, "https://"+appHost+"/")
	m := formAction.FindStringSubmatch(p.body)
	if p.status != http.StatusOK || m == nil {
		return p
	}
	action, err := p.url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	p, err = b.send(t.Context(), http.MethodPost, action.String(), url.Values{"login": {you}, "password": {password}},
		"Accept: text/html", "Origin: https://"+issuerHost)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A load is somebody signed in who does not stop to open pages.
type load struct {
	stop     chan struct{}
	workers  sync.WaitGroup
	mu       sync.Mutex
	requests int
	failed   []string // with the time since the begin
}

// load has who is signed in open some 200 pages a second until end.
func (s *site) load(t *testing.T) *load {
	t.Helper()
	l, b, start := &load{stop: make(chan struct{})}, s.you.still(), time.Now()
	for range 4 {
		l.workers.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-l.stop:
					return
				case <-tick.C:
				}
				p, err := b.get(t.Context(), "https://"+appHost+"/")
				l.mu.Lock()
				l.requests++
				switch at := time.Since(start).Round(time.Millisecond); {
				case err != nil:
					l.failed = append(l.failed, fmt.Sprintf("%s: %v", at, err))
				case p.status != http.StatusOK || p.header.Get("X-App") == "":
					l.failed = append(l.failed, fmt.Sprintf("%s: %s", at, p))
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// end returns how many pages were opened, and how those failed that did.
func (l *load) end() (int, []string) {
	close(l.stop)
	l.workers.Wait()
	return l.requests, l.failed
}

// replaced: `kubectl rollout restart` is not noticed by anybody who is signed in.
func (s *site) replaced(t *testing.T) {
	before := s.node.pids()
	l := s.load(t)
	s.work.run(t, "kubectl -n istio-system rollout restart deployment/gatehouse; kubectl -n istio-system rollout status deployment/gatehouse")
	peers.Eventually(t, limit, "both old pods have ended", func() bool {
		for _, pid := range before {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
				return false
			}
		}
		return true
	})
	n, failed := l.end()
	t.Logf("%d requests of somebody signed in, %d failed", n, len(failed))
	if len(failed) > 0 || n < 100 {
		t.Errorf("of %d requests %d failed, want none of at least 100:\n%s", n, len(failed), strings.Join(failed[:min(len(failed), 20)], "\n"))
	}
	if after := s.node.pids(); len(after) != 2 || s.node.restarted() > 0 {
		t.Errorf("got pods %v after %v, %d restarts", after, before, s.node.restarted())
	}
}

// oneHangs: nobody notices it but the gateway, which leaves it out (overlays/ha/destinationrule.yaml).
func (s *site) oneHangs(t *testing.T) {
	_, other := s.replicas(t)
	s.node.signal(t, other, syscall.SIGSTOP)
	start, failed, served := time.Now(), 0, 0
	for served < 20 && time.Since(start) < limit {
		p, err := s.you.still().get(t.Context(), "https://"+appHost+"/")
		if err == nil && p.status == http.StatusOK {
			served++
			continue
		}
		if err != nil || p.status != http.StatusServiceUnavailable {
			t.Errorf("got %v, %v, want the app or 503", p, err)
		}
		failed, served = failed+1, 0
	}
	t.Logf("%d requests were answered with 503 until the gateway left it out, %s after it hung", failed, time.Since(start).Round(time.Millisecond))
	if served < 20 || failed > 6 { // three of each of two clusters at most: checks, and a page of the issuer
		t.Errorf("%d were served in a row after %d failures", served, failed)
	}
	s.node.signal(t, other, syscall.SIGCONT)
	turns := 0 // what it was asked before it hung it answers now
	peers.Eventually(t, limit, "it is asked again", func() bool {
		before := s.checksAt(t, other)
		for range 4 {
			s.isYou(t, s.you.open(t, "https://"+appHost+"/"))
		}
		if s.checksAt(t, other) > before {
			turns++
		}
		return turns > 3
	})
}

// oneIsKilled: every session that a browser was told of lives on at the other replica, and at the one that is started in its place.
func (s *site) oneIsKilled(t *testing.T) {
	var all []*browser
	for range 4 {
		b := s.browser(t)
		s.isYou(t, b.signIn(t, s.password))
		all = append(all, b)
	}
	one, _ := s.replicas(t)
	before := s.node.restarted()
	l := s.load(t)
	if err := syscall.Kill(s.node.pids()[one], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	peers.Eventually(t, limit, "it was started again", func() bool { return s.node.restarted() > before && len(s.node.pids()) == 2 })
	peers.Eventually(t, limit, "both are asked", func() bool {
		code := status("http://" + one + ":5558/healthz/serving")
		return code == http.StatusOK && s.checksAt(t, one) > 0
	})
	n, failed := l.end()
	t.Logf("of %d requests %d failed between the kill and the time that both served again", n, len(failed))
	for _, f := range failed {
		if !strings.Contains(f, ": 503 from ") {
			t.Errorf("failed otherwise than by 503: %s", f)
		}
	}
	for i, b := range all {
		for range 2 { // at both
			if p := b.still().open(t, "https://"+appHost+"/"); p.status != http.StatusOK {
				t.Errorf("session %d was confirmed and is lost: %s", i, p)
			}
		}
	}
}

// storageAway: while the storage does not answer whoever is signed in goes on, at every replica; who is not is told so, and can sign in afterwards.
func (s *site) storageAway(t *testing.T, away, back func()) {
	s.known(t, s.you)
	signedIn, l := s.you, s.load(t)
	away()
	gone := time.Now()
	returned := sync.OnceFunc(back)
	defer returned() // the tests behind need it, whatever happens here
	p := s.browser(t).tryPassword(t, s.password)
	took := time.Since(gone)
	if p.status != http.StatusServiceUnavailable || !strings.Contains(p.body, "<html") {
		t.Errorf("a sign-in gets %s, want a page with 503", p)
	}
	peers.Eventually(t, limit, "it was away for ten seconds", func() bool { return time.Since(gone) > 10*time.Second })
	n, failed := l.end()
	t.Logf("away for %s: of %d requests of somebody signed in %d failed; a sign-in was told so after %s",
		time.Since(gone).Round(time.Millisecond), n, len(failed), took.Round(time.Millisecond))
	if len(failed) > 0 || n < 100 {
		t.Errorf("of %d requests %d failed, want none of at least 100:\n%s", n, len(failed), strings.Join(failed[:min(len(failed), 20)], "\n"))
	}
	returned()
	s.eventuallySignedIn(t)
	if p := signedIn.still().open(t, "https://"+appHost+"/"); p.status != http.StatusOK {
		t.Errorf("the session from before is lost: %s", p)
	}
	if n := s.node.restarted(); n > 1 { // one was killed by a test before
		t.Errorf("%d pods ended by themselves", n)
	}
}

// rights: with the token that is in the pod, the records of its own namespace, and nothing else.
func (s *site) rights(t *testing.T) {
	one, _ := s.replicas(t)
	token, err := os.ReadFile(filepath.Join(s.node.dir, one, serviceAccount, "token"))
	if err != nil {
		t.Fatal(err)
	}
	account := newAPI(t, s.api.url, strings.TrimSpace(string(token)), s.ca)
	s.kubectl(t, "", "-n", "istio-system", "create", "secret", "generic", "somebodys", "--from-literal=password=x")
	defer s.kubectl(t, "", "-n", "istio-system", "delete", "secret", "somebodys")
	const records, system = "/apis/gatehouse.internal/v1", "/namespaces/istio-system"
	for path, want := range map[string]int{
		records + system + "/records?limit=1":                                                http.StatusOK,
		records + system + "/records?watch=1&timeoutSeconds=1":                               http.StatusOK,
		records + "/records?limit=1":                                                         http.StatusForbidden, // of the whole cluster
		records + "/namespaces/default/records?limit=1":                                      http.StatusForbidden,
		"/api/v1" + system + "/secrets/somebodys":                                            http.StatusForbidden,
		"/api/v1" + system + "/secrets":                                                      http.StatusForbidden,
		"/api/v1/secrets":                                                                    http.StatusForbidden,
		"/api/v1" + system + "/configmaps/gatehouse":                                         http.StatusForbidden,
		"/api/v1" + system + "/pods":                                                         http.StatusForbidden,
		"/api/v1/nodes":                                                                      http.StatusForbidden,
		"/apis/apps/v1" + system + "/deployments/gatehouse":                                  http.StatusForbidden,
		"/apis/rbac.authorization.k8s.io/v1" + system + "/roles/gatehouse-store":             http.StatusForbidden,
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/records.gatehouse.internal": http.StatusForbidden,
	} {
		if got := account.get(t, path, nil); got != want {
			t.Errorf("GET %s: got %d, want %d", path, got, want)
		}
	}
	for path, body := range map[string]string{
		"/api/v1" + system + "/serviceaccounts/gatehouse/token": `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`,
		"/api/v1" + system + "/pods":                            `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"x","image":"x"}]}}`,
	} {
		if got, _ := account.do(t.Context(), http.MethodPost, path, "application/json", raw(body), nil); got != http.StatusForbidden {
			t.Errorf("POST %s: got %d, want 403", path, got)
		}
	}
}

// raw is JSON as it stands.
type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }
