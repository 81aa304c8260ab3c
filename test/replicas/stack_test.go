// Package replicas runs two or three real Gatehouses on one storage, PostgreSQL or etcd, behind a real Envoy with active health checks and without
// sticky sessions, and then kills, stops, starves and restarts what there is. Each test prints what it did and what was left.
package replicas

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/bcrypt"

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// The names are reserved ones (RFC 6761): nothing but the dialers of these tests knows where they are. Issuer and app are of different sites.
const (
	issuerHost = "auth.example.test"
	appHost    = "app.other.test"
	clientURL  = "http://client.example.test/cb" // of an outside client of the issuer; nobody is there
	clientID   = "outside"
)

// within is how long anything may take on a busy machine.
const within = 60 * time.Second

// table is a part of a config file.
type table map[string]any

// A user of the file.
type user struct {
	mail, id string
	groups   []string
}

// people are the users of all fleets.
func people() []user {
	return []user{{"ada@example.com", "id-ada", []string{"admins"}}, {"bob@example.com", "id-bob", []string{"team-a"}}, {"cy@example.com", "id-cy", nil}}
}

const (
	ada = "ada@example.com"
	bob = "bob@example.com"
	cy  = "cy@example.com"

	password     = "correct horse battery staple of this test only"
	clientSecret = "secret of the outside client of this test only"
)

// hashed is the hash of password, which takes a while to make.
var hashed = sync.OnceValues(func() (string, error) {
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	return string(h), err
}) // never assigned to

// A replica is one Gatehouse of a fleet.
type replica struct {
	*peers.GatehouseServer

	name              string
	web, check, admin string     // addresses
	test              *testing.T // that it ends with, though a subtest may restart it
}

// leaves has the replica begin to leave when the test ends: each takes its time, so that all have to do it at once.
func (r *replica) leaves() {
	r.test.Cleanup(func() { _ = syscall.Kill(r.Pid(), syscall.SIGTERM) })
}

// restart is an orchestrator's: SIGTERM, and another process once that one is gone.
func (r *replica) restart() {
	r.test.Helper()
	r.Restart(r.test)
	r.leaves()
}

// A fleet is some replicas behind one Envoy, and the app that they guard.
type fleet struct {
	issuer, app string // issuer URL, origin of the app
	connectors  []table
	port        string
	apps        string // address of the app itself
	replicas    []*replica
	envoy       *peers.EnvoyServer
	direct      []*http.Transport // to the issuer's port of each replica
}

// newFleet starts n replicas on a storage. session is the config's gateway.session.
func newFleet(t *testing.T, n int, storage, session table, connectors ...table) *fleet {
	t.Helper()
	return newFleetOn(t, slices.Repeat([]table{storage}, n), session, connectors...)
}

// newFleetOn is newFleet with a way to the storage for each replica.
func newFleetOn(t *testing.T, storages []table, session table, connectors ...table) *fleet {
	t.Helper()
	listen := peers.FreeAddr(t)
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	f := &fleet{connectors: connectors, apps: app.Listener.Addr().String(), port: port, issuer: "http://" + issuerHost + ":" + port + "/dex", app: "http://" + appHost + ":" + port}
	for i, storage := range storages {
		f.replicas = append(f.replicas, f.start(t, string(rune('A'+i)), storage, session))
	}
	f.behindEnvoy(t, listen)
	return f
}

// beside starts one more replica, behind an Envoy of its own: browsers of f may come to it, too.
func (f *fleet) beside(t *testing.T, name string, storage, session table) *fleet {
	t.Helper()
	other := &fleet{apps: f.apps, port: f.port, issuer: f.issuer, app: f.app}
	other.replicas = []*replica{other.start(t, name, storage, session)}
	other.behindEnvoy(t, "")
	return other
}

// behindEnvoy starts the Envoy of a fleet.
func (f *fleet) behindEnvoy(t *testing.T, listen string) {
	t.Helper()
	edge := demo.Edge{Listen: listen, Hosts: []demo.VirtualHost{
		{Name: "auth", Domains: []string{issuerHost, issuerHost + ":*"}, Routes: []demo.Route{{Prefix: "/dex", Upstream: demo.Issuer}}},
		{Name: "apps", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: f.apps}}},
	}}
	for _, r := range f.replicas {
		edge.Replicas = append(edge.Replicas, demo.Replica{Check: r.check, Issuer: r.web, Health: r.Telemetry})
		f.direct = append(f.direct, directTo(t, r.web))
	}
	f.envoy = peers.Envoy(t, edge)
	f.allHealthy(t)
}

