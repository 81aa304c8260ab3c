// Package imports holds the import graph of the source tree: which package may know of which, and why. See
// docs/architecture.md.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// A rule forbids edges of the graph. Patterns are import paths; PATH/... is PATH and everything below it.
type rule struct {
	from, except []string // the packages that it is about
	to           []string // what they may not import
	only         []string // or: all that they may import besides the standard library
	deep         bool     // not through other packages either
	tests        bool     // nor in their tests
	why          string
}

// rules are the graph of docs/architecture.md.
func rules() []rule {
	const dex = "github.com/dexidp/dex/..."
	return []rule{
		{
			from: []string{"gatehouse/..."}, except: []string{"gatehouse/provider/..."}, tests: true,
			to:  []string{dex, "github.com/AppsFlyer/go-sundheit/..."},
			why: "Dex promises no stable API: one tree of packages follows it, and everything else speaks our own words",
		},
		{
			from: []string{"gatehouse/authz/..."}, deep: true,
			to:  []string{"gatehouse/provider/...", "gatehouse/internal/config/...", dex},
			why: "the authorizer declares the one small interface that it needs; cmd joins it to the provider and to the file",
		},
		{
			from: []string{"gatehouse/authz/policy"}, only: []string{"gatehouse/internal/hosts"}, deep: true,
			why: "a decision is made from its arguments alone: no I/O, no clock, nothing to mock",
		},
		{
			from: []string{"gatehouse/provider/..."}, to: []string{"gatehouse/authz/..."},
			why: "the provider serves clients that no gateway ever sees; only cmd knows both",
		},
		{
			from: []string{"gatehouse/..."}, except: []string{"gatehouse/authz/...", "gatehouse/cmd/...", "gatehouse/test/..."},
			to:  []string{"github.com/envoyproxy/go-control-plane/..."},
			why: "Envoy's messages are turned into our words in one place",
		},
		{
			from: []string{"gatehouse/web/..."}, deep: true,
			to: []string{
				"gatehouse/authz/...", "gatehouse/cmd/...", "gatehouse/connectors/...", "gatehouse/internal/...", "gatehouse/provider/...",
			},
			why: "pages show what they are given: they can be looked at without anything else running",
		},
		{
			from: []string{"gatehouse/connectors/..."}, deep: true,
			to: []string{
				"gatehouse/authz/...", "gatehouse/web/...", "gatehouse/provider/...", "gatehouse/cmd/...",
				"gatehouse/internal/config/...", dex,
			},
			why: "a connector asks a directory: it neither decides nor shows pages, and works without Dex",
		},
		{
			from: []string{"gatehouse/internal/..."}, to: []string{"gatehouse/cmd/...", "gatehouse/provider/..."}, deep: true,
			why: "internal packages are tools of the others, never the other way round",
		},
		{
			from: []string{"gatehouse/internal/seal", "gatehouse/internal/hosts", "gatehouse/internal/handoff", "gatehouse/internal/inproc"},
			only: []string{"gatehouse/internal/seal", "gatehouse/internal/hosts"}, deep: true,
			why: "what everything else is built upon is built upon the standard library",
		},
		{
			from: []string{"gatehouse/..."}, except: []string{"gatehouse/test/...", "gatehouse/provider/store/storetest"}, deep: true,
			to:  []string{"testing", "github.com/chromedp/...", "gatehouse/test/..."}, // testing/fstest has a file system in memory, and does not import testing
			why: "tests stay out of the product",
		},
	}
}

// A node is a package as `go list -json` prints it.
type node struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
}

type graph map[string]*node

// violations returns every edge that a rule forbids, with the way to it and the reason.
func violations(g graph, rules []rule) (found []string) {
	for _, r := range rules {
		for _, name := range g.names() {
			if !matches(r.from, name) || matches(r.except, name) {
				continue
			}
			for _, way := range g.ways(name, r) {
				if r.forbids(g, way[len(way)-1]) {
					found = append(found, strings.Join(way, " imports ")+": "+r.why)
				}
			}
		}
	}
	return found
}

