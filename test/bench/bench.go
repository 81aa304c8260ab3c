package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"gatehouse/internal/demo"
	"gatehouse/internal/demo/process"
)

// A bench is the servers and the Envoy in front of some.
type bench struct {
	options
	folder string
	proxy  *process.Process // Envoy; nil: none

	noop, again, noopGC    *server   // the same thrice, the last with the product's GC setting
	products               []*server // the built binary, by number of rules, and last the one with a token for apps
	few, thousands, misses *server   // in-process authorizers, by sessions
	other                  *server   // oauth2-proxy; nil: none
}

// rules are how many each of the products has.
func rules() []int { return []int{10, 1000, 10_000} }

// gcPercent is the setting of `gatehouse serve`.
const gcPercent = 400

// start starts everything. What it returns must be stopped, also with an error.
func start(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{options: o}
	if b.folder, err = os.MkdirTemp("", "gatehouse-bench-"); err != nil {
		return b, err
	}
	if err := b.findPrograms(ctx); err != nil {
		return b, err
	}
	if b.products, err = startProducts(ctx, b.folder, b.gatehouse, o.signIns, o.log); err != nil {
		return b, err
	}
	if b.otherProxy != none {
		if b.other, err = startOAuth2Proxy(ctx, b.folder, b.otherProxy, b.gatehouse); err != nil {
			return b, err
		}
	}
	if err := b.startChildren(ctx); err != nil {
		return b, err
	}
	if err := b.startEnvoy(ctx); err != nil {
		return b, err
	}
	return b, b.prepare(ctx)
}

// findPrograms finds or builds what was not given.
func (b *bench) findPrograms(ctx context.Context) error {
	root, err := sourceTree()
	if err != nil {
		return err
	}
	if b.envoy != none {
		if b.envoy, err = demo.FindEnvoy(ctx, b.envoy, root); err != nil {
			return err
		}
	}
	if b.gatehouse, err = findOrBuild(ctx, b.gatehouse, root, "./cmd/gatehouse", filepath.Join(b.folder, "gatehouse")); err != nil {
		return err
	}
	if b.otherProxy == none {
		return nil
	}
	b.otherProxy, err = findOrBuild(ctx, b.otherProxy, filepath.Join(root, "test", "bench", "oauth2proxy"), otherPackage, filepath.Join(b.folder, "oauth2-proxy"))
	return err
}

// findOrBuild returns the absolute path of a given program, or builds it.
func findOrBuild(ctx context.Context, given, module, pkg, to string) (string, error) {
	if given == "" {
		return to, build(ctx, module, pkg, to)
	}
	found, err := exec.LookPath(given)
	if err != nil {
		return "", err
	}
	return filepath.Abs(found)
}

func (b *bench) startChildren(ctx context.Context) error {
	gatehouse := func(sessions, capacity int) []string {
		return []string{"-gc", strconv.Itoa(gcPercent), "-rules", strconv.Itoa(rules()[0]), "-sessions", strconv.Itoa(sessions), "-capacity", strconv.Itoa(capacity)}
	}
	few := min(1000, b.many/2)
	for _, c := range []struct {
		to   **server
		name string
		args []string
	}{
		{&b.noop, "no-op", nil},
		{&b.again, "no-op, a second one", nil},
		{&b.noopGC, fmt.Sprintf("no-op, GOGC=%d", gcPercent), []string{"-gc", strconv.Itoa(gcPercent)}},
		{&b.few, "in process, " + thousands(few) + " sessions", append(gatehouse(few, 2*few), "-profile", b.profile)},
		{&b.thousands, "in process, " + thousands(b.many) + " sessions", gatehouse(b.many, 2*b.many)},
		{&b.misses, "in process, nearly all misses", gatehouse(b.many, b.many/100)},
	} {
		var err error
		if *c.to, err = startChild(ctx, b.folder, c.name, c.args...); err != nil {
			return fmt.Errorf("server %s: %w", c.name, err)
		}
		if s := *c.to; len(s.cookies) == 0 {
			s.open, s.cookies = true, b.products[0].cookies
		}
	}
	return nil
}

// compared are the servers that are compared with one another, directly and through Envoy.
func (b *bench) compared() []*server {
	list := []*server{b.noop, b.products[0], b.products[len(rules())]}
	if b.other != nil {
		list = append(list, b.other)
	}
	return list
}

