package listen_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/certs"
	"gatehouse/internal/listen"
	"gatehouse/test/peers"
)

// pipes is a net.Listener in memory, which works in a synctest bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error { p.once.Do(func() { close(p.done) }); return nil }

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// metrics are of one test.
func metrics(t *testing.T) (*listen.Metrics, *prometheus.Registry) {
	t.Helper()
	r := prometheus.NewRegistry()
	m, err := listen.NewMetrics(r)
	if err != nil {
		t.Fatal(err)
	}
	return m, r
}

// value returns a metric, the labels of which are given as name and value; 0 where there is none.
func value(t *testing.T, r *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			has := map[string]string{}
			for _, l := range m.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			match := f.GetName() == name
			for i := 0; i+1 < len(labels); i += 2 {
				match = match && has[labels[i]] == labels[i+1]
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// A site is an HTTP server in memory. It answers with the body of the request.
type site struct {
	pipes    *pipes
	registry *prometheus.Registry
	log      *bytes.Buffer // to be read when everything waits
	release  chan struct{} // a request to /work is answered when this is closed
}

func serve(t *testing.T, maxConns int) *site {
	t.Helper()
	m, r := metrics(t)
	s := &site{pipes: newPipes(), registry: r, log: new(bytes.Buffer), release: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l := listen.New(s.pipes, listen.Options{Name: "test", Max: maxConns, Plain: true, Metrics: m, Log: log})
	server := l.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		switch r.URL.Path {
		case "/work":
			<-s.release
		case "/large":
			_, _ = w.Write(make([]byte, 1<<20))
		}
		_, _ = w.Write(b)
	}), 1000)
	ended := make(chan error)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ended with %v", err)
		}
		time.Sleep(time.Second) // net/http waits a little before it closes
	})
	return s
}

// say writes to a connection; the other end may have closed it.
func say(c net.Conn, text string) error {
	_, err := io.WriteString(c, text)
	return err
}

// ask sends a small request on c and returns the status of its answer; 0 where c is closed instead.
func ask(t *testing.T, c net.Conn) int {
	t.Helper()
	if say(c, get) != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

// lasts returns how long the server keeps a connection to which act has done something.
func lasts(t *testing.T, act func(*site, net.Conn)) (d time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 10)
		c := s.pipes.dial()
		begin := time.Now()
		act(s, c)
		_, _ = io.Copy(io.Discard, c) // ends when the server closes
		d = time.Since(begin)
		synctest.Wait()
		if n := value(t, s.registry, "gatehouse_connections"); n != 0 {
			t.Errorf("got %v connections after the end, want 0", n)
		}
	})
	return d
}

// every sends text byte by byte, one a second, until the server has enough.
func every(c net.Conn, text string) {
	go func() {
		for i := range text {
			if say(c, text[i:i+1]) != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}()
}

func TestSlowClientsAreCutOff(t *testing.T) {
	for _, tt := range []struct {
		name string
		act  func(*site, net.Conn)
		want time.Duration
	}{
		{"says nothing", func(*site, net.Conn) {}, 10 * time.Second},
		{"a header byte by byte", func(_ *site, c net.Conn) { every(c, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 1000)) }, 10 * time.Second},
		{"a body byte by byte", func(_ *site, c net.Conn) {
			_ = say(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n")
			every(c, strings.Repeat("x", 900))
		}, 30 * time.Second},
		{"an answer and no more", func(_ *site, c net.Conn) { _ = say(c, get) }, 65 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := lasts(t, tt.act); d < tt.want || d > tt.want+5*time.Second {
				t.Errorf("got %s, want about %s", d, tt.want)
			}
		})
	}
}

// A client that does not read holds its connection for the time of an answer, not longer.
func TestClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 10)
		c := s.pipes.dial()
		if err := say(c, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(89 * time.Second)
		if n := value(t, s.registry, "gatehouse_connections"); n != 1 {
			t.Errorf("got %v connections after 89 s, want 1", n)
		}
		time.Sleep(2 * time.Second)
		if n := value(t, s.registry, "gatehouse_connections"); n != 0 {
			t.Errorf("got %v connections after 91 s, want 0", n)
		}
	})
}

