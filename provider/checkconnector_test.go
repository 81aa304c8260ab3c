package provider

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/internal/config"
)

// goodLDAP is the least that an LDAP connector needs; more is added before its closing brace.
const goodLDAP = `{"host":"ldap.example.com:636","userSearch":{"baseDN":"ou=people","username":["uid","mail"]}`

// errorLines returns the mistakes that CheckConnector joined, each as FIELD|MESSAGE.
func errorLines(err error) string {
	if err == nil {
		return ""
	}
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	lines := make([]string, len(list))
	for i, e := range list {
		field := ""
		if f, ok := errors.AsType[*FieldError](e); ok {
			field = f.Field()
		}
		lines[i] = field + "|" + e.Error()
	}
	return strings.Join(lines, "\n")
}

func TestCheckConnectorMistakes(t *testing.T) {
	for _, tt := range []struct{ name, kind, config, want string }{
		{"least LDAP", "ldap", goodLDAP + `}`, ""},
		{"a key without a value", "ldap", goodLDAP + `,"groupSearch":null}`, ""},
		{"user name as one text", "ldap", strings.Replace(goodLDAP, `["uid","mail"]`, `"uid"`, 1) + `}`, ""},
		{"no keys at all", "mockCallback", ``, ""},
		{"unknown type", "lpad", `{}`, `|unknown connector type "lpad": did you mean ldap?`},
		{"text for a block", "ldap", `{"userSearch":"ou=people"}`, "userSearch|userSearch: got text, want a block of keys: write its keys below it, each on a line of its own and indented"},
		{"list for a text", "ldap", `{"host":["a"]}`, "host|host: got a list, want text: write one value"},
		{"number for a text", "ldap", `{"bindPW":123456}`, "bindPW|bindPW: got a number, want text: put it in quotes"},
		{"text for true", "ldap", `{"startTLS":"true"}`, "startTLS|startTLS: got text, want true or false: write true or false without quotes"},
		{"text for a list", "github", `{"orgs":"kubeflow"}`, "orgs|orgs: got text, want a list: write one entry a line with - before it, or [a, b]"},
		{"wrong type in a list", "ldap", `{"groupSearch":{"userMatchers":[{"userAttr":"DN"},{"userAttr":true}]}}`, "groupSearch.userMatchers[1].userAttr|groupSearch.userMatchers[1].userAttr: got true or false, want text: put it in quotes"},
		{"wrong type for one that reads itself", "ldap", `{"userSearch":{"username":7}}`, "userSearch.username|userSearch.username: got a number: username must be a string or list of strings"},
		{"not base64", "ldap", `{"rootCAData":"-----BEGIN CERTIFICATE-----"}`, "rootCAData|rootCAData: is not base64: encode the content of the file with base64 -w0"},
		{"every unknown key at once", "ldap", goodLDAP + `,"hots":"x","groupSearch":{"nameAtr":"cn"}}`, "groupSearch.nameAtr|unknown field \"nameAtr\": did you mean \"nameAttr\"?\nhots|unknown field \"hots\": did you mean \"host\"?"},
		{"key in another case", "ldap", goodLDAP + `,"insecureNoSsl":true}`, `insecureNoSsl|unknown field "insecureNoSsl": did you mean "insecureNoSSL"?`},
		{"key that is like no other", "ldap", goodLDAP + `,"frobnicate":1}`, `frobnicate|unknown field "frobnicate": remove it, or see Dex's documentation of this connector for its keys`},
		{"key with a secret in it", "ldap", goodLDAP + `,"bindPW:hunter22":null}`, `bindPW:hunter22|unknown field "bindPW:…": a space is missing after the colon`},
		{"key of a connector without any", "mockCallback", `{"a":1}`, `a|unknown field "a": there are no keys here, so remove it`},
		{"LDAP without anything", "ldap", ``, "host|host: is missing: the connector does not work without it\n" +
			"userSearch.baseDN|userSearch.baseDN: is missing: the connector does not work without it\n" +
			"userSearch.username|userSearch.username: is missing: the connector does not work without it"},
		{"LDAP with a CA that is not there", "ldap", goodLDAP + `,"rootCA":"/nonexistent/ca.pem"}`, "rootCA|rootCA: want the path of a PEM file that can be read (read ca file: open /nonexistent/ca.pem: no such file or directory)"},
		{"LDAP with CA data of nothing", "ldap", goodLDAP + `,"rootCAData":"eA=="}`, "rootCAData|rootCAData: holds no certificate: want PEM with CERTIFICATE blocks (no certs found in ca file)"},
		{"LDAP with an unknown scope", "ldap", goodLDAP + `,"groupSearch":{"scope":"all"}}`, `groupSearch.scope|groupSearch.scope: want sub or one (groupSearch.Scope unknown value "all")`},
		{"oidc without issuer", "oidc", `{"clientID":"a"}`, "issuer|issuer: is missing: set it to the issuer of your provider, such as https://accounts.example.com"},
		{"oidc with a relative issuer", "oidc", `{"issuer":"accounts.example.com"}`, "issuer|issuer: want an absolute URL, such as https://accounts.example.com"},
		{"oidc with another scheme", "oidc", `{"issuer":"ldap://accounts.example.com"}`, "issuer|issuer: want an absolute URL, such as https://accounts.example.com"},
		{"oidc", "oidc", `{"issuer":"https://accounts.example.com"}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := errorLines(CheckConnector(tt.kind, []byte(tt.config))); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// The line of a mistake is that of its key, and the key is named once.
func TestCheckConnectorInAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	text := `issuer: https://auth.example.com/dex
storage: {type: memory}
connectors:
- type: ldap
  id: ad
  name: AD
  config:
    host: [a]
    insecureNoSsl: true
    userSearch:
      idAtr: uid
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := config.OS()
	opts.Connector = CheckConnector
	_, _, err := config.Load(file, opts)
	want := strings.ReplaceAll(`F:8: connectors[0].config.host: got a list, want text: write one value
F:9: connectors[0].config: unknown field "insecureNoSsl": did you mean "insecureNoSSL"?
F:11: connectors[0].config.userSearch: unknown field "idAtr": did you mean "idAttr"?`, "F", file)
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}
