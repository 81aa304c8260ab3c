package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/dexidp/dex/storage"
)

// memoAge is how old a remembered record may be. A request may wait in the middle, for a directory or for its turn to compare a password.
const memoAge = time.Second

// A memo holds what was read in one request. Only records are in it whose change by somebody else in that moment is as good as one just after
// the request has read it; whoever has to know what is true after a write of its own asks with Fresh.
type memo struct {
	mu      sync.Mutex
	writes  int // that have ended
	over    bool
	records map[memoKey]memorized
	decoded map[memoKey]memoValue
}

// memoValue is a version of a record, decoded: it is what it is for ever.
type memoValue struct {
	version int64
	value   any
}

type memoKey struct {
	store *counted
	kind  Kind
	id    string
}

// memorized is a record, or that there was none.
type memorized struct {
	record  Record
	missing bool
	at      time.Time
}

// A memoView is what a context holds.
type memoView struct {
	*memo
	fresh bool
}

type memoViewKey struct{}

// Remember returns a context for one request: in it a session, a user, a client, a code, a mark or a user's offline sessions that was read is not read again. All
// is forgotten with each write in that context, when it returns, and with Forget; nothing is used for longer than a second. After done
// the context is like the one that it came from.
func Remember(ctx context.Context) (_ context.Context, done func()) {
	m := &memo{records: map[memoKey]memorized{}, decoded: map[memoKey]memoValue{}}
	return context.WithValue(ctx, memoViewKey{}, memoView{memo: m}), m.end
}

// Fresh returns a context whose reads ask the database, whatever Remember's context knows.
func Fresh(ctx context.Context) context.Context {
	m, ok := ctx.Value(memoViewKey{}).(memoView)
	if !ok || m.fresh {
		return ctx
	}
	m.fresh = true
	return context.WithValue(ctx, memoViewKey{}, m)
}

// Forget makes the context of Remember forget what was read: somebody else was given the time to change it.
func Forget(ctx context.Context) { memoOf(ctx).forget() }

func memoOf(ctx context.Context) memoView {
	m, _ := ctx.Value(memoViewKey{}).(memoView)
	return m
}

func (m *memo) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.records, m.decoded = nil, nil
}

func (m *memo) forget() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	clear(m.records)
}

// memorable reports whether records of a kind are remembered. Signing keys are not: they are published in the order in which they were read. Nor are refresh
// tokens: who waits for their turn to use one must see that it is used up.
func memorable(k Kind) bool {
	switch k {
	case KindSession, KindIdentity, KindMark, KindClient, KindAuthCode, KindOffline:
		return true
	default:
		return false
	}
}

// read is d.Driver.Read, or what it said a moment ago.
func (m memoView) read(ctx context.Context, d *counted, kind Kind, id string) (Record, error) {
	if m.memo == nil || !memorable(kind) {
		return d.Driver.Read(ctx, kind, id)
	}
	key := memoKey{d, kind, id}
	known, writes := m.known(key)
	at := d.now()
	if age := at.Sub(known.at); !m.fresh && age >= 0 && age < memoAge && ctx.Err() == nil {
		if known.missing {
			return Record{}, storage.ErrNotFound
		}
		return known.record, nil
	}
	r, err := d.Driver.Read(ctx, kind, id)
	missing := errors.Is(err, storage.ErrNotFound)
	if err != nil && !missing {
		return Record{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.over && m.writes == writes { // else it may be from before a write
		m.records[key] = memorized{r, missing, at}
	}
	return r, err
}

// known returns what was read of a record, of the zero time if that is nothing, and what says whether something was written since.
func (m *memo) known(key memoKey) (memorized, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records[key], m.writes
}

// decodedOnce is k.decode, for a kind that is flat.
func decodedOnce[T any](ctx context.Context, s *Store, k *kind[T], r Record) (T, error) {
	m := memoOf(ctx)
	if m.memo == nil {
		return k.decode(r)
	}
	key := memoKey{s.driver, r.Kind, r.ID}
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.decoded[key]; known.version == r.Version && known.version != 0 {
		return known.value.(T), nil //nolint:forcetypeassert // of this kind
	}
	v, err := k.decode(r)
	if err == nil && !m.over {
		m.decoded[key] = memoValue{r.Version, v}
	}
	return v, err
}
