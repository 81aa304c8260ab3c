package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"gatehouse/internal/config"
	"gatehouse/internal/listen"
	"gatehouse/test/peers"
)

// A tlsFolder holds the files of a configuration with TLS on both listeners.
type tlsFolder struct {
	dir            string
	server, client *peers.CA
}

// read makes new files and reads a configuration that names them; more is what the gateway block has besides.
func (f *tlsFolder) read(t *testing.T, more string) *config.Config {
	t.Helper()
	certificate, key := f.server.Issue(t, "auth.example.com", "127.0.0.1")
	for name, data := range map[string][]byte{"tls.crt": certificate, "tls.key": key, "clients.crt": f.client.PEM} {
		if err := os.WriteFile(filepath.Join(f.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := fmt.Sprintf(`
issuer: https://auth.example.com/dex
storage: {type: memory}
enablePasswordDB: true
web: {https: "127.0.0.1:0", tlsCert: %[1]s/tls.crt, tlsKey: %[1]s/tls.key, tlsClientCA: %[1]s/clients.crt}
gateway:
  hosts: [app.example.com]
`, f.dir)
	cfg, _, err := config.Parse("gatehouse.yaml", []byte(file+strings.ReplaceAll(more, "DIR", f.dir)), config.OS())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// shake makes one handshake with a listener, to its end.
func shake(t *testing.T, of *listen.TLS, server *peers.CA, client tls.Certificate) error {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ended := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		ended <- tls.Server(raw, of.Config()).HandshakeContext(t.Context())
		_ = raw.Close()
	}()
	c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: server.Pool(), Certificates: []tls.Certificate{client}}}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err == nil {
		_ = c.Close()
	}
	return errors.Join(err, <-ended)
}

// applyTLS gives both listeners what a new configuration has.
func TestApplyTLS(t *testing.T) {
	const withNames = "  tls: {cert: DIR/tls.crt, key: DIR/tls.key, clientCA: DIR/clients.crt, clientNames: [gateway.example.com]}\n"
	f := &tlsFolder{dir: peers.Folder(t), server: peers.NewCA(t, "old"), client: peers.NewCA(t, "clients")}
	s := &service{cfg: f.read(t, withNames), log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
	if err := s.prepareTLS(); err != nil {
		t.Fatal(err)
	}
	oldServer, oldClient := f.server, f.client.Pair(t, "gateway.example.com")
	both := map[string]*listen.TLS{"web": s.webTLS, "grpc": s.grpcTLS}
	for name, l := range both {
		if err := shake(t, l, oldServer, oldClient); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	f.server, f.client = peers.NewCA(t, "new"), peers.NewCA(t, "new clients")
	next := f.read(t, strings.Replace(withNames, "gateway.", "other.", 1))
	for name, l := range both { // files alone change nothing
		if err := shake(t, l, oldServer, oldClient); err != nil {
			t.Errorf("%s, before it is applied: %v", name, err)
		}
	}
	s.applyTLS(next)
	for name, l := range both {
		if err := shake(t, l, f.server, f.client.Pair(t, "other.example.com")); err != nil {
			t.Errorf("%s, the new certificate, CA and name: %v", name, err)
		}
		if err := shake(t, l, oldServer, f.client.Pair(t, "other.example.com")); err == nil {
			t.Errorf("%s: the old certificate is still served", name)
		}
		if err := shake(t, l, f.server, oldClient); err == nil {
			t.Errorf("%s: a client of the CA that is gone is still let in", name)
		}
	}
	if err := shake(t, s.grpcTLS, f.server, f.client.Pair(t, "gateway.example.com")); err == nil {
		t.Error("grpc: a name that is not allowed any more is still let in")
	}
}

// A gateway that has shaken hands keeps its place on the port of the checks, however many strangers connect and say nothing.
func TestStrangersAtChecks(t *testing.T) {
	f := &tlsFolder{dir: peers.Folder(t), server: peers.NewCA(t, "server"), client: peers.NewCA(t, "clients")}
	s := &service{cfg: f.read(t, "  tls: {cert: DIR/tls.crt, key: DIR/tls.key}\n"), log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
	if err := s.prepareTLS(); err != nil {
		t.Fatal(err)
	}
	raw, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(s.grpcOptions()...)
	ended := make(chan error, 1)
	l := s.limited(raw, "gateway.grpc")
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	gateway, err := (&tls.Dialer{Config: &tls.Config{RootCAs: f.server.Pool(), NextProtos: []string{"h2"}}}).DialContext(t.Context(), "tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gateway.Close() }()
	frames := http2.NewFramer(gateway, gateway)
	if _, err := io.WriteString(gateway, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := frames.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	awaitPong(t, frames)
	var first net.Conn
	for range s.fitted(maxCheckConnections) + 1 {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if first == nil {
			first = c
		}
	}
	if err := first.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, first); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the first stranger was not pushed out")
	}
	awaitPong(t, frames)
}

// awaitPong sends a ping and reads until its answer.
func awaitPong(t *testing.T, frames *http2.Framer) {
	t.Helper()
	if err := frames.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := frames.ReadFrame()
		if err != nil {
			t.Fatalf("the gateway was pushed out: %v", err)
		}
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() {
			return
		}
	}
}
