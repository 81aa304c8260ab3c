package authz

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
)

// An AppToken says how an app gets a signed token that tells who the user is.
type AppToken struct {
	Header   string        // its name, in any case; in Authorization the token is a bearer token
	Audience string        // the claim aud; HostVariable in it stands for the name of the request's host
	TTL      time.Duration // how long a token is good
}

// HostVariable is what the name of the host takes the place of.
const HostVariable = "{host}"

// TokenClaims are what a token for an app says. Texts are valid UTF-8.
type TokenClaims struct {
	Connector, UserID              string // who it is
	Email, Name, PreferredUsername string // "" for none
	Groups                         []string
	Audience                       string
	IssuedAt, Expiry               time.Time // in whole seconds; it ends with the session at the latest
}

// A Signer signs tokens for apps with the issuer's key. It is safe for concurrent use, and it does not wait for anybody.
type Signer interface {
	SignAppToken(claims *TokenClaims) (string, error)
}

// Limits of what a token for an app carries, in bytes. One with all its groups is below half of what Envoy takes for all headers of
// a request.
const (
	maxTokenGroups = 16 << 10
	maxTokenText   = 1 << 10
)

// How long a token is given away, in parts of its life: it is renewed behind the back of the checks from one half on, and an app always gets
// one that is good for another quarter.
const (
	renewAfter = 2 // life/2
	lastAfter  = 4 // life - life/4
)

// clockSlack is how far in the future a token may have been made: the clock may be set back, and apps allow a minute.
const clockSlack = 30 * time.Second

// maxSignatures is how many tokens are signed for a session at once, and in each half of a token's life: for so many hosts that somebody
// works with. Who asks for ever more hosts of a wildcard costs no more than that.
const maxSignatures = 100

// renewals bounds how many tokens are signed in the background at once: a signature takes about 1 ms of a processor (RS256).
const renewals = 2

// A tokenPlan is AppToken made ready. It is comparable: tokens outlive a generation whose successor has the same plan.
type tokenPlan struct {
	header   string // lower case
	scheme   string // "Bearer " or ""
	audience string
	perHost  bool
	ttl      time.Duration
	groups   int // bytes of groups in a token
}

func newTokenPlan(t *AppToken, maxHeader int) *tokenPlan {
	if t == nil {
		return nil
	}
	p := &tokenPlan{
		header: strings.ToLower(t.Header), audience: t.Audience, perHost: strings.Contains(t.Audience, HostVariable), ttl: t.TTL,
		groups: min(maxTokenGroups, maxHeader),
	}
	if p.header == authorization {
		p.scheme = "Bearer "
	}
	return p
}

// validateToken returns the mistakes of a token's settings.
func validateToken(t *AppToken, signer Signer, list []IdentityHeader) (errs []error) {
	if t == nil {
		return nil
	}
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: token: "+format, append([]any{ErrConfig}, args...)...))
	}
	name := strings.ToLower(t.Header)
	switch {
	case !httpguts.ValidHeaderFieldName(t.Header):
		bad("%q is not a header name", t.Header)
	case name != authorization && reservedHeader(name):
		bad("header %q has a meaning of its own in HTTP: choose another name", t.Header)
	case slices.ContainsFunc(list, func(h IdentityHeader) bool { return fold(h.Name) == fold(name) }):
		bad("header %q is an identity header, too: choose another name", t.Header)
	}
	if t.Audience == "" || !utf8.ValidString(t.Audience) {
		bad("audience %q: want a name", t.Audience)
	}
	if t.TTL < 4*time.Second {
		bad("ttl %s: want seconds at least", t.TTL)
	}
	if signer == nil {
		bad("nobody signs it: want a Signer")
	}
	return errs
}

// How the tokens of sessions are remembered of which each host has its own: there may be many, so they are in a cache of their own.
const (
	maxHostTokens = 128 << 20 // bytes
	hostSlots     = 128 << 10
)

// A hostKey is that of a token for one host.
type hostKey struct {
	tokens uint64 // number of the appTokens
	host   string
}

// A tokenStore is what the tokens of all generations share.
type tokenStore struct {
	numbers atomic.Uint64                        // how many appTokens there were
	epoch   atomic.Uint64                        // of the signer's keys: what was signed in another one is not given away
	hosts   func() *cache[hostKey, *signedToken] // made when it is first asked for
}

