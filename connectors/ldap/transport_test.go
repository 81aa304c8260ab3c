package ldap

import (
	"crypto/tls"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/test/peers"
)

func toSlapd(sec security, servers ...*peers.SlapdServer) transport {
	t := transport{security: sec, bindDN: servers[0].ServiceDN, bindPW: servers[0].ServicePassword, connections: 4, pageSize: 500, headStart: time.Hour, requestTimeout: time.Minute, dialTimeout: time.Minute}
	t.tls = func() (*tls.Config, error) { return servers[0].TLS(), nil }
	for _, s := range servers {
		if sec == ldaps {
			t.hosts = append(t.hosts, s.Host)
		} else {
			t.hosts = append(t.hosts, s.Plain)
		}
	}
	return t
}

func theUser(s *peers.SlapdServer) query {
	return query{base: s.PeopleDN, scope: ldapv3.ScopeWholeSubtree, filter: "(uid=alice)", attributes: []string{"uid", "mail", "memberOf"}, limit: 1}
}

// TestSlapd: a real server, which pages, limits, wants TLS, and has a password policy.
func TestSlapd(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{Users: 10_000})
	for name, sec := range map[string]security{"ldaps": ldaps, "StartTLS": startTLS} {
		t.Run(name, func(t *testing.T) {
			c := start(t, toSlapd(sec, s))
			es, err := c.search(within(t), theUser(s))
			if err != nil || len(es) != 1 || es[0].dn != s.UserDN("alice") || len(es[0].texts("MEMBEROF")) == 0 {
				t.Fatalf("%v %v", es, err)
			}
			if v, err := c.bind(within(t), s.UserDN("alice"), s.Password); err != nil || v.code != 0 {
				t.Errorf("%+v %v", v, err)
			}
			if v, err := c.bind(within(t), s.UserDN("alice"), "wrong"); err != nil || v.code != 49 {
				t.Errorf("%+v %v", v, err)
			}
			if v, err := c.bind(within(t), s.UserDN("grace"), s.Password); err != nil || v.code != 0 || v.policy == nil || v.policy.Grace < 0 {
				t.Errorf("the policy's control: %+v %v", v, err)
			}
		})
	}
	all := query{base: s.PeopleDN, scope: ldapv3.ScopeWholeSubtree, filter: "(uid=u*)", attributes: []string{"uid"}}
	c := start(t, toSlapd(ldaps, s))
	t.Run("10,000 entries in pages", func(t *testing.T) {
		es, err := c.search(within(t), all)
		if err != nil || len(es) != 10_000 {
			t.Errorf("%d entries, %v", len(es), err)
		}
		all.limit = 9_999
		if _, err := c.search(within(t), all); !errors.Is(err, errTooMany) {
			t.Errorf("%v, wanted %v", err, errTooMany)
		}
	})
	t.Run("size limit", func(t *testing.T) {
		tr := toSlapd(ldaps, s)
		tr.pageSize = 5_000 // more than the server gives
		all.limit = 4_000
		if es, err := start(t, tr).search(within(t), all); !errors.Is(err, errAnswer) || codeOf(err) != ldapv3.LDAPResultSizeLimitExceeded {
			t.Errorf("%d entries, %v", len(es), err)
		}
	})
	t.Run("no base", func(t *testing.T) {
		if es, err := c.search(within(t), query{base: "ou=none," + s.BaseDN}); err != nil || len(es) != 0 {
			t.Errorf("%v %v", es, err)
		}
	})
	t.Run("plain", func(t *testing.T) {
		_, err := start(t, toSlapd(plain, s)).search(within(t), theUser(s))
		if codeOf(err) != ldapv3.LDAPResultConfidentialityRequired {
			t.Errorf("%v", err)
		}
	})
	t.Run("200 at once", func(t *testing.T) {
		c := start(t, toSlapd(ldaps, s))
		var wg sync.WaitGroup
		var failed atomic.Int64
		for range 200 {
			wg.Go(func() {
				es, err := c.search(within(t), theUser(s))
				v, err2 := c.bind(within(t), s.UserDN("bob"), s.Password)
				if err != nil || err2 != nil || len(es) != 1 || v.code != 0 {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
		if got := c.counted(); failed.Load() != 0 || got.serviceDials > 4 || got.userDials > 4 {
			t.Errorf("%d failures, %+v", failed.Load(), got)
		}
	})
}

// TestSlapdDies: sign-ins go on at the other host when one is killed, stands still, or comes back.
func TestSlapdDies(t *testing.T) {
	a := peers.Slapd(t, peers.SlapdOptions{})
	b := peers.Slapd(t, peers.SlapdOptions{Peer: a})
	tr := toSlapd(ldaps, a, b)
	c := start(t, tr)
	works := func(host string) {
		t.Helper()
		if es, err := c.search(within(t), theUser(a)); err != nil || len(es) != 1 {
			t.Fatalf("%v %v", es, err)
		}
		if v, err := c.bind(within(t), a.UserDN("alice"), a.Password); err != nil || v.code != 0 {
			t.Fatalf("%+v %v", v, err)
		}
		if c.host() != host {
			t.Errorf("at %s, wanted %s", c.host(), host)
		}
	}
	works(a.Host)
	a.Kill(t)
	noticed(t, c)
	works(b.Host)
	a.Start(t)
	c.close()

	c = start(t, tr)
	works(a.Host)
	hurry(c, 2*time.Second, b.Host)
	a.Signal(t, syscall.SIGSTOP)
	defer a.Signal(t, syscall.SIGCONT)
	for c.host() != b.Host { // it may answer once more before the signal has stopped all of it
		if _, err := c.search(within(t), theUser(a)); err != nil {
			t.Fatal(err)
		}
	}
	works(b.Host)
}

// TestStats: what metrics are made of. A second sign-in dials nothing.
func TestStats(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := &Connector{client: start(t, toSlapd(ldaps, s))}
	sign := func() {
		if es, err := c.client.search(within(t), theUser(s)); err != nil || len(es) != 1 {
			t.Fatal(es, err)
		}
		if v, err := c.client.bind(within(t), s.UserDN("alice"), s.Password); err != nil || v.code != 0 {
			t.Fatal(v, err)
		}
	}
	sign()
	before := c.Stats()
	sign()
	after := c.Stats()
	if after.ServiceDials != before.ServiceDials || after.UserDials != before.UserDials || after.Binds != before.Binds+1 || after.Searches != before.Searches+1 {
		t.Errorf("%+v, then %+v", before, after)
	}
	if len(after.Hosts) != 1 || after.Hosts[0].Address != s.Host || after.Hosts[0].Dials != 2 || after.Hosts[0].Aside || after.Open != 2 || after.InUse != 0 {
		t.Errorf("%+v", after)
	}
}
