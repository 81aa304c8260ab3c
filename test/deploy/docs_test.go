package deploy

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"gatehouse/internal/config"
	"gatehouse/test/peers"
)

// A fenced block of a document.
type fenced struct{ language, code string }

// fencedBlocks returns those of docs/NAME.
func fencedBlocks(t *testing.T, name string) (all []fenced) {
	t.Helper()
	parts := strings.Split(string(read(t, repo(t, "docs", name))), "```")
	if len(parts)%2 == 0 {
		t.Fatalf("docs/%s has a block without an end", name)
	}
	for i := 1; i < len(parts); i += 2 {
		language, code, _ := strings.Cut(parts[i], "\n")
		all = append(all, fenced{language, code})
	}
	return all
}

// blockOf returns the one fenced block of docs/NAME that contains text.
func blockOf(t *testing.T, name, text string) string {
	t.Helper()
	var found []string
	for _, b := range fencedBlocks(t, name) {
		if strings.Contains(b.code, text) {
			found = append(found, b.code)
		}
	}
	if len(found) != 1 {
		t.Fatalf("docs/%s has %d blocks with %q, want 1", name, len(found), text)
	}
	return found[0]
}

// block returns the one fenced block of docs/install.md that contains text.
func block(t *testing.T, text string) string {
	t.Helper()
	return blockOf(t, "install.md", text)
}

// copyOfDeploy returns a folder with a copy of deploy/ in it, and a place for stand-ins of programs.
func copyOfDeploy(t *testing.T) (dir, bin string) {
	t.Helper()
	dir = t.TempDir()
	bin = filepath.Join(t.TempDir(), "bin")
	if err := os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(repo(t, "deploy"))); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(bin, 0o750); err != nil {
		t.Fatal(err)
	}
	return dir, bin
}

func shell(t *testing.T, dir, bin, script string) {
	t.Helper()
	shellWith(t, dir, bin, "", script)
}

// shellWith runs the commands of a document as bash does, with an input and more variables, and returns what they print.
func shellWith(t *testing.T, dir, bin, input, script string, env ...string) (output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script) // #nosec G204 -- from the shipped documents
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "IMAGE=image"), env...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

func program(t *testing.T, bin, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\n"+script), 0o700); err != nil { // #nosec G306 -- a program
		t.Fatal(err)
	}
}

// TestInstallNames runs the commands that put an operator's names into the overlay.
func TestInstallNames(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	shell(t, dir, bin, block(t, "sed -i 's#istio-system/gateway#"))
	noNamesLeft(t, filepath.Join(dir, "deploy"))
	list := objects(t, filepath.Join(dir, "deploy", "overlays", "istio"))
	file := parse(t, find(t, list, "ConfigMap").text("data.gatehouse~1yaml"))
	for _, tc := range []struct {
		what      string
		got, want any
	}{
		{"issuer", file.at("issuer"), "https://auth.corp.test/dex"},
		{"hosts", file.at("gateway.hosts"), []any{"app.corp.test"}},
		{"user", file.at("staticPasswords.0.email"), "you@corp.test"},
		{"route", find(t, list, "VirtualService").at("spec.hosts"), []any{"auth.corp.test"}},
		{"gateway", find(t, list, "VirtualService").at("spec.gateways"), []any{"istio-ingress/main"}},
		{"image", find(t, list, "Deployment").at("spec.template.spec.containers.0.image"), "registry.corp.test/gatehouse:1.0.0"},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	if image := block(t, "IMAGE=registry"); !strings.Contains(image, "IMAGE=registry.corp.test/gatehouse:1.0.0\n") {
		t.Errorf("the image is not built under the name that the overlay gets:\n%s", image)
	}
}

// TestInstallCheckConfig runs the command that checks the file of the ConfigMap.
func TestInstallCheckConfig(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	if !strings.Contains(block(t, "check-config /gatehouse.yaml"), "mkdir -p files") { // docker would make the folder as root
		t.Error("the folder for the files that the configuration names is not made")
	}
	program(t, bin, "docker", `echo "$@" > docker.args`)
	shell(t, dir, bin, block(t, "check-config /gatehouse.yaml"))
	want := fmt.Sprintf("run --rm --user %d:%d -v ", os.Getuid(), os.Getgid()) + dir + "/deploy/base/gatehouse.yaml:/gatehouse.yaml:ro -v " + dir + "/files:/etc/gatehouse:ro image check-config /gatehouse.yaml\n"
	if got := string(read(t, filepath.Join(dir, "docker.args"))); got != want {
		t.Errorf("got docker %s, want %s", got, want)
	}
}

// noNamesLeft fails for names of the shipped files that the documents' commands did not replace.
func noNamesLeft(t *testing.T, deploy string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(deploy, "overlays", "*", "*.yaml"))
	if err != nil || len(files) < 20 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, file := range append(files, filepath.Join(deploy, "base", "gatehouse.yaml")) {
		for _, name := range []string{"auth.example.com", "app.example.com", "registry.example.com", "istio-system/gateway", "admin@example.com"} {
			if strings.Contains(string(read(t, file)), name) {
				t.Errorf("%s still has %s", file, name)
			}
		}
	}
}

