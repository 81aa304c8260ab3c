package replicas

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatehouse/test/peers"
)

// TestFeed cuts what tells one replica of the changes of the other.
func TestFeed(t *testing.T) {
	t.Parallel()
	s := peers.Postgres(t, peers.PostgresOptions{Settings: []string{"log_statement=all"}}) // see endListening
	f := newFleet(t, 1, onPostgres(s, s.Addr), nil)
	proxy := peers.NewProxy(t, s.Addr)
	b := f.beside(t, "B", onPostgres(s, proxy.Addr), nil)
	t.Run("whole", func(t *testing.T) { cutOff(t, f, b) })
	t.Run("the listening connections are ended by the server", func(t *testing.T) {
		endListening(t, s, 2)
		cutOff(t, f, b)
	})
	t.Run("the connections of B are cut", func(t *testing.T) { missedWhileCut(t, f, b, proxy) })
}

// revoke ends the session of a browser by the command, through the admin listener of a replica.
func (r *replica) revoke(t *testing.T, browser *browser) {
	t.Helper()
	p, err := browser.step(t.Context(), http.MethodGet, browser.f.app+"/_gatehouse/whoami", nil)
	if err != nil {
		t.Fatal(err)
	}
	var who struct {
		Session struct {
			ID string `json:"id_hash"`
		} `json:"session"`
	}
	if err := json.Unmarshal([]byte(p.body), &who); err != nil || who.Session.ID == "" {
		t.Fatalf("whoami: %v: %s", err, p)
	}
	r.command(t, "sessions", "revoke", who.Session.ID)
}

// command runs the product's command against the admin listener of a replica.
func (r *replica) command(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	out, err := exec.CommandContext(ctx, peers.Binary(t), append(args, "--admin", r.admin)...).CombinedOutput()
	if err != nil {
		t.Fatalf("gatehouse %v through %s: %v: %s", args, r.name, err, out)
	}
}

// cutOff revokes a session through A that both know, and says how long it takes until B refuses it.
func cutOff(t *testing.T, a, b *fleet) {
	t.Helper()
	onA := a.signedIn(t, ada)
	onB := onA.at(t, b)
	stays(t, "on B", onB, ada)
	a.replicas[0].revoke(t, onA)
	start := time.Now()
	refused(t, onB)
	t.Logf("revoked through A, refused on B after %s", time.Since(start).Round(time.Millisecond))
	if p, err := onA.look(t.Context()); err != nil || p.status != http.StatusFound {
		t.Errorf("on A: got %v and %v, want the way to the sign-in", p, err)
	}
}

// refused waits until a browser is sent to sign in.
func refused(t *testing.T, b *browser) {
	t.Helper()
	peers.Eventually(t, within, "the session is refused", func() bool {
		p, err := b.look(t.Context())
		return err == nil && p.status == http.StatusFound
	})
}

// listens is what the server's log has of a connection that begins to wait for notifications.
var listens = regexp.MustCompile(`\[(\d+)\] LOG: .*: LISTEN `)

// endListening ends the connections that wait for notifications, of which there are n. The server's log tells which they are: its table of
// connections has the last statement of each, and that is a ping once one has heard nothing for a while.
func endListening(t *testing.T, s *peers.PostgresServer, n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), "postgres://"+s.User+":"+s.Password+"@"+s.Addr+"/postgres?sslmode=require")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	count := func(what string) (found int) {
		t.Helper()
		var pids []string
		for _, m := range listens.FindAllStringSubmatch(s.Log(), -1) {
			pids = append(pids, m[1])
		}
		if err := conn.QueryRow(t.Context(), "SELECT count("+what+") FROM pg_stat_activity WHERE pid::text = ANY($1)", pids).Scan(&found); err != nil {
			t.Fatal(err)
		}
		return found
	}
	peers.Eventually(t, within, fmt.Sprintf("%d connections listen", n), func() bool { return count("*") == n })
	if ended := count("pg_terminate_backend(pid)"); ended != n {
		t.Errorf("ended %d listening connections, want %d", ended, n)
	}
}

// missedWhileCut revokes a session while B hears of nothing: B goes on with what it knows, and catches up as soon as it hears again.
func missedWhileCut(t *testing.T, a, b *fleet, proxy *peers.Proxy) {
	t.Helper()
	gone, remains := a.signedIn(t, ada), a.signedIn(t, bob)
	goneOnB, remainsOnB := gone.at(t, b), remains.at(t, b)
	b.known(t, ada, goneOnB)
	b.known(t, bob, remainsOnB)
	proxy.Cut(true)
	a.replicas[0].revoke(t, gone)
	if p, err := gone.look(t.Context()); err != nil || p.status != http.StatusFound {
		t.Errorf("on A: got %v and %v, want the way to the sign-in", p, err)
	}
	stays(t, "B cannot know yet, and does not refuse everybody", goneOnB, ada)
	stays(t, "another session on B", remainsOnB, bob)
	if age := b.replicas[0].metric(t, "gatehouse_feed_age_seconds"); age <= 0 {
		t.Errorf("gatehouse_feed_age_seconds is %g", age)
	}
	proxy.Cut(false)
	start := time.Now()
	refused(t, goneOnB)
	t.Logf("revoked through A while B was cut off: refused on B %s after it could connect again", time.Since(start).Round(time.Millisecond))
	stays(t, "another session on B", remainsOnB, bob)
	cutOff(t, a, b)
}

// One of two replicas is cut off from the storage for as long as it likes. Envoy leaves it out: nobody notices any more.
func TestOneReplicaIsCutOff(t *testing.T) {
	t.Parallel()
	s := peers.Postgres(t, peers.PostgresOptions{})
	proxy := peers.NewProxy(t, s.Addr)
	f := newFleetOn(t, []table{onPostgres(s, s.Addr), onPostgres(s, proxy.Addr)}, nil)
	working := f.signedIn(t, ada)
	f.known(t, ada, working)
	l := underLoad(t, ada, working)
	proxy.Cut(true)
	start := time.Now()
	f.allHealthy(t, 1)
	t.Logf("Envoy left out the replica without a storage after %s", time.Since(start).Round(100*time.Millisecond))
	for range 10 { // sessions that no replica has met before
		b := f.signedIn(t, bob)
		for range 4 {
			stays(t, "a new session", b, bob)
		}
	}
	l.done(t, "one of two replicas is cut off from the storage")
	proxy.Cut(false)
	start = time.Now()
	f.allHealthy(t)
	t.Logf("and took it back %s after it was connected again", time.Since(start).Round(100*time.Millisecond))
	f.known(t, ada, working)
}
