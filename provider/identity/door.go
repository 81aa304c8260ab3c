// Package identity says who a user is now. It wraps every connector of Dex so that there is one way to prove
// who one is, whoever asks: the front door's pages, or a grant of the token endpoint.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/connectors"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/server"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// What is accepted from a sign-in form, in bytes.
const (
	maxLogin    = 256
	maxPassword = 1024
)

// A Kind is how a connector lets users prove who they are.
type Kind uint8

const (
	Password Kind = iota + 1 // user name and password on our page
	Redirect                 // at an upstream identity provider
	SAML                     // likewise, by SAML's POST binding: Dex's own flow
)

// Options for Open.
type Options struct {
	Limits Limits
	// Store is the record of identities that is not guarded: blocked users are read from it.
	Store storage.Storage
	Now   func() time.Time
	Log   *slog.Logger
}

// Doors are the connectors of one Dex server.
type Doors struct {
	opts     Options
	users    *limiter
	networks *limiter
	workers  *workers
	byID     map[string]*Door
	ordered  []*Door
}

// Open wraps every connector of dex, "local" included, and puts the wrappers where dex finds them. It is called
// after server.NewServer and before anything is served. dexStore is the storage that dex was given.
func Open(ctx context.Context, dex *server.Server, dexStore storage.Storage, opts Options) (*Doors, error) {
	d := &Doors{
		opts:     opts,
		users:    newLimiter(opts.Limits.Window, opts.Limits.Entries, opts.Now),
		networks: newLimiter(opts.Limits.Window, opts.Limits.Entries, opts.Now),
		workers:  newWorkers(max(1, runtime.GOMAXPROCS(0)-1), 256),
		byID:     map[string]*Door{},
	}
	all, err := dexStore.ListConnectors(ctx)
	if err != nil {
		return nil, fmt.Errorf("list connectors: %w", err)
	}
	for _, c := range all {
		if _, dup := d.byID[c.ID]; dup {
			continue // a static connector hides a stored one of the same id
		}
		opened, ok := dex.Connectors().Cached(c.ID)
		if !ok {
			continue // failed to open; Dex has said so
		}
		inner := opened.Connector
		if c.Type == dexconnectors.LocalConnector {
			if inner, err = newLocal(ctx, dexStore, d.workers); err != nil {
				return nil, err
			}
		}
		door, err := newDoor(d, c, inner)
		if err != nil {
			return nil, err
		}
		d.byID[c.ID] = door
		d.ordered = append(d.ordered, door)
		opened.Connector = door.wrapped()
		dex.Connectors().Set(c.ID, opened)
	}
	return d, nil
}

// All returns the doors in the order of the configuration.
func (d *Doors) All() []*Door { return d.ordered }

// Door returns the door of a connector id.
func (d *Doors) Door(id string) (*Door, bool) {
	door, ok := d.byID[id]
	return door, ok
}

// A Door is one connector as users meet it.
type Door struct {
	ID, Name   string
	Type       string // Dex's connector type, such as "ldap"
	Kind       Kind
	GrantTypes []string // allowed grant types; empty: all

	doors *Doors
	inner connector.Connector
}

func newDoor(d *Doors, c storage.Connector, inner connector.Connector) (*Door, error) {
	door := &Door{ID: c.ID, Name: c.Name, Type: c.Type, GrantTypes: c.GrantTypes, doors: d, inner: inner}
	switch inner.(type) {
	case connector.CallbackConnector:
		door.Kind = Redirect
	case connector.PasswordConnector:
		door.Kind = Password
	case connector.SAMLConnector:
		door.Kind = SAML
	default:
		return nil, fmt.Errorf("connector %q of type %q offers no way to sign in", c.ID, c.Type)
	}
	return door, nil
}

// Prompt is the label of the user name's field, "" where the connector has none of its own.
func (d *Door) Prompt() string {
	if p, ok := d.inner.(connector.PasswordConnector); ok {
		return p.Prompt()
	}
	return ""
}

// A Login is a password as it was typed, with where it came from.
type Login struct {
	User, Password string
	// Network is what failures are counted by; "" where the client's address is not known.
	Network string
	Scopes  connector.Scopes
}

