package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"gatehouse/internal/certs"
)

// Metrics are those of all listeners.
type Metrics struct {
	connections, expiry, caExpiry *prometheus.GaugeVec
	evicted, failures             *prometheus.CounterVec
	warned                        seldom
}

// warnEvery is how often the log says one and the same about a listener at most.
const warnEvery = time.Minute

// A seldom keeps the log from being filled by strangers.
type seldom struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// due reports whether there has been no key for warnEvery. Keys are few, none is made of what a stranger sends.
func (s *seldom) due(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if last, ok := s.last[key]; ok && now.Sub(last) < warnEvery {
		return false
	}
	s.last[key] = now
	return true
}

// NewMetrics returns metrics that are registered.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	byListener := []string{"listener"}
	m := &Metrics{
		warned: seldom{last: map[string]time.Time{}},
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gatehouse_connections", Help: "Connections that clients have open to a listener now, with those that have not sent anything yet.",
		}, byListener),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_connections_evicted_total", Help: "Connections that were closed to make room for others.",
		}, byListener),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gatehouse_tls_certificate_expiry_timestamp_seconds", Help: "When the server's certificate expires, in seconds since 1970.",
		}, byListener),
		caExpiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gatehouse_tls_client_ca_expiry_timestamp_seconds", Help: "When the first of the CAs for clients' certificates expires, in seconds since 1970.",
		}, byListener),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_tls_handshake_failures_total", Help: "Connections that ended before they could be used, by reason.",
		}, []string{"listener", "reason"}),
	}
	for _, c := range []prometheus.Collector{m.connections, m.evicted, m.expiry, m.caExpiry, m.failures} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// begin makes the series of a listener, so that the first event is an increase.
func (m *Metrics) begin(o Options) {
	m.connections.WithLabelValues(o.Name)
	m.evicted.WithLabelValues(o.Name)
	if o.Plain {
		m.failures.WithLabelValues(o.Name, tlsOnPlainText)
	}
}

// A failure is a connection that could not be used.
type failure struct {
	listener string
	from     net.Addr
	err      error
	gateway  bool // it is to a listener for gateways: without it every request is refused
}

// failed counts f. What strangers do to the issuer's port is not worth more than a line at debug; a gateway that cannot
// connect is.
func (m *Metrics) failed(f failure, log *slog.Logger) {
	why := reason(f.err)
	level := slog.LevelDebug
	if f.gateway && !slices.Contains(ofStrangers(), why) && m.warned.due(f.listener+" "+why) {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, "connection refused", "for", f.listener, "reason", why, "from", f.from.String(), "error", f.err, "fix", fix(why))
	m.failures.WithLabelValues(f.listener, why).Inc()
}

const tlsOnPlainText = "tls-on-plain-text"

// reason is the label of a failed handshake: one of a few. Errors that crypto/tls does not export are told by their text,
// to which a test holds it.
func reason(err error) string {
	var notTLS tls.RecordHeaderError
	var name *certs.NameError
	var chain *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.Is(err, errTLS):
		return tlsOnPlainText
	case errors.As(err, &notTLS):
		return "plain-text-on-tls"
	case errors.As(err, &name):
		return "name"
	case errors.As(err, &chain):
		return "certificate"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &op) && op.Op == "remote error":
		return "client-refused"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "closed"
	}
	for text, why := range map[string]string{
		"didn't provide a certificate": "no-certificate", "unsupported versions": "version", "application protocol": "protocol", "ALPN": "protocol",
	} {
		if strings.Contains(err.Error(), text) {
			return why
		}
	}
	return "other"
}

// ofStrangers are the reasons of port scans and of load balancers that look whether a port is open.
func ofStrangers() []string { return []string{"timeout", "closed", "other"} }

// tlsReasons are what reason returns for a listener with TLS.
func tlsReasons() []string {
	return append(ofStrangers(), "plain-text-on-tls", "name", "certificate", "no-certificate", "client-refused", "version", "protocol")
}

// fix is what an operator may do, "" where there is nothing to say.
func fix(reason string) string {
	return map[string]string{
		tlsOnPlainText:      "give the listener a certificate, or let the client speak plain text",
		"plain-text-on-tls": "let the client speak TLS (Envoy: transport_socket of the cluster)",
		"name":              "list one of these names, or give the client another certificate",
		"certificate":       "the client needs a certificate of the CA that is configured",
		"no-certificate":    "the client needs a certificate of the CA that is configured",
		"version":           "let the client speak TLS 1.2 or later, and no less than the configured minimum",
		"protocol":          "let the client offer by ALPN what this port speaks (gRPC: h2)",
		"client-refused":    "the client does not accept our certificate: look at its CA and at the name that it expects",
	}[reason]
}

