package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/config"
	"gatehouse/provider"
)

// A loaded is a configuration as it was read, with all that it names.
type loaded struct {
	path     string
	cfg      *config.Config
	warnings config.Warnings
	files    config.Files
	level    *slog.Level // from the command line, instead of the file's
}

func (l *loaded) logLevel() slog.Level {
	if l.level != nil {
		return *l.level
	}
	return l.cfg.Logger.SlogLevel
}

// read reads a file and finds every mistake. It is the one way to a configuration: what one command accepts, all do. Files and
// warnings come with an error, too.
func read(ctx context.Context, path string) (loaded, error) {
	l := loaded{path: path, files: config.Files{}}
	opts := l.files.Record(config.OS())
	opts.Connector = func(kind string, raw []byte) error {
		for _, name := range provider.ConnectorFiles(kind, raw) {
			_, _ = opts.ReadFile(name) // only to note what is in it: the connector says what is wrong
		}
		return provider.CheckConnector(kind, raw)
	}
	var err error
	if l.cfg, l.warnings, err = config.Load(path, opts); err != nil {
		return l, err
	}
	for i := range l.cfg.Connectors {
		c := &l.cfg.Connectors[i]
		c.Files = config.Files{}
		for _, name := range provider.ConnectorFiles(c.Type, c.Config.JSON()) {
			c.Files[name] = l.files[name]
		}
	}
	err = provider.Check(ctx, l.cfg)
	if err == nil && l.cfg.Gateway != nil {
		_, _, err = explainer(l.cfg, oneSession{})
	}
	if err != nil {
		return l, config.Errors{{File: path, Msg: strings.ReplaceAll(err.Error(), "\n", "; ")}}
	}
	return l, nil
}

// When a change of files is taken up, and how often it is tried again where something else than the file is in the way.
const (
	reloadQuiet   = 200 * time.Millisecond
	reloadLongest = 2 * time.Second
	reloadPoll    = 30 * time.Second
	reloadRetry   = 10 * time.Second
)

// byRetry is why files are read that have not changed.
const byRetry = "retry"

// reloads takes up changed files. One goroutine runs it.
type reloads struct {
	s       *service
	running loaded // the last good one
	hangup  <-chan os.Signal
	watch   *config.Watch
	retry   *time.Timer
	failed  string // why the files could not be taken up the last time

	failures   prometheus.Counter
	successful prometheus.Gauge
	generation atomic.Int64
}

func newReloads(s *service, l loaded, hangup <-chan os.Signal) *reloads {
	r := &reloads{
		s: s, running: l, hangup: hangup,
		watch: config.NewWatch(config.WatchOptions{
			Quiet: reloadQuiet, Longest: reloadLongest, Poll: reloadPoll, ReadFile: os.ReadFile, Notify: fsnotify.NewWatcher, Log: s.log,
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatehouse_config_reload_failures_total", Help: "Changed configurations that were refused or could not be taken up.",
		}),
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gatehouse_config_last_reload_successful", Help: "1 where the files are what runs, 0 where the last change of them was refused.",
		}),
	}
	r.successful.Set(1)
	r.generation.Store(1)
	return r
}

