package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/jackc/pgx/v5"

	"gatehouse/test/peers"
)

// secretPassword is one that no error may show.
const secretPassword = "kanarienvogel"

func TestPostgresErrorsSayWhatToDo(t *testing.T) {
	good := newDatabase(t)
	free := peers.FreeAddr(t)
	admin := connect(t, good)
	name := "limited_" + good.Database // roles are the whole server's
	_, err := admin.Exec(t.Context(), `CREATE ROLE `+name+` LOGIN PASSWORD '`+secretPassword+`'`)
	must(t, err)
	for what, tt := range map[string]struct {
		change func(*PostgresConfig)
		want   string
	}{
		"no such database":          {func(c *PostgresConfig) { c.Database = `no"such` }, `make it: CREATE DATABASE "no""such" OWNER "postgres"`},
		"wrong password":            {func(c *PostgresConfig) { c.Password = func() string { return secretPassword } }, "check storage.config.user and password"},
		"no password":               {func(c *PostgresConfig) { c.Password = nil }, "check storage.config.user and password"},
		"no such user":              {func(c *PostgresConfig) { c.User = "nobody'; DROP TABLE x --" }, "check storage.config.user and password"},
		"no rights":                 {func(c *PostgresConfig) { c.User, c.Password = name, func() string { return secretPassword } }, `CREATE SCHEMA gatehouse AUTHORIZATION "` + name + `"`},
		"nobody listens":            {func(c *PostgresConfig) { c.Host, c.Port = free, 0 }, "check that PostgreSQL runs there"},
		"no such host":              {func(c *PostgresConfig) { c.Host = "nowhere.invalid" }, "check that PostgreSQL runs there"},
		"no such socket":            {func(c *PostgresConfig) { c.Host = "/nonexistent" }, "check that PostgreSQL runs there"},
		"no TLS there":              {func(c *PostgresConfig) { c.SSL.Mode = "" }, "turn TLS on in the server"},
		"no database given":         {func(c *PostgresConfig) { c.Database = "" }, "set storage.config.database"},
		"no user given":             {func(c *PostgresConfig) { c.User = "" }, "storage.config.user"},
		"a strange port":            {func(c *PostgresConfig) { c.Port = 65536 }, "correct storage.config.port"},
		"a strange mode":            {func(c *PostgresConfig) { c.SSL.Mode = "prefer" }, "want disable, require, verify-ca or verify-full"},
		"half a client certificate": {func(c *PostgresConfig) { c.SSL = PostgresSSL{CertFile: "x"} }, "go together"},
		"no CA file":                {func(c *PostgresConfig) { c.SSL = PostgresSSL{CAFile: "/nonexistent"} }, "storage.config.ssl.caFile"},
	} {
		c := good
		tt.change(&c)
		s, err := OpenPostgres(t.Context(), c, Options{})
		if err == nil {
			t.Errorf("%s: opened", what)
			must(t, s.Close())
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), secretPassword) {
			t.Errorf("%s: got %q, want %q in it and no password", what, err, tt.want)
		}
	}
}

func TestPostgresTakesNothingFromTheEnvironment(t *testing.T) {
	c := newDatabase(t)
	for _, name := range []string{"PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGOPTIONS", "PGAPPNAME"} {
		t.Setenv(name, "wrong")
	}
	t.Setenv("PGSSLMODE", "verify-full")
	t.Setenv("PGTARGETSESSIONATTRS", "standby")
	must(t, openDatabase(t, c, Options{}).Close())
}

