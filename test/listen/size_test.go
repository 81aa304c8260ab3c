package listen

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"gatehouse/test/peers"
)

// An outcome is what became of a connection: the status of an answer (0: none), and how much of what was sent was taken.
type outcome struct {
	status int
	sent   int
	broken bool // the server ended the connection before all was sent
}

// exchange sends pieces while it waits for an answer.
func exchange(c net.Conn, pieces func(yield func(string) bool)) outcome {
	answer := make(chan int, 1)
	go func() {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			answer <- 0
			return
		}
		_ = resp.Body.Close()
		answer <- resp.StatusCode
	}()
	var o outcome
	for piece := range pieces {
		n, err := io.WriteString(c, piece)
		o.sent += n
		if err != nil {
			o.broken = true
			break
		}
	}
	o.status = <-answer
	return o
}

// pieces are head and then count times piece.
func pieces(head, piece string, count int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if !yield(head) {
			return
		}
		for range count {
			if !yield(piece) {
				return
			}
		}
	}
}

// TestHeaderSizes: a header that is too large is refused before it has come in, on every listener that speaks HTTP.
func TestHeaderSizes(t *testing.T) {
	w := newWorld(t)
	for listener, path := range httpListeners() {
		head := "GET " + path + " HTTP/1.1\r\nHost: " + issuerHost + "\r\nX-Gatehouse-Admin: 1\r\n"
		for name, parts := range map[string]func(func(string) bool){
			"1 MB header":  pieces(head+"X: ", strings.Repeat("x", 1024), 1024),
			"10,000 lines": pieces(head+strings.Repeat("A:b\r\n", 10000)+"\r\n", "", 0),
			"10,000 names": func(yield func(string) bool) {
				for i := range 10000 {
					if i == 0 && !yield(head) || !yield(fmt.Sprintf("X%d:\r\n", i)) {
						return
					}
				}
				yield("\r\n")
			},
			"300 header lines": pieces(head+strings.Repeat("A: b\r\n", 300)+"\r\n", "", 0),
			"1 MB target":      pieces("GET "+path+"?", strings.Repeat("x", 1024), 1024),
			"100,000 cookies":  pieces(head+"Cookie: a=b", "; a=b", 100000),
		} {
			t.Run(name+" at "+listener, func(t *testing.T) {
				c := w.http1(t, listener)
				defer func() { _ = c.Close() }()
				if o := exchange(c, parts); o.status != http.StatusRequestHeaderFieldsTooLarge && (o.status != 0 || !o.broken) {
					t.Errorf("got %+v, want 431 or the end", o)
				}
			})
		}
	}
	w.serves(t, "afterwards")
}

// TestBodySizes: no route takes a large body, read or not: the connection ends before it has come in.
func TestBodySizes(t *testing.T) {
	w := newWorld(t)
	const mega = 1 << 20
	var wg sync.WaitGroup
	for _, path := range []string{
		"/dex/auth", "/dex/auth/local/login?req=x", "/dex/token", "/dex/token/introspect", "/dex/userinfo", "/dex/device/code", "/dex/callback", "/dex/approval",
		"/dex/mfa/totp", "/dex/logout", "/dex/account", "/dex/keys", "/nothing", "/metrics", "/healthz/ready", "/v1/sessions",
	} {
		for listener := range httpListeners() {
			c := w.http1(t, listener)
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				head := "POST " + path + " HTTP/1.1\r\nHost: " + issuerHost + "\r\nContent-Type: application/x-www-form-urlencoded\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n", 20*mega)
				if o := exchange(c, pieces(head, strings.Repeat("x", 16<<10), 20*mega/(16<<10))); !o.broken {
					t.Errorf("%s at %s: got %+v, want the end before 20 MB", path, listener, o)
				}
			})
		}
	}
	wg.Wait()
	w.serves(t, "afterwards")
}

// A SAML response may name many groups; it is refused here for other reasons.
func TestLargeAssertion(t *testing.T) {
	w := newWorld(t)
	for size, want := range map[int]int{200 << 10: http.StatusBadRequest, 300 << 10: http.StatusRequestEntityTooLarge} {
		c := w.http1(t, "web.https")
		body := "SAMLResponse=" + strings.Repeat("x", size)
		o := exchange(c, pieces("POST /dex/callback HTTP/1.1\r\nHost: "+issuerHost+"\r\nContent-Type: application/x-www-form-urlencoded\r\n"+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body))+body, "", 0))
		if o.status != want {
			t.Errorf("%d bytes: got %+v, want %d", size, o, want)
		}
		_ = c.Close()
	}
}

// A h2 is a connection of HTTP/2, frame by frame.
type h2 struct {
	*http2.Framer

	conn     net.Conn
	out      *bufio.Writer
	refused  atomic.Int64  // streams that were reset, or answered by an error
	answered atomic.Int64  // streams that were answered otherwise
	goAway   atomic.Bool   // the server wants no more
	ended    chan struct{} // closed when the connection has ended
}

