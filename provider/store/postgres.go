package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// pgCallTimeout ends a call whose context would wait for longer: a database that hangs must not hang its callers.
	pgCallTimeout = 10 * time.Second
	// pgStatementTimeout is the server's own limit. It is shorter, so that a statement's outcome is known while the server lives.
	pgStatementTimeout = 9 * time.Second
	// pgMaxKey is how many bytes of an owner and an ID together an index entry takes; PostgreSQL's limit is about 2,700.
	pgMaxKey = 2500
)

// postgresDriver is a Driver over a PostgreSQL database, which several processes may share.
//
// Seq is a number of a sequence, drawn under a lock that is held until its transaction is visible: so numbers become visible in
// their order. Neither of the two ways without a lock would do. Transaction ids below pg_snapshot_xmin stand still as long as any
// transaction of the whole cluster does that has written something, be it another application's in another database; and they begin
// anew when a database is restored in another cluster. A counter in a row grows versions that cannot be tidied up as long as any old
// snapshot is held, and each write would have to pass them all. The lock is taken last, by one statement that is its own transaction,
// and so it is held for a commit and never while this process thinks. What the lock costs, sharing a commit gives back: see
// pgWriter.
type postgresDriver struct {
	pool   *pgxpool.Pool
	cfg    PostgresConfig
	writer pgWriter
	bell   pgBell
}

const (
	pgRead = `SELECT owner, version, expires, data FROM gatehouse.record WHERE kind = $1 AND id = $2`
	pgScan = `SELECT id, owner, version, expires, data FROM gatehouse.record
		WHERE kind = $1 AND id > $2 ORDER BY id LIMIT $3`
	pgScanOwner = `SELECT id, owner, version, expires, data FROM gatehouse.record
		WHERE kind = $1 AND owner = $2 AND owner <> '' AND id > $3 ORDER BY id LIMIT $4`
	// Rows that another process sweeps are left to it. The last condition matters to rows that were changed after the first looked; it is
	// written so that no index fits, which would be read as a whole.
	pgSweep = `DELETE FROM gatehouse.record WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM gatehouse.record WHERE kind = $1 AND expires > 0 AND expires < $2 ORDER BY expires LIMIT $3 FOR UPDATE SKIP LOCKED))
		AND expires + 0 BETWEEN 1 AND $2 - 1`
	pgChanges = `SELECT seq, at, origin, kind, id, user_id, connector_id, deleted FROM gatehouse.change
		WHERE seq > $1 AND seq <= (SELECT max(seq) FROM (SELECT DISTINCT seq FROM gatehouse.change WHERE seq > $1 ORDER BY seq LIMIT $2) page)
		ORDER BY seq, n`
	pgBounds = `SELECT value, greatest(value, (SELECT max(seq) FROM gatehouse.change)) FROM gatehouse.meta WHERE key = 'floor'`
	pgTrim   = `WITH oldest AS (SELECT seq, at FROM gatehouse.change ORDER BY seq, n LIMIT $2),
		stop AS (SELECT min(seq) AS seq FROM oldest WHERE at >= $1),
		last AS (SELECT max(oldest.seq) AS seq FROM oldest, stop WHERE stop.seq IS NULL OR oldest.seq < stop.seq),
		gone AS (DELETE FROM gatehouse.change USING last WHERE change.seq <= last.seq RETURNING 1),
		floor AS (UPDATE gatehouse.meta SET value = greatest(value, last.seq) FROM last WHERE key = 'floor' AND last.seq IS NOT NULL)
		SELECT count(*) FROM gone`
)

// Close ends the wake-ups and waits for what is being written.
func (d *postgresDriver) Close() error {
	d.bell.close()
	d.pool.Close()
	return nil
}

// read runs f, which only reads, and once more on a new connection if the first turns out to be dead.
func (d *postgresDriver) read(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, pgCallTimeout)
	defer cancel()
	err := f(ctx)
	if isConnection(err) && ctx.Err() == nil {
		d.pool.Reset() // the others are as old
		err = f(ctx)
	}
	if err == nil || errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return fmt.Errorf("store: postgres: %s: %w", what, d.cfg.explain(err))
}

// isConnection reports whether err says that the connection broke, and not that the server refused something.
func isConnection(err error) bool {
	if err == nil || errors.Is(err, pgx.ErrNoRows) || errors.Is(err, storage.ErrNotFound) {
		return false
	}
	if code, ok := sqlState(err); ok {
		return code == pgAdminShutdown || code == pgCrashShutdown
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return !connecting
}

func (d *postgresDriver) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	r := Record{Kind: kind, ID: id}
	err := d.read(ctx, "read "+string(kind), func(ctx context.Context) error {
		var owner []byte
		var expires int64
		err := d.pool.QueryRow(ctx, pgRead, string(kind), []byte(id)).Scan(&owner, &r.Version, &expires, &r.Data)
		if errors.Is(err, pgx.ErrNoRows) {
			return storage.ErrNotFound
		}
		r.Owner, r.Expires = string(owner), fromNanos(expires)
		return err
	})
	if errors.Is(err, storage.ErrNotFound) {
		return Record{}, storage.ErrNotFound
	}
	if err != nil {
		return Record{}, err
	}
	return r, nil
}

