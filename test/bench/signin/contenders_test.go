package signin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	gosundheit "github.com/AppsFlyer/go-sundheit"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/etcd"
	"github.com/dexidp/dex/storage/memory"
	"github.com/dexidp/dex/storage/sql"
	dexweb "github.com/dexidp/dex/web"

	"gatehouse/internal/config"
	"gatehouse/internal/seal"
	"gatehouse/provider"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
	"gatehouse/web"
)

// A backend is a database that both can use.
type backend struct {
	name string
	open func(*testing.B) (ours *store.Store, theirs storage.Storage)
}

func backends() []backend {
	return []backend{
		{"memory", func(b *testing.B) (*store.Store, storage.Storage) {
			return store.Memory(store.Options{}), memory.New(quiet())
		}},
		{"sqlite", openSQLite},
		{"postgres", func(b *testing.B) (*store.Store, storage.Storage) {
			return stores(b, peers.Postgres(b, peers.PostgresOptions{Durable: true}))
		}},
		{"etcd", openEtcd},
	}
}

func openSQLite(b *testing.B) (*store.Store, storage.Storage) {
	b.Helper()
	dir := b.TempDir()
	ours, err := store.OpenSQLite(b.Context(), filepath.Join(dir, "ours.db"), store.Options{})
	must(b, err)
	theirs, err := (&sql.SQLite3{File: filepath.Join(dir, "dex.db")}).Open(quiet())
	must(b, err)
	b.Cleanup(func() { must(b, errors.Join(ours.Close(), theirs.Close())) })
	return ours, theirs
}

func openEtcd(b *testing.B) (*store.Store, storage.Storage) {
	b.Helper()
	s := peers.Etcd(b, peers.EtcdOptions{})
	ours, err := store.OpenEtcd(b.Context(), store.EtcdOptions{Endpoints: []string{s.URL}}, store.Options{})
	must(b, err)
	theirs, err := (&etcd.Etcd{Endpoints: []string{s.URL}, Namespace: "dex/"}).Open(quiet())
	must(b, err)
	b.Cleanup(func() { must(b, errors.Join(ours.Close(), theirs.Close())) })
	return ours, theirs
}

// stores opens both on databases of one server that writes to the disk before it confirms, with Dex's default of five connections.
func stores(b *testing.B, s *peers.PostgresServer) (*store.Store, storage.Storage) {
	b.Helper()
	ctx := b.Context()
	host, port, err := net.SplitHostPort(s.Addr)
	must(b, err)
	n, err := strconv.ParseUint(port, 10, 16)
	must(b, err)
	admin := connect(b, s, "postgres")
	for _, name := range []string{"ours", "dex"} {
		_, err := admin.Exec(ctx, "CREATE DATABASE "+name)
		must(b, err)
	}
	ours, err := store.OpenPostgres(ctx, store.PostgresConfig{
		Host: host, Port: int(n), Database: "ours", User: s.User, Password: func() string { return s.Password }, SSL: store.PostgresSSL{Mode: "disable"},
	}, store.Options{})
	must(b, err)
	dex, err := (&sql.Postgres{
		NetworkDB: sql.NetworkDB{Host: host, Port: uint16(n), Database: "dex", User: s.User, Password: s.Password}, SSL: sql.SSL{Mode: "disable"},
	}).Open(quiet())
	must(b, err)
	b.Cleanup(func() { must(b, errors.Join(ours.Close(), dex.Close())) })
	return ours, dex
}

// gatehouse is the provider as `gatehouse serve` has it: its front door, its feed, and what it writes to its logs, which go nowhere.
func gatehouse(b *testing.B, st *store.Store) http.Handler {
	b.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(b.Context()))
	followed := make(chan struct{})
	go func() { defer close(followed); _ = st.Follow(ctx) }()
	b.Cleanup(func() { stop(); <-followed }) // before the store is closed: it was opened before
	var text strings.Builder
	fmt.Fprintf(&text, `issuer: %s
storage: {type: memory}
oauth2: {skipApprovalScreen: true}
sessions: {ssoSharedWithDefault: all}
staticClients:
- {id: app, name: App, secret: %s, redirectURIs: [%q]}
gateway: {hosts: [auth.example.test], default: signed-in}
connectors:
`, issuer, secret, callback)
	for i := range users {
		fmt.Fprintf(&text, "- {type: mockPassword, id: %s, name: Users %d, config: %s}\n", connectorID(i), i, connectorConfig())
	}
	cfg, _, err := config.Parse("gatehouse.yaml", []byte(text.String()), config.Options{Connector: provider.CheckConnector})
	must(b, err)
	pages, err := web.New(web.Options{})
	must(b, err)
	key := seal.NewKey()
	ring, err := seal.NewRing([][]byte{key}, front.Purposes()...)
	must(b, err)
	p, err := provider.New(ctx, provider.Options{
		Config: cfg, Store: st, Ring: ring, CookieKey: key, Pages: pages, Registry: prometheus.NewRegistry(), Now: utc, Log: quiet(), Audit: quiet(),
	})
	must(b, err)
	must(b, p.Reconcile(ctx))
	return p.Handler()
}

func utc() time.Time { return time.Now().UTC() }

// plainDex is Dex as its own command has it, with its own pages.
func plainDex(b *testing.B, s storage.Storage, sessions bool) http.Handler {
	b.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(b.Context()))
	b.Cleanup(stop)
	var connectors []storage.Connector
	for i := range users {
		connectors = append(connectors, storage.Connector{ID: connectorID(i), Type: "mockPassword", Name: fmt.Sprintf("Users %d", i), Config: connectorConfig()})
	}
	s = storage.WithStaticClients(s, []storage.Client{{ID: "app", Name: "App", Secret: secret, RedirectURIs: []string{callback}}})
	s = storage.WithStaticConnectors(s, connectors)
	log := slog.New(slog.DiscardHandler)
	sign, err := (&signer.LocalConfig{KeysRotationPeriod: "6h", Algorithm: "RS256"}).Open(ctx, s, 24*time.Hour, utc, log)
	must(b, err)
	c := server.Config{
		Issuer: issuer, Storage: s, Signer: sign, Logger: log, Now: utc, SkipApprovalScreen: true, SupportedResponseTypes: []string{"code"},
		RefreshTokenPolicy: tokens.NewRefreshStrategy(true, time.Hour, time.Hour, time.Second, utc),
		PrometheusRegistry: prometheus.NewRegistry(), HealthChecker: gosundheit.New(), Web: server.WebConfig{WebFS: dexweb.FS()},
	}
	if sessions {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		c.SessionConfig = &session.Config{
			CookieName: "dex_session", CookieEncryptionKey: key, AbsoluteLifetime: 24 * time.Hour, ValidIfNotUsedFor: time.Hour, SSOSharedWithDefault: "all",
		}
	}
	h, err := server.NewServer(ctx, c)
	must(b, err)
	return h
}