func (r rule) forbids(g graph, to string) bool {
	if len(r.only) == 0 {
		return matches(r.to, to)
	}
	n := g[to]
	return (n == nil || !n.Standard) && !matches(r.only, to)
}

// ways returns a shortest way to each package that a rule must look at.
func (g graph) ways(from string, r rule) (ways [][]string) {
	first := g[from].Imports
	if r.tests {
		first = slices.Concat(first, g[from].TestImports, g[from].XTestImports)
	}
	seen := map[string]bool{from: true}
	for queue := [][]string{{from}}; len(queue) > 0; queue = queue[1:] {
		way := queue[0]
		next := first
		if len(way) > 1 {
			ways = append(ways, way)
			if !r.deep {
				continue
			}
			n := g[way[len(way)-1]]
			if n == nil || n.Standard {
				continue
			}
			next = n.Imports
		}
		for _, to := range next {
			if !seen[to] {
				seen[to] = true
				queue = append(queue, append(slices.Clone(way), to))
			}
		}
	}
	return ways
}

func (g graph) names() (names []string) {
	for name := range g {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		tree, ok := strings.CutSuffix(p, "/...")
		return path == tree || ok && strings.HasPrefix(path, tree+"/")
	})
}

// load returns the graph of the module and of everything that it is built from.
func load(t *testing.T) graph {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-pgo=off", "-deps", "-json=ImportPath,Standard,Imports,TestImports,XTestImports", "./...")
	list.Dir = peers.Root(t)
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", list, err, stderr.String())
	}
	g := graph{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var n node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			return g
		}
		if err != nil {
			t.Fatalf("%s: %v", list, err)
		}
		g[n.ImportPath] = &n
	}
}

func TestImports(t *testing.T) {
	g := load(t)
	for _, v := range violations(g, rules()) {
		t.Error(v)
	}
	for _, r := range rules() {
		for _, pattern := range r.from {
			if !slices.ContainsFunc(g.names(), func(name string) bool { return matches([]string{pattern}, name) }) {
				t.Errorf("a rule is about %s, which matches no package: it holds nothing (%s)", pattern, r.why)
			}
		}
	}
}

// TestRulesBite breaks each rule in a small graph.
func TestRulesBite(t *testing.T) {
	const dex, envoy = "github.com/dexidp/dex/storage", "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	for _, tc := range []struct {
		name string
		add  []string // edges "a b": a imports b; "a b test": in its tests
		want int      // violations
	}{
		{name: "the graph as designed", want: 0},
		{name: "Dex outside the provider", add: []string{"gatehouse/cmd/gatehouse " + dex}, want: 1},
		{name: "Dex in a test outside the provider", add: []string{"gatehouse/web " + dex + " test"}, want: 1},
		{name: "Dex in a connector's tree", add: []string{"gatehouse/connectors/ldap " + dex}, want: 2},
		{name: "a package whose name only begins like the provider's", add: []string{"gatehouse/providers " + dex}, want: 1},
		{name: "authorizer knows the file", add: []string{"gatehouse/authz gatehouse/internal/config"}, want: 1},
		{name: "authorizer knows the file through a helper", add: []string{"gatehouse/authz/bearer gatehouse/internal/x", "gatehouse/internal/x gatehouse/internal/config"}, want: 1},
		{name: "authorizer knows the provider, and so Dex", add: []string{"gatehouse/authz gatehouse/provider"}, want: 3},
		{name: "policy reads a clock's package of others", add: []string{"gatehouse/authz/policy github.com/x/clock"}, want: 1},
		{name: "policy reaches others through hosts", add: []string{"gatehouse/internal/hosts github.com/x/idna"}, want: 2},
		{name: "provider knows the authorizer", add: []string{"gatehouse/provider/front gatehouse/authz/session"}, want: 1},
		{name: "Envoy's messages in the demo", add: []string{"gatehouse/internal/demo " + envoy}, want: 1},
		{name: "pages read the sessions", add: []string{"gatehouse/web gatehouse/internal/seal"}, want: 1},
		{name: "pages of two packages", add: []string{"gatehouse/web gatehouse/web/text"}, want: 0},
		{name: "a connector shows a page", add: []string{"gatehouse/connectors/ldap gatehouse/web"}, want: 1},
		{name: "a tool drives the provider, and so Dex", add: []string{"gatehouse/internal/demo gatehouse/provider/store"}, want: 1},
		{name: "sealing needs a module", add: []string{"gatehouse/internal/seal github.com/x/nacl"}, want: 2},
		{name: "testing in the product", add: []string{"gatehouse/authz/session testing"}, want: 1},
		{name: "testing through a module", add: []string{"gatehouse/authz/session github.com/x/mock", "github.com/x/mock testing"}, want: 1},
		{name: "the product needs the store's tests, and so testing", add: []string{"gatehouse/provider gatehouse/provider/store/storetest", "gatehouse/provider/store/storetest testing"}, want: 2},
		{name: "a file system in memory", add: []string{"gatehouse/web testing/fstest"}, want: 0},
		{name: "the product needs a peer, and so testing", add: []string{"gatehouse/authz/session gatehouse/test/peers"}, want: 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := designed()
			for _, edge := range tc.add {
				g.add(edge)
			}
			if got := violations(g, rules()); len(got) != tc.want {
				t.Errorf("got %d violations, want %d:\n%s", len(got), tc.want, strings.Join(got, "\n"))
			}
		})
	}
}

