package reload

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatehouse/test/peers"
)

// Two configurations that answer differently wherever they are asked. Names of rules and headers begin or end with the letter.
const (
	gatewayA = `  identity: {headers: {x-user-a: email}}
  rules:
  - {name: a-open, paths: [/one], allow: anyone}
  - {name: a-admins, paths: [/two], groups: [admins]}
  - {name: a-nobody, paths: [/three], groups: [nobody]}
  default: deny
`
	gatewayB = `  identity: {headers: {x-user-b: email}}
  rules:
  - {name: b-admins, paths: [/one], groups: [admins]}
  - {name: b-nobody, paths: [/two], groups: [nobody]}
  - {name: b-open, paths: [/three], allow: anyone}
  default: deny
`
)

// expected are the statuses by configuration, path and whether somebody is signed in.
var expected = map[string]int{ // never assigned to
	"a /one true": 200, "a /two true": 200, "a /three true": 403, "a /one false": 200, "a /two false": 401, "a /three false": 401,
	"b /one true": 200, "b /two true": 403, "b /three true": 200, "b /one false": 401, "b /two false": 401, "b /three false": 200,
}

// generationOf returns the letter of the configuration that an answer is of. An error says what is mixed or missing.
func generationOf(answer *authv3.CheckResponse, path string, signedIn bool) (string, error) {
	rule := answer.GetDynamicMetadata().GetFields()["rule"].GetStringValue()
	letter, _, ok := strings.Cut(rule, "-")
	if !ok {
		return "", fmt.Errorf("rule %q: %v", rule, answer)
	}
	status := 200
	if no := answer.GetDeniedResponse(); no != nil {
		status = int(no.GetStatus().GetCode())
	}
	if want := expected[fmt.Sprint(letter, " ", path, " ", signedIn)]; status != want {
		return "", fmt.Errorf("rule %s answers %s with %d, want %d: %v", rule, path, status, want, answer)
	}
	set := map[string]bool{}
	for _, h := range answer.GetOkResponse().GetHeaders() {
		set[h.GetHeader().GetKey()] = true
	}
	removed := map[string]bool{}
	for _, h := range answer.GetOkResponse().GetHeadersToRemove() {
		removed[h] = true
	}
	mine, other := "x-user-"+letter, "x-user-b"
	if letter == "b" {
		other = "x-user-a"
	}
	switch {
	case set[other] || removed[other]:
		return "", fmt.Errorf("rule %s with the header of the other configuration: %v", rule, answer)
	case status == 200 && signedIn != set[mine], status == 200 && !signedIn && !removed[mine]:
		return "", fmt.Errorf("rule %s lets a forged header or no header through: %v", rule, answer)
	}
	return letter, nil
}

// A load asks without end, until it is stopped.
type load struct {
	checks, changes atomic.Int64
	wrong           atomic.Pointer[string]
	stop            func()
}

func (w *world) load(t *testing.T, cookie string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() { l.ask(ctx, w, cookie, i) })
	}
	l.stop = func() { cancel(); all.Wait() }
	t.Cleanup(l.stop)
	return l
}

func (l *load) ask(ctx context.Context, w *world, cookie string, n int) {
	last := ""
	for ; ctx.Err() == nil; n++ {
		path, signedIn, jar := []string{"/one", "/two", "/three"}[n%3], n/3%2 == 0, ""
		if signedIn {
			jar = cookie
		}
		answer, err := w.check(ctx, path, jar, nil)
		if ctx.Err() != nil {
			return
		}
		l.checks.Add(1)
		letter := ""
		if err == nil {
			letter, err = generationOf(answer, path, signedIn)
		}
		if err != nil {
			text := err.Error()
			l.wrong.CompareAndSwap(nil, &text)
			return
		}
		if letter != last {
			last = letter
			l.changes.Add(1)
		}
	}
}

func (l *load) good(t *testing.T, when string) {
	t.Helper()
	if text := l.wrong.Load(); text != nil {
		t.Fatalf("%s: %s", when, *text)
	}
}

// A writer changes the file under a load, and waits for what comes of it.
type writer struct {
	*world

	t       *testing.T
	load    *load
	files   map[string]string // by letter
	now     string            // letter of what decides
	version int               // of the volume
	writes  int
}

