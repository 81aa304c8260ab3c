package config

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/certs"
)

const running = `issuer: https://auth.example.com/dex
storage: {type: sqlite, config: {file: /data/gatehouse.db}}
enablePasswordDB: true
staticPasswords:
- {email: ada@example.com, userID: id-ada, hash: "${DEX_HASH}"}
staticClients:
- {id: wiki, secret: correct-horse-battery, name: Wiki, redirectURIs: [https://wiki.example.com/cb]}
connectors:
- {type: github, id: gh, name: GitHub, config: {clientID: a, clientSecret: hunter2hunter2}}
gateway:
  hosts: [app.example.com]
  keys: {file: /etc/gatehouse/keys}
  rules:
  - {name: health, paths: [/healthz], allow: anyone}
`

func mustParseText(t *testing.T, text string) *Config {
	t.Helper()
	c, _, err := Parse("gatehouse.yaml", []byte(text), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestChanges(t *testing.T) {
	for name, tt := range map[string]struct {
		old, new string // replaced in the file
		want     string // summary
		restart  string // keys
	}{
		"nothing but a comment": {old: "gateway:\n", new: "# a comment\n\ngateway:\n"},
		"a rule more": {
			old: "  - {name: health", new: "  - {name: docs, paths: [/docs], allow: anyone}\n  - {name: health", want: "rules 1->2",
		},
		"another rule":                    {old: "/healthz", new: "/health", want: "rules changed"},
		"hosts":                           {old: "[app.example.com]", new: "[app.example.com, b.example.com]", want: "hosts 1->2"},
		"a user more":                     {old: "staticClients:", new: "- {email: bob@example.com, userID: id-bob, hash: \"${DEX_HASH}\"}\nstaticClients:", want: "users +1"},
		"another user":                    {old: "userID: id-ada", new: "userID: id-eve", want: "users +1 -1"},
		"groups of a user":                {old: "userID: id-ada", new: "userID: id-ada, groups: [x]", want: "users ~1"},
		"a connector's id":                {old: "id: gh,", new: "id: github,", want: "connectors +github -gh"},
		"a connector's block":             {old: "hunter2hunter2", new: "hunter3hunter3", want: "connectors ~gh"},
		"a client's secret":               {old: "correct-horse-battery", new: "incorrect-horse-battery", want: "clients ~1"},
		"a duration":                      {old: "gateway:\n", new: "expiry: {idTokens: 1h}\ngateway:\n", want: "expiry.idTokens"},
		"how often users are asked about": {old: "  hosts:", new: "  session: {revalidate: 5m}\n  hosts:", want: "gateway.session.revalidate"},
		"the log level":                   {old: "gateway:\n", new: "logger: {level: debug}\ngateway:\n", want: "logger.level"},

		"the issuer":              {old: "auth.example.com/dex", new: "auth.example.com/oidc", want: "issuer", restart: "issuer"},
		"the storage":             {old: "/data/gatehouse.db", new: "/data/other.db", want: "storage.config.file", restart: "storage.config.file"},
		"a port":                  {old: "  hosts:", new: "  grpc: 127.0.0.1:9100\n  hosts:", want: "gateway.grpc", restart: "gateway.grpc"},
		"two ports and a rule":    {old: "  hosts: [app.example.com]", new: "  grpc: 127.0.0.1:9100\n  admin: 127.0.0.1:9101\n  default: deny\n  hosts: [app.example.com]", want: "gateway.grpc, gateway.admin, gateway.default", restart: "gateway.grpc gateway.admin"},
		"no gateway":              {old: running[strings.Index(running, "gateway:"):], new: "", want: "gateway", restart: "gateway"},
		"no keys":                 {old: "  keys: {file: /etc/gatehouse/keys}\n", new: "", want: "gateway.keys.file", restart: "gateway.keys.file"},
		"the idle time":           {old: "  hosts:", new: "  session: {idle: 1h}\n  hosts:", want: "sessions.validIfNotUsedFor, gateway.session.idle", restart: "sessions.validIfNotUsedFor gateway.session.idle"},
		"the prefix of own paths": {old: "  hosts:", new: "  prefix: /_gate\n  hosts:", want: "gateway.prefix", restart: "gateway.prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(running, tt.old) {
				t.Fatalf("the file has no %q", tt.old)
			}
			before, after := mustParseText(t, running), mustParseText(t, strings.Replace(running, tt.old, tt.new, 1))
			got := strings.Join(Summary(before, after), ", ")
			if got != tt.want {
				t.Errorf("summary: got %q, want %q", got, tt.want)
			}
			if strings.Contains(got, "hunter") || strings.Contains(got, "horse") || strings.Contains(got, "example.com") {
				t.Errorf("the summary tells too much: %q", got)
			}
			var keys []string
			err := NeedRestart("gatehouse.yaml", before, after)
			if list, ok := err.(Errors); ok { //nolint:errorlint // it is returned as it is
				for _, e := range list {
					keys = append(keys, e.Path)
					if !strings.Contains(e.Error(), "restart") {
						t.Errorf("%q does not say what to do", e.Error())
					}
				}
			}
			if got := strings.Join(keys, " "); got != tt.restart {
				t.Errorf("needs a restart: got %q, want %q", got, tt.restart)
			}
		})
	}
}

