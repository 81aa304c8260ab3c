package reload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"gatehouse/test/peers"
)

// An envoy is a gateway's side of gateway.tls.
type envoy struct{ checks authv3.AuthorizationClient }

// newEnvoy trusts server and shows the certificate of a client of ca with that name. It connects at its first check.
func (w *world) newEnvoy(t *testing.T, server, ca *peers.CA, name string) envoy {
	t.Helper()
	c := credentials.NewTLS(&tls.Config{RootCAs: server.Pool(), ServerName: "gatehouse.test", Certificates: []tls.Certificate{ca.Pair(t, name)}, MinVersion: tls.VersionTLS12})
	conn, err := grpc.NewClient(w.ports[len(w.ports)-1], grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return envoy{authv3.NewAuthorizationClient(conn)}
}

// check fails where there is no connection and none can be made.
func (e envoy) check(w *world, t *testing.T) error {
	t.Helper()
	over := *w
	over.checks = e.checks
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := over.check(ctx, "/one", "", nil)
	return err
}

// swap puts a file in the place of another, as a renewal does.
func swap(t *testing.T, folder, name string, data []byte) {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestCertificatesAreReloaded(t *testing.T) {
	oldServer, oldClients := peers.NewCA(t, "old"), peers.NewCA(t, "old clients")
	newServer, newClients := peers.NewCA(t, "new"), peers.NewCA(t, "new clients")
	dir := peers.Folder(t)
	certificate, key := oldServer.Issue(t, "gatehouse.test")
	swap(t, dir, "tls.crt", certificate)
	swap(t, dir, "tls.key", key)
	swap(t, dir, "clients.crt", oldClients.PEM)
	file := func(w *world, name string) string {
		return w.head + "staticPasswords:\n" + w.user("alice@example.com", "alice", "admins") + w.gateway +
			strings.ReplaceAll("  tls: {cert: DIR/tls.crt, key: DIR/tls.key, clientCA: DIR/clients.crt, clientNames: [", "DIR", dir) + name + "]}\n" + gatewayA
	}
	w := newWorld(t, func(w *world) string { return file(w, "gateway.test") })
	before := w.newEnvoy(t, oldServer, oldClients, "gateway.test")
	if err := before.check(w, t); err != nil {
		t.Fatal(err)
	}

	// One file of a pair is refused until the other has come: what runs goes on.
	certificate, key = newServer.Issue(t, "gatehouse.test")
	swap(t, dir, "tls.crt", certificate)
	peers.Eventually(t, limit, "half a pair is refused", func() bool { return w.metric(t, "gatehouse_config_last_reload_successful") == 0 })
	if err := w.newEnvoy(t, oldServer, oldClients, "gateway.test").check(w, t); err != nil {
		t.Errorf("with half a pair in place: %v", err)
	}
	swap(t, dir, "tls.key", key)
	swap(t, dir, "clients.crt", newClients.PEM)
	w.write(t, file(w, "other.test"))
	peers.Eventually(t, limit, "the names are taken up", func() bool {
		return w.metric(t, "gatehouse_config_last_reload_successful") == 1 && strings.Contains(w.gatehouse.Log(), "gateway.tls.clientNames")
	})
	for what, e := range map[string]envoy{
		"the new certificate, client CA and name": w.newEnvoy(t, newServer, newClients, "other.test"),
		"a connection from before":                before,
	} {
		if err := e.check(w, t); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, e := range map[string]envoy{
		"the old certificate": w.newEnvoy(t, oldServer, newClients, "other.test"),
		"the old client CA":   w.newEnvoy(t, newServer, oldClients, "other.test"),
		"the old name":        w.newEnvoy(t, newServer, newClients, "gateway.test"),
	} {
		if err := e.check(w, t); err == nil {
			t.Errorf("%s is still good for a new connection", what)
		}
	}

	// A renewal that went wrong: with it, no check of a gateway would be answered.
	failures := w.metric(t, "gatehouse_config_reload_failures_total")
	swap(t, dir, "tls.crt", expired(t, newServer, certificate))
	peers.Eventually(t, limit, "an expired certificate is refused", func() bool { return w.metric(t, "gatehouse_config_reload_failures_total") > failures })
	w.gatehouse.Logged(t, `"key":"gateway.tls.cert"`, "put a valid one in its place")
	if err := w.newEnvoy(t, newServer, newClients, "other.test").check(w, t); err != nil {
		t.Errorf("after an expired certificate was refused: %v", err)
	}
}

// expired is a certificate for the same names and key that is good no more.
func expired(t *testing.T, ca *peers.CA, certificate []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(certificate)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	template := peers.Template(c.DNSNames...)
	template.NotAfter = template.NotBefore.Add(time.Minute)
	return ca.Sign(t, template, c.PublicKey)
}
