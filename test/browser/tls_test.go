package browser

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/demo"
	"gatehouse/internal/demo/process"
	"gatehouse/test/peers"
)

// serveTLS is peers.Envoy with a listener that speaks TLS, with a certificate of a CA of its own for the names.
func serveTLS(t *testing.T, e demo.Edge, names ...string) {
	t.Helper()
	binary, err := demo.FindEnvoy(t.Context(), "", peers.Root(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := peers.Folder(t)
	certificate, key, roots := certify(t, names)
	path := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(path, withTLS(t, e, certificate, key), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(context.WithoutCancel(t.Context()), process.Spec{
		Path: binary, Args: demo.EnvoyArgs(path), Dir: dir, Log: filepath.Join(dir, "log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the end of Envoy's log:\n%s", p.Tail(4000))
		}
	})
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: names[0], MinVersion: tls.VersionTLS12}}
	peers.Eventually(t, time.Minute, "Envoy speaks TLS", func() bool {
		select {
		case <-p.Done():
			t.Fatal(p.Err())
		default:
		}
		c, err := dialer.DialContext(t.Context(), "tcp", e.Listen)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

// withTLS returns the config of e with a transport socket for TLS in its one filter chain.
func withTLS(t *testing.T, e demo.Edge, certificate, key string) []byte {
	t.Helper()
	plain, err := demo.EnvoyConfig(e)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Static struct {
			Listeners []map[string]any `yaml:"listeners"`
			Clusters  []any            `yaml:"clusters"`
		} `yaml:"static_resources"`
	}
	if err := yaml.Unmarshal(peers.Patient(plain), &config); err != nil {
		t.Fatal(err)
	}
	chains, _ := config.Static.Listeners[0]["filter_chains"].([]any)
	chain, ok := chains[0].(map[string]any)
	if !ok || len(config.Static.Listeners) != 1 || len(chains) != 1 {
		t.Fatalf("Envoy's config has %d listeners and %d filter chains, want one of each", len(config.Static.Listeners), len(chains))
	}
	chain["transport_socket"] = map[string]any{
		"name": "envoy.transport_sockets.tls",
		"typed_config": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
			"common_tls_context": map[string]any{"tls_certificates": []any{map[string]any{
				"certificate_chain": map[string]any{"inline_string": certificate},
				"private_key":       map[string]any{"inline_string": key},
			}}},
		},
	}
	out, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// certify makes a CA and a certificate of it for the names.
func certify(t *testing.T, names []string) (certificate, key string, roots *x509.CertPool) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caKey, leafKey := newKey(), newKey()
	sign := func(of, by *x509.Certificate, public *ecdsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, of, by, public, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caDER, leafDER := sign(ca, ca, &caKey.PublicKey), sign(leaf, ca, &leafKey.PublicKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(block("CERTIFICATE", caDER))) {
		t.Fatal("the CA's certificate does not parse")
	}
	return block("CERTIFICATE", leafDER) + block("CERTIFICATE", caDER), block("PRIVATE KEY", keyDER), roots
}

// insecureTransport reaches Envoy whatever host a URL names, and believes every certificate.
func insecureTransport(t *testing.T, edge string) *http.Transport {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, edge)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}
