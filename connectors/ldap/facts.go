package ldap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// facts are what a directory says of itself.
type facts struct {
	activeDirectory bool
	netbios         string                   // the name of the users' domain before a backslash
	maxFailures     int                      // after which an account is locked, the smallest of all policies; 0: none, or not known
	counted         time.Duration            // how long failures count, the longest of all policies; 0: not known
	lockedFor       map[string]time.Duration // by the folded name of a policy; 0: until somebody unlocks the account
}

const (
	learnAgain  = 10 * time.Minute
	learnRetry  = 30 * time.Second
	maxPolicies = 1000
	capability  = "1.2.840.113556.1.4.800" // of Active Directory (MS-ADTS section 3.1.1.3.4.3)
)

// learnOn keeps the facts until ctx ends.
func (c *Connector) learnOn(ctx context.Context) {
	once := sync.OnceFunc(func() { close(c.asked) })
	defer once()
	for ctx.Err() == nil {
		wait := learnAgain
		within, cancel := context.WithTimeout(ctx, time.Duration(c.settings.Timeouts.Dial+4*c.settings.Timeouts.Request))
		if _, err := c.learn(within); err != nil {
			wait = learnRetry
			c.log.DebugContext(ctx, "the directory does not tell about itself", slog.Any("error", err))
		}
		cancel()
		once()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// firstFacts is how long a sign-in right after the start waits for the facts.
const firstFacts = 3 * time.Second

// informed waits until the directory was asked about itself once: else the first failures could be more than lock an account.
func (c *Connector) informed(ctx context.Context) {
	if c.asked == nil || c.settings.Lockout.MaxFailures > 0 || c.facts.Load() != nil {
		return
	}
	t := time.NewTimer(c.patience)
	defer t.Stop()
	select {
	case <-c.asked:
	case <-t.C:
	case <-ctx.Done():
	}
}

// known returns the facts, and asks for them if they are not there yet.
func (c *Connector) known(ctx context.Context) (*facts, error) {
	if f := c.facts.Load(); f != nil {
		return f, nil
	}
	return c.learn(ctx)
}

// learn asks a directory about itself. What an account of ours may not read stays unknown.
func (c *Connector) learn(ctx context.Context) (*facts, error) {
	root, err := c.one(ctx, "", "supportedCapabilities", "configurationNamingContext", "namingContexts")
	if err != nil {
		return nil, err
	}
	f := &facts{activeDirectory: c.settings.activeDirectory()}
	if root != nil {
		f.activeDirectory = f.activeDirectory || slices.Contains(root.texts("supportedCapabilities"), capability)
	}
	if f.activeDirectory {
		err = c.learnDomain(ctx, root, f)
	} else {
		err = c.learnPolicies(ctx, root, f)
	}
	if err != nil {
		return nil, err
	}
	if old := c.facts.Load(); old != nil { // a server that is busy may leave a search unanswered
		f.maxFailures = cmp.Or(f.maxFailures, old.maxFailures)
		f.counted = cmp.Or(f.counted, old.counted)
		f.netbios = cmp.Or(f.netbios, old.netbios)
	}
	c.facts.Store(f)
	return f, nil
}

// ask searches for what is good to know. What the directory does not let our account see is not known.
func (c *Connector) ask(ctx context.Context, q query) ([]*entry, error) {
	found, err := c.client.search(ctx, q)
	if _, refused := errors.AsType[*serviceRefused](err); refused { // nobody has looked: all else would be taken for not there
		return nil, err
	}
	e, answered := errors.AsType[*ldapv3.Error](err)
	if errors.Is(err, errTooMany) || errors.Is(err, errAnswer) || answered && e.ResultCode < ldapv3.ErrorNetwork && !errors.Is(err, errNoDirectory) {
		c.log.DebugContext(ctx, "the directory does not tell about itself", slog.String("base", q.base), slog.Any("error", err))
		return nil, nil
	}
	return found, err
}

// isActiveDirectory says so as far as it is known.
func (c *Connector) isActiveDirectory() bool {
	f := c.facts.Load()
	return c.settings.activeDirectory() || f != nil && f.activeDirectory
}

// one reads one entry, nil if it is not there.
func (c *Connector) one(ctx context.Context, dn string, attributes ...string) (*entry, error) {
	found, err := c.ask(ctx, query{base: dn, scope: ldapv3.ScopeBaseObject, filter: "(objectClass=*)", attributes: attributes, limit: 1})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

func (c *Connector) learnDomain(ctx context.Context, root *entry, f *facts) error {
	domain := domainOf(c.settings.UserSearch.BaseDN)
	if domain == "" {
		return nil
	}
	head, err := c.one(ctx, domain, "lockoutThreshold", "lockOutObservationWindow")
	if err != nil {
		return err
	}
	if head != nil {
		f.least(number(head, "lockoutThreshold"))
		f.longest(interval(number(head, "lockOutObservationWindow")))
	}
	fine, err := c.ask(ctx, query{
		base: "CN=Password Settings Container,CN=System," + domain, scope: ldapv3.ScopeWholeSubtree,
		filter: "(objectClass=msDS-PasswordSettings)", attributes: []string{"msDS-LockoutThreshold", "msDS-LockoutObservationWindow"}, limit: maxPolicies,
	})
	if err != nil {
		return err
	}
	for _, p := range fine {
		f.least(number(p, "msDS-LockoutThreshold"))
		f.longest(interval(number(p, "msDS-LockoutObservationWindow")))
	}
	if root == nil || root.text("configurationNamingContext") == "" {
		return nil
	}
	cross, err := c.ask(ctx, query{
		base: "CN=Partitions," + root.text("configurationNamingContext"), scope: ldapv3.ScopeSingleLevel,
		filter:     fmt.Sprintf("(&(objectClass=crossRef)(nETBIOSName=*)%s)", equals("nCName", domain)),
		attributes: []string{"nETBIOSName"}, limit: 1,
	})
	if err == nil && len(cross) == 1 {
		f.netbios = cross[0].value("nETBIOSName", maxText)
	}
	return err
}

// learnPolicies reads the password policies of OpenLDAP and FreeIPA.
func (c *Connector) learnPolicies(ctx context.Context, root *entry, f *facts) error {
	base, scope := c.policyBase(root), ldapv3.ScopeWholeSubtree
	if dn := c.settings.Lockout.PolicyDN; dn != "" {
		base, scope = dn, ldapv3.ScopeBaseObject
	}
	found, err := c.ask(ctx, query{
		base: base, scope: scope, filter: "(|(objectClass=pwdPolicy)(objectClass=krbPwdPolicy))", limit: maxPolicies,
		attributes: []string{"pwdLockout", "pwdMaxFailure", "pwdLockoutDuration", "pwdFailureCountInterval", "krbPwdMaxFailure", "krbPwdFailureCountInterval"},
	})
	if err != nil {
		return err
	}
	f.lockedFor = map[string]time.Duration{}
	for _, p := range found {
		f.least(number(p, "krbPwdMaxFailure"))
		if strings.EqualFold(p.text("pwdLockout"), "TRUE") {
			f.least(number(p, "pwdMaxFailure"))
			f.longest(untilSuccess(number(p, "pwdFailureCountInterval")))
		}
		if number(p, "krbPwdMaxFailure") > 0 {
			f.longest(untilSuccess(number(p, "krbPwdFailureCountInterval")))
		}
		if d := number(p, "pwdLockoutDuration"); d > 0 && d < 1<<32 {
			f.lockedFor[foldDN(p.dn)] = time.Duration(d) * time.Second
		} else {
			f.lockedFor[foldDN(p.dn)] = 0
		}
	}
	return nil
}

// policyBase is the naming context that users are in.
func (c *Connector) policyBase(root *entry) string {
	users := foldDN(c.settings.UserSearch.BaseDN)
	if root != nil {
		for _, n := range root.texts("namingContexts") {
			if n != "" && (users == foldDN(n) || strings.HasSuffix(users, ","+foldDN(n))) {
				return n
			}
		}
	}
	if d := domainOf(c.settings.UserSearch.BaseDN); d != "" {
		return d
	}
	return c.settings.UserSearch.BaseDN
}

// least takes a number of failures, if there is one.
func (f *facts) least(n int64) {
	if n > 0 && n < 1<<31 && (f.maxFailures == 0 || int(n) < f.maxFailures) {
		f.maxFailures = int(n)
	}
}

// longest takes how long failures count.
func (f *facts) longest(d time.Duration) { f.counted = max(f.counted, d) }

// forever is how long failures count that only a right password ends.
const forever = 1<<63 - 1

// interval reads a negative number of units of 100 ns (MS-ADTS section 3.1.1.8.4).
func interval(n int64) time.Duration {
	if n > 0 || n < -forever/100 {
		return forever
	}
	return time.Duration(-n * 100)
}

// untilSuccess reads a number of seconds, of which none is forever (draft-behera-ldap-password-policy section 5.2.12).
func untilSuccess(n int64) time.Duration {
	if n <= 0 || n > forever/int64(time.Second) {
		return forever
	}
	return time.Duration(n) * time.Second
}

// FailureWindow is how long the directory counts a wrong password towards its lock-out; 0: it is not known.
func (c *Connector) FailureWindow() time.Duration {
	if f := c.facts.Load(); f != nil {
		return f.counted
	}
	return 0
}

// lockedFor is how long the policy of an entry locks it, 0 until somebody unlocks it or if that is not known.
func (c *Connector) lockedFor(e *entry) time.Duration {
	f := c.facts.Load()
	if f == nil {
		return 0
	}
	if dn := e.text("pwdPolicySubentry"); dn != "" {
		return f.lockedFor[foldDN(dn)]
	}
	if len(f.lockedFor) == 1 { // the default one, which entries do not name
		for _, d := range f.lockedFor {
			return d
		}
	}
	return f.lockedFor[foldDN(c.settings.Lockout.PolicyDN)]
}
