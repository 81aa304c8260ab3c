package render

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestNothingIsOpen: whatever asks Gatehouse waits for 2 s, and lets nobody pass who was not checked.
func TestNothingIsOpen(t *testing.T) {
	found := 0
	files(t, func(path string, doc any) {
		walk(doc, func(m object) {
			var want map[string]any
			switch {
			case m["@type"] == "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz":
				want = object{"transport_api_version": "V3", "failure_mode_allow": false, "clear_route_cache": false, "status_on_error": object{"code": "ServiceUnavailable"}}
				if got := at(m, "grpc_service", "timeout"); got != "2s" {
					t.Errorf("%s: grpc_service.timeout is %v, want 2s", path, got)
				}
			case m["service"] != nil && m["timeout"] != nil: // Istio's extension provider
				want = object{"timeout": "2s", "failOpen": false, "statusOnError": "503", "port": 9001.}
			case at(m, "grpc", "backendRefs") != nil: // Envoy Gateway's extAuth
				want = object{
					"timeout": "2s", "failOpen": false, "statusOnError": 503., "recomputeRoute": false, "headersToExtAuth": nil,
					"grpc": object{"backendRefs": []any{object{"name": "gatehouse", "port": 9001.}}},
				}
			default:
				return
			}
			found++
			for key, want := range want {
				if got := m[key]; !reflect.DeepEqual(got, want) {
					t.Errorf("%s: %s is %v, want %v", path, key, got, want)
				}
			}
		})
	})
	if found != 4 {
		t.Errorf("found %d configurations of a check, want 4: envoy.yaml, mesh-provider.yaml, the EnvoyFilter and the SecurityPolicy", found)
	}
}

