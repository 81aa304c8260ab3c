package identity

import (
	"context"
	"errors"

	"gatehouse/connectors"

	"github.com/dexidp/dex/connector"
)

// A negotiator is a connector that proves users by the Kerberos tickets that their browsers send by themselves (RFC 4559).
type negotiator interface {
	Negotiates() bool
	NeedsTicket() bool // there is no form for those without a ticket
	Negotiate(ctx context.Context, token []byte) (id connectors.Identity, reply []byte, err error)
}

// Negotiates reports whether users can be proven by a Kerberos ticket here.
func (d *Door) Negotiates() bool {
	n, ok := d.inner.(negotiator)
	return ok && n.Negotiates()
}

// NeedsTicket reports whether the sign-in page has no form for those without a ticket.
func (d *Door) NeedsTicket() bool {
	n, ok := d.inner.(negotiator)
	return ok && n.Negotiates() && n.NeedsTicket()
}

// Negotiate proves a user by the token of HTTP Negotiate. reply is to be sent back. network is what its attempts wait in line by. Nothing is counted: there is
// no secret to be guessed. Every error is a *connectors.Refusal, NegotiateRefused for the token itself.
func (d *Door) Negotiate(ctx context.Context, network string, token []byte) (id connector.Identity, reply []byte, err error) {
	n, ok := d.inner.(negotiator)
	if !ok || !n.Negotiates() {
		return connector.Identity{}, nil, &connectors.Refusal{Reason: connectors.NegotiateRefused, Err: errors.New("not a connector with kerberos")}
	}
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	var known connectors.Identity
	if busy := d.doors.directories.of(d.ID).do(ctx, network, func() { known, reply, err = n.Negotiate(ctx, token) }); busy != nil {
		return connector.Identity{}, nil, busy
	}
	if err != nil {
		return connector.Identity{}, nil, refusal(err)
	}
	id = dexIdentity(known)
	if err := d.allowed(ctx, id); err != nil {
		return connector.Identity{}, nil, err
	}
	return id, reply, nil
}
