package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/jackc/pgx/v5"

	"gatehouse/test/peers"
)

func openPostgresDriver(t *testing.T, c PostgresConfig) *postgresDriver {
	t.Helper()
	d, err := openPostgres(t.Context(), c, quiet())
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// waiting waits until one of our connections waits for an advisory lock, and returns its process id.
func waiting(t *testing.T, conn *pgx.Conn) (pid int32) {
	t.Helper()
	peers.Eventually(t, time.Minute, "a write waits for a lock", func() bool {
		rows, err := conn.Query(t.Context(), "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'")
		must(t, err)
		pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		must(t, err)
		if len(pids) != 1 {
			return false
		}
		pid = pids[0]
		return true
	})
	return pid
}

func ids(changes []Change) string {
	var out []string
	for _, c := range changes {
		out = append(out, c.ID)
	}
	return strings.Join(out, ",")
}

// A transaction that has its Seq and is slow to commit: none with a later Seq is shown before it.
func TestPostgresCommitsInTheOrderOfTheLog(t *testing.T) {
	c := newDatabase(t)
	d, slow, watch := openPostgresDriver(t, c), connect(t, c), connect(t, c) // all before something waits: no statement may for long
	ctx := t.Context()
	tx, err := slow.Begin(ctx)
	must(t, err)
	args, err := pgArguments([]Op{op(Create, "slow", "", "", 0)}, false)
	must(t, err)
	_, err = tx.Exec(ctx, pgWrite, args...)
	must(t, err)

	done := make(chan error, 1)
	var seq int64
	go func() {
		var err error
		seq, err = d.Write(ctx, []Op{op(Create, "later", "", "", 0)})
		done <- err
	}()
	waiting(t, watch)
	before, err := d.Changes(ctx, 0, 10)
	must(t, err)
	if len(before) != 0 {
		t.Errorf("got %q in the log while an earlier write is open, want nothing", ids(before))
	}
	// What leaves nothing in the log does not wait.
	write(t, d, Op{Verb: Create, Record: Record{Kind: "k", ID: "silent"}})
	must(t, tx.Commit(ctx))
	must(t, <-done)
	after, err := d.Changes(ctx, 0, 10)
	must(t, err)
	if got := ids(after); got != "slow,later" || after[1].Seq != seq {
		t.Errorf("got %q, want slow,later", got)
	}
	if head, err := d.Head(ctx); err != nil || head != seq {
		t.Errorf("head: got %d and %v, want %d", head, err, seq)
	}
}

// Many processes write at once while one reads: what it has passed by never appears.
func TestPostgresLogHasNoLateEntries(t *testing.T) {
	const writers, each = 6, 40
	c := newDatabase(t)
	ctx := t.Context()
	reader := openPostgresDriver(t, c)
	// A commit comes some time after its place in the log is known.
	_, err := connect(t, c).Exec(ctx, `CREATE FUNCTION public.linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(random() / 200); RETURN NULL; END';
		CREATE TRIGGER linger AFTER INSERT ON gatehouse.change FOR EACH ROW EXECUTE FUNCTION public.linger()`)
	must(t, err)
	var drivers []*postgresDriver
	for range writers {
		drivers = append(drivers, openPostgresDriver(t, c))
	}
	var live atomic.Int64
	live.Store(writers)
	for w, d := range drivers {
		go func() {
			defer live.Add(-1)
			inParallel(t, 4, func(p int) error {
				for i := range each / 4 {
					if _, err := d.Write(ctx, []Op{op(Create, fmt.Sprintf("%d-%d-%d", w, p, i), "", "", 0)}); err != nil {
						return err
					}
				}
				return nil
			})
		}()
	}
	var seen []int64
	for last := false; ; {
		after := int64(0)
		if len(seen) > 0 {
			after = seen[len(seen)-1]
		}
		page, err := reader.Changes(ctx, after, 7)
		must(t, err)
		for _, change := range page {
			seen = append(seen, change.Seq)
		}
		if len(page) == 0 {
			if last {
				break
			}
			last = live.Load() == 0
		}
	}
	if len(seen) != writers*each || !slices.IsSorted(seen) || len(slices.Compact(seen)) != writers*each {
		t.Errorf("followed %d changes, want %d in order", len(seen), writers*each)
	}
}

// Somebody else's open transaction, which has written and holds a snapshot, in this database and in another one, stops nothing.
func TestPostgresForeignTransactionsDoNotStopTheLog(t *testing.T) {
	c := newDatabase(t)
	d := openPostgresDriver(t, c)
	ctx := t.Context()
	for _, other := range []PostgresConfig{c, newDatabase(t)} {
		foreign := connect(t, other)
		_, err := foreign.Exec(ctx, "CREATE TABLE public.foreign_table (a int)")
		must(t, err)
		tx, err := foreign.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		must(t, err)
		_, err = tx.Exec(ctx, "INSERT INTO public.foreign_table VALUES (1)")
		must(t, err)
		defer func() { must(t, tx.Rollback(context.WithoutCancel(ctx))) }()
	}
	seq := write(t, d, op(Create, "a", "", "", 0))
	got, err := d.Changes(ctx, 0, 10)
	must(t, err)
	if len(got) != 1 || got[0].Seq != seq {
		t.Errorf("got %q in the log, want the change at once", ids(got))
	}
}

// A write that the server refuses, or that waits for a record which somebody holds, takes no other with it.
func TestPostgresWritesThatShareACommitFailAlone(t *testing.T) {
	c := newDatabase(t)
	d, foreign, watch := openPostgresDriver(t, c), connect(t, c), connect(t, c)
	ctx := t.Context()
	_, err := foreign.Exec(ctx, "ALTER TABLE gatehouse.record ADD CHECK (id <> 'bad')")
	must(t, err)
	write(t, d, op(Create, "exists", "", "", 0))
	// Hold the lock until all of them wait: the first alone, the others for their turn.
	_, err = foreign.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(pgLogLock))
	must(t, err)
	got := make([]error, 6)
	var done sync.WaitGroup
	begin := func(i int, o Op) { done.Go(func() { _, got[i] = d.Write(ctx, []Op{o}) }) }
	begin(0, op(Create, "first", "", "", 0))
	waiting(t, watch)
	begin(1, op(Create, "good", "", "", 0))
	begin(2, op(Create, "bad", "", "", 0))
	begin(3, op(Create, "exists", "", "", 0))
	begin(4, op(Put, "exists", "", "", 1))
	begin(5, op(Delete, "gone", "", "", 0))
	peers.Eventually(t, time.Minute, "five writes wait for their turn", func() bool {
		d.writer.mu.Lock()
		defer d.writer.mu.Unlock()
		return len(d.writer.waiting) == 5
	})
	_, err = foreign.Exec(ctx, "SELECT pg_advisory_unlock($1)", int64(pgLogLock))
	must(t, err)
	done.Wait()
	for i, want := range []error{nil, nil, nil, storage.ErrAlreadyExists, ErrConflict, storage.ErrNotFound} {
		if i == 2 {
			if code, _ := sqlState(got[i]); code != "23514" || isOutcome(got[i]) {
				t.Errorf("the bad one: got %v, want the server's refusal", got[i])
			}
			continue
		}
		if !errors.Is(got[i], want) {
			t.Errorf("write %d: got %v, want %v", i, got[i], want)
		}
	}
	changes, err := d.Changes(ctx, 0, 10)
	must(t, err)
	if got := ids(changes); got != "exists,first,good" {
		t.Errorf("the log holds %q, want exists,first,good", got)
	}
}

