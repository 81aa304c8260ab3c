package replicas

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// TestKill kills a replica in the middle of 200 sign-ins. Every session that a browser was told of is there afterwards, on the other replica.
func TestKill(t *testing.T) {
	const signIns, workers = 200, 8
	s := peers.Postgres(t, peers.PostgresOptions{Durable: true})
	f := newFleet(t, 2, onPostgres(s, s.Addr), nil)
	working := f.signedIn(t, cy)
	var confirmed []*browser
	var mu sync.Mutex
	var unanswered, next atomic.Int64
	half := make(chan struct{})
	var once sync.Once
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for next.Add(1) <= signIns {
				b := f.browser(t)
				for !b.confirmed(t.Context(), ada) { // people try again
					unanswered.Add(1)
					<-time.After(pace)
				}
				mu.Lock()
				confirmed = append(confirmed, b)
				if len(confirmed) >= signIns/2 {
					once.Do(func() { close(half) })
				}
				mu.Unlock()
			}
		})
	}
	<-half
	killed := time.Now()
	f.replicas[0].Kill(t)
	all.Wait()
	f.allHealthy(t, 1)
	lost := 0
	for _, b := range confirmed {
		p, err := b.visit(t.Context(), http.MethodGet, f.app+"/headers", nil) // by single sign-on: nobody types a password
		if err == nil {
			err = b.isAt(p, ada)
		}
		if err != nil {
			lost++
			t.Errorf("a confirmed session is lost: %v", err)
		}
	}
	t.Logf("kill -9 of A during %d sign-ins: %d were confirmed to their browsers, of which %d are lost on B; %d tries had no session for an answer before Envoy left A out, and came again",
		signIns, len(confirmed), lost, unanswered.Load())
	stays(t, "who was signed in before", working, cy)
	f.signedIn(t, bob)
	f.replicas[0].restart()
	f.allHealthy(t)
	for _, b := range confirmed[:10] {
		for range 4 {
			stays(t, "on A again", b, ada)
		}
	}
	t.Logf("A was back %s after it was killed, with the same sessions", time.Since(killed).Round(time.Millisecond))
}

// confirmed posts a sign-in and reports whether the browser was told of a session: a redirect with the issuer's cookie.
func (b *browser) confirmed(ctx context.Context, mail string) bool {
	p, err := b.visit(ctx, http.MethodGet, b.f.app+"/headers", nil)
	if err != nil {
		return false
	}
	if p, err = b.submit(ctx, p, mail); err != nil || p.status != http.StatusSeeOther {
		return false
	}
	return strings.Contains(strings.Join(p.header.Values("Set-Cookie"), "\n"), "gatehouse-sso=")
}

// An outage is a way for a storage to go away for a while and come back.
type outage struct {
	name       string
	lasts      time.Duration
	begin, end func(t *testing.T)
}

func TestPostgresStops(t *testing.T) {
	s := peers.Postgres(t, peers.PostgresOptions{})
	try := func(f func() error) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
	storageStops(t, onPostgres(s, s.Addr),
		outage{"SIGSTOP", 30 * time.Second, try(s.Pause), try(s.Resume)},
		outage{"kill -9", 15 * time.Second, try(s.Kill), try(func() error { return s.Start(context.WithoutCancel(t.Context())) })})
}

func TestEtcdStops(t *testing.T) {
	s := peers.Etcd(t, peers.EtcdOptions{})
	storageStops(t, onEtcd(s.Addr),
		outage{"SIGSTOP", 30 * time.Second, func(t *testing.T) { s.Signal(t, syscall.SIGSTOP) }, func(t *testing.T) { s.Signal(t, syscall.SIGCONT) }},
		outage{"kill -9", 15 * time.Second, func(t *testing.T) { s.Kill(t) }, func(t *testing.T) { s.Start(t) }})
}

// storageStops takes the storage away, once for each way. Two replicas have the usual grace, a third one the shortest there is.
func storageStops(t *testing.T, storage table, ways ...outage) {
	t.Parallel()
	f := newFleet(t, 2, storage, nil)
	strict := f.beside(t, "C", storage, table{"storageGrace": "10s"})
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) { f.goesWithout(t, strict, way) })
	}
}

