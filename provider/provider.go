// Package provider is the OpenID Provider: Dex, run as a library with our store, signing keys, connectors and
// pages. Only this package and those below it know Dex.
package provider

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	gosundheit "github.com/AppsFlyer/go-sundheit"
	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/config"
	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/web"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/server/authflow"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/server/tokens"
)

// Connectors that ask somebody at the start get this long before the start goes on without them, and are then tried again.
const (
	openTimeout = 10 * time.Second
	retryEvery  = 30 * time.Second
)

// placeholder is the id of the connector that Dex starts with.
const placeholder = "local"

const never = 100 * 365 * 24 * time.Hour

// Options for New; all but Match are needed.
type Options struct {
	Config     *config.Config
	Store      *store.Store
	Ring       *seal.Ring  // for the purposes of front.Purposes
	CookieKey  []byte      // what the key of Dex's session cookie is derived from, unless the storage has one
	StoredRing *StoredRing // that Ring is of; nil where its keys are not in the storage
	Pages      *web.Pages
	Log, Audit *slog.Logger
	Registry   *prometheus.Registry
	Now        func() time.Time // in UTC
	Match      identity.Match   // compares the passwords of local users; nil: here and now

	resolve  dexconnectors.ResolveFunc // opens connectors in tests; nil: as in identity.Options
	patience time.Duration             // of tests: how long an answer about a user and one of a told client are waited for; 0: as short as it has to be
}

// A Provider is a running OpenID Provider. Its parts stop when the context of New ends.
//
// What lasts as long as the process is here; what follows from a configuration is a generation, of which one is current.
type Provider struct {
	issuer   *url.URL
	options  Options      // but for Config, which is that of the start
	store    *store.Store // the record of everything; blocked users can be read
	keys     *KeySet
	keyCache *keyCache
	inner    innerKey
	secret   string // of the internal client: known to this process only, and good on every replica's own token endpoint
	sso      []byte // key of Dex's session cookie
	requests *requestMetrics
	now      func() time.Time
	log      *slog.Logger
	dexLog   *slog.Logger
	audit    *slog.Logger
	life     context.Context // of all generations: that of New
	devices  front.Devices
	live     *identity.Live
	upstream *identity.Upstream
	asked    askedLately
	missing  sync.Map // of connector ids, since when a time.Time says that there is none
	ended    *prometheus.CounterVec
	outbox   *outbox
	reloaded chan struct{} // of one element: there is another configuration

	current   atomic.Pointer[generation]
	reconcile sync.Mutex // of whoever brings stored users in line with the configuration
	secrets   sync.Mutex // and its secrets
}

// New starts a provider. An error says which connector, or what else of the configuration, does not work. Reconcile
// follows before the first request.
func New(ctx context.Context, o Options) (*Provider, error) {
	p := newProvider(ctx, o)
	p.keyCache.follow(ctx, o.Log)
	var err error
	if p.inner, err = newInnerKey(); err != nil {
		return nil, err
	}
	if p.sso, err = p.ssoKey(ctx); err != nil {
		return nil, err
	}
	p.live, p.upstream = p.newLive(o.Config), p.newUpstream()
	for _, c := range []prometheus.Collector{p.requests, p.ended, p.outbox, p.live.Collector(), identity.DirectoryCollector(p.doors)} {
		if err := o.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("provider: metrics: %w", err)
		}
	}
	g, err := p.newGeneration(o.Config, nil) //nolint:contextcheck // it lives as long as p, whose life this context is
	if err != nil {
		return nil, err
	}
	p.current.Store(g)
	go p.collectGarbage(ctx)
	go p.outbox.run(ctx)
	if o.Config.Gateway != nil { // else users are in use for a moment only
		go p.live.Watch(ctx, func() *identity.Doors { return p.current.Load().doors }, p.reloaded)
	}
	return p, nil
}

// ssoKey returns the key of Dex's session cookie, which knows one only: it is kept in the storage, and stays when keys of cookies change. An
// installation that had none before goes on with what was derived from its keys, so that nobody is signed out.
func (p *Provider) ssoKey(ctx context.Context) ([]byte, error) {
	keys, err := p.store.SigningKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("provider: cookie key: %w", err)
	}
	first := seal.NewKey()
	if keys.SigningKey != nil { // it has run before
		if first, err = hkdf.Key(sha256.New, p.options.CookieKey, nil, "gatehouse sso cookie", len(first)); err != nil {
			return nil, fmt.Errorf("provider: cookie key: %w", err)
		}
	}
	key, _, err := p.store.Secret(ctx, "sso", func() []byte { return first })
	if err == nil && len(key) != len(first) {
		err = fmt.Errorf("the stored secret sso has %d bytes, want %d: restore the database", len(key), len(first))
	}
	if err != nil {
		return nil, fmt.Errorf("provider: cookie key: %w", err)
	}
	return key, nil
}

