package render

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A shared storage is one that replicas may have, with the block of docs/install.md that installs it, and the chart's values.
type shared struct {
	name, block, values string
	objects             []string // beside those of the gateway's overlay
}

var storages = []shared{
	{
		name: "postgres", block: "type: postgres", objects: []string{"PodDisruptionBudget gatehouse"},
		values: `storage: {type: postgres, config: {host: db.corp.test, database: gatehouse, user: gatehouse, password: "${GATEHOUSE_DB_PASSWORD}", ssl: {caFile: /etc/gatehouse/db-ca.pem}}}`,
	},
	{
		name: "kubernetes", block: "type: kubernetes", objects: []string{"PodDisruptionBudget gatehouse", "Role gatehouse-store", "RoleBinding gatehouse-store"},
		values: `storage: {type: kubernetes, config: {inCluster: true}}`,
	},
}

// ha returns the objects of the overlay ha on top of another, by the document's edits and those that the overlay's comments tell.
func ha(t *testing.T, v variant, s shared) []object {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(deploy())); err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(haEdits(t, s), "base/gatehouse.yaml", map[bool]string{true: "overlays/ldap/gatehouse.yaml", false: "base/gatehouse.yaml"}[v.overlay == "ldap"])
	cmd := exec.CommandContext(t.Context(), "bash", "-euc", script) // #nosec G204 -- of our document
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s%s", err, out, script)
	}
	folder := filepath.Join(dir, "deploy", "overlays", "ha")
	file := filepath.Join(folder, "kustomization.yaml")
	text := string(read(t, file))
	edit := func(old, fresh string) {
		if !strings.Contains(text, old) {
			t.Fatalf("overlays/ha/kustomization.yaml has no %q", old)
		}
		text = strings.Replace(text, old, fresh, 1)
	}
	edit("- ../istio #", "- ../"+v.overlay+" #")
	edit("namespace: istio-system #", "namespace: "+v.namespace+" #")
	if v.overlay == "envoy-gateway" {
		edit("- destinationrule.yaml #", "#")
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kustomizeIn(t, folder)
}

