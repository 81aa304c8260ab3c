package istio

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/internal/demo/process"
	"gatehouse/test/cluster/kube"
	"gatehouse/test/cluster/netns"
	"gatehouse/test/peers"
)

// limit is how long anything may take to come about: machines that run tests are busy.
const limit = time.Minute

// Addresses of pods; see netns.
const (
	gatehousePod = "10.244.0.10" // of the first; others have the addresses behind it
	gatewayPod   = "10.244.0.20"
	appPod       = "10.244.0.30"
)

// Names as the documents have them.
const (
	issuerHost = "auth.corp.test"
	appHost    = "app.corp.test"
	issuer     = "https://" + issuerHost + "/dex"
	you        = "you@corp.test"

	databaseHost = "db.corp.test"
)

// A cluster is an API server with its store, istiod, and what the tests have put beside them.
type cluster struct {
	*api
	t        *testing.T // that everything ends with
	bin      string     // folder of the programs
	dir      string     // scratch
	ca       *peers.CA
	app      *app
	istiod   *process.Process
	apiProc  *process.Process
	password string
	hash     string
	pins     []string // hashes of the certificates' keys, as Chromium takes them
}

// newCluster starts the control plane with Istio's and the Gateway API's resources, and the namespaces that an operator has.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, bin: kube.Programs(t), dir: peers.Folder(t), ca: peers.NewCA(t, "corp.test CA"), password: rand.Text()}
	c.hash = hashOf(t, c.password)
	t.Setenv("PATH", c.bin+":"+os.Getenv("PATH"))
	c.resolve(t)
	c.startAPI(t)
	c.kubectl(t, "", "create", "namespace", "istio-system")
	c.kubectl(t, "", "create", "namespace", "istio-ingress")
	c.kubectl(t, "", "create", "namespace", "apps")
	for _, file := range []string{"istio-crds.yaml", "gateway-api-crds.yaml"} {
		c.kubectl(t, "", "apply", "--server-side", "-f", filepath.Join(c.bin, file))
	}
	c.kubectl(t, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	c.kubectl(t, meshConfig, "apply", "-f", "-")
	c.startIstiod(t)
	c.validate(t)
	c.app = newApp(t)
	c.kubectl(t, ingress(c.certificate(t, issuerHost, appHost)), "apply", "-f", "-")
	return c
}

// meshConfig is what an installation by plain manifests has. enableAutoMtls is on, as it is by default. (Without
// defaultProviders there is no filter that stock Envoy has not.)
const meshConfig = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    rootNamespace: istio-system
    trustDomain: cluster.local
    accessLogFile: /dev/stdout
    defaultConfig:
      discoveryAddress: istiod.istio-system.svc:15012
