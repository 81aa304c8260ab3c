package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A PostgresConfig says where a database is. Its fields are those of Dex.
type PostgresConfig struct {
	Host     string        // name, address, host:port, or the folder of a unix socket; empty: localhost
	Port     int           // 0: 5432
	Database string        // must exist
	User     string        // must own the schema gatehouse, or be allowed to make it
	Password func() string // a function, so that no print of this struct shows it; nil: none

	ConnectTimeout  time.Duration // 0: 5 s
	MaxOpenConns    int           // 0: 5, as in Dex; Store.Follow has one more
	MaxIdleConns    int           // 0: 5, as in Dex
	ConnMaxLifetime time.Duration // 0: 1 h
	SSL             PostgresSSL

	log *slog.Logger
}

// PostgresSSL says how connections are protected. A unix socket needs no protection and gets none.
type PostgresSSL struct {
	Mode              string // disable, require (not checked without a CAFile), verify-ca (any name), verify-full; empty: verify-full
	CAFile            string // PEM; empty: the system's
	CertFile, KeyFile string // PEM of a client certificate, read for each connection; empty: none
}

// Keys of the locks that we take (pg_advisory_xact_lock), beside those of other applications in the same database.
const (
	pgLogLock     = applicationID<<32 | 1 // held from the drawing of a Seq until its transaction is visible
	pgMigrateLock = applicationID<<32 | 2
)

// pgOldest is the oldest supported version, as server_version_num.
const pgOldest = 140000

// pgMigrateTimeout bounds the start, the wait for another process's migration included.
const pgMigrateTimeout = time.Minute

// pgSession are settings of every connection that what the database's owner has set as a default must not change. Where commits are not
// to wait for the disk, they do for ours: a user who was told that he is signed out must not be signed in again after a power failure.
// Each of our statements reads a few entries of an index in its order. To read a table or all that an index finds, and to sort it, is what the
// statistics of a table suggest that was small a moment ago: a sweep of 50,000 records took 14 s so, and takes 0.1 s.
var pgSession = fmt.Sprintf(`SELECT set_config(name, value, false) FROM (VALUES
	('statement_timeout', '%d'), ('idle_in_transaction_session_timeout', '%[1]d'), ('idle_session_timeout', '0'), ('lock_timeout', '0'),
	('default_transaction_isolation', 'read committed'), ('default_transaction_read_only', 'off'),
	('search_path', 'pg_catalog'), ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), ('enable_sort', 'off'),
	('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END)
	) AS setting (name, value)`, pgStatementTimeout.Milliseconds())

// pgMigrations lead from one schema to the next; the schema's version is how many of them have run. Never edit one that was released:
// append, and leave what an older Gatehouse uses while replicas are replaced.
var pgMigrations = []string{
	`CREATE TABLE gatehouse.meta (key text COLLATE "C" PRIMARY KEY, value bigint NOT NULL);
	INSERT INTO gatehouse.meta (key, value) VALUES ('application', ` + strconv.Itoa(applicationID) + `), ('schema', 0), ('floor', 0);
	CREATE TABLE gatehouse.record (
		kind text COLLATE "C" NOT NULL, id bytea NOT NULL, owner bytea NOT NULL, version bigint NOT NULL,
		expires bigint NOT NULL, -- Unix nanoseconds, 0 for never
		data bytea NOT NULL,
		PRIMARY KEY (kind, id)
	);
	CREATE INDEX record_owner ON gatehouse.record (kind, owner, id) WHERE owner <> '';
	CREATE INDEX record_expires ON gatehouse.record (kind, expires) WHERE expires > 0;
	CREATE TABLE gatehouse.change (
		seq bigint NOT NULL, n integer NOT NULL, -- n counts within a write
		at bigint NOT NULL, origin text NOT NULL, kind text NOT NULL, id bytea NOT NULL,
		user_id bytea NOT NULL, connector_id bytea NOT NULL, deleted boolean NOT NULL,
		PRIMARY KEY (seq, n)
	);
	CREATE SEQUENCE gatehouse.seq;` + pgWriteFunction,
}

