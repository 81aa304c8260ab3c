package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// firstMatch returns the rule that decides on r, as the documentation of Rule says, rule by rule; -1 for the default.
func firstMatch(rules []Rule, r Request) int {
	return slices.IndexFunc(rules, func(c Rule) bool {
		return anyMatches(c.Hosts, r.Host, naiveHost) && anyMatches(c.Paths, r.Path, naivePath) && (len(c.Methods) == 0 || slices.Contains(c.Methods, r.Method))
	})
}

// naive returns what the documentation of Rule says of id where the rule with that index decides.
func naive(rules []Rule, d Default, rule int, id *Identity, now time.Time) Effect {
	signedIn := id != nil && now.Before(id.Expiry)
	if rule < 0 {
		switch {
		case d == DefaultDeny:
			return Deny
		case !signedIn:
			return Authenticate
		}
		return Allow
	}
	c := rules[rule]
	switch {
	case c.Anyone:
		return Allow
	case !signedIn:
		return Authenticate
	}
	for _, g := range id.Groups {
		if slices.Contains(c.Groups, g) {
			return Allow
		}
	}
	for _, u := range c.Users {
		if u == id.Connector+":"+id.UserID || !strings.Contains(u, ":") && strings.EqualFold(u, id.Email) {
			return Allow
		}
	}
	return Deny
}

func anyMatches(patterns []string, s string, match func(pattern, s string) bool) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return match(p, s) })
}

func naiveHost(pattern, host string) bool {
	if strings.HasPrefix(pattern, "*") {
		return strings.HasSuffix(host, pattern[1:])
	}
	return host == pattern
}

func naivePath(pattern, path string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if n := len(want) - 1; want[n] == "**" {
		if len(got) < n {
			return false
		}
		want, got = want[:n], got[:n]
	}
	return slices.EqualFunc(want, got, func(w, g string) bool { return w == g || w == "*" && g != "" })
}

// A source turns bytes into choices.
type source struct{ data []byte }

func (s *source) pick(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b) % n
}

func (s *source) some(most int, f func() string) []string {
	var l []string
	for range s.pick(most + 1) {
		l = append(l, f())
	}
	return l
}

func (s *source) path(segments ...string) string {
	n := s.pick(4)
	var b strings.Builder
	for range n {
		b.WriteString("/" + segments[s.pick(len(segments))])
	}
	return b.String()
}

func (s *source) rules() (rules []Rule) {
	for i := range s.pick(14) {
		r := Rule{
			Name: fmt.Sprint(i), Line: i + 1,
			Hosts: s.some(2, func() string {
				return []string{"a.example", "b.a.example", "*.a.example", "*.b.a.example", "c.example"}[s.pick(5)]
			}),
			Paths: s.some(3, func() string {
				return s.path("a", "b", "*") + []string{"/**", "/", "/a", "/*"}[s.pick(4)]
			}),
			Methods: s.some(2, func() string { return []string{"GET", "POST", "PUT"}[s.pick(3)] }),
		}
		switch s.pick(4) {
		case 0:
			r.Anyone = true
		case 1:
			r.Users = []string{"ldap:u1"}
		case 2:
			r.Users = []string{"Alice@example.com"}
		default:
			r.Groups = []string{[]string{"g", "h"}[s.pick(2)]}
		}
		rules = append(rules, r)
	}
	return rules
}

// requests are all requests that tell the rules of a source apart, but for longer paths.
func requests() (all []Request) {
	segments := []string{"a", "b", "c", "*"}
	paths := []string{"/"}
	level := []string{""}
	for range 4 {
		var next []string
		for _, p := range level {
			for _, s := range segments {
				next = append(next, p+"/"+s)
			}
		}
		for _, p := range next {
			paths = append(paths, p, p+"/")
		}
		level = next
	}
	for _, h := range []string{"a.example", "b.a.example", "x.b.a.example", "x.a.example", "c.example", "d.example"} {
		for _, m := range []string{"GET", "POST", "PATCH"} {
			for _, p := range paths {
				all = append(all, Request{m, h, p})
			}
		}
	}
	return all
}

// checkAgainstNaive compares a policy with the naive matcher, and its warnings with what happened.
func checkAgainstNaive(t *testing.T, s *source, all []Request) {
	t.Helper()
	d := Default(s.pick(2))
	rules := s.rules()
	p := mustNew(t, d, rules...)
	ids := []*Identity{
		nil,
		{Expiry: now},
		{Connector: "ldap", UserID: "u1", Email: "x@example.com", Groups: []string{"x", "h"}, Expiry: now.Add(1)},
		{Connector: "ldap", UserID: "u2", Email: "alice@EXAMPLE.com", Expiry: now.Add(1)},
	}
	decided := make([]bool, len(rules))
	for _, r := range all {
		i, name, line := firstMatch(rules, r), "default", 0
		if i >= 0 {
			name, line, decided[i] = rules[i].Name, rules[i].Line, true
		}
		for _, id := range ids {
			got, effect := p.Decide(r, id, now), naive(rules, d, i, id, now)
			if got.Effect != effect || got.Rule != name || got.Line != line {
				t.Fatalf("%+v for %+v with %+v: got %+v, want %v of rule %s (line %d)", r, id, rules, got, effect, name, line)
			}
			if anonymous := id == nil || !now.Before(id.Expiry); anonymous && got.Effect == Allow && (i < 0 || !rules[i].Anyone) {
				t.Fatalf("%+v with %+v: anonymous request allowed by %+v", r, rules, got)
			}
		}
	}
	for _, w := range p.Warnings() {
		if w.Field == "" && decided[w.Index] {
			t.Fatalf("rule %d of %+v decides, but got warning %v", w.Index, rules, w)
		}
	}
}

