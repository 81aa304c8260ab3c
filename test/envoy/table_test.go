package envoy

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
	"gatehouse/test/peers"
)

// A row is one case: a request as it goes over the wire, with its verdict behind each kind of connection manager; or a
// scene of several requests. Whatever a row wants, the rules of judge hold for it too.
type row struct {
	family, name string

	as     string // whose session cookie for host is sent; "" for nobody's, or what lines say
	host   string // appHost if empty
	method string // GET if empty
	target string // /headers if empty
	lines  []string
	bare   bool // no Accept: text/html, which stands for a browser
	http2  bool // over HTTP/2

	both, hardened, relaxed *verdict
	direct                  *verdict // over gRPC; as relaxed if nil, and 400 where that is Envoy's own answer
	issuer                  *verdict // at the issuer's own port
	istio                   *verdict // behind Istio's hardened gateway, where that differs from hardened
	check                   func(t testing.TB, w *world, p *page)

	// Of rows that are asked directly only: what Envoy would not ask.
	forge func(c *cast, in *authv3.CheckRequest)
	wire  func([]byte) []byte

	// What is not refused yet, and why that matters: the row has to fail until it is, and then this has to go.
	hole string

	play func(t testing.TB, w *world, e *edge)
	on   []string // edges of the scene; hardened and direct if empty. What is hardened is Istio's gateway too
}

// noHost is the host of a row that sends an empty one.
const noHost = "(empty host)"

// A verdict says how a request must end.
type verdict struct {
	status  int
	byEnvoy bool // Envoy answers by itself: Gatehouse is not asked
	passes  bool // the app is reached
	failed  bool // the check has no answer: Envoy refuses the request
}

func refused(status int) *verdict { return &verdict{status: status} }
func byEnvoy(status int) *verdict { return &verdict{status: status, byEnvoy: true} }
func passes(status int) *verdict  { return &verdict{status: status, passes: true} }

// A cast is who is signed in for the table: cookies by user and host.
type cast struct {
	w       *world
	cookies map[string]string
}

func newCast(t testing.TB, w *world, e *edge) *cast {
	c := &cast{w: w, cookies: map[string]string{}}
	for _, mail := range []string{administrator, user, tricky} {
		b := w.browser(e)
		for i, host := range []string{appHost, otherHost, wildHost, issuerHost} {
			visit, target := b.visit, "http://"+host+"/_gatehouse/sign-in?rd=/headers" // asked for: whatever the rules say
			if i == 0 {
				visit = func(ctx context.Context, target string) (*page, error) { return b.signIn(ctx, target, mail) }
			}
			if p := must(t)(visit(t.Context(), target)); p.status != http.StatusOK {
				t.Fatalf("sign-in of %s at %s: %s", mail, host, p)
			}
			c.cookies[mail+" "+host] = b.cookie("http://"+host+"/", sessionCookie)
		}
		c.cookies[mail+" sso"] = b.cookie(issuer+"/", ssoCookie)
	}
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, handoff.PurposeCookie)
	if err != nil {
		t.Fatal(err)
	}
	c.cookies["stranger"] = handoff.SealCookie(ring, appHost, rand.Text(), time.Now())
	return c
}

// expand replaces {admin}, {user} (cookies of the app host), {admin@portal}, {admin sso} and {stranger} (sealed with a key that
// Gatehouse does not have).
func (c *cast) expand(s string) string {
	return strings.NewReplacer(
		"{admin}", c.cookies[administrator+" "+appHost], "{user}", c.cookies[user+" "+appHost],
		"{admin@portal}", c.cookies[administrator+" "+otherHost], "{admin sso}", c.cookies[administrator+" sso"], "{stranger}", c.cookies["stranger"],
		"{tricky}", c.cookies[tricky+" "+appHost], "{damaged}", damage(c.cookies[administrator+" "+appHost]),
		"{damaged key id}", damageAt(c.cookies[administrator+" "+appHost], 1), "{damaged nonce}", damageAt(c.cookies[administrator+" "+appHost], 12),
		"{damaged time}", damageAt(c.cookies[administrator+" "+appHost], 24), "{damaged tag}", damageAt(c.cookies[administrator+" "+appHost], len(c.cookies[administrator+" "+appHost])-8),
	).Replace(s)
}

