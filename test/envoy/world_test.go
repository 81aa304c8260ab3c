// Package envoy attacks the built Gatehouse as the world meets it: behind a real Envoy, through two kinds of connection
// manager, and at its ports directly, over gRPC and at the issuer. Most cases are rows of one table (TestTable), which ends
// with a summary; what they are about is listed in coverage_test.go. TestMutants shows that the table finds mistakes.
//
// The tests run one after the other: half of the machine checks passwords when 50 users sign in at once.
//
// What needs a clock of its own is tested beside the code instead: hand-offs and sealed requests that are too old
// (authz, internal/handoff), idle time running out while Gatehouse runs (authz/session; the shortest that the
// configuration allows is a minute).
package envoy

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	_ "modernc.org/sqlite" // to look into the product's database

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// The names are reserved ones (RFC 6761): nothing but the dialer of these tests knows where they are, and neither does
// Gatehouse.
const (
	issuerHost   = "auth.example.test"
	appHost      = "app.example.test"
	wildHost     = "one.apps.example.test" // listed by *.apps.example.test
	otherHost    = "portal.example.org"    // on another site than the issuer
	unlistedHost = "unlisted.example.test"
	clientOrigin = "http://client.example.test" // of an outside client of the issuer; nobody is there
	issuer       = "http://" + issuerHost + "/dex"
)

// The users. The first is an administrator.
const (
	administrator = "admin@example.com"
	user          = "user@example.com"
	tricky        = "tricky@example.com"  // whose groups are almost those of others
	locked        = "limited@example.com" // whose password is guessed
	invited       = "invited@example.com" // and theirs
)

// groupsOf are the values of kubeflow-groups. A group with a comma in its name is not among them: it would be read as two.
func groupsOf(mail string) string {
	return map[string]string{administrator: "admins,staff", user: "team-a", tricky: "admin,Admins,admins2,%C3%A4dmins"}[mail]
}

// nameOf are the values of kubeflow-name.
func nameOf(mail string) string {
	return map[string]string{administrator: "Ada Admin", user: "Uma User", tricky: "<script>Zo%C3%AB 100%25 %E2%80%AEx</script>"}[mail]
}

// Names of cookies over plain http.
const (
	sessionCookie = "gatehouse-dev"
	loginCookie   = "gatehouse-dev-login"
	issuerCookie  = "gatehouse-dev-issuer-login"
	ssoCookie     = "gatehouse-sso"
)

// A world is a running Gatehouse with what stands around it.
type world struct {
	t         testing.TB // that everything ends with
	gatehouse *peers.GatehouseServer
	admin     string // address of its admin listener
	app       *recorder
	hardened  *edge
	relaxed   *edge           // nil unless asked for
	direct    *edge           // Gatehouse's gRPC port, see checker
	raw       *edge           // the same with headers in their raw encoding
	issuer    *edge           // Gatehouse's own port, without Envoy
	only      *edge           // the one that rows are run at; nil: all of them
	ports     *http.Transport // to the admin listener and telemetry
	passwords map[string]string
	client    client
	secrets   *secrets
	hosts     []string // origins

	known  *browser       // see knownBrowser
	inside *browser       // see signedInAt
	tokens map[string]any // see outsideTokens
	forged *forger        // see forger
}

// A client is an outside client of the issuer.
type client struct{ id, secret string }

// An edge is an address that requests are sent to, whatever host they name.
type edge struct {
	name    string
	addr    string
	checked bool // asks Gatehouse before a request passes
	http    http.RoundTripper
	proxy   *peers.EnvoyServer // nil where there is none
	direct  *checker           // nil where requests are sent over HTTP
	from    string             // IP address that requests are sent from; 127.0.0.1 if empty
}

func newEdge(t testing.TB, name, addr string, proxy *peers.EnvoyServer) *edge {
	e := &edge{name: name, addr: addr, checked: proxy != nil, proxy: proxy}
	tr := &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dial(ctx) },
	}
	t.Cleanup(tr.CloseIdleConnections)
	e.http = tr
	return e
}

func (e *edge) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if e.from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(e.from)}
	}
	return d.DialContext(ctx, "tcp", e.addr)
}

// clientAddress is where the requests come from.
func (e *edge) clientAddress() string { return or(e.from, "127.0.0.1") }

// newWorld starts Gatehouse with a storage, "sqlite" or "memory", behind a hardened Envoy and, if asked for, one with
// Envoy's default connection manager too.
func newWorld(t testing.TB, storage string, relaxed bool) *world {
	t.Helper()
	w, e := newBareWorld(t, storage)
	hard := peers.Envoy(t, e)
	w.hardened = newEdge(t, "hardened", hard.Addr, hard)
	if relaxed {
		e.Relaxed = true
		soft := peers.Envoy(t, e)
		w.relaxed = newEdge(t, "relaxed", soft.Addr, soft)
	}
	return w
}

