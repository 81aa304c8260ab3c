package store

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatehouse/test/peers"
)

// shared is the PostgreSQL server of this test process, started by the first test that needs it; each test has a database of its own.
var shared sharedPostgres

type sharedPostgres struct {
	mu        sync.Mutex
	server    *peers.PostgresServer
	databases atomic.Int64
}

func (p *sharedPostgres) start(t testing.TB) *peers.PostgresServer {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil {
		s, err := peers.StartPostgres(t.Context(), peers.PostgresOptions{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.server = s
	}
	return p.server
}

func (p *sharedPostgres) stop() error {
	if p.server == nil {
		return nil
	}
	return p.server.Close()
}

// newDatabase makes an empty database on the shared server.
func newDatabase(t testing.TB) PostgresConfig {
	t.Helper()
	of := configOf(t, shared.start(t))
	name := fmt.Sprintf("test_%d", shared.databases.Add(1))
	admin := connect(t, of)
	_, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0") // which nobody is connected to, not even to tidy it up
	must(t, err)
	must(t, admin.Close(t.Context()))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		admin := connect(t, of)
		peers.Eventually(t, time.Minute, "the database is dropped", func() bool { // the server waits 5 s for those who use it, no longer
			_, err = admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
			return err == nil
		})
		must(t, admin.Close(ctx))
	})
	c := of
	c.Database = name
	return c
}

func configOf(t testing.TB, s *peers.PostgresServer) PostgresConfig {
	t.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	must(t, err)
	n, err := strconv.Atoi(port)
	must(t, err)
	return PostgresConfig{Host: host, Port: n, Database: "postgres", User: s.User, Password: func() string { return s.Password }, SSL: PostgresSSL{Mode: "disable"}, ConnectTimeout: time.Minute, log: quiet()}
}

// connect returns a connection of somebody else.
func connect(t testing.TB, c PostgresConfig) *pgx.Conn {
	t.Helper()
	pc, err := c.pool()
	must(t, err)
	conn, err := pgx.ConnectConfig(context.WithoutCancel(t.Context()), pc.ConnConfig)
	must(t, err)
	_, err = conn.Exec(context.WithoutCancel(t.Context()), "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func openDatabase(t testing.TB, c PostgresConfig, o Options) *Store {
	t.Helper()
	s, err := OpenPostgres(t.Context(), c, o)
	must(t, err)
	return s
}
