package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gatehouse/authz/policy"
	"gatehouse/internal/hosts"
)

// quoted returns s as a YAML scalar in double quotes.
func quoted(s string) string {
	var b strings.Builder
	quoteYAML(&b, s)
	return b.String()
}

// loadText loads text as check-config does: from a file, by its name.
func loadText(text string, opts Options) (*Config, Warnings, error) {
	read := opts.ReadFile
	opts.ReadFile = func(name string) ([]byte, error) {
		if name == "g.yaml" {
			return []byte(text), nil
		}
		return read(name)
	}
	return Load("g.yaml", opts)
}

// said is every word that a reader of the file is told, and every print of what was read.
func said(c *Config, w Warnings, err error) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v\n%v\n%s\n", err, w, w)
	if c != nil {
		fmt.Fprintf(&b, "%v %+v %#v\n", c, c, c)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("config", "config", c)
	}
	return b.String()
}

// FuzzSecrets puts one secret into every field that is one, and hostile text into fields around it. It holds that no error, warning or print
// shows the secret, and that each mistake has a line.
func FuzzSecrets(f *testing.F) {
	for _, s := range []string{"correct-horse", `p"w\with: $odd`, "a: b\nc: [", "-----BEGIN KEY-----\n\nMIIE  x\n", "${NOBODY}", "${", "$HOME", "\t", "#", "%s%!d", "é\u0085\u2028", "true", "12345678", "<a&b>\u007f", "<\x01\b\f", strings.Repeat("x", 300)} {
		f.Add(s, "app.example.com", "/admin/**", uint8(0))
		f.Add(s, s, s, uint8(1))
		f.Add(s, "", "1", uint8(2))
		f.Add(s, "[]", "{a: b}", uint8(3))
		f.Add(s, "a", "b", uint8(4))
	}
	opts := testOptions()
	careless := func(_ string, block []byte) error { // as careless as a connector's validator may be
		var v struct {
			ClientSecret string
			BindPW       []any
		}
		if err := json.Unmarshal(block, &v); err != nil {
			return err
		}
		return fmt.Errorf("bad %s and %q in %v, %s, %s", v.ClientSecret, v.ClientSecret, v, block, jsonText(v.ClientSecret, false))
	}
	f.Fuzz(func(t *testing.T, text, one, other string, kind uint8) {
		opts := opts
		if kind&8 == 0 {
			opts.Connector = careless
		}
		secret := "S3cr3t-" + text
		if !utf8.ValidString(secret+one+other) || strings.Contains(one+other, "S3cr3t") {
			return
		}
		q, a, b := quoted(secret), quoted(one), quoted(other)
		if kind&1 != 0 {
			a, b = one, other // as YAML of its own
		}
		if strings.ContainsAny(a+b, "\n\r\u0085\u2028\u2029#") || kind&1 != 0 && strings.ContainsAny(a+b, `"'|>&*`) {
			return // what they make of the lines and quotes around them could move the secret into another field
		}
		file := strings.Join([]string{
			"issuer: https://auth.example.com/dex",
			"storage: {type: memory}",
			"enablePasswordDB: true",
			"oauth2: {passwordConnector: " + b + "}",
			"staticClients:",
			"- id: web",
			"  secret: " + q,
			"  name: " + a,
			"  redirectURIs: [" + a + "]",
			"staticPasswords:",
			"- email: " + a,
			"  hash: " + q,
			"  userID: " + b,
			"sessions:",
			"  cookieEncryptionKey: " + q,
			"connectors:",
			"- type: oidc",
			"  id: up",
			"  name: Upstream",
			"  config:",
			"    clientSecret: " + q,
			"    bindPW: [" + q + ", {deep: " + q + "}]",
			"    clientID: " + a,
			"gateway:",
			"  hosts: [" + a + "]",
			"  rules:",
			"  - name: " + b,
			"    paths: [" + b + "]",
			"    allow: " + a,
		}, "\n")
		if kind&4 != 0 { // somebody has put it where it does not belong too
			file += "\nlogger: {level: " + q + "}"
		}
		c, w, err := loadText(file, opts)
		if out := said(c, w, err); strings.Contains(out, "S3cr3t") {
			t.Fatalf("the secret is shown:\n%s\nof\n%s", out, file)
		}
		checkLines(t, file, c, err)
	})
}

// checkLines holds that an error is every mistake with its line, alone.
func checkLines(t *testing.T, file string, c *Config, err error) {
	t.Helper()
	if err == nil {
		return
	}
	checkErrors(t, []byte(file), c, err)
	var list Errors
	if errors.As(err, &list) {
		for _, e := range list {
			if e.Line == 0 && !strings.HasPrefix(e.Msg, "the file is empty") && len(file) <= maxFile {
				t.Fatalf("a mistake without a line: %v", e)
			}
		}
	}
}

