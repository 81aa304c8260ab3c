package istio

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// An app is behind the gateway and has no login of its own: it answers with the headers that reached it, as JSON.
type app struct{ reached atomic.Int64 }

func newApp(t *testing.T) *app {
	t.Helper()
	a := &app{}
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp", appPod+":8080")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: a} // #nosec G112 -- behind the gateway, in the test's network
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return a
}

// ServeHTTP implements http.Handler.
func (a *app) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	a.reached.Add(1)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-App", "reached")
	_ = json.NewEncoder(w).Encode(req.Header)
}

// ingress is what an operator has before Gatehouse: the ingress gateway's account and Service, a Gateway with one server for all
// hosts of its certificate, and an app with its route.
func ingress(cert, key string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: corp-tls, namespace: istio-ingress}
type: kubernetes.io/tls
stringData: {tls.crt: %q, tls.key: %q}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: main, namespace: istio-ingress}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["*.corp.test"]
    tls: {mode: SIMPLE, credentialName: corp-tls}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-ingress}
spec: {selector: {istio: ingressgateway}, ports: [{name: https, port: 443}, {name: http-attacked, port: 8081}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: app, namespace: apps}
spec:
  hosts: [%s]
  gateways: [istio-ingress/main]
  http: [{route: [{destination: {host: app.apps.svc.cluster.local, port: {number: 8080}}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: apps}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: app, namespace: apps, labels: {kubernetes.io/service-name: app}}
addressType: IPv4
endpoints: [{addresses: [%s], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
`, cert, key, appHost, appPod)
}

// seen are the headers that the app saw, by name; the body must be the app's.
func seen(t *testing.T, p *page) http.Header {
	t.Helper()
	if p.status != http.StatusOK || p.header.Get("X-App") == "" {
		t.Fatalf("got %s, want the app's answer", p)
	}
	var h http.Header
	if err := json.NewDecoder(strings.NewReader(p.body)).Decode(&h); err != nil {
		t.Fatal(err)
	}
	return h
}
