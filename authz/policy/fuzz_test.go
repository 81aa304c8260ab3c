package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// FuzzRules holds for rules of any text that New refuses them with *RuleErrors or they work: each pattern has a
// request that a client can send and that only an earlier rule can take from it, the first rule that matches decides,
// and an anonymous request is allowed only by a rule that says anyone.
func FuzzRules(f *testing.F) {
	f.Add("a.example.com", "/admin/**", "GET", "admins", "alice@example.com", "ldap", "u1", uint8(1))
	f.Add("*.apps.example.com", "/a/*/b", "PROPFIND", "g, h", "ldap:u1", "ldap", "u1", uint8(3))
	f.Add("", "/", "get", "", "a:b:c", "a:b", "c", uint8(0))
	f.Add("*.[::ffff:1.2.3.4]", "/x y/ä", "*", "g\x00", "alice@EXAMPLE.com", "", "", uint8(2))
	f.Add("[::1]", "/%2e", "G", " g", "\u212Aelvin@example.com", "local", "kelvin@example.com", uint8(3))
	f.Add("", "", "", "g", "\u212Aelvin@example.com", "local", "kelvin@example.com", uint8(2))
	f.Add("", "", "", "g", "kelvin@example.com", "local", "\u212Aelvin@example.com", uint8(2))
	f.Add("A.example", "/**/a", "", "**", "a@b@c", "a", "", uint8(1))
	f.Add("a.example.com", "/*", "GET", "*", "", "", "*", uint8(0))
	f.Add("", "/"+strings.Repeat("ä", 2000), "", "", "", "", "", uint8(0))
	f.Add("", "/"+strings.Repeat("(ä", 1100), "", "", "", "", "", uint8(0))
	f.Fuzz(func(t *testing.T, host, path, method, group, user, connector, userID string, kind uint8) {
		fuzzed := Rule{Name: "fuzzed", Line: 7, Hosts: some(host), Paths: some(path), Methods: some(method)}
		switch kind % 4 {
		case 0:
			fuzzed.Anyone = true
		case 1:
			fuzzed.Groups = []string{group}
		case 2:
			fuzzed.Users = []string{user}
		case 3:
			fuzzed.Groups, fuzzed.Users = []string{group}, []string{user}
		}
		rules := []Rule{
			{Name: "first", Line: 1, Hosts: []string{"b.example.com"}, Paths: []string{"/public/**"}, Anyone: true},
			fuzzed,
			{Name: "last", Line: 9, Paths: []string{"/a/**"}, Methods: []string{"GET"}, Groups: []string{"last"}},
		}
		p, err := New(rules, Default(kind/4%2))
		if err != nil {
			checkRuleErrors(t, err)
			return
		}
		ids := []*Identity{
			nil,
			{Connector: connector, UserID: userID, Email: user, Groups: []string{group}, Expiry: now},
			{Connector: connector, UserID: userID, Groups: []string{group + "x", strings.ToUpper(group), ""}, Expiry: now.Add(1)},
			{Connector: connector, UserID: userID, Email: userID, Groups: []string{group}, Expiry: now.Add(1)},
			{Connector: connector, UserID: userID, Email: strings.ToUpper(user), Expiry: now.Add(1)},
			{Connector: "x" + connector, UserID: userID + "x", Email: "x" + user, Expiry: now.Add(1)},
		}
		if m := matching(t, fuzzed); m != nil {
			all := []Request{*m, {m.Method, "x." + m.Host, m.Path}, {m.Method, m.Host, m.Path + "x"}, {m.Method, m.Host, m.Path + "/x"}, {"X" + m.Method, m.Host, m.Path}}
			all = append(all, Request{"GET", "b.example.com", "/public/a"}, Request{"GET", m.Host, "/a"}, Request{m.Method, m.Host, "/"})
			for _, r := range all {
				for _, id := range ids {
					checkDecision(t, p, rules, Default(kind/4%2), r, id)
				}
			}
		}
	})
}

func some(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func checkRuleErrors(t *testing.T, err error) {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) == 0 {
		t.Fatalf("got %v, want joined errors", err)
	}
	for _, e := range joined.Unwrap() {
		var r *RuleError
		if !errors.As(e, &r) || r.Index != 1 || r.Err == nil {
			t.Fatalf("got %v, want a *RuleError of rule 1", e)
		}
	}
}

