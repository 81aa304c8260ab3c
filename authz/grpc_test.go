package authz_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"gatehouse/authz"
)

// A pipeListener gives a server one connection in memory.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *pipeListener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// The gRPC server ends connections that are of no use: by a clock of their own.
func TestGRPCConnectionsEnd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		act    func(net.Conn, *http2.Framer) error
		answer bool // to the server's pings
		want   time.Duration
		goAway bool
	}{
		{"says nothing", func(net.Conn, *http2.Framer) error { return nil }, false, 10 * time.Second, false},
		{"half a preface", func(c net.Conn, _ *http2.Framer) error { _, err := io.WriteString(c, "PRI * HT"); return err }, false, 10 * time.Second, false},
		{"no request", preface, true, 15 * time.Minute, true},
		{"no answer to a ping", preface, false, 40 * time.Second, false},
		{"ping flood", func(c net.Conn, f *http2.Framer) error {
			err := preface(c, f)
			for range 10 {
				err = errors.Join(err, f.WritePing(false, [8]byte{}))
			}
			return err
		}, true, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
				server, _ := authz.NewGRPCServer(new(authz.Server))
				ended := make(chan error)
				go func() { ended <- server.Serve(l) }()
				client, conn := net.Pipe()
				l.conns <- conn
				begin := time.Now()
				f := http2.NewFramer(client, client)
				var writing sync.Mutex
				go func() {
					writing.Lock()
					defer writing.Unlock()
					_ = tt.act(client, f) // the server may end it
				}()
				goAway := readToEnd(f, tt.answer, &writing)
				if d := time.Since(begin); d < tt.want || d > tt.want+10*time.Second {
					t.Errorf("the connection ended after %s, want %s", d, tt.want)
				}
				if goAway != tt.goAway {
					t.Errorf("got GOAWAY %t, want %t", goAway, tt.goAway)
				}
				_ = client.Close()
				server.Stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// preface is how a client of HTTP/2 begins (RFC 9113 section 3.4).
func preface(c net.Conn, f *http2.Framer) error {
	_, err := io.WriteString(c, http2.ClientPreface)
	return errors.Join(err, f.WriteSettings())
}

// readToEnd reads frames until the server ends the connection, and reports whether it said so before.
func readToEnd(f *http2.Framer, answer bool, writing *sync.Mutex) (goAway bool) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return goAway
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			if answer && !frame.IsAck() {
				data := frame.Data
				go func() { // the server may write at the same time
					writing.Lock()
					defer writing.Unlock()
					_ = f.WritePing(true, data)
				}()
			}
		case *http2.GoAwayFrame:
			goAway = true
		}
	}
}
