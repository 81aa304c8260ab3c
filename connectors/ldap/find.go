package ldap

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"gatehouse/connectors"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// maxName is how long a typed name may be, in bytes.
const maxName = 256

// Find looks for the account of a typed name. A name that belongs to nobody is no error. Every error is a *connectors.Refusal.
func (c *Connector) Find(ctx context.Context, name string) (*Account, error) {
	if strings.TrimSpace(name) == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unprintable) {
		return &Account{key: "nobody", refused: true}, nil
	}
	c.informed(ctx)
	filters, err := c.nameFilters(ctx, name)
	if err != nil {
		return nil, notKnown(err)
	}
	nobody := &Account{key: nobodyKey(name)}
	if len(filters) == 0 {
		return nobody, nil
	}
	found, err := c.named(ctx, filters)
	switch {
	case errors.Is(err, errTooMany):
		c.log.WarnContext(ctx, "a typed name belongs to many entries, so that nobody is signed in with it: check userSearch.username and userSearch.filter")
		return nobody, nil
	case err != nil:
		return nil, notKnown(err)
	case len(found) == 0:
		return nobody, nil
	case len(found) > 1:
		dns := make([]string, 0, len(found))
		for _, e := range found {
			dns = append(dns, printable(e.dn, maxDN))
		}
		c.log.WarnContext(ctx, "a typed name belongs to several entries, so that nobody is signed in with it", slog.Any("dn", dns))
		return nobody, nil
	case found[0].dn == "": // a bind with it would be an anonymous one
		return nobody, nil
	}
	return &Account{entry: found[0], read: c.now(), key: c.keyOf(found[0])}, nil
}

// named finds the entries that any of some filters fits. Where there are several, the first filter that fits any decides: who may set an own mail address takes
// nobody's user name with it.
func (c *Connector) named(ctx context.Context, filters []string) (found []*entry, err error) {
	search := func(filter string) ([]*entry, error) {
		return c.client.search(ctx, query{
			base: c.settings.UserSearch.BaseDN, scope: c.settings.userScope, filter: allOf(c.settings.UserSearch.Filter, filter), attributes: c.attributes, limit: 8,
		})
	}
	found, err = search(anyOf(filters))
	if len(filters) == 1 || len(found) < 2 && !errors.Is(err, errTooMany) {
		return found, err
	}
	for _, f := range filters {
		if found, err = search(f); err != nil || len(found) > 0 {
			return found, err
		}
	}
	return nil, nil
}

func (c *Connector) keyOf(e *entry) string {
	if id := e.value(c.settings.UserSearch.IDAttr, maxID); id != "" {
		return "user:" + id
	}
	return "entry:" + foldDN(e.dn)
}

// nobodyKey is the key of a name that is nobody's: one for all its spellings, as an account has.
func nobodyKey(name string) string {
	name = foldText(name)
	if _, after, ok := strings.Cut(name, `\`); ok && after != "" {
		name = after
	}
	if before, _, ok := cutLast(name, "@"); ok && before != "" {
		name = before
	}
	return "nobody:" + name
}

// nameFilters are the filters for the entries that a name belongs to, the surest first; none if it cannot be anybody's here.
func (c *Connector) nameFilters(ctx context.Context, name string) ([]string, error) {
	s := c.settings
	names := s.UserSearch.Username
	var filters []string
	const account = "sAMAccountName"
	if s.activeDirectory() && slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, account) }) {
		if domain, user, ok := strings.Cut(name, `\`); ok {
			ours, err := c.ourDomain(ctx, domain)
			if err != nil || !ours || user == "" {
				return nil, err
			}
			return []string{equals(account, user)}, nil
		}
		if user, domain, ok := cutLast(name, "@"); ok && user != "" && strings.EqualFold(domain, dnsDomain(s.UserSearch.BaseDN)) {
			filters = append(filters, equals(account, user)) // a name for every account, whatever its userPrincipalName is
		}
	}
	for _, n := range names {
		if f := equals(n, name); f != "" {
			filters = append(filters, f)
		}
	}
	return filters, nil
}

// ourDomain says that the domain before a backslash is the one that users are searched in: by its NetBIOS name, or by that of DNS.
func (c *Connector) ourDomain(ctx context.Context, domain string) (bool, error) {
	if strings.EqualFold(domain, dnsDomain(c.settings.UserSearch.BaseDN)) {
		return true, nil
	}
	ours := c.settings.NetBIOSName
	if ours == "" {
		f, err := c.known(ctx)
		if err != nil {
			return false, err
		}
		ours = f.netbios
	}
	if ours == "" {
		c.log.WarnContext(ctx, `the directory does not tell its domain's NetBIOS name, so that names like CORP\alice belong to nobody: set netbiosName`)
	}
	return ours != "" && strings.EqualFold(domain, ours), nil
}

// reread reads a user's entry again, nil if it is not there any more or the configuration leaves it out.
func (c *Connector) reread(ctx context.Context, dn string) (*entry, error) {
	found, err := c.client.search(ctx, query{
		base: dn, scope: ldapv3.ScopeBaseObject, filter: allOf(c.settings.UserSearch.Filter, "(objectClass=*)"), attributes: c.attributes, limit: 1,
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// nobody takes as long as a wrong password does, and says the same.
func (c *Connector) nobody(ctx context.Context) *connectors.Refusal {
	start := time.Now()
	v, err := c.client.bind(ctx, "CN="+rand.Text()+","+c.settings.UserSearch.BaseDN, rand.Text())
	if err != nil {
		return notKnown(err)
	}
	if r, _ := reasonOf(v); r == connectors.Unavailable {
		return refuse(r, v.cause())
	}
	if rest := c.failed.pick() - time.Since(start); rest > 0 {
		t := time.NewTimer(rest)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return refuse(connectors.WrongCredentials, errors.New("ldap: the name belongs to nobody"))
}

// durations are the last ones of something. The zero value has none.
type durations struct {
	mu   sync.Mutex
	last [64]time.Duration
	n    int
}

func (d *durations) add(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last[d.n%len(d.last)] = t
	d.n++
}

// pick returns one of them by chance, 0 if there is none.
func (d *durations) pick() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(d.n, len(d.last))
	if n == 0 {
		return 0
	}
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		return d.last[0]
	}
	return d.last[i.Int64()]
}
