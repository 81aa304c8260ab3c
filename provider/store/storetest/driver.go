package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"

	"gatehouse/provider/store"
)

// WritesAllOrNothing tests Backend.Write.
func WritesAllOrNothing(t *testing.T, d store.Driver) {
	t.Helper()
	ctx := t.Context()
	begin, err := d.Head(ctx)
	must(t, err)
	both := write(t, d, op(store.Create, "a", "o", "1", 0), op(store.Create, "b", "o", "1", 0))
	page, err := d.Changes(ctx, begin, 1)
	if err != nil || len(page) != 2 || page[0].Seq != both || page[1].Seq != both {
		t.Errorf("the log says %+v, %v; want the two changes of write %d", page, err, both)
	}
	a, b := read(t, d, "a"), read(t, d, "b")
	for name, last := range map[string]struct {
		op   store.Op
		want error
	}{
		"create of what exists": {op(store.Create, "b", "", "", 0), storage.ErrAlreadyExists},
		"put of an old version": {op(store.Put, "b", "", "", b.Version+1), store.ErrConflict},
		"put of nothing":        {op(store.Put, "x", "", "", 1), storage.ErrNotFound},
		"delete of nothing":     {op(store.Delete, "x", "", "", 0), storage.ErrNotFound},
	} {
		head, err := d.Head(ctx)
		must(t, err)
		moved := op(store.Put, "a", "p", "2", a.Version)
		moved.Record.Expires = time.Time{}
		_, err = d.Write(ctx, []store.Op{moved, op(store.Create, "c", "o", "1", 0), op(store.Delete, "c", "", "", 0), op(store.Create, "d", "o", "1", 0), last.op})
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
}

// NeverUsesAVersionTwice tests Record.Version.
func NeverUsesAVersionTwice(t *testing.T, d store.Driver) {
	t.Helper()
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
		write(t, d, op(store.Create, "a", "", "", 0))
		write(t, d, op(store.Put, "a", "", "", see()))
		see()
		write(t, d, op(store.Delete, "a", "", "", 0))
	}
}

// ADeletedRecordIsGone tests what a driver that keeps something of a deleted record must not show.
func ADeletedRecordIsGone(t *testing.T, d store.Driver) {
	t.Helper()
	ctx := t.Context()
	write(t, d, op(store.Create, "a", "o", "1", 0))
	old := read(t, d, "a")
	write(t, d, op(store.Delete, "a", "", "", 0))
	_, err := d.Read(ctx, "k", "a")
	wantErr(t, err, storage.ErrNotFound)
	for _, o := range []store.Op{op(store.Delete, "a", "", "", 0), op(store.Put, "a", "o", "2", old.Version)} {
		_, err := d.Write(ctx, []store.Op{o})
		wantErr(t, err, storage.ErrNotFound)
	}
	if got := count(t, d, "o") + count(t, d, ""); got != 0 {
		t.Errorf("lists show %d records, want none", got)
	}
	if n, err := d.Sweep(ctx, "k", epoch.Add(time.Hour), 10); err != nil || n != 0 {
		t.Errorf("sweep: got %d and %v, want nothing", n, err)
	}
	write(t, d, op(store.Create, "a", "o", "3", 0))
	if got := read(t, d, "a"); string(got.Data) != "3" {
		t.Errorf("got %q, want the new record", got.Data)
	}
}

// ScansByOwnerAndAllowsWritesMeanwhile tests Backend.Scan.
func ScansByOwnerAndAllowsWritesMeanwhile(t *testing.T, d store.Driver) {
	t.Helper()
	for i := range 10 {
		write(t, d, op(store.Create, fmt.Sprint(i), fmt.Sprint(i%2), "", 0))
	}
	for r, err := range d.Scan(t.Context(), store.Query{Kind: "k", Owner: "0"}) {
		must(t, err)
		write(t, d, op(store.Put, r.ID, "1", "", r.Version))
	}
	if zero, one, other := count(t, d, "0"), count(t, d, "1"), count(t, d, "2"); zero != 0 || one != 10 || other != 0 {
		t.Errorf("got %d, %d, %d records of 0, 1, 2; want 0, 10, 0", zero, one, other)
	}
	for _, err := range d.Scan(t.Context(), store.Query{Kind: "k"}) {
		must(t, err)
		break // an early end is fine
	}
	if got := count(t, d, ""); got != 10 {
		t.Errorf("got %d records in all, want 10", got)
	}
}