func TestPostgresTLS(t *testing.T) {
	server := peers.Postgres(t, peers.PostgresOptions{})
	ca := peers.NewCA(t, "Another CA")
	other := filepath.Join(t.TempDir(), "other.crt")
	must(t, os.WriteFile(other, ca.PEM, 0o600))
	c := configOf(t, server)
	for _, tt := range []struct {
		host string
		ssl  PostgresSSL
		want string // "": it connects
	}{
		{"127.0.0.1", PostgresSSL{CAFile: server.CA}, ""},
		{"localhost", PostgresSSL{Mode: "verify-full", CAFile: server.CA}, ""},
		{"127.0.0.1", PostgresSSL{Mode: "verify-full", CAFile: other}, "set storage.config.ssl.caFile"},
		{"127.0.0.1", PostgresSSL{}, "set storage.config.ssl.caFile"}, // the system's
		{"127.0.0.2", PostgresSSL{CAFile: server.CA}, "or storage.config.ssl.mode to verify-ca"},
		{"127.0.0.2", PostgresSSL{Mode: "verify-ca", CAFile: server.CA}, ""},
		{"127.0.0.1", PostgresSSL{Mode: "verify-ca", CAFile: other}, "set storage.config.ssl.caFile"},
		{"127.0.0.1", PostgresSSL{Mode: "require", CAFile: other}, "set storage.config.ssl.caFile"},
		{"127.0.0.1", PostgresSSL{Mode: "require"}, ""},
		{"127.0.0.1", PostgresSSL{Mode: "disable"}, ""},
	} {
		c := c
		c.Host, c.SSL = tt.host, tt.ssl
		s, err := OpenPostgres(t.Context(), c, Options{})
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s with %+v: got %v", tt.host, tt.ssl, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s with %+v: got %v, want %q in it", tt.host, tt.ssl, err, tt.want)
		}
		if err != nil {
			continue
		}
		var encrypted bool
		must(t, s.driver.Driver.(*postgresDriver).pool.QueryRow(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted))
		if want := tt.ssl.Mode != "disable"; encrypted != want {
			t.Errorf("%s with %+v: encrypted is %v", tt.host, tt.ssl, encrypted)
		}
		must(t, s.Close())
	}
}

func TestPostgresReplicasThatStartAtOnce(t *testing.T) {
	c := newDatabase(t)
	inParallel(t, 8, func(int) error {
		s, err := OpenPostgres(t.Context(), c, Options{})
		if err != nil {
			return err
		}
		return s.Close()
	})
}

func TestPostgresSchema(t *testing.T) {
	ctx := t.Context()
	for _, tt := range []struct{ name, before, want string }{
		{"newer", "UPDATE gatehouse.meta SET value = 99 WHERE key = 'schema'", "its schema is version 99 and this Gatehouse knows versions up to 1: run the newer Gatehouse"},
		{"of others", "DROP SCHEMA gatehouse CASCADE; CREATE SCHEMA gatehouse; CREATE TABLE gatehouse.record (a int)", "holds something that is not Gatehouse's: use another database"},
		{"with a meta of others", "DROP SCHEMA gatehouse CASCADE; CREATE SCHEMA gatehouse; CREATE TABLE gatehouse.meta (key text, value bigint)", "a table meta that is not Gatehouse's"},
		{"empty", "DROP SCHEMA gatehouse CASCADE; CREATE SCHEMA gatehouse", ""},
		{"up to date", "", ""},
	} {
		c := newDatabase(t)
		must(t, openDatabase(t, c, Options{}).Close())
		admin := connect(t, c)
		_, err := admin.Exec(ctx, tt.before)
		must(t, err)
		tables := func() (n int) {
			must(t, admin.QueryRow(ctx, "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname NOT LIKE 'pg\\_%'").Scan(&n))
			return n
		}
		before := tables()
		s, err := OpenPostgres(ctx, c, Options{})
		switch {
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q in it", tt.name, err, tt.want)
		case tt.want == "" && err != nil:
			t.Errorf("%s: got %v", tt.name, err)
		case tt.want != "" && tables() != before:
			t.Errorf("%s: it was refused, and changed", tt.name)
		}
		if err == nil {
			must(t, s.Close())
		}
	}
}

// A role that owns nothing but the schema is enough, and what the database's owner has set as a default does not change ours.
func TestPostgresNeedsItsSchemaOnly(t *testing.T) {
	c := newDatabase(t)
	ctx, admin, role := t.Context(), connect(t, c), "role_"+c.Database
	_, err := admin.Exec(ctx, strings.NewReplacer("ROLE", role, "DB", c.Database).Replace(`CREATE USER ROLE PASSWORD 'p'; REVOKE ALL ON SCHEMA public FROM PUBLIC;
		CREATE SCHEMA gatehouse AUTHORIZATION ROLE;
		ALTER DATABASE DB SET default_transaction_isolation = 'serializable'; ALTER DATABASE DB SET default_transaction_read_only = on;
		ALTER DATABASE DB SET synchronous_commit = off; ALTER DATABASE DB SET search_path = public`))
	must(t, err)
	c.User, c.Password = role, func() string { return "p" }
	d := openPostgresDriver(t, c)
	write(t, d, op(Create, "a", "", "", 0))
	for name, want := range map[string]string{"synchronous_commit": "on", "transaction_isolation": "read committed", "statement_timeout": "9s"} {
		var got string
		must(t, d.pool.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&got))
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	_, err = admin.Exec(ctx, "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; DROP OWNED BY "+role+" CASCADE; DROP USER "+role)
	must(t, err)
}

