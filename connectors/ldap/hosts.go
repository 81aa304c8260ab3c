package ldap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	setAside    = 2 * time.Second // for how long a host is put aside that failed once; twice as long for each time after that
	setAsideMax = time.Minute
	srvFresh    = 5 * time.Minute // net.Resolver does not tell how long an answer is good for
	srvRetry    = 10 * time.Second
	srvTimeout  = 5 * time.Second
	maxHosts    = 64
)

// An endpoint is a host of the directory.
type endpoint struct {
	name string // that its certificate is for
	addr string // host:port
	rank int    // the lower, the better; equal ones share the load

	dials, failed atomic.Int64

	// of hosts.mu
	failures int       // since it last worked; 0: good, or not tried
	until    time.Time // is when it may be tried again
	probing  bool
}

// hosts knows where the directory is, and which hosts of it work.
type hosts struct {
	domain, site string
	security     security
	lookup       func(ctx context.Context, name string) ([]*net.SRV, error)
	background   func(func(context.Context)) // runs a function beside
	now          func() time.Time
	log          *slog.Logger

	resolving chan struct{} // holds a token while somebody resolves
	mu        sync.Mutex
	list      []*endpoint // the better ones first
	again     time.Time   // to resolve
}

func newHosts(t transport, now func() time.Time, log *slog.Logger) *hosts {
	h := &hosts{domain: strings.TrimSuffix(t.domain, "."), site: t.site, security: t.security, now: now, log: log, resolving: make(chan struct{}, 1)}
	h.lookup = func(ctx context.Context, name string) ([]*net.SRV, error) {
		_, found, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
		return found, err
	}
	for i, s := range t.hosts {
		name, port := splitHost(s, h.port())
		h.list = append(h.list, &endpoint{name: name, addr: net.JoinHostPort(name, port), rank: i})
	}
	if len(t.hosts) > 0 {
		h.domain = "" // hosts that are named are all there are
	}
	return h
}

func (h *hosts) port() string {
	if h.security == ldaps {
		return ldapv3PortTLS
	}
	return ldapv3Port
}

// The ports of RFC 4516 section 2 and of ldaps.
const ldapv3Port, ldapv3PortTLS = "389", "636"

// splitHost takes host, host:port, [address]:port and a bare IPv6 address.
func splitHost(s, port string) (string, string) {
	if host, p, err := net.SplitHostPort(s); err == nil {
		return host, p
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), port
}

// order returns all hosts in the order in which to try them: those that work, then those put aside, for it may be that none works. avoid comes last.
func (h *hosts) order(ctx context.Context, avoid *endpoint) ([]*endpoint, error) {
	if err := h.resolve(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.list)
	slices.SortStableFunc(out, func(a, b *endpoint) int {
		switch {
		case (a == avoid) != (b == avoid):
			return less(b == avoid)
		case (a.failures > 0) != (b.failures > 0):
			return less(b.failures > 0)
		case a.failures > 0:
			return a.until.Compare(b.until)
		}
		return a.rank - b.rank
	})
	return out, nil
}

func less(yes bool) int {
	if yes {
		return -1
	}
	return 1
}

// good notes that a host works. bad puts it aside, and tells whether it was not yet.
func (h *hosts) good(e *endpoint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.failures > 0 {
		h.log.Info("the directory server works again", "host", e.addr)
	}
	e.failures, e.until, e.probing = 0, time.Time{}, false
}

func (h *hosts) bad(e *endpoint, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	e.probing = false
	if e.failures > 0 && now.Before(e.until) {
		return // many notice the same failure
	}
	e.failures = min(e.failures+1, 6)
	d := min(setAside<<(e.failures-1), setAsideMax)
	e.until = now.Add(d)
	log := h.log.Debug // one line for the outage, and one for its end
	if e.failures == 1 {
		log = h.log.Warn
	}
	log("a directory server does not answer: it is put aside, and tried again now and then", "host", e.addr, "next", d.String(), "error", why)
	if len(h.list) == 1 || !slices.ContainsFunc(h.list, func(e *endpoint) bool { return e.failures == 0 }) {
		h.again = minTime(h.again, now.Add(srvRetry)) // perhaps the directory has moved
	}
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// better tells whether there is a host that works and is preferred to e, or e has gone from the directory.
func (h *hosts) better(e *endpoint) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !slices.Contains(h.list, e) || slices.ContainsFunc(h.list, func(o *endpoint) bool { return o.failures == 0 && o.rank < e.rank })
}

// others tells whether there is a host besides e that works as far as is known.
func (h *hosts) others(e *endpoint) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.list, func(o *endpoint) bool { return o != e && o.failures == 0 })
}

// due returns the hosts whose time aside is over. The caller tries each, and says good or bad.
func (h *hosts) due() []*endpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*endpoint
	for _, e := range h.list {
		if e.failures > 0 && !e.probing && !h.now().Before(e.until) {
			e.probing = true
			out = append(out, e)
		}
	}
	return out
}

