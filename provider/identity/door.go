// Package identity says who a user is now. It wraps every connector of Dex so that there is one way to prove
// who one is, whoever asks: the front door's pages, or a grant of the token endpoint.
package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"gatehouse/connectors"
	"gatehouse/internal/passwords"

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
	SAML                     // likewise, by SAML's POST binding
)

// Options for Open.
type Options struct {
	Limits Limits
	// Store is the record of identities that is not guarded: blocked users are read from it.
	Store storage.Storage
	Now   func() time.Time
	Log   *slog.Logger // nothing secret of Dex's connectors gets past it
	// OwnLog is for our own connectors.
	OwnLog *slog.Logger
	// OpenTimeout is how long Open waits for connectors that ask somebody when they are opened, such as an upstream's
	// discovery document; RetryEvery is how often those that failed are tried again.
	OpenTimeout, RetryEvery time.Duration
	// DocumentsLimit is how long an upstream's keys are waited for, where that is not documentsLimit: tests have more time.
	DocumentsLimit time.Duration
	// Match compares the passwords of local users. Nil: here and now, with bcrypt.
	Match Match
	// Resolve opens a connector other than "local". Nil: "ldap" is ours, every other one Dex's.
	Resolve dexconnectors.ResolveFunc
	// Upstream asks the connectors of Dex who their users are now. Nil: nobody does.
	Upstream *Upstream
	// Previous are the doors of the generation before, not yet closed; nil: there was none. A connector of the same id, type and resource
	// version stays open, and attempts go on counting.
	Previous *Doors
}

// Doors are the connectors of one Dex server. Those that cannot be opened are tried again until they can.
type Doors struct {
	opts        Options
	connectors  *dexconnectors.Cache // where Dex finds them
	users       *limiter             // by typed name
	accounts    *limiter             // by what a directory found for the name
	networks    *limiter
	factors     *limiter
	workers     *workers
	directories *queues
	configured  []storage.Connector

	mu     sync.Mutex // of whoever changes now
	closed bool
	live   atomic.Pointer[doorSet]
}

// doorSet are the doors that are open. It is immutable.
type doorSet struct {
	byID    map[string]*Door
	ordered []*Door
}