func TestOtherKeysNeedNoRestart(t *testing.T) {
	before, after := mustParseText(t, running), mustParseText(t, running)
	after.Gateway.Keys.Ring = after.Gateway.Keys.Ring[:1]
	if err := NeedRestart("gatehouse.yaml", before, after); err != nil {
		t.Errorf("other keys: %v", err)
	}
	if got := Changed(before, after); !slices.Equal(got, []string{keyFile}) {
		t.Errorf("got changes of %v, want %s named", got, keyFile)
	}
	after.Gateway.Keys.File = "/etc/gatehouse/others"
	if err := NeedRestart("gatehouse.yaml", before, after); err != nil {
		t.Errorf("another file: %v", err)
	}
	for _, change := range []func(){func() { after.Gateway.Keys.File = "" }, func() { before, after = after, before }} { // gone; come
		change()
		if err := NeedRestart("gatehouse.yaml", before, after); err == nil || !strings.Contains(err.Error(), keyFile) {
			t.Errorf("from %q to %q: got %v, want %s named", before.Gateway.Keys.File, after.Gateway.Keys.File, err, keyFile)
		}
	}
}

// restartKeys are the keys, or blocks of keys, that a running process cannot take up. They are never assigned to.
var restartKeys = []string{
	"issuer", "storage",
	"web.http", "web.https", "telemetry", // open ports
	"sessions.cookieName",                                // every browser would be a stranger
	"sessions.validIfNotUsedFor", "gateway.session.idle", // the gateway's view of sessions is made for one
	"gateway.session.cache",                           // and of one size
	"gateway.grpc", "gateway.admin", "gateway.prefix", // open ports, and paths that are half of a sign-in
	"frontend.issuer", "logger.format", "logger.excludeFields",
}

// Each mistake has the line of the new file, and both values where they are no secrets.
func TestWhatNeedsARestartIsSaidWithLineAndValues(t *testing.T) {
	at := func(text, key string) int { return 1 + strings.Count(text[:strings.Index(text, key)], "\n") }
	for name, tt := range map[string]struct {
		old, new string // replaced in the file
		line     string // the text on it; empty: none
		want     string
	}{
		"a port":                       {"  hosts:", "  grpc: 127.0.0.1:9100\n  hosts:", "grpc:", `gateway.grpc: cannot change while gatehouse runs, from "0.0.0.0:9001" to "127.0.0.1:9100": restart it`},
		"a number":                     {"  hosts:", "  session: {cache: 200}\n  hosts:", "session:", `gateway.session.cache: cannot change while gatehouse runs, from 100000 to 200: restart it`},
		"the database":                 {"/data/gatehouse.db", "/data/other.db", "storage:", `from "/data/gatehouse.db" to "/data/other.db"`},
		"a default that was not there": {"gateway:\n", "frontend: {issuer: X}\ngateway:\n", "frontend:", `frontend.issuer: cannot change while gatehouse runs, from "" to "X"`},
		"a secret in a value":          {"/data/gatehouse.db", `"/data/${DEX_HASH}.db"`, "storage:", `to "/data/[redacted].db"`},
		"what is gone":                 {running[strings.Index(running, "gateway:"):], "", "", "gateway: a gateway block cannot come or go"},
		"the key's file":               {"  keys: {file: /etc/gatehouse/keys}\n", "", "gateway:", "gateway.keys.file: the key file cannot come or go while gatehouse runs: restart it"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(running, tt.old, tt.new, 1)
			errs, _ := NeedRestart("gatehouse.yaml", mustParseText(t, running), mustParseText(t, text)).(Errors) //nolint:errorlint // it is returned as it is
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want) {
				t.Fatalf("got %v, want one with %q", errs, tt.want)
			}
			want := 0
			if tt.line != "" {
				want = at(text, tt.line)
			}
			if errs[0].Line != want {
				t.Errorf("line %d, want %d: %v", errs[0].Line, want, errs)
			}
		})
	}
}

