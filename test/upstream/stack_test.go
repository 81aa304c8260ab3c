// Package upstream signs people in through oidc-provider, a certified OpenID provider, with Dex's oidc connector in
// the built Gatehouse behind a real Envoy.
package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	_ "modernc.org/sqlite" // the driver

	"gatehouse/internal/demo"
	"gatehouse/internal/seal"
	"gatehouse/test/peers"
)

const (
	clientSecret = "a secret of this test"
	staticUser   = "ada@example.com" // who does not depend on any identity provider
	password     = "open sesame 7"
)

// A stack is Gatehouse with a sample app behind Envoy, and the identity provider. These connectors lead there:
//
//	company  as it should be
//	gone     its token endpoint is down
//	silent   its token endpoint takes requests and does not answer
//	dead     nothing of it was up when Gatehouse started
type stack struct {
	issuer    string // URL, without a slash at the end
	app, wiki string // origins of two apps on two sites
	edge      string // Envoy's ip:port
	op        *peers.OIDCServer
	gatehouse *peers.GatehouseServer
	key       []byte // that Gatehouse seals with
	dead      string // issuer of the connector of that name

	backchannel string // where the identity provider tells of sign-outs, which cannot resolve the issuer's name
}

func serve(t *testing.T) *stack {
	t.Helper()
	return serveWith(t, "")
}

// serveWith is serve with more lines in the configuration.
func serveWith(t *testing.T, more string) *stack {
	t.Helper()
	listen, web, grpc := peers.FreeAddr(t), peers.FreeAddr(t), peers.FreeAddr(t)
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{
		issuer: "http://auth.example.test:" + port + "/dex", app: "http://app.other.test:" + port, wiki: "http://wiki.third.test:" + port,
		edge: listen, key: seal.NewKey(), dead: "http://" + peers.FreeAddr(t),
	}
	s.backchannel = "http://" + web + "/dex/backchannel/company"
	s.op = peers.OIDCProvider(t, peers.OIDCOptions{
		BackchannelLogoutURI: s.backchannel,
		ClientID:             "gatehouse", ClientSecret: clientSecret, RedirectURIs: []string{s.issuer + "/callback"},
		PostLogoutRedirectURIs: []string{s.issuer + "/logout/callback"},
		Users: []peers.User{
			{Sub: "alice", Email: "alice@company.test", Name: "Alice", Groups: []string{"staff", "ops"}},
			{Sub: "bob", Email: "bob@company.test", Name: "Bob", Groups: []string{"sales"}},
		},
	})
	s.gatehouse = peers.Gatehouse(t, more+s.config(t, web, grpc))
	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	peers.Envoy(t, demo.Edge{Listen: listen, Check: grpc, Hosts: []demo.VirtualHost{
		{Name: "auth", Domains: []string{"auth.example.test", "auth.example.test:*"}, Routes: []demo.Route{{Prefix: "/dex", Upstream: web}}},
		{Name: "apps", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: app.Listener.Addr().String()}}},
	}})
	return s
}

func (s *stack) config(t *testing.T, web, grpc string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), 10)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(peers.Folder(t), "keys")
	if err := os.WriteFile(keys, []byte(base64.StdEncoding.EncodeToString(s.key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	connector := func(id, issuer, tokenURL string) string {
		override := ""
		if tokenURL != "" {
			override = fmt.Sprintf(", providerDiscoveryOverrides: {tokenURL: %q}", tokenURL)
		}
		return fmt.Sprintf(`- type: oidc
  id: %s
  name: The %[1]s one
  config: {issuer: %q, clientID: gatehouse, clientSecret: %s, redirectURI: %q, scopes: [profile, email, groups], insecureEnableGroups: true%s}
`, id, issuer, clientSecret, s.issuer+"/callback", override)
	}
	return fmt.Sprintf(`issuer: %s
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: %q, clientRemoteIP: {header: X-Real-IP, trustedProxies: [127.0.0.1/32]}}
telemetry: {http: %q}
connectors:
%senablePasswordDB: true
staticPasswords:
- {email: %s, username: ada, userID: id-ada, groups: [admins], hash: %q}
gateway:
  grpc: %q
  admin: %q
  hosts: [%q, %q]
  keys: {file: %q}
  identity: {headers: {kubeflow-userid: email, kubeflow-groups: groups}}
  rules:
  - {name: ops, paths: ["/admin", "/admin/**"], groups: [ops]}
  default: signed-in
`, s.issuer, web, peers.FreeAddr(t),
		connector("company", s.op.Issuer, "")+connector("gone", s.op.Issuer, "http://"+peers.FreeAddr(t)+"/token")+
			connector("silent", s.op.Issuer, serveSilence(t)+"/token")+connector("dead", s.dead, ""),
		staticUser, hash, grpc, peers.FreeAddr(t), s.app, s.wiki, keys)
}

// serveSilence starts a server that keeps everybody waiting, and returns its URL.
func serveSilence(t *testing.T) string {
	t.Helper()
	ends := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-ends:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(ends) })
	return server.URL
}

// transport reaches Envoy under the names of the stack, and the identity provider as it is.
func (s *stack) transport(t *testing.T) *http.Transport {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if host, _, err := net.SplitHostPort(addr); err == nil && strings.HasSuffix(host, ".test") {
			addr = s.edge
		}
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// stored lists the records in Gatehouse's database with their versions, which every write changes.
func (s *stack) stored(t *testing.T) string {
	t.Helper()
	q := url.Values{"mode": {"ro"}, "_pragma": {"query_only(1)", "busy_timeout(5000)"}}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.gatehouse.Folder, "gatehouse.db")+"?"+q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	rows, err := db.QueryContext(t.Context(), "SELECT kind, id, version FROM record ORDER BY kind, id")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var b strings.Builder
	for rows.Next() {
		var kind, id string
		var version int64
		if err := rows.Scan(&kind, &id, &version); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %q version %d\n", kind, id, version)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An event is a line of the audit log.
type event struct {
	Msg       string `json:"msg"`
	Log       string `json:"log"`
	Result    string `json:"result"`
	Reason    string `json:"reason"`
	Decision  string `json:"decision"`
	Connector string `json:"connector"`
	User      string `json:"user"`
	UserID    string `json:"user_id"`
	Host      string `json:"host"`
	Path      string `json:"path"`
	Client    string `json:"client"`
	Session   string `json:"session"`
	RequestID string `json:"request_id"`
}

// logged returns how long the log is once it holds every event so far. Lines are gathered before they are written: those of the test
// before would be found in the place of this one's.
func (s *stack) logged(t *testing.T) int {
	t.Helper()
	before := len(s.gatehouse.Log())
	path := "/logged-" + strings.ToLower(rand.Text())
	s.newPerson(t).step(t, s.app+path)
	s.audited(t, before, "the request for "+path, func(e event) bool { return e.Path == path })
	return len(s.gatehouse.Log())
}

// audited waits for an event after the first skip bytes of the log, and returns it.
func (s *stack) audited(t *testing.T, skip int, what string, is func(event) bool) (found event) {
	t.Helper()
	peers.Eventually(t, time.Minute, "an audit event: "+what, func() bool {
		lines := bufio.NewScanner(strings.NewReader(s.gatehouse.Log()[skip:]))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e event
			if json.NewDecoder(bytes.NewReader(lines.Bytes())).Decode(&e) == nil && e.Log == "audit" && is(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}
