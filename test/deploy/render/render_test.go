// Package render renders what is shipped for Kubernetes by kustomize and Helm themselves, and holds it to its promises:
// every overlay and every variant of the chart, and that the two say the same.
package render

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// A variant is an overlay, and the values by which the chart renders the same.
type variant struct {
	overlay, namespace, values string
	files                      []string // of deploy/chart
	objects                    int
}

var variants = []variant{
	{overlay: "istio", namespace: "istio-system", values: "provider: istio", objects: 8},
	{overlay: "istio-envoyfilter", namespace: "istio-system", values: "provider: istio-envoyfilter", objects: 8},
	{overlay: "gateway-api", namespace: "istio-system", values: "provider: gateway-api", objects: 10},
	{overlay: "envoy-gateway", namespace: "gatehouse", values: "provider: envoy-gateway", objects: 10},
	{overlay: "ldap", namespace: "istio-system", values: "provider: istio", files: []string{"values-ldap.yaml"}, objects: 8},
}

type object = map[string]any

// TestEveryOverlayIsHere: a new overlay is a new variant.
func TestEveryOverlayIsHere(t *testing.T) {
	folders, err := os.ReadDir(deploy("overlays"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range folders {
		got = append(got, f.Name())
	}
	want := []string{"ha"} // on top of each variant: ha_test.go
	for _, v := range variants {
		want = append(want, v.overlay)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got overlays %v, want %v", got, want)
	}
}

func TestChartIsKustomize(t *testing.T) {
	for _, v := range variants {
		t.Run(v.overlay, func(t *testing.T) {
			fromKustomize := byName(t, kustomize(t, v.overlay))
			fromChart := byName(t, helm(t, v))
			if len(fromKustomize) != v.objects {
				t.Errorf("the overlay has %d objects, want %d", len(fromKustomize), v.objects)
			}
			compare(t, fromChart, fromKustomize)
		})
	}
	t.Run("hardened gateway", func(t *testing.T) {
		v := variants[0]
		v.values += "\nistio: {hardenedGateway: true}"
		want := append(kustomize(t, v.overlay), documents(t, read(t, deploy("overlays", "istio", "hardened-gateway.yaml")))...)
		compare(t, byName(t, helm(t, v)), byName(t, want))
	})
	for _, v := range variants {
		if v.overlay == "envoy-gateway" {
			continue // it has no istiod
		}
		t.Run("keys for istiod, "+v.overlay, func(t *testing.T) {
			want := append(kustomize(t, v.overlay), documents(t, read(t, deploy("overlays", "istio", "networkpolicy-istiod.yaml")))...)
			v.values += "\nistio: {istiodReadsKeys: true}"
			compare(t, byName(t, helm(t, v)), byName(t, want))
		})
	}
}

// keep is what the chart has beyond kustomize: `helm uninstall` leaves the volume.
var keep = object{"helm.sh/resource-policy": "keep"}

func compare(t *testing.T, chart, overlay map[string]object) {
	t.Helper()
	if got, want := slices.Sorted(maps.Keys(chart)), slices.Sorted(maps.Keys(overlay)); !slices.Equal(got, want) {
		t.Fatalf("the chart has %v, the overlay %v", got, want)
	}
	for name, want := range overlay {
		if metadata, ok := at(chart[name], "metadata").(object); ok && strings.HasPrefix(name, "PersistentVolumeClaim ") && reflect.DeepEqual(metadata["annotations"], any(keep)) {
			delete(metadata, "annotations")
		}
		if got := chart[name]; !reflect.DeepEqual(withConfig(t, got), withConfig(t, want)) {
			t.Errorf("%s: the chart has\n%s\nthe overlay has\n%s", name, text(t, got), text(t, want))
		}
	}
}

// withConfig is an object with the file in a ConfigMap parsed: comments and order are no difference.
func withConfig(t *testing.T, o object) object {
	t.Helper()
	if o["kind"] != "ConfigMap" {
		return o
	}
	out := maps.Clone(o)
	out["data"] = object{"gatehouse.yaml": documents(t, []byte(at(o, "data", "gatehouse.yaml").(string)))[0]}
	return out
}

// TestSchema: what would be open, or never run, is refused before anything is applied, and the message names it.
func TestSchema(t *testing.T) {
	for _, tc := range []struct{ rule, values, want string }{
		{"no provider", "{}", "missing property 'provider'"},
		{"an unknown provider", "provider: nginx", "at '/provider': value must be one of 'istio', 'istio-envoyfilter', 'gateway-api', 'envoy-gateway'"},
		{"no name of the mesh's provider", "provider: istio\nistio: {extensionProvider: ''}", "at '/istio/extensionProvider': minLength"},
		{"two replicas on SQLite", "provider: istio\nreplicas: 2", "at '/replicas': value must be 1"},
		{"another port of the check", "provider: istio\nconfig: {gateway: {grpc: '0.0.0.0:9002'}}", "at '/config/gateway/grpc': value must be '0.0.0.0:9001'"},
		{"another port of the issuer", "provider: istio\nconfig: {web: {http: '0.0.0.0:8080'}}", "at '/config/web/http': value must be '0.0.0.0:5556'"},
		{"another port of the probes", "provider: istio\nconfig: {telemetry: {http: '0.0.0.0:5559'}}", "at '/config/telemetry/http': value must be '0.0.0.0:5558'"},
		{"listeners out of the gateway's reach", "provider: istio\nconfig: {gateway: {grpc: '127.0.0.1:9001'}}", "at '/config/gateway/grpc': value must be '0.0.0.0:9001'"},
		{"no gateway in the config", "provider: istio\nconfig: {gateway: null}", "at '/config': missing property 'gateway'"},
		{"an issuer on http", "provider: istio\nconfig: {issuer: 'http://auth.example.com/dex'}", "at '/config/issuer'"},
		{"an issuer without a path", "provider: istio\nconfig: {issuer: 'https://auth.example.com'}", "at '/config/issuer'"},
		{"sessions in memory", "provider: istio\nconfig: {storage: {type: memory}}", "at '/config/storage/type': value must be one of 'sqlite', 'postgres', 'etcd', 'kubernetes'"},
		{"no replica", "provider: istio\nreplicas: 0\nconfig: {storage: {type: postgres}}", "at '/replicas': minimum: got 0, want 1"},
		{"a budget that protects nothing", "provider: istio\npodDisruptionBudget: {minAvailable: 0}", "at '/podDisruptionBudget/minAvailable'"},
		{"a database outside of the volume", "provider: istio\nconfig: {storage: {config: {file: /tmp/x.db}}}", "at '/config/storage/config/file'"},
		{"a typing error", "provider: istio\nreplica: 1", "additional properties 'replica' not allowed"},
		{"an image that changes by itself", "provider: istio\nimage: {tag: latest}", "at '/image/tag'"},
		{"no host", "provider: istio\nconfig: {gateway: {hosts: []}}", "at '/config/gateway/hosts': minItems"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			_, err := render(t, tc.values, nil, "istio-system")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// TestChartRefuses: what the schema cannot say.
func TestChartRefuses(t *testing.T) {
	const users = `, staticPasswords: [{email: you@corp.test, username: you, userID: "1", hash: "${YOUR_HASH}"}]`
	const issuer = "config: {issuer: https://auth.corp.test:8443/dex" + users
	covers := func(i int, host string) string {
		return fmt.Sprintf("config.gateway.hosts[%d]: %q covers the issuer's host auth.corp.test: a route of an app's namespace could take over the sign-in pages; list the apps by name", i, host)
	}
	for _, tc := range []struct{ rule, namespace, values, want string }{
		{"a namespace where the policy finds no gateway", "default", "provider: istio\n" + issuer + "}", `the release is in namespace "default", want "istio-system"`},
		{"nobody to sign in", "istio-system", "provider: istio", "nobody could sign in: name users in config.staticPasswords, or connectors"},
		{"an empty list of users", "istio-system", "provider: istio\nconfig: {staticPasswords: [], connectors: []}", "nobody could sign in"},
		{"a wildcard over the issuer's host", "istio-system", "provider: gateway-api\n" + issuer + `, gateway: {hosts: [app.corp.test, "*.corp.test"]}}`, covers(1, "*.corp.test")},
		{"with scheme and port", "gatehouse", "provider: envoy-gateway\n" + issuer + `, gateway: {hosts: ["https://*.corp.test:8443"]}}`, covers(0, "*.corp.test")},
		{"in another case", "istio-system", "provider: gateway-api\n" + strings.Replace(issuer, "auth.corp", "Auth.Corp", 1) + `, gateway: {hosts: ["*.corp.test"]}}`, covers(0, "*.corp.test")},
		{"where the Gateway is the operator's too", "istio-system", "provider: istio\n" + issuer + `, gateway: {hosts: ["*.corp.test"]}}`, covers(0, "*.corp.test")},
		{"two listeners for one host", "istio-system", "provider: gateway-api\n" + issuer + ", gateway: {hosts: [auth.corp.test]}}", "config.gateway.hosts[0]: auth.corp.test is the issuer's host, whose listener is for the sign-in pages alone: give the issuer a host of its own"},
		{"a host on http at a listener for https", "istio-system", "provider: gateway-api\n" + issuer + `, gateway: {hosts: ["http://app.corp.test"]}}`, "config.gateway.hosts[0]: http://app.corp.test: the Gateway of this chart serves https: take http:// away"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			_, err := render(t, tc.values, nil, tc.namespace)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	for _, hosts := range []string{`"*.apps.corp.test"`, `"*.auth.corp.test"`, `"*.uth.corp.test"`, `"*.corp.tes"`, `"*.h.corp.test"`} {
		if _, err := render(t, "provider: gateway-api\n"+issuer+", gateway: {hosts: ["+hosts+"]}}", nil, "istio-system"); err != nil {
			t.Errorf("%s does not cover auth.corp.test: %v", hosts, err)
		}
	}
}

// TestUsersAreTheOperators: whoever brings a connector gets no user of the chart beside it, and no form for passwords.
func TestUsersAreTheOperators(t *testing.T) {
	config := func(values string) object {
		list := byName(t, helm(t, variant{namespace: "istio-system", values: values, files: []string{}}))
		return documents(t, []byte(at(list["ConfigMap gatehouse"], "data", "gatehouse.yaml").(string)))[0]
	}
	only := config("provider: istio\nconfig: {connectors: [{type: github, id: github, name: GitHub, config: {clientID: a, clientSecret: b}}]}")
	if only["staticPasswords"] != nil || only["enablePasswordDB"] != nil {
		t.Errorf("with connectors alone the file has users %v, enablePasswordDB %v, want neither", only["staticPasswords"], only["enablePasswordDB"])
	}
	const users = `staticPasswords: [{email: you@corp.test, username: you, userID: "1", hash: "${YOUR_HASH}"}]`
	if got := config("provider: istio\nconfig: {" + users + "}"); got["enablePasswordDB"] != true {
		t.Errorf("with users enablePasswordDB is %v, want true", got["enablePasswordDB"])
	}
	if got := config("provider: istio\nconfig: {enablePasswordDB: false, " + users + "}"); got["enablePasswordDB"] != false {
		t.Errorf("enablePasswordDB is %v, want the operator's false", got["enablePasswordDB"])
	}
}

// TestVolumeIsKept: sessions and keys outlive `helm uninstall`, unless the operator says otherwise.
func TestVolumeIsKept(t *testing.T) {
	for values, want := range map[string]any{"provider: istio": any(keep), "provider: istio\nvolume: {keep: false}": nil} {
		list := byName(t, helm(t, variant{namespace: "istio-system", values: values}))
		if got := at(list["PersistentVolumeClaim gatehouse"], "metadata", "annotations"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the claim has annotations %v, want %v", values, got, want)
		}
	}
}

// TestCertificates: no two listeners share a certificate. A browser would use one HTTP/2 connection for the hosts of both, and Istio
// answers 404 there.
func TestCertificates(t *testing.T) {
	const values = "\nconfig: {gateway: {hosts: [a.corp.test, b.corp.test, c.corp.test]}}"
	for what, list := range map[string][]object{
		"kustomize, gateway-api":      kustomize(t, "gateway-api"),
		"kustomize, envoy-gateway":    kustomize(t, "envoy-gateway"),
		"helm, three hosts":           helm(t, variant{namespace: "istio-system", values: "provider: gateway-api" + values}),
		"helm, three hosts, Envoy":    helm(t, variant{namespace: "gatehouse", values: "provider: envoy-gateway" + values}),
		"helm, names of the operator": helm(t, variant{namespace: "istio-system", values: "provider: gateway-api\ngatewayAPI: {certificates: corp}" + values}),
	} {
		seen, prefix := map[any]bool{}, "gateway-tls-"
		if strings.Contains(what, "operator") {
			prefix = "corp-"
		}
		listeners, _ := at(byName(t, list)["Gateway gatehouse"], "spec", "listeners").([]any)
		for _, l := range listeners {
			refs, _ := at(l, "tls", "certificateRefs").([]any)
			secret := at(l, "tls", "certificateRefs", 0, "name")
			if len(refs) != 1 || seen[secret] || secret != prefix+at(l, "name").(string) {
				t.Errorf("%s: listener %v has certificates %v, want %s%v alone", what, at(l, "name"), refs, prefix, at(l, "name"))
			}
			seen[secret] = true
		}
		if want := 2; len(seen) < want || strings.HasPrefix(what, "helm") && len(seen) != 4 {
			t.Errorf("%s: %d certificates", what, len(seen))
		}
	}
}

// TestChartValues: what an operator changes arrives where it belongs.
func TestChartValues(t *testing.T) {
	v := variant{namespace: "gatehouse", values: `
provider: envoy-gateway
image: {repository: "registry.corp.test:5000/gatehouse", tag: 1.2.3}
volume: {storageClassName: fast}
config:
  issuer: https://login.corp.test:8443/auth
  gateway: {hosts: [a.corp.test, "https://*.b.corp.test:8443"]}
`}
	list := byName(t, helm(t, v))
	for _, tc := range []struct {
		what, object string
		path         []any
		want         any
	}{
		{"image", "Deployment gatehouse", []any{"spec", "template", "spec", "containers", 0, "image"}, "registry.corp.test:5000/gatehouse:1.2.3"},
		{"class of the volume", "PersistentVolumeClaim gatehouse", []any{"spec", "storageClassName"}, "fast"},
		{"issuer's listener", "Gateway gatehouse", []any{"spec", "listeners", 0, "hostname"}, "login.corp.test"},
		{"on the issuer's port", "Gateway gatehouse", []any{"spec", "listeners", 0, "port"}, 8443.},
		{"first app on the usual one", "Gateway gatehouse", []any{"spec", "listeners", 1, "port"}, 443.},
		{"second app on its own", "Gateway gatehouse", []any{"spec", "listeners", 2, "port"}, 8443.},
		{"issuer's route without the port", "HTTPRoute gatehouse", []any{"spec", "hostnames", 0}, "login.corp.test"},
		{"first app", "Gateway gatehouse", []any{"spec", "listeners", 1, "hostname"}, "a.corp.test"},
		{"second app", "Gateway gatehouse", []any{"spec", "listeners", 2, "hostname"}, "*.b.corp.test"},
		{"names of listeners differ", "Gateway gatehouse", []any{"spec", "listeners", 2, "name"}, "apps-1"},
		{"issuer's route", "HTTPRoute gatehouse", []any{"spec", "rules", 0, "matches", 0, "path", "value"}, "/auth"},
	} {
		if got := at(list[tc.object], tc.path...); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.what, got, tc.want)
		}
	}
	v = variant{namespace: "istio-system", values: "provider: istio\nconfig: {issuer: 'https://login.corp.test:8443/auth'}"}
	if got := at(byName(t, helm(t, v))["VirtualService gatehouse"], "spec", "hosts"); !reflect.DeepEqual(got, []any{"login.corp.test"}) {
		t.Errorf("the route on Istio is for %v, want login.corp.test without the port", got)
	}
}

// TestNotes: what `helm install` prints is of this install: its namespace, its first host that can be opened, what it needs first.
func TestNotes(t *testing.T) {
	const config = "\nconfig: {issuer: https://auth.corp.test/dex, connectors: [{type: ldap, config: {bindPW: '${LDAP_PASSWORD}'}}], gateway: {hosts: ['*.apps.corp.test', app.corp.test:8443]"
	const secret = "needs the Secret gatehouse-env in istio-system, with LDAP_PASSWORD."
	const labels = "no gateway has the labels app=edge"
	for _, tc := range []struct {
		rule, values string
		want, never  []string
	}{
		{
			"Istio", "provider: istio\nistio: {gatewayLabels: {app: edge}, extensionProvider: door}" + config + "}}",
			[]string{"kubectl -n istio-system rollout status deployment/gatehouse\n", secret, "open https://app.corp.test:8443/ in", " https://app.corp.test:8443/\n\n  401 ", "provider door yet", labels},
			[]string{"gateway-tls", "302", "crd.yaml"},
		},
		{"EnvoyFilter", "provider: istio-envoyfilter\nistio: {gatewayLabels: {app: edge}}" + config + "}}", []string{secret, labels}, []string{"RBAC", "gateway-tls"}},
		{"Gateway API", "provider: gateway-api" + config + "}}", []string{secret, "Secrets gateway-tls-issuer, gateway-tls-apps", "RBAC", "route on this Gateway"}, []string{"labels"}},
		{"Envoy Gateway", "provider: envoy-gateway\ngatewayAPI: {certificates: corp}" + config + "}}", []string{"Secrets corp-issuer, corp-apps"}, []string{"RBAC", "labels"}},
		{"the Kubernetes API for storage", "provider: istio\nreplicas: 2" + config + "}, storage: {type: kubernetes, config: {inCluster: true}}}", []string{"kubectl apply -f deploy/store-kubernetes/crd.yaml"}, nil},
		{"Kubeflow's clients", "provider: istio" + config + ", clients: kubeflow}}", []string{"\n\n  302 "}, []string{"401"}},
		{"wildcards and no variables", "provider: istio\nconfig: {connectors: [{type: ldap}], gateway: {hosts: ['*.apps.corp.test']}}", []string{"rollout status"}, []string{"curl", "gatehouse-env", "<no value>"}},
	} {
		out, err := templates(t, tc.values, nil, "istio-system")
		if err != nil {
			t.Errorf("%s: %v", tc.rule, err)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(out[notes], want) {
				t.Errorf("%s: there is no %q in\n%s", tc.rule, want, out[notes])
			}
		}
		for _, never := range tc.never {
			if strings.Contains(out[notes], never) {
				t.Errorf("%s: there is %q in\n%s", tc.rule, never, out[notes])
			}
		}
	}
}

// TestGatewayLabels: whoever names the gateway's pods names them alone. Helm adds the defaults of a table to what an operator writes, and
// a policy for labels that no pod has checks nothing.
func TestGatewayLabels(t *testing.T) {
	own := any(object{"app": "edge"})
	for _, provider := range []string{"istio", "istio-envoyfilter"} {
		list := byName(t, helm(t, variant{namespace: "istio-system", values: "provider: " + provider + "\nistio: {gatewayLabels: {app: edge}, hardenedGateway: true}"}))
		for name, path := range map[string][]any{
			"AuthorizationPolicy gatehouse":          {"spec", "selector", "matchLabels"},
			"EnvoyFilter gatehouse":                  {"spec", "workloadSelector", "labels"},
			"EnvoyFilter gatehouse-hardened-gateway": {"spec", "workloadSelector", "labels"},
			"NetworkPolicy gatehouse":                {"spec", "ingress", 0, "from", 0, "podSelector", "matchLabels"},
		} {
			if list[name] == nil {
				continue // of the other provider
			}
			if got := at(list[name], path...); !reflect.DeepEqual(got, own) {
				t.Errorf("%s: %s is for pods with %v, want %v", provider, name, got, own)
			}
		}
	}
	if _, err := render(t, "provider: istio\nistio: {gatewayLabels: {app: ''}}", nil, "istio-system"); err == nil {
		t.Error("an empty label is taken")
	}
}

// TestKnownTypes: no field of Kubernetes' own objects is misspelt or given twice.
func TestKnownTypes(t *testing.T) {
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for _, v := range variants {
		known := 0
		for _, o := range kustomize(t, v.overlay) {
			switch group, _, _ := strings.Cut(o["apiVersion"].(string), "/"); group {
			case "networking.istio.io", "security.istio.io", "gateway.networking.k8s.io", "gateway.envoyproxy.io":
				continue
			}
			if _, _, err := decoder.Decode([]byte(text(t, o)), nil, nil); err != nil {
				t.Errorf("%s: %s: %v", v.overlay, name(o), err)
			}
			known++
		}
		if known != 6 {
			t.Errorf("%s: %d objects of known types, want 6", v.overlay, known)
		}
	}
}

// TestPlainInstallIsSmall counts what a reader has to understand. For scale: Kubeflow's Dex with oauth2-proxy is 27 objects
// in 648 lines.
func TestPlainInstallIsSmall(t *testing.T) {
	for _, v := range variants {
		list := kustomize(t, v.overlay)
		var b bytes.Buffer
		for _, o := range list {
			b.WriteString("---\n" + text(t, o))
		}
		lines := bytes.Count(b.Bytes(), []byte("\n")) - 1 // none before the first object
		t.Logf("%s: %d objects, %d lines of YAML", v.overlay, len(list), lines)
		if v.overlay == "istio" && (len(list) > 8 || lines > 324) {
			t.Errorf("got %d objects in %d lines, want at most 8 in 324: half of 648", len(list), lines)
		}
	}
}

// kustomize returns what `kubectl kustomize` prints.
func kustomize(t *testing.T, overlay string) []object {
	t.Helper()
	return kustomizeIn(t, deploy("overlays", overlay))
}

func kustomizeIn(t *testing.T, folder string) []object {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return documents(t, out)
}

// helm returns what `helm template` prints. The chart has no users: unless the variant has its own, they are those of deploy/base.
func helm(t *testing.T, v variant) []object {
	t.Helper()
	values := documents(t, []byte(v.values))[0]
	if v.files == nil && at(values, "config", "staticPasswords") == nil {
		values = chartutil.MergeTables(values, object{"config": object{"staticPasswords": at(baseConfig(t), "staticPasswords")}})
	}
	list, err := render(t, text(t, values), v.files, v.namespace)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// baseConfig is the file of the kustomize base.
func baseConfig(t *testing.T) object {
	t.Helper()
	return documents(t, read(t, deploy("base", "gatehouse.yaml")))[0]
}

// render returns the objects of the chart.
func render(t *testing.T, text string, files []string, namespace string) ([]object, error) {
	t.Helper()
	out, err := templates(t, text, files, namespace)
	if err != nil {
		return nil, err
	}
	delete(out, notes)
	var list []object
	for _, file := range slices.Sorted(maps.Keys(out)) {
		list = append(list, documents(t, []byte(out[file]))...)
	}
	return list, nil
}

// notes is the file that `helm install` prints.
const notes = "gatehouse/templates/NOTES.txt"

// templates takes values as `helm install -f files --set values` does: checked by the schema, after the chart's defaults.
func templates(t *testing.T, text string, files []string, namespace string) (map[string]string, error) {
	t.Helper()
	c, err := loader.Load(deploy("chart"))
	if err != nil {
		t.Fatal(err)
	}
	values := object{}
	for _, file := range files {
		values = chartutil.MergeTables(documents(t, read(t, deploy("chart", file)))[0], values)
	}
	var set object
	if err := yaml.Unmarshal([]byte(text), &set); err != nil {
		t.Fatal(err)
	}
	values = chartutil.MergeTables(set, values)
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "gatehouse", Namespace: namespace, IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(c, all)
}

func documents(t *testing.T, text []byte) []object {
	t.Helper()
	var list []object
	for part := range strings.SplitSeq(string(text), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(part), &o); err != nil {
			t.Fatalf("%v in:\n%s", err, part)
		}
		if len(o) > 0 {
			list = append(list, o)
		}
	}
	return list
}

func byName(t *testing.T, list []object) map[string]object {
	t.Helper()
	out := map[string]object{}
	for _, o := range list {
		if out[name(o)] != nil {
			t.Errorf("%s is there twice", name(o))
		}
		out[name(o)] = o
	}
	return out
}

func name(o object) string { return o["kind"].(string) + " " + at(o, "metadata", "name").(string) }

// at follows keys and indexes into v; what is not there is nil.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
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

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path) // #nosec G304 -- a path of this source tree
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// deploy is a path below deploy/; tests run in the folder of their package.
func deploy(elem ...string) string {
	return filepath.Join(append([]string{"..", "..", "..", "deploy"}, elem...)...)
}