// startEnvoy starts one Envoy with a listener in front of each server, and waits until it listens.
func (b *bench) startEnvoy(ctx context.Context) error {
	if b.envoy == none {
		return nil
	}
	servers := b.compared()
	origins, err := freeAddresses(ctx, len(servers))
	if err != nil {
		return err
	}
	for i, s := range servers {
		s.origin = origins[i]
	}
	text, err := envoyConfig(servers)
	if err != nil {
		return err
	}
	file := filepath.Join(b.folder, "envoy.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	b.proxy, err = startProgram(ctx, b.folder, nil, func(ctx context.Context) error {
		for _, s := range servers {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", s.origin)
			if err != nil {
				return err
			}
			_ = c.Close()
		}
		return nil
	}, b.envoy, demo.EnvoyArgs(file)...)
	return err
}

// loads returns what is measured.
func (b *bench) loads() []load {
	var list []load
	for _, parallel := range []int{1, 8, 64} {
		list = append(list, load{name: fmt.Sprintf("direct, %d parallel", parallel), servers: b.compared(), parallel: parallel})
	}
	if b.proxy != nil {
		for _, parallel := range []int{1, 8, 64} {
			list = append(list, load{name: fmt.Sprintf("Envoy, %d parallel", parallel), servers: b.compared(), parallel: parallel, envoy: true})
		}
	}
	list = append(
		list,
		load{name: "rules, 8 parallel", servers: append([]*server{b.noop}, b.products[:len(rules())]...), parallel: 8},
		load{name: "sessions, 8 parallel", servers: []*server{b.noop, b.products[0], b.few, b.thousands, b.misses}, parallel: 8},
		load{name: "control, 8 parallel", servers: []*server{b.noop, b.again, b.noopGC}, parallel: 8},
	)
	return slices.DeleteFunc(list, func(l load) bool { return !b.only.MatchString(l.name) })
}

// cookiesFor returns those that a server of a load is sent. A server that lets everybody in is sent those of the first that
// does not, so that their requests are alike.
func (l load) cookiesFor(i int) []string {
	for _, s := range append([]*server{l.servers[i]}, l.servers...) {
		if !s.open {
			return s.cookies
		}
	}
	return l.servers[i].cookies
}

// prepare proves of each server that it lets in whom it knows and nobody else, and shows it all its sessions once.
func (b *bench) prepare(ctx context.Context) error {
	type way struct {
		server *server
		envoy  bool
	}
	done := map[way]bool{}
	for _, l := range b.loads() {
		l.parallel = 8
		for _, s := range l.servers {
			w := way{s, l.envoy}
			if s.open || done[w] {
				continue
			}
			done[w] = true
			if err := l.prove(ctx, s); err != nil {
				return fmt.Errorf("%s: %s: %w", l.name, s.name, err)
			}
		}
	}
	return nil
}

// prove sends every session once, and then a forged one, which must be refused: otherwise nothing is checked there.
func (l load) prove(ctx context.Context, s *server) error {
	if err := l.once(ctx, s, s.cookies); err != nil {
		return fmt.Errorf("a session is refused: %w", err)
	}
	forged := []byte(s.cookies[0])
	forged[len(forged)-8] ^= 1
	if err := l.once(ctx, s, []string{string(forged)}); err == nil || ctx.Err() != nil {
		return errors.Join(errors.New("a forged session is let in"), ctx.Err())
	}
	return nil
}

// stop ends what was started, and only that.
func (b *bench) stop() error {
	var errs []error
	if b.proxy != nil {
		errs = append(errs, b.proxy.Stop())
	}
	for _, s := range append([]*server{b.noop, b.again, b.noopGC, b.few, b.thousands, b.misses, b.other}, b.products...) {
		if s != nil {
			errs = append(errs, s.stop())
		}
	}
	if b.folder != "" {
		errs = append(errs, os.RemoveAll(b.folder))
	}
	return errors.Join(errs...)
}

// measure runs the servers of a load in turn, so that a change of the machine's load meets all of them.
func measure(ctx context.Context, o options, l load) ([]row, error) {
	samples := make([][]sample, len(l.servers))
	for round := range o.rounds {
		for i := range l.servers {
			i := (i + round) % len(l.servers)
			s, err := l.drive(ctx, l.servers[i], l.cookiesFor(i), o.warmUp, o.round)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.servers[i].name, err)
			}
			samples[i] = append(samples[i], s)
		}
		_, _ = fmt.Fprintf(o.log, "%s: round %d of %d\n", l.name, round+1, o.rounds)
	}
	var rows []row
	for i, s := range l.servers {
		rss, err := s.rss()
		if err != nil {
			return nil, err
		}
		rows = append(rows, newRow(l, s, samples[i], samples[0], rss))
	}
	return rows, nil
}
