package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func user(groups ...string) *Identity {
	return &Identity{
		Connector: "ldap", UserID: "u1", Email: "Alice@Example.com", Groups: groups, Expiry: now.Add(time.Hour),
	}
}

func mustNew(t testing.TB, d Default, rules ...Rule) *Policy {
	t.Helper()
	p, err := New(rules, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDecideWho(t *testing.T) {
	get := func(path string) Request { return Request{"GET", "a.example", path} }
	expired := user("admins")
	expired.Expiry = now
	barely := user("admins")
	barely.Expiry = now.Add(1)
	email := func(s string) *Identity { return &Identity{Email: s, Expiry: now.Add(1)} }
	subject := func(connector, id string) *Identity {
		return &Identity{Connector: connector, UserID: id, Expiry: now.Add(1)}
	}
	many := make([]string, 50)
	for i := range many {
		many[i] = fmt.Sprintf("group-%d", i)
	}
	rules := []Rule{
		{Name: "open", Line: 3, Paths: []string{"/open"}, Anyone: true},
		{Name: "group", Line: 4, Paths: []string{"/group"}, Groups: []string{"admins", "Ops Team"}},
		{Name: "many", Paths: []string{"/many"}, Groups: many},
		{Name: "user", Line: 5, Paths: []string{"/user"}, Users: []string{"alice@example.COM", "ldap:u7", "x:cn=a:b"}},
		{Name: "both", Paths: []string{"/both"}, Groups: []string{"admins"}, Users: []string{"ldap:u1"}},
	}
	tests := []struct {
		name     string
		path     string
		fallback Default
		id       *Identity
		want     Decision
	}{
		{"open to nobody in particular", "/open", DefaultDeny, nil, Decision{Allow, ReasonAnyone, "open", 3}},
		{"open to an expired identity", "/open", DefaultDeny, expired, Decision{Allow, ReasonAnyone, "open", 3}},
		{"anonymous is asked to sign in", "/group", DefaultDeny, nil, Decision{Authenticate, ReasonSignIn, "group", 4}},
		{"expired at its expiry", "/group", DefaultDeny, expired, Decision{Authenticate, ReasonSignIn, "group", 4}},
		{"good just before its expiry", "/group", DefaultDeny, barely, Decision{Allow, ReasonGroup, "group", 4}},
		{"identity without expiry is expired", "/group", DefaultDeny, &Identity{Groups: []string{"admins"}}, Decision{Authenticate, ReasonSignIn, "group", 4}},
		{"in a group", "/group", DefaultDeny, user("x", "admins"), Decision{Allow, ReasonGroup, "group", 4}},
		{"group with a blank inside", "/group", DefaultDeny, user("Ops Team"), Decision{Allow, ReasonGroup, "group", 4}},
		{"in no group is denied, not sent to sign in", "/group", DefaultSignedIn, user(), Decision{Deny, ReasonNotInGroup, "group", 4}},
		{"group prefix", "/group", DefaultDeny, user("admin", "admins2"), Decision{Deny, ReasonNotInGroup, "group", 4}},
		{"group in other case", "/group", DefaultDeny, user("Admins"), Decision{Deny, ReasonNotInGroup, "group", 4}},
		{"group with blanks", "/group", DefaultDeny, user(" admins", "admins ", "ops team"), Decision{Deny, ReasonNotInGroup, "group", 4}},
		{"empty group", "/group", DefaultDeny, user(""), Decision{Deny, ReasonNotInGroup, "group", 4}},
		{"comma-joined groups", "/group", DefaultDeny, user("admins,Ops Team"), Decision{Deny, ReasonNotInGroup, "group", 4}},
		{"one of many groups", "/many", DefaultDeny, user("group-49"), Decision{Allow, ReasonGroup, "many", 0}},
		{"none of many groups", "/many", DefaultDeny, user("group-50"), Decision{Deny, ReasonNotInGroup, "many", 0}},
		{"e-mail in other case", "/user", DefaultDeny, user(), Decision{Allow, ReasonUser, "user", 5}},
		{"e-mail with two @", "/user", DefaultDeny, email("alice@example.com@evil.example"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail with two @, the good one last", "/user", DefaultDeny, email("evil@evil.example@alice@example.com"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail with a blank", "/user", DefaultDeny, email("alice@example.com "), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail with a NUL", "/user", DefaultDeny, email("alice@example.com\x00"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail with a dotless i", "/user", DefaultDeny, email("alıce@example.com"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail with a Kelvin sign folds to nothing", "/user", DefaultDeny, email("alice@example.\u212aom"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"no e-mail", "/user", DefaultDeny, email(""), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail that is too long", "/user", DefaultDeny, email("alice@example.com" + strings.Repeat("m", maxEmail)), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"connector and id", "/user", DefaultDeny, subject("ldap", "u7"), Decision{Allow, ReasonUser, "user", 5}},
		{"id with a colon", "/user", DefaultDeny, subject("x", "cn=a:b"), Decision{Allow, ReasonUser, "user", 5}},
		{"colon on the other side", "/user", DefaultDeny, subject("x:cn=a", "b"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"id in other case", "/user", DefaultDeny, subject("ldap", "U7"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"id of another connector", "/user", DefaultDeny, subject("local", "u7"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"id that is an e-mail", "/user", DefaultDeny, subject("local", "alice@example.com"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"e-mail that is an id", "/user", DefaultDeny, email("ldap:u7"), Decision{Deny, ReasonNotInGroup, "user", 5}},
		{"group of groups and users", "/both", DefaultDeny, &Identity{Groups: []string{"admins"}, Expiry: now.Add(1)}, Decision{Allow, ReasonGroup, "both", 0}},
		{"user of groups and users", "/both", DefaultDeny, subject("ldap", "u1"), Decision{Allow, ReasonUser, "both", 0}},
		{"default deny, anonymous", "/else", DefaultDeny, nil, Decision{Deny, ReasonDefaultDeny, "default", 0}},
		{"default deny, signed in", "/else", DefaultDeny, user("admins"), Decision{Deny, ReasonDefaultDeny, "default", 0}},
		{"default signed-in, anonymous", "/else", DefaultSignedIn, nil, Decision{Authenticate, ReasonSignIn, "default", 0}},
		{"default signed-in, expired", "/else", DefaultSignedIn, expired, Decision{Authenticate, ReasonSignIn, "default", 0}},
		{"default signed-in, signed in", "/else", DefaultSignedIn, user(), Decision{Allow, ReasonDefaultSignedIn, "default", 0}},
		{"request that is not parsed", "", DefaultSignedIn, user(), Decision{Deny, ReasonNotParsed, "default", 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustNew(t, tt.fallback, rules...).Decide(get(tt.path), tt.id, now); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestDecideMatching(t *testing.T) {
	open := func(hosts, paths, methods []string) Rule {
		return Rule{Hosts: hosts, Paths: paths, Methods: methods, Anyone: true}
	}
	l := func(s ...string) []string { return s }
	tests := []struct {
		name string
		rule Rule
		r    Request
		want bool
	}{
		{"no conditions", open(nil, nil, nil), Request{"GET", "a.example", "/x/y"}, true},
		{"exact path", open(nil, l("/healthz"), nil), Request{"GET", "a.example", "/healthz"}, true},
		{"exact path with a slash", open(nil, l("/healthz"), nil), Request{"GET", "a.example", "/healthz/"}, false},
		{"exact path with slash, without", open(nil, l("/a/"), nil), Request{"GET", "a.example", "/a"}, false},
		{"exact path, longer", open(nil, l("/healthz"), nil), Request{"GET", "a.example", "/healthz2"}, false},
		{"exact path, below", open(nil, l("/healthz"), nil), Request{"GET", "a.example", "/healthz/x"}, false},
		{"exact path, other case", open(nil, l("/healthz"), nil), Request{"GET", "a.example", "/Healthz"}, false},
		{"root only", open(nil, l("/"), nil), Request{"GET", "a.example", "/a"}, false},
		{"root", open(nil, l("/"), nil), Request{"GET", "a.example", "/"}, true},
		{"below: itself", open(nil, l("/dex/**"), nil), Request{"GET", "a.example", "/dex"}, true},
		{"below: with slash", open(nil, l("/dex/**"), nil), Request{"GET", "a.example", "/dex/"}, true},
		{"below: deep", open(nil, l("/dex/**"), nil), Request{"GET", "a.example", "/dex/a/b/c"}, true},
		{"below ends at a segment", open(nil, l("/dex/**"), nil), Request{"GET", "a.example", "/dexter"}, false},
		{"below: above", open(nil, l("/dex/a/**"), nil), Request{"GET", "a.example", "/dex"}, false},
		{"everything", open(nil, l("/**"), nil), Request{"GET", "a.example", "/"}, true},
		{"one segment", open(nil, l("/a/*/c"), nil), Request{"GET", "a.example", "/a/b/c"}, true},
		{"one segment is not two", open(nil, l("/a/*/c"), nil), Request{"GET", "a.example", "/a/b/b/c"}, false},
		{"one segment is not none", open(nil, l("/a/*"), nil), Request{"GET", "a.example", "/a"}, false},
		{"one segment is not empty", open(nil, l("/a/*"), nil), Request{"GET", "a.example", "/a/"}, false},
		{"one segment is not the root", open(nil, l("/*"), nil), Request{"GET", "a.example", "/"}, false},
		{"one segment and a slash", open(nil, l("/a/*/"), nil), Request{"GET", "a.example", "/a/b/"}, true},
		{"one segment, then below", open(nil, l("/*/x/**"), nil), Request{"GET", "a.example", "/a/x/y"}, true},
		{"a star is no literal", open(nil, l("/a/b"), nil), Request{"GET", "a.example", "/a/*"}, false},
		{"two stars in a request", open(nil, l("/a/**"), nil), Request{"GET", "a.example", "/b/**"}, false},
		{"decoded text", open(nil, l("/my files/ä"), nil), Request{"GET", "a.example", "/my files/ä"}, true},
		{"dot is a dot", open(nil, l("/a.b"), nil), Request{"GET", "a.example", "/axb"}, false},
		{"host", open(l("a.example"), nil, nil), Request{"GET", "a.example", "/"}, true},
		{"another host", open(l("a.example"), nil, nil), Request{"GET", "b.example", "/"}, false},
		{"host below an exact one", open(l("a.example"), nil, nil), Request{"GET", "x.a.example", "/"}, false},
		{"host suffix", open(l("*.a.example"), nil, nil), Request{"GET", "evil-a.example", "/"}, false},
		{"wildcard: one label", open(l("*.a.example"), nil, nil), Request{"GET", "x.a.example", "/"}, true},
		{"wildcard: two labels", open(l("*.a.example"), nil, nil), Request{"GET", "y.x.a.example", "/"}, true},
		{"wildcard: not the domain", open(l("*.a.example"), nil, nil), Request{"GET", "a.example", "/"}, false},
		{"wildcard: domain inside", open(l("*.a.example"), nil, nil), Request{"GET", "x.a.example.evil.example", "/"}, false},
		{"method", open(nil, nil, l("GET")), Request{"GET", "a.example", "/"}, true},
		{"HEAD is not GET", open(nil, nil, l("GET")), Request{"HEAD", "a.example", "/"}, false},
		{"OPTIONS is no hole", open(nil, nil, l("GET", "POST")), Request{"OPTIONS", "a.example", "/"}, false},
		{"PROPFIND is no hole", open(nil, nil, l("GET", "POST")), Request{"PROPFIND", "a.example", "/"}, false},
		{"method in other case", open(nil, nil, l("GET")), Request{"get", "a.example", "/"}, false},
		{"all of three", open(l("a.example"), l("/x"), l("GET")), Request{"GET", "a.example", "/x"}, true},
		{"two of three", open(l("a.example"), l("/x"), l("GET")), Request{"POST", "a.example", "/x"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := mustNew(t, DefaultDeny, tt.rule).Decide(tt.r, nil, now)
			if (got.Effect == Allow) != tt.want {
				t.Errorf("got %+v, want match %v", got, tt.want)
			}
		})
	}
}

func TestFirstRuleDecides(t *testing.T) {
	p := mustNew(t, DefaultSignedIn,
		Rule{Name: "0", Hosts: []string{"a.example"}, Paths: []string{"/x/*"}, Methods: []string{"POST"}, Anyone: true},
		Rule{Name: "1", Paths: []string{"/x/**"}, Methods: []string{"GET"}, Groups: []string{"g"}},
		Rule{Name: "2", Hosts: []string{"*.example.com"}, Paths: []string{"/x/y"}, Anyone: true},
		Rule{Name: "3", Hosts: []string{"a.example"}, Paths: []string{"/x/y"}, Anyone: true},
		Rule{Name: "4", Anyone: true},
	)
	tests := []struct{ name, method, host, path, want string }{
		{"star of the exact host", "POST", "a.example", "/x/y", "0"},
		{"any host before the exact host", "GET", "a.example", "/x/y", "1"},
		{"a denied rule is not skipped", "GET", "a.example", "/x/z", "1"},
		{"method skips a rule", "PUT", "a.example", "/x/y", "3"},
		{"any host before a wildcard host", "GET", "a.example.com", "/x/y", "1"},
		{"wildcard host", "PUT", "a.example.com", "/x/y", "2"},
		{"the last one", "PUT", "b.example", "/x/y", "4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := p.Decide(Request{tt.method, tt.host, tt.path}, user(), now); got.Rule != tt.want {
				t.Errorf("got %+v, want rule %s", got, tt.want)
			}
		})
	}
}

func TestZeroValuesDeny(t *testing.T) {
	r := Request{"GET", "a.example", "/"}
	for name, p := range map[string]*Policy{"nil": nil, "zero": {}} {
		for who, id := range map[string]*Identity{"anonymous": nil, "signed in": user("admins")} {
			if got, want := p.Decide(r, id, now), (Decision{Reason: ReasonDefaultDeny, Rule: "default"}); got != want {
				t.Errorf("%s policy, %s: got %+v, want %+v", name, who, got, want)
			}
		}
		if got := p.Warnings(); len(got) != 0 {
			t.Errorf("%s policy: got warnings %v", name, got)
		}
	}
	if d := (Decision{}); d.Effect != Deny {
		t.Errorf("got zero decision %v, want deny", d.Effect)
	}
	if got := mustNew(t, DefaultSignedIn, Rule{Anyone: true}).Decide(Request{}, user(), now).Effect; got != Deny {
		t.Errorf("zero request: got %v, want deny", got)
	}
}

func TestEffectString(t *testing.T) {
	for e, want := range map[Effect]string{Deny: "deny", Allow: "allow", Authenticate: "sign-in", 9: "deny"} {
		if got := e.String(); got != want {
			t.Errorf("Effect(%d): got %q, want %q", e, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	paths := func(p string) Rule { return Rule{Name: "r", Paths: []string{p}, Anyone: true} }
	hosts := func(h string) Rule { return Rule{Name: "r", Hosts: []string{h}, Anyone: true} }
	methods := func(m string) Rule { return Rule{Name: "r", Methods: []string{m}, Anyone: true} }
	groups := func(g string) Rule { return Rule{Name: "r", Groups: []string{g}} }
	users := func(u string) Rule { return Rule{Name: "r", Users: []string{u}} }
	tests := []struct {
		name  string
		rule  Rule
		field string
		want  string // in the message: the fix
	}{
		{"path without slash", paths("admin/**"), "paths", `write "/admin/**"`},
		{"empty path", paths(""), "paths", `write "/"`},
		{"path of stars only", paths("**"), "paths", `write "/**"`},
		{"two stars inside", paths("/a/**/b"), "paths", "at the end only"},
		{"two stars, then a slash", paths("/a/**/"), "paths", "at the end only"},
		{"star after text", paths("/foo*"), "paths", "one whole segment"},
		{"star before text", paths("/a/*.png"), "paths", "one whole segment"},
		{"stars after text", paths("/foo**"), "paths", "one whole segment"},
		{"three stars", paths("/***"), "paths", "one whole segment"},
		{"question mark", paths("/a?b=c"), "paths", "remove the ?"},
		{"escape", paths("/a%20b"), "paths", "write the character itself"},
		{"fragment", paths("/a#b"), "paths", "never match"},
		{"parameter", paths("/a;b"), "paths", "never match"},
		{"backslash", paths(`/a\b`), "paths", "never match"},
		{"two slashes", paths("/a//b"), "paths", "one slash"},
		{"dot", paths("/a/./b"), "paths", "as a segment"},
		{"dots", paths("/a/.."), "paths", "as a segment"},
		{"control in a path", paths("/a\tb"), "paths", "printable"},
		{"bad UTF-8 in a path", paths("/\xff"), "paths", "printable"},
		{"path too long", paths("/" + strings.Repeat("a", maxPath)), "paths", "needs a request path of 8193 bytes, want at most 8192"},
		{"path too long once escaped", paths("/" + strings.Repeat("ä", maxPath/6) + "aa"), "paths", "needs a request path of 8193 bytes, want at most 8192"},
		{"path too long for its blanks", paths("/" + strings.Repeat(" a", maxPath/4)), "paths", "at most 8192"},
		{"path too long above its wildcard", paths("/" + strings.Repeat("a", maxPath) + "/**"), "paths", "at most 8192"},
		{"empty host", hosts(""), "hosts", "leave hosts out"},
		{"every host", hosts("*"), "hosts", "leave hosts out"},
		{"wildcard of one label", hosts("*.com"), "hosts", "two labels"},
		{"wildcard inside", hosts("a.*.example.com"), "hosts", "a wildcard is"},
		{"wildcard without dot", hosts("*example.com"), "hosts", "a wildcard is"},
		{"two wildcards", hosts("*.*.example.com"), "hosts", "a wildcard is"},
		{"host in upper case", hosts("*.Example.com"), "hosts", `write it as "*.example.com"`},
		{"host with port", hosts("a.example:443"), "hosts", `write it as "a.example"`},
		{"host with dot", hosts("a.example."), "hosts", `write it as "a.example"`},
		{"host with scheme", hosts("https://a.example"), "hosts", "without scheme"},
		{"two hosts in one", hosts("a.example,b.example"), "hosts", "without scheme"},
		{"method in lower case", methods("get"), "methods", "write GET"},
		{"empty method", methods(""), "methods", "want an HTTP method"},
		{"two methods in one", methods("GET,POST"), "methods", "want an HTTP method"},
		{"method too long", methods(strings.Repeat("A", maxMethod+1)), "methods", "at most 32"},
		{"every method", methods("*"), "methods", "leave methods out"},
		{"any method", methods("ANY"), "methods", "leave methods out"},
		{"empty group", groups(""), "groups", "is empty"},
		{"blank group", groups("  "), "groups", "is empty"},
		{"group with a blank before", groups(" admins"), "groups", "blanks at its edges"},
		{"group with a no-break space after", groups("admins\u00a0"), "groups", "blanks at its edges"},
		{"group with a NUL", groups("a\x00b"), "groups", "printable"},
		{"group too long", groups(strings.Repeat("g", maxGroup+1)), "groups", "at most 1024"},
		{"empty user", users(""), "users", "is empty"},
		{"user that is a name", users("alice"), "users", "connector:userID"},
		{"user with two @", users("a@b@example.com"), "users", "one @"},
		{"user with nothing before @", users("@example.com"), "users", "one @"},
		{"user with nothing after @", users("a@"), "users", "one @"},
		{"user outside of ASCII", users("älice@example.com"), "users", "visible ASCII"},
		{"user with a blank", users("alice@example.com "), "users", "visible ASCII"},
		{"user without connector", users(":u1"), "users", "both parts"},
		{"user without id", users("ldap:"), "users", "both parts"},
		{"user with a blank after the colon", users("ldap: u1"), "users", "remove the blanks"},
		{"user with a newline", users("ldap:u1\n"), "users", "printable"},
		{"nobody", Rule{Name: "r"}, "", "needs allow: anyone or"},
		{"anyone and a group", Rule{Name: "r", Anyone: true, Groups: []string{"g"}}, "", "keep one of the two"},
		{"anyone and a user", Rule{Name: "r", Anyone: true, Users: []string{"a:b"}}, "", "keep one of the two"},
		{"reserved name", Rule{Name: "default", Anyone: true}, "name", "take another"},
		{"name with a newline", Rule{Name: "a\nb", Anyone: true}, "name", "printable"},
		{"name too long", Rule{Name: strings.Repeat("n", maxName+1), Anyone: true}, "name", "at most 128"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := New([]Rule{{Name: "fine", Paths: []string{"/fine"}, Anyone: true}, tt.rule}, DefaultDeny)
			var re *RuleError
			if !errors.As(err, &re) {
				t.Fatalf("got %v, want a *RuleError", err)
			}
			if p != nil {
				t.Error("got a policy beside the error")
			}
			if re.Index != 1 || re.Name != tt.rule.Name || re.Field != tt.field {
				t.Errorf("got index %d, name %q, field %q, want 1, %q, %q", re.Index, re.Name, re.Field, tt.rule.Name, tt.field)
			}
			if !strings.Contains(re.Error(), tt.want) {
				t.Errorf("got %q, want it to say %q", re.Error(), tt.want)
			}
		})
	}
}

func TestNewReturnsEveryMistake(t *testing.T) {
	_, err := New([]Rule{
		{Name: "a", Paths: []string{"x", "/y*"}, Groups: []string{""}},
		{Name: "a", Anyone: true},
		{},
	}, Default(7))
	want := `default: got 7, want DefaultDeny or DefaultSignedIn
rules[0] "a": paths: "x": must start with a slash: write "/x"
rules[0] "a": paths: "/y*": * is one whole segment and ** at the end is everything below: there are no other wildcards
rules[0] "a": groups: "": is empty: name a group, or remove the entry
rules[1] "a": name: "a" is the name of rules[0] too: audit and metrics could not tell them apart, so rename one
rules[2]: needs allow: anyone or at least one of groups, users`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestNewBoundsTheIndex(t *testing.T) {
	list := func(n int, format string) (l []string) {
		for i := range n {
			l = append(l, fmt.Sprintf(format, i))
		}
		return l
	}
	_, err := New([]Rule{{Hosts: list(1025, "h%d.example"), Paths: list(1024, "/p%d"), Anyone: true}}, DefaultDeny)
	if err == nil || !strings.Contains(err.Error(), "1025 hosts x 1024 paths") {
		t.Errorf("got %v, want an error with the size", err)
	}
}

func TestUnnamedRuleIsToldByItsIndex(t *testing.T) {
	p := mustNew(t, DefaultDeny, Rule{Paths: []string{"/a"}, Anyone: true}, Rule{Paths: []string{"/b"}, Anyone: true})
	if got := p.Decide(Request{"GET", "a.example", "/b"}, nil, now).Rule; got != "rules[1]" {
		t.Errorf("got rule %q, want rules[1]", got)
	}
}

func TestPolicyIsIndependentOfItsInput(t *testing.T) {
	groups := []string{"admins"}
	p := mustNew(t, DefaultDeny, Rule{Groups: groups})
	groups[0] = "everyone"
	if got := p.Decide(Request{"GET", "a.example", "/"}, user("everyone"), now).Effect; got != Deny {
		t.Errorf("got %v after the caller changed its slice, want deny", got)
	}
}

func TestWarnings(t *testing.T) {
	l := func(s ...string) []string { return s }
	open := func(name string, hosts, paths, methods []string) Rule {
		return Rule{Name: name, Line: len(name), Hosts: hosts, Paths: paths, Methods: methods, Anyone: true}
	}
	tests := []struct {
		name  string
		rules []Rule
		want  string // empty: none
	}{
		{"everything first", []Rule{open("all", nil, nil, nil), open("b", l("a.example"), l("/b"), l("GET"))}, `rules[1] "b": never decides: rule "all" (line 3)`},
		{"everything last", []Rule{open("b", nil, l("/b"), nil), open("all", nil, nil, nil)}, ""},
		{"same path", []Rule{open("a", nil, l("/x"), nil), open("b", nil, l("/x"), nil)}, `rule "a"`},
		{"below", []Rule{open("a", nil, l("/x/**"), nil), open("b", nil, l("/x", "/x/", "/x/y/**", "/x/*"), nil)}, `rule "a"`},
		{"one path is free", []Rule{open("a", nil, l("/x/**"), nil), open("b", nil, l("/x", "/y"), nil)}, ""},
		{"star covers text", []Rule{open("a", nil, l("/*/x"), nil), open("b", nil, l("/a/x", "/*/x"), nil)}, `rule "a"`},
		{"star covers below a star", []Rule{open("a", nil, l("/*/**"), nil), open("b", nil, l("/*/x", "/y/**"), nil)}, `rule "a"`},
		{"star does not cover the root", []Rule{open("a", nil, l("/*"), nil), open("b", nil, l("/"), nil)}, ""},
		{"star does not cover below", []Rule{open("a", nil, l("/x/*"), nil), open("b", nil, l("/x/**"), nil)}, ""},
		{"exact does not cover below", []Rule{open("a", nil, l("/x"), nil), open("b", nil, l("/x/**"), nil)}, ""},
		{"text does not cover a star", []Rule{open("a", nil, l("/x"), nil), open("b", nil, l("/*"), nil)}, ""},
		{"methods", []Rule{open("a", nil, nil, l("GET", "POST")), open("b", nil, nil, l("POST"))}, `rule "a"`},
		{"methods do not cover every method", []Rule{open("a", nil, nil, l("GET")), open("b", nil, nil, nil)}, ""},
		{"wildcard host", []Rule{open("a", l("*.a.example"), nil, nil), open("b", l("x.a.example", "*.a.example", "*.x.a.example"), nil, nil)}, `rule "a"`},
		{"wildcard host does not cover its domain", []Rule{open("a", l("*.a.example"), nil, nil), open("b", l("a.example"), nil, nil)}, ""},
		{"host does not cover every host", []Rule{open("a", l("a.example"), nil, nil), open("b", nil, nil, nil)}, ""},
		{"two rules together", []Rule{open("a", nil, l("/x"), nil), open("b", nil, l("/y"), nil), open("c", nil, l("/x", "/y"), nil)}, `rules[2] "c": never decides: rule "a"`},
		{"listed twice", []Rule{open("a", nil, l("/x", "/x"), nil)}, `rules[0] "a": paths: "/x": is listed twice`},
		{"group listed twice", []Rule{{Name: "a", Groups: l("g", "g")}}, `rules[0] "a": groups: "g": is listed twice`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := mustNew(t, DefaultDeny, tt.rules...).Warnings()
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("got %v, want none", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0].Error(), tt.want)):
				t.Errorf("got %v, want one that says %q", got, tt.want)
			}
		})
	}
}

// TestLongestPatterns pins that a pattern of any length that is accepted has a request.
func TestLongestPatterns(t *testing.T) {
	a, umlauts := strings.Repeat("a", maxPath-1), strings.Repeat("ä", maxPath/6)
	for pattern, sent := range map[string]string{
		"/" + a:             "/" + a,
		"/" + a + "/**":     "/" + a,
		"/" + a[2:] + "/*":  "/" + a[2:] + "/x",
		"/" + umlauts + "a": "/" + strings.Repeat("%C3%A4", maxPath/6) + "a",
	} {
		if len(sent) != maxPath {
			t.Fatalf("%.10s… is sent as %d bytes: the test needs %d", pattern, len(sent), maxPath)
		}
		p, err := New([]Rule{{Paths: []string{pattern}, Anyone: true}}, DefaultDeny)
		if err != nil {
			t.Errorf("%.10s… of %d bytes: %v", pattern, len(pattern), err)
			continue
		}
		r, err := ParseRequest("GET", "a.example", sent)
		if d := p.Decide(r, nil, now); err != nil || d.Effect != Allow {
			t.Errorf("%.10s… of %d bytes: got %+v, %v, want it allowed", pattern, len(pattern), d, err)
		}
	}
}
