package provider

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/audit"
	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// How clients are told of the end of a session.
const (
	noticeUseful  = time.Hour        // for so long it is tried
	noticeTimeout = 5 * time.Second  // of one try
	noticeLease   = 30 * time.Second // that a try has before another replica may think that its process has died
	noticePoll    = 15 * time.Second // how often what other replicas have left is looked for
	noticeDoubt   = time.Minute      // a session that lives for so long after the notice of its end was not ended: the process died between the two
	noticeFirst   = 5 * time.Second  // pause after the first failure; it doubles
	noticeMost    = 5 * time.Minute  // the longest pause
	noticeAnswer  = 4 << 10          // what is read of an answer, in bytes
	perClient     = 4                // tries at one client at a time
	perProcess    = 16               // and at all of them
	maxHandled    = 200              // notices for one client that one look into the store takes up
)

// logoutTokenLife is how long a logout token is good: it is used at once. OpenID Connect Back-Channel Logout 1.0 section 4 recommends at most two minutes.
const logoutTokenLife = 2 * time.Minute

// logoutEvent is the event of a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.4).
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// An outbox tells clients of the ends of sessions (OpenID Connect Back-Channel Logout 1.0). What is to be told is in the store, so that any replica tells it.
type outbox struct {
	store  *store.Store
	client func(ctx context.Context, id string) (storage.Client, error)
	sign   func(ctx context.Context, n store.Notice) (token string, err error)
	now    func() time.Time
	log    *slog.Logger
	http   *http.Client
	wake   chan struct{}
	places chan struct{} // of tries under way

	mu      sync.Mutex
	clients map[string]*recipient // guarded by mu

	pending           prometheus.Gauge
	delivered, failed prometheus.Counter
}

// A recipient is a client that was to be told something.
type recipient struct {
	busy     bool
	failures int // in a row
	rest     time.Time
}

func newOutbox(s *store.Store, now func() time.Time, log *slog.Logger) *outbox {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http says that it is one
	transport.MaxConnsPerHost, transport.MaxResponseHeaderBytes = perClient, 16<<10
	return &outbox{
		store: s, now: now, log: log, wake: make(chan struct{}, 1), places: make(chan struct{}, perProcess), clients: map[string]*recipient{},
		http: &http.Client{
			Transport: transport, Timeout: noticeTimeout,
			// What is registered is told, and nobody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		pending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gatehouse_outbox_pending", Help: "Clients that have yet to be told of the end of a session (back-channel logout), of all replicas, as last looked.",
		}),
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatehouse_outbox_delivered_total", Help: "Ends of sessions that this process has told a client.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatehouse_outbox_failed_total", Help: "Ends of sessions that a client was not told: it refused, or could not be reached for an hour. The log says which.",
		}),
	}
}

// Describe implements prometheus.Collector.
func (o *outbox) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(o, out) }

// Collect implements prometheus.Collector.
func (o *outbox) Collect(out chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{o.pending, o.delivered, o.failed} {
		c.Collect(out)
	}
}

// look has the outbox look for what is due, now.
func (o *outbox) look() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run tells clients until ctx ends. What is under way then is left to another process.
func (o *outbox) run(ctx context.Context) {
	for {
		pause, err := o.pass(ctx)
		if err != nil && ctx.Err() == nil {
			o.log.ErrorContext(ctx, "the outbox of sign-outs cannot be read; it is tried again", "error", err)
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-o.wake:
		case <-ctx.Done():
		}
		again.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// pass begins with what is due, and returns how long to wait for the next look.
func (o *outbox) pass(ctx context.Context) (time.Duration, error) {
	now, pending, next := o.now(), 0, noticePoll
	due := map[string][]store.Notice{}
	err := o.store.Notices(ctx, func(n store.Notice) bool {
		pending++
		switch at := o.restUntil(n); {
		case !at.After(now): // one that has expired meanwhile is given up then
			if len(due[n.ClientID]) < maxHandled { // the others are found at the next look
				due[n.ClientID] = append(due[n.ClientID], n)
			}
		default:
			next = min(next, at.Sub(now))
		}
		return true
	})
	if err == nil {
		o.pending.Set(float64(pending))
	}
	for client, list := range due { // also where one cannot be read
		o.begin(ctx, client, list)
	}
	return max(next, 10*time.Millisecond), err
}

// restUntil is when a notice may be sent.
func (o *outbox) restUntil(n store.Notice) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r := o.clients[n.ClientID]; r != nil && r.rest.After(n.Due) {
		return r.rest
	}
	return n.Due
}

// begin sends notices to one client, a few at a time, unless that is being done already: then the store is looked into again at its end. A client that does
// not answer holds up nobody else.
func (o *outbox) begin(ctx context.Context, client string, list []store.Notice) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.clients[client]
	if r == nil {
		r = &recipient{}
		o.clients[client] = r
	}
	if r.busy || r.rest.After(o.now()) { // or it has failed since the look that found them due: another look follows that
		return
	}
	r.busy = true
	workers := min(perClient, len(list))
	if r.failures > 0 { // one finds out whether it is up again
		workers = 1
	}
	slices.SortFunc(list, func(a, b store.Notice) int { return a.Created.Compare(b.Created) })
	work := make(chan store.Notice, len(list))
	for _, n := range list {
		work <- n
	}
	close(work)
	go func() {
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for n := range work {
					if ctx.Err() != nil || !o.handle(ctx, r, n) {
						return
					}
				}
			})
		}
		all.Wait()
		o.mu.Lock()
		r.busy = false
		if r.failures == 0 && !r.rest.After(o.now()) {
			delete(o.clients, client)
		}
		o.mu.Unlock()
		o.look()
	}()
}

