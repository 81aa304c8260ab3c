package deploy

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// TestEnvoyFilters has a real Envoy validate what the EnvoyFilters say: Kubernetes takes whatever they have inside, and
// for one unknown field or impossible value Envoy refuses the whole listener. They are put into the shipped envoy.yaml,
// as istiod puts them into its own.
func TestEnvoyFilters(t *testing.T) {
	files, err := filepath.Glob(repo(t, "deploy", "overlays", "*", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		if filepath.Base(file) == "gatehouse.yaml" {
			continue
		}
		for _, o := range documents(t, file) {
			if o.text("kind") != "EnvoyFilter" {
				continue
			}
			found++
			t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
				if out, err := validate(t, shippedWith(t, o)); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
	if found != 3 {
		t.Errorf("found %d EnvoyFilters, want 3", found)
	}
	t.Run("a typing error is seen", func(t *testing.T) {
		o := documents(t, repo(t, "deploy", "overlays", "gateway-api", "envoyfilter.yaml"))[0]
		o.at("spec.configPatches.0.patch.value.typed_config").(map[string]any)["merge_slash"] = true
		if out, err := validate(t, shippedWith(t, o)); err == nil || !strings.Contains(out, "merge_slash") {
			t.Errorf("got %v, want a refusal that names merge_slash\n%s", err, out)
		}
	})
}

// shippedWith is envoy.yaml with the patches of an EnvoyFilter in its https listener.
func shippedWith(t *testing.T, filter object) object {
	t.Helper()
	envoy := parse(t, string(read(t, repo(t, "deploy", "envoy", "envoy.yaml"))))
	// Certificates, which are not there, are not what is validated.
	delete(envoy.at("static_resources.listeners.0.filter_chains.0").(map[string]any), "transport_socket")
	manager := envoy.at("static_resources.listeners.0.filter_chains.0.filters.0.typed_config").(map[string]any)
	patches, _ := filter.at("spec.configPatches").([]any)
	for _, p := range patches {
		p := object(p.(map[string]any))
		typed, _ := p.at("patch.value.typed_config").(map[string]any)
		switch p.text("applyTo") {
		case "NETWORK_FILTER":
			maps.Copy(manager, typed)
		case "HTTP_FILTER":
			object(typed).at("grpc_service.envoy_grpc").(map[string]any)["cluster_name"] = "gatehouse-check"
			manager["http_filters"].([]any)[0] = p.at("patch.value")
		default:
			t.Fatalf("a patch of %q: say here where it goes", p.text("applyTo"))
		}
	}
	return envoy
}

// validate has Envoy read a configuration as at its start.
func validate(t *testing.T, config object) (output string, err error) {
	t.Helper()
	text, err := yaml.Marshal(map[string]any(config))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	envoy, err := demo.FindEnvoy(t.Context(), "", peers.Root(t))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", file).CombinedOutput() // #nosec G204 -- a test's Envoy
	return string(out), err
}
