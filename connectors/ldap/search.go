package ldap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	ber "github.com/go-asn1-ber/asn1-ber"
	ldapv3 "github.com/go-ldap/ldap/v3"
)

// What one search may bring at most, whoever asks.
const (
	maxEntries    = 100_000
	maxBytes      = 64 << 20
	maxValues     = 200_000 // of one attribute
	maxPages      = 2_000   // AD sends empty ones
	maxReferences = 1_000
)

// search runs a query on a service connection: all pages and all ranges of it. A base that does not exist has no entries. A connection that turns out
// to be broken costs one more try, at another host where there is one.
func (c *client) search(ctx context.Context, q query) ([]*entry, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	if err := c.searches.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.searches.release()
	c.stats.searches.Add(1)
	var avoid *endpoint
	tries := 0
	for again := false; ; again = true {
		k, err := c.checkout(ctx, c.searches, avoid, again)
		if err != nil {
			return nil, err
		}
		since, before := time.Now(), k.wire.received.Load()
		out, err := c.find(ctx, k, q)
		if err == nil || answered(err) && !slices.Contains(unavailable, codeOf(err)) || errors.Is(err, errTooMany) || errors.Is(err, errAnswer) {
			c.giveBack(c.searches, k) //nolint:contextcheck // hosts are tried in the background for longer than this call lasts
			return out, err
		}
		// One that was closed while it was idle is no failure of the host: it does not count.
		if !k.reused || k.wire.received.Load() != before || ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
			tries++
			avoid = k.e
			k.reused = false
		}
		c.failed(ctx, k, err, since)
		if tries == 2 || ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %s: search: %w", errNoDirectory, k.e.addr, err)
		}
		if avoid != nil {
			c.stats.failovers.Add(1)
		}
	}
}

func codeOf(err error) uint16 {
	var e *ldapv3.Error
	if errors.As(err, &e) {
		return e.ResultCode
	}
	return ldapv3.LDAPResultSuccess
}

// errAnswer means that an answer is of no use, though the connection is good. It would be the same a second time.
var errAnswer = errors.New("ldap: the directory's answer cannot be used")

// A finding is a search under way on one connection.
type finding struct {
	*client
	k          *conn
	q          query
	limit      int
	bytes      int64 // that may still come
	entries    []*entry
	references [][]string
	depth      int             // of referrals
	seen       map[string]bool // referrals that were followed
}

func (c *client) find(ctx context.Context, k *conn, q query) ([]*entry, error) {
	f := &finding{client: c, k: k, q: q, limit: q.limit, bytes: maxBytes, seen: map[string]bool{}}
	if f.limit <= 0 || f.limit > maxEntries {
		f.limit = maxEntries
	}
	if err := f.run(ctx); err != nil {
		return nil, err
	}
	return f.entries, nil
}

// run reads all pages, then what is missing of attributes, then what is elsewhere.
func (f *finding) run(ctx context.Context) error {
	from := len(f.entries)
	err := f.pages(ctx)
	switch {
	case codeOf(err) == ldapv3.LDAPResultNoSuchObject:
		err = nil
	case codeOf(err) == ldapv3.LDAPResultReferral && answered(err):
		var base *referredError
		if !f.t.follow || !errors.As(err, &base) {
			return fmt.Errorf("%w: %q is not held by %s, which refers to another server", errAnswer, clean(f.q.base), f.k.e.addr)
		}
		f.references = append(f.references, base.to)
		err = nil
	}
	if err != nil {
		return err
	}
	for _, e := range f.entries[from:] {
		if err := f.ranges(ctx, e); err != nil {
			return err
		}
	}
	if f.t.follow {
		return f.follow(ctx)
	}
	return nil
}

// A referredError is an answer that refers to other servers (RFC 4511 section 4.1.10), with their URIs.
type referredError struct {
	error
	to []string
}

func (e *referredError) Unwrap() error { return e.error }

