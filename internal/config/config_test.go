package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/authz/policy"
)

func parseFile(t *testing.T, name string) (*Config, Warnings) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Parse(name, data, testOptions())
	if err != nil {
		t.Fatalf("got %v, want a valid file", err)
	}
	return c, warnings
}

func mustParse(t *testing.T, file string) (*Config, Warnings) {
	t.Helper()
	c, warnings, err := Parse("g.yaml", []byte(file), testOptions())
	if err != nil {
		t.Fatalf("got %v, want a valid file", err)
	}
	return c, warnings
}

func TestValidFiles(t *testing.T) {
	tests := []struct{ file, warnings string }{
		{"dex-dist.yaml", `
dex-dist.yaml:5: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try
dex-dist.yaml:14: storage: memory forgets every session and every key when the process ends: use sqlite for anything but a try
dex-dist.yaml:203: enablePasswordDB: nobody can sign in yet: add users to staticPasswords, or a connector`},
		{"dex-dist-open.yaml", `
dex-dist-open.yaml:6: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try
dex-dist-open.yaml:34: frontend.logoURL: has no effect: it belongs to Dex's pages, and Gatehouse has its own; remove it
dex-dist-open.yaml:36: frontend.theme: has no effect: it belongs to Dex's pages, and Gatehouse has its own; remove it
dex-dist-open.yaml:51: expiry.signingKeys: has no effect beside signer.config.keysRotationPeriod: remove it
dex-dist-open.yaml:111: staticClients[0].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32
dex-dist-open.yaml:130: staticClients[3].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32
dex-dist-open.yaml:135: staticClients[3].allowedConnectors[0]: there is no connector "github": nobody signs in to this client with it
dex-dist-open.yaml:136: staticClients[3].allowedConnectors[1]: there is no connector "google": nobody signs in to this client with it
dex-dist-open.yaml:143: staticClients[4].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32
dex-dist-open.yaml:172: staticPasswords[0].hash: this password is in public documentation: make a hash of your own with gatehouse hash-password`},
		{"dex-dev.yaml", `
dex-dev.yaml:2: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try
dex-dev.yaml:20: staticClients[0].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32
dex-dev.yaml:31: staticPasswords[0].hash: this password is in public documentation: make a hash of your own with gatehouse hash-password`},
		{"dex-docker.yaml", `
dex-docker.yaml:3: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try`},
		{"dex-ldap.yaml", `
dex-ldap.yaml:2: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try
dex-ldap.yaml:56: staticClients[0].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32`},
		{"dex-github.yaml", `
dex-github.yaml:3: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try
dex-github.yaml:4: storage: memory forgets every session and every key when the process ends: use sqlite for anything but a try`},
		{"dex-test.yaml", `
dex-test.yaml:3: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try
dex-test.yaml:18: frontend.extra: has no effect: it belongs to Dex's pages, and Gatehouse has its own; remove it
dex-test.yaml:26: staticClients[0].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32
dex-test.yaml:48: connectors[1].config.redirectURI: is not the URL to which people come back: write http://127.0.0.1:5556/dex/callback, here and at the other end
dex-test.yaml:54: staticPasswords[0].hash: this password is in public documentation: make a hash of your own with gatehouse hash-password
dex-test.yaml:65: staticPasswords[1].hash: this password is in public documentation: make a hash of your own with gatehouse hash-password
dex-test.yaml:70: expiry.signingKeys: is the old name of signer.config.keysRotationPeriod: move it there`},
		{"gateway.yaml", ""},
		{"minimal.yaml", "minimal.yaml:3: enablePasswordDB: nobody can sign in yet: add users to staticPasswords, or a connector"},
		{"alias.yaml", ""},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			_, warnings := parseFile(t, tt.file)
			if got, want := warnings.String(), strings.TrimSpace(tt.warnings); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
	found, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(found) != len(tests) {
		t.Errorf("got %d files in testdata (%v), want the %d of this table", len(found), err, len(tests))
	}
}

// A file of Dex means to us what it means to Dex: see the test that it is from.
func TestDexValues(t *testing.T) {
	c, _ := parseFile(t, "dex-test.yaml")
	hash := NewSecret("$2a$10$33EMT0cVYVlPy6WAMCLsceLYjWhuHpbz5yuZxu/GAFj03J9Lytjuy")
	no := false
	if got, want := c.StaticPasswords, []Password{
		{
			Email: "admin@example.com", Hash: hash, Username: "admin", Name: "Admin User", EmailVerified: &no,
			PreferredUsername: "admin-public", UserID: "08a8684b-db88-4b73-90a9-3cd1661f5466", Groups: []string{"team-a", "team-a/admins"},
		},
		{Email: "foo@example.com", Hash: hash, Username: "foo", UserID: "41331323-6f44-45e6-b3b9-2c4b60c02be5"},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("got users %+v, want %+v", got, want)
	}
	if got := c.StaticPasswords[1].Hash.Reveal(); got != hash.Reveal() {
		t.Errorf("got hash %q, want the one that base64 held", got)
	}
	if got, want := c.StaticClients, []Client{{
		ID: "example-app", Secret: NewSecret("ZXhhbXBsZS1hcHAtc2VjcmV0"), Name: "Example App", RedirectURIs: []string{"http://127.0.0.1:5555/callback"},
	}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got clients %+v, want %+v", got, want)
	}
	if got, want := c.OAuth2, (OAuth2{
		AlwaysShowLoginScreen: true, GrantTypes: []string{"refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"},
		ResponseTypes: []string{"code"}, PKCE: PKCE{CodeChallengeMethodsSupported: []string{"S256", "plain"}},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("got oauth2 %+v, want %+v", got, want)
	}
	if got, want := string(c.Connectors[1].Config.JSON()),
		`{"issuer":"https://accounts.google.com","clientID":"foo","clientSecret":"bar","redirectURI":"http://127.0.0.1:5556/dex/callback/google"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := string(c.Connectors[0].Config.JSON()), "{}"; got != want {
		t.Errorf("got %s for a connector without a block, want %s", got, want)
	}
	if got, want := c.Storage, (Storage{Type: "sqlite", Config: StorageConfig{File: "/data/dex.db"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if c.Web.HTTP != "" || c.Web.HTTPS != "127.0.0.1:5556" || c.Web.TLSMinVersion != "1.2" || c.Web.TLSMaxVersion != "1.3" {
		t.Errorf("got %+v, want https only", c.Web)
	}
	if got, want := c.Web.Headers.HTTP().Get("Strict-Transport-Security"), "max-age=31536000; includeSubDomains"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := c.Expiry, (Expiry{
		IDTokens: Duration(25 * time.Hour), AuthRequests: Duration(25 * time.Hour), DeviceRequests: Duration(10 * time.Minute),
	}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := c.Signer, (Signer{Type: "local", Config: SignerConfig{KeysRotationPeriod: Duration(7 * time.Hour), Algorithm: "RS256"}}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if c.Logger.SlogLevel != slog.LevelDebug || c.Gateway != nil || c.IssuerURL.Path != "/dex" {
		t.Errorf("got level %v, gateway %v, issuer %v, want debug, none, /dex", c.Logger.SlogLevel, c.Gateway, c.IssuerURL)
	}
}

func TestSharedClientFields(t *testing.T) {
	c, _ := parseFile(t, "dex-dist-open.yaml")
	if got := c.StaticClients[1]; got.ID != "production" || got.Secret.Reveal() != "correct-horse-battery" {
		t.Errorf("got id %q, want those of the environment", got.ID)
	}
	if c.StaticClients[0].SSOSharedWith != nil {
		t.Error("got a list of ssoSharedWith, want nil where the file has none")
	}
	closed, _ := mustParse(t, head+"staticClients:\n- {id: a, name: A, public: true, ssoSharedWith: []}\n")
	if got := closed.StaticClients[0].SSOSharedWith; got == nil || len(got) != 0 {
		t.Errorf("got %#v, want an empty list: it says nobody, and nil says the default", got)
	}
	if s := c.Sessions; s.AbsoluteLifetime != Duration(24*time.Hour) || s.ValidIfNotUsedFor != Duration(time.Hour) || s.RememberMeCheckedByDefault || s.CookieName != "dex_session" {
		t.Errorf("got %+v, want what the file says", s)
	}
}

func TestGatewayValues(t *testing.T) {
	c, _ := parseFile(t, "gateway.yaml")
	g := c.Gateway
	if network, address := g.AdminListener(); network != "unix" || address != "/run/gatehouse/admin.sock" {
		t.Errorf("got admin on %s %s", network, address)
	}
	if m := g.TLS.Material; m.Certificate.Leaf == nil || len(m.ClientCAs) != 1 || m.MinVersion != tls.VersionTLS13 || !m.ClientNames.Match(m.Certificate.Leaf) {
		t.Errorf("got TLS with %d CAs from version %x, want one CA, 1.3 and the names of the file", len(m.ClientCAs), m.MinVersion)
	}
	if https, ok := g.HostSet.Lookup("x.y.apps.example.com"); !https || !ok {
		t.Error("got a wildcard host that is not listed, want it listed on https")
	}
	if got := len(g.Keys.Ring); got != 2 || len(g.Keys.Ring[0]) != 32 || len(g.Keys.Ring[1]) != 32 {
		t.Fatalf("got %d keys, want 2 of 32 bytes", got)
	}
	now := time.Now()
	admin := &policy.Identity{Connector: "corp", UserID: "42", Expiry: now.Add(time.Hour)}
	for _, tt := range []struct {
		name, host, path string
		id               *policy.Identity
		want             policy.Effect
		rule             string
		line             int
	}{
		{"open", "kubeflow.example.com", "/healthz", nil, policy.Allow, "health", 22},
		{"guarded, anonymous", "kubeflow.example.com", "/admin/x", nil, policy.Authenticate, "admin", 23},
		{"guarded, a user of it", "kubeflow.example.com", "/admin/x", admin, policy.Allow, "admin", 23},
		{"default", "kubeflow.example.com", "/", admin, policy.Deny, "default", 0},
	} {
		d := g.Policy.Decide(policy.Request{Method: "GET", Host: tt.host, Path: tt.path}, tt.id, now)
		if d.Effect != tt.want || d.Rule != tt.rule || d.Line != tt.line {
			t.Errorf("%s: got %+v, want effect %v by %s at line %d", tt.name, d, tt.want, tt.rule, tt.line)
		}
	}
	want := `{"issuer":"https://idp.example.com","clientSecret":"p\"w\\with: $odd ${THINGS}","big":18446744073709551615,"hex":31,"half":0.5,"on":true,"nothing":null,"date":"2026-01-31"}`
	if got := string(c.Connectors[0].Config.JSON()); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A process that nobody can take over from does not go on serving for nobody.
func TestDrainDelay(t *testing.T) {
	postgres := strings.Replace(gatewayHead, "{type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}}", "{type: postgres, config: {host: db, database: gatehouse, user: gatehouse}}", 1)
	if postgres == gatewayHead {
		t.Fatalf("no storage in %s", gatewayHead)
	}
	providerOnly, _, _ := strings.Cut(postgres, "gateway:")
	for _, tt := range []struct {
		name, file string
		want       time.Duration
	}{
		{"one process", gatewayHead, 0},
		{"one process, as the file says", gatewayHead + "  drain: 3s\n", 3 * time.Second},
		{"replicas", postgres, 5 * time.Second},
		{"replicas without a gateway", providerOnly, 5 * time.Second},
		{"replicas that are not waited for", postgres + "  drain: 0s\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, _ := mustParse(t, tt.file); c.DrainDelay() != tt.want {
				t.Errorf("got %s, want %s", c.DrainDelay(), tt.want)
			}
		})
	}
}

// What is wrong with a certificate, and yet works, is a warning; so is a key that is open to everybody.
func TestTLSWarnings(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"expired, and the key open", head + "web: {https: \":5554\", tlsCert: /expired.crt, tlsKey: /k.key}\n", `
g.yaml:4: web.tlsCert: /expired.crt expired on 2026-06-01 11:59:00 UTC: renew it
g.yaml:4: web.tlsKey: /k.key is open to every user (mode 0644): chmod o-rwx /k.key, or defaultMode: 0440 for a Kubernetes Secret`},
		{"another host", strings.Replace(head, "auth.", "login.", 1) + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /group.key}\n", `
g.yaml:4: web.tlsCert: /c.crt is not for login.example.com but for ["auth.example.com" "127.0.0.1"]: clients will refuse it; get one with that name`},
		{"a name that the gateway does not need", gatewayHead + "  tls: {cert: /c.crt, key: /group.key}\n", ""},
		{"a client's own certificate for a CA", gatewayHead + "  tls: {cert: /c.crt, key: /group.key, clientCA: /c.crt}\n", `
g.yaml:6: gateway.tls.clientCA: /c.crt has a certificate at place 1 that is not that of a CA: only clients that have this very certificate pass`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := testOptions()
			opts.Mode = func(name string) (fileMode, error) {
				if name == "/k.key" {
					return 0o644, nil
				}
				return fs.ModeDir | 0o440, nil // the group of the volumes, as in Kubernetes
			}
			_, warnings, err := Parse("g.yaml", []byte(tt.file), opts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range warnings {
				if w.Path != "enablePasswordDB" { // of head
					got = append(got, w.Error())
				}
			}
			if got, want := strings.Join(got, "\n"), strings.TrimSpace(tt.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// The provider and the gateway share one session, so its lifetimes are one setting under two names.
func TestSessionLifetimes(t *testing.T) {
	for _, tt := range []struct {
		name, file     string
		idle, absolute time.Duration
	}{
		{"defaults", gatewayHead, 12 * time.Hour, 168 * time.Hour},
		{"Dex's names", gatewayHead + "sessions: {validIfNotUsedFor: 1h, absoluteLifetime: 2h}\n", time.Hour, 2 * time.Hour},
		{"ours", gatewayHead + "  session: {idle: 1h, absolute: 2h}\n", time.Hour, 2 * time.Hour},
		{"both alike", gatewayHead + "  session: {idle: 60m}\nsessions: {validIfNotUsedFor: 1h}\n", time.Hour, 168 * time.Hour},
		{"one of each", gatewayHead + "  session: {idle: 1h}\nsessions: {absoluteLifetime: 2h}\n", time.Hour, 2 * time.Hour},
		{"idle follows a short absolute", gatewayHead + "  session: {absolute: 8h}\n", 8 * time.Hour, 8 * time.Hour},
		{"idle is absolute", gatewayHead + "  session: {idle: 8h, absolute: 8h}\n", 8 * time.Hour, 8 * time.Hour},
		{"shortest", gatewayHead + "  session: {idle: 1m, absolute: 5m}\n", time.Minute, 5 * time.Minute},
	} {
		c, _ := mustParse(t, tt.file)
		if s := c.Gateway.Session; s.Idle.Std() != tt.idle || s.Absolute.Std() != tt.absolute {
			t.Errorf("%s: got %s and %s for the gateway, want %s and %s", tt.name, s.Idle, s.Absolute, tt.idle, tt.absolute)
		}
		if s := c.Sessions; s.ValidIfNotUsedFor.Std() != tt.idle || s.AbsoluteLifetime.Std() != tt.absolute {
			t.Errorf("%s: got %s and %s for the provider, want %s and %s", tt.name, s.ValidIfNotUsedFor, s.AbsoluteLifetime, tt.idle, tt.absolute)
		}
	}
}

func TestAcceptedEdges(t *testing.T) {
	for _, tt := range []struct{ name, file string }{
		{"a key without a value is not there", head + "connectors:\nlogger:\nweb: {http: }\n"},
		{"admin on localhost", gatewayHead + "  admin: localhost:5559\n"},
		{"admin on IPv6", gatewayHead + "  admin: \"[::1]:5559\"\n"},
		{"one port on two addresses", head + "web: {http: \"127.0.0.1:80\"}\ntelemetry: {http: \"127.0.0.2:80\"}\n"},
		{"any free port twice", head + "web: {http: \"127.0.0.1:0\"}\ntelemetry: {http: \"127.0.0.1:0\"}\n"},
		{"no telemetry", head + "web: {http: \":5558\"}\ntelemetry: {http: \"\"}\n"},
		{"an issuer without path on its own host", strings.Replace(gatewayHead, "/dex", "", 1)},
		{"an issuer by IPv6 address", strings.Replace(head, "auth.example.com", "[::1]:8443", 1)},
		{"strict on one site", gatewayHead + "  cookie: {sameSite: strict}\n"},
		{"no identity headers", gatewayHead + "  identity: {headers: {}}\n"},
		{"no rules", gatewayHead + "  rules: []\n"},
		{"a rule below a listed wildcard", head + "gateway:\n  hosts: [\"*.example.com\"]\n  rules:\n  - {name: a, hosts: [x.example.com, \"*.y.example.com\", \"*.example.com\"], allow: anyone}\n"},
		{"a hash is not a variable", head + "staticPasswords:\n- {email: a@example.com, userID: a, hash: \"" + goodHash + "\"}\n"},
		{"cost 15", head + "staticPasswords:\n- {email: a@example.com, userID: a, hash: \"" + hashOf("15") + "\"}\n"},
		{"a dollar that means nothing to Dex", head + "connectors:\n- {type: ldap, id: a, name: A, config: {filter: \"^x$\", pw: \"a$ b$/c$\"}}\n"},
		{"a dollar where Dex does not expand", head + "staticClients:\n- {id: a, name: A, secret: \"pa$$word$x\"}\n"},
		{"a device client", head + "staticClients:\n- {id: a, name: A, public: true, redirectURIs: [/device/callback, \"urn:ietf:wg:oauth:2.0:oob\", \"com.example.app:/cb\"]}\n"},
		{"longest socket path", gatewayHead + "  admin: unix:/" + strings.Repeat("x", maxSocketPath-1) + "\n"},
		{"byte order mark", "\ufeff" + head},
		{"Windows line ends", strings.ReplaceAll(head, "\n", "\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mustParse(t, tt.file)
		})
	}
}

func TestWarnings(t *testing.T) {
	dev := strings.Replace(gatewayHead, "https://auth", "http://auth", 1)
	for _, tt := range []struct{ name, file, want string }{
		{"http issuer and host", dev, "g.yaml:1: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try\n" +
			"g.yaml:5: gateway.hosts[0]: app.example.com is served over http: its cookies cross the network in clear; use https for anything but a try"},
		{"http host of an https issuer", strings.Replace(gatewayHead, "app.", "http://app.", 1), "g.yaml:5: gateway.hosts[0]: app.example.com is served over http: its cookies cross the network in clear; use https for anything but a try"},
		{"an app on the issuer's host", strings.Replace(gatewayHead, "app.", "auth.", 1), "g.yaml:5: gateway.hosts: auth.example.com is the issuer's host too, where credentials are shown: give the issuer a host of its own"},
		{"a wildcard over the issuer's host", strings.Replace(gatewayHead, "app.example.com", `"*.example.com"`, 1), `g.yaml:5: gateway.hosts[0]: "*.example.com" covers the issuer's host auth.example.com, so that an app could serve pages there, where credentials are shown: list the apps by name, or by a wildcard beside the issuer, such as "*.apps.example.com"`},
		{"a wildcard over the issuer's host, port and scheme aside", strings.Replace(gatewayHead, "app.example.com", `app.example.com, "https://*.example.com:8443"`, 1), `g.yaml:5: gateway.hosts[1]: "*.example.com" covers the issuer's host auth.example.com, so that an app could serve pages there, where credentials are shown: list the apps by name, or by a wildcard beside the issuer, such as "*.apps.example.com"`},
		{"a wildcard beside the issuer's host", strings.Replace(gatewayHead, "app.example.com", `"*.apps.example.com"`, 1), ""},
		{"a wildcard below the issuer's host", strings.Replace(gatewayHead, "app.example.com", `"*.auth.example.com"`, 1), ""},
		{"a wildcard over the issuer's host, and the host itself", strings.Replace(gatewayHead, "app.example.com", `auth.example.com, "*.example.com"`, 1), "g.yaml:5: gateway.hosts: auth.example.com is the issuer's host too, where credentials are shown: give the issuer a host of its own"},
		{"ES256", head + "signer: {type: local, config: {algorithm: ES256}}\n", "g.yaml:4: signer.config.algorithm: ES256 breaks id_token_hint at the authorization endpoint, which knows RS256 only: use RS256"},
		{"proxy header without networks", head + "web: {clientRemoteIP: {header: X-Real-IP}}\n", "g.yaml:4: web.clientRemoteIP.header: has no effect without trustedProxies, since any client could send the header: name the networks of your proxies"},
		{"networks without proxy header", head + "web: {clientRemoteIP: {trustedProxies: [10.1.2.3/8]}}\n", "g.yaml:4: web.clientRemoteIP.trustedProxies: has no effect without header: name the header that they set, such as X-Forwarded-For"},
		{"hash and hashFromEnv", head + "staticPasswords:\n- {email: a@example.com, userID: a, hashFromEnv: DEX_HASH, hash: \"" + goodHash + "\"}\n", "g.yaml:5: staticPasswords[0].hashFromEnv: has no effect beside hash: remove one of them"},
		{"key of the session cookie", head + "sessions: {cookieEncryptionKey: 0123456789abcdef}\n", "g.yaml:4: sessions.cookieEncryptionKey: has no effect: the cookie is always encrypted, with a key derived from those of gateway.keys.file or the storage; remove it"},
		{"what WebAuthn of Dex ignores", head + "mfa: {authenticators: [{id: a, type: WebAuthn, config: {userVerification: required}}]}\n", "g.yaml:4: mfa.authenticators[0].config.userVerification: has no effect, as in Dex: remove it"},
		{
			"a rule that never decides", gatewayHead + "  rules:\n  - {name: all, allow: anyone}\n  - {name: admin, paths: [/admin], groups: [g]}\n",
			`g.yaml:8: gateway.rules[1] "admin": never decides: rule "all" (line 7) above it matches everything that it matches; move it up or remove it`,
		},
		{"redirectURI that leads nowhere", head + "connectors:\n- type: oidc\n  id: corp\n  name: Corp\n  config:\n    redirectURI: https://auth.example.com/callback\n", "g.yaml:9: connectors[0].config.redirectURI: is not the URL to which people come back: write https://auth.example.com/dex/callback, here and at the other end"},
		{
			"tickets over http", strings.Replace(head, "https:", "http:", 1) + "connectors:\n- type: ldap\n  id: a\n  name: A\n  config:\n    kerberos: {enabled: true}\n",
			"g.yaml:1: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try\n" +
				"g.yaml:9: connectors[0].config.kerberos: is not used, since tickets would cross the network in clear: give the issuer https",
		},
		{"tickets over https", head + "connectors:\n- {type: ldap, id: a, name: A, config: {kerberos: {enabled: true}}}\n", ""},
		{"tickets that nobody wants", strings.Replace(head, "https:", "http:", 1) + "connectors:\n- {type: ldap, id: a, name: A, config: {kerberos: {enabled: false}}}\n", "g.yaml:1: issuer: is served over http: passwords and cookies cross the network in clear; use https for anything but a try"},
		{"redirectURI of the issuer", head + "connectors:\n- {type: oidc, id: corp, name: Corp, config: {redirectURI: https://auth.example.com/dex/callback}}\n", ""},
		{"database over an open network", strings.Replace(head, "type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}", "type: postgres, config: {host: db, database: d, user: u, ssl: {mode: disable}}", 1), "g.yaml:2: storage.config.ssl.mode: keys and sessions cross the network in the clear: set verify-full, and caFile"},
		{"etcd over an open network", strings.Replace(head, "type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}", "type: etcd, config: {endpoints: [\"http://127.0.0.1:2379\", \"http://etcd-0:2379\"]}", 1), "g.yaml:2: storage.config.endpoints[1]: keys and sessions cross the network in the clear: set https, and ssl.caFile"},
		{"database that may be anyone", strings.Replace(head, "type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}", "type: postgres, config: {host: db, database: d, user: u, ssl: {mode: require}}", 1), "g.yaml:2: storage.config.ssl.mode: require does not look who the server is: set verify-full, and caFile"},
		{"database on this machine, in the clear", strings.Replace(head, "type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}", "type: postgres, config: {database: d, user: u, ssl: {mode: disable}}", 1), ""},
		{"database in a directory that is not there", strings.Replace(head, "/gatehouse/g", "/gatehouse/db/g", 1), "g.yaml:2: storage.config.file: the directory /var/lib/gatehouse/db does not exist: make it, or gatehouse serve will not start"},
		{"database below a file", strings.Replace(head, "/var/lib/gatehouse/g", "/etc/gatehouse/keys/g", 1), "g.yaml:2: storage.config.file: /etc/gatehouse/keys is not a directory: gatehouse serve will not start; choose another path"},
		{"users of a connector that is not there", strings.Replace(gatewayHead, "gateway:", "connectors: [{type: x, id: corp, name: C}]\ngateway:", 1) + "  rules:\n  - name: a\n    users: [\"crop:42\", \"corp:42\", \"local:1\", ada@example.com]\n", `g.yaml:9: gateway.rules[0].users[0]: there is no connector "crop", so this is nobody: want one of corp, local; did you mean corp?`},
		{"a group twice", gatewayHead + "  rules:\n  - name: a\n    groups: [g, g]\n", `g.yaml:8: gateway.rules[0].groups[0]: "g": is listed twice; remove one`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, got := mustParse(t, tt.file)
			got = slices.DeleteFunc(got, func(w Error) bool { return w.Path == "enablePasswordDB" && w.Line == 3 }) // of head
			if got.String() != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestNobodyCanSignIn(t *testing.T) {
	const want = "g.yaml:3: enablePasswordDB: nobody can sign in yet: add users to staticPasswords, or a connector"
	if _, got := mustParse(t, head); got.String() != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, someone := range []string{
		"staticPasswords: [{email: a@example.com, userID: a, hash: \"" + goodHash + "\"}]\n",
		"connectors: [{type: x, id: x, name: X}]\n",
	} {
		if _, got := mustParse(t, head+someone); len(got) > 0 {
			t.Errorf("got %q, want no warning: %s", got, someone)
		}
	}
}

func TestHashFromEnv(t *testing.T) {
	c, warnings := mustParse(t, head+"staticPasswords:\n- {email: a@example.com, userID: a, hashFromEnv: DEX_HASH}\n")
	if got := c.StaticPasswords[0].Hash.Reveal(); got != goodHash || len(warnings) > 0 {
		t.Errorf("got hash %q and warnings %v, want that of the environment and none", got, warnings)
	}
}

func TestTrustedProxiesAreMasked(t *testing.T) {
	c, _ := mustParse(t, head+"web: {clientRemoteIP: {header: X-Real-IP, trustedProxies: [10.1.2.3/8, \"fd00::1/8\"]}}\n")
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	if got := c.Web.ClientRemoteIP.Prefixes; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Parse knows the world through its options only: with none, no variable is set and no file exists.
func TestZeroOptions(t *testing.T) {
	t.Setenv("GATEHOUSE_TEST", "set")
	_, _, err := Parse("g.yaml", []byte(gatewayHead+"  keys: {file: config_test.go}\nfrontend: {issuer: \"${GATEHOUSE_TEST}\"}\n"), Options{})
	want := "g.yaml:6: gateway.keys.file: config_test.go: the file does not exist\n" +
		"g.yaml:7: frontend.issuer: the environment variable GATEHOUSE_TEST is not set: set it, or write the value here"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, _, err := Load("config_test.go", Options{}); err == nil || err.Error() != "config_test.go: the file does not exist" {
		t.Errorf("got %v, want that the file does not exist", err)
	}
}

func TestLoad(t *testing.T) {
	t.Setenv("GATEHOUSE_TEST", "Example")
	dir := t.TempDir()
	keys, file := filepath.Join(dir, "keys"), filepath.Join(dir, "gatehouse.yaml")
	text := gatewayHead + "  keys: {file: " + keys + "}\nfrontend: {issuer: \"${GATEHOUSE_TEST}\"}\n"
	if err := errors.Join(os.WriteFile(keys, []byte(keyA+"\n"), 0o600), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, _, err := Load(file, OS())
	if err != nil {
		t.Fatal(err)
	}
	if c.Frontend.Issuer != "Example" || len(c.Gateway.Keys.Ring) != 1 {
		t.Errorf("got issuer name %q and %d keys, want Example and 1", c.Frontend.Issuer, len(c.Gateway.Keys.Ring))
	}
	if err := os.Chmod(keys, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, _, err = Load(file, OS()); err == nil || !strings.Contains(err.Error(), "chmod o-rwx "+keys) {
		t.Errorf("got %v, want the chmod that mends it", err)
	}
	if _, _, err = Load(filepath.Join(dir, "none.yaml"), OS()); err == nil || !strings.HasSuffix(err.Error(), "none.yaml: the file does not exist") {
		t.Errorf("got %v, want that the file does not exist", err)
	}
	if _, _, err = Load(dir, OS()); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v, want that it cannot be read", err)
	}
}

// Every type of a Config has a way to be decoded: the decoder panics where one has not.
func TestEveryTypeDecodes(t *testing.T) {
	for path, typ := range keysOf(reflect.TypeFor[Config](), "") {
		if typeName(typ) == "" {
			t.Errorf("%s: no name for the type %v", path, typ)
		}
	}
}

// The cost is linear in the size of the file, with mistakes and without.
func BenchmarkParse(b *testing.B) {
	for name, rule := range map[string]string{
		"good":   "  - {name: r%[1]d, paths: [/p%[1]d/**], groups: [g%[1]d]}\n",
		"broken": "  - {name: r%[1]d, paths: [p%[1]d], grups: [g%[1]d], x: 1}\n",
	} {
		for _, n := range []int{10, 1000, 10_000} {
			var file strings.Builder
			file.WriteString(gatewayHead + "  rules:\n")
			for i := range n {
				fmt.Fprintf(&file, rule, i)
			}
			b.Run(fmt.Sprintf("%s/rules=%d", name, n), func(b *testing.B) {
				for b.Loop() {
					if _, _, err := Parse("g.yaml", []byte(file.String()), Options{}); (err == nil) != (name == "good") {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
