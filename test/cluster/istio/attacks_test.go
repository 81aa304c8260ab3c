package istio

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// Where the attack table's Gatehouse and app listen, and the gateway's plain-http listener for it.
const (
	attackedApp     = "10.244.0.31:8080"
	attackedGateway = gatewayPod + ":8081"
)

// attackedSite is what the shipped overlay does not make: the endpoints, and for every host a route of /dex to the issuer
// and of the rest to the app.
const attackedSite = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: gatehouse-attacked, namespace: istio-system, labels: {kubernetes.io/service-name: gatehouse}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.10], conditions: {ready: true}}]
ports: [{name: http-issuer, appProtocol: http, port: 5556}, {name: grpc-ext-authz, appProtocol: grpc, port: 9001}]
---
apiVersion: v1
kind: Service
metadata: {name: attacked, namespace: apps}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: attacked, namespace: apps, labels: {kubernetes.io/service-name: attacked}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.31], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: attacked, namespace: istio-ingress}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8081, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: attacked, namespace: istio-ingress}
spec:
  hosts: ["*"]
  gateways: [attacked]
  http:
  - match: [{uri: {exact: /dex}}, {uri: {prefix: /dex/}}]
    route: [{destination: {host: gatehouse.istio-system.svc.cluster.local, port: {number: 5556}}}]
    retries: {attempts: 0}
  - route: [{destination: {host: attacked.apps.svc.cluster.local, port: {number: 8080}}}]
    retries: {attempts: 0}
`

var result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) `)

// attacks runs the attack table of test/envoy at the gateway that the shipped policy and the shipped hardening make. No pod runs:
// the table starts its own Gatehouse, at the pod's address.
func (c *cluster) attacks(t *testing.T) {
	program := os.Getenv("GATEHOUSE_ATTACKS")
	if program == "" {
		t.Fatal("GATEHOUSE_ATTACKS names no test program of test/envoy: run `make e2e-istio`")
	}
	w := c.checkout(t)
	w.names(t)
	w.provider(t)
	w.run(t, "kubectl apply -k deploy/overlays/istio")
	w.run(t, block(t, "docs/install.md", "### 5. Harden the gateway", "hardened-gateway.yaml"))
	c.kubectl(t, attackedSite, "apply", "-f", "-")
	c.ingressGateway(t)
	peers.Eventually(t, limit, "the gateway asks", func() bool {
		return status("http://"+attackedGateway+"/") == 503 // nobody is there to answer yet
	})
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestTable$", "-test.v", "-test.timeout=10m") // #nosec G204 -- the test's own
	cmd.Dir = filepath.Join(peers.Root(t), "test/envoy")
	cmd.Env = append(os.Environ(), "GATEHOUSE_TEST_GATEWAY="+attackedGateway,
		"GATEHOUSE_TEST_ADDRS=web="+gatehousePod+":5556,grpc="+gatehousePod+":9001,app="+attackedApp)
	out, err := cmd.CombinedOutput()
	n := 0
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		m := result.FindStringSubmatch(lines.Text())
		if m == nil || strings.Count(m[2], "/") < 2 {
			continue
		}
		n++
		t.Run(strings.TrimPrefix(m[2], "TestTable/"), func(t *testing.T) {
			if m[1] != "PASS" {
				t.Error(m[1])
			}
		})
	}
	if err != nil {
		t.Errorf("%v\n%s", err, tail(string(out), 20000))
	}
	if n < 500 {
		t.Errorf("%d rows, want at least 500", n)
	}
	t.Logf("%s", tail(string(out), 1500))
	c.kubectl(t, attackedSite, "delete", "-f", "-")
	w.run(t, "kubectl delete -f deploy/overlays/istio/hardened-gateway.yaml; kubectl delete -k deploy/overlays/istio")
}
