package demo_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/demo"
)

func edge() demo.Edge {
	return demo.Edge{
		Listen: "127.0.0.1:8080", Check: "127.0.0.1:9001",
		Hosts: []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{
			{Prefix: "/dex", Upstream: "127.0.0.1:5556"},
			{Prefix: "/", Upstream: "127.0.0.1:3000"},
		}}},
	}
}

func TestEnvoyConfigFailsClosed(t *testing.T) {
	b, err := demo.EnvoyConfig(edge())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"failure_mode_allow: false", "status_on_error: {code: ServiceUnavailable}", "timeout: 2s", "clear_route_cache: false",
		"include_peer_certificate: false", "normalize_path: true", "merge_slashes: true", "path_with_escaped_slashes_action: REJECT_REQUEST",
		"headers_with_underscores_action: REJECT_REQUEST", "use_remote_address: true", "xff_num_trusted_hops: 0", `path_separated_prefix: "/dex"`,
		"response_headers_to_remove: [service-worker-allowed]",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("config has no %q", want)
		}
	}
	for _, bad := range []string{"disabled: true", "with_request_body", "admin:"} {
		if strings.Contains(string(b), bad) {
			t.Errorf("config has %q", bad)
		}
	}
}

func TestEnvoyConfigQuotesWhatItIsGiven(t *testing.T) {
	e := edge()
	e.Hosts[0].Name = "a\"\n  evil: true #"
	e.AccessLog = "/tmp/a: b"
	b, err := demo.EnvoyConfig(e)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(b, &tree); err != nil {
		t.Fatalf("not YAML: %v\n%s", err, b)
	}
	if !strings.Contains(string(b), `"a\"\n  evil: true #"`) {
		t.Error("the name is not quoted")
	}
}

func TestEnvoyConfigNamesEveryMistake(t *testing.T) {
	_, err := demo.EnvoyConfig(demo.Edge{
		Listen: "localhost:80", Check: "9001",
		Hosts: []demo.VirtualHost{{Name: "h", Routes: []demo.Route{{Prefix: "dex/", Upstream: "127.0.0.1"}}}},
	})
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{`listen address "localhost:80"`, `check address "9001"`, `upstream address "127.0.0.1"`, `route "dex/" of host "h"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q: want %q in it", err, want)
		}
	}
}

// script puts an executable of the given name and text into a new folder.
func script(t *testing.T, name, text string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFindEnvoy(t *testing.T) {
	installed := script(t, ".tools/bin/envoy", "exit 1")
	recent := script(t, "envoy", "echo 'envoy  version: 9e5580933/1.37.0/Clean/RELEASE/BoringSSL'")
	old := script(t, "envoy", "echo 'envoy  version: 9e5580933/1.36.9/Clean/RELEASE/BoringSSL'")
	broken := script(t, "envoy", "echo nonsense")
	tests := []struct {
		name, path, folder, want, err string
	}{
		{name: "the installed one comes before PATH", path: recent, folder: installed, want: installed + "/.tools/bin/envoy"},
		{name: "1.37 on PATH is new enough", path: recent, folder: t.TempDir(), want: recent + "/envoy"},
		{name: "1.36 on PATH is too old", path: old, folder: t.TempDir(), err: "version 1.36, want 1.37 or later: run `make tools`"},
		{name: "a version that cannot be read", path: broken, folder: t.TempDir(), err: `got "nonsense"`},
		{name: "none", path: t.TempDir(), folder: t.TempDir(), err: "no envoy found: run `make tools`"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", tt.path)
			got, err := demo.FindEnvoy(t.Context(), "", tt.folder)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got error %v, want %q in it", err, tt.err)
			}
		})
	}
}
