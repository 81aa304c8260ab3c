package istio

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// names puts the operator's names and the first user's hash into the checkout, by the document's commands.
func (w *checkout) names(t *testing.T) {
	t.Helper()
	w.run(t, block(t, "docs/install.md", "### 1. Put in your names", "sed -i"))
	w.edit(t, "deploy/base/gatehouse.yaml", "hash: $2a$12$3xq5/Qj8UlV7H267Lt4AYuy/ff1Yp8Wh5qSoctbJJXJV74yLI11c.", "hash: "+w.c.hash)
}

// provider tells the mesh, by the document's command.
func (w *checkout) provider(t *testing.T) {
	t.Helper()
	w.run(t, block(t, "docs/install.md", "### 2. Tell the mesh about the provider", "mesh-provider.sh"))
}

// envoyFilter is the way of an operator who may not touch the mesh config.
func (c *cluster) envoyFilter(t *testing.T) {
	s := c.install(t, c.ingressGateway(t), func(w *checkout) {
		w.names(t)
		w.run(t, block(t, "docs/install.md", "## Istio by EnvoyFilter", "kubectl apply"))
	})
	s.common(t)
	t.Run("the first filter", func(t *testing.T) {
		for _, chain := range s.gateway.filters(t) {
			if chain[0] != "envoy.filters.http.ext_authz" {
				t.Errorf("the filters are %v, want ext_authz first", chain)
			}
		}
	})
	t.Run("hardened", func(t *testing.T) { s.isHardened(t) })
	t.Run("removed", func(t *testing.T) {
		s.work.run(t, "kubectl delete -k deploy/overlays/istio-envoyfilter")
		s.waitOpen(t)
	})
}

