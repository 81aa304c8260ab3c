package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A bench is the servers and the Envoy in front of them.
type bench struct {
	options
	children []*child // the no-op server first
	envoy    *exec.Cmd
	origins  []string // of Envoy's listeners, one per child
	folder   string
}

// start starts everything. What it returns must be stopped, also with an error.
func start(ctx context.Context, o options) (*bench, error) {
	b := &bench{options: o}
	if o.rounds < 1 || o.round <= 0 {
		return b, errors.New("want at least one round of some length")
	}
	binary, err := findEnvoy(o.envoy)
	if err != nil {
		return b, err
	}
	for _, s := range []struct{ name, kind string }{{"no-op", "noop"}, {"gatehouse, 10 rules", "10"}, {"gatehouse, 1000 rules", "1000"}} {
		c, err := startChild(ctx, s.name, s.kind)
		if err != nil {
			return b, err
		}
		b.children = append(b.children, c)
	}
	return b, b.startEnvoy(ctx, binary)
}

func findEnvoy(flag string) (string, error) {
	candidates := []string{".tools/bin/envoy", "envoy"}
	if flag != "" {
		candidates = []string{flag}
	}
	for _, name := range candidates {
		if found, err := exec.LookPath(name); err == nil {
			return filepath.Abs(found)
		}
	}
	return "", fmt.Errorf("no Envoy at %s: run make bench, which installs it, or give one by -envoy", strings.Join(candidates, " or "))
}

// startEnvoy starts one Envoy with a listener in front of each server, and waits until each lets a request pass.
func (b *bench) startEnvoy(ctx context.Context, binary string) error {
	var err error
	if b.folder, err = os.MkdirTemp("", "gatehouse-bench-"); err != nil {
		return err
	}
	text, origins, err := envoyConfig(ctx, b.children)
	if err != nil {
		return err
	}
	b.origins = origins
	file := filepath.Join(b.folder, "envoy.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, binary, "-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "warn")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	b.envoy = cmd
	ready, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for i, c := range b.children {
		for {
			_, err := throughEnvoy(ready, c, b.origins[i], b.cookiesOf(i), 1, time.Millisecond)
			if err == nil {
				break
			}
			select {
			case <-ready.Done():
				return fmt.Errorf("envoy does not let a request pass: %w", err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

// cookiesOf returns cookies that a server accepts. The no-op server accepts those of any, which are as long.
func (b *bench) cookiesOf(i int) []string {
	if own := b.children[i].Cookies; len(own) > 0 {
		return own
	}
	return b.children[1].Cookies
}

// rows returns what is measured.
func (b *bench) rows() []row {
	var names []string
	for _, c := range b.children {
		names = append(names, c.name)
	}
	var rows []row
	for _, parallel := range []int{1, 8, 64} {
		rows = append(rows, row{
			name: fmt.Sprintf("direct, %d parallel", parallel), servers: names,
			load: func(ctx context.Context, i int) (sample, error) {
				return direct(ctx, b.children[i], b.cookiesOf(i), parallel, b.round)
			},
		})
	}
	return append(rows, row{
		name: "Envoy, 8 parallel", servers: names,
		load: func(ctx context.Context, i int) (sample, error) {
			return throughEnvoy(ctx, b.children[i], b.origins[i], b.cookiesOf(i), 8, b.round)
		},
	})
}

// stop ends what was started, and only that.
func (b *bench) stop() error {
	var errs []error
	if b.envoy != nil {
		errs = append(errs, b.envoy.Process.Signal(os.Interrupt))
		var exit *exec.ExitError
		if err := b.envoy.Wait(); err != nil && !errors.As(err, &exit) {
			errs = append(errs, err)
		}
	}
	for _, c := range b.children {
		errs = append(errs, c.stop())
	}
	if b.folder != "" {
		errs = append(errs, os.RemoveAll(b.folder))
	}
	return errors.Join(errs...)
}
