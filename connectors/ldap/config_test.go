package ldap

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/fakeldap"

	"go.yaml.in/yaml/v3"
)

// fields returns the key and the text of every mistake.
func fields(t testing.TB, err error) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err == nil {
		return out
	}
	all, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("got %v, want joined errors", err)
	}
	for _, e := range all.Unwrap() {
		f, ok := errors.AsType[*fieldError](e)
		if !ok {
			out[""] = e.Error()
			continue
		}
		out[f.Field()] = e.Error()
	}
	return out
}

// dex is a configuration as Dex has it.
const dex = `"host": "ldap.example.com:636", "userSearch": {"baseDN": "ou=people,dc=example,dc=com", "username": "uid"}`

func TestCheckMistakes(t *testing.T) {
	t.Parallel()
	secret := "s3cret-in-a-message"
	for _, tt := range []struct{ name, config, field, want string }{
		{"no block", `[1]`, "", "got a list, want a block of keys"},
		{"no JSON", `{`, "", "unexpected EOF"},
		{"two documents", `{} {}`, "", "more after its end"},
		{"an unknown key", `{` + dex + `, "bindDn": "x"}`, "bindDn", `unknown field "bindDn": did you mean "bindDN"?`},
		{"an unknown key like no other", `{` + dex + `, "timeouts": {"connecting": "1s"}}`, "timeouts.connecting", "want one of dial, request"},
		{"an unknown key deeper", `{"host": "a", "userSearch": {"base": "x"}}`, "userSearch.base", `unknown field "base": did you mean "baseDN"?`},
		{"no space after a colon", `{` + dex + `, "bindPW:` + secret + `": null}`, "bindPW", "a space is missing"},
		{"text for a number", `{` + dex + `, "connections": "8"}`, "connections", "got text, want a number: write a number"},
		{"a number for text", `{` + dex + `, "bindPW": 42}`, "bindPW", "got a number, want text: put it in quotes"},
		{"text for a truth value", `{` + dex + `, "startTLS": "yes"}`, "startTLS", "without quotes"},
		{"a list for text", `{"host": ["a"]}`, "host", "got a list, want text"},
		{"a block for a list", `{` + dex + `, "groupSearch": {"userMatchers": {}}}`, "groupSearch.userMatchers", "want a list"},
		{"a number in a list", `{` + dex + `, "hosts": [1]}`, "hosts[0]", "put it in quotes"},
		{"a fraction", `{` + dex + `, "pageSize": 1.5}`, "pageSize", "whole number"},
		{"a huge number", `{` + dex + `, "pageSize": 99999999999}`, "pageSize", "whole number"},
		{"no base64", `{` + dex + `, "rootCAData": "-----BEGIN"}`, "rootCAData", "is not base64"},
		{"a time without a unit", `{` + dex + `, "timeouts": {"dial": 5}}`, "timeouts.dial", "with its unit"},
		{"a time that is over", `{` + dex + `, "timeouts": {"request": "-1s"}}`, "timeouts.request", "with its unit"},
		{"nothing", `{}`, "host", "is missing"},
		{"no base", `{"host": "a"}`, "userSearch.baseDN", "is missing"},
		{"no user name", `{"host": "a"}`, "userSearch.username", "is missing"},
		{"a preset misspelt", `{"host": "a", "preset": "activeDirectory"}`, "preset", "did you mean activedirectory?"},
		{"a preset of nothing", `{"host": "a", "preset": "novell"}`, "preset", "want activedirectory or openldap or freeipa"},
		{"a URL for a host", `{"host": "ldaps://ldap.example.com"}`, "host", "got a URL"},
		{"a host with a path", `{"host": "ldap.example.com/x"}`, "host", "want host or host:port"},
		{"host and hosts", `{"host": "a", "hosts": ["b"]}`, "hosts", "remove host"},
		{"an empty host in a list", `{"hosts": ["a", ""]}`, "hosts[1]", "is empty"},
		{"a domain that is none", `{"domain": "a b"}`, "domain", "want a DNS name"},
		{"a site without a domain", `{"host": "a", "site": "Berlin"}`, "site", "set domain"},
		{"no TLS twice", `{` + dex + `, "insecureNoSSL": true, "startTLS": true}`, "startTLS", "remove insecureNoSSL"},
		{"a name without a password", `{` + dex + `, "bindDN": "cn=svc,dc=example"}`, "bindPW", "is missing"},
		{"a password without a name", `{` + dex + `, "bindPW": "` + secret + `"}`, "bindDN", "is missing"},
		{"two passwords", `{` + dex + `, "bindDN": "cn=svc,dc=example", "bindPW": "` + secret + `", "bindPWFile": "/x"}`, "bindPWFile", "remove one"},
		{"a name that is no DN", `{` + dex + `, "bindDN": "svc", "bindPW": "` + secret + `"}`, "bindDN", "want a distinguished name"},
		{"a file that is not there", `{` + dex + `, "bindDN": "cn=svc,dc=example", "bindPWFile": "/nowhere"}`, "bindPWFile", "cannot be read: no such file"},
		{"strangers in Active Directory", `{"preset": "activedirectory", "domain": "corp.example.com"}`, "bindDN", "is missing"},
		{"a CA that is not there", `{` + dex + `, "rootCA": "/nowhere"}`, "rootCA", "no such file"},
		{"CA data without a certificate", `{` + dex + `, "rootCAData": "AAAA"}`, "rootCAData", "holds no certificate"},
		{"a certificate without its key", `{` + dex + `, "clientCert": "/x"}`, "clientKey", "want both"},
		{"a key without its certificate", `{` + dex + `, "clientKey": "/x"}`, "clientCert", "want both"},
		{"a certificate that is not there", `{` + dex + `, "clientKey": "/x", "clientCert": "/x"}`, "clientCert", "no such file"},
		{"a base that is no DN", `{"host": "a", "userSearch": {"baseDN": "people", "username": "uid"}}`, "userSearch.baseDN", "want a distinguished name"},
		{"a filter without parentheses", `{"host": "a", "userSearch": {"filter": "objectClass=person"}}`, "userSearch.filter", "is no LDAP filter"},
		{"a filter that breaks out", `{"host": "a", "userSearch": {"filter": "(a=b))(|(c=d)"}}`, "userSearch.filter", "is no LDAP filter"},
		{"a scope", `{"host": "a", "userSearch": {"scope": "base"}}`, "userSearch.scope", "want sub or one"},
		{"an attribute with a filter in it", `{"host": "a", "userSearch": {"username": "uid=*)(uid"}}`, "userSearch.username[0]", "want the name of an attribute"},
		{"no attribute in a list", `{"host": "a", "userSearch": {"username": ["uid", ""]}}`, "userSearch.username[1]", "is empty"},
		{"an id attribute with a blank", `{"host": "a", "userSearch": {"idAttr": "uid "}}`, "userSearch.idAttr", "want the name"},
		{"an @ in a suffix", `{"host": "a", "userSearch": {"emailSuffix": "@example.com"}}`, "userSearch.emailSuffix", "what follows the @"},
		{"a suffix without a name", `{"host": "a", "userSearch": {"emailSuffix": "example.com"}}`, "userSearch.nameAttr", "all users would have one e-mail address"},
		{"a NetBIOS name elsewhere", `{` + dex + `, "netbiosName": "CORP"}`, "netbiosName", "activedirectory"},
		{"groups from nowhere", `{` + dex + `, "groupSearch": {"userMatchers": [{"userAttr": "DN", "groupAttr": "member"}]}}`, "groupSearch.baseDN", "no group is found"},
		{"groups of a preset from nowhere", `{"preset": "openldap", "host": "a", "userSearch": {"baseDN": "o=example"}}`, "groupSearch.baseDN", "or set domain"},
		{"groups of AD from nowhere", `{"preset": "activedirectory", "host": "a", "userSearch": {"baseDN": "o=example"}, "groupSearch": {"nested": "none"}}`, "groupSearch.baseDN", "or set domain"},
		{"groups by nothing", `{` + dex + `, "groupSearch": {"baseDN": "dc=example"}}`, "groupSearch.userMatchers", "no group is found"},
		{"half of a matcher", `{` + dex + `, "groupSearch": {"baseDN": "dc=example", "userMatchers": [{"userAttr": "DN"}]}}`, "groupSearch.userMatchers[0].groupAttr", "is missing"},
		{"old and new matchers", `{` + dex + `, "groupSearch": {"baseDN": "dc=example", "userAttr": "DN", "userMatchers": [{"userAttr": "DN", "groupAttr": "member"}]}}`, "groupSearch.userAttr", "userMatchers too"},
		{"half of an old matcher", `{` + dex + `, "groupSearch": {"baseDN": "dc=example", "userAttr": "DN"}}`, "groupSearch.groupAttr", "is missing"},
		{"a rule that is a filter", `{` + dex + `, "groupSearch": {"baseDN": "dc=example", "userMatchers": [{"userAttr": "DN", "groupAttr": "member=*)(a"}]}}`, "groupSearch.userMatchers[0].groupAttr", "want the name"},
		{"a way to nested groups", `{` + dex + `, "groupSearch": {"nested": "wlak"}}`, "groupSearch.nested", "did you mean walk?"},
		{"AD's way elsewhere", `{` + dex + `, "groupSearch": {"nested": "tokenGroups"}}`, "groupSearch.nested", "is for preset: activedirectory"},
		{"a walk from nowhere", `{` + dex + `, "groupSearch": {"nested": "walk"}}`, "groupSearch.nested", "nothing to start from"},
		{"SIDs elsewhere", `{` + dex + `, "groupSearch": {"value": "sid"}}`, "groupSearch.value", "is for preset"},
		{"a value", `{` + dex + `, "groupSearch": {"value": "number"}}`, "groupSearch.value", "want name or dn or sid"},
		{"a primary group elsewhere", `{` + dex + `, "groupSearch": {"primaryGroup": true}}`, "groupSearch.primaryGroup", "is for preset"},
		{"two ways in AD", `{"preset": "activedirectory", "domain": "a.b", "groupSearch": {"nested": "walk", "userMatchers": [{"userAttr": "DN", "groupAttr": "member"}]}}`, "groupSearch.nested", "remove userMatchers"},
		{"an expression", `{` + dex + `, "groupSearch": {"match": "("}}`, "groupSearch.match", "is no regular expression"},
		{"no group in a list", `{` + dex + `, "groupSearch": {"allow": [""]}}`, "groupSearch.allow[0]", "is empty"},
		{"no groups", `{` + dex + `, "groupSearch": {"limit": -1}}`, "groupSearch.limit", "want 1 to"},
		{"required groups without groups", `{` + dex + `, "requiredGroups": ["a"]}`, "requiredGroups", "nobody could sign in"},
		{"Kerberos without a keytab", `{` + dex + `, "kerberos": {"enabled": true}}`, "kerberos.keytabPath", "is missing"},
		{"a keytab that is not there", `{` + dex + `, "kerberos": {"enabled": true, "keytabPath": "/nowhere"}}`, "kerberos.keytabPath", "cannot be read"},
		{"a name of a principal", `{` + dex + `, "kerberos": {"enabled": true, "usernameFromPrincipal": "upn"}}`, "kerberos.usernameFromPrincipal", "localpart"},
		{"locked sessions", `{` + dex + `, "lockedSessions": "kept"}`, "lockedSessions", "did you mean keep?"},
		{"failures", `{` + dex + `, "lockout": {"maxFailures": -1}}`, "lockout.maxFailures", "got -1"},
		{"a watch", `{` + dex + `, "watch": "on"}`, "watch", "want auto or off"},
		{"referrals", `{` + dex + `, "referrals": "chase"}`, "referrals", "want ignore or follow"},
		{"too many connections", `{` + dex + `, "connections": 1000}`, "connections", "want 1 to 256"},
		{"passwords without TLS", `{` + dex + `, "insecureNoSSL": true, "passwordChange": {"enabled": true}}`, "passwordChange.enabled", "needs TLS"},
		{"an account for nothing", `{` + dex + `, "passwordChange": {"enabled": false, "bindDN": "cn=a,dc=b", "bindPW": "x"}}`, "passwordChange.bindDN", "remove one"},
		{"a name of another account", `{` + dex + `, "passwordChange": {"bindDN": "a", "bindPW": "x"}}`, "passwordChange.bindDN", "want a distinguished name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Check([]byte(tt.config))
			got := fields(t, err)
			if !strings.Contains(got[tt.field], tt.want) {
				t.Errorf("got %q, want %q to say %q", got, tt.field, tt.want)
			}
			if strings.Contains(fmt.Sprint(err, got), secret) {
				t.Errorf("a password is in the message %v or in its key %q", err, got)
			}
		})
	}
}

