package deploy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"gatehouse/internal/demo"
	"gatehouse/internal/demo/process"
	"gatehouse/test/peers"
)

// TestEnvoyConfig runs the shipped Envoy config, on other ports, in front of an app and of nobody who answers the
// check: whatever reaches the app was let through unchecked.
func TestEnvoyConfig(t *testing.T) {
	e := startShipped(t)
	for _, tc := range []struct {
		rule, request string
		want          int
	}{
		{"no check, no entry", "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n", 503},
		{"the issuer is checked too", "GET /dex/auth HTTP/1.1\r\nHost: auth.example.com\r\n\r\n", 503},
		{"own paths reach the check", "GET /_gatehouse/whoami HTTP/1.1\r\nHost: app.example.com\r\n\r\n", 503},
		{"whole segments", "GET /dexter HTTP/1.1\r\nHost: auth.example.com\r\n\r\n", 404},
		{"dot segments cannot leave the issuer's path unseen", "GET /dex/../x HTTP/1.1\r\nHost: auth.example.com\r\n\r\n", 404},
		{"slashes are merged before routing", "GET //dex//auth HTTP/1.1\r\nHost: auth.example.com\r\n\r\n", 503},
		{"unlisted host", "GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n", 404},
		{"escaped slash", "GET /a%2fb HTTP/1.1\r\nHost: app.example.com\r\n\r\n", 400},
		{"escaped backslash", "GET /a%5Cb HTTP/1.1\r\nHost: app.example.com\r\n\r\n", 400},
		{"header with an underscore", "GET / HTTP/1.1\r\nHost: app.example.com\r\nkubeflow_userid: x\r\n\r\n", 400},
		{"headers of 100 kB", "GET / HTTP/1.1\r\nHost: app.example.com\r\nx: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", 431},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			if got := e.ask(t, tc.request); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
	if n := e.reached.Load(); n != 0 {
		t.Errorf("%d requests reached the app unchecked", n)
	}
	t.Run("plain http leads to https", func(t *testing.T) {
		c := e.dial(t, e.plain)
		defer func() { _ = c.Close() }()
		status, location := exchange(t, c, "GET /a?b HTTP/1.1\r\nHost: app.example.com\r\n\r\n")
		if status != http.StatusMovedPermanently || location != "https://app.example.com/a?b" {
			t.Errorf("got %d to %q, want 301 to https://app.example.com/a?b", status, location)
		}
	})
}

// TestEnvoyWaitsTwoSeconds holds the timeout: an authorizer that hangs costs 2 s, where Envoy's default of 200 ms would
// refuse requests that wait for a directory.
func TestEnvoyWaitsTwoSeconds(t *testing.T) {
	e := startShipped(t)
	hanging := hang(t, e.check)
	start, pulse := time.Now(), peers.NewPulse(t)
	got := e.ask(t, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n")
	took := time.Since(start)
	if got != http.StatusServiceUnavailable || took < 1500*time.Millisecond || took-pulse.Still() > 10*time.Second {
		t.Errorf("got %d after %s, want 503 after 2s", got, took)
	}
	if hanging.Load() == 0 {
		t.Error("the check was not asked")
	}
}

// A shipped is a running Envoy with the shipped config.
type shipped struct {
	secure, plain string // listeners
	check, issuer string // where it looks for Gatehouse
	health        string // and for its health
	reached       *atomic.Int32
}

func startShipped(t *testing.T) *shipped {
	t.Helper()
	e := startShippedFor(t, "example.com")
	serveApp(t, e.issuer, e.reached)
	return e
}

// startShippedFor has the names of another domain, and nobody at the issuer's address.
func startShippedFor(t *testing.T, domain string) *shipped {
	t.Helper()
	dir := peers.Folder(t)
	e := &shipped{secure: peers.FreeAddr(t), plain: peers.FreeAddr(t), check: peers.FreeAddr(t), issuer: peers.FreeAddr(t), health: peers.FreeAddr(t), reached: new(atomic.Int32)}
	_, healthPort, err := net.SplitHostPort(e.health)
	if err != nil {
		t.Fatal(err)
	}
	app := peers.FreeAddr(t)
	serveApp(t, app, e.reached)
	certificate(t, dir)
	text := string(read(t, repo(t, "deploy", "envoy", "envoy.yaml")))
	for old, fresh := range map[string]string{
		"{address: 0.0.0.0, port_value: 443}":    address(t, e.secure),
		"{address: 0.0.0.0, port_value: 80}":     address(t, e.plain),
		"{address: 127.0.0.1, port_value: 9001}": address(t, e.check),
		"{address: 127.0.0.1, port_value: 5556}": address(t, e.issuer),
		"{address: 127.0.0.1, port_value: 8000}": address(t, app),
		"{port_value: 5558}":                     "{port_value: " + healthPort + "}",
		"/etc/envoy/tls":                         filepath.Join(dir, "tls"),
		"example.com":                            domain,
	} {
		if !strings.Contains(text, old) {
			t.Fatalf("deploy/envoy/envoy.yaml has no %s", old)
		}
		text = strings.ReplaceAll(text, old, fresh)
	}
	config := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	envoy, err := demo.FindEnvoy(t.Context(), "", peers.Root(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(context.WithoutCancel(t.Context()), process.Spec{Path: envoy, Args: demo.EnvoyArgs(config), Dir: dir, Log: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	peers.Eventually(t, time.Minute, "Envoy listens", func() bool {
		select {
		case <-p.Done():
			t.Fatal(p.Err())
		default:
		}
		for _, addr := range []string{e.secure, e.plain} {
			c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
			if err != nil {
				return false
			}
			_ = c.Close()
		}
		return true
	})
	return e
}

// ask sends one request as it is written over TLS.
func (e *shipped) ask(t *testing.T, request string) (status int) {
	t.Helper()
	c := tls.Client(e.dial(t, e.secure), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) // #nosec G402 -- the test's own certificate
	defer func() { _ = c.Close() }()
	status, _ = exchange(t, c, request)
	return status
}

func (e *shipped) dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// exchange sends one request as it is written and returns what is answered.
func exchange(t *testing.T, c net.Conn, request string) (status int, location string) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode, res.Header.Get("Location")
}

func serveApp(t *testing.T, addr string, reached *atomic.Int32) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// hang serves gRPC on addr and answers nothing; it returns the count of calls.
func hang(t *testing.T, addr string) *atomic.Int32 {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	calls := new(atomic.Int32)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		calls.Add(1)
		<-stream.Context().Done()
		return stream.Context().Err()
	}))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return calls
}

// certificate writes tls.crt and tls.key into dir.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"app.example.com", "auth.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func address(t *testing.T, addr string) string {
	t.Helper()
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("{address: %s, port_value: %d}", host, n)
}
