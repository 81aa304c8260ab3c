package config

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"path"
	"strings"
	"testing"
	"time"
)

// head is three good lines: what a case adds starts at line 4.
const head = `issuer: https://auth.example.com/dex
storage: {type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}}
enablePasswordDB: true
`

const gatewayHead = head + `gateway:
  hosts: [app.example.com]
`

// goodHash is of cost 10; hashOf makes one of another cost.
const goodHash = "$2a$10$wTDfvN1G4m1Yb0cJb8xw0eyO4eI1u7gkKqkJXn0vK1Wm9O3m1hC2S"

func hashOf(cost string) string { return strings.Replace(goodHash, "$10$", "$"+cost+"$", 1) }

// testOptions is a small world: some variables, some files, and connectors that know a few keys.
func testOptions() Options {
	env := map[string]string{
		"DEX_CLIENT_ID": "production", "DEX_CLIENT_SECRET": "correct-horse-battery", "EMPTY": "",
		"DEX_HASH": goodHash, "LDAP_HOST": "ldap.example.com:636", "BIND_PW": `p"w\with: $odd ${THINGS}`,
		"GITHUB_CLIENT_ID": "gh-id", "GITHUB_CLIENT_SECRET": "gh-secret", "BINARY": "\xff", "DATA": "/data", "NUMBER": "80",
		"PEM": "-----BEGIN  CERTIFICATE-----\nMIIE\n",
	}
	files := map[string]struct {
		mode fs.FileMode
		text string
	}{
		"/etc/gatehouse/keys":  {0o440, "# two keys\n" + keyA + "\n\n" + keyHexB + " # the old one\n"},
		"/etc/gatehouse/open":  {0o644, keyA + "\n"},
		"/etc/gatehouse/empty": {0o400, "# none yet\n"},
		"/etc/gatehouse/bad": {0o400, strings.Join([]string{
			keyA, "c2hvcnQ=", "not a key!", strings.Repeat("0", 64), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
			"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", keyA,
		}, "\n")},
	}
	return Options{
		Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		ReadFile: func(name string) ([]byte, error) {
			if name == "/etc/gatehouse/locked" {
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
			}
			if data := testPair(name); data != nil {
				return data, nil
			}
			f, ok := files[name]
			if !ok {
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			}
			return []byte(f.text), nil
		},
		Mode: func(name string) (fs.FileMode, error) {
			if name == "/etc/gatehouse/locked" {
				return 0o400, nil
			}
			switch name {
			case "/var/lib/gatehouse", "/var/dex", "/data", "var/sqlite", "examples":
				return fs.ModeDir | 0o700, nil
			}
			f, ok := files[name]
			if !ok {
				return 0, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
			}
			return f.mode, nil
		},
		Now:       testNow,
		Connector: checkTestConnector,
	}
}

// testNow is when the tests take place.
func testNow() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

// testPair returns what is in a file of a certificate (.crt) or its key (.key), and nil for other names. Those
// whose name has "other" in it are of another pair; one with "ca" is that of a CA, and one with "expired" is out of date.
func testPair(name string) []byte {
	seed := make([]byte, ed25519.SeedSize)
	if strings.Contains(name, "other") {
		seed[0] = 1
	}
	key := ed25519.NewKeyFromSeed(seed)
	block := &pem.Block{}
	var err error
	switch path.Ext(name) {
	case ".crt":
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), DNSNames: []string{"auth.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: testNow().Add(-time.Hour), NotAfter: testNow().Add(time.Hour),
			IsCA: strings.Contains(name, "ca"), BasicConstraintsValid: true,
		}
		if strings.Contains(name, "expired") {
			template.NotAfter = testNow().Add(-time.Minute)
		}
		block.Type = "CERTIFICATE"
		block.Bytes, err = x509.CreateCertificate(nil, template, template, key.Public(), key)
	case ".key":
		block.Type = "PRIVATE KEY"
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	default:
		return nil
	}
	if err != nil {
		panic(err) // a mistake in this function
	}
	return pem.EncodeToMemory(block)
}

const (
	keyA    = "q7mX0y1cN8bD2fJ6hQ4tVw9zLrPkEsGuYxAoCiZvB5M="
	keyHexB = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)

type testFieldError struct{ field, msg string }

func (e *testFieldError) Error() string { return e.msg }
func (e *testFieldError) Field() string { return e.field }

// checkTestConnector stands in for the provider: it refuses what the text of a block asks it to.
func checkTestConnector(typ string, config []byte) error {
	switch {
	case typ == "lpad":
		return errors.New(`unknown connector type "lpad": want one of [ldap oidc]`)
	case strings.Contains(string(config), "refuse-two"):
		return errors.Join(
			&testFieldError{"userSearch.baseDN", "userSearch.baseDN: is missing"},
			fmt.Errorf("wrapped: %w", &testFieldError{"BINDDN", "bindDN: want a DN"}),
		)
	case strings.Contains(string(config), "bindPW:hunter.22"):
		return &testFieldError{"bindPW:hunter.22", `unknown field "bindPW:hunter.22"`}
	case strings.Contains(string(config), "bindPW:hunter22"):
		return errors.New(`unknown field "bindPW:hunter22"`)
	case strings.Contains(string(config), `"emailAtr"`):
		return &testFieldError{"emailAtr", `unknown field "emailAtr"`}
	case strings.Contains(string(config), "refuse-all"):
		return errors.New("cannot\n\tuse " + string(config))
	}
	return nil
}

