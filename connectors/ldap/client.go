package ldap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// A security is how a connection is protected.
type security uint8

const (
	ldaps security = iota
	startTLS
	plain
)

// A transport says how to reach a directory.
type transport struct {
	hosts        []string // host or host:port, the preferred ones first; empty: by SRV records of domain
	domain, site string   // _ldap._tcp.<domain>, or _ldap._tcp.<site>._sites.dc._msdcs.<domain>, first
	security     security
	tls          func() (*tls.Config, error) // read anew for each connection, so that a new CA or certificate is taken up; nil with plain

	bindDN, bindPW string        // of the service account; empty: anonymous
	headStart      time.Duration // of a host before the next one, see const headStart
	dialTimeout    time.Duration
	requestTimeout time.Duration // for one request to the directory, within the caller's deadline
	connections    int           // service connections at most; as many again for the binds of users
	idle           time.Duration // after which a connection is closed
	pageSize       int           // entries asked for at a time (RFC 2696)
	follow         bool          // referrals, to configured hosts only; else they are ignored
}

// A client talks to a directory: over connections that it keeps, to whichever host answers.
type client struct {
	t     transport
	now   func() time.Time
	log   *slog.Logger
	hosts *hosts

	dialTCP func(ctx context.Context, network, addr string) (net.Conn, error)

	searches *pool         // connections bound as the service account
	users    *pool         // connections on which only users bind
	own      chan struct{} // one token for each connection that somebody has for himself

	refusal refusal
	stats   counters
	last    atomic.Pointer[endpoint] // that answered

	life context.Context // ends with close
	end  context.CancelFunc
	work sync.WaitGroup

	mu   sync.Mutex
	live map[*conn]bool // all connections
}

// Where a transport says nothing.
const (
	defaultDial        = 5 * time.Second
	defaultRequest     = 10 * time.Second
	defaultConnections = 8
	defaultIdle        = 5 * time.Minute
	defaultPage        = 500
	// A bind must not be sent on a connection that a firewall has forgotten: it could not be sent again. So those are not kept for long.
	idleUser  = 30 * time.Second
	keepAlive = 15 * time.Second
)

func newClient(t transport, now func() time.Time, log *slog.Logger) *client {
	if now == nil {
		now = time.Now
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t.headStart = positive(t.headStart, headStart)
	t.dialTimeout = positive(t.dialTimeout, defaultDial)
	t.requestTimeout = positive(t.requestTimeout, defaultRequest)
	t.connections = positive(t.connections, defaultConnections)
	t.idle = positive(t.idle, defaultIdle)
	t.pageSize = positive(t.pageSize, defaultPage)
	c := &client{
		t: t, now: now, log: log, hosts: newHosts(t, now, log),
		searches: newPool(t.connections, t.idle, true), users: newPool(t.connections, min(t.idle, idleUser), false),
		own: make(chan struct{}, t.connections+1), live: map[*conn]bool{},
	}
	c.life, c.end = context.WithCancel(context.Background())
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 3}}
	c.dialTCP = dialer.DialContext
	c.hosts.background = func(f func(context.Context)) {
		if !c.spawn(func() { f(c.life) }) {
			f(c.life) // it has ended
		}
	}
	return c
}

func positive[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

// close ends all connections; what is under way fails.
func (c *client) close() {
	c.searches.close()
	c.users.close()
	c.mu.Lock()
	c.end()
	for k := range c.live {
		k.wire.abort()
	}
	clear(c.live)
	c.mu.Unlock()
	c.work.Wait()
}

// within returns a context that ends with the client, too.
func (c *client) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// spawn runs f beside, unless the client is closed.
func (c *client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		return false
	}
	c.work.Go(f)
	return true
}

func (c *client) keepTrack(k *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		k.wire.abort()
		return
	}
	c.live[k] = true
}

// discard ends a connection.
func (c *client) discard(k *conn) {
	k.wire.abort()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, k)
}

// purge ends the idle connections to a host.
func (c *client) purge(e *endpoint) {
	for _, p := range []*pool{c.searches, c.users} {
		for _, k := range p.remove(func(k *conn) bool { return k.e == e }) {
			c.discard(k)
		}
	}
}

// checkout returns a connection for a caller that has a slot of p: one that is idle, or a new one.
func (c *client) checkout(ctx context.Context, p *pool, avoid *endpoint, fresh bool) (*conn, error) {
	if !fresh {
		k, ended := p.take()
		for _, o := range ended {
			c.discard(o)
		}
		if k != nil {
			return k, nil
		}
	} else {
		for _, o := range p.room() {
			c.discard(o)
		}
	}
	return c.dialAny(ctx, avoid, p.service)
}

// giveBack keeps a connection for the next caller, unless a better host is to be had.
func (c *client) giveBack(p *pool, k *conn) {
	c.last.Store(k.e)
	c.probe()
	k.wire.allow(maxMessage, 16) // notices, while nothing is asked
	if k.broken() || c.hosts.better(k.e) || !p.put(k, c.discard) {
		c.discard(k)
	}
}

