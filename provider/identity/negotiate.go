package identity

import (
	"context"
	"errors"

	"gatehouse/connectors"
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
func (d *Door) Negotiate(ctx context.Context, network string, token []byte) (id Proven, reply []byte, err error) {
	n, ok := d.inner.(negotiator)
	if !ok || !n.Negotiates() {
		return Proven{}, nil, &connectors.Refusal{Reason: connectors.NegotiateRefused, Err: errors.New("not a connector with kerberos")}
	}
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	id.Evidence = d.began()
	var known connectors.Identity
	if busy := d.doors.directories.of(d.ID).do(ctx, network, func() { known, reply, err = n.Negotiate(ctx, token) }); busy != nil {
		return Proven{}, nil, busy
	}
	if err != nil {
		return Proven{}, nil, refusal(err)
	}
	id.Identity, id.Evidence.Set = dexIdentity(known), known.PasswordSet
	if err := d.allowed(ctx, id.Identity); err != nil {
		return Proven{}, nil, err
	}
	return id, reply, nil
}
