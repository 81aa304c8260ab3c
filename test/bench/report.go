package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A row is what a load cost on one server.
type row struct {
	load, server string
	cpu          float64   // microseconds per check, of all rounds together
	ratio        float64   // of cpu to the yardstick's
	rounds       []float64 // ratios of the rounds, sorted
	perSecond    float64   // checks, median of the rounds like the next two
	p50, p99     time.Duration
	rss          int // bytes, after the load
}

func newRow(l load, s *server, samples, yardstick []sample, rss int) row {
	r := row{load: l.name, server: s.name, cpu: total(samples), ratio: total(samples) / total(yardstick), rss: rss}
	for i, one := range samples {
		r.rounds = append(r.rounds, one.perCheck()/yardstick[i].perCheck())
	}
	slices.Sort(r.rounds)
	r.perSecond = median(samples, func(s sample) float64 { return float64(s.checks) / s.took.Seconds() })
	r.p50 = median(samples, func(s sample) time.Duration { return s.p50 })
	r.p99 = median(samples, func(s sample) time.Duration { return s.p99 })
	return r
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

func median[T int | float64 | time.Duration](list []sample, f func(sample) T) T {
	var out []T
	for _, s := range list {
		out = append(out, f(s))
	}
	slices.Sort(out)
	return quantile(out, 0.5)
}

func quantile[T any](sorted []T, q float64) T { return sorted[int(q*float64(len(sorted)-1)+0.5)] }

// A report is the outcome of all loads.
type report struct {
	machine []string
	rows    []row
	many    int // sessions of the in-process row that has many
}

// A target is a largest ratio of the CPU time of one server to that of another, as the mean of the loads that both are in.
type target struct {
	what             string
	load             string // the loads whose name begins with this
	server, than     string // names begin with this
	most, mean, want float64
	worst            float64
}

// targets returns how the rows stand to what is wanted. Targets whose rows were left out are left out.
func (r report) targets() []target {
	product := "gatehouse, " + thousands(rules()[0])
	list := []target{
		{what: "a check, direct, to the no-op server's", load: "direct", server: product, than: "no-op", most: 0.75, want: 0.66},
		{what: "a check through Envoy, to the no-op server's", load: "Envoy", server: product, than: "no-op", most: 0.8},
		{what: "a check, direct, to oauth2-proxy's", load: "direct", server: product, than: "oauth2-proxy", most: 0.25},
		{what: "a check through Envoy, to oauth2-proxy's", load: "Envoy", server: product, than: "oauth2-proxy", most: 0.25},
		{what: "10,000 rules to 10", load: "rules", server: "gatehouse, 10,000", than: "gatehouse, 10 ", most: 1.1},
		{what: "a check with a token for the app, direct, to one without", load: "direct", server: "gatehouse with a token", than: product, most: 1.1},
		{what: "a check with a token for the app through Envoy, to one without", load: "Envoy", server: "gatehouse with a token", than: product, most: 1.1},
		{what: thousands(r.many) + " sessions to 1,000", load: "sessions", server: "in process, " + thousands(r.many), than: "in process, 1,000", most: 1.1},
	}
	var out []target
	for _, t := range list {
		if ratios := r.ratios(t.load, t.server, t.than); len(ratios) > 0 {
			var sum float64
			for _, v := range ratios {
				sum += v
			}
			t.mean, t.worst = sum/float64(len(ratios)), slices.Max(ratios)
			out = append(out, t)
		}
	}
	return out
}

// ratios returns the CPU time of one server to that of another in each load that both are in.
func (r report) ratios(load, server, than string) (list []float64) {
	for _, a := range r.rows {
		for _, b := range r.rows {
			if a.load == b.load && strings.HasPrefix(a.load, load) && strings.HasPrefix(a.server, server) && strings.HasPrefix(b.server, than) {
				list = append(list, a.cpu/b.cpu)
			}
		}
	}
	return list
}

// print writes the report, and returns an error if that is asked for and a target was missed.
func (r report) print(out io.Writer, o options) error {
	tables := [][][]string{r.measured(), r.judged()}
	var b strings.Builder
	for _, line := range r.machine {
		if o.markdown {
			line = "- " + line
		}
		_, _ = fmt.Fprintln(&b, line)
	}
	for _, t := range tables {
		b.WriteByte('\n')
		if o.markdown {
			writeMarkdown(&b, t)
		} else if err := writeText(&b, t); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return err
	}
	var missed []error
	for _, t := range r.targets() {
		if o.enforce && t.mean > t.most {
			missed = append(missed, fmt.Errorf("%s: got %.2f, want at most %.2f", t.what, t.mean, t.most))
		}
	}
	return errors.Join(missed...)
}

func (r report) measured() [][]string {
	t := [][]string{{"load", "server", "CPU per check, us", "ratio to no-op", "of rounds: median (quartiles)", "checks/s", "p50, us", "p99, us", "RSS, MB"}}
	for _, v := range r.rows {
		t = append(t, []string{
			v.load, v.server, fmt.Sprintf("%.1f", v.cpu), fmt.Sprintf("%.2f", v.ratio),
			fmt.Sprintf("%.2f (%.2f-%.2f)", quantile(v.rounds, 0.5), quantile(v.rounds, 0.25), quantile(v.rounds, 0.75)),
			thousands(int(math.Ceil(v.perSecond))), thousands(int(v.p50.Microseconds())), thousands(int(v.p99.Microseconds())), fmt.Sprint(v.rss >> 20),
		})
	}
	return t
}

func (r report) judged() [][]string {
	t := [][]string{{"CPU of", "target", "mean of the loads", "worst load", "verdict"}}
	for _, v := range r.targets() {
		limit, verdict := fmt.Sprintf("%.2f", v.most), "pass"
		if v.want > 0 {
			limit += fmt.Sprintf(" (aim %.2f)", v.want)
		}
		if v.mean > v.most {
			verdict = "**missed**"
		}
		t = append(t, []string{v.what, limit, fmt.Sprintf("%.2f", v.mean), fmt.Sprintf("%.2f", v.worst), verdict})
	}
	return t
}

func writeMarkdown(b *strings.Builder, table [][]string) {
	for i, cells := range table {
		_, _ = fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(cells)) + "\n")
		}
	}
}