func (w *world) http2(t *testing.T, listener string) *h2 {
	t.Helper()
	c := &h2{conn: w.dial(t, listener, "h2"), ended: make(chan struct{})}
	c.out = bufio.NewWriterSize(c.conn, 64<<10)
	c.Framer = http2.NewFramer(c.out, c.conn)
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	send(t, c.conn, http2.ClientPreface)
	if err := errors.Join(c.WriteSettings(), c.out.Flush()); err != nil {
		t.Fatal(err)
	}
	go c.read()
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

func (c *h2) read() {
	defer close(c.ended)
	for {
		frame, err := c.ReadFrame()
		var stream http2.StreamError
		if errors.As(err, &stream) {
			continue
		}
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.RSTStreamFrame:
			c.refused.Add(1)
		case *http2.MetaHeadersFrame:
			if frame.PseudoValue("status") == "200" { // gRPC answers 200 to all that it reads
				c.answered.Add(1)
			} else {
				c.refused.Add(1)
			}
		case *http2.GoAwayFrame:
			c.goAway.Store(true)
		}
	}
}

// over reports whether the server has ended the connection, or wants to.
func (c *h2) over() bool {
	select {
	case <-c.ended:
		return true
	default:
		return c.goAway.Load()
	}
}

// block is a header block.
func block(fields ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i+1 < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // into memory
	}
	return b.Bytes()
}

func requestBlock(listener string) []byte {
	if listener == "gateway.grpc" {
		return block(":method", "POST", ":scheme", "https", ":authority", "a", ":path", "/envoy.service.auth.v3.Authorization/Check", "content-type", "application/grpc", "te", "trailers")
	}
	return block(":method", "GET", ":scheme", "https", ":authority", issuerHost, ":path", "/dex/keys")
}

// TestHTTP2Floods: what HTTP/2 lets a client do without an end.
func TestHTTP2Floods(t *testing.T) {
	w := newWorld(t)
	refused := func(n int64) func(*h2) bool {
		return func(c *h2) bool { return c.over() || c.refused.Load() >= n }
	}
	tooLarge := func(c *h2) bool { return c.over() || c.refused.Load() > 0 || c.answered.Load() > 0 }
	for _, tt := range []struct {
		name string
		n    int
		send func(c *h2, listener string, i int) error
		want func(c *h2) bool // nil: that others are served is enough
	}{
		{"10,000 streams", 10000, func(c *h2, l string, i int) error {
			return c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: requestBlock(l), EndHeaders: true})
		}, refused(8000)},
		{"rapid reset", 20000, func(c *h2, l string, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: requestBlock(l), EndHeaders: true, EndStream: l != "gateway.grpc"}), c.WriteRSTStream(id, http2.ErrCodeCancel))
		}, nil},
		{"continuation without an end", 2000, func(c *h2, l string, i int) error {
			if i == 0 {
				return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestBlock(l)})
			}
			return c.WriteContinuation(1, false, block(fmt.Sprintf("x%d", i), strings.Repeat("x", 10000)))
		}, (*h2).over},
		{"header that unpacks to 60 MB", 1, func(c *h2, l string, _ int) error {
			head := append(requestBlock(l), block("x", strings.Repeat("x", 3900))...)
			bomb := bytes.Repeat([]byte{0x80 | 62}, 15000) // the newest entry of the dynamic table, again and again
			return errors.Join(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndStream: true}), c.WriteContinuation(1, true, bomb))
		}, tooLarge},
		{"header of 100 KB", 1, func(c *h2, l string, _ int) error {
			err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestBlock(l), EndStream: true})
			for i := range 10 {
				err = errors.Join(err, c.WriteContinuation(1, i == 9, block(fmt.Sprintf("x%d", i), strings.Repeat("~", 10000))))
			}
			return err
		}, tooLarge},
		{"settings", 100000, func(c *h2, _ string, _ int) error { return c.WriteSettings() }, nil},
		{"pings", 100000, func(c *h2, _ string, _ int) error { return c.WritePing(false, [8]byte{}) }, nil},
		{"priorities", 100000, func(c *h2, _ string, _ int) error {
			return c.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		}, nil},
		{"empty frames", 100000, func(c *h2, l string, i int) error {
			if i == 0 {
				return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestBlock(l), EndHeaders: true})
			}
			return c.WriteData(1, false, nil)
		}, nil},
	} {
		for _, listener := range []string{"web.https", "gateway.grpc"} {
			t.Run(tt.name+" at "+listener, func(t *testing.T) {
				c := w.http2(t, listener)
				var err error
				for i := 0; i < tt.n && err == nil; i++ {
					err = tt.send(c, listener, i)
				}
				if err == nil {
					err = c.out.Flush()
				}
				w.serves(t, "meanwhile")
				if tt.want != nil && err == nil {
					peers.Eventually(t, within, "the server has enough", func() bool { return tt.want(c) })
				}
				_ = c.conn.Close()
				<-c.ended
				if strings.HasPrefix(tt.name, "header") && c.answered.Load() > 0 {
					t.Error("the header was taken")
				}
				t.Logf("ended by %v, GOAWAY %t, %d streams refused, %d MB resident", err, c.goAway.Load(), c.refused.Load(), resident(t, w.gatehouse.Pid())>>20)
			})
		}
	}
	w.serves(t, "afterwards")
}

// resident returns the memory of a process in bytes, 0 where /proc is not there.
func resident(t *testing.T, pid int) (bytes int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, pages int
	if _, err := fmt.Sscan(string(data), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
