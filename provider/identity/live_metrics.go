package identity

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What has become of a question about a user.
const (
	resultSame        = "same"
	resultChanged     = "changed"
	resultEnded       = "ended"
	resultUnavailable = "unavailable"
	resultUnaskable   = "unaskable"
)

// liveMetrics are those of a Live. Their labels are connectors of the configuration and the words above.
type liveMetrics struct {
	live    *Live
	results *prometheus.CounterVec
	seconds *prometheus.HistogramVec

	underWay, inUse, oldest, watchUp *prometheus.Desc

	mu      sync.Mutex
	watches map[string]*watchState
}

func newLiveMetrics(l *Live) *liveMetrics {
	by := []string{"connector"}
	return &liveMetrics{
		live: l, watches: map[string]*watchState{},
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_revalidations_total", Help: "Answers of connectors about users in use, by what they said.",
		}, []string{"connector", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gatehouse_revalidation_lookup_seconds", Help: "How long connectors took to say who some users are now; each Lookup is for many of them.",
			Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10},
		}, by),
		underWay: prometheus.NewDesc("gatehouse_revalidation_lookups", "Lookups that are under way.", by, nil),
		inUse:    prometheus.NewDesc("gatehouse_users_in_use", "Users of sessions that were used lately, as this process has seen.", by, nil),
		oldest:   prometheus.NewDesc("gatehouse_revalidation_oldest_seconds", "Age of the oldest answer about a user in use.", by, nil),
		watchUp:  prometheus.NewDesc("gatehouse_watch_up", "1 where the connector tells of changes, 0 where it should and does not.", by, nil),
	}
}

// Collector returns the metrics.
func (l *Live) Collector() prometheus.Collector { return l.metrics }

func (m *liveMetrics) lookup(connector string, took time.Duration) {
	m.seconds.WithLabelValues(connector).Observe(took.Seconds())
}

func (m *liveMetrics) watch(connector string, w *watchState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watches[connector] = w
}

// unwatch forgets a watch, unless another has taken its place.
func (m *liveMetrics) unwatch(connector string, w *watchState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watches[connector] == w {
		delete(m.watches, connector)
	}
}

// Describe implements prometheus.Collector.
func (m *liveMetrics) Describe(out chan<- *prometheus.Desc) {
	m.results.Describe(out)
	m.seconds.Describe(out)
	out <- m.underWay
	out <- m.inUse
	out <- m.oldest
	out <- m.watchUp
}

// Collect implements prometheus.Collector.
func (m *liveMetrics) Collect(out chan<- prometheus.Metric) {
	m.results.Collect(out)
	m.seconds.Collect(out)
	m.live.mu.Lock()
	sources := make([]*source, 0, len(m.live.sources))
	for _, s := range m.live.sources {
		sources = append(sources, s)
	}
	m.live.mu.Unlock()
	for _, s := range sources {
		if !s.asked() {
			continue
		}
		out <- prometheus.MustNewConstMetric(m.underWay, prometheus.GaugeValue, float64(s.underWay()), s.connector)
		users, oldest := s.inUse()
		out <- prometheus.MustNewConstMetric(m.inUse, prometheus.GaugeValue, float64(users), s.connector)
		out <- prometheus.MustNewConstMetric(m.oldest, prometheus.GaugeValue, oldest.Seconds(), s.connector)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for connector, w := range m.watches {
		up := 0.0
		if w.up(time.Now()) {
			up = 1
		}
		out <- prometheus.MustNewConstMetric(m.watchUp, prometheus.GaugeValue, up, connector)
	}
}

func (s *source) underWay() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookups
}

// inUse is how many users were seen lately, and the age of the oldest answer about one of them.
func (s *source) inUse() (users int, oldest time.Duration) {
	at, lately, age := s.live.nowMilli(), s.lately(), int64(0)
	for _, u := range s.live.usersOf(s.connector) {
		u.mu.Lock()
		if u.seen >= lately {
			users++
			age = max(age, at-u.checked)
		}
		u.mu.Unlock()
	}
	return users, time.Duration(age) * time.Millisecond
}