func newTokenStore() *tokenStore {
	return &tokenStore{hosts: sync.OnceValue(func() *cache[hostKey, *signedToken] { return newCache[hostKey, *signedToken](hostSlots, maxHostTokens) })}
}

// appTokens are the tokens of one session.
type appTokens struct {
	plan     tokenPlan
	identity *policy.Identity
	weight   int // bytes of one token, about
	budget   *budget

	number uint64                        // of these, or of others that are the same
	hosts  *cache[hostKey, *signedToken] // where they are; nil: in one
	one    atomic.Pointer[signedToken]

	mu       sync.Mutex // of whoever signs
	renewing atomic.Bool
}

// A signedToken is immutable.
type signedToken struct {
	option []byte    // a part of an OkHttpResponse: sets the header
	from   time.Time // before it is not given away
	renew  time.Time
	last   time.Time // from then on it is not given away
	epoch  uint64    // of tokenStore when it was signed
}

// find returns the token of a host, or nil.
func (t *appTokens) find(host string) *signedToken {
	if t.hosts == nil {
		return t.one.Load()
	}
	s, _, _ := t.hosts.find(hostKey{t.number, host})
	return s
}

// entryFrame is about what a token in a cache takes besides its bytes.
const entryFrame = 256

// put keeps a token in place of the host's former one.
func (t *appTokens) put(host string, s *signedToken) {
	if t.hosts == nil {
		t.one.Store(s)
		return
	}
	key := hostKey{t.number, strings.Clone(host)} // it is a part of the request
	_, slot, _ := t.hosts.find(key)
	t.hosts.put(slot, key, s, int64(entryFrame+len(host)+len(s.option)))
}

// A budget is what a session may have signed: maxSignatures at once, which come back evenly (the generic cell rate algorithm). The sessions that
// follow one another under one id share it.
type budget struct {
	mu   sync.Mutex
	full time.Time // when all will have come back
}

// errTokenBudget means that a session had its share of signatures.
var errTokenBudget = fmt.Errorf("the session had %d tokens signed lately", maxSignatures)

// take takes one signature of those that come back within a time.
func (b *budget) take(now time.Time, within time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := b.full
	if full.Before(now) || full.After(now.Add(within+clockSlack)) { // the latter: the clock was set back, and not that somebody waited with an earlier now
		full = now
	}
	full = full.Add(within / maxSignatures)
	if full.After(now.Add(within)) {
		return false
	}
	b.full = full
	return true
}

// token returns the part of an answer that sets the token's header. It signs where there is none yet; one that gets old is
// renewed in the background meanwhile.
func (c *check) token() ([]byte, error) {
	t := c.who.tokens
	host := ""
	if t.plan.perHost {
		host = c.req.Host
	}
	s := t.find(host)
	switch {
	case s == nil || !c.now.Before(s.last) || c.now.Before(s.from) || s.epoch != c.server.tokens.epoch.Load():
		return t.sign(c.server, host, c.now)
	case !c.now.Before(s.renew):
		c.server.renewSoon(t, host)
	}
	return s.option, nil
}

// sign makes a token, unless another check has made one meanwhile.
func (t *appTokens) sign(srv *Server, host string, now time.Time) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	epoch := srv.tokens.epoch.Load() // before the signature: a key that is withdrawn meanwhile is one of a former epoch
	if s := t.find(host); s != nil && now.Before(s.renew) && !now.Before(s.from) && s.epoch == epoch {
		return s.option, nil
	}
	if !t.budget.take(now, t.plan.ttl/renewAfter) {
		srv.metrics.tokensRefused.Inc()
		return nil, errTokenBudget
	}
	claims := t.claims(host, now, &srv.metrics.drops)
	raw, err := srv.Signer.SignAppToken(claims)
	if err == nil && (raw == "" || !utf8.ValidString(raw) || !httpguts.ValidHeaderFieldValue(raw)) {
		err = fmt.Errorf("the signer made %d bytes that are no token", len(raw))
	}
	if err != nil {
		srv.metrics.tokensFailed.Inc()
		return nil, fmt.Errorf("token for %q: %w", claims.Audience, err)
	}
	srv.metrics.tokensSigned.Inc()
	value := t.plan.scheme + raw
	s := &signedToken{
		from:   claims.IssuedAt.Add(-clockSlack),
		renew:  claims.IssuedAt.Add(t.plan.ttl / renewAfter),
		last:   claims.IssuedAt.Add(t.plan.ttl - t.plan.ttl/lastAfter),
		epoch:  epoch,
		option: make(encoder, 0, optionSize(t.plan.header, value)).option(t.plan.header, value),
	}
	if claims.Expiry.Before(claims.IssuedAt.Add(t.plan.ttl)) { // no other would be good for longer
		s.renew, s.last = t.identity.Expiry, t.identity.Expiry
	}
	t.put(host, s)
	return s.option, nil
}

