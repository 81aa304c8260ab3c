package peers

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"
)

// told is what a bind was answered: the result code and, after a dash, the error of the password policy.
func told(t *testing.T, s *SlapdServer, url, dn, password string, startTLS bool) string {
	t.Helper()
	c, err := ldap.DialURL(url, ldap.DialWithTLSConfig(s.TLS()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if startTLS {
		config := s.TLS()
		config.ServerName = "127.0.0.1"
		if err := c.StartTLS(config); err != nil {
			t.Fatal(err)
		}
	}
	res, err := c.SimpleBind(&ldap.SimpleBindRequest{Username: dn, Password: password, AllowEmptyPassword: true, Controls: []ldap.Control{ldap.NewControlBeheraPasswordPolicy()}})
	code := fmt.Sprint(ldap.LDAPResultSuccess)
	if e := (*ldap.Error)(nil); errors.As(err, &e) {
		code = fmt.Sprint(e.ResultCode)
	}
	if res != nil {
		if p, ok := ldap.FindControl(res.Controls, ldap.ControlTypeBeheraPasswordPolicy).(*ldap.ControlBeheraPasswordPolicy); ok && p.Error >= 0 {
			code += " - " + p.ErrorString
		}
	}
	return code
}

func TestSlapdBindsAndPolicies(t *testing.T) {
	s := Slapd(t, SlapdOptions{})
	plain := "ldap://" + s.Plain
	tests := []struct {
		name     string
		url      string
		startTLS bool
		dn       string
		password string
		want     string
	}{
		{name: "over TLS", url: s.URL, dn: s.UserDN("alice"), password: s.Password, want: "0"},
		{name: "with StartTLS", url: plain, startTLS: true, dn: s.UserDN("alice"), password: s.Password, want: "0"},
		{name: "in the clear", url: plain, dn: s.UserDN("alice"), password: s.Password, want: "13"},
		{name: "the service account", url: s.URL, dn: s.ServiceDN, password: s.ServicePassword, want: "0"},
		{name: "wrong password", url: s.URL, dn: s.UserDN("alice"), password: "wrong", want: "49"},
		{name: "nobody", url: s.URL, dn: s.UserDN("nobody"), password: "wrong", want: "49"},
		{name: "empty password", url: s.URL, dn: s.UserDN("alice"), want: "53"},
		{name: "anonymous", url: s.URL, want: "48"},
		{name: "expired", url: s.URL, dn: s.UserDN("expired"), password: s.Password, want: "49 - Password expired"},
		{name: "expired with grace", url: s.URL, dn: s.UserDN("grace"), password: s.Password, want: "0"},
		{name: "reset", url: s.URL, dn: s.UserDN("reset"), password: s.Password, want: "0 - Password must be changed"},
		{name: "locked", url: s.URL, dn: s.UserDN("locked"), password: s.Password, want: "49 - Account locked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := told(t, s, tt.url, tt.dn, tt.password, tt.startTLS); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	for range s.MaxFailures {
		_ = told(t, s, s.URL, s.UserDN("bob"), "wrong", false)
	}
	if got, want := told(t, s, s.URL, s.UserDN("bob"), s.Password, false), "49 - Account locked"; got != want {
		t.Errorf("after %d failures: got %q, want %q", s.MaxFailures, got, want)
	}
	s.Unlock(t, "bob")
	if got, want := told(t, s, s.URL, s.UserDN("bob"), s.Password, false), "0"; got != want {
		t.Errorf("after Unlock: got %q, want %q", got, want)
	}
}

func TestSlapdHoldsManyAndStartsAgain(t *testing.T) {
	s := Slapd(t, SlapdOptions{Users: 10_000, Groups: 1_000, Many: 2_000})
	s.SetMember(t, "g0001", "alice", true)
	s.Kill(t)
	s.Start(t)
	c := s.Admin(t)
	if err := c.Bind(s.ServiceDN, s.ServicePassword); err != nil {
		t.Fatal(err)
	}
	request := func(base, filter string, attributes ...string) *ldap.SearchRequest {
		return ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, attributes, nil)
	}
	all := request(s.PeopleDN, "(uid=u*)", "1.1")
	if res, err := c.Search(all); !ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) {
		t.Errorf("a search of everything: got %v (%v), want result 4", err, res)
	}
	res, err := c.SearchWithPaging(all, 500)
	if err != nil || len(res.Entries) != 10_000 {
		t.Errorf("a paged search: got %v (%v), want 10,000 entries", res, err)
	}
	for user, want := range map[string]int{"many": 2_000, "alice": 2} {
		res, err := c.Search(request(s.UserDN(user), "(objectClass=*)", "memberOf"))
		if err != nil || len(res.Entries) != 1 {
			t.Fatalf("%s: %v (%v)", user, res, err)
		}
		if got := res.Entries[0].GetAttributeValues("memberOf"); len(got) != want {
			t.Errorf("%s: memberOf has %d values, want %d", user, len(got), want)
		}
	}
	if res, err := c.Search(request(s.GroupsDN, "(member="+s.GroupDN("g0-cycle")+")", "cn")); err != nil || len(res.Entries) != 1 || !strings.HasPrefix(res.Entries[0].DN, "cn=g3-leaf,") {
		t.Errorf("got %v (%v), want the group that closes the cycle", res, err)
	}
}

func TestASecondSlapdSharesTheCA(t *testing.T) {
	first := Slapd(t, SlapdOptions{})
	second := Slapd(t, SlapdOptions{Peer: first})
	if got, want := told(t, first, second.URL, second.UserDN("alice"), second.Password, false), "0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