// places are the addresses that a gateway knows: of the issuer, of Gatehouse's gRPC port and of the app.
type places struct{ web, grpc, app string }

func freePlaces(t testing.TB) places {
	t.Helper()
	return places{web: peers.FreeAddr(t), grpc: peers.FreeAddr(t), app: peers.FreeAddr(t)}
}

// newBareWorld is newWorld without an Envoy; it returns what one would be started with. Each change is made to the configuration.
func newBareWorld(t testing.TB, storage string, change ...func(text string) string) (*world, demo.Edge) {
	t.Helper()
	return newWorldAt(t, freePlaces(t), storage, change...)
}

// newWorldAt is newBareWorld at given addresses.
func newWorldAt(t testing.TB, at places, storage string, change ...func(text string) string) (*world, demo.Edge) {
	t.Helper()
	w := &world{
		t: t, app: newRecorder(t, at.app), admin: peers.FreeAddr(t), secrets: &secrets{}, ports: &http.Transport{},
		passwords: map[string]string{administrator: rand.Text(), user: rand.Text(), tricky: strings.Repeat(rand.Text(), 3)[:72]},
		client:    client{id: "outside", secret: rand.Text()},
		hosts:     []string{"http://" + issuerHost, "http://" + appHost, "http://" + wildHost, "http://" + otherHost, "http://deep.down.apps.example.test"},
	}
	t.Cleanup(w.ports.CloseIdleConnections)
	w.passwords[locked], w.passwords[invited] = w.passwords[user], w.passwords[user] // a hash takes a while
	for _, s := range w.passwords {
		w.secrets.add(s)
	}
	w.secrets.add(w.client.secret)
	text := w.config(t, storage, at.web, at.grpc)
	for _, f := range change {
		text = f(text)
	}
	w.gatehouse = peers.Gatehouse(t, text)
	w.issuer = newEdge(t, "issuer", at.web, nil)
	w.direct, w.raw = newChecker(t, w, "direct", at.grpc, false), newChecker(t, w, "direct raw", at.grpc, true)
	// As in the demo: the issuer's path leads to Gatehouse under every host, everything else to the app.
	return w, demo.Edge{Check: at.grpc, Hosts: []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{
		{Prefix: "/dex", Upstream: at.web}, {Prefix: "/", Upstream: at.app},
	}}}}
}

const configText = `
issuer: %[1]s
storage: %[2]s
web:
  http: %[3]s
  clientRemoteIP: {header: X-Real-IP, trustedProxies: [127.0.0.1/32]}
telemetry: {http: %[4]s}
oauth2: {skipApprovalScreen: true}
sessions: {ssoSharedWithDefault: all}
enablePasswordDB: true
staticPasswords:
- {email: admin@example.com, username: admin, name: Ada Admin, userID: id-admin, groups: [admins, staff], hash: %[5]q}
- {email: user@example.com, username: user, name: Uma User, userID: id-user, groups: [team-a], hash: %[6]q}
- email: tricky@example.com
  username: tricky
  name: "<script>Zo\u00eb 100%% \u202ex</script>"
  userID: id-tricky
  groups: [admin, Admins, admins2, "x,admins", "\u00e4dmins"]
  hash: %[10]q
- {email: limited@example.com, username: limited, name: L, userID: id-limited, hash: %[6]q}
- {email: invited@example.com, username: invited, name: I, userID: id-invited, hash: %[6]q}
staticClients:
- id: outside
  name: Outside
  secret: %[7]q
  redirectURIs: ["http://client.example.test/cb"]
  postLogoutRedirectURIs: ["http://client.example.test/bye"]
- {id: elsewhere, name: Elsewhere, secret: %[7]q, redirectURIs: ["http://client.example.test/elsewhere"]}
gateway:
  grpc: %[8]s
  admin: %[9]s
  hosts: [auth.example.test, app.example.test, "*.apps.example.test", portal.example.org]
  identity: {headers: {kubeflow-userid: email, kubeflow-groups: groups, kubeflow-name: name}}
  rules:
  - {name: open-in-admin, paths: ["/admin/open"], allow: anyone}
  - {name: closed-in-public, paths: ["/public/closed/**"], groups: [admins]}
  - {name: by-mail, paths: ["/by-mail/**"], users: [User@Example.com]}
  - {name: by-id, paths: ["/by-id/**"], users: ["local:id-user"]}
  - {name: public, paths: ["/public/**"], allow: anyone}
  - {name: health, paths: [/healthz], methods: [GET], allow: anyone}
  - {name: admin, paths: ["/admin/**"], groups: [admins]}
  default: signed-in
`

