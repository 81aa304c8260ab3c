package ldap

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

const (
	maxFollowed = 16 // referrals of one search
	maxReferred = 3  // one after the other
)

// follow goes on at the servers that the answer refers to, where they are ours: hosts of the configuration or of its domain. To others no connection is made,
// since the service account's password would go there.
func (f *finding) follow(ctx context.Context) error {
	references := f.references
	f.references = nil
	for _, uris := range references {
		e, q, ok := f.target(uris)
		if !ok {
			f.log.DebugContext(ctx, "a referral to a server that is not configured is ignored", "to", clean(strings.Join(uris, " ")))
			continue
		}
		key := e.addr + " " + strings.ToLower(q.base)
		if f.seen[key] {
			continue
		}
		if f.seen[key] = true; len(f.seen) > maxFollowed || f.depth == maxReferred {
			return fmt.Errorf("%w: referrals lead too far (%d of them, %d one after the other)", errAnswer, len(f.seen), f.depth)
		}
		if err := f.at(ctx, e, q); err != nil {
			return err
		}
	}
	return nil
}

// at runs a query at one server, over a connection for this alone.
func (f *finding) at(ctx context.Context, e *endpoint, q query) error {
	k, err := f.connect(ctx, e, true)
	if err != nil {
		return fmt.Errorf("%w: following a referral: %w", errNoDirectory, err)
	}
	defer f.discard(k)
	there := &finding{client: f.client, k: k, q: q, limit: f.limit, bytes: f.bytes, entries: f.entries, depth: f.depth + 1, seen: f.seen}
	if err := there.run(ctx); err != nil {
		if !errors.Is(err, errTooMany) && !errors.Is(err, errAnswer) {
			err = fmt.Errorf("%w: following a referral to %s: %w", errAnswer, e.addr, err) // not the fault of the host that referred
		}
		return err
	}
	f.entries, f.bytes = there.entries, there.bytes
	return nil
}

// target returns the first of a referral's servers that is ours, and the query for it. The filter stays our own, whatever the URI says (RFC 4516, RFC 4511
// section 4.5.3).
func (f *finding) target(uris []string) (*endpoint, query, bool) {
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.User != nil {
			continue
		}
		e := f.hosts.named(u.Hostname(), u.Port())
		if e == nil {
			continue
		}
		q := f.q
		if dn := strings.TrimPrefix(u.Path, "/"); dn != "" {
			q.base = dn
		}
		if parts := strings.Split(u.RawQuery, "?"); len(parts) > 1 {
			switch parts[1] {
			case "base":
				q.scope = ldapv3.ScopeBaseObject
			case "one":
				q.scope = ldapv3.ScopeSingleLevel
			case "sub":
				q.scope = ldapv3.ScopeWholeSubtree
			}
		}
		return e, q, true
	}
	return nil, query{}, false
}
