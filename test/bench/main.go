// Command bench compares what a check costs: Gatehouse, an ordinary gRPC ext_authz server that always says yes (the
// "no-op"), and oauth2-proxy, side by side on one machine.
//
// Every server is a process of its own, all driven in turn by the same load, directly and through Envoy. What counts is
// the CPU time per check of the server's process, user and system, as Linux accounts it. docs/performance.md says what is
// measured, and how to read it.
//
//	go run ./test/bench [-md] [-quick] [-enforce] [-only REGEXP] [-rounds N] [-round D] [-sign-ins N]
//	                    [-envoy PATH] [-gatehouse PATH] [-oauth2-proxy PATH] [-profile FILE]
//
// It needs Linux, Envoy (test/tools/install.sh envoy) and the source tree, from which it builds the programs whose
// paths are not given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// none, as the path of a program, leaves its rows out.
const none = "none"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == serveCommand {
		if err := serve(ctx, args[1:]); err != nil {
			_, _ = fmt.Fprintln(stderr, "bench serve:", err)
			return 1
		}
		return 0
	}
	o, err := parse(args, stderr)
	if err != nil {
		return 2
	}
	if err := compare(ctx, o, stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// options say how much is measured, of what, and how it is told.
type options struct {
	rounds                       int
	round, warmUp                time.Duration
	signIns                      int // sessions made by signing in at the built binary
	many                         int // sessions of the in-process rows: "100,000 sessions"
	envoy, gatehouse, otherProxy string
	profile                      string         // file for a CPU profile of the in-process authorizer with few sessions; "" writes none
	only                         *regexp.Regexp // names of loads
	markdown, enforce            bool
	log                          io.Writer
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{log: stderr, only: regexp.MustCompile("")}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 15, "rounds of each load; each runs every server once")
	flags.DurationVar(&o.round, "round", 400*time.Millisecond, "length of one run")
	flags.IntVar(&o.signIns, "sign-ins", 1000, "sessions of the built binary")
	flags.Func("only", "run only the loads whose names match this regular expression", func(text string) (err error) {
		o.only, err = regexp.Compile(text)
		return err
	})
	flags.BoolVar(&o.markdown, "md", false, "print Markdown, for docs/performance.md")
	flags.BoolVar(&o.enforce, "enforce", false, "exit with 1 if a target is missed")
	flags.StringVar(&o.envoy, "envoy", "", "Envoy binary (default .tools/bin/envoy, or envoy on PATH), or none")
	flags.StringVar(&o.gatehouse, "gatehouse", "", "Gatehouse binary (default: built from the source tree)")
	flags.StringVar(&o.otherProxy, "oauth2-proxy", "", "oauth2-proxy binary (default: built from test/bench/oauth2proxy), or none")
	flags.StringVar(&o.profile, "profile", "", "write a CPU profile of the in-process authorizer to this file, for profile-guided optimisation")
	quick := flags.Bool("quick", false, "one short round and few sessions: shows that everything runs, and measures nothing")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.warmUp, o.many = 150*time.Millisecond, 100_000
	if *quick {
		o = o.quick()
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.round <= 0 || o.signIns < 1 {
		err := errors.New("want no arguments but flags, at least one round of some length, and one sign-in")
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return o, err
	}
	return o, nil
}

// quick returns o with everything as small as it works.
func (o options) quick() options {
	o.rounds, o.round, o.warmUp, o.signIns, o.many = 1, 50*time.Millisecond, 5*time.Millisecond, 4, 2000
	return o
}

// compare runs all loads and prints the report.
func compare(ctx context.Context, o options, out io.Writer) (err error) {
	b, err := start(ctx, o)
	defer func() { err = errors.Join(err, b.stop()) }()
	if err != nil {
		return err
	}
	r := report{machine: machine(ctx, b), many: o.many}
	for _, l := range b.loads() {
		rows, err := measure(ctx, o, l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		r.rows = append(r.rows, rows...)
	}
	return r.print(out, o)
}
