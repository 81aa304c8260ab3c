package peers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"
)

// subCode is what Active Directory adds to a refused bind.
var subCode = regexp.MustCompile(`data ([0-9a-f]+),`)

// adBind returns what a bind was answered: the result code and, after a slash, the sub-code.
func adBind(t *testing.T, s *SambaServer, url, name, password string) string {
	t.Helper()
	c, err := ldap.DialURL(url, ldap.DialWithTLSConfig(s.TLS()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.SimpleBind(&ldap.SimpleBindRequest{Username: name, Password: password, AllowEmptyPassword: true})
	if err == nil {
		return "0"
	}
	e := (*ldap.Error)(nil)
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	code := fmt.Sprint(e.ResultCode)
	if m := subCode.FindStringSubmatch(err.Error()); m != nil {
		code += "/" + m[1]
	}
	return code
}

func TestSamba(t *testing.T) {
	s := Samba(t, SambaOptions{Many: 20})
	t.Run("sub-codes", func(t *testing.T) { sambaSubCodes(t, s) })
	t.Run("groups", func(t *testing.T) { sambaGroups(t, s) })
	t.Run("changes", func(t *testing.T) { sambaChanges(t, s) })
	t.Run("Kerberos", func(t *testing.T) { sambaKerberos(t, s) })
	t.Run("again", func(t *testing.T) {
		s.Stop(t)
		s.Start(t)
		if got := adBind(t, s, s.URL, "bob@ad.example.test", s.Password); got != "0" {
			t.Errorf("after a restart: got %s, want 0", got)
		}
	})
}

func sambaSubCodes(t *testing.T, s *SambaServer) {
	good, realm := s.Password, "@ad.example.test"
	for _, tt := range []struct {
		name, url, user, password, want string
	}{
		{name: "UPN", user: "alice" + realm, password: good, want: "0"},
		{name: "domain and name", user: `ADTEST\alice`, password: good, want: "0"},
		{name: "DN", user: s.UserDN("alice"), password: good, want: "0"},
		{name: "service account", user: s.ServiceDN, password: s.ServicePassword, want: "0"},
		{name: "in the clear", url: "ldap://" + s.Plain, user: "alice" + realm, password: good, want: "8"},
		{name: "bare name", user: "alice", password: good, want: "49/52e"},
		{name: "empty password", user: "alice" + realm, want: "49/52e"},
		{name: "wrong password", user: "bob" + realm, password: "wrong", want: "49/52e"},
		{name: "nobody", user: "nobody" + realm, password: "wrong", want: "49/52e"}, // 525 at Microsoft's
		{name: "disabled", user: "disabled" + realm, password: good, want: "49/533"},
		{name: "disabled and wrong", user: "disabled" + realm, password: "wrong", want: "49/52e"},
		{name: "must change", user: "mustchange" + realm, password: good, want: "49/773"},
		{name: "account expired", user: "expired" + realm, password: good, want: "49/701"},
		{name: "hours", user: "hours" + realm, password: good, want: "49/530"},
		{name: "workstation", user: "wks" + realm, password: good, want: "49/531"},
		{name: "password expired", user: "pwexpired" + realm, password: good, want: "49/532"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := s.URL
			if tt.url != "" {
				url = tt.url
			}
			if got := adBind(t, s, url, tt.user, tt.password); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	for range s.MaxFailures {
		_ = adBind(t, s, s.URL, "locked"+realm, "wrong")
	}
	if got, want := adBind(t, s, s.URL, "locked"+realm, good), "49/775"; got != want {
		t.Errorf("after %d failures: got %s, want %s", s.MaxFailures, got, want)
	}
	s.Unlock(t, "locked")
	if got, want := adBind(t, s, s.URL, "locked"+realm, good), "0"; got != want {
		t.Errorf("after Unlock: got %s, want %s", got, want)
	}
}

func sambaGroups(t *testing.T, s *SambaServer) {
	c := s.Admin(t)
	if err := c.Bind(s.ServiceDN, s.ServicePassword); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]int{"alice": 4, "bob": 1, "many": 20, "u00": 0} {
		res, err := c.SearchWithPaging(ldap.NewSearchRequest(s.BaseDN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
			"(member:1.2.840.113556.1.4.1941:="+s.UserDN(user)+")", []string{"1.1"}, nil), 500)
		if err != nil || len(res.Entries) != want {
			t.Errorf("%s: %v entries (%v), want %d", user, res, err, want)
		}
	}
}

func sambaChanges(t *testing.T, s *SambaServer) {
	count := func(filter string) int {
		t.Helper()
		res, err := s.Admin(t).Search(ldap.NewSearchRequest(s.BaseDN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, []string{"1.1"}, nil))
		if err != nil {
			t.Fatal(err)
		}
		return len(res.Entries)
	}
	s.SetMember(t, "g1-top", "u01", true)
	if got := count("(&(sAMAccountName=u01)(memberOf=" + s.GroupDN("g1-top") + "))"); got != 1 {
		t.Errorf("u01 is in g1-top %d times, want once", got)
	}
	s.SetDisabled(t, "u01", true)
	if got := adBind(t, s, s.URL, "u01@ad.example.test", s.Password); got != "49/533" {
		t.Errorf("disabled: got %s, want 49/533", got)
	}
	s.SetDisabled(t, "u01", false)
	s.Move(t, "u01", "Elsewhere")
	if got := adBind(t, s, s.URL, "CN=u01,OU=Elsewhere,"+s.BaseDN, s.Password); got != "0" {
		t.Errorf("moved and enabled: got %s, want 0", got)
	}
	s.Delete(t, "u02")
	if got := count("(sAMAccountName=u02)"); got != 0 {
		t.Errorf("the deleted user is there %d times", got)
	}
}

func sambaKerberos(t *testing.T, s *SambaServer) {
	env, err := s.Kinit(t, "alice", s.Password)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "kvno", s.Principal)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a ticket for %s: %v: %s", s.Principal, err, out)
	}
	out, err := exec.CommandContext(t.Context(), "klist", "-ekt", s.Keytab(t)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "HTTP/auth.example.test@AD.EXAMPLE.TEST (aes256-cts-hmac-sha1-96)") {
		t.Errorf("the keytab: %v: %s", err, out)
	}
	if _, err := s.Kinit(t, "disabled", s.Password); err == nil {
		t.Error("a disabled user got a ticket")
	}
	if _, err := s.Kinit(t, "alice", "wrong"); err == nil {
		t.Error("a wrong password got a ticket")
	}
}