// KeepsTheLogInOrder tests Log.
func KeepsTheLogInOrder(t *testing.T, d store.Driver) {
	t.Helper()
	ctx := t.Context()
	begin, err := d.Head(ctx)
	must(t, err)
	write(t, d, store.Op{Verb: store.Create, Record: store.Record{Kind: "k", ID: "silent", Data: []byte("x")}})
	var seqs []int64
	for i := range 5 {
		o := op(store.Create, fmt.Sprint(i), "", "x", 0)
		o.Changes = append(o.Changes, store.Change{Kind: "k", ID: fmt.Sprint(i), UserID: "y", At: epoch})
		seqs = append(seqs, write(t, d, o))
	}
	var got []store.Change
	for after := begin; ; {
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
		want := store.Change{Seq: seqs[i/2], Kind: "k", ID: fmt.Sprint(i / 2), UserID: []string{"x", "y"}[i%2], At: c.At}
		if c != want || !c.At.Equal(epoch) {
			t.Errorf("change %d: got %+v, want %+v", i, c, want)
		}
	}
	headIsTheEnd(t, d, seqs[4])
}

// headIsTheEnd checks that Head lies between what was written and what comes.
func headIsTheEnd(t *testing.T, d store.Driver, last int64) {
	t.Helper()
	head, err := d.Head(t.Context())
	must(t, err)
	page, err := d.Changes(t.Context(), head, 2)
	if err != nil || head < last || len(page) != 0 {
		t.Errorf("head is %d, %v, with %d changes behind it; the last one was %d", head, err, len(page), last)
	}
	next := write(t, d, op(store.Create, "next", "", "x", 0))
	page, err = d.Changes(t.Context(), head, 2)
	if err != nil || next <= head || len(page) != 1 || page[0].Seq != next || page[0].ID != "next" {
		t.Errorf("behind head %d: got %+v and %v, want the next change, %d", head, page, err, next)
	}
}

// TrimsTheOldest tests Sweeper.Trim of a driver that keeps the log itself.
func TrimsTheOldest(t *testing.T, d store.Driver) {
	t.Helper()
	ctx := t.Context()
	var seqs []int64
	for i := range 4 {
		o := op(store.Create, fmt.Sprint(i), "", "", 0)
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
	wantErr(t, err, store.ErrTrimmed)
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
}

func write(t *testing.T, d store.Driver, ops ...store.Op) int64 {
	t.Helper()
	seq, err := d.Write(t.Context(), ops)
	must(t, err)
	return seq
}

func read(t *testing.T, d store.Driver, id string) store.Record {
	t.Helper()
	r, err := d.Read(t.Context(), "k", id)
	must(t, err)
	return r
}

// op returns an store.Op whose change is named after what it does.
func op(v store.Verb, id, owner, data string, version int64) store.Op {
	return store.Op{
		Verb:    v,
		Record:  store.Record{Kind: "k", ID: id, Owner: owner, Version: version, Expires: epoch, Data: []byte(data)},
		Changes: []store.Change{{Kind: "k", ID: id, UserID: data, At: epoch}},
	}
}

func count(t *testing.T, d store.Driver, owner string) (n int) {
	t.Helper()
	for _, err := range d.Scan(t.Context(), store.Query{Kind: "k", Owner: owner}) {
		must(t, err)
		n++
	}
	return n
}

// WritesInSequence tests Backend.Write of a store.Sequential: what it does instead of all or nothing, so that nobody takes it for more.
func WritesInSequence(t *testing.T, d store.Driver) {
	t.Helper()
	ctx := t.Context()
	write(t, d, op(store.Create, "a", "o", "1", 0))
	head, err := d.Head(ctx)
	must(t, err)
	for name, refused := range map[string]struct {
		op   store.Op
		want error
	}{
		"create of what exists": {op(store.Create, "a", "", "", 0), storage.ErrAlreadyExists},
		"put of an old version": {op(store.Put, "a", "", "", 1), store.ErrConflict},
		"put of nothing":        {op(store.Put, "x", "", "", 1), storage.ErrNotFound},
		"delete of nothing":     {op(store.Delete, "x", "", "", 0), storage.ErrNotFound},
	} {
		if _, err := d.Write(ctx, []store.Op{refused.op, op(store.Create, "never", "o", "1", 0)}); !errors.Is(err, refused.want) {
			t.Errorf("%s first: got %v, want %v: nothing was written", name, err, refused.want)
		}
		if _, err := d.Read(ctx, "k", "never"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s first: the second change was made: %v", name, err)
		}
		id := "before " + name
		_, err := d.Write(ctx, []store.Op{op(store.Create, id, "o", "1", 0), refused.op})
		if err == nil || errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrAlreadyExists) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s second: got %v, want an error that does not say that nothing was written", name, err)
		}
		read(t, d, id) // stays
	}
	var told []string
	for {
		page, err := d.Changes(ctx, head, 100)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, c := range page {
			head, told = c.Seq, append(told, c.ID)
		}
	}
	if len(told) != 4 {
		t.Errorf("the log tells of %q, want the four records that were made before a refusal", told)
	}
}
