package authz

import (
	"net"
	"runtime"
	"sync"
	"time"
)

// Limits of a gathering connection.
const (
	minGathered = 1000        // bytes: what is shorter has waited for others in grpc-go already
	maxGathered = 64 << 10    // bytes that wait to be written; what comes after them waits in Write
	closeWait   = time.Second // how long Close waits for a client that does not read
)

// Gather returns a listener for a gRPC server whose connections gather what is written to them: while others have an answer to give, too, one
// call to the system writes all. grpc-go does so up to 1,000 bytes only, and an answer with a token for an app is longer: each
// would cost a call of its own, a fifth of the whole check. Shorter ones are written as they come.
func Gather(l net.Listener) net.Listener { return gatherer{l} }

type gatherer struct{ net.Listener }

// Accept implements net.Listener.
func (g gatherer) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	out := &gathering{Conn: c, wake: make(chan struct{}, 1), done: make(chan struct{})}
	out.room.L = &out.mu
	go out.write()
	return out, nil
}

// A gathering connection writes in a goroutine of its own, which ends with Close or with the first error. That error is told by the next Write, and
// whoever reads learns of it.
type gathering struct {
	net.Conn
	wake chan struct{} // of one element: there is something to do
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	room    sync.Cond
	waits   []byte // what is to be written
	writing bool   // somebody does
	err     error  // why nothing more is taken
	closed  bool
}

// Write implements net.Conn.
func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.waits) >= maxGathered && g.err == nil {
		g.room.Wait()
	}
	switch {
	case g.err != nil:
		return 0, g.err
	case len(p) < minGathered && len(g.waits) == 0 && !g.writing:
		g.writing = true
		g.mu.Unlock()
		n, err := g.Conn.Write(p)
		g.wrote()
		g.mu.Lock()
		return n, err
	}
	g.waits = append(g.waits, p...)
	g.rouse()
	return len(p), nil
}

func (g *gathering) rouse() {
	select {
	case g.wake <- struct{}{}:
	default: // it is awake
	}
}

// write writes what waits, until it has written all that came before Close.
func (g *gathering) write() {
	defer close(g.done)
	var spare []byte
	for range g.wake {
		runtime.Gosched() // others that can go on now may have an answer, too
		out, last := g.take(spare)
		if len(out) > 0 {
			if _, err := g.Conn.Write(out); err != nil {
				g.fail(err)
				_ = g.Conn.Close() // whoever reads learns of it
				return
			}
			g.wrote()
		}
		if last {
			return
		}
		spare = nil
		if cap(out) <= maxGathered {
			spare = out[:0]
		}
	}
}

// take takes what waits, and says whether nothing will come after it.
func (g *gathering) take(spare []byte) (out []byte, last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.writing {
		g.room.Wait()
	}
	out, g.waits = g.waits, spare
	g.writing = len(out) > 0
	g.room.Broadcast()
	return out, g.closed
}

func (g *gathering) wrote() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writing = false
	g.room.Broadcast()
}

func (g *gathering) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
	g.room.Broadcast()
}

// Close implements net.Conn. What was written before goes out, unless the client does not read it.
func (g *gathering) Close() error {
	_ = g.SetWriteDeadline(time.Now().Add(closeWait)) // fails for a connection that is gone
	g.fail(net.ErrClosed)
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.rouse()
	<-g.done
	return g.Conn.Close()
}