func (d *postgresDriver) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for after, more := "", true; more; {
			page, err := d.page(ctx, q, after)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
				after = r.ID
			}
			more = len(page) == scanPage
		}
	}
}

// page returns the next records after an ID.
func (d *postgresDriver) page(ctx context.Context, q Query, after string) (page []Record, err error) {
	query, args := pgScan, []any{string(q.Kind), []byte(after), scanPage}
	if q.Owner != "" {
		query, args = pgScanOwner, []any{string(q.Kind), []byte(q.Owner), []byte(after), scanPage}
	}
	err = d.read(ctx, "list "+string(q.Kind), func(ctx context.Context) error {
		rows, err := d.pool.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Record, error) {
			r := Record{Kind: q.Kind}
			var id, owner []byte
			var expires int64
			err := row.Scan(&id, &owner, &r.Version, &expires, &r.Data)
			r.ID, r.Owner, r.Expires = string(id), string(owner), fromNanos(expires)
			return r, err
		})
		return err
	})
	return page, err
}

func (d *postgresDriver) Write(ctx context.Context, ops []Op) (int64, error) {
	for _, op := range ops {
		if n := len(op.Record.Owner) + len(op.Record.ID); n > pgMaxKey && op.Verb != Delete {
			return 0, fmt.Errorf("store: postgres: write %s: its owner and ID have %d bytes, more than an index takes (%d)", op.Record.Kind, n, pgMaxKey)
		}
	}
	seq, err := d.writer.write(ctx, ops)
	if err != nil && !isOutcome(err) {
		return 0, fmt.Errorf("store: postgres: write: %w", d.cfg.explain(err))
	}
	if seq > 0 {
		d.bell.ring()
	}
	return seq, err
}

func (d *postgresDriver) Sweep(ctx context.Context, kind Kind, before time.Time, limit int) (int, error) {
	var n int64
	err := d.retried(ctx, "sweep "+string(kind), func(ctx context.Context) error {
		tag, err := d.pool.Exec(ctx, pgSweep, string(kind), before.UnixNano(), limit)
		n = tag.RowsAffected()
		return err
	})
	return int(n), err
}

func (d *postgresDriver) Trim(ctx context.Context, before time.Time, limit int) (n int, err error) {
	err = d.retried(ctx, "trim the change log", func(ctx context.Context) error {
		return d.pool.QueryRow(ctx, pgTrim, before.UnixNano(), limit).Scan(&n)
	})
	return n, err
}

// retried runs a statement that may be repeated after the server has undone it.
func (d *postgresDriver) retried(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, pgCallTimeout)
	defer cancel()
	if err := pgRetry(ctx, f); err != nil {
		return fmt.Errorf("store: postgres: %s: %w", what, d.cfg.explain(err))
	}
	return nil
}

func (d *postgresDriver) Head(ctx context.Context) (head int64, err error) {
	err = d.read(ctx, "read the change log", func(ctx context.Context) error {
		var floor int64
		return d.pool.QueryRow(ctx, pgBounds).Scan(&floor, &head)
	})
	return head, err
}

// Changes says ErrTrimmed, too, when after lies beyond the log's end: the database was put back to an older state.
func (d *postgresDriver) Changes(ctx context.Context, after int64, limit int) (changes []Change, err error) {
	var floor, head int64
	err = d.read(ctx, "read the change log", func(ctx context.Context) error {
		var b pgx.Batch
		b.Queue(pgChanges, after, limit).Query(func(rows pgx.Rows) (err error) {
			changes, err = pgx.CollectRows(rows, pgChange)
			return err
		})
		// Asked last: what was trimmed while we read is noticed, too.
		b.Queue(pgBounds).QueryRow(func(row pgx.Row) error { return row.Scan(&floor, &head) })
		return d.pool.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return nil, err
	}
	if after < floor || after > head {
		return nil, ErrTrimmed
	}
	return changes, nil
}

func pgChange(row pgx.CollectableRow) (Change, error) {
	var c Change
	var at int64
	var kind string
	var id, user, connector []byte
	err := row.Scan(&c.Seq, &at, &c.Origin, &kind, &id, &user, &connector, &c.Deleted)
	c.At, c.Kind, c.ID, c.UserID, c.ConnectorID = time.Unix(0, at), Kind(kind), string(id), string(user), string(connector)
	return c, err
}