// One mistake is told once: what only follows from it is not.
func TestCheckTellsNothingBesidesTheMistake(t *testing.T) {
	t.Parallel()
	ad := func(s string) string { return `{"bindDN": "a@corp.example.com", "bindPW": "x", ` + s + `}` }
	for _, tt := range []struct{ name, config, field, want string }{
		{"a preset misspelt", ad(`"preset": "active-directory", "domain": "corp.example.com"`), "preset", "did you mean activedirectory?"},
		{"a preset like no other", ad(`"preset": "ad", "domain": "corp.example.com", "userSearch": {"username": "uid"}`), "preset", "want activedirectory or openldap or freeipa"},
		{"a domain that is none", ad(`"preset": "activedirectory", "domain": "CORP"`), "domain", "want a DNS name"},
		{"no domain", ad(`"preset": "activedirectory", "userSearch": {"baseDN": "dc=corp,dc=example"}`), "domain", "is missing: set it to the DNS name"},
		{"no bases", ad(`"preset": "activedirectory", "host": "a"`), "userSearch.baseDN", "or set domain"},
		{"a key in other letters", `{"preset": "openldap", "domain": "a.b", "bindDN": "cn=a,dc=b", "bindPw": "x"}`, "bindPw", `did you mean "bindPW"?`},
		{"a port", `{"preset": "openldap", "domain": "a.b", "port": 636}`, "port", "write it in host"},
		{"a port that is none", `{"preset": "openldap", "domain": "a.b", "host": "a:99999"}`, "host", "got port 99999"},
		{"a block in another", `{"preset": "openldap", "domain": "a.b", "userSearch": {"groupSearch": {"nested": "walk"}}}`, "userSearch.groupSearch", "it belongs in config, beside host"},
		{"a key above its block", `{"preset": "openldap", "domain": "a.b", "nested": "walk"}`, "nested", "it belongs in groupSearch"},
		{"a key of two blocks", `{"preset": "openldap", "domain": "a.b", "filter": "(a=b)"}`, "filter", "it belongs in groupSearch or userSearch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fields(t, Check([]byte(tt.config))); len(got) != 1 || !strings.Contains(got[tt.field], tt.want) {
				t.Errorf("got %q, want %q alone to say %q", got, tt.field, tt.want)
			}
		})
	}
}

