package provider

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newEnded counts sessions that ended before their time.
func newEnded() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_sessions_ended_total", Help: "Sessions that were ended before they expired, by whom, and why where a directory did.",
	}, []string{"by", "reason"})
}

// requestMetrics are Dex's metrics of its requests, under its names, labels and bounds. Each of its servers would register them by itself, and make them anew
// for every request, which takes longer than most of what it is asked; these are made once, and count for all generations.
type requestMetrics struct {
	total          *prometheus.CounterVec
	duration, size *prometheus.HistogramVec
}

func newRequestMetrics() *requestMetrics {
	by := []string{"code", "method", "handler"}
	return &requestMetrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "http_requests_total", Help: "Count of all HTTP requests."}, by),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "request_duration_seconds", Help: "A histogram of latencies for requests.", Buckets: []float64{.25, .5, 1, 2.5, 5, 10},
		}, by),
		size: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "response_size_bytes", Help: "A histogram of response sizes for requests.", Buckets: []float64{200, 500, 900, 1500},
		}, by),
	}
}

// Describe implements prometheus.Collector.
func (m *requestMetrics) Describe(out chan<- *prometheus.Desc) {
	m.total.Describe(out)
	m.duration.Describe(out)
	m.size.Describe(out)
}

// Collect implements prometheus.Collector.
func (m *requestMetrics) Collect(out chan<- prometheus.Metric) {
	m.total.Collect(out)
	m.duration.Collect(out)
	m.size.Collect(out)
}

// counting returns dex, whose issuer has the path base, with its requests counted.
func (m *requestMetrics) counting(dex http.Handler, base string) http.Handler {
	base = strings.TrimSuffix(base, "/")
	counted := map[string]http.Handler{}
	for _, route := range dexRoutes() {
		of := prometheus.Labels{"handler": route}
		counted[route] = promhttp.InstrumentHandlerDuration(m.duration.MustCurryWith(of),
			promhttp.InstrumentHandlerCounter(m.total.MustCurryWith(of), promhttp.InstrumentHandlerResponseSize(m.size.MustCurryWith(of), dex)))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := counted[dexRoute(strings.TrimPrefix(r.URL.EscapedPath(), base))]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		dex.ServeHTTP(w, r) // files, and what there is not
	})
}

// dexRoutes are the routes of Dex's server, as its metrics name them.
func dexRoutes() []string {
	return []string{
		"/", "/.well-known/openid-configuration", "/approval", "/auth", "/auth/{connector}", "/auth/{connector}/login", "/callback", "/callback/{connector}",
		"/device", "/device/auth/verify_code", "/device/callback", "/device/code", "/keys", "/logout", "/logout/callback", "/mfa", "/mfa/totp", "/mfa/webauthn",
		"/mfa/webauthn/login/begin", "/mfa/webauthn/login/finish", "/mfa/webauthn/register/begin", "/mfa/webauthn/register/finish",
		"/token", "/token/introspect", "/userinfo",
	}
}

// dexRoute returns the route of a path below the issuer's, which may be none.
func dexRoute(path string) string {
	if rest, ok := strings.CutPrefix(path, "/auth/"); ok && rest != "" {
		switch _, last, more := strings.Cut(rest, "/"); {
		case !more:
			return "/auth/{connector}"
		case last == "login":
			return "/auth/{connector}/login"
		}
		return ""
	}
	if rest, ok := strings.CutPrefix(path, "/callback/"); ok && rest != "" && !strings.Contains(rest, "/") {
		return "/callback/{connector}"
	}
	return path
}
