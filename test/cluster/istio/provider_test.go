package istio

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gatehouse/test/peers"
)

// extensionProvider is the recommended way: the README's commands, as they stand.
func (c *cluster) extensionProvider(t *testing.T) {
	s := c.install(t, c.ingressGateway(t), func(w *checkout) {
		w.run(t, block(t, "README.md", "## Install on Istio", "mesh-provider.sh"))
	})
	s.common(t)
	t.Run("the document's look", s.look)
	t.Run("a browser", s.chromium)
	t.Run("a changed ConfigMap", s.changed)
	t.Run("hardened", s.hardened)
	t.Run("RequestAuthentication", s.requestAuthentication)
	t.Run("istiod away", s.istiodAway)
	t.Run("API server away", s.apiAway)
	t.Run("restarted", s.restarted)
	t.Run("policies that do not ask are noticed", s.mutants)
	t.Run("removed", func(t *testing.T) {
		s.work.run(t, "kubectl delete -f deploy/overlays/istio/hardened-gateway.yaml; kubectl delete -k deploy/overlays/istio")
		s.waitOpen(t)
	})
}

// look runs the commands with which an operator looks at it; a comment behind each says what comes.
func (s *site) look(t *testing.T) {
	script := block(t, "docs/install.md", "### 4. Look", "curl")
	out := strings.Split(strings.TrimSpace(s.work.run(t, script)), "\n")
	// The first command's output is JSON of several lines.
	text := strings.Join(out, "\n")
	end := strings.LastIndex(text, "}")
	if end < 0 || !strings.Contains(text[:end], quoted(issuer)) {
		t.Fatalf("no document of %s:\n%s", issuer, text)
	}
	rest := strings.Split(strings.TrimSpace(text[end+1:]), "\n")
	if len(rest) != 2 || !strings.HasPrefix(rest[0], "302 https://"+issuerHost+"/") || rest[1] != "401" {
		t.Errorf("got %q, want 302 to the issuer, and 401", rest)
	}
}

// changed: what is applied reaches the running process by the ConfigMap's content, and a session that is there.
func (s *site) changed(t *testing.T) {
	restarts := s.node.restarted()
	s.work.edit(t, "deploy/base/gatehouse.yaml", "groups: [admins]", "groups: [admins, reviewers]")
	s.work.run(t, "kubectl apply -k deploy/overlays/istio")
	s.eventually(t, "the app sees the new group", func(p *page) bool {
		return p.status == http.StatusOK && seen(t, p).Get("Kubeflow-Groups") == "admins,reviewers"
	})
	s.work.edit(t, "deploy/base/gatehouse.yaml", "default: signed-in", "default: nobody") // no such thing: the last good one is kept
	s.work.run(t, "kubectl apply -k deploy/overlays/istio")
	peers.Eventually(t, limit, "the log says why", func() bool { return strings.Contains(s.node.log(), "gateway.default") })
	s.eventually(t, "the last good file serves", func(p *page) bool { return p.status == http.StatusOK })
	s.work.edit(t, "deploy/base/gatehouse.yaml", "default: nobody", "default: signed-in")
	s.work.edit(t, "deploy/base/gatehouse.yaml", "groups: [admins, reviewers]", "groups: [admins]")
	s.work.run(t, "kubectl apply -k deploy/overlays/istio")
	s.eventually(t, "as before", func(p *page) bool {
		return p.status == http.StatusOK && seen(t, p).Get("Kubeflow-Groups") == "admins"
	})
	if s.node.restarted() != restarts {
		t.Error("the process was restarted")
	}
}

// hardened: what deploy/envoy/envoy.yaml does holds for this gateway too.
func (s *site) hardened(t *testing.T) {
	s.work.run(t, block(t, "docs/install.md", "### 5. Harden the gateway", "hardened-gateway.yaml"))
	peers.Eventually(t, limit, "underscores are refused", func() bool {
		return rejected(s.you.get(t.Context(), "https://"+appHost+"/", "kubeflow_userid: root"))
	})
	s.isHardened(t)
	s.isYou(t, s.you.open(t, "https://"+appHost+"/a//b/../c"))
}

// istiodAway: the gateway keeps what it has.
func (s *site) istiodAway(t *testing.T) {
	if err := s.istiod.Kill(); err != nil {
		t.Fatal(err)
	}
	b := s.browser(t)
	s.isYou(t, b.signIn(t, s.password))
	s.startIstiod(t)
	s.isYou(t, b.open(t, "https://"+appHost+"/"))
}

// apiAway: neither Gatehouse nor the gateway needs the API server.
func (s *site) apiAway(t *testing.T) {
	if err := s.apiProc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.apiProc.Signal(syscall.SIGCONT) }() // the tests behind need it, whatever happens here
	peers.Eventually(t, limit, "every thread has stopped", func() bool { return stopped(t, s.apiProc.Pid()) })
	b := s.browser(t)
	s.isYou(t, b.signIn(t, s.password))
	s.isYou(t, s.you.open(t, "https://"+appHost+"/"))
	if err := s.apiProc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	peers.Eventually(t, limit, "the API server is back", func() bool { return s.get(t, "/readyz", nil) == http.StatusOK })
	s.isYou(t, b.open(t, "https://"+appHost+"/"))
}

// restarted: sessions survive a new pod.
func (s *site) restarted(t *testing.T) {
	old := s.node.pids()[gatehousePod]
	s.kubectl(t, "", "-n", "istio-system", "rollout", "restart", "deployment/gatehouse")
	s.kubectl(t, "", "-n", "istio-system", "rollout", "status", "deployment/gatehouse", "--timeout=60s")
	peers.Eventually(t, limit, "another pod", func() bool { now := s.node.pids()[gatehousePod]; return now != 0 && now != old })
	s.back(t)
}

