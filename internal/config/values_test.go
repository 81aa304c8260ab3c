package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// hiddenValues are all types that must never show what they hold.
func hiddenValues() map[string]any {
	secret, object := "hunter22", `{"bindPW":"hunter22"}`
	return map[string]any{
		"Secret":    NewSecret(secret),
		"*Secret":   new(NewSecret(secret)),
		"Object":    Object{json: &object},
		"SealKeys":  SealKeys{[]byte(secret)},
		"Client":    Client{ID: "a", Secret: NewSecret(secret)},
		"unnamed":   struct{ s Secret }{NewSecret(secret)},
		"pointers":  &struct{ s *Secret }{new(NewSecret(secret))},
		"Connector": Connector{ID: "a", Config: Object{json: &object}},
		"Keys":      Keys{File: "/k", Ring: SealKeys{[]byte(secret)}},
		"map":       map[string]Secret{"a": NewSecret(secret)},
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	for name, v := range hiddenValues() {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
				fmt.Fprintf(&out, verb+"\n", v)
			}
			for _, h := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
				slog.New(h).Info("x", "value", v)
			}
			if data, err := json.Marshal(v); err == nil {
				out.Write(data)
			}
			if data, err := yaml.Marshal(v); err == nil {
				out.Write(data)
			}
			for _, leak := range []string{"hunter22", fmt.Sprintf("%x", "hunter22"), fmt.Sprintf("%X", "hunter22"), fmt.Sprint([]byte("hunter22"))} {
				if strings.Contains(out.String(), leak) {
					t.Errorf("got %q in\n%s", leak, out.String())
				}
			}
		})
	}
	if NewSecret("hunter22").Reveal() != "hunter22" || !NewSecret("").IsZero() || NewSecret("x").IsZero() {
		t.Error("a Secret must reveal what it holds, and be zero without")
	}
}

// No mistake and no warning shows a secret, wherever in the file it stands and whatever is wrong with it.
func TestErrorsHideSecrets(t *testing.T) {
	const canary = "kanarienvogel"
	opts := testOptions()
	base := opts.Lookup
	opts.Lookup = func(name string) (string, bool) {
		if name == "CANARY" {
			return canary + "\"7", true
		}
		return base(name)
	}
	opts.Connector = func(typ string, config []byte) error {
		return fmt.Errorf("type %s does not take %s", typ, config)
	}
	opts.ReadFile = func(string) ([]byte, error) { return []byte(canary + "\n" + canary + canary + "\n"), nil }
	opts.Mode = func(string) (fileMode, error) { return 0o644, nil }
	for _, value := range []string{canary, "\"" + canary + "\"", "[" + canary + "]", "{" + canary + ": 1}", "{a: " + canary + "}", "!" + canary + " x", "*" + canary, "$" + strings.ToUpper(canary), "x$$" + canary, "\"${CANARY\""} {
		for _, file := range []string{
			head + "staticClients:\n- {id: a, secret: " + value + "}\n",
			head + "staticClients:\n- {id: a, secret:" + value + "}\n",
			head + "staticClients: {secret: " + value + "}\n",
			head + "staticPasswords:\n- {email: a, hash: " + value + "}\n",
			head + "sessions: {cookieEncryptionKey: " + value + ", cookieName: \"\"}\n",
			head + "connectors:\n- {type: ldap, id: a, name: A, config: {bindPW: " + value + ", clientSecret: " + value + ", nested: [{token: " + value + "}]}}\n",
			head + "connectors:\n- {type: ldap, id: a, name: A, config: {bindPW:" + value + "}}\n",
			head + "signer: {type: vault, config: {token: " + value + "}}\n",
			"storage: {type: postgres, config: {password: " + value + "}}\n",
			gatewayHead + "  keys: {file: /k}\n",
		} {
			checkHidden(t, file, canary, opts)
		}
	}
	for path, typ := range keysOf(configType(), "") { // a variable with a secret, in every key there is
		if strings.Contains(path, "[]") || strings.HasSuffix(path, ".*") || typ.Kind().String() == "bool" {
			continue
		}
		checkHidden(t, nested(path, "\"${CANARY}\""), canary, opts)
	}
}

func checkHidden(t *testing.T, file, canary string, opts Options) {
	t.Helper()
	_, warnings, err := Parse("g.yaml", []byte(file), opts)
	if err == nil {
		t.Errorf("got a valid file, want mistakes to look at:\n%s", file)
		return
	}
	if text := err.Error() + warnings.String(); strings.Contains(strings.ToLower(text), canary) {
		t.Errorf("got the secret in\n%s\nof\n%s", text, file)
	}
}

// nested writes a value at a path of blocks.
func nested(path, value string) string {
	open, end := "", ""
	for key := range strings.SplitSeq(path, ".") {
		open, end = open+"{"+key+": ", end+"}"
	}
	return open + value + end + "\n"
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 90 * time.Second: "1m30s", time.Hour: "1h", 168 * time.Hour: "168h", 90 * time.Minute: "1h30m", time.Hour + time.Second: "1h0m1s",
		10 * time.Minute: "10m", 20 * time.Hour: "20h", time.Millisecond: "1ms",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if back, err := time.ParseDuration(Duration(d).String()); err != nil || back != d {
			t.Errorf("%v: got %v, %v read back", d, back, err)
		}
	}
}

func TestNearest(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{"grups", "groups"},
		{"gropus", "groups"},
		{"GROUPS", "groups"},
		{"group", "groups"},
		{"groupss", "groups"},
		{"user", "users"},
		{"path", "paths"},
		{"g", ""},
		{"allowed", "allow"},
		{"xyz", ""},
		{"", ""},
		{strings.Repeat("g", 200), ""},
	} {
		if got := Nearest(tt.word, []string{"groups", "users", "paths", "allow"}); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.word, got, tt.want)
		}
	}
}

// A key of a random source is taken, in every spelling of 32 bytes.
func TestKeySpellings(t *testing.T) {
	const raw = "+/+/" + "q7mX0y1cN8bD2fJ6hQ4tVw9zLrPkEsGuYxAoCiZv" // 44 digits without the padding are 33 bytes
	keys, problems := parseKeys([]byte(strings.Join([]string{
		keyA, strings.TrimRight("r"+keyA[1:], "="), strings.NewReplacer("+", "-", "/", "_").Replace("/+" + keyA[2:]), keyHexB, strings.ToUpper("0a" + keyHexB[2:]),
	}, " # comment\r\n\t")))
	if len(problems) > 0 || len(keys) != 5 {
		t.Errorf("got %d keys and %v, want 5 and no problem", len(keys), problems)
	}
	if _, problems = parseKeys([]byte(raw)); len(problems) != 1 || !strings.Contains(problems[0], "has 33 bytes") {
		t.Errorf("got %v, want that it has 33 bytes", problems)
	}
	if _, problems = parseKeys(bytes.Repeat([]byte("#"), maxKeyFile+1)); len(problems) != 1 {
		t.Errorf("got %v, want that the file is too large", problems)
	}
}

// The path of a keytab is told: whoever reads the message looks for the file.
func TestKeytabPathIsTold(t *testing.T) {
	opts := testOptions()
	opts.Connector = func(_ string, config []byte) error { return fmt.Errorf("no file: %s", config) }
	_, _, err := Parse("g.yaml", []byte(head+"connectors:\n- {type: ldap, id: a, name: A, config: {kerberos: {keytabPath: /etc/http.keytab}, clientKey: hunter22}}\n"), opts)
	if err == nil || !strings.Contains(err.Error(), "/etc/http.keytab") || strings.Contains(err.Error(), "hunter22") {
		t.Errorf("got %v, want the path of the keytab, and nothing else that may be secret", err)
	}
}

// A truth value in quotes is no secret, though the key has a password in its name: the message says what to write.
func TestTruthIsNoSecret(t *testing.T) {
	opts := testOptions()
	opts.Connector = func(string, []byte) error { return errors.New("write true or false without quotes") }
	_, _, err := Parse("g.yaml", []byte(head+"connectors:\n- {type: ldap, id: a, name: A, config: {kerberos: {fallbackToPassword: \"true\"}}}\n"), opts)
	if err == nil || !strings.Contains(err.Error(), "write true or false without quotes") {
		t.Errorf("got %v, want what to write", err)
	}
}
