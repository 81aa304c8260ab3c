package identity

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// Dex's connectors say who a user is now if they are given back what they gave at a sign-in, such as a refresh token (connector.RefreshConnector).
// Many providers give another one each time, and sign the user out if the former is used again: so of all processes one asks at a time, by a claim in
// the record that holds the token, and the others take what it was told. See store.Grants.

// How upstreams are asked.
const (
	// askTimeout is how long one question may take. Stock connectors have no limit of their own.
	askTimeout = 6 * time.Second
	// claimFor is how long a claim is respected once it was seen. It is measured here, not by the claimant's clock, and is longer than
	// askTimeout and the write that follows: whoever holds it longer has died, or was stopped and does not ask any more.
	claimFor = 8 * time.Second
	// waitClaim is how long another's answer is waited for: less than a request waits, which then gets what was said last.
	waitClaim    = 700 * time.Millisecond
	pollClaim    = 100 * time.Millisecond // how often it is looked for meanwhile
	writeTimeout = 1500 * time.Millisecond
	keepWriting  = 5 * time.Minute // how long an answer that could not be stored is tried to be
	maxGrants    = 8               // per user: sign-ins, the newest
	wideFailures = 3               // in a row of one connector, about more than one user, from which on the connector is down and not a user odd
	youngGrant   = time.Minute     // of a sign-in whose session may not be stored yet
)

// UpstreamPace is how a Live asks upstreams: each question is about one user, and goes out at once.
func UpstreamPace(every time.Duration) Pace { return Pace{Every: every, Batch: 1, Lookups: 16} }

// A GrantStore keeps what upstreams give.
type GrantStore interface {
	UpdateGrants(ctx context.Context, userID, connectorID string, updater func(store.Grants) (store.Grants, error)) error
	DropGrants(ctx context.Context, userID, connectorID string, before, now time.Time) error
}

// UpstreamOptions are what an Upstream is made of. All are needed.
type UpstreamOptions struct {
	Store GrantStore
	Now   func() time.Time
	Log   *slog.Logger
	Every func(connector string) time.Duration // how old an answer gets before another is asked for
	Life  func() time.Duration                 // how long grants are kept that nobody uses
}

// An Upstream asks the connectors of Dex who their users are now. It outlives configurations.
type Upstream struct {
	UpstreamOptions

	mu       sync.Mutex
	busy     map[userKey]chan struct{} // questions of this process, until their answers are stored: then the channel is closed
	claims   map[userKey]sighting      // of other processes
	failures map[string]streak         // by connector
	told     map[string]bool           // connectors that are known to give nothing to ask with
}

// A streak are failures in a row.
type streak struct {
	n       int
	last    string // user
	several bool   // users
}

// A sighting is a claim and since when it has been seen.
type sighting struct {
	claim string
	since time.Time // by this process's monotonic clock
}

// NewUpstream returns an Upstream.
func NewUpstream(o UpstreamOptions) *Upstream {
	return &Upstream{UpstreamOptions: o, busy: map[userKey]chan struct{}{}, claims: map[userKey]sighting{}, failures: map[string]streak{}, told: map[string]bool{}}
}

// Wait waits until nothing is being asked and all answers are stored, or until ctx ends. A process that ends before would lose a token that was
// just rotated.
func (u *Upstream) Wait(ctx context.Context) {
	for u.asking() > 0 && sleep(ctx, 10*time.Millisecond) {
	}
}

func (u *Upstream) asking() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.busy)
}

// Forget drops what was given to ask about a user with, once the user has no sessions and no tokens any more.
func (u *Upstream) Forget(ctx context.Context, connectorID, userID string) error {
	now := u.Now()
	return u.Store.DropGrants(ctx, userID, connectorID, now.Add(-youngGrant), now)
}

// typeSAML is Dex's type of connector that repeats what it was told at the sign-in. Nobody can be asked.
const typeSAML = "saml"

// AsksUpstream reports whether users of a connector of that type may be asked about by what was given at their sign-ins.
func AsksUpstream(kind string) bool {
	return kind != typeLDAP && kind != dexconnectors.LocalConnector && kind != typeSAML
}