func (f *fleet) goesWithout(t *testing.T, strict *fleet, way outage) {
	working := []*browser{f.signedIn(t, ada), f.signedIn(t, ada)}
	fleetC := f.signedIn(t, bob).at(t, strict)
	strict.known(t, bob, fleetC)
	waiting := f.browser(t) // has the sign-in page open when the storage goes away
	form, err := waiting.visit(t.Context(), http.MethodGet, f.app+"/headers", nil)
	if err != nil {
		t.Fatal(err)
	}
	f.known(t, ada, working...)
	before := f.metrics(t, "go_goroutines")
	l := underLoad(t, ada, working...)
	looked := time.Now()
	age := time.Duration(strict.replicas[0].metric(t, "gatehouse_feed_age_seconds") * float64(time.Second))
	way.begin(t)
	start := time.Now()
	silent := time.Duration(0) // when C gave up
	tries, slowest := 0, time.Duration(0)
	for time.Since(start) < way.lasts {
		p, err := waiting.submit(t.Context(), form, cy)
		tries++
		slowest = max(slowest, p.took)
		if err != nil || !p.saysLater() {
			t.Errorf("a sign-in without the storage: got %v and %v, want a page that says so with 503", p, err)
		}
		peers.Eventually(t, within, "a second or two", func() bool {
			p, err := fleetC.look(t.Context())
			if err == nil && p.status == http.StatusServiceUnavailable && silent == 0 {
				silent = time.Since(start)
			}
			return time.Since(start) > time.Duration(tries)*2*time.Second
		})
	}
	t.Logf("%s for %s: %d sign-ins were answered by a page with 503, the slowest after %s; C with a storageGrace of 10s refused its session after %s",
		way.name, way.lasts, tries, slowest.Round(time.Millisecond), silent.Round(100*time.Millisecond))
	// C may have read the change log once more after its age was looked at, which would be later still.
	if unheard := age + start.Sub(looked) + silent; silent == 0 || unheard < 10*time.Second {
		t.Errorf("C refused its session after %s, %s after it had heard of the storage, want 10s at least, and 0s is never", silent, unheard)
	}
	way.end(t)
	back := time.Now()
	peers.Eventually(t, within, "signing in works again", func() bool {
		p, err := waiting.submit(t.Context(), form, cy)
		return err == nil && p.status == http.StatusSeeOther
	})
	t.Logf("signing in works %s after the storage is back", time.Since(back).Round(time.Millisecond))
	peers.Eventually(t, within, "C hears of the storage again", func() bool {
		p, err := fleetC.look(t.Context())
		return err == nil && p.status == http.StatusOK
	})
	l.done(t, "storage away by "+way.name)
	f.allHealthy(t)
	f.noLeak(t, before)
}

// saysLater reports whether a page says that it is not the user's fault, and to try again.
func (p page) saysLater() bool {
	return p.status == http.StatusServiceUnavailable && strings.Contains(p.body, "Try again in a moment")
}

// known has every replica meet browsers, as those of people who work are: what a replica has not met it has to read. Before, each hears of
// all that has happened: a sign-in of the same user has it read again.
func (f *fleet) known(t *testing.T, mail string, browsers ...*browser) {
	t.Helper()
	start := time.Now()
	for _, r := range f.replicas {
		peers.Eventually(t, within, r.name+" has read the change log", func() bool {
			asked := time.Since(start).Seconds()
			return r.metric(t, "gatehouse_feed_age_seconds") < asked
		})
	}
	for _, b := range browsers {
		for range 4 * len(f.replicas) {
			stays(t, "before the fault", b, mail)
		}
	}
}

// noLeak waits until there are about as many goroutines as before.
func (f *fleet) noLeak(t *testing.T, before []float64) {
	t.Helper()
	const some = 15 // connections come and go
	var after []float64
	peers.Eventually(t, within, "as many goroutines as before", func() bool {
		after = f.metrics(t, "go_goroutines")
		for i := range after {
			if after[i] > before[i]+some {
				return false
			}
		}
		return true
	})
	t.Logf("goroutines before and after: %v and %v", before, after)
}
