// Package ldap signs users in with an LDAP directory, such as Active Directory, OpenLDAP or FreeIPA, and goes on asking it who they
// are. It takes the configuration of Dex's connector of that name unchanged, and adds to it.
package ldap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/connectors"
	"gatehouse/connectors/spnego"
)

// Options for Open.
type Options struct {
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// A Connector is a directory. It is safe for concurrent use, and never waits longer than a call's context allows.
type Connector struct {
	settings   *settings
	client     *client
	changer    *client // changes passwords that have expired; the same as client where no other account is configured
	now        func() time.Time
	log        *slog.Logger
	attributes []string // that are asked for of a user
	facts      atomic.Pointer[facts]
	asked      chan struct{} // closed once the directory was asked for the facts; nil: it never is
	patience   time.Duration // how long a sign-in right after the start waits for them
	failed     durations     // of binds with a wrong password
	stop       context.CancelFunc
	background sync.WaitGroup
	kerberos   kerberos
}

// Open makes a connector of a configuration. It does not wait for the directory.
func Open(raw []byte, o Options) (*Connector, error) {
	s, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("ldap: %w", err)
	}
	c := &Connector{settings: s, now: o.Now, log: o.Log, attributes: s.userAttributes(), asked: make(chan struct{}), patience: firstFacts}
	if c.now == nil {
		c.now = time.Now
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if k := s.Kerberos; k != nil && k.Enabled {
		if c.kerberos.acceptor, err = spnego.New(*k, c.now, c.log); err != nil {
			return nil, fmt.Errorf("ldap: kerberos: %w", err)
		}
	}
	t := s.transport()
	c.client = newClient(t, c.now, c.log)
	c.changer = c.client
	if s.change && s.PasswordChange.BindDN != "" {
		t.bindDN, t.bindPW, t.connections = s.PasswordChange.BindDN, s.changePW, min(t.connections, 2)
		c.changer = newClient(t, c.now, c.log)
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.background.Go(func() { c.learnOn(ctx) })
	return c, nil
}

// Close ends all connections.
func (c *Connector) Close() error {
	c.stop()
	c.client.close()
	if c.changer != c.client {
		c.changer.close()
	}
	c.background.Wait()
	return nil
}

// Prompt is the label of the user name's field, "" for the general one.
func (c *Connector) Prompt() string { return c.settings.UsernamePrompt }

// MaxFailures is how many wrong passwords the directory's own lock-out leaves room for, less one; 0: it is not known, or there is none.
func (c *Connector) MaxFailures() int {
	if n := c.settings.Lockout.MaxFailures; n > 0 {
		return n
	}
	if f := c.facts.Load(); f != nil && f.maxFailures > 0 {
		return max(1, f.maxFailures-1)
	}
	return 0
}

// An Account is whom a typed name belongs to. Nothing is proven yet, and it may belong to nobody: only Authenticate tells.
type Account struct {
	entry   *entry    // nil: nobody's
	read    time.Time // when the entry was
	key     string
	refused bool // the name cannot be anybody's, whatever is in the directory
}

// Key is what attempts are counted by: the same for every spelling that leads to the account, and for those that lead nowhere.
func (a *Account) Key() string { return a.key }

// UserID is that of the account's user, "" where it has none.
func (c *Connector) UserID(a *Account) string {
	if a.entry == nil {
		return ""
	}
	return a.entry.value(c.settings.UserSearch.IDAttr, maxID)
}

// fresh is how long what Find has read is good for the rest of the same sign-in.
const fresh = 5 * time.Second

// maxPassword is how long a password may be, in bytes.
const maxPassword = 1024

// possible says that a password may be sent: an empty one would be an anonymous bind (RFC 4513 section 5.1.2).
func possible(password string) bool {
	return password != "" && len(password) <= maxPassword && !strings.Contains(password, "\x00")
}

// Authenticate proves an account by its password and returns who its user is. Every error is a *connectors.Refusal.
func (c *Connector) Authenticate(ctx context.Context, a *Account, password string) (connectors.Identity, error) {
	p, err := c.prove(ctx, a, password)
	if err != nil {
		return connectors.Identity{}, err
	}
	if p.graced && c.settings.change { // each further sign-in would use up one of those that are left
		return connectors.Identity{}, &connectors.Refusal{
			Reason: connectors.PasswordExpired, Changeable: true, Err: errors.New("ldap: the password has expired, and was taken for one of the last times"),
		}
	}
	return c.identify(ctx, a, true)
}

// A proof is what a bind has shown of a password.
type proof struct {
	right  bool // it is the account's, and of the states only its own keeps the user out, if any does
	graced bool // it did, though the password has expired
}

// prove binds as an account's user. The error is nil if nothing keeps the user out.
func (c *Connector) prove(ctx context.Context, a *Account, password string) (proof, error) {
	if a.refused || !possible(password) {
		return proof{}, refuse(connectors.WrongCredentials, errors.New("ldap: no such name or password can be"))
	}
	if a.entry == nil {
		return proof{}, c.nobody(ctx)
	}
	start := time.Now()
	v, err := c.client.bind(ctx, a.entry.dn, password)
	if err != nil {
		return proof{}, notKnown(err)
	}
	r, graced := reasonOf(v)
	p := proof{graced: graced}
	switch r {
	case "":
		p.right = true
		return p, nil
	case connectors.PasswordExpired, connectors.PasswordMustChange:
		p.right = true
	case connectors.WrongCredentials:
		c.failed.add(time.Since(start))
	default:
	}
	return p, c.refusal(r, v.cause())
}

// refusal adds whether the user can choose a new password here.
func (c *Connector) refusal(r connectors.Reason, err error) *connectors.Refusal {
	out := refuse(r, err)
	out.Changeable = c.changeable(r)
	return out
}

// Identify returns who the user of an account is that was proven in another way, such as Kerberos. Every error is a *connectors.Refusal:
// WrongCredentials for nobody's, or a state that keeps the user out.
func (c *Connector) Identify(ctx context.Context, a *Account) (connectors.Identity, error) {
	if a.entry == nil {
		return connectors.Identity{}, refuse(connectors.WrongCredentials, errors.New("ldap: the name belongs to nobody"))
	}
	return c.identify(ctx, a, false)
}

// identify reads who the user of a proven account is. The password's own state counts only where the password is the proof.
func (c *Connector) identify(ctx context.Context, a *Account, byPassword bool) (connectors.Identity, error) {
	e := a.entry
	if age := c.now().Sub(a.read); age < 0 || age > fresh {
		again, err := c.reread(ctx, e.dn)
		if err != nil {
			return connectors.Identity{}, notKnown(err)
		}
		if again == nil || c.keyOf(again) != a.key {
			return connectors.Identity{}, refuse(connectors.Gone, errors.New("ldap: the entry is not there any more"))
		}
		e = again
	}
	switch r := stateOf(e, c.now(), c.lockedFor(e)); r {
	case "":
	case connectors.AccountLocked: // a bind that succeeds has just unlocked it
		if !byPassword {
			return connectors.Identity{}, refuse(r, stateError(r))
		}
	case connectors.PasswordExpired, connectors.PasswordMustChange:
		if byPassword {
			return connectors.Identity{}, c.refusal(r, stateError(r))
		}
	default:
		return connectors.Identity{}, refuse(r, stateError(r))
	}
	answers, err := c.identities(ctx, []*entry{e})
	if err != nil {
		return connectors.Identity{}, notKnown(err)
	}
	if answers[0].Err != nil {
		return connectors.Identity{}, answers[0].Err
	}
	id := answers[0].Identity
	id.PasswordSet = c.passwordSet(a.entry) // as it was before the proof: by now another password may be the user's
	return id, nil
}

func stateError(r connectors.Reason) error {
	return fmt.Errorf("ldap: the account's entry says: %s", r)
}

// ErrNoWatch means that the directory does not tell of changes.
var ErrNoWatch = errors.New("ldap: the directory does not tell of changes")
