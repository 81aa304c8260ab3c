package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// applicationID marks an SQLite file as ours ("GtHs"); SQLite keeps it in the file's header.
const applicationID = 0x47744873

// headerSize is the length of the header of an SQLite file in bytes.
const headerSize = 100

var errNotSQLite = errors.New("it is not an SQLite database: give another path")

// Settings of every connection.
//
// synchronous(FULL): a commit returns after the write-ahead log is on disk. NORMAL, the usual companion of WAL,
// syncs at checkpoints only, and a power failure then takes the last commits along: a user who was told that he is
// signed out would be signed in again. busy_timeout is how long a connection waits for another process.
var (
	writerPragmas = []string{"busy_timeout(5000)", "synchronous(FULL)", "journal_size_limit(67108864)", "secure_delete(FAST)"} // what was plain before it was sealed is not to stay in freed parts of pages
	readerPragmas = []string{"busy_timeout(5000)", "query_only(1)"}
)

// migrations lead from one schema to the next; the schema's version is how many of them have run. Never edit one
// that was released: append.
var migrations = []string{
	`CREATE TABLE record (
		kind TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, version INTEGER NOT NULL,
		expires INTEGER NOT NULL, -- Unix nanoseconds, 0 for never
		data BLOB NOT NULL,
		PRIMARY KEY (kind, id)
	);
	CREATE INDEX record_owner ON record (kind, owner, id) WHERE owner <> '';
	CREATE INDEX record_expires ON record (kind, expires) WHERE expires > 0;
	CREATE TABLE change (
		seq INTEGER NOT NULL, n INTEGER NOT NULL, -- n counts within a write
		at INTEGER NOT NULL, origin TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
		user_id TEXT NOT NULL, connector_id TEXT NOT NULL, deleted INTEGER NOT NULL,
		PRIMARY KEY (seq, n)
	) WITHOUT ROWID;
	INSERT INTO meta (key, value) VALUES ('seq', 0), ('floor', 0);`,
}

// openSQLite opens or makes the file.
func openSQLite(ctx context.Context, path string, log *slog.Logger) (_ *sqliteDriver, err error) {
	if path, err = checkPath(path); err != nil {
		return nil, err
	}
	if err := prepareFile(ctx, path, log); err != nil {
		return nil, err
	}
	db, err := openPool(path, 1, writerPragmas)
	if err != nil {
		return nil, fmt.Errorf("store: sqlite file %s: %w", path, err)
	}
	d := &sqliteDriver{}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
			if d.reader != nil {
				err = errors.Join(err, d.reader.Close())
			}
		}
	}()
	if err := setUp(ctx, db); err != nil {
		return nil, fmt.Errorf("store: sqlite file %s: %w", path, err)
	}
	if d.writer, err = newGroupWriter(ctx, db); err != nil {
		return nil, err
	}
	if d.reader, err = openPool(path, max(4, runtime.GOMAXPROCS(0)), readerPragmas); err != nil {
		return nil, fmt.Errorf("store: sqlite file %s: %w", path, err)
	}
	return d, d.prepare(ctx)
}