// pages reads page after page (RFC 2696). A server that does not know of pages sends everything.
func (f *finding) pages(ctx context.Context) error {
	req := &ldapv3.SearchRequest{
		BaseDN: f.q.base, Scope: f.q.scope, DerefAliases: ldapv3.NeverDerefAliases, Filter: cmp.Or(f.q.filter, "(objectClass=*)"),
		Attributes: f.q.attributes, TimeLimit: max(1, int(f.t.requestTimeout/time.Second)), EnforceSizeLimit: true,
	}
	var page *ldapv3.ControlPaging
	switch {
	case f.limit < f.t.pageSize || f.q.scope == ldapv3.ScopeBaseObject:
		req.SizeLimit = f.limit + 1
	default:
		page = ldapv3.NewControlPaging(uint32(f.t.pageSize)) //nolint:gosec // a setting, positive
		req.Controls = []ldapv3.Control{page}
	}
	for n := range maxPages {
		res, err := f.request(ctx, req)
		if page != nil && n == 0 && codeOf(err) == ldapv3.LDAPResultUnavailableCriticalExtension {
			page, req.Controls = nil, nil
			continue
		}
		if err != nil {
			return err
		}
		answer, _ := ldapv3.FindControl(res.Controls, ldapv3.ControlTypePaging).(*ldapv3.ControlPaging)
		if page == nil || answer == nil || len(answer.Cookie) == 0 {
			return nil
		}
		page.SetCookie(answer.Cookie)
	}
	f.k.wire.abort() // the server still has the cookie
	return fmt.Errorf("%w: more than %d pages", errAnswer, maxPages)
}

// request does one search request and takes what it brings.
func (f *finding) request(ctx context.Context, req *ldapv3.SearchRequest) (*ldapv3.SearchResult, error) {
	res, err := f.ask(ctx, req, f.limit-len(f.entries))
	if res != nil {
		for _, e := range res.Entries {
			taken, mistake := newEntry(e)
			if mistake != nil {
				return nil, mistake
			}
			f.entries = append(f.entries, taken)
		}
		for _, r := range res.Referrals {
			f.references = append(f.references, []string{r})
		}
	}
	switch {
	case errors.Is(err, errTooMany):
		return nil, err
	case len(f.entries) > f.limit:
		if err == nil { // the server has more pages, or a cookie
			f.k.wire.abort()
		}
		return nil, fmt.Errorf("%w: at most %d", errTooMany, f.limit)
	case codeOf(err) == ldapv3.LDAPResultSizeLimitExceeded && answered(err):
		return nil, fmt.Errorf("%w: its own size limit ended the search after %d entries: lower pageSize, or raise the limit for the service account: %w", errAnswer, len(f.entries), err)
	}
	return res, err
}