// upstream returns who asks about the users of the door by what they were given, nil if they are asked in another way or not at all.
func (d *Door) upstream() *upstreamAsker {
	if d.doors.opts.Upstream == nil || !AsksUpstream(d.Type) {
		return nil
	}
	r, ok := d.inner.(connector.RefreshConnector)
	if !ok {
		return nil
	}
	return &upstreamAsker{up: d.doors.opts.Upstream, door: d.ID, kind: d.Type, config: d.stored.ResourceVersion, refresher: r}
}

// keepGrant takes from an identity what the next questions about its user need: Dex, which would keep it in the clear and twice, does not get it.
func (d *Door) keepGrant(ctx context.Context, id connector.Identity) (connector.Identity, error) {
	a := d.upstream()
	if a == nil {
		return id, nil
	}
	data := id.ConnectorData
	id.ConnectorData = nil
	if err := a.keep(ctx, id, data); err != nil {
		return id, &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
	}
	return id, nil
}

// errNotKept ends an update of grants that would change nothing.
var errNotKept = errors.New("identity: nothing to keep")

// keep stores what a sign-in has brought. A sign-in is an answer, too: the newest.
func (a *upstreamAsker) keep(ctx context.Context, id connector.Identity, data []byte) error {
	usable := a.kind == typeKeystone || hasToken(data)
	if !usable {
		a.up.tellOnce(ctx, a.door)
	}
	now := a.up.Now()
	err := a.up.Store.UpdateGrants(ctx, id.UserID, a.door, func(g store.Grants) (store.Grants, error) {
		if !usable && g.Expiry.IsZero() {
			return g, errNotKept
		}
		if usable {
			g.List = append([]store.Grant{{ID: rand.Text(), Data: data, Since: now}}, g.List...)
			g.List = g.List[:min(len(g.List), maxGrants)]
		}
		a.said(&g, claimsFrom(id), now)
		return g, nil
	})
	if err != nil && !errors.Is(err, errNotKept) {
		return fmt.Errorf("identity: keep what the upstream gave: %w", err)
	}
	return nil
}

// said notes a good answer.
func (a *upstreamAsker) said(g *store.Grants, claims storage.Claims, asked time.Time) {
	g.Said, g.Asked, g.Refused, g.Config = claims, asked, "", a.config
	g.Expiry = a.up.Now().Add(a.up.Life())
}

// tellOnce says that users of a connector cannot be asked about.
func (u *Upstream) tellOnce(ctx context.Context, door string) {
	u.mu.Lock()
	told := u.told[door]
	u.told[door] = true
	u.mu.Unlock()
	if !told {
		u.Log.WarnContext(ctx, "the connector's identity provider gave no refresh token: its users cannot be asked about between two sign-ins; "+
			"many providers want the scope offline_access in the connector's scopes, some also promptType: consent", "connector", door)
	}
}

// typeKeystone is Dex's type of connector that asks with its own credentials.
const typeKeystone = "keystone"

// hasToken reports whether connector data has anything to ask with: a token that is not empty, where it has places for tokens.
func hasToken(data []byte) bool {
	var fields map[string]any
	if json.Unmarshal(data, &fields) != nil {
		return len(data) > 0
	}
	places := false
	for name, v := range fields {
		if name := strings.ToLower(name); strings.HasSuffix(name, "token") {
			places = true
			if text, ok := v.(string); ok && text != "" {
				return true
			}
		}
	}
	return !places && len(fields) > 0
}

// An upstreamAsker asks about the users of one door.
type upstreamAsker struct {
	up         *Upstream
	door, kind string
	config     string                     // names the door's configuration
	refresher  connector.RefreshConnector // nil: it is not open yet
}

