// Package connectors is the contract between Gatehouse and whatever vouches for its users: a directory, an
// upstream identity provider, the static users.
package connectors

import (
	"fmt"
	"time"
)

// A Reason is why a sign-in was refused, in a bounded set of words for pages, metrics and the audit log.
type Reason string

// The reasons. A page tells a stranger no more than the reason itself.
const (
	WrongCredentials Reason = "wrong-credentials" //nolint:gosec // G101: a word, no credential; user name or password: which of them is not told
	Blocked          Reason = "blocked"           // an administrator has blocked the user
	NotAllowed       Reason = "not-allowed"       // known and proven, but in none of the connector's required groups
	Throttled        Reason = "throttled"         // too many failures; nothing was checked
	Busy             Reason = "busy"              // too many sign-ins at once; nothing was checked
	Unavailable      Reason = "unavailable"       // the connector could not find out
	UpstreamRefused  Reason = "upstream-refused"  // the upstream identity provider said no
)

// A Refusal is the error of a sign-in that did not succeed.
type Refusal struct {
	Reason Reason
	// RetryAfter is when to try again, for Throttled and Busy.
	RetryAfter time.Duration
	// Detail is what an upstream identity provider says to the user. It is untrusted text.
	Detail string
	// Err is the cause, for the log of the operator.
	Err error
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return fmt.Sprintf("sign-in refused: %s: %v", r.Reason, r.Err)
	}
	return "sign-in refused: " + string(r.Reason)
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }
