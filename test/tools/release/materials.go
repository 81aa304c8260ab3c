package main

import (
	"debug/buildinfo"
	"encoding/json"
	"net/url"
	"strings"
)

// A document is a CycloneDX 1.6 bill of materials (ECMA-424), as much of it as build info can say. It has no time and no
// serial number, which the specification leaves optional: the same binary has the same document.
type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

// A component is the program, or a module in it.
type component struct {
	Ref        string     `json:"bom-ref"`
	Type       string     `json:"type"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	Hashes     []hash     `json:"hashes,omitempty"`
	PURL       string     `json:"purl"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn,omitempty"`
}

// materials lists what info says is in a file of that name and SHA-256: each module, in its order, and Go's own library.
// Scanners find known vulnerabilities by the purl.
func materials(info *buildinfo.BuildInfo, file, sum string) []byte {
	program := component{
		Ref: purl("gatehouse", info.Main.Version), Type: "application", Name: file, Version: info.Main.Version, PURL: purl("gatehouse", info.Main.Version),
		Hashes: []hash{{"SHA-256", sum}},
	}
	for _, s := range info.Settings {
		program.Properties = append(program.Properties, property{"go:build:" + s.Key, s.Value})
	}
	d := document{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{program}}
	std := strings.TrimPrefix(info.GoVersion, "go")
	d.add(component{Name: "std", Version: std})
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		d.add(component{Name: m.Path, Version: m.Version, Properties: []property{{"go:sum", m.Sum}}})
	}
	on := make([]string, len(d.Components))
	for i, c := range d.Components {
		on[i] = c.Ref
	}
	d.Dependencies = []dependency{{program.Ref, on}}
	out, _ := json.MarshalIndent(d, "", "  ") // texts and lists of them: no error is possible
	return append(out, '\n')
}

func (d *document) add(c component) {
	c.Type, c.PURL = "library", purl(c.Name, c.Version)
	c.Ref = c.PURL
	d.Components = append(d.Components, c)
}

// purl is the package URL of a module (ECMA-427, type golang, which is in lower case).
func purl(path, version string) string {
	return "pkg:golang/" + strings.ToLower(path) + "@" + url.QueryEscape(version)
}
