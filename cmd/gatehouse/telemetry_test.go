package main

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// slowMetric is a metric that waits while it is collected.
type slowMetric struct {
	begun chan struct{}
	end   chan struct{}
}

func (s *slowMetric) value() float64 {
	s.begun <- struct{}{}
	<-s.end
	return 1
}

func TestScrapesAtOnceAreLimited(t *testing.T) {
	slow := &slowMetric{begun: make(chan struct{}), end: make(chan struct{})}
	s := &service{registry: prometheus.NewRegistry()}
	s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "slow"}, slow.value))
	h := s.telemetry()
	scrape := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		return w.Code
	}
	var wg sync.WaitGroup
	for range maxScrapes {
		wg.Go(func() {
			if got := scrape(); got != http.StatusOK {
				t.Errorf("one of %d scrapes: %d", maxScrapes, got)
			}
		})
	}
	for range maxScrapes {
		<-slow.begun
	}
	beyond := make(chan int, 1)
	go func() { beyond <- scrape() }()
	select {
	case got := <-beyond:
		if got != http.StatusServiceUnavailable {
			t.Errorf("one more: %d, want 503", got)
		}
	case <-slow.begun:
		t.Errorf("one more than %d is collected", maxScrapes)
	}
	close(slow.end)
	wg.Wait()
}
