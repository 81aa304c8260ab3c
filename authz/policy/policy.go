// Package policy decides whether a request may pass, from its arguments alone.
//
// A Policy is a list of rules; the first that matches a request decides. It is compiled into an index by
// host and path, so that a decision costs the same with ten rules and with ten thousand.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// An Effect is what a decision does. The zero value denies.
type Effect uint8

const (
	Deny         Effect = iota // refuse with 403
	Allow                      // pass to the app
	Authenticate               // the caller must sign in first
)

// String returns deny, allow or sign-in.
func (e Effect) String() string {
	switch e {
	case Allow:
		return "allow"
	case Authenticate:
		return "sign-in"
	case Deny:
	}
	return "deny"
}

// A Request is what rules look at: canonical, see ParseRequest.
type Request struct {
	Method string // as sent; methods are case-sensitive (RFC 9110 section 9.1)
	Host   string // canonical host without port (hosts.Canonical)
	Path   string // decoded and normalised, without query
}

// An Identity is a signed-in user or a verified token's subject. It is immutable.
type Identity struct {
	Connector         string // id of the connector that vouches for the user
	UserID            string // unique and never reassigned within Connector
	Email             string
	Name              string
	PreferredUsername string
	Groups            []string
	Expiry            time.Time // good before this time, not at it
}

// A Rule opens or guards what it matches. All of Hosts, Paths and Methods must match; an empty list matches everything.
//
// Hosts are exact names or *.domain, which is any name below domain at any depth, but not domain itself.
// Names are canonical: lower case, without port.
//
// Paths are compared with the decoded path, case-sensitively, as a whole: /admin and /admin/ are two paths.
// A segment * is exactly one segment that is not empty. A last segment ** is everything below and the path
// above itself: /admin/** is /admin, /admin/ and /admin/users, but not /administrator; /** is every path.
// Nothing else is a wildcard.
//
// Methods are upper-case; HEAD and OPTIONS are methods like any other.
//
// Groups are compared exactly, byte by byte. A user is connector:userID, compared exactly, or an e-mail
// address, compared without regard to ASCII case. An e-mail address names whoever has it at any connector:
// where two connectors could vouch for one address, use connector:userID.
type Rule struct {
	Name    string // unique; an empty one becomes rules[i]
	Line    int    // where it stands in the file, for people
	Hosts   []string
	Paths   []string
	Methods []string
	Anyone  bool     // allow without sign-in; excludes Groups and Users
	Groups  []string // one of these, or one of Users
	Users   []string // e-mail address, or connector:userID
}

// A Default decides where no rule matches.
type Default uint8

const (
	DefaultDeny     Default = iota // nobody passes
	DefaultSignedIn                // every signed-in user passes
)

// A Decision is the answer to one request. Its zero value denies.
type Decision struct {
	Effect Effect
	Reason Reason
	Rule   string // name of the rule that decided; "default" where none matched
	Line   int    // of that rule; 0 for the default
}

// A Reason says why, in a bounded set of words for metrics and audit.
type Reason string

// All reasons.
const (
	ReasonAnyone          Reason = "rule-anyone"       // the rule is open
	ReasonGroup           Reason = "rule-group"        // the caller is in one of the rule's groups
	ReasonUser            Reason = "rule-user"         // the caller is one of the rule's users
	ReasonNotInGroup      Reason = "not-in-group"      // the caller is in none of the rule's groups and none of its users
	ReasonSignIn          Reason = "sign-in-needed"    // the caller is not signed in, or no longer
	ReasonDefaultSignedIn Reason = "default-signed-in" // no rule matches and every signed-in user passes
	ReasonDefaultDeny     Reason = "default-deny"      // no rule matches and nobody passes
	ReasonNotParsed       Reason = "request-not-parsed"
)

// defaultRule is the name of what decides where no rule matches.
const defaultRule = "default"

// Policy is an immutable compiled list of rules. A nil Policy and the zero value deny everything.
type Policy struct {
	rules    []rule
	index    index
	fallback Default
	warnings []*RuleError
}

// New compiles rules: the first that matches decides. Every mistake is returned, joined; each is a *RuleError.
func New(rules []Rule, d Default) (*Policy, error) {
	var errs []error
	if d != DefaultDeny && d != DefaultSignedIn {
		errs = append(errs, &RuleError{Index: -1, Field: "default", Err: fmt.Errorf("got %d, want DefaultDeny or DefaultSignedIn", d)})
	}
	p := &Policy{fallback: d, rules: make([]rule, 0, len(rules))}
	names := make(map[string]int, len(rules))
	for i := range rules {
		r := &rules[i]
		c := compiler{index: i, rule: r}
		compiled := c.compile(names)
		for _, e := range c.errs {
			errs = append(errs, e)
		}
		p.rules = append(p.rules, compiled)
		p.warnings = append(p.warnings, c.warnings...)
		if len(errs) > 0 {
			continue // the index is of valid patterns only
		}
		shadow := p.index.shadow(r)
		if err := p.index.add(r, int32(i)); err != nil {
			errs = append(errs, c.fault("", err))
		}
		if shadow != none {
			p.warnings = append(p.warnings, c.fault("", fmt.Errorf(
				"never decides: rule %q (line %d) above it matches everything that it matches; move it up or remove it",
				p.rules[shadow].name, p.rules[shadow].line)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// Warnings returns what is allowed but most likely a mistake: rules that never decide, and things listed twice.
func (p *Policy) Warnings() []*RuleError {
	if p == nil {
		return nil
	}
	return slices.Clone(p.warnings)
}

// Decide returns the decision of the first rule that matches r, else the policy's default. id is nil for an
// anonymous caller; an id that has expired at now is one too. Decide does not allocate and is safe for
// concurrent use.
func (p *Policy) Decide(r Request, id *Identity, now time.Time) Decision {
	if !strings.HasPrefix(r.Path, "/") {
		return Decision{Reason: ReasonNotParsed, Rule: defaultRule}
	}
	if p == nil {
		return Decision{Reason: ReasonDefaultDeny, Rule: defaultRule}
	}
	if id != nil && !now.Before(id.Expiry) {
		id = nil
	}
	if i := p.index.first(r.Host, r.Path, r.Method); i != none {
		return p.rules[i].decide(id)
	}
	switch {
	case p.fallback != DefaultSignedIn:
		return Decision{Reason: ReasonDefaultDeny, Rule: defaultRule}
	case id == nil:
		return Decision{Effect: Authenticate, Reason: ReasonSignIn, Rule: defaultRule}
	}
	return Decision{Effect: Allow, Reason: ReasonDefaultSignedIn, Rule: defaultRule}
}
