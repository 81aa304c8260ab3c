package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/test/peers"
)

// A crowd is a service on a database with many sessions of a thousand users.
type crowd struct {
	*service

	stored int
}

const crowdHost = "app.example.com"

// crowdSession is how Dex's records of a session and a user are stored, with the place of its number. Lifetimes are a day from now.
const crowdSession = `'{"ID":"session-' || lpad(i::text, 32, '0') || '","Secret":"not asked for here","UserID":"user' || i / $2 || '","ConnectorID":"local","ClientStates":{},"CreatedAt":"'
	|| $3 || '","LastActivity":"' || $3 || '","UserAgent":"Mozilla/5.0","AbsoluteExpiry":"' || $4 || '","IdleExpiry":"' || $4 || '"}'`

// newCrowd starts the parts of a process on a database of its own, with room for capacity sessions in memory, and puts sessions into it past the store.
func newCrowd(t *testing.T, s *peers.PostgresServer, stored, capacity int) *crowd {
	t.Helper()
	ctx := t.Context()
	admin := connectTo(t, s, "postgres")
	database := fmt.Sprintf("crowd%d", stored)
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+database); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "gatehouse.yaml")
	file := fmt.Sprintf(`issuer: https://auth.example.com/dex
storage: {type: postgres, config: {host: %s, port: %s, database: %s, user: %s, password: %s, ssl: {caFile: %s}}}
connectors: [{type: mockCallback, id: mock, name: Mock}]
gateway: {hosts: [%s], session: {cache: %d, revalidate: 1h}}
`, host, port, database, s.User, s.Password, s.CA, crowdHost, capacity)
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := read(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	c := &crowd{stored: stored, service: &service{
		cfg: l.cfg, log: slog.New(slog.DiscardHandler), auditLog: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry(),
		audit: audit.NewWriter(discard{}, auditQueue), rekeyed: make(chan struct{}, 1),
	}}
	if err := c.openStore(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.view.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		_ = c.store.Close()
	})
	if err := c.build(ctx); err != nil {
		t.Fatal(err)
	}
	fillCrowd(t, connectTo(t, s, database), stored)
	return c
}

// discard is a log that nobody reads.
type discard struct{}

// Write implements io.Writer.
func (discard) Write(p []byte) (int, error) { return len(p), nil }

func connectTo(t *testing.T, s *peers.PostgresServer, database string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=require", s.User, s.Password, s.Addr, database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

func fillCrowd(t *testing.T, db *pgx.Conn, stored int) {
	t.Helper()
	now := utc()
	end := now.Add(24 * time.Hour)
	rows, err := db.Query(t.Context(), "SELECT indexdef FROM pg_indexes WHERE schemaname = 'gatehouse' AND tablename = 'record' AND indexname NOT LIKE '%_pkey'")
	if err != nil {
		t.Fatal(err)
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowTo[string]) // made anew in the end, which is faster
	if err != nil || len(indexes) < 2 {
		t.Fatalf("indexes: %v, %v", indexes, err)
	}
	if _, err := db.Exec(t.Context(), "DROP INDEX gatehouse.record_owner, gatehouse.record_expires"); err != nil {
		t.Fatal(err)
	}
	begin, ends, each := now.Format(time.RFC3339Nano), end.Format(time.RFC3339Nano), max(1, stored/1000)
	if _, err := db.Exec(t.Context(), `INSERT INTO gatehouse.record (kind, id, owner, version, expires, data)
		SELECT 'auth_session', convert_to('session-' || lpad(i::text, 32, '0'), 'UTF8'), convert_to(length('user' || i / $2) || ':user' || i / $2 || ':local', 'UTF8'), 1, $5,
		convert_to(`+crowdSession+`, 'UTF8') FROM generate_series(0, $1 - 1) AS i`, stored, each, begin, ends, end.UnixNano()); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `INSERT INTO gatehouse.record (kind, id, owner, version, expires, data)
		SELECT 'user_identity', convert_to(length('user' || i) || ':user' || i || ':local', 'UTF8'), ''::bytea, 1, 0,
		convert_to('{"UserID":"user' || i || '","ConnectorID":"local","Claims":{"UserID":"user' || i || '","Username":"user","Email":"user' || i || '@example.com","EmailVerified":true,"Groups":["team"]},"CreatedAt":"'
		|| $1 || '","LastLogin":"' || $1 || '"}', 'UTF8') FROM generate_series(0, 999) AS i`, begin); err != nil {
		t.Fatal(err)
	}
	for _, definition := range indexes {
		if _, err := db.Exec(t.Context(), definition); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(t.Context(), "ANALYZE gatehouse.record"); err != nil {
		t.Fatal(err)
	}
}

// requests are checks by n browsers of so many stored sessions, evenly spread.
func (c *crowd) requests(n int) (all []*authv3.CheckRequest) {
	for i := range n {
		id := fmt.Sprintf("session-%032d", i*(c.stored/n))
		all = append(all, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: http.MethodGet, Path: "/", Host: crowdHost, Scheme: "https", Headers: map[string]string{
				":authority": crowdHost, ":path": "/", ":method": http.MethodGet, ":scheme": "https",
				"cookie": handoff.Names(true).Session + "=" + handoff.SealCookie(c.ring, crowdHost, id, time.Now()),
			},
		}}}})
	}
	return all
}

