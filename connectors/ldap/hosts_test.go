package ldap

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/test/fakeldap"
)

func TestSplitHost(t *testing.T) {
	for in, want := range map[string][2]string{
		"dc1.example": {"dc1.example", "636"}, "dc1.example:3269": {"dc1.example", "3269"}, "[::1]:389": {"::1", "389"}, "::1": {"::1", "636"}, "[::1]": {"::1", "636"},
	} {
		if host, port := splitHost(in, "636"); host != want[0] || port != want[1] {
			t.Errorf("%q: %q %q, wanted %v", in, host, port, want)
		}
	}
}

// TestSRVOrder: priority, then weight by chance (RFC 2782).
func TestSRVOrder(t *testing.T) {
	records := []*net.SRV{{Target: "c", Priority: 20, Weight: 1}, {Target: "a", Priority: 10, Weight: 60}, {Target: "z", Priority: 10, Weight: 0}, {Target: "b", Priority: 10, Weight: 40}}
	for _, c := range []struct {
		pick int // of all weights left
		want []string
	}{{0, []string{"z", "a", "b", "c"}}, {60, []string{"a", "b", "z", "c"}}, {1 << 20, []string{"b", "a", "z", "c"}}} {
		var got []string
		for _, r := range sortSRV(records, func(n int) int { return min(c.pick, n-1) }) {
			got = append(got, r.Target)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d: %v, wanted %v", c.pick, got, c.want)
		}
	}
}

func names2(es []*endpoint) (out []string) {
	for _, e := range es {
		out = append(out, e.addr)
	}
	return out
}

// TestSRV: the site's servers come first, none outside the domain, ldaps at its own port; and the answer is kept for a while, or longer if there is no other.
func TestSRV(t *testing.T) {
	now := time.Unix(0, 0)
	h := newHosts(transport{domain: "corp.example.", site: "Berlin", security: ldaps}, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	h.background = func(f func(context.Context)) { f(t.Context()) }
	var asked []string
	var failing error
	h.lookup = func(_ context.Context, name string) ([]*net.SRV, error) {
		asked = append(asked, name)
		if failing != nil {
			return nil, failing
		}
		if name == "_ldap._tcp.Berlin._sites.dc._msdcs.corp.example" {
			return []*net.SRV{{Target: "DC2.corp.example.", Port: 389, Priority: 1}, {Target: "dc3.corp.example.", Port: 3636, Priority: 0}}, nil
		}
		return []*net.SRV{
			{Target: "dc2.corp.example.", Port: 389}, {Target: "dc1.corp.example.", Port: 389}, {Target: "evil.example.", Port: 389}, {Target: "evilcorp.example.", Port: 389},
		}, nil
	}
	want := []string{"dc3.corp.example:3636", "dc2.corp.example:636", "dc1.corp.example:636"}
	for range 3 {
		if got, err := h.order(t.Context(), nil); err != nil || !slices.Equal(names2(got), want) {
			t.Fatalf("%v %v, wanted %v", names2(got), err, want)
		}
	}
	if wanted := []string{"_ldap._tcp.Berlin._sites.dc._msdcs.corp.example", "_ldap._tcp.corp.example"}; !slices.Equal(asked, wanted) {
		t.Errorf("asked %v, wanted %v", asked, wanted)
	}
	now, failing = now.Add(srvFresh), errors.New("no such host")
	if got, err := h.order(t.Context(), nil); err != nil || !slices.Equal(names2(got), want) {
		t.Errorf("without DNS: %v %v", names2(got), err)
	}
	if len(asked) != 4 {
		t.Errorf("asked %d times, wanted 4", len(asked))
	}
	if e := h.named("DC9.corp.example", "389"); e == nil || e.addr != "dc9.corp.example:636" {
		t.Errorf("a referral within the domain: %+v", e)
	}
	if h.named("corp.example.evil", "") != nil || h.named("dc9.corp.example", "1234") != nil {
		t.Error("a referral out of the domain is taken")
	}
}

func TestNoSRV(t *testing.T) {
	c := start(t, transport{domain: "corp.example", security: ldaps})
	c.hosts.lookup = func(context.Context, string) ([]*net.SRV, error) { return nil, errors.New("no such host") }
	if _, err := c.search(within(t), query{}); !errors.Is(err, errNoDirectory) {
		t.Errorf("%v", err)
	}
}

// TestSRVCertificate: the certificate has to be for the target's name.
func TestSRVCertificate(t *testing.T) {
	for name, cert := range map[string]string{"its own": "dc1.corp.example", "another": "dc2.corp.example"} {
		t.Run(name, func(t *testing.T) {
			s := fakeldap.Start(t, fakeldap.Options{Mode: fakeldap.LDAPS, Names: []string{cert}, Search: found(alice)})
			c := start(t, transport{domain: "corp.example", security: ldaps, tls: tlsOf(s.Pool(), ""), bindDN: svc, bindPW: svcPW, dialTimeout: time.Minute, requestTimeout: time.Minute})
			c.hosts.lookup = func(context.Context, string) ([]*net.SRV, error) {
				return []*net.SRV{{Target: "dc1.corp.example.", Port: 389}}, nil
			}
			dial := c.dialTCP
			var asked atomic.Pointer[string]
			c.dialTCP = func(ctx context.Context, network, addr string) (net.Conn, error) {
				asked.Store(&addr)
				return dial(ctx, network, s.Address())
			}
			_, err := c.search(within(t), query{base: "dc=example"})
			if good := cert == "dc1.corp.example"; (err == nil) != good {
				t.Errorf("%v", err)
			}
			if a := asked.Load(); a == nil || *a != "dc1.corp.example:636" {
				t.Errorf("dialled %v", a)
			}
		})
	}
}

// TestBackOff: a host is put aside for longer each time it fails, but many failures at once are one.
func TestBackOff(t *testing.T) {
	now := time.Unix(0, 0)
	var out bytes.Buffer
	h := newHosts(transport{hosts: []string{"a", "b"}}, func() time.Time { return now }, slog.New(slog.NewTextHandler(&out, nil)))
	a := h.list[0]
	for _, want := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
		for range 10 {
			h.bad(a, errors.New("x"))
		}
		if got := a.until.Sub(now); got != want*time.Second {
			t.Errorf("aside for %v, wanted %v", got, want*time.Second)
		}
		if len(h.due()) != 0 {
			t.Error("due too early")
		}
		if got, _ := h.order(t.Context(), nil); got[0] != h.list[1] {
			t.Error("it is first still")
		}
		now = a.until
		if len(h.due()) != 1 || len(h.due()) != 0 {
			t.Error("not due, or twice")
		}
	}
	if h.good(a); len(h.due()) != 0 || a.failures != 0 {
		t.Error("good, and yet not")
	}
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "next=2s") || !strings.Contains(got, "works again") {
		t.Errorf("the log of an outage says\n%s\nwant a line for its begin and one for its end", got)
	}
}
