// Package listen keeps strangers from holding up a listener. The connections of each are counted: when there are as
// many as it may have, the one that has been of no use for the longest time makes room for the new one, so that
// whoever opens connections and lets them lie only pushes out his own. What one connection may take in time and size is
// limited by the server that runs on it.
package listen

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Options of New. All are needed, but for Plain and Traffic.
type Options struct {
	Name    string // of the listener, such as web.http
	Max     int    // connections at once
	Metrics *Metrics
	Log     *slog.Logger

	// Plain is for a listener that speaks no TLS: a client that does is told from others by its first byte, and cut off
	// with a word in the log.
	Plain bool

	// Traffic takes a connection for used whenever something comes in, for servers whose requests this package does not see.
	Traffic bool
}

// A Listener accepts any number of connections, and keeps Options.Max of them.
type Listener struct {
	net.Listener
	o Options

	mu      sync.Mutex
	waiting *list.List // of *conn: without a request that is being worked on; the longest time first
	working *list.List // of *conn: the one whose request is the oldest first
	warned  time.Time
}

// New returns l with limits.
func New(l net.Listener, o Options) *Listener {
	return &Listener{Listener: l, o: o, waiting: list.New(), working: list.New()}
}

// warnEvery is how often the log says that a listener is full.
const warnEvery = time.Minute

// sendBuffer is how much of an answer the system keeps for a client that does not read, in bytes: some pages. Left to
// itself Linux keeps megabytes, and lets a client who pipelines requests have that much worked out in vain.
const sendBuffer = 64 << 10

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := raw.(*net.TCPConn); ok && !l.o.Traffic {
		_ = tcp.SetWriteBuffer(sendBuffer) // fails for a connection that is gone, as everything will
	}
	c := &conn{Conn: raw, listener: l}
	if old, warn := l.admit(c); old != nil {
		l.o.Metrics.evicted.WithLabelValues(l.o.Name).Inc()
		if warn {
			l.o.Log.Warn("the listener is full: connections that wait are closed for new ones", "for", l.o.Name, "connections", l.o.Max)
		}
		_ = old.Conn.Close() // whoever reads from it learns of it
	}
	return c, nil
}

// admit counts c, and takes out the connection in whose place it comes, if all are taken.
func (l *Listener) admit(c *conn) (old *conn, warn bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting.Len()+l.working.Len() >= l.o.Max {
		from := l.waiting
		if from.Len() == 0 {
			from = l.working
		}
		old, _ = from.Front().Value.(*conn)
		old.leave()
		if now := time.Now(); now.Sub(l.warned) >= warnEvery {
			l.warned, warn = now, true
		}
	}
	c.enter(l.waiting)
	l.o.Metrics.connections.WithLabelValues(l.o.Name).Set(float64(l.waiting.Len() + l.working.Len()))
	return old, warn
}

// A conn is one of a Listener's connections. What is below is guarded by the listener's lock, but for seen.
type conn struct {
	net.Conn
	listener *Listener
	seen     int64 // when something last came in, in seconds; 0: nothing has. For Read alone, which has one caller at a time

	place    *list.Element // nil: it has left
	in       *list.List
	requests int // that are being worked on
}

func (c *conn) enter(in *list.List) { c.in, c.place = in, in.PushBack(c) }

func (c *conn) leave() {
	if c.place != nil {
		c.in.Remove(c.place)
		c.in, c.place = nil, nil
	}
}

// moveTo puts c at the end of a list, unless it has left.
func (c *conn) moveTo(to *list.List) {
	if c.place != nil {
		c.leave()
		c.enter(to)
	}
}

// begin and end say that a whole request has come in, and that it is answered.
func (c *conn) begin() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if c.requests++; c.requests == 1 {
		c.moveTo(c.listener.working)
	}
}

func (c *conn) end() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if c.requests--; c.requests == 0 {
		c.moveTo(c.listener.waiting)
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	l := c.listener
	l.mu.Lock()
	c.leave()
	l.o.Metrics.connections.WithLabelValues(l.o.Name).Set(float64(l.waiting.Len() + l.working.Len()))
	l.mu.Unlock()
	return c.Conn.Close()
}

var errTLS = errors.New("a TLS client on a listener that speaks plain text")

// recordHandshake is the first byte of a TLS client (RFC 8446 section 5.1). It begins neither a request of HTTP/1.1 nor
// the preface of HTTP/2.
const recordHandshake = 22

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n == 0 || c.seen != 0 && !c.listener.o.Traffic {
		return n, err
	}
	if c.seen == 0 && c.listener.o.Plain && p[0] == recordHandshake {
		c.listener.o.Metrics.failed(c.listener.o.Name, c.listener.o.Log, c.RemoteAddr(), errTLS)
		return 0, errTLS
	}
	if now := time.Now().Unix(); now != c.seen { // once a second is exact enough, and costs a check next to nothing
		c.seen = now
		if c.listener.o.Traffic {
			c.listener.mu.Lock()
			c.moveTo(c.in)
			c.listener.mu.Unlock()
		}
	}
	return n, err
}
