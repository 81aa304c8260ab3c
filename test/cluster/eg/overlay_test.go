package eg

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"gatehouse/test/peers"
)

type object = map[string]any

// install returns what `kubectl apply -k deploy/overlays/envoy-gateway` sends after docs/install.md was followed: its
// commands for the names, a hash by hash-password, and what the file has as comments: two rules and clientRemoteIP.
func install(t *testing.T) []object {
	t.Helper()
	dir, root := t.TempDir(), peers.Root(t)
	if err := os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(filepath.Join(root, "deploy"))); err != nil {
		t.Fatal(err)
	}
	names := exec.CommandContext(t.Context(), "bash", "-euc", block(t, filepath.Join(root, "docs", "install.md"), "sed -i 's#istio-system/gateway#"))
	names.Dir = dir
	if out, err := names.CombinedOutput(); err != nil {
		t.Fatalf("the commands for the names: %v\n%s", err, out)
	}
	edit(t, filepath.Join(dir, "deploy", "base", "gatehouse.yaml"), hash(t))
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(dir, "deploy", "overlays", "envoy-gateway"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return documents(t, string(out))
}

// block returns the one fenced block of a document that contains text.
func block(t *testing.T, path, text string) string {
	t.Helper()
	var found []string
	parts := strings.Split(read(t, path), "```")
	for i := 1; i < len(parts); i += 2 {
		if strings.Contains(parts[i], text) {
			_, code, _ := strings.Cut(parts[i], "\n")
			found = append(found, code)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d blocks with %q, want 1", path, len(found), text)
	}
	return found[0]
}

// edit sets the first user's hash and takes comment signs away.
func edit(t *testing.T, path, hash string) {
	t.Helper()
	text := read(t, path)
	for _, e := range []struct{ old, fresh string }{
		{`(?m)^  hash: .*$`, "  hash: " + strings.ReplaceAll(hash, "$", "$$")},
		{`(?m)^  rules: \[\] `, "  rules: "},
		{`(?m)^  # - \{name: `, "  - {name: "},
		{`(?m)^  # clientRemoteIP: (.*)10\.244\.0\.0/16`, "  clientRemoteIP: ${1}10.0.0.1/32"}, // Envoy's
	} {
		re := regexp.MustCompile(e.old)
		if !re.MatchString(text) {
			t.Fatalf("%s has no %s", path, e.old)
		}
		text = re.ReplaceAllString(text, e.fresh)
	}
	write(t, path, text)
}

func hash(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), peers.Binary(t), "hash-password")
	cmd.Stdin = strings.NewReader(password + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(out))
}

// standalone returns what an Envoy Gateway without Kubernetes takes of the objects: those of its own groups. It knows no
// Services (its file provider leaves them out), so a reference to a port of our Service becomes one to a Backend with the
// pod's address, and with the port and the protocol that the Service has for it. Nothing else is changed.
func standalone(t *testing.T, list map[string]object, pod string) map[string]object {
	t.Helper()
	out := map[string]object{}
	for name, o := range list {
		switch group, _, _ := strings.Cut(o["apiVersion"].(string), "/"); group {
		case "gateway.networking.k8s.io", "gateway.envoyproxy.io":
			out[name] = o
			walk(o["spec"], func(m object) {
				refs, _ := m["backendRefs"].([]any)
				for _, ref := range refs {
					b := backend(t, list, ref.(object), pod)
					ref.(object)["name"], ref.(object)["kind"], ref.(object)["group"] = at(b, "metadata", "name"), b["kind"], "gateway.envoyproxy.io"
					out["Backend "+at(b, "metadata", "name").(string)] = b
				}
			})
		}
	}
	return out
}

// backend is the port of our Service that a reference leads to.
func backend(t *testing.T, list map[string]object, ref object, pod string) object {
	t.Helper()
	ports, _ := at(list["Service gatehouse"], "spec", "ports").([]any)
	for _, p := range ports {
		if at(p, "port") != ref["port"] || ref["name"] != "gatehouse" {
			continue
		}
		spec := object{"endpoints": []any{object{"ip": object{"address": pod, "port": containerPort(t, list, at(p, "targetPort"))}}}}
		if at(p, "appProtocol") == "grpc" {
			spec["appProtocols"] = []any{"gateway.envoyproxy.io/h2c"}
		}
		return object{
			"apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "Backend", "spec": spec,
			"metadata": object{"name": at(p, "name"), "namespace": at(list["Service gatehouse"], "metadata", "namespace")},
		}
	}
	t.Fatalf("a backendRef leads to %v, which is no port of the Service: %v", ref, ports)
	return nil
}

func containerPort(t *testing.T, list map[string]object, name any) any {
	t.Helper()
	ports, _ := at(list["Deployment gatehouse"], "spec", "template", "spec", "containers", 0, "ports").([]any)
	for _, p := range ports {
		if at(p, "name") == name {
			return at(p, "containerPort")
		}
	}
	t.Fatalf("the container has no port %v: %v", name, ports)
	return nil
}

func documents(t *testing.T, text string) []object {
	t.Helper()
	var list []object
	for part := range strings.SplitSeq(text, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(part), &o); err != nil {
			t.Fatalf("%v in:\n%s", err, part)
		}
		list = append(list, o)
	}
	return list
}

// byName names objects by kind and name, which no two of ours share.
func byName(t *testing.T, list []object) map[string]object {
	t.Helper()
	out := map[string]object{}
	for _, o := range list {
		name := o["kind"].(string) + " " + at(o, "metadata", "name").(string)
		if out[name] != nil {
			t.Fatalf("%s is there twice", name)
		}
		out[name] = o
	}
	return out
}

// at follows keys and indexes into v; what is not there is nil.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(object)
			v = m[step]
		case int:
			list, _ := v.([]any)
			if step >= len(list) {
				return nil
			}
			v = list[step]
		}
	}
	return v
}

// walk calls f for every object in v.
func walk(v any, f func(object)) {
	switch v := v.(type) {
	case object:
		f(v)
		for _, value := range v {
			walk(value, f)
		}
	case []any:
		for _, value := range v {
			walk(value, f)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