// handle does what is due with one notice. It returns false where the client, or the store, is not to be troubled further for now.
func (o *outbox) handle(ctx context.Context, r *recipient, n store.Notice) bool {
	o.places <- struct{}{}
	defer func() { <-o.places }()
	n, ok, err := o.store.ClaimNotice(ctx, n.ID, o.now(), noticeLease)
	if err != nil {
		o.unstored(ctx, r, err)
		return false
	}
	if !ok {
		return true
	}
	if !o.now().Before(n.Expiry) {
		o.giveUp(ctx, r, n, errors.New("it could not be reached for an hour"))
		return true
	}
	var again *retry
	switch err := o.tell(ctx, n); {
	case err == nil:
		o.settle(r)
		o.delivered.Inc()
		o.drop(ctx, r, n)
	case errors.Is(err, errNothingToTell):
		o.drop(ctx, r, n)
	case errors.As(err, &again):
		return o.postpone(ctx, r, n, again)
	default:
		o.settle(r)
		o.giveUp(ctx, r, n, err)
	}
	return true
}

func (o *outbox) settle(r *recipient) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.failures, r.rest = 0, time.Time{}
}

// postpone makes a notice due later. If it is the client's fault, the client rests too.
func (o *outbox) postpone(ctx context.Context, r *recipient, n store.Notice, why *retry) bool {
	if ctx.Err() != nil { // not the client's fault: another process will see that the lease is over
		return false
	}
	now := o.now()
	pause := backOff(n.Tries)
	if why.client {
		o.mu.Lock()
		if !r.rest.After(now) { // several tries that failed together are one failure
			r.failures++
			r.rest = now.Add(backOff(r.failures))
		}
		o.mu.Unlock()
		o.log.WarnContext(ctx, "a client cannot be told of a sign-out; it is tried again", "client", n.ClientID, "session", audit.Hash(n.SessionID), "tries", n.Tries,
			"again_in", pause.String(), "error", why.err)
	}
	if err := o.store.DeferNotice(ctx, n.ID, now.Add(pause)); err != nil && !errors.Is(err, storage.ErrNotFound) {
		o.unstored(ctx, r, err)
		return false
	}
	return !why.client
}

// backOff is the pause after so many failures.
func backOff(failures int) time.Duration {
	return min(noticeMost, noticeFirst<<min(max(failures-1, 0), 10))
}

func (o *outbox) giveUp(ctx context.Context, r *recipient, n store.Notice, why error) {
	o.failed.Inc()
	o.log.ErrorContext(ctx, "a client was not told of a sign-out: its own session may go on", "client", n.ClientID, "session", audit.Hash(n.SessionID), "tries", n.Tries, "error", why)
	o.drop(ctx, r, n)
}

func (o *outbox) drop(ctx context.Context, r *recipient, n store.Notice) {
	if err := o.store.DeleteNotice(ctx, n.ID); err != nil && !errors.Is(err, storage.ErrNotFound) {
		o.unstored(ctx, r, err) // and so the client is told once more
	}
}

// unstored leaves a client alone for a while, since the store does not work.
func (o *outbox) unstored(ctx context.Context, r *recipient, err error) {
	o.mu.Lock()
	r.rest = o.now().Add(noticeFirst)
	o.mu.Unlock()
	if ctx.Err() == nil {
		o.log.ErrorContext(ctx, "the outbox of sign-outs cannot be written; it is tried again", "error", err)
	}
}

// errNothingToTell means that a client does not want to know, or that the session was not ended.
var errNothingToTell = errors.New("nothing to tell")

// A retry is a failure that may pass.
type retry struct {
	client bool // it is the client's
	err    error
}

func (r *retry) Error() string { return r.err.Error() }
func (r *retry) Unwrap() error { return r.err }