// TestEveryRequestIsChecked pins what decides which requests are checked, as a whole: an exception is a difference.
func TestEveryRequestIsChecked(t *testing.T) {
	target := []any{object{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gatehouse"}}
	gateway := object{"matchLabels": object{"istio": "ingressgateway"}}
	custom := func(key string, whom any) object {
		return object{key: whom, "action": "CUSTOM", "provider": object{"name": "gatehouse"}, "rules": []any{object{}}}
	}
	for _, tc := range []struct {
		overlay, object string
		path            []any
		want            any
	}{
		{"istio", "AuthorizationPolicy gatehouse", []any{"spec"}, custom("selector", gateway)},
		{"ldap", "AuthorizationPolicy gatehouse", []any{"spec"}, custom("selector", gateway)},
		{"gateway-api", "AuthorizationPolicy gatehouse", []any{"spec"}, custom("targetRefs", target)},
		{"envoy-gateway", "SecurityPolicy gatehouse", []any{"spec", "targetRefs"}, target},
		{"envoy-gateway", "ClientTrafficPolicy gatehouse", []any{"spec", "targetRefs"}, target},
		{"istio-envoyfilter", "EnvoyFilter gatehouse", []any{"spec", "workloadSelector"}, object{"labels": gateway["matchLabels"]}},
		{"gateway-api", "EnvoyFilter gatehouse", []any{"spec", "workloadSelector"}, object{"labels": object{"gateway.networking.k8s.io/gateway-name": "gatehouse"}}},
		// First: before the router alone, RequestAuthentication would run before Gatehouse has set its token.
		{"istio-envoyfilter", "EnvoyFilter gatehouse", []any{"spec", "configPatches", 0, "patch", "operation"}, "INSERT_FIRST"},
		{"istio-envoyfilter", "EnvoyFilter gatehouse", []any{"spec", "configPatches", 0, "applyTo"}, "HTTP_FILTER"},
		{"istio-envoyfilter", "EnvoyFilter gatehouse", []any{"spec", "configPatches", 0, "match"}, object{
			"context": "GATEWAY", "listener": object{"filterChain": object{"filter": object{"name": "envoy.filters.network.http_connection_manager"}}},
		}},
		{"istio-envoyfilter", "EnvoyFilter gatehouse", []any{"spec", "configPatches", 0, "patch", "value", "typed_config", "grpc_service", "envoy_grpc", "cluster_name"}, "outbound|9001||gatehouse.istio-system.svc.cluster.local"},
		// The issuer's host is for routes of this namespace only.
		{"gateway-api", "Gateway gatehouse", []any{"spec", "listeners", 0, "allowedRoutes", "namespaces", "from"}, "Same"},
		{"envoy-gateway", "Gateway gatehouse", []any{"spec", "listeners", 0, "allowedRoutes", "namespaces", "from"}, "Same"},
	} {
		if got := at(byName(t, kustomize(t, tc.overlay))[tc.object], tc.path...); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s, %s %v: got %v, want %v", tc.overlay, tc.object, tc.path, got, tc.want)
		}
	}
}

// TestHardening: the connection managers of Istio's gateways say what envoy.yaml says, and Envoy Gateway's the same.
func TestHardening(t *testing.T) {
	var edge object
	walk(documents(t, read(t, deploy("envoy", "envoy.yaml")))[0], func(m object) {
		if m["stat_prefix"] == "https" {
			edge = m
		}
	})
	want := []string{"@type", "common_http_protocol_options", "http2_protocol_options", "internal_address_config", "max_request_headers_kb", "merge_slashes", "normalize_path", "path_with_escaped_slashes_action", "request_headers_timeout"}
	found := 0
	files(t, func(path string, doc any) {
		if at(doc, "kind") != "EnvoyFilter" {
			return
		}
		walk(doc, func(m object) {
			if m["@type"] != edge["@type"] || m["stat_prefix"] != nil {
				return
			}
			found++
			var keys []string
			for key, got := range m {
				keys = append(keys, key)
				if !within(got, edge[key]) {
					t.Errorf("%s: %s is %v, envoy.yaml has %v", path, key, got, edge[key])
				}
			}
			slices.Sort(keys)
			if !slices.Equal(keys, want) {
				t.Errorf("%s: got %v, want %v", path, keys, want)
			}
			if at(m, "common_http_protocol_options", "headers_with_underscores_action") != "REJECT_REQUEST" {
				t.Errorf("%s: headers with underscores are not rejected", path)
			}
		})
	})
	if found != 3 {
		t.Errorf("found %d hardened connection managers of Istio, want 3", found)
	}
	spec, _ := byName(t, kustomize(t, "envoy-gateway"))["ClientTrafficPolicy gatehouse"]["spec"].(object)
	for key, want := range map[string]any{
		"path":    object{"disableMergeSlashes": false, "escapedSlashesAction": "RejectRequest"},
		"headers": object{"withUnderscoresAction": "RejectRequest"},
		"timeout": object{"http": object{
			"requestHeadersReceivedTimeout": edge["request_headers_timeout"], "streamIdleTimeout": edge["stream_idle_timeout"],
			"idleTimeout": at(edge, "common_http_protocol_options", "idle_timeout"),
		}},
		"clientIPDetection": nil,
	} {
		if !reflect.DeepEqual(spec[key], want) {
			t.Errorf("ClientTrafficPolicy %s: got %v, want %v", key, spec[key], want)
		}
	}
}

// TestPorts: the addresses in the file are what the container, the Service, the probes, the routes and the policy say.
func TestPorts(t *testing.T) {
	for _, v := range variants {
		t.Run(v.overlay, func(t *testing.T) {
			list := byName(t, kustomize(t, v.overlay))
			config := documents(t, []byte(at(list["ConfigMap gatehouse"], "data", "gatehouse.yaml").(string)))[0]
			listens := map[string]float64{
				"issuer": port(t, at(config, "web", "http")), "ext-authz": port(t, at(config, "gateway", "grpc")), "telemetry": port(t, at(config, "telemetry", "http")),
			}
			container := at(list["Deployment gatehouse"], "spec", "template", "spec", "containers", 0)
			ports := map[string]float64{}
			for _, p := range at(container, "ports").([]any) {
				ports[at(p, "name").(string)] = at(p, "containerPort").(float64)
			}
			if !reflect.DeepEqual(ports, listens) {
				t.Errorf("the container has ports %v, the config listens on %v", ports, listens)
			}
			for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
				if got := at(container, probe, "httpGet", "port"); got != "telemetry" {
					t.Errorf("%s asks port %v, want telemetry", probe, got)
				}
			}
			for _, p := range at(list["Service gatehouse"], "spec", "ports").([]any) {
				if got, want := at(p, "port"), listens[at(p, "targetPort").(string)]; got != want || at(p, "targetPort") == "telemetry" {
					t.Errorf("the Service leads port %v to %v on %v", got, at(p, "targetPort"), want)
				}
			}
			for key, o := range list {
				walk(o["spec"], func(m object) {
					if p, ok := m["port"].(float64); ok && m["name"] == "gatehouse" && p != listens["issuer"] && p != listens["ext-authz"] {
						t.Errorf("%s leads to port %v of the Service", key, p)
					}
				})
			}
		})
	}
}