// TestInstallSecretSource applies the patch for one more Secret to the Deployment as kustomize would.
func TestInstallSecretSource(t *testing.T) {
	patches := parse(t, block(t, "gatehouse-tls"))
	if got, want := patches.at("patches.0.target"), any(map[string]any{"kind": "Deployment", "name": "gatehouse"}); !reflect.DeepEqual(viaJSON(t, got), want) {
		t.Errorf("the patch is for %v, want %v", got, want)
	}
	_, op, _ := strings.Cut(patches.text("patches.0.patch"), "- ")
	patch := parse(t, "  "+op)
	pointer, ok := strings.CutSuffix(patch.text("path"), "/-")
	if !ok || patch.text("op") != "add" {
		t.Fatalf("got %v, want one that adds to a list", patch)
	}
	sources := find(t, overlay(t), "Deployment").at(strings.ReplaceAll(strings.TrimPrefix(pointer, "/"), "/", "."))
	if list, ok := sources.([]any); !ok || len(list) != 2 {
		t.Errorf("%s is %v, want the list of the two sources of /etc/gatehouse", pointer, sources)
	}
}

// TestInstallMeshProvider runs the command for the mesh config against a kubectl that keeps what it is told.
func TestInstallMeshProvider(t *testing.T) {
	provider := parse(t, string(read(t, repo(t, "deploy", "overlays", "istio", "mesh-provider.yaml"))))
	shown := parse(t, block(t, "envoyExtAuthzGrpc:\n"))
	if !reflect.DeepEqual(shown, provider) {
		t.Errorf("docs/install.md shows %v, mesh-provider.yaml has %v", shown, provider)
	}
	_, list, _ := strings.Cut(block(t, "helm upgrade istiod"), "meshConfig.extensionProviders=")
	list, _, _ = strings.Cut(list, "'")
	var helm any
	if err := json.Unmarshal([]byte(list), &helm); err != nil {
		t.Fatal(err)
	}
	if want := viaJSON(t, provider["extensionProviders"]); !reflect.DeepEqual(helm, want) {
		t.Errorf("the Helm command has %v, mesh-provider.yaml has %v", helm, want)
	}

	ours := provider.at("extensionProviders.0")
	for _, tc := range []struct {
		name, mesh string
		want       map[string]any // nil: nothing is patched
		fails      bool
	}{
		{"no provider yet", "trustDomain: cluster.local\naccessLogFile: /dev/stdout", map[string]any{
			"trustDomain": "cluster.local", "accessLogFile": "/dev/stdout", "extensionProviders": []any{ours},
		}, false},
		{"an empty mesh config", "", map[string]any{"extensionProviders": []any{ours}}, false},
		{"an empty list", "extensionProviders: []\nrootNamespace: istio-system", map[string]any{
			"extensionProviders": []any{ours}, "rootNamespace": "istio-system",
		}, false},
		{"others are kept", "a: 1\nextensionProviders:\n- name: other\n  opentelemetry: {port: 1}\nb: 2", map[string]any{
			"a": 1, "extensionProviders": []any{ours, map[string]any{"name": "other", "opentelemetry": map[string]any{"port": 1}}}, "b": 2,
		}, false},
		{"indented ones too", "extensionProviders:\n  - name: other\n    opentelemetry: {port: 1}\nb: 2", map[string]any{
			"extensionProviders": []any{ours, map[string]any{"name": "other", "opentelemetry": map[string]any{"port": 1}}}, "b": 2,
		}, false},
		{"a second time", "extensionProviders:\n- name: gatehouse", nil, false},
		{"a list on one line", "extensionProviders: [{name: other}]", nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, bin := copyOfDeploy(t)
			if err := os.WriteFile(filepath.Join(dir, "cluster"), []byte(tc.mesh), 0o600); err != nil {
				t.Fatal(err)
			}
			program(t, bin, "kubectl", `case "$*" in
"-n istio-system get configmap istio -o jsonpath={.data.mesh}") cat cluster;;
"-n istio-system patch configmap istio --type merge --patch-file "*) cp "${@: -1}" told;;
*) echo "unknown: $*" >&2; exit 1;;
esac
`)
			script := block(t, "istio/mesh-provider.sh")
			if tc.fails {
				script = "if " + strings.TrimSpace(script) + "; then exit 1; fi"
			}
			shell(t, dir, bin, script)
			if tc.want == nil {
				if _, err := os.Stat(filepath.Join(dir, "told")); err == nil {
					t.Error("the mesh config was patched")
				}
				return
			}
			patch := parse(t, string(read(t, filepath.Join(dir, "told"))))
			if got := map[string]any(parse(t, patch.text("data.mesh"))); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("the mesh config became %v, want %v", got, tc.want)
			}
		})
	}
}