// doors are those of the current configuration, nil before there is one.
func (p *Provider) doors() *identity.Doors {
	if g := p.current.Load(); g != nil {
		return g.doors
	}
	return nil
}

func newProvider(ctx context.Context, o Options) *Provider {
	p := &Provider{
		issuer: o.Config.IssuerURL, options: o, store: o.Store, secret: rand.Text(), requests: newRequestMetrics(), now: o.Now, log: o.Log, audit: o.Audit,
		dexLog: slog.New(quiet{o.Log.Handler()}).With("part", "dex"), life: ctx,
		ended: newEnded(), reloaded: make(chan struct{}, 1),
	}
	p.outbox = newOutbox(p.store, p.now, p.log)
	p.outbox.client, p.outbox.sign, p.outbox.http.Timeout = p.clientNow, p.signLogout, cmp.Or(o.patience, noticeTimeout)
	p.keys = &KeySet{issuer: p.issuer.String(), now: p.now}
	p.keyCache = &keyCache{Store: p.store, now: p.now, set: p.keys}
	p.keys.reread = p.keyCache.read
	return p
}

// gcEvery is how often what has expired is deleted. Dex would do it by generation, and so never where one lives shorter.
const gcEvery = time.Minute

// gcMargin is for how long what has expired stays: a replica whose clock is ahead by less ends no session of the others. Nobody takes what has expired meanwhile.
const gcMargin = 15 * time.Minute

