// Package listen attacks the listeners of the built Gatehouse: by TLS, by size, by slowness and by number. Whatever a
// stranger does to a port, the sign-in page, a check, metrics and the operator are answered meanwhile and afterwards.
//
// What only ends by a clock of seconds is tested with a clock of its own beside the code (internal/listen).
package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"gatehouse/test/peers"
)

// The names are reserved ones (RFC 6761): only the dialer of these tests knows where they are. gatehouse.example.com is that
// of the block in docs/install.md, and is only ever compared.
const (
	issuerHost = "auth.example.test"
	appHost    = "app.example.test"
	gateway    = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway"
)

// within is how long anything may take on a busy machine.
const within = 60 * time.Second

// A world is a running Gatehouse whose issuer is on http and https, and whose gRPC asks for certificates.
type world struct {
	gatehouse *peers.GatehouseServer
	ports     map[string]string // by the name of the listener
	serverCA  *peers.CA         // of Gatehouse
	clientCA  *peers.CA         // of the gateways
	gateway   tls.Certificate
}

const configText = `
issuer: https://auth.example.test/dex
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: %[1]s, https: %[2]s, tlsCert: %[3]s, tlsKey: %[4]s}
telemetry: {http: %[5]s}
logger: {level: debug}
oauth2: {grantTypes: [authorization_code, refresh_token, "urn:ietf:params:oauth:grant-type:device_code"]}
enablePasswordDB: true
staticPasswords:
- {email: user@example.com, username: user, userID: id-user, hash: "$2a$10$wTDfvN1G4m1Yb0cJb8xw0eyO4eI1u7gkKqkJXn0vK1Wm9O3m1hC2S"}
gateway:
  grpc: %[6]s
  tls: {cert: %[3]s, key: %[4]s, clientCA: %[7]s, clientNames: [%[8]q]}
  admin: %[9]s
  hosts: [app.example.test]
  rules:
  - {name: public, paths: ["/public/**"], allow: anyone}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{serverCA: peers.NewCA(t, "server"), clientCA: peers.NewCA(t, "client"), ports: map[string]string{}}
	for _, name := range []string{"web.http", "web.https", "telemetry.http", "gateway.grpc", "gateway.admin"} {
		w.ports[name] = peers.FreeAddr(t)
	}
	dir := peers.Folder(t)
	certificate, key := w.serverCA.Issue(t, issuerHost, "gatehouse.example.com", "127.0.0.1")
	w.gateway = w.clientCA.Pair(t, "gateway", gateway)
	w.gatehouse = peers.Gatehouse(t, fmt.Sprintf(configText, w.ports["web.http"], w.ports["web.https"], write(t, dir, "tls.crt", certificate), write(t, dir, "tls.key", key),
		w.ports["telemetry.http"], w.ports["gateway.grpc"], write(t, dir, "clients.crt", w.clientCA.PEM), gateway, w.ports["gateway.admin"]))
	return w
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// transport reaches the issuer over TLS, whatever host a URL names, by connections of its own.
func (w *world) transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.serverCA.Pool(), ServerName: issuerHost}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, w.ports["web.https"])
		},
	}
}

// client returns what a gateway with a certificate asks by.
func (w *world) client(client tls.Certificate, o ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(w.ports["gateway.grpc"], append(o, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: w.serverCA.Pool(), Certificates: []tls.Certificate{client}, ServerName: "gatehouse.example.com",
	})))...)
}

// check asks as the gateway does, on a connection of its own.
func (w *world) check(ctx context.Context, client tls.Certificate, path string) (*authv3.CheckResponse, error) {
	conn, err := w.client(client)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return check(ctx, conn, path)
}

func check(ctx context.Context, conn *grpc.ClientConn, path string) (*authv3.CheckResponse, error) {
	return authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: http.MethodGet, Host: appHost, Path: path, Headers: map[string]string{"accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
		}},
	}})
}

// serves fails unless a user who opens an app sees the sign-in page, and metrics and the operator are answered, all by new
// connections.
func (w *world) serves(t *testing.T, when string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := w.signInPage(ctx); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	for _, url := range []string{"http://" + w.ports["telemetry.http"] + "/metrics", "http://" + w.ports["gateway.admin"] + "/v1/version", "http://" + w.ports["web.http"] + "/dex/keys"} {
		if _, err := get(ctx, url); err != nil {
			t.Errorf("%s: %s: %v", when, url, err)
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-Gatehouse-Admin", "1")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

func (w *world) signInPage(ctx context.Context) error {
	answer, err := w.check(ctx, w.gateway, "/")
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	location := ""
	for _, h := range answer.GetDeniedResponse().GetHeaders() {
		if strings.EqualFold(h.GetHeader().GetKey(), "location") {
			location = h.GetHeader().GetValue() + string(h.GetHeader().GetRawValue())
		}
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	tr := w.transport()
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr, Jar: jar}).Do(req)
	if err != nil {
		return fmt.Errorf("sign-in page: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), `name="password"`) {
		return fmt.Errorf("sign-in page at %s: got %s, %w and %d bytes without a form", location, resp.Status, err, len(b))
	}
	return nil
}

// metric returns the sum of a metric over the lines that contain all of labels.
func (w *world) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	text, err := get(ctx, "http://"+w.gatehouse.Telemetry+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		match := true
		for _, l := range labels {
			match = match && strings.Contains(m[1], strconv.Quote(l))
		}
		if match {
			sum += v
		}
	}
	return sum
}

// dial opens a connection to a listener; over TLS, with the gateway's certificate, where the listener speaks it.
func (w *world) dial(t *testing.T, name string, protocols ...string) net.Conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", w.ports[name])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if protocols == nil {
		return c
	}
	s := tls.Client(c, &tls.Config{RootCAs: w.serverCA.Pool(), ServerName: issuerHost, NextProtos: protocols, Certificates: []tls.Certificate{w.gateway}})
	if err := s.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// toward returns a transport that reaches addr whatever host a URL names.
func toward(t *testing.T, addr string) *http.Transport {
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}
