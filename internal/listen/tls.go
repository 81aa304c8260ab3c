package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
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
	connections, expiry *prometheus.GaugeVec
	evicted, failures   *prometheus.CounterVec
}

// NewMetrics returns metrics that are registered.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	byListener := []string{"listener"}
	m := &Metrics{
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gatehouse_connections", Help: "Open connections."}, byListener),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_connections_evicted_total", Help: "Connections that were closed to make room for others.",
		}, byListener),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gatehouse_tls_certificate_expiry_timestamp_seconds", Help: "When the server's certificate expires, in seconds since 1970.",
		}, byListener),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_tls_handshake_failures_total", Help: "Connections that ended before they could be used, by reason.",
		}, []string{"listener", "reason"}),
	}
	for _, c := range []prometheus.Collector{m.connections, m.evicted, m.expiry, m.failures} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// failed counts a connection that could not be used. What strangers do is not worth more than a line at debug.
func (m *Metrics) failed(listener string, log *slog.Logger, from net.Addr, err error) {
	why := reason(err)
	log.Debug("connection refused", "for", listener, "reason", why, "from", from.String(), "error", err, "fix", fix(why))
	m.failures.WithLabelValues(listener, why).Inc()
}

// reason is the label of a failed handshake: one of a few. Errors that crypto/tls does not export are told by their text,
// to which a test holds it.
func reason(err error) string {
	var notTLS tls.RecordHeaderError
	var name *certs.NameError
	var chain *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.Is(err, errTLS):
		return "tls-on-plain-text"
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

// fix is what an operator may do, "" where there is nothing to say.
func fix(reason string) string {
	return map[string]string{
		"tls-on-plain-text": "give the listener a certificate, or let the client speak plain text",
		"plain-text-on-tls": "let the client speak TLS (Envoy: transport_socket of the cluster)",
		"name":              "list one of these names, or give the client another certificate",
		"certificate":       "the client needs a certificate of the CA that is configured",
		"no-certificate":    "the client needs a certificate of the CA that is configured",
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
	t.Set(m)
	return t
}

// Set makes m what new connections meet.
func (t *TLS) Set(m *certs.Material) {
	t.current.Store(m.Config(t.protocols...))
	t.metrics.expiry.WithLabelValues(t.name).Set(float64(m.Certificate.Leaf.NotAfter.Unix()))
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
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.tls.metrics.failed(c.tls.name, c.tls.log, raw.RemoteAddr(), err)
	}
	return conn, info, err
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
		l.tls.metrics.failed(l.tls.name, l.tls.log, raw.RemoteAddr(), err)
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
