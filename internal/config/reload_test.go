package config

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
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
		"another rule":        {old: "/healthz", new: "/health", want: "rules changed"},
		"hosts":               {old: "[app.example.com]", new: "[app.example.com, b.example.com]", want: "hosts 1->2"},
		"a user more":         {old: "staticClients:", new: "- {email: bob@example.com, userID: id-bob, hash: \"${DEX_HASH}\"}\nstaticClients:", want: "users +1"},
		"another user":        {old: "userID: id-ada", new: "userID: id-eve", want: "users +1 -1"},
		"groups of a user":    {old: "userID: id-ada", new: "userID: id-ada, groups: [x]", want: "users ~1"},
		"a connector's id":    {old: "id: gh,", new: "id: github,", want: "connectors +github -gh"},
		"a connector's block": {old: "hunter2hunter2", new: "hunter3hunter3", want: "connectors ~gh"},
		"a client's secret":   {old: "correct-horse-battery", new: "incorrect-horse-battery", want: "clients ~1"},
		"a duration":          {old: "gateway:\n", new: "expiry: {idTokens: 1h}\ngateway:\n", want: "expiry.idTokens"},
		"the log level":       {old: "gateway:\n", new: "logger: {level: debug}\ngateway:\n", want: "logger.level"},

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

func TestOtherKeysNeedARestart(t *testing.T) {
	before, after := mustParseText(t, running), mustParseText(t, running)
	after.Gateway.Keys.Ring = after.Gateway.Keys.Ring[:1]
	if err := NeedRestart("gatehouse.yaml", before, after); err == nil || !strings.Contains(err.Error(), "gateway.keys.file") {
		t.Errorf("got %v, want gateway.keys.file named", err)
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
