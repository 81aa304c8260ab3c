package fakeldap_test

import (
	"crypto/tls"
	"testing"

	ldap "github.com/go-ldap/ldap/v3"

	"gatehouse/test/fakeldap"
)

// TestAnswers: a client that is not ours reads what the handlers say.
func TestAnswers(t *testing.T) {
	s := fakeldap.Start(t, fakeldap.Options{
		Mode: fakeldap.StartTLS,
		Bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
			if !b.Is("right") {
				return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49, Diagnostic: "data 52e"}}
			}
			return fakeldap.BindAnswer{Policy: &fakeldap.Policy{Expire: -1, Grace: 3, Error: 2}}
		},
		Search: func(q fakeldap.Search) fakeldap.SearchAnswer {
			return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{{DN: "cn=a", Attributes: []fakeldap.Attribute{{Name: "member;range=0-1", Values: []string{"x", "y"}}}}}, References: [][]string{{"ldap://other/"}}}
		},
	})
	c, err := ldap.DialURL("ldap://" + s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.StartTLS(&tls.Config{RootCAs: s.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}); err != nil {
		t.Fatal(err)
	}
	if err := c.Bind("cn=a", "wrong"); !ldap.IsErrorWithCode(err, 49) {
		t.Errorf("bind: %v, wanted 49", err)
	}
	r, err := c.SimpleBind(ldap.NewSimpleBindRequest("cn=a", "right", []ldap.Control{ldap.NewControlBeheraPasswordPolicy()}))
	if err != nil || len(r.Controls) != 1 {
		t.Fatalf("bind: %v %v", r, err)
	}
	if p, ok := r.Controls[0].(*ldap.ControlBeheraPasswordPolicy); !ok || p.Grace != 3 || p.Error != 2 {
		t.Errorf("policy: %v", r.Controls[0])
	}
	found, err := c.SearchWithPaging(&ldap.SearchRequest{BaseDN: "dc=x", Filter: "(&(uid=a)(cn=b*))", Attributes: []string{"member"}}, 10)
	if err != nil || len(found.Entries) != 1 || len(found.Referrals) != 1 {
		t.Fatalf("search: %v %v", found, err)
	}
	q := s.Searches()[0]
	if q.Filter != "(&(uid=a)(cn=b*))" || q.BoundAs != "cn=a" || q.PageSize != 10 || q.Base != "dc=x" {
		t.Errorf("the server read %+v", q)
	}
	if b := s.Binds(); len(b) != 2 || !b[1].Policy || !b[1].Secure || b[1].Is("right") {
		t.Errorf("binds: %+v", b)
	}
	if s.Dials() != 1 || s.Handshakes() != 1 || s.BindsOf("CN=A") != 2 {
		t.Errorf("%d dials, %d handshakes", s.Dials(), s.Handshakes())
	}
}
