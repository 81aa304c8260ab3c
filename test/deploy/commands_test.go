package deploy

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A claim is a block of commands in a document, by a text that no other block of it has, with the test of this package that runs it.
type claim struct{ text, test string }

// claims are all blocks of commands. What talks to a cluster is told to a stand-in, and its arguments are held to what the manifests
// have; test/cluster applies the same manifests to a real API server.
var claims = map[string][]claim{
	"install.md": {
		{"docker push", "TestInstallImage"},
		{"sed -i 's#istio-system/gateway#", "TestInstallNames"},
		{"hash-password    # asks", "TestInstallHash"},
		{"LDAP_PASSWORD=./ldap-password", "TestInstallDirectorySecrets"},
		{"check-config /gatehouse.yaml", "TestInstallCheckConfig"},
		{"helm upgrade istiod", "TestInstallMeshProvider"},
		{"istio/mesh-provider.sh", "TestInstallMeshProvider"},
		{"apply -k deploy/overlays/istio\n", "TestInstallApply"},
		{"curl -s", "TestInstallLook"},
		{"istio/hardened-gateway.yaml", "TestInstallApply"},
		{"apply -k deploy/overlays/istio-envoyfilter", "TestInstallApply"},
		{"apply -k deploy/overlays/gateway-api", "TestInstallApply"},
		{"apply -k deploy/overlays/envoy-gateway", "TestInstallApply"},
		{"GATEHOUSE_DB_PASSWORD=", "TestInstallReplicas"},
		{"store-kubernetes/crd.yaml", "TestInstallReplicas"},
		{"helm install gatehouse", "TestInstallHelm"},
		{"helm uninstall gatehouse", "TestInstallHelm"},
		{"sudo envoy", "TestInstallAnyEnvoy"},
		{"systemctl enable --now gatehouse", "TestInstallSystemd"},
	},
	"operations.md": {
		{"kind: PrometheusRule", "TestOperationsAlerts"},
		{".backup", "TestOperationsBackup"},
		{"install -m 0600 -o gatehouse", "TestOperationsBackup"},
		{"name: gatehouse-copy", "TestOperationsBackupInKubernetes"},
		{"tar xf -", "TestOperationsBackupInKubernetes"},
		{"pg_dump", "TestOperationsBackupOfPostgres"},
		{"pg_restore", "TestOperationsBackupOfPostgres"},
		{"newTag", "TestOperationsUpgrade"},
		{"helm upgrade gatehouse", "TestOperationsUpgrade"},
		{"bin/gatehouse version", "TestOperationsUpgrade"},
		{"/dev/urandom", "TestOperationsKeys"},
		{"sessions list --config", "TestOperationsSessions"},
		{"exec deploy/gatehouse", "TestOperationsSessions"},
	},
}

// TestEveryCommandIsRun fails for a block of commands that no test runs, and for a claim that no block, or no test, answers to.
func TestEveryCommandIsRun(t *testing.T) {
	sources := testSources(t)
	for _, doc := range slices.Sorted(maps.Keys(claims)) {
		blocks, found := fencedBlocks(t, doc), map[claim]int{}
		for _, b := range blocks {
			if !isCommands(b) {
				continue
			}
			var by []claim
			for _, c := range claims[doc] {
				if strings.Contains(b.code, c.text) {
					by = append(by, c)
					found[c]++
				}
			}
			if len(by) != 1 {
				t.Errorf("docs/%s: these commands have the claims %v, want one test that runs them:\n%s", doc, by, b.code)
			}
		}
		for _, c := range claims[doc] {
			if found[c] != 1 {
				t.Errorf("docs/%s has %d blocks of commands with %q, want 1", doc, found[c], c.text)
			}
			body, ok := testBody(sources, c.test)
			if !ok {
				t.Errorf("%q: there is no test %s", c.text, c.test)
			} else if !strings.Contains(body, fmt.Sprintf("%q", c.text)) {
				t.Errorf("%s does not take the block with %q out of docs/%s", c.test, c.text, doc)
			}
		}
	}
}

// isCommands reports whether a block is to be pasted into a shell. A block without a language might be.
func isCommands(b fenced) bool { return !slices.Contains([]string{"yaml", "json"}, b.language) }

func testSources(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		if filepath.Base(file) == "commands_test.go" {
			continue // which has all the texts
		}
		all.Write(read(t, file))
	}
	return all.String()
}

// testBody is the text of a test.
func testBody(sources, name string) (body string, ok bool) {
	_, body, ok = strings.Cut(sources, "\nfunc "+name+"(t *testing.T) {\n")
	body, _, end := strings.Cut(body, "\n}\n")
	return body, ok && end
}

// record puts a stand-in of a program on the path that notes what it is told, then does what script says.
func record(t *testing.T, bin, name, script string) {
	t.Helper()
	program(t, bin, name, `{ printf '%s\037' "${0##*/}" "$@"; printf '\036'; } >> "$TOLD"`+"\n"+script)
}

// recorded runs commands with stand-ins of record and returns the calls, each a program with its arguments.
func recorded(t *testing.T, dir, bin, script string, env ...string) (calls [][]string) {
	t.Helper()
	told := filepath.Join(t.TempDir(), "told")
	shellWith(t, dir, bin, "", script, append(env, "TOLD="+told)...)
	text, err := os.ReadFile(told) // #nosec G304 -- of this test
	if err != nil {
		t.Fatalf("no program was called: %v\n%s", err, script)
	}
	for call := range strings.SplitSeq(strings.TrimSuffix(string(text), "\036"), "\036") {
		calls = append(calls, strings.Split(strings.TrimSuffix(call, "\037"), "\037"))
	}
	return calls
}

// A cluster is what an overlay makes of one, to which commands are held.
type cluster struct {
	namespace string
	list      []object
}

func clusterOf(t *testing.T, overlay string) cluster {
	t.Helper()
	list := objects(t, repo(t, "deploy", "overlays", overlay))
	return cluster{find(t, list, "Deployment").text("metadata.namespace"), list}
}

// holds fails for a call of kubectl that names what the overlay does not have.
func (c cluster) holds(t *testing.T, call []string) {
	t.Helper()
	line, args := strings.Join(call, " "), call[1:]
	if args[0] == "-n" {
		if args[1] != c.namespace {
			t.Errorf("%s: the overlay is in namespace %s", line, c.namespace)
		}
		args = args[2:]
	}
	switch {
	case slices.Contains([]string{"apply -k", "apply -f"}, strings.Join(args[:2], " ")) && len(args) == 3:
		c.applies(t, args[2])
	case args[0] == "rollout" && args[1] == "status" && len(args) == 3:
		c.has(t, line, args[2])
	case args[0] == "create" && args[1] == "namespace" && len(args) == 3:
		if args[2] != c.namespace {
			t.Errorf("%s: the overlay is in namespace %s", line, c.namespace)
		}
	case args[0] == "create" && strings.Join(args[1:3], " ") == "secret tls" && len(args) == 6:
		if !slices.Contains(c.certificates(t), args[3]) {
			t.Errorf("%s: the listeners have %v", line, c.certificates(t))
		}
	case args[0] == "delete" && args[1] == "pvc" && len(args) == 3:
		c.has(t, line, "persistentvolumeclaim/"+args[2])
	default:
		t.Errorf("%s: say here how it is checked", line)
	}
}

func (c cluster) applies(t *testing.T, path string) {
	t.Helper()
	full := repo(t, filepath.FromSlash(path))
	if filepath.Ext(path) == ".yaml" {
		for _, o := range documents(t, full) {
			if ns := o.text("metadata.namespace"); ns != c.namespace {
				t.Errorf("%s is for namespace %q, want %q", path, ns, c.namespace)
			}
		}
		return
	}
	if list := objects(t, full); find(t, list, "Deployment").text("metadata.namespace") != c.namespace {
		t.Errorf("%s is not for namespace %s", path, c.namespace)
	}
}

// has fails unless there is an object of the name kind/name.
func (c cluster) has(t *testing.T, line, name string) {
	t.Helper()
	if !slices.ContainsFunc(c.list, func(o object) bool {
		return strings.ToLower(o.text("kind"))+"/"+o.text("metadata.name") == name
	}) {
		t.Errorf("%s: the overlay has no %s", line, name)
	}
}

// certificates are the Secrets of the Gateway's listeners.
func (c cluster) certificates(t *testing.T) (names []string) {
	t.Helper()
	listeners, _ := find(t, c.list, "Gateway").at("spec.listeners").([]any)
	for _, l := range listeners {
		names = append(names, object(l.(map[string]any)).text("tls.certificateRefs.0.name"))
	}
	return names
}

// replaced puts other texts in place of those of a document, each of which has to be there.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q in:\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

var bcryptHash = regexp.MustCompile(`^\$2a\$12\$[./A-Za-z0-9]{53}$`)