// start starts one more replica of the fleet, which Envoy knows nothing of.
func (f *fleet) start(t *testing.T, name string, storage, session table) *replica {
	t.Helper()
	hash, err := hashed()
	if err != nil {
		t.Fatal(err)
	}
	var users []table
	for _, u := range people() {
		users = append(users, table{"email": u.mail, "userID": u.id, "username": u.id, "groups": u.groups, "hash": hash})
	}
	r := &replica{name: name, web: peers.FreeAddr(t), check: peers.FreeAddr(t), admin: peers.FreeAddr(t)}
	config := table{
		"issuer": f.issuer, "storage": storage, "web": table{"http": r.web}, "telemetry": table{"http": peers.FreeAddr(t)},
		"enablePasswordDB": true, "staticPasswords": users, "oauth2": table{"skipApprovalScreen": true},
		"sessions": table{"ssoSharedWithDefault": "all"},
		"staticClients": []table{{
			"id": clientID, "name": "Outside", "secret": clientSecret, "redirectURIs": []string{clientURL},
		}},
		"gateway": table{
			"grpc": r.check, "admin": r.admin, "hosts": []string{f.app, "http://*.second.test:" + f.port}, "default": "signed-in", "session": session,
			"identity": table{"headers": table{"kubeflow-userid": "email", "kubeflow-groups": "groups"}},
		},
	}
	if len(f.connectors) > 0 {
		config["connectors"] = f.connectors
	}
	text, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	r.GatehouseServer = peers.Gatehouse(t, string(text))
	r.test = t
	r.leaves()
	return r
}

// rewrite puts a changed config file in the place of the running one.
func (r *replica) rewrite(t *testing.T, change func(text string) string) {
	t.Helper()
	old, err := os.ReadFile(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	text := change(string(old))
	if text == string(old) {
		t.Fatalf("nothing is changed in\n%s", text)
	}
	fresh := filepath.Join(r.Folder, "fresh.yaml")
	if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, r.Config); err != nil {
		t.Fatal(err)
	}
}

// allHealthy waits until Envoy finds so many of the fleet well, in both clusters: all of them if want is not given.
func (f *fleet) allHealthy(t *testing.T, want ...int) {
	t.Helper()
	n := len(f.replicas)
	if len(want) > 0 {
		n = want[0]
	}
	peers.Eventually(t, within, fmt.Sprintf("Envoy finds %d replicas well", n), func() bool {
		stats := get(t, "http://"+f.envoy.Admin+"/stats?filter=membership_healthy")
		return strings.Contains(stats, fmt.Sprintf("cluster.gatehouse-check.membership_healthy: %d\n", n)) &&
			strings.Contains(stats, fmt.Sprintf("cluster.gatehouse-issuer.membership_healthy: %d\n", n))
	})
}

func directTo(t *testing.T, addr string) *http.Transport {
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// get returns the body of a page of a program's own.
func get(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	p, err := answer(http.DefaultTransport, req)
	if err != nil {
		t.Fatal(err)
	}
	return p.body
}

// metric returns the sum of the samples whose name and labels begin with name.
func (r *replica) metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(get(t, "http://"+r.Telemetry+"/metrics")))
	for lines.Scan() {
		var v float64
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// metrics is the metric of every replica.
func (f *fleet) metrics(t *testing.T, name string) (all []float64) {
	t.Helper()
	for _, r := range f.replicas {
		all = append(all, r.metric(t, name))
	}
	return all
}

// onPostgres is the config's storage for a server, or for a proxy before it.
func onPostgres(s *peers.PostgresServer, addr string) table {
	host, port, _ := strings.Cut(addr, ":")
	return table{"type": "postgres", "config": table{
		"host": host, "port": number(port), "database": "postgres", "user": s.User, "password": s.Password, "ssl": table{"mode": "verify-full", "caFile": s.CA},
	}}
}

func number(text string) (n int) {
	_, _ = fmt.Sscan(text, &n)
	return n
}

// onEtcd is the config's storage for a server, or for a proxy before it.
func onEtcd(addr string) table {
	return table{"type": "etcd", "config": table{"endpoints": []string{"http://" + addr}}}
}