// damage changes one character in the middle.
func damage(s string) string { return damageAt(s, len(s)/2) }

// damageAt changes the character at i, to one that may stand in a sealed value too.
func damageAt(s string, i int) string {
	if s == "" {
		return "A"
	}
	r := byte('A')
	if s[i] == r {
		r = 'B'
	}
	return s[:i] + string(r) + s[i+1:]
}

// message returns the request of a row.
func (c *cast) message(r row) message {
	m := message{method: or(r.method, http.MethodGet), target: or(r.target, "/headers"), host: or(r.host, appHost), http2: r.http2, wire: r.wire}
	if r.forge != nil {
		m.forge = func(in *authv3.CheckRequest) { r.forge(c, in) }
	}
	for _, l := range r.lines {
		m.lines = append(m.lines, c.expand(l))
	}
	if m.host == noHost {
		m.host = ""
	}
	if !r.bare && !hasLine(m.lines, "Accept") {
		m.lines = append(m.lines, "Accept: text/html")
	}
	if r.as != "" && !hasLine(m.lines, "Cookie") {
		host := m.host
		if _, known := c.cookies[r.as+" "+host]; !known {
			host = appHost
		}
		m.lines = append(m.lines, "Cookie: "+sessionCookie+"="+c.cookies[r.as+" "+host])
	}
	return m
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// rows is the table.
func rows() []row {
	return slices.Concat(redirectRows(), pathRows(), hostRows(), methodRows(), http2Rows(), rawRows(), listenerRows(), headerRows(), cookieRows(), identityRows(), passwordRows(),
		handoffRows(), providerRows(), issuerRows(), joseRows(), scriptRows(), clientRows(), flowRows(), signOutRows(), adminRows(), floodRows())
}

// TestTable runs every row against one Gatehouse, one after the other, so that what reaches the app and what Gatehouse
// was asked belong to one row. Its last lines are the summary.
func TestTable(t *testing.T) {
	w := tableWorld(t)
	c := newCast(t, w, w.hardened)
	w.app.take()
	sum := newSummary(w.edges())
	for _, r := range rows() {
		for _, run := range c.runs(t, r) {
			ok := t.Run(r.family+"/"+r.name+"/"+run.edge.name, func(t *testing.T) { c.runOrHole(t, r, run) })
			sum.add(r, run, ok)
		}
	}
	t.Run("log", w.judgeLog)
	for _, line := range sum.lines() {
		t.Log(line)
	}
}

// inOrder yields a map's entries by their keys.
func inOrder[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// A run is a row at one edge.
type run struct {
	edge *edge
	want *verdict // nil for a scene
}

func (c *cast) runs(t testing.TB, r row) (all []run) {
	t.Helper()
	w := c.w
	if r.play != nil {
		on := r.on
		if len(on) == 0 {
			on = []string{"hardened", "direct"}
		}
		for _, e := range w.edges() {
			if slices.Contains(on, e.kind()) {
				all = append(all, run{edge: e})
			}
		}
		return all
	}
	edges := w.edges()
	add := func(e *edge, v *verdict) {
		if v != nil && slices.Contains(edges, e) {
			all = append(all, run{e, v})
		}
	}
	soft := cmp.Or(r.relaxed, r.both)
	hard := cmp.Or(r.hardened, r.both)
	if w.hardened != nil && w.hardened.name == gatewayEdge {
		hard = cmp.Or(r.istio, hard)
	}
	add(w.hardened, hard)
	add(w.relaxed, soft)
	direct := cmp.Or(r.direct, soft)
	if direct != nil && direct.byEnvoy {
		direct = isAmbiguous
	}
	add(w.direct, direct)
	if r.forge == nil && r.wire == nil {
		add(w.raw, direct)
	}
	add(w.issuer, r.issuer)
	if cmp.Or(direct, r.hardened, r.issuer) == nil {
		t.Fatalf("row %s/%s has no verdict", r.family, r.name)
	}
	return all
}

// runOrHole runs a row. One with a known hole must fail.
func (c *cast) runOrHole(t *testing.T, r row, at run) {
	if r.hole == "" {
		c.run(t, r, at)
		return
	}
	n := &counter{TB: t}
	n.run(func() { c.run(n, r, at) })
	switch {
	case n.gaveUp:
		t.Errorf("not even tried: %s", n.failures)
	case len(n.failures) == 0:
		t.Errorf("this hole is closed: remove the mark %q", r.hole)
	default:
		t.Logf("HOLE: %s: %s", r.hole, n.failures[0])
	}
}

func (c *cast) run(t testing.TB, r row, at run) {
	t.Helper()
	if r.play != nil {
		r.play(t, c.w, at.edge)
		for _, a := range c.w.app.take() {
			c.w.judgeHygiene(t, a)
		}
		return
	}
	asked := func() int { // a checker knows that it asked
		if at.edge.direct != nil {
			return 0
		}
		return c.w.checks(t)
	}
	before := asked()
	m := c.message(r)
	for _, l := range m.lines {
		if _, v, ok := strings.Cut(l, ": Bearer "); ok {
			c.w.secrets.add(v)
		}
	}
	p, err := at.edge.send(t.Context(), m)
	if at.want.failed && errors.Is(err, errRPC) {
		return
	}
	if err != nil {
		t.Fatalf("%s %q: %v", m.method, m.target, err)
	}
	c.w.note(p)
	c.judge(t, r, at, p, asked()-before)
	if r.check != nil && !at.want.byEnvoy {
		r.check(t, c.w, p)
	}
}

// judge compares the answer with the verdict, and holds every row to what is always true.
func (c *cast) judge(t testing.TB, r row, at run, p *page, checks int) {
	t.Helper()
	if p.status != at.want.status {
		t.Errorf("got %s, want status %d", p, at.want.status)
	}
	if l := p.location(); l != "" && !c.w.own(l) && !strings.HasPrefix(l, clientOrigin+"/") {
		t.Errorf("leads to a foreign place: %q", l)
	}
	wantChecks := 1
	if at.want.byEnvoy || !at.edge.checked || at.edge.direct != nil {
		wantChecks = 0
	}
	if checks != wantChecks {
		t.Errorf("Gatehouse was asked %d times, want %d", checks, wantChecks)
	}
	arrivals := c.w.app.take()
	if got := len(arrivals) > 0; got != at.want.passes {
		t.Errorf("reached the app: %v, want %v: %+v", got, at.want.passes, arrivals)
	}
	for _, a := range arrivals {
		c.w.judgeHygiene(t, a)
		judgeAccess(t, r.as, a)
	}
}

// judgeHygiene checks what an app may see at all: our identity headers once and by their own names, none of our cookies,
// no Authorization.
func (w *world) judgeHygiene(t testing.TB, a arrival) {
	t.Helper()
	for name, values := range a.header {
		switch fold(name) {
		case "kubeflow-userid", "kubeflow-groups", "kubeflow-name":
			if len(values) != 1 || !strings.EqualFold(name, fold(name)) {
				t.Errorf("the app sees %s: %q", name, values)
			}
		case "authorization":
			t.Errorf("the app sees %s", name)
		case "cookie":
			for c := range strings.FieldsFuncSeq(strings.Join(values, ";"), func(r rune) bool { return r == ';' || r == ',' }) {
				name, _, _ := strings.Cut(strings.TrimSpace(c), "=")
				switch strings.TrimSpace(name) {
				case sessionCookie, loginCookie, issuerCookie, ssoCookie, "__Host-gatehouse", "__Host-gatehouse-login", "__Host-gatehouse-issuer-login":
					t.Errorf("the app sees our cookie %s", name)
				}
			}
		}
	}
}

// fold is how servers that make variables of headers read a header's name.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
}

// judgeAccess checks that the app knows exactly who sent the request, and that they may.
func judgeAccess(t testing.TB, as string, a arrival) {
	t.Helper()
	if got := a.header.Get("Kubeflow-Userid"); got != as {
		t.Errorf("the app takes %q for the user, want %q", got, as)
	}
	if got := a.header.Get("Kubeflow-Groups"); got != groupsOf(as) {
		t.Errorf("the app sees groups %q, want %q", got, groupsOf(as))
	}
	if got := a.header.Get("Kubeflow-Name"); got != nameOf(as) {
		t.Errorf("the app sees the name %q, want %q", got, nameOf(as))
	}
	p := a.target
	if u, err := url.Parse(p); err == nil {
		p = u.Path
	}
	p = path.Clean("/" + strings.ReplaceAll(p, `\`, "/"))
	below := func(prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }
	closed := below("/admin") || below("/public/closed")
	open := p == "/admin/open" || below("/public") && !closed || p == "/healthz" && a.method == http.MethodGet
	switch {
	case open:
	case as == "":
		t.Errorf("nobody reached %s %s", a.method, a.target)
	case closed && as != administrator, (below("/by-mail") || below("/by-id")) && as != user:
		t.Errorf("%q reached %s %s", as, a.method, a.target)
	}
}

// judgeLog reads the whole log after the table: no secret stands in it, and every decision and sign-in does.
func (w *world) judgeLog(t *testing.T) {
	var checks int
	count := map[string]int{}
	peers.Eventually(t, within, "one audit event for each check", func() bool {
		clear(count)
		checks = w.checks(t)
		for _, e := range w.audit() {
			name := fmt.Sprint(e["msg"])
			count[name]++
			if v, ok := e["decision"]; ok {
				count[name+" "+fmt.Sprint(v)]++
			}
			if v, ok := e["result"]; ok {
				count[name+" "+fmt.Sprint(v)]++
			}
		}
		return count["decision"] == checks
	})
	for _, want := range []string{
		"decision allow", "decision deny", "decision sign-in", "decision unauthenticated", "decision invalid", "decision own",
		"sign-in ok", "sign-in sso", "sign-in wrong-credentials", "sign-out",
	} {
		if count[want] == 0 {
			t.Errorf("no audit event %q among %v", want, count)
		}
	}
	log := w.gatehouse.Log()
	for line := range strings.Lines(log) {
		if !json.Valid([]byte(line)) {
			t.Errorf("the log is JSON, but for lines such as %q", line)
			break
		}
	}
	found, of := w.secrets.in(log)
	for _, s := range found {
		t.Errorf("the log holds a secret: %.12s…, %d bytes", s, len(s))
	}
	if of < 100 {
		t.Errorf("only %d secrets were looked for", of)
	}
	t.Logf("%d checks, as many decisions in the audit log; none of %d secrets in %d bytes of log", checks, of, len(log))
}

// jsonBody parses the answer's body into v.
func jsonBody(t testing.TB, p *page, v any) {
	t.Helper()
	if got := p.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q, want application/json", got)
	}
	if err := json.Unmarshal([]byte(p.body), v); err != nil {
		t.Errorf("%v: %s", err, p)
	}
}

// seenByApp returns the headers that the sample app shows, which it names in lower case.
func seenByApp(ctx context.Context, b *browser, target string) (map[string]string, error) {
	p, err := b.step(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	if p.status != http.StatusOK {
		return nil, fmt.Errorf("the app was not reached: %s", p)
	}
	var h map[string]string
	return h, json.Unmarshal([]byte(p.body), &h)
}
