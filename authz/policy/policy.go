// Package policy decides whether a request may pass, from its arguments alone.
package policy

import "time"

// An Effect is what a decision does. The zero value denies.
type Effect uint8

const (
	Deny         Effect = iota // refuse with 403
	Allow                      // pass to the app
	Authenticate               // the caller must sign in first
)

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
type Rule struct {
	Name    string
	Line    int // where it stands in the file, for people
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

// Policy is an immutable compiled list of rules.
type Policy struct{}

// New compiles rules: the first that matches decides. Every mistake is returned, joined; each is a *RuleError.
func New(rules []Rule, d Default) (*Policy, error) { return nil, nil }

// A RuleError says what is wrong with a rule and how to mend it.
type RuleError struct {
	Index int // of the rule
	Name  string
	Field string // "paths", "hosts", … or "" for the rule as a whole
	Err   error
}

func (e *RuleError) Error() string { return "" }

// ParseRequest makes a Request of what a client sent; path may carry a query. It fails for whatever two
// programs could read differently.
func ParseRequest(method, host, path string) (Request, error) { return Request{}, nil }

// Decide returns the decision of the first rule that matches r, else the policy's default. id is nil for an
// anonymous caller. Decide does not allocate and is safe for concurrent use.
func (p *Policy) Decide(r Request, id *Identity, now time.Time) Decision { return Decision{} }
