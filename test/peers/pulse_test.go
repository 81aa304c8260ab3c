package peers

import (
	"testing"
	"time"
)

func TestPulse(t *testing.T) {
	p := &Pulse{}
	for _, gap := range []time.Duration{5 * time.Millisecond, pause, time.Second, 2 * time.Second} {
		p.beat(gap)
	}
	if got := p.Still(); got != 3*time.Second {
		t.Errorf("got %s, want 3s: the two that are pauses", got)
	}
}