// TestOnlyTheGateway: the issuer and the check are reached by pods that are named by label and namespace.
func TestOnlyTheGateway(t *testing.T) {
	for _, v := range variants {
		rules, _ := at(byName(t, kustomize(t, v.overlay))["NetworkPolicy gatehouse"], "spec", "ingress").([]any)
		if len(rules) != 2 {
			t.Fatalf("%s: %d rules, want one for the gateway and one for telemetry", v.overlay, len(rules))
		}
		peers, _ := at(rules[0], "from").([]any)
		if len(peers) != 1 {
			t.Fatalf("%s: %d peers may reach the check, want 1", v.overlay, len(peers))
		}
		if labels, _ := at(peers[0], "podSelector", "matchLabels").(object); len(labels) == 0 {
			t.Errorf("%s: any pod may reach the check: %v", v.overlay, peers[0])
		}
		if everywhere, ok := at(peers[0], "namespaceSelector").(object); ok && len(everywhere) == 0 {
			t.Errorf("%s: pods of any namespace may reach the check: %v", v.overlay, peers[0])
		}
		tcp := func(port float64) object { return object{"protocol": "TCP", "port": port} }
		if got, want := at(rules[0], "ports"), any([]any{tcp(5556), tcp(9001)}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the gateway may reach %v, want %v", v.overlay, got, want)
		}
		if got, want := at(rules[1], "ports"), any([]any{tcp(5558)}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the cluster may reach %v, want %v", v.overlay, got, want)
		}
	}
}

// TestKeysForIstiod: the one policy that adds to it is for istiod's pods and the issuer's port alone, and comes only when it is asked for.
func TestKeysForIstiod(t *testing.T) {
	list := documents(t, read(t, deploy("overlays", "istio", "networkpolicy-istiod.yaml")))
	istio := byName(t, kustomize(t, "istio"))["NetworkPolicy gatehouse"]
	want := object{
		"podSelector": at(istio, "spec", "podSelector"), "policyTypes": []any{"Ingress"},
		"ingress": []any{object{
			"from": []any{object{
				"namespaceSelector": object{"matchLabels": object{"kubernetes.io/metadata.name": "istio-system"}},
				"podSelector":       object{"matchLabels": object{"app": "istiod"}},
			}},
			"ports": []any{object{"protocol": "TCP", "port": 5556.}},
		}},
	}
	if len(list) != 1 || !reflect.DeepEqual(list[0]["spec"], any(want)) || at(list[0], "metadata", "namespace") != at(istio, "metadata", "namespace") {
		t.Errorf("got %v, want one policy with %v", list, want)
	}
}