// The connection is ended while it commits: the outcome is not one of those that mean that nothing was written, and the store goes on.
func TestPostgresConnectionEndedDuringCommit(t *testing.T) {
	c := newDatabase(t)
	d, foreign := openPostgresDriver(t, c), connect(t, c)
	ctx := t.Context()
	// Constraint triggers that are deferred run when the transaction commits.
	_, err := foreign.Exec(ctx, `CREATE FUNCTION public.stall() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(99); RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER stall AFTER INSERT ON gatehouse.record DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.stall();
		SELECT pg_advisory_lock(99)`)
	must(t, err)
	for name, o := range map[string]Op{
		"logged": op(Create, "a", "", "", 0),
		"silent": {Verb: Create, Record: Record{Kind: "k", ID: "b"}},
	} {
		done := make(chan error, 1)
		go func() { _, err := d.Write(ctx, []Op{o}); done <- err }()
		pid := waiting(t, foreign)
		_, err := foreign.Exec(ctx, "SELECT pg_terminate_backend($1)", pid)
		must(t, err)
		if err := <-done; err == nil || isOutcome(err) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want an ordinary error", name, err)
		}
		_, err = d.Read(ctx, "k", o.Record.ID)
		wantErr(t, err, storage.ErrNotFound)
	}
	_, err = foreign.Exec(ctx, "SELECT pg_advisory_unlock(99)")
	must(t, err)
	write(t, d, op(Create, "after", "", "", 0))
}

