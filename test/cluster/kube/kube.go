// Package kube starts a real Kubernetes API server on a real etcd, in the network of package netns.
package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/demo/process"
	"gatehouse/test/peers"
)

// limit is how long anything may take to come about: machines that run tests are busy.
const limit = time.Minute

// Service is the address, beside 127.0.0.1, at which pods find the API server, on port 6443.
const Service = "10.96.0.1"

// A Server is an API server with its etcd.
type Server struct {
	URL        string
	Token      string // of an administrator
	CA         *peers.CA
	Kubeconfig string // of the same administrator

	t       testing.TB // that everything ends with
	bin     string
	dir     string
	process *process.Process
}

// Programs returns the folder that install.sh has built.
func Programs(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("GATEHOUSE_CLUSTER")
	if _, err := os.Stat(filepath.Join(dir, "done")); dir == "" || err != nil {
		t.Fatalf("GATEHOUSE_CLUSTER=%q is no folder of test/cluster/install.sh: run `make e2e-istio`", dir)
	}
	return dir
}

// Start starts etcd and the API server, with their files in dir, until the test ends. The API server believes in who has a token of Token or of a
// service account, by RBAC.
func Start(t testing.TB, dir string, ca *peers.CA) *Server {
	t.Helper()
	s := &Server{URL: "https://127.0.0.1:6443", Token: rand.Text(), CA: ca, t: t, bin: Programs(t), dir: dir}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, certificateKey := ca.Issue(t, "127.0.0.1", Service)
	for name, text := range map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
		"sa.pub":     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		"api.crt":    certificate,
		"api.key":    certificateKey,
		"ca.crt":     ca.PEM,
		"tokens.csv": []byte(s.Token + ",admin,admin-uid,system:masters\n"),
	} {
		s.write(t, name, text)
	}
	_, kill := s.run(t, "etcd", "--data-dir", s.path("etcd"), "--listen-client-urls", "http://127.0.0.1:2379",
		"--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380")
	t.Cleanup(kill)
	s.Run(t)
	s.Kubeconfig = s.path("kubeconfig")
	s.write(t, "kubeconfig", fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q,
 certificate-authority: %s}}], users: [{name: u, user: {token: %s}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, s.URL, s.path("ca.crt"), s.Token))
	return s
}

// Run starts the API server, at first and after Kill, and waits until it is ready.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	// Two admission plugins need controllers, which are not here.
	var kill func()
	s.process, kill = s.run(t, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--advertise-address=127.0.0.1",
		"--secure-port=6443", "--endpoint-reconciler-type=none", "--cert-dir="+s.dir, "--tls-cert-file="+s.path("api.crt"),
		"--tls-private-key-file="+s.path("api.key"), "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+s.path("sa.key"), "--service-account-key-file="+s.path("sa.pub"),
		"--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC", "--token-auth-file="+s.path("tokens.csv"),
		"--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection")
	s.t.Cleanup(kill)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.CA.Pool(), MinVersion: tls.VersionTLS12}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	peers.Eventually(t, limit, "the API server is ready", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.Token)
		res, err := client.Do(req)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// Process is the API server.
func (s *Server) Process() *process.Process { return s.process }

// Kill kills the API server (SIGKILL) and waits for its end.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.process.Done()
}

// Kubectl runs kubectl with input and returns what it prints.
func (s *Server) Kubectl(t testing.TB, input string, args ...string) string {
	t.Helper()
	args = append([]string{"--kubeconfig", s.Kubeconfig, "--cache-dir", s.path("kubectl")}, args...)
	cmd := exec.CommandContext(t.Context(), filepath.Join(s.bin, "kubectl"), args...) // #nosec G204 -- the test's own
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, errs.String(), input)
	}
	return out.String()
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) write(t testing.TB, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(s.path(name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run starts one of the programs.
func (s *Server) run(t testing.TB, name string, args ...string) (p *process.Process, kill func()) {
	t.Helper()
	// Not the context of t, which may be a subtest: kill ends it.
	p, err := process.Start(context.WithoutCancel(s.t.Context()), process.Spec{Path: filepath.Join(s.bin, name), Args: args, Dir: s.dir, Log: s.path(name + ".log")})
	if err != nil {
		t.Fatal(err)
	}
	return p, func() { _ = p.Kill() }
}
