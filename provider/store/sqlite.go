package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/dexidp/dex/storage"
)

// scanPage is how many records a scan reads at once.
const scanPage = 500

// sqliteDriver is a Driver over one SQLite file: one connection writes, a few read. Seq is a counter in the
// database: SQLite has one writer at a time, so it counts in the order of commits and leaves nothing out.
type sqliteDriver struct {
	writer *groupWriter
	reader *sql.DB

	read, scan, scanOwner, changes, meta *sql.Stmt // of reader
}

const (
	sqlRead = `SELECT owner, version, expires, data FROM record WHERE kind = ? AND id = ?`
	sqlScan = `SELECT id, owner, version, expires, data FROM record
		WHERE kind = ? AND id > ? ORDER BY id LIMIT ?`
	sqlScanOwner = `SELECT id, owner, version, expires, data FROM record
		WHERE kind = ? AND owner = ? AND owner <> '' AND id > ? ORDER BY id LIMIT ?`
	sqlCreate = `INSERT INTO record (kind, id, owner, version, expires, data) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT DO NOTHING`
	sqlPut = `UPDATE record SET owner = ?, version = version + 1, expires = ?, data = ?
		WHERE kind = ? AND id = ? AND version = ?`
	sqlExists = `SELECT EXISTS (SELECT 1 FROM record WHERE kind = ? AND id = ?)`
	sqlDelete = `DELETE FROM record WHERE kind = ? AND id = ?`
	sqlSweep  = `DELETE FROM record WHERE rowid IN
		(SELECT rowid FROM record WHERE kind = ? AND expires > 0 AND expires < ? LIMIT ?)`
	sqlMeta   = `SELECT value FROM meta WHERE key = ?`
	sqlCount  = `UPDATE meta SET value = value + 1 WHERE key = 'seq' RETURNING value`
	sqlRecord = `INSERT INTO change (seq, n, at, origin, kind, id, user_id, connector_id, deleted)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`
	sqlChanges = `SELECT seq, at, origin, kind, id, user_id, connector_id, deleted FROM change
		WHERE seq > ? AND seq <= ? ORDER BY seq, n`
	sqlOldest = `SELECT coalesce(max(seq), 0) FROM
		(SELECT seq, at FROM change ORDER BY seq LIMIT ?) WHERE at < ?`
	sqlTrim  = `DELETE FROM change WHERE seq <= ?`
	sqlFloor = `UPDATE meta SET value = ? WHERE key = 'floor'`
)

// prepare prepares the reader's statements.
func (d *sqliteDriver) prepare(ctx context.Context) error {
	return prepareAll(ctx, d.reader, map[**sql.Stmt]string{
		&d.read: sqlRead, &d.scan: sqlScan, &d.scanOwner: sqlScanOwner, &d.changes: sqlChanges, &d.meta: sqlMeta,
	})
}

func prepareAll(ctx context.Context, db *sql.DB, stmts map[**sql.Stmt]string) error {
	for into, query := range stmts {
		s, err := db.PrepareContext(ctx, query)
		if err != nil {
			return fmt.Errorf("store: sqlite: %w", err)
		}
		*into = s
	}
	return nil
}

// Close closes the readers first: the last connection to close, the writer, tidies up the write-ahead log.
func (d *sqliteDriver) Close() error {
	return errors.Join(d.reader.Close(), d.writer.db.Close())
}

func (d *sqliteDriver) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	r := Record{Kind: kind, ID: id}
	var expires int64
	err := d.read.QueryRowContext(ctx, kind, id).Scan(&r.Owner, &r.Version, &expires, &r.Data)
	if errors.Is(err, sql.ErrNoRows) {
		return Record{}, storage.ErrNotFound
	}
	if err != nil {
		return Record{}, fmt.Errorf("store: sqlite: read %s: %w", kind, err)
	}
	r.Expires = fromNanos(expires)
	return r, nil
}

