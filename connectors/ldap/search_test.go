package ldap

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/test/fakeldap"
)

func attribute(name string, values ...string) fakeldap.Attribute {
	return fakeldap.Attribute{Name: name, Values: values}
}

func one(dn string, as ...fakeldap.Attribute) fakeldap.SearchAnswer {
	return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{{DN: dn, Attributes: as}}}
}

// TestEntry: names in any case and without options, bytes as they are.
func TestEntry(t *testing.T) {
	s := serve(t, func(fakeldap.Search) fakeldap.SearchAnswer {
		return one(alice, attribute("CN;lang-de", "Alize"), attribute("cn", "Alice", "A"), attribute("objectGUID;binary", "\x00\xff"), attribute("mail"))
	})
	es, err := start(t, to(s)).search(within(t), query{base: "dc=example", limit: 1})
	if err != nil || len(es) != 1 {
		t.Fatal(es, err)
	}
	e := es[0]
	if e.text("Cn") != "Alice" || !slices.Equal(e.texts("cN"), []string{"Alice", "A", "Alize"}) || string(e.raw("objectguid")[0]) != "\x00\xff" {
		t.Errorf("%q", e.attributes)
	}
	if e.text("mail") != "" || e.texts("mail") != nil || e.raw("x") != nil {
		t.Errorf("%q", e.attributes)
	}
}

func TestResultCodes(t *testing.T) {
	for _, c := range []struct {
		name    string
		answer  fakeldap.SearchAnswer
		limit   int
		entries int
		want    error
	}{
		{"no such object is nothing", fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 32}}, 5, 0, nil},
		{"as many as wanted", found("cn=a", "cn=b")(fakeldap.Search{}), 2, 2, nil},
		{"more than wanted", found("cn=a", "cn=b")(fakeldap.Search{}), 1, 0, errTooMany},
		{"more than wanted, and the size limit", fakeldap.SearchAnswer{Entries: found("cn=a", "cn=b")(fakeldap.Search{}).Entries, Result: fakeldap.Result{Code: 4}}, 1, 0, errTooMany},
		{"the server's own size limit", fakeldap.SearchAnswer{Entries: found("cn=a")(fakeldap.Search{}).Entries, Result: fakeldap.Result{Code: 4}}, 5, 0, errAnswer},
		{"a flood of entries", fakeldap.SearchAnswer{Entries: found("cn=a", "cn=b")(fakeldap.Search{}).Entries, Flood: true}, 10, 0, errTooMany},
		{"a flood of large entries", func() fakeldap.SearchAnswer {
			a := one("cn=a", attribute("description", strings.Repeat("x", 1<<20)))
			a.Flood = true
			return a
		}(), 0, 0, errTooMany},
		{"a DN with a line feed", one("cn=a\nb"), 5, 0, errAnswer},
		{"a DN that is not UTF-8", one("cn=\xff"), 5, 0, errAnswer},
		{"a referral, not followed", fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 10, Referral: []string{"ldap://other/"}}}, 5, 0, errAnswer},
		{"references, not followed", fakeldap.SearchAnswer{Entries: found("cn=a")(fakeldap.Search{}).Entries, References: [][]string{{"ldap://other/"}}}, 5, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, func(fakeldap.Search) fakeldap.SearchAnswer { return c.answer })
			k := start(t, to(s))
			es, err := k.search(within(t), query{base: "dc=example", limit: c.limit})
			if !errors.Is(err, c.want) || err != nil && c.want == nil || len(es) != c.entries {
				t.Errorf("%v, %v; wanted %d and %v", names(es), err, c.entries, c.want)
			}
			if errors.Is(err, errNoDirectory) || len(s.Searches()) != 1 {
				t.Errorf("%v after %d searches, wanted one", err, len(s.Searches()))
			}
			if k.counted().hosts[0].aside {
				t.Error("the host was put aside")
			}
		})
	}
}

