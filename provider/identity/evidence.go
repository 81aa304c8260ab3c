package identity

import (
	"context"
	"time"

	"gatehouse/connectors"

	"github.com/dexidp/dex/connector"
)

// A Proven is who has just shown a credential, and which.
type Proven struct {
	connector.Identity
	Evidence Evidence
}

// An Evidence says which of a user's passwords a connector has looked at.
type Evidence struct {
	Set   connectors.PasswordSet
	Began time.Time // when it was asked to; before that nothing was looked at
}

// began is the evidence before the connector is asked for it.
func (d *Door) began() Evidence { return Evidence{Began: d.doors.opts.Now()} }

// EvidenceOf returns what a user of a connector was let in with by the request that ctx is of, be it a sign-in or a password grant.
func EvidenceOf(ctx context.Context, connectorID string) (Evidence, bool) {
	if p, ok := ctx.Value(proofKey{}).(*Proof); ok && p.connector == connectorID {
		return p.evidence, !p.evidence.Began.IsZero()
	}
	if t, ok := ctx.Value(turnedKey{}).(*Turned); ok {
		if in := t.in.Load(); in != nil && in.connector == connectorID {
			return in.evidence, true
		}
	}
	return Evidence{}, false
}

// An entry is who was let in by the password grant.
type entry struct {
	connector, user string
	evidence        Evidence
}

// letIn makes known what the password grant let somebody in with. The identity goes through Dex, which has no place for it.
func letIn(ctx context.Context, connectorID, userID string, e Evidence) {
	if t, ok := ctx.Value(turnedKey{}).(*Turned); ok {
		t.in.Store(&entry{connectorID, userID, e})
	}
}

// In returns whose password was found to be right; ok is false if none was.
func (t *Turned) In() (connectorID, userID string, ok bool) {
	if in := t.in.Load(); in != nil {
		return in.connector, in.user, true
	}
	return "", "", false
}