func TestPostgresConnectionsAreLimited(t *testing.T) {
	c := newDatabase(t)
	c.MaxOpenConns, c.MaxIdleConns = 3, 1
	d := openPostgresDriver(t, c)
	inParallel(t, 40, func(i int) error {
		if _, err := d.Write(t.Context(), []Op{{Verb: Create, Record: Record{Kind: "k", ID: fmt.Sprint(i)}}}); err != nil {
			return err
		}
		_, err := d.Read(t.Context(), "k", fmt.Sprint(i))
		return err
	})
	if got := d.pool.Stat().MaxConns(); got != 3 {
		t.Errorf("at most %d connections, want 3", got)
	}
	peers.Eventually(t, time.Minute, "one idle connection is left", func() bool {
		read(t, d, "0")
		return d.pool.Stat().TotalConns() <= 1
	})
}

// Nothing that comes from outside is anything but data.
func TestPostgresKeepsAnyID(t *testing.T) {
	d := openPostgresDriver(t, newDatabase(t))
	for _, id := range []string{"'; DROP TABLE gatehouse.record; --", "a\x00b", "\xff\xfe", "ä", `\\x41`, "%_", "$1", "Ǆ", strings.Repeat("x", pgMaxKey-10)} {
		write(t, d, op(Create, id, "o"+id[:min(5, len(id))], "", 0))
		if got := read(t, d, id); got.ID != id {
			t.Errorf("got %q, want %q", got.ID, id)
		}
	}
	if got := count(t, d, ""); got != 9 {
		t.Errorf("got %d records, want 9", got)
	}
	long := op(Create, strings.Repeat("x", pgMaxKey+1), "", "", 0)
	if _, err := d.Write(t.Context(), []Op{long}); err == nil || !strings.Contains(err.Error(), "more than an index takes") {
		t.Errorf("an ID that is too long: got %v", err)
	}
	_, err := d.Write(t.Context(), []Op{{Verb: 7}})
	if err == nil || !strings.Contains(err.Error(), "unknown verb") {
		t.Errorf("unknown verb: got %v", err)
	}
}

// A database that was put back to an older state: who has read further forgets everything.
func TestPostgresLogThatWentBack(t *testing.T) {
	c := newDatabase(t)
	d := openPostgresDriver(t, c)
	seq := write(t, d, op(Create, "a", "", "", 0))
	_, err := d.Changes(t.Context(), seq+1, 10)
	wantErr(t, err, ErrTrimmed)
}

// The planner goes by a table's size and by statistics that lag behind: whatever they say, a few entries of an index are read in its order.
func TestPostgresUsesItsIndexes(t *testing.T) {
	for name, fill := range map[string]string{
		"few, and that is known":      `SELECT 1; ANALYZE gatehouse.record, gatehouse.change`,
		"many, and that is not known": `INSERT INTO gatehouse.record SELECT kind, convert_to(i::text, 'UTF8'), owner, version, i, repeat('x', 500)::bytea FROM gatehouse.record, generate_series(1, 20000) i`,
	} {
		t.Run(name, func(t *testing.T) {
			d := openPostgresDriver(t, newDatabase(t))
			write(t, d, op(Create, "a", "o", "", 0))
			_, err := d.pool.Exec(t.Context(), fill, pgx.QueryExecModeSimpleProtocol)
			must(t, err)
			checkPlans(t, d)
		})
	}
}

func checkPlans(t *testing.T, d *postgresDriver) {
	t.Helper()
	for name, tt := range map[string]struct {
		query string
		args  []any
		want  string
	}{
		"sweep":         {pgSweep, []any{"k", int64(10_000), 10}, "record_expires"},
		"scan by owner": {pgScanOwner, []any{"k", []byte("o"), []byte(""), 10}, "record_owner"},
		"scan":          {pgScan, []any{"k", []byte(""), 10}, "record_pkey"},
		"changes":       {pgChanges, []any{int64(0), 10}, "change_pkey"},
	} {
		rows, err := d.pool.Query(t.Context(), "EXPLAIN "+tt.query, append([]any{pgx.QueryExecModeExec}, tt.args...)...)
		must(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, tt.want) || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Sort") || strings.Contains(plan, "Bitmap") {
			t.Errorf("%s: want the index %s in its order and nothing else:\n%s", name, tt.want, plan)
		}
	}
}

