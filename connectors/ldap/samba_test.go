package ldap

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gatehouse/connectors"
	"gatehouse/test/peers"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// activeDirectory is the configuration of docs/ldap.md for a domain of the tests.
func activeDirectory(s *peers.SambaServer) block {
	return block{"preset": "activedirectory", "hosts": []string{s.Host}, "rootCA": s.CA, "domain": "ad.example.test", "bindDN": s.ServiceDN, "bindPW": s.ServicePassword}
}

func TestSamba(t *testing.T) {
	t.Parallel()
	s := peers.Samba(t, peers.SambaOptions{})
	c := open(t, activeDirectory(s))
	for name, test := range map[string]func(*testing.T, *peers.SambaServer, *Connector){
		"sign-in": sambaSignIn, "states": sambaStates, "groups": sambaGroups, "password": sambaPassword, "lookup": sambaLookup, "limits": sambaLimits,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s, c)
		})
	}
}

func sambaSignIn(t *testing.T, s *peers.SambaServer, c *Connector) {
	alice := mustSignIn(t, c, "alice", s.Password)
	if _, ok := guidBytes(alice.UserID); !ok || alice.Email != "alice@example.test" || alice.PreferredUsername != "alice" || alice.Name == "" {
		t.Errorf("got %+v, want alice with the GUID of her entry", alice)
	}
	key := find(t, c, "alice").Key()
	for _, name := range []string{"ALICE", "alice@ad.example.test", "Alice@AD.EXAMPLE.TEST", s.Domain + `\alice`, strings.ToLower(s.Domain) + `\Alice`, `ad.example.test\alice`, "alice@example.test"} {
		if id := mustSignIn(t, c, name, s.Password); !reflect.DeepEqual(id, alice) {
			t.Errorf("%q: got %+v, want %+v", name, id, alice)
		}
		if got := find(t, c, name).Key(); got != key {
			t.Errorf("%q: got the key %q, want %q", name, got, key)
		}
	}
	for _, name := range []string{
		`OTHER\alice`, `\alice`, s.Domain + `\`, s.Domain + `\\alice`, s.Domain + `\alice@ad.example.test`, "alice@other.test", "a@b@ad.example.test",
		"DC1$", "*", "al*", "alice)(objectClass=*", "nobody", "zoë", "al(ice", "Domain Users",
	} {
		a := find(t, c, name)
		if _, err := c.Authenticate(waiting(t), a, s.Password); reason(t, err) != connectors.WrongCredentials || a.entry != nil {
			t.Errorf("%q: got %v, want nobody's account and %s", name, err, connectors.WrongCredentials)
		}
		if _, err := c.Identify(waiting(t), a); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("%q: got %v from Identify, want %s", name, err, connectors.WrongCredentials)
		}
	}
	if id, err := c.Identify(waiting(t), find(t, c, "alice")); err != nil || !reflect.DeepEqual(id, alice) {
		t.Errorf("Identify: got %+v and %v, want %+v", id, err, alice)
	}
	sid := mustSignIn(t, open(t, activeDirectory(s).with(block{"userSearch": block{"idAttr": "objectSid"}})), "alice", s.Password)
	if !strings.HasPrefix(sid.UserID, "S-1-5-21-") {
		t.Errorf("got the id %q, want a SID", sid.UserID)
	}
	// Without a mail address it is the name at the domain.
	if id := mustSignIn(t, open(t, activeDirectory(s).with(block{"userSearch": block{"emailAttr": "info"}})), "alice", s.Password); id.Email != "alice@ad.example.test" {
		t.Errorf("got the e-mail address %q, want that of the domain", id.Email)
	}
}

func sambaStates(t *testing.T, s *peers.SambaServer, c *Connector) {
	for range s.MaxFailures {
		_, _ = signIn(t, c, "locked", "wrong") // to lock it
	}
	for _, tt := range []struct {
		user                      string
		right, wrong, bySomething connectors.Reason
		lookup                    connectors.Reason
		changeable                bool
	}{
		{"disabled", connectors.AccountDisabled, connectors.WrongCredentials, connectors.AccountDisabled, connectors.AccountDisabled, false},
		{"expired", connectors.AccountExpired, connectors.WrongCredentials, connectors.AccountExpired, connectors.AccountExpired, false},
		{"locked", connectors.AccountLocked, connectors.AccountLocked, connectors.AccountLocked, connectors.AccountLocked, false},
		{"mustchange", connectors.PasswordMustChange, connectors.WrongCredentials, "", "", true},
		{"pwexpired", connectors.PasswordExpired, connectors.WrongCredentials, "", "", true},
		{"hours", connectors.OutsideHours, connectors.WrongCredentials, "", "", false},
		{"wks", connectors.OtherWorkstation, connectors.WrongCredentials, "", "", false},
	} {
		_, err := signIn(t, c, tt.user, s.Password)
		r, _ := errors.AsType[*connectors.Refusal](err)
		if r == nil || r.Reason != tt.right || r.Changeable != tt.changeable {
			t.Errorf("%s: got %+v, want %s, changeable: %v", tt.user, r, tt.right, tt.changeable)
		}
		if _, err := signIn(t, c, tt.user, "wrong"); reason(t, err) != tt.wrong {
			t.Errorf("%s with a wrong password: got %v, want %s", tt.user, err, tt.wrong)
		}
		a := find(t, c, tt.user)
		if _, err := c.Identify(waiting(t), a); reason(t, err) != tt.bySomething {
			t.Errorf("%s, proven otherwise: got %v, want %q", tt.user, err, tt.bySomething)
		}
		answers, err := c.Lookup(waiting(t), []string{strings.TrimPrefix(a.Key(), "user:")})
		if err != nil {
			t.Fatal(err)
		}
		var got connectors.Reason
		if answers[0].Err != nil {
			got = answers[0].Err.Reason
		}
		if got != tt.lookup {
			t.Errorf("%s: Lookup says %q, want %q", tt.user, got, tt.lookup)
		}
	}
	expired := find(t, c, "pwexpired")
	if err := c.ChangePassword(waiting(t), expired, s.Password, "An0ther-Passw0rd"); err != nil {
		t.Errorf("an expired password cannot be changed: %v", err)
	}
	mustSignIn(t, c, "pwexpired", "An0ther-Passw0rd")
	keep := open(t, activeDirectory(s).with(block{"lockedSessions": "keep"}))
	answers, err := keep.Lookup(waiting(t), []string{strings.TrimPrefix(find(t, c, "locked").Key(), "user:")})
	if err != nil || answers[0].Err != nil {
		t.Errorf("lockedSessions: keep: got %+v and %v, want a session that goes on", answers, err)
	}
}

// Every way to find nested groups, in sign-ins and in Lookup.
func sambaGroups(t *testing.T, s *peers.SambaServer, c *Connector) {
	nested := []string{"g0-cycle", "g1-top", "g2-mid", "g3-leaf"}
	primary := []string{"Domain Users", "Users"}
	for _, tt := range []struct {
		name   string
		groups block
		want   []string
	}{
		{"by default", block{}, slices.Concat(primary, nested)},
		{"by walk", block{"nested": "walk", "primaryGroup": false}, nested},
		{"by walk, below a base", block{"nested": "walk", "baseDN": s.GroupsDN}, nested},
		{"by walk, through groups that a filter leaves out", block{"nested": "walk", "filter": "(cn=g1*)"}, nested[1:2]},
		{"by the rule", block{"nested": "inChain"}, slices.Concat(primary, nested)},
		{"by the rule, no primary group", block{"nested": "inChain", "primaryGroup": false}, nested},
		{"by tokens", block{"nested": "tokenGroups"}, slices.Concat(primary, nested)},
		{"by tokens, below a base", block{"nested": "tokenGroups", "baseDN": s.GroupsDN}, nested},
		{"direct", block{"nested": "none"}, []string{"Domain Users", "g3-leaf"}},
		{"as names of entries", block{"nested": "none", "value": "dn", "primaryGroup": false}, []string{s.GroupDN("g3-leaf")}},
		{"by Dex's matcher", block{"userMatchers": []block{{"userAttr": "DN", "groupAttr": "member:1.2.840.113556.1.4.1941:"}}}, nested},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, activeDirectory(s).with(block{"groupSearch": tt.groups}))
			alice, bob, u00 := mustSignIn(t, c, "alice", s.Password), mustSignIn(t, c, "bob", s.Password), mustSignIn(t, c, "u00", s.Password)
			if !slices.Equal(alice.Groups, tt.want) {
				t.Errorf("got %q, want %q", alice.Groups, tt.want)
			}
			sameAsLookup(t, c, alice, bob, u00)
		})
	}
	sids := mustSignIn(t, open(t, activeDirectory(s).with(block{"groupSearch": block{"value": "sid"}})), "alice", s.Password)
	if len(sids.Groups) != 6 || !strings.HasPrefix(sids.Groups[1], "S-1-5-21-") {
		t.Errorf("got %q, want six SIDs", sids.Groups)
	}
}

func TestSambaManyGroups(t *testing.T) {
	t.Parallel()
	s := peers.Samba(t, peers.SambaOptions{Many: 2000})
	c := open(t, activeDirectory(s))
	many := mustSignIn(t, c, "many", s.Password)
	if len(many.Groups) != 2002 {
		t.Errorf("got %d groups, want 2000 and the primary one with that it is in", len(many.Groups))
	}
	before := c.client.counted().searches
	sameAsLookup(t, c, many)
	if n := c.client.counted().searches - before; n > 30 {
		t.Errorf("got %d searches for a user in %d groups, want at most 30", n, len(many.Groups))
	}
}

func sambaPassword(t *testing.T, s *peers.SambaServer, c *Connector) {
	const changed = "An0ther-Passw0rd"
	for _, user := range []string{"u10", "u11"} {
		if user == "u11" {
			s.Replace(t, user, "pwdLastSet", "0") // must change
			if _, err := signIn(t, c, user, s.Password); reason(t, err) != connectors.PasswordMustChange {
				t.Errorf("%s: got %v, want %s", user, err, connectors.PasswordMustChange)
			}
		}
		a := find(t, c, user)
		if err := c.ChangePassword(waiting(t), a, "wrong", changed); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("%s with a wrong old password: got %v, want %s", user, err, connectors.WrongCredentials)
		}
		err := c.ChangePassword(waiting(t), a, s.Password, "short")
		if r, ok := errors.AsType[*connectors.Refusal](err); !ok || r.Reason != connectors.PasswordRejected || !r.Changeable {
			t.Errorf("%s with a short password: got %v, want %s", user, err, connectors.PasswordRejected)
		} else {
			t.Logf("the rule: %q", r.Detail)
		}
		if err := c.ChangePassword(waiting(t), a, s.Password, changed); err != nil {
			t.Errorf("%s: %v", user, err)
			continue
		}
		mustSignIn(t, c, user, changed)
	}
	if err := c.ChangePassword(waiting(t), find(t, c, "disabled"), s.Password, changed); reason(t, err) != connectors.AccountDisabled {
		t.Errorf("got %v for a disabled account, want %s", err, connectors.AccountDisabled)
	}
}

func sambaLookup(t *testing.T, s *peers.SambaServer, c *Connector) {
	users := []string{"u20", "u21", "u22", "u23"}
	ids := make([]connectors.Identity, len(users))
	list := make([]string, len(users))
	for i, u := range users {
		ids[i] = mustSignIn(t, c, u, s.Password)
		list[i] = ids[i].UserID
	}
	sameAsLookup(t, c, ids...)
	s.Move(t, "u20", "Elsewhere")
	s.Delete(t, "u21")
	s.SetDisabled(t, "u22", true)
	s.SetMember(t, "g3-leaf", "u23", true)
	answers, err := c.Lookup(waiting(t), append(list, "garbage", strings.ToUpper(list[0])))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range answers {
		if a.Err != nil {
			got = append(got, string(a.Err.Reason))
		} else {
			got = append(got, fmt.Sprint(a.Identity.PreferredUsername, len(a.Identity.Groups)))
		}
	}
	if want := []string{"u202", "gone", "account-disabled", "u236", "gone", "gone"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func sambaLimits(t *testing.T, s *peers.SambaServer, c *Connector) {
	f, err := c.known(waiting(t))
	if err != nil || f.netbios != s.Domain || !f.activeDirectory {
		t.Fatalf("got %+v and %v, want the domain %s", f, err, s.Domain)
	}
	if got := c.MaxFailures(); got != s.MaxFailures-1 {
		t.Errorf("got %d, want one less than %d", got, s.MaxFailures)
	}
	// Dex's configuration says nothing of what the directory is; for the names of entries and for new passwords it is asked.
	old := open(t, block{
		"host": s.Host, "rootCA": s.CA, "bindDN": s.ServiceDN, "bindPW": s.ServicePassword,
		"userSearch": block{"baseDN": s.PeopleDN, "filter": "(objectClass=person)", "username": "sAMAccountName", "idAttr": "DN", "nameAttr": "cn"},
	})
	bob := mustSignIn(t, old, "bob", s.Password)
	if bob.UserID != s.UserDN("bob") {
		t.Errorf("got the id %q, want %q", bob.UserID, s.UserDN("bob"))
	}
	sameAsLookup(t, old, bob)
	// A fine-grained policy that is stricter than the domain's.
	admin := s.Admin(t)
	add := ldapv3.NewAddRequest("CN=strict,CN=Password Settings Container,CN=System,"+s.BaseDN, nil)
	for name, value := range map[string]string{
		"objectClass": "msDS-PasswordSettings", "msDS-PasswordSettingsPrecedence": "1", "msDS-PasswordReversibleEncryptionEnabled": "FALSE",
		"msDS-PasswordHistoryLength": "0", "msDS-PasswordComplexityEnabled": "FALSE", "msDS-MinimumPasswordLength": "4", "msDS-MinimumPasswordAge": "0",
		"msDS-MaximumPasswordAge": "-9223372036854775808", "msDS-LockoutThreshold": "2", "msDS-LockoutObservationWindow": "-600000000", "msDS-LockoutDuration": "-600000000",
	} {
		add.Attribute(name, []string{value})
	}
	if err := admin.Add(add); err != nil {
		t.Fatal(err)
	}
	strict := open(t, activeDirectory(s).with(block{"bindDN": s.AdminName, "bindPW": s.AdminPassword}))
	if _, err := strict.known(waiting(t)); err != nil {
		t.Fatal(err)
	}
	if got := strict.MaxFailures(); got != 1 {
		t.Errorf("got %d with a policy of two failures, want 1", got)
	}
}