// Lookup implements Asker.
func (a *upstreamAsker) Lookup(ctx context.Context, userIDs []string) ([]connectors.Answer, error) {
	answers := make([]connectors.Answer, len(userIDs))
	for i, id := range userIDs {
		var err error
		if answers[i], err = a.one(ctx, id); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// refreshed is Lookup for Dex: whatever it has kept to ask with, there is one record of that.
func (a *upstreamAsker) refreshed(ctx context.Context, id connector.Identity) (connector.Identity, error) {
	id.ConnectorData = nil
	answer, err := a.one(ctx, id.UserID)
	switch {
	case err != nil:
		return id, err
	case answer.Err == nil:
		return dexIdentity(answer.Identity), nil
	case answer.Err.Reason == connectors.Unaskable:
		return id, nil
	}
	return id, answer.Err
}

// one asks about one user, or waits for the answer that somebody else gets. An error is of the connector.
func (a *upstreamAsker) one(ctx context.Context, userID string) (connectors.Answer, error) {
	k := userKey{a.door, userID}
	for began := time.Now(); ; {
		before := a.up.begin(k)
		if before == nil {
			known, mine, err := a.claim(ctx, k)
			switch {
			case err != nil:
				return connectors.Answer{}, err
			case known != nil:
				return *known, nil
			case mine != nil:
				return a.ask(ctx, k, *mine)
			}
		}
		if time.Since(began) >= waitClaim || !sleepUntil(ctx, before, pollClaim) {
			return unknown(errClaimed), nil
		}
	}
}

// sleepUntil waits for a channel, but no longer than d, and reports whether ctx has not ended meanwhile.
func sleepUntil(ctx context.Context, until <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-until:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

func unknown(err error) connectors.Answer {
	return connectors.Answer{Err: &connectors.Refusal{Reason: connectors.Unavailable, Err: err}}
}

// What the record says instead of a claim.
var (
	errAnswered = errors.New("identity: the record has the answer")
	errClaimed  = errors.New("identity: somebody else asks")
)

// A claimed record is one with a claim of this process, and since when it has it.
type claimed struct {
	store.Grants

	since time.Time // by the monotonic clock
}

// claim returns what is known of a user already, or the record with a claim of this process, or neither while somebody else asks. The question has begun,
// and ends here unless it is claimed.
func (a *upstreamAsker) claim(ctx context.Context, k userKey) (known *connectors.Answer, mine *claimed, err error) {
	err = a.up.Store.UpdateGrants(ctx, k.id, a.door, func(g store.Grants) (store.Grants, error) {
		mine = nil // of a try that was overtaken
		if known = a.known(g); known != nil {
			return g, errAnswered
		}
		if a.refresher == nil {
			return g, errNotOpen
		}
		if g.Claim != "" && !a.up.abandoned(k, g.Claim) {
			return g, errClaimed
		}
		g.Claim = rand.Text()
		mine = &claimed{g, time.Now()}
		return g, nil
	})
	if err != nil {
		mine = nil
		a.up.end(k)
	}
	switch {
	case errors.Is(err, errAnswered), errors.Is(err, errClaimed):
		return known, nil, nil
	case errors.Is(err, errNotOpen):
		return nil, nil, err
	case err != nil:
		return nil, nil, fmt.Errorf("identity: claim the question: %w", err)
	}
	return nil, mine, nil
}

// known is the answer that a record has, nil if somebody has to ask.
func (a *upstreamAsker) known(g store.Grants) *connectors.Answer {
	now := a.up.Now()
	asked := g.Asked
	if asked.After(now) {
		asked = now
	}
	if len(g.List) == 0 {
		if g.Refused == "" {
			return &connectors.Answer{Err: &connectors.Refusal{Reason: connectors.Unaskable}}
		}
		return &connectors.Answer{Err: &connectors.Refusal{Reason: connectors.Reason(g.Refused)}, At: asked}
	}
	age := now.Sub(g.Asked)
	if age >= a.up.Every(a.door) || age < -clockSkew || g.Config != a.config {
		return nil
	}
	return &connectors.Answer{Identity: identityFrom(g.Said), At: asked}
}

// begin takes up a question of this process, and returns nil; or what is closed when the one before it ends. end gives it back.
func (u *Upstream) begin(k userKey) (before <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if ended := u.busy[k]; ended != nil {
		return ended
	}
	u.busy[k] = make(chan struct{})
	return nil
}

func (u *Upstream) end(k userKey) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if ended := u.busy[k]; ended != nil {
		close(ended)
	}
	delete(u.busy, k)
}

// maxSightings is how many claims of others are remembered.
const maxSightings = 10_000

// abandoned reports whether a claim has been there for so long that its process must have died.
func (u *Upstream) abandoned(k userKey, claim string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen, ok := u.claims[k]
	if ok && seen.claim == claim {
		return time.Since(seen.since) >= claimFor
	}
	if len(u.claims) >= maxSightings {
		clear(u.claims) // whoever died is waited for once more
	}
	u.claims[k] = sighting{claim, time.Now()}
	return false
}

// ask puts the question that was claimed. It goes on when ctx has ended: what comes back may be a token that is the only good one.
func (a *upstreamAsker) ask(ctx context.Context, k userKey, g claimed) (connectors.Answer, error) {
	result := make(chan answeredOne, 1)
	go func() {
		defer a.up.end(k)
		a.work(context.WithoutCancel(ctx), k, g, result)
	}()
	select {
	case r := <-result:
		return r.answer, r.err
	case <-ctx.Done():
		return unknown(ctx.Err()), nil
	}
}

type answeredOne struct {
	answer connectors.Answer
	err    error
}

// work asks, stores what was said, and goes on trying to store it after it has told the result.
func (a *upstreamAsker) work(ctx context.Context, k userKey, g claimed, result chan<- answeredOne) {
	asked, v := a.up.Now(), verdict{err: errStopped}
	if time.Since(g.since) < claimFor-askTimeout { // else others may ask already, with the same token
		v = a.try(ctx, k, g.Grants)
	}
	last, err := a.commit(ctx, k, g.Grants, v, asked)
	result <- a.conclude(ctx, k, v, last, asked)
	for since := time.Now(); err != nil && time.Since(since) < keepWriting; {
		a.up.Log.ErrorContext(ctx, "what an identity provider said cannot be stored: it is tried on", "connector", k.connector, "user_id", k.id, "error", err)
		sleep(ctx, time.Second)
		_, err = a.commit(ctx, k, g.Grants, v, asked)
	}
	a.up.mu.Lock()
	delete(a.up.claims, k)
	a.up.mu.Unlock()
}

// A verdict is what came of a question.
type verdict struct {
	rotated map[string][]byte   // what to ask with next, by grant
	spent   map[string]bool     // grants that are good for nothing any more
	said    *connector.Identity // who the user is
	refused connectors.Reason   // why the user may not go on, as far as the grants tell
	final   bool                // and that is about the user, not about a grant
	err     error               // why it is not known
}

// try asks with one grant after the other, until one is good.
func (a *upstreamAsker) try(ctx context.Context, k userKey, g store.Grants) verdict {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	v := verdict{rotated: map[string][]byte{}, spent: map[string]bool{}}
	for _, grant := range g.List {
		id := dexClaims(g.Said)
		id.ConnectorData = grant.Data
		now, err := a.refresh(ctx, id)
		if len(now.ConnectorData) > 0 && !bytes.Equal(now.ConnectorData, grant.Data) { // some connectors rotate and fail then
			v.rotated[grant.ID] = now.ConnectorData
		}
		if err == nil && now.UserID != k.id {
			err = errOtherUser
		}
		if err == nil {
			v.said = &now
			return v
		}
		switch reason, about := judge(err); about {
		case aboutNobody:
			v.err = err
			return v
		case aboutUser:
			v.refused, v.final = reason, true
			return v
		case aboutGrant:
			v.spent[grant.ID] = true
			if reason != "" {
				v.refused = reason
			}
		}
	}
	return v
}

// refresh asks the connector, which must not be able to stop the process.
func (a *upstreamAsker) refresh(ctx context.Context, id connector.Identity) (_ connector.Identity, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.up.Log.ErrorContext(ctx, "panic in a connector's Refresh", "connector", a.door, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return a.refresher.Refresh(ctx, connector.Scopes{OfflineAccess: true, Groups: true}, id)
}

// commit stores what came of a question, and returns what the record says then. A sign-in meanwhile knows better.
func (a *upstreamAsker) commit(ctx context.Context, k userKey, g store.Grants, v verdict, asked time.Time) (last store.Grants, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err = a.up.Store.UpdateGrants(ctx, k.id, a.door, func(now store.Grants) (store.Grants, error) {
		if len(now.List) == 0 { // they were dropped meanwhile
			last = now
			return now, errNotKept
		}
		if now.Claim == g.Claim {
			now.Claim = ""
		}
		now.List = v.apply(now.List, g.List)
		switch {
		case now.Asked.After(asked) && !now.Asked.After(a.up.Now().Add(clockSkew)): // what is of the future is of a clock that was ahead
		case v.said != nil:
			a.said(&now, claimsFrom(*v.said), asked)
		case v.refused != "" && len(now.List) == 0:
			now.Refused, now.Asked, now.Config = string(v.refused), asked, a.config
		}
		last = now
		return now, nil
	})
	if errors.Is(err, errNotKept) {
		err = nil
	}
	return last, err
}

// apply returns the grants that are there now without those that are spent, and with the tokens that were given in place of those that were used.
func (v verdict) apply(now, used []store.Grant) (kept []store.Grant) {
	before := map[string][]byte{}
	for _, grant := range used {
		before[grant.ID] = grant.Data
	}
	for _, grant := range now {
		data, asked := before[grant.ID]
		same := bytes.Equal(grant.Data, data) // else another process was given what it holds now
		if v.spent[grant.ID] && same || v.final && asked {
			continue
		}
		if token := v.rotated[grant.ID]; token != nil && same {
			grant.Data = token
		}
		kept = append(kept, grant)
	}
	return kept
}

// conclude turns a verdict into an answer. Where a whole connector fails it is an error.
func (a *upstreamAsker) conclude(ctx context.Context, k userKey, v verdict, last store.Grants, asked time.Time) answeredOne {
	if v.err != nil {
		if a.up.failed(k) {
			return answeredOne{err: brief(v.err)}
		}
		a.up.Log.WarnContext(ctx, "an identity provider does not say who a user is now", "connector", k.connector, "user_id", k.id, "error", brief(v.err))
		return answeredOne{answer: unknown(v.err)}
	}
	a.up.mu.Lock()
	delete(a.up.failures, k.connector)
	a.up.mu.Unlock()
	switch {
	case v.said != nil:
		return answeredOne{answer: connectors.Answer{Identity: identityFrom(claimsFrom(*v.said)), At: asked}}
	case v.refused == "": // what was given is good for nothing any more, which is nobody's fault
		a.up.tellOnce(ctx, k.connector)
		return answeredOne{answer: connectors.Answer{Err: &connectors.Refusal{Reason: connectors.Unaskable}}}
	case len(last.List) > 0: // there is a later sign-in
		return answeredOne{answer: unknown(errNewGrant)}
	}
	return answeredOne{answer: connectors.Answer{Err: &connectors.Refusal{Reason: v.refused}, At: asked}}
}

var (
	errOtherUser = errors.New("identity: the upstream's answer is about another user")
	errStopped   = errors.New("identity: this process was stopped, or its storage is slow: others may ask by now")
	errNewGrant  = errors.New("identity: the user has signed in meanwhile")
)

// failed counts a failure, and reports whether the connector must be down. An odd user alone would keep others waiting.
func (u *Upstream) failed(k userKey) (down bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.failures[k.connector]
	s = streak{s.n + 1, k.id, s.several || s.n > 0 && s.last != k.id}
	u.failures[k.connector] = s
	return s.n >= wideFailures && s.several
}

// brief is an error as far as it is fit for the log: connectors put whole answers into theirs.
func brief(err error) error {
	const most = 300
	text, _, cut := strings.Cut(err.Error(), "\n")
	if len(text) > most {
		text, cut = text[:most], true
	}
	if !cut {
		return err
	}
	return errors.New(strings.ToValidUTF8(text, "?") + "…")
}

func claimsFrom(id connector.Identity) storage.Claims {
	return storage.Claims{
		UserID: id.UserID, Username: id.Username, PreferredUsername: id.PreferredUsername, Email: id.Email, EmailVerified: id.EmailVerified, Groups: id.Groups,
	}
}

func dexClaims(c storage.Claims) connector.Identity {
	return connector.Identity{
		UserID: c.UserID, Username: c.Username, PreferredUsername: c.PreferredUsername, Email: c.Email, EmailVerified: c.EmailVerified, Groups: c.Groups,
	}
}

func identityFrom(c storage.Claims) connectors.Identity {
	return connectors.Identity{
		UserID: c.UserID, Name: c.Username, PreferredUsername: c.PreferredUsername, Email: c.Email, EmailVerified: c.EmailVerified, Groups: c.Groups,
	}
}
