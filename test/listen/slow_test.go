package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// many is how many connections a slow stranger has to each listener: more than the small listeners may have.
const many = 100

// httpListeners are the listeners that speak HTTP/1.1, with a path of each.
func httpListeners() map[string]string {
	return map[string]string{"web.http": "/dex/keys", "web.https": "/dex/keys", "telemetry.http": "/metrics", "gateway.admin": "/v1/version"}
}

// http1 opens a connection for HTTP/1.1.
func (w *world) http1(t *testing.T, listener string) net.Conn {
	t.Helper()
	if listener == "web.https" {
		return w.dial(t, listener, "http/1.1")
	}
	return w.dial(t, listener)
}

// An attack holds connections until stop is called.
type attack struct {
	conns []net.Conn
	wg    sync.WaitGroup
	end   chan struct{}
}

func (a *attack) stop() {
	close(a.end)
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.wg.Wait()
}

// drip sends text byte by byte until the attack stops or the server has enough.
func (a *attack) drip(c net.Conn, text string) {
	a.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := range text {
			select {
			case <-tick.C:
			case <-a.end:
				return
			}
			if _, err := io.WriteString(c, text[i:i+1]); err != nil {
				return
			}
		}
	})
}

// TestSlowClients: people who take their time, and never come to an end.
func TestSlowClients(t *testing.T) {
	w := newWorld(t)
	w.serves(t, "before")
	for _, tt := range []struct {
		name  string
		begin func(t *testing.T, a *attack)
	}{
		{"says nothing", func(t *testing.T, a *attack) {
			for name := range w.ports {
				for range many {
					a.conns = append(a.conns, w.dial(t, name))
				}
			}
		}},
		{"header byte by byte", func(t *testing.T, a *attack) {
			for name, path := range httpListeners() {
				for range many {
					c := w.http1(t, name)
					a.conns = append(a.conns, c)
					a.drip(c, "GET "+path+" HTTP/1.1\r\nHost: "+issuerHost+"\r\nX-Slow: "+strings.Repeat("x", 60000))
				}
			}
		}},
		{"body byte by byte", func(t *testing.T, a *attack) {
			for name := range httpListeners() {
				for range many {
					c := w.http1(t, name)
					a.conns = append(a.conns, c)
					send(t, c, "POST /dex/token HTTP/1.1\r\nHost: "+issuerHost+"\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\n")
					a.drip(c, strings.Repeat("x", 60000))
				}
			}
		}},
		{"does not read", func(t *testing.T, a *attack) {
			for name, path := range httpListeners() {
				for range many / 2 {
					w.flood(t, a, name, path)
				}
			}
		}},
		{"handshake without an end", func(t *testing.T, a *attack) {
			for _, name := range []string{"web.https", "gateway.grpc"} {
				for range many {
					c := w.dial(t, name)
					a.conns = append(a.conns, c)
					send(t, c, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
				}
			}
		}},
		{"HTTP/2 without a request", func(t *testing.T, a *attack) {
			for _, name := range []string{"web.https", "gateway.grpc"} {
				for range many {
					c := w.dial(t, name, "h2")
					a.conns = append(a.conns, c)
					send(t, c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
				}
			}
		}},
		{"half closed", func(t *testing.T, a *attack) {
			for name := range w.ports {
				for range many {
					c := w.dial(t, name)
					a.conns = append(a.conns, c)
					if tcp, ok := c.(*net.TCPConn); ok && tcp.CloseWrite() != nil {
						t.Error("half close")
					}
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &attack{end: make(chan struct{})}
			tt.begin(t, a)
			w.serves(t, "meanwhile")
			a.stop()
			w.serves(t, "afterwards")
		})
	}
}

// flood asks again and again on one connection and never reads, until the server does not take more either.
func (w *world) flood(t *testing.T, a *attack, listener, path string) {
	t.Helper()
	raw := w.dial(t, listener)
	if tcp, ok := raw.(*net.TCPConn); ok && tcp.SetReadBuffer(4096) != nil {
		t.Error("read buffer")
	}
	c := raw
	if listener == "web.https" {
		s := tls.Client(raw, &tls.Config{RootCAs: w.serverCA.Pool(), ServerName: issuerHost})
		if err := s.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = s
	}
	requests := strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: "+issuerHost+"\r\n\r\n", 200)
	a.wg.Go(func() { _, _ = io.WriteString(c, requests) }) // as much as it takes
	a.conns = append(a.conns, c)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Errorf("send: %v", err)
	}
}

// hold opens a connection to a listener, asks once and returns a function that asks again on the same connection.
func (w *world) hold(t *testing.T, listener string) (again func() error) {
	t.Helper()
	if listener == "gateway.grpc" {
		return w.holdGRPC(t)
	}
	c := w.http1(t, listener)
	t.Cleanup(func() { _ = c.Close() })
	r, host := bufio.NewReader(c), issuerHost
	if listener == "gateway.admin" {
		host = w.ports[listener]
	}
	again = func() error {
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nX-Gatehouse-Admin: 1\r\n\r\n", httpListeners()[listener], host); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("got %s, want 200", resp.Status)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := again(); err != nil {
		t.Fatalf("%s: %v", listener, err)
	}
	return again
}

func (w *world) holdGRPC(t *testing.T) (again func() error) {
	t.Helper()
	var dials atomic.Int32
	conn, err := w.client(w.gateway, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	again = func() error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if _, err := check(ctx, conn, "/public/x"); err != nil {
			return err
		}
		if n := dials.Load(); n != 1 {
			return fmt.Errorf("the gateway had to connect %d times, want once", n)
		}
		return nil
	}
	if err := again(); err != nil {
		t.Fatal(err)
	}
	return again
}

// TestConnectionFlood: more connections than a listener may have push out each other, and never a user, new or old.
func TestConnectionFlood(t *testing.T) {
	w := newWorld(t)
	for name, limit := range map[string]int{"web.http": 2048, "web.https": 2048, "gateway.grpc": 2048, "telemetry.http": 64, "gateway.admin": 32} {
		t.Run(name, func(t *testing.T) {
			user := w.hold(t, name)
			a := &attack{end: make(chan struct{})}
			for range 2*limit + 200 {
				a.conns = append(a.conns, w.dial(t, name))
			}
			if err := user(); err != nil {
				t.Errorf("a connection that was in use: %v", err)
			}
			w.serves(t, "meanwhile")
			if n := w.metric(t, "gatehouse_connections", name); n > float64(limit) {
				t.Errorf("got %v connections, want at most %d", n, limit)
			}
			if n := w.metric(t, "gatehouse_connections_evicted_total", name); n < 200 {
				t.Errorf("got %v evicted, want at least 200", n)
			}
			a.stop()
			w.serves(t, "afterwards")
		})
	}
}