// A sweep leaves alone what is being moved, and what another sweeps.
func TestPostgresSweepLeavesWhatIsMoved(t *testing.T) {
	c := newDatabase(t)
	d, foreign := openPostgresDriver(t, c), connect(t, c)
	ctx := t.Context()
	for i := range 3 {
		write(t, d, op(Create, fmt.Sprint(i), "", "", 0))
	}
	tx, err := foreign.Begin(ctx)
	must(t, err)
	_, err = tx.Exec(ctx, "UPDATE gatehouse.record SET expires = $1 WHERE id = '1'", epoch.Add(time.Hour).UnixNano())
	must(t, err)
	n, err := d.Sweep(ctx, "k", epoch.Add(time.Second), 10)
	if err != nil || n != 2 {
		t.Errorf("got %d and %v, want the 2 that nobody moves", n, err)
	}
	must(t, tx.Commit(ctx))
	if n, err := d.Sweep(ctx, "k", epoch.Add(time.Second), 10); err != nil || n != 0 {
		t.Errorf("after the move: got %d and %v, want 0", n, err)
	}
	read(t, d, "1")
}

// Woken by the write of another process, not by the interval; and again after its connection was cut.
func TestPostgresWakes(t *testing.T) {
	c := newDatabase(t)
	o := Options{FeedInterval: time.Hour}
	a, b := openDatabase(t, c, o), openDatabase(t, c, o)
	defer func() { must(t, errors.Join(a.Close(), b.Close())) }()
	t.Run("follow", func(t *testing.T) {
		ctx, told, admin := t.Context(), record(a), connect(t, c)
		follow(t, a)
		const listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN gatehouse' AND state = 'idle'"
		listens := func() bool {
			var n int
			must(t, admin.QueryRow(ctx, listening).Scan(&n))
			return n == 1
		}
		peers.Eventually(t, time.Minute, "it listens", listens)
		must(t, b.CreateClient(ctx, newClient("1")))
		told.wait(ctx, t, 1)
		_, err := admin.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN gatehouse'")
		must(t, err)
		must(t, b.CreateClient(ctx, newClient("2"))) // while it does not hear
		told.wait(ctx, t, 2)
		peers.Eventually(t, time.Minute, "it listens again", listens)
		must(t, b.CreateClient(ctx, newClient("3")))
		told.wait(ctx, t, 3)
	})
}

// What a process does last is heard, too, if it ends while it tells of what it did before.
func TestPostgresBell(t *testing.T) {
	c := newDatabase(t)
	ctx, listener := t.Context(), connect(t, c)
	_, err := listener.Exec(ctx, "LISTEN gatehouse")
	must(t, err)
	c.MaxOpenConns = 1
	for range 10 {
		d, err := openPostgres(ctx, c, quiet())
		must(t, err)
		busy, err := d.pool.Acquire(ctx)
		must(t, err)
		d.bell.ring()
		peers.Eventually(t, time.Minute, "it rings", func() bool { return len(d.bell.rung) == 0 })
		d.bell.ring()
		closed := make(chan error, 1)
		go func() { closed <- d.Close() }()
		<-d.bell.ended
		busy.Release()
		must(t, <-closed)
		for range 2 {
			limited, cancel := context.WithTimeout(ctx, time.Minute)
			n, err := listener.WaitForNotification(limited)
			cancel()
			must(t, err)
			if n.Payload != d.bell.name {
				t.Errorf("got the payload %q, want the process's name", n.Payload)
			}
		}
	}
}

func newClient(id string) storage.Client { return storage.Client{ID: id} }

// The listener cannot connect: it says so for those who look, without the password.
func TestPostgresShowsNoPassword(t *testing.T) {
	server := peers.Postgres(t, peers.PostgresOptions{})
	c := configOf(t, server)
	var logged syncBuffer
	s := openDatabase(t, c, Options{Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	t.Run("follow", func(t *testing.T) {
		must(t, server.Stop())
		follow(t, s)
		peers.Eventually(t, time.Minute, "it says that it does not hear", func() bool { return strings.Contains(logged.String(), "read at intervals only") })
	})
	must(t, s.Close())
	for _, text := range []string{logged.String(), fmt.Sprintf("%+v %#v", c, c)} {
		if strings.Contains(text, server.Password) {
			t.Errorf("the password is shown:\n%s", text)
		}
	}
}