// haEdits are the lines of the document's block that change files.
func haEdits(t *testing.T, s shared) (edits string) {
	t.Helper()
	_, rest, ok := strings.Cut(string(read(t, deploy("..", "docs", "install.md"))), "\n## Two replicas\n")
	if !ok {
		t.Fatal("docs/install.md has no section Two replicas")
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	for i, block := range strings.Split(rest, "```") {
		if i%2 == 0 || !strings.Contains(block, s.block) || !strings.HasPrefix(block, "sh\n") {
			continue
		}
		for line := range strings.Lines(block) {
			if strings.HasPrefix(line, "sed -i ") {
				edits += line
			}
		}
	}
	if edits == "" {
		t.Fatalf("no block of commands edits the file for %s", s.name)
	}
	return edits
}

func (s shared) variant(v variant) variant {
	v.values += "\nreplicas: 2\nconfig: {" + s.values + "}"
	return v
}

// TestReplicas: two replicas on each storage that they can share, behind every gateway: the chart is kustomize, the file is good, and the
// objects keep what is promised.
func TestReplicas(t *testing.T) {
	gatehouse, dir := binary(t), t.TempDir()
	for _, name := range []string{"corp-ca.pem", "db-ca.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), read(t, filepath.Join("testdata", "ca.pem")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range variants {
		for _, s := range storages {
			t.Run(v.overlay+" on "+s.name, func(t *testing.T) {
				list, chart := ha(t, v, s), helm(t, s.variant(v))
				secretIsNeeded(t, byName(t, list), v.overlay == "ldap" || s.name == "postgres")
				if v.overlay == "ldap" { // whose Secrets the chart asks for otherwise
					optional(t, list)
					optional(t, chart)
				}
				compare(t, byName(t, chart), byName(t, list))
				configIsGood(t, gatehouse, dir, list)
				configIsGood(t, gatehouse, dir, chart)
				s.objectsAre(t, v, list)
				replicasArePromised(t, byName(t, list), s)
			})
		}
	}
}

func secretIsNeeded(t *testing.T, list map[string]object, want bool) {
	t.Helper()
	if got := at(list["Deployment gatehouse"], "spec", "template", "spec", "containers", 0, "envFrom", 0, "secretRef", "optional"); got != !want {
		t.Errorf("the Secret with the passwords may be missing: %v, want %v", got, !want)
	}
}

func optional(t *testing.T, list []object) {
	t.Helper()
	pod := at(byName(t, list)["Deployment gatehouse"], "spec", "template", "spec")
	at(pod, "containers", 0, "envFrom", 0, "secretRef").(object)["optional"] = true
	at(pod, "volumes", 0, "projected", "sources", 1, "secret").(object)["optional"] = true
}

// objectsAre counts: what a storage needs, and for Istio's gateways a DestinationRule, in place of the volume.
func (s shared) objectsAre(t *testing.T, v variant, list []object) {
	t.Helper()
	var got, want []string
	for _, o := range kustomize(t, v.overlay) {
		if o["kind"] != "PersistentVolumeClaim" {
			want = append(want, name(o))
		}
	}
	want = append(want, s.objects...)
	if v.overlay != "envoy-gateway" {
		want = append(want, "DestinationRule gatehouse")
	}
	for _, o := range list {
		got = append(got, name(o))
		if ns := at(o, "metadata", "namespace"); ns != v.namespace {
			t.Errorf("%s is in namespace %v, want %s", name(o), ns, v.namespace)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if v.overlay == "istio" && s.name == "postgres" && len(got) != 9 {
		t.Errorf("%d objects, docs/install.md says 9", len(got))
	}
}

// replicasArePromised: one pod at least serves whatever is being replaced, and the account may do what its storage needs and no more.
func replicasArePromised(t *testing.T, list map[string]object, s shared) {
	t.Helper()
	deployment := list["Deployment gatehouse"]
	pod := at(deployment, "spec", "template", "spec")
	labels := at(deployment, "spec", "selector")
	for _, tc := range []struct {
		rule      string
		got, want any
	}{
		{"two", at(deployment, "spec", "replicas"), 2.},
		{"the new one first", at(deployment, "spec", "strategy"), object{"type": "RollingUpdate", "rollingUpdate": object{"maxUnavailable": 0., "maxSurge": 1.}}},
		{"one of them stays", at(list["PodDisruptionBudget gatehouse"], "spec"), object{"minAvailable": 1., "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": labels}},
		{"on two nodes where there are two", at(pod, "affinity", "podAntiAffinity"), object{"preferredDuringSchedulingIgnoredDuringExecution": []any{
			object{"weight": 100., "podAffinityTerm": object{"topologyKey": "kubernetes.io/hostname", "labelSelector": labels}},
		}}},
		{"in two zones where there are two", at(pod, "topologySpreadConstraints"), []any{
			object{"maxSkew": 1., "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": labels},
		}},
		{"a storage that is away takes no replica away", at(pod, "containers", 0, "readinessProbe", "httpGet", "path"), "/healthz/serving"},
		{"longer than the drain", at(pod, "terminationGracePeriodSeconds"), 30.},
		{"a token for the one storage that needs it", at(pod, "automountServiceAccountToken"), s.name == "kubernetes"},
		{"not by the account, which other pods could have", at(list["ServiceAccount gatehouse"], "automountServiceAccountToken"), false},
		{"no volume of its own", at(pod, "volumes", 2), nil},
		{"nothing to keep there", at(pod, "containers", 0, "volumeMounts", 2), nil},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.rule, tc.got, tc.want)
		}
	}
	if s.name != "kubernetes" {
		return
	}
	if got, want := at(list["Role gatehouse-store"], "rules"), any([]any{object{
		"apiGroups": []any{"gatehouse.internal"}, "resources": []any{"records"},
		"verbs": []any{"get", "list", "watch", "create", "update", "patch", "delete"},
	}}); !reflect.DeepEqual(got, want) {
		t.Errorf("the account may do %v, want %v", got, want)
	}
	for _, o := range list {
		if strings.HasPrefix(o["kind"].(string), "Cluster") || o["kind"] == "CustomResourceDefinition" {
			t.Errorf("%s is for the whole cluster", name(o))
		}
	}
}

// TestReplicasOfTheChart: what an operator changes arrives.
func TestReplicasOfTheChart(t *testing.T) {
	values := func(more string) map[string]object {
		return byName(t, helm(t, variant{namespace: "istio-system", values: "provider: istio\n" + more}))
	}
	const shared = "config: {" + `storage: {type: kubernetes, config: {inCluster: true}}}`
	three := values("replicas: 3\npodDisruptionBudget: {minAvailable: 2}\naffinity: {nodeAffinity: {}}\ntopologySpreadConstraints: [{maxSkew: 2}]\n" + shared)
	pod := at(three["Deployment gatehouse"], "spec", "template", "spec")
	for _, tc := range []struct {
		what      string
		got, want any
	}{
		{"replicas", at(three["Deployment gatehouse"], "spec", "replicas"), 3.},
		{"budget", at(three["PodDisruptionBudget gatehouse"], "spec", "minAvailable"), 2.},
		{"affinity in place of ours", at(pod, "affinity"), object{"nodeAffinity": object{}}},
		{"spread in place of ours", at(pod, "topologySpreadConstraints"), []any{object{"maxSkew": 2.}}},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	one := values("replicas: 1\n" + shared)
	for _, without := range []string{"PodDisruptionBudget gatehouse", "DestinationRule gatehouse", "PersistentVolumeClaim gatehouse"} {
		if one[without] != nil {
			t.Errorf("one replica has %s: a budget of one would keep its node from being drained for ever", without)
		}
	}
	volume := values("affinity: {nodeAffinity: {}}")
	if got := at(volume["Deployment gatehouse"], "spec", "template", "spec", "affinity"); !reflect.DeepEqual(got, any(object{"nodeAffinity": object{}})) {
		t.Errorf("with a volume: affinity %v, want the operator's", got)
	}
	if got := at(volume["Deployment gatehouse"], "spec", "strategy"); !reflect.DeepEqual(got, any(object{"type": "Recreate"})) {
		t.Errorf("with a volume: strategy %v, want Recreate", got)
	}
}
