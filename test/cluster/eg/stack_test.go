// Package eg proves deploy/overlays/envoy-gateway against a real Envoy Gateway that runs a real Envoy: `make e2e-eg`.
//
// There is no Kubernetes: Envoy Gateway reads its objects from files (provider Custom/File) and starts Envoy as a process
// (infrastructure Host). What is not proven here is therefore what Kubernetes does: Services and their endpoints, pods,
// the NetworkPolicy. Everything else is as an operator gets it: the overlay after the commands of docs/install.md, its
// ConfigMap as the built Gatehouse's file, and the listeners on port 443 with a certificate from a Secret. That the
// chart's provider envoy-gateway makes the same objects is a test of test/deploy/render.
//
// Each test has a network of its own (package netns) with Gatehouse, Envoy Gateway, Envoy and an app in it.
package eg

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"gatehouse/internal/demo"
	"gatehouse/internal/demo/process"
	"gatehouse/test/cluster/netns"
	"gatehouse/test/peers"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

const (
	issuerHost = "auth.corp.test" // the names are those of docs/install.md
	appHost    = "app.corp.test"
	issuerURL  = "https://" + issuerHost
	appURL     = "https://" + appHost
	user       = "you@corp.test"
	password   = "open sesame 7"

	edge   = "10.0.0.1:443"     // Envoy. Of an address of 127.0.0.0/8 it would not tell which of them a client has
	client = "10.99.0.7"        // everybody's
	pod    = "10.244.0.9"       // Gatehouse's
	app    = "10.244.0.10:8080" // the app's, in another namespace
	xds    = "127.0.0.1:18000"  // Envoy Gateway's own

	wait = 2 * time.Minute     // for what takes seconds, on machines that are busy
	bin  = "GATEHOUSE_CLUSTER" // names the folder that test/cluster/install.sh prints
)

