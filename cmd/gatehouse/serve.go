package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"gatehouse/authz"
	"gatehouse/authz/session"
	"gatehouse/internal/audit"
	"gatehouse/internal/config"
	"gatehouse/internal/hosts"
	"gatehouse/internal/listen"
	"gatehouse/internal/passwords"
	"gatehouse/internal/reach"
	"gatehouse/internal/seal"
	"gatehouse/provider"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
	"gatehouse/web"
)

// drainTime is how long requests under way may still take after SIGTERM and the delay of the configuration, and auditQueue how many bytes of audit events
// wait for a slow reader of standard output.
const (
	drainTime  = 10 * time.Second
	auditQueue = 8 << 20
)

func serveCommand() *cobra.Command {
	var path, level string
	c := &cobra.Command{
		Use: "serve --config FILE", Short: "Run the provider and the gateway's authorizer",
		Long: `Run the OpenID Provider and, where the file has a gateway block, the ext_authz authorizer. The log is JSON on
standard error; audit events (one for each decision and each sign-in) are JSON on standard output. SIGTERM drains.

The file, and those that it names, are read again when they change and on SIGHUP. A file with a mistake, or with a change
that needs a restart, is told in the log and changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := load(c.Context(), c, path)
			if err != nil {
				return err
			}
			if level != "" {
				l.level = new(slog.Level)
				if err := l.level.UnmarshalText([]byte(level)); err != nil {
					return fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
				}
			}
			return serve(c.Context(), l, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&path, "config", "", "the configuration file (required)")
	c.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error, instead of the file's")
	_ = c.MarkFlagRequired("config") // the flag is there
	return c
}

// A service is everything that runs: the one place where all parts meet.
type service struct {
	cfg         *config.Config // of the start; what runs now is in reloads
	log         *slog.Logger
	level       slog.LevelVar
	auditLog    *slog.Logger
	audit       *audit.Writer
	registry    *prometheus.Registry
	store       *store.Store
	passwords   *passwords.Pool
	provider    *provider.Provider
	ring        *seal.Ring
	atRest      *seal.AtRest  // nil where gateway.keys.file is not set
	rekeyed     chan struct{} // of one element: atRest has other keys
	pages       *web.Pages
	portMetrics *listen.Metrics
	draining    atomic.Bool  // no more requests are wanted
	drainDelay  atomic.Int64 // config.DrainDelay of what runs

	webTLS, grpcTLS *listen.TLS // nil where the listener speaks plain text, or is not there

	view   *session.View // these two are nil without a gateway
	authz  *authz.Server
	grpc   *grpc.Server
	health *health.Server
}

// serve runs what was loaded until ctx ends or a part fails.
func serve(ctx context.Context, l loaded, stdout, stderr io.Writer) error {
	hangup := make(chan os.Signal, 1) // it would end the process
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	s := &service{cfg: l.cfg, audit: audit.NewWriter(stdout, auditQueue), registry: prometheus.NewRegistry(), rekeyed: make(chan struct{}, 1)}
	s.log = newLogger(l.cfg, &s.level, stderr)
	s.level.Set(l.logLevel())
	s.drainDelay.Store(int64(l.cfg.DrainDelay()))
	s.auditLog = slog.New(slog.NewJSONHandler(s.audit, nil)).With("log", "audit")
	tuneMemory(ctx, s.log)
	s.warnOfFewFiles(ctx, openFiles())
	for _, w := range l.warnings {
		s.log.WarnContext(ctx, "configuration", "warning", w.Error())
	}
	defer s.flushAudit(context.WithoutCancel(ctx))
	unlock, err := lockStore(l.cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.openStore(ctx); err != nil {
		return err
	}
	defer func() { _ = s.store.Close() }()
	s.passwords = newPasswords(context.WithoutCancel(ctx), s.log)
	defer s.passwords.Close()

	background, stop := context.WithCancel(context.WithoutCancel(ctx)) // of the provider's own work, which outlives the drain
	defer stop()
	interrupt := context.AfterFunc(ctx, stop) // during the start, which may wait for an upstream
	if err := s.build(background); err != nil {
		return err
	}
	if !interrupt() {
		return nil
	}
	err = s.run(ctx, background, stop, newReloads(s, l, hangup))
	s.finish(context.WithoutCancel(ctx))
	return err
}

// finish waits for what must be in the store before it closes: an identity provider's answer may have the only token that is still good.
func (s *service) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	s.provider.Finish(ctx)
}

func (s *service) flushAudit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.audit.Close(ctx); err != nil {
		s.log.ErrorContext(ctx, "audit events were lost at the end", "error", err)
	}
}

func newLogger(cfg *config.Config, level slog.Leveler, out io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if slices.Contains(cfg.Logger.ExcludeFields, a.Key) {
			return slog.Attr{}
		}
		return a
	}}
	if cfg.Logger.Format == "text" {
		return slog.New(slog.NewTextHandler(out, opts))
	}
	return slog.New(slog.NewJSONHandler(out, opts))
}

// lockStore makes this process the only one that serves from the storage of cfg, until it ends or unlock is called, where the storage is
// not made for replicas: two would decide about each other's users, each by its own file.
func lockStore(cfg *config.Config) (unlock func(), err error) {
	if cfg.Storage.Type != "sqlite" {
		return func() {}, nil
	}
	l, err := store.LockSQLite(cfg.Storage.Config.File)
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Close() }, nil
}

func openStore(ctx context.Context, cfg *config.Config, log *slog.Logger, sealer store.Sealer) (*store.Store, error) {
	opts, c := store.Options{Now: utc, Logger: log, Sealer: sealer}, cfg.Storage.Config
	switch cfg.Storage.Type {
	case "memory":
		return store.Memory(opts), nil
	case "sqlite":
		return store.OpenSQLite(ctx, c.File, opts)
	case "postgres":
		return store.OpenPostgres(ctx, store.PostgresConfig{
			Host: c.Host, Port: c.Port, Database: c.Database, User: c.User, Password: c.Password.Reveal,
			ConnectTimeout: time.Duration(c.ConnectionTimeout) * time.Second, MaxOpenConns: c.MaxOpenConns, MaxIdleConns: c.MaxIdleConns,
			ConnMaxLifetime: time.Duration(c.ConnMaxLifetime) * time.Second,
			SSL:             store.PostgresSSL{Mode: c.SSL.Mode, CAFile: c.SSL.CAFile, CertFile: c.SSL.CertFile, KeyFile: c.SSL.KeyFile},
		}, opts)
	case "etcd":
		return store.OpenEtcd(ctx, store.EtcdOptions{
			Endpoints: c.Endpoints, Namespace: c.Namespace, Username: c.Username, Password: c.Password.Reveal(),
			SSL: store.EtcdSSL{ServerName: c.SSL.ServerName, CAFile: c.SSL.CAFile, CertFile: c.SSL.CertFile, KeyFile: c.SSL.KeyFile},
		}, opts)
	case "kubernetes":
		return store.OpenKubernetes(ctx, store.KubernetesConfig{InCluster: c.InCluster, KubeConfigFile: c.KubeConfigFile, Namespace: c.Namespace}, opts)
	}
	return nil, fmt.Errorf("storage.type: no way to open %q", cfg.Storage.Type)
}

func utc() time.Time { return time.Now().UTC() }

// build makes all parts and joins them.
func (s *service) build(ctx context.Context) (err error) {
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := s.prepareTLS(); err != nil {
		return err
	}
	stored, cookieKey, err := s.openRing(ctx)
	if err != nil {
		return err
	}
	if s.pages, err = web.New(web.Options{Title: s.cfg.Frontend.Issuer}); err != nil {
		return err
	}
	s.provider, err = provider.New(ctx, provider.Options{
		Config: s.cfg, Store: s.store, Ring: s.ring, CookieKey: cookieKey, StoredRing: stored, Pages: s.pages,
		Log: s.log, Audit: s.auditLog, Registry: s.registry, Now: utc, Match: s.passwords.Match,
	})
	if err != nil {
		return err
	}
	if s.cfg.Web.ClientRemoteIP.Header == "" {
		s.log.WarnContext(ctx, "the browsers' addresses are not known: sign-in limits count user names only; set web.clientRemoteIP")
	}
	if s.cfg.Gateway == nil {
		return s.registerMetrics()
	}
	s.view = session.NewView(viewStore{s.provider}, session.Options{
		Capacity: s.cfg.Gateway.Session.Cache, Idle: s.cfg.Sessions.ValidIfNotUsedFor.Std(), Now: utc, Logger: s.log,
		Silence: s.store.FeedAge, Grace: s.cfg.Gateway.Session.StorageGrace.Std(),
	})
	s.authz, err = authz.NewServer(authz.Options{
		Ring: s.ring, Sessions: s.view, Ender: s.provider, Pages: gatewayPages{s.pages, s.cfg.Gateway.Prefix + "/sign-out", s.provider.AccountURL()}, Signer: appTokens{s.provider}, Audit: s.audit, Logger: s.log, Registerer: s.registry, Now: utc,
	})
	if err != nil {
		return err
	}
	if err := s.authz.Apply(gatewayConfig(s.cfg, s.pages, s.provider.SignInPath())); err != nil {
		return err
	}
	s.provider.OnKeysWithdrawn(s.authz.RenewTokens)
	s.grpc, s.health = authz.NewGRPCServer(s.authz, s.grpcOptions()...)
	return s.registerMetrics()
}

// gatewayConfig is one generation of the authorizer.
func gatewayConfig(c *config.Config, pages *web.Pages, signInPath string) *authz.Config {
	g := c.Gateway
	host, _ := hosts.Canonical(c.IssuerURL.Host) // checked by package config
	out := &authz.Config{
		Policy: g.Policy, Hosts: g.HostSet, SignInPath: signInPath, Prefix: g.Prefix, SameSite: http.SameSiteLaxMode,
		Issuer: authz.Issuer{
			Host: host, Path: c.IssuerURL.Path, Origin: c.IssuerURL.Scheme + "://" + c.IssuerURL.Host,
		},
		OtherCookies: front.CookieNames(c.Sessions.CookieName), PageResources: pages.Resources(),
	}
	for name, attribute := range g.Identity.Headers {
		out.IdentityHeaders = append(out.IdentityHeaders, authz.IdentityHeader{Name: name, Claim: authz.Claim(attribute)})
	}
	slices.SortFunc(out.IdentityHeaders, func(a, b authz.IdentityHeader) int { return strings.Compare(a.Name, b.Name) })
	if t := g.Identity.Token; t != nil {
		out.Token = &authz.AppToken{Header: t.Header, Audience: t.Audience, TTL: t.TTL.Std()}
	}
	if g.Clients == config.ClientsKubeflow {
		out.Clients = authz.ClientsKubeflow
	}
	if g.Cookie.SameSite == config.SameSiteStrict {
		out.SameSite = http.SameSiteStrictMode
	}
	return out
}

// run opens every port before it serves any, serves, and drains when ctx ends. Nothing is done about users who are not in
// the file any more before all ports are open: a process that cannot serve signs nobody out.
func (s *service) run(ctx, background context.Context, stop func(), r *reloads) error {
	if err := r.register(s.registry); err != nil {
		return err
	}
	all, err := s.listeners(ctx)
	if err != nil {
		return err
	}
	if err := s.provider.Reconcile(ctx); err != nil {
		closeAll(all)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end came first
		}
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range all {
		s.log.InfoContext(ctx, "listening", "for", l.name, "address", l.net.Addr().String())
		g.Go(func() error {
			if err := l.serve(l.net); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			return nil
		})
	}
	g.Go(func() error { return s.follow(background) })
	g.Go(func() error {
		s.resealRecords(background)
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		defer stop()
		if ctx.Err() != nil { // else a part has failed
			again := make(chan os.Signal, 1)
			signal.Notify(again, os.Interrupt, syscall.SIGTERM)
			defer signal.Stop(again)
			s.leave(context.WithoutCancel(ctx), again)
		}
		return s.drain(context.WithoutCancel(ctx), all)
	})
	g.Go(func() error {
		s.tellStorage(background)
		return nil
	})
	g.Go(func() error {
		r.run(gctx)
		return nil
	})
	g.Go(func() error {
		tryIssuer(gctx, s.log, reach.NewClient(), s.cfg.IssuerURL, gatewayDelay)
		return nil
	})
	debug.FreeOSMemory() // what the start has left behind: gcPercent would let it stay
	s.log.InfoContext(ctx, "ready", "version", version(), "issuer", s.cfg.Issuer)
	return g.Wait()
}

// follow reads the changes of other processes until ctx ends.
func (s *service) follow(ctx context.Context) error {
	if err := s.store.Follow(ctx); ctx.Err() == nil {
		return fmt.Errorf("store: change log: %w", err)
	}
	return nil
}

// storageService is what gRPC health tells of under this name: whether this replica hears of the storage. A gateway with other replicas may leave
// out one that is cut off alone; a gateway that finds all of them so asks them all the same (Envoy: healthy_panic_threshold).
const storageService = "gatehouse.storage"

// How often that is looked at, and how old what is heard may be. The change log is read every two seconds.
const (
	storageLook  = time.Second
	storageQuiet = 10 * time.Second
)

// tellStorage keeps the health of storageService true until ctx ends.
func (s *service) tellStorage(ctx context.Context) {
	if s.health == nil {
		return
	}
	tick := time.NewTicker(storageLook)
	defer tick.Stop()
	for {
		status := healthv1.HealthCheckResponse_SERVING
		if s.store.FeedAge() > storageQuiet {
			status = healthv1.HealthCheckResponse_NOT_SERVING
		}
		s.health.SetServingStatus(storageService, status)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// leave says that no more requests are wanted, and goes on serving until whoever sends them has had the time to hear of it.
// Another signal ends that.
func (s *service) leave(ctx context.Context, again <-chan os.Signal) {
	delay := time.Duration(s.drainDelay.Load())
	s.log.InfoContext(ctx, "leaving: health says so, requests are still served", "for", delay.String())
	s.unready()
	wait := time.NewTimer(delay)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-again:
	}
}

// unready says that no more requests are wanted.
func (s *service) unready() {
	s.draining.Store(true)
	if s.health != nil {
		s.health.Shutdown()
	}
}

// drain lets requests under way end, and closes.
func (s *service) drain(ctx context.Context, all []listener) error {
	s.unready()
	s.log.InfoContext(ctx, "draining")
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	g := new(errgroup.Group)
	for _, l := range all {
		g.Go(func() error { return l.stop(ctx) })
	}
	err := g.Wait()
	if s.view != nil {
		err = errors.Join(err, s.view.Close(ctx))
	}
	if err != nil {
		s.log.WarnContext(ctx, "drained with losses", "error", err)
	}
	return nil
}
