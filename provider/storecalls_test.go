package provider

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// A callDriver counts the calls of a database by kind of record. A write of several records is one call: a transaction. What runs by the clock
// is not counted: looks into the outbox and at the signing keys, and the times of the last answers about users, which are kept now and then.
type callDriver struct {
	store.Driver

	mu    sync.Mutex
	calls map[string]int // "read auth_session"
}

func (d *callDriver) count(call string, k store.Kind) {
	if k == store.KindOutbox || k == store.KindVouched || k == store.KindKeys {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls[call+" "+string(k)]++
}

// Read implements store.Backend.
func (d *callDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	d.count("read", kind)
	return d.Driver.Read(ctx, kind, id)
}

// Scan implements store.Backend.
func (d *callDriver) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	d.count("list", q.Kind)
	return d.Driver.Scan(ctx, q)
}

// Write implements store.Backend.
func (d *callDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	d.count("write", ops[0].Record.Kind)
	return d.Driver.Write(ctx, ops)
}

// A storeCalls is how often a database was called.
type storeCalls struct{ reads, lists, writes int }

func (c storeCalls) String() string {
	return fmt.Sprintf("%d reads, %d lists, %d writes", c.reads, c.lists, c.writes)
}

// during returns what f takes.
func (d *callDriver) during(t *testing.T, what string, f func()) (c storeCalls) {
	t.Helper()
	take := func() (m map[string]int) {
		d.mu.Lock()
		defer d.mu.Unlock()
		m, d.calls = d.calls, map[string]int{}
		return m
	}
	take()
	f()
	var list []string
	all := take()
	for _, call := range slices.Sorted(maps.Keys(all)) {
		list = append(list, fmt.Sprintf("%d %s", all[call], call))
		switch verb, _, _ := strings.Cut(call, " "); verb {
		case "read":
			c.reads += all[call]
		case "list":
			c.lists += all[call]
		default:
			c.writes += all[call]
		}
	}
	t.Logf("%s: %s: %s", what, c, strings.Join(list, ", "))
	return c
}

func newCallDriver(t *testing.T, clk *clock) (*callDriver, *store.Store) {
	t.Helper()
	d := &callDriver{Driver: store.MemoryDriver(), calls: map[string]int{}}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	return d, st
}

// storeCallRows returns the table "Store calls" of docs/performance.md: reads, lists and writes by what takes them.
func storeCallRows(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(peers.Root(t), "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Store calls\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]string{}
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) == 6 {
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows[cells[1]] = fmt.Sprintf("%s reads, %s lists, %s writes", cells[2], cells[3], cells[4])
		}
	}
	return rows
}

// TestStoreCalls counts what the store is called for, and holds docs/performance.md to it: a database that is slow, or far away, is waited for
// as often.
func TestStoreCalls(t *testing.T) {
	rows := storeCallRows(t)
	hold := func(t *testing.T, d *callDriver, what string, f func()) {
		t.Helper()
		if got := d.during(t, what, f).String(); got != rows[what] {
			t.Errorf("%s: counted %s; docs/performance.md says %q", what, got, rows[what])
		}
	}
	t.Run("sign-in", func(t *testing.T) { signInCalls(t, hold) })
	t.Run("revalidation", func(t *testing.T) { revalidationCalls(t, hold) })
	t.Run("cut-off", func(t *testing.T) { cutOffCalls(t, hold) })
}

type holdFunc func(t *testing.T, d *callDriver, what string, f func())

func signInCalls(t *testing.T, hold holdFunc) {
	clk := &clock{}
	d, st := newCallDriver(t, clk)
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	clk.stop()
	b := w.browser()
	hold(t, d, "a sign-in page, and a wrong password", func() {
		b.get("https://app.example.com/")
		b.signIn("admin@example.com", "wrong")
	})
	hold(t, d, "a user's first sign-in", func() { b.signIn("admin@example.com", "password") })
	in := func(b *browser) {
		t.Helper()
		if !strings.HasPrefix(b.page, "hello admin") {
			t.Fatalf("got %d %q", b.code, b.page)
		}
	}
	in(b)
	clk.add(time.Minute)
	second := w.browser()
	hold(t, d, "a later sign-in, at another browser", func() {
		second.get("https://app.example.com/")
		second.signIn("admin@example.com", "password")
	})
	in(second)
	clk.add(time.Minute)
	hold(t, d, "single sign-on at another app", func() { b.get("https://x.apps.example.com/") })
	in(b)
	clk.add(time.Minute)
	hold(t, d, "single sign-on at another client, with its code and tokens", func() { b.clientUser("admin@example.com", "") })
	clk.add(time.Minute)
	third := w.browser()
	hold(t, d, "a sign-in at another client, with its code and tokens", func() { third.clientUser("admin@example.com", "password") })
}

func revalidationCalls(t *testing.T, hold holdFunc) {
	t.Run("ldap", func(t *testing.T) {
		dir, clk := peers.Slapd(t, peers.SlapdOptions{}), &clock{}
		d, st := newCallDriver(t, clk)
		text := strings.Replace(slapdConfig(dir), "    preset: openldap\n", "    preset: openldap\n    watch: \"off\"\n", 1)
		w := newWorld(t, text, st, seal.NewKey(), clk)
		w.signInAs("alice", dir.Password)
		s := w.sessionOf("alice@example.test")
		asks := func() {
			clk.add(3 * time.Minute)
			if err := w.vouch(s); err != nil {
				t.Fatal(err)
			}
		}
		asks()
		hold(t, d, "a revalidation at a directory, nothing has changed", asks)
		dir.SetMember(t, "g3-leaf", "alice", false)
		hold(t, d, "a revalidation at a directory, other groups", asks)
	})
	t.Run("upstream", func(t *testing.T) {
		clk, p := &clock{}, &idp{groups: []string{"staff"}}
		d, st := newCallDriver(t, clk)
		w := upstreamWorld(t, p, st, clk)
		w.signsInUpstream()
		s := w.sessionOf("ida@example.org")
		asks := func() {
			t.Helper()
			before := p.asked
			clk.add(2 * time.Hour) // now it is asked before anybody is let in
			if err := w.vouch(s); err != nil || p.asked != before+1 {
				t.Fatalf("asked %d times, %v", p.asked-before, err)
			}
		}
		hold(t, d, "a revalidation upstream, its token is rotated", asks)
		p.set(func() { p.groups = []string{"night-shift"} })
		hold(t, d, "a revalidation upstream, other groups", asks)
	})
}

func cutOffCalls(t *testing.T, hold holdFunc) {
	clk := &clock{}
	d, st := newCallDriver(t, clk)
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	session := func() *Session {
		w.signInAs("user@example.com", "password")
		return w.sessionOf("user@example.com")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := session()
	hold(t, d, "a session revoked", func() { must(w.provider.Revoke(t.Context(), s.ID)) })
	session()
	hold(t, d, "a user with one session revoked", func() {
		_, err := w.provider.RevokeUser(t.Context(), s.ConnectorID, s.UserID)
		must(err)
	})
	session()
	hold(t, d, "a user with one session blocked", func() {
		_, err := w.provider.Block(t.Context(), s.ConnectorID, s.UserID, Forever)
		must(err)
	})
	if _, err := w.provider.Session(t.Context(), s.ID); !errors.Is(err, ErrNoSession) {
		t.Errorf("the session is there after all: %v", err)
	}
}