// TestLabels: the pod alone is what the Service and the NetworkPolicy select. Istio gives a Gateway's labels to the pods
// that it runs for it.
func TestLabels(t *testing.T) {
	for _, v := range variants {
		list := byName(t, kustomize(t, v.overlay))
		selector := at(list["Service gatehouse"], "spec", "selector").(object)
		for what, labels := range map[string]any{
			"the Deployment selects": at(list["Deployment gatehouse"], "spec", "selector", "matchLabels"),
			"the policy is for":      at(list["NetworkPolicy gatehouse"], "spec", "podSelector", "matchLabels"),
		} {
			if !reflect.DeepEqual(labels, any(selector)) {
				t.Errorf("%s: %s %v, want %v", v.overlay, what, labels, selector)
			}
		}
		if labels := at(list["Deployment gatehouse"], "spec", "template", "metadata", "labels"); !within(selector, labels) {
			t.Errorf("%s: the pod has labels %v, want %v among them", v.overlay, labels, selector)
		}
		if gateway, ok := list["Gateway gatehouse"]; ok && within(selector, at(gateway, "metadata", "labels")) {
			t.Errorf("%s: the gateway's pods would be selected by %v", v.overlay, selector)
		}
	}
}

// TestPod: every variant runs the same pod, as nobody and with nothing.
func TestPod(t *testing.T) {
	for _, v := range variants {
		list := byName(t, kustomize(t, v.overlay))
		spec := at(list["Deployment gatehouse"], "spec")
		pod := at(spec, "template", "spec")
		for _, tc := range []struct {
			rule      string
			got, want any
		}{
			{"one writer", at(spec, "replicas"), 1.},
			{"the old pod ends first", at(spec, "strategy"), object{"type": "Recreate"}},
			{"no token", at(pod, "automountServiceAccountToken"), false},
			{"not root", at(pod, "securityContext", "runAsNonRoot"), true},
			{"system calls filtered", at(pod, "securityContext", "seccompProfile"), object{"type": "RuntimeDefault"}},
			{"no privilege, nothing to write on", at(pod, "containers", 0, "securityContext"), object{
				"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": object{"drop": []any{"ALL"}},
			}},
			{"five minutes for the first start", at(pod, "containers", 0, "startupProbe"), object{
				"httpGet": object{"path": "/healthz/live", "port": "telemetry"}, "periodSeconds": 1., "timeoutSeconds": 2., "failureThreshold": 300.,
			}},
			{"longer than the drain of 10 s", at(pod, "terminationGracePeriodSeconds"), 30.},
			{"secrets of Active Directory are needed", at(pod, "containers", 0, "envFrom", 0, "secretRef", "optional"), v.overlay != "ldap"},
			{"its CA too", at(pod, "volumes", 0, "projected", "sources", 1, "secret", "optional"), v.overlay != "ldap"},
		} {
			if !reflect.DeepEqual(tc.got, tc.want) {
				t.Errorf("%s, %s: got %v, want %v", v.overlay, tc.rule, tc.got, tc.want)
			}
		}
		for key := range list {
			if strings.HasPrefix(key, "Secret ") || strings.HasPrefix(key, "PodDisruptionBudget ") {
				t.Errorf("%s ships %s", v.overlay, key)
			}
		}
	}
}

// TestCheckConfig: the file in every ConfigMap, of kustomize and of Helm, is good, and has nothing but the user, the
// names and the password to set.
func TestCheckConfig(t *testing.T) {
	gatehouse := binary(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "corp-ca.pem"), read(t, filepath.Join("testdata", "ca.pem")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, v := range variants {
		for by, list := range map[string][]object{"kustomize": kustomize(t, v.overlay), "helm": helm(t, v)} {
			t.Run(v.overlay+" by "+by, func(t *testing.T) { configIsGood(t, gatehouse, dir, list) })
		}
	}
	t.Run("no password", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		text := strings.ReplaceAll(string(read(t, deploy("overlays", "ldap", "gatehouse.yaml"))), "/etc/gatehouse", dir)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), gatehouse, "check-config", file).CombinedOutput() // #nosec G204 -- built from this tree
		if err == nil || !strings.Contains(string(out), "LDAP_PASSWORD") {
			t.Errorf("got %v, want a refusal that names LDAP_PASSWORD\n%s", err, out)
		}
	})
}

