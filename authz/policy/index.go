package policy

import (
	"fmt"
	"math"
	"strings"
)

// none is the index of no rule: it is larger than every other.
const none int32 = math.MaxInt32

// maxEntries bounds the index: the sum of hosts x paths of all rules.
const maxEntries = 1 << 20

// An index finds the first of many rules that matches, without looking at the others: by host, then segment
// by segment of the path, then by method.
type index struct {
	exact   map[string]*node
	wild    map[string]*node // by the suffix after "*"
	any     *node            // of rules without hosts
	entries int
}

// A node is a place in a tree of path segments.
type node struct {
	min   int32            // the smallest rule at or below this place
	next  map[string]*node // by segment
	star  *node            // any one segment that is not empty
	exact *table           // rules of exactly this path
	deep  *table           // rules of this path and everything below it
}

// A table is the first rule of one pattern, by method.
type table struct {
	any      int32 // of rules without methods
	byMethod map[string]int32
}

func newNode() *node { return &node{min: none} }

// first returns the smallest index of a rule that matches, or none.
func (x *index) first(host, path, method string) int32 {
	return x.find(host, path, method, false)
}

// find is first, and also answers which rule matches all that a pattern matches: host and path may be
// patterns, since no name or segment in the index has a *, and an empty host or method is one that only
// rules without hosts or methods match. below asks for rules of everything below path too.
func (x *index) find(host, path, method string, below bool) int32 {
	best := x.any.first(path, method, below, none)
	best = x.exact[host].first(path, method, below, best)
	if len(x.wild) == 0 {
		return best
	}
	for i := 1; i < len(host); i++ {
		if host[i] == '.' {
			best = x.wild[host[i:]].first(path, method, below, best)
		}
	}
	return best
}

// first returns the smaller of best and the first rule that matches rest, which is empty or starts with a
// slash. Only a segment * makes it look at two branches, and none that has no smaller rule than best: it
// visits a part of the tree, whatever the path.
func (n *node) first(rest, method string, below bool, best int32) int32 {
	for n != nil && n.min < best {
		best = min(best, n.deep.first(method))
		if rest == "" {
			if !below {
				best = min(best, n.exact.first(method))
			}
			break
		}
		segment, tail := cutSegment(rest)
		if n.star != nil && segment != "" {
			best = n.star.first(tail, method, below, best)
		}
		n, rest = n.next[segment], tail
	}
	return best
}

// cutSegment returns the first segment of a path that starts with a slash, and the rest.
func cutSegment(path string) (segment, rest string) {
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

func (t *table) first(method string) int32 {
	if t == nil {
		return none
	}
	if i, ok := t.byMethod[method]; ok {
		return min(i, t.any)
	}
	return t.any
}

// add adds the valid rule i. Rules are added in order.
func (x *index) add(r *Rule, i int32) error {
	hosts, paths := orAll(r.Hosts, ""), orAll(r.Paths, "/**")
	if x.entries += len(hosts) * len(paths); x.entries > maxEntries {
		return fmt.Errorf("has %d hosts x %d paths, and the policy more than %d of such pairs: use wildcards", len(hosts), len(paths), maxEntries)
	}
	for _, h := range hosts {
		root := x.root(h)
		for _, p := range paths {
			root.add(p, r.Methods, i)
		}
	}
	return nil
}

func orAll(list []string, all string) []string {
	if len(list) == 0 {
		return []string{all}
	}
	return list
}

func (x *index) root(host string) *node {
	if host == "" {
		if x.any == nil {
			x.any = newNode()
		}
		return x.any
	}
	roots, key := &x.exact, host
	if suffix, ok := strings.CutPrefix(host, "*"); ok {
		roots, key = &x.wild, suffix
	}
	if *roots == nil {
		*roots = make(map[string]*node)
	}
	if (*roots)[key] == nil {
		(*roots)[key] = newNode()
	}
	return (*roots)[key]
}

func (n *node) add(pattern string, methods []string, i int32) {
	path, below := strings.CutSuffix(pattern, "/**")
	n.min = min(n.min, i)
	for path != "" {
		var segment string
		segment, path = cutSegment(path)
		n = n.child(segment)
		n.min = min(n.min, i)
	}
	t := &n.exact
	if below {
		t = &n.deep
	}
	if *t == nil {
		*t = &table{any: none}
	}
	(*t).add(methods, i)
}

func (n *node) child(segment string) *node {
	if segment == "*" {
		if n.star == nil {
			n.star = newNode()
		}
		return n.star
	}
	if n.next == nil {
		n.next = make(map[string]*node)
	}
	if n.next[segment] == nil {
		n.next[segment] = newNode()
	}
	return n.next[segment]
}

func (t *table) add(methods []string, i int32) {
	if len(methods) == 0 {
		t.any = min(t.any, i)
		return
	}
	if t.byMethod == nil {
		t.byMethod = make(map[string]int32, len(methods))
	}
	for _, m := range methods {
		if _, ok := t.byMethod[m]; !ok {
			t.byMethod[m] = i
		}
	}
}

// shadow returns the first rule of the index that makes r useless, or none: for each of r's hosts, paths and
// methods a rule of the index matches all that it matches.
func (x *index) shadow(r *Rule) int32 {
	first := none
	for _, h := range orAll(r.Hosts, "") {
		for _, p := range orAll(r.Paths, "/**") {
			path, below := strings.CutSuffix(p, "/**")
			for _, m := range orAll(r.Methods, "") {
				i := x.find(h, path, m, below)
				if i == none {
					return none
				}
				first = min(first, i)
			}
		}
	}
	return first
}