// pass asks once for each request and returns how long that took.
func (c *crowd) pass(t *testing.T, all []*authv3.CheckRequest) time.Duration {
	t.Helper()
	start := time.Now()
	for _, in := range all {
		out, err := c.authz.Check(t.Context(), in)
		if err != nil || out.GetOkResponse() == nil {
			t.Fatalf("a session that is stored: got %v, %v", out, err)
		}
	}
	return time.Since(start)
}

// TestAMillionSessions compares a storage of a million sessions with one of a thousand: in memory are as many as there is room for, and a
// check of one that is there costs the same.
func TestAMillionSessions(t *testing.T) {
	const stored, capacity, hot, rounds = 1_000_000, 4_000, 1_000, 30
	s := peers.Postgres(t, peers.PostgresOptions{Settings: []string{"max_wal_size=8GB", "maintenance_work_mem=256MB", "autovacuum=off"}})
	start := time.Now()
	small, big := newCrowd(t, s, hot, capacity), newCrowd(t, s, stored, capacity)
	t.Logf("%d and %d sessions were stored in %s", hot, stored, time.Since(start).Round(time.Millisecond))

	// More sessions than there is room for.
	many := big.requests(2 * capacity)
	cold := big.pass(t, many) / time.Duration(len(many))
	stats := big.view.Stats()
	if stats.Size > stats.Capacity || stats.Capacity > capacity+capacity/8 || stats.Evictions == 0 || stats.Misses < uint64(len(many)) {
		t.Errorf("after %d sessions: got %+v, want at most %d in memory", len(many), stats, capacity)
	}
	smallHot, bigHot := small.requests(hot), big.requests(hot)
	coldSmall := small.pass(t, smallHot) / hot
	for range 5 { // until they have pushed out what nobody asks for any more
		big.pass(t, bigHot)
		small.pass(t, smallHot)
	}
	misses := [2]uint64{small.view.Stats().Misses, big.view.Stats().Misses}

	var ratios []float64
	var took [2]time.Duration
	for range rounds { // by turns, since other programs run beside
		a, b := small.pass(t, smallHot), big.pass(t, bigHot)
		ratios = append(ratios, float64(b)/float64(a))
		took[0], took[1] = took[0]+a, took[1]+b
	}
	slices.Sort(ratios)
	if got := [2]uint64{small.view.Stats().Misses, big.view.Stats().Misses}; got != misses {
		t.Errorf("the storage was read for sessions in memory: misses went from %v to %v", misses, got)
	}
	ratio := ratios[rounds/2]
	allocs := [2]float64{allocations(t, small, smallHot), allocations(t, big, bigHot)}
	t.Logf("a check of a session in memory: %s of %d stored, %s of %d, ratio %.2f; allocations %v", took[0]/hot/rounds, hot, took[1]/hot/rounds, stored, ratio, allocs)
	t.Logf("of one that is not: %s of %d stored, %s of %d; in memory are %d, with room for %d", coldSmall, hot, cold, stored, stats.Size, stats.Capacity)
	if ratio > 1.5 {
		t.Errorf("a check of one in %d stored sessions costs %.2f times as much as of one in %d, want the same", stored, ratio, hot)
	}
	if allocs[1] > allocs[0]+1 {
		t.Errorf("a check allocates %g times with %d stored sessions, and %g times with %d", allocs[1], stored, allocs[0], hot)
	}
}

// allocations returns how often a check allocates.
func allocations(t *testing.T, c *crowd, all []*authv3.CheckRequest) float64 {
	t.Helper()
	i := 0
	return testing.AllocsPerRun(len(all), func() {
		if out, err := c.authz.Check(t.Context(), all[i%len(all)]); err != nil || out.GetOkResponse() == nil {
			t.Error(strings.TrimSpace(fmt.Sprint(out, err)))
		}
		i++
	})
}