func (w *world) config(t testing.TB, storage, web, grpc string) string {
	t.Helper()
	if storage == "sqlite" {
		storage = "sqlite, config: {file: gatehouse.db}"
	}
	return fmt.Sprintf(configText, issuer, "{type: "+storage+"}", web, peers.FreeAddr(t),
		hash(t, w.passwords[administrator]), hash(t, w.passwords[user]), w.client.secret, grpc, w.admin, hash(t, w.passwords[tricky]))
}

// hash makes a bcrypt hash of the lowest cost that the configuration takes.
func hash(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// gatehouse runs the product's binary and returns what it wrote.
func gatehouse(t testing.TB, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), peers.Binary(t), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gatehouse %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// restart starts Gatehouse again, whether it runs or not, and waits until Envoy has found it. The process is to outlive the
// subtest that does this.
func (w *world) restart(t testing.TB) {
	t.Helper()
	w.gatehouse.Restart(w.t)
	peers.Eventually(t, within, "Envoy asks the new process", func() bool {
		p := must(t)(fetch(t.Context(), w.hardened.http, http.MethodGet, "http://"+appHost+"/public/headers", ""))
		return p.status == http.StatusOK
	})
	w.app.take()
}

// origins are where a browser may be sent.
func (w *world) origins() []string { return w.hosts }

var checksRE = regexp.MustCompile(`(?m)^gatehouse_checks_total\{[^}]*\} (\d+)$`)

// checks returns how many checks Gatehouse has answered so far.
func (w *world) checks(t testing.TB) int {
	t.Helper()
	n := 0
	for _, m := range checksRE.FindAllStringSubmatch(w.metrics(t), -1) {
		v, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n += v
	}
	return n
}

func (w *world) metrics(t testing.TB) string {
	t.Helper()
	p, err := fetch(t.Context(), w.ports, http.MethodGet, "http://"+w.gatehouse.Telemetry+"/metrics", "")
	if err != nil || p.status != http.StatusOK {
		t.Fatalf("metrics: %v, %v", p, err)
	}
	return p.body
}

// rows counts the records of each kind in the product's database, and all entries that its change log ever had: old ones are cut off.
func (w *world) rows(t testing.TB) map[string]int {
	t.Helper()
	db := w.database(t, "ro")
	defer func() { _ = db.Close() }()
	rows, err := db.QueryContext(t.Context(), "SELECT kind, count(*) FROM record GROUP BY kind UNION ALL SELECT 'changes', value FROM meta WHERE key = 'seq'")
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
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) database(t testing.TB, mode string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.gatehouse.Folder, "gatehouse.db")+"?mode="+mode)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// An event is one line of the product's log; those of the audit log have "log": "audit".
type event map[string]any

// audit returns the audit events so far.
func (w *world) audit() (events []event) {
	for line := range strings.Lines(w.gatehouse.Log()) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			continue // the last line is being written; see judgeLog
		}
		if e["log"] == "audit" {
			events = append(events, e)
		}
	}
	return events
}

// secrets remembers what must never be logged.
type secrets struct {
	mu   sync.Mutex
	seen map[string]bool
}

// add takes a secret; short ones would be found by chance.
func (s *secrets) add(values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	for _, v := range values {
		if len(v) >= 16 {
			s.seen[v] = true
		}
	}
}

// in returns those that stand in text.
func (s *secrets) in(text string) (found []string, of int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.seen {
		if strings.Contains(text, v) {
			found = append(found, v)
		}
	}
	return found, len(s.seen)
}

// A recorder is the sample app, which remembers what reached it.
type recorder struct {
	addr string
	app  http.Handler

	mu   sync.Mutex
	seen []arrival
}

// An arrival is a request that reached the app.
type arrival struct {
	method, host, target string
	header, trailer      http.Header
}

func newRecorder(t testing.TB, addr string) *recorder {
	t.Helper()
	r := &recorder{app: demo.SampleApp(), addr: addr}
	s := httptest.NewUnstartedServer(r)
	_ = s.Listener.Close() // of a port that nobody chose
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return r
}

// ServeHTTP implements http.Handler.
func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body) // trailers come behind it
	r.mu.Lock()
	r.seen = append(r.seen, arrival{req.Method, req.Host, req.RequestURI, req.Header.Clone(), req.Trailer.Clone()})
	r.mu.Unlock()
	r.app.ServeHTTP(w, req)
}

// take returns what has reached the app since the last call.
func (r *recorder) take() []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

// within is how long anything may take on a busy machine.
const within = time.Minute
