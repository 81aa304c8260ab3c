package ldap

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// Bounds of what is looked at for groups.
const (
	maxGroups = 20000 // of one user
	maxLevels = 64    // of groups in groups
)

// A group is an entry that users or groups are in.
type group struct {
	dn    string
	key   string            // its name, folded: two groups may have one cn
	value string            // what the user's list of groups gets, "" if nothing
	in    map[string]string // the names of the groups that it is in, as far as its entry tells, by key
}

// A resolver finds the groups of some users. What it has found for one it knows for all.
type resolver struct {
	*Connector
	groups map[string]*group // by key; nil: there is no such group
	bySID  map[string]string // keys
	dnAttr string            // the attribute by which an entry is found by its name
}

// groupsOf returns the groups of users, each list sorted and without duplicates.
func (c *Connector) groupsOf(ctx context.Context, users []*entry) ([][]string, error) {
	s := c.settings
	out := make([][]string, len(users))
	if len(users) == 0 || s.GroupSearch.BaseDN == "" {
		return out, nil
	}
	r := &resolver{Connector: c, groups: map[string]*group{}, bySID: map[string]string{}}
	var found [][]*group
	var err error
	switch {
	case len(s.matchers) > 0:
		found, err = r.byMatchers(ctx, users)
	case s.GroupSearch.Nested == nestedChain:
		found, err = r.byChain(ctx, users)
	case s.GroupSearch.Nested == nestedTokens:
		found, err = r.byTokens(ctx, users)
	default:
		found, err = r.byMemberOf(ctx, users)
	}
	if err != nil {
		return nil, err
	}
	for i, user := range users {
		out[i] = c.listed(ctx, user, found[i])
	}
	return out, nil
}

// listed is the list of a user's groups as the configuration wants it.
func (c *Connector) listed(ctx context.Context, user *entry, groups []*group) []string {
	g := &c.settings.GroupSearch
	seen := map[string]bool{}
	for _, group := range groups {
		v := group.value
		if v == "" || c.settings.match != nil && !c.settings.match.MatchString(v) || len(g.Allow) > 0 && !slices.Contains(g.Allow, v) {
			continue
		}
		rest, ok := strings.CutPrefix(v, g.StripPrefix)
		if ok && rest != "" { // without the prefix it would be taken for another group
			seen[rest] = true
		}
	}
	list := slices.Sorted(maps.Keys(seen))
	if len(list) > g.Limit {
		c.log.WarnContext(ctx, "a user is in more groups than groupSearch.limit, so that the rest is left out: narrow groupSearch.filter, allow or match",
			slog.String("dn", printable(user.dn, maxDN)), slog.Int("groups", len(list)), slog.Int("limit", g.Limit))
		list = list[:g.Limit]
	}
	return list
}

// attributes are what is asked for of a group's entry.
func (r *resolver) attributes(more ...string) []string {
	list := []string{r.settings.GroupSearch.NameAttr, "objectSid"}
	if !r.settings.activeDirectory() {
		list = list[:1]
	}
	return append(list, more...)
}

// take makes a group of an entry, the same one for the same entry.
func (r *resolver) take(e *entry) *group {
	key := foldDN(e.dn)
	if g := r.groups[key]; g != nil {
		return g
	}
	g := &group{dn: e.dn, key: key, in: map[string]string{}}
	switch r.settings.GroupSearch.Value {
	case valueDN:
		g.value = sound(e.dn, maxDN)
	case valueSID:
		g.value = e.value("objectSid", maxID)
	default:
		g.value = e.value(r.settings.GroupSearch.NameAttr, maxText)
	}
	for _, dn := range e.texts("memberOf") {
		g.in[foldDN(dn)] = dn
	}
	if sid := e.value("objectSid", maxID); sid != "" {
		r.bySID[sid] = key
	}
	r.groups[key] = g
	return g
}

// search finds groups, where the configuration wants it to look.
func (r *resolver) search(ctx context.Context, filter string, attributes []string) ([]*entry, error) {
	g := &r.settings.GroupSearch
	return r.client.search(ctx, query{
		base: g.BaseDN, scope: r.settings.groupScope, filter: allOf(g.Filter, filter), attributes: attributes, limit: maxGroups,
	})
}