// designed is the graph of DESIGN and docs/architecture.md in small.
func designed() graph {
	g := graph{"testing": {ImportPath: "testing", Standard: true}, "net/http": {ImportPath: "net/http", Standard: true}}
	for _, edge := range []string{
		"gatehouse/cmd/gatehouse gatehouse/authz", "gatehouse/cmd/gatehouse gatehouse/provider",
		"gatehouse/cmd/gatehouse gatehouse/internal/config", "gatehouse/cmd/gatehouse gatehouse/internal/demo",
		"gatehouse/authz gatehouse/authz/policy", "gatehouse/authz gatehouse/internal/seal", "gatehouse/authz net/http",
		"gatehouse/authz gatehouse/web", "gatehouse/authz github.com/envoyproxy/go-control-plane/envoy/service/auth/v3",
		"gatehouse/authz/policy gatehouse/internal/hosts", "gatehouse/authz testing test",
		"gatehouse/internal/config gatehouse/authz/policy",
		"gatehouse/provider github.com/dexidp/dex/storage", "gatehouse/provider gatehouse/internal/config",
		"gatehouse/provider/front gatehouse/connectors", "gatehouse/provider/front gatehouse/web", "gatehouse/provider/front gatehouse/internal/handoff",
		"gatehouse/internal/handoff gatehouse/internal/seal", "gatehouse/test/peers testing",
	} {
		g.add(edge)
	}
	return g
}

func (g graph) add(edge string) {
	words := strings.Fields(edge)
	for _, name := range words[:2] {
		if g[name] == nil {
			g[name] = &node{ImportPath: name}
		}
	}
	from := g[words[0]]
	if len(words) == 3 {
		from.TestImports = append(from.TestImports, words[1])
		return
	}
	from.Imports = append(from.Imports, words[1])
}

// TestOnlyCmdJoins: provider and authorizer meet in one file's package, and nowhere else.
func TestOnlyCmdJoins(t *testing.T) {
	joins := func(n *node) bool {
		provider := slices.ContainsFunc(n.Imports, func(p string) bool { return matches([]string{"gatehouse/provider/..."}, p) })
		authz := slices.ContainsFunc(n.Imports, func(p string) bool { return matches([]string{"gatehouse/authz/..."}, p) })
		return provider && authz
	}
	g := load(t)
	for _, name := range g.names() {
		if want := name == "gatehouse/cmd/gatehouse"; joins(g[name]) != want {
			t.Errorf("%s imports both provider and authz: got %t, want %t", name, !want, want)
		}
	}
	if n := (&node{Imports: []string{"gatehouse/provider/store", "gatehouse/authz/session"}}); !joins(n) {
		t.Error(fmt.Sprint(n.Imports, " is not seen as both"))
	}
}