// The answer to a commit is lost: the record is there, and the error does not say otherwise.
func TestPostgresAnswerLost(t *testing.T) {
	c := newDatabase(t)
	p := newProxy(t, net.JoinHostPort(c.Host, fmt.Sprint(c.Port)))
	through := c
	through.Host, through.Port = p.address(), 0
	d, direct := openPostgresDriver(t, through), openPostgresDriver(t, c)
	_, err := d.Write(t.Context(), []Op{op(Create, "a", "", lostAnswer, 0)})
	if err == nil || isOutcome(err) {
		t.Errorf("got %v, want an ordinary error", err)
	}
	read(t, direct, "a")
	write(t, d, op(Create, "b", "", "", 0))
}

// lostAnswer is a text to which no answer comes through a proxy.
const lostAnswer = "lose the answer to this"

// A proxy passes on what it gets, and hangs up instead of giving the answer to a message with lostAnswer.
type proxy struct{ listener net.Listener }

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			server, err := d.DialContext(context.WithoutCancel(t.Context()), "tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			var deaf atomic.Bool
			go pass(client, server, func(b []byte) bool {
				if bytes.Contains(b, []byte(lostAnswer)) {
					deaf.Store(true)
				}
				return true
			})
			go pass(server, client, func([]byte) bool { return !deaf.Load() })
		}
	}()
	return &proxy{l}
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// pass passes on what is allowed, and then closes both ends.
func pass(from, to net.Conn, allowed func([]byte) bool) {
	defer func() { _ = errors.Join(from.Close(), to.Close()) }()
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		if err != nil || !allowed(b[:n]) {
			return
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// Two writes that lock each other's records: the server undoes one, and it is made again.
func TestPostgresDeadlocksAreRepeated(t *testing.T) {
	c := newDatabase(t)
	d, foreign, watch := openPostgresDriver(t, c), connect(t, c), connect(t, c)
	ctx := t.Context()
	write(t, d, op(Create, "a", "", "", 0), op(Create, "b", "", "", 0))
	// Ours has changed a and waits, until the other one waits for a, before it goes on to b.
	_, err := foreign.Exec(ctx, `CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(99); RETURN NULL; END';
		CREATE TRIGGER hold AFTER UPDATE ON gatehouse.record FOR EACH ROW WHEN (NEW.id = 'a') EXECUTE FUNCTION public.hold()`)
	must(t, err)
	for range 3 { // the server chooses whom it undoes: the one that finds out, which looks once, a second after it began to wait
		_, err := watch.Exec(ctx, "SELECT pg_advisory_lock(99)")
		must(t, err)
		tx, err := foreign.Begin(ctx)
		must(t, err)
		_, err = tx.Exec(ctx, "SET LOCAL deadlock_timeout = '10min'; SELECT 1 FROM gatehouse.record WHERE id = 'b' FOR UPDATE")
		must(t, err)
		a, b := read(t, d, "a"), read(t, d, "b")
		ours, theirs := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := d.Write(ctx, []Op{op(Put, "a", "", "x", a.Version), op(Put, "b", "", "x", b.Version)})
			ours <- err
		}()
		waiting(t, watch)
		go func() {
			_, err := tx.Exec(ctx, "SELECT 1 FROM gatehouse.record WHERE id = 'a' FOR UPDATE")
			theirs <- err
		}()
		peers.Eventually(t, time.Minute, "both wait", func() bool {
			var n int
			must(t, watch.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&n))
			return n == 2
		})
		_, err = watch.Exec(ctx, "SELECT pg_advisory_unlock(99)")
		must(t, err)
		must(t, <-theirs)
		must(t, tx.Commit(ctx))
		must(t, <-ours)
	}
}

