package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/dexidp/dex/storage"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgMaxBatch is how many writes share a commit at most.
const pgMaxBatch = 256

// A pgWriter makes writes durable, each by one call of gatehouse.write, which is a transaction of its own: the outcome is unknown only
// if the answer is lost.
//
// Writes that leave changes in the log wait for the log's lock, and so, across all processes, one of them commits at a time. Those of one
// process that wait together share a commit: whoever gets the turn commits for all. They need no savepoints, since a write of a single
// record that fails has done nothing. All other writes go their own ways.
type pgWriter struct {
	pool *pgxpool.Pool
	turn chan struct{} // holds one token while somebody commits

	mu      sync.Mutex
	waiting []*pgPending
}

type pgPending struct {
	op   Op
	seq  int64
	err  error         // set before done is closed, as seq is
	done chan struct{} // closed when the write is durable or has failed
}

// write returns when ops are durable or ctx is done. A write that still waits for its turn then is withdrawn; otherwise its outcome is
// unknown.
func (w *pgWriter) write(ctx context.Context, ops []Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if len(ops) != 1 || len(ops[0].Changes) == 0 {
		return w.alone(ctx, ops)
	}
	p := &pgPending{op: ops[0], done: make(chan struct{})}
	w.mu.Lock()
	w.waiting = append(w.waiting, p)
	w.mu.Unlock()
	select {
	case <-p.done:
		return p.seq, p.err
	case w.turn <- struct{}{}:
		go w.commitWaiting(context.WithoutCancel(ctx)) // it must not depend on the context of one of its writes
	case <-ctx.Done():
		w.withdraw(p)
		return 0, ctx.Err()
	}
	select {
	case <-p.done:
		return p.seq, p.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (w *pgWriter) withdraw(p *pgPending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.waiting, p); i >= 0 {
		w.waiting = slices.Delete(w.waiting, i, i+1)
	}
}

// commitWaiting commits what waits until nothing does, and gives the turn back.
func (w *pgWriter) commitWaiting(ctx context.Context) {
	defer func() { <-w.turn }()
	for {
		w.mu.Lock()
		n := min(len(w.waiting), pgMaxBatch)
		batch := slices.Clone(w.waiting[:n])
		w.waiting = slices.Delete(w.waiting, 0, n)
		w.mu.Unlock()
		if n == 0 {
			return
		}
		w.commit(ctx, batch)
	}
}

// commit makes the writes of a batch durable. If the server refuses the batch, nothing of it was written, and each goes alone: one that the
// server does not take, or that waits for a record which somebody holds, takes no other with it.
func (w *pgWriter) commit(ctx context.Context, batch []*pgPending) {
	// Records are locked in one order by all processes. Writes of one record stay in theirs.
	slices.SortStableFunc(batch, func(a, b *pgPending) int {
		return cmp.Or(cmp.Compare(a.op.Record.Kind, b.op.Record.Kind), cmp.Compare(a.op.Record.ID, b.op.Record.ID))
	})
	ops := make([]Op, len(batch))
	for i, p := range batch {
		ops[i] = p.op
	}
	results, err := w.call(ctx, ops, false)
	if err != nil && len(batch) > 1 && isUndone(err) {
		for _, p := range batch {
			go func() {
				p.seq, p.err = w.alone(ctx, []Op{p.op})
				close(p.done)
			}()
		}
		return
	}
	for i, p := range batch {
		if p.err = err; err == nil {
			p.seq, p.err = results[i].seq, results[i].outcome
		}
		close(p.done)
	}
}

// alone makes all of ops durable, or none.
func (w *pgWriter) alone(ctx context.Context, ops []Op) (int64, error) {
	if len(ops) == 0 {
		return 0, nil
	}
	results, err := w.call(ctx, ops, len(ops) > 1)
	if err != nil {
		return 0, err
	}
	var seq int64
	for _, r := range results {
		if r.outcome != nil {
			return 0, r.outcome // the only one: of several together, err says it
		}
		seq = max(seq, r.seq)
	}
	return seq, nil
}

type pgResult struct {
	seq     int64
	outcome error // nil, or that nothing was written
}

const pgWrite = `SELECT outcomes, seqs FROM gatehouse.write($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`

// call has the server apply ops: all or none of them if they go together, else each by itself.
func (w *pgWriter) call(ctx context.Context, ops []Op, together bool) ([]pgResult, error) {
	args, err := pgArguments(ops, together)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pgCallTimeout)
	defer cancel()
	var outcomes []int32
	var seqs []int64
	err = pgRetry(ctx, func(ctx context.Context) error {
		return w.pool.QueryRow(ctx, pgWrite, args...).Scan(&outcomes, &seqs)
	})
	if code, ok := sqlState(err); ok && len(code) == 5 && code[:4] == "GH00" {
		return nil, pgOutcome(int32(code[4] - '0'))
	}
	if err != nil {
		return nil, err
	}
	if len(outcomes) != len(ops) || len(seqs) != len(ops) {
		return nil, fmt.Errorf("gatehouse.write answered for %d and %d of %d records", len(outcomes), len(seqs), len(ops))
	}
	results := make([]pgResult, len(ops))
	for i := range ops {
		results[i] = pgResult{seqs[i], pgOutcome(outcomes[i])}
	}
	return results, nil
}

