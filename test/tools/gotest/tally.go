package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// An event is one line of `go test -json` (go doc test2json, and go help buildjson).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	FailedBuild string // of a package that could not be tested: the ImportPath to blame
	Test        string
	Elapsed     float64 // seconds
	Output      string
}

// A key names a test of a package, or with an empty test the package itself.
type key struct{ pkg, test string }

// A tally counts results and keeps the output of what has not passed yet.
type tally struct {
	out                     io.Writer
	passed, failed, skipped int
	benchmarks              int // that ran
	output                  map[key]*strings.Builder
	running                 map[string]map[string]bool // package -> tests without a result
	failures                map[string][]string        // package -> its failed tests
	build                   map[string]*strings.Builder
	printed                 time.Time // when people last saw a line
}

// patience is how long people see nothing before they are told which test has just begun. (Results of subtests come no earlier than
// that of the test they belong to.)
const patience = 15 * time.Second

func newTally(out io.Writer) *tally {
	return &tally{
		out: out, output: map[key]*strings.Builder{}, running: map[string]map[string]bool{},
		failures: map[string][]string{}, build: map[string]*strings.Builder{}, printed: time.Now(),
	}
}

// read takes events until the stream ends. Lines that are no events are printed as they are.
func (t *tally) read(r io.Reader) error {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		if strings.TrimSpace(line) != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				t.printf("%s\n", strings.TrimRight(line, "\n"))
			} else {
				t.take(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *tally) take(e event) {
	k := key{e.Package, e.Test}
	switch {
	case e.Action == "build-output":
		add(t.build, e.ImportPath, e.Output)
	case e.Action == "output":
		add(t.output, k, e.Output)
	case e.Action == "run" && e.Test != "":
		if t.running[e.Package] == nil {
			t.running[e.Package] = map[string]bool{}
		}
		t.running[e.Package][e.Test] = true
		if time.Since(t.printed) >= patience {
			t.printf("...   %s %s\n", e.Package, e.Test)
		}
	case e.Test != "":
		t.testEnded(k, e.Action)
	case e.Action == "pass", e.Action == "fail", e.Action == "skip":
		t.packageEnded(e)
	}
}

func add[K comparable](m map[K]*strings.Builder, k K, text string) {
	if m[k] == nil {
		m[k] = &strings.Builder{}
	}
	m[k].WriteString(text)
}

func (t *tally) testEnded(k key, action string) {
	switch action {
	case "pass":
		t.passed++
	case "bench": // a benchmark that logs something ends with this, and is no test
		t.benchmarks++
	case "fail":
		t.failed++
		t.failures[k.pkg] = append(t.failures[k.pkg], k.test)
		t.printf("\n--- failed: %s %s\n%s\n", k.pkg, k.test, t.text(k))
	case "skip":
		t.skipped++
		t.printf("\n--- skipped: %s %s\n%s\n", k.pkg, k.test, t.text(k))
	default:
		return // pause, cont, attr, …: it goes on
	}
	delete(t.output, k)
	delete(t.running[k.pkg], k.test)
}

// text returns the output of k without its first line, "=== RUN".
func (t *tally) text(k key) string {
	b := t.output[k]
	if b == nil {
		return ""
	}
	out := b.String()
	if strings.HasPrefix(out, "=== RUN") {
		_, out, _ = strings.Cut(out, "\n")
	}
	return strings.TrimRight(out, "\n")
}

func (t *tally) packageEnded(e event) {
	own := key{e.Package, ""}
	switch e.Action {
	case "pass":
		for test := range t.running[e.Package] {
			if strings.HasPrefix(test, "Benchmark") { // one that logs nothing has no result of its own
				t.benchmarks++
			}
		}
		t.printf("ok    %-45s %6.1fs\n", e.Package, e.Elapsed)
	case "skip": // a package without tests
	case "fail":
		t.packageFailed(e)
	}
	delete(t.output, own)
	delete(t.running, e.Package)
}

// packageFailed tells what no test's result told: a build error, or a test that never ended because of a panic, a
// timeout or an exit.
func (t *tally) packageFailed(e event) {
	unfinished := t.running[e.Package]
	for test := range unfinished {
		t.failed++
		t.printf("\n--- did not end: %s %s\n%s\n", e.Package, test, t.text(key{e.Package, test}))
		delete(t.output, key{e.Package, test})
	}
	if len(unfinished) == 0 && len(t.failures[e.Package]) == 0 {
		t.failed++ // the package itself
		if b := t.build[e.FailedBuild]; b != nil {
			t.printf("\n%s", b.String())
			delete(t.build, e.FailedBuild) // once is enough
		}
		t.printf("%s\n", t.text(key{e.Package, ""}))
	}
	t.printf("FAIL  %-45s %6.1fs\n", e.Package, e.Elapsed)
}

// summary prints the last line. It reports whether all is well.
func (t *tally) summary() bool {
	t.printf("\n")
	for _, pkg := range slices.Sorted(maps.Keys(t.failures)) {
		for _, test := range t.failures[pkg] {
			t.printf("failed: %s %s\n", pkg, test)
		}
	}
	benchmarks, skipped := "", ""
	if t.benchmarks > 0 {
		benchmarks = fmt.Sprintf(", benchmarks: %d", t.benchmarks)
	}
	if t.skipped > 0 {
		skipped = fmt.Sprintf(", %d skipped (a skipped test proves nothing: mend or remove it)", t.skipped)
	}
	t.printf("%d passed, %d failed%s%s\n", t.passed, t.failed, benchmarks, skipped)
	return t.failed == 0 && t.skipped == 0 && t.passed+t.benchmarks > 0
}

func (t *tally) printf(format string, args ...any) {
	t.printed = time.Now()
	_, _ = fmt.Fprintf(t.out, format, args...)
}
