package ldap

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The presets.
const (
	presetAD       = "activedirectory"
	presetOpenLDAP = "openldap"
	presetFreeIPA  = "freeipa"
)

// The ways to find the groups that a user's groups are in, for groupSearch.nested.
const (
	nestedNone    = "none"
	nestedWalk    = "walk"        // level by level, many groups in one search
	nestedChain   = "inChain"     // Active Directory's matching rule: one search for each user
	nestedTokens  = "tokenGroups" // security groups only, by their SIDs: one search for each user
	matchingChain = "1.2.840.113556.1.4.1941"
)

// What groupSearch.value may be.
const (
	valueName = "name"
	valueDN   = "dn"
	valueSID  = "sid"
)

// fill gives what is not set its default, that of the preset first.
func (s *settings) fill() {
	u, g := &s.UserSearch, &s.GroupSearch
	s.fillPreset(u, g)
	if s.Preset != "" {
		orNames(u, "uid", "mail")
	}
	or(&u.IDAttr, "uid")
	or(&u.EmailAttr, "mail")
	or(&g.NameAttr, "cn")
	or(&g.Value, valueName)
	or(&g.Limit, defaultGroups)
	or(&s.LockedSessions, "end")
	or(&s.Referrals, "ignore")
	or(&s.Watch, "auto")
	or(&s.Timeouts.Dial, duration(defaultDial))
	or(&s.Timeouts.Request, duration(defaultRequest))
	or(&s.Connections, defaultConnections)
	or(&s.PageSize, defaultPage)
}

func (s *settings) fillPreset(u *userSearch, g *groupSearch) {
	suffix := domainDN(s.Domain)
	switch s.Preset {
	case presetAD:
		or(&u.BaseDN, suffix)
		or(&u.Filter, "(objectCategory=person)(objectClass=user)") // no computers, no contacts
		or(&u.IDAttr, "objectGUID")
		or(&u.NameAttr, "displayName")
		or(&u.PreferredUsername, "sAMAccountName")
		orNames(u, "sAMAccountName", "userPrincipalName", "mail")
		if len(g.UserMatchers) == 0 {
			or(&g.Nested, nestedWalk)
		}
		or(&g.BaseDN, or(&suffix, domainOf(u.BaseDN)))
		or(&g.NameAttr, "sAMAccountName") // unique in the domain, as cn is not
		if g.PrimaryGroup == nil {
			g.PrimaryGroup = new(len(g.UserMatchers) == 0)
		}
	case presetOpenLDAP:
		or(&u.BaseDN, suffix)
		or(&u.Filter, "(objectClass=person)")
		or(&u.IDAttr, "entryUUID")
		or(&u.NameAttr, "cn")
		or(&u.PreferredUsername, "uid")
		or(&g.BaseDN, or(&suffix, domainOf(u.BaseDN)))
		if len(g.UserMatchers) == 0 && g.UserAttr == "" {
			or(&g.Filter, "(objectClass=groupOfNames)")
			or(&g.Nested, nestedWalk)
			g.UserMatchers = []userMatcher{{UserAttr: "DN", GroupAttr: "member"}}
		}
	case presetFreeIPA:
		or(&u.BaseDN, under("cn=users,cn=accounts", suffix))
		or(&u.Filter, "(objectClass=posixaccount)")
		or(&u.IDAttr, "ipaUniqueID")
		or(&u.NameAttr, "displayName")
		or(&u.PreferredUsername, "uid")
		or(&g.BaseDN, under("cn=groups,cn=accounts", or(&suffix, domainOf(u.BaseDN))))
		or(&g.Filter, "(objectClass=ipausergroup)")
	}
}

// or gives what is not set a value, and returns what it is then.
func or[T comparable](to *T, value T) T {
	var zero T
	if *to == zero {
		*to = value
	}
	return *to
}

func orNames(u *userSearch, names ...string) {
	if len(u.Username) == 0 {
		u.Username = names
	}
}

// domainDN is where the entries of a DNS domain are: dc=corp,dc=example,dc=com.
func domainDN(domain string) string {
	if !domainName.MatchString(domain) {
		return ""
	}
	return "DC=" + strings.Join(strings.Split(domain, "."), ",DC=")
}

func under(rdn, suffix string) string {
	if suffix == "" {
		return ""
	}
	return rdn + "," + suffix
}

// byMemberOf says that a user's groups are those that their entry names, rather than those whose entries name the user.
func (s *settings) byMemberOf() bool {
	return len(s.matchers) == 0 && s.GroupSearch.BaseDN != "" && (s.Preset == presetAD || s.Preset == presetFreeIPA)
}

