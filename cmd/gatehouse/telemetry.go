package main

import (
	"context"
	"io"
	"maps"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gatehouse/authz/session"
	"gatehouse/internal/inproc"
)

// readyTimeout bounds one readiness probe.
const readyTimeout = 2 * time.Second

// maxScrapes is how many scrapes are answered at a time: each collects everything anew. Further ones wait their turn, and get 503 after
// scrapeWait, which is less than scrapers wait.
const (
	maxScrapes = 4
	scrapeWait = 5 * time.Second
)

// telemetry serves metrics and health, and nothing else: it may be reachable from the whole cluster.
func (s *service) telemetry() http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /metrics", buffered(inTurn(maxScrapes, scrapeWait, promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{Registry: s.registry}))))
	m.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	m.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := s.provider.Ready(ctx); err != nil {
			s.log.WarnContext(ctx, "not ready", "error", err)
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusOK)
	})
	// A storage that is away takes no replica out of its Service: each still knows who is signed in.
	m.HandleFunc("GET /healthz/serving", func(w http.ResponseWriter, _ *http.Request) {
		if s.draining.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
		}
	})
	return m
}

// buffered lets h come to its end before its answer is sent: a client that does not read holds up nobody else.
func buffered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := inproc.Serve(h, r)
		if err != nil {
			http.Error(w, "metrics cannot be collected", http.StatusInternalServerError)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the client may be gone
	})
}

// inTurn lets so many requests at a time through to h; the others wait as long as wait, in the order in which they came.
func inTurn(n int, wait time.Duration, h http.Handler) http.Handler {
	turns := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		select {
		case turns <- struct{}{}:
			defer func() { <-turns }()
			h.ServeHTTP(w, r)
		case <-ctx.Done():
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
		}
	})
}

// storeMetrics are those of the storage and, with a gateway, of the sessions in memory.
func (s *service) storeMetrics() []prometheus.Collector {
	delay := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "gatehouse_feed_delay_seconds", Help: "Time from a change that another process made to when it was seen here, by the clocks of both.",
		Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
	})
	s.store.ObserveDelays(func(ago time.Duration) { delay.Observe(ago.Seconds()) })
	all := []prometheus.Collector{
		delay,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "gatehouse_store_write_failures_total", Help: "Transactions that the storage did not take, or did not answer: nobody can sign in while it does not."},
			func() float64 { return float64(s.store.WriteFailures()) }),
	}
	if s.view == nil {
		return all
	}
	return append(all, sessionMetrics(s.view.Stats)...)
}

// sessionMetrics are those of the sessions in memory.
func sessionMetrics(stats func() session.Stats) []prometheus.Collector {
	gauge := func(name, help string, f func(session.Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(f(stats())) })
	}
	counter := func(o prometheus.CounterOpts, f func(session.Stats) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(o, func() float64 { return float64(f(stats())) })
	}
	lookups := func(found string) prometheus.CounterOpts {
		return prometheus.CounterOpts{
			Name: "gatehouse_session_lookups_total", Help: "Checks that looked for a session, by where it was looked for last.", ConstLabels: prometheus.Labels{"found": found},
		}
	}
	return []prometheus.Collector{
		gauge("gatehouse_sessions_in_memory", "Sessions that this process has seen lately.", func(s session.Stats) int { return s.Size }),
		gauge("gatehouse_sessions_in_memory_limit", "How many of them there may be: gateway.session.cache.", func(s session.Stats) int { return s.Capacity }),
		counter(lookups("memory"), func(s session.Stats) uint64 { return s.Hits }),
		counter(lookups("storage"), func(s session.Stats) uint64 { return s.Misses }),
		counter(prometheus.CounterOpts{Name: "gatehouse_session_evictions_total", Help: "Sessions in memory that made room for others."}, func(s session.Stats) uint64 { return s.Evictions }),
		counter(prometheus.CounterOpts{Name: "gatehouse_session_read_failures_total", Help: "Sessions that the storage could not be asked for: those checks were answered with 503."},
			func(s session.Stats) uint64 { return s.ReadErrors }),
		counter(prometheus.CounterOpts{Name: "gatehouse_session_activity_lost_total", Help: "Uses of sessions that were not written down: the session may end by idleness that much earlier."},
			func(s session.Stats) uint64 { return s.TouchesDropped + s.TouchErrors }),
	}
}

// registerMetrics adds what other parts count.
func (s *service) registerMetrics() error {
	all := []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "gatehouse_audit_dropped_total", Help: "Audit events of all kinds that are missing in the log: standard output was read too slowly, or could not be written to."},
			func() float64 { return float64(s.audit.Dropped()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gatehouse_feed_age_seconds", Help: "Time since the store's change log was last read to its end."},
			func() float64 { return s.store.FeedAge().Seconds() }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "gatehouse_store_writes_total", Help: "Transactions that this process has written to the storage, or tried to, but for the deletion of what is out of date."},
			func() float64 { return float64(s.store.Writes()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gatehouse_build_info", Help: "A constant 1, whose label is the version that runs: join it to other metrics, or count replicas by version.", ConstLabels: prometheus.Labels{"version": version()}},
			func() float64 { return 1 }),
	}
	for _, c := range append(all, s.storeMetrics()...) {
		if err := s.registry.Register(c); err != nil {
			return err
		}
	}
	return nil
}
