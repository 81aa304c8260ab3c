package istio

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// A site is an installation with somebody signed in.
type site struct {
	*cluster
	work    *checkout
	node    *node
	gateway *gateway
	you     *browser
}

// opened is what a stranger finds at the app: nil if they come to the app itself, else how they were refused. It is the question
// that every test of closedness asks, and that a mutant must answer otherwise.
func (c *cluster) opened(t *testing.T) (refused *page) {
	t.Helper()
	before := c.app.reached.Load()
	p, err := c.browser(t).still().get(t.Context(), "https://"+appHost+"/", "kubeflow-userid: "+you)
	if err != nil {
		return &page{}
	}
	if c.app.reached.Load() == before {
		return p
	}
	return nil
}

// waitOpen waits until the gateway serves the app to anybody, which it does before an installation and after its removal.
func (c *cluster) waitOpen(t *testing.T) {
	t.Helper()
	peers.Eventually(t, limit, "the app is open to anybody", func() bool { return c.opened(t) == nil })
}

// waitSignIn waits until the gateway sends a stranger to the issuer.
func (c *cluster) waitSignIn(t *testing.T) {
	t.Helper()
	var last *page
	defer func() {
		if t.Failed() {
			t.Logf("the last answer: %v", last)
		}
	}()
	peers.Eventually(t, limit, "a stranger is sent to the issuer", func() bool {
		last = c.opened(t)
		return last != nil && last.status == http.StatusFound
	})
}

// common is what holds however Gatehouse was installed.
func (s *site) common(t *testing.T) {
	t.Run("the app knows who it is", func(t *testing.T) { s.isYou(t, s.you.open(t, "https://"+appHost+"/")) })
	t.Run("a stranger is sent to the issuer", s.stranger)
	t.Run("a script gets 401", s.script)
	t.Run("forged headers", s.forged)
	t.Run("the issuer goes through the check", s.issuerIsChecked)
	t.Run("HTTP/2", s.http2)
	t.Run("stopped: 503", s.stopped)
	t.Run("hung: 503", s.hung)
	t.Run("a session that was ended is refused at the next request", s.ended)
}

func (s *site) isYou(t *testing.T, p *page) {
	t.Helper()
	h := seen(t, p)
	for name, values := range h {
		if folded := strings.ToLower(strings.NewReplacer("_", "-", ".", "-").Replace(name)); folded == "kubeflow-userid" && (len(values) != 1 || values[0] != you) {
			t.Errorf("the app sees %s: %q, want %s", name, values, you)
		}
	}
	if h.Get("Kubeflow-Userid") != you || h.Get("Kubeflow-Groups") != "admins" {
		t.Errorf("the app sees the user %q with the groups %q", h.Get("Kubeflow-Userid"), h.Get("Kubeflow-Groups"))
	}
	if c := h.Get("Cookie"); strings.Contains(c, "gatehouse") {
		t.Errorf("the app sees our cookie: %q", c)
	}
}

func (s *site) stranger(t *testing.T) {
	p := s.opened(t)
	if p == nil || p.status != http.StatusFound || !strings.HasPrefix(p.header.Get("Location"), issuer+"/auth") {
		t.Errorf("got %v, want 302 to %s/auth", p, issuer)
	}
}

func (s *site) script(t *testing.T) {
	p, err := s.browser(t).send(t.Context(), http.MethodGet, "https://"+appHost+"/", nil)
	if err != nil || p.status != http.StatusUnauthorized || p.header.Get("Www-Authenticate") == "" {
		t.Errorf("got %v, %v, want 401 with WWW-Authenticate", p, err)
	}
}

// forged: what a client says of itself never reaches the app, signed in or not, in any spelling.
func (s *site) forged(t *testing.T) {
	for _, line := range []string{"kubeflow-userid: root", "Kubeflow-Groups: admins,root", "KUBEFLOW-USERID: root"} {
		s.isYou(t, s.you.open(t, "https://"+appHost+"/", line))
	}
	for _, line := range []string{"kubeflow_userid: root", "kubeflow.userid: root"} {
		if p, err := s.you.get(t.Context(), "https://"+appHost+"/", line); !rejected(p, err) {
			s.isYou(t, p)
		}
	}
}

// issuerIsChecked: the gateway asks about the issuer's pages too, and they pass.
func (s *site) issuerIsChecked(t *testing.T) {
	before := s.checks(t)
	p := s.browser(t).open(t, issuer+"/.well-known/openid-configuration")
	var doc struct{ Issuer string }
	if err := json.Unmarshal([]byte(p.body), &doc); err != nil || p.status != http.StatusOK || doc.Issuer != issuer {
		t.Errorf("got %s, want the document of %s", p, issuer)
	}
	if n := s.checks(t) - before; n != 1 {
		t.Errorf("Gatehouse was asked %d times, want once", n)
	}
}

var checksRE = regexp.MustCompile(`(?m)^gatehouse_checks_total\{.*\} (\d+)$`)

// checks is how often Gatehouse was asked.
func (s *site) checks(t *testing.T) int {
	t.Helper()
	return s.checksAt(t, gatehousePod)
}

// checksAt is how often the pod at an address was asked.
func (s *site) checksAt(t *testing.T, addr string) (n int) {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second}
	res, err := client.Get("http://" + addr + ":5558/metrics") //nolint:noctx // it has a timeout
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range checksRE.FindAllSubmatch(text, -1) {
		v, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		n += v
	}
	return n
}

