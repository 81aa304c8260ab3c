package signin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
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
	"gatehouse/internal/handoff"
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
gateway: {hosts: [auth.example.test], default: signed-in}
staticClients:
`, issuer)
	for i := range users {
		fmt.Fprintf(&text, "- {id: %s, name: App, secret: %s, redirectURIs: [%q], allowedConnectors: [%s]}\n", clientID(i), secret, callback, connectorID(i))
	}
	text.WriteString("connectors:\n")
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
	return behindGateway(p, ring)
}

// behindGateway serves the issuer, and an app on the same host as the gateway would: who is not signed in is sent to sign in.
func behindGateway(p *provider.Provider, ring *seal.Ring) http.Handler {
	pages := p.Handler()
	const host = "auth.example.test"
	names := handoff.Names(true)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/app" {
			pages.ServeHTTP(w, r)
			return
		}
		if c, err := r.Cookie(names.Session); err == nil {
			id, _, err := handoff.OpenCookie(nil, ring, host, c.Value)
			if err == nil {
				_, err = p.Session(r.Context(), string(id))
			}
			if err == nil {
				_, _ = io.WriteString(w, hello)
				return
			}
		}
		pre := handoff.NewPreCookie(utc())
		http.SetCookie(w, &http.Cookie{Name: names.Login, Value: pre.String(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		q := handoff.Request{Host: host, Return: r.URL.RequestURI(), Bind: pre.Bind(), Expiry: utc().Add(handoff.RequestLifetime)}
		user, _ := strconv.Atoi(r.URL.Query().Get("user")) // of the load
		http.Redirect(w, r, issuer+"/auth/"+connectorID(user)+"/login?req="+url.QueryEscape(q.Seal(ring)), http.StatusFound)
	})
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
	var clients []storage.Client
	for i := range users {
		clients = append(clients, storage.Client{ID: clientID(i), Name: "App", Secret: secret, RedirectURIs: []string{callback}, AllowedConnectors: []string{connectorID(i)}})
	}
	s = storage.WithStaticClients(s, clients)
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
