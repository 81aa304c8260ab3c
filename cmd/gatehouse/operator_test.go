package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/bcrypt"

	"gatehouse/internal/admin"
	"gatehouse/internal/audit"
	"gatehouse/provider/store"
	"gatehouse/provider/store/storetest"
)

// operated is the configuration of the gatehouse that scripts of operators talk to.
const operated = `issuer: https://auth.example.com/dex
storage: {type: memory}
enablePasswordDB: true
oauth2: {alwaysShowLoginScreen: true}
staticPasswords:
- {email: Alice@example.com, userID: u1, hash: "HASH"}
- {email: newcomer@example.com, userID: u9, hash: "HASH"}
connectors:
- {type: mockCallback, id: staff, name: Staff}
gateway:
  hosts: [app.example.com]
`

// TestOperatorScripts runs the commands of operators against the admin listener of a provider: $ADMIN. Each script has its own, with two
// users of one e-mail address at two connectors, one whose names are hostile, and two sessions of u1, and one of a user without groups.
func TestOperatorScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/operator", Setup: func(e *testscript.Env) error {
		path := filepath.Join(e.WorkDir, "admin.sock")
		e.Setenv("ADMIN", "unix:"+path)
		e.Setenv("TZ", "UTC")
		st := store.Memory(store.Options{Now: utc})
		if err := operatedOn(t, st, path, e.Defer); err != nil {
			return err
		}
		return seedUsers(t, st)
	}})
}

// TestOperatorScriptsBesideDamage is the same for a storage in which a user without sessions, and the session of another, cannot be read.
func TestOperatorScriptsBesideDamage(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/damaged", Setup: func(e *testscript.Env) error {
		path := filepath.Join(e.WorkDir, "admin.sock")
		e.Setenv("ADMIN", "unix:"+path)
		d := store.MemoryDriver()
		st, err := store.New(t.Context(), d, store.Options{Now: utc})
		if err != nil {
			return err
		}
		if err := operatedOn(t, st, path, e.Defer); err != nil {
			return err
		}
		if err := seedUsers(t, st); err != nil {
			return err
		}
		for id, kind := range map[string]store.Kind{"2:b2:staff": store.KindIdentity, "session-carol": store.KindSession} {
			r, err := d.Read(t.Context(), kind, id)
			if err != nil {
				return err
			}
			r.Data = []byte("\x00sealed\x01by a key that is gone")
			if _, err := d.Write(t.Context(), []store.Op{{Verb: store.Put, Record: r}}); err != nil {
				return err
			}
		}
		return nil
	}})
}

// serviceOn builds all parts of a gatehouse on a store, without a port.
func serviceOn(t testing.TB, st *store.Store) (*service, error) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("of this test only"), bcrypt.DefaultCost)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	if err := os.WriteFile(file, bytes.ReplaceAll([]byte(operated), []byte("HASH"), hash), 0o600); err != nil {
		return nil, err
	}
	l, err := read(t.Context(), file)
	if err != nil {
		return nil, err
	}
	s := &service{cfg: l.cfg, log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry(), audit: audit.NewWriter(t.Output(), auditQueue), store: st}
	s.auditLog = s.log
	return s, s.build(t.Context())
}

// operatedOn serves the admin listener of a provider on a unix socket.
func operatedOn(t *testing.T, st *store.Store, path string, atEnd func(func())) error {
	t.Helper()
	s, err := serviceOn(t, st)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: admin.Handler(admin.Options{
		Sessions: operatorSessions{s.provider}, Users: operatorUsers{s.provider}, Keys: operatorKeys{s.provider}, Log: s.log,
	})}
	go func() { _ = server.Serve(listener) }()
	atEnd(func() { _ = server.Close() })
	return nil
}

func seedUsers(t *testing.T, st *store.Store) error {
	t.Helper()
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	alice := storetest.Person{Connector: "local", ID: "u1", Email: "Alice@example.com", Groups: []string{"admins", "staff"}, LastLogin: day}
	var errs []error
	for _, p := range []storetest.Person{
		alice,
		{Connector: "staff", ID: "a:1", Email: "alice@EXAMPLE.com", LastLogin: day},
		{Connector: "staff", ID: "b2", Email: "bob@example.com", LastLogin: day},
		{Connector: "staff", ID: "\x1b[2J evil", Email: "evil@example.com\nroot@example.com", LastLogin: day},
	} {
		errs = append(errs, storetest.AddPerson(t.Context(), st, p))
	}
	carol := storetest.Person{Connector: "staff", ID: "c3", Email: "carol@example.com", LastLogin: day}
	errs = append(errs, storetest.AddPerson(t.Context(), st, carol), storetest.AddSession(t.Context(), st, "session-carol", carol, utc().Add(time.Hour)))
	for i := range 2 {
		errs = append(errs, storetest.AddSession(t.Context(), st, fmt.Sprintf("session-%d", i), alice, utc().Add(time.Hour)))
	}
	return errors.Join(errs...)
}