// matching returns the shortest request that the patterns of a valid rule match, parsed as a client sends it; nil if its host is too long.
func matching(t *testing.T, r Rule) *Request {
	t.Helper()
	want := Request{"GET", "c.example.com", "/x"}
	if len(r.Hosts) > 0 {
		want.Host = strings.Replace(r.Hosts[0], "*", "x", 1)
	}
	if len(r.Methods) > 0 {
		want.Method = r.Methods[0]
	}
	if len(r.Paths) > 0 {
		path, _ := strings.CutSuffix(r.Paths[0], "/**")
		segments := strings.Split(path, "/")
		for i, s := range segments {
			if s == "*" {
				segments[i] = "x"
			}
		}
		want.Path = cmp.Or(strings.Join(segments, "/"), "/")
	}
	sent := escapePath(want.Path)
	if len(want.Host) > 253 {
		return nil
	}
	got, err := ParseRequest(want.Method, want.Host, sent)
	if err != nil || got != want {
		t.Fatalf("%+v is accepted, and no request can match it: %q of %+v is %+v, %v", r, sent, want, got, err)
	}
	return &got
}

// escapePath escapes what cannot be sent as it is: the least, and all but a slash where there is room for it (RFC 3986 section 3.3).
func escapePath(s string) string {
	var all, least strings.Builder
	for _, c := range []byte(s) {
		escaped := fmt.Sprintf("%%%02X", c)
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("-._~/", c) >= 0 {
			all.WriteByte(c)
		} else {
			all.WriteString(escaped)
		}
		if c > ' ' && c < 0x7f {
			least.WriteByte(c)
		} else {
			least.WriteString(escaped)
		}
	}
	if all.Len() > maxPath {
		return least.String()
	}
	return all.String()
}

func checkDecision(t *testing.T, p *Policy, rules []Rule, d Default, r Request, id *Identity) {
	t.Helper()
	effect, i := naiveStrict(rules, d, r, id, now)
	name, line := "default", 0
	if i >= 0 {
		name, line = rules[i].Name, rules[i].Line
	}
	got := p.Decide(r, id, now)
	if got.Effect != effect || got.Rule != name || got.Line != line {
		t.Fatalf("%+v for %+v with %+v: got %+v, want %v of %s", r, id, rules, got, effect, name)
	}
	if anonymous := id == nil || !now.Before(id.Expiry); anonymous && got.Effect == Allow && (i < 0 || !rules[i].Anyone) {
		t.Fatalf("%+v with %+v: anonymous request allowed by %+v", r, rules, got)
	}
	if got.Effect == Authenticate && id != nil && now.Before(id.Expiry) {
		t.Fatalf("%+v: somebody who is signed in is asked to sign in: %+v", r, got)
	}
}

// naiveStrict is naive for users and e-mail addresses of any text: an e-mail address is visible ASCII with one @, and
// is compared without regard to ASCII case only.
func naiveStrict(rules []Rule, d Default, r Request, id *Identity, now time.Time) (effect Effect, rule int) {
	signedIn := id != nil && now.Before(id.Expiry)
	for i, c := range rules {
		if !anyMatches(c.Hosts, r.Host, naiveHost) || !anyMatches(c.Paths, r.Path, naivePath) || len(c.Methods) > 0 && !slices.Contains(c.Methods, r.Method) {
			continue
		}
		switch {
		case c.Anyone:
			return Allow, i
		case !signedIn:
			return Authenticate, i
		}
		for _, g := range id.Groups {
			if slices.Contains(c.Groups, g) {
				return Allow, i
			}
		}
		for _, u := range c.Users {
			connector, userID, pair := strings.Cut(u, ":")
			if pair && connector == id.Connector && userID == id.UserID || !pair && plainEmail(id.Email) && lowerASCII(u) == lowerASCII(id.Email) {
				return Allow, i
			}
		}
		return Deny, i
	}
	switch {
	case d == DefaultDeny:
		return Deny, -1
	case !signedIn:
		return Authenticate, -1
	}
	return Allow, -1
}

func plainEmail(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && local != "" && domain != "" && !strings.Contains(domain, "@") && len(s) <= 254 &&
		!strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
