package store

import (
	"container/heap"
	"context"
	"iter"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/dexidp/dex/storage"
)

// memoryLogSize bounds the change log in memory, which no other process reads.
const memoryLogSize = 1 << 16

// memory is a Driver that keeps records in maps.
type memory struct {
	mu          sync.RWMutex
	tables      map[Kind]*table
	lastVersion int64
	log         []Change // ordered by Seq
	head, floor int64    // Seq of the last change, and of the last one that was trimmed
}

// A table holds the records of one kind, by ID, by owner and by expiry.
type table struct {
	byID    map[string]*row
	byOwner map[string]map[string]*row
	expiry  expiryHeap
}

type row struct {
	Record
	at int // in the heap; -1: never expires
}

func newMemory() *memory { return &memory{tables: map[Kind]*table{}} }

func (m *memory) Close() error { return nil }

func (m *memory) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if t := m.tables[kind]; t != nil {
		if r := t.byID[id]; r != nil {
			return r.Record, nil
		}
	}
	return Record{}, storage.ErrNotFound
}

func (m *memory) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for _, r := range m.selected(q) {
			if err := ctx.Err(); err != nil {
				yield(Record{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (m *memory) selected(q Query) []Record {
	m.mu.RLock()
	defer m.mu.RUnlock()
	t := m.tables[q.Kind]
	if t == nil {
		return nil
	}
	rows := t.byID
	if q.Owner != "" {
		rows = t.byOwner[q.Owner]
	}
	out := make([]Record, 0, len(rows))
	for _, r := range rows {
		out = append(out, r.Record)
	}
	return out
}

func (m *memory) Write(ctx context.Context, ops []Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var undo []func()
	var changes []Change
	for _, op := range ops {
		back, err := m.apply(op)
		if err != nil {
			for _, f := range slices.Backward(undo) {
				f()
			}
			return 0, err
		}
		undo = append(undo, back)
		changes = append(changes, op.Changes...)
	}
	if len(changes) == 0 {
		return 0, nil
	}
	m.head++
	for _, c := range changes {
		c.Seq = m.head
		m.log = append(m.log, c)
	}
	if len(m.log) > memoryLogSize {
		m.cut(len(m.log) / 2)
	}
	return m.head, nil
}

// apply makes one change and returns what undoes it.
func (m *memory) apply(op Op) (undo func(), err error) {
	t := m.tables[op.Record.Kind]
	if t == nil {
		t = &table{byID: map[string]*row{}, byOwner: map[string]map[string]*row{}}
		m.tables[op.Record.Kind] = t
	}
	old := t.byID[op.Record.ID]
	switch {
	case op.Verb == Create && old != nil:
		return nil, storage.ErrAlreadyExists
	case op.Verb != Create && old == nil:
		return nil, storage.ErrNotFound
	case op.Verb == Put && old.Version != op.Record.Version:
		return nil, ErrConflict
	}
	if old != nil {
		t.remove(old)
	}
	if op.Verb == Delete {
		return func() { t.insert(old) }, nil
	}
	m.lastVersion++
	next := &row{Record: op.Record}
	next.Version = m.lastVersion
	t.insert(next)
	return func() {
		t.remove(next)
		if old != nil {
			t.insert(old)
		}
	}, nil
}

func (t *table) insert(r *row) {
	t.byID[r.ID] = r
	if r.Owner != "" {
		if t.byOwner[r.Owner] == nil {
			t.byOwner[r.Owner] = map[string]*row{}
		}
		t.byOwner[r.Owner][r.ID] = r
	}
	r.at = -1
	if !r.Expires.IsZero() {
		heap.Push(&t.expiry, r)
	}
}

func (t *table) remove(r *row) {
	delete(t.byID, r.ID)
	if owned := t.byOwner[r.Owner]; owned != nil {
		if delete(owned, r.ID); len(owned) == 0 {
			delete(t.byOwner, r.Owner)
		}
	}
	if r.at >= 0 {
		heap.Remove(&t.expiry, r.at)
	}
}

func (m *memory) Sweep(ctx context.Context, kind Kind, before time.Time, limit int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tables[kind]
	if t == nil {
		return 0, nil
	}
	n := 0
	for n < limit && len(t.expiry) > 0 && t.expiry[0].Expires.Before(before) {
		t.remove(t.expiry[0])
		n++
	}
	return n, nil
}

func (m *memory) Head(ctx context.Context) (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.head, ctx.Err()
}

func (m *memory) Changes(ctx context.Context, after int64, limit int) ([]Change, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if after < m.floor {
		return nil, ErrTrimmed
	}
	return slices.Clone(m.log[m.place(after):m.place(after+int64(limit))]), nil
}

// place returns where the changes after a Seq begin. No Seq is left out of the log.
func (m *memory) place(after int64) int {
	return sort.Search(len(m.log), func(i int) bool { return m.log[i].Seq > after })
}

func (m *memory) Trim(ctx context.Context, before time.Time, limit int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for n < min(limit, len(m.log)) && m.log[n].At.Before(before) {
		n++
	}
	return m.cut(n), nil
}

// cut drops the n oldest changes of the log, and the rest of the last one's write. It returns how many.
func (m *memory) cut(n int) int {
	if n == 0 {
		return 0
	}
	m.floor = m.log[n-1].Seq
	n = m.place(m.floor)
	m.log = slices.Clone(m.log[n:])
	return n
}

// An expiryHeap has the row that expires first at 0.
type expiryHeap []*row

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].Expires.Before(h[j].Expires) }
func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *expiryHeap) Push(x any) {
	r := x.(*row)
	r.at = len(*h)
	*h = append(*h, r)
}

func (h *expiryHeap) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	r.at = -1
	return r
}