// pgWriteFunction is what pgWriter calls. _change_op is the place of a change's op, from 1. An outcome is 0, or 1 for a record that exists,
// 2 for one of another version, 3 for one that is gone; where ops go together, it is an error with the SQLSTATE GH00 and that digit.
var pgWriteFunction = fmt.Sprintf(`
	CREATE FUNCTION gatehouse.write(
		_verbs integer[], _kinds text[], _ids bytea[], _owners bytea[], _versions bigint[], _expires bigint[], _datas bytea[], _together boolean,
		_change_op integer[], _change_at bigint[], _change_origin text[], _change_kind text[], _change_id bytea[], _change_user bytea[],
		_change_connector bytea[], _change_deleted boolean[],
		OUT outcomes integer[], OUT seqs bigint[]
	) LANGUAGE plpgsql AS $$
	DECLARE
		_op integer;
		_seq bigint := 0;
	BEGIN
		outcomes := array_fill(0, ARRAY[cardinality(_verbs)]);
		seqs := array_fill(0::bigint, ARRAY[cardinality(_verbs)]);
		FOR i IN 1 .. cardinality(_verbs) LOOP
			CASE _verbs[i]
			WHEN %[1]d THEN
				INSERT INTO gatehouse.record (kind, id, owner, version, expires, data)
					VALUES (_kinds[i], _ids[i], _owners[i], _versions[i], _expires[i], _datas[i]) ON CONFLICT DO NOTHING;
				IF NOT FOUND THEN outcomes[i] := 1; END IF;
			WHEN %[2]d THEN
				UPDATE gatehouse.record SET owner = _owners[i], version = version + 1, expires = _expires[i], data = _datas[i]
					WHERE kind = _kinds[i] AND id = _ids[i] AND version = _versions[i];
				IF NOT FOUND THEN
					PERFORM 1 FROM gatehouse.record WHERE kind = _kinds[i] AND id = _ids[i];
					outcomes[i] := CASE WHEN FOUND THEN 2 ELSE 3 END;
				END IF;
			WHEN %[3]d THEN
				DELETE FROM gatehouse.record WHERE kind = _kinds[i] AND id = _ids[i];
				IF NOT FOUND THEN outcomes[i] := 3; END IF;
			END CASE;
			IF _together AND outcomes[i] <> 0 THEN
				RAISE EXCEPTION 'gatehouse: nothing written' USING ERRCODE = 'GH00' || outcomes[i];
			END IF;
		END LOOP;
		FOR j IN 1 .. cardinality(_change_op) LOOP
			_op := _change_op[j];
			CONTINUE WHEN outcomes[_op] <> 0;
			IF seqs[_op] = 0 THEN
				IF _seq = 0 THEN PERFORM pg_advisory_xact_lock(%[4]d); END IF;
				IF _seq = 0 OR NOT _together THEN _seq := nextval('gatehouse.seq'); END IF;
				seqs[_op] := _seq;
			END IF;
			INSERT INTO gatehouse.change (seq, n, at, origin, kind, id, user_id, connector_id, deleted)
				VALUES (_seq, j, _change_at[j], _change_origin[j], _change_kind[j], _change_id[j], _change_user[j], _change_connector[j], _change_deleted[j]);
		END LOOP;
	END $$;`, Create, Put, Delete, int64(pgLogLock))

// openPostgres connects, brings the schema up to date and starts the wake-ups.
func openPostgres(ctx context.Context, c PostgresConfig, log *slog.Logger) (_ *postgresDriver, err error) {
	c.log = log
	pc, err := c.pool()
	if err != nil {
		return nil, err
	}
	var pool *pgxpool.Pool
	if idle := limit(c.MaxIdleConns); idle < pc.MaxConns {
		// Those that come back at the same moment may all stay: the next use ends one.
		pc.AfterRelease = func(*pgx.Conn) bool { return pool.Stat().IdleConns() < idle }
	}
	if pool, err = pgxpool.NewWithConfig(ctx, pc); err != nil {
		return nil, fmt.Errorf("store: postgres: %w", err)
	}
	c.Password = nil
	d := &postgresDriver{pool: pool, cfg: c, writer: pgWriter{pool: pool, turn: make(chan struct{}, 1)}}
	if err := d.migrate(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("store: postgres database %q: %w", c.Database, c.explain(err))
	}
	d.bell.start(ctx, pool)
	return d, nil
}