`

// hostsFile says what the names of this site are, to the tests and to the pods.
const hostsFile = "127.0.0.1 localhost istiod.istio-system.svc\n" +
	gatewayPod + " " + issuerHost + " " + appHost + "\n" +
	gatehousePod + " gatehouse.istio-system.svc.cluster.local gatehouse.istio-system.svc\n" +
	netns.Node + " " + databaseHost + "\n"

// resolve stands in for the cluster's DNS and the operator's: a hosts file for this namespace only.
func (c *cluster) resolve(t *testing.T) {
	t.Helper()
	hosts := filepath.Join(c.dir, "hosts")
	write(t, hosts, hostsFile)
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount %s on /etc/hosts: %v", hosts, err)
	}
}

func (c *cluster) startAPI(t *testing.T) {
	t.Helper()
	server := kube.Start(t, c.dir, c.ca)
	c.apiProc = server.Process()
	c.api = newAPI(t, server.URL, server.Token, c.ca)
	t.Setenv("KUBECONFIG", server.Kubeconfig)
	t.Setenv("KUBECACHEDIR", filepath.Join(c.dir, "kubectl")) // what it knows of the server's resources is of this server only
}

// startIstiod starts istiod on the mesh config in the API server, and waits until it is ready.
func (c *cluster) startIstiod(t *testing.T) {
	t.Helper()
	c.istiod = c.start(t, "pilot-discovery", []string{
		"POD_NAMESPACE=istio-system", "POD_NAME=istiod-0", "PILOT_DEBOUNCE_AFTER=20ms",
		"PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false", // filters of Istio's own Envoy
	}, "discovery", "--kubeconfig="+os.Getenv("KUBECONFIG"), "--networksConfig=/nonexistent", "--ctrlz_port=0", "--grpcAddr=127.0.0.1:15010",
		"--secureGRPCAddr=127.0.0.1:15012", "--httpAddr=127.0.0.1:8080", "--httpsAddr=127.0.0.1:15017", "--monitoringAddr=127.0.0.1:15014")
	peers.Eventually(t, limit, "istiod is ready", func() bool {
		ended(t, c.istiod)
		return status("http://127.0.0.1:8080/ready") == http.StatusOK
	})
}

// validate has the API server ask istiod about every object of Istio's, as an installation does. (By the name localhost: for an
// address istiod's certificate is not good.)
func (c *cluster) validate(t *testing.T) {
	t.Helper()
	var root struct {
		Data map[string]string
	}
	peers.Eventually(t, limit, "istiod publishes its CA", func() bool {
		return c.get(t, "/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert", &root) == http.StatusOK
	})
	c.kubectl(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: istio-system}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: istio-validator}
webhooks:
- name: validation.istio.io
  clientConfig: {service: {name: istiod, namespace: istio-system, path: /validate, port: 15017}, caBundle: %s}
  rules: [{operations: [CREATE, UPDATE], apiGroups: [security.istio.io, networking.istio.io], apiVersions: ["*"], resources: ["*"]}]
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1]
`, base64.StdEncoding.EncodeToString([]byte(root.Data["root-cert.pem"]))), "apply", "-f", "-")
	peers.Eventually(t, limit, "the API server asks istiod", func() bool {
		_, err := c.try(t, missingProvider, "apply", "--dry-run=server", "-f", "-")
		return err != nil && strings.Contains(err.Error(), "provider.name")
	})
}

const missingProvider = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-provider, namespace: istio-system}
spec: {action: CUSTOM, rules: [{}]}
`

// certificate makes a certificate for names, as PEM.
func (c *cluster) certificate(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	k := peers.NewKey(t)
	public, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	pin := sha256.Sum256(public)
	c.pins = append(c.pins, base64.StdEncoding.EncodeToString(pin[:]))
	return string(c.ca.Sign(t, peers.Template(names...), k.Public())), keyPEM(t, k)
}

// start runs a program of the cluster until the test ends.
func (c *cluster) start(t *testing.T, name string, env []string, args ...string) *process.Process {
	t.Helper()
	p, kill := c.startAt(t, filepath.Join(c.bin, name), c.dir, env, args...)
	c.t.Cleanup(kill) // nothing of it is needed any more
	return p
}

func (c *cluster) startAt(t *testing.T, path, dir string, env []string, args ...string) (p *process.Process, kill func()) {
	t.Helper()
	p, err := process.Start(c.t.Context(), process.Spec{
		Path: path, Args: args, Env: env, Dir: dir, Log: filepath.Join(c.dir, filepath.Base(path)+".log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p, func() { _ = p.Kill() }
}

// ended fails the test if a program that should run does not.
func ended(t *testing.T, p *process.Process) {
	t.Helper()
	select {
	case <-p.Done():
		t.Fatal(p.Err())
	default:
	}
}

// kubectl runs kubectl with input and returns what it prints.
func (c *cluster) kubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := c.try(t, input, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) try(t *testing.T, input string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(c.bin, "kubectl"), args...) // #nosec G204 -- the test's own
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, errs.String(), input)
	}
	return out.String(), nil
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func keyPEM(t testing.TB, key crypto.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// status returns the status code of a GET, or 0.
func status(url string) int {
	client := &http.Client{Timeout: 5 * time.Second}
	res, err := client.Get(url) //nolint:noctx // it has a timeout
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}
