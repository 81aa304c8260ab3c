package provider

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/internal/config"
)

// goodOIDC is the least that an OpenID Connect connector needs; more is added before its closing brace.
const goodOIDC = `{"issuer":"https://accounts.example.com"`

// fieldError is what the reader of a configuration looks for: connectors of Dex's and our own have each an error of their own.
type fieldError interface {
	error
	Field() string
}

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
		if f, ok := errors.AsType[fieldError](e); ok {
			field = f.Field()
		}
		lines[i] = field + "|" + e.Error()
	}
	return strings.Join(lines, "\n")
}

func TestCheckConnectorMistakes(t *testing.T) {
	for _, tt := range []struct{ name, kind, config, want string }{
		{"no keys at all", "mockCallback", ``, ""},
		{"a key without a value", "oidc", goodOIDC + `,"claimMapping":null}`, ""},
		{"unknown type", "lpad", `{}`, `|unknown connector type "lpad": did you mean ldap?`},
		{"text for a block", "oidc", `{"claimMapping":"email"}`, "claimMapping|claimMapping: got text, want a block of keys: write its keys below it, each on a line of its own and indented"},
		{"list for a text", "oidc", `{"issuer":["a"]}`, "issuer|issuer: got a list, want text: write one value"},
		{"number for a text", "oidc", `{"clientSecret":123456}`, "clientSecret|clientSecret: got a number, want text: put it in quotes"},
		{"text for true", "oidc", `{"getUserInfo":"true"}`, "getUserInfo|getUserInfo: got text, want true or false: write true or false without quotes"},
		{"text for a list", "github", `{"orgs":"kubeflow"}`, "orgs|orgs: got text, want a list: write one entry a line with - before it, or [a, b]"},
		{"wrong type in a list", "github", `{"orgs":[{"name":"a"},{"name":true}]}`, "orgs[1].name|orgs[1].name: got true or false, want text: put it in quotes"},
		{"not base64", "saml", `{"caData":"-----BEGIN CERTIFICATE-----"}`, "caData|caData: is not base64: encode the content of the file with base64 -w0"},
		{"every unknown key at once", "oidc", goodOIDC + `,"isuer":"x","claimMapping":{"emial":"mail"}}`, "claimMapping.emial|unknown field \"emial\": did you mean \"email\"?\nisuer|unknown field \"isuer\": did you mean \"issuer\"?"},
		{"key in another case", "oidc", goodOIDC + `,"clientid":"a"}`, `clientid|unknown field "clientid": did you mean "clientID"?`},
		{"key that is like no other", "oidc", goodOIDC + `,"frobnicate":1}`, `frobnicate|unknown field "frobnicate": remove it, or see Dex's documentation of this connector for its keys`},
		{"key with a secret in it", "oidc", goodOIDC + `,"clientSecret:hunter22":null}`, `clientSecret:hunter22|unknown field "clientSecret:…": a space is missing after the colon`},
		{"key of a connector without any", "mockCallback", `{"a":1}`, `a|unknown field "a": there are no keys here, so remove it`},
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
	if err == nil {
		t.Fatal("is accepted")
	}
	for _, want := range []string{
		":8: connectors[0].config.host: got a list, want text: ",
		`:9: connectors[0].config: unknown field "insecureNoSsl": did you mean "insecureNoSSL"?`,
		":10: connectors[0].config.userSearch.baseDN: is missing: ",
		`:11: connectors[0].config.userSearch: unknown field "idAtr": did you mean "idAttr"?`,
	} {
		if !strings.Contains(err.Error(), file+want) {
			t.Errorf("got\n%v\nwant %q in it", err, want)
		}
	}
}