// Every mistake is told at once.
func TestCheckAll(t *testing.T) {
	t.Parallel()
	got := fields(t, Check([]byte(`{"preset": "ldap", "hosts": "a", "rootCA": "/nowhere", "userSearch": {"filter": "x", "name": 1}, "watch": "on", "connections": -1}`)))
	for _, f := range []string{"preset", "hosts", "rootCA", "userSearch.filter", "userSearch.name", "watch", "connections", "userSearch.baseDN"} {
		if got[f] == "" {
			t.Errorf("%s: got no mistake among %q", f, got)
		}
	}
}

// dexConfigs are the configurations of Dex's documentation and of its tests.
func dexConfigs() map[string]string {
	base := func(name, rest string) string {
		return `{"host": "localhost:3890", "insecureNoSSL": true, "bindDN": "cn=admin,dc=example,dc=org", "bindPW": "admin",
			"userSearch": {"baseDN": "ou=People,ou=` + name + `,dc=example,dc=org", "nameAttr": "cn", "emailAttr": "mail", "idAttr": "DN", "username": "cn"}` + rest + `}`
	}
	return map[string]string{
		"documentation": `{"host": "ldap.example.com:636", "rootCAData": "` + base64.StdEncoding.EncodeToString([]byte(testCA)) + `",
			"bindDN": "uid=serviceaccount,cn=users,dc=example,dc=com", "bindPW": "password", "usernamePrompt": "SSO Username",
			"userSearch": {"baseDN": "cn=users,dc=example,dc=com", "filter": "(objectClass=person)", "username": ["uid", "mail"], "idAttr": "uid", "emailAttr": "mail", "nameAttr": "name", "preferredUsernameAttr": "uid"},
			"groupSearch": {"baseDN": "cn=groups,dc=example,dc=com", "filter": "(|(objectClass=posixGroup)(objectClass=groupOfNames))", "nameAttr": "name",
			"userMatchers": [{"userAttr": "uid", "groupAttr": "memberUid"}, {"userAttr": "DN", "groupAttr": "member"}]}}`,
		"query":                        base("TestQuery", ""),
		"user filter":                  strings.Replace(strings.Replace(base("TestUserFilter", ""), "ou=People,", "", 1), `"username"`, `"filter": "(ou:dn:=Seattle)", "username"`, 1),
		"email suffix":                 strings.Replace(base("TestQueryWithEmailSuffix", ""), `"username"`, `"emailSuffix": "test.example.com", "username"`, 1),
		"several user name attributes": strings.Replace(strings.Replace(base("TestUsernameWithMultipleAttributes", ""), "ou=People,", "", 1), `"username": "cn"`, `"username": ["cn", "mail"], "filter": "(ou:dn:=Seattle)"`, 1),
		"groups": base("TestGroupQuery", `, "groupSearch": {"baseDN": "ou=Groups,ou=TestGroupQuery,dc=example,dc=org", "nameAttr": "cn",
			"userMatchers": [{"userAttr": "DN", "groupAttr": "member"}]}`),
		"groups in the user's entry": base("TestGroupsOnUserEntity", `, "groupSearch": {"baseDN": "ou=Groups,ou=TestGroupsOnUserEntity,dc=example,dc=org", "nameAttr": "cn",
			"userMatchers": [{"userAttr": "departmentNumber", "groupAttr": "gidNumber"}]}`),
		"group filter": base("TestGroupFilter", `, "groupSearch": {"baseDN": "ou=TestGroupFilter,dc=example,dc=org", "nameAttr": "cn", "filter": "(ou:dn:=Seattle)",
			"userMatchers": [{"userAttr": "dn", "groupAttr": "member"}]}`),
		"older matcher": base("TestDeprecatedGroupToUserMatcher", `, "groupSearch": {"baseDN": "ou=TestDeprecatedGroupToUserMatcher,dc=example,dc=org", "nameAttr": "cn",
			"filter": "(ou:dn:=Seattle)", "userAttr": "DN", "groupAttr": "member"}`),
		"nested": base("TestNestedGroups", `, "groupSearch": {"baseDN": "ou=TestNestedGroups,dc=example,dc=org", "nameAttr": "cn",
			"userMatchers": [{"userAttr": "DN", "groupAttr": "member", "recursionGroupAttr": "member"}]}`),
		"Active Directory's rule": `{"host": "ad.example.com:636", "bindDN": "svc@example.com", "bindPW": "x", "insecureSkipVerify": true,
			"userSearch": {"baseDN": "cn=Users,dc=example,dc=com", "filter": "(objectClass=person)", "username": "userPrincipalName", "idAttr": "DN", "emailAttr": "userPrincipalName", "nameAttr": "cn"},
			"groupSearch": {"baseDN": "cn=Users,dc=example,dc=com", "filter": "(objectClass=group)", "nameAttr": "cn", "userMatchers": [{"userAttr": "DN", "groupAttr": "member:1.2.840.113556.1.4.1941:"}]}}`,
	}
}

