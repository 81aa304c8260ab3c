package front

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/inproc"
	"gatehouse/provider/identity"
	"gatehouse/web"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/server/oauth2"
)

// register adds what this package counts. A front of a later configuration goes on with what the first has registered: the
// counter, and the queue, which is the same for all.
func (f *Front) register(r prometheus.Registerer) error {
	queue := f.Doors.Queue()
	for _, c := range []prometheus.Collector{
		f.signIns,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gatehouse_sign_in_queue_length", Help: "Sign-ins of local users that wait until their password is checked.",
		}, func() float64 { waiting, _ := queue(); return float64(waiting) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gatehouse_sign_in_queue_refused_total", Help: "Sign-ins of local users whose password was not checked: too many waited, or they gave up.",
		}, func() float64 { _, refused := queue(); return float64(refused) }),
	} {
		err := r.Register(c)
		known, ok := errors.AsType[prometheus.AlreadyRegisteredError](err)
		if !ok && err != nil {
			return err
		}
		if vec, isVec := known.ExistingCollector.(*prometheus.CounterVec); isVec {
			f.signIns = vec
		}
	}
	return nil
}

// token is Dex's token endpoint. Where a password was not checked since too many sign in, Dex would say that the request
// is invalid (400): it is not, and the client is to come again.
func (f *Front) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || r.Form.Get("grant_type") != oauth2.GrantTypePassword {
		f.api(w, r)
		return
	}
	ctx, turned := identity.WithTurned(r.Context())
	resp, err := inproc.Serve(http.HandlerFunc(f.api), r.WithContext(ctx))
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), resp.Header)
	no := turned.Away()
	if no == nil {
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the client may be gone
		return
	}
	client, _, basic := r.BasicAuth()
	if client = unescape(client); !basic {
		client = r.Form.Get("client_id")
	}
	f.result(r, &request{query: url.Values{"client_id": {client}}}, dexconnectors.LocalConnector, r.Form.Get("username"), string(no.Reason), no)
	w.Header().Del("Content-Length")
	w.Header().Set("Retry-After", seconds(no.RetryAfter))
	f.oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "too many sign in at once: the password was not checked")
}

// seconds is a time for Retry-After (RFC 9110 section 10.2.3), rounded up.
func seconds(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }
