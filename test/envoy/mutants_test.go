package envoy

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// A mutant is a Gatehouse with a mistake that somebody could make. The table must find it.
type mutant struct {
	name  string
	edits []edit
	// scenes are the families whose scenes are played too; all requests of the table are sent to every mutant.
	scenes []string
}

// An edit replaces text that stands in a file exactly once.
type edit struct{ file, old, fresh string }

// mutants are mended here when the source moves.
var mutants = []mutant{
	{name: "paths are not normalised", edits: []edit{
		{"authz/policy/request.go", `decoded, reason := normal(path)`, `decoded, reason := path, ""`},
	}},
	{name: "escapes in paths are decoded and not judged", edits: []edit{
		{"authz/policy/request.go", `if reason := badEscape(c); reason != "" {`, `if reason := badEscape(c); reason == "x" {`},
	}},
	{name: "identity headers of the client stay", edits: []edit{
		{"authz/identity.go", `names = append(append(names, name), usualAliases(name)...)`, `_ = usualAliases`},
	}},
	{name: "unusual aliases of identity headers stay", edits: []edit{
		{"authz/identity.go", `if h.anyLength&lengthBit(key) == 0 {`, `if len(key) > 0 {`},
	}},
	{name: "the client's Authorization stays", edits: []edit{
		{"authz/identity.go", `const authorization = "authorization"`, `const authorization = "x-authorization"`},
	}},
	{name: "our cookies stay", edits: []edit{
		{"authz/cookies.go", `if slices.Contains(owned, trimBlanks(name)) {`, `if slices.Contains(owned[:0], trimBlanks(name)) {`},
	}},
	{name: "seals are opened and not checked", edits: []edit{ // GCM is CTR: sealing the ciphertext with the same nonce decrypts it
		{"internal/seal/seal.go", `if out, err := b.aead.Open(free[:0], nonce, text, data); err == nil {
			return append(dst[:start], out...), nil`, `if out := b.aead.Seal(free[:0], nonce, text[:len(text)-tagSize], data); len(out) > 0 {
			return append(dst[:start], out[:len(out)-tagSize]...), nil`},
	}},
	{name: "session cookies are of every host", edits: []edit{
		{"internal/handoff/handoff.go", `return ring.Seal(PurposeCookie, host, append(b, session...))`, `return ring.Seal(PurposeCookie, "", append(b, session...))`},
		{"internal/handoff/handoff.go", `b, err := ring.Open(dst, PurposeCookie, host, value)`, `b, err := ring.Open(dst, PurposeCookie, "", value)`},
	}},
	{name: "tickets are of every browser", scenes: []string{"hand-off"}, edits: []edit{
		{"internal/handoff/handoff.go", `return c.Random != "" && subtle.ConstantTimeCompare([]byte(c.Bind()), []byte(bind)) == 1`, `return subtle.ConstantTimeCompare(nil, nil) == 1`},
	}},
	{name: "the last rule decides", edits: []edit{
		{"authz/policy/policy.go", `if err := p.index.add(r, int32(i)); err != nil {`, `if err := p.index.add(r, int32(len(rules)-1-i)); err != nil {`},
		{"authz/policy/policy.go", `return p.rules[i].decide(id)`, `return p.rules[len(p.rules)-1-int(i)].decide(id)`},
	}},
	{name: "every host is listed", edits: []edit{
		{"internal/hosts/hosts.go", `return e.scheme == "https", ok`, `return e.scheme == "https", true`},
	}},
	{name: "a wildcard matches without its dot", edits: []edit{
		{"internal/hosts/hosts.go", `if name[i] == '.' && i > 0 {
			if e, ok := s.wild[name[i:]]; ok {`, `if i > 0 {
			if e, ok := s.wild["."+strings.TrimPrefix(name[i:], ".")]; ok {`},
	}},
	{name: "hosts with a user are taken", edits: []edit{
		{"internal/hosts/hosts.go", `name = strings.TrimSuffix(name, ".")`, `name = strings.TrimSuffix(name[strings.LastIndexByte(name, '@')+1:], ".")`},
	}},
	{name: "nobody passes a rule for groups", edits: []edit{
		{"authz/policy/rule.go", `d.Effect, d.Reason = Authenticate, ReasonSignIn`, `d.Reason = ReasonSignIn`},
	}},
	{name: "nobody passes where no rule matches", edits: []edit{
		{"authz/policy/policy.go", `return Decision{Effect: Authenticate, Reason: ReasonSignIn, Rule: defaultRule}`, `return Decision{Effect: Allow, Reason: ReasonSignIn, Rule: defaultRule}`},
	}},
	{name: "every user passes a rule for groups", edits: []edit{
		{"authz/policy/rule.go", `d.Effect, d.Reason = Deny, ReasonNotInGroup`, `d.Reason = ReasonNotInGroup`},
	}},
	{name: "groups match as prefixes", edits: []edit{
		{"authz/policy/rule.go", `} else if slices.Contains(r.groups, g) {`, `} else if slices.ContainsFunc(r.groups, func(want string) bool { return strings.HasPrefix(strings.ToLower(g), want) }) {`},
	}},
	{name: "the issuer's path is a prefix of bytes", edits: []edit{
		{"authz/config.go", `return strings.HasPrefix(path, prefix) && (len(path) == len(prefix) || path[len(prefix)] == '/')`, `return strings.HasPrefix(path, prefix)`},
	}},
	{name: "redirect targets are not judged", edits: []edit{
		{"authz/target.go", `if len(target) > maxTarget || !safePath(target) {
		return "", false
	}`, `if safePath(target) || true {
		return target, true
	}`},
	}},
	{name: "sign-out forms of other sites count", scenes: []string{"sign-out"}, edits: []edit{
		{"authz/own.go", `own, _ := c.g.Hosts.Origin(c.req.Host)
	if origin, present := c.head.find("origin"); present {`, `own, _ := c.g.Hosts.Origin(c.req.Host)
	if origin, present := c.head.find("origin"); present && origin == "" {`},
	}},
}

// TestMutants builds Gatehouse with one mistake at a time and attacks it directly over gRPC: the table must turn red for each, and stay
// green for what has none.
func TestMutants(t *testing.T) {
	t.Run("no mistake", func(t *testing.T) {
		if red := attack(t, nil); len(red) > 0 {
			t.Errorf("%d rows are red, such as %s", len(red), red[0])
		}
	})
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Setenv("GATEHOUSE_BIN", m.build(t))
			red := attack(t, m.scenes)
			if len(red) == 0 {
				t.Fatal("no row is red")
			}
			t.Logf("%d rows are red, such as %.160s", len(red), red[0])
		})
	}
}

// attack sends every request of the table that has an answer over gRPC, and plays the scenes of some families. It returns what is
// red: where nobody can even sign in, that alone.
func attack(t *testing.T, scenes []string) (red []string) {
	t.Helper()
	w, _ := newBareWorld(t, "memory")
	var c *cast
	cast := &counter{TB: t}
	cast.run(func() { c = newCast(cast, w, w.direct) })
	if len(cast.failures) > 0 {
		return cast.failures
	}
	w.app.take()
	for _, r := range rows() {
		if r.hole != "" || r.play != nil && !slices.Contains(scenes, r.family) {
			continue
		}
		for _, at := range c.runs(t, r) {
			if at.edge != w.direct {
				continue
			}
			n := &counter{TB: t}
			n.run(func() { c.run(n, r, at) })
			if len(n.failures) > 0 {
				red = append(red, r.family+"/"+r.name+": "+n.failures[0])
			}
		}
	}
	return red
}

// build builds a mutant as `make build` builds the product, so that both share what the compiler keeps; but it is linked without what only
// a debugger reads, which is half of the time.
func (m mutant) build(t *testing.T) string {
	t.Helper()
	root, dir := peers.Root(t), t.TempDir()
	texts := map[string]string{}
	for _, e := range m.edits {
		path := filepath.Join(root, filepath.FromSlash(e.file))
		text, ok := texts[path]
		if !ok {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if n := strings.Count(text, e.old); n != 1 {
			t.Fatalf("%s: %q stands there %d times, want once: the source has moved, so mend the list of mutants", e.file, e.old, n)
		}
		texts[path] = strings.Replace(text, e.old, e.fresh, 1)
	}
	overlay := map[string]map[string]string{"Replace": {}}
	for i, path := range slices.Sorted(maps.Keys(texts)) {
		copied := filepath.Join(dir, string(rune('a'+i))+".go")
		if err := os.WriteFile(copied, []byte(texts[path]), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][path] = copied
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "gatehouse")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-pgo=off", "-trimpath", "-ldflags=-s -w", "-overlay", list, "-o", binary, "./cmd/gatehouse")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}
