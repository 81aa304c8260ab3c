package replicas

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// TestSlowStorage makes every call of the storage take a second. The checks of known sessions do not notice, though others wait for it meanwhile:
// they take as long as checks of nobody's requests at the same time, which need no storage.
func TestSlowStorage(t *testing.T) {
	const each, delay = 8 * time.Second, time.Second
	s := peers.Postgres(t, peers.PostgresOptions{})
	proxy := peers.NewProxy(t, s.Addr)
	f := newFleet(t, 2, onPostgres(s, proxy.Addr), nil)
	working := []*browser{f.signedIn(t, ada), f.signedIn(t, ada)}
	f.known(t, ada, working...)

	proxy.Delay(delay)
	slow, without := underLoad(t, ada, working...), underLoad(t, nobody, f.browser(t), f.browser(t))
	var others sync.WaitGroup
	var signedIn, later, failed atomic.Int64
	for range 4 {
		others.Go(func() {
			b := f.browser(t)
			p, err := b.visit(t.Context(), http.MethodGet, f.app+"/headers", nil)
			if err == nil {
				p, err = b.submit(t.Context(), p, cy)
			}
			switch {
			case err == nil && p.status == http.StatusSeeOther:
				signedIn.Add(1)
			case err == nil && p.saysLater():
				later.Add(1)
			default:
				failed.Add(1)
				t.Errorf("a sign-in: got %v and %v", p, err)
			}
		})
	}
	passed(t, each)
	slow.done(t, "each call of the storage takes "+delay.String())
	without.done(t, "requests of nobody meanwhile")
	others.Wait()
	t.Logf("meanwhile of 4 sign-ins %d were done, %d were told to try again, %d failed", signedIn.Load(), later.Load(), failed.Load())
	// When the machine stops for a moment, both wait.
	if a, b := without.percentile(90), slow.percentile(90); b > 5*a && b > delay/10 {
		t.Errorf("nine of ten checks took up to %s, and %s without a session: they wait for the storage", b, a)
	}
	if a, b := without.waited(delay/4), slow.waited(delay/2); b > a+slow.sent.Load()/1000 {
		t.Errorf("%d of %d checks waited as long as for the storage, and %d without a session", b, slow.sent.Load(), a)
	}
	proxy.Delay(0)
	f.signedIn(t, cy)
}

// waited returns how many requests took at least that long.
func (l *load) waited(least time.Duration) (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, took := range l.took {
		if took >= least {
			n++
		}
	}
	return n
}

// passed lets some time pass.
func passed(t *testing.T, d time.Duration) {
	t.Helper()
	start := time.Now()
	peers.Eventually(t, d+within, "time passes", func() bool { return time.Since(start) >= d })
}
