package spnego

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxReplays bounds how many authenticators are remembered in one window: some 20 MB, and a thousand sign-ins each second.
const maxReplays = 1 << 18

// replays remembers authenticators for at least its window, which is as long as one can be good (RFC 4120 section 3.2.3). Only those that were
// made with a key of a ticket get here: no stranger fills it.
type replays struct {
	window time.Duration

	mu            sync.Mutex
	since         time.Time // of current
	current, last map[[sha256.Size]byte]struct{}
}

// seen reports whether id was here before, and remembers it. It is not ok where there is no room to remember it.
func (r *replays) seen(id [sha256.Size]byte, now time.Time) (seen, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if age := now.Sub(r.since); r.current == nil || age >= r.window {
		r.last = r.current
		if age >= 2*r.window {
			r.last = nil
		}
		r.current, r.since = map[[sha256.Size]byte]struct{}{}, now
	}
	if _, old := r.last[id]; old {
		return true, true
	}
	if _, old := r.current[id]; old {
		return true, true
	}
	if len(r.current) >= maxReplays {
		return false, false
	}
	r.current[id] = struct{}{}
	return false, true
}