// nameAttrs are the attributes for a person's name, the best first.
func (s *settings) nameAttrs() []string {
	names := []string{s.UserSearch.NameAttr}
	if s.Preset != "" && s.UserSearch.NameAttr != "" {
		names = append(names, "cn")
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// groups checks how groups are found, and settles it.
func (m *mistakes) groups(s *settings) {
	g := &s.GroupSearch
	s.groupScope = m.scope("groupSearch.scope", g.Scope)
	m.filter("groupSearch.filter", g.Filter)
	m.attribute("groupSearch.nameAttr", g.NameAttr)
	if g.BaseDN != "" {
		m.dn("groupSearch.baseDN", g.BaseDN)
	} else if s.Preset != "" {
		said := m.at["domain"] || m.at["userSearch.baseDN"] || m.at["preset"] && s.Domain != ""
		m.addUnless(said, "groupSearch.baseDN", "is missing: set it to where your groups are, or set domain")
	}
	m.enum("groupSearch.value", g.Value, valueName, valueDN, valueSID)
	m.enum("groupSearch.nested", g.Nested, "", nestedNone, nestedWalk, nestedChain, nestedTokens)
	s.matchers = m.matchers(g)
	m.nested(s)
	if g.Match != "" {
		var err error
		if s.match, err = regexp.Compile("^(?:" + g.Match + ")$"); err != nil {
			m.add("groupSearch.match", "is no regular expression: %v", err)
		}
	}
	m.named("groupSearch.allow", g.Allow)
	m.named("requiredGroups", s.RequiredGroups)
	if len(s.RequiredGroups) > 0 && g.BaseDN == "" {
		m.add("requiredGroups", "needs groupSearch: without it nobody is in a group, and nobody could sign in")
	}
}

// named checks a list of groups.
func (m *mistakes) named(field string, list []string) {
	for i, name := range list {
		if name == "" {
			m.add(fmt.Sprintf("%s[%d]", field, i), "is empty: remove it, or name a group")
		}
	}
}

// matchers returns the ways from a user to their groups, Dex's older keys included.
func (m *mistakes) matchers(g *groupSearch) []userMatcher {
	list, field := g.UserMatchers, "groupSearch.userMatchers[%d]."
	switch {
	case len(list) > 0 && (g.UserAttr != "" || g.GroupAttr != ""):
		m.add("groupSearch.userAttr", "is set, and userMatchers too: move it there, with groupAttr and recursionGroupAttr")
	case len(list) == 0 && (g.UserAttr != "" || g.GroupAttr != ""):
		list, field = []userMatcher{{g.UserAttr, g.GroupAttr, g.RecursionGroupAttr}}, "groupSearch."
	}
	for i, u := range list {
		at := field
		if strings.Contains(at, "%d") {
			at = fmt.Sprintf(field, i)
		}
		if u.UserAttr == "" {
			m.add(at+"userAttr", "is missing: set it to the user's attribute, such as DN or uid")
		}
		if u.GroupAttr == "" {
			m.add(at+"groupAttr", "is missing: set it to the group's attribute that holds it, such as member or memberUid")
		}
		m.attribute(at+"userAttr", u.UserAttr)
		for key, a := range map[string]string{"groupAttr": u.GroupAttr, "recursionGroupAttr": u.RecursionGroupAttr} {
			if !attrRule.MatchString(a) {
				m.attribute(at+key, a)
			}
		}
	}
	return list
}

// nested checks groupSearch.nested against the rest, and turns it into what the search does.
func (m *mistakes) nested(s *settings) {
	g := &s.GroupSearch
	ad := s.Preset == presetAD
	switch {
	case !ad && (g.Nested == nestedChain || g.Nested == nestedTokens):
		m.add("groupSearch.nested", "%s is for preset: activedirectory; want walk or none", g.Nested)
	case ad && g.Nested != "" && len(s.matchers) > 0 && g.Nested != nestedNone:
		m.add("groupSearch.nested", "%s finds the groups by itself: remove userMatchers", g.Nested)
	case g.Nested == nestedWalk && len(s.matchers) == 0 && !s.byMemberOf() && !m.at["groupSearch.baseDN"]:
		m.add("groupSearch.nested", "has nothing to start from: set userMatchers, or preset")
	}
	if !ad && g.PrimaryGroup != nil && *g.PrimaryGroup {
		m.add("groupSearch.primaryGroup", "is for preset: activedirectory; remove it")
	}
	if ad && g.PrimaryGroup != nil && *g.PrimaryGroup && len(s.matchers) > 0 {
		m.add("groupSearch.primaryGroup", "needs the preset's way to find groups: remove userMatchers")
	}
	if !ad && g.Value == valueSID {
		m.add("groupSearch.value", "sid is for preset: activedirectory; want name or dn")
	}
	switch {
	case g.BaseDN == "" && len(s.matchers) > 0:
		m.add("groupSearch.baseDN", "is missing: without it no group is found")
	case g.BaseDN != "" && len(s.matchers) == 0 && !s.byMemberOf():
		m.add("groupSearch.userMatchers", "is missing: without it no group is found; set it, such as [{userAttr: DN, groupAttr: member}], or remove groupSearch")
	}
	if g.Nested == nestedWalk && !ad {
		s.matchers = slices.Clone(s.matchers)
		for i, u := range s.matchers {
			if u.RecursionGroupAttr == "" {
				s.matchers[i].RecursionGroupAttr = "member"
				if strings.EqualFold(u.UserAttr, "DN") {
					s.matchers[i].RecursionGroupAttr = u.GroupAttr
				}
			}
		}
	}
}
