package provider

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"gatehouse/internal/config"
	"gatehouse/internal/inproc"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
	"gatehouse/provider/store/storetest"

	"github.com/dexidp/dex/connector"
)

// edited is testConfig with replacements, which must hit.
func edited(t *testing.T, text string, replace ...string) string {
	t.Helper()
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("the configuration has no %q", replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, _, err := config.Parse("gatehouse.yaml", []byte(text), config.Options{Connector: CheckConnector})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// reload makes text the configuration.
func (w *world) reload(text string) {
	w.t.Helper()
	next, err := w.provider.Prepare(parse(w.t, text))
	if err != nil {
		w.t.Fatal(err)
	}
	next.Use()
	if err := next.Settle(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits for what a goroutine does after a reload.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("not in time:", what)
		}
	}
}

// grant asks for tokens by password, and returns the status.
func (w *world) grant(user, password string) int {
	w.t.Helper()
	form := url.Values{"grant_type": {"password"}, "scope": {"openid"}, "username": {user}, "password": {password}}
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("web", "not-a-default-secret-5591")
	resp, err := inproc.Serve(w.provider.Handler(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

const removeAdmin = `- {email: admin@example.com, username: admin, userID: u1, groups: [admins, staff], hash: "` + hash + `"}
`

func TestReloadedUsers(t *testing.T) {
	w, _ := memoryWorld(t)
	admin := w.browser().get("https://app.example.com/")
	admin.signIn("admin@example.com", "password")
	user := w.browser().get("https://app.example.com/")
	user.signIn("user@example.com", "password")
	tok, err := w.signInClient(w.browser())
	if err != nil {
		t.Fatal(err)
	}

	added := `- {email: new@example.com, username: new, userID: u3, hash: "` + hash + `"}
`
	w.reload(edited(t, testConfig, removeAdmin, added, "username: user, userID: u2, groups: [team-a]", "username: user, userID: u2, groups: [team-b, ops]"))

	if admin.get("https://app.example.com/"); admin.last.Path != "/dex/auth/local/login" {
		t.Fatalf("a user who is not in the file any more is at %s: %s", admin.last, admin.page)
	}
	if admin.signIn("admin@example.com", "password"); admin.code != http.StatusUnauthorized {
		t.Errorf("and signs in: %d", admin.code)
	}
	tok.Expiry = time.Unix(1, 0)
	if _, err := webClient().TokenSource(w.direct(t.Context()), tok).Token(); err == nil {
		t.Error("and the refresh token works")
	}
	if got := w.grant("admin@example.com", "password"); got != http.StatusUnauthorized {
		t.Errorf("and the password grant answers %d", got)
	}
	if user.get("https://app.example.com/"); user.page != "hello user@example.com [team-b ops] at /" {
		t.Errorf("a user with other groups: %d %q", user.code, user.page)
	}
	b := w.browser().get("https://app.example.com/")
	if b.signIn("new@example.com", "password"); !strings.HasPrefix(b.page, "hello new@example.com") {
		t.Errorf("a new user: %d %q", b.code, b.page)
	}
	if !strings.Contains(w.audit.String(), `"by":"configuration"`) {
		t.Error("the audit log does not say who ended the session")
	}
}

// The e-mail address is how a refresh token finds its user.
func TestReloadedEMailAddress(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser()
	tok, err := w.signInClient(b)
	if err != nil {
		t.Fatal(err)
	}
	b.get("https://app.example.com/")
	w.reload(edited(t, testConfig, "email: admin@example.com", "email: root@example.com"))
	if b.get("https://app.example.com/"); b.page != "hello root@example.com [admins staff] at /" {
		t.Errorf("got %d %q", b.code, b.page)
	}
	tok.Expiry = time.Unix(1, 0)
	if _, err := webClient().TokenSource(w.direct(t.Context()), tok).Token(); err != nil {
		t.Errorf("the refresh token: %v", err)
	}
}

// What the file said while the process did not run is found at the start.
func TestUsersAreReconciledAtTheStart(t *testing.T) {
	clk := &clock{}
	st, key := store.Memory(store.Options{Now: clk.now}), seal.NewKey()
	w := newWorld(t, testConfig, st, key, clk)
	admin, user := w.browser().get("https://app.example.com/"), w.browser().get("https://app.example.com/")
	admin.signIn("admin@example.com", "password")
	user.signIn("user@example.com", "password")
	after := newWorld(t, edited(t, testConfig, removeAdmin, "", "groups: [team-a]", "groups: [team-b]"), st, key, clk)
	w.provider = after.provider
	if admin.get("https://app.example.com/"); !strings.HasPrefix(admin.page, "hello admin") {
		t.Errorf("a process that may yet fail to start has signed a user out: %d %q", admin.code, admin.page)
	}
	if err := w.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if admin.get("https://app.example.com/"); strings.HasPrefix(admin.page, "hello") {
		t.Errorf("a removed user is signed in after a restart: %s", admin.page)
	}
	if user.get("https://app.example.com/"); user.page != "hello user@example.com [team-b] at /" {
		t.Errorf("got %d %q", user.code, user.page)
	}
}

// A sign-in that began before the user was removed must not outlive the removal.
func TestSignInUnderWayOfARemovedUser(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.browser().get("https://app.example.com/")
	old, slow := w.provider.acquire(), w.provider.acquire()
	defer slow.release() // another request of before the reload takes its time
	w.reload(edited(t, testConfig, removeAdmin, ""))
	// The request of before the reload goes on now, on the generation that it began with.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.action(), strings.NewReader(url.Values{"login": {"admin@example.com"}, "password": {"password"}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "https://sso.example.com")
	for _, c := range b.c.Jar.Cookies(r.URL) {
		r.AddCookie(c)
	}
	resp, err := inproc.Serve(old.front, r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Fatalf("the sign-in under way: status %d, want 401", resp.StatusCode)
	}
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("%d sessions, %v, want none", len(all), err)
	}
	// Had it been a moment faster, there would be one, and it ends with the request.
	who := storetest.Person{Connector: "local", ID: "u1", LastLogin: w.now()}
	if err := errors.Join(storetest.AddPerson(t.Context(), w.store, who), storetest.AddSession(t.Context(), w.store, "s", who, w.now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	w.provider.leave(t.Context(), old)
	if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%d sessions of the removed user, %v, want none once his request has ended", len(all), err)
	}
}

func TestPageOpenedBeforeAReloadIsPostedAfter(t *testing.T) {
	w, _ := variant(t, upstream)
	text := strings.Replace(testConfig, "gateway:\n", upstream+"gateway:\n", 1)
	b := w.browser().get("https://app.example.com/page")
	up := w.browser().get("https://app.example.com/other")
	w.reload(edited(t, text, "default: signed-in", "default: deny"))
	if b.signIn("admin@example.com", "password"); b.page != "hello admin@example.com [admins staff] at /page" {
		t.Errorf("got %d %q", b.code, b.page)
	}
	if up.get(up.link()); up.page != "hello kilgore@kilgore.trout [authors] at /other" {
		t.Errorf("upstream: %d %q", up.code, up.page)
	}
}

func TestRemovedConnectorSignsNobodyIn(t *testing.T) {
	w, _ := variant(t, upstream)
	b := w.browser().get("https://app.example.com/")
	link := b.link()
	w.reload(testConfig)
	if b.get(link); b.code != http.StatusNotFound {
		t.Errorf("the link of before: %d %s", b.code, b.page)
	}
	if _, err := w.provider.current.Load().dex.Connectors().Get(t.Context(), "up"); err == nil {
		t.Error("Dex still has it")
	}
}

// However often and in whatever way connectors change, Dex has nothing but wrapped ones.
func TestConnectorsStayWrapped(t *testing.T) {
	up := func(name, config string) string {
		return strings.Replace(testConfig, "gateway:\n", "connectors:\n- {type: mockPassword, id: dir, name: "+name+", grantTypes: [password], config: {username: ann, password: "+config+"}}\ngateway:\n", 1)
	}
	clk := &clock{}
	w := newWorld(t, up("One", "first"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	tok, err := w.signInClient(w.browser())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.provider.Block(t.Context(), "local", "u1", clk.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{up("One", "first"), up("Two", "first"), up("Two", "second"), edited(t, up("Two", "second"), "groups: [team-a]", "groups: [x]")} {
		if i > 0 {
			w.reload(text)
		}
		g := w.provider.current.Load()
		for _, id := range []string{"dir", "local"} {
			c, err := g.dex.Connectors().Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			cb, ok := c.Connector.(connector.CallbackConnector)
			if !ok {
				t.Fatalf("reload %d: %s is not wrapped: %T", i, id, c.Connector)
			}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, issuer+"/callback?state=x", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cb.HandleCallback(connector.Scopes{}, nil, r); err == nil {
				t.Errorf("reload %d: %s takes a direct callback", i, id)
			}
		}
		if got := w.grant("admin@example.com", "password"); got == http.StatusOK {
			t.Errorf("reload %d: the password grant of a blocked user: %d", i, got)
		}
		tok.Expiry = time.Unix(1, 0)
		if _, err := webClient().TokenSource(w.direct(t.Context()), tok).Token(); err == nil {
			t.Errorf("reload %d: the refresh token of a blocked user works", i)
		}
		b := w.browser().get("https://app.example.com/")
		b.get(strings.Replace(b.last.String(), "/auth/dir/", "/auth/local/", 1))
		if b.signIn("admin@example.com", "password"); b.code != http.StatusForbidden {
			t.Errorf("reload %d: sign-in of a blocked user: %d", i, b.code)
		}
	}
}

func TestAttemptsSurviveAReload(t *testing.T) {
	w, _ := memoryWorld(t)
	for range 3 {
		w.grant("user@example.com", "wrong")
	}
	w.reload(edited(t, testConfig, "default: signed-in", "default: deny"))
	for range 2 {
		w.grant("user@example.com", "wrong")
	}
	if got := w.grant("user@example.com", "password"); got == http.StatusOK {
		t.Error("five wrong passwords, with a reload between them, do not count")
	}
}

func TestRequestsEndOnTheirGeneration(t *testing.T) {
	w, _ := memoryWorld(t)
	g := w.provider.acquire()
	ended, stop := make(chan struct{}), g.stop
	g.stop = func() { stop(); close(ended) }
	w.reload(edited(t, testConfig, "default: signed-in", "default: deny"))
	live := func() bool {
		select {
		case <-ended:
			return false
		default:
			return true
		}
	}
	for i := range 3 { // time enough to end it
		if !live() {
			t.Fatal("the generation ended under a request")
		}
		w.reload(edited(t, testConfig, "default: signed-in", fmt.Sprintf("default: deny\n  prefix: /p%d", i)))
	}
	if w.provider.current.Load() == g {
		t.Fatal("the new configuration is not the current one")
	}
	g.release()
	eventually(t, "the generation ends", func() bool { return !live() })
}

func labels(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		b.WriteString(l.GetName() + "\x00" + l.GetValue() + "\x00")
	}
	return b.String()
}

// counters returns the counters and counts of histograms by name and labels.
func counters(t *testing.T, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			out[f.GetName()+" "+labels(m)] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestCountersDoNotFall(t *testing.T) {
	w, _ := memoryWorld(t)
	before := map[string]float64{}
	for i := range 4 {
		b := w.browser().get("https://app.example.com/")
		b.signIn("admin@example.com", "password")
		now := counters(t, w.provider.options.Registry)
		for name, n := range before {
			if now[name] < n {
				t.Errorf("reload %d: %q fell from %v to %v", i, name, n, now[name])
			}
		}
		before = maps.Clone(now)
		w.reload(edited(t, testConfig, "default: signed-in", fmt.Sprintf("default: deny\n  rules: [{name: r%d, paths: [/x], allow: anyone}]", i)))
	}
	found := false
	for name, n := range before {
		if strings.HasPrefix(name, "http_requests_total") && strings.Contains(name, "/token") {
			found = true
			if n != 4 {
				t.Errorf("%s: got %v, want 4", name, n)
			}
		}
	}
	if !found {
		t.Errorf("Dex's requests are not counted: %v", slices.Sorted(maps.Keys(before)))
	}
}

func TestManyReloadsLeaveNothing(t *testing.T) {
	text := func(i int) string {
		return strings.Replace(edited(t, testConfig, "groups: [team-a]", fmt.Sprintf("groups: [team-%d]", i/20)), "gateway:\n",
			fmt.Sprintf("connectors:\n- {type: mockCallback, id: up, name: Upstream %d}\ngateway:\n", i), 1)
	}
	clk := &clock{}
	w := newWorld(t, text(0), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	measure := func() (goroutines int, heap uint64) {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	for i := range 20 { // what is made once
		w.reload(text(i))
	}
	goroutines, heap := measure()
	for i := range 200 {
		w.reload(text(i + 1))
		if i%20 == 0 {
			if b.get("https://app.example.com/"); !strings.HasPrefix(b.page, "hello admin") {
				t.Fatalf("reload %d: the session is at %s", i, b.last)
			}
		}
	}
	var now int
	var after uint64
	eventually(t, "goroutines end", func() bool {
		now, after = measure()
		return now <= goroutines+2
	})
	t.Logf("goroutines %d -> %d, heap %d -> %d kB after 200 reloads", goroutines, now, heap>>10, after>>10)
	if after > heap+2<<20 {
		t.Errorf("the heap grew from %d to %d kB", heap>>10, after>>10)
	}
}

func TestRefusedConfigurationChangesNothing(t *testing.T) {
	w, _ := memoryWorld(t)
	before := w.provider.current.Load()
	cfg := parse(t, edited(t, testConfig, "gateway:\n", "mfa: {authenticators: [{id: key, type: WebAuthn, config: {rpDisplayName: x, rpID: other.example.org}}]}\ngateway:\n"))
	cfg.MFA.Authenticators[0].Type = "unheard-of"
	if _, err := w.provider.Prepare(cfg); err == nil {
		t.Error("Prepare takes it")
	}
	if err := Check(t.Context(), cfg); err == nil {
		t.Error("Check takes what Prepare refuses")
	}
	if w.provider.current.Load() != before {
		t.Error("the current configuration is another one")
	}
	if err := Check(t.Context(), parse(t, testConfig)); err != nil {
		t.Errorf("Check refuses what New takes: %v", err)
	}
}

func TestConnectorVersionFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	raw := []byte(`{"issuer":"https://x.example.com","rootCAs":["` + dir + `/ca.pem","-----BEGIN CERTIFICATE-----"]}`)
	if got := ConnectorFiles("oidc", raw); !slices.Equal(got, []string{dir + "/ca.pem"}) {
		t.Errorf("files: %v", got)
	}
	const file = `issuer: https://auth.example.com
storage: {type: memory}
web: {http: 127.0.0.1:0}
connectors:
- {type: oidc, id: x, name: X, config: {issuer: https://x.example.com, clientID: a, clientSecret: not-a-default-secret, redirectURI: https://auth.example.com/callback, rootCAs: [DIR/ca.pem]}}
`
	version := func(files config.Files) string {
		c := parse(t, strings.ReplaceAll(file, "DIR", dir)).Connectors[0]
		c.Files = files
		return connectorVersion(c)
	}
	versions := map[string]bool{}
	for _, digest := range []string{"does not exist", "1", "2"} {
		v := version(config.Files{dir + "/ca.pem": digest})
		if versions[v] {
			t.Errorf("with the digest %q: the version is that of another content", digest)
		}
		versions[v] = true
		// What is in the file by now was neither checked nor noted: the next reload takes it up.
		if err := os.WriteFile(dir+"/ca.pem", []byte(digest), 0o600); err != nil {
			t.Fatal(err)
		}
		if again := version(config.Files{dir + "/ca.pem": digest}); again != v {
			t.Error("what was read gives another version when the file changes afterwards")
		}
		if other := version(config.Files{dir + "/ca.pem": digest, dir + "/other.pem": "3"}); other != v {
			t.Error("a file of another connector counts")
		}
	}
}

// A failing driver cannot say which sessions somebody has.
type failing struct {
	store.Driver
	down atomic.Bool
}

var errDown = errors.New("disk full")

func (d *failing) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	if q.Owner != "" && d.down.Load() {
		return func(yield func(store.Record, error) bool) { yield(store.Record{}, errDown) }
	}
	return d.Driver.Scan(ctx, q)
}

func TestRemovalIsTriedUntilItIsStored(t *testing.T) {
	clk := &clock{}
	d := &failing{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	b := w.browser().get("https://app.example.com/")
	b.signIn("admin@example.com", "password")
	next, err := w.provider.Prepare(parse(t, edited(t, testConfig, removeAdmin, "")))
	if err != nil {
		t.Fatal(err)
	}
	d.down.Store(true)
	next.Use()
	if err := next.Settle(t.Context()); !errors.Is(err, errDown) {
		t.Errorf("got %v, want %v", err, errDown)
	}
	d.down.Store(false)
	eventually(t, "the removed user is signed out", func() bool {
		all, err := w.provider.Sessions(t.Context())
		return err == nil && len(all) == 0
	})
}
