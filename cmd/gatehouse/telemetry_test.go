package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/authz/session"
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

func TestSessionMetrics(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	for _, c := range sessionMetrics(func() session.Stats {
		return session.Stats{Size: 1, Capacity: 2, Hits: 3, Misses: 4, Evictions: 5, ReadErrors: 6, TouchesDropped: 7, TouchErrors: 80}
	}) {
		r.MustRegister(c)
	}
	got := map[string]float64{}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var name strings.Builder
			name.WriteString(f.GetName())
			for _, l := range m.GetLabel() {
				name.WriteString(" " + l.GetValue())
			}
			got[name.String()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"gatehouse_sessions_in_memory": 1, "gatehouse_sessions_in_memory_limit": 2, "gatehouse_session_lookups_total memory": 3, "gatehouse_session_lookups_total storage": 4,
		"gatehouse_session_evictions_total": 5, "gatehouse_session_read_failures_total": 6, "gatehouse_session_activity_lost_total": 87,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
