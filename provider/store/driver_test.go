package store

import (
	"path/filepath"
	"testing"

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
	t.Run("postgres", func(t *testing.T) {
		d, err := openPostgres(t.Context(), newDatabase(t), quiet())
		must(t, err)
		defer func() { must(t, d.Close()) }()
		test(t, d)
	})
	t.Run("etcd", func(t *testing.T) {
		test(t, openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{})))
	})
}

func write(t *testing.T, d Driver, ops ...Op) int64 {
	t.Helper()
	seq, err := d.Write(t.Context(), ops)
	must(t, err)
	return seq
}

// op returns an Op whose change is named after what it does.
func op(v Verb, id, owner, data string, version int64) Op {
	return Op{
		Verb:    v,
		Record:  Record{Kind: "k", ID: id, Owner: owner, Version: version, Expires: epoch, Data: []byte(data)},
		Changes: []Change{{Kind: "k", ID: id, UserID: data, At: epoch}},
	}
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

func count(t *testing.T, d Driver, owner string) (n int) {
	t.Helper()
	for _, err := range d.Scan(t.Context(), Query{Kind: "k", Owner: owner}) {
		must(t, err)
		n++
	}
	return n
}

func read(t *testing.T, d Driver, id string) Record {
	t.Helper()
	r, err := d.Read(t.Context(), "k", id)
	must(t, err)
	return r
}