func TestDecideIsFirstMatch(t *testing.T) {
	all := requests()
	random := rand.New(rand.NewPCG(1, 2))
	shadowed := 0
	for range 100 {
		data := make([]byte, 400)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		s := &source{data}
		checkAgainstNaive(t, s, all)
		s = &source{data}
		p := mustNew(t, Default(s.pick(2)), s.rules()...)
		shadowed += len(p.Warnings())
	}
	if shadowed == 0 {
		t.Error("no warning in any policy: the test compares nothing")
	}
}

// FuzzDecide holds the two invariants: the first rule that matches decides, and an anonymous request is
// allowed only by a rule that says anyone.
func FuzzDecide(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		data := make([]byte, 300)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		f.Add(data, "GET", "b.a.example", "/a/b")
	}
	f.Fuzz(func(t *testing.T, data []byte, method, host, path string) {
		s := &source{data}
		var all []Request
		for range 16 {
			all = append(all, Request{
				Method: []string{"GET", "POST", "PATCH"}[s.pick(3)],
				Host:   []string{"a.example", "b.a.example", "x.b.a.example", "c.example", "d.example"}[s.pick(5)],
				Path:   s.path("a", "b", "c", "*") + []string{"/", "/a", "/**"}[s.pick(3)],
			})
		}
		if r, err := ParseRequest(method, host, path); err == nil {
			all = append(all, r)
		}
		checkAgainstNaive(t, s, all)
	})
}

// bigPolicy has n rules as a large installation writes them, and the requests that its last rules decide.
func bigPolicy(tb testing.TB, n int) (*Policy, []Request) {
	tb.Helper()
	var rules []Rule
	for i := range n {
		r := Rule{Name: fmt.Sprintf("rule-%d", i), Line: i + 1, Groups: []string{fmt.Sprintf("group-%d", i)}}
		switch i % 5 {
		case 0:
			r.Hosts, r.Paths = []string{fmt.Sprintf("app-%d.apps.example.com", i)}, []string{"/**"}
		case 1:
			r.Hosts, r.Paths = []string{"kubeflow.example.com"}, []string{fmt.Sprintf("/notebook/team-%d/**", i)}
		case 2:
			r.Hosts, r.Paths = []string{"kubeflow.example.com"}, []string{fmt.Sprintf("/jupyter/api/namespaces/team-%d/*", i), fmt.Sprintf("/pipeline/*/team-%d/**", i)}
		case 3:
			r.Paths, r.Methods = []string{fmt.Sprintf("/api/v%d/**", i)}, []string{"POST", "DELETE"}
		case 4:
			r.Paths, r.Methods = []string{"/shared/**"}, []string{fmt.Sprintf("M-%d", i)}
		}
		rules = append(rules, r)
	}
	last := n - 5
	return mustNew(tb, DefaultSignedIn, rules...), []Request{
		{"GET", fmt.Sprintf("app-%d.apps.example.com", last), "/a/b/c"},
		{"GET", "kubeflow.example.com", fmt.Sprintf("/notebook/team-%d/lab/tree/x.ipynb", last+1)},
		{"GET", "kubeflow.example.com", fmt.Sprintf("/jupyter/api/namespaces/team-%d/notebooks", last+2)},
		{"POST", "kubeflow.example.com", fmt.Sprintf("/api/v%d/x", last+3)},
		{fmt.Sprintf("M-%d", last+4), "x.example.com", "/shared/x"},
		{"GET", "kubeflow.example.com", "/nothing/matches/this"},
	}
}

func TestDecideAllocations(t *testing.T) {
	p, all := bigPolicy(t, 1000)
	id := user("a", "b", "group-996")
	for _, r := range all {
		if got := testing.AllocsPerRun(100, func() { p.Decide(r, id, now) }); got != 0 {
			t.Errorf("%+v: got %v allocations, want 0", r, got)
		}
	}
	byEmail := mustNew(t, DefaultDeny, Rule{Users: []string{"alice@example.com"}})
	if got := testing.AllocsPerRun(100, func() {
		if byEmail.Decide(all[0], id, now).Effect != Allow {
			t.Error("not allowed by e-mail")
		}
	}); got != 0 {
		t.Errorf("by e-mail: got %v allocations, want 0", got)
	}
}

func BenchmarkDecide(b *testing.B) {
	id := user("everyone", "team-a", "data")
	for _, n := range []int{10, 1000, 10_000} {
		p, all := bigPolicy(b, n)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				p.Decide(all[i%len(all)], id, now)
				i++
			}
		})
	}
}

func BenchmarkDecideManyGroups(b *testing.B) {
	var groups []string
	for i := range 2000 {
		groups = append(groups, fmt.Sprintf("cn=group-%d,ou=groups,dc=example,dc=com", i))
	}
	id := user(groups...)
	p := mustNew(b, DefaultDeny, Rule{Groups: []string{"cn=admins,ou=groups,dc=example,dc=com", "ops", "dev"}})
	b.ReportAllocs()
	for b.Loop() {
		p.Decide(Request{"GET", "a.example", "/"}, id, now)
	}
}

func BenchmarkNew(b *testing.B) {
	var rules []Rule
	for i := range 10_000 {
		rules = append(rules, Rule{Paths: []string{fmt.Sprintf("/p/%d/**", i)}, Groups: []string{"g"}})
	}
	for b.Loop() {
		if _, err := New(rules, DefaultDeny); err != nil {
			b.Fatal(err)
		}
	}
}
