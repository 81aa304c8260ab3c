package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	maxFile  = 1 << 20 // bytes
	maxDepth = 32      // of blocks within blocks
	maxKey   = 128     // bytes
	maxTree  = 8 << 20 // bytes of all paths and nodeCost for each, aliases written out: 10,000 rules need half of it
	nodeCost = 16
)

// document parses data, which must hold one YAML document, and checks what holds for any key: encoding, doubles,
// depth, aliases and tags. It returns nil if there is nothing to decode.
func (r *report) document(data []byte) *yaml.Node {
	r.last = 1 + bytes.Count(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	if err := checkText(data); err != nil {
		r.errs = append(r.errs, Error{File: r.file, Line: err.line, Msg: err.msg})
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		r.errs = append(r.errs, Error{File: r.file, Msg: "the file is empty: want at least issuer and storage"})
		return nil
	} else if err != nil {
		r.errs = append(r.errs, r.syntax(data, err))
		return nil
	}
	var next yaml.Node
	if err := dec.Decode(&next); err == nil {
		r.errs = append(r.errs, Error{File: r.file, Line: next.Line, Msg: "a second document starts here: want one; remove it and the line ---"})
		return nil
	} else if !errors.Is(err, io.EOF) {
		r.errs = append(r.errs, r.syntax(data, err))
		return nil
	}
	if len(doc.Content) != 1 {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		r.errs = append(r.errs, Error{File: r.file, Line: root.Line, Msg: "want a block of keys such as issuer: https://auth.example.com/dex, got " + kindOf(root)})
		return nil
	}
	w := walker{report: r, budget: maxTree}
	if !w.walk(root, "", 0) {
		return nil
	}
	return root
}

type textError struct {
	line int
	msg  string
}

func checkText(data []byte) *textError {
	if len(data) > maxFile {
		return &textError{0, fmt.Sprintf("the file has %d bytes: want at most %d", len(data), maxFile)}
	}
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && size == 1 {
			return &textError{1 + bytes.Count(data[:i], []byte("\n")), "is not UTF-8: save the file with that encoding"}
		}
		if c == 0 {
			return &textError{1 + bytes.Count(data[:i], []byte("\n")), "holds a NUL byte: want text in UTF-8"}
		}
		i += size
	}
	return nil
}

// syntax turns an error of the YAML parser into ours.
func (r *report) syntax(data []byte, err error) Error {
	if line := tabbedLine(data); line > 0 {
		return Error{File: r.file, Line: line, Msg: "a tab indents this line: YAML wants spaces"}
	}
	e := Error{File: r.file, Line: 1, Msg: "is not YAML: " + err.Error()}
	m := yamlError.FindStringSubmatch(err.Error())
	if m == nil {
		return e
	}
	e.Msg = "is not YAML: " + m[2]
	if n, err := strconv.Atoi(m[1]); err == nil {
		e.Line = n
	}
	if grammarError.MatchString(m[2]) { // the parser counts these lines from 0
		e.Line += min(1, len(m[1]))
		e.Msg += ", here or in what starts here"
	}
	if a := unknownAnchor.FindStringSubmatch(m[2]); a != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+a[1]))
		e.Line = 1 + bytes.Count(before, []byte("\n"))
		e.Msg = "is not YAML: an alias (*) leads nowhere; a text that starts with * needs quotes" // a[1] may be a secret
	}
	return e
}

var (
	yamlError     = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)
	grammarError  = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or)`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

func tabbedLine(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]; bytes.IndexByte(indent, '\t') >= 0 {
			return n
		}
	}
	return 0
}

// A walker visits every node once for each use, and notes where it stands.
type walker struct {
	*report
	budget int // bounds what aliases can make of a small file
}

// walk reports whether the tree is small enough to go on with.
func (w *walker) walk(n *yaml.Node, path string, depth int) bool {
	if w.budget -= len(path) + nodeCost; w.budget < 0 {
		w.errorf(path, "the file is too large once its aliases are written out: use fewer of them")
		return false
	}
	if depth > maxDepth {
		w.errorf(path, "is nested more than %d levels deep: take some out", maxDepth)
		return false
	}
	if n.Kind == yaml.AliasNode {
		return w.walk(n.Alias, path, depth+1)
	}
	if n.Style&yaml.TaggedStyle != 0 && n.Tag != "!!str" {
		w.errorf(path, "has a tag (!): remove it; a text that starts with ! needs quotes") // the tag may be a secret
		n.Tag, n.Style = "", n.Style&^yaml.TaggedStyle                                     // read on as if it were not there
	}
	switch n.Kind {
	case yaml.MappingNode:
		return w.mapping(n, path, depth)
	case yaml.SequenceNode:
		for i, item := range n.Content {
			p := element(path, i)
			w.nodes[p] = position{line: item.Line, null: isNull(deref(item)), name: nameOf(deref(item))}
			if !w.walk(item, p, depth+1) {
				return false
			}
		}
	}
	return true
}

func (w *walker) mapping(n *yaml.Node, path string, depth int) bool {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode:
			w.keyError(key, path, "a key must be plain text, got "+kindOf(key))
			continue
		case key.ShortTag() == "!!merge":
			w.keyError(key, path, "merge keys (<<) are not supported: write the keys out")
			continue
		case len(key.Value) > maxKey:
			w.keyError(key, path, fmt.Sprintf("a key has %d bytes: want at most %d", len(key.Value), maxKey))
			continue
		}
		p := child(path, key.Value)
		if first, dup := seen[key.Value]; dup {
			w.keyError(key, p, fmt.Sprintf("is here twice, first at line %d: remove one", first))
			continue
		}
		seen[key.Value] = key.Line
		w.nodes[p] = position{line: key.Line, null: isNull(deref(value))}
		if !w.walk(value, p, depth+1) {
			return false
		}
	}
	return true
}

func (w *walker) keyError(key *yaml.Node, path, msg string) {
	w.add(path, Error{File: w.file, Line: key.Line, Path: path, Msg: msg})
}

// maxName is the length in bytes of the longest name that a message repeats.
const maxName = 64

// nameOf returns what people call a list entry by.
func nameOf(n *yaml.Node) string {
	for _, key := range []string{"id", "name", "email"} {
		if v := lookup(n, key); v != nil && v.Kind == yaml.ScalarNode && v.Value != "" && len(v.Value) <= maxName {
			return v.Value
		}
	}
	return ""
}

// lookup returns the value of a key of a block, or nil.
func lookup(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Kind == yaml.ScalarNode && n.Content[i].Value == key {
			return deref(n.Content[i+1])
		}
	}
	return nil
}

// deref follows aliases a bounded number of times: an alias may lead to itself.
func deref(n *yaml.Node) *yaml.Node {
	for i := 0; n.Kind == yaml.AliasNode && i < maxDepth; i++ {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// isText reports whether YAML takes n for text. A date is text to us, as it is to Dex.
func isText(n *yaml.Node) bool {
	tag := n.ShortTag()
	return n.Kind == yaml.ScalarNode && (tag == "!!str" || tag == "!!timestamp")
}

// kindOf names what a node is, never what it says: it may be a secret.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a block of keys"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return "text"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	case "!!null":
		return "nothing"
	default:
		return "a value of another type"
	}
}