// pool returns the settings of the connections. Nothing is taken from the environment, as libpq would, nor put together as text.
func (c *PostgresConfig) pool() (*pgxpool.Config, error) {
	if c.Database == "" || c.User == "" {
		return nil, errors.New("store: postgres needs a database and a user: set storage.config.database and storage.config.user")
	}
	pc, err := pgxpool.ParseConfig("host=localhost user=none dbname=none sslmode=disable passfile=/nonexistent")
	if err != nil {
		return nil, fmt.Errorf("store: postgres: %w", err)
	}
	cc := pc.ConnConfig
	if cc.Host, cc.Port, err = c.address(); err != nil {
		return nil, err
	}
	if cc.TLSConfig, err = c.tls(cc.Host); err != nil {
		return nil, fmt.Errorf("store: postgres: %w", err)
	}
	cc.Database, cc.User, cc.Password = c.Database, c.User, ""
	if c.Password != nil {
		cc.Password = c.Password()
	}
	cc.Fallbacks, cc.SSLNegotiation, cc.KerberosSrvName, cc.ValidateConnect = nil, "", "", nil
	cc.RuntimeParams = map[string]string{"application_name": "gatehouse"}
	cc.ConnectTimeout = orDefault(c.ConnectTimeout, 5*time.Second)
	cc.AfterConnect = pgPrepare
	cc.DialFunc = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
	pc.MaxConns = limit(c.MaxOpenConns)
	pc.MaxConnLifetime = orDefault(c.ConnMaxLifetime, time.Hour)
	pc.MaxConnLifetimeJitter = pc.MaxConnLifetime / 10
	pc.PingTimeout = cc.ConnectTimeout
	return pc, nil
}

// limit returns a number of connections.
func limit(n int) int32 {
	return int32(min(orDefault(n, 5), 10_000)) //nolint:gosec // G115: it is in between
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// address returns host and port. Like Dex, it takes host:port for a host.
func (c *PostgresConfig) address() (host string, port uint16, err error) {
	host, p := c.Host, strconv.Itoa(orDefault(c.Port, 5432))
	if h, hp, err := net.SplitHostPort(c.Host); err == nil {
		host, p = h, hp
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("store: postgres: want a port from 1 to 65535, got %q: correct storage.config.port", p)
	}
	if host == "" {
		host = "localhost"
	}
	return host, uint16(n), nil
}

// tls returns what connections to a host are protected by; nil: nothing.
func (c *PostgresConfig) tls(host string) (*tls.Config, error) {
	if c.SSL.Mode == "disable" || strings.HasPrefix(host, "/") {
		return nil, nil //nolint:nilnil // as in pgconn.Config
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if c.SSL.CAFile != "" {
		pem, err := os.ReadFile(c.SSL.CAFile)
		if err != nil {
			return nil, fmt.Errorf("storage.config.ssl.caFile: %w", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("storage.config.ssl.caFile %s has no certificate in PEM form", c.SSL.CAFile)
		}
	}
	if err := c.clientCertificate(t); err != nil {
		return nil, err
	}
	switch c.SSL.Mode {
	case "", "verify-full":
	case "require", "verify-ca":
		t.InsecureSkipVerify = true // the mode says so; VerifyConnection does the rest
		if c.SSL.Mode == "verify-ca" || t.RootCAs != nil {
			t.VerifyConnection = verifyChain(t.RootCAs)
		}
	default:
		return nil, fmt.Errorf("storage.config.ssl.mode: want disable, require, verify-ca or verify-full, got %q", c.SSL.Mode)
	}
	return t, nil
}

func (c *PostgresConfig) clientCertificate(t *tls.Config) error {
	cert, key := c.SSL.CertFile, c.SSL.KeyFile
	if (cert == "") != (key == "") {
		return errors.New("storage.config.ssl: certFile and keyFile go together: set both or none")
	}
	if cert == "" {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		return fmt.Errorf("storage.config.ssl.certFile and keyFile: %w", err)
	}
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // it may be replaced
		pair, err := tls.LoadX509KeyPair(cert, key)
		return &pair, err
	}
	return nil
}

// verifyChain checks a server's certificate, but not the name in it.
func verifyChain(roots *x509.CertPool) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, c := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		_, err := s.PeerCertificates[0].Verify(o)
		return err
	}
}