func writeText(out io.Writer, table [][]string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, cells := range table {
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// thousands writes 10000 as 10,000.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

var (
	cpuRE   = regexp.MustCompile(`(?m)^model name\s*:\s*(.+)$`)
	envoyRE = regexp.MustCompile(`/(\d+\.\d+\.\d+[^/\s]*)`)
)

// machine says when, where and of what the numbers are.
func machine(ctx context.Context, b *bench) []string {
	list := []string{
		time.Now().UTC().Format("2006-01-02 15:04") + " UTC",
		fmt.Sprintf("%d rounds of %v for each load, %s sign-ins", b.rounds, b.round, thousands(b.signIns)),
	}
	model := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := cpuRE.FindSubmatch(text); m != nil {
			model = string(m[1])
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty where there is none
	idle, _ := os.ReadFile("/proc/loadavg")
	list = append(list, strings.TrimSpace(fmt.Sprintf("%d cores, %s, %s %s", runtime.NumCPU(), model, runtime.GOOS, kernel)))
	if fields := strings.Fields(string(idle)); len(fields) > 0 {
		list = append(list, "load average before the first round: "+fields[0])
	}
	versions := []string{runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "google.golang.org/grpc" {
				versions = append(versions, "grpc-go "+d.Version)
			}
		}
	}
	if b.proxy != nil {
		out, _ := exec.CommandContext(ctx, b.envoy, "--version").Output()
		if m := envoyRE.FindSubmatch(out); m != nil {
			versions = append(versions, "Envoy "+string(m[1])+" with one worker")
		}
	}
	if b.other != nil {
		if v, err := otherVersion(b.otherProxy); err == nil {
			versions = append(versions, "oauth2-proxy "+v)
		}
	}
	return append(list, strings.Join(versions, ", "))
}
