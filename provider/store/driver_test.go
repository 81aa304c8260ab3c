package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"

	"gatehouse/test/peers"
)

// onDrivers runs a test of the contract of Driver on each of them.
func onDrivers(t *testing.T, test func(t *testing.T, d Driver)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { test(t, newMemory()) })
	t.Run("sqlite", func(t *testing.T) {
		d, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "g.db"), quiet())
		must(t, err)
		defer func() { must(t, d.Close()) }()
		test(t, d)
	})
	t.Run("etcd", func(t *testing.T) {
		d, err := openEtcd(t.Context(), etcdAt(peers.Etcd(t, peers.EtcdOptions{})), quiet())
		must(t, err)
		defer func() { must(t, d.Close()) }()
		test(t, d)
	})
}

func write(t *testing.T, d Driver, ops ...Op) int64 {
	t.Helper()
	seq, err := d.Write(t.Context(), ops)
	must(t, err)
	return seq
}

func read(t *testing.T, d Driver, id string) Record {
	t.Helper()
	r, err := d.Read(t.Context(), "k", id)
	must(t, err)
	return r
}

// op returns an Op whose change is named after what it does.
func op(v Verb, id, owner, data string, version int64) Op {
	return Op{
		Verb:    v,
		Record:  Record{Kind: "k", ID: id, Owner: owner, Version: version, Expires: epoch, Data: []byte(data)},
		Changes: []Change{{Kind: "k", ID: id, UserID: data, At: epoch}},
	}
}

func TestDriverWritesAllOrNothing(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx := t.Context()
		write(t, d, op(Create, "a", "o", "1", 0), op(Create, "b", "o", "1", 0))
		a, b := read(t, d, "a"), read(t, d, "b")
		for name, last := range map[string]struct {
			op   Op
			want error
		}{
			"create of what exists": {op(Create, "b", "", "", 0), storage.ErrAlreadyExists},
			"put of an old version": {op(Put, "b", "", "", b.Version+1), ErrConflict},
			"put of nothing":        {op(Put, "x", "", "", 1), storage.ErrNotFound},
			"delete of nothing":     {op(Delete, "x", "", "", 0), storage.ErrNotFound},
		} {
			head, err := d.Head(ctx)
			must(t, err)
			moved := op(Put, "a", "p", "2", a.Version)
			moved.Record.Expires = time.Time{}
			_, err = d.Write(ctx, []Op{moved, op(Create, "c", "o", "1", 0), op(Delete, "c", "", "", 0), op(Create, "d", "o", "1", 0), last.op})
			if !errors.Is(err, last.want) {
				t.Errorf("%s: got %v, want %v", name, err, last.want)
			}
			if got := read(t, d, "a"); got.Version != a.Version || string(got.Data) != "1" || got.Owner != "o" || !got.Expires.Equal(epoch) {
				t.Errorf("%s: an earlier change of the same write stayed: %+v", name, got)
			}
			if got := count(t, d, "o"); got != 2 {
				t.Errorf("%s: the owner has %d records, want 2", name, got)
			}
			if now, _ := d.Head(ctx); now != head {
				t.Errorf("%s: the change log went on", name)
			}
		}
		n, err := d.Sweep(ctx, "k", epoch.Add(time.Second), 10)
		if err != nil || n != 2 {
			t.Errorf("sweep: got %d and %v, want 2: the expiry was not restored", n, err)
		}
	})
}

func count(t *testing.T, d Driver, owner string) (n int) {
	t.Helper()
	for _, err := range d.Scan(t.Context(), Query{Kind: "k", Owner: owner}) {
		must(t, err)
		n++
	}
	return n
}

func TestDriverNeverUsesAVersionTwice(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		seen := map[int64]bool{0: true}
		see := func() int64 {
			v := read(t, d, "a").Version
			if seen[v] {
				t.Fatalf("version %d was used before", v)
			}
			seen[v] = true
			return v
		}
		for range 20 {
			write(t, d, op(Create, "a", "", "", 0))
			write(t, d, op(Put, "a", "", "", see()))
			see()
			write(t, d, op(Delete, "a", "", "", 0))
		}
	})
}