// RenewTokens has a new token signed for each session at its next request: keys were withdrawn, and apps refuse what they signed. Call it once the
// Signer signs with another key.
func (s *Server) RenewTokens() { s.tokens.epoch.Add(1) }

// renewSoon signs a token in the background, if nobody does already and there is room; else the next check tries again.
func (s *Server) renewSoon(t *appTokens, host string) {
	if !t.renewing.CompareAndSwap(false, true) {
		return
	}
	select {
	case s.renewing <- struct{}{}:
	default:
		t.renewing.Store(false)
		return
	}
	host = strings.Clone(host)
	go func() {
		defer func() { <-s.renewing }()
		defer t.renewing.Store(false)
		quietly(func() { _, _ = t.sign(s, host, s.Now()) }) // what fails is counted; the check that needs the token says why
	}()
}

// claims is what a token says.
func (t *appTokens) claims(host string, now time.Time, drops *dropCounters) *TokenClaims {
	id := t.identity
	text := func(v string) string {
		if len(v) > maxTokenText || !utf8.ValidString(v) { // what takes its place could be another's
			drops.size.Inc()
			return ""
		}
		return v
	}
	from := now.Truncate(time.Second)
	until := from.Add(t.plan.ttl)
	if end := id.Expiry.Truncate(time.Second); end.Before(until) {
		until = end
	}
	c := &TokenClaims{
		Connector: id.Connector, UserID: id.UserID, Email: text(id.Email), Name: text(id.Name), PreferredUsername: text(id.PreferredUsername),
		Audience: strings.ReplaceAll(t.plan.audience, HostVariable, host), IssuedAt: from, Expiry: until,
	}
	left := t.plan.groups
	for _, g := range id.Groups {
		switch size := quoted(g) + len(","); {
		case g == "":
		case !utf8.ValidString(g):
			drops.separator.Inc()
		case size > left:
			drops.size.Inc()
		default:
			left -= size
			c.Groups = append(c.Groups, g)
		}
	}
	return c
}

// quoted is about how long a text is in JSON (RFC 8259 section 7).
func quoted(s string) int {
	n := len(s) + len(`""`)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ':
			n += len(`\u0000`) - 1
		case c == '"' || c == '\\':
			n++
		}
	}
	return n
}

// tokens returns the tokens of a session: those of the former principal where this generation would make the same.
func (h *hygiene) tokensOf(p *principal, former *principal) *appTokens {
	id := &p.session.Identity
	kept := former != nil && former.tokens != nil && former.tokens.plan == *h.token
	if kept && former.session == p.session {
		return former.tokens
	}
	size := 3 * len(id.Groups)
	for _, g := range id.Groups {
		size += len(g)
	}
	size = min(size, h.token.groups) + len(id.Email) + len(id.Name) + len(id.PreferredUsername) + 2*(len(id.UserID)+len(id.Connector))
	t := &appTokens{plan: *h.token, identity: id, weight: tokenFrame + size*4/3, budget: &budget{}}
	if former != nil && former.tokens != nil && former.session.ID == p.session.ID {
		t.budget = former.tokens.budget
	}
	same := kept && sameUser(former.session, p.session)
	if h.token.perHost {
		t.hosts = h.tokens.hosts()
		if same {
			t.number = former.tokens.number
		} else {
			t.number = h.tokens.numbers.Add(1)
		}
	} else if same {
		t.one.Store(former.tokens.one.Load())
	}
	return t
}

// sameUser reports whether nothing but activity lies between two sessions, so that tokens of the first are good for the second.
func sameUser(a, b *session.Session) bool {
	i, j := a.Identity, b.Identity
	i.Expiry, j.Expiry = time.Time{}, time.Time{}
	return a.ID == b.ID && !b.Identity.Expiry.Before(a.Identity.Expiry) && reflect.DeepEqual(i, j)
}

// tokenFrame is about what a token has besides what it tells of a user, in bytes: header, times, names of claims and a signature of RS256.
const tokenFrame = 900
