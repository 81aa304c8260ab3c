package identity

import (
	"context"
	"sync/atomic"

	"gatehouse/connectors"
)

// A Turned remembers why the password grant did not even try a password, or what it let a user in with. Both go through Dex, which keeps them to
// itself.
type Turned struct {
	by atomic.Pointer[turn]
	in atomic.Pointer[entry]
}

type turn struct {
	connector string
	refusal   *connectors.Refusal
}

// Away returns the refusal, Busy or Throttled, and the id of the connector; nil if there was none.
func (t *Turned) Away() (connector string, no *connectors.Refusal) {
	if by := t.by.Load(); by != nil {
		return by.connector, by.refusal
	}
	return "", nil
}

type turnedKey struct{}

// WithTurned returns a context in which a refusal of the password grant as Busy or Throttled is remembered.
func WithTurned(ctx context.Context) (context.Context, *Turned) {
	t := &Turned{}
	return context.WithValue(ctx, turnedKey{}, t), t
}

// turnedAway makes a refusal known to whoever wants to know.
func turnedAway(ctx context.Context, connector string, no *connectors.Refusal) {
	if t, ok := ctx.Value(turnedKey{}).(*Turned); ok {
		t.by.Store(&turn{connector, no})
	}
}