func TestSizes(t *testing.T) {
	long := strings.Repeat("x", 70<<10)
	for _, tt := range []struct {
		name, request string
		want          int
	}{
		{"small", get, http.StatusOK},
		{"body at the limit", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + long[:1000], http.StatusOK},
		{"body above the limit", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n" + long[:1001], http.StatusRequestEntityTooLarge},
		{"body in chunks above the limit", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + long[:1001] + "\r\n0\r\n\r\n", http.StatusRequestEntityTooLarge},
		{"256 header lines", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", 256) + "\r\n", http.StatusOK},
		{"257 header lines", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", 257) + "\r\n", http.StatusRequestHeaderFieldsTooLarge},
		{"257 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + headers(257) + "\r\n", http.StatusRequestHeaderFieldsTooLarge},
		{"header above the limit", "GET / HTTP/1.1\r\nHost: a\r\nX: " + long + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		{"target above the limit", "GET /" + long + " HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, 10)
				c := s.pipes.dial()
				go func() { _ = say(c, tt.request) }() // the server may stop reading
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != tt.want {
					t.Errorf("got %d, want %d", resp.StatusCode, tt.want)
				}
				_ = c.Close()
			})
		})
	}
}

func headers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "X-%d: b\r\n", i)
	}
	return b.String()
}

// When all connections are taken, those that never had a request make room, down to a quarter of all; then the one without a
// request for the longest time; those whose requests are being worked on stay, unless there are no others.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 4)
		work := "GET /work HTTP/1.1\r\nHost: a\r\n\r\n"
		worker, silent, idle, slow := s.pipes.dial(), s.pipes.dial(), s.pipes.dial(), s.pipes.dial()
		if err := errors.Join(say(worker, work), say(slow, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\nx")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := ask(t, idle); got != http.StatusOK { // idle from now on: the last to go
			t.Fatalf("got %d", got)
		}
		synctest.Wait()
		var fresh []net.Conn
		asked := 0
		for _, tt := range []struct {
			name   string
			victim net.Conn
		}{{"the one that never said anything", silent}, {"the one whose request is not whole", slow}, {"the one that has been answered", idle}} {
			fresh = append(fresh, s.pipes.dial())
			synctest.Wait()
			if !closed(tt.victim) {
				t.Errorf("%s was kept", tt.name)
			}
			if tt.victim == silent {
				continue
			}
			for ; asked < len(fresh); asked++ { // with a request of its own it is no stranger any more
				if err := say(fresh[asked], work); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		if closed(worker) {
			t.Error("a connection was closed while its request was worked on, and others waited")
		}
		last := s.pipes.dial() // all work now: the oldest request goes
		synctest.Wait()
		if !closed(worker) || closed(fresh[0]) {
			t.Errorf("all work: got the oldest closed %t, the next closed %t, want true, false", closed(worker), closed(fresh[0]))
		}
		if got := ask(t, last); got != http.StatusOK {
			t.Errorf("got %d for a new client of a full listener, want 200", got)
		}
		if n, open := value(t, s.registry, "gatehouse_connections_evicted_total", "listener", "test"), value(t, s.registry, "gatehouse_connections"); n != 4 || open != 4 {
			t.Errorf("got %v evicted and %v open, want 4 and 4", n, open)
		}
		if n := strings.Count(s.log.String(), "the listener is full"); n != 1 {
			t.Errorf("got %d warnings in a minute, want 1:\n%s", n, s.log)
		}
		close(s.release)
		for _, c := range append(fresh, last, worker, idle, slow, silent) {
			_ = c.Close()
		}
	})
}

