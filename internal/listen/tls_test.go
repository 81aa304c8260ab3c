package listen_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"gatehouse/internal/certs"
	"gatehouse/internal/listen"
	"gatehouse/test/peers"
)

const within = time.Minute

// A lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A port is a listener with TLS on the loopback interface.
type port struct {
	name, addr string
	tls        *listen.TLS
	registry   *prometheus.Registry
	log        *lockedBuffer
}

func material(t *testing.T, pair tls.Certificate, ca *peers.CA, names ...string) *certs.Material {
	t.Helper()
	m := &certs.Material{Certificate: pair, MinVersion: tls.VersionTLS12}
	if ca != nil {
		m.ClientCAs = []*x509.Certificate{ca.Certificate}
		var err error
		if m.ClientNames, err = certs.NewNames(names); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func newPort(t *testing.T, name string, m *certs.Material, protocols ...string) (*port, *listen.Listener) {
	t.Helper()
	raw, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	all, r := metrics(t)
	p := &port{name: name, addr: raw.Addr().String(), registry: r, log: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.tls = listen.NewTLS(name, m, protocols, all, log)
	return p, listen.New(raw, listen.Options{Name: name, Max: 100, Metrics: all, Log: log, Traffic: name == "grpc"})
}

// issuer serves the protocol of each request.
func issuer(t *testing.T, m *certs.Material) *port {
	t.Helper()
	p, l := newPort(t, "https", m, "h2", "http/1.1")
	server := l.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }), 1000)
	server.TLSConfig = p.tls.Config()
	run(t, func() error { return server.Serve(p.tls.Listener(l)) }, func() { _ = server.Close() }, http.ErrServerClosed)
	return p
}

// checks serves gRPC's health service.
func checks(t *testing.T, m *certs.Material) *port {
	t.Helper()
	p, l := newPort(t, "grpc", m, "h2")
	server := grpc.NewServer(grpc.Creds(p.tls.Credentials()), grpc.ConnectionTimeout(within))
	healthv1.RegisterHealthServer(server, health.NewServer())
	run(t, func() error { return server.Serve(l) }, server.Stop, nil)
	return p
}

func run(t *testing.T, serve func() error, stop func(), want error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, want) {
			t.Errorf("the server ended with %v, want %v", err, want)
		}
	})
}

// failures returns how many connections were refused for a reason.
func (p *port) failures(t *testing.T, reason string) float64 {
	t.Helper()
	return value(t, p.registry, "gatehouse_tls_handshake_failures_total", "listener", p.name, "reason", reason)
}

// ask makes one request on a new connection: over HTTPS, or a health check over gRPC.
func (p *port) ask(t *testing.T, c *tls.Config) (proto string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if p.name == "grpc" {
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(c)))
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close() }()
		_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		return "h2", err
	}
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: len(c.NextProtos) == 0}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.addr+"/", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

const gateway = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway"

