package floods

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	_ "modernc.org/sqlite" // to look into the product's database

	"gatehouse/test/peers"
)

// How much is sent, and what of it may stay.
const (
	floodChecks = 60_000
	floodPages  = 20_000
	warmUp      = 20 // this part of the flood is sent before, so that buffers and pools are there
	senders     = 64
	maxGrowth   = 5 << 20 // bytes
)

func TestAnonymousFloodLeavesNothing(t *testing.T) {
	t.Setenv("GATEHOUSE_BIN", probed(t))
	s := start(t)
	db := s.database(t)
	s.flood(t, floodChecks/warmUp, floodPages/warmUp)

	before, heap := s.stored(t, db), s.heap(t)
	series := seriesOf(s.metrics(t))
	s.flood(t, floodChecks, floodPages)
	after := s.stored(t, db)
	if before["floor"] != after["floor"] { // a slow flood: what began five minutes ago has gone from the log meanwhile, which is a commit
		for _, n := range []map[string]int{before, after} {
			delete(n, "floor")
			delete(n, "version")
		}
	}
	if !maps.Equal(before, after) {
		t.Errorf("the store changed: %v, before %v", after, before)
	}
	grown := s.heap(t) - heap
	t.Logf("the heap was %d kB and grew by %d kB", heap>>10, grown>>10)
	if grown > maxGrowth {
		t.Errorf("the heap grew by %d bytes, want at most %d", grown, maxGrowth)
	}
	if added := slices.DeleteFunc(seriesOf(s.metrics(t)), func(m string) bool { return slices.Contains(series, m) }); len(added) > 0 {
		t.Errorf("strangers made %d new series of metrics, such as %s", len(added), added[0])
	}
}

// probed builds the product with a file more, which tells the size of the heap after a garbage collection.
func probed(t *testing.T) string {
	t.Helper()
	root, dir := peers.Root(t), t.TempDir()
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(root, "cmd", "gatehouse", "probe.go"): filepath.Join(root, "test", "floods", "testdata", "probe.go.txt"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	file, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "gatehouse")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-pgo=off", "-trimpath", "-overlay", file, "-o", binary, "./cmd/gatehouse")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

func (s *stack) probe(t *testing.T) (heap, goroutines int) {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", filepath.Join(s.gatehouse.Folder, "heap.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fscan(c, &heap, &goroutines); err != nil {
		t.Fatal(err)
	}
	return heap, goroutines
}

// heap is the median of three, once the goroutines of closed connections have ended.
func (s *stack) heap(t *testing.T) int {
	t.Helper()
	last, same := 0, 0
	peers.Eventually(t, within, "the goroutines of closed connections end", func() bool {
		_, n := s.probe(t)
		if n != last {
			last, same = n, 0
		}
		same++
		return same >= 10
	})
	var all []int
	for range 3 {
		heap, _ := s.probe(t)
		all = append(all, heap)
	}
	slices.Sort(all)
	return all[1]
}

// database opens the product's database for one connection: SQLite tells it whether any other one has written since.
func (s *stack) database(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.gatehouse.Folder, "gatehouse.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// stored is how many records of each kind there are, the number of the last change of the log, how many transactions the product has written
// but for those that delete what is out of date, up to which number the log was cut, and SQLite's data_version, which any commit changes.
func (s *stack) stored(t *testing.T, db *sql.DB) map[string]int {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "SELECT kind, count(*) FROM record GROUP BY kind UNION ALL SELECT key, value FROM meta WHERE key IN ('seq', 'floor') UNION ALL SELECT 'version', data_version FROM pragma_data_version")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	n := map[string]int{}
	for rows.Next() {
		var kind string
		var count int
		if err := rows.Scan(&kind, &count); err != nil {
			t.Fatal(err)
		}
		n[kind] = count
	}
	if err := rows.Err(); err != nil || n["version"] == 0 {
		t.Fatalf("%v: %v", n, err)
	}
	n["transactions"] = int(s.metric(t, "gatehouse_store_writes_total"))
	return n
}

// seriesOf are the names and labels in a text of metrics.
func seriesOf(text string) (all []string) {
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			all = append(all, line[:i])
		}
	}
	return all
}

// flood sends checks and sign-in pages, by as many at a time as there are senders, and closes all connections.
func (s *stack) flood(t *testing.T, checks, pages int) {
	t.Helper()
	c := s.caller(t)
	defer c.close()
	page, _, err := c.signInPage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inParallel(t, checks, func(ctx context.Context, i int) error { return c.floodCheck(ctx, i) })
	inParallel(t, pages, func(ctx context.Context, i int) error { return c.floodPage(ctx, page, i) })
}

func inParallel(t *testing.T, n int, f func(ctx context.Context, i int) error) {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(ctx, i); err != nil {
					stop(fmt.Errorf("request %d: %w", i, err))
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		t.Fatal(err)
	}
}

