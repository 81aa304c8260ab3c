package provider

import (
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// newEnded counts sessions that ended before their time.
func newEnded() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_sessions_ended_total", Help: "Sessions that were ended before they expired, by whom, and why where a directory did.",
	}, []string{"by", "reason"})
}

// requestMetrics are what Dex counts of its requests. Each of its servers wants to register these metrics by itself, so
// each has a registry; here they are added up, those of servers that have ended too, so that no counter falls.
type requestMetrics struct {
	mu    sync.Mutex
	live  []*prometheus.Registry
	ended map[string]*dto.MetricFamily
}

func newRequestMetrics() *requestMetrics {
	return &requestMetrics{ended: map[string]*dto.MetricFamily{}}
}

func (m *requestMetrics) add(r *prometheus.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live = append(m.live, r)
}

// retire keeps the last values of r and forgets it.
func (m *requestMetrics) retire(r *prometheus.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.live, r)
	if i < 0 {
		return
	}
	m.live = slices.Delete(m.live, i, i+1)
	merge(m.ended, r)
}

// Describe implements prometheus.Collector. What Dex counts is found out when it is collected.
func (m *requestMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *requestMetrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := map[string]*dto.MetricFamily{}
	for name, f := range m.ended {
		add(sum, name, f)
	}
	for _, r := range m.live {
		merge(sum, r)
	}
	for _, f := range sum {
		for _, v := range f.GetMetric() {
			out <- constant(f, v)
		}
	}
}

func merge(into map[string]*dto.MetricFamily, r *prometheus.Registry) {
	families, err := r.Gather()
	if err != nil {
		return // Dex's registry has three metrics that cannot contradict each other
	}
	for _, f := range families {
		add(into, f.GetName(), f)
	}
}

// add adds a family's values to those of the same labels. What is in into is never shared with f.
func add(into map[string]*dto.MetricFamily, name string, f *dto.MetricFamily) {
	sum, ok := into[name]
	if !ok {
		sum = &dto.MetricFamily{Name: f.Name, Help: f.Help, Type: f.Type}
		into[name] = sum
	}
	known := map[string]*dto.Metric{}
	for _, v := range sum.GetMetric() {
		known[labels(v)] = v
	}
	for _, v := range f.GetMetric() {
		k := known[labels(v)]
		if k == nil {
			k = &dto.Metric{Label: v.GetLabel()}
			sum.Metric = append(sum.Metric, k)
		}
		if c := v.GetCounter(); c != nil {
			total := k.GetCounter().GetValue() + c.GetValue()
			k.Counter = &dto.Counter{Value: &total}
		}
		if h := v.GetHistogram(); h != nil {
			k.Histogram = addHistogram(k.GetHistogram(), h)
		}
	}
}

func addHistogram(a, b *dto.Histogram) *dto.Histogram {
	count, total := a.GetSampleCount()+b.GetSampleCount(), a.GetSampleSum()+b.GetSampleSum()
	sum := &dto.Histogram{SampleCount: &count, SampleSum: &total}
	for i, bucket := range b.GetBucket() { // the bounds are the same everywhere
		n := bucket.GetCumulativeCount()
		if i < len(a.GetBucket()) {
			n += a.GetBucket()[i].GetCumulativeCount()
		}
		sum.Bucket = append(sum.Bucket, &dto.Bucket{UpperBound: bucket.UpperBound, CumulativeCount: &n})
	}
	return sum
}

func labels(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		b.WriteString(l.GetName() + "\x00" + l.GetValue() + "\x00")
	}
	return b.String()
}

func constant(f *dto.MetricFamily, m *dto.Metric) prometheus.Metric {
	var names, values []string
	for _, l := range m.GetLabel() {
		names, values = append(names, l.GetName()), append(values, l.GetValue())
	}
	desc := prometheus.NewDesc(f.GetName(), f.GetHelp(), names, nil)
	if h := m.GetHistogram(); h != nil {
		buckets := map[float64]uint64{}
		for _, b := range h.GetBucket() {
			buckets[b.GetUpperBound()] = b.GetCumulativeCount()
		}
		return prometheus.MustNewConstHistogram(desc, h.GetSampleCount(), h.GetSampleSum(), buckets, values...)
	}
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, m.GetCounter().GetValue(), values...)
}
