package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"gatehouse/internal/admin"
)

// A listener is an open port with what is served on it.
type listener struct {
	name  string
	net   net.Listener
	serve func(net.Listener) error
	stop  func(context.Context) error
}

func (s *service) listeners(ctx context.Context) ([]listener, error) {
	var all []listener
	open := func(name, network, address string, serve func(net.Listener) error, stop func(context.Context) error) error {
		if network == "unix" {
			_ = os.Remove(address) // left behind by a killed process; a live one is told by its lock on the store
		}
		l, err := new(net.ListenConfig).Listen(ctx, network, address)
		if err != nil {
			for _, o := range all {
				_ = o.net.Close()
			}
			return fmt.Errorf("%s: %w%s", name, err, bindFix(err))
		}
		all = append(all, listener{name, l, serve, stop})
		return nil
	}
	if a := s.cfg.Web.HTTP; a != "" {
		h := s.httpServer(s.provider.Handler())
		if err := open("web.http", "tcp", a, h.Serve, h.Shutdown); err != nil {
			return nil, err
		}
	}
	if a := s.cfg.Web.HTTPS; a != "" {
		h := s.httpServer(s.provider.Handler())
		h.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if s.cfg.Web.TLSMinVersion == "1.3" {
			h.TLSConfig.MinVersion = tls.VersionTLS13
		}
		if s.cfg.Web.TLSMaxVersion == "1.2" {
			h.TLSConfig.MaxVersion = tls.VersionTLS12
		}
		serveTLS := func(l net.Listener) error { return h.ServeTLS(l, s.cfg.Web.TLSCert, s.cfg.Web.TLSKey) }
		if err := open("web.https", "tcp", a, serveTLS, h.Shutdown); err != nil {
			return nil, err
		}
	}
	if a := s.cfg.Telemetry.HTTP; a != "" {
		h := s.httpServer(s.telemetry())
		if err := open("telemetry.http", "tcp", a, h.Serve, h.Shutdown); err != nil {
			return nil, err
		}
	}
	if s.cfg.Gateway == nil {
		return all, nil
	}
	if err := open("gateway.grpc", "tcp", s.cfg.Gateway.GRPC, s.grpc.Serve, s.stopGRPC); err != nil {
		return nil, err
	}
	h := s.httpServer(admin.Handler(admin.Options{Sessions: operatorSessions{s.provider}, Version: version(), Log: s.log}))
	network, address := s.cfg.Gateway.AdminListener()
	return all, open("gateway.admin", network, address, h.Serve, h.Shutdown)
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

// httpServer bounds what a client may take its time with. Sign-ins through a slow directory are the slowest answers.
// Idle connections live longer than a gateway keeps them (Envoy: an hour): whoever closes first must be the one that
// knows whether a request is on its way.
func (s *service) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 90 * time.Second, IdleTimeout: 65 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}