// paged answers in pages of the size asked for, of n entries.
func paged(n int) func(fakeldap.Search) fakeldap.SearchAnswer {
	return func(q fakeldap.Search) fakeldap.SearchAnswer {
		from, _ := strconv.Atoi(q.Cookie)
		a := fakeldap.SearchAnswer{Paged: true}
		for i := from; i < min(from+q.PageSize, n); i++ {
			a.Entries = append(a.Entries, fakeldap.Entry{DN: "cn=" + strconv.Itoa(i)})
		}
		if from+q.PageSize < n {
			a.Cookie = strconv.Itoa(from + q.PageSize)
		}
		return a
	}
}

func TestPages(t *testing.T) {
	for _, c := range []struct{ entries, limit, requests int }{{0, 0, 1}, {9, 0, 1}, {10, 0, 1}, {11, 0, 2}, {95, 0, 10}, {95, 95, 10}, {95, 94, 10}, {1000, 25, 3}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			s := serve(t, paged(c.entries))
			tr := to(s)
			tr.pageSize = 10
			es, err := start(t, tr).search(within(t), query{base: "dc=example", scope: ldapv3.ScopeWholeSubtree, limit: c.limit})
			if c.limit > 0 && c.entries > c.limit {
				if !errors.Is(err, errTooMany) {
					t.Errorf("%v, wanted %v", err, errTooMany)
				}
			} else if err != nil || len(es) != c.entries {
				t.Errorf("%d entries, %v; wanted %d", len(es), err, c.entries)
			}
			if n := len(s.Searches()); n != c.requests {
				t.Errorf("%d requests, wanted %d", n, c.requests)
			}
		})
	}
}

// TestNoPages: servers that do not know of pages, or do not want to.
func TestNoPages(t *testing.T) {
	for name, f := range map[string]func(fakeldap.Search) fakeldap.SearchAnswer{
		"ignores": found("cn=a", "cn=b"),
		"refuses": func(q fakeldap.Search) fakeldap.SearchAnswer {
			if q.PageSize >= 0 {
				return fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 12}}
			}
			return found("cn=a", "cn=b")(q)
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := to(serve(t, f))
			tr.pageSize = 1
			if es, err := start(t, tr).search(within(t), query{base: "dc=example", scope: ldapv3.ScopeWholeSubtree}); err != nil || len(es) != 2 {
				t.Errorf("%v %v", names(es), err)
			}
		})
	}
	t.Run("empty pages without end", func(t *testing.T) {
		tr := to(serve(t, func(fakeldap.Search) fakeldap.SearchAnswer { return fakeldap.SearchAnswer{Paged: true, Cookie: "x"} }))
		if _, err := start(t, tr).search(within(t), query{base: "dc=example", scope: ldapv3.ScopeWholeSubtree}); !errors.Is(err, errAnswer) {
			t.Errorf("%v, wanted %v", err, errAnswer)
		}
	})
}

// ad answers as Active Directory does: so many values of an attribute at a time.
func ad(step int, total map[string]int) func(fakeldap.Search) fakeldap.SearchAnswer {
	return func(q fakeldap.Search) fakeldap.SearchAnswer {
		a := one("cn=big,dc=example", attribute("cn", "big"))
		for _, want := range q.Attributes {
			name, option, _ := strings.Cut(want, ";")
			n, many := total[strings.ToLower(name)]
			if !many {
				continue
			}
			from, _, _ := rangeOf(option)
			end, last := from+step, strconv.Itoa(from+step-1)
			if end >= n {
				end, last = n, "*"
			}
			var values []string
			for i := from; i < end; i++ {
				values = append(values, fmt.Sprintf("%s %d", strings.ToLower(name), i))
			}
			if from == 0 && last == "*" {
				a.Entries[0].Attributes = append(a.Entries[0].Attributes, attribute(name, values...))
				continue
			}
			a.Entries[0].Attributes = append(a.Entries[0].Attributes, attribute(name), attribute(fmt.Sprintf("%s;range=%d-%s", name, from, last), values...))
		}
		return a
	}
}