// gatewayAPI is a Gateway that Istio runs; its pods get the name of the Gateway for a label.
func (c *cluster) gatewayAPI(t *testing.T) {
	s := &site{cluster: c, work: c.checkout(t), node: c.node(t, "istio-system"), you: c.browser(t)}
	s.work.names(t)
	for name, host := range map[string]string{"issuer": issuerHost, "apps": appHost} { // one for each listener, as the document wants
		cert, key := c.certificate(t, host)
		write(t, filepath.Join(s.work.dir, name+".crt"), cert)
		write(t, filepath.Join(s.work.dir, name+".key"), key)
	}
	s.work.provider(t)
	s.work.run(t, block(t, "docs/install.md", "## Gateway API", "kubectl apply"))
	c.kubectl(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: app, namespace: apps}
spec:
  parentRefs: [{name: gatehouse, namespace: istio-system}]
  hostnames: [app.corp.test]
  rules: [{backendRefs: [{name: app, port: 8080}]}]
`, "apply", "-f", "-")
	// istiod makes the gateway's Deployment and Service itself where it injects proxies, which it does not here.
	c.kubectl(t, `
apiVersion: v1
kind: Service
metadata: {name: gatehouse-istio, namespace: istio-system}
spec: {selector: {gateway.networking.k8s.io/gateway-name: gatehouse}, ports: [{name: https, port: 443}]}
`, "apply", "-f", "-")
	s.gateway = c.newGateway(t, "istio-system", "gatehouse-istio", map[string]string{"gateway.networking.k8s.io/gateway-name": "gatehouse"})
	s.waitSignIn(t)
	s.isYou(t, s.you.signIn(t, c.password))
	s.common(t)
	t.Run("a browser", s.chromium)
	t.Run("hardened", func(t *testing.T) { s.isHardened(t) })
	t.Run("removed", func(t *testing.T) {
		s.work.run(t, "kubectl delete -k deploy/overlays/gateway-api; kubectl -n apps delete httproute app; kubectl -n istio-system delete service gatehouse-istio")
	})
}

// helm installs the chart by the document's commands, with the document's values.
func (c *cluster) helm(t *testing.T) {
	var notes string
	s := c.install(t, c.ingressGateway(t), func(w *checkout) {
		write(t, filepath.Join(w.dir, "my-values.yaml"), block(t, "docs/install.md", "## Helm", "provider: istio"))
		write(t, filepath.Join(w.dir, "hash"), c.hash)
		w.run(t, "kubectl -n istio-system create secret generic gatehouse-env --from-file=YOUR_HASH=hash")
		w.provider(t)
		notes = w.run(t, block(t, "docs/install.md", "## Helm", "helm install"))
	})
	s.common(t)
	t.Run("what helm install tells", func(t *testing.T) {
		var commands strings.Builder
		for line := range strings.Lines(notes) {
			if strings.HasPrefix(line, "  kubectl ") || strings.HasPrefix(line, "  curl ") {
				commands.WriteString(line)
			}
		}
		if out := s.work.run(t, commands.String()); !strings.HasSuffix(out, "successfully rolled out\n401\n") {
			t.Errorf("got %q, want a pod that is ready and 401, of\n%s", out, notes)
		}
	})
	t.Run("removed", func(t *testing.T) {
		s.work.run(t, block(t, "docs/install.md", "## Helm", "helm uninstall")) // which fails unless the volume was left
		s.work.run(t, "kubectl -n istio-system delete secret gatehouse-env")
		s.waitOpen(t)
	})
}

// isHardened is what the overlays have from the start whose gateway is Gatehouse's own affair.
func (s *site) isHardened(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/a%2Fb", "/a%5Cb"} {
		if p := s.you.open(t, "https://"+appHost+path); p.status != http.StatusBadRequest {
			t.Errorf("%s: got %s, want 400", path, p)
		}
	}
	if p, err := s.you.get(t.Context(), "https://"+appHost+"/", "kubeflow_userid: root"); !rejected(p, err) {
		t.Errorf("an underscore: got %s, %v, want a refusal", p, err)
	}
}

// rejected is how Envoy's codec refuses a header: 400, and over HTTP/2 the end of the stream.
func rejected(p *page, err error) bool {
	return err != nil && strings.Contains(err.Error(), "stream error") || err == nil && p.status == http.StatusBadRequest
}

// everyManifest: the API server, with the schemas of Istio and of the Gateway API, and istiod accept what is shipped.
func (c *cluster) everyManifest(t *testing.T) {
	w := c.checkout(t)
	w.names(t)
	overlays, err := filepath.Glob(filepath.Join(w.dir, "deploy/overlays/*/kustomization.yaml"))
	if err != nil || len(overlays) < 6 {
		t.Fatalf("found %d overlays, %v", len(overlays), err)
	}
	for _, file := range overlays {
		name := filepath.Base(filepath.Dir(file))
		t.Run(name, func(t *testing.T) {
			c.ready(t, name)
			if out := w.run(t, "kubectl apply --dry-run=server -k deploy/overlays/"+name); !strings.Contains(out, "deployment.apps/gatehouse created (server dry run)") {
				t.Errorf("got\n%s", out)
			}
		})
	}
	write(t, filepath.Join(w.dir, "my-values.yaml"), block(t, "docs/install.md", "## Helm", "provider: istio")) // the chart has no users
	for _, provider := range []string{"istio", "istio-envoyfilter", "gateway-api", "envoy-gateway"} {
		for variant, more := range map[string]string{"": "", " with LDAP": "-f deploy/chart/values-ldap.yaml", " hardened": "--set istio.hardenedGateway=true", " with two replicas": "--set replicas=2 --set config.storage.type=kubernetes --set config.storage.config.inCluster=true"} {
			t.Run("chart, "+provider+variant, func(t *testing.T) {
				c.ready(t, provider)
				namespace := map[string]string{"envoy-gateway": "gatehouse"}[provider]
				if namespace == "" {
					namespace = "istio-system"
				}
				out := w.run(t, "helm template gatehouse deploy/chart --kube-version 1.36.1 -n "+namespace+" "+more+" -f my-values.yaml --set provider="+provider+
					" | kubectl -n "+namespace+" apply --dry-run=server -f -")
				if !strings.Contains(out, "deployment.apps/gatehouse created (server dry run)") {
					t.Errorf("got\n%s", out)
				}
			})
		}
	}
	t.Run("hardened gateway", func(t *testing.T) {
		w.run(t, "kubectl apply --dry-run=server -f deploy/overlays/istio/hardened-gateway.yaml")
	})
}

// ready makes what an overlay's document has the operator make first.
func (c *cluster) ready(t *testing.T, name string) {
	t.Helper()
	if name != "envoy-gateway" {
		return
	}
	if _, err := c.try(t, "", "get", "namespace", "gatehouse"); err != nil {
		c.kubectl(t, "", "create", "namespace", "gatehouse")
		c.kubectl(t, "", "apply", "--server-side", "-f", filepath.Join(c.bin, "envoy-gateway-crds.yaml"))
		c.kubectl(t, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	}
}

// refusedManifests: what cannot work is refused, with a reason, before anything is made.
func (c *cluster) refusedManifests(t *testing.T) {
	if _, err := c.try(t, missingProvider, "apply", "--dry-run=server", "-f", "-"); err == nil || !strings.Contains(err.Error(), "`provider.name` must not be empty") {
		t.Errorf("a policy without a provider: %v", err)
	}
	w := c.checkout(t)
	for name, tc := range map[string]struct{ flags, want string }{
		"no provider":                {"", "provider"},
		"a provider that is none":    {"--set provider=nginx", "provider"},
		"two replicas on one file":   {"--set provider=istio --set replicas=2", "replicas"},
		"another port":               {"--set provider=istio --set config.gateway.grpc=0.0.0.0:9100", "/config/gateway/grpc"},
		"a namespace with no policy": {"--set provider=istio --namespace default", "istio-system"},
	} {
		t.Run(name, func(t *testing.T) {
			namespace := "istio-system"
			if strings.Contains(tc.flags, "--namespace") {
				namespace = "default"
			}
			cmd := exec.CommandContext(t.Context(), "bash", "-euc", "helm install gatehouse deploy/chart -n "+namespace+" "+tc.flags) // #nosec G204 -- the test's own
			cmd.Dir, cmd.Env = w.dir, w.env
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("got %v, want a refusal that names %s:\n%s", err, tc.want, out)
			}
			if got := c.kubectl(t, "", "get", "deployment,service,secret", "-A", "-o", "name"); strings.Contains(got, "gatehouse") {
				t.Errorf("there is something already:\n%s", got)
			}
		})
	}
}
