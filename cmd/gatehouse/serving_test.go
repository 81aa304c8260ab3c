package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestServing: a replica is in its Service until it is told to end. It has no provider here, and so no storage to ask.
func TestServing(t *testing.T) {
	s := &service{registry: prometheus.NewRegistry()}
	h := s.telemetry()
	for _, want := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz/serving", nil))
		if w.Code != want {
			t.Errorf("got %d, want %d", w.Code, want)
		}
		s.unready()
	}
}
