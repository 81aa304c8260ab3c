package authz

import "testing"

// TestCacheIsBounded pins that a cache holds so many bytes and no more, counts them right, and finds what it holds.
func TestCacheIsBounded(t *testing.T) {
	const most = 1 << 20
	c := newCache[int, int](1<<10, most)
	for i := range 5000 {
		key := i % 3000 // some are put again
		_, slot, _ := c.find(key)
		c.put(slot, key, -key, int64(1+i%7)<<10)
		if got := c.bytes.Load(); got > most {
			t.Fatalf("got %d bytes, want at most %d", got, most)
		}
		if v, _, ok := c.find(key); ok && v != -key || !ok && c.bytes.Load() < most/2 { // it may have made room itself
			t.Fatalf("key %d: got %d, %v right after it was put", key, v, ok)
		}
	}
	var sum int64
	seen := map[int]bool{}
	for i := range c.slots {
		e := c.slots[i].Load()
		if e == nil {
			continue
		}
		sum += e.size
		if v, slot, ok := c.find(e.key); !ok || v != -e.key || slot != uint64(i) || seen[e.key] {
			t.Errorf("key %d of slot %d: found %v in %d, twice %v", e.key, i, ok, slot, seen[e.key])
		}
		seen[e.key] = true
	}
	if got := c.bytes.Load(); got != sum || sum < most/2 {
		t.Errorf("got %d bytes counted and %d there, want the same, and half of %d at least", got, sum, most)
	}
	if _, _, ok := c.find(1 << 20); ok {
		t.Error("found what was never put")
	}
}

// TestCacheTooLargeValue pins that what alone is too large is not kept.
func TestCacheTooLargeValue(t *testing.T) {
	c := newCache[int, int](8, 10)
	_, slot, _ := c.find(1)
	c.put(slot, 1, 1, 11)
	if _, _, ok := c.find(1); ok || c.bytes.Load() != 0 {
		t.Errorf("kept %v, %d bytes, want neither", ok, c.bytes.Load())
	}
}
