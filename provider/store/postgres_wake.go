package store

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	pgChannel = "gatehouse" // of NOTIFY; a channel is that of one database
	// pgListenCheck is how often a connection that hears nothing is asked whether it is alive.
	pgListenCheck = 15 * time.Second
	pgMaxPause    = 5 * time.Second
)

// A pgBell tells other processes that the change log has grown.
//
// It rings after the commit, and once for all commits since it rang last. A NOTIFY within the writing transaction would take a lock of the
// whole cluster for the time of the commit, would wait for any other application's, and would fail the write when the server's queue of
// notifications is full.
type pgBell struct {
	pool *pgxpool.Pool
	name string // of this process, which does not wake itself

	rung  chan struct{} // holds one token while somebody wants it to ring
	ended chan struct{} // closed when it is to stop
	over  sync.WaitGroup
}

func (b *pgBell) start(ctx context.Context, pool *pgxpool.Pool) {
	ctx = context.WithoutCancel(ctx) // that of the start
	b.pool, b.name, b.rung, b.ended = pool, rand.Text(), make(chan struct{}, 1), make(chan struct{})
	b.over.Go(func() {
		for {
			select {
			case <-b.rung:
				b.notify(ctx)
			case <-b.ended:
				b.last(ctx)
				return
			}
		}
	})
}

// notify wakes the others. Should it fail, they read the log at their next time.
func (b *pgBell) notify(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pgMaxPause)
	defer cancel()
	_, _ = b.pool.Exec(ctx, "SELECT pg_notify($1, $2)", pgChannel, b.name)
}

// last rings if somebody wants it, so that what a process does last is heard at once, too.
func (b *pgBell) last(ctx context.Context) {
	select {
	case <-b.rung:
		b.notify(ctx)
	default:
	}
}

func (b *pgBell) ring() {
	select {
	case b.rung <- struct{}{}:
	default:
	}
}

func (b *pgBell) close() {
	close(b.ended)
	b.over.Wait()
}

// Wake implements Waker. It has a connection of its own, beside those of the pool.
func (d *postgresDriver) Wake(ctx context.Context, woken func()) {
	for try := 0; ; try++ {
		began := time.Now()
		err := d.listen(ctx, woken)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > pgListenCheck {
			try = 0
		}
		d.cfg.log.DebugContext(ctx, "changes of other processes are read at intervals only", "error", d.cfg.explain(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(pgMaxPause, 100*time.Millisecond<<min(try, 10))):
		}
	}
}

// listen hears notifications until the connection breaks or ctx is done.
func (d *postgresDriver) listen(ctx context.Context, woken func()) error {
	conn, err := pgx.ConnectConfig(ctx, d.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgChannel); err != nil {
		return err
	}
	woken() // for what it did not hear before
	for {
		heard, err := d.hear(ctx, conn)
		if err != nil {
			return err
		}
		if heard {
			woken()
		}
	}
}

// hear waits for a notification of another process, or until it is time to ask whether the server is there.
func (d *postgresDriver) hear(ctx context.Context, conn *pgx.Conn) (heard bool, err error) {
	wait, cancel := context.WithTimeout(ctx, pgListenCheck)
	defer cancel()
	n, err := conn.WaitForNotification(wait)
	switch {
	case err == nil:
		return n.Payload != d.bell.name, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case wait.Err() != nil && !conn.IsClosed():
		ping, cancel := context.WithTimeout(ctx, pgMaxPause)
		defer cancel()
		return false, conn.Ping(ping)
	}
	return false, err
}