// TestInstallEnvoy checks the configuration file that goes with the shipped Envoy config.
func TestInstallEnvoy(t *testing.T) {
	hash := shippedConfig(t).text("staticPasswords.0.hash")
	text := block(t, "http: 127.0.0.1:5556")
	_, warnings, err := config.Parse("install.md", []byte(text), config.Options{
		Lookup: func(name string) (string, bool) { return hash, name == "YOUR_HASH" }, Mode: folder,
	})
	if err != nil || len(warnings) > 0 {
		t.Errorf("got %v, warnings %v, want neither", err, warnings)
	}
	file, envoy := parse(t, text), string(read(t, repo(t, "deploy", "envoy", "envoy.yaml")))
	for _, want := range []string{
		address(t, file.text("web.http")), address(t, file.text("gateway.grpc")), "path_separated_prefix: /dex", "domains: [auth.example.com]",
		"domains: [" + file.text("gateway.hosts.0") + "]",
	} {
		if !strings.Contains(envoy, want) {
			t.Errorf("deploy/envoy/envoy.yaml does not have %q", want)
		}
	}
}

// folder is config.Options.Mode where the documents' data directory was made.
func folder(string) (fs.FileMode, error) { return fs.ModeDir | 0o700, nil }

// TestReadme: the file of "Run it" is good, and only the hash is left to set.
func TestReadme(t *testing.T) {
	_, text, ok := strings.Cut(string(read(t, repo(t, "README.md"))), "```yaml\n")
	if !ok {
		t.Fatal("README.md has no configuration file")
	}
	text, _, _ = strings.Cut(text, "```")
	hash := shippedConfig(t).text("staticPasswords.0.hash")
	_, warnings, err := config.Parse("README.md", []byte(text), config.Options{
		Lookup: func(name string) (string, bool) { return hash, name == "ALICE_HASH" }, Mode: folder,
	})
	if err != nil || len(warnings) > 0 {
		t.Errorf("got %v, warnings %v, want neither", err, warnings)
	}
}

