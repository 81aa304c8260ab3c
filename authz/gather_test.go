package authz

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gathered returns both ends of a connection whose server side gathers, and counts the calls that write.
func gathered(t *testing.T) (server *gathering, client net.Conn, calls *counting) {
	t.Helper()
	a, b := net.Pipe() // writes wait for the reader
	calls = &counting{Conn: a}
	l := Gather(&one{conn: calls})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*gathering), b, calls
}

type one struct {
	net.Listener
	conn net.Conn
}

func (o *one) Accept() (net.Conn, error) { return o.conn, nil }

type counting struct {
	net.Conn
	mu    sync.Mutex
	calls int
}

func (c *counting) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// TestGather pins that what many write goes out whole, each piece in its order, by fewer calls.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client, calls := gathered(t)
		const pieces = 1000
		var want bytes.Buffer
		piece := func(i int) []byte {
			return bytes.Repeat([]byte{byte(i)}, []int{10, 1100, 20, minGathered, minGathered - 1}[i%5])
		}
		for i := range pieces {
			want.Write(piece(i))
		}
		got := make(chan []byte)
		go func() {
			b := make([]byte, want.Len())
			n, _ := io.ReadFull(client, b)
			got <- b[:n]
		}()
		for i := range pieces {
			if n, err := server.Write(piece(i)); n != len(piece(i)) || err != nil {
				t.Fatalf("piece %d: got %d, %v", i, n, err)
			}
		}
		if b := <-got; !bytes.Equal(b, want.Bytes()) {
			t.Errorf("got %d bytes, want %d, all in order", len(b), want.Len())
		}
		synctest.Wait()
		if server.waits != nil {
			t.Errorf("a connection that is idle holds %d bytes, want none", cap(*server.waits))
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if calls.calls > pieces/2 {
			t.Errorf("got %d calls for %d pieces, want fewer", calls.calls, pieces)
		}
		if _, err := server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: got %v, want %v", err, net.ErrClosed)
		}
	})
}

// TestGatherWaits pins that a client who does not read holds a bounded amount of memory, keeps nobody waiting once it is gone, and cannot hold up Close.
func TestGatherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, gone := range []bool{true, false} {
			for _, size := range []int{10 << 10, 10} {
				server, client, _ := gathered(t)
				blocked(t, server, client, size, gone)
			}
		}
	})
}

// blocked writes pieces of a size until an error, to a client that does not read and is then gone or not.
func blocked(t *testing.T, server *gathering, client net.Conn, size int, gone bool) {
	t.Helper()
	result := make(chan error)
	go func() {
		for {
			if _, err := server.Write(make([]byte, size)); err != nil {
				result <- err
				return
			}
		}
	}()
	synctest.Wait()
	if size > minGathered && (len(*server.waits) < maxGathered || len(*server.waits) > maxGathered+size) { // all others wait
		t.Errorf("got %d bytes that wait, want %d", len(*server.waits), maxGathered)
	}
	if gone {
		_ = client.Close()
		if err := <-result; err == nil {
			t.Error("whoever writes does not learn that the client is gone")
		}
	}
	begin := time.Now()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if waited := time.Since(begin); waited != 0 { // of the bubble's clock
		t.Errorf("Close waited %s: want none, since a server that stops closes one connection after another", waited)
	}
	if !gone {
		if err := <-result; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v, want %v", err, net.ErrClosed)
		}
	}
}