// mutants changes the shipped policy as somebody might, and wants the test's own question to notice it.
func (s *site) mutants(t *testing.T) {
	shipped, err := os.ReadFile(filepath.Join(s.work.dir, "deploy/overlays/istio/authorizationpolicy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	policy := strings.Replace(string(shipped), "  name: gatehouse\n", "  name: gatehouse\n  namespace: istio-system\n", 1)
	for _, m := range []struct {
		name, old, fresh string
		want             func(p *page) bool
	}{
		{"ALLOW in place of CUSTOM", "action: CUSTOM\n  provider:\n    name: gatehouse", "action: ALLOW\n  # none:\n    # gatehouse", func(p *page) bool { return p == nil }},
		{"a path left out", "- {}", "- to: [{operation: {notPaths: [/]}}]", func(p *page) bool { return p == nil }},
		{"another selector", "istio: ingressgateway", "istio: gateway", func(p *page) bool { return p == nil }},
		// Fails closed, but never opens: an answer of Envoy's.
		{"a provider that the mesh has not", "name: gatehouse # of", "name: gatehuose # of", func(p *page) bool {
			return p != nil && p.status == http.StatusForbidden && strings.Contains(p.body, "RBAC: access denied")
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			if !strings.Contains(policy, m.old) {
				t.Fatalf("the policy has no %q:\n%s", m.old, policy)
			}
			s.kubectl(t, strings.Replace(policy, m.old, m.fresh, 1), "apply", "-f", "-")
			peers.Eventually(t, limit, "it is noticed", func() bool { return m.want(s.opened(t)) })
			s.kubectl(t, policy, "apply", "-f", "-")
			s.waitSignIn(t)
		})
	}
}

// requestAuthentication: Istio verifies the token for apps with our keys, behind the check that sets it.
func (s *site) requestAuthentication(t *testing.T) {
	s.work.edit(t, "deploy/base/gatehouse.yaml", "headers: {kubeflow-userid: email, kubeflow-groups: groups}",
		"headers: {kubeflow-userid: email, kubeflow-groups: groups}\n    token: {header: Authorization, audience: kubeflow-apps, ttl: 5m}")
	s.work.run(t, "kubectl apply -k deploy/overlays/istio")
	p := s.eventually(t, "the app gets a token", func(p *page) bool {
		return p.status == http.StatusOK && strings.HasPrefix(seen(t, p).Get("Authorization"), "Bearer ")
	})
	claims := claimsOf(t, seen(t, p).Get("Authorization"))
	if claims["iss"] != issuer || claims["email"] != you {
		t.Errorf("the token says %v", claims)
	}
	const file = "deploy/overlays/istio/request-authentication.yaml"
	s.work.run(t, block(t, "docs/apps.md", "## Istio: RequestAuthentication", file))
	chain := func() []string { return s.gateway.filters(t)[0] }
	peers.Eventually(t, limit, "the gateway verifies tokens", func() bool { return slices.Contains(chain(), "envoy.filters.http.jwt_authn") })
	if custom, jwt := slices.Index(chain(), "envoy.filters.http.ext_authz"), slices.Index(chain(), "envoy.filters.http.jwt_authn"); custom < 0 || jwt < custom {
		t.Errorf("the filters are %v, want ext_authz before jwt_authn", chain())
	}
	p = s.eventually(t, "it takes the token", func(p *page) bool { return p.status == http.StatusOK })
	if claims := claimsOf(t, seen(t, p).Get("Authorization")); claims["email"] != you {
		t.Errorf("the app gets a token that says %v", claims)
	}
	if p := s.opened(t); p == nil || p.status != http.StatusFound {
		t.Errorf("a stranger gets %v, want 302", p)
	}
	s.isYou(t, s.browser(t).signIn(t, s.password)) // the issuer's pages are for anyone
	// A token for others is not taken: Istio does look. Nor one that another has signed.
	for old, fresh := range map[string]string{
		"values: [kubeflow-apps]": "values: [other-apps]",
		"    jwksUri: http://gatehouse.istio-system.svc.cluster.local:5556/dex/keys": "    jwks: '" + foreignKeys(t) + "'",
	} {
		s.work.edit(t, file, old, fresh)
		s.work.run(t, "kubectl apply -f "+file)
		s.eventually(t, fresh+": refused", func(p *page) bool {
			return p.status == http.StatusForbidden || p.status == http.StatusUnauthorized
		})
		s.work.edit(t, file, fresh, old)
		s.work.run(t, "kubectl apply -f "+file)
		s.eventually(t, "as before", func(p *page) bool { return p.status == http.StatusOK })
	}
	s.work.run(t, "kubectl delete -f deploy/overlays/istio/networkpolicy-istiod.yaml -f "+file)
}

// foreignKeys is a key set that has the key ids of ours, and none of its keys.
func foreignKeys(t *testing.T) string {
	t.Helper()
	res, err := http.Get("http://" + gatehousePod + ":5556/dex/keys") //nolint:noctx // of this test's network
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.NewDecoder(res.Body).Decode(&set); err != nil || len(set.Keys) == 0 {
		t.Fatalf("keys: %v, %v", set, err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		k["n"] = base64.RawURLEncoding.EncodeToString(other.N.Bytes())
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func claimsOf(t *testing.T, authorization string) map[string]any {
	t.Helper()
	parts := strings.Split(strings.TrimPrefix(authorization, "Bearer "), ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", authorization)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}
