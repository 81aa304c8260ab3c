package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"gatehouse/internal/config"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/web"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/storage"
)

// A generation is all that follows from one configuration. It does not change. Requests end on the one that they
// began with; when the last of them has, the generation ends.
type generation struct {
	config   *config.Config
	sessions *session.Config
	storage  storage.Storage // what Dex sees: static entries added, blocked users hidden
	cutoffs  cutoffs         // below it
	dex      *server.Server
	doors    *identity.Doors
	front    *front.Front
	stop     context.CancelFunc

	users  atomic.Int64  // requests, and one for being the current generation
	unused chan struct{} // closed when the last of them has ended
}

// newGeneration builds a generation, beside the running one if there is one. The caller is its first user.
func (p *Provider) newGeneration(c *config.Config, running *generation) (_ *generation, err error) {
	ctx, stop := context.WithCancel(p.life)
	g := &generation{config: c, sessions: sessionConfig(c, p.sso), stop: stop, unused: make(chan struct{})}
	g.users.Store(1)
	defer func() {
		if err != nil {
			stop()
		}
	}()
	all, err := p.dexStorage(c)
	if err != nil {
		return nil, err
	}
	gate := identity.NewGate(all)
	g.storage, g.cutoffs = gate, all
	sign, err := p.openSigner(c)
	if err != nil {
		return nil, err
	}
	if err := p.startDex(ctx, g, sign); err != nil {
		return nil, err
	}
	g.dex.Connectors().Close(placeholder)
	opts := identity.Options{
		Limits: identity.DefaultLimits(), Store: p.store, Now: p.now, Log: p.dexLog, OwnLog: p.log, OpenTimeout: openTimeout, RetryEvery: retryEvery,
		Match: p.options.Match, Resolve: p.options.resolve, Upstream: p.upstream, DocumentsLimit: p.options.patience,
	}
	if running != nil {
		opts.Previous = running.doors
	}
	if g.doors, err = identity.Open(ctx, g.dex.Connectors(), all, opts); err != nil {
		return nil, fmt.Errorf("provider: %w", err)
	}
	gate.Show(g.doors)
	if g.front, err = front.New(p.frontOptions(g)); err != nil {
		g.doors.Close()
		return nil, fmt.Errorf("provider: %w", err)
	}
	return g, nil
}

// acquire returns the current generation for one request, which releases it at its end.
func (p *Provider) acquire() *generation {
	for {
		g := p.current.Load()
		for n := g.users.Load(); n > 0; n = g.users.Load() {
			if g.users.CompareAndSwap(n, n+1) {
				return g
			}
		} // it ended between the two: there is another one
	}
}

func (g *generation) release() {
	if g.users.Add(-1) == 0 {
		close(g.unused)
	}
}

// endGeneration ends a generation that nobody uses any more.
func (p *Provider) endGeneration(g *generation) {
	g.stop()
	g.doors.Close()
}

// A Next is a configuration that is ready to become the current one: everything of it is built, and connectors that
// did not change are carried over open. It ends with Drop, or with Use and Settle.
type Next struct {
	p   *Provider
	g   *generation
	old *generation // after Use
}

// Prepare builds what follows from c beside what runs, which goes on unchanged. It waits for connectors that must be
// opened, at most as long as New does. One Next is there at a time.
func (p *Provider) Prepare(c *config.Config) (*Next, error) {
	g, err := p.newGeneration(c, p.current.Load())
	if err != nil {
		return nil, err
	}
	return &Next{p: p, g: g}, nil
}

// SignInPath is Provider.SignInPath of the new configuration.
func (n *Next) SignInPath() string { return n.g.front.SignInPath() }

// Drop gives up what Prepare built.
func (n *Next) Drop() {
	n.g.release()
	n.p.endGeneration(n.g)
}

// Use makes the configuration the current one, from the next request on; requests under way end on what they began with. Former secrets
// of clients and passwords of users are refused before the new ones are good.
func (n *Next) Use() {
	n.p.markBefore(n.p.current.Load().config, n.g.config)
	n.old = n.p.current.Swap(n.g)
	n.p.refollow(n.old, n.g)
}

// Settle follows Use: static users who are gone, or have another password, are signed out, what was given out to clients that are gone, or
// have another secret, is revoked, and what has changed about the others is true when it returns. An error says that this could not be stored; it is tried again until it can.
func (n *Next) Settle(ctx context.Context) error {
	err := n.p.reconcileUsers(ctx, touchedUsers(n.old.config, n.g.config))
	if !sameSecrets(n.old.config, n.g.config) {
		err = errors.Join(err, n.p.reconcileSecrets(ctx, n.g.config))
	}
	n.old.release()
	go n.p.retire(n.old)
	return err
}

// leave ends a request. One that began before the current configuration may have signed in somebody of the former, with what
// that said of him: users are looked at before the request ends, that is before a short answer has left.
func (p *Provider) leave(ctx context.Context, g *generation) {
	defer g.release()
	current := p.current.Load()
	if current == g {
		return
	}
	touched := touchedUsers(g.config, current.config)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reconcileTimeout)
	defer cancel()
	if err := p.reconcileUsers(ctx, touched); err != nil {
		p.log.ErrorContext(ctx, "changed users could not be stored; it is tried again", "error", err)
		go p.reconcileUntilStored(touched)
	}
}

// reconcileTimeout is how long a request waits for that, and reconcileEvery the pause after a failure; unreadEvery after one of single records.
const (
	reconcileTimeout = 5 * time.Second
	reconcileEvery   = 2 * time.Second
	unreadEvery      = 5 * time.Minute
)

// retire ends a generation when its last request has ended, and looks at its users for the last time.
func (p *Provider) retire(g *generation) {
	select {
	case <-g.unused:
	case <-p.life.Done():
		return
	}
	p.endGeneration(g)
	touched := touchedUsers(g.config, p.current.Load().config)
	p.untilStored(func() error {
		err := p.reconcileUsers(p.life, touched)
		if now := p.current.Load().config; !sameSecrets(g.config, now) {
			err = errors.Join(err, p.reconcileSecrets(p.life, now))
		}
		return err
	})
}

func (p *Provider) reconcileUntilStored(users []string) {
	p.untilStored(func() error { return p.reconcileUsers(p.life, users) })
}

func (p *Provider) untilStored(reconcile func() error) {
	for {
		err := reconcile()
		if err == nil || p.life.Err() != nil {
			return
		}
		p.log.ErrorContext(p.life, "changed users could not be stored; it is tried again", "error", err)
		pause := reconcileEvery
		if store.OnlyUnread(err) { // somebody has to mend it first
			pause = unreadEvery
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-p.life.Done():
			again.Stop()
			return
		}
	}
}

// Check finds what New would refuse in a configuration, without a connection to anything.
func Check(ctx context.Context, c *config.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages, err := web.New(web.Options{Title: c.Frontend.Issuer})
	if err != nil {
		return err
	}
	p := newProvider(ctx, Options{Config: c, Store: store.Memory(store.Options{}), Pages: pages, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	g := &generation{config: c, sessions: sessionConfig(c, make([]byte, 32))}
	all, err := p.dexStorage(c)
	if err != nil {
		return err
	}
	g.storage = identity.NewGate(all)
	sign, err := p.openSigner(c)
	if err != nil {
		return err
	}
	if err := p.startDex(ctx, g, keyless{sign}); err != nil {
		return err
	}
	return nil
}

// keyless is a signer that makes no keys.
type keyless struct{ signer.Signer }

// Start implements signer.Signer.
func (keyless) Start(context.Context) {}
