package authz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
)

// Sessions knows which sessions are live. *session.View is one.
type Sessions interface {
	// Lookup returns a session that is live at now, session.ErrNotFound, session.ErrBlocked for a user who is refused
	// now, or another error, such as *session.UnavailableError, if it cannot find out. id is good during the call only.
	Lookup(ctx context.Context, id string, now time.Time) (*session.Session, error)
}

// An Ender ends sessions.
type Ender interface {
	// SignOut ends a session everywhere. It returns the URL where the browser goes on to sign out, of an upstream
	// provider for instance, or "" if there is none. A session that has already ended is no error.
	SignOut(ctx context.Context, sessionID string) (next string, err error)
}

// Options are what a Server is made of. All but Signer, Audit, Logger, Registerer and Now are needed.
type Options struct {
	Ring       *seal.Ring // for the purposes of Purposes
	Sessions   Sessions
	Ender      Ender
	Pages      Pages
	Signer     Signer       // of tokens for apps; needed where a Config has some
	Audit      io.Writer    // one line of JSON per decision; it must not wait; nil writes none
	Logger     *slog.Logger // faults
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Purposes returns what the ring of a Server must have been made for.
func Purposes() []seal.Purpose {
	return []seal.Purpose{handoff.PurposeRequest, handoff.PurposeTicket, handoff.PurposeCookie, purposeSignOut}
}

// A Server is Envoy's Authorization service. It refuses everything until Apply is called.
type Server struct {
	authv3.UnimplementedAuthorizationServer
	Options
	current     atomic.Pointer[generation]
	generations atomic.Uint64 // how many there were
	metrics     *metrics
	checks      sync.Pool // of *check
	tokens      *tokenStore
	renewing    chan struct{} // has an element for each token that is being signed in the background

	lastFault atomic.Int64 // when a fault was logged, in nanoseconds since 1970
}

// NewServer returns a Server without a configuration. It panics if the ring lacks a purpose.
func NewServer(o Options) (*Server, error) {
	if o.Ring == nil || o.Sessions == nil || o.Ender == nil || o.Pages == nil {
		return nil, errors.New("authz: ring, sessions, ender and pages are needed")
	}
	for _, p := range Purposes() {
		_ = o.Ring.Seal(p, "", nil)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	return &Server{Options: o, metrics: m, tokens: newTokenStore(), renewing: make(chan struct{}, renewals)}, nil
}

// fault logs why a session could not be verified, at most once a second: while a store is down it is every request.
func (s *Server) fault(ctx context.Context, c *check, err error) {
	if s.logs(c) {
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "session cannot be verified", slog.String("request_id", c.requestID()), slog.Any("error", err))
	}
}

// logs reports whether a fault is logged: one a second.
func (s *Server) logs(c *check) bool {
	last := s.lastFault.Load()
	now := c.start.UnixNano()
	return now-last >= int64(time.Second) && s.lastFault.CompareAndSwap(last, now)
}

// Apply makes cfg decide from the next request on; requests under way keep the generation that they began with. A configuration
// with mistakes changes nothing: they are returned, joined, each wrapping ErrConfig.
func (s *Server) Apply(cfg *Config) error {
	g, err := compile(cfg, s.generations.Add(1), s.Signer, s.tokens, &s.metrics.drops)
	if err != nil {
		return err
	}
	s.current.Store(g)
	return nil
}

// Check implements envoy.service.auth.v3.Authorization. Its error is always nil: what goes wrong is answered with 503. It is for
// callers in the same process; what comes over the network is not made a message first (NewGRPCServer).
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.check(ctx, wireOf(in)).message(), nil
}

// message decodes an answer; what cannot be decoded, should that ever be, refuses.
func (a answer) message() *authv3.CheckResponse {
	out := &authv3.CheckResponse{}
	if err := proto.Unmarshal(a, out); err != nil {
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.Unavailable)}}
	}
	return out
}

// wireOf encodes a request. What is not UTF-8 cannot be, and is no message at all.
func wireOf(in *authv3.CheckRequest) []byte {
	b, err := proto.Marshal(in)
	if err != nil {
		return nil
	}
	return b
}

// check answers a CheckRequest in wire format, which must not change meanwhile. Nothing refers to it afterwards.
func (s *Server) check(ctx context.Context, in []byte) answer {
	c, ok := s.checks.Get().(*check)
	if !ok {
		c = newCheck()
	}
	out := c.of(ctx, s, in)
	s.checks.Put(c)
	return out
}

// of answers one request with the memory of c, which keeps nothing of it.
func (c *check) of(ctx context.Context, s *Server, in []byte) answer {
	c.server, c.g, c.start, c.now = s, s.current.Load(), time.Now(), s.Now()
	out := c.run(ctx, in)
	c.reset()
	return out
}

// maxOpened is what opening a cookie of the longest accepted length on the longest host name needs, in bytes.
const maxOpened = 1 << 10

// A check is one request on its way through.
type check struct {
	server  *Server
	g       *generation
	start   time.Time // for the duration
	now     time.Time // for decisions
	msg     message
	head    headers        // lower-case names
	rid     string         // request id
	newID   bool           // rid is ours, since the proxy sent none
	req     policy.Request // zero until parsed
	https   bool           // req.Host is served over https
	names   handoff.CookieNames
	jar     jar
	bearer  bool
	aliases []string   // headers of the request that could be read as identity headers
	who     *principal // nil for an anonymous caller
	out     outcome
	opened  []byte // memory for an opened cookie
	line    []byte // and for the line of the audit log
}

