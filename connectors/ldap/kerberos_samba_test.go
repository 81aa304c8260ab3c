package ldap

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	krb5client "github.com/jcmturner/gokrb5/v8/client"
	krb5config "github.com/jcmturner/gokrb5/v8/config"
	krb5spnego "github.com/jcmturner/gokrb5/v8/spnego"

	"gatehouse/connectors"
	"gatehouse/connectors/spnego"
	"gatehouse/test/peers"
)

// A person is signed in to a domain, as at their own computer.
type person struct {
	t  *testing.T
	s  *peers.SambaServer
	cl *krb5client.Client
}

func signedIn(t *testing.T, s *peers.SambaServer, user string) *person {
	t.Helper()
	cfg, err := krb5config.Load(s.Krb5Config)
	if err != nil {
		t.Fatal(err)
	}
	cl := krb5client.NewWithPassword(user, s.Realm, s.Password, cfg, krb5client.DisablePAFXFAST(true))
	if err := cl.Login(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Destroy)
	return &person{t, s, cl}
}

// token is what the person's browser sends to the service.
func (p *person) token() []byte {
	p.t.Helper()
	sp := krb5spnego.SPNEGOClient(p.cl, p.s.Principal)
	tok, err := sp.InitSecContext()
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := tok.Marshal()
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// domainConfig is a configuration of a connector for a domain, with Kerberos.
func domainConfig(t *testing.T, s *peers.SambaServer, kerberos spnego.Config) []byte {
	t.Helper()
	kerberos.Enabled, kerberos.KeytabPath = true, s.Keytab(t)
	raw, err := json.Marshal(map[string]any{
		"preset": "activedirectory", "host": s.Host, "rootCA": s.CA, "bindDN": s.ServiceDN, "bindPW": s.ServicePassword,
		"userSearch": map[string]any{"baseDN": s.PeopleDN}, "groupSearch": map[string]any{"baseDN": s.GroupsDN}, "kerberos": kerberos, "timeouts": patient()["timeouts"],
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func openDomain(t *testing.T, raw []byte, now func() time.Time) *Connector {
	t.Helper()
	c, err := Open(raw, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// outcome is the reason of a refusal, with that of the ticket's.
func outcome(err error) string {
	var no *connectors.Refusal
	var ticket *spnego.Refusal
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &ticket):
		return string(ticket.Why)
	case errors.As(err, &no):
		return string(no.Reason)
	}
	return fmt.Sprintf("%T", err)
}

func TestTicketOfARealDomain(t *testing.T) {
	s := peers.Samba(t, peers.SambaOptions{})
	raw := domainConfig(t, s, spnego.Config{SPN: s.Principal, FallbackToPassword: true})
	c := openDomain(t, raw, nil)
	if !c.Negotiates() || c.NeedsTicket() {
		t.Errorf("negotiates %v, needs a ticket %v", c.Negotiates(), c.NeedsTicket())
	}
	alice := signedIn(t, s, "alice")
	token := alice.token()
	id, reply, err := c.Negotiate(t.Context(), token)
	if err != nil || id.Email != "alice@example.test" || id.UserID == "" || len(reply) == 0 {
		t.Fatalf("got %+v, %x, %v", id, reply, err)
	}
	for _, g := range []string{"g3-leaf", "g2-mid", "g1-top", "g0-cycle"} {
		if !slices.Contains(id.Groups, g) {
			t.Errorf("groups %v, want %s too", id.Groups, g)
		}
	}
	typed, err := c.Find(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	byPassword, err := c.Authenticate(t.Context(), typed, s.Password)
	if err != nil || byPassword.UserID != id.UserID {
		t.Errorf("by password %+v, %v: want the same user as by ticket, %q", byPassword, err, id.UserID)
	}
	if _, _, err := c.Negotiate(t.Context(), token); outcome(err) != "replayed" {
		t.Errorf("a second time: %v", err)
	}

	for name, tt := range map[string]struct {
		later time.Duration
		want  string
	}{
		"within the skew": {4 * time.Minute, "ok"},
		"beyond it":       {6 * time.Minute, "clock-skew"},
		"before it":       {-6 * time.Minute, "not-yet-valid"},
		"after the day":   {25 * time.Hour, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			other := openDomain(t, raw, func() time.Time { return time.Now().Add(tt.later) })
			if _, _, err := other.Negotiate(t.Context(), alice.token()); outcome(err) != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("elsewhere", func(t *testing.T) {
		other := openDomain(t, domainConfig(t, s, spnego.Config{ExpectedRealm: "OTHER.TEST"}), nil)
		if _, _, err := other.Negotiate(t.Context(), alice.token()); outcome(err) != "wrong-realm" {
			t.Errorf("got %v, want wrong-realm", err)
		}
	})
	t.Run("by another name", func(t *testing.T) { // case is the client's choice, and the directory does not mind
		if id2, _, err := c.Negotiate(t.Context(), signedIn(t, s, "ALICE").token()); err != nil || id2.UserID != id.UserID {
			t.Errorf("got %+v, %v", id2, err)
		}
	})
}

// The ticket is good for hours; the directory knows better.
func TestTicketOutlivesTheAccount(t *testing.T) {
	s := peers.Samba(t, peers.SambaOptions{})
	c := openDomain(t, domainConfig(t, s, spnego.Config{}), nil)
	users := map[string]*person{}
	for _, u := range []string{"u01", "u02", "u03", "u04", "u05", "u06"} {
		users[u] = signedIn(t, s, u)
		if _, _, err := c.Negotiate(t.Context(), users[u].token()); err != nil {
			t.Fatalf("%s: %v", u, err)
		}
	}
	s.SetDisabled(t, "u01", true)
	s.Replace(t, "u02", "accountExpires", "116445600000000000") // 2 January 1970
	s.Move(t, "u03", "Elsewhere")
	s.Delete(t, "u04")
	s.Replace(t, "u06", "userPrincipalName", "renamed@ad.example.test")
	s.Replace(t, "u06", "sAMAccountName", "renamed")
	s.Replace(t, "u07", "sAMAccountName", "u06") // somebody else
	for u, want := range map[string]string{"u01": "account-disabled", "u02": "account-expired", "u03": "not-allowed", "u04": "not-allowed", "u05": "ok", "u06": "not-allowed"} {
		if _, _, err := c.Negotiate(t.Context(), users[u].token()); outcome(err) != want {
			t.Errorf("%s: got %v, want %s", u, err, want)
		}
	}
	s.Stop(t)
	if _, _, err := c.Negotiate(t.Context(), users["u05"].token()); outcome(err) != "unavailable" {
		t.Errorf("without a directory: got %v, want unavailable", err)
	}
}
