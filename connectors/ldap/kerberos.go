package ldap

import (
	"context"
	"errors"

	"gatehouse/connectors"
	"gatehouse/connectors/spnego"
)

// kerberos joins tickets to accounts: the ticket is the proof, the directory says who it is. The zero value accepts nothing.
type kerberos struct {
	acceptor *spnego.Acceptor // nil: not wanted
}

var errNoKerberos = errors.New("ldap: kerberos is not enabled")

// Negotiates reports whether users can be proven by a Kerberos ticket.
func (c *Connector) Negotiates() bool { return c.kerberos.acceptor != nil }

// NeedsTicket reports whether there is no form for those who have no ticket.
func (c *Connector) NeedsTicket() bool {
	return c.kerberos.acceptor != nil && !c.kerberos.acceptor.Fallback()
}

// Negotiate proves a user by the token of HTTP Negotiate (RFC 4559). reply is what to answer with it. Every error is a *connectors.Refusal:
// NegotiateRefused, whose cause is a *spnego.Refusal, for a ticket that is not accepted; NotAllowed for a user whom the directory, or this connector's part of it,
// does not have; else why a user with a good ticket is kept out, such as a state of the account.
func (c *Connector) Negotiate(ctx context.Context, token []byte) (id connectors.Identity, reply []byte, err error) {
	return c.kerberos.negotiate(token, func(p spnego.Principal) (connectors.Identity, error) {
		a, err := c.Find(ctx, c.kerberos.acceptor.Username(p))
		if err != nil {
			return connectors.Identity{}, err
		}
		if !c.issuedTo(a, p) {
			return connectors.Identity{}, refuse(connectors.NotAllowed, errOtherAccount)
		}
		return c.Identify(ctx, a)
	})
}

// issuedTo reports whether a ticket was issued to the account that has its name now. Active Directory tells, and does not give identifiers again: a name may have
// become another one's while the ticket is good, or be one's at the KDC and another one's in the search.
func (c *Connector) issuedTo(a *Account, p spnego.Principal) bool {
	return !c.settings.activeDirectory() || a.entry == nil || p.SID != "" && p.SID == a.entry.value("objectSid", maxID)
}

var errOtherAccount = errors.New("the ticket was issued to another account than the one that has its name, or does not tell which: its PAC names no such objectSid")

// negotiate is Negotiate with the directory as an argument.
func (k *kerberos) negotiate(token []byte, identify func(spnego.Principal) (connectors.Identity, error)) (connectors.Identity, []byte, error) {
	if k.acceptor == nil {
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.NegotiateRefused, Err: errNoKerberos}
	}
	p, reply, err := k.acceptor.Accept(token)
	if err != nil {
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.NegotiateRefused, Err: err}
	}
	id, err := identify(p)
	var no *connectors.Refusal
	switch {
	case err == nil:
		return id, reply, nil
	case !errors.As(err, &no):
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	case no.Reason == connectors.WrongCredentials, no.Reason == connectors.Gone: // the ticket is good: it is the directory that does not have them
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.NotAllowed, Err: errNotHere}
	}
	return connectors.Identity{}, nil, no
}

var errNotHere = errors.New("the user has a good ticket, but userSearch finds nobody of that name")
