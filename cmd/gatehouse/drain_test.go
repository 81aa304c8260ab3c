package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// Whoever asks for the health is told at once that requests should go elsewhere, long before the listeners close.
func TestLeaveSaysSoBeforeItCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{log: slog.New(slog.DiscardHandler), health: health.NewServer(), registry: prometheus.NewRegistry()}
		s.drainDelay.Store(int64(time.Minute))
		start := time.Now()
		left := make(chan time.Duration)
		go func() {
			s.leave(t.Context(), nil)
			left <- time.Since(start)
		}()
		synctest.Wait()
		if r, err := s.health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || r.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("gRPC health: got %v, %v, want NOT_SERVING at once", r, err)
		}
		w := httptest.NewRecorder()
		s.telemetry().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz/ready", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("readiness: got %d, want 503 at once", w.Code)
		}
		w = httptest.NewRecorder()
		s.telemetry().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz/live", nil))
		if w.Code != http.StatusOK {
			t.Errorf("liveness: got %d, want 200: a process that leaves is not to be killed", w.Code)
		}
		if got := <-left; got != time.Minute {
			t.Errorf("left after %s, want the delay of 1m", got)
		}
	})
}

func TestAnotherSignalEndsTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{log: slog.New(slog.DiscardHandler)}
		s.drainDelay.Store(int64(time.Hour))
		again, start := make(chan os.Signal, 1), time.Now()
		again <- syscall.SIGTERM
		s.leave(t.Context(), again)
		if got := time.Since(start); got != 0 {
			t.Errorf("left after %s, want at once", got)
		}
	})
}