// load reads the groups of these attribute values, many in a search. With anywhere it reads those of the whole domain, since the way to a group
// that is wanted may lead through others.
func (r *resolver) load(ctx context.Context, attribute string, values []string, anywhere bool) error {
	filters := make([]string, 0, len(values))
	for _, v := range values {
		if f := equals(attribute, v); f != "" {
			filters = append(filters, f)
		}
	}
	for chunk := range slices.Chunk(filters, batch) {
		var found []*entry
		var err error
		if anywhere {
			found, err = r.client.search(ctx, query{
				base: r.domain(), scope: ldapv3.ScopeWholeSubtree, filter: anyOf(chunk), attributes: r.attributes("memberOf"), limit: maxGroups,
			})
		} else {
			found, err = r.search(ctx, anyOf(chunk), r.attributes("memberOf"))
		}
		if err != nil {
			return err
		}
		for _, e := range found {
			r.take(e)
		}
	}
	return nil
}

// domain is where a walk may lead.
func (r *resolver) domain() string {
	base := r.settings.GroupSearch.BaseDN
	if d := domainOf(base); d != "" {
		return d
	}
	return base
}

// byMemberOf finds the groups that users' entries name, and with nested: walk those that their entries name, a level at a time for all users.
func (r *resolver) byMemberOf(ctx context.Context, users []*entry) ([][]*group, error) {
	walk := r.settings.GroupSearch.Nested == nestedWalk
	var err error
	if r.dnAttr, err = r.nameOfEntries(ctx); err != nil {
		return nil, err
	}
	if err := r.primaries(ctx, users, walk); err != nil {
		return nil, err
	}
	starts := make([][]string, len(users))
	frontier := map[string]string{} // the name of a group as the directory writes it, by key
	for i, u := range users {
		for _, dn := range u.texts("memberOf") {
			key := foldDN(dn)
			starts[i] = append(starts[i], key)
			frontier[key] = dn
		}
		if sid := primarySID(u); r.primary() && r.bySID[sid] != "" {
			key := r.bySID[sid]
			starts[i] = append(starts[i], key)
			maps.Copy(frontier, r.groups[key].in)
		}
	}
	for depth := 0; len(frontier) > 0 && depth < maxLevels; depth++ {
		next, err := r.level(ctx, frontier, walk)
		if err != nil {
			return nil, err
		}
		frontier = next
		if !walk {
			break
		}
	}
	found := make([][]*group, len(users))
	for i, start := range starts {
		found[i] = r.closure(start, func(g *group) []string {
			if !walk {
				return nil
			}
			return slices.Sorted(maps.Keys(g.in))
		})
	}
	if walk && r.narrow() {
		return found, r.selectFrom(ctx, found)
	}
	return found, nil
}

// primary says that a user's primary group counts, in which neither its members nor their memberOf show it.
func (r *resolver) primary() bool {
	p := r.settings.GroupSearch.PrimaryGroup
	return p != nil && *p
}

// primaries reads the primary groups of users.
func (r *resolver) primaries(ctx context.Context, users []*entry, anywhere bool) error {
	if !r.primary() {
		return nil
	}
	sids := map[string]bool{}
	for _, u := range users {
		if sid := primarySID(u); sid != "" {
			sids[sid] = true
		}
	}
	return r.load(ctx, "objectSid", slices.Sorted(maps.Keys(sids)), anywhere)
}

// level reads a level of groups, and returns those of the next one that are not known yet.
func (r *resolver) level(ctx context.Context, frontier map[string]string, anywhere bool) (map[string]string, error) {
	var names []string
	for _, key := range slices.Sorted(maps.Keys(frontier)) {
		if _, known := r.groups[key]; !known {
			r.groups[key] = nil // there is none, unless it is found
			names = append(names, frontier[key])
		}
	}
	if len(r.groups) > 4*maxGroups {
		return nil, fmt.Errorf("%w: more groups than can be looked at: narrow groupSearch.filter, or set groupSearch.nested: none", errAnswer)
	}
	if err := r.load(ctx, r.dnAttr, names, anywhere); err != nil {
		return nil, err
	}
	next := map[string]string{}
	for key := range frontier {
		if g := r.groups[key]; g != nil {
			for up, dn := range g.in {
				if _, known := r.groups[up]; !known {
					next[up] = dn
				}
			}
		}
	}
	return next, nil
}