// ask sends one request and waits for its whole answer, of so many entries and one more at most.
func (f *finding) ask(ctx context.Context, req *ldapv3.SearchRequest, entries int) (*ldapv3.SearchResult, error) {
	limit := f.t.requestTimeout
	if deadline, ok := ctx.Deadline(); ok && f.hosts.others(f.k.e) {
		limit = min(limit, time.Until(deadline)/2) // so that there is time for another host
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var res *ldapv3.SearchResult
	f.k.wire.allow(f.bytes, int64(entries)+1+maxReferences+1)
	defer func() {
		f.bytes = f.k.wire.bytes.Load()
	}()
	err := f.k.do(ctx, func(l *ldapv3.Conn) (err error) {
		res, err = l.Search(req)
		return err
	})
	if errors.Is(err, errFlood) {
		return nil, fmt.Errorf("%w: at most %d: %w", errTooMany, entries, err)
	}
	if errors.Is(err, errLarge) {
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	}
	if err != nil && answered(err) {
		to := referralsOf(err)
		if err = cleanError(err); to != nil {
			err = &referredError{err, to}
		}
	}
	return res, err
}

// newEntry takes an entry over: names in lower case and without options, whole values first, then those of options.
func newEntry(e *ldapv3.Entry) (*entry, error) {
	if !utf8.ValidString(e.DN) || strings.ContainsFunc(e.DN, func(r rune) bool { return r < ' ' }) {
		return nil, fmt.Errorf("%w: a DN with control characters or that is not UTF-8: %.100q", errAnswer, e.DN)
	}
	out := &entry{dn: e.DN, attributes: make(map[string][][]byte, len(e.Attributes))}
	for _, plain := range []bool{true, false} {
		for _, a := range e.Attributes {
			name, options, _ := strings.Cut(strings.ToLower(a.Name), ";")
			if (options == "") != plain || len(a.ByteValues) == 0 {
				continue
			}
			if _, _, is := rangeOf(options); is {
				name = name + ";" + options // to be completed
			}
			out.attributes[name] = append(out.attributes[name], a.ByteValues...)
		}
	}
	return out, nil
}

// rangeOf reads the option by which AD says that it sends values from first to last only; last is -1 for all that are left ([MS-ADTS] 3.1.1.3.1.3.3).
func rangeOf(options string) (first, last int, is bool) {
	for o := range strings.SplitSeq(options, ";") {
		v, found := strings.CutPrefix(o, "range=")
		if !found {
			continue
		}
		a, b, found := strings.Cut(v, "-")
		first, err := strconv.Atoi(a)
		if !found || err != nil || first < 0 {
			return 0, 0, false
		}
		if b == "*" {
			return first, -1, true
		}
		last, err := strconv.Atoi(b)
		return first, last, err == nil && last >= first
	}
	return 0, 0, false
}

// parts takes the partial attributes out of an entry.
func (e *entry) parts() map[string]part {
	out := map[string]part{}
	for full, values := range e.attributes {
		name, options, _ := strings.Cut(full, ";")
		if first, last, is := rangeOf(options); is {
			out[name] = part{first, last, values}
			delete(e.attributes, full)
		}
	}
	return out
}

// A part is some of the values of an attribute.
type part struct {
	first, last int
	values      [][]byte
}

// ranges completes the attributes of which the directory sent only a part.
func (f *finding) ranges(ctx context.Context, e *entry) error {
	for parts := e.parts(); len(parts) > 0; {
		var wanted []string
		for name, p := range parts {
			have := len(e.attributes[name])
			if p.first != have || p.last >= 0 && p.last != have+len(p.values)-1 {
				return fmt.Errorf("%w: %q of %q: values %d to %d were sent as %d ones after the first %d", errAnswer, clean(name), clean(e.dn), p.first, p.last, len(p.values), have)
			}
			if e.attributes[name] = append(e.attributes[name], p.values...); len(e.attributes[name]) > maxValues {
				return fmt.Errorf("%w: %q of %q has more than %d values", errAnswer, clean(name), clean(e.dn), maxValues)
			}
			if p.last >= 0 {
				wanted = append(wanted, fmt.Sprintf("%s;range=%d-*", name, len(e.attributes[name])))
			}
		}
		if len(wanted) == 0 {
			return nil
		}
		slices.Sort(wanted)
		more, err := f.more(ctx, e.dn, wanted)
		if err != nil {
			return err
		}
		parts = more
	}
	return nil
}

// more asks for further values of an entry.
func (f *finding) more(ctx context.Context, dn string, attributes []string) (map[string]part, error) {
	res, err := f.ask(ctx, &ldapv3.SearchRequest{
		BaseDN: dn, Scope: ldapv3.ScopeBaseObject, Filter: "(objectClass=*)", Attributes: attributes, SizeLimit: 1, EnforceSizeLimit: true,
	}, 1)
	if err != nil {
		return nil, err
	}
	if len(res.Entries) != 1 {
		return nil, fmt.Errorf("%w: %q has gone while its values were read", errAnswer, clean(dn))
	}
	e, err := newEntry(res.Entries[0])
	if err != nil {
		return nil, err
	}
	return e.parts(), nil
}

// referralsOf returns the URIs of a referral.
func referralsOf(err error) []string {
	var e *ldapv3.Error
	if !errors.As(err, &e) || e.Packet == nil || len(e.Packet.Children) < 2 {
		return nil
	}
	var out []string
	for _, p := range e.Packet.Children[1].Children {
		if p.ClassType != ber.ClassContext || p.Tag != 3 {
			continue
		}
		for _, u := range p.Children {
			if s, ok := u.Value.(string); ok && len(out) < maxFollowed {
				out = append(out, s)
			}
		}
	}
	return out
}
