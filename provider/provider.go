// Package provider is the OpenID Provider: Dex, run as a library with our store, signing keys, connectors and
// pages. Only this package and those below it know Dex.
package provider

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
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
	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// Connectors that ask somebody at the start get this long before the start goes on without them, and are then tried again.
const (
	openTimeout = 10 * time.Second
	retryEvery  = 30 * time.Second
)

// placeholder is the id of the connector that Dex starts with.
const placeholder = "local"

// Options for New; all are needed.
type Options struct {
	Config     *config.Config
	Store      *store.Store
	Ring       *seal.Ring // for the purposes of front.Purposes
	CookieKey  []byte     // what the key of Dex's session cookie is derived from
	Pages      *web.Pages
	Log, Audit *slog.Logger
	Registry   *prometheus.Registry
	Now        func() time.Time // in UTC
}

// A Provider is a running OpenID Provider. Its parts stop when the context of New ends.
type Provider struct {
	issuer   *url.URL
	store    *store.Store    // the record of everything; blocked users can be read
	dexStore storage.Storage // what Dex sees: static entries added, blocked users hidden
	dex      *server.Server
	doors    *identity.Doors
	sessions *session.Config
	keys     *KeySet
	front    *front.Front
	now      func() time.Time
	log      *slog.Logger
	dexLog   *slog.Logger
	audit    *slog.Logger
}

// New starts a provider. An error says which connector, or what else of the configuration, does not work.
func New(ctx context.Context, o Options) (*Provider, error) {
	p := &Provider{
		issuer: o.Config.IssuerURL, store: o.Store, now: o.Now, log: o.Log, audit: o.Audit,
		dexLog: slog.New(quiet{o.Log.Handler()}).With("part", "dex"),
	}
	key, err := hkdf.Key(sha256.New, o.CookieKey, nil, "gatehouse sso cookie", 32)
	if err != nil {
		return nil, fmt.Errorf("provider: cookie key: %w", err)
	}
	p.sessions = sessionConfig(o.Config, key)

	secret := rand.Text() // of the internal client: known to this process only, and good on every replica's own token endpoint
	if p.dexStore, err = dexStorage(o, secret, p.dexLog); err != nil {
		return nil, err
	}
	all := p.dexStore
	gate := identity.NewGate(all)
	p.dexStore = gate
	if err := p.startDex(ctx, o, p.newKeyCache()); err != nil {
		return nil, err
	}
	p.dex.Connectors().Close(placeholder)
	p.doors, err = identity.Open(ctx, p.dex.Connectors(), all, identity.Options{
		Limits: identity.DefaultLimits(), Store: o.Store, Now: o.Now, Log: p.dexLog, OpenTimeout: openTimeout, RetryEvery: retryEvery,
	})
	if err != nil {
		return nil, fmt.Errorf("provider: %w", err)
	}
	gate.Show(p.doors)
	p.front, err = front.New(p.frontOptions(o, secret))
	if err != nil {
		return nil, fmt.Errorf("provider: %w", err)
	}
	return p, nil
}

// Handler serves the issuer's pages and endpoints, below the issuer's path.
func (p *Provider) Handler() http.Handler { return p.front }

// SignInPath is where a browser is sent to sign in, below the issuer's path.
func (p *Provider) SignInPath() string { return p.front.SignInPath() }

// SignedOutURL is the page that says goodbye.
func (p *Provider) SignedOutURL() string { return p.front.SignedOutURL() }

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
	return front.Token{Subject: t.Subject, Nonce: t.Nonce, SessionID: t.SessionID, Client: t.Client}, err
}

func (p *Provider) newKeyCache() *keyCache {
	p.keys = &KeySet{issuer: p.issuer.String(), now: p.now}
	c := &keyCache{Storage: p.dexStore, now: p.now, set: p.keys}
	p.keys.reread = func(ctx context.Context) error {
		_, err := c.read(ctx)
		return err
	}
	return c
}

