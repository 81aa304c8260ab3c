package replicas

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// TestPostgres and TestEtcd are what replicas have to do, on each storage.
func TestPostgres(t *testing.T) {
	t.Parallel()
	s := peers.Postgres(t, peers.PostgresOptions{})
	together(t, newFleet(t, 2, onPostgres(s, s.Addr), nil))
}

func TestEtcd(t *testing.T) {
	t.Parallel()
	s := peers.Etcd(t, peers.EtcdOptions{})
	together(t, newFleet(t, 2, onEtcd(s.Addr), nil))
}

func together(t *testing.T, f *fleet) {
	t.Run("a sign-in where every request goes to another replica", f.signInAlternates)
	t.Run("a client gets its code, its token and the userinfo of different replicas", f.codeFlow)
	t.Run("rotated keys", f.rotated)
	t.Run("a blocked user", f.blocked)
	t.Run("a changed file", f.changedGroup)
	t.Run("rolling restart", f.rollingRestart)
}

// signInAlternates signs in three times, so that each step is done by each replica, and then goes through Envoy, which alternates by itself.
func (f *fleet) signInAlternates(t *testing.T) {
	for first := range f.replicas {
		b := f.browser(t)
		b.alternate, b.next = true, first
		if err := b.signIn(t.Context(), ada); err != nil {
			t.Fatalf("by %s: %v", strings.Join(b.went, " "), err)
		}
		if len(b.went) < 2 || b.went[0] == b.went[1] {
			t.Errorf("the issuer was asked at %v, want another replica each time", b.went)
		}
		t.Logf("signed in by way of %s", strings.Join(b.went, ", "))
		for range 2 * len(f.replicas) { // Envoy asks each in turn
			stays(t, "after the sign-in", b, ada)
		}
	}
	before := f.metrics(t, "gatehouse_checks_total")
	b := f.signedIn(t, bob)
	// Envoy leaves a replica out for a moment when that is too busy to answer for its health.
	peers.Eventually(t, within, "each replica has answered some checks: else Envoy has favourites, and the test shows nothing", func() bool {
		for range 10 {
			stays(t, "through Envoy", b, bob)
		}
		for i, n := range f.metrics(t, "gatehouse_checks_total") {
			if n-before[i] < 3 {
				return false
			}
		}
		return true
	})
}

// changedGroup gives a user another group in the files of all replicas.
func (f *fleet) changedGroup(t *testing.T) {
	b := f.signedIn(t, bob)
	if got := b.groups(t.Context()); got != "team-a" {
		t.Fatalf("got groups %q, want team-a", got)
	}
	start := time.Now()
	for _, r := range f.replicas {
		r.rewrite(t, func(text string) string { return strings.Replace(text, "team-a", "team-b", 1) })
	}
	// As many answers in a row as there are replicas, twice: Envoy asks each in turn.
	fresh := 0
	peers.Eventually(t, within, "the app sees the new group whichever replica is asked", func() bool {
		fresh++
		if b.groups(t.Context()) != "team-b" {
			fresh = 0
		}
		return fresh == 4*len(f.replicas)
	})
	t.Logf("the new group was in the header on every replica %s after the files were changed, without a sign-in", time.Since(start).Round(time.Millisecond))
}

// rollingRestart restarts each replica in turn, as an orchestrator does, while signed-in users work.
func (f *fleet) rollingRestart(t *testing.T) {
	all := []*browser{f.signedIn(t, ada), f.signedIn(t, ada), f.signedIn(t, ada), f.signedIn(t, ada)}
	outside := f.signedIn(t, cy)
	l := underLoad(t, ada, all...)
	for _, r := range f.replicas {
		pid, start := r.Pid(), time.Now()
		r.restart()
		t.Logf("%s: SIGTERM, gone, started again and ready in %s", r.name, time.Since(start).Round(time.Millisecond))
		if r.Pid() == pid {
			t.Fatalf("%s was not restarted", r.name)
		}
		f.allHealthy(t)
	}
	l.done(t, "rolling restart")
	stays(t, "after the restarts", outside, cy)
	if p, err := outside.visit(t.Context(), http.MethodGet, "http://other.second.test:"+f.port+"/headers", nil); err != nil || p.status != http.StatusOK {
		t.Errorf("single sign-on at another host after the restarts: %v, %v", p, err)
	}
	for _, r := range f.replicas {
		if log := r.Log(); strings.Contains(log, "drained with losses") {
			t.Errorf("%s lost something: %s", r.name, lines(log, "drained with losses"))
		}
	}
}

// lines are those of a log that hold some text.
func lines(log, text string) string {
	all := strings.Split(log, "\n")
	return strings.Join(slices.DeleteFunc(all, func(line string) bool { return !strings.Contains(line, text) }), "\n")
}