// Open opens every connector that store lists, wraps it, and puts the wrapper where Dex finds it. It is called after
// server.NewServer, whose own way waits for each connector without a limit, and before anything is served. What is not open
// in time is tried again in the background until ctx ends; only a mistake that time does not mend is an error.
func Open(ctx context.Context, cache *dexconnectors.Cache, store storage.Storage, opts Options) (*Doors, error) {
	all, err := store.ListConnectors(ctx)
	if err != nil {
		return nil, fmt.Errorf("list connectors: %w", err)
	}
	d := newDoors(cache, opts)
	for _, c := range all { // a static connector, which comes first, hides a stored one
		if !slices.ContainsFunc(d.configured, func(k storage.Connector) bool { return k.ID == c.ID }) {
			d.configured = append(d.configured, c)
		}
	}
	if d.opts.Resolve == nil {
		d.opts.Resolve = resolver(dexconnectors.Resolver(store, opts.Log, server.ConnectorsConfig), opts.Now, opts.OwnLog) //nolint:contextcheck // a connector lives until it is closed
	}
	previous := d.opts.Previous
	d.opts.Previous = nil // or no generation would ever be forgotten
	d.live.Store(&doorSet{})
	var fresh []string // connectors that the start waits for
	first := make(chan struct{}, len(d.configured))
	for _, c := range d.configured {
		if o := previous.share(c); o != nil {
			err = d.add(c, o)
		} else if c.Type == dexconnectors.LocalConnector {
			err = d.openLocal(ctx, c, store)
		} else {
			tried := func() {}
			if !previous.tries(c) { // it was just tried
				fresh = append(fresh, c.ID)
				tried = func() { first <- struct{}{} }
			}
			go d.keepTrying(ctx, c, tried)
		}
		if err != nil {
			d.Close()
			return nil, err
		}
	}
	if err := d.wait(ctx, fresh, first); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// newDoors returns doors without connectors. What limits attempts outlives them: a new configuration is no way around it.
func newDoors(cache *dexconnectors.Cache, opts Options) *Doors {
	if opts.Match == nil {
		opts.Match = passwords.Match
	}
	if p := opts.Previous; p != nil {
		return &Doors{
			opts: opts, connectors: cache, users: p.users, accounts: p.accounts, networks: p.networks, factors: p.factors,
			workers: p.workers, directories: p.directories,
		}
	}
	return &Doors{
		opts:        opts,
		connectors:  cache,
		users:       newLimiter(opts.Limits.Window, opts.Limits.Entries, opts.Now),
		accounts:    newLimiter(opts.Limits.Window, opts.Limits.Entries, opts.Now),
		networks:    newLimiter(opts.Limits.Window, opts.Limits.Entries, opts.Now),
		factors:     newLimiter(opts.Limits.Window, opts.Limits.Entries, opts.Now),
		workers:     newWorkers(slotsFor(runtime.GOMAXPROCS(0))),
		directories: newQueues(),
	}
}

// wait waits until each of the connectors was tried once, at most for OpenTimeout.
func (d *Doors) wait(ctx context.Context, ids []string, tried <-chan struct{}) error {
	timeout := time.NewTimer(d.opts.OpenTimeout)
	defer timeout.Stop()
	for range ids {
		select {
		case <-tried:
		case <-timeout.C:
			for _, id := range ids {
				if _, open := d.Door(id); !open {
					d.opts.Log.WarnContext(ctx, "connector is not open yet; it is tried on", "connector", id)
				}
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (d *Doors) openLocal(ctx context.Context, c storage.Connector, store storage.Storage) error {
	inner, err := newLocal(ctx, store, d.workers, d.opts.Match)
	if err != nil {
		return err
	}
	return d.add(c, newHandle(inner))
}

// A handle is an open connector, which generations of doors share. The last of them closes it.
type handle struct {
	connector.Connector

	users atomic.Int64

	verifierOnce sync.Once // of the next two: see logouts
	verifier     *logoutVerifier
	verifierErr  error
}

func newHandle(c connector.Connector) *handle {
	o := &handle{Connector: c}
	o.users.Store(1)
	return o
}

// release closes the connector, if it can be closed, once nobody uses it.
func (o *handle) release(log *slog.Logger, id string) {
	if o.users.Add(-1) > 0 {
		return
	}
	c, ok := o.Connector.(io.Closer)
	if !ok {
		return
	}
	if err := c.Close(); err != nil {
		log.Warn("connector does not close", "connector", id, "error", err)
	}
}

// share returns the open connector that c describes, nil if there is none. The caller releases it.
func (d *Doors) share(c storage.Connector) *handle {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	door, ok := d.live.Load().byID[c.ID]
	if d.closed || !ok || door.stored.Type != c.Type || door.stored.ResourceVersion != c.ResourceVersion {
		return nil
	}
	door.handle.users.Add(1)
	return door.handle
}

// tries reports whether the connector that c describes could not be opened so far.
func (d *Doors) tries(c storage.Connector) bool {
	return d != nil && slices.ContainsFunc(d.configured, func(k storage.Connector) bool {
		return k.ID == c.ID && k.Type == c.Type && k.ResourceVersion == c.ResourceVersion
	})
}

// Close gives the connectors back: those that no other generation has are closed. No request may use the doors any
// more, and the context of Open has ended.
func (d *Doors) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	for _, door := range d.live.Load().ordered {
		door.handle.release(d.opts.Log, door.ID)
	}
}

// keepTrying opens one connector, again and again until it is open or ctx ends. first is called after the first try.
func (d *Doors) keepTrying(ctx context.Context, c storage.Connector, first func()) {
	said := ""
	for ; ; first = func() {} {
		inner, err := d.opts.Resolve(c)
		if err == nil {
			err = d.add(c, newHandle(inner))
		}
		switch {
		case err != nil && err.Error() != said:
			said = err.Error()
			d.opts.Log.ErrorContext(ctx, "connector cannot be opened: nobody can sign in with it for now", "connector", c.ID, "error", err)
		case err == nil && said != "":
			d.opts.Log.InfoContext(ctx, "connector is open again", "connector", c.ID)
		}
		first()
		if err == nil {
			return
		}
		retry := time.NewTimer(d.opts.RetryEvery)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return
		}
	}
}

// add makes an open connector known, wrapped. It takes over what the caller has of o.
func (d *Doors) add(c storage.Connector, o *handle) error {
	door, err := newDoor(d, c, o.Connector)
	if err != nil {
		o.release(d.opts.Log, c.ID)
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed { // while it was being opened
		o.release(d.opts.Log, c.ID)
		return nil
	}
	door.handle = o
	d.connectors.Set(c.ID, dexconnectors.Connector{
		Type: c.Type, ResourceVersion: c.ResourceVersion, Connector: door.wrapped(), GrantTypes: c.GrantTypes,
	})
	next := &doorSet{byID: maps.Clone(d.live.Load().byID)}
	if next.byID == nil {
		next.byID = map[string]*Door{}
	}
	next.byID[c.ID] = door
	for _, k := range d.configured {
		if open, ok := next.byID[k.ID]; ok {
			next.ordered = append(next.ordered, open)
		}
	}
	d.live.Store(next)
	return nil
}

// All returns the doors that are open, in the order of the configuration.
func (d *Doors) All() []*Door { return d.live.Load().ordered }

// Door returns the door of a connector id, if it is open.
func (d *Doors) Door(id string) (*Door, bool) {
	door, ok := d.live.Load().byID[id]
	return door, ok
}

// A Door is one connector as users meet it.
type Door struct {
	ID, Name   string
	Type       string // Dex's connector type, such as "ldap"
	Kind       Kind
	GrantTypes []string // allowed grant types; empty: all

	doors  *Doors
	inner  connector.Connector
	handle *handle           // of inner
	stored storage.Connector // what it was opened from
	nobody atomic.Pointer[Account]
	pace   pace
}

func newDoor(d *Doors, c storage.Connector, inner connector.Connector) (*Door, error) {
	door := &Door{ID: c.ID, Name: c.Name, Type: c.Type, GrantTypes: c.GrantTypes, doors: d, inner: inner, stored: c}
	switch inner.(type) {
	case connector.CallbackConnector:
		door.Kind = Redirect
	case finder, connector.PasswordConnector:
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
	if p, ok := d.inner.(interface{ Prompt() string }); ok {
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

// clean trims the user name. It reports whether the name and the password can be anybody's.
func (l *Login) clean() bool {
	if len(l.User) > maxLogin || strings.ContainsRune(l.User, 0) || !possiblePassword(l.Password) {
		return false
	}
	l.User = strings.TrimSpace(l.User)
	return l.User != "" && !strings.ContainsFunc(l.User, unicode.IsControl)
}

// possiblePassword refuses what is no password. An empty one is an unauthenticated bind to a directory, which succeeds (RFC 4513
// section 5.1.2).
func possiblePassword(p string) bool {
	return p != "" && len(p) <= maxPassword && !strings.ContainsRune(p, 0)
}

// CheckPassword proves a user by password. Every error is a *connectors.Refusal.
func (d *Door) CheckPassword(ctx context.Context, in Login) (Proven, error) {
	if !in.clean() {
		return Proven{}, &connectors.Refusal{Reason: connectors.WrongCredentials}
	}
	evidence := d.began()
	var id connector.Identity
	var err error
	switch inner := d.inner.(type) {
	case finder:
		err = d.counted(ctx, inner, in, func(ctx context.Context, a Account) error {
			known, err := inner.Authenticate(ctx, a, in.Password)
			id, evidence.Set = dexIdentity(known), known.PasswordSet
			return err
		})
	case connector.PasswordConnector:
		id, err = d.login(ctx, inner, in)
	default:
		err = &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a password connector")}
	}
	if err != nil {
		return Proven{}, err
	}
	if err := d.allowed(ctx, id); err != nil {
		return Proven{}, err
	}
	id, err = d.keepGrant(ctx, id)
	return Proven{id, evidence}, err
}

// login proves a user at a connector of Dex's kind.
func (d *Door) login(ctx context.Context, pc connector.PasswordConnector, in Login) (connector.Identity, error) {
	done, err := d.doors.begin(ctx, d.ID, in, d.doors.opts.Limits.quota())
	if err != nil {
		return connector.Identity{}, err
	}
	failed := false
	defer func() { done(failed) }() // should the connector panic, too
	in.Scopes.OfflineAccess = in.Scopes.OfflineAccess || d.upstream() != nil
	in.Scopes.Groups = true // the identity is shared by all clients of the user: never without groups
	id, valid, err := pc.Login(withNetwork(ctx, in.Network), in.Scopes, in.User, in.Password)
	failed = err == nil && !valid
	switch {
	case err != nil:
		return connector.Identity{}, refusal(err)
	case !valid:
		return connector.Identity{}, &connectors.Refusal{Reason: connectors.WrongCredentials}
	}
	return id, nil
}

// begin takes the user name's and the network's leave to try.
func (d *Doors) begin(ctx context.Context, connectorID string, in Login, perUser quota) (done func(failed bool), err error) {
	userDone, err := d.users.beginWithin(ctx, connectorID+"\x00"+sameName(in.User), perUser.failures, perUser.within)
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

// sameName folds the spellings of a user name that a directory may take for one (RFC 4518 section 2): what it maps to nothing, case,
// widths and compatibility forms, and runs of spaces. First of all lower case, as the store has it: folding knows another small İ.
func sameName(user string) string {
	user = strings.Map(func(r rune) rune {
		if r == 0x034F || r == 0x1806 || r == 0xFFFC || unicode.In(r, unicode.Cf, unicode.Variation_Selector) {
			return -1 // what section 2.2 lists, and what Unicode has added to these classes since
		}
		return r
	}, strings.ToLower(user))
	return strings.Join(strings.Fields(cases.Fold().String(norm.NFKC.String(user))), " ")
}

// BeginFactor takes a user's leave to try a second factor. done must be called with the outcome.
func (d *Doors) BeginFactor(ctx context.Context, connectorID, userID string) (done func(failed bool), err error) {
	return d.factors.begin(ctx, connectorID+"\x00"+userID, d.opts.Limits.PerUser)
}

// StartSAML returns the identity provider's URL and the AuthnRequest of that id, encoded for its form.
func (d *Door) StartSAML(s connector.Scopes, requestID string) (target, request string, err error) {
	sc, ok := d.inner.(connector.SAMLConnector)
	if !ok {
		return "", "", &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a SAML connector")}
	}
	s.Groups = true
	if target, request, err = sc.POSTData(s, requestID); err != nil {
		return "", "", &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	}
	return target, request, nil
}

// FinishSAML proves a user by a SAML response to the request of that id, and returns when the provider's session ends, the zero time if it does not
// say. Every error is a *connectors.Refusal.
func (d *Door) FinishSAML(ctx context.Context, s connector.Scopes, response, requestID string) (id connector.Identity, end time.Time, err error) {
	sc, ok := d.inner.(connector.SAMLConnector)
	if !ok {
		return id, end, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a SAML connector")}
	}
	s.Groups = true
	if id, err = sc.HandlePOST(s, response, requestID); err != nil {
		return connector.Identity{}, end, refusal(err)
	}
	id.ConnectorData = nil // the identity once more, for a Refresh that would only repeat it
	end, err = sessionEnd(response)
	if err == nil && !end.IsZero() && !d.doors.opts.Now().Before(end) {
		err = fmt.Errorf("identity: the provider's session ended at %s", end.Format(time.RFC3339))
	}
	if err != nil {
		return connector.Identity{}, end, &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	}
	return id, end, d.allowed(ctx, id)
}

// StartRedirect returns the upstream's URL with state in it, and data that FinishRedirect needs back.
func (d *Door) StartRedirect(s connector.Scopes, callbackURL, state string) (target string, data []byte, err error) {
	cc, ok := d.inner.(connector.CallbackConnector)
	if !ok {
		return "", nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a redirect connector")}
	}
	s.Groups = true
	silent := false
	if d.upstream() != nil && !s.OfflineAccess {
		s.OfflineAccess, silent = true, !d.prompts()
	}
	target, data, err = cc.LoginURL(s, callbackURL, state)
	if err == nil && silent {
		target, err = withoutPrompt(target)
	}
	if err != nil {
		return "", nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	}
	return target, data, nil
}

// prompts reports whether the connector's configuration says how the upstream is to prompt.
func (d *Door) prompts() bool {
	var c struct {
		PromptType *string `json:"promptType"`
	}
	return json.Unmarshal(d.stored.Config, &c) == nil && c.PromptType != nil
}

// withoutPrompt takes away the prompt=consent that comes with offline access: users would see a page at each sign-in, for what nobody asked of them.
func withoutPrompt(target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("identity: the upstream's URL: %w", err)
	}
	q := u.Query()
	q.Del("prompt")
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// FinishRedirect proves a user by the upstream's answer r. Every error is a *connectors.Refusal.
func (d *Door) FinishRedirect(s connector.Scopes, data []byte, r *http.Request) (connector.Identity, error) {
	cc, ok := d.inner.(connector.CallbackConnector)
	if !ok {
		return connector.Identity{}, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("not a redirect connector")}
	}
	s.Groups = true
	s.OfflineAccess = s.OfflineAccess || d.upstream() != nil
	id, err := cc.HandleCallback(s, data, r)
	if err != nil {
		return connector.Identity{}, upstreamRefusal(err, r.URL.Query())
	}
	if err := d.allowed(r.Context(), id); err != nil {
		return connector.Identity{}, err
	}
	return d.keepGrant(r.Context(), id)
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
	evidence  Evidence
	used      atomic.Bool
}

type proofKey struct{}

// WithProof returns a context that lets Dex accept id as proven by connector connectorID.
func WithProof(ctx context.Context, connectorID string, id Proven) (context.Context, *Proof) {
	p := &Proof{connector: connectorID, identity: id.Identity, evidence: id.Evidence}
	return context.WithValue(ctx, proofKey{}, p), p
}

// Used reports whether Dex took the identity.
func (p *Proof) Used() bool { return p.used.Load() }

// Proves reports whether ctx is of a request that brings a proof: somebody has just shown a credential.
func Proves(ctx context.Context) bool {
	_, ok := ctx.Value(proofKey{}).(*Proof)
	return ok
}