// startDex builds Dex's server. Its background work ends with ctx.
func (p *Provider) startDex(ctx context.Context, o Options, cache *keyCache) error {
	c := o.Config
	sign, err := (&signer.LocalConfig{
		KeysRotationPeriod: c.Signer.Config.KeysRotationPeriod.Std().String(), Algorithm: jose.SignatureAlgorithm(c.Signer.Config.Algorithm),
	}).Open(ctx, cache, c.Expiry.IDTokens.Std(), o.Now, p.dexLog)
	if err != nil {
		return fmt.Errorf("provider: signer: %w", err)
	}
	factors, err := secondFactors(c)
	if err != nil {
		return err
	}
	p.dex, err = server.NewServer(ctx, server.Config{
		Issuer: c.Issuer, Storage: cache, Signer: sign, Logger: p.dexLog, Now: o.Now,
		AllowedGrantTypes: grantTypes(c), SupportedResponseTypes: c.OAuth2.ResponseTypes,
		PKCE:               authflow.PKCEConfig{Enforce: c.OAuth2.PKCE.Enforce, CodeChallengeMethodsSupported: pkceMethods(c)},
		SkipApprovalScreen: c.OAuth2.SkipApprovalScreen,
		// A choice that is always shown makes a request without connector_id a pure read: our page depends on it.
		AlwaysShowLoginScreen: true,
		PasswordConnector:     c.OAuth2.PasswordConnector,
		IDTokensValidFor:      c.Expiry.IDTokens.Std(), AuthRequestsValidFor: c.Expiry.AuthRequests.Std(), DeviceRequestsValidFor: c.Expiry.DeviceRequests.Std(),
		RefreshTokenPolicy: refreshPolicy(c, o.Now),
		GCFrequency:        time.Minute,
		Headers:            c.Web.Headers.HTTP(), AllowedOrigins: c.Web.AllowedOrigins, AllowedHeaders: c.Web.AllowedHeaders,
		SessionConfig: p.sessions, MFAProviders: factors, DefaultMFAChain: c.MFA.DefaultMFAChain,
		PrometheusRegistry: o.Registry, HealthChecker: gosundheit.New(),
		Web: server.WebConfig{WebFS: o.Pages.FS(), Issuer: c.Frontend.Issuer, LogoURL: c.Frontend.LogoURL, Theme: "light", Extra: c.Frontend.Extra},
	})
	if err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

func (p *Provider) frontOptions(o Options, secret string) front.Options {
	c := o.Config
	f := front.Options{
		Issuer: c.IssuerURL, Dex: p.dex, Doors: p.doors, Storage: p.dexStore, ClientSecret: secret, Ring: o.Ring, Pages: o.Pages,
		Sessions: &session.Manager{Storage: p.dexStore, Config: p.sessions, Now: o.Now, Logger: p.dexLog, IssuerURL: oauth2.IssuerURL{URL: *c.IssuerURL}},
		Verify: func(ctx context.Context, raw string) (front.Token, error) {
			return p.verify(ctx, raw, front.GatewayClient)
		},
		VerifyAny:  func(ctx context.Context, raw string) (front.Token, error) { return p.verify(ctx, raw, "") },
		SignOut:    p.SignOut,
		SkipChoice: !c.OAuth2.AlwaysShowLoginScreen,
		RememberMe: true, Remembered: c.Sessions.RememberMeCheckedByDefault,
		IPHeader: c.Web.ClientRemoteIP.Header, TrustedProxies: c.Web.ClientRemoteIP.Prefixes,
		CountNetworks: c.Web.ClientRemoteIP.Header != "",
		Routes:        front.Routes{Device: deviceFlow(c)},
		Now:           o.Now, Log: o.Log, Audit: o.Audit, Registerer: o.Registry,
	}
	if g := c.Gateway; g != nil {
		f.Hosts, f.Prefix, f.SameSite = g.HostSet, g.Prefix, http.SameSiteLaxMode
		if g.Cookie.SameSite == config.SameSiteStrict {
			f.SameSite = http.SameSiteStrictMode
		}
	}
	return f
}

// refreshPolicy is Dex's, from its own configuration keys.
func refreshPolicy(c *config.Config, now func() time.Time) *tokens.RefreshStrategy {
	r := c.Expiry.RefreshTokens
	return tokens.NewRefreshStrategy(!r.DisableRotation, r.AbsoluteLifetime.Std(), r.ValidIfNotUsedFor.Std(), r.ReuseInterval.Std(), now)
}