// pgPrepare makes a new connection ready.
func pgPrepare(ctx context.Context, c *pgconn.PgConn) error {
	if c.ParameterStatus("in_hot_standby") == "on" {
		return &pgconn.PgError{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: pgReadOnly, Message: "the server cannot write"}
	}
	_, err := c.Exec(ctx, pgSession).ReadAll()
	return err
}

// migrate brings the schema up to date. Of several processes that start at once, one does.
func (d *postgresDriver) migrate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pgMigrateTimeout)
	defer cancel()
	return pgRetry(ctx, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error { return migratePostgres(ctx, tx) })
	})
}

func migratePostgres(ctx context.Context, tx pgx.Tx) error {
	var server int
	if err := tx.QueryRow(ctx, "SELECT current_setting('server_version_num')::integer").Scan(&server); err != nil {
		return err
	}
	if server < pgOldest {
		return fmt.Errorf("the server is of version %d, and %d is the oldest that will do: upgrade it", server/10000, pgOldest/10000)
	}
	_, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d; SELECT pg_advisory_xact_lock(%d)", pgMigrateTimeout.Milliseconds(), int64(pgMigrateLock)))
	if err != nil {
		return err
	}
	version, err := pgSchemaVersion(ctx, tx)
	if err != nil || version == len(pgMigrations) {
		return err
	}
	if version > len(pgMigrations) {
		return fmt.Errorf("its schema is version %d and this Gatehouse knows versions up to %d: run the newer Gatehouse that made it, or restore a backup from before the upgrade", version, len(pgMigrations))
	}
	for i, m := range pgMigrations[version:] {
		if _, err := tx.Exec(ctx, m); err != nil {
			return fmt.Errorf("migrate to schema version %d: %w", version+i+1, err)
		}
	}
	_, err = tx.Exec(ctx, "UPDATE gatehouse.meta SET value = $1 WHERE key = 'schema'", len(pgMigrations))
	return err
}

// pgSchemaVersion returns the version of our schema, 0 for an empty one, which is made if there is none. It changes nothing in a schema that is
// not ours.
func pgSchemaVersion(ctx context.Context, tx pgx.Tx) (version int, err error) {
	var schema, meta bool
	var others int
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'gatehouse'),
		EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'gatehouse' AND c.relname = 'meta'),
		(SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'gatehouse')`).Scan(&schema, &meta, &others)
	switch {
	case err != nil:
		return 0, err
	case !schema:
		_, err := tx.Exec(ctx, "CREATE SCHEMA gatehouse")
		return 0, err
	case others == 0:
		return 0, nil
	case !meta:
		return 0, errors.New("its schema gatehouse holds something that is not Gatehouse's: use another database")
	}
	var application int
	err = tx.QueryRow(ctx, `SELECT coalesce(max(value) FILTER (WHERE key = 'application'), 0), coalesce(max(value) FILTER (WHERE key = 'schema'), 0)
		FROM gatehouse.meta`).Scan(&application, &version)
	if err == nil && (application != applicationID || version == 0) {
		err = errors.New("its schema gatehouse holds a table meta that is not Gatehouse's: use another database")
	}
	return version, err
}
