package front

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/connectors"
	"gatehouse/internal/inproc"
	"gatehouse/provider/identity"
	"gatehouse/web"
)

// register adds what this package counts. A front of a later configuration goes on with what the first has registered: the
// counter, and the queue, which is the same for all.
func (f *Front) register(r prometheus.Registerer) error {
	queue, directories := f.Doors.Queue(), f.Doors.DirectoryQueue()
	for _, c := range []prometheus.Collector{
		f.signIns, f.astray,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gatehouse_sign_in_queue_length", Help: "Sign-ins of local users that wait until their password is checked.",
		}, func() float64 { waiting, _ := queue(); return float64(waiting) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gatehouse_sign_in_queue_refused_total", Help: "Sign-ins of local users whose password was not checked: too many waited, or they gave up.",
		}, func() float64 { _, refused := queue(); return float64(refused) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gatehouse_directory_queue_length", Help: "Sign-ins and password changes that wait until their directory is asked.",
		}, func() float64 { waiting, _ := directories(); return float64(waiting) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gatehouse_directory_queue_refused_total", Help: "Sign-ins and password changes whose directory was not asked: too many waited, or they gave up.",
		}, func() float64 { _, refused := directories(); return float64(refused) }),
	} {
		err := r.Register(c)
		known, ok := errors.AsType[prometheus.AlreadyRegisteredError](err)
		if !ok && err != nil {
			return err
		}
		if vec, isVec := known.ExistingCollector.(*prometheus.CounterVec); isVec {
			switch c {
			case f.signIns:
				f.signIns = vec
			case f.astray:
				f.astray = vec
			}
		}
	}
	return nil
}

// passwordGrant is Dex's password grant. Where a password was not tried, since too many sign in or since the user had too many
// wrong ones, Dex would say that the request is invalid (400): it is not, and the client is to come again.
func (f *Front) passwordGrant(w http.ResponseWriter, r *http.Request) {
	ctx, turned := identity.WithTurned(r.Context())
	resp, err := inproc.Serve(http.HandlerFunc(f.api), r.WithContext(ctx))
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	if door, user, in := turned.In(); in && resp.StatusCode == http.StatusOK {
		if err := f.LetIn(ctx, door, user); err != nil { // tokens that nobody gets are as good as none
			f.Log.WarnContext(ctx, "a password grant is refused for now", "connector", door, "user_id", user, "error", err)
			w.Header().Set("Retry-After", "1")
			f.oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "the password may have been changed meanwhile")
			return
		}
	}
	connector, no := turned.Away()
	if no == nil {
		copyAnswer(w, resp)
		return
	}
	client, _, basic := r.BasicAuth()
	if client = unescape(client); !basic {
		client = r.Form.Get("client_id")
	}
	f.result(r, &request{query: url.Values{"client_id": {client}}}, connector, r.Form.Get("username"), string(no.Reason), no)
	status, text := http.StatusServiceUnavailable, "too many sign in at once: the password was not checked"
	if no.Reason == connectors.Throttled {
		status, text = http.StatusTooManyRequests, "too many wrong passwords for this user: the password was not checked"
	}
	w.Header().Set("Retry-After", seconds(no.RetryAfter))
	f.oauthError(w, status, "temporarily_unavailable", text)
}

// seconds is a time for Retry-After (RFC 9110 section 10.2.3), rounded up.
func seconds(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }
