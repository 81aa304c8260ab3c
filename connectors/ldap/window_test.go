package ldap

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/test/fakeldap"
	"gatehouse/test/peers"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

func TestFailureWindow(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want time.Duration
	}{
		{"of Active Directory", interval(-18000000000), 30 * time.Minute},
		{"not set there", interval(0), 0},
		{"never, there", interval(-1 << 63), forever},
		{"nonsense", interval(5), forever},
		{"of a policy", untilSuccess(900), 15 * time.Minute},
		{"until the next right password", untilSuccess(0), forever},
		{"too much", untilSuccess(1 << 60), forever},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, tt.got, tt.want)
		}
	}
}

// The policy of this directory has no pwdFailureCountInterval.
func TestFailureWindowOfOpenLDAP(t *testing.T) {
	c := open(t, openLDAP(peers.Slapd(t, peers.SlapdOptions{})))
	if _, err := c.known(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.FailureWindow(); got != forever {
		t.Errorf("got %v, want until the next right password", got)
	}
}

// The first sign-in after a start must not have more failures than the directory takes, however late it tells how many that are.
func TestMaxFailuresAtTheStart(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	var once sync.Once
	s := fakeldap.Start(t, fakeldap.Options{Search: func(q fakeldap.Search) fakeldap.SearchAnswer {
		switch {
		case q.Base == "":
			select { // of a server that takes its time
			case <-asked:
			case <-time.After(300 * time.Millisecond):
			}
		case strings.Contains(q.Filter, "pwdPolicy"):
			return one("cn=default,"+fakeBase, attribute("pwdLockout", "TRUE"), attribute("pwdMaxFailure", "3"))
		case strings.Contains(q.Filter, "alice"):
			once.Do(func() { close(asked) })
			return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{somebody("alice")}}
		}
		return fakeldap.SearchAnswer{}
	}})
	c := open(t, fakeConfig(s))
	c.patience = time.Hour
	if find(t, c, "alice"); c.MaxFailures() != 2 {
		t.Errorf("alice is found, and as many as %d failures are allowed, want 2", c.MaxFailures())
	}
}

// A server that is too busy to tell of its policies has them nevertheless.
func TestMaxFailuresAreRemembered(t *testing.T) {
	t.Parallel()
	var busy atomic.Bool
	s := fakeldap.Start(t, fakeldap.Options{Search: func(q fakeldap.Search) fakeldap.SearchAnswer {
		switch {
		case strings.Contains(q.Filter, "pwdPolicy") && busy.Load():
			return fakeldap.SearchAnswer{Result: fakeldap.Result{Code: ldapv3.LDAPResultTimeLimitExceeded}}
		case strings.Contains(q.Filter, "pwdPolicy"):
			return one("cn=default,"+fakeBase, attribute("pwdLockout", "TRUE"), attribute("pwdMaxFailure", "3"))
		}
		return fakeldap.SearchAnswer{}
	}})
	c := open(t, fakeConfig(s))
	for range 2 {
		if _, err := c.learn(waiting(t)); err != nil || c.MaxFailures() != 2 {
			t.Errorf("busy %v: got %d, %v, want 2", busy.Load(), c.MaxFailures(), err)
		}
		busy.Store(true)
	}
}
