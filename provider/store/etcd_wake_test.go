package store

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dexidp/dex/storage"

	"gatehouse/test/peers"
)

// A cable carries connections to a server until it is cut.
type cable struct {
	to string
	l  net.Listener

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	c := &cable{to: to, l: l, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { c.carry(t.Context(), near) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.set(true)
		wg.Wait()
	})
	return c
}

func (c *cable) carry(ctx context.Context, near net.Conn) {
	var d net.Dialer
	far, err := d.DialContext(ctx, "tcp", c.to)
	if err != nil {
		_ = near.Close()
		return
	}
	c.mu.Lock()
	if c.cut {
		_, _ = near.Close(), far.Close()
	}
	c.conns[near], c.conns[far] = true, true
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_, _ = near.Close(), far.Close()
		})
	}
	wg.Wait()
}

// set cuts the cable, or mends it.
func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if !cut {
		return
	}
	for conn := range c.conns {
		_ = conn.Close()
	}
	clear(c.conns)
}

// A follower hears by the watch alone: it reads the log by itself once an hour.
func etcdFollower(t *testing.T, endpoint string) (*Store, *recorder) {
	t.Helper()
	s := openEtcdStore(t, EtcdOptions{Endpoints: []string{endpoint}, Namespace: "test/"}, Options{FeedInterval: time.Hour})
	t.Cleanup(func() { must(t, s.Close()) })
	return s, record(s)
}

func TestEtcdWakes(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	writer := openEtcdAt(t, server)
	s, told := etcdFollower(t, server.URL)
	t.Run("follow", func(t *testing.T) {
		follow(t, s)
		for i := range 5 {
			write(t, writer, op(Create, string(rune('a'+i)), "", "", 0))
			told.wait(t.Context(), t, i+1)
		}
	})
}

func TestEtcdWakesAfterTheServerWasGone(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	writer := openEtcdStore(t, etcdAt(server), Options{})
	t.Cleanup(func() { must(t, writer.Close()) })
	s, told := etcdFollower(t, server.URL)
	t.Run("follow", func(t *testing.T) {
		follow(t, s)
		for i := range 3 {
			peers.Eventually(t, time.Minute, "a write", func() bool {
				return created(writer.CreateClient(t.Context(), storage.Client{ID: string(rune('a' + i))}))
			})
			told.wait(t.Context(), t, i+1)
			server.Kill(t)
			server.Start(t)
		}
	})
}

// While a process hears nothing, others write and the history that its watch would go on from is compacted.
func TestEtcdWakesAfterACompaction(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	writer := openEtcdAt(t, server)
	c := newCable(t, server.Addr)
	s, told := etcdFollower(t, "http://"+c.l.Addr().String())
	t.Run("follow", func(t *testing.T) {
		follow(t, s)
		write(t, writer, op(Create, "before", "", "", 0))
		told.wait(t.Context(), t, 1)
		c.set(true)
		var last int64
		for _, id := range []string{"1", "2", "3"} {
			last = write(t, writer, op(Create, id, "", "", 0))
		}
		_, err := writer.client.Compact(t.Context(), last, clientv3.WithCompactPhysical())
		must(t, err)
		c.set(false)
		told.wait(t.Context(), t, 4)
		write(t, writer, op(Create, "after", "", "", 0))
		var ids []string
		for _, change := range told.wait(t.Context(), t, 5) {
			ids = append(ids, change.ID)
		}
		if got := strings.Join(ids, " "); got != "before 1 2 3 after" {
			t.Errorf("told %q", got)
		}
	})
}

// Wake ends with its context, server or not.
func TestEtcdWakeEnds(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	d := openEtcdAt(t, server)
	server.Kill(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Wake(ctx, func() {})
	}()
	cancel()
	<-ended
}