// TestRanges: attributes of which Active Directory sends 1,500 values at a time are whole.
func TestRanges(t *testing.T) {
	for _, n := range []int{0, 1, 1499, 1500, 1501, 3000, 3001, 10_000} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			s := serve(t, ad(1500, map[string]int{"member": n, "memberof": 2000}))
			es, err := start(t, to(s)).search(within(t), query{base: "dc=example", attributes: []string{"cn", "member", "memberOf"}, limit: 1})
			if err != nil || len(es) != 1 {
				t.Fatal(es, err)
			}
			e := es[0]
			if len(e.texts("member")) != n || len(e.texts("memberOf")) != 2000 || e.text("cn") != "big" || len(e.attributes) > 3 {
				t.Fatalf("%d members, %d groups, wanted %d and 2000; %d attributes", len(e.texts("member")), len(e.texts("memberOf")), n, len(e.attributes))
			}
			for i, v := range e.texts("member") {
				if v != "member "+strconv.Itoa(i) {
					t.Fatalf("value %d is %q", i, v)
				}
			}
			if n == 10_000 && len(s.Searches()) != 7 {
				t.Errorf("%d requests, wanted 7", len(s.Searches()))
			}
		})
	}
}

// TestRangesHostile: ranges that do not fit together are an error, never a part of the truth.
func TestRangesHostile(t *testing.T) {
	for name, f := range map[string]func(q fakeldap.Search) fakeldap.SearchAnswer{
		"begins late": func(fakeldap.Search) fakeldap.SearchAnswer {
			return one("cn=a", attribute("member;range=5-9", "a", "b", "c", "d", "e"))
		},
		"the same again": func(fakeldap.Search) fakeldap.SearchAnswer {
			return one("cn=a", attribute("member;range=0-0", "a"))
		},
		"fewer than said": func(fakeldap.Search) fakeldap.SearchAnswer { return one("cn=a", attribute("member;range=0-9", "a")) },
		"gone": func(q fakeldap.Search) fakeldap.SearchAnswer {
			if q.Base == "cn=a" {
				return fakeldap.SearchAnswer{}
			}
			return one("cn=a", attribute("member;range=0-0", "a"))
		},
		"without end": func(q fakeldap.Search) fakeldap.SearchAnswer {
			from := 0
			if q.Base == "cn=a" {
				_, option, _ := strings.Cut(q.Attributes[0], ";")
				from, _, _ = rangeOf(option)
			}
			return one("cn=a", attribute(fmt.Sprintf("member;range=%d-%d", from, from+49_999), slices.Repeat([]string{"x"}, 50_000)...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if es, err := start(t, to(serve(t, f))).search(within(t), query{base: "dc=example", limit: 1}); !errors.Is(err, errAnswer) {
				t.Errorf("%v %v, wanted %v", es, err, errAnswer)
			}
		})
	}
}

func TestRangeOf(t *testing.T) {
	for in, want := range map[string]struct {
		first, last int
		is          bool
	}{
		"range=0-1499": {0, 1499, true}, "range=1500-*": {1500, -1, true}, "binary;range=1-2": {1, 2, true},
		"": {}, "binary": {}, "range=": {}, "range=a-b": {}, "range=-1-5": {}, "range=5-4": {5, 4, false}, "range=1": {}, "range=99999999999999999999-*": {},
	} {
		first, last, is := rangeOf(in)
		if is != want.is || is && (first != want.first || last != want.last) {
			t.Errorf("%q: %d %d %v, wanted %+v", in, first, last, is, want)
		}
	}
}

// TestReferralToAttacker: a referral to a host that is not configured makes no connection, followed or not.
func TestReferralToAttacker(t *testing.T) {
	evil := serve(t, found("cn=evil"))
	for name, uri := range map[string]string{
		"plain": "ldap://" + evil.Address() + "/dc=example", "other name": "ldap://localhost:" + evil.Port() + "/", "ldaps": "ldaps://" + evil.Address(),
		"user": "ldap://127.0.0.1@" + evil.Address() + "/", "no port": "ldap://127.0.0.2/", "ldapi": "ldapi:///", "http": "http://" + evil.Address() + "/", "garbage": "%zz",
	} {
		for _, follow := range []bool{false, true} {
			t.Run(fmt.Sprint(name, follow), func(t *testing.T) {
				s := serve(t, func(q fakeldap.Search) fakeldap.SearchAnswer {
					if q.Base == "dc=other" {
						return fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 10, Referral: []string{uri}}}
					}
					a := found(alice)(q)
					a.References = [][]string{{uri}}
					return a
				})
				tr := to(s)
				tr.follow = follow
				c := start(t, tr)
				wantFound(t, c, alice)
				if es, err := c.search(within(t), query{base: "dc=other"}); len(es) > 0 {
					t.Errorf("%v %v", names(es), err)
				}
				if evil.Dials() != 0 {
					t.Error("a connection was made to a host that is not configured")
				}
			})
		}
	}
}

