package ldap

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/test/fakeldap"
	"gatehouse/test/peers"
)

// diagnosed runs Diagnose and returns what it reported, and whether all went well.
func diagnosed(t *testing.T, cfg map[string]any, user, password string) (map[string]Step, bool) {
	t.Helper()
	raw, err := json.Marshal(with(patient(), cfg))
	if err != nil {
		t.Fatal(err)
	}
	steps, good := map[string]Step{}, true
	Diagnose(within(t), raw, Options{}, user, password, func(s Step) {
		t.Logf("%s: %s: %v -> %s", s.Name, s.Detail, s.Err, s.Fix)
		steps[s.Name] = s
		good = good && s.Err == nil
		for _, secret := range []string{"service-password", svcPW, password} {
			if secret != "" && secret != "password" && strings.Contains(s.Detail+s.Fix+errText(s.Err), secret) {
				t.Errorf("step %q tells a password", s.Name)
			}
		}
	})
	return steps, good
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func with(cfg map[string]any, more map[string]any) map[string]any {
	out := maps.Clone(cfg)
	for k, v := range more {
		if out[k] = v; v == nil {
			delete(out, k)
		}
	}
	return out
}

// TestDiagnose: each step is told with what was found, and what fails with its fix.
func TestDiagnose(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{Users: 10, Groups: 5, Many: 30})
	users := map[string]any{"baseDN": s.PeopleDN, "username": "uid", "idAttr": "uid", "emailAttr": "mail", "nameAttr": "cn"}
	groups := map[string]any{"baseDN": s.GroupsDN, "filter": "(objectClass=groupOfNames)", "nameAttr": "cn", "userMatchers": []map[string]any{{"userAttr": "DN", "groupAttr": "member"}}}
	cfg := map[string]any{"host": s.Host, "rootCA": s.CA, "bindDN": s.ServiceDN, "bindPW": s.ServicePassword, "userSearch": users, "groupSearch": groups}
	otherCA := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(otherCA, peers.NewCA(t, "Another CA").PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(s.Host, ":")
	for _, c := range []struct {
		name           string
		more           map[string]any
		user, password string
		step           string   // that is looked at
		want           []string // in its detail, error or fix
		good           bool     // every step goes well
	}{
		{"good", nil, "alice", s.Password, "user alice", []string{"uid=alice", "by uid", "id alice", "e-mail alice@"}, true},
		{"certificate", nil, "", "", s.Host + ": TLS", []string{"TLS 1.3", "localhost, 127.0.0.1", "Directory CA", "days"}, true},
		{"groups", nil, "many", "", "groups", []string{"30: m0000, m0001", "…", "member of groups = DN of the user"}, true},
		{"lock-out", nil, "", "", "lock-out", []string{"locks an account after 5 failures; at most 4"}, true},
		{"changes", nil, "", "", "changes", []string{"tells of them (RFC 4533)"}, true},
		{"a password that was never changed", nil, "alice", "", "account", []string{"no time at which the password was changed"}, true},
		{"a password that was changed", nil, "expired", "", "account", []string{"tells when the password was set"}, true},
		{"directory", nil, "", "", "directory", []string{"OpenLDAP", s.BaseDN}, true},
		{"another directory's preset", map[string]any{"preset": "activedirectory", "groupSearch": with(groups, map[string]any{"userMatchers": nil})}, "", "", "directory", []string{"OpenLDAP, no Active Directory", "set preset: openldap"}, true},
		{"the user's bind", nil, "alice", s.Password, "the user's bind", []string{"right"}, true},
		{"a wrong password", nil, "alice", "wrong-secret", "the user's bind", []string{"wrong-credentials", "result 49", "counts towards"}, false},
		{"a locked account", nil, "locked", "", "account", []string{"account-disabled", "enable the account"}, false},
		{"an expired password", nil, "expired", s.Password, "the user's bind", []string{"password-expired", "chooses a new password"}, false},
		{"nobody", nil, "nobody", "", "user nobody", []string{"belongs to nobody", "(uid=nobody)", s.PeopleDN}, false},
		{
			"left out by the filter",
			map[string]any{"userSearch": with(users, map[string]any{"filter": "(cn=none)"})},
			"alice", "", "user alice",
			[]string{"belongs to nobody", "uid=alice", "leaves it out: (cn=none)"},
			false,
		},
		{
			"several",
			map[string]any{"userSearch": with(users, map[string]any{"username": "objectClass"})},
			"inetOrgPerson", "", "user inetOrgPerson",
			[]string{"several entries", "narrow userSearch.filter"},
			false,
		},
		{"no groups", map[string]any{"groupSearch": with(groups, map[string]any{"filter": "(cn=none)"})}, "alice", "", "groups", []string{"0, by member", "if there should be some"}, true},
		{
			"required groups",
			map[string]any{"requiredGroups": []string{"admins"}},
			"alice", "", "groups",
			[]string{"none of requiredGroups", "admins"},
			false,
		},
		{
			"no such base",
			map[string]any{"userSearch": with(users, map[string]any{"baseDN": "ou=x,ou=y," + s.BaseDN})},
			"alice", "", "userSearch.baseDN",
			[]string{`there is no entry "ou=x,ou=y`, "nearest entry above that is there: " + s.BaseDN},
			false,
		},
		{
			"another directory's base",
			map[string]any{"userSearch": with(users, map[string]any{"baseDN": "dc=other"})},
			"alice", "", "userSearch.baseDN",
			[]string{"there is no entry", "the server holds " + s.BaseDN},
			false,
		},
		{"unknown CA", map[string]any{"rootCA": otherCA}, "", "", s.Host + ": TLS", []string{"unknown authority", "set rootCA to the file of your CA", "Directory CA"}, false},
		{"another name", map[string]any{"host": "127.0.0.2:" + port}, "", "", "127.0.0.2:" + port + ": connect", []string{"refused", "nothing listens there"}, false},
		{"service password", map[string]any{"bindPW": "old-secret"}, "", "", s.Host + ": service bind", []string{"Invalid Credentials", "check bindDN and bindPW"}, false},
		{
			"no TLS",
			map[string]any{"host": s.Plain, "insecureNoSSL": true},
			"", "", s.Plain + ": service bind",
			[]string{"Confidentiality Required", "remove insecureNoSSL"},
			false,
		},
		{"ldaps at the port of ldap", map[string]any{"host": s.Plain}, "", "", s.Plain + ": TLS", []string{"636"}, false},
		{"ldap at the port of ldaps", map[string]any{"host": s.Host, "startTLS": true}, "", "", s.Host + ": TLS", []string{"636"}, false},
		{"no such name", map[string]any{"host": "ldap.invalid"}, "", "", "ldap.invalid:636: connect", []string{"does not resolve: check host"}, false},
		{"a mistake", map[string]any{"userSearch": with(users, map[string]any{"scope": "all"})}, "", "", "configuration", []string{"scope", "mend these keys"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps, good := diagnosed(t, with(cfg, c.more), c.user, c.password)
			got, ok := steps[c.step]
			if !ok {
				t.Fatalf("there is no step %q", c.step)
			}
			text := got.Detail + " | " + errText(got.Err) + " | " + got.Fix
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("%s: %s; wanted %q in it", c.step, text, w)
				}
			}
			if good != c.good {
				t.Errorf("all went well: %v, wanted %v", good, c.good)
			}
		})
	}
}

