package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"
)

// TestServing: a replica is in its Service from the time that it serves until it is told to end. It has no provider here, and so no storage to ask.
func TestServing(t *testing.T) {
	s := &service{registry: prometheus.NewRegistry(), health: health.NewServer()}
	h := s.telemetry()
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz/serving", nil))
		return w.Code
	}
	if got := ask(); got != http.StatusOK {
		t.Errorf("while it serves: got %d, want 200", got)
	}
	s.health.Shutdown() // as drain does at once
	if got := ask(); got != http.StatusServiceUnavailable {
		t.Errorf("once it ends: got %d, want 503", got)
	}
	s.health = nil // without a gateway
	if got := ask(); got != http.StatusOK {
		t.Errorf("an issuer alone: got %d, want 200", got)
	}
}