// pgOutcome is what an outcome of gatehouse.write means.
func pgOutcome(n int32) error {
	switch n {
	case 0:
		return nil
	case 1:
		return storage.ErrAlreadyExists
	case 2:
		return ErrConflict
	case 3:
		return storage.ErrNotFound
	}
	return fmt.Errorf("gatehouse.write answered %d", n)
}

// pgArguments returns the arguments of gatehouse.write. IDs and the like are bytes to PostgreSQL: its text could hold no zero byte, nothing
// but the database's encoding, and would be in a language's order.
func pgArguments(ops []Op, together bool) ([]any, error) {
	n := len(ops)
	verbs, kinds, versions, expires := make([]int32, n), make([]string, n), make([]int64, n), make([]int64, n)
	ids, owners, datas := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	var of []int32 // which op a change belongs to, from 1
	var at []int64
	var origin, kind []string
	var id, user, connector [][]byte
	var deleted []bool
	for i, op := range ops {
		if op.Verb != Create && op.Verb != Put && op.Verb != Delete {
			return nil, fmt.Errorf("unknown verb %d", op.Verb)
		}
		r := op.Record
		if op.Verb == Create {
			r.Version = 1 + rand.Int64N(1<<62) //nolint:gosec // G404: only has to differ from those of a deleted record
		}
		verbs[i] = int32(op.Verb) //nolint:gosec // G115: it is one of three
		kinds[i], versions[i], expires[i] = string(r.Kind), r.Version, toNanos(r.Expires)
		ids[i], owners[i], datas[i] = []byte(r.ID), []byte(r.Owner), r.Data
		if r.Data == nil {
			datas[i] = []byte{} // nil would be NULL
		}
		for _, c := range op.Changes {
			of, at = append(of, int32(i+1)), append(at, c.At.UnixNano())
			origin, kind, deleted = append(origin, c.Origin), append(kind, string(c.Kind)), append(deleted, c.Deleted)
			id, user, connector = append(id, []byte(c.ID)), append(user, []byte(c.UserID)), append(connector, []byte(c.ConnectorID))
		}
	}
	return []any{verbs, kinds, ids, owners, versions, expires, datas, together, notNil(of), notNil(at), notNil(origin), notNil(kind), notNil(id), notNil(user), notNil(connector), notNil(deleted)}, nil
}

// notNil returns s as a list that is empty rather than NULL.
func notNil[E any](s []E) []E {
	if s == nil {
		return []E{}
	}
	return s
}

// pgRetry runs f until the server does not undo it any more because of others: then, and if nothing was sent, nothing was done.
func pgRetry(ctx context.Context, f func(context.Context) error) error {
	for try := 0; ; try++ {
		err := f(ctx)
		if try == maxTries || !isRetryable(err) {
			return err
		}
		if perr := pause(ctx, try); perr != nil {
			return errors.Join(perr, err)
		}
	}
}
