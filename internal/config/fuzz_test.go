package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// FuzzParse: no file makes the reader panic; a refused file has mistakes with a line in the file; a valid file
// reads the same when it is written in another way.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("got %d files, %v", len(files), err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, b := range brokenFiles() {
		if len(b.file) < 1<<16 {
			f.Add([]byte(b.file))
		}
	}
	opts := testOptions()
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := Parse("g.yaml", data, opts)
		if err != nil {
			checkErrors(t, data, c, err)
			return
		}
		again, warningsAgain, err := Parse("g.yaml", data, opts)
		if err != nil || !reflect.DeepEqual(c, again) || !reflect.DeepEqual(warnings, warningsAgain) {
			t.Fatalf("got another answer the second time: %v", err)
		}
		rewritten, ok := rewrite(data)
		if !ok {
			return
		}
		other, _, err := Parse("g.yaml", rewritten, opts)
		if err != nil {
			t.Fatalf("got %v for the same file as JSON:\n%s", err, rewritten)
		}
		if got, want := withoutLines(other), withoutLines(c); !reflect.DeepEqual(got, want) {
			t.Fatalf("got\n%+v\nof JSON, want\n%+v\nas of YAML", got, want)
		}
	})
}

func checkErrors(t *testing.T, data []byte, c *Config, err error) {
	t.Helper()
	var list Errors
	if c != nil || !errors.As(err, &list) || len(list) == 0 {
		t.Fatalf("got %v beside %T %v, want Errors alone", c, err, err)
	}
	last := 1 + bytes.Count(data, []byte("\n"))
	for i, e := range list {
		if e.Line < 0 || e.Line > last || e.Msg == "" || e.File != "g.yaml" {
			t.Errorf("got %+v of a file of %d lines", e, last)
		}
		if i > 0 && e.Line < list[i-1].Line {
			t.Errorf("got line %d after line %d, want them sorted", e.Line, list[i-1].Line)
		}
	}
}

// withoutLines removes what depends on how the file is laid out.
func withoutLines(c *Config) Config {
	out := *c
	out.places = nil
	if c.Gateway != nil {
		g := *c.Gateway
		g.Policy = nil // it holds lines; its rules are compared
		g.Rules = append([]Rule(nil), g.Rules...)
		for i := range g.Rules {
			g.Rules[i].Line = 0
		}
		out.Gateway = &g
	}
	return out
}

// rewrite returns data as JSON, which is YAML too: other quotes, no anchors, one line. It does not use the code
// that it tests.
func rewrite(data []byte) ([]byte, bool) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil || len(doc.Content) != 1 {
		return nil, false
	}
	var b strings.Builder
	if !writeFlow(&b, doc.Content[0]) || b.Len() > maxFile {
		return nil, false
	}
	return []byte(b.String()), true
}

func writeFlow(b *strings.Builder, n *yaml.Node) bool {
	switch n.Kind {
	case yaml.AliasNode:
		return b.Len() <= maxFile && writeFlow(b, n.Alias)
	case yaml.MappingNode, yaml.SequenceNode:
		brackets := "{}"
		if n.Kind == yaml.SequenceNode {
			brackets = "[]"
		}
		b.WriteString(brackets[:1])
		for i, item := range n.Content {
			switch {
			case n.Kind == yaml.MappingNode && i%2 == 1:
				b.WriteString(": ")
			case i > 0:
				b.WriteString(", ")
			}
			if n.Kind == yaml.MappingNode && i%2 == 0 {
				quoteYAML(b, item.Value)
			} else if !writeFlow(b, item) {
				return false
			}
		}
		b.WriteString(brackets[1:])
		return true
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		quoteYAML(b, n.Value)
	case "!!null":
		b.WriteString("null")
	default: // numbers and booleans are plain as they are
		b.WriteString(n.Value)
	}
	return true
}

func quoteYAML(b *strings.Builder, s string) {
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < utf8.RuneSelf && unicode.IsPrint(c):
			b.WriteRune(c)
		default:
			b.WriteString(`\U`)
			hex := strconv.FormatInt(int64(c), 16)
			b.WriteString(strings.Repeat("0", 8-len(hex)) + hex)
		}
	}
	b.WriteByte('"')
}
