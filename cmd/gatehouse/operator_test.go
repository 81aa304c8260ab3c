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

	"github.com/dexidp/dex/storage"
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
// users of one e-mail address at two connectors, one whose names are hostile, and two sessions of u1.
func TestOperatorScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/operator", Setup: func(e *testscript.Env) error {
		path := filepath.Join(e.WorkDir, "admin.sock")
		e.Setenv("ADMIN", "unix:"+path)
		e.Setenv("TZ", "UTC")
		st, err := operatedBy(t, path, e.Defer)
		if err != nil {
			return err
		}
		return seedUsers(t, st)
	}})
}

// operatedBy serves the admin listener of a provider on a unix socket.
func operatedBy(t *testing.T, path string, atEnd func(func())) (*store.Store, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	hash, err := bcrypt.GenerateFromPassword([]byte("of this test only"), 10)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, bytes.ReplaceAll([]byte(operated), []byte("HASH"), hash), 0o600); err != nil {
		return nil, err
	}
	l, err := read(t.Context(), file)
	if err != nil {
		return nil, err
	}
	s := &service{cfg: l.cfg, log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry(), audit: audit.NewWriter(t.Output(), auditQueue)}
	s.auditLog = s.log
	s.store = store.Memory(store.Options{Now: utc})
	if err := s.build(t.Context()); err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: admin.Handler(admin.Options{
		Sessions: operatorSessions{s.provider}, Users: operatorUsers{s.provider}, Keys: operatorKeys{s.provider}, Log: s.log,
	})}
	go func() { _ = server.Serve(listener) }()
	atEnd(func() { _ = server.Close() })
	return s.store, nil
}

func seedUsers(t *testing.T, st *store.Store) error {
	t.Helper()
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var errs []error
	user := func(connector, id, email string, groups ...string) {
		errs = append(errs, st.CreateUserIdentity(t.Context(), storage.UserIdentity{
			UserID: id, ConnectorID: connector, Claims: storage.Claims{UserID: id, Email: email, Groups: groups}, CreatedAt: day, LastLogin: day,
		}))
	}
	user("local", "u1", "Alice@example.com", "admins", "staff")
	user("staff", "a:1", "alice@EXAMPLE.com")
	user("staff", "b2", "bob@example.com")
	user("staff", "\x1b[2J evil", "evil@example.com\nroot@example.com")
	for i := range 2 {
		errs = append(errs, st.CreateAuthSession(t.Context(), storage.AuthSession{
			ID: fmt.Sprintf("session-%d", i), Secret: "x", UserID: "u1", ConnectorID: "local", CreatedAt: day, LastActivity: day,
			IdleExpiry: utc().Add(time.Hour), AbsoluteExpiry: utc().Add(time.Hour),
		}))
	}
	return errors.Join(errs...)
}
