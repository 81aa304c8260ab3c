package ldap

import (
	"errors"
	"testing"
	"time"

	"gatehouse/connectors"
	"gatehouse/connectors/spnego"
	"gatehouse/test/spnegotest"
)

func TestTicketLeadsToAnAccount(t *testing.T) {
	for name, tt := range map[string]struct {
		mapping string
		user    string
		realm   string
		found   error
		asked   string // for this name in the directory
		want    connectors.Reason
	}{
		"by its name":                  {user: "alice", asked: "alice"},
		"by its name and realm":        {mapping: "userPrincipalName", user: "alice", asked: "alice@" + spnegotest.Realm},
		"of a disabled account":        {user: "bob", found: &connectors.Refusal{Reason: connectors.AccountDisabled}, asked: "bob", want: connectors.AccountDisabled},
		"of an expired account":        {user: "bob", found: &connectors.Refusal{Reason: connectors.AccountExpired}, asked: "bob", want: connectors.AccountExpired},
		"of a locked account":          {user: "bob", found: &connectors.Refusal{Reason: connectors.AccountLocked}, asked: "bob", want: connectors.AccountLocked},
		"whom the filter leaves out":   {user: "bob", found: &connectors.Refusal{Reason: connectors.WrongCredentials}, asked: "bob", want: connectors.NotAllowed},
		"who is gone":                  {user: "bob", found: &connectors.Refusal{Reason: connectors.Gone}, asked: "bob", want: connectors.NotAllowed},
		"in no required group":         {user: "bob", found: &connectors.Refusal{Reason: connectors.NotAllowed}, asked: "bob", want: connectors.NotAllowed},
		"that cannot be asked for":     {user: "bob", found: &connectors.Refusal{Reason: connectors.Unavailable}, asked: "bob", want: connectors.Unavailable},
		"with an error of no kind":     {user: "bob", found: errors.New("oops"), asked: "bob", want: connectors.Unavailable},
		"of another realm, to nowhere": {user: "alice", realm: "EVIL.TEST", want: connectors.NegotiateRefused},
	} {
		t.Run(name, func(t *testing.T) {
			kdc, now := spnegotest.New(t), time.Now()
			a, err := spnego.New(spnego.Config{KeytabPath: kdc.Keytab(), UsernameFromPrincipal: tt.mapping}, func() time.Time { return now }, nil)
			if err != nil {
				t.Fatal(err)
			}
			r := spnegotest.Good(now)
			r.User = tt.user
			if tt.realm != "" {
				r.Realm = tt.realm
			}
			asked := ""
			id, reply, err := (&kerberos{a}).negotiate(kdc.Token(r).Bytes, func(p spnego.Principal) (connectors.Identity, error) {
				asked = a.Username(p)
				return connectors.Identity{UserID: "1"}, tt.found
			})
			var no *connectors.Refusal
			if errors.As(err, &no); (err == nil) != (tt.want == "") || no != nil && no.Reason != tt.want {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if asked != tt.asked {
				t.Errorf("asked for %q, want %q", asked, tt.asked)
			}
			if got := id.UserID == "1" && len(reply) > 0; got != (err == nil) || err != nil && (id.UserID != "" || reply != nil) {
				t.Errorf("identity %v and reply %x with %v", id, reply, err)
			}
		})
	}
}

func TestWithoutKerberosNoTicketIsTaken(t *testing.T) {
	c := &Connector{}
	if c.Negotiates() || c.NeedsTicket() {
		t.Error("it says it does")
	}
	kdc := spnegotest.New(t)
	_, _, err := c.Negotiate(t.Context(), kdc.Token(spnegotest.Good(time.Now())).Bytes)
	var no *connectors.Refusal
	if !errors.As(err, &no) || no.Reason != connectors.NegotiateRefused {
		t.Errorf("got %v", err)
	}
}

func TestTicketOfAnotherAccount(t *testing.T) {
	t.Parallel()
	const sid = "S-1-5-21-1-2-3-1104"
	raw, ok := sidBytes(sid)
	if !ok {
		t.Fatal("no SID")
	}
	with := &Account{entry: &entry{attributes: map[string][][]byte{"objectsid": {raw}}}}
	without := &Account{entry: &entry{}}
	for _, tt := range []struct {
		preset, sid string
		a           *Account
		want        bool
	}{
		{presetAD, sid, with, true},
		{presetAD, sid + "5", with, false},
		{presetAD, "", with, false},
		{presetAD, sid, without, false},
		{presetAD, "", without, false},
		{presetOpenLDAP, "", without, true},
		{"", "", without, true},
	} {
		c := &Connector{settings: &settings{config: config{Preset: tt.preset}}}
		if got := c.issuedTo(tt.a, spnego.Principal{Name: "alice", SID: tt.sid}); got != tt.want {
			t.Errorf("preset %q, ticket of %q: got %v, want %v", tt.preset, tt.sid, got, tt.want)
		}
	}
}