// garbage is text of a length, different each time.
func garbage(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

// floodCheck asks once for a stranger. What is open to anyone passes, and nothing else.
func (c *caller) floodCheck(ctx context.Context, i int) error {
	method, host, target, open := http.MethodGet, appHost, "/"+garbage(12), false
	h := navigation("")
	script := map[string]string{"accept": "*/*", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
	switch i % 14 {
	case 0:
	case 1:
		h = script
	case 2:
		method, h = http.MethodPost, script
	case 3:
		h = navigation("gatehouse-dev=" + garbage(120))
	case 4:
		h = navigation("gatehouse-dev=" + garbage(120) + "; gatehouse-dev=" + garbage(120) + "; gatehouse-dev-login=" + garbage(40))
	case 5:
		host = strings.ToLower(garbage(10)) + ".example.net"
	case 6:
		host = fmt.Sprintf("h%d.apps.example.test", rand.Int32())
	case 7:
		target = "/_gatehouse/session?ticket=" + garbage(200)
		h = navigation("gatehouse-dev-login=" + garbage(40))
	case 8:
		target = []string{"/_gatehouse/whoami", "/_gatehouse/sign-in?rd=/" + garbage(9), "/_gatehouse/sign-out", "/_gatehouse/" + garbage(9)}[i/14%4]
	case 9:
		h = navigation("a=" + garbage(1) + strings.Repeat("x", 64<<10))
	case 10:
		target, open = "/public/"+garbage(9), true
		h["kubeflow-userid"] = garbage(9)
	case 11:
		target = "/" + garbage(3) + "%2f..;" + garbage(3)
	case 12:
		host, target, open = issuerHost, "/dex/auth/local/login?req="+garbage(300), true
	case 13:
		h = script
		h["authorization"] = "Bearer " + garbage(300)
	}
	r, err := c.check.Check(ctx, checkRequest(method, host, target, h))
	if err != nil {
		return err
	}
	if passed := r.GetOkResponse() != nil; passed != open {
		return fmt.Errorf("%s %s%s: passed %v, want %v", method, host, target, passed, open)
	}
	return nil
}

// floodPage shows one sign-in page to a stranger, for the gateway or for an outside client, and every other time sends something
// else that makes the issuer work.
func (c *caller) floodPage(ctx context.Context, page string, i int) error {
	ip := from(i)
	if i%2 == 0 {
		r, err := c.do(ctx, issuer+"/auth?"+url.Values{
			"client_id": {"outside"}, "response_type": {"code"}, "scope": {"openid"}, "redirect_uri": {"http://client.example.test/cb"},
			"state": {garbage(16)}, "nonce": {garbage(16)},
		}.Encode(), nil, ip)
		if err != nil || r.status != http.StatusFound && r.status != http.StatusSeeOther {
			return errors.Join(err, fmt.Errorf("authorization request: got %d, want a redirect", r.status))
		}
		page, ip = "http://"+issuerHost+r.header.Get("Location"), ip+"\nCookie: "+r.cookies
	}
	r, err := c.do(ctx, page, nil, strings.Split(ip, "\n")...)
	if err != nil || r.status != http.StatusOK || !strings.Contains(r.body, `name="password"`) {
		return errors.Join(err, fmt.Errorf("sign-in page: got %d, want 200 with a form", r.status))
	}
	if i%4 == 1 {
		return c.nonsense(ctx, i/4)
	}
	return nil
}

// nonsense sends what the issuer must refuse.
func (c *caller) nonsense(ctx context.Context, i int) error {
	bad := url.Values{"client_id": {garbage(8)}, "client_secret": {garbage(8)}, "grant_type": {"authorization_code"}, "code": {garbage(20)}}
	all := []struct {
		target string
		form   url.Values
	}{
		{"/auth/local/login?req=" + garbage(300), nil},
		{"/auth/local/login?req=" + garbage(300), url.Values{"login": {userName(i)}, "password": {garbage(9)}}},
		{"/auth?req=" + garbage(300), nil},
		{"/auth?client_id=" + garbage(9) + "&response_type=code&redirect_uri=http://x.example/", nil},
		{"/auth?client_id=outside&response_type=code&redirect_uri=http://evil.example/" + garbage(9), nil},
		{"/auth/" + garbage(9) + "?client_id=outside", nil},
		{"/token", bad},
		{"/token", url.Values{"client_id": {"outside"}, "client_secret": {garbage(9)}, "grant_type": {"password"}, "username": {userName(i)}, "password": {password}}},
		{"/token", url.Values{"client_id": {"outside"}, "client_secret": {clientSecret}, "grant_type": {"refresh_token"}, "refresh_token": {garbage(30)}}},
		{"/token/introspect", bad},
		{"/userinfo?access_token=" + garbage(30), nil},
		{"/device", nil},
		{"/device/code", url.Values{"client_id": {"outside"}, "scope": {"openid"}}},
		{"/device/auth/verify_code", url.Values{"user_code": {garbage(8)}}},
		{"/callback?state=" + garbage(30), nil},
		{"/callback?state=" + garbage(30) + "&code=" + garbage(9), nil},
		{"/gatehouse/callback?state=" + garbage(30) + "&code=" + garbage(9), nil},
		{"/logout?id_token_hint=" + garbage(30), nil},
		{"/approval?req=" + garbage(30) + "&hmac=" + garbage(30), nil},
		{"/" + garbage(9), nil},
	}
	n := all[i%len(all)]
	r, err := c.do(ctx, issuer+n.target, n.form, from(i))
	if err != nil {
		return err
	}
	if (r.status < 400 || r.status >= 500) && !strings.HasPrefix(n.target, "/logout") {
		return fmt.Errorf("%s: got %d, want a refusal", n.target, r.status)
	}
	return nil
}
