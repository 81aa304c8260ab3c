package main

import (
	"context"
	"errors"
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

	"gatehouse/provider/store"
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

// A replica that hears nothing of the storage says so under a name of its own: who asks for the whole service is not told, since every replica may
// be as deaf.
func TestHealthTellsOfTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{log: slog.New(slog.DiscardHandler), health: health.NewServer(), store: store.Memory(store.Options{})}
		status := func(name string) healthv1.HealthCheckResponse_ServingStatus {
			r, err := s.health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
			if err != nil {
				t.Fatal(err)
			}
			return r.GetStatus()
		}
		ctx, cancel := context.WithCancel(t.Context())
		go s.tellStorage(ctx)
		synctest.Wait()
		if got := status(storageService); got != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("at the start: got %v", got)
		}
		time.Sleep(storageQuiet + storageLook) // nobody reads the change log
		synctest.Wait()
		if got := status(storageService); got != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("after %s of silence: got %v, want NOT_SERVING", storageQuiet, got)
		}
		if got := status(""); got != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("the whole service: got %v, want SERVING", got)
		}
		following := make(chan error)
		go func() { following <- s.store.Follow(ctx) }()
		time.Sleep(storageLook)
		synctest.Wait()
		if got := status(storageService); got != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("once the change log is read: got %v, want SERVING", got)
		}
		s.unready()
		time.Sleep(storageLook)
		synctest.Wait()
		if got := status(storageService); got != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("leaving: got %v, want NOT_SERVING for good", got)
		}
		cancel()
		if err := <-following; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		synctest.Wait()
	})
}