// failed ends a connection after a request that failed, and puts its host aside if it is the host's fault.
func (c *client) failed(ctx context.Context, k *conn, err error, since time.Time) {
	c.discard(k)
	waited := time.Since(since)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		if ctx.Err() == nil || waited >= min(c.t.requestTimeout, tooLong) {
			c.hosts.bad(k.e, fmt.Errorf("no answer from %s in %v", k.e.addr, waited.Round(time.Millisecond)))
			c.purge(k.e)
		}
	case k.reused && !answered(err) && !errors.Is(err, errGarbage): // closed while it was idle, most likely
	default:
		c.hosts.bad(k.e, err)
		c.purge(k.e)
	}
}

// probe tries the hosts again whose time aside is over, in the background, so that nobody waits for it.
func (c *client) probe() {
	if c.life.Err() != nil {
		return
	}
	for _, e := range c.hosts.due() {
		c.spawn(func() {
			ctx, cancel := context.WithTimeout(c.life, c.t.dialTimeout+c.t.requestTimeout)
			defer cancel()
			k, err := c.connect(ctx, e, true)
			if err != nil {
				c.hosts.bad(e, err)
				return
			}
			c.hosts.good(e)
			c.offer(k)
		})
	}
}

// offer puts a new connection into the pool, if there is room for it.
func (c *client) offer(k *conn) {
	select {
	case c.searches.slots <- struct{}{}:
		defer c.searches.release()
	default:
		c.discard(k)
		return
	}
	for _, o := range c.searches.room() {
		c.discard(o)
	}
	if c.hosts.better(k.e) || !c.searches.put(k, c.discard) {
		c.discard(k)
	}
}

// A query is a search for entries.
type query struct {
	base       string
	scope      int // of package ldapv3
	filter     string
	attributes []string // "1.1": none
	limit      int      // more entries than this are errTooMany; 0: as many as a client ever takes
}

// errTooMany means that more was found than a query wants. errNoDirectory means that no host answered in time.
var (
	errTooMany     = errors.New("ldap: more entries than expected")
	errNoDirectory = errors.New("ldap: no directory server answers")
)

// An entry is what was found. Names of attributes are taken in any case and without options; ranges are put together.
type entry struct {
	dn         string
	attributes map[string][][]byte // by lower-case name
}

// A verdict is the directory's answer to a bind.
type verdict struct {
	code       uint16                              // LDAP result code; 0: the password is right
	diagnostic string                              // what the server says besides, such as AD's "... data 533 ..."
	policy     *ldapv3.ControlBeheraPasswordPolicy // nil: the server said nothing of it
}

// errEmpty refuses what RFC 4513 section 5.1.2 calls an unauthenticated bind, which servers answer with success.
var errEmpty = errors.New("ldap: a bind without a name or without a password is not sent")

// unavailable are the codes by which a server says that it cannot do anything now: busy and unavailable (RFC 4511 appendix A.2).
var unavailable = []uint16{ldapv3.LDAPResultBusy, ldapv3.LDAPResultUnavailable}