// TestReferralFollowed: to a configured host, with our own filter, and not for ever.
func TestReferralFollowed(t *testing.T) {
	var a, b *fakeldap.Server
	refer := func(to **fakeldap.Server, dn string) func(fakeldap.Search) fakeldap.SearchAnswer {
		return func(q fakeldap.Search) fakeldap.SearchAnswer {
			if q.Base == "dc=loop" || q.Base == "dc=example" || q.Base == "dc=base" {
				ans := found("cn=" + q.Base)(q)
				uri := "ldap://" + (*to).Address() + "/" + dn + "?cn?sub?(cn=*)"
				if q.Base == "dc=base" {
					return fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 10, Referral: []string{"ldap://127.0.0.9/", uri}}}
				}
				if q.Base == "dc=loop" {
					uri = "ldap://" + (*to).Address() + "/dc=loop"
				}
				ans.References = [][]string{{uri}}
				return ans
			}
			return found("cn=there")(q)
		}
	}
	a, b = serve(t, func(q fakeldap.Search) fakeldap.SearchAnswer { return refer(&b, "dc=b")(q) }), serve(t, func(q fakeldap.Search) fakeldap.SearchAnswer { return refer(&a, "dc=a")(q) })
	tr := to(a, b)
	tr.follow = true
	c := start(t, tr)
	for base, want := range map[string][]string{"dc=example": {"cn=dc=example", "cn=there"}, "dc=base": {"cn=there"}, "dc=loop": {"cn=dc=loop", "cn=dc=loop", "cn=dc=loop"}} {
		es, err := c.search(within(t), query{base: base, filter: "(uid=alice)", limit: 9})
		if err != nil || !slices.Equal(names(es), want) {
			t.Errorf("%s: %v %v, wanted %v", base, names(es), err, want)
		}
	}
	for _, q := range append(a.Searches(), b.Searches()...) {
		if q.Filter != "(uid=alice)" || q.BoundAs != svc {
			t.Errorf("%+v", q)
		}
	}
}

// TestReferralDepth: each server refers to another base, without end.
func TestReferralDepth(t *testing.T) {
	var s *fakeldap.Server
	s = serve(t, func(q fakeldap.Search) fakeldap.SearchAnswer {
		return fakeldap.SearchAnswer{References: [][]string{{"ldap://" + s.Address() + "/" + q.Base + "x"}}}
	})
	tr := to(s)
	tr.follow = true
	if _, err := start(t, tr).search(within(t), query{base: "dc=x"}); !errors.Is(err, errAnswer) || len(s.Searches()) > maxReferred+1 {
		t.Errorf("%v after %d searches", err, len(s.Searches()))
	}
}

// TestBadFilter: a filter that does not parse never leaves, and breaks nothing.
func TestBadFilter(t *testing.T) {
	s := serve(t, found(alice))
	c := start(t, to(s))
	if _, err := c.search(within(t), query{base: "dc=example", filter: "(uid=a"}); err == nil || errors.Is(err, errNoDirectory) {
		t.Errorf("%v", err)
	}
	wantFound(t, c, alice)
	if s.Dials() != 1 {
		t.Errorf("%d dials, wanted 1", s.Dials())
	}
}
