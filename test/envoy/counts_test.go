package envoy

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// traced has Gatehouse run under strace, and returns the file that gets each call by which it or a child of it speaks to
// another program over IP. The process is the same as without: strace runs beside it.
func traced(t *testing.T) (calls string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v: run test/tools/install.sh test", err)
	}
	dir := peers.Folder(t)
	calls = filepath.Join(dir, "calls")
	script := fmt.Sprintf("#!/bin/sh\nexec %s -D -f -qq -e trace=connect,sendto,sendmsg -e signal=none -o %s %s \"$@\"\n", strace, calls, peers.Binary(t))
	wrapper := filepath.Join(dir, "gatehouse")
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil { // #nosec G306 -- a program
		t.Fatal(err)
	}
	t.Setenv("GATEHOUSE_BIN", wrapper)
	return calls
}

// outgoing returns the traced calls that name a peer.
func outgoing(t *testing.T, calls string) (list []string) {
	t.Helper()
	text, err := os.ReadFile(calls) // #nosec G304 -- the test's own file
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "sa_family=AF_INET") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

var writesRE = regexp.MustCompile(`(?m)^gatehouse_store_writes_total (\d+)$`)

func (w *world) writes(t *testing.T) int {
	t.Helper()
	m := writesRE.FindStringSubmatch(w.metrics(t))
	if m == nil {
		t.Fatal("no gatehouse_store_writes_total")
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCountsOfASignIn counts what a first sign-in through Envoy takes, on one host and on two, and holds docs/performance.md
// to it. They are counts, not times: they are the same on every machine.
func TestCountsOfASignIn(t *testing.T) {
	calls := traced(t)
	w := newWorld(t, "sqlite", false)
	peers.Eventually(t, time.Minute, "the process has tried its own URL", func() bool { return strings.Contains(w.gatehouse.Log(), `"msg":"the issuer's URL`) })
	before := outgoing(t, calls)
	if len(before) == 0 {
		t.Error("the process has tried its own URL, and no call was seen: the trace proves nothing")
	}
	requests := map[string]int{}
	var writes []int
	anonymous := 0
	for _, host := range []string{issuerHost, appHost} {
		b, start := w.browser(w.hardened), w.writes(t)
		form := must(t)(b.visit(t.Context(), "http://"+host+"/headers"))
		anonymous += w.writes(t) - start
		p := must(t)(b.submit(t.Context(), form, w.credentials(user)))
		if p = must(t)(b.follow(t.Context(), p)); p.status != http.StatusOK || !strings.Contains(p.body, user) {
			t.Fatalf("ended at %s", p)
		}
		requests[host], writes = len(b.trail), append(writes, w.writes(t)-start)
	}
	during := outgoing(t, calls)[len(before):]
	if len(during) != 0 {
		t.Errorf("the process called others:\n%s", strings.Join(during, "\n"))
	}
	if anonymous != 0 {
		t.Errorf("%d writes before a password was accepted, want none", anonymous)
	}
	for _, c := range []struct {
		what string
		got  int
	}{
		{"browser requests, issuer and app on one host", requests[issuerHost]},
		{"browser requests, issuer and app on two hosts", requests[appHost]},
		{"calls from server to server", len(during)},
		{"writes to the storage", writes[0]}, // of a user's first sign-in
		{"writes to the storage", writes[1]}, // and of the next
	} {
		row := peers.Counts(t, c.what)
		t.Logf("%-50s %3d (Kubeflow's Dex and oauth2-proxy: %s)", c.what, c.got, row.Theirs)
		if row.Ours != strconv.Itoa(c.got) {
			t.Errorf("%s: counted %d, docs/performance.md says %s", c.what, c.got, row.Ours)
		}
		if theirs := row.Number(t); c.got >= theirs {
			t.Errorf("%s: %d, want fewer than the other's %d", c.what, c.got, theirs)
		}
	}
}