// bind tries a user's password, on a connection on which nothing but binds happens. An error means that it was not tried or that no answer came: it is
// not tried a second time once it may have been counted as a failure. password is never empty.
func (c *client) bind(ctx context.Context, name, password string) (verdict, error) {
	if name == "" || password == "" {
		return verdict{}, errEmpty
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	if err := c.users.acquire(ctx); err != nil {
		return verdict{}, err
	}
	defer c.users.release()
	for again := false; ; again = true {
		k, err := c.checkout(ctx, c.users, nil, again)
		if err != nil {
			return verdict{}, err
		}
		v, sent, err := c.userBind(ctx, k, name, password)
		switch {
		case err == nil && (v.code == ldapv3.LDAPResultSuccess || v.code == ldapv3.LDAPResultInvalidCredentials):
			c.giveBack(c.users, k) //nolint:contextcheck // hosts are tried in the background for longer than this call lasts
			return v, nil
		case err == nil:
			c.last.Store(k.e)
			c.discard(k)
			return v, nil
		case sent || again || ctx.Err() != nil:
			return verdict{}, fmt.Errorf("%w: %s: bind: %w", errNoDirectory, k.e.addr, err)
		}
	}
}

// userBind binds as a user. sent tells whether the server may have seen it.
func (c *client) userBind(ctx context.Context, k *conn, name, password string) (v verdict, sent bool, err error) {
	limited, cancel := context.WithTimeout(ctx, c.t.requestTimeout)
	defer cancel()
	before, since := k.wire.sent.Load(), time.Now()
	c.stats.binds.Add(1)
	v, err = c.bindOn(limited, k, name, password)
	sent = k.wire.sent.Load() != before
	if err == nil && slices.Contains(unavailable, v.code) {
		err = &ldapv3.Error{ResultCode: v.code, Err: errors.New(v.diagnostic)}
		c.hosts.bad(k.e, err)
		c.purge(k.e)
		c.discard(k)
	} else if err != nil {
		c.failed(ctx, k, err, since)
	}
	return v, sent, err
}

// bindOn does one simple bind (RFC 4513 section 5.1.3), and asks for the state of the password (draft-behera-ldap-password-policy-10).
func (c *client) bindOn(ctx context.Context, k *conn, name, password string) (verdict, error) {
	var v verdict
	k.wire.allow(maxMessage, 4) // one answer, and notices
	err := k.do(ctx, func(l *ldapv3.Conn) error {
		r, err := l.SimpleBind(ldapv3.NewSimpleBindRequest(name, password, []ldapv3.Control{ldapv3.NewControlBeheraPasswordPolicy()}))
		if r != nil {
			v.policy, _ = ldapv3.FindControl(r.Controls, ldapv3.ControlTypeBeheraPasswordPolicy).(*ldapv3.ControlBeheraPasswordPolicy)
		}
		return err
	})
	k.wire.allow(math.MaxInt64, math.MaxInt64)
	var e *ldapv3.Error
	if err != nil && answered(err) && errors.As(cleanError(err), &e) {
		v.code, v.diagnostic, err = e.ResultCode, e.Err.Error(), nil
	}
	if err != nil {
		return verdict{}, err
	}
	return v, nil
}

// service calls f with a service connection of its own, asUser with one that is bound as a user; both within the deadline of ctx. f must not keep it.
// Its error is returned as it is.
func (c *client) service(ctx context.Context, f func(*ldapv3.Conn) error) error {
	_, err := c.forItself(ctx, true, func(ctx context.Context, k *conn) (verdict, error) { return verdict{}, k.do(ctx, f) })
	return err
}

func (c *client) asUser(ctx context.Context, name, password string, f func(*ldapv3.Conn) error) (verdict, error) {
	if name == "" || password == "" {
		return verdict{}, errEmpty
	}
	return c.forItself(ctx, false, func(ctx context.Context, k *conn) (verdict, error) {
		v, _, err := c.userBind(ctx, k, name, password)
		if err != nil {
			return verdict{}, fmt.Errorf("%w: %s: bind: %w", errNoDirectory, k.e.addr, err)
		}
		if v.code != ldapv3.LDAPResultSuccess {
			return v, nil
		}
		return v, k.do(ctx, f)
	})
}

// forItself calls f with a new connection, which ends afterwards. Such ones are not of the pools: a watch has one for days.
func (c *client) forItself(ctx context.Context, service bool, f func(context.Context, *conn) (verdict, error)) (verdict, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return verdict{}, fmt.Errorf("%w: %w", errNoDirectory, err)
	}
	select {
	case c.own <- struct{}{}:
		defer func() { <-c.own }()
	case <-ctx.Done():
		return verdict{}, fmt.Errorf("%w: all %d connections are in use: %w", errNoDirectory, cap(c.own), ctx.Err())
	}
	k, err := c.dialAny(ctx, nil, service)
	if err != nil {
		return verdict{}, err
	}
	defer c.discard(k)
	c.last.Store(k.e)
	return f(ctx, k)
}

// host is where the last answer came from, "" before the first; for logs and for telling people.
func (c *client) host() string {
	if e := c.last.Load(); e != nil {
		return e.addr
	}
	return ""
}

// A refusal remembers that the service account may not bind.
type refusal struct {
	mu    sync.Mutex
	err   error
	until time.Time
	times int
}

func (r *refusal) holds(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.until) {
		return r.err
	}
	return nil
}

// refusedAgain is how long a password of the service account is not tried that was wrong twice: four tries an hour lock no account.
const refusedAgain = 15 * time.Minute

// set notes a refusal; counted says that the directory counts it as a wrong password.
func (r *refusal) set(err error, now time.Time, counted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = min(r.times+1, 5)
	wait := min(2*setAside<<r.times, setAsideMax)
	if counted && r.times > 1 { // once may be a server that does not know of a new password yet
		wait = refusedAgain
	}
	r.err, r.until = err, now.Add(wait)
}

// standing returns the last refusal, if there was no success since.
func (r *refusal) standing() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *refusal) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.until, r.times = nil, time.Time{}, 0
}

// maxDiagnostic bounds what a server says in words, in bytes.
const maxDiagnostic = 300

// clean makes a server's words fit for a log.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), maxDiagnostic)], ""))
	return strings.TrimSpace(s)
}

// cleanError is a server's error with its words cleaned, and without the packet.
func cleanError(err error) error {
	var e *ldapv3.Error
	if !errors.As(err, &e) {
		return err
	}
	out := &ldapv3.Error{ResultCode: e.ResultCode, MatchedDN: clean(e.MatchedDN), Err: errors.New("")}
	if e.Err != nil {
		out.Err = errors.New(clean(e.Err.Error()))
	}
	return out
}
