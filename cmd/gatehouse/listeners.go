package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"gatehouse/internal/admin"
	"gatehouse/internal/config"
	"gatehouse/internal/listen"
)

// A listener is an open port with what is served on it.
type listener struct {
	name  string
	net   net.Listener
	serve func(net.Listener) error
	stop  func(context.Context) error
}

// Connections at once. An Envoy keeps one for each of its threads to the gRPC port, and as many to the issuer as there
// are requests at once (Envoy: at most 1024 for a cluster). All of them together fit into 256 MiB. The other two
// listeners are for programs of the operator's.
const (
	maxCheckConnections     = 2048
	maxIssuerConnections    = 2048
	maxTelemetryConnections = 64
	maxAdminConnections     = 32
)

// Bytes of a request's body. The issuer has limits of its own for each route; no other listener reads one.
const (
	maxIssuerBody = 1 << 20
	maxOtherBody  = 4 << 10
)

// prepareTLS makes what handshakes need, from files that the configuration has read.
func (s *service) prepareTLS() (err error) {
	if s.portMetrics, err = listen.NewMetrics(s.registry); err != nil {
		return err
	}
	if m := s.cfg.Web.TLS; m != nil {
		s.webTLS = listen.NewTLS("web.https", m, []string{"h2", "http/1.1"}, s.portMetrics, s.log)
	}
	if g := s.cfg.Gateway; g != nil && g.TLS != nil {
		s.grpcTLS = listen.NewTLS("gateway.grpc", g.TLS.Material, []string{"h2"}, s.portMetrics, s.log)
	}
	return nil
}

// applyTLS makes the certificates, client CAs and names of cfg those of the handshakes that follow; connections that are
// there go on. cfg has TLS where the running configuration has it (config.NeedRestart).
func (s *service) applyTLS(cfg *config.Config) {
	if s.webTLS != nil {
		s.webTLS.Set(cfg.Web.TLS)
	}
	if s.grpcTLS != nil {
		s.grpcTLS.Set(cfg.Gateway.TLS.Material)
	}
}

// grpcOptions are those of the gRPC server that depend on the configuration.
func (s *service) grpcOptions() []grpc.ServerOption {
	if s.grpcTLS == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.Creds(s.grpcTLS.Credentials())}
}

// limited returns l with limits.
func (s *service) limited(l net.Listener, name string) *listen.Listener {
	o := listen.Options{Name: name, Plain: true, Metrics: s.portMetrics, Log: s.log}
	switch name {
	case "gateway.grpc":
		o.Max, o.Plain, o.Traffic = maxCheckConnections, s.grpcTLS == nil, true
	case "web.http":
		o.Max = maxIssuerConnections
	case "web.https":
		o.Max, o.Plain = maxIssuerConnections, false
	case "telemetry.http":
		o.Max = maxTelemetryConnections
	default:
		o.Max = maxAdminConnections
	}
	o.Max = s.fitted(o.Max)
	return listen.New(l, o)
}

func closeAll(all []listener) {
	for _, l := range all {
		_ = l.net.Close()
	}
}

// listeners opens every port.
func (s *service) listeners(ctx context.Context) (all []listener, err error) {
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	open := func(name, network, address string) (*listen.Listener, error) {
		if network == "unix" {
			if err := removeDeadSocket(ctx, address); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		l, err := new(net.ListenConfig).Listen(ctx, network, address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w%s", name, err, bindFix(err))
		}
		return s.limited(l, name), nil
	}
	for _, h := range s.httpListeners() {
		l, err := open(h.name, h.network, h.address)
		if err != nil {
			return all, err
		}
		server := l.Server(h.handler, h.maxBody)
		var accept net.Listener = l
		if h.tls != nil {
			accept, server.TLSConfig = h.tls.Listener(l), h.tls.Config()
		}
		all = append(all, listener{h.name, accept, server.Serve, server.Shutdown})
	}
	if s.cfg.Gateway == nil {
		return all, nil
	}
	l, err := open("gateway.grpc", "tcp", s.cfg.Gateway.GRPC)
	if err != nil {
		return all, err
	}
	return append(all, listener{"gateway.grpc", l, s.grpc.Serve, s.stopGRPC}), nil
}

// socketTimeout is how long a unix socket may take to let somebody in before it counts as alive.
const socketTimeout = 2 * time.Second

// removeDeadSocket removes the unix socket that a killed process has left behind. It fails where one is alive, or where
// that cannot be told. What is no socket stays: it is in the way of listening, which says so.
func removeDeadSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return nil //nolint:nilerr // nothing to remove
	}
	c, err := (&net.Dialer{Timeout: socketTimeout}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("%s: another program answers there (another gatehouse?): stop that, or choose another path", path)
	case errors.Is(err, syscall.ECONNREFUSED): // nobody has it open
		return os.Remove(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("%s: cannot tell whether another program has it: stop that and remove the file, or choose another path: %w", path, err)
}

// An httpListener is what is served over HTTP, and where.
type httpListener struct {
	name, network, address string
	handler                http.Handler
	maxBody                int64
	tls                    *listen.TLS // nil: plain text
}

func (s *service) httpListeners() (all []httpListener) {
	if a := s.cfg.Web.HTTP; a != "" {
		all = append(all, httpListener{"web.http", "tcp", a, s.provider.Handler(), maxIssuerBody, nil})
	}
	if a := s.cfg.Web.HTTPS; a != "" {
		all = append(all, httpListener{"web.https", "tcp", a, s.provider.Handler(), maxIssuerBody, s.webTLS})
	}
	if a := s.cfg.Telemetry.HTTP; a != "" {
		all = append(all, httpListener{"telemetry.http", "tcp", a, s.telemetry(), maxOtherBody, nil})
	}
	if g := s.cfg.Gateway; g != nil {
		network, address := g.AdminListener()
		h := admin.Handler(admin.Options{
			Sessions: operatorSessions{s.provider}, Users: operatorUsers{s.provider}, Keys: operatorKeys{s.provider}, Version: version(), Log: s.log,
		})
		all = append(all, httpListener{"gateway.admin", network, address, h, maxOtherBody, nil})
	}
	return all
}

// bindFix is what to do about a port that cannot be opened.
func bindFix(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ": another program has it (another gatehouse?): stop that, or choose another address"
	case errors.Is(err, os.ErrPermission):
		return ": ports below 1024 need a privilege: choose another, or grant CAP_NET_BIND_SERVICE"
	case errors.Is(err, os.ErrNotExist):
		return ": the directory of the socket does not exist"
	}
	return ""
}

// stopGRPC waits for the checks under way, at most until ctx ends.
func (s *service) stopGRPC(ctx context.Context) error {
	done := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.grpc.Stop()
		return fmt.Errorf("ext_authz: %w", ctx.Err())
	}
}