// decides waits until the configuration of that letter does.
func (w *writer) decides(letter, how string) {
	w.t.Helper()
	w.writes++
	peers.Eventually(w.t, limit, how+": "+letter+" decides", func() bool {
		w.load.good(w.t, how)
		answer, err := w.check(w.t.Context(), "/one", "", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		got, err := generationOf(answer, "/one", false)
		if err != nil {
			w.t.Fatal(err)
		}
		return got == letter
	})
	peers.Eventually(w.t, limit, how+": the metric says so", func() bool { return w.metric(w.t, "gatehouse_config_last_reload_successful") == 1 })
	w.now = letter
}

// refused changes something for the worse, waits until it is refused, and sees that what decided decides.
func (w *writer) refused(how string, change func()) {
	w.t.Helper()
	failures := w.metric(w.t, "gatehouse_config_reload_failures_total")
	change()
	w.writes++
	peers.Eventually(w.t, limit, how+": refused", func() bool {
		w.load.good(w.t, how)
		return w.metric(w.t, "gatehouse_config_reload_failures_total") > failures
	})
	if got := w.metric(w.t, "gatehouse_config_last_reload_successful"); got != 0 {
		w.t.Errorf("%s: gatehouse_config_last_reload_successful is %v, want 0", how, got)
	}
	answer, err := w.check(w.t.Context(), "/one", "", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if got, err := generationOf(answer, "/one", false); err != nil || got != w.now {
		w.t.Errorf("%s: %q decides (%v), want the last good one, %q", how, got, err, w.now)
	}
}

// inPlace writes the file as a careless program does.
func (w *writer) inPlace(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.gatehouse.Config, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) round() {
	w.t.Helper()
	w.write(w.t, w.files["b"])
	w.decides("b", "another file in its place")
	w.inPlace(w.files["a"])
	w.decides("a", "written in place")
	w.refused("a broken file", func() { w.write(w.t, strings.Replace(w.files["b"], "groups: [admins]", "grups: [admins]", 1)) })
	half := len(w.files["b"]) - len("name: b-open, paths: [/three], allow: anyone}\n  default: deny\n")
	w.refused("half a file", func() { w.inPlace(w.files["b"][:half]) })
	w.inPlace(w.files["b"])
	w.decides("b", "the rest of it")
	w.refused("an empty file", func() { w.inPlace("") })
	w.refused("removed", func() {
		if err := os.Remove(w.gatehouse.Config); err != nil {
			w.t.Fatal(err)
		}
	})
	w.write(w.t, w.files["b"])
	w.decides("b", "back")
	w.refused("what needs a restart", func() { w.write(w.t, strings.Replace(w.files["a"], "/dex\n", "/oidc\n", 1)) })
	for _, letter := range []string{"a", "b", "a"} {
		w.version++
		w.kubernetes(w.t, w.version, w.files[letter])
		w.gatehouse.Signal(w.t, syscall.SIGHUP) // beside what is noticed anyhow
		w.decides(letter, "a volume's swap and SIGHUP")
	}
}

func TestReloadUnderLoad(t *testing.T) {
	files := map[string]string{}
	w := newWorld(t, func(w *world) string {
		users := "staticPasswords:\n" + w.user("alice@example.com", "alice", "admins") + w.user("bob@example.com", "bob", "staff")
		files["a"], files["b"] = w.head+users+w.gateway+gatewayA, w.head+users+w.gateway+gatewayB
		return files["a"]
	})
	p := w.newPerson(t)
	if at := p.signIn(t, p.visit(t, "http://"+host+"/two"), "alice@example.com"); at.body != "app x-user-a=alice@example.com" {
		t.Fatalf("signed in: %d at %s: %s", at.status, at.url, at.body)
	}
	goroutines, start := w.metric(t, "go_goroutines"), time.Now()
	all := &writer{world: w, t: t, load: w.load(t, p.cookies(t)), files: files, now: "a"}
	for all.writes < 60 {
		all.round()
	}
	all.write(t, files["b"])
	all.decides("b", "the last one")
	all.load.stop()
	all.load.good(t, "in the end")
	took, checks, changes := time.Since(start), all.load.checks.Load(), all.load.changes.Load()
	t.Logf("%d checks in %s (%.0f a second) over %d changes of the file, of which they saw %d; generation %v, %v refused",
		checks, took.Round(time.Second), float64(checks)/took.Seconds(), all.writes, changes,
		w.metric(t, "gatehouse_config_generation"), w.metric(t, "gatehouse_config_reload_failures_total"))
	if checks < 10_000 || changes < 30 {
		t.Errorf("%d checks saw %d changes: want at least 10000 and 30", checks, changes)
	}
	peers.Eventually(t, limit, "no goroutine is left behind", func() bool { return w.metric(t, "go_goroutines") <= goroutines+8 })
	w.gatehouse.Logged(t, `unknown field \"grups\": did you mean \"groups\"`, "the file does not exist", `"key":"issuer"`, "restart it, or take the change back",
		`"msg":"configuration taken up"`, "gateway.identity.headers, rules changed")
	log := w.gatehouse.Log()
	if strings.Contains(log, w.hash) || strings.Contains(log, "a-secret-of-this-test") {
		t.Error("a secret is in the log")
	}
	if at := p.visit(t, "http://"+host+"/one"); at.body != "app x-user-b=alice@example.com" {
		t.Errorf("the session after it all: %d at %s: %s", at.status, at.url, at.body)
	}
}