// A TLS is the side of a listener that shakes hands. Its certificate, client CA and names can be changed at any time, for
// the handshakes that follow; connections that are there go on.
type TLS struct {
	name      string
	protocols []string
	metrics   *Metrics
	log       *slog.Logger
	current   atomic.Pointer[tls.Config]
}

// NewTLS returns a TLS for the listener called name that offers protocols by ALPN.
func NewTLS(name string, m *certs.Material, protocols []string, metrics *Metrics, log *slog.Logger) *TLS {
	t := &TLS{name: name, protocols: protocols, metrics: metrics, log: log}
	for _, why := range tlsReasons() {
		metrics.failures.WithLabelValues(name, why)
	}
	t.Set(m)
	return t
}

// Set makes m what new connections meet.
func (t *TLS) Set(m *certs.Material) {
	t.current.Store(m.Config(t.protocols...))
	t.metrics.expiry.WithLabelValues(t.name).Set(float64(m.Certificate.Leaf.NotAfter.Unix()))
	if len(m.ClientCAs) == 0 {
		t.metrics.caExpiry.DeleteLabelValues(t.name)
		return
	}
	first := slices.MinFunc(m.ClientCAs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	t.metrics.caExpiry.WithLabelValues(t.name).Set(float64(first.NotAfter.Unix()))
}

// Config is for a server that lives longer than what is set.
func (t *TLS) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: t.protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current.Load(), nil },
	}
}

// Credentials are for a gRPC server, which limits the time of a handshake itself.
func (t *TLS) Credentials() credentials.TransportCredentials {
	return serverCredentials{credentials.NewTLS(t.Config()), t}
}

type serverCredentials struct {
	credentials.TransportCredentials
	tls *TLS
}

// ServerHandshake implements credentials.TransportCredentials.
func (c serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.tls.metrics.failed(failure{c.tls.name, raw.RemoteAddr(), err, true}, c.tls.log)
	} else if known, ok := raw.(*conn); ok {
		known.used()
	}
	return secured, info, err
}

// Clone implements credentials.TransportCredentials.
func (c serverCredentials) Clone() credentials.TransportCredentials {
	return serverCredentials{c.TransportCredentials.Clone(), c.tls}
}

// Listener returns l with TLS for an HTTP server: its connections have their handshake behind them.
func (t *TLS) Listener(l net.Listener) net.Listener {
	return &tlsListener{Listener: l, tls: t, config: t.Config(), accepted: make(chan accepted), closed: make(chan struct{})}
}

type accepted struct {
	conn net.Conn
	err  error
}

type tlsListener struct {
	net.Listener
	tls      *TLS
	config   *tls.Config
	accepted chan accepted
	closed   chan struct{}
	begin    sync.Once
	end      sync.Once
}

// Accept implements net.Listener.
func (l *tlsListener) Accept() (net.Conn, error) {
	l.begin.Do(func() { go l.run() })
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *tlsListener) Close() error {
	l.end.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *tlsListener) run() {
	for {
		c, err := l.Listener.Accept()
		if err == nil {
			go l.handshake(c)
			continue
		}
		if !l.hand(accepted{nil, err}) || errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// hand gives a to Accept, unless nobody will ask any more.
func (l *tlsListener) hand(a accepted) bool {
	select {
	case l.accepted <- a:
		return true
	case <-l.closed:
		return false
	}
}

func (l *tlsListener) handshake(raw net.Conn) {
	c := tls.Server(raw, l.config)
	err := raw.SetDeadline(time.Now().Add(headerTimeout))
	if err == nil {
		err = c.HandshakeContext(context.Background()) // ends by the deadline
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err != nil {
		l.tls.metrics.failed(failure{l.tls.name, raw.RemoteAddr(), err, false}, l.tls.log)
		explain(raw, err)
		_ = raw.Close()
		return
	}
	if !l.hand(accepted{c, nil}) {
		_ = raw.Close()
	}
}

// explain answers an HTTP client that does not speak TLS.
func explain(raw net.Conn, err error) {
	var notTLS tls.RecordHeaderError
	if !errors.As(err, &notTLS) {
		return
	}
	switch string(notTLS.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		_, _ = io.WriteString(raw, "HTTP/1.0 400 Bad Request\r\n\r\nThis port speaks https.\n") // it may be gone
	}
}