func (d *sqliteDriver) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for after, more := "", true; more; {
			page, err := d.page(ctx, q, after)
			if err != nil {
				yield(Record{}, fmt.Errorf("store: sqlite: list %s: %w", q.Kind, err))
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
func (d *sqliteDriver) page(ctx context.Context, q Query, after string) (page []Record, err error) {
	stmt, args := d.scan, []any{q.Kind, after, scanPage}
	if q.Owner != "" {
		stmt, args = d.scanOwner, []any{q.Kind, q.Owner, after, scanPage}
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		r := Record{Kind: q.Kind}
		var expires int64
		if err := rows.Scan(&r.ID, &r.Owner, &r.Version, &expires, &r.Data); err != nil {
			return nil, err
		}
		r.Expires = fromNanos(expires)
		page = append(page, r)
	}
	return page, rows.Err()
}

func (d *sqliteDriver) Write(ctx context.Context, ops []Op) (int64, error) {
	var seq int64
	err := d.writer.do(ctx, func(ctx context.Context, tx *writeTx) error {
		seq = 0
		var changes []Change
		for _, op := range ops {
			if err := tx.apply(ctx, op); err != nil {
				return err
			}
			changes = append(changes, op.Changes...)
		}
		var err error
		seq, err = tx.record(ctx, changes)
		return err
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// apply makes one change.
func (tx *writeTx) apply(ctx context.Context, op Op) error {
	r, err := op.Record, error(nil)
	var n int64
	switch op.Verb {
	case Create:
		version := 1 + rand.Int64N(1<<62) //nolint:gosec // G404: only has to differ from those of a deleted record
		if n, err = tx.exec(ctx, tx.w.create, r.Kind, r.ID, r.Owner, version, toNanos(r.Expires), r.Data); err == nil && n == 0 {
			return storage.ErrAlreadyExists
		}
	case Put:
		if n, err = tx.exec(ctx, tx.w.put, r.Owner, toNanos(r.Expires), r.Data, r.Kind, r.ID, r.Version); err == nil && n == 0 {
			return tx.whyNotPut(ctx, r)
		}
	case Delete:
		if n, err = tx.exec(ctx, tx.w.remove, r.Kind, r.ID); err == nil && n == 0 {
			return storage.ErrNotFound
		}
	default:
		return fmt.Errorf("store: unknown verb %d", op.Verb)
	}
	return err
}

func (tx *writeTx) whyNotPut(ctx context.Context, r Record) error {
	var exists bool
	if err := tx.StmtContext(ctx, tx.w.exists).QueryRowContext(ctx, r.Kind, r.ID).Scan(&exists); err != nil {
		return err
	}
	if exists {
		return ErrConflict
	}
	return storage.ErrNotFound
}

// record writes the changes of one Write to the log and returns their Seq.
func (tx *writeTx) record(ctx context.Context, changes []Change) (seq int64, err error) {
	if len(changes) == 0 {
		return 0, nil
	}
	if err := tx.StmtContext(ctx, tx.w.count).QueryRowContext(ctx).Scan(&seq); err != nil {
		return 0, err
	}
	for n, c := range changes {
		_, err := tx.exec(ctx, tx.w.record, seq, n, c.At.UnixNano(), c.Origin, c.Kind, c.ID, c.UserID, c.ConnectorID, c.Deleted)
		if err != nil {
			return 0, err
		}
	}
	return seq, nil
}

func (d *sqliteDriver) Sweep(ctx context.Context, kind Kind, before time.Time, limit int) (int, error) {
	var n int64
	err := d.writer.do(ctx, func(ctx context.Context, tx *writeTx) (err error) {
		n, err = tx.exec(ctx, tx.w.sweep, kind, before.UnixNano(), limit)
		return err
	})
	return int(n), err
}

func (d *sqliteDriver) Trim(ctx context.Context, before time.Time, limit int) (int, error) {
	var n int64
	err := d.writer.do(ctx, func(ctx context.Context, tx *writeTx) (err error) {
		var last int64
		n = 0
		err = tx.StmtContext(ctx, tx.w.oldest).QueryRowContext(ctx, limit, before.UnixNano()).Scan(&last)
		if err != nil || last == 0 {
			return err
		}
		if n, err = tx.exec(ctx, tx.w.trim, last); err != nil {
			return err
		}
		_, err = tx.exec(ctx, tx.w.floor, last)
		return err
	})
	return int(n), err
}

func (d *sqliteDriver) Head(ctx context.Context) (head int64, err error) {
	return head, d.meta.QueryRowContext(ctx, "seq").Scan(&head)
}

func (d *sqliteDriver) Changes(ctx context.Context, after int64, limit int) ([]Change, error) {
	changes, err := d.changesAfter(ctx, after, limit)
	if err != nil {
		return nil, fmt.Errorf("store: sqlite: read the change log: %w", err)
	}
	// Asked last: what was trimmed while we read is noticed, too.
	var floor int64
	if err := d.meta.QueryRowContext(ctx, "floor").Scan(&floor); err != nil {
		return nil, fmt.Errorf("store: sqlite: read the change log: %w", err)
	}
	if after < floor {
		return nil, ErrTrimmed
	}
	return changes, nil
}

func (d *sqliteDriver) changesAfter(ctx context.Context, after int64, limit int) (changes []Change, err error) {
	rows, err := d.changes.QueryContext(ctx, after, after+int64(limit))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var c Change
		var at int64
		if err := rows.Scan(&c.Seq, &at, &c.Origin, &c.Kind, &c.ID, &c.UserID, &c.ConnectorID, &c.Deleted); err != nil {
			return nil, err
		}
		c.At = time.Unix(0, at)
		changes = append(changes, c)
	}
	return changes, rows.Err()
}

// toNanos and fromNanos keep Record.Expires as Unix nanoseconds, 0 for never.
func toNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
