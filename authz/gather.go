package authz

import (
	"net"
	"runtime"
	"sync"
)

// Limits of a gathering connection.
const (
	minGathered = 1000     // bytes: what is shorter has waited for others in grpc-go already
	maxGathered = 64 << 10 // bytes that wait to be written; what comes after them waits in Write
)

// Gather returns a listener for a gRPC server whose connections gather what is written to them: while others have an answer to give, too, one
// call to the system writes all. grpc-go does so up to 1,000 bytes only, and an answer with a token for an app is longer: each
// would cost a call of its own, a fifth of the whole check. Shorter ones are written as they come.
func Gather(l net.Listener) net.Listener {
	return gatherer{l, &sync.Pool{New: func() any { return new([]byte) }}}
}

type gatherer struct {
	net.Listener
	buffers *sync.Pool // of *[]byte: connections have none while they are idle
}

// Accept implements net.Listener.
func (g gatherer) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	out := &gathering{Conn: c, buffers: g.buffers, wake: make(chan struct{}, 1)}
	out.room.L = &out.mu
	go out.write()
	return out, nil
}

// A gathering connection writes in a goroutine of its own, which ends with Close or with the first error. That error is told by the next Write, and
// whoever reads learns of it.
type gathering struct {
	net.Conn
	buffers *sync.Pool
	wake    chan struct{} // of one element: there is something to do

	mu      sync.Mutex
	room    sync.Cond
	waits   *[]byte // what is to be written; nil: nothing
	writing bool    // somebody does
	err     error   // why nothing more is taken
}

// Write implements net.Conn.
func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waits != nil && len(*g.waits) >= maxGathered && g.err == nil {
		g.room.Wait()
	}
	switch {
	case g.err != nil:
		return 0, g.err
	case len(p) < minGathered && g.waits == nil && !g.writing:
		g.writing = true
		g.mu.Unlock()
		n, err := g.Conn.Write(p)
		g.wrote()
		g.mu.Lock()
		return n, err
	}
	if g.waits == nil {
		g.waits, _ = g.buffers.Get().(*[]byte)
	}
	*g.waits = append(*g.waits, p...)
	g.rouse()
	return len(p), nil
}

func (g *gathering) rouse() {
	select {
	case g.wake <- struct{}{}:
	default: // it is awake
	}
}

// write writes what waits, until Close or an error.
func (g *gathering) write() {
	for range g.wake {
		runtime.Gosched() // others that can go on now may have an answer, too
		out, ok := g.take()
		switch {
		case !ok:
			return
		case out == nil: // it went with what came before it
			continue
		}
		if _, err := g.Conn.Write(*out); err != nil {
			g.fail(err)
			_ = g.Conn.Close() // whoever reads learns of it
			return
		}
		g.wrote()
		*out = (*out)[:0]
		g.buffers.Put(out)
	}
}

// take takes what waits, or returns false when nothing is to be written any more.
func (g *gathering) take() (out *[]byte, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.writing && g.err == nil {
		g.room.Wait()
	}
	if g.err != nil {
		return nil, false
	}
	out, g.waits = g.waits, nil
	g.writing = out != nil
	g.room.Broadcast()
	return out, true
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

// Close implements net.Conn. It waits for nobody: a server that stops closes one connection after another. What has not been written by then is
// lost; grpc-go gives its last words a second before it closes.
func (g *gathering) Close() error {
	g.fail(net.ErrClosed)
	g.rouse()
	return g.Conn.Close()
}