func TestACertificateThatIsOutOfDateDoesNotReplaceAValidOne(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	const day = 24 * time.Hour
	with := func(from, to time.Duration) *Config {
		m := &certs.Material{Certificate: tls.Certificate{Leaf: &x509.Certificate{NotBefore: now.Add(from), NotAfter: now.Add(to)}}}
		return &Config{
			Web:     Web{TLSCert: "/web.crt", TLS: m},
			Gateway: &Gateway{TLS: &GatewayTLS{Cert: "/grpc.crt", Material: m}},
			places:  map[string]place{"web.tlsCert": {line: 3}, "gateway.tls.cert": {line: 9}},
		}
	}
	for name, tt := range map[string]struct {
		running, next *Config
		want          string // of each mistake; empty: taken
	}{
		"valid":                    {with(-day, day), with(0, day), ""},
		"expires now":              {with(-day, day), with(-day, 0), ""},
		"expired":                  {with(-day, day), with(-day, -1), "expired on 2030-01-02 03:04:04 UTC: put a valid one in its place; the one that runs is valid until 2030-01-03 03:04:05 UTC"},
		"not yet":                  {with(-day, day), with(1, day), "is not valid before 2030-01-02 03:04:05 UTC"},
		"expired, as what runs is": {with(-day, -1), with(-day, -1), ""},
		"not yet, nor what runs":   {with(1, day), with(day, 2*day), ""},
		"no TLS":                   {&Config{Gateway: &Gateway{}}, &Config{Gateway: &Gateway{}}, ""},
		"no gateway":               {&Config{}, &Config{}, ""},
	} {
		err := OutOfDate("gatehouse.yaml", tt.running, tt.next, now)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		errs, _ := err.(Errors) //nolint:errorlint // it is returned as it is
		if len(errs) != 2 {
			t.Fatalf("%s: got %v, want a mistake for each listener", name, err)
		}
		for i, want := range []string{"gatehouse.yaml:3: web.tlsCert: /web.crt ", "gatehouse.yaml:9: gateway.tls.cert: /grpc.crt "} {
			if got := errs[i].Error(); !strings.HasPrefix(got, want+tt.want) {
				t.Errorf("%s: got %q, want %q", name, got, want+tt.want)
			}
		}
	}
}

// Whoever adds a key has to say whether it can change in a running process.
func TestEveryKeyReloadsOrNeedsARestart(t *testing.T) {
	for _, key := range slices.Sorted(maps.Keys(maps.Collect(keysOf(configType(), "")))) {
		if typ := maps.Collect(keysOf(configType(), ""))[key]; typ == reflect.TypeFor[Unsupported]() {
			continue
		}
		if restart, reload := below(restartKeys, key), below(reloadKeys, key); restart == reload {
			t.Errorf("%s: needs a restart: %v, reloads: %v; want one of them", key, restart, reload)
		}
	}
}

var restartRow = regexp.MustCompile("(?m)^- ([^\n]*)$")

// The documentation lists what needs a restart, and nothing else.
func TestDocsSayWhatNeedsARestart(t *testing.T) {
	_, part, ok := strings.Cut(readDocs(t), "## What needs a restart\n")
	if !ok {
		t.Fatal("docs/config.md has no section of that name")
	}
	part, _, _ = strings.Cut(part, "\n## ")
	var got []string
	for _, row := range restartRow.FindAllStringSubmatch(part, -1) {
		for _, key := range regexp.MustCompile("`([a-zA-Z.]+)`").FindAllStringSubmatch(row[1], -1) {
			got = append(got, key[1])
		}
	}
	want := append(slices.Clone(restartKeys), "gateway")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, " "), strings.Join(want, " "))
	}
}
