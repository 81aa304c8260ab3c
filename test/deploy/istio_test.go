package deploy

import (
	"maps"
	"net"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

const (
	namespace = "istio-system"
	service   = "gatehouse." + namespace + ".svc.cluster.local"
	user      = 65532

	issuerPort    = 5556
	checkPort     = 9001
	telemetryPort = 5558
)

func overlay(t *testing.T) []object {
	t.Helper()
	return objects(t, repo(t, "deploy", "overlays", "istio"))
}

func TestOverlayIsSmall(t *testing.T) {
	list := overlay(t)
	if len(list) > 8 {
		t.Errorf("got %d objects, want at most 8", len(list))
	}
	want := []string{
		"AuthorizationPolicy", "ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Service", "ServiceAccount", "VirtualService",
	}
	var got []string
	for _, o := range list {
		got = append(got, o.text("kind"))
		if n := o.text("metadata.name"); n != "gatehouse" {
			t.Errorf("%s is called %q, want gatehouse", o.text("kind"), n)
		}
		if ns := o.text("metadata.namespace"); ns != namespace {
			t.Errorf("%s is in namespace %q, want %s", o.text("kind"), ns, namespace)
		}
		if l := o.text("metadata.labels.app~1kubernetes~1io/name"); l != "gatehouse" {
			t.Errorf("%s has label app.kubernetes.io/name %q, want gatehouse", o.text("kind"), l)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got kinds %v, want %v", got, want)
	}
}

// TestOverlay pins values whose change would open something, or take it down. Each is compared as a whole, so that an
// addition (a notPaths, a capability, a second port) is a difference too.
func TestOverlay(t *testing.T) {
	const pod, container = "spec.template.spec.", "spec.template.spec.containers.0."
	list := overlay(t)
	for _, tc := range []struct{ rule, kind, path, want string }{
		{"one writer on an SQLite file", "Deployment", "spec.replicas", `1`},
		{"the old pod ends before the new one starts", "Deployment", "spec.strategy", `{type: Recreate}`},
		{"one container", "Deployment", pod + "initContainers", `null`},
		{"not root, its own volume, system calls filtered", "Deployment", pod + "securityContext", `
			{runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, fsGroupChangePolicy: OnRootMismatch,
			seccompProfile: {type: RuntimeDefault}}`},
		{"no privilege, nothing to write on", "Deployment", container + "securityContext", `
			{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}`},
		{"no token in the pod", "Deployment", pod + "automountServiceAccountToken", `false`},
		{"no token for the account", "ServiceAccount", "automountServiceAccountToken", `false`},
		{"no network of the node", "Deployment", pod + "hostNetwork", `null`},
		{"no variables of other services", "Deployment", pod + "enableServiceLinks", `false`},
		{"time to drain", "Deployment", pod + "terminationGracePeriodSeconds", `30`},
		{"no proxy in the check's way", "Deployment", "spec.template.metadata.labels", `
			{app.kubernetes.io/name: gatehouse, sidecar.istio.io/inject: "false"}`},
		{"alive", "Deployment", container + "livenessProbe.httpGet", `{path: /healthz/live, port: telemetry}`},
		{"ready", "Deployment", container + "readinessProbe.httpGet", `{path: /healthz/serving, port: telemetry}`},
		{"three listeners, admin not among them", "Deployment", container + "ports", `
			[{name: issuer, containerPort: 5556}, {name: ext-authz, containerPort: 9001}, {name: telemetry, containerPort: 5558}]`},
		{"bounded memory, unthrottled CPU", "Deployment", container + "resources", `
			{requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 768Mi}}`},
		{"the collector goes by the container's limit", "Deployment", container + "env", `null`},
		{"written: data and temporary files only", "Deployment", container + "volumeMounts", `
			[{name: config, mountPath: /etc/gatehouse, readOnly: true}, {name: data, mountPath: /var/lib/gatehouse}, {name: tmp, mountPath: /tmp}]`},
		{"secrets are the operator's", "Deployment", container + "envFrom", `[{secretRef: {name: gatehouse-env, optional: true}}]`},
		{"telemetry and admin are in no Service", "Service", "spec.ports", `
			[{name: http-issuer, port: 5556, targetPort: issuer, appProtocol: http},
			{name: grpc-ext-authz, port: 9001, targetPort: ext-authz, appProtocol: grpc}]`},
		{"reachable inside only", "Service", "spec.type", `null`},
		{"one node's volume", "PersistentVolumeClaim", "spec.accessModes", `[ReadWriteOnce]`},
		{"every request is checked", "AuthorizationPolicy", "spec", `
			{selector: {matchLabels: {istio: ingressgateway}}, action: CUSTOM, provider: {name: gatehouse}, rules: [{}]}`},
		{"the gateway alone reaches issuer and check", "NetworkPolicy", "spec", `
			podSelector: {matchLabels: {app.kubernetes.io/name: gatehouse}}
			policyTypes: [Ingress]
			ingress:
			- from:
			  - namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [istio-system, istio-ingress]}]}
			    podSelector: {matchLabels: {istio: ingressgateway}}
			  ports: [{protocol: TCP, port: 5556}, {protocol: TCP, port: 9001}]
			- from: [{namespaceSelector: {}}]
			  ports: [{protocol: TCP, port: 5558}]`},
		{"the issuer by whole segments, no POST sent twice", "VirtualService", "spec.http", `
			- name: issuer
			  match: [{uri: {exact: /dex}}, {uri: {prefix: /dex/}}]
			  route: [{destination: {host: gatehouse.istio-system.svc.cluster.local, port: {number: 5556}}}]
			  timeout: 30s
			  retries: {attempts: 0}`},
	} {
		t.Run(tc.kind+" "+tc.rule, func(t *testing.T) {
			got, want := find(t, list, tc.kind).at(tc.path), value(t, tc.want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %#v, want %#v", tc.path, got, want)
			}
		})
	}
}

// TestMeshProvider holds the mesh's side: Istio would wait 600 s, and answer 403 for an authorizer that is down.
func TestMeshProvider(t *testing.T) {
	got := parse(t, string(read(t, repo(t, "deploy", "overlays", "istio", "mesh-provider.yaml"))))
	want := value(t, `
		extensionProviders:
		- name: gatehouse
		  envoyExtAuthzGrpc: {service: `+service+`, port: 9001, timeout: 2s, failOpen: false, statusOnError: "503"}`)
	if !reflect.DeepEqual(map[string]any(got), want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestOverlayFits checks what one object says against what another one, or the config inside, relies on.
func TestOverlayFits(t *testing.T) {
	list := overlay(t)
	deployment, config := find(t, list, "Deployment"), shippedConfig(t)
	pod := deployment.at("spec.template.metadata.labels").(map[string]any)
	for _, selector := range []struct{ kind, path string }{
		{"Deployment", "spec.selector.matchLabels"},
		{"Service", "spec.selector"},
		{"NetworkPolicy", "spec.podSelector.matchLabels"},
	} {
		want, _ := find(t, list, selector.kind).at(selector.path).(map[string]any)
		if len(want) == 0 || !contains(pod, want) {
			t.Errorf("%s %s: %v does not select the pod with labels %v", selector.kind, selector.path, want, pod)
		}
	}
	issuer, err := url.Parse(config.text("issuer"))
	if err != nil {
		t.Fatal(err)
	}
	args := deployment.at("spec.template.spec.containers.0.args").([]any)
	for _, tc := range []struct {
		rule      string
		got, want any
	}{
		{"the route is for the issuer's host", find(t, list, "VirtualService").at("spec.hosts"), []any{issuer.Host}},
		{"and its path", find(t, list, "VirtualService").at("spec.http.0.match.0.uri.exact"), issuer.Path},
		{"the issuer shares its host with no app", slices.Contains(config.at("gateway.hosts").([]any), any(issuer.Host)), false},
		{"the issuer is on https", issuer.Scheme, "https"},
		{"issuer listener", port(t, config.text("web.http")), issuerPort},
		{"check listener", port(t, config.text("gateway.grpc")), checkPort},
		{"telemetry listener", port(t, config.text("telemetry.http")), telemetryPort},
		{"metrics annotation", deployment.at("spec.template.metadata.annotations.prometheus~1io/port"), strconv.Itoa(telemetryPort)},
		{"the admin listener keeps its loopback default", config.at("gateway.admin"), nil},
		{"the database is on the volume", path.Dir(config.text("storage.config.file")), "/var/lib/gatehouse"},
		{"the volume is the claim", deployment.at("spec.template.spec.volumes.1.persistentVolumeClaim.claimName"), "gatehouse"},
		{"others may not read a key file", deployment.at("spec.template.spec.volumes.0.projected.defaultMode"), 0o440},
		{"the service may, by its group", deployment.at("spec.template.spec.securityContext.fsGroup"), deployment.at("spec.template.spec.securityContext.runAsGroup")},
		{"the config is the ConfigMap", deployment.at("spec.template.spec.volumes.0.projected.sources.0.configMap.name"), "gatehouse"},
		{"and is what is served", args, []any{"serve", "--config", "/etc/gatehouse/gatehouse.yaml"}},
		{"the account", deployment.at("spec.template.spec.serviceAccountName"), "gatehouse"},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.rule, tc.got, tc.want)
		}
	}
}

// TestNoDefaultCredentials: whoever forgets to edit the config has an install that nobody can sign in to.
func TestNoDefaultCredentials(t *testing.T) {
	list := overlay(t)
	for _, o := range list {
		if o.text("kind") == "Secret" {
			t.Errorf("%s is shipped: a secret that everybody knows", name(o))
		}
	}
	users := shippedConfig(t).at("staticPasswords").([]any)
	if len(users) == 0 {
		t.Fatal("the config has no user")
	}
	for _, u := range users {
		u := object(u.(map[string]any))
		if email := u.text("email"); !strings.HasSuffix(email, "@example.com") {
			t.Errorf("user %s: want an address that is clearly a placeholder, @example.com", email)
		}
		hash := []byte(u.text("hash"))
		if cost, err := bcrypt.Cost(hash); err != nil || cost < 12 {
			t.Errorf("user %s: got cost %d (%v), want a bcrypt hash of cost 12 or more", u.text("email"), cost, err)
		}
		for _, guess := range []string{"", "password", "admin", "gatehouse", "12341234", "changeme", u.text("email"), u.text("username")} {
			if bcrypt.CompareHashAndPassword(hash, []byte(guess)) == nil {
				t.Errorf("user %s: the hash is of the password %q", u.text("email"), guess)
			}
		}
	}
}

// shippedConfig is the configuration file inside the overlay's ConfigMap.
func shippedConfig(t *testing.T) object {
	t.Helper()
	return parse(t, shippedConfigText(t))
}

func shippedConfigText(t *testing.T) string {
	t.Helper()
	data, _ := find(t, overlay(t), "ConfigMap").at("data").(map[string]any)
	text, _ := data["gatehouse.yaml"].(string)
	if text == "" || len(data) != 1 {
		t.Fatalf("the ConfigMap has %v, want gatehouse.yaml alone", slices.Collect(maps.Keys(data)))
	}
	return text
}

// value reads YAML that stands in Go's text, where it is indented by tabs too.
func value(t *testing.T, text string) any {
	t.Helper()
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = " " + strings.TrimLeft(line, "\t")
	}
	return parse(t, "value:\n"+strings.Join(lines, "\n")).at("value")
}

func contains(all, some map[string]any) bool {
	for k, v := range some {
		if all[k] != v {
			return false
		}
	}
	return true
}

func port(t *testing.T, addr string) int {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatalf("%q: %v", addr, err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatalf("%q: %v", addr, err)
	}
	return n
}