// Whoever opens connections and says nothing pushes out others of that kind, never a client that had an answer.
func TestSilentFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 8)
		var clients, flood []net.Conn
		for range 6 {
			c := s.pipes.dial()
			if got := ask(t, c); got != http.StatusOK {
				t.Fatalf("got %d", got)
			}
			clients = append(clients, c)
		}
		for range 50 {
			flood = append(flood, s.pipes.dial())
			synctest.Wait()
		}
		for i, c := range clients {
			if got := ask(t, c); got != http.StatusOK {
				t.Errorf("client %d got %d after the flood, want 200", i, got)
			}
		}
		for _, c := range append(clients, flood...) {
			_ = c.Close()
		}
	})
}

// Connections that had an answer do not keep new clients out: a quarter is for these, so that a new one is not closed for the
// next at once.
func TestRoomForNewClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 8)
		var all []net.Conn
		for range 8 {
			c := s.pipes.dial()
			if got := ask(t, c); got != http.StatusOK {
				t.Fatalf("got %d", got)
			}
			all = append(all, c)
		}
		first, second := s.pipes.dial(), s.pipes.dial()
		synctest.Wait()
		for name, c := range map[string]net.Conn{"first": first, "second": second} {
			if got := ask(t, c); got != http.StatusOK {
				t.Errorf("the %s new client got %d, want 200", name, got)
			}
		}
		for _, c := range append(all, first, second) {
			_ = c.Close()
		}
	})
}

// closed reports whether the other end has closed c.
func closed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// A gRPC connection in plain text is of use with the preface of HTTP/2, and not with anything else.
func TestFloodOfGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := metrics(t)
		p := newPipes()
		l := listen.New(p, listen.Options{Name: "test", Max: 8, Traffic: true, Plain: true, Metrics: m, Log: slog.New(slog.DiscardHandler)})
		go drain(l)
		gateway := p.dial()
		if err := say(gateway, preface); err != nil {
			t.Fatal(err)
		}
		all := []net.Conn{gateway}
		for range 50 {
			c := p.dial()
			all = append(all, c)
			time.Sleep(tick)
			if err := say(c, preface[:12]+"x"+preface[12:]); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if closed(gateway) {
			t.Error("strangers without a preface pushed out a gateway")
		}
		for _, c := range all {
			_ = c.Close()
		}
		_ = l.Close()
	})
}

// A gateway that is used keeps its place among others that look like one, in less than a second too.
func TestFloodOfPrefaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := metrics(t)
		p := newPipes()
		l := listen.New(p, listen.Options{Name: "test", Max: 8, Traffic: true, Plain: true, Metrics: m, Log: slog.New(slog.DiscardHandler)})
		go drain(l)
		gateway := p.dial()
		all := []net.Conn{gateway}
		if err := say(gateway, preface); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			c := p.dial()
			all = append(all, c)
			time.Sleep(tick)
			if err := errors.Join(say(c, preface), say(gateway, "x")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if closed(gateway) {
			t.Error("a gateway that is used was closed for connections that are not")
		}
		for _, c := range all {
			_ = c.Close()
		}
		_ = l.Close()
	})
}

const tick = 60 * time.Millisecond

// drain reads from every connection until its end.
func drain(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() }()
	}
}

// A failing is a net.Listener that has run out of descriptors.
type failing struct{ net.Listener }

// Accept implements net.Listener.
func (failing) Accept() (net.Conn, error) {
	return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
}

// That no connection can be taken is told, once a minute.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := metrics(t)
		var log bytes.Buffer
		l := listen.New(failing{}, listen.Options{Name: "test", Max: 2, Metrics: m, Log: slog.New(slog.NewTextHandler(&log, nil))})
		for range 90 { // seconds
			if _, err := l.Accept(); !errors.Is(err, syscall.EMFILE) {
				t.Fatalf("got %v, want EMFILE", err)
			}
			time.Sleep(time.Second)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 2 || !strings.Contains(log.String(), "for=test") || !strings.Contains(log.String(), "LimitNOFILE") {
			t.Errorf("got %d warnings in 90 s, want 2 that name the listener and the limit:\n%s", n, &log)
		}
	})
	m, _ := metrics(t)
	var log bytes.Buffer
	p := newPipes()
	l := listen.New(p, listen.Options{Name: "test", Max: 2, Metrics: m, Log: slog.New(slog.NewTextHandler(&log, nil))})
	_ = l.Close()
	if _, err := l.Accept(); err == nil || log.Len() > 0 {
		t.Errorf("a closed listener: got %v and the log %q, want an error and nothing", err, &log)
	}
}