// Whom a listener lets in, over HTTPS and gRPC alike, by TLS 1.2 and 1.3.
func TestClients(t *testing.T) {
	serverCA, clientCA, stranger := peers.NewCA(t, "server"), peers.NewCA(t, "client"), peers.NewCA(t, "client")
	pair := serverCA.Pair(t, "127.0.0.1")
	expired := peers.Template(gateway)
	expired.NotAfter = time.Now().Add(-time.Minute)
	key := peers.NewKey(t)
	old, err := tls.X509KeyPair(clientCA.Sign(t, expired, key.Public()), peers.KeyPEM(t, key))
	if err != nil {
		t.Fatal(err)
	}
	serverOnly := peers.Template(gateway)
	serverOnly.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	noClient, err := tls.X509KeyPair(clientCA.Sign(t, serverOnly, key.Public()), peers.KeyPEM(t, key))
	if err != nil {
		t.Fatal(err)
	}
	named := material(t, pair, clientCA, gateway, "*.gateways.example.com")
	newest := material(t, pair, nil)
	newest.MinVersion = tls.VersionTLS13
	for _, tt := range []struct {
		name     string
		material *certs.Material
		client   []tls.Certificate
		max      uint16
		reason   string // "" for a client that is let in
	}{
		{"anybody", material(t, pair, nil), nil, 0, ""},
		{"anybody, with a certificate that nobody asks for", material(t, pair, nil), []tls.Certificate{stranger.Pair(t, gateway)}, 0, ""},
		{"TLS 1.2", material(t, pair, nil), nil, tls.VersionTLS12, ""},
		{"TLS 1.1", material(t, pair, nil), nil, tls.VersionTLS11, "version"},
		{"TLS 1.2 below a minimum of 1.3", newest, nil, tls.VersionTLS12, "version"},
		{"right name", named, []tls.Certificate{clientCA.Pair(t, "x", gateway)}, 0, ""},
		{"right name by TLS 1.2", named, []tls.Certificate{clientCA.Pair(t, "x", gateway)}, tls.VersionTLS12, ""},
		{"name below", named, []tls.Certificate{clientCA.Pair(t, "eu.gateways.example.com")}, 0, ""},
		{"another name", named, []tls.Certificate{clientCA.Pair(t, "x", gateway+"2")}, 0, "name"},
		{"another name by TLS 1.2", named, []tls.Certificate{clientCA.Pair(t, "x", gateway+"2")}, tls.VersionTLS12, "name"},
		{"any name where none is listed", material(t, pair, clientCA), []tls.Certificate{clientCA.Pair(t, "x")}, 0, ""},
		{"another CA of the same name", material(t, pair, clientCA), []tls.Certificate{stranger.Pair(t, gateway)}, 0, "certificate"},
		{"right name by another CA", named, []tls.Certificate{stranger.Pair(t, gateway)}, 0, "certificate"},
		{"expired", named, []tls.Certificate{old}, 0, "certificate"},
		{"certificate for servers", named, []tls.Certificate{noClient}, 0, "certificate"},
		{"no certificate", named, nil, 0, "no-certificate"},
		{"no certificate by TLS 1.2", named, nil, tls.VersionTLS12, "no-certificate"},
	} {
		for name, serve := range map[string]func(*testing.T, *certs.Material) *port{"https": issuer, "grpc": checks} {
			t.Run(tt.name+" over "+name, func(t *testing.T) {
				p := serve(t, tt.material)
				c := &tls.Config{RootCAs: serverCA.Pool(), MaxVersion: tt.max, MinVersion: tls.VersionTLS10}
				if len(tt.client) > 0 {
					c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tt.client[0], nil } // whatever CA is asked for
				}
				_, err := p.ask(t, c)
				if tt.reason == "" {
					if err != nil {
						t.Errorf("got %v, want to be let in\n%s", err, p.log)
					}
					return
				}
				if err == nil {
					t.Fatal("was let in")
				}
				peers.Eventually(t, within, "the failure is counted as "+tt.reason, func() bool { return p.failures(t, tt.reason) >= 1 })
				if !strings.Contains(p.log.String(), "reason="+tt.reason) {
					t.Errorf("the log does not say %s:\n%s", tt.reason, p.log)
				}
			})
		}
	}
}

func TestProtocols(t *testing.T) {
	ca := peers.NewCA(t, "server")
	p := issuer(t, material(t, ca.Pair(t, "127.0.0.1"), nil))
	for want, protos := range map[string][]string{"HTTP/2.0": nil, "HTTP/1.1": {"http/1.1"}} {
		if got, err := p.ask(t, &tls.Config{RootCAs: ca.Pool(), NextProtos: protos}); err != nil || got != want {
			t.Errorf("got %q, %v, want %s", got, err, want)
		}
	}
	g := checks(t, material(t, ca.Pair(t, "127.0.0.1"), nil))
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{"h2"}}}).DialContext(t.Context(), "tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Errorf("got protocol %q for gRPC, want h2", got)
	}
	_ = conn.Close()
	// A client of HTTP/1.1 alone gets through the handshake (crypto/tls), and no further.
	if conn, err = (&tls.Dialer{Config: &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{"http/1.1"}}}).DialContext(t.Context(), "tcp", g.addr); err == nil {
		if b, err := io.ReadAll(conn); len(b) != 0 {
			t.Errorf("got %q, %v for a client of HTTP/1.1, want to be cut off", b, err)
		}
		_ = conn.Close()
	}
	peers.Eventually(t, within, "the failure is counted", func() bool { return g.failures(t, "protocol") == 1 })
}

