package envoy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A summary counts how requests of the table ended, by family.
type summary struct {
	edges    []string
	families map[string]*tally
}

func newSummary(edges []*edge) *summary {
	s := &summary{families: map[string]*tally{}}
	for _, e := range edges {
		s.edges = append(s.edges, e.name)
	}
	return s
}

// A tally counts rows, and their runs by edge.
type tally struct {
	rows                     map[string]bool
	at                       map[string]int
	refused, allowed, scenes int
	byEnvoy, holes, failed   int
}

func (s *summary) add(r row, at run, ok bool) {
	for _, family := range []string{r.family, "all"} {
		n := s.families[family]
		if n == nil {
			n = &tally{rows: map[string]bool{}, at: map[string]int{}}
			s.families[family] = n
		}
		n.rows[r.family+"/"+r.name] = true
		n.at[at.edge.name]++
		switch {
		case !ok:
			n.failed++
		case r.hole != "":
			n.holes++
		case at.want == nil:
			n.scenes++
		case at.want.passes:
			n.allowed++
		default:
			n.refused++
		}
		if at.want != nil && at.want.byEnvoy {
			n.byEnvoy++
		}
	}
}

// lines is a table, with all families last.
func (s *summary) lines() []string {
	const endings = " | %8v %7v %7v %7v %6v %6v"
	out := []string{
		"runs at each kind of edge, and how they ended as they must: refused (byEnvoy: of these, by Envoy itself), let through, scenes of several requests; holes that are known",
		fmt.Sprintf("%-10s %5s ", "family", "rows") + strings.Join(s.edges, " ") + fmt.Sprintf(endings, "refused", "byEnvoy", "through", "scenes", "holes", "failed"),
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(s.families)), func(n string) bool { return n == "all" })
	for _, name := range append(names, "all") {
		n := s.families[name]
		if n == nil {
			continue
		}
		var at []string
		for _, e := range s.edges {
			at = append(at, fmt.Sprintf("%*d", len(e), n.at[e]))
		}
		out = append(out, fmt.Sprintf("%-10s %5d ", name, len(n.rows))+strings.Join(at, " ")+fmt.Sprintf(endings, n.refused, n.byEnvoy, n.allowed, n.scenes, n.holes, n.failed))
	}
	return out
}