// For gRPC a connection is of use when something comes in.
func TestFullOfTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := metrics(t)
		p := newPipes()
		l := listen.New(p, listen.Options{Name: "test", Max: 2, Traffic: true, Plain: true, Metrics: m, Log: slog.New(slog.DiscardHandler)})
		go drain(l)
		stranger := p.dial()
		quiet, busy := p.dial(), p.dial()
		synctest.Wait()
		if !closed(stranger) {
			t.Error("the oldest of those that said nothing was kept")
		}
		for _, c := range []net.Conn{quiet, busy} {
			for _, part := range []string{preface[:10], preface[10:] + "\x00\x00\x00\x04\x00"} {
				if err := say(c, part); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 3 {
			time.Sleep(2 * time.Second)
			if err := say(busy, "x"); err != nil {
				t.Fatal(err)
			}
		}
		c := p.dial()
		synctest.Wait()
		if !closed(quiet) || closed(busy) {
			t.Errorf("got the quiet one closed %t, the busy one closed %t, want true, false", closed(quiet), closed(busy))
		}
		_, _ = busy.Close(), c.Close()
		_ = l.Close()
	})
}

// A TLS client of a plain listener is cut off at once, and the log says what to do.
func TestTLSOnPlainText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 4)
		c := tls.Client(s.pipes.dial(), &tls.Config{ServerName: "a"})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Error("a handshake with a plain listener succeeded")
		}
		synctest.Wait()
		if n := value(t, s.registry, "gatehouse_tls_handshake_failures_total", "listener", "test", "reason", "tls-on-plain-text"); n != 1 {
			t.Errorf("counted %v, want 1", n)
		}
		if !strings.Contains(s.log.String(), "give the listener a certificate") {
			t.Errorf("the log has no advice:\n%s", s.log)
		}
	})
}

// A handshake that never ends is ended, whatever the server does meanwhile.
func TestHandshakeThatNeverEnds(t *testing.T) {
	material := &certs.Material{Certificate: peers.NewCA(t, "ca").Pair(t, "a")}
	synctest.Test(t, func(t *testing.T) {
		m, r := metrics(t)
		p := newPipes()
		l := listen.New(p, listen.Options{Name: "test", Max: 4, Metrics: m, Log: slog.New(slog.DiscardHandler)})
		s := listen.NewTLS("test", material, []string{"http/1.1"}, m, slog.New(slog.DiscardHandler)).Listener(l)
		go func() {
			if c, err := s.Accept(); err == nil {
				t.Errorf("accepted %v", c.RemoteAddr())
			}
		}()
		c := p.dial()
		begin := time.Now()
		if err := say(c, "\x16\x03\x01\x02\x00"); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("got %s, want 10s", d)
		}
		synctest.Wait()
		if n := value(t, r, "gatehouse_tls_handshake_failures_total", "reason", "timeout"); n != 1 {
			t.Errorf("counted %v timeouts, want 1", n)
		}
		_ = s.Close()
	})
}

// Nothing of HTTP is served to a connection whose limits nobody keeps.
func TestServerWithoutListener(t *testing.T) {
	m, _ := metrics(t)
	h := listen.New(newPipes(), listen.Options{Name: "test", Max: 1, Metrics: m, Log: slog.New(slog.DiscardHandler)}).Server(http.NotFoundHandler(), 1).Handler
	w := &recorder{header: http.Header{}}
	h.ServeHTTP(w, (&http.Request{Header: http.Header{}}).WithContext(context.Background())) //nolint:usetesting // no test's context has a connection
	if w.status != http.StatusInternalServerError {
		t.Errorf("got %d, want 500", w.status)
	}
}

type recorder struct {
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (r *recorder) Header() http.Header { return r.header }

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) { r.status = status }
