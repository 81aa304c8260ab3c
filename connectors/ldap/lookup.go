package ldap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"gatehouse/connectors"
)

// batch is how many entries are asked for in one search.
const batch = 100

// userAttributes are what is asked for of a user's entry.
func (s *settings) userAttributes() []string {
	u := &s.UserSearch
	list := slices.Concat([]string{u.IDAttr, u.EmailAttr}, s.nameAttrs(), []string{u.PreferredUsername}, u.Username, stateAttributes())
	for _, m := range s.matchers {
		list = append(list, m.UserAttr)
	}
	if s.byMemberOf() {
		list = append(list, "memberOf")
	}
	if s.activeDirectory() {
		list = append(list, "userPrincipalName", "sAMAccountName", "objectSid", "primaryGroupID")
	}
	seen := map[string]bool{"": true}
	return slices.DeleteFunc(list, func(a string) bool {
		a = strings.ToLower(a)
		was := seen[a]
		seen[a] = true
		return was
	})
}

// person is who an entry's user is, groups apart.
func (c *Connector) person(e *entry) (connectors.Identity, error) {
	s, u := c.settings, &c.settings.UserSearch
	id := connectors.Identity{
		UserID: e.value(u.IDAttr, maxID), PreferredUsername: e.value(u.PreferredUsername, maxText), EmailVerified: true,
		PasswordSet: c.passwordSet(e),
	}
	for _, a := range s.nameAttrs() {
		if id.Name = e.value(a, maxText); id.Name != "" {
			break
		}
	}
	switch {
	case u.EmailSuffix != "" && id.Name != "":
		id.Email = sound(id.Name+"@"+u.EmailSuffix, maxEmail)
	case u.EmailSuffix == "":
		id.Email = e.value(u.EmailAttr, maxEmail)
	}
	if account := e.value("sAMAccountName", maxText); id.Email == "" && s.activeDirectory() {
		if id.Email = e.value("userPrincipalName", maxEmail); id.Email == "" && account != "" {
			id.Email = sound(account+"@"+dnsDomain(u.BaseDN), maxEmail) // which the domain takes for a name of every account
		}
	}
	if id.UserID == "" {
		return id, fmt.Errorf("ldap: entry %q has no %s that can be used: give it one, or set userSearch.idAttr", printable(e.dn, maxDN), u.IDAttr)
	}
	if id.Email == "" {
		return id, fmt.Errorf("ldap: entry %q has no e-mail address that can be used: give it a %s, or set userSearch.emailAttr", printable(e.dn, maxDN), u.EmailAttr)
	}
	return id, nil
}

// identities returns who the users of entries are, their groups found together. An answer's error is that of one user alone.
func (c *Connector) identities(ctx context.Context, entries []*entry) ([]connectors.Answer, error) {
	groups, err := c.groupsOf(ctx, entries)
	if err != nil {
		return nil, err
	}
	some := slices.ContainsFunc(groups, func(list []string) bool { return len(list) > 0 })
	if g := &c.settings.GroupSearch; !some && len(entries) > 0 && len(c.settings.RequiredGroups) > 0 && g.BaseDN != "" {
		if err := c.readable(ctx, "groupSearch.baseDN", g.BaseDN); err != nil {
			return nil, err
		}
	}
	out := make([]connectors.Answer, len(entries))
	for i, e := range entries {
		id, err := c.person(e)
		if err != nil {
			out[i].Err = refuse(connectors.Unavailable, err)
			continue
		}
		id.Groups = groups[i]
		if !c.settings.admits(id.Groups) {
			out[i].Err = refuse(connectors.NotAllowed, errors.New("ldap: the user is in none of requiredGroups"))
			continue
		}
		out[i].Identity = id
	}
	return out, nil
}

// admits says that users in these groups may sign in.
func (s *settings) admits(groups []string) bool {
	return len(s.RequiredGroups) == 0 || slices.ContainsFunc(s.RequiredGroups, func(g string) bool { return slices.Contains(groups, g) })
}

// Lookup asks who the users of these ids are now, in few requests for all of them. The answers are in the same order. An error means
// that the directory could not be asked.
func (c *Connector) Lookup(ctx context.Context, userIDs []string) ([]connectors.Answer, error) {
	found, unread, err := c.byID(ctx, userIDs)
	if err != nil {
		return nil, notKnown(err)
	}
	if len(found) == 0 && len(unread) == 0 && len(userIDs) > 0 { // all of them gone, or the service account's right to see them
		if err := c.readable(ctx, "userSearch.baseDN", c.settings.UserSearch.BaseDN); err != nil {
			return nil, notKnown(err)
		}
	}
	answers := make([]connectors.Answer, len(userIDs))
	var entries []*entry
	var at []int // the places of their users
	for i, id := range userIDs {
		switch list := found[id]; {
		case unread[id] != nil:
			answers[i].Err = notKnown(unread[id])
		case len(list) == 0:
			answers[i].Err = refuse(connectors.Gone, errors.New("ldap: no entry has this id"))
		case len(list) > 1:
			c.log.WarnContext(ctx, "two entries have one id, so that it is not known whose it is: check userSearch.idAttr",
				slog.Any("dn", []string{printable(list[0].dn, maxDN), printable(list[1].dn, maxDN)}))
			answers[i].Err = refuse(connectors.Unavailable, errors.New("ldap: several entries have this id"))
		default:
			if r := stateOf(list[0], c.now(), c.lockedFor(list[0])); c.settings.ends(r) {
				answers[i].Err = refuse(r, stateError(r))
				continue
			}
			entries, at = append(entries, list[0]), append(at, i)
		}
	}
	places := make([]int, len(entries)) // in entries and at
	for n := range places {
		places[n] = n
	}
	err = apart(places, new(maxApart), func(some []int) error {
		list := make([]*entry, len(some))
		for i, n := range some {
			list[i] = entries[n]
		}
		known, err := c.identities(ctx, list)
		for i, a := range known {
			answers[at[some[i]]] = a
		}
		return err
	}, func(n int, err error) { answers[at[n]].Err = notKnown(err) })
	if err != nil {
		return nil, notKnown(err)
	}
	return answers, nil
}