// TestReadmeInstall runs the commands of "Install", with stand-ins for what builds and talks to the cluster.
func TestReadmeInstall(t *testing.T) {
	_, script, ok := strings.Cut(string(read(t, repo(t, "README.md"))), "## Install on Istio")
	if !ok {
		t.Fatal("README.md has no heading Install on Istio")
	}
	_, script, _ = strings.Cut(script, "```sh\n")
	script, _, _ = strings.Cut(script, "```")
	dir, bin := copyOfDeploy(t)
	const hash = "$2a$12$3xq5/Qj8UlV7H267Lt4AYuy/ff1Yp8Wh5qSoctbJJXJV74yLI11c." // of a password that nobody knows
	if err := os.WriteFile(filepath.Join(dir, "hash"), []byte(hash), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, bin, "make", `mkdir bin && printf '#!/bin/sh\ncat hash' > bin/gatehouse && chmod +x bin/gatehouse`)
	program(t, bin, "docker", `echo "docker $*" >> told`)
	program(t, bin, "kubectl", `case "$*" in *"get configmap"*) echo "a: 1";; *patch*) echo provider >> told;; *) echo "kubectl $*" >> told;; esac`)
	shell(t, dir, bin, script)
	list := objects(t, filepath.Join(dir, "deploy", "overlays", "istio"))
	file := parse(t, find(t, list, "ConfigMap").text("data.gatehouse~1yaml"))
	for _, tc := range []struct {
		what      string
		got, want any
	}{
		{"issuer", file.at("issuer"), "https://auth.corp.test/dex"},
		{"hosts", file.at("gateway.hosts"), []any{"app.corp.test"}},
		{"hash", file.at("staticPasswords.0.hash"), hash},
		{"user", file.at("staticPasswords.0.email"), "you@corp.test"},
		{"gateway", find(t, list, "VirtualService").at("spec.gateways"), []any{"istio-ingress/main"}},
		{"route", find(t, list, "VirtualService").at("spec.hosts"), []any{"auth.corp.test"}},
		{"image", find(t, list, "Deployment").at("spec.template.spec.containers.0.image"), "registry.corp.test/gatehouse:1.0.0"},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	want := `docker build -t registry.corp.test/gatehouse:1.0.0 .
docker push registry.corp.test/gatehouse:1.0.0
provider
kubectl apply -k deploy/overlays/istio
kubectl -n istio-system rollout status deployment/gatehouse
`
	if got := string(read(t, filepath.Join(dir, "told"))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestOperationsSymptoms: what the table quotes is on the pages.
func TestOperationsSymptoms(t *testing.T) {
	pages := string(read(t, repo(t, "web", "texts", "en.json")))
	_, table, _ := strings.Cut(string(read(t, repo(t, "docs", "operations.md"))), "| symptom |")
	quoted, n := regexp.MustCompile(`"([^"]+)"`), 0
	for line := range strings.Lines(table) {
		symptom, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		for _, m := range quoted.FindAllStringSubmatch(symptom, -1) {
			n++
			if !strings.Contains(pages, m[1]) {
				t.Errorf("no page says %q", m[1])
			}
		}
	}
	if n < 5 {
		t.Errorf("found %d texts of pages in the table, want at least 5", n)
	}
}

// TestOperationsMetrics: every metric of the program is explained.
func TestOperationsMetrics(t *testing.T) {
	text := string(read(t, repo(t, "docs", "operations.md")))
	name, n := regexp.MustCompile(`"(gatehouse_[a-z_]+)"`), 0
	for _, file := range trackedFiles(t) {
		if path.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "test/") {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(string(read(t, repo(t, file))), -1) {
			n++
			if !strings.Contains(text, "`"+m[1]+"`") && !strings.Contains(text, "`"+m[1]+"{") {
				t.Errorf("docs/operations.md does not have %s of %s", m[1], file)
			}
		}
	}
	if n < 5 {
		t.Errorf("found %d metrics in the sources, want at least 5", n)
	}
}

// TestDocumentLinks: what the documents point at is there.
func TestDocumentLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+\.md)?(#[^)]+)?\)`)
	readme := string(read(t, repo(t, "README.md")))
	file := regexp.MustCompile("`((?:deploy|test|docs|cmd|internal)/[a-z0-9_./-]+)`")
	docs, err := filepath.Glob(filepath.Join(peers.Root(t), "docs", "*.md"))
	if err != nil || len(docs) < 6 {
		t.Fatalf("found %d documents, %v", len(docs), err)
	}
	for _, doc := range docs {
		text, name := string(read(t, doc)), filepath.Base(doc)
		if !strings.Contains(readme, "](docs/"+name+")") {
			t.Errorf("README.md does not name docs/%s", name)
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, heading := text, m[2]
			if m[1] != "" {
				target = string(read(t, repo(t, "docs", m[1])))
			}
			if heading != "" && !hasHeading(target, heading) {
				t.Errorf("%s: there is no heading %s", name, heading)
			}
		}
		for _, m := range file.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(peers.Root(t), m[1])); err != nil {
				t.Errorf("%s names %s: %v", name, m[1], err)
			}
		}
	}
}

// hasHeading reports a heading that an anchor such as #any-envoy leads to.
func hasHeading(text, anchor string) bool {
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			if "#"+strings.NewReplacer(" ", "-", ".", "", "'", "", ",", "", ":", "").Replace(strings.ToLower(strings.TrimSpace(title))) == anchor {
				return true
			}
		}
	}
	return false
}

func viaJSON(t *testing.T, v any) (out any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOperationsAuditEvents: the table has every event that is written by its name.
func TestOperationsAuditEvents(t *testing.T) {
	text := string(read(t, repo(t, "docs", "operations.md")))
	name, n := regexp.MustCompile(`[aA]udit\.(?:InfoContext|WarnContext|LogAttrs)\([^"\n]*"([^"\n]+)"`), 0
	for _, file := range trackedFiles(t) {
		if path.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") || !strings.HasPrefix(file, "provider/") {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(string(read(t, repo(t, file))), -1) {
			n++
			if !regexp.MustCompile("(?m)^\\|[^|]*`" + regexp.QuoteMeta(m[1]) + "`[^|]*\\|").MatchString(text) {
				t.Errorf("docs/operations.md does not have the audit event %q of %s", m[1], file)
			}
		}
	}
	if n < 5 {
		t.Errorf("found %d audit events in the sources, want at least 5", n)
	}
}
