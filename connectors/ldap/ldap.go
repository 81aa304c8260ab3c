// Package ldap signs users in with an LDAP directory, such as Active Directory, OpenLDAP or FreeIPA, and goes on asking it who they
// are. It takes the configuration of Dex's connector of that name unchanged, and adds to it.
package ldap

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"gatehouse/connectors"
)

// Options for Open.
type Options struct {
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// Check returns every mistake in a configuration (errors.Join), without connecting to anything. Each has a method Field, the key that is wrong.
func Check(raw []byte) error { return nil }

// Files returns the files that a configuration names.
func Files(raw []byte) []string { return nil }

// A Connector is a directory. It is safe for concurrent use, and never waits longer than a call's context allows.
type Connector struct {
	kerberos kerberos
}

// Open makes a connector of a configuration. It does not wait for the directory.
func Open(raw []byte, o Options) (*Connector, error) { return nil, errors.New("ldap: not yet") }

// Close ends all connections.
func (c *Connector) Close() error { return nil }

// Prompt is the label of the user name's field, "" for the general one.
func (c *Connector) Prompt() string { return "" }

// MaxFailures is how many wrong passwords the directory's own lock-out leaves room for, less one; 0: it is not known, or there is none.
func (c *Connector) MaxFailures() int { return 0 }

// An Account is whom a typed name belongs to. Nothing is proven yet, and it may belong to nobody: only Authenticate tells.
type Account struct{}

// Key is what attempts are counted by: the same for every spelling that leads to the account, and for those that lead nowhere.
func (a *Account) Key() string { return "" }

// Find looks for the account of a typed name. A name that belongs to nobody is no error. Every error is a *connectors.Refusal.
func (c *Connector) Find(ctx context.Context, name string) (*Account, error) { return nil, nil }

// Authenticate proves an account by its password and returns who its user is. Every error is a *connectors.Refusal.
func (c *Connector) Authenticate(ctx context.Context, a *Account, password string) (connectors.Identity, error) {
	return connectors.Identity{}, nil
}

// Identify returns who the user of an account is that was proven in another way, such as Kerberos. Every error is a *connectors.Refusal:
// WrongCredentials for nobody's, or a state that keeps the user out.
func (c *Connector) Identify(ctx context.Context, a *Account) (connectors.Identity, error) {
	return connectors.Identity{}, nil
}

// ChangePassword replaces an account's password; the old one is the proof. Every error is a *connectors.Refusal.
func (c *Connector) ChangePassword(ctx context.Context, a *Account, old, changed string) error {
	return nil
}

// Lookup asks who the users of these ids are now, in few requests for all of them. The answers are in the same order. An error means
// that the directory could not be asked.
func (c *Connector) Lookup(ctx context.Context, userIDs []string) ([]connectors.Answer, error) {
	return nil, nil
}

// Watch calls f for each change that the directory tells of, until ctx ends or the directory stops telling. It returns ErrNoWatch where
// the directory cannot, or the configuration does not want it. f must not block.
func (c *Connector) Watch(ctx context.Context, f func(connectors.Change)) error { return ErrNoWatch }

// ErrNoWatch means that the directory does not tell of changes.
var ErrNoWatch = errors.New("ldap: the directory does not tell of changes")