// closure is every group that can be reached, the nearest first, within the bounds. It is the same however many users are asked for at once.
func (r *resolver) closure(start []string, up func(*group) []string) []*group {
	var out []*group
	seen := map[string]bool{}
	for depth := 0; len(start) > 0 && depth < maxLevels && len(out) < maxGroups; depth++ {
		var next []string
		for _, key := range start {
			g := r.groups[key]
			if g == nil || seen[key] {
				continue
			}
			seen[key] = true
			out = append(out, g)
			next = append(next, up(g)...)
		}
		start = next
	}
	return out
}

// narrow says that not all groups of the domain are wanted.
func (r *resolver) narrow() bool {
	g := &r.settings.GroupSearch
	return g.Filter != "" || r.settings.groupScope != ldapv3.ScopeWholeSubtree || foldDN(g.BaseDN) != foldDN(r.domain())
}

// selectFrom leaves those groups in the lists that the configuration wants.
func (r *resolver) selectFrom(ctx context.Context, lists [][]*group) error {
	all := map[string]bool{}
	for _, list := range lists {
		for _, g := range list {
			all[g.dn] = true
		}
	}
	wanted := map[string]bool{}
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(all)), batch) {
		filters := make([]string, len(chunk))
		for i, dn := range chunk {
			filters[i] = equals(r.dnAttr, dn)
		}
		found, err := r.search(ctx, anyOf(filters), []string{"1.1"})
		if err != nil {
			return err
		}
		for _, e := range found {
			wanted[foldDN(e.dn)] = true
		}
	}
	for i := range lists {
		lists[i] = slices.DeleteFunc(lists[i], func(g *group) bool { return !wanted[g.key] })
	}
	return nil
}

// byChain lets the directory find all groups of a user, those that groups are in too: one search for each user.
func (r *resolver) byChain(ctx context.Context, users []*entry) ([][]*group, error) {
	if err := r.primaries(ctx, users, true); err != nil {
		return nil, err
	}
	out := make([][]*group, len(users))
	for i, u := range users {
		rule := "member:" + matchingChain + ":"
		filters := []string{equals(rule, u.dn)}
		if sid := primarySID(u); r.primary() && r.bySID[sid] != "" {
			filters = append(filters, equals("objectSid", sid), equals(rule, r.groups[r.bySID[sid]].dn))
		}
		found, err := r.search(ctx, anyOf(filters), r.attributes())
		if err != nil {
			return nil, err
		}
		for _, e := range found {
			out[i] = append(out[i], r.take(e))
		}
	}
	return out, nil
}

// byTokens reads the identifiers of a user's security groups, which the directory computes, and looks for their names.
func (r *resolver) byTokens(ctx context.Context, users []*entry) ([][]*group, error) {
	sids := make([][]string, len(users))
	all := map[string]bool{}
	for i, u := range users {
		found, err := r.client.search(ctx, query{base: u.dn, scope: ldapv3.ScopeBaseObject, filter: "(objectClass=*)", attributes: []string{"tokenGroups"}, limit: 1})
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			continue
		}
		for _, raw := range found[0].raw("tokenGroups") {
			if sid := sidText(raw); sid != "" && (r.primary() || sid != primarySID(u)) {
				sids[i] = append(sids[i], sid)
				all[sid] = true
			}
		}
	}
	if err := r.load(ctx, "objectSid", slices.Sorted(maps.Keys(all)), false); err != nil {
		return nil, err
	}
	out := make([][]*group, len(users))
	for i, list := range sids {
		for _, sid := range list {
			if g := r.groups[r.bySID[sid]]; g != nil {
				out[i] = append(out[i], g)
			}
		}
	}
	return out, nil
}

// byMatchers finds the groups whose attributes have a value of the user, as Dex does, and for each matcher with a recursionGroupAttr those that
// these groups are in.
func (r *resolver) byMatchers(ctx context.Context, users []*entry) ([][]*group, error) {
	out := make([][]*group, len(users))
	for _, m := range r.settings.matchers {
		found, err := r.byMatcher(ctx, m, users)
		if err != nil {
			return nil, err
		}
		for i := range out {
			out[i] = append(out[i], found[i]...)
		}
	}
	return out, nil
}