// readable fails where nothing was found since there is no such base, or none that the service account sees: that says nothing of anybody.
func (c *Connector) readable(ctx context.Context, key, base string) error {
	found, err := c.one(ctx, base, "1.1")
	if err == nil && found == nil {
		err = fmt.Errorf("ldap: %s %q cannot be read, so that nothing is found: check it, and the rights of bindDN", key, base)
	}
	return err
}

// maxApart is how many answers may be of no use in one Lookup: beyond it they are not one user's doing.
const maxApart = 64

// unusable reports whether a search failed by what was found: other entries may well be read.
func unusable(err error) bool { return errors.Is(err, errAnswer) || errors.Is(err, errTooMany) }

// apart does something with a list, and where the answer is of no use, with its halves: what is in one user's entry keeps nobody else out. alone is called
// with each one for which it is of no use. left is how often that may be.
func apart[T any](list []T, left *int, do func([]T) error, alone func(T, error)) error {
	err := do(list)
	if !unusable(err) || *left == 0 {
		return err
	}
	*left--
	if len(list) == 1 {
		alone(list[0], err)
		return nil
	}
	for _, half := range [][]T{list[:len(list)/2], list[len(list)/2:]} {
		if err := apart(half, left, do, alone); err != nil {
			return err
		}
	}
	return nil
}

// byID finds the entries of users, by their ids. unread are those that could not be read, and why.
func (c *Connector) byID(ctx context.Context, ids []string) (found map[string][]*entry, unread map[string]error, err error) {
	attribute, err := c.idAttribute(ctx)
	if err != nil {
		return nil, nil, err
	}
	filters := map[string]string{} // by id
	var wanted []string
	for _, id := range ids {
		if filters[id] != "" || id == "" || sound(id, maxDN) == "" {
			continue
		}
		if f := equals(attribute, id); f != "" {
			filters[id] = f
			wanted = append(wanted, id)
		}
	}
	found, unread = map[string][]*entry{}, map[string]error{}
	left := maxApart
	for chunk := range slices.Chunk(wanted, batch) {
		err := apart(chunk, &left, func(some []string) error {
			return c.readUsers(ctx, some, filters, found, unread)
		}, func(id string, err error) { unread[id] = err })
		if err != nil {
			return nil, nil, err
		}
	}
	return found, unread, nil
}

// errLag means that servers of a directory do not say the same: changes take a while from one to the other.
var errLag = errors.New("ldap: one directory server has no entry with this id, another one has")

// readUsers adds the entries of these ids to those that are found. Who is gone at one server and not at another one is unread.
func (c *Connector) readUsers(ctx context.Context, ids []string, filters map[string]string, found map[string][]*entry, unread map[string]error) error {
	entries, host, err := c.client.searchAt(ctx, c.ofUsers(ids, filters))
	if err != nil {
		return err
	}
	for id, list := range c.byTheirIDs(entries, filters) {
		for _, e := range list {
			if !slices.ContainsFunc(found[id], func(o *entry) bool { return o.dn == e.dn }) {
				found[id] = append(found[id], e)
			}
		}
	}
	missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return found[id] != nil })
	if len(missing) == 0 || !c.client.hosts.others(host) {
		return nil
	}
	entries, err = c.client.searchElsewhere(ctx, c.ofUsers(missing, filters), host)
	if err != nil { // nobody says otherwise
		c.log.DebugContext(ctx, "no other directory server says whether users are gone", slog.Any("error", err))
		return nil
	}
	known := c.byTheirIDs(entries, filters)
	for _, id := range missing {
		if known[id] != nil {
			unread[id] = errLag
		}
	}
	return nil
}

// ofUsers asks for the entries of some users.
func (c *Connector) ofUsers(ids []string, filters map[string]string) query {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = filters[id]
	}
	u := &c.settings.UserSearch
	return query{base: u.BaseDN, scope: c.settings.userScope, filter: allOf(u.Filter, anyOf(list)), attributes: c.attributes, limit: 4 * batch}
}

// byTheirIDs are the entries of wanted ids.
func (c *Connector) byTheirIDs(entries []*entry, wanted map[string]string) map[string][]*entry {
	found := map[string][]*entry{}
	for _, e := range entries {
		id := e.value(c.settings.UserSearch.IDAttr, maxID) // the first value, which is the one of a sign-in
		if wanted[id] != "" && e.dn != "" {
			found[id] = append(found[id], e)
		}
	}
	return found
}

// idAttribute is the attribute by which an id is searched for.
func (c *Connector) idAttribute(ctx context.Context) (string, error) {
	if a := c.settings.UserSearch.IDAttr; !isDN(a) {
		return a, nil
	}
	return c.nameOfEntries(ctx)
}

// nameOfEntries is the attribute by which entries are searched for by their distinguished names.
func (c *Connector) nameOfEntries(ctx context.Context) (string, error) {
	switch c.settings.Preset {
	case presetAD:
		return "distinguishedName", nil
	case "":
		f, err := c.known(ctx)
		if err != nil {
			return "", err
		}
		if f.activeDirectory {
			return "distinguishedName", nil
		}
	}
	return "entryDN", nil // RFC 5020
}