// tell sends a notice. It fails with errNothingToTell, with a retry, or for good.
func (o *outbox) tell(ctx context.Context, n store.Notice) error {
	_, err := o.store.GetAuthSession(ctx, n.SessionID)
	switch {
	case err == nil && o.now().Sub(n.Created) >= noticeDoubt:
		return errNothingToTell
	case err == nil:
		return &retry{err: errors.New("the session is not over yet")}
	case !errors.Is(err, storage.ErrNotFound):
		return &retry{err: err}
	}
	c, err := o.client(ctx, n.ClientID)
	switch {
	case errors.Is(err, storage.ErrNotFound), err == nil && c.BackchannelLogoutURI == "":
		return errNothingToTell
	case err != nil:
		return &retry{err: err}
	}
	token, err := o.sign(ctx, n)
	if err != nil {
		return &retry{err: err}
	}
	return o.post(ctx, c.BackchannelLogoutURI, token)
}

// post sends a logout token (OpenID Connect Back-Channel Logout 1.0 sections 2.5 and 2.8).
func (o *outbox) post(ctx context.Context, uri, token string) error {
	body := url.Values{"logout_token": {token}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, uri, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("backchannelLogoutURI: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("User-Agent", "gatehouse")
	resp, err := o.http.Do(req)
	if err != nil {
		return &retry{client: true, err: err}
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, noticeAnswer)) // so that the connection can be used again
	err = fmt.Errorf("it answered %d", resp.StatusCode)
	switch s := resp.StatusCode; {
	case s/100 == 2:
		return nil
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s/100 == 5:
		return &retry{client: true, err: err}
	case s/100 == 3:
		return fmt.Errorf("%w, and redirects are not followed: set backchannelLogoutURI to where it leads", err)
	}
	return err
}

// notices are what the clients of a session have to be told of its end.
func (g *generation) notices(ctx context.Context, s *storage.AuthSession, now time.Time) []store.Notice {
	var list []store.Notice
	for _, id := range slices.Sorted(maps.Keys(s.ClientStates)) {
		if id == front.GatewayClient {
			continue
		}
		// Who cannot be read now may be when it is told.
		if c, err := g.storage.GetClient(ctx, id); errors.Is(err, storage.ErrNotFound) || err == nil && c.BackchannelLogoutURI == "" {
			continue
		}
		list = append(list, store.Notice{
			ID: rand.Text(), ClientID: id, SessionID: s.ID, UserID: s.UserID, ConnectorID: s.ConnectorID, Created: now, Due: now, Expiry: now.Add(noticeUseful),
		})
	}
	return list
}

// clientNow reads a client by the current configuration.
func (p *Provider) clientNow(ctx context.Context, id string) (storage.Client, error) {
	g := p.acquire()
	defer g.release()
	return g.storage.GetClient(ctx, id)
}

// logoutClaims are those of a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.4).
type logoutClaims struct {
	Issuer    string              `json:"iss"`
	Subject   string              `json:"sub"`
	Audience  string              `json:"aud"`
	IssuedAt  int64               `json:"iat"`
	Expiry    int64               `json:"exp"`
	ID        string              `json:"jti"`
	SessionID string              `json:"sid"`
	Events    map[string]struct{} `json:"events"`
}

// signLogout signs a logout token with the current key. Its type keeps everybody, us included, from taking it for another token (RFC 8725 section 3.11).
func (p *Provider) signLogout(ctx context.Context, n store.Notice) (string, error) {
	subject, err := tokens.GenSubject(n.UserID, n.ConnectorID)
	if err != nil {
		return "", fmt.Errorf("logout token: subject: %w", err)
	}
	now := p.now()
	payload, err := json.Marshal(logoutClaims{
		Issuer: p.issuer.String(), Subject: subject, Audience: n.ClientID, IssuedAt: now.Unix(), Expiry: now.Add(logoutTokenLife).Unix(),
		ID: rand.Text(), SessionID: n.SessionID, Events: map[string]struct{}{logoutEvent: {}},
	})
	if err != nil {
		return "", fmt.Errorf("logout token: %w", err)
	}
	keys, err := p.keyCache.GetKeys(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("logout token: %w", err)
	case keys.SigningKey == nil:
		return "", errors.New("logout token: no signing key yet")
	}
	opts := (&jose.SignerOptions{}).WithType(front.LogoutTokenType)
	signer, err := jose.NewSigner(jose.SigningKey{Key: keys.SigningKey, Algorithm: jose.SignatureAlgorithm(keys.SigningKey.Algorithm)}, opts)
	if err != nil {
		return "", fmt.Errorf("logout token: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("logout token: %w", err)
	}
	return signed.CompactSerialize()
}