func newCheck() *check { return &check{opened: make([]byte, 0, maxOpened)} }

// reset leaves nothing of the request but memory for the next.
func (c *check) reset() {
	c.msg.reset()
	clear(c.aliases)
	*c = check{msg: c.msg, aliases: c.aliases[:0], opened: c.opened, line: c.line}
}

// run answers and records. Should either panic, it refuses.
func (c *check) run(ctx context.Context, in []byte) (out answer) {
	defer func() {
		if p := recover(); p != nil {
			out = c.panicked(ctx, p)
		}
	}()
	out = c.answer(ctx, in)
	c.record()
	return out
}

// panicked counts and logs a panic. Its value is not logged: it may hold what a client sent.
func (c *check) panicked(ctx context.Context, value any) answer {
	stack := debug.Stack()
	c.out = outcome{kind: failedPanic, status: 503}
	c.server.metrics.panics.Inc()
	end := time.Now()
	c.count(end)
	quietly(func() {
		c.server.Logger.LogAttrs(ctx, slog.LevelError, "panic in a check", slog.String("type", fmt.Sprintf("%T", value)),
			slog.String("request_id", c.requestID()), slog.String("stack", string(stack)))
	})
	quietly(func() { c.audit(end) })
	return bareUnavailable()
}

// quietly runs f, which may be what panics.
func quietly(f func()) {
	defer func() { _ = recover() }()
	f()
}

// answer decides in the order of the package comment.
func (c *check) answer(ctx context.Context, in []byte) answer {
	switch {
	case c.g == nil:
		c.out = outcome{kind: failedNoConfig, status: 503}
		return bareUnavailable()
	case !c.msg.read(in):
		c.msg.reset() // half a message says nothing
		return c.refuse(invalidMalformed, ProblemBadRequest, 400)
	}
	clean := c.scanHeaders()
	if c.msg.method == "" || c.msg.path == "" {
		return c.refuse(invalidMalformed, ProblemBadRequest, 400)
	}
	req, err := policy.ParseRequest(c.msg.method, c.msg.host, c.msg.path)
	if err != nil {
		return c.refuse(invalidAmbiguous, ProblemBadRequest, 400)
	}
	c.req = req
	c.requestID()
	if !clean {
		return c.refuse(invalidConnection, ProblemBadRequest, 400)
	}
	var listed bool
	c.https, listed = c.g.Hosts.Lookup(req.Host)
	c.names = handoff.Names(c.https)
	if c.g.Issuer.Path != "" && c.g.issuerOwns(req) {
		return c.allowIssuer()
	}
	if listed {
		if op := c.g.ownPath(req.Path); op != ownNone {
			c.jar.scan(c.head.get("cookie"), c.names, c.g.cookies)
			return c.own(ctx, op)
		}
	}
	if c.g.issuerOwns(req) { // an issuer at the root of its host
		return c.allowIssuer()
	}
	if !listed {
		return c.refuse(deniedHost, ProblemUnlistedHost, 403)
	}
	c.jar.scan(c.head.get("cookie"), c.names, c.g.cookies)
	return c.decide(ctx)
}

// decide finds out who the caller is and asks the policy.
func (c *check) decide(ctx context.Context) answer {
	c.bearer = hasBearer(c.head.get(authorization))
	var failure error
	if !c.bearer {
		failure = c.identify(ctx)
	}
	var id *policy.Identity
	if c.who != nil {
		id = &c.who.session.Identity
	}
	d := c.g.Policy.Decide(c.req, id, c.now)
	c.out.rule, c.out.line, c.out.reason = d.Rule, d.Line, d.Reason
	switch {
	case d.Effect == policy.Allow && id == nil:
		return c.allow(allowedAnyone, nil)
	case d.Effect == policy.Allow:
		return c.allowUser(ctx)
	case failure != nil:
		return c.refuseFailure(ctx, failure)
	case d.Effect == policy.Authenticate:
		return c.authenticate()
	}
	return c.refuse(deniedRule, ProblemDenied, 403)
}

// identify sets who from the session cookie. It leaves who empty, without an error, for an anonymous caller.
// Several cookies count only if exactly one is of a live session.
func (c *check) identify(ctx context.Context) error {
	var found *session.Session
	live := 0
	for _, v := range c.jar.session.values() {
		id, _, err := handoff.OpenCookie(c.opened[:0], c.server.Ring, c.req.Host, v)
		if err != nil {
			continue
		}
		s, err := c.lookup(ctx, alias(id))
		if err != nil {
			return err
		}
		if s != nil {
			found = s
			live++
		}
	}
	if live == 1 {
		c.who = c.g.principal(found)
	}
	return nil
}

// lookup returns a live session, or nil if there is none.
func (c *check) lookup(ctx context.Context, id string) (*session.Session, error) {
	s, err := c.server.Sessions.Lookup(ctx, id, c.now)
	switch {
	case err != nil && errors.Is(err, session.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case s == nil || !c.now.Before(s.Identity.Expiry):
		return nil, nil
	}
	return s, nil
}
