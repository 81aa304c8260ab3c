package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// commitTimeout bounds a transaction, the wait for another process's included.
const commitTimeout = 10 * time.Second

// A groupWriter makes writes durable: it has the one connection that writes. Writes that wait for the disk
// together share a commit, and with it one fsync: whoever gets the turn commits for all that wait. Each write has
// a savepoint of its own, so that one which fails takes no other with it.
type groupWriter struct {
	db   *sql.DB       // one connection
	turn chan struct{} // holds one token while somebody commits

	mu      sync.Mutex
	waiting []*pendingWrite

	create, put, exists, remove, sweep, count, record, oldest, trim, floor *sql.Stmt
}

type pendingWrite struct {
	run  func(context.Context, *writeTx) error
	err  error         // of this write; set before done is closed
	done chan struct{} // closed when the write is durable or has failed
}

// A writeTx is a transaction of the groupWriter.
type writeTx struct {
	*sql.Tx
	w *groupWriter
}

func newGroupWriter(ctx context.Context, db *sql.DB) (*groupWriter, error) {
	w := &groupWriter{db: db, turn: make(chan struct{}, 1)}
	return w, prepareAll(ctx, db, map[**sql.Stmt]string{
		&w.create: sqlCreate, &w.put: sqlPut, &w.exists: sqlExists, &w.remove: sqlDelete, &w.sweep: sqlSweep,
		&w.count: sqlCount, &w.record: sqlRecord, &w.oldest: sqlOldest, &w.trim: sqlTrim, &w.floor: sqlFloor,
	})
}

// do runs a write in a transaction and returns when it is durable. A write that waits is withdrawn when its
// context ends; one that is being committed is seen through, so that its outcome is known.
func (w *groupWriter) do(ctx context.Context, run func(context.Context, *writeTx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := &pendingWrite{run: run, done: make(chan struct{})}
	w.mu.Lock()
	w.waiting = append(w.waiting, p)
	w.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case w.turn <- struct{}{}:
		w.commitWaiting(ctx)
	case <-ctx.Done():
		if w.withdraw(p) {
			return ctx.Err()
		}
	}
	<-p.done
	return p.err
}

func (w *groupWriter) withdraw(p *pendingWrite) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.waiting, p)
	if i < 0 {
		return false
	}
	w.waiting = slices.Delete(w.waiting, i, i+1)
	return true
}

// commitWaiting commits all that waits, its caller's write included unless that is done already. It gives the
// turn back. The commit must not depend on the context of one of its writes.
func (w *groupWriter) commitWaiting(ctx context.Context) {
	defer func() { <-w.turn }()
	w.mu.Lock()
	batch := w.waiting
	w.waiting = nil
	w.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	err := w.commit(ctx, batch)
	for _, p := range batch {
		if err != nil {
			p.err = fmt.Errorf("store: sqlite: write: %w", err) // even where it had failed: it saw what is undone now
		}
		close(p.done)
	}
}

func (w *groupWriter) commit(ctx context.Context, batch []*pendingWrite) (err error) {
	sqlTx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	tx := &writeTx{Tx: sqlTx, w: w}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	for _, p := range batch {
		if err := tx.run(ctx, p); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// run runs one write within its savepoint. A failed write is undone and keeps its error; run's own error ends
// the whole transaction.
func (tx *writeTx) run(ctx context.Context, p *pendingWrite) error {
	if _, err := tx.ExecContext(ctx, "SAVEPOINT one"); err != nil {
		return err
	}
	if p.err = p.run(ctx, tx); p.err != nil {
		if _, err := tx.ExecContext(ctx, "ROLLBACK TO one"); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, "RELEASE one")
	return err
}

// exec runs a prepared statement and returns how many rows it changed.
func (tx *writeTx) exec(ctx context.Context, stmt *sql.Stmt, args ...any) (int64, error) {
	res, err := tx.StmtContext(ctx, stmt).ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}
