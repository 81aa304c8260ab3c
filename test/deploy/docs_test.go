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

// block returns the one fenced block of docs/install.md that contains text.
func block(t *testing.T, text string) string {
	t.Helper()
	var found []string
	parts := strings.Split(string(read(t, repo(t, "docs", "install.md"))), "```")
	for i := 1; i < len(parts); i += 2 {
		if strings.Contains(parts[i], text) {
			_, code, _ := strings.Cut(parts[i], "\n")
			found = append(found, code)
		}
	}
	if len(found) != 1 {
		t.Fatalf("docs/install.md has %d blocks with %q, want 1", len(found), text)
	}
	return found[0]
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
	cmd := exec.CommandContext(t.Context(), "bash", "-euc", script) // #nosec G204 -- from the shipped documents
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "IMAGE=image")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
}

func program(t *testing.T, bin, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil { // #nosec G306 -- a program
		t.Fatal(err)
	}
}

// TestInstallNames runs the commands that put an operator's names into the overlay.
func TestInstallNames(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	shell(t, dir, bin, block(t, "sed -i 's#istio-system/gateway#"))
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

// TestInstallCheckConfig runs the commands that take the file out of the ConfigMap to check it.
func TestInstallCheckConfig(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	if !strings.Contains(block(t, "check-config /gatehouse.yaml"), "mkdir -p files") { // docker would make the folder as root
		t.Error("the folder for the files that the configuration names is not made")
	}
	program(t, bin, "docker", `echo "$@" > docker.args`)
	shell(t, dir, bin, block(t, "check-config /gatehouse.yaml"))
	if got, want := string(read(t, filepath.Join(dir, "gatehouse.yaml"))), shippedConfigText(t); got != want {
		t.Errorf("got the file\n%s\nwant\n%s", got, want)
	}
	want := fmt.Sprintf("run --rm --user %d:%d -v ", os.Getuid(), os.Getgid()) + dir + "/gatehouse.yaml:/gatehouse.yaml:ro -v " + dir + "/files:/etc/gatehouse:ro image check-config /gatehouse.yaml\n"
	if got := string(read(t, filepath.Join(dir, "docker.args"))); got != want {
		t.Errorf("got docker %s, want %s", got, want)
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

// TestInstallMeshProvider runs the commands for the mesh config against a kubectl that keeps what it is told.
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

	for _, tc := range []struct {
		name, mesh string
		want       map[string]any
	}{
		{"no provider yet", "trustDomain: cluster.local\naccessLogFile: /dev/stdout", map[string]any{
			"trustDomain": "cluster.local", "accessLogFile": "/dev/stdout", "extensionProviders": provider["extensionProviders"],
		}},
		{"others are kept", "extensionProviders:\n- name: other", map[string]any{
			"extensionProviders": []any{map[string]any{"name": "other"}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, bin := copyOfDeploy(t)
			if err := os.WriteFile(filepath.Join(dir, "cluster"), []byte(tc.mesh), 0o600); err != nil {
				t.Fatal(err)
			}
			program(t, bin, "kubectl", `case "$*" in
"-n istio-system get configmap istio -o jsonpath={.data.mesh}") cat cluster;;
"-n istio-system patch configmap istio --type merge --patch-file patch.yaml") cp patch.yaml told;;
*) echo "unknown: $*" >&2; exit 1;;
esac
`)
			shell(t, dir, bin, block(t, "get configmap istio"))
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
	name, n := regexp.MustCompile(`Name: +"(gatehouse_[a-z_]+)"`), 0
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
			if "#"+strings.NewReplacer(" ", "-", "'", "").Replace(strings.ToLower(strings.TrimSpace(title))) == anchor {
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