func TestPostgresHonoursContexts(t *testing.T) {
	c := newDatabase(t)
	d, foreign, watch := openPostgresDriver(t, c), connect(t, c), connect(t, c)
	_, err := foreign.Exec(t.Context(), "SELECT pg_advisory_lock($1)", int64(pgLogLock))
	must(t, err)
	for i := range 3 { // the first is being written, the others wait for their turn
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := d.Write(ctx, []Op{op(Create, fmt.Sprint(i), "", "", 0)})
			done <- err
		}()
		if i == 0 {
			waiting(t, watch)
		} else {
			peers.Eventually(t, time.Minute, "a write waits for its turn", func() bool {
				d.writer.mu.Lock()
				defer d.writer.mu.Unlock()
				return len(d.writer.waiting) == 1
			})
		}
		cancel()
		wantErr(t, <-done, context.Canceled)
	}
	_, err = foreign.Exec(t.Context(), "SELECT pg_advisory_unlock($1)", int64(pgLogLock))
	must(t, err)
	write(t, d, op(Create, "after", "", "", 0))
	changes, err := d.Changes(t.Context(), 0, 10)
	must(t, err)
	if got := ids(changes); got != "0,after" {
		t.Errorf("the log holds %q, want 0,after: those that waited were withdrawn", got)
	}
}

// Connections that were cut a moment ago, which no ping has found out yet, are replaced without a reader's noticing.
func TestPostgresReadsSurviveCutConnections(t *testing.T) {
	c := newDatabase(t)
	d, admin := openPostgresDriver(t, c), connect(t, c)
	write(t, d, op(Create, "a", "", "", 0))
	for range 5 {
		inParallel(t, 5, func(int) error { _, err := d.Read(t.Context(), "k", "a"); return err })
		const others = " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
		_, err := admin.Exec(t.Context(), "SELECT pg_terminate_backend(pid)"+others)
		must(t, err)
		peers.Eventually(t, time.Minute, "they are gone", func() bool {
			var n int
			must(t, admin.QueryRow(t.Context(), "SELECT count(*)"+others).Scan(&n))
			return n == 0
		})
		read(t, d, "a")
	}
}

// The database stops and comes back: calls fail, none hangs, and no call fails after that.
func TestPostgresRestartOfTheServer(t *testing.T) {
	server := peers.Postgres(t, peers.PostgresOptions{})
	d := openPostgresDriver(t, configOf(t, server))
	ctx := t.Context()
	write(t, d, op(Create, "a", "", "", 0))
	must(t, server.Kill())
	_, err := d.Read(ctx, "k", "a")
	if err == nil || errors.Is(err, storage.ErrNotFound) || !strings.Contains(err.Error(), "check that PostgreSQL runs there") {
		t.Errorf("read without a server: got %v, want an error that says what to do", err)
	}
	if _, err := d.Write(ctx, []Op{op(Create, "b", "", "", 0)}); err == nil || isOutcome(err) {
		t.Errorf("write without a server: got %v, want an ordinary error", err)
	}
	must(t, server.Start(ctx))
	read(t, d, "a")
	write(t, d, op(Create, "b", "", "", 0))

	must(t, server.Pause())
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = d.Read(short, "k", "a")
	wantErr(t, err, context.DeadlineExceeded)
	_, err = d.Write(short, []Op{op(Create, "c", "", "", 0)})
	wantErr(t, err, context.DeadlineExceeded)
	must(t, server.Resume())
	read(t, d, "a")
}