// TestDiagnoseTLS: names that the certificate has are told, and a server without StartTLS.
func TestDiagnoseTLS(t *testing.T) {
	wrong := fakeldap.Start(t, fakeldap.Options{Mode: fakeldap.LDAPS, Names: []string{"dc7.example"}})
	none := fakeldap.Start(t, fakeldap.Options{})
	cfg := map[string]any{"bindDN": svc, "bindPW": svcPW, "userSearch": map[string]any{"baseDN": "dc=example", "username": "uid", "idAttr": "uid", "emailAttr": "mail"}}
	steps, _ := diagnosed(t, with(cfg, map[string]any{"host": wrong.Address(), "rootCAData": wrong.CA()}), "", "")
	if got := steps[wrong.Address()+": TLS"]; got.Err == nil || !strings.Contains(got.Fix, "dc7.example") {
		t.Errorf("%+v", got)
	}
	steps, _ = diagnosed(t, with(cfg, map[string]any{"host": none.Address(), "startTLS": true}), "", "")
	if got := steps[none.Address()+": TLS"]; !errors.Is(got.Err, errStartTLS) || !strings.Contains(got.Fix, "no StartTLS") {
		t.Errorf("%+v", got)
	}
	if len(none.Binds())+len(wrong.Binds()) > 0 {
		t.Error("a password was sent to a server that is not trusted")
	}
}

