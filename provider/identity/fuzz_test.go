package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"gatehouse/connectors"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

// recorder is a directory that remembers what it was asked. Its user "alice" has the password "right".
type recorder struct{ user, password string }

func (r *recorder) Prompt() string { return "" }

func (r *recorder) Login(_ context.Context, _ connector.Scopes, user, password string) (connector.Identity, bool, error) {
	r.user, r.password = user, password
	return connector.Identity{UserID: "id-" + user}, user == "alice" && password == "right", nil
}

// FuzzCheckPassword holds that a directory is asked for what can be a user and a password only, that whoever is let in gave the right ones, and that no spelling of a name
// gets more guesses than its limit.
func FuzzCheckPassword(f *testing.F) {
	for _, s := range []string{"alice", "", " alice ", "ALICE", "alice\x00", "ali\nce", "*)(uid=*", "\u00a0", "\uff41lice", strings.Repeat("a", 257), "\xff", "al\u200bice", "İ", "ß", "a  b\tc"} {
		for _, password := range []string{"right", "", "x", "right\x00", strings.Repeat("x", 73), strings.Repeat("x", 1025), "\xff"} {
			f.Add(s, password)
		}
	}
	now := time.Now()
	limits := Limits{PerUser: 3, Window: time.Hour, Entries: 100}
	st := store.Memory(store.Options{})
	f.Fuzz(func(t *testing.T, user, password string) {
		clock := func() time.Time { return now }
		r := &recorder{}
		doors := &Doors{
			opts:  Options{Limits: limits, Store: st, Now: clock, Log: slog.New(slog.DiscardHandler)},
			users: newLimiter(limits.Window, limits.Entries, clock), networks: newLimiter(limits.Window, limits.Entries, clock),
		}
		d, err := newDoor(doors, storage.Connector{ID: "dir", Type: "ldap"}, r)
		if err != nil {
			t.Fatal(err)
		}
		id, err := d.CheckPassword(context.Background(), Login{User: user, Password: password}) //nolint:usetesting // the context of a fuzz target is not made for 100,000 runs a second
		right := strings.TrimSpace(user) == "alice" && len(user) <= maxLogin && password == "right"
		if (err == nil) != right || err != nil && id.UserID != "" {
			t.Fatalf("%q with %q: got %+v, %v", user, password, id, err)
		}
		var no *connectors.Refusal
		if err != nil && (!errors.As(err, &no) || no.Reason != connectors.WrongCredentials) {
			t.Fatalf("%q with %q: got %v, want a *Refusal", user, password, err)
		}
		if r.user == "" {
			if r.password != "" {
				t.Fatalf("%q with %q: asked for nobody", user, password)
			}
			return
		}
		if r.user != strings.TrimSpace(user) || r.password != password || password == "" || len(password) > maxPassword || len(r.user) > maxLogin ||
			strings.ContainsFunc(r.user, unicode.IsControl) || strings.ContainsRune(password, 0) {
			t.Fatalf("%q with %q: asked for %q with %q", user, password, r.user, r.password)
		}
		holdLimit(t, d, r.user, limits.PerUser, right)
	})
}

// holdLimit guesses at one user in many spellings.
func holdLimit(t *testing.T, d *Door, user string, limit int, right bool) {
	t.Helper()
	spellings := []string{user, eachByte(user, asciiUpper), eachByte(user, asciiLower), " " + user + "\u3000", strings.ReplaceAll(user, " ", "  ")}
	failures := 1
	if right {
		failures = 0
	}
	for i := range 2 * len(spellings) {
		in := Login{User: spellings[i%len(spellings)], Password: fmt.Sprint("wrong", i)}
		if len(in.User) > maxLogin {
			continue
		}
		_, err := d.CheckPassword(context.Background(), in) //nolint:usetesting // as above
		var no *connectors.Refusal
		if !errors.As(err, &no) || (no.Reason == connectors.Throttled) != (failures >= limit) {
			t.Fatalf("%q: guess %d as %q: got %v after %d failures, want at most %d", user, i, in.User, err, failures, limit)
		}
		if no.Reason == connectors.WrongCredentials {
			failures++
		}
	}
}

func eachByte(s string, f func(byte) byte) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = f(c)
	}
	return string(b)
}

func asciiUpper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

func asciiLower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c - 'A' + 'a'
	}
	return c
}

// FuzzNetwork holds that the addresses of one subscriber are one network, that those of others are others, and that what is no address is none.
func FuzzNetwork(f *testing.F) {
	for _, s := range []string{"192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "2001:db8:0:0:ffff::", "fe80::1%eth0", "", "192.0.2.7:80", "192.0.2.7,198.51.100.1", "::", "0x7f.1", "[::1]", "::ffff:0:0"} {
		f.Add(s, uint64(1))
	}
	f.Fuzz(func(t *testing.T, s string, low uint64) {
		got := Network(s)
		a, err := netip.ParseAddr(s)
		if (got == "") != (err != nil) {
			t.Fatalf("%q is of network %q", s, got)
		}
		if err != nil {
			return
		}
		if a = a.Unmap(); a.Is4() {
			if got != a.String() || Network("::ffff:"+got) != got || Network(a.Next().String()) == got {
				t.Fatalf("%q is of network %q", s, got)
			}
			return
		}
		b := a.As16()
		for i := range 8 {
			b[8+i] = byte(low >> (8 * i))
		}
		if other := netip.AddrFrom16(b); !other.Is4In6() && Network(other.String()) != got {
			t.Fatalf("%q and %q of one /64 are of networks %q and %q", s, other, got, Network(other.String()))
		}
		b[7] ^= 1
		if other := netip.AddrFrom16(b); !other.Is4In6() && Network(other.String()) == got {
			t.Fatalf("%q and %q are of one network %q", s, other, got)
		}
	})
}
