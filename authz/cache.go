package authz

import (
	"hash/maphash"
	"sync/atomic"
)

// cacheWays is how many slots a key may be in, a power of two.
const cacheWays = 4

// A cache holds values of so many bytes altogether, as the caller counts them, in a fixed number of slots. A key has cacheWays of them, which it
// shares with others: what is put where all are taken replaces one. It is safe for concurrent use, and find waits for nobody.
type cache[K comparable, V any] struct {
	seed  maphash.Seed
	most  int64 // bytes
	slots []atomic.Pointer[cached[K, V]]
	bytes atomic.Int64  // of all that are in slots
	hand  atomic.Uint32 // where room was made last
}

// A cached value is immutable.
type cached[K comparable, V any] struct {
	key   K
	value V
	size  int64
}

// newCache makes one with a number of slots that is a power of two, cacheWays at least.
func newCache[K comparable, V any](slots int, most int64) *cache[K, V] {
	return &cache[K, V]{seed: maphash.MakeSeed(), most: most, slots: make([]atomic.Pointer[cached[K, V]], slots)}
}

// find returns the value of a key, or false and the slot for it.
func (c *cache[K, V]) find(key K) (v V, slot uint64, ok bool) {
	home := maphash.Comparable(c.seed, key) % uint64(len(c.slots))
	slot = home
	for way := range uint64(cacheWays) {
		switch e := c.slots[home^way].Load(); {
		case e == nil:
			slot = home ^ way
		case e.key == key:
			return e.value, home ^ way, true
		}
	}
	return v, slot, false
}

// put keeps a value of so many bytes in the slot that find returned, and forgets others where there is no room. Whoever takes one out of a slot
// counts it out.
func (c *cache[K, V]) put(slot uint64, key K, v V, size int64) {
	grown := size
	if old := c.slots[slot].Swap(&cached[K, V]{key: key, value: v, size: size}); old != nil {
		grown -= old.size
	}
	full := c.bytes.Add(grown) > c.most
	for i := 0; full && i < len(c.slots); i++ {
		at := c.hand.Add(1) % uint32(len(c.slots)) //nolint:gosec // G115: a number of slots is far smaller
		if old := c.slots[at].Swap(nil); old != nil {
			full = c.bytes.Add(-old.size) > c.most
		}
	}
}