func (r *reloads) register(to prometheus.Registerer) error {
	generation := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gatehouse_config_generation", Help: "How many configurations this process has had, that of the start included.",
	}, func() float64 { return float64(r.generation.Load()) })
	for _, c := range []prometheus.Collector{r.failures, r.successful, generation} {
		if err := to.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// run takes up changes until ctx ends.
func (r *reloads) run(ctx context.Context) {
	go r.watch.Run(ctx)
	r.watch.Read(r.running.files)
	r.retry = time.NewTimer(reloadRetry)
	r.retry.Stop()
	for {
		select {
		case <-r.watch.Changed():
			r.reload(ctx, "change")
		case <-r.hangup:
			r.reload(ctx, "SIGHUP")
		case <-r.retry.C:
			r.reload(ctx, byRetry)
		case <-ctx.Done():
			r.retry.Stop()
			return
		}
	}
}

// reload reads the files and puts what they say in the place of what runs, or says why not.
func (r *reloads) reload(ctx context.Context, why string) {
	r.retry.Stop()
	next, err := read(ctx, r.running.path)
	defer func() { r.watch.Read(next.files) }()
	if err == nil {
		err = config.NeedRestart(next.path, r.running.cfg, next.cfg)
	}
	if err == nil {
		err = config.OutOfDate(next.path, r.running.cfg, next.cfg, utc())
	}
	if err != nil {
		r.refuse(ctx, why, err)
		return
	}
	if len(next.files.Changed(r.running.files)) == 0 {
		r.successful.Set(1)
		r.s.log.InfoContext(ctx, "configuration read again: it is what runs", "why", why)
		return
	}
	next.level = r.running.level
	if err := r.s.apply(ctx, &next); err != nil {
		if ctx.Err() != nil {
			return // the end came first
		}
		r.retry.Reset(reloadRetry)
		r.refuse(ctx, why, err)
		return
	}
	r.successful.Set(1)
	r.generation.Add(1)
	for _, w := range next.warnings {
		if !slices.Contains(r.running.warnings, w) {
			r.s.log.WarnContext(ctx, "configuration", "warning", w.Error())
		}
	}
	r.s.log.InfoContext(ctx, "configuration taken up", "why", why, "generation", r.generation.Load(),
		"changes", strings.Join(differences(&r.running, &next), ", "))
	r.running = next
}

// differences says in words what is different in next.
func differences(running, next *loaded) []string {
	words := config.Summary(running.cfg, next.cfg)
	for _, name := range next.files.Changed(running.files) {
		if name != next.path {
			words = append(words, "content of "+name)
		}
	}
	if len(words) == 0 {
		words = append(words, "nothing but how it is written")
	}
	return words
}

// refuse says what is wrong with the files, mistake by mistake.
func (r *reloads) refuse(ctx context.Context, why string, err error) {
	r.successful.Set(0)
	r.failures.Inc() // last: who sees it sees that the last one was refused
	mistakes, ok := errors.AsType[config.Errors](err)
	if !ok {
		if why == byRetry && err.Error() == r.failed {
			return // the log has it
		}
		r.failed = err.Error()
		r.s.log.ErrorContext(ctx, "configuration cannot be taken up: the last good one stays", "why", why, "error", err)
		return
	}
	for _, m := range mistakes {
		log := r.s.log.With("why", why)
		if m.Line > 0 {
			log = log.With("line", m.Line)
		}
		log.ErrorContext(ctx, "configuration refused: the last good one stays", "key", m.Path, "error", m.Error())
	}
}

// apply makes a configuration decide: of the provider first, then of the gateway, which sends browsers there, then of
// handshakes. What takes its time, the end of sessions, is last: whom a client CA let in must not come in meanwhile. An
// error has changed nothing.
func (s *service) apply(ctx context.Context, l *loaded) error {
	if err := s.checkKeys(ctx, l.cfg); err != nil {
		return err
	}
	next, err := s.provider.Prepare(l.cfg) //nolint:contextcheck // it outlives the reload
	if err != nil {
		return err
	}
	next.Use() //nolint:contextcheck // what it begins outlives the reload
	if s.authz != nil {
		if err := s.authz.Apply(gatewayConfig(l.cfg, s.pages, next.SignInPath())); err != nil { // read has tried it
			s.log.ErrorContext(ctx, "the gateway goes on with the former configuration, the provider does not: restart", "error", err)
		}
	}
	s.applyKeys(ctx, l.cfg)
	s.applyTLS(l.cfg)
	s.level.Set(l.logLevel())
	s.drainDelay.Store(int64(l.cfg.DrainDelay()))
	if s.view != nil {
		s.view.SetGrace(l.cfg.Gateway.Session.StorageGrace.Std())
	}
	if err := next.Settle(ctx); err != nil {
		s.log.ErrorContext(ctx, "changed users could not be stored; it is tried again", "error", err)
	}
	return nil
}