const testCA = `-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjANMQswCQYDVQQDEwJjYTAeFw0y
NjAxMDEwMDAwMDBaFw0zNjAxMDEwMDAwMDBaMA0xCzAJBgNVBAMTAmNhMFkwEwYH
-----END CERTIFICATE-----
`

func TestCheckDex(t *testing.T) {
	t.Parallel()
	ca := fakeldap.Start(t, fakeldap.Options{Mode: fakeldap.LDAPS}).CA()
	for name, raw := range dexConfigs() {
		raw = strings.Replace(raw, base64.StdEncoding.EncodeToString([]byte(testCA)), base64.StdEncoding.EncodeToString(ca), 1)
		s, err := parse([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var want struct {
			UserSearch struct{ IDAttr, EmailAttr, NameAttr string }
		}
		if err := json.Unmarshal([]byte(raw), &want); err != nil {
			t.Fatal(err)
		}
		u := s.UserSearch
		if u.IDAttr != want.UserSearch.IDAttr || u.EmailAttr != want.UserSearch.EmailAttr || u.NameAttr != want.UserSearch.NameAttr || s.change || s.GroupSearch.Nested != "" {
			t.Errorf("%s: got %+v, want Dex's meaning", name, s.config)
		}
	}
}

// The least that a preset needs, and what it makes of it.
func TestPresets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		config                          string
		users, groups, id, filter, name string
		usernames                       []string
		change                          bool
	}{
		{
			`{"preset": "activedirectory", "domain": "corp.example.com", "bindDN": "svc@corp.example.com", "bindPW": "x"}`,
			"DC=corp,DC=example,DC=com", "DC=corp,DC=example,DC=com", "objectGUID", "(objectCategory=person)(objectClass=user)", "sAMAccountName",
			[]string{"sAMAccountName", "userPrincipalName", "mail"},
			true,
		},
		{
			`{"preset": "activedirectory", "host": "dc1", "userSearch": {"baseDN": "OU=Staff,DC=corp,DC=example"}, "bindDN": "CORP\\svc", "bindPW": "x"}`,
			"OU=Staff,DC=corp,DC=example", "dc=corp,dc=example", "objectGUID", "(objectCategory=person)(objectClass=user)", "sAMAccountName",
			[]string{"sAMAccountName", "userPrincipalName", "mail"},
			true,
		},
		{
			`{"preset": "openldap", "host": "ldap", "domain": "example.com"}`,
			"DC=example,DC=com", "DC=example,DC=com", "entryUUID", "(objectClass=person)", "cn",
			[]string{"uid", "mail"},
			true,
		},
		{
			`{"preset": "openldap", "host": "ldap", "domain": "example.com", "insecureNoSSL": true}`,
			"DC=example,DC=com", "DC=example,DC=com", "entryUUID", "(objectClass=person)", "cn",
			[]string{"uid", "mail"},
			false,
		},
		{
			`{"preset": "freeipa", "domain": "example.com"}`,
			"cn=users,cn=accounts,DC=example,DC=com", "cn=groups,cn=accounts,DC=example,DC=com", "ipaUniqueID", "(objectClass=posixaccount)", "cn",
			[]string{"uid", "mail"},
			true,
		},
	} {
		s, err := parse([]byte(tt.config))
		if err != nil {
			t.Errorf("%s: %v", tt.config, err)
			continue
		}
		u, g := s.UserSearch, s.GroupSearch
		if u.BaseDN != tt.users || g.BaseDN != tt.groups || u.IDAttr != tt.id || u.Filter != tt.filter || g.NameAttr != tt.name || !slices.Equal(u.Username, tt.usernames) || s.change != tt.change {
			t.Errorf("%s: got %+v, want %+v", tt.config, s.config, tt)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	got := Files([]byte(`{"rootCA": "ca", "clientCert": "cert", "clientKey": "key", "bindPWFile": "pw", "passwordChange": {"bindPWFile": "pw2"}, "kerberos": {"enabled": true, "keytabPath": "tab"}}`))
	if want := []string{"ca", "cert", "key", "pw", "pw2", "tab"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Files([]byte(`{"rootCA": "ca", "rootCAData": "AAAA", "kerberos": {"keytabPath": "tab"}}`)); len(got) > 0 {
		t.Errorf("got %q, want no file that is not read", got)
	}
}

func TestBindPWFile(t *testing.T) {
	t.Parallel()
	for content, ok := range map[string]bool{"secret\n": true, "secret": true, "secret\r\n": true, "": false, "\n": false, "a\nb": false} {
		path := filepath.Join(t.TempDir(), "pw")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := parse(fmt.Appendf(nil, `{%s, "bindDN": "cn=a,dc=b", "bindPWFile": %q}`, dex, path))
		if (err == nil) != ok || ok && s.transport().bindPW != "secret" {
			t.Errorf("%q: got %v, want accepted: %v", content, err, ok)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, raw := range dexConfigs() {
		f.Add(raw)
	}
	f.Add(`{"userSearch": {"username": [null, 1, {}]}, "groupSearch": {"userMatchers": [null]}}`)
	f.Fuzz(func(t *testing.T, raw string) {
		if len(Files([]byte(raw))) > 0 {
			return // they are the machine's
		}
		if s, err := parse([]byte(raw)); err == nil && (s.UserSearch.BaseDN == "" || len(s.UserSearch.Username) == 0) {
			t.Errorf("accepted %q without users", raw)
		}
	})
}

var docRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]+ \\|$")

// docs/ldap.md has every key, and no other.
func TestDocs(t *testing.T) {
	t.Parallel()
	text := readDocs(t)
	known := map[string]bool{}
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct {
			t, path = t.Elem(), path+"[]"
		}
		if t.Kind() != reflect.Struct {
			known[path] = true
			return
		}
		for key, i := range keys(t) {
			walk(t.Field(i).Type, join(path, key))
		}
	}
	walk(reflect.TypeFor[config](), "")
	seen := map[string]bool{}
	for _, row := range docRow.FindAllStringSubmatch(text, -1) {
		if seen[row[1]] {
			t.Errorf("%s: is documented twice", row[1])
		}
		seen[row[1]] = true
		if !known[row[1]] {
			t.Errorf("%s: is documented and does not exist", row[1])
		}
	}
	for key := range known {
		if !seen[key] {
			t.Errorf("%s: is not documented", key)
		}
	}
}

func readDocs(t testing.TB) string { return readFile(t, "../../docs/ldap.md") }

func readFile(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The examples of docs/ldap.md are whole, right and short.
func TestDocsExamples(t *testing.T) {
	t.Parallel()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, fakeldap.Start(t, fakeldap.Options{Mode: fakeldap.LDAPS}).CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	readme := readFile(t, "../../README.md")
	n := 0
	for part := range strings.SplitSeq(readDocs(t), "```yaml\n") {
		example, _, _ := strings.Cut(part, "```")
		if !strings.HasPrefix(example, "connectors:") {
			continue
		}
		n++
		if lines := strings.Count(example, "\n"); lines > 10 {
			t.Errorf("got %d lines, want at most 10:\n%s", lines, example)
		}
		if !strings.Contains(readme, "```yaml\n"+example+"```") {
			t.Errorf("the README does not have this example:\n%s", example)
		}
		var file struct {
			Connectors []struct{ Config map[string]any }
		}
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(example, "/etc/gatehouse/corp-ca.pem", ca)), &file); err != nil {
			t.Fatal(err)
		}
		for _, k := range file.Connectors {
			if err := Check(block(k.Config).json(t)); err != nil {
				t.Errorf("%v:\n%s", err, example)
			}
		}
	}
	if n != 2 {
		t.Errorf("got %d examples, want 2", n)
	}
}
