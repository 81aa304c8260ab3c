// Package deploy holds what is shipped for installing Gatehouse to its promises: the manifests, the image, the Envoy
// config and the documents that tell how to use them.
package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gatehouse/test/peers"
)

// A kustomization is all that the overlay istio uses of kustomize: decoding is strict, so whatever else it came to use
// would fail the tests rather than be missed by them. The package render has kustomize itself, and every overlay.
type kustomization struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Namespace  string   `yaml:"namespace"`
	Resources  []string `yaml:"resources"`
	ConfigMaps []struct {
		Name  string   `yaml:"name"`
		Files []string `yaml:"files"`
	} `yaml:"configMapGenerator"`
	Options struct {
		SameName bool           `yaml:"disableNameSuffixHash"`
		Labels   map[string]any `yaml:"labels"`
	} `yaml:"generatorOptions"`
	Images []struct {
		Name    string `yaml:"name"`
		NewName string `yaml:"newName"`
		NewTag  string `yaml:"newTag"`
	} `yaml:"images"`
}

// An object is one Kubernetes object.
type object map[string]any

// objects returns what `kubectl kustomize dir` prints: the resources of dir and of the folders that it lists, with
// namespace and images set.
func objects(t *testing.T, dir string) []object {
	t.Helper()
	var k kustomization
	d := yaml.NewDecoder(bytes.NewReader(read(t, filepath.Join(dir, "kustomization.yaml"))))
	d.KnownFields(true)
	if err := d.Decode(&k); err != nil {
		t.Fatalf("%s/kustomization.yaml: %v", dir, err)
	}
	if k.Kind != "Kustomization" || k.APIVersion != "kustomize.config.k8s.io/v1beta1" {
		t.Fatalf("%s/kustomization.yaml: got %s %s", dir, k.APIVersion, k.Kind)
	}
	var list []object
	for _, name := range k.Resources {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			list = append(list, objects(t, path)...)
			continue
		}
		list = append(list, documents(t, path)...)
	}
	for _, m := range k.ConfigMaps {
		if !k.Options.SameName {
			t.Fatalf("%s/kustomization.yaml: ConfigMap %s changes its name with its content, so the pod would have to be restarted", dir, m.Name)
		}
		data := map[string]any{}
		for _, name := range m.Files {
			data[name] = string(read(t, filepath.Join(dir, name)))
		}
		list = append(list, object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": m.Name, "labels": k.Options.Labels}, "data": data})
	}
	for _, o := range list {
		if k.Namespace != "" {
			o["metadata"].(map[string]any)["namespace"] = k.Namespace
		}
		for _, image := range k.Images {
			setImage(o, image.Name, image.NewName+":"+image.NewTag)
		}
	}
	return list
}

func documents(t *testing.T, path string) []object {
	t.Helper()
	var list []object
	d := yaml.NewDecoder(bytes.NewReader(read(t, path)))
	for {
		var o map[string]any // not object: the decoder would make every inner map one too
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		list = append(list, o)
	}
}

func setImage(o object, name, image string) {
	containers, _ := o.at("spec.template.spec.containers").([]any)
	for _, c := range containers {
		if c := c.(map[string]any); c["image"] == name {
			c["image"] = image
		}
	}
}

// at returns what is at a dotted path such as spec.ports.0.name, or nil. A ~1 in the path stands for a dot.
func (o object) at(path string) any {
	var v any = map[string]any(o)
	for key := range strings.SplitSeq(path, ".") {
		key = strings.ReplaceAll(key, "~1", ".")
		switch node := v.(type) {
		case map[string]any:
			v = node[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(node) {
				return nil
			}
			v = node[i]
		default:
			return nil
		}
	}
	return v
}

func (o object) text(path string) string {
	s, _ := o.at(path).(string)
	return s
}

// find returns the one object of a kind.
func find(t *testing.T, list []object, kind string) object {
	t.Helper()
	var found []object
	for _, o := range list {
		if o["kind"] == kind {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("got %d objects of kind %s, want 1", len(found), kind)
	}
	return found[0]
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path) // #nosec G304 -- a path of this source tree
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parse reads YAML as Kubernetes does for the part that we use of it.
func parse(t *testing.T, text string) object {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return o
}

func repo(t *testing.T, elem ...string) string {
	t.Helper()
	return filepath.Join(append([]string{peers.Root(t)}, elem...)...)
}

func name(o object) string { return fmt.Sprintf("%v %v", o["kind"], o.at("metadata.name")) }