// CheckPassword proves a user by password. Every error is a *connectors.Refusal.
func (d *Door) CheckPassword(ctx context.Context, in Login) (connector.Identity, error) {
	pc, ok := d.inner.(connector.PasswordConnector)
	if !ok {
		return connector.Identity{}, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a password connector")}
	}
	// An empty password is an unauthenticated bind to a directory, which succeeds (RFC 4513 section 5.1.2).
	if in.User == "" || in.Password == "" || len(in.User) > maxLogin || len(in.Password) > maxPassword ||
		strings.ContainsRune(in.User, 0) || strings.ContainsRune(in.Password, 0) {
		return connector.Identity{}, &connectors.Refusal{Reason: connectors.WrongCredentials}
	}
	done, err := d.doors.begin(ctx, d.ID, in)
	if err != nil {
		return connector.Identity{}, err
	}
	in.Scopes.Groups = true // the identity is shared by all clients of the user: never without groups
	id, valid, err := pc.Login(ctx, in.Scopes, in.User, in.Password)
	done(err == nil && !valid)
	switch {
	case err != nil:
		return connector.Identity{}, refusal(err)
	case !valid:
		return connector.Identity{}, &connectors.Refusal{Reason: connectors.WrongCredentials}
	}
	return id, d.allowed(ctx, id)
}

// begin takes the user name's and the network's leave to try.
func (d *Doors) begin(ctx context.Context, connectorID string, in Login) (done func(failed bool), err error) {
	userDone, err := d.users.begin(ctx, connectorID+"\x00"+strings.ToLower(in.User), d.opts.Limits.PerUser)
	if err != nil {
		return nil, err
	}
	if in.Network == "" || d.opts.Limits.PerNetwork <= 0 {
		return userDone, nil
	}
	networkDone, err := d.networks.begin(ctx, in.Network, d.opts.Limits.PerNetwork)
	if err != nil {
		userDone(false)
		return nil, err
	}
	return func(failed bool) { userDone(failed); networkDone(failed) }, nil
}

// StartRedirect returns the upstream's URL with state in it, and data that FinishRedirect needs back.
func (d *Door) StartRedirect(s connector.Scopes, callbackURL, state string) (target string, data []byte, err error) {
	cc, ok := d.inner.(connector.CallbackConnector)
	if !ok {
		return "", nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a redirect connector")}
	}
	s.Groups = true
	target, data, err = cc.LoginURL(s, callbackURL, state)
	if err != nil {
		return "", nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	}
	return target, data, nil
}

// FinishRedirect proves a user by the upstream's answer r. Every error is a *connectors.Refusal.
func (d *Door) FinishRedirect(s connector.Scopes, data []byte, r *http.Request) (connector.Identity, error) {
	cc, ok := d.inner.(connector.CallbackConnector)
	if !ok {
		return connector.Identity{}, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a redirect connector")}
	}
	s.Groups = true
	id, err := cc.HandleCallback(s, data, r)
	if err != nil {
		return connector.Identity{}, upstreamRefusal(err, r.URL.Query())
	}
	return id, d.allowed(r.Context(), id)
}

// LogoutURL returns where the upstream ends its own session, or "".
func (d *Door) LogoutURL(ctx context.Context, back string) (string, error) {
	if l, ok := d.inner.(connector.LogoutCallbackConnector); ok {
		return l.LogoutURL(ctx, back)
	}
	return "", nil
}

// allowed refuses blocked users, and identities that could not be told apart later.
func (d *Door) allowed(ctx context.Context, id connector.Identity) error {
	if id.UserID == "" {
		return &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("the connector returned a user without an id")}
	}
	u, err := d.doors.opts.Store.GetUserIdentity(ctx, id.UserID, d.ID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	case d.doors.opts.Now().Before(u.BlockedUntil):
		return &connectors.Refusal{Reason: connectors.Blocked}
	}
	return nil
}

func refusal(err error) error {
	var known *connectors.Refusal
	var groups *connector.UserNotInRequiredGroupsError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &groups):
		return &connectors.Refusal{Reason: connectors.NotAllowed, Err: err}
	}
	return &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
}

// upstreamRefusal tells an error response of the upstream (RFC 6749 section 4.1.2.1) from a failure to find out.
func upstreamRefusal(err error, q url.Values) error {
	if code := q.Get("error"); code != "" {
		detail := q.Get("error_description")
		if detail == "" {
			detail = code
		}
		return &connectors.Refusal{Reason: connectors.UpstreamRefused, Detail: detail, Err: err}
	}
	return refusal(err)
}

// A Proof is an identity that was proven, on its way into Dex. It travels in the context of an in-process
// request: there is nothing to steal or to store. It is good for one use.
type Proof struct {
	connector string
	identity  connector.Identity
	used      atomic.Bool
}

type proofKey struct{}

// WithProof returns a context that lets Dex accept id as proven by connector connectorID.
func WithProof(ctx context.Context, connectorID string, id connector.Identity) (context.Context, *Proof) {
	p := &Proof{connector: connectorID, identity: id}
	return context.WithValue(ctx, proofKey{}, p), p
}

// Used reports whether Dex took the identity.
func (p *Proof) Used() bool { return p.used.Load() }