// others are the objects that are not ours: those of Envoy Gateway's operator, and an app in a namespace of its own.
const others = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: eg}
spec:
  controllerName: gateway.envoyproxy.io/gatewayclass-controller
  parametersRef: {group: gateway.envoyproxy.io, kind: EnvoyProxy, name: host, namespace: envoy-gateway-system}
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyProxy
metadata: {name: host, namespace: envoy-gateway-system}
spec:
  provider: {type: Host, host: {envoyVersion: 1.40.0}}
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {name: app, namespace: apps}
spec:
  endpoints: [{ip: {address: 10.244.0.10, port: 8080}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: app, namespace: apps}
spec:
  parentRefs: [{name: gatehouse, namespace: gatehouse}]
  hostnames: [app.corp.test]
  rules:
  - backendRefs: [{group: gateway.envoyproxy.io, kind: Backend, name: app}]
`

// A layout is what differs from the overlay as it is shipped, and from an install by the book.
type layout struct {
	// names are those in the certificate for a listener's host, which is then in a Secret of its own; nil: the Secrets are
	// as shipped, and each names the hosts that it is for.
	names map[string][]string
	// config is made to Gatehouse's file; nil: nothing.
	config func(text string) string
	// change is made to our objects; nil: none.
	change func(list map[string]object)
	// more objects of others, as YAML.
	more string
}

// A world is a running install.
type world struct {
	gatehouse *peers.GatehouseServer
	gateway   *process.Process // Envoy Gateway, whose child is Envoy
	app       *recorder
	roots     *x509.CertPool
	pins      []string // of the certificates' keys, as Chromium takes them
}

func start(t *testing.T, l layout) *world {
	t.Helper()
	list := byName(t, install(t))
	config := at(list["ConfigMap gatehouse"], "data", "gatehouse.yaml").(string)
	if l.config != nil {
		config = l.config(config)
	}
	w := &world{app: serveApp(t)}
	// The volume is the test's folder; the addresses are as shipped.
	w.gatehouse = peers.Gatehouse(t, strings.ReplaceAll(config, "/var/lib/gatehouse/", ""))
	objects := standalone(t, list, pod)
	if l.change != nil {
		l.change(objects)
	}
	var text strings.Builder
	text.WriteString(others + l.more + w.secrets(t, list["Gateway gatehouse"], l.names))
	for _, o := range objects {
		text.WriteString("---\n" + marshal(t, o))
	}
	w.startGateway(t, text.String())
	return w
}

// secrets are those that the Gateway names, as docs/install.md makes them by `kubectl create secret tls`.
func (w *world) secrets(t *testing.T, gateway object, names map[string][]string) (text string) {
	t.Helper()
	ca := peers.NewCA(t, "the test's CA")
	w.roots = ca.Pool()
	all := map[string][]string{}
	listeners, _ := at(gateway, "spec", "listeners").([]any)
	for _, l := range listeners {
		host, ref := at(l, "hostname").(string), at(l, "tls", "certificateRefs", 0).(object)
		if names == nil {
			all[ref["name"].(string)] = append(all[ref["name"].(string)], host)
			continue
		}
		ref["name"] = "tls-" + at(l, "name").(string)
		all[ref["name"].(string)] = names[host]
	}
	for name, hosts := range all {
		certificate, key := ca.Issue(t, hosts...)
		w.pins = append(w.pins, pin(t, certificate))
		text += "---\n" + marshal(t, object{
			"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": object{"name": name, "namespace": at(gateway, "metadata", "namespace")},
			"data": object{"tls.crt": certificate, "tls.key": key},
		})
	}
	return text
}

// startGateway starts Envoy Gateway on the objects and waits until both hosts are served.
func (w *world) startGateway(t *testing.T, objects string) {
	t.Helper()
	dir, program := peers.Folder(t), envoyGateway(t)
	resources, config := filepath.Join(dir, "resources"), filepath.Join(dir, "envoy-gateway.yaml")
	binDir := filepath.Join(dir, "data", "envoy-versions", "1.40.0", "bin") // where it looks before it downloads one
	for _, folder := range []string{resources, binDir} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	envoy, err := demo.FindEnvoy(t.Context(), "", peers.Root(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(envoy, filepath.Join(binDir, "envoy")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(resources, "all.yaml"), objects)
	write(t, config, fmt.Sprintf(`
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyGateway
gateway: {controllerName: gateway.envoyproxy.io/gatewayclass-controller}
provider:
  type: Custom
  custom:
    resource: {type: File, file: {paths: [%[1]s/resources]}}
    infrastructure: {type: Host, host: {configHome: %[1]s/config, dataHome: %[1]s/data, stateHome: %[1]s/state, runtimeDir: %[1]s/run}}
extensionApis: {enableBackend: true}
`, dir))
	out, err := exec.CommandContext(t.Context(), program, "certgen", "--local", "--config-home", filepath.Join(dir, "config")).CombinedOutput()
	if err != nil {
		t.Fatalf("certgen: %v\n%s", err, out)
	}
	log := filepath.Join(dir, "log")
	w.gateway, err = process.Start(context.WithoutCancel(t.Context()), process.Spec{Path: program, Args: []string{"server", "-c", config}, Dir: dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stopGateway(t) })
	began := time.Now()
	peers.Eventually(t, wait, "Envoy Gateway serves both hosts", func() bool {
		select {
		case <-w.gateway.Done():
			t.Fatal(w.gateway.Err())
		default:
		}
		if strings.Contains(w.gateway.Log(), "failed to load resources") {
			t.Fatal("Envoy Gateway does not take the objects")
		}
		for _, target := range []string{issuerURL + "/dex/.well-known/openid-configuration", appURL + "/healthz"} {
			if a, err := w.ask(t, target); err != nil || a.status == http.StatusNotFound {
				return false
			}
		}
		return true
	})
	t.Logf("both hosts served after %s", time.Since(began).Round(time.Millisecond))
}

// stopGateway ends Envoy Gateway and its Envoy. The next test's Envoy would share the port with one that is left.
func (w *world) stopGateway(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("the end of the log of Envoy Gateway:\n%s", w.gateway.Tail(8000))
	}
	if err := w.gateway.Stop(); err != nil {
		t.Error(err)
	}
	for _, addr := range []string{edge, xds} {
		peers.Eventually(t, wait, "nobody listens on "+addr, func() bool {
			c, err := new(net.Dialer).DialContext(context.WithoutCancel(t.Context()), "tcp", addr)
			if err == nil {
				_ = c.Close()
			}
			return err != nil
		})
	}
}

func envoyGateway(t *testing.T) string {
	t.Helper()
	path := filepath.Join(os.Getenv(bin), "envoy-gateway")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s: %v: run `make e2e-eg`, or set it to the folder that `test/cluster/install.sh eg` prints", bin, err)
	}
	return path
}

func dialer() *net.Dialer { return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}} }

// transport reaches Envoy whatever host a URL names.
func (w *world) transport(t *testing.T) *http.Transport {
	tr := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer().DialContext(ctx, network, edge)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
