package istio

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/demo/process"
	"gatehouse/test/peers"
)

// A gateway is pilot-agent with stock Envoy: what runs in a pod of Istio's ingress gateway.
type gateway struct {
	agent *process.Process
}

// newGateway runs the pod of a gateway, with these labels, until the test ends. Its service account is made here, and may read
// Secrets as that of an installation may.
func (c *cluster) newGateway(t *testing.T, namespace, account string, labels map[string]string) *gateway {
	t.Helper()
	c.kubectl(t, fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: %[2]s, namespace: %[1]s}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %[2]s, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: %[2]s}
subjects: [{kind: ServiceAccount, name: %[2]s, namespace: %[1]s}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[2]s, namespace: %[1]s}
`, namespace, account), "apply", "-f", "-")
	dir := peers.Folder(t)
	if err := os.MkdirAll(filepath.Join(dir, "var/run/secrets/tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	token := c.kubectl(t, "", "-n", namespace, "create", "token", account, "--audience", "istio-ca")
	write(t, filepath.Join(dir, "var/run/secrets/tokens/istio-token"), strings.TrimSpace(token))
	root := filepath.Join(dir, "root-cert.pem")
	write(t, root, c.kubectl(t, "", "-n", "istio-system", "get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`))
	text, err := json.Marshal(labels)
	if err != nil {
		t.Fatal(err)
	}
	agent, kill := c.startAt(t, filepath.Join(c.bin, "pilot-agent"), dir, []string{
		"POD_NAME=gateway-0", "POD_NAMESPACE=" + namespace, "INSTANCE_IP=" + gatewayPod, "SERVICE_ACCOUNT=" + account,
		"ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_WORKLOAD_NAME=" + account, "ISTIO_METAJSON_LABELS=" + string(text),
		"XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root, "ISTIOD_SAN=istiod.istio-system.svc",
		fmt.Sprintf("PROXY_CONFIG={discoveryAddress: '127.0.0.1:15012', binaryPath: %s, configPath: %s, statusPort: 15020, proxyAdminPort: 15000, concurrency: 1}",
			filepath.Join(peers.Root(t), ".tools/bin/envoy"), filepath.Join(dir, "proxy")),
	}, "proxy", "router", "--domain", namespace+".svc.cluster.local", "--proxyLogLevel=warning", "--templateFile="+filepath.Join(c.bin, "envoy_bootstrap.json"))
	g := &gateway{agent: agent}
	t.Cleanup(func() {
		if err := agent.Stop(); err != nil { // with its Envoy, whose ports the next one takes
			t.Log(err)
		}
		kill()
	})
	peers.Eventually(t, limit, "the gateway is ready", func() bool {
		ended(t, g.agent)
		return status("http://127.0.0.1:15021/healthz/ready") == http.StatusOK
	})
	return g
}

// filters are the HTTP filters of the gateway's listeners that do https, in their order.
func (g *gateway) filters(t *testing.T) [][]string {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second}
	res, err := client.Get("http://127.0.0.1:15000/config_dump?resource=dynamic_listeners") //nolint:noctx // it has a timeout
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Configs []struct {
			ActiveState struct {
				Listener struct {
					FilterChains []struct {
						Filters []struct {
							TypedConfig struct {
								HTTPFilters []struct{ Name string } `json:"http_filters"`
							} `json:"typed_config"`
						}
					} `json:"filter_chains"`
				}
			} `json:"active_state"`
		}
	}
	if err := json.Unmarshal(body, &dump); err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for _, l := range dump.Configs {
		for _, chain := range l.ActiveState.Listener.FilterChains {
			for _, f := range chain.Filters {
				var names []string
				for _, h := range f.TypedConfig.HTTPFilters {
					names = append(names, h.Name)
				}
				if names != nil {
					all = append(all, names)
				}
			}
		}
	}
	return all
}