func (p *Provider) collectGarbage(ctx context.Context) {
	tick := time.NewTicker(gcEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := p.store.GarbageCollect(ctx, p.now().Add(-gcMargin)); err != nil && ctx.Err() == nil {
				p.log.ErrorContext(ctx, "what has expired cannot be deleted", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Handler serves the issuer's pages and endpoints, below the issuer's path. A request ends on the generation that it began with.
func (p *Provider) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := p.acquire()
		defer p.leave(r.Context(), g)
		g.front.ServeHTTP(w, r)
	})
}

// SignInPath is where a browser is sent to sign in, below the issuer's path.
func (p *Provider) SignInPath() string { return p.current.Load().front.SignInPath() }

// SignedOutURL is the page that says goodbye.
func (p *Provider) SignedOutURL() string { return p.current.Load().front.SignedOutURL() }

// Keys are the issuer's public keys, always the current ones.
func (p *Provider) Keys() *KeySet { return p.keys }

// Ready fails while nobody could sign in: the store does not answer, or there is no signing key yet.
func (p *Provider) Ready(ctx context.Context) error {
	if p.keys.keys.Load() == nil {
		return errors.New("no signing key yet")
	}
	return p.store.Ping(ctx)
}

func (p *Provider) verify(ctx context.Context, raw, audience string) (front.Token, error) {
	t, err := p.keys.Verify(ctx, raw, audience)
	return frontToken(t), err
}

func frontToken(t IDToken) front.Token {
	return front.Token{Subject: t.Subject, Nonce: t.Nonce, SessionID: t.SessionID, Client: t.Client, IssuedAt: t.IssuedAt}
}

// openSigner returns what signs tokens, with the keys that all generations share.
func (p *Provider) openSigner(c *config.Config) (signer.Signer, error) {
	sign, err := (&signer.LocalConfig{
		KeysRotationPeriod: c.Signer.Config.KeysRotationPeriod.Std().String(), Algorithm: jose.SignatureAlgorithm(c.Signer.Config.Algorithm),
	}).Open(p.life, p.keyCache, c.Expiry.IDTokens.Std(), p.now, p.dexLog)
	if err != nil {
		return nil, fmt.Errorf("provider: signer: %w", err)
	}
	return sign, nil
}

// startDex builds Dex's server. Its background work ends with ctx.
func (p *Provider) startDex(ctx context.Context, g *generation, sign signer.Signer) error {
	c, o := g.config, p.options
	factors, err := secondFactors(c)
	if err != nil {
		return err
	}
	g.dex, err = server.NewServer(ctx, server.Config{
		Issuer: c.Issuer, Storage: keyed{g.storage, p.keyCache}, Signer: innerSigner{sign, p.inner}, Logger: p.dexLog, Now: o.Now,
		AllowedGrantTypes: grantTypes(c), SupportedResponseTypes: c.OAuth2.ResponseTypes,
		PKCE:               authflow.PKCEConfig{Enforce: c.OAuth2.PKCE.Enforce, CodeChallengeMethodsSupported: pkceMethods(c)},
		SkipApprovalScreen: c.OAuth2.SkipApprovalScreen,
		// A choice that is always shown makes a request without connector_id a pure read: our page depends on it.
		AlwaysShowLoginScreen: true,
		PasswordConnector:     c.OAuth2.PasswordConnector,
		IDTokensValidFor:      c.Expiry.IDTokens.Std(), AuthRequestsValidFor: c.Expiry.AuthRequests.Std(), DeviceRequestsValidFor: c.Expiry.DeviceRequests.Std(),
		RefreshTokenPolicy: refreshPolicy(c, o.Now),
		GCFrequency:        never, // see collectGarbage
		Headers:            c.Web.Headers.HTTP(), AllowedOrigins: c.Web.AllowedOrigins, AllowedHeaders: c.Web.AllowedHeaders,
		SessionConfig: g.sessions, MFAProviders: factors, DefaultMFAChain: c.MFA.DefaultMFAChain,
		HealthChecker: gosundheit.New(),
		Web:           server.WebConfig{WebFS: dexFiles{o.Pages.FS()}, Issuer: c.Frontend.Issuer, LogoURL: c.Frontend.LogoURL, Theme: "light", Extra: c.Frontend.Extra},
	})
	if err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

func (p *Provider) frontOptions(g *generation) front.Options {
	c, o := g.config, p.options
	f := front.Options{
		Issuer: c.IssuerURL, Dex: p.requests.counting(g.dex, c.IssuerURL.Path), Doors: g.doors, Storage: g.storage, ClientSecret: p.secret, Ring: o.Ring, Pages: o.Pages,
		Sessions: &session.Manager{Storage: g.storage, Config: g.sessions, Now: o.Now, Logger: p.dexLog, IssuerURL: oauth2.IssuerURL{URL: *c.IssuerURL}},
		Verify: func(ctx context.Context, raw string) (front.Token, error) {
			t, err := p.inner.verify(ctx, p.keys, raw, front.GatewayClient)
			return frontToken(t), err
		},
		VerifyAny: func(ctx context.Context, raw string) (front.Token, error) {
			t, err := p.verify(ctx, raw, "")
			if err == nil {
				err = g.cutoffs.clientStands(ctx, t)
			}
			return t, toldOf(err)
		},
		Vouch: func(ctx context.Context, connectorID, userID string, since time.Time) error {
			defer store.Forget(ctx) // the answer may have changed the user
			return p.vouch(ctx, connectorID, userID, since)
		},
		LetIn:      p.letIn,
		CheckHint:  CheckHint,
		VerifyHint: p.verifyHint,
		Replayed:   p.replayed,
		SignOut:    func(ctx context.Context, id string) (string, error) { return p.end(ctx, g, id, cause{by: byUser}) },
		PasswordChanged: func(ctx context.Context, connectorID, userID, kept string) {
			p.passwordChanged(ctx, g, connectorID, userID, kept)
		},
		Link: p.link,
		UpstreamLogout: func(ctx context.Context, connector, token string) error {
			return p.upstreamLogout(ctx, g, connector, token)
		},
		Account:    p.account(),
		SkipChoice: !c.OAuth2.AlwaysShowLoginScreen,
		RememberMe: true, Remembered: c.Sessions.RememberMeCheckedByDefault,
		IPHeader: c.Web.ClientRemoteIP.Header, TrustedProxies: c.Web.ClientRemoteIP.Prefixes,
		CountNetworks:  c.Web.ClientRemoteIP.Header != "",
		AllowedOrigins: c.Web.AllowedOrigins, Headers: c.Web.Headers.HTTP(), Refresh: refreshPolicy(c, o.Now), RefreshIdle: c.Expiry.RefreshTokens.ValidIfNotUsedFor.Std(),
		Routes: front.Routes{Device: deviceFlow(c)}, Devices: &p.devices, DevicesFor: c.Expiry.DeviceRequests.Std(),
		Now: o.Now, Log: o.Log, Audit: o.Audit, Registerer: o.Registry,
	}
	if g := c.Gateway; g != nil {
		f.Hosts, f.Prefix, f.SameSite = g.HostSet, g.Prefix, http.SameSiteLaxMode
		if g.Cookie.SameSite == config.SameSiteStrict {
			f.SameSite = http.SameSiteStrictMode
		}
	}
	return f
}

// toldOf is why a token is no good, or front.ErrUnknown where the store does not tell.
func toldOf(err error) error {
	if errors.Is(err, errReadKeys) || errors.Is(err, errReadClient) {
		return errors.Join(front.ErrUnknown, err)
	}
	return err
}

// refreshPolicy is Dex's, from its own configuration keys.
func refreshPolicy(c *config.Config, now func() time.Time) *tokens.RefreshStrategy {
	r := c.Expiry.RefreshTokens
	return tokens.NewRefreshStrategy(!r.DisableRotation, r.AbsoluteLifetime.Std(), r.ValidIfNotUsedFor.Std(), r.ReuseInterval.Std(), now)
}
