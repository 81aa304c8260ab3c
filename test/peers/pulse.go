package peers

import (
	"sync/atomic"
	"testing"
	"time"
)

// A Pulse tells for how long the machine has stood still, as one does that other machines share: no program keeps a bound of time then.
type Pulse struct{ still atomic.Int64 }

// NewPulse takes the pulse until the test ends.
func NewPulse(t testing.TB) *Pulse {
	t.Helper()
	p, tick, end := &Pulse{}, time.NewTicker(5*time.Millisecond), make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-tick.C:
			case <-end:
				return
			}
			now := time.Now()
			p.beat(now.Sub(last))
			last = now
		}
	}()
	t.Cleanup(func() { close(end); <-over })
	return p
}

func (p *Pulse) beat(gap time.Duration) {
	if gap > pause {
		p.still.Add(int64(gap))
	}
}

// pause is what no busy machine makes of the beat.
const pause = 50 * time.Millisecond

// Still is how long the machine has stood still since NewPulse for longer than a twentieth of a second.
func (p *Pulse) Still() time.Duration { return time.Duration(p.still.Load()) }