func (s *site) http2(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+appHost+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.you.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.ProtoMajor != 2 {
		t.Errorf("the gateway speaks %s, so that nothing here is shown of HTTP/2", res.Proto)
	}
}

// stopped: without Gatehouse nobody passes, and who was signed in still is when it is back.
func (s *site) stopped(t *testing.T) {
	s.kubectl(t, "", "-n", "istio-system", "scale", "deployment/gatehouse", "--replicas=0")
	peers.Eventually(t, limit, "503 without Gatehouse", func() bool {
		p, err := s.you.get(t.Context(), "https://"+appHost+"/")
		return err == nil && p.status == http.StatusServiceUnavailable
	})
	if p := s.opened(t); p == nil || p.status != http.StatusServiceUnavailable {
		t.Errorf("a stranger gets %v, want 503", p)
	}
	s.kubectl(t, "", "-n", "istio-system", "scale", "deployment/gatehouse", "--replicas=1")
	s.kubectl(t, "", "-n", "istio-system", "rollout", "status", "deployment/gatehouse", "--timeout=60s")
	s.back(t)
}

// back waits until the session is good again.
func (s *site) back(t *testing.T) {
	t.Helper()
	peers.Eventually(t, limit, "the session is good again", func() bool {
		p, err := s.you.get(t.Context(), "https://"+appHost+"/")
		return err == nil && p.status == http.StatusOK && p.url.Host == appHost
	})
	s.isYou(t, s.you.open(t, "https://"+appHost+"/"))
}

func (s *site) hung(t *testing.T) {
	s.node.signal(t, gatehousePod, syscall.SIGSTOP)
	before := s.app.reached.Load()
	p, err := s.you.get(t.Context(), "https://"+appHost+"/")
	if err != nil || p.status != http.StatusServiceUnavailable || s.app.reached.Load() != before {
		t.Errorf("got %v, %v, want 503", p, err)
	}
	s.node.signal(t, gatehousePod, syscall.SIGCONT)
	s.back(t)
}

// ended: a session that an administrator ends.
func (s *site) ended(t *testing.T) {
	b := s.browser(t)
	s.isYou(t, b.signIn(t, s.password))
	var last struct {
		ID string `json:"id_hash"`
	}
	list := s.gatehouse(t, "sessions", "list", "--admin", "127.0.0.1:5559")
	lines := strings.Split(strings.TrimSpace(list), "\n")
	for _, line := range lines[1:] {
		if strings.Contains(line, you) {
			last.ID, _, _ = strings.Cut(line, " ")
			s.gatehouse(t, "sessions", "revoke", "--admin", "127.0.0.1:5559", last.ID)
		}
	}
	if last.ID == "" {
		t.Fatalf("no session of %s in\n%s", you, list)
	}
	for _, who := range []*browser{b, s.you} {
		if p := who.still().open(t, "https://"+appHost+"/"); p.status != http.StatusFound {
			t.Errorf("got %s, want 302 to the issuer", p)
		}
	}
	s.isYou(t, s.you.signIn(t, s.password))
}

// gatehouse runs the binary in the first pod.
func (s *site) gatehouse(t *testing.T, args ...string) string {
	t.Helper()
	return s.exec(t, gatehousePod, args...)
}

// exec runs the binary in a pod, as `kubectl exec` would.
func (s *site) exec(t *testing.T, addr string, args ...string) string {
	t.Helper()
	s.node.mu.Lock()
	network := s.node.at(t, addr).network
	s.node.mu.Unlock()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), peers.Binary(t), args...) // #nosec G204 -- the test's own
	cmd.Stdout, cmd.Stderr = &out, &out
	err := network.Run(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("gatehouse %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// eventually is a wait for a page of who is signed in.
func (s *site) eventually(t *testing.T, what string, ok func(p *page) bool) *page {
	t.Helper()
	var last *page
	var lastErr error
	defer func() {
		if t.Failed() {
			t.Logf("the last answer: %v, %v", last, lastErr)
		}
	}()
	peers.Eventually(t, limit, what, func() bool {
		last, lastErr = s.you.get(context.WithoutCancel(t.Context()), "https://"+appHost+"/")
		return lastErr == nil && ok(last)
	})
	return last
}

// install is what a scenario begins with: it is started, waits for a gateway that serves anybody, runs commands and signs in.
func (c *cluster) install(t *testing.T, g *gateway, commands func(w *checkout)) *site {
	t.Helper()
	s := &site{cluster: c, work: c.checkout(t), node: c.node(t, "istio-system"), gateway: g, you: c.browser(t)}
	c.waitOpen(t)
	start := time.Now()
	commands(s.work)
	c.waitSignIn(t)
	s.isYou(t, s.you.signIn(t, c.password))
	t.Logf("signed in %s after the first command", time.Since(start).Round(100*time.Millisecond))
	return s
}

// ingressGateway is the pod that the documents' examples have.
func (c *cluster) ingressGateway(t *testing.T) *gateway {
	t.Helper()
	return c.newGateway(t, "istio-ingress", "istio-ingressgateway-service-account", map[string]string{"istio": "ingressgateway"})
}

func quoted(s string) string { return fmt.Sprintf("%q", s) }