// openPool returns a pool of connections. Transactions take the write lock when they begin: none is refused
// halfway because another process wrote in between.
func openPool(path string, size int, pragmas []string) (*sql.DB, error) {
	q := url.Values{"_pragma": pragmas, "_txlock": {"immediate"}}
	c, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

// checkPath refuses what is no file that survives a restart, and a directory that is missing or cannot be
// written to: SQLite keeps its write-ahead log beside the file.
func checkPath(path string) (string, error) {
	switch {
	case path == "":
		return "", errors.New("store: sqlite needs a file: set storage.config.file")
	case strings.Contains(path, ":memory:") || strings.HasPrefix(path, "file:"):
		return "", fmt.Errorf("store: sqlite file %q is not a file name: give a path, or use storage type memory", path)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("store: sqlite file: %w", err)
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("store: sqlite file %s: directory %s does not exist: create it or mount a volume there", path, dir)
	case err != nil:
		return "", fmt.Errorf("store: sqlite file %s: %w", path, err)
	case !info.IsDir():
		return "", fmt.Errorf("store: sqlite file %s: %s is not a directory", path, dir)
	}
	probe, err := os.CreateTemp(dir, ".gatehouse-*")
	if err != nil {
		return "", fmt.Errorf("store: sqlite file %s: directory %s is not writable for user id %d: change its owner or mode: %w", path, dir, os.Getuid(), err)
	}
	return path, errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// prepareFile makes the file if it does not exist, readable for its owner only; SQLite gives the files that it
// puts beside it the same mode. It never opens a file that exists: closing it would drop the locks that SQLite
// holds in this process.
func prepareFile(ctx context.Context, path string, log *slog.Logger) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createFile(path)
	}
	if err != nil {
		return fmt.Errorf("store: sqlite file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("store: sqlite file %s is not a regular file", path)
	}
	if size := info.Size(); size > 0 && size < headerSize {
		return fmt.Errorf("store: sqlite file %s: %w", path, errNotSQLite) // SQLite itself would take it for an empty one
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm()&0o077 == 0 {
			continue // the companions need not exist
		}
		if err := os.Chmod(name, 0o600); err != nil {
			log.WarnContext(ctx, "others may read the database, which holds keys and sessions: change its mode to 0600", "file", name, "error", err)
		}
	}
	return nil
}

func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	if err != nil {
		return fmt.Errorf("store: sqlite file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("store: sqlite file: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("store: sqlite file: %w", err)
	}
	// The file's name must survive a power failure as its content does.
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("store: sqlite file %s: %w", path, err)
	}
	return nil
}

// setUp checks that the database is ours, brings its schema up to date and turns the write-ahead log on. It
// changes nothing in a database that is not ours.
func setUp(ctx context.Context, db *sql.DB) error {
	err := migrate(ctx, db)
	if primaryCode(err) == sqlite3.SQLITE_NOTADB {
		return errNotSQLite
	}
	if err != nil {
		return err
	}
	mode, err := turnOnWAL(ctx, db)
	if err != nil {
		return fmt.Errorf("turn the write-ahead log on: %w", err)
	}
	if mode != "wal" {
		return fmt.Errorf("its write-ahead log cannot be turned on (journal mode is %s): put it on a local file system, not a network one", mode)
	}
	return nil
}

// turnOnWAL returns the journal mode after having asked for WAL. SQLite refuses this at once, without its usual
// wait, while another process does the same to a new file.
func turnOnWAL(ctx context.Context, db *sql.DB) (mode string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	for {
		err = db.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode)
		if primaryCode(err) != sqlite3.SQLITE_BUSY {
			return mode, err
		}
		if pause(ctx, maxTries) != nil {
			return "", err
		}
	}
}

// primaryCode returns SQLite's code of an error, 0 if it is none of SQLite's.
func primaryCode(err error) int {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return 0
	}
	return se.Code() & 0xff
}

func migrate(ctx context.Context, db *sql.DB) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	version, err := schemaVersion(ctx, tx)
	if err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("its schema is version %d and this Gatehouse knows versions up to %d: run the newer Gatehouse that made it, or restore a backup from before the upgrade", version, len(migrations))
	}
	for _, m := range migrations[version:] {
		if _, err := tx.ExecContext(ctx, m); err != nil {
			return fmt.Errorf("migrate to schema version %d: %w", version+1, err)
		}
	}
	_, err = tx.ExecContext(ctx, "UPDATE meta SET value = ? WHERE key = 'schema' AND value <> ?", len(migrations), len(migrations))
	if err != nil {
		return err
	}
	return tx.Commit()
}

// schemaVersion returns the schema's version, after having made an empty database ours, at version 0.
func schemaVersion(ctx context.Context, tx *sql.Tx) (version int, err error) {
	var id, tables int
	err = tx.QueryRowContext(ctx, "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id").Scan(&id, &tables)
	switch {
	case err != nil:
		return 0, err
	case id == 0 && tables == 0:
		_, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d;
			CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
			INSERT INTO meta (key, value) VALUES ('schema', 0)`, applicationID))
		return 0, err
	case id != applicationID:
		return 0, fmt.Errorf("it is an SQLite database, but not one of Gatehouse (application id %d, want %d): choose another file", id, applicationID)
	}
	err = tx.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = 'schema'").Scan(&version)
	return version, err
}
