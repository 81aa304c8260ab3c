// Package listen keeps strangers from holding up a listener. The connections of each are counted: when there are as
// many as it may have, one makes room for the new one. First go those that never were of use, so that whoever opens
// connections and says nothing pushes out others of that kind; after them the one that has been of no use for the longest
// time. What one connection may take in time and size is limited by the server that runs on it.
package listen

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
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

	// Traffic is for a gRPC server, whose requests this package does not see: a connection is of use once it has shaken hands
	// or, in plain text, sent the preface of HTTP/2, and then whenever something comes in. Its clients are the operator's
	// gateways, so that the log warns of those that fail.
	Traffic bool
}

// A Listener accepts any number of connections, and keeps Options.Max of them.
type Listener struct {
	net.Listener
	o Options

	mu      sync.Mutex
	fresh   *list.List // of *conn: those that never were of use; the oldest first
	waiting *list.List // of *conn: without a request that is being worked on; the longest time first
	working *list.List // of *conn: the one whose request is the oldest first
}

// New returns l with limits.
func New(l net.Listener, o Options) *Listener {
	o.Metrics.begin(o)
	return &Listener{Listener: l, o: o, fresh: list.New(), waiting: list.New(), working: list.New()}
}

// freshShare is which part of a listener's connections those that never were of use may always have. Without it somebody
// with many old connections could have every new client closed before its first request.
const freshShare = 4

// sendBuffer is how much of an answer the system keeps for a client that does not read, in bytes: some pages. Left to
// itself Linux keeps megabytes, and lets a client who pipelines requests have that much worked out in vain.
const sendBuffer = 64 << 10

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) && l.o.Metrics.warned.due(l.o.Name+" accept") {
			l.o.Log.Warn("no connection can be taken", "for", l.o.Name, "error", err, "fix", acceptFix(err))
		}
		return nil, err // servers try again
	}
	if tcp, ok := raw.(*net.TCPConn); ok && !l.o.Traffic {
		_ = tcp.SetWriteBuffer(sendBuffer) // fails for a connection that is gone, as everything will
	}
	c := &conn{Conn: raw, listener: l}
	if old := l.admit(c); old != nil {
		l.o.Metrics.evicted.WithLabelValues(l.o.Name).Inc()
		if l.o.Metrics.warned.due(l.o.Name + " full") {
			l.o.Log.Warn("the listener is full: connections that wait are closed for new ones", "for", l.o.Name, "connections", l.o.Max)
		}
		_ = old.Conn.Close() // whoever reads from it learns of it
	}
	return c, nil
}

// acceptFix is what an operator may do about an error of Accept.
func acceptFix(err error) string {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return "too many files are open: raise the limit (systemd: LimitNOFILE; a shell: ulimit -n)"
	}
	return ""
}

// admit counts c, and takes out the connection in whose place it comes, if all are taken.
func (l *Listener) admit(c *conn) (old *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open() >= l.o.Max {
		old, _ = l.victims().Front().Value.(*conn)
		old.leave()
	}
	c.enter(l.fresh)
	l.count()
	return old
}

// open returns how many connections there are.
func (l *Listener) open() int { return l.fresh.Len() + l.waiting.Len() + l.working.Len() }

func (l *Listener) count() {
	l.o.Metrics.connections.WithLabelValues(l.o.Name).Set(float64(l.open()))
}

// victims returns the list that a full listener takes a connection from.
func (l *Listener) victims() *list.List {
	switch {
	case l.fresh.Len() >= max(1, l.o.Max/freshShare):
		return l.fresh
	case l.waiting.Len() > 0:
		return l.waiting
	}
	return l.working
}

// A conn is one of a Listener's connections. What is below is guarded by the listener's lock, but for seen.
type conn struct {
	net.Conn
	listener *Listener

	// For Read alone, which has one caller at a time.
	seen    int64 // when something last came in, in ticks; 0: nothing has
	preface int   // bytes of the preface of HTTP/2 that have come in

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

// used says that c is of use, or still is.
func (c *conn) used() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.moveTo(c.listener.waiting)
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
	l.count()
	l.mu.Unlock()
	return c.Conn.Close()
}

var errTLS = errors.New("a TLS client on a listener that speaks plain text")

// recordHandshake is the first byte of a TLS client (RFC 8446 section 5.1). It begins neither a request of HTTP/1.1 nor
// the preface of HTTP/2.
const recordHandshake = 22

// clientPreface is what a client of HTTP/2 begins with (RFC 9113 section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// tick is how exactly it is known when something last came in. A flood opens thousands of connections a second, and a gateway
// that is being used must not look older than they; taking the lock so seldom costs a check next to nothing.
const tick = 50 * time.Millisecond

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	o := &c.listener.o
	n, err := c.Conn.Read(p)
	if n == 0 || c.seen != 0 && !o.Traffic {
		return n, err
	}
	if c.seen == 0 && o.Plain && p[0] == recordHandshake {
		o.Metrics.failed(failure{o.Name, c.RemoteAddr(), errTLS, o.Traffic}, o.Log)
		return 0, errTLS
	}
	if now := time.Now().UnixNano() / int64(tick); now != c.seen {
		c.seen = now
		if o.Traffic {
			c.stillUsed()
		}
	}
	if o.Traffic && o.Plain && c.preface < len(clientPreface) {
		c.readPreface(p[:n])
	}
	return n, err
}

// readPreface compares what has come in with the preface of HTTP/2.
func (c *conn) readPreface(p []byte) {
	p = p[:min(len(p), len(clientPreface)-c.preface)]
	if string(p) != clientPreface[c.preface:c.preface+len(p)] {
		return // the server closes it
	}
	if c.preface += len(p); c.preface == len(clientPreface) {
		c.used()
	}
}

// stillUsed puts c behind the others of its kind.
func (c *conn) stillUsed() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if c.in != c.listener.fresh { // the bytes of a handshake or preface are no use
		c.moveTo(c.in)
	}
}
