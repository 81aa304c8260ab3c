package main

import (
	"context"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"

	"gatehouse/internal/audit"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// A watchedDriver tells when sessions of a user are looked for, which is how ending them begins.
type watchedDriver struct {
	store.Driver
	asked func()
}

func (d *watchedDriver) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	if q.Owner != "" && d.asked != nil {
		d.asked()
	}
	return d.Driver.Scan(ctx, q)
}

// Ending the sessions of users who are gone takes its time in the database: until then a CA that was removed would let
// clients in.
func TestHandshakesDoNotWaitForSessionsToEnd(t *testing.T) {
	dir := peers.Folder(t)
	server, before, after := peers.NewCA(t, "server"), peers.NewCA(t, "before"), peers.NewCA(t, "after")
	certificate, key := server.Issue(t, "auth.example.com", "127.0.0.1")
	hash, err := bcrypt.GenerateFromPassword([]byte("of this test only"), 10)
	if err != nil {
		t.Fatal(err)
	}
	file := strings.NewReplacer("DIR", dir, "HASH", string(hash)).Replace(`issuer: https://auth.example.com/dex
storage: {type: memory}
enablePasswordDB: true
staticPasswords:
- {email: alice@example.com, userID: alice, hash: "HASH"}
web: {https: "127.0.0.1:0", tlsCert: DIR/tls.crt, tlsKey: DIR/tls.key, tlsClientCA: DIR/clients.crt}
gateway:
  hosts: [app.example.com]
`)
	path := filepath.Join(dir, "gatehouse.yaml")
	write := func(text string, ca *peers.CA) loaded {
		t.Helper()
		for name, data := range map[string][]byte{path: []byte(text), "tls.crt": certificate, "tls.key": key, "clients.crt": ca.PEM} {
			if name != path {
				name = filepath.Join(dir, name)
			}
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := read(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := write(file, before)
	d := &watchedDriver{Driver: store.MemoryDriver()}
	s := &service{cfg: first.cfg, log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry(), audit: audit.NewWriter(t.Output(), auditQueue)}
	s.auditLog = s.log
	if s.store, err = store.New(t.Context(), d, store.Options{Now: utc, Logger: s.log}); err != nil {
		t.Fatal(err)
	}
	if err := s.build(t.Context()); err != nil {
		t.Fatal(err)
	}

	next := write(strings.Replace(strings.Replace(file, "alice", "bob", 2), "gateway:", "logger: {level: debug}\ngateway:", 1), after)
	asked := false
	d.asked = func() {
		if asked {
			return
		}
		asked = true
		if err := shake(t, s.webTLS, server, before.Pair(t, "client")); err == nil {
			t.Error("a client of the CA that is gone is let in while sessions are being ended")
		}
		if err := shake(t, s.webTLS, server, after.Pair(t, "client")); err != nil {
			t.Errorf("a client of the new CA is not: %v", err)
		}
		if s.level.Level() != slog.LevelDebug {
			t.Errorf("the log level is %s, want that of the new file", s.level.Level())
		}
	}
	if err := s.apply(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	if !asked {
		t.Error("nobody's sessions were looked for: the test shows nothing")
	}
}