// configIsGood has check-config look at the file in the ConfigMap, with dir in place of the pod's folders.
func configIsGood(t *testing.T, gatehouse, dir string, list []object) {
	t.Helper()
	text := at(byName(t, list)["ConfigMap gatehouse"], "data", "gatehouse.yaml").(string)
	text = strings.NewReplacer("/var/lib/gatehouse", filepath.Join(dir, "data"), "/etc/gatehouse", dir).Replace(text)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), gatehouse, "check-config", file) // #nosec G204 -- built from this tree
	cmd.Env = append(os.Environ(), "LDAP_PASSWORD=of-a-test", "GATEHOUSE_DB_PASSWORD=of-a-test")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "warning:") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDocuments: what the commands of the documents apply is there, and the values that they show for Helm are good.
func TestDocuments(t *testing.T) {
	doc := string(read(t, deploy("..", "docs", "install.md")))
	named := regexp.MustCompile(`(?m)(?:apply|delete) -[kf] (\S+)|helm install gatehouse (\S+)|^(deploy/\S+)`)
	applied := map[string]bool{}
	for _, m := range named.FindAllStringSubmatch(doc, -1) {
		path := strings.Trim(m[1]+m[2]+m[3], "`,.")
		applied[path] = true
		if _, err := os.Stat(deploy("..", path)); err != nil {
			t.Errorf("docs/install.md: %v", err)
		}
	}
	for _, v := range variants {
		if path := "deploy/overlays/" + v.overlay; !applied[path] && v.overlay != "ldap" { // of which it says "in place of"
			t.Errorf("docs/install.md does not tell how to apply %s: got %v", path, applied)
		}
	}
	rows := append(slices.Clone(variants), variant{overlay: "ha", objects: 9})
	for _, v := range rows {
		anchor := map[string]string{"istio-envoyfilter": "istio-by-envoyfilter", "ldap": "istio", "ha": "two-replicas"}[v.overlay]
		row := regexp.MustCompile(`\(#` + cmp.Or(anchor, v.overlay) + `\).*\| (\d+) \|`).FindStringSubmatch(doc)
		if row == nil || row[1] != strconv.Itoa(v.objects) {
			t.Errorf("docs/install.md has %q, %s is %d objects", row, v.overlay, v.objects)
		}
	}
	_, values, ok := strings.Cut(doc, "```yaml\nprovider: istio")
	if !ok {
		t.Fatal("docs/install.md has no values for Helm")
	}
	values, _, _ = strings.Cut(values, "```")
	list := byName(t, helm(t, variant{values: "provider: istio" + values, namespace: "istio-system"}))
	if got := at(list["VirtualService gatehouse"], "spec", "hosts", 0); got != "auth.corp.test" {
		t.Errorf("the issuer's route is for %v, want auth.corp.test", got)
	}
}

// binary is what `make test` built, or one built now.
func binary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("GATEHOUSE_BIN"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "gatehouse")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-pgo=off", "-o", path, "./cmd/gatehouse") // #nosec G204 -- fixed
	cmd.Dir = deploy("..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// files gives every document of every YAML file below deploy/, the chart's templates aside: those are compared.
func files(t *testing.T, visit func(path string, doc any)) {
	t.Helper()
	err := filepath.WalkDir(deploy(), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "chart":
			return fs.SkipDir
		case filepath.Ext(path) != ".yaml":
			return nil
		}
		for _, doc := range documents(t, read(t, path)) {
			visit(path, doc)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// walk gives every map inside v, v itself first.
func walk(v any, visit func(object)) {
	switch v := v.(type) {
	case object:
		visit(v)
		for _, inner := range v {
			walk(inner, visit)
		}
	case []any:
		for _, inner := range v {
			walk(inner, visit)
		}
	}
}

// within reports whether all that some says is what all says.
func within(some, all any) bool {
	m, ok := some.(object)
	if !ok {
		return reflect.DeepEqual(some, all)
	}
	for key, v := range m {
		if !within(v, at(all, key)) {
			return false
		}
	}
	return true
}

func port(t *testing.T, address any) float64 {
	t.Helper()
	_, digits, _ := strings.Cut(fmt.Sprint(address), ":")
	n, err := strconv.Atoi(digits)
	if err != nil {
		t.Fatalf("%v: %v", address, err)
	}
	return float64(n)
}