// named returns the endpoint of a host that a referral names: one of the list, or one in the domain.
func (h *hosts) named(host, port string) *endpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if h.security == ldaps && port == ldapv3Port {
		port = "" // a referral says ldap:// even to those who came by ldaps
	}
	for _, e := range h.list {
		_, p, _ := net.SplitHostPort(e.addr)
		if strings.EqualFold(e.name, host) && (port == "" || port == p) {
			return e
		}
	}
	if h.within(host) && (port == "" || port == h.port()) {
		return &endpoint{name: host, addr: net.JoinHostPort(host, h.port())}
	}
	return nil
}

// within tells whether a host is in the domain. SRV records are not authenticated: a target elsewhere would present a good certificate of its own name.
func (h *hosts) within(host string) bool {
	host, domain := strings.ToLower(host), strings.ToLower(h.domain)
	return domain != "" && (host == domain || strings.HasSuffix(host, "."+domain))
}

// resolve looks for the hosts of the domain, when they are not known; when it was long ago, in the background.
func (h *hosts) resolve(ctx context.Context) error {
	if h.domain == "" {
		return nil
	}
	switch due, known := h.stale(); {
	case !due:
		return nil
	case known:
		select {
		case h.resolving <- struct{}{}:
			h.background(func(ctx context.Context) { defer func() { <-h.resolving }(); _ = h.renew(ctx) })
		default: // somebody is at it
		}
		return nil
	}
	select {
	case h.resolving <- struct{}{}:
		defer func() { <-h.resolving }()
	case <-ctx.Done():
		return fmt.Errorf("%w: looking for the SRV records of %s: %w", errNoDirectory, h.domain, ctx.Err())
	}
	if _, known := h.stale(); known {
		return nil
	}
	return h.renew(ctx)
}

// stale tells whether the hosts have to be looked for, and whether any are known.
func (h *hosts) stale() (due, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.list) == 0 || !h.now().Before(h.again), len(h.list) > 0
}

// renew looks for the hosts. Old ones do when new ones are not to be had.
func (h *hosts) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, srvTimeout)
	defer cancel()
	found, err := h.discover(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.again = h.now().Add(srvRetry)
		if len(h.list) > 0 {
			h.log.WarnContext(ctx, "the directory servers cannot be looked for: the known ones are kept", "domain", h.domain, "error", err)
			return nil
		}
		return fmt.Errorf("%w: %w", errNoDirectory, err)
	}
	h.again = h.now().Add(srvFresh)
	for i, e := range found { // what is known of a host stays known
		if j := slices.IndexFunc(h.list, func(o *endpoint) bool { return o.addr == e.addr }); j >= 0 {
			h.list[j].rank = e.rank
			found[i] = h.list[j]
		}
	}
	h.list = found
	return nil
}

// discover asks for SRV records: those of the site first.
func (h *hosts) discover(ctx context.Context) ([]*endpoint, error) {
	names := []string{"_ldap._tcp." + h.domain}
	if h.site != "" {
		names = append([]string{"_ldap._tcp." + h.site + "._sites.dc._msdcs." + h.domain}, names...)
	}
	var (
		out  []*endpoint
		errs []error
		rank int
	)
	for _, name := range names {
		records, err := h.lookup(ctx, name)
		if err != nil {
			errs = append(errs, err)
		}
		last := -1
		for _, r := range sortSRV(records, rand.IntN) {
			target := strings.TrimSuffix(strings.ToLower(r.Target), ".")
			if !h.within(target) {
				h.log.WarnContext(ctx, "an SRV record names a host outside the domain: it is not used; name it under host to use it", "domain", h.domain, "host", target)
				continue
			}
			port := strconv.Itoa(int(r.Port))
			if h.security == ldaps && port == ldapv3Port {
				port = ldapv3PortTLS // SRV records tell of ldap only
			}
			e := &endpoint{name: target, addr: net.JoinHostPort(target, port)}
			if len(out) == maxHosts || slices.ContainsFunc(out, func(o *endpoint) bool { return o.addr == e.addr }) {
				continue
			}
			if last != -1 && int(r.Priority) != last {
				rank++
			}
			last, e.rank = int(r.Priority), rank
			out = append(out, e)
		}
		if last != -1 {
			rank++
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(append(errs, fmt.Errorf("no SRV record of %s names a directory server", strings.Join(names, " or ")))...)
	}
	return out, nil
}

// sortSRV orders records by priority, and within one at random by weight (RFC 2782). random returns a number of [0, n).
func sortSRV(records []*net.SRV, random func(n int) int) []*net.SRV {
	left := slices.Clone(records)
	// Records without weight come first in the sum, so that they have a small chance.
	slices.SortStableFunc(left, func(a, b *net.SRV) int {
		if a.Priority != b.Priority {
			return int(a.Priority) - int(b.Priority)
		}
		return min(int(a.Weight), 1) - min(int(b.Weight), 1)
	})
	var out []*net.SRV
	for len(left) > 0 {
		same, sum := 0, 0
		for ; same < len(left) && left[same].Priority == left[0].Priority; same++ {
			sum += int(left[same].Weight)
		}
		pick, at := random(sum+1), 0
		for i, run := 0, 0; i < same; i++ {
			if run += int(left[i].Weight); run >= pick {
				at = i
				break
			}
		}
		out = append(out, left[at])
		left = slices.Delete(left, at, at+1)
	}
	return out
}