// Plain text on a port with TLS is refused, and told apart from other failures.
func TestPlainTextOnTLS(t *testing.T) {
	ca := peers.NewCA(t, "server")
	p := issuer(t, material(t, ca.Pair(t, "127.0.0.1"), nil))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addr+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "https") {
		t.Errorf("got %d %q, want 400 and a word about https", resp.StatusCode, b)
	}
	g := checks(t, material(t, ca.Pair(t, "127.0.0.1"), nil))
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}); err == nil {
		t.Error("a plain-text client was answered")
	}
	for _, p := range []*port{p, g} {
		peers.Eventually(t, within, "the failure is counted", func() bool { return p.failures(t, "plain-text-on-tls") >= 1 })
		if !strings.Contains(p.log.String(), "let the client speak TLS") {
			t.Errorf("%s: the log has no advice:\n%s", p.name, p.log)
		}
	}
}

// What keeps a gateway out is told at the default level, once a minute for each reason; what strangers do at the issuer's port
// is not.
func TestGatewayFailuresAreTold(t *testing.T) {
	serverCA, clientCA := peers.NewCA(t, "server"), peers.NewCA(t, "client")
	for name, serve := range map[string]func(*testing.T, *certs.Material) *port{"https": issuer, "grpc": checks} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, material(t, serverCA.Pair(t, "127.0.0.1"), clientCA, gateway))
			for range 3 {
				for _, c := range [][]tls.Certificate{nil, {clientCA.Pair(t, "x", gateway+"2")}} {
					if _, err := p.ask(t, &tls.Config{RootCAs: serverCA.Pool(), Certificates: c}); err == nil {
						t.Error("was let in")
					}
				}
			}
			for _, reason := range []string{"no-certificate", "name"} {
				peers.Eventually(t, within, "three failures", func() bool { return p.failures(t, reason) >= 3 })
				got, want := 0, 0
				for line := range strings.Lines(p.log.String()) {
					if strings.Contains(line, "level=WARN") && strings.Contains(line, "reason="+reason+" ") && strings.Contains(line, "fix=") {
						got++
					}
				}
				if name == "grpc" {
					want = 1
				}
				if got != want {
					t.Errorf("got %d warnings of %s with a fix, want %d:\n%s", got, reason, want, p.log)
				}
			}
		})
	}
}

// Every series of a listener is there before the first event, or increase() would not see that.
func TestSeriesAtTheStart(t *testing.T) {
	m, r := metrics(t)
	log := slog.New(slog.DiscardHandler)
	listen.New(newPipes(), listen.Options{Name: "plain", Max: 1, Plain: true, Metrics: m, Log: log})
	ca := peers.NewCA(t, "ca")
	s := listen.NewTLS("tls", material(t, ca.Pair(t, "a"), ca, "a"), nil, m, log)
	if got, want := value(t, r, "gatehouse_tls_client_ca_expiry_timestamp_seconds", "listener", "tls"), float64(ca.Certificate.NotAfter.Unix()); got != want {
		t.Errorf("the CA expires at %v in the metric, want %v", got, want)
	}
	series := map[string]int{}
	count := func() {
		clear(series)
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			series[f.GetName()] = len(f.GetMetric())
		}
	}
	count()
	for name, want := range map[string]int{
		"gatehouse_connections": 1, "gatehouse_connections_evicted_total": 1, "gatehouse_tls_handshake_failures_total": 11, "gatehouse_tls_client_ca_expiry_timestamp_seconds": 1,
	} {
		if series[name] != want {
			t.Errorf("%s has %d series, want %d", name, series[name], want)
		}
	}
	s.Set(material(t, ca.Pair(t, "a"), nil))
	count()
	if n := series["gatehouse_tls_client_ca_expiry_timestamp_seconds"]; n != 0 {
		t.Errorf("without a CA for clients there are %d series of its expiry, want none", n)
	}
}

