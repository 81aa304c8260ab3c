package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a rule's texts, in bytes.
const (
	maxName  = 128
	maxGroup = 1 << 10
	maxEmail = 254 // RFC 5321 section 4.5.3.1.3, less the angle brackets
)

// manyGroups is the number of a rule's groups from which on a map is cheaper than comparing each.
const manyGroups = 8

// A RuleError says what is wrong with a rule and how to mend it.
type RuleError struct {
	Index int // of the rule; -1 for the default
	Name  string
	Field string // "paths", "hosts", … or "" for the rule as a whole
	Err   error
}

// Error returns a text such as: rules[1] "admin": paths: "/a*": …
func (e *RuleError) Error() string {
	var b strings.Builder
	if e.Index >= 0 {
		fmt.Fprintf(&b, "rules[%d]", e.Index)
		if e.Name != "" {
			fmt.Fprintf(&b, " %q", e.Name)
		}
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	return b.String() + e.Err.Error()
}

// Unwrap returns the cause.
func (e *RuleError) Unwrap() error { return e.Err }

// rule is what is needed of a Rule once it has matched.
type rule struct {
	name     string
	line     int
	anyone   bool
	groups   []string
	groupSet map[string]struct{} // the same as groups, where they are many
	users    map[subject]struct{}
	emails   map[string]struct{} // in lower case
}

type subject struct{ connector, userID string }

func (r *rule) decide(id *Identity) Decision {
	d := Decision{Effect: Allow, Rule: r.name, Line: r.line}
	switch {
	case r.anyone:
		d.Reason = ReasonAnyone
	case id == nil:
		d.Effect, d.Reason = Authenticate, ReasonSignIn
	case r.hasGroup(id.Groups):
		d.Reason = ReasonGroup
	case r.hasUser(id):
		d.Reason = ReasonUser
	default:
		d.Effect, d.Reason = Deny, ReasonNotInGroup
	}
	return d
}

func (r *rule) hasGroup(groups []string) bool {
	for _, g := range groups {
		if r.groupSet != nil {
			if _, ok := r.groupSet[g]; ok {
				return true
			}
		} else if slices.Contains(r.groups, g) {
			return true
		}
	}
	return false
}

func (r *rule) hasUser(id *Identity) bool {
	if _, ok := r.users[subject{id.Connector, id.UserID}]; ok {
		return true
	}
	if len(r.emails) == 0 {
		return false
	}
	var buf [maxEmail]byte
	n, ok := foldEmail(&buf, id.Email)
	if !ok {
		return false
	}
	_, found := r.emails[string(buf[:n])]
	return found
}

// foldEmail writes s to dst in lower case. It fails for what two programs could take for different
// addresses: anything but visible ASCII, and anything but one @ between two non-empty parts.
func foldEmail(dst *[maxEmail]byte, s string) (n int, ok bool) {
	if len(s) > len(dst) {
		return 0, false
	}
	at := 0
	for i := range len(s) {
		c := s[i]
		switch {
		case c <= ' ' || c > '~':
			return 0, false
		case c == '@':
			if at++; at > 1 || i == 0 || i == len(s)-1 {
				return 0, false
			}
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		}
		dst[i] = c
	}
	return len(s), at == 1
}

// A compiler compiles one rule and collects what is wrong with it.
type compiler struct {
	index    int
	rule     *Rule
	errs     []*RuleError
	warnings []*RuleError
}

func (c *compiler) fault(field string, err error) *RuleError {
	return &RuleError{Index: c.index, Name: c.rule.Name, Field: field, Err: err}
}

func (c *compiler) fail(field, format string, args ...any) {
	c.errs = append(c.errs, c.fault(field, fmt.Errorf(format, args...)))
}

// compile checks all of the rule. names are those of the rules before it, with their index.
func (c *compiler) compile(names map[string]int) rule {
	r := rule{name: c.name(names), line: c.rule.Line, anyone: c.rule.Anyone}
	for _, list := range []struct {
		field  string
		values []string
		check  func(string) error
	}{
		{"hosts", c.rule.Hosts, checkHost},
		{"paths", c.rule.Paths, checkPath},
		{"methods", c.rule.Methods, checkMethod},
		{"groups", c.rule.Groups, checkGroup},
		{"users", c.rule.Users, checkUser},
	} {
		c.check(list.field, list.values, list.check)
	}
	guarded := len(c.rule.Groups)+len(c.rule.Users) > 0
	switch {
	case c.rule.Anyone && guarded:
		c.fail("", "has allow: anyone, and groups or users: keep one of the two")
	case !c.rule.Anyone && !guarded:
		c.fail("", "needs allow: anyone or at least one of groups, users")
	}
	if len(c.errs) > 0 {
		return r
	}
	r.groups = slices.Clone(c.rule.Groups)
	if len(r.groups) >= manyGroups {
		r.groupSet = make(map[string]struct{}, len(r.groups))
		for _, g := range r.groups {
			r.groupSet[g] = struct{}{}
		}
	}
	for _, u := range c.rule.Users {
		r.addUser(u)
	}
	return r
}

func (c *compiler) name(names map[string]int) string {
	name := c.rule.Name
	switch {
	case name == "":
		name = fmt.Sprintf("rules[%d]", c.index)
	case name == defaultRule:
		c.fail("name", "%q is the name of what decides where no rule matches: take another", defaultRule)
	case len(name) > maxName || !printable(name):
		c.fail("name", "want at most %d bytes of printable text", maxName)
	}
	if i, dup := names[name]; dup {
		c.fail("name", "%q is the name of rules[%d] too: audit and metrics could not tell them apart, so rename one", name, i)
	} else {
		names[name] = c.index
	}
	return name
}

func (c *compiler) check(field string, values []string, check func(string) error) {
	seen := make(map[string]bool, len(values))
	for _, v := range values {
		if err := check(v); err != nil {
			c.fail(field, "%q: %w", v, err)
		} else if seen[v] {
			c.warnings = append(c.warnings, c.fault(field, fmt.Errorf("%q: is listed twice; remove one", v)))
		}
		seen[v] = true
	}
}

func (r *rule) addUser(u string) {
	if connector, userID, ok := strings.Cut(u, ":"); ok {
		if r.users == nil {
			r.users = make(map[subject]struct{})
		}
		r.users[subject{connector, userID}] = struct{}{}
		return
	}
	var buf [maxEmail]byte
	if n, ok := foldEmail(&buf, u); ok { // checkUser has seen to it
		if r.emails == nil {
			r.emails = make(map[string]struct{})
		}
		r.emails[string(buf[:n])] = struct{}{}
	}
}

func checkUser(u string) error {
	connector, userID, ok := strings.Cut(u, ":")
	switch {
	case u == "":
		return errors.New("is empty: want an e-mail address or connector:userID")
	case !printable(u):
		return errors.New("want printable UTF-8")
	case !ok:
		var buf [maxEmail]byte
		if _, ok := foldEmail(&buf, u); !ok {
			return errors.New("want an e-mail address of visible ASCII with one @, or connector:userID")
		}
	case connector == "" || userID == "":
		return errors.New("want both parts of connector:userID")
	case strings.TrimSpace(connector) != connector || strings.TrimSpace(userID) != userID:
		return errors.New("remove the blanks at the edges of connector and userID")
	}
	return nil
}

func checkGroup(g string) error {
	switch {
	case strings.TrimSpace(g) == "":
		return errors.New("is empty: name a group, or remove the entry")
	case strings.TrimSpace(g) != g:
		return errors.New("remove the blanks at its edges: groups are compared exactly, so it would never match")
	case len(g) > maxGroup || !printable(g):
		return fmt.Errorf("want at most %d bytes of printable UTF-8", maxGroup)
	}
	return nil
}

func checkMethod(m string) error {
	switch {
	case m == "*" || m == "ANY" || m == "ALL":
		return errors.New("leave methods out: a rule without methods matches every method")
	case !token(m) || len(m) > maxMethod:
		return fmt.Errorf("want an HTTP method of at most %d bytes, such as GET", maxMethod)
	case strings.ToUpper(m) != m:
		return fmt.Errorf("methods are case-sensitive: write %s", strings.ToUpper(m))
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
