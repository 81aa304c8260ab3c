package deploy

import (
	"bytes"
	"strconv"
	"testing"

	"go.yaml.in/yaml/v3"

	"gatehouse/test/peers"
)

// TestCountsOfTheInstall counts what the recommended install applies to a cluster, and holds docs/performance.md to it.
func TestCountsOfTheInstall(t *testing.T) {
	list := overlay(t)
	var text bytes.Buffer
	pods := 0
	for i, o := range list {
		if i > 0 {
			text.WriteString("---\n")
		}
		e := yaml.NewEncoder(&text)
		e.SetIndent(2)
		if err := e.Encode(map[string]any(o)); err != nil {
			t.Fatal(err)
		}
		switch kind := o.text("kind"); kind {
		case "Deployment", "StatefulSet":
			n, ok := o.at("spec.replicas").(int)
			if !ok {
				t.Fatalf("%s: replicas %v, want a number", name(o), o.at("spec.replicas"))
			}
			pods += n
		case "DaemonSet", "Job", "CronJob", "Pod", "ReplicaSet":
			t.Errorf("%s: the test does not know how many pods it has", name(o))
		}
	}
	for _, c := range []struct {
		what string
		got  int
	}{
		{"objects to apply", len(list)},
		{"lines of YAML", bytes.Count(text.Bytes(), []byte("\n"))},
		{"pods", pods},
	} {
		row := peers.Counts(t, c.what)
		t.Logf("%-50s %3d (Kubeflow's Dex and oauth2-proxy: %s)", c.what, c.got, row.Theirs)
		if row.Ours != strconv.Itoa(c.got) {
			t.Errorf("%s: counted %d, docs/performance.md says %s", c.what, c.got, row.Ours)
		}
		if theirs := row.Number(t); c.got >= theirs {
			t.Errorf("%s: %d, want fewer than the other's %d", c.what, c.got, theirs)
		}
	}
}
