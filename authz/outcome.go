package authz

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/authz/policy"
)

// An outcome is how a check ended.
type outcome struct {
	kind   kind
	status int           // of the HTTP answer; 200 for an allow
	rule   string        // that decided, if a rule did
	line   int           // of that rule
	reason policy.Reason // that the policy gave, if it decided
}

// A kind is one of a bounded set of outcomes.
type kind uint8

const (
	failedUnknown kind = iota // the zero value: nothing decided
	failedPanic
	failedNoConfig
	failedSession
	failedSignOut
	failedToken
	failedTokenBudget
	invalidMalformed
	invalidAmbiguous
	invalidConnection
	invalidLoop
	invalidHandoff
	invalidNoCookie
	invalidForm
	invalidMethod
	deniedHost
	deniedBlocked
	deniedRule
	deniedClient
	unauthenticatedNone
	unauthenticatedBearer
	signInNavigation
	signInAsked
	allowedIssuer
	allowedAnyone
	allowedIdentity
	ownHandoff
	ownHandoffAgain
	ownSignOutAsked
	ownSignedOut
	ownWho
	ownNotFound
	ownAlreadySignedIn
	kinds // how many there are
)

// outcomes are the decision and the reason of each kind, as they stand in metrics, audit and metadata. It is never written to.
var outcomes = [kinds]struct{ decision, reason string }{
	failedUnknown:         {"unavailable", "undecided"},
	failedPanic:           {"unavailable", "panic"},
	failedNoConfig:        {"unavailable", "no-config"},
	failedSession:         {"unavailable", "session-unverified"},
	failedSignOut:         {"unavailable", "sign-out-failed"},
	failedToken:           {"unavailable", "token-unsigned"},
	failedTokenBudget:     {"unavailable", "token-budget"},
	invalidMalformed:      {"invalid", "malformed"},
	invalidAmbiguous:      {"invalid", "ambiguous"},
	invalidConnection:     {"invalid", "connection-header"},
	invalidLoop:           {"invalid", "sign-in-loop"},
	invalidHandoff:        {"invalid", "hand-off"},
	invalidNoCookie:       {"invalid", "no-pre-cookie"},
	invalidForm:           {"invalid", "form"},
	invalidMethod:         {"invalid", "method"},
	deniedHost:            {"deny", "unlisted-host"},
	deniedBlocked:         {"deny", "user-blocked"},
	deniedRule:            {"deny", "rule"},
	deniedClient:          {"deny", "anonymous-client"},
	unauthenticatedNone:   {"unauthenticated", "anonymous"},
	unauthenticatedBearer: {"unauthenticated", "bearer"},
	signInNavigation:      {"sign-in", "anonymous"},
	signInAsked:           {"sign-in", "asked"},
	allowedIssuer:         {"allow", "issuer"},
	allowedAnyone:         {"allow", "anyone"},
	allowedIdentity:       {"allow", "identity"},
	ownHandoff:            {"own", "signed-in"},
	ownHandoffAgain:       {"own", "hand-off-again"},
	ownSignOutAsked:       {"own", "sign-out-form"},
	ownSignedOut:          {"own", "signed-out"},
	ownWho:                {"own", "whoami"},
	ownNotFound:           {"own", "not-found"},
	ownAlreadySignedIn:    {"own", "already-signed-in"},
}

// Labels returns the decisions and reasons that gatehouse_checks_total counts, for dashboards and documentation.
func Labels() (pairs [][2]string) {
	for _, o := range outcomes {
		pairs = append(pairs, [2]string{o.decision, o.reason})
	}
	return pairs
}

// metrics are a Server's, resolved beforehand: a check looks nothing up.
type metrics struct {
	checks   [kinds]prometheus.Counter
	duration prometheus.Histogram
	panics   prometheus.Counter
	// auditErrors counts events that were not written. The check is answered all the same: a full disk must not shut
	// everybody out.
	auditErrors prometheus.Counter
	drops       dropCounters

	tokensSigned, tokensFailed, tokensRefused prometheus.Counter
}

// newMetrics registers with r, if it is not nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	checks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_checks_total", Help: "Checks by decision and its reason.",
	}, []string{"decision", "reason"})
	drops := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_identity_dropped_total",
		Help: "Parts of identities that no header can carry: groups with a comma or control character (separator), groups and values beyond the limit (size).",
	}, []string{"reason"})
	tokens := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_app_tokens_total", Help: "Tokens for apps by result: signed, failed, or refused since the session had its share of signatures.",
	}, []string{"result"})
	m := &metrics{
		tokensSigned: tokens.WithLabelValues("signed"), tokensFailed: tokens.WithLabelValues("failed"),
		tokensRefused: tokens.WithLabelValues("refused"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gatehouse_check_duration_seconds", Help: "Time from receiving a check to its answer.",
			Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 50e-3, 250e-3, 1, 2.5},
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatehouse_check_panics_total", Help: "Checks that panicked and were answered with 503.",
		}),
		auditErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatehouse_audit_errors_total", Help: "Audit events of checks that the audit log refused with an error, as it does once it is closed at the end of the process.",
		}),
		drops: dropCounters{separator: drops.WithLabelValues("separator"), size: drops.WithLabelValues("size")},
	}
	for i, o := range outcomes {
		m.checks[i] = checks.WithLabelValues(o.decision, o.reason)
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{checks, drops, tokens, m.duration, m.panics, m.auditErrors} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}
