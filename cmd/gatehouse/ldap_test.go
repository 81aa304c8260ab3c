package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// ldapTest runs gatehouse ldap test with a file of one connector.
func ldapTest(t *testing.T, s *peers.SlapdServer, host, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	text := fmt.Sprintf(`issuer: https://auth.example.com/dex
storage: {type: memory}
connectors:
- type: ldap
  id: corp
  name: Corp
  config:
    host: %s
    rootCA: %s
    bindDN: %s
    bindPW: %s
    userSearch: {baseDN: "%s", username: uid, idAttr: uid, emailAttr: mail, nameAttr: cn}
    groupSearch: {baseDN: "%s", userMatchers: [{userAttr: DN, groupAttr: member}], nameAttr: cn}
`, host, s.CA, s.ServiceDN, s.ServicePassword, s.PeopleDN, s.GroupsDN)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"ldap", "test", "--config", file}, args...), strings.NewReader(stdin), &out, &errs)
	for _, secret := range []string{s.ServicePassword, "a-wrong-secret"} {
		if strings.Contains(out.String()+errs.String(), secret) {
			t.Errorf("the output tells a password:\n%s%s", out.String(), errs.String())
		}
	}
	return code, out.String(), errs.String()
}

// TestLDAPTest: an operator sees each step, its time, and the fix for what fails.
func TestLDAPTest(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{})
	for _, c := range []struct {
		name, host, stdin string
		args              []string
		code              int
		want              []string // in the output
		errors            string   // in stderr
	}{
		{"good", s.Host, s.Password + "\n", []string{"--connector", "corp", "--user", "alice", "--password-stdin"}, 0, []string{"ok    configuration ", ": service bind", " ms  ", "uid=alice,", "g3-leaf", "the user's bind", " steps went well\n"}, ""},
		{"the only connector", s.Host, "", nil, 0, []string{"steps went well"}, ""},
		{"wrong password", s.Host, "a-wrong-secret\n", []string{"--user", "bob", "--password-stdin"}, 1, []string{"FAIL  the user's bind", "wrong-credentials", "      -> the password is wrong", "1 of 14 steps failed\n"}, ""},
		{"wrong port", s.Plain, "", nil, 1, []string{"FAIL  " + s.Plain + ": TLS", "      -> ", "636"}, ""},
		{"no such connector", s.Host, "", []string{"--connector", "crop"}, 1, nil, `no connector "crop" of type ldap: want corp`},
		{"password without user", s.Host, "x\n", []string{"--password-stdin"}, 1, nil, "needs --user"},
		{"empty password", s.Host, "\n", []string{"--user", "alice", "--password-stdin"}, 1, nil, "no password on standard input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errs := ldapTest(t, s, c.host, c.stdin, c.args...)
			t.Log("\n" + out + errs)
			if code != c.code || !strings.Contains(errs, c.errors) || c.errors == "" && errs != "" && !strings.Contains(errs, "warning") {
				t.Errorf("code %d, wanted %d; stderr %q, wanted %q", code, c.code, errs, c.errors)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("wanted %q", w)
				}
			}
		})
	}
}

func TestOneLineObeysNobody(t *testing.T) {
	if got, want := oneLine("certificate is for \x1b[2J\x07evil\u202e,\nnot for\r\nyou"), "certificate is for ?[2J?evil?,; not for; you"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