// FuzzVariable holds that the value of a variable is text and nothing else: a file with ${VAR} in it is what the same file is with the value written out in
// quotes, and never one with other keys, types or lines.
func FuzzVariable(f *testing.F) {
	for _, v := range []string{
		"text", "", "true", "12", "null", "~", "[a, b]", "{a: b}", "a: b", "- a", "\n  secret: x", "x\nissuer: https://evil.com", `"`, `\`, "'", "*alias", "&anchor", "!!int 1", "# comment", "---", "2026-11-25",
		"${OTHER}", "https://web.example.com/cb", "web.example.com", "/a/**", "anyone", "\u0085", "a\tb", "\ufeff", strings.Repeat("a", 5000),
	} {
		for i := range 10 {
			f.Add(v, uint8(i))
		}
	}
	lines := []string{
		"frontend: {issuer: %s}",
		"staticClients: [{id: %s, secret: not-a-default-secret, redirectURIs: [https://web.example.com/cb]}]",
		"staticClients: [{id: web, secret: %s, redirectURIs: [https://web.example.com/cb]}]",
		"staticClients: [{id: web, secret: not-a-default-secret, name: x, redirectURIs: [%s]}]",
		"connectors: [{type: mockCallback, id: up, name: Up, config: {a: %s, b: [%s]}}]",
		"gateway: {hosts: [app.example.com], rules: [{name: a, paths: [%s], allow: anyone}]}",
		"gateway: {hosts: [app.example.com], rules: [{name: a, groups: [%s]}]}",
		"gateway: {hosts: [%s], default: deny}",
		"gateway: {hosts: [app.example.com], rules: [{name: a, allow: %s}]}",
		"expiry: {idTokens: %s}",
	}
	f.Fuzz(func(t *testing.T, value string, kind uint8) {
		if !utf8.ValidString(value) || strings.ContainsAny(value, "\x00$") {
			return // refused, and see FuzzSecrets
		}
		head := "issuer: https://auth.example.com/dex\nstorage: {type: memory}\nenablePasswordDB: true\n"
		line := lines[int(kind)%len(lines)]
		opts := Options{Lookup: func(name string) (string, bool) { return value, name == "V" }}
		got, _, err := loadText(head+strings.ReplaceAll(line, "%s", "${V}"), opts)
		if strings.Contains(line, "{a: %s") || strings.Contains(line, "[%s]") || strings.Contains(line, ": %s}") { // ${ in a flow needs quotes
			got, _, err = loadText(head+strings.ReplaceAll(line, "%s", `"${V}"`), opts)
		}
		want, _, wantErr := loadText(head+strings.ReplaceAll(line, "%s", quoted(value)), Options{})
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%s: ${V} of %q gives %v, written out it is %v", line, value, err, wantErr)
		}
		if err != nil {
			checkLines(t, head+line, got, err)
			return
		}
		if !reflect.DeepEqual(plainText(got), plainText(want)) {
			t.Fatalf("%s: ${V} of %q gives\n%+v, written out it is\n%+v", line, value, got, want)
		}
	})
}

// plainText removes from a configuration what only one of two equal ones may have: what its secrets are hidden by.
func plainText(c *Config) Config {
	out := *c
	out.places = nil // how a message shows a value is not the value
	out.Connectors = append([]Connector(nil), c.Connectors...)
	for i := range out.Connectors {
		out.Connectors[i].Config.hide = hidden{}
	}
	return out
}

// FuzzAccepted holds of any file that is accepted: it is the same the second time, its hosts and rules are compiled, its policy lets nobody in whom no
// rule and no default lets in, and what it says can be printed.
func FuzzAccepted(f *testing.F) {
	for _, name := range []string{"testdata/gateway.yaml", "testdata/minimal.yaml", "testdata/alias.yaml", "testdata/dex-dev.yaml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data), "a", uint16(0))
		for i := range 20 {
			f.Add(string(data), []string{"*", "anyone", "[]", "\n", "deny", "http://", "''", "- {name: x, allow: anyone}\n"}[i%8], uint16(i*len(data)/20))
		}
	}
	opts := testOptions()
	f.Fuzz(func(t *testing.T, file, text string, at uint16) {
		i := min(int(at), len(file))
		file = file[:i] + text + file[i:]
		c, w, err := loadText(file, opts)
		again, w2, err2 := loadText(file, opts)
		if !reflect.DeepEqual(c, again) || !reflect.DeepEqual(w, w2) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("the second time it is another file: %v, then %v", err, err2)
		}
		checkLines(t, file, c, err)
		if err != nil || c.Gateway == nil {
			return
		}
		if said(c, w, err) == "" {
			t.Fatal("nothing to print")
		}
		checkGateway(t, c)
	})
}

func checkGateway(t *testing.T, c *Config) {
	t.Helper()
	g := c.Gateway
	if g.Policy == nil || g.HostSet == nil || c.IssuerURL == nil {
		t.Fatal("an accepted file has no policy, hosts or issuer")
	}
	for _, entry := range g.Hosts {
		_, name := splitHost(entry, c.IssuerURL.Scheme)
		host := strings.Replace(name, "*", "x", 1)
		if canonical, ok := hosts.Canonical(host); !ok || canonical != host {
			t.Fatalf("host %q is listed, and no request can be for it", host)
		}
		if _, listed := g.HostSet.Lookup(host); !listed {
			t.Fatalf("host %q of the file is not listed", host)
		}
		for _, path := range []string{"/", "/a", "/admin/x", "/healthz"} {
			d := g.Policy.Decide(policy.Request{Method: "GET", Host: host, Path: path}, nil, time.Time{})
			if d.Effect == policy.Allow && !opens(g.Rules, d.Rule) {
				t.Fatalf("%s%s is open by %q, which does not say anyone", host, path, d.Rule)
			}
		}
	}
}

// opens reports whether the rule of that name says anyone.
func opens(rules []Rule, name string) bool {
	for _, r := range rules {
		if r.Name == name {
			return r.Allow == "anyone" && len(r.Groups)+len(r.Users) == 0
		}
	}
	return false
}