func TestBrokenFiles(t *testing.T) {
	for _, tt := range brokenFiles() {
		t.Run(tt.name, func(t *testing.T) {
			c, _, err := Parse("g.yaml", []byte(tt.file), testOptions())
			if err == nil {
				t.Fatalf("got a valid file, want\n%s", tt.want)
			}
			if c != nil {
				t.Error("got a Config beside the error")
			}
			var list Errors
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("got %T, want Errors", err)
			}
			if got, want := err.Error(), strings.TrimSpace(tt.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

type brokenFile struct{ name, file, want string }

func brokenFiles() []brokenFile {
	var all []brokenFile
	for _, part := range [][]brokenFile{brokenYAML(), brokenTypes(), brokenEnv(), brokenProvider(), brokenUsers(), brokenGateway(), brokenRules(), unsupportedKeys()} {
		all = append(all, part...)
	}
	return all
}

func brokenYAML() []brokenFile {
	return []brokenFile{
		{"empty", "", `g.yaml: the file is empty: want at least issuer and storage`},
		{"a document of nothing", "---", "g.yaml:1: want a block of keys such as issuer: https://auth.example.com/dex, got nothing"},
		{"comments only", "# nothing\n", `g.yaml: the file is empty: want at least issuer and storage`},
		{"a list", "- a\n", `g.yaml:1: want a block of keys such as issuer: https://auth.example.com/dex, got a list`},
		{"not UTF-8", "issuer: x\nname: \xff\n", `g.yaml:2: is not UTF-8: save the file with that encoding`},
		{"NUL", "issuer: x\x00\n", `g.yaml:1: holds a NUL byte: want text in UTF-8`},
		{"too large", head + "# " + strings.Repeat("x", maxFile) + "\n", `g.yaml: the file has 1048712 bytes: want at most 1048576`},
		{"tab as indentation", head + "web:\n\thttp: :80\n", `g.yaml:5: a tab indents this line: YAML wants spaces`},
		{"two documents", head + "---\nissuer: x\n", `g.yaml:4: a second document starts here: want one; remove it and the line ---`},
		{"a quote without end", head + "logger: {level: \"info}\n", `g.yaml:4: is not YAML: a quote is not closed; it may be the one at line 4`},
		{"a quote that another one ends", head + "logger: {level: \"info}\nfrontend: {issuer: \"Example\"}\n", "g.yaml:4: is not YAML: did not find expected ',' or '}', here or in what starts here; a quote at line 4 may not be closed"},
		{"a wildcard without quotes", head + "gateway:\n  hosts: [*.apps.example.com]\n", `g.yaml:5: a text that starts with * needs quotes`},
		{"a wildcard without quotes on a line of its own", head + "gateway:\n  hosts:\n  - app.example.com\n  - *.apps.example.com\n  prefix: /x\n", `g.yaml:7: a text that starts with * needs quotes`},
		{"an & without quotes", head + "frontend: {issuer: & Co}\n", `g.yaml:4: a text that starts with & needs quotes`},
		{"a block that is not closed", head + "logger: {level: info\noauth2:\n", `g.yaml:4: is not YAML: did not find expected ',' or '}', here or in what starts here`},
		{"a list without end", "issuer: [", "g.yaml:1: is not YAML: did not find expected node content, here or in what starts here"},
		{"wrong indentation", head + "web:\n  http: :80\n   https: :443\n", `g.yaml:6: is not YAML: mapping values are not allowed in this context`},
		{"key twice", head + "logger:\n  level: info\n  level: debug\n", `g.yaml:6: logger.level: is here twice, first at line 5: remove one`},
		{"top key twice", head + "issuer: https://b.example.com\n", `g.yaml:4: issuer: is here twice, first at line 1: remove one`},
		{"key of a connector twice", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    host: a\n    host: b\n", `g.yaml:10: connectors[0].config.host: is here twice, first at line 9: remove one`},
		{"merge key", head + "web: &w {http: \":80\"}\ntelemetry: {<<: *w}\n", `g.yaml:5: telemetry: merge keys (<<) are not supported: write the keys out`},
		{"a list as key", head + "? [a, b]\n: c\n", `g.yaml:4: a key must be plain text, got a list`},
		{"tag", head + "logger: {level: !secret info}\n", `g.yaml:4: logger.level: has a tag (!): remove it; a text that starts with ! needs quotes`},
		{"unknown alias", head + "logger: *nowhere\n", `g.yaml:4: is not YAML: an alias (*) leads nowhere; a text that starts with * needs quotes`},
		{"alias to itself", head + "frontend: &f {extra: {a: *f}}\n", `g.yaml:4: frontend.extra.a.extra.a.extra.a.extra.a.extra.a.extra.a.extra.a.extra.a.extra.a.extra.a.extra.a: is nested more than 32 levels deep: take some out`},
		{"alias bomb", head + bomb(), `g.yaml:6: frontend.extra.b4[0][3][2][4][2][9]: the file is too large once its aliases are written out: use fewer of them`},
		{"nested too deep", head + "connectors:\n- {type: ldap, id: a, name: A, config: {a: " + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}}\n", `g.yaml:5: connectors[0].config.a[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]: is nested more than 32 levels deep: take some out`},
		{"key too long", head + strings.Repeat("k", maxKey+1) + ": 1\n", `g.yaml:4: a key has 129 bytes: want at most 128`},
	}
}

func bomb() string {
	var b strings.Builder
	b.WriteString("frontend:\n  extra:\n    a: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 9 {
		fmt.Fprintf(&b, "    b%d: &a%d [%s]\n", i, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	return b.String()
}

func brokenTypes() []brokenFile {
	return []brokenFile{
		{"unknown key with a near one", head + "staticClient: []\n", `g.yaml:4: unknown field "staticClient": did you mean "staticClients"?`},
		{"unknown key in another case", head + "StaticClients: []\n", `g.yaml:4: unknown field "StaticClients": did you mean "staticClients"?`},
		{"unknown key that is of the gateway", head + "rules: []\n", `g.yaml:4: unknown field "rules": it belongs into the gateway block`},
		{"unknown key with nothing near", head + "additionalFeatures: [ConnectorsCRUD]\n", `g.yaml:4: unknown field "additionalFeatures": remove it, or see docs/config.md for the keys there are`},
		{"unknown key of a small block", head + "oauth2: {pkce: {required: true}}\n", `g.yaml:4: oauth2.pkce: unknown field "required": want one of enforce, codeChallengeMethodsSupported`},
		{"text for a number", gatewayHead + "  session: {cache: \"100000\"}\n", `g.yaml:6: gateway.session.cache: want a whole number, got text: remove the quotes`},
		{"a fraction for a whole number", gatewayHead + "  session: {cache: 1.5}\n", `g.yaml:6: gateway.session.cache: want a whole number, got a number`},
		{"a variable for a number", gatewayHead + "  session: {cache: \"${NUMBER}\"}\n", `g.yaml:6: gateway.session.cache: want a whole number, got text: a variable is always text, so write the value itself`},
		{"a number for text", head + "frontend: {issuer: 42}\n", `g.yaml:4: frontend.issuer: want text, got a number: put it in quotes`},
		{"true for text", head + "logger: {level: true}\n", `g.yaml:4: logger.level: want text, got true or false: put it in quotes`},
		{"yes for true", head + "oauth2: {skipApprovalScreen: yes}\n", `g.yaml:4: oauth2.skipApprovalScreen: want true or false, got text`},
		{"quotes around true", head + "oauth2: {skipApprovalScreen: \"true\"}\n", `g.yaml:4: oauth2.skipApprovalScreen: want true or false, got text: remove the quotes`},
		{"a number for a duration", head + "expiry: {idTokens: 24}\n", `g.yaml:4: expiry.idTokens: want a duration with a unit, such as 30s, 15m or 12h, got a number`},
		{"a duration without unit", head + "expiry: {idTokens: \"24\"}\n", `g.yaml:4: expiry.idTokens: want a duration with a unit, such as 30s, 15m or 12h, got "24"`},
		{"a duration in days", head + "expiry: {idTokens: 7d}\n", `g.yaml:4: expiry.idTokens: want a duration with a unit, such as 30s, 15m or 12h, got "7d": there is no unit for days, write 24h for each`},
		{"a duration below zero", head + "expiry: {idTokens: -1h}\n", `g.yaml:4: expiry.idTokens: want a duration with a unit, such as 30s, 15m or 12h, got "-1h": it must not be negative`},
		{"text for a list", gatewayHead + "  rules:\n  - {name: a, paths: /a, allow: anyone}\n", `g.yaml:7: gateway.rules[0].paths: want a list, got text: write one entry a line with - before it, or [a, b]`},
		{"a list for text", head + "logger:\n  level: [debug]\n", `g.yaml:5: logger.level: want text, got a list`},
		{"text for a block", head + "logger: debug\n", `g.yaml:4: logger: want a block of keys, got text`},
		{"an empty list entry", head + "web:\n  allowedOrigins:\n  - https://a.example.com\n  -\n", `g.yaml:7: web.allowedOrigins[1]: is empty: remove the entry or fill it`},
		{"an empty table entry", gatewayHead + "  identity: {headers: {x-user: }}\n", `g.yaml:6: gateway.identity.headers.x-user: is empty: remove the key or give it a value`},
		{"a list for a table", gatewayHead + "  identity: {headers: [x-user]}\n", `g.yaml:6: gateway.identity.headers: want a block of keys, got a list`},
		{"infinity in a connector", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    wait: .inf\n", `g.yaml:9: connectors[0].config.wait: want a number that is finite and fits into 64 bits`},
		{"a list as a connector's block", head + "connectors:\n- {type: ldap, id: ad, name: AD, config: []}\n", `g.yaml:5: connectors[0].config: want a block of keys, got a list`},
	}
}

func brokenEnv() []brokenFile {
	connector := head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n"
	return []brokenFile{
		{"variable not set", strings.Replace(head, "/var/lib/gatehouse/gatehouse.db", "\"${NO_SUCH}/${NOR_THIS}/g.db\"", 1), `
g.yaml:2: storage.config.file: the environment variable NO_SUCH is not set: set it, or write the value here
g.yaml:2: storage.config.file: the environment variable NOR_THIS is not set: set it, or write the value here`},
		{"variable with a default", head + "logger: {level: \"${LEVEL:-info}\"}\n", `g.yaml:4: logger.level: ${ starts the name of an environment variable: want ${NAME} of letters, digits and _; put a text that holds ${ into a variable`},
		{"variable without end", head + "logger: {level: \"${LEVEL\"}\n", `g.yaml:4: logger.level: ${ starts the name of an environment variable: want ${NAME} of letters, digits and _; put a text that holds ${ into a variable`},
		{"variable that is not text", head + "frontend: {issuer: \"${BINARY}\"}\n", `g.yaml:4: frontend.issuer: the environment variable BINARY does not hold UTF-8 text`},
		{"variable without braces where Dex expands", connector + "    clientSecret: prefix-$GITHUB_CLIENT_SECRET\n", `g.yaml:9: connectors[0].config.clientSecret: holds a $ that Dex would replace or remove: write ${NAME} for a variable; put a text that holds a $ into a variable`},
		{"variable without braces as whole value", head + "staticClients:\n- {id: a, name: A, secret: $DEX_CLIENT_SECRET}\n", `g.yaml:5: staticClients[0].secret: a variable without braces is not replaced: write ${NAME}; put a text that starts with $ into a variable`},
		{"a dollar that Dex would remove", connector + "    bindPW: pa$$word\n", `g.yaml:9: connectors[0].config.bindPW: holds a $ that Dex would replace or remove: write ${NAME} for a variable; put a text that holds a $ into a variable`},
		{"a hash where Dex expands", connector + "    other: " + goodHash + "\n", `g.yaml:9: connectors[0].config.other: holds a $ that Dex would replace or remove: write ${NAME} for a variable; put a text that holds a $ into a variable`},
		{"variable is not expanded again", strings.Replace(head, "/var/lib/gatehouse/gatehouse.db", "\":${BIND_PW}\"", 1), `g.yaml:2: storage.config.file: want a path, got ":${BIND_PW}": for a database in memory set type: memory`},
		{"idEnv that is not set", head + "staticClients:\n- {idEnv: NO_SUCH, name: A, secret: s3cr3t-value}\n", `g.yaml:5: staticClients[0].idEnv: the environment variable NO_SUCH is not set: set it, or remove the key`},
		{"secretEnv that is empty", head + "staticClients:\n- {id: a, name: A, secretEnv: EMPTY}\n", `g.yaml:5: staticClients[0].secretEnv: the environment variable EMPTY is not set: set it, or remove the key`},
		{"hashFromEnv that is not set", head + "staticPasswords:\n- {email: a@example.com, userID: a, hashFromEnv: NO_SUCH}\n", `g.yaml:5: staticPasswords[0].hashFromEnv: the environment variable NO_SUCH is not set: set it, or remove the key`},
	}
}

func brokenProvider() []brokenFile {
	storage := "issuer: https://auth.example.com/dex\nenablePasswordDB: true\n"
	postgres := storage + "storage:\n  type: postgres\n  config:\n    database: d\n    user: u\n"
	issuer := func(u string) string {
		return "issuer: " + u + "\nstorage: {type: sqlite, config: {file: /g.db}}\nenablePasswordDB: true\n"
	}
	return []brokenFile{
		{"nothing at all that is needed", "logger: {level: info}\n", `
g.yaml:1: connectors: nobody could sign in: add a connector, or enablePasswordDB: true with staticPasswords
g.yaml:1: issuer: is missing: set it to the URL under which browsers and apps reach Gatehouse, such as https://auth.example.com/dex
g.yaml:1: storage: is missing: add storage: {type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}}`},
		{"issuer without scheme", issuer("auth.example.com/dex"), `g.yaml:1: issuer: want an absolute URL such as https://auth.example.com/dex, got "auth.example.com/dex"`},
		{"issuer of another scheme", issuer("ftp://auth.example.com/dex"), `g.yaml:1: issuer: want an absolute URL such as https://auth.example.com/dex, got "ftp://auth.example.com/dex"`},
		{"issuer with slash at the end", issuer("https://auth.example.com/dex/"), `g.yaml:1: issuer: must not end in a slash: write https://auth.example.com/dex`},
		{"issuer with a bare slash", issuer("https://auth.example.com/"), `g.yaml:1: issuer: must not end in a slash: write https://auth.example.com`},
		{"issuer with query and fragment", issuer("\"https://auth.example.com/dex?a=b#c\""), `g.yaml:1: issuer: must not have a query or a fragment: remove what follows the path`},
		{"issuer with a password", issuer("https://admin:hunter22@auth.example.com/dex"), `g.yaml:1: issuer: holds a user name: remove it`},
		{"issuer with a password and a wrong scheme", issuer("ldap://admin:hunter22@auth.example.com/dex"), `g.yaml:1: issuer: want an absolute URL such as https://auth.example.com/dex, got "ldap://[redacted]@auth.example.com/dex"`},
		{"issuer in upper case", issuer("https://Auth.example.com/dex"), `g.yaml:1: issuer: want a host name in lower case without a trailing dot, got "Auth.example.com"`},
		{"issuer with a dot at the end", issuer("https://auth.example.com./dex"), `g.yaml:1: issuer: want a host name in lower case without a trailing dot, got "auth.example.com."`},
		{"issuer with the default port", issuer("https://auth.example.com:443/dex"), `g.yaml:1: issuer: must not name the default port: browsers leave it out; remove :443`},
		{"issuer with port 0", issuer("https://auth.example.com:0/dex"), `g.yaml:1: issuer: want a port of 1 to 65535, got "0"`},
		{"issuer with an odd path", issuer("https://auth.example.com/d%2Fex"), `g.yaml:1: issuer: want a path of letters, digits and . _ ~ - between single slashes, got "/d%2Fex"`},
		{"issuer with dot segments", issuer("https://auth.example.com/a/../dex"), `g.yaml:1: issuer: want a path of letters, digits and . _ ~ - between single slashes, got "/a/../dex"`},
		{"issuer with two slashes", issuer("https://auth.example.com//dex"), `g.yaml:1: issuer: want a path of letters, digits and . _ ~ - between single slashes, got "//dex"`},
		{"storage without type", storage + "storage: {config: {file: /g.db}}\n", `g.yaml:3: storage: needs a type: memory, sqlite, postgres, etcd or kubernetes`},
		{"postgres without anything", storage + "storage: {type: postgres}\n", `g.yaml:3: storage.config: needs a database
g.yaml:3: storage.config: needs a user`},
		{"postgres with keys of others", storage + "storage:\n  type: postgres\n  config:\n    database: d\n    user: u\n    file: /g.db\n    endpoints: [a]\n    ssl: {serverName: x}\n", `g.yaml:8: storage.config.file: is not for postgres: remove it, or set type: sqlite
g.yaml:9: storage.config.endpoints: is not for postgres: remove it, or set type: etcd
g.yaml:10: storage.config.ssl.serverName: is not for postgres: remove it, or set type: etcd`},
		{"postgres with a URL for a host", postgres + "    host: postgres://u:hunter22@db/x\n", `g.yaml:8: storage.config.host: want the name or address of one server, or the folder of its unix socket, got "postgres://[redacted]@db/x"`},
		{"postgres with several hosts", postgres + "    host: a,b\n", `g.yaml:8: storage.config.host: want the name or address of one server, or the folder of its unix socket, got "a,b"`},
		{"postgres with two ports", postgres + "    host: db:5432\n    port: 5432\n", `g.yaml:9: storage.config.port: is given twice, since host "db:5432" ends in a port: remove one`},
		{"postgres with a strange port", postgres + "    port: 65536\n", `g.yaml:8: storage.config.port: want a port from 1 to 65535, got 65536`},
		{"postgres with a negative limit", postgres + "    maxOpenConns: -1\n", `g.yaml:8: storage.config.maxOpenConns: want a number from 0 to 1000000, got -1`},
		{"postgres with a mode that may be plain", postgres + "    ssl: {mode: prefer}\n", `g.yaml:8: storage.config.ssl.mode: want disable, require, verify-ca or verify-full, got "prefer"`},
		{"postgres with half a client certificate", postgres + "    ssl: {certFile: /c.crt}\n", `g.yaml:8: storage.config.ssl: needs both certFile and keyFile, or neither`},
		{"postgres with a CA that is not there", postgres + "    ssl: {caFile: /nowhere}\n", `g.yaml:8: storage.config.ssl.caFile: /nowhere: the file does not exist`},
		{"etcd without anything", storage + "storage: {type: etcd}\n", `g.yaml:3: storage.config: needs endpoints: a list such as [https://etcd-0:2379]`},
		{"etcd with a bad endpoint and half a login", storage + "storage:\n  type: etcd\n  config:\n    endpoints: [\"http://u:hunter22@e:2379\"]\n    username: u\n", `g.yaml:5: storage.config: needs both username and password, or neither
g.yaml:6: storage.config.endpoints[0]: want a URL with a port, such as https://etcd-0:2379, got "http://[redacted]@e:2379"`},
		{"kubernetes with both", storage + "storage:\n  type: kubernetes\n  config: {inCluster: true, kubeConfigFile: /k, namespace: A}\n", `g.yaml:5: storage.config: needs inCluster: true in a pod, or kubeConfigFile elsewhere, and not both
g.yaml:5: storage.config.kubeConfigFile: /k: the file does not exist
g.yaml:5: storage.config.namespace: want the name of a namespace, got "A"`},
		{"storage mysql", storage + "storage: {type: mysql}\n", `g.yaml:3: storage.type: mysql is not supported: use postgres, etcd, kubernetes or sqlite`},
		{"storage with a typing error", storage + "storage: {type: sqlite2}\n", `g.yaml:3: storage.type: want memory, sqlite, postgres, etcd or kubernetes, got "sqlite2": did you mean sqlite?`},
		{"sqlite without file", storage + "storage: {type: sqlite3}\n", `g.yaml:3: storage.config.file: is missing: set it to the path of the database, such as /var/lib/gatehouse/gatehouse.db`},
		{"sqlite in memory", storage + "storage: {type: sqlite3, config: {file: \":memory:\"}}\n", `g.yaml:3: storage.config.file: want a path, got ":memory:": for a database in memory set type: memory`},
		{"sqlite with a URI", storage + "storage: {type: sqlite3, config: {file: \"file:/g.db?mode=ro\"}}\n", `g.yaml:3: storage.config.file: want a plain path, got "file:/g.db?mode=ro": a URI or options are not for this key`},
		{"memory with a file", storage + "storage: {type: memory, config: {file: /g.db}}\n", `g.yaml:3: storage.config.file: is not for memory: remove it, or set type: sqlite`},
		{"https without certificate", head + "web: {https: \":5554\", tlsKey: /k.key}\n", `g.yaml:4: web.tlsCert: is missing: web.https needs a PEM file here`},
		{"certificate that is not there", head + "web: {https: \":5554\", tlsCert: /none, tlsKey: /etc/gatehouse/locked}\n", `
g.yaml:4: web.tlsCert: /none: the file does not exist
g.yaml:4: web.tlsKey: /etc/gatehouse/locked: the file may not be read: give this user the permission`},
		{"certificate that is none", head + "web: {https: \":5554\", tlsCert: /etc/gatehouse/keys, tlsKey: /k.key}\n", `g.yaml:4: web.tlsCert: /etc/gatehouse/keys is not a certificate: want a PEM file with CERTIFICATE blocks, that of the server first`},
		{"key that is none", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /etc/gatehouse/keys}\n", `g.yaml:4: web.tlsKey: /etc/gatehouse/keys is not a private key: want a PEM file with an unencrypted PRIVATE KEY block`},
		{"certificate and key the wrong way round", head + "web: {https: \":5554\", tlsCert: /c.key, tlsKey: /k.crt}\n", `g.yaml:4: web.tlsCert: /c.key is not a certificate but a private key: want a PEM file with CERTIFICATE blocks, that of the server first; the two may have been switched`},
		{"key of another certificate", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /other.key}\n", `g.yaml:4: web.tlsKey: /other.key is not the key of the certificate: give the two that belong together`},
		{"certificate without https", head + "web:\n  http: :5556\n  tlsCert: /c.pem\n", `g.yaml:4: web: has tlsCert or tlsKey and no https: set https to the address to listen on, or remove them`},
		{"TLS versions the wrong way round", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /k.key, tlsMinVersion: 1.3, tlsMaxVersion: \"1.2\"}\n", `g.yaml:4: web.tlsMinVersion: is above tlsMaxVersion 1.2: lower it`},
		{"CA of clients without https", head + "web:\n  http: :5556\n  tlsClientCA: /ca.crt\n", `g.yaml:4: web: has tlsClientCA or tlsClientNames and no https: set https to the address to listen on, or remove them`},
		{"names of clients without a CA", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /k.key, tlsClientNames: [a.example.com]}\n", `g.yaml:4: web.tlsClientNames: has no effect without web.tlsClientCA: name the file with the CA of the clients there, or remove the names`},
		{"CA of clients that is not there", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /k.key, tlsClientCA: /none}\n", `g.yaml:4: web.tlsClientCA: /none: the file does not exist`},
		{"CA of clients that is none", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /k.key, tlsClientCA: /k.key}\n", `g.yaml:4: web.tlsClientCA: /k.key holds no certificate: want a PEM file with the CERTIFICATE blocks of the clients' CA`},
		{"CA of clients that has expired", head + "web: {https: \":5554\", tlsCert: /c.crt, tlsKey: /k.key, tlsClientCA: /ca-expired.crt}\n", `g.yaml:4: web.tlsClientCA: /ca-expired.crt holds no certificate that could be used: want the CERTIFICATE blocks of the clients' CA, not expired`},
		{"TLS version", head + "web: {tlsMinVersion: 1.1}\n", `g.yaml:4: web.tlsMinVersion: want "1.2" or "1.3", got "1.1"`},
		{"header of two lines", head + "web:\n  headers:\n    X-XSS-Protection: \"1\\r\\nSet-Cookie: a=b\"\n    X-Frame-Options: allow\n", `
g.yaml:6: web.headers.X-XSS-Protection: want visible ASCII on one line
g.yaml:7: web.headers.X-Frame-Options: want deny or sameorigin, got "allow"`},
		{"proxy network", head + "web:\n  clientRemoteIP:\n    header: \"X Real IP\"\n    trustedProxies:\n    - 10.0.0.0/8\n    - 10.0.0.1\n", `
g.yaml:6: web.clientRemoteIP.header: want the name of a header such as X-Forwarded-For, got "X Real IP"
g.yaml:9: web.clientRemoteIP.trustedProxies[1]: want a network such as 10.0.0.0/8, got "10.0.0.1"`},
		{"profiling", head + "telemetry: {enableProfiling: true}\n", `g.yaml:4: telemetry.enableProfiling: the telemetry port has metrics and health only: remove the key`},
		{"address without port", head + "web: {http: 127.0.0.1}\n", `g.yaml:4: web.http: want an address and a port such as 127.0.0.1:8080 or :8080, got "127.0.0.1"`},
		{"port out of range", head + "web: {http: \"127.0.0.1:65536\"}\n", `g.yaml:4: web.http: want a port of 1 to 65535 (or 0 for any that is free), got "65536"`},
		{"port by name", head + "web: {http: \"127.0.0.1:http\"}\n", `g.yaml:4: web.http: want a port of 1 to 65535 (or 0 for any that is free), got "http"`},
		{"host of an address", head + "web: {http: \"a b:80\"}\n", `g.yaml:4: web.http: want an IP address or a host name before the port, got "a b"`},
		{"two listeners on one port", head + "web: {http: \":5558\"}\n", `g.yaml:4: web.http: listens on port 5558, as telemetry.http does by default: give one of them another port`},
		{"two listeners on one port of one address", gatewayHead + "  grpc: 127.0.0.1:7000\n  admin: localhost:7000\n", `g.yaml:7: gateway.admin: listens on port 7000, as gateway.grpc: give one of them another port`},
		{"log level and format", head + "logger:\n  level: loud\n  format: xml\n", `
g.yaml:5: logger.level: want debug, info, warn or error, got "loud"
g.yaml:6: logger.format: want json or text, got "xml"`},
		{"flows", head + "oauth2:\n  grantTypes: [authorization_code, autorization_code]\n  responseTypes: [code, cod]\n  passwordConnector: ldap\n  pkce: {codeChallengeMethodsSupported: [S512]}\n", `
g.yaml:5: oauth2.grantTypes[1]: want authorization_code, implicit, password, refresh_token, urn:ietf:params:oauth:grant-type:device_code, urn:ietf:params:oauth:grant-type:token-exchange or client_credentials, got "autorization_code": did you mean authorization_code?
g.yaml:6: oauth2.responseTypes[1]: want code, token, id_token, code token, code id_token, id_token token or code id_token token, got "cod": did you mean code?
g.yaml:7: oauth2.passwordConnector: there is no connector "ldap": want one of local
g.yaml:8: oauth2.pkce.codeChallengeMethodsSupported[0]: want S256 or plain, got "S512"`},
		{"lifetimes", head + "expiry: {idTokens: 0s, authRequests: 1s, deviceRequests: 48h, signingKeys: 10s}\n", `
g.yaml:4: expiry.authRequests: want 1m to 168h, got 1s
g.yaml:4: expiry.deviceRequests: want 1m to 24h, got 48h
g.yaml:4: expiry.idTokens: want 1m to 8760h, got 0s
g.yaml:4: expiry.signingKeys: want 30s to 8760h, got 10s`},
		{"algorithm and period", head + "signer: {type: local, config: {keysRotationPeriod: 1s, algorithm: HS256}}\n", `
g.yaml:4: signer.config.algorithm: want RS256 or ES256, got "HS256"
g.yaml:4: signer.config.keysRotationPeriod: want 30s to 8760h, got 1s`},
		{"signer of another type", head + "signer: {type: kms}\n", `g.yaml:4: signer.type: want local, got "kms"`},
		{"session cookie", head + "sessions: {cookieName: __Host-sso, ssoSharedWithDefault: some}\n", `
g.yaml:4: sessions.cookieName: must not start with __Host- or __Secure-: the cookie is for the issuer's path only; remove the prefix
g.yaml:4: sessions.ssoSharedWithDefault: want none or all, got "some"`},
		{"session cookie of the gateway", head + "sessions: {cookieName: gatehouse-dev}\n", `g.yaml:4: sessions.cookieName: "gatehouse-dev" is the name of the gateway's own cookie: take another one, such as gatehouse-sso`},
		{"session cookie with a blank", head + "sessions: {cookieName: \"a b\"}\n", `g.yaml:4: sessions.cookieName: want a cookie name of letters, digits and - _ ., got "a b"`},
		{"idle above absolute", head + "sessions: {absoluteLifetime: 1h, validIfNotUsedFor: 2h}\n", `g.yaml:4: sessions.validIfNotUsedFor: is 2h, longer than the absolute lifetime of 1h: shorten it`},
		{"title of two lines", head + "frontend: {issuer: \"a\\nb\"}\n", `g.yaml:4: frontend.issuer: want at most 80 characters on one line`},
		{"second factors", head + "mfa:\n  authenticators:\n  - {id: a, type: TOTP, config: {rpID: x}}\n  - {id: a, type: totp}\n  - {type: WebAuthn, config: {issuer: x, attestationPreference: maybe}}\n  defaultMFAChain: [b]\n", `
g.yaml:6: mfa.authenticators[0].config.rpID: is not a key of TOTP: remove it
g.yaml:7: mfa.authenticators[1] "a": there is an authenticator with the id "a" already: give each its own
g.yaml:7: mfa.authenticators[1].type: want TOTP or WebAuthn, got "totp"
g.yaml:8: mfa.authenticators[2]: needs an id
g.yaml:8: mfa.authenticators[2].config.attestationPreference: want none, indirect or direct, got "maybe"
g.yaml:8: mfa.authenticators[2].config.issuer: is not a key of WebAuthn: remove it
g.yaml:9: mfa.defaultMFAChain[0]: there is no authenticator "b": add it to mfa.authenticators`},
	}
}

func brokenUsers() []brokenFile {
	client := func(s string) string { return head + "staticClients:\n- " + s + "\n" }
	user := func(s string) string { return head + "staticPasswords:\n- " + s + "\n" }
	return []brokenFile{
		{"nobody could sign in", strings.Replace(head, "true", "false", 1), `g.yaml:1: connectors: nobody could sign in: add a connector, or enablePasswordDB: true with staticPasswords`},
		{"passwords without the database", strings.Replace(head, "true", "false", 1) + "staticPasswords:\n- {email: a@example.com, userID: a, hash: \"" + goodHash + "\"}\n", `g.yaml:4: staticPasswords: needs enablePasswordDB: true`},
		{"connector without anything", head + "connectors:\n- {}\n", `
g.yaml:5: connectors[0]: needs an id
g.yaml:5: connectors[0]: needs a name
g.yaml:5: connectors[0]: needs a type`},
		{"connector ids", head + "connectors:\n" + strings.Join([]string{
			"- {type: ldap, name: A, id: local}", "- {type: ldap, name: A, id: login}", "- {type: ldap, name: A, id: a/b}", "- {type: ldap, name: A, id: ..}",
			"- {type: ldap, name: A, id: ad}", "- {type: ldap, name: A, id: ad, grantTypes: [client_credentials]}",
		}, "\n") + "\n", `
g.yaml:5: connectors[0].id: local is the id of the static passwords: take another one
g.yaml:6: connectors[1].id: login would clash with a path of the issuer: take another one
g.yaml:7: connectors[2].id: want 1 to 64 letters, digits and . _ -, got "a/b"
g.yaml:8: connectors[3].id: want 1 to 64 letters, digits and . _ -, got ".."
g.yaml:10: connectors[5] "ad": there is a connector with the id "ad" already: give each its own
g.yaml:10: connectors[5].grantTypes[0]: want authorization_code, implicit, password, refresh_token, urn:ietf:params:oauth:grant-type:device_code or urn:ietf:params:oauth:grant-type:token-exchange, got "client_credentials"`},
		{"connector of an unknown type", head + "connectors:\n- {type: lpad, name: A, id: ad}\n", `g.yaml:5: connectors[0] "ad": unknown connector type "lpad": want one of [ldap oidc]`},
		{"connector fields", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    bindDN: refuse-two\n    userSearch:\n      username: uid\n", `
g.yaml:9: connectors[0].config.bindDN: wrapped: bindDN: want a DN
g.yaml:10: connectors[0].config.userSearch.baseDN: is missing`},
		{"connector field deeper down", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    userSearch:\n      username: uid\n      emailAtr: mail\n", `g.yaml:11: connectors[0].config.userSearch: unknown field "emailAtr"`},
		{"secret in the name of a connector's field", head + "connectors:\n- {type: ldap, id: ad, name: AD, config: {emailAtr: 1, \"bindPW:hunter.22\": }}\n", `g.yaml:5: connectors[0].config: unknown field "bindPW:[redacted]"`},
		{"connector with a forgotten space", head + "connectors:\n- {type: ldap, id: ad, name: AD, config: {bindPW:hunter22}}\n", `g.yaml:5: connectors[0] "ad": unknown field "bindPW:[redacted]"`},
		{"connector as a whole, secrets hidden", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    bindPW: hunter22\n    pin: {secret: 123456}\n    note: refuse-all\n    host: \"${LDAP_HOST}\"\n", `g.yaml:5: connectors[0] "ad": cannot use {"bindPW":"[redacted]","pin":{"secret":[redacted]},"note":"refuse-all","host":"${LDAP_HOST}"}`},
		{"connector as a whole, secrets with two blanks", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    bindPW: 'horse  battery'\n    note: refuse-all\n    rootCA: \"${PEM}\"\n", `g.yaml:5: connectors[0] "ad": cannot use {"bindPW":"[redacted]","note":"refuse-all","rootCA":"${PEM}"}`},
		{"connector as a whole, a secret that JSON spells otherwise", head + "connectors:\n- type: ldap\n  id: ad\n  name: AD\n  config:\n    bindPW: \"a<b>&c\\u2028\\u007f\\x01\"\n    note: refuse-all\n", `g.yaml:5: connectors[0] "ad": cannot use {"bindPW":"[redacted]","note":"refuse-all"}`},
		{"client without anything", client("{}"), `
g.yaml:5: staticClients[0]: needs an id or idEnv
g.yaml:5: staticClients[0]: needs a secret or secretEnv; only a client with public: true has none
g.yaml:5: staticClients[0]: needs a name`},
		{"client with a reserved id", client("{id: gatehouse, name: A, secret: abcdefgh}"), `g.yaml:5: staticClients[0].id: gatehouse is the gateway's own client: take another id`},
		{"client twice", client("{id: a, name: A, secret: abcdefgh}\n- {id: a, name: B, public: true}"), `g.yaml:6: staticClients[1] "a": there is a client with the id "a" already: give each its own`},
		{"client with id and idEnv, secret and secretEnv", client("{id: a, idEnv: DEX_CLIENT_ID, name: A, secret: abcdefgh, secretEnv: DEX_CLIENT_SECRET}"), `
g.yaml:5: staticClients[0].idEnv: is here beside id: remove one of them
g.yaml:5: staticClients[0].secretEnv: is here beside secret: remove one of them`},
		{"client with a published secret on https", client("{id: a, name: A, secret: ZXhhbXBsZS1hcHAtc2VjcmV0}"), `g.yaml:5: staticClients[0].secret: this secret is in public documentation: make one of your own with openssl rand -base64 32`},
		{"client URIs", client("{id: a, name: A, public: true, redirectURIs: [\"https://a.example.com/cb#x\", a.example.com, //evil.example.com, \"http://u:hunter22@[::1\"], postLogoutRedirectURIs: [\"\"], backchannelLogoutURI: /x}"), `
g.yaml:5: staticClients[0].backchannelLogoutURI: want an absolute URL without a fragment, got "/x"
g.yaml:5: staticClients[0].postLogoutRedirectURIs[0]: want a URI such as https://app.example.com/callback, got ""
g.yaml:5: staticClients[0].redirectURIs[0]: must not have a fragment: remove what follows #
g.yaml:5: staticClients[0].redirectURIs[1]: want a URI with a scheme, got "a.example.com"
g.yaml:5: staticClients[0].redirectURIs[2]: want a URI with a scheme, got "//evil.example.com"
g.yaml:5: staticClients[0].redirectURIs[3]: want a URI such as https://app.example.com/callback, got "http://[redacted]@[::1"`},
		{"client values", client("{id: \"a b\", name: A, public: true, refreshTokenLifetime: sessions, mfaChain: [totp]}"), `
g.yaml:5: staticClients[0].id: must not hold spaces or control characters
g.yaml:5: staticClients[0].mfaChain[0]: there is no authenticator "totp": add it to mfa.authenticators
g.yaml:5: staticClients[0].refreshTokenLifetime: want standalone or session, got "sessions"`},
		{"client secret is a number", client("{id: a, name: A, secret: 12345678}"), `g.yaml:5: staticClients[0].secret: want text, got a number: put it in quotes`},
		{"client with a forgotten space", client("{id: a, name: A, secret:hunter22}"), `
g.yaml:5: staticClients[0] "a": unknown field "secret:…": a space is missing after the colon
g.yaml:5: staticClients[0] "a": needs a secret or secretEnv; only a client with public: true has none`},
		{"client secret that is an alias", client("{id: a, name: A, secret: *hunter22}"), `g.yaml:5: is not YAML: an alias (*) leads nowhere; a text that starts with * needs quotes`},
		{"client secret that is a tag", client("{id: a, name: A, secret: !hunter22 x}"), `g.yaml:5: staticClients[0].secret: has a tag (!): remove it; a text that starts with ! needs quotes`},
		{"client with a typing error", client("{id: a, name: A, secert: abcdefgh}"), `g.yaml:5: staticClients[0] "a": unknown field "secert": did you mean "secret"?`},
		{"user without anything", user("{}"), `
g.yaml:5: staticPasswords[0]: needs an email
g.yaml:5: staticPasswords[0]: needs a userID that nobody else has and that never changes, such as the output of uuidgen
g.yaml:5: staticPasswords[0]: needs a hash: make one with gatehouse hash-password`},
		{"user twice", user("{email: a@example.com, userID: a, hash: \"" + goodHash + "\"}\n- {email: A@Example.com, userID: a, hash: \"" + goodHash + "\"}"), `
g.yaml:6: staticPasswords[1] "A@Example.com": has the e-mail address of entry 0: upper and lower case do not count; remove one
g.yaml:6: staticPasswords[1].userID: is that of entry 0: to every app they would be one user; change one`},
		{"hash that is a word of the message", user("{email: a@example.com, userID: a, hash: \"password\"}"), `g.yaml:5: staticPasswords[0].hash: is not a bcrypt hash: make one with gatehouse hash-password`},
		{"secret that is a word of a message, and is in one", head + "staticClients:\n- {id: a, name: A, secret: want, redirectURIs: [want]}\n", `g.yaml:5: staticClients[0].redirectURIs[0]: want a URI with a scheme, got "[redacted]"`},
		{"hash that is none", user("{email: a@example.com, userID: a, hash: hunter22}"), `g.yaml:5: staticPasswords[0].hash: is not a bcrypt hash: make one with gatehouse hash-password`},
		{"hash cut short", user("{email: a@example.com, userID: a, hash: \"" + goodHash[:59] + "\"}"), `g.yaml:5: staticPasswords[0].hash: is not a bcrypt hash: make one with gatehouse hash-password`},
		{"hash too cheap", user("{email: a@example.com, userID: a, hash: \"" + hashOf("09") + "\"}"), `g.yaml:5: staticPasswords[0].hash: has cost 9: want 10 to 15; make one with gatehouse hash-password`},
		{"hash too dear", user("{email: a@example.com, userID: a, hash: \"" + hashOf("16") + "\"}"), `g.yaml:5: staticPasswords[0].hash: has cost 16: want 10 to 15; make one with gatehouse hash-password`},
		{"published password on https", user("{email: a@example.com, userID: a, hash: \"$2a$10$2b2cU8CPhOTaGrs1HRQuAueS7JTT5ZHsHSzYiFPm1leZck7Mc8T4W\"}"), `g.yaml:5: staticPasswords[0].hash: this password is in public documentation: make a hash of your own with gatehouse hash-password`},
		{"user id is a number", user("{email: a@example.com, userID: 42, hash: \"" + goodHash + "\"}"), `g.yaml:5: staticPasswords[0].userID: want text, got a number: put it in quotes`},
	}
}

func brokenGateway() []brokenFile {
	gateway := func(s string) string { return gatewayHead + "  " + s + "\n" }
	hosts := func(s string) string { return head + "gateway:\n  hosts: " + s + "\n" }
	return []brokenFile{
		{"empty gateway", head + "gateway:\n", `g.yaml:4: gateway: is empty: add hosts, or remove the line for a provider only`},
		{"no hosts", head + "gateway: {grpc: \":9001\"}\n", `g.yaml:4: gateway.hosts: is missing: list the hosts of your apps, such as [kubeflow.example.com, "*.apps.example.com"]`},
		{"hosts", head + "gateway:\n  hosts:\n  - App.example.com\n  - ftp://a.example.com\n  - a.example.com/x\n  - \"*.com\"\n  - b.example.com:0\n  - u:hunter22@c.example.com\n", `
g.yaml:6: gateway.hosts[0]: "App.example.com": write the host name in lower case, without a trailing dot
g.yaml:7: gateway.hosts[1]: "ftp://a.example.com": scheme "ftp": want http or https
g.yaml:8: gateway.hosts[2]: "a.example.com/x": want [scheme://]name[:port] without path, user or spaces
g.yaml:9: gateway.hosts[3]: "*.com": a wildcard is *. and a domain of at least two labels, such as *.apps.example.com
g.yaml:10: gateway.hosts[4]: "b.example.com:0": port "0": want 1 to 65535
g.yaml:11: gateway.hosts[5]: "[redacted]@c.example.com": want [scheme://]name[:port] without path, user or spaces`},
		{"one host with two ports", hosts("[a.example.com, \"a.example.com:8443\"]"), `g.yaml:5: gateway.hosts[1]: "a.example.com:8443": is listed twice with different schemes or ports: cookies do not tell ports apart, so keep one`},
		{"a wildcard over what belongs to others", hosts("[\"*.github.io\"]"), `g.yaml:5: gateway.hosts[0]: "*.github.io" covers names that belong to others (publicsuffix.org): list a domain of your own`},
		{"issuer without path on an app's host", "issuer: https://app.example.com\nstorage: {type: sqlite, config: {file: /g.db}}\nenablePasswordDB: true\ngateway:\n  hosts: [app.example.com]\n", `g.yaml:5: gateway.hosts: app.example.com is the issuer's host, and the issuer has no path: it would take every request; give the issuer a path such as /dex`},
		{"admin on every address", gateway("admin: 0.0.0.0:5559"), `g.yaml:6: gateway.admin: want a loopback address such as 127.0.0.1:5559, or unix:/path, got "0.0.0.0:5559": whoever reaches it rules the gateway`},
		{"admin by name", gateway("admin: admin.example.com:5559"), `g.yaml:6: gateway.admin: want a loopback address such as 127.0.0.1:5559, or unix:/path, got "admin.example.com:5559": whoever reaches it rules the gateway`},
		{"admin on a relative socket", gateway("admin: unix:run/admin.sock"), `g.yaml:6: gateway.admin: want unix: and a clean absolute path of at most 107 bytes, such as unix:/run/gatehouse/admin.sock, got "unix:run/admin.sock"`},
		{"admin on a path that is not clean", gateway("admin: unix:/run/../admin.sock"), `g.yaml:6: gateway.admin: want unix: and a clean absolute path of at most 107 bytes, such as unix:/run/gatehouse/admin.sock, got "unix:/run/../admin.sock"`},
		{"admin on a path that is too long", gateway("admin: unix:/" + strings.Repeat("x", maxSocketPath)), `g.yaml:6: gateway.admin: want unix: and a clean absolute path of at most 107 bytes, such as unix:/run/gatehouse/admin.sock, got "unix:/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"`},
		{"empty values", gateway("grpc: \"\"\n  admin: \"\"\n  prefix: \"\"\n  clients: \"\"\n  default: \"\"\n  cookie: {sameSite: \"\"}"), `
g.yaml:6: gateway.grpc: is empty: set the address for Envoy, such as 0.0.0.0:9001, or remove the line
g.yaml:7: gateway.admin: is empty: set 127.0.0.1:5559 or unix:/path, or remove the line
g.yaml:8: gateway.prefix: want a slash and one segment of letters, digits and . _ ~ -, such as /_gatehouse, got ""
g.yaml:9: gateway.clients: is empty: give it a value, or remove the line
g.yaml:10: gateway.default: is empty: give it a value, or remove the line
g.yaml:11: gateway.cookie.sameSite: is empty: give it a value, or remove the line`},
		{"prefix of two segments", gateway("prefix: /_gate/house"), `g.yaml:6: gateway.prefix: want a slash and one segment of letters, digits and . _ ~ -, such as /_gatehouse, got "/_gate/house"`},
		{"prefix without slash", gateway("prefix: _gatehouse"), `g.yaml:6: gateway.prefix: want a slash and one segment of letters, digits and . _ ~ -, such as /_gatehouse, got "_gatehouse"`},
		{"prefix of dots", gateway("prefix: /.."), `g.yaml:6: gateway.prefix: want a slash and one segment of letters, digits and . _ ~ -, such as /_gatehouse, got "/.."`},
		{"prefix is the issuer's path", gateway("prefix: /dex"), `g.yaml:6: gateway.prefix: is the path of the issuer, or above it: take another one, such as /_gatehouse`},
		{"prefix of the sign-in links", gateway("prefix: /oauth2"), `g.yaml:6: gateway.prefix: /oauth2 is for the sign-in links of Kubeflow's clients: take another one`},
		{"sameSite none", gateway("cookie: {sameSite: none}"), `g.yaml:6: gateway.cookie.sameSite: want lax or strict, got "none"`},
		{"sameSite strict on another site", hosts("[app.example.com, \"*.example.org\", http://b.example.com]\n  cookie: {sameSite: strict}"), `
g.yaml:6: gateway.cookie.sameSite: strict needs every host on the site of the issuer, and "*.example.org" is on another: the cookie would be missing after each sign-in; use lax
g.yaml:6: gateway.cookie.sameSite: strict needs every host on the site of the issuer, and "http://b.example.com" is on another: the cookie would be missing after each sign-in; use lax`},
		{"keys that are not there", gateway("keys: {file: /etc/gatehouse/none}"), `g.yaml:6: gateway.keys.file: /etc/gatehouse/none: the file does not exist`},
		{"keys that may not be read", gateway("keys: {file: /etc/gatehouse/locked}"), `g.yaml:6: gateway.keys.file: /etc/gatehouse/locked: the file may not be read: give this user the permission`},
		{"TLS of gRPC without a key", gateway("tls: {cert: /c.crt}"), `g.yaml:6: gateway.tls.key: is missing: gateway.tls needs a PEM file here`},
		{"TLS of gRPC that is empty", gateway("tls:"), `g.yaml:6: gateway.tls: is empty: give it cert and key, or remove the line for plain text`},
		{"TLS of gRPC without anything", gateway("tls: {}"), `
g.yaml:6: gateway.tls.cert: is missing: gateway.tls needs a PEM file here
g.yaml:6: gateway.tls.key: is missing: gateway.tls needs a PEM file here`},
		{"key of another certificate for gRPC", gateway("tls: {cert: /c.crt, key: /other.key}"), `g.yaml:6: gateway.tls.key: /other.key is not the key of the certificate: give the two that belong together`},
		{"names for gRPC without a CA", gateway("tls: {cert: /c.crt, key: /k.key, clientNames: [a.example.com]}"), `g.yaml:6: gateway.tls.clientNames: has no effect without gateway.tls.clientCA: name the file with the CA of the clients there, or remove the names`},
		{"names for gRPC that nobody can have", gateway("tls: {cert: /c.crt, key: /k.key, clientCA: /ca.crt, clientNames: [Gateway.Example.com, \"*\", \"spiffe://cluster.local/*\", \"spiffe:x\"]}"), `
g.yaml:6: gateway.tls.clientNames[0]: "Gateway.Example.com": want a DNS name in lower case such as gateway.example.com or *.example.com, or a URI such as spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway
g.yaml:6: gateway.tls.clientNames[1]: "*": want a DNS name in lower case such as gateway.example.com or *.example.com, or a URI such as spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway
g.yaml:6: gateway.tls.clientNames[2]: "spiffe://cluster.local/*": has a wildcard, which only DNS names may have: list each URI
g.yaml:6: gateway.tls.clientNames[3]: "spiffe:x": want a URI such as spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway`},
		{"TLS of gRPC by an old version", gateway("tls: {cert: /c.crt, key: /k.key, minVersion: 1.1}"), `g.yaml:6: gateway.tls.minVersion: want "1.2" or "1.3", got "1.1"`},
		{"keys open to everybody", gateway("keys: {file: /etc/gatehouse/open}"), `g.yaml:6: gateway.keys.file: /etc/gatehouse/open is open to every user (mode 0644): chmod o-rwx /etc/gatehouse/open, or defaultMode: 0440 for a Kubernetes Secret`},
		{"keys of an empty file", gateway("keys: {file: /etc/gatehouse/empty}"), `g.yaml:6: gateway.keys.file: /etc/gatehouse/empty: holds no key: make one with: openssl rand -base64 32`},
		{"keys that are none", gateway("keys: {file: /etc/gatehouse/bad}"), `
g.yaml:6: gateway.keys.file: /etc/gatehouse/bad: the key at line 2 has 5 bytes: want 32; make one with: openssl rand -base64 32
g.yaml:6: gateway.keys.file: /etc/gatehouse/bad: the key at line 3 is neither base64 nor hex: make one with: openssl rand -base64 32
g.yaml:6: gateway.keys.file: /etc/gatehouse/bad: the key at line 4 is not random, as keys of examples are: make one with: openssl rand -base64 32
g.yaml:6: gateway.keys.file: /etc/gatehouse/bad: the key at line 5 is not random, as keys of examples are: make one with: openssl rand -base64 32
g.yaml:6: gateway.keys.file: /etc/gatehouse/bad: the key at line 6 is not random, as keys of examples are: make one with: openssl rand -base64 32
g.yaml:6: gateway.keys.file: /etc/gatehouse/bad: the key at line 7 is there twice: remove one`},
		{"session", gateway("session:\n    idle: 9h\n    absolute: 8h\n    staleIfUnavailable: 48h\n    revalidate: 4s\n    cache: 1\n    storageGrace: 9s"), `
g.yaml:7: gateway.session.idle: is 9h, longer than the absolute lifetime of 8h: shorten it
g.yaml:9: gateway.session.staleIfUnavailable: want 0s to 24h, got 48h
g.yaml:10: gateway.session.revalidate: want 5s to 1h, got 4s
g.yaml:11: gateway.session.cache: want 100 to 10000000 sessions, got 1
g.yaml:12: gateway.session.storageGrace: want 10s to 24h, got 9s`},
		{"a drain that no orchestrator waits for", gateway("drain: 6m"), `g.yaml:6: gateway.drain: want 0s to 5m, got 6m`},
		{"session never asked about", gateway("session: {revalidate: 0s}"), `g.yaml:6: gateway.session.revalidate: want 5s to 1h, got 0s`},
		{"session asked about too seldom", gateway("session: {revalidate: 61m}"), `g.yaml:6: gateway.session.revalidate: want 5s to 1h, got 1h1m`},
		{"session too short", gateway("session:\n    idle: 1s\n    absolute: 1m"), `
g.yaml:7: gateway.session.idle: want 1m to 8760h, got 1s
g.yaml:8: gateway.session.absolute: want 5m to 8760h, got 1m`},
		{"two lifetimes for one session", gateway("session: {idle: 2h}\nsessions: {validIfNotUsedFor: 1h}"), `g.yaml:6: gateway.session.idle: is 2h, but sessions.validIfNotUsedFor is 1h: they are one setting, so remove one of them`},
		{"clients and default", gateway("clients: lenient\n  default: allow"), `
g.yaml:6: gateway.clients: want strict or kubeflow, got "lenient"
g.yaml:7: gateway.default: want signed-in or deny, got "allow"`},
		{"identity headers", gateway("identity:\n    headers:\n" + strings.Join([]string{
			"      X-User: email", "      x user: email", "      x-a: mail", "      x_a: name", "      cookie: email", "      x-forwarded-user: email",
			"      x_forwarded_groups: groups", "      x-envoy-a: name", "      \":path\": email", "      te: email", "      x-empty: \"\"",
		}, "\n")), `
g.yaml:8: gateway.identity.headers.X-User: want a header name in lower case: write x-user
g.yaml:9: gateway.identity.headers.x user: "x user" is not the name of a header
g.yaml:10: gateway.identity.headers.x-a: want email, name, preferred_username, groups, user_id or connector, got "mail": did you mean email?
g.yaml:11: gateway.identity.headers.x_a: is the same as x-a to many servers, which take - _ and . for one another: remove one
g.yaml:12: gateway.identity.headers.cookie: cookie is a header of the connection or of the proxy: take a name of your own, such as x-user
g.yaml:13: gateway.identity.headers.x-forwarded-user: x-forwarded-user is a header of the connection or of the proxy: take a name of your own, such as x-user
g.yaml:14: gateway.identity.headers.x_forwarded_groups: x_forwarded_groups is a header of the connection or of the proxy: take a name of your own, such as x-user
g.yaml:15: gateway.identity.headers.x-envoy-a: x-envoy-a is a header of the connection or of the proxy: take a name of your own, such as x-user
g.yaml:16: gateway.identity.headers.:path: ":path" is not the name of a header
g.yaml:17: gateway.identity.headers.te: te is a header of the connection or of the proxy: take a name of your own, such as x-user
g.yaml:18: gateway.identity.headers.x-empty: want email, name, preferred_username, groups, user_id or connector, got nothing`},
	}
}

func brokenRules() []brokenFile {
	rules := func(s ...string) string { return gatewayHead + "  rules:\n  - " + strings.Join(s, "\n  - ") + "\n" }
	return []brokenFile{
		{"rule that opens nothing", rules("{name: a, paths: [/a], allow: anyone}", "{name: admin, paths: [/admin/**]}"), `g.yaml:8: gateway.rules[1] "admin": needs allow: anyone or at least one of groups, users`},
		{"rule with a typing error", rules("{name: admin, grups: [a]}"), `g.yaml:7: gateway.rules[0] "admin": unknown field "grups": did you mean "groups"?`},
		{"rule for anyone and for groups", rules("{name: a, allow: anyone, groups: [g]}"), `g.yaml:7: gateway.rules[0] "a": allow: anyone and groups or users exclude each other: remove one`},
		{"rule for everyone", rules("{name: a, allow: everyone}"), `g.yaml:7: gateway.rules[0].allow: want anyone, got "everyone"`},
		{"rule without name", rules("{allow: anyone}"), `g.yaml:7: gateway.rules[0]: needs a name: it stands in the log, in metrics and in explain`},
		{"rule with a reserved name", rules("{name: default, allow: anyone}", "{name: \"a b\", allow: anyone}"), `
g.yaml:7: gateway.rules[0].name: default is the name of a built-in rule: take another one
g.yaml:8: gateway.rules[1].name: want 1 to 64 letters, digits and . _ -, got "a b"`},
		{"two rules of one name", rules("{name: a, paths: [/a], allow: anyone}", "{name: a, paths: [/b], allow: anyone}"), `g.yaml:8: gateway.rules[1] "a": there is a rule of that name at line 7 already: give each its own`},
		{"rule with an empty list", rules("{name: a, paths: [], allow: anyone}"), `g.yaml:7: gateway.rules[0].paths: is an empty list, which would match everything: remove the key, or fill the list`},
		{"rule for a host that is not listed", rules("{name: a, hosts: [ap.example.com, \"*.example.org\", app.example.com, \"*.example.com\"], allow: anyone}"), `
g.yaml:7: gateway.rules[0].hosts[0]: "ap.example.com" matches no host of gateway.hosts, so the rule would never match: add the host there, or correct it
g.yaml:7: gateway.rules[0].hosts[1]: "*.example.org" matches no host of gateway.hosts, so the rule would never match: add the host there, or correct it`},
		{"rule with bad patterns", rules("name: a\n    paths:\n    - /a\n    - /a*\n    - b\n    methods: [get]\n    hosts: [APP.example.com]\n    groups: [\"\"]\n    users: [\"a b\"]"), `
g.yaml:10: gateway.rules[0].paths[1]: "/a*": * is one whole segment and ** at the end is everything below: there are no other wildcards
g.yaml:11: gateway.rules[0].paths[2]: "b": must start with a slash: write "/b"
g.yaml:12: gateway.rules[0].methods[0]: "get": methods are case-sensitive: write GET
g.yaml:13: gateway.rules[0].hosts[0]: "APP.example.com": write it as "app.example.com": in lower case, without port and trailing dot
g.yaml:14: gateway.rules[0].groups[0]: "": is empty: name a group, or remove the entry
g.yaml:15: gateway.rules[0].users[0]: "a b": want an e-mail address of visible ASCII with one @, or connector:userID`},
	}
}

func unsupportedKeys() []brokenFile {
	return []brokenFile{
		{"grpc of Dex", head + "grpc: {addr: \"127.0.0.1:5557\"}\n", `g.yaml:4: grpc: Dex's gRPC API does not exist here: remove the block; gatehouse sessions lists and ends sessions`},
		{"frontend.dir", head + "frontend: {dir: ./web}\n", `g.yaml:4: frontend.dir: Dex's templates are not used here: remove the key, the pages are built in`},
		{"signer vault", head + "signer: {type: vault, config: {addr: x, token: hunter22}}\n", `g.yaml:4: signer.type: vault is not supported: use local, and gateway.keys.file to seal the keys at rest`},
		{"all of the gateway", gatewayHead + `  http: 0.0.0.0:9002
  bearer: {audiences: [kubeflow]}
  rules:
  - {name: a, allow: anyone, when: "true"}
`, `
g.yaml:6: gateway.http: the HTTP flavours of ext_authz come with a later version: remove the key and use grpc
g.yaml:7: gateway.bearer: bearer tokens come with a later version: remove the block
g.yaml:9: gateway.rules[0].when: conditions come with a later version: remove the key`},
	}
}
