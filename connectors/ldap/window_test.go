package ldap

import (
	"testing"
	"time"

	"gatehouse/test/peers"
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