func (r *resolver) byMatcher(ctx context.Context, m userMatcher, users []*entry) ([][]*group, error) {
	values := make([][]string, len(users))
	all := map[string]bool{}
	for i, u := range users {
		values[i] = u.values(m.UserAttr)
		for _, v := range values[i] {
			all[v] = true
		}
	}
	direct, err := r.match(ctx, m.GroupAttr, slices.Sorted(maps.Keys(all)), isDN(m.UserAttr))
	if err != nil {
		return nil, err
	}
	up := map[string][]string{} // by key
	if m.RecursionGroupAttr != "" {
		if up, err = r.climb(ctx, m.RecursionGroupAttr, direct); err != nil {
			return nil, err
		}
	}
	out := make([][]*group, len(users))
	for i, list := range values {
		var start []string
		for _, v := range list {
			start = append(start, direct[v]...)
		}
		out[i] = r.closure(start, func(g *group) []string { return up[g.key] })
	}
	return out, nil
}

// climb finds the groups that groups are in, level by level.
func (r *resolver) climb(ctx context.Context, attribute string, direct map[string][]string) (map[string][]string, error) {
	up := map[string][]string{}
	frontier := map[string]bool{}
	for _, keys := range direct {
		for _, key := range keys {
			frontier[key] = true
		}
	}
	for depth := 0; len(frontier) > 0 && depth < maxLevels; depth++ {
		names := make([]string, 0, len(frontier))
		for _, key := range slices.Sorted(maps.Keys(frontier)) {
			names = append(names, r.groups[key].dn)
		}
		parents, err := r.match(ctx, attribute, names, true)
		if err != nil {
			return nil, err
		}
		next := map[string]bool{}
		for key := range frontier {
			up[key] = parents[r.groups[key].dn]
		}
		for _, keys := range parents {
			for _, key := range keys {
				if _, known := up[key]; !known {
					next[key] = true
				}
			}
		}
		if len(up)+len(next) > 4*maxGroups {
			return nil, fmt.Errorf("%w: more groups than can be looked at: narrow groupSearch.filter, or drop recursionGroupAttr", errAnswer)
		}
		frontier = next
	}
	return up, nil
}

// match finds, for each value, the keys of the groups that have it in an attribute. Values are asked for together, and which group has which is then
// read from the groups; where that is not plain, the directory is asked for the one value, so that its own rules of matching decide.
func (r *resolver) match(ctx context.Context, attribute string, values []string, names bool) (map[string][]string, error) {
	out := map[string][]string{}
	for chunk := range slices.Chunk(values, batch) {
		alone := chunk
		if len(chunk) > 1 && !strings.HasSuffix(attribute, ":") {
			var err error
			if alone, err = r.matchTogether(ctx, attribute, chunk, names, out); err != nil {
				return nil, err
			}
		}
		for _, v := range alone {
			f := equals(attribute, v)
			if f == "" {
				continue
			}
			found, err := r.search(ctx, f, r.attributes())
			if err != nil {
				return nil, err
			}
			out[v] = r.keys(found)
		}
	}
	return out, nil
}

func (r *resolver) keys(entries []*entry) []string {
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, r.take(e).key)
	}
	return out
}

// matchTogether finds the groups of some values in one search, and returns the values that must be asked for alone.
func (r *resolver) matchTogether(ctx context.Context, attribute string, values []string, names bool, out map[string][]string) ([]string, error) {
	fold := foldText
	if names {
		fold = alikeDN
	}
	var filters []string
	alike := map[string][]string{} // values by what they are when spelling does not count
	for _, v := range values {
		if f := equals(attribute, v); f != "" {
			filters = append(filters, f)
			alike[fold(v)] = append(alike[fold(v)], v)
		}
	}
	if len(filters) == 0 {
		return nil, nil
	}
	found, err := r.search(ctx, anyOf(filters), r.attributes(attribute))
	if unusable(err) { // such as a group of very many: alone nothing is asked of its members
		return values, nil
	}
	if err != nil {
		return nil, err
	}
	doubtful := map[string]bool{}
	for _, e := range found {
		key, some := r.take(e).key, false
		for _, have := range e.values(attribute) {
			for _, v := range alike[fold(have)] {
				some = true
				if v == have || names && foldDN(v) == foldDN(have) {
					out[v] = append(out[v], key)
				} else {
					doubtful[v] = true
				}
			}
		}
		if !some {
			return values, nil // the directory takes other spellings for the same
		}
	}
	return slices.Sorted(maps.Keys(doubtful)), nil
}
