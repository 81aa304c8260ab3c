package peers

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Proxy passes TCP connections on to a server, and makes them slow or cuts them when the test says so.
type Proxy struct {
	Addr string // where it listens, ip:port

	to       string
	delay    atomic.Int64
	listener net.Listener
	all      sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{} // both ends of each connection
}

// NewProxy starts a proxy before the server at to, and stops it when the test ends.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), to: to, listener: l, conns: map[net.Conn]struct{}{}}
	p.all.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.Cut(true)
		p.all.Wait()
	})
	return p
}

// Delay makes everything that a client sends from now on arrive that much later: a call that waits for its answer takes that much longer.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// Cut closes all connections, and those that come, until it is called with false.
func (p *Proxy) Cut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.conns {
			_ = c.Close()
		}
		clear(p.conns)
	}
}

// keep takes note of both ends of a connection, or closes them where the proxy is cut.
func (p *Proxy) keep(ends ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range ends {
		if p.cut {
			_ = c.Close()
		} else {
			p.conns[c] = struct{}{}
		}
	}
	return !p.cut
}

func (p *Proxy) drop(ends ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range ends {
		_ = c.Close()
		delete(p.conns, c)
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	d := net.Dialer{Timeout: Patience}
	server, err := d.DialContext(context.Background(), "tcp", p.to)
	if err != nil {
		_ = client.Close()
		return
	}
	if !p.keep(client, server) {
		return
	}
	p.all.Go(func() { p.pass(server, client, func() time.Duration { return time.Duration(p.delay.Load()) }) })
	p.pass(client, server, func() time.Duration { return 0 })
}

// A piece is some bytes of a stream, and when they are to arrive.
type piece struct {
	data []byte
	due  time.Time
}

// pass copies from one end to the other; what it reads while an earlier piece is held back is held back no longer than its own delay.
func (p *Proxy) pass(to, from net.Conn, delay func() time.Duration) {
	defer p.drop(to, from)
	pieces := make(chan piece, 1024)
	p.all.Go(func() {
		defer p.drop(to, from)
		for next := range pieces {
			if wait := time.Until(next.due); wait > 0 {
				<-time.After(wait)
			}
			if _, err := to.Write(next.data); err != nil {
				break
			}
		}
		for range pieces { //nolint:revive // nobody is to wait for a place in it
		}
	})
	defer close(pieces)
	for {
		data := make([]byte, 32<<10)
		n, err := from.Read(data)
		if n > 0 {
			pieces <- piece{data[:n], time.Now().Add(delay())}
		}
		if err != nil {
			return
		}
	}
}