// What is set counts for the next handshake; connections that are there go on.
func TestSet(t *testing.T) {
	oldCA, newCA, clientA, clientB := peers.NewCA(t, "old"), peers.NewCA(t, "new"), peers.NewCA(t, "a"), peers.NewCA(t, "b")
	for name, serve := range map[string]func(*testing.T, *certs.Material) *port{"https": issuer, "grpc": checks} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, material(t, oldCA.Pair(t, "127.0.0.1"), nil))
			kept, err := (&tls.Dialer{Config: &tls.Config{RootCAs: oldCA.Pool(), NextProtos: []string{"h2", "http/1.1"}}}).DialContext(t.Context(), "tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = kept.Close() }()
			frames := http2.NewFramer(kept, kept)
			if _, err := io.WriteString(kept, http2.ClientPreface); err != nil { // a server waits 10 s for it
				t.Fatal(err)
			}
			if err := frames.WriteSettings(); err != nil {
				t.Fatal(err)
			}
			before := value(t, p.registry, "gatehouse_tls_certificate_expiry_timestamp_seconds", "listener", name)

			template, key := peers.Template("127.0.0.1"), peers.NewKey(t)
			template.NotAfter = template.NotAfter.Add(time.Hour)
			pair, err := tls.X509KeyPair(newCA.Sign(t, template, key.Public()), peers.KeyPEM(t, key))
			if err != nil {
				t.Fatal(err)
			}
			pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			p.tls.Set(material(t, pair, nil))
			if _, err := p.ask(t, &tls.Config{RootCAs: newCA.Pool()}); err != nil {
				t.Errorf("the new certificate: %v", err)
			}
			if _, err := p.ask(t, &tls.Config{RootCAs: oldCA.Pool()}); err == nil {
				t.Error("the old certificate is still served")
			}
			if got := value(t, p.registry, "gatehouse_tls_certificate_expiry_timestamp_seconds", "listener", name); got-before < 3590 || got-before > 3610 {
				t.Errorf("the certificate expires %v s later in the metric, want an hour", got-before)
			}
			p.tls.Set(material(t, pair, clientA, gateway))
			steps := []struct {
				what   string
				client tls.Certificate
				ok     bool
			}{{"of the CA that is gone", clientB.Pair(t, gateway), false}, {"of the CA", clientA.Pair(t, gateway), true}}
			for _, s := range steps {
				if _, err := p.ask(t, &tls.Config{RootCAs: newCA.Pool(), Certificates: []tls.Certificate{s.client}}); (err == nil) != s.ok {
					t.Errorf("client %s: got %v, want let in %t", s.what, err, s.ok)
				}
			}
			// The first connection has seen three generations go by, and answers.
			if err := kept.SetDeadline(time.Now().Add(within)); err != nil {
				t.Fatal(err)
			}
			if err := frames.WritePing(false, [8]byte{1}); err != nil {
				t.Fatal(err)
			}
			for answered := false; !answered; {
				frame, err := frames.ReadFrame()
				if err != nil {
					t.Fatalf("a connection that was there has ended: %v", err)
				}
				answered = frame.Header().Type == http2.FramePing && frame.Header().Flags.Has(http2.FlagPingAck)
			}
		})
	}
}

// A session ticket does not get a client past a CA or a name that is not good any more.
func TestTicketsDoNotOutlive(t *testing.T) {
	serverCA, clientA, clientB := peers.NewCA(t, "server"), peers.NewCA(t, "a"), peers.NewCA(t, "b")
	pair := serverCA.Pair(t, "127.0.0.1")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for what, next := range map[string]*certs.Material{
			"another CA": material(t, pair, clientB), "another name": material(t, pair, clientA, "other.example.com"), "a CA for the first time": material(t, pair, clientB),
		} {
			t.Run(what+" by "+tls.VersionName(version), func(t *testing.T) {
				first := material(t, pair, clientA)
				if what == "a CA for the first time" {
					first = material(t, pair, nil)
				}
				p := issuer(t, first)
				c := &tls.Config{
					RootCAs: serverCA.Pool(), MaxVersion: version, Certificates: []tls.Certificate{clientA.Pair(t, gateway)},
					ClientSessionCache: tls.NewLRUClientSessionCache(8), NextProtos: []string{"http/1.1"},
				}
				for range 2 {
					if _, err := p.ask(t, c); err != nil {
						t.Fatal(err)
					}
				}
				p.tls.Set(next)
				if _, err := p.ask(t, c); err == nil {
					t.Error("was let in")
				}
			})
		}
	}
}
