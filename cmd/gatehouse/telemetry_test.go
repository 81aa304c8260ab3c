package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

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

func TestScrapesWaitTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowMetric{begun: make(chan struct{}, 2*maxScrapes), end: make(chan struct{})}
		s := &service{registry: prometheus.NewRegistry()}
		s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "slow"}, slow.value))
		h := s.telemetry()
		answers := make(chan int, 2*maxScrapes)
		scrape := func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
			answers <- w.Code
		}
		for range maxScrapes + 1 {
			go scrape()
		}
		synctest.Wait()
		if got := len(slow.begun); got != maxScrapes {
			t.Errorf("got %d scrapes at once, want %d", got, maxScrapes)
		}
		if got := <-answers; got != http.StatusServiceUnavailable { // after scrapeWait, which passes while all wait
			t.Errorf("one more: got %d, want 503", got)
		}
		go scrape()
		synctest.Wait()
		close(slow.end)
		for range maxScrapes + 1 {
			if got := <-answers; got != http.StatusOK {
				t.Errorf("a scrape that had its turn: got %d, want 200", got)
			}
		}
	})
}
