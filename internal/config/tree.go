package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
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
		r.fail(err.line, err.msg)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		r.fail(0, "the file is empty: want at least issuer and storage")
		return nil
	} else if err != nil {
		r.fail(syntax(data, err))
		return nil
	}
	var next yaml.Node
	if err := dec.Decode(&next); err == nil {
		r.fail(next.Line, "a second document starts here: want one; remove it and the line ---")
		return nil
	} else if !errors.Is(err, io.EOF) {
		r.fail(syntax(data, err))
		return nil
	}
	if len(doc.Content) != 1 {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		r.fail(root.Line, "want a block of keys such as issuer: https://auth.example.com/dex, got "+string(kindOf(root)))
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

// syntax turns an error of the YAML parser into ours. Nothing of the file is repeated: it may be a secret.
func syntax(data []byte, err error) (line int, msg string) {
	if line := tabbedLine(data); line > 0 {
		return line, "a tab indents this line: YAML wants spaces"
	}
	m := yamlError.FindStringSubmatch(err.Error())
	if m == nil {
		return 1, "is not YAML: " + err.Error()
	}
	line, msg = 1, "is not YAML: "+m[2]
	if n, err := strconv.Atoi(m[1]); err == nil {
		line = n
	}
	if a := unknownAnchor.FindStringSubmatch(m[2]); a != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+a[1]))
		return 1 + bytes.Count(before, []byte("\n")), "is not YAML: an alias (*) leads nowhere; a text that starts with * needs quotes"
	}
	if strings.HasPrefix(m[2], "did not find expected alphabetic or numeric character") {
		if n, start := lineOf(data, nakedStart, line); n > 0 {
			return n, "a text that starts with " + start + " needs quotes"
		}
		return line, "a text that starts with * or & needs quotes"
	}
	quote := openQuote(data, line)
	switch {
	case m[2] == "found unexpected end of stream" && quote > 0:
		return line, fmt.Sprintf("is not YAML: a quote is not closed; it may be the one at line %d", quote)
	case grammarError.MatchString(m[2]): // the parser counts these lines from 0
		line += min(1, len(m[1]))
		msg += ", here or in what starts here"
		quote = openQuote(data, line)
	}
	if quote > 0 {
		msg += fmt.Sprintf("; a quote at line %d may not be closed", quote)
	}
	return line, msg
}

var (
	yamlError     = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)
	grammarError  = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or)`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
	// nakedStart matches a value that starts as an alias or an anchor does, and has no name.
	nakedStart = regexp.MustCompile(`(?:^|[:,\[{-]) *([*&])(?:[^A-Za-z0-9_-]|$)`)
)

// lineOf returns the line that pattern matches and its first group: the first one from line on, or else the last
// one before, since the parser's count is of no great help. It returns 0 if there is none.
func lineOf(data []byte, pattern *regexp.Regexp, from int) (line int, group string) {
	n := 0
	for text := range bytes.Lines(data) {
		n++
		m := pattern.FindSubmatch(bytes.TrimRight(text, "\r\n"))
		if m == nil {
			continue
		}
		line, group = n, string(m[1])
		if n >= from {
			break
		}
	}
	return line, group
}

// openQuote returns the first line, up to last, on which a value in quotes starts and does not end, or 0.
func openQuote(data []byte, last int) int {
	n := 0
	for line := range bytes.Lines(data) {
		if n++; n > last {
			return 0
		}
		if leavesQuoteOpen(string(bytes.TrimRight(line, "\r\n"))) {
			return n
		}
	}
	return 0
}

func leavesQuoteOpen(line string) bool {
	before := byte(':') // what stands before a value, spaces left out
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '#' && (i == 0 || line[i-1] == ' '):
			return false
		case (c == '"' || c == '\'') && strings.IndexByte(":,[{-", before) >= 0:
			end := endOfQuote(line[i+1:], c)
			if end < 0 {
				return true
			}
			i += 1 + end
		}
		if c != ' ' {
			before = c
		}
	}
	return false
}

// endOfQuote returns where the quote that is open before text ends, or -1.
func endOfQuote(text string, quote byte) int {
	for i := 0; i < len(text); i++ {
		switch {
		case quote == '"' && text[i] == '\\', quote == '\'' && strings.HasPrefix(text[i:], "''"):
			i++
		case text[i] == quote:
			return i
		}
	}
	return -1
}

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
			w.keyError(key, path, "a key must be plain text, got "+string(kindOf(key)))
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
	w.add(path, mistake{Error: Error{File: w.file, Line: key.Line, Path: path, Msg: msg}})
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
func kindOf(n *yaml.Node) ours {
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
