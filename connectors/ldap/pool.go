package ldap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// A conn is a connection. One caller has it at a time.
type conn struct {
	e       *endpoint
	l       *ldapv3.Conn
	wire    *wire
	service bool
	reused  bool        // it has answered before
	expiry  *time.Timer // while it is idle
}

func newConn(e *endpoint, w *wire, secure bool) *conn {
	l := ldapv3.NewConn(w, secure)
	l.Start()
	return &conn{e: e, l: l, wire: w}
}

// broken tells whether a connection has ended, or has to.
func (k *conn) broken() bool { return k.l.IsClosing() || k.wire.aborted.Load() || k.wire.why() != nil }

// do runs requests. When ctx ends the connection does, and so does f. Errors that are not the directory's answer make an end of the connection.
func (k *conn) do(ctx context.Context, f func(*ldapv3.Conn) error) (err error) {
	stop := context.AfterFunc(ctx, k.wire.abort)
	defer func() {
		if p := recover(); p != nil { // of what decodes answers
			err = fmt.Errorf("%w: %v", errGarbage, p)
		}
		stopped := stop()
		if err == nil {
			return
		}
		why := k.wire.why()
		if why == nil && answered(err) {
			return
		}
		k.wire.abort()
		switch {
		case why != nil:
			err = fmt.Errorf("%w: %w", why, err)
		case !stopped && ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}()
	return f(k.l)
}

// answered tells whether an error is the directory's answer, or a filter that does not parse: the connection is good then.
func answered(err error) bool {
	var e *ldapv3.Error
	return errors.As(err, &e) && (e.ResultCode < ldapv3.ErrorNetwork || e.ResultCode == ldapv3.ErrorFilterCompile)
}

// A pool is the connections for one purpose: at most max, idle ones included.
type pool struct {
	max     int
	idleFor time.Duration
	service bool
	slots   chan struct{} // one token for each connection in use

	mu     sync.Mutex
	idle   []*conn // the one used last at the end
	closed bool
}

func newPool(n int, idle time.Duration, service bool) *pool {
	return &pool{max: n, idleFor: idle, service: service, slots: make(chan struct{}, n)}
}

// acquire waits for the right to one connection, until ctx ends. For whoever has gone already there is none: the directory is not asked.
func (p *pool) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", errNoDirectory, err)
	}
	select {
	case p.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: all %d connections are in use: %w", errNoDirectory, p.max, ctx.Err())
	}
}

func (p *pool) release() { <-p.slots }

// take returns an idle connection that still stands, to the best host there is, the one used last; and those that do not stand any more.
func (p *pool) take() (best *conn, ended []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := -1
	p.idle = slices.DeleteFunc(p.idle, func(k *conn) bool {
		if k.broken() {
			k.expiry.Stop()
			ended = append(ended, k)
			return true
		}
		return false
	})
	for i, k := range p.idle {
		if at < 0 || k.e.rank <= p.idle[at].e.rank {
			at = i
		}
	}
	if at < 0 {
		return nil, ended
	}
	best = p.idle[at]
	best.expiry.Stop()
	p.idle = slices.Delete(p.idle, at, at+1)
	return best, ended
}

// room makes room for a new connection of a caller that has a slot, and returns what has to be closed for it.
func (p *pool) room() (out []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 && len(p.idle)+len(p.slots) > p.max {
		p.idle[0].expiry.Stop()
		out = append(out, p.idle[0])
		p.idle = slices.Delete(p.idle, 0, 1)
	}
	return out
}

// put keeps a connection until it has been idle for long, when end is called, and tells whether it does.
func (p *pool) put(k *conn, end func(*conn)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	k.reused = true
	var timer *time.Timer
	timer = time.AfterFunc(p.idleFor, func() {
		p.mu.Lock()
		at := slices.IndexFunc(p.idle, func(o *conn) bool { return o == k && o.expiry == timer })
		if at >= 0 {
			p.idle = slices.Delete(p.idle, at, at+1)
		}
		p.mu.Unlock()
		if at >= 0 {
			end(k)
		}
	})
	k.expiry = timer
	p.idle = append(p.idle, k)
	return true
}

// remove takes the idle connections out that f names.
func (p *pool) remove(f func(*conn) bool) (out []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = slices.DeleteFunc(p.idle, func(k *conn) bool {
		if !f(k) {
			return false
		}
		k.expiry.Stop()
		out = append(out, k)
		return true
	})
	return out
}

// close keeps nothing from now on.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.remove(func(*conn) bool { return true })
}
