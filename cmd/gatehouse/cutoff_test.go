package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"gatehouse/authz/session"
	"gatehouse/provider"
	"gatehouse/provider/store"
	"gatehouse/provider/store/storetest"
	"gatehouse/test/peers"
)

// Of cut-offs: how many a test makes, and in what time all replicas have to obey.
const (
	cutOffs       = 200
	cutOffWithin  = time.Second
	cutOffGivenUp = 30 * time.Second
)

// A shared is a storage that several processes open.
type shared struct {
	name string
	open func(testing.TB) func() (*store.Store, error)
}

func sharedStores() []shared {
	return []shared{{"postgres", openPostgresShared}, {"etcd", openEtcdShared}}
}

func openPostgresShared(t testing.TB) func() (*store.Store, error) {
	t.Helper()
	server := peers.Postgres(t, peers.PostgresOptions{})
	host, port, err := net.SplitHostPort(server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return func() (*store.Store, error) {
		return store.OpenPostgres(t.Context(), store.PostgresConfig{
			Host: host, Port: n, Database: "postgres", User: server.User, Password: func() string { return server.Password },
			SSL: store.PostgresSSL{Mode: "disable"},
		}, store.Options{Now: utc})
	}
}

func openEtcdShared(t testing.TB) func() (*store.Store, error) {
	t.Helper()
	server := peers.Etcd(t, peers.EtcdOptions{})
	return func() (*store.Store, error) {
		return store.OpenEtcd(t.Context(), store.EtcdOptions{Endpoints: []string{server.URL}}, store.Options{Now: utc})
	}
}

// twoOn are two replicas on one storage, each with a view of its own, which follow each other.
func twoOn(t testing.TB, s shared) (here, there *service) {
	t.Helper()
	open := s.open(t)
	replica := func() *service {
		st, err := open()
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		over := make(chan struct{})
		out, err := serviceOn(t, st)
		if err != nil {
			t.Fatal(err)
		}
		go func() { defer close(over); _ = st.Follow(ctx) }()
		t.Cleanup(func() {
			stop()
			<-over
			_ = out.view.Close(context.WithoutCancel(ctx))
			_ = st.Close()
		})
		return out
	}
	return replica(), replica()
}

// A cutter makes and ends sessions at one replica, and sees when the gateways of both refuse them.
type cutter struct {
	here, there *service
	next        int
}

// cut ends one session in one of the ways, and returns how long after the beginning of that each replica has let it in for the last time.
func (c *cutter) cut(ctx context.Context) (same, across time.Duration, err error) {
	c.next++
	user, id := fmt.Sprintf("user-%d", c.next), fmt.Sprintf("session-%d", c.next)
	who := storetest.Person{Connector: "staff", ID: user, LastLogin: utc()}
	err = errors.Join(storetest.AddPerson(ctx, c.here.store, who), storetest.AddSession(ctx, c.here.store, id, who, utc().Add(time.Hour)))
	if err != nil {
		return 0, 0, err
	}
	for _, s := range []*service{c.here, c.there} { // both know it by heart
		if _, err := s.view.Lookup(ctx, id, utc()); err != nil {
			return 0, 0, fmt.Errorf("before: %w", err)
		}
	}
	start := time.Now()
	seen := make(chan refusedAt, 1)
	go func() { seen <- untilRefused(ctx, c.there.view, id) }()
	switch c.next % 3 {
	case 0:
		_, err = c.here.provider.Block(ctx, "staff", user, provider.Forever)
	case 1:
		err = c.here.provider.Revoke(ctx, id)
	default:
		_, err = c.here.provider.RevokeUser(ctx, "staff", user)
	}
	if err != nil {
		return 0, 0, err
	}
	if _, err := c.here.view.Lookup(ctx, id, utc()); !isRefusal(err) {
		return 0, 0, fmt.Errorf("the same replica lets it in at the next check: %w", err)
	}
	same = time.Since(start)
	r := <-seen
	return same, r.at.Sub(start), r.err
}

type refusedAt struct {
	at  time.Time
	err error
}

func isRefusal(err error) bool {
	return errors.Is(err, session.ErrBlocked) || errors.Is(err, session.ErrNotFound)
}

// untilRefused checks a session again and again.
func untilRefused(ctx context.Context, v *session.View, id string) refusedAt {
	limit := time.Now().Add(cutOffGivenUp)
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for {
		_, err := v.Lookup(ctx, id, utc())
		now := time.Now()
		switch {
		case isRefusal(err):
			return refusedAt{at: now}
		case err != nil:
			return refusedAt{at: now, err: err}
		case now.After(limit):
			return refusedAt{at: now, err: errors.New("the other replica lets it in on and on")}
		}
		<-tick.C
	}
}

// percentile of sorted durations.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// TestCutOffWithinASecond ends sessions by block, by sign-out and everywhere, and holds both replicas to it.
func TestCutOffWithinASecond(t *testing.T) {
	for _, s := range sharedStores() {
		t.Run(s.name, func(t *testing.T) {
			here, there := twoOn(t, s)
			c := &cutter{here: here, there: there}
			var same, across []time.Duration
			pulse := peers.NewPulse(t)
			for range cutOffs {
				before := pulse.Still()
				a, b, err := c.cut(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				same, across = append(same, a), append(across, b-(pulse.Still()-before))
			}
			slices.Sort(same)
			slices.Sort(across)
			t.Logf("%d cut-offs: refused on the same replica after p50 %v, p99 %v; on the other after p50 %v, p99 %v, at most %v",
				cutOffs, percentile(same, 50), percentile(same, 99), percentile(across, 50), percentile(across, 99), across[len(across)-1])
			if p := percentile(across, 99); p > cutOffWithin {
				t.Errorf("99 of 100 cut-offs are obeyed within %v, want %v", p, cutOffWithin)
			}
		})
	}
}

// BenchmarkCutOff reports what TestCutOffWithinASecond holds, in milliseconds.
func BenchmarkCutOff(b *testing.B) {
	for _, s := range sharedStores() {
		b.Run(s.name, func(b *testing.B) {
			here, there := twoOn(b, s)
			c := &cutter{here: here, there: there}
			var same, across []time.Duration
			for b.Loop() {
				x, y, err := c.cut(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				same, across = append(same, x), append(across, y)
			}
			slices.Sort(same)
			slices.Sort(across)
			for name, d := range map[string]time.Duration{
				"ms-same-p50": percentile(same, 50), "ms-same-p99": percentile(same, 99),
				"ms-across-p50": percentile(across, 50), "ms-across-p99": percentile(across, 99),
			} {
				b.ReportMetric(float64(d.Microseconds())/1000, name)
			}
		})
	}
}
