package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"

	"google.golang.org/grpc"

	"gatehouse/internal/admin"
	"gatehouse/internal/certs"
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
	if s.ports, err = listen.NewMetrics(s.registry); err != nil {
		return err
	}
	if m := s.cfg.Web.TLS; m != nil {
		s.webTLS = listen.NewTLS("web.https", m, []string{"h2", "http/1.1"}, s.ports, s.log)
	}
	if g := s.cfg.Gateway; g != nil && g.TLS != nil {
		s.grpcTLS = listen.NewTLS("gateway.grpc", g.TLS.Material, []string{"h2"}, s.ports, s.log)
	}
	return nil
}

// applyTLS makes the certificates, client CAs and names of cfg those of the handshakes that follow; connections that are
// there go on. Whether a listener speaks TLS at all is not changed while it is open.
func (s *service) applyTLS(cfg *config.Config) {
	var grpcMaterial *certs.Material
	if g := cfg.Gateway; g != nil && g.TLS != nil {
		grpcMaterial = g.TLS.Material
	}
	for _, l := range []struct {
		key      string
		tls      *listen.TLS
		material *certs.Material
	}{{"web.https", s.webTLS, cfg.Web.TLS}, {"gateway.tls", s.grpcTLS, grpcMaterial}} {
		switch {
		case l.tls != nil && l.material != nil:
			l.tls.Set(l.material)
		case l.tls != nil || l.material != nil:
			s.log.Warn("TLS is not turned on or off while a listener is open: restart for it", "key", l.key)
		}
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
	o := listen.Options{Name: name, Plain: true, Metrics: s.ports, Log: s.log}
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

// listeners opens every port.
func (s *service) listeners(ctx context.Context) (all []listener, err error) {
	defer func() {
		if err != nil {
			for _, o := range all {
				_ = o.net.Close()
			}
		}
	}()
	open := func(name, network, address string) (*listen.Listener, error) {
		if network == "unix" {
			_ = os.Remove(address) // left behind by a killed process; a live one is told by its lock on the store
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
		h := admin.Handler(admin.Options{Sessions: operatorSessions{s.provider}, Version: version(), Log: s.log})
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
