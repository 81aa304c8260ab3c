// Command bench compares Gatehouse's check with an ordinary ext_authz server that always says yes.
//
// Both are gRPC servers in processes of their own, driven in turn by the same load, directly and through Envoy. What
// counts is the CPU time per check of the server's process, user and system, as Linux accounts it. Gatehouse runs with the session
// view, the policy, the audit log (to the null device) and metrics on.
//
//	go run ./test/bench [-rounds N] [-round D] [-max RATIO] [-envoy PATH]
//
// The ratio is that of all CPU time to all checks of a row; beside it stands the median of the rounds, with the two
// quartiles. All tell more on a quiet machine. It exits with 1 if the mean ratio of all loads is above -max for a server, or
// if anything failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == serveCommand {
		if err := serve(ctx, args[1:], stdin, stdout); err != nil {
			_, _ = fmt.Fprintln(stderr, "bench serve:", err)
			return 1
		}
		return 0
	}
	o := options{log: stderr}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 15, "rounds; each runs every server once")
	flags.DurationVar(&o.round, "round", 400*time.Millisecond, "length of one run")
	flags.Float64Var(&o.max, "max", 1.3, "largest mean ratio to the no-op server; 0 for any")
	flags.StringVar(&o.envoy, "envoy", "", "Envoy binary (default .tools/bin/envoy, or envoy on PATH)")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := compare(ctx, o, stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

type options struct {
	rounds int
	round  time.Duration
	max    float64
	envoy  string
	log    io.Writer
}

// A row is one load on all servers.
type row struct {
	name    string
	servers []string // names; the first is the yardstick
	load    func(ctx context.Context, server int) (sample, error)
}

// A sample is what one run cost.
type sample struct {
	checks   int
	cpu      time.Duration // of the server
	p50, p99 time.Duration
}

// perCheck returns microseconds.
func (s sample) perCheck() float64 { return float64(s.cpu.Nanoseconds()) / float64(s.checks) / 1e3 }

// compare runs all rows and prints the table.
func compare(ctx context.Context, o options, out io.Writer) (err error) {
	b, err := start(ctx, o)
	defer func() { err = errors.Join(err, b.stop()) }()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "load\tserver\tCPU/check us\tp50\tp99\tratio to no-op\tof rounds: median (quartiles)")
	sums, rows := map[string]float64{}, b.rows()
	for _, r := range rows {
		samples, err := measure(ctx, o, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		for i, name := range r.servers {
			ratio, rounds := total(samples[i])/total(samples[0]), ratiosOf(samples, i)
			_, _ = fmt.Fprintf(w, "%s\t%s\t%.1f\t%v\t%v\t%.2f\t%.2f (%.2f-%.2f)\n", r.name, name, total(samples[i]),
				typical(samples[i], func(s sample) time.Duration { return s.p50 }),
				typical(samples[i], func(s sample) time.Duration { return s.p99 }),
				ratio, quantile(rounds, 0.5), quantile(rounds, 0.25), quantile(rounds, 0.75))
			sums[name] += ratio
		}
	}
	var above []error
	for _, c := range b.children {
		mean := sums[c.name] / float64(len(rows))
		_, _ = fmt.Fprintf(w, "mean of all loads\t%s\t\t\t\t%.2f\t\n", c.name, mean)
		if o.max > 0 && mean > o.max {
			above = append(above, fmt.Errorf("%s: %.2f times the CPU of the no-op server, want at most %.2f", c.name, mean, o.max))
		}
	}
	return errors.Join(append(above, w.Flush())...)
}

// measure runs the servers in turn, so that a change of the machine's load meets all of them.
func measure(ctx context.Context, o options, r row) ([][]sample, error) {
	samples := make([][]sample, len(r.servers))
	for round := range o.rounds {
		for i := range r.servers {
			i := (i + round) % len(r.servers)
			s, err := r.load(ctx, i)
			if err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], s)
		}
		_, _ = fmt.Fprintf(o.log, "%s: round %d of %d\n", r.name, round+1, o.rounds)
	}
	return samples, nil
}

// total returns the CPU time of a check in microseconds, over all samples.
func total(list []sample) float64 {
	var sum sample
	for _, s := range list {
		sum.checks += s.checks
		sum.cpu += s.cpu
	}
	return sum.perCheck()
}

// ratiosOf returns the CPU of server i to that of the yardstick, round by round.
func ratiosOf(samples [][]sample, i int) []float64 {
	var out []float64
	for round, s := range samples[i] {
		out = append(out, s.perCheck()/samples[0][round].perCheck())
	}
	slices.Sort(out)
	return out
}

// typical returns the median of a latency.
func typical(list []sample, f func(sample) time.Duration) time.Duration {
	var out []time.Duration
	for _, s := range list {
		out = append(out, f(s))
	}
	slices.Sort(out)
	return quantile(out, 0.5).Round(time.Microsecond)
}

func quantile[T any](sorted []T, q float64) T { return sorted[int(q*float64(len(sorted)-1)+0.5)] }