func TestDriverScansByOwnerAndAllowsWritesMeanwhile(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		for i := range 10 {
			write(t, d, op(Create, fmt.Sprint(i), fmt.Sprint(i%2), "", 0))
		}
		for r, err := range d.Scan(t.Context(), Query{Kind: "k", Owner: "0"}) {
			must(t, err)
			write(t, d, op(Put, r.ID, "1", "", r.Version))
		}
		if zero, one, other := count(t, d, "0"), count(t, d, "1"), count(t, d, "2"); zero != 0 || one != 10 || other != 0 {
			t.Errorf("got %d, %d, %d records of 0, 1, 2; want 0, 10, 0", zero, one, other)
		}
		for _, err := range d.Scan(t.Context(), Query{Kind: "k"}) {
			must(t, err)
			break // an early end is fine
		}
		if got := count(t, d, ""); got != 10 {
			t.Errorf("got %d records in all, want 10", got)
		}
	})
}

func TestDriverKeepsTheLogInOrder(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx := t.Context()
		write(t, d, Op{Verb: Create, Record: Record{Kind: "k", ID: "silent", Data: []byte("x")}})
		var seqs []int64
		for i := range 5 {
			id := fmt.Sprint(i)
			seqs = append(seqs, write(t, d, op(Create, id, "", "x", 0), op(Create, id+"'", "", "y", 0)))
		}
		head, err := d.Head(ctx)
		must(t, err)
		if head != seqs[4] {
			t.Errorf("head is %d, want %d", head, seqs[4])
		}
		var got []Change
		for after := int64(0); ; {
			page, err := d.Changes(ctx, after, 2)
			must(t, err)
			if len(page) == 0 {
				break
			}
			if len(page)%2 != 0 || len(page) > 4 {
				t.Errorf("a page has %d changes: a write was split or the limit passed", len(page))
			}
			got = append(got, page...)
			after = page[len(page)-1].Seq
		}
		if len(got) != 10 {
			t.Fatalf("got %d changes, want 10", len(got))
		}
		for i, c := range got {
			want := Change{Seq: seqs[i/2], Kind: "k", ID: fmt.Sprint(i/2) + []string{"", "'"}[i%2], UserID: []string{"x", "y"}[i%2], At: c.At}
			if c != want || !c.At.Equal(epoch) {
				t.Errorf("change %d: got %+v, want %+v", i, c, want)
			}
		}
	})
}

func TestDriverTrimsTheOldest(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx := t.Context()
		var seqs []int64
		for i := range 4 {
			o := op(Create, fmt.Sprint(i), "", "", 0)
			o.Changes[0].At = epoch.Add(time.Duration(i) * time.Minute)
			o.Changes = append(o.Changes, o.Changes[0])
			seqs = append(seqs, write(t, d, o))
		}
		// The limit cuts through the second write, of which nothing may stay behind.
		n, err := d.Trim(ctx, epoch.Add(3*time.Minute), 3)
		if err != nil || n != 4 {
			t.Errorf("trim: got %d and %v, want the 4 changes of two writes", n, err)
		}
		_, err = d.Changes(ctx, seqs[1]-1, 10)
		wantErr(t, err, ErrTrimmed)
		rest, err := d.Changes(ctx, seqs[1], 10)
		must(t, err)
		if len(rest) != 4 || rest[0].ID != "2" {
			t.Errorf("got %+v, want the changes of two writes", rest)
		}
		for _, want := range []int{2, 0} { // what is not older than the time stays
			n, err := d.Trim(ctx, epoch.Add(3*time.Minute), 10)
			if err != nil || n != want {
				t.Errorf("trim again: got %d and %v, want %d", n, err, want)
			}
		}
		if head, err := d.Head(ctx); err != nil || head != seqs[3] {
			t.Errorf("head: got %d and %v, want %d", head, err, seqs[3])
		}
	})
}

func TestMemoryLogIsBounded(t *testing.T) {
	d := newMemory()
	for range memoryLogSize + 10 {
		write(t, d, op(Create, "a", "", "", 0))
		d.tables = map[Kind]*table{}
	}
	if len(d.log) > memoryLogSize {
		t.Errorf("the log has %d changes, want at most %d", len(d.log), memoryLogSize)
	}
	_, err := d.Changes(t.Context(), 0, 10)
	wantErr(t, err, ErrTrimmed)
}