// TestDiagnoseAD: what Active Directory's code means, told once, though there are two servers.
func TestDiagnoseAD(t *testing.T) {
	a, b := serve(t, nil), serve(t, nil)
	steps, _ := diagnosed(t, map[string]any{
		"preset": "activedirectory", "hosts": []string{a.Address(), b.Address()}, "insecureNoSSL": true, "bindDN": "svc@corp.example", "bindPW": "old-secret",
		"userSearch": map[string]any{"baseDN": "dc=corp,dc=example"},
	}, "", "")
	if got := steps[a.Address()+": service bind"]; !strings.Contains(got.Fix, "Active Directory says: the name or the password is wrong") {
		t.Errorf("%+v", got)
	}
	if got := steps[b.Address()+": service bind"]; got.Err == nil || len(b.Binds()) > 0 {
		t.Errorf("%+v", got)
	}
}

// TestDiagnoseSamba: an Active Directory domain by its preset, and what its codes mean to an operator.
func TestDiagnoseSamba(t *testing.T) {
	s := peers.Samba(t, peers.SambaOptions{})
	cfg := map[string]any{
		"preset": "activedirectory", "host": s.Host, "rootCA": s.CA, "bindDN": s.ServiceDN, "bindPW": s.ServicePassword,
		"userSearch": map[string]any{"baseDN": s.BaseDN}, "groupSearch": map[string]any{"baseDN": s.BaseDN},
	}
	for _, c := range []struct {
		user, password, step string
		want                 []string
		good                 bool
	}{
		{"alice", s.Password, "groups", []string{"g0-cycle", "g1-top", "g2-mid", "g3-leaf"}, true},
		{`ADTEST\alice`, s.Password, `user ADTEST\alice`, []string{"CN=alice,", "by sAMAccountName"}, true},
		{"alice", "", "directory", []string{"Active Directory"}, true},
		{"alice", "", "account", []string{"keeps the user out; it tells when the password was set"}, true},
		{"alice", "", "changes", []string{"tells of them (change notification)"}, true},
		{"disabled", "", "account", []string{"account-disabled", "enable the account"}, false},
		{"hours", s.Password, "the user's bind", []string{"outside-hours", "data 530", "logon hours"}, false},
		{"pwexpired", s.Password, "the user's bind", []string{"password-expired", "data 532"}, false},
		{"bob", "a-wrong-one", "the user's bind", []string{"wrong-credentials", "data 52e", "counts towards"}, false},
	} {
		t.Run(c.user+" "+c.step, func(t *testing.T) {
			steps, good := diagnosed(t, cfg, c.user, c.password)
			got := steps[c.step]
			text := got.Detail + " | " + errText(got.Err) + " | " + got.Fix
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("%s: %s; wanted %q in it", c.step, text, w)
				}
			}
			if good != c.good {
				t.Errorf("all went well: %v, wanted %v", good, c.good)
			}
		})
	}
	steps, _ := diagnosed(t, with(cfg, map[string]any{"bindPW": "old-secret"}), "", "")
	if got := steps[s.Host+": service bind"]; got.Err == nil || !strings.Contains(got.Fix, "Active Directory says: the name or the password is wrong") {
		t.Errorf("%+v", got)
	}
}
