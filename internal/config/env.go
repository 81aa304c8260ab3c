package config

import (
	"encoding/json"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

var (
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// bare is a value that is nothing but a variable without braces: Dex takes it as it stands in most places, and
	// nobody means it.
	bare = regexp.MustCompile(`^\$[A-Z_][A-Z0-9_]*$`)
	// dexExpands matches the paths of values in which Dex replaces $NAME as well as ${NAME} (os.ExpandEnv).
	dexExpands = regexp.MustCompile(`^(storage|signer|connectors\[[0-9]+\])\.config\.`)
	// secretKey matches the keys of connector blocks whose values no message may show.
	secretKey = regexp.MustCompile(`(?i)secret|passw|bindpw|token|key|assertion`)
)

// expand replaces each ${NAME} of text by the value of that environment variable. The result is text and nothing
// else: it is neither read as YAML nor expanded again. No message repeats text, which may be a secret.
func (d *decoder) expand(text, path string) (string, bool) {
	if !strings.Contains(text, "$") {
		return text, true
	}
	if bare.MatchString(text) {
		d.errorf(path, "a variable without braces is not replaced: write ${NAME}; put a text that starts with $ into a variable")
		return "", false
	}
	var b strings.Builder
	ok, plain := true, true
	for {
		before, after, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			break
		}
		if name, braced := strings.CutPrefix(after, "{"); braced {
			rest, good := d.variable(&b, name, path)
			text, ok = rest, ok && good
			continue
		}
		text, plain = after, plain && !dexReplaces(after)
		b.WriteByte('$')
	}
	if !plain && dexExpands.MatchString(path) {
		d.errorf(path, "holds a $ that Dex would replace or remove: write ${NAME} for a variable; put a text that holds a $ into a variable")
		return "", false
	}
	return b.String(), ok
}

// variable writes the value of the variable whose name starts text and returns what follows its closing brace.
func (d *decoder) variable(b *strings.Builder, text, path string) (rest string, ok bool) {
	name, rest, closed := strings.Cut(text, "}")
	if !closed || !variable.MatchString(name) {
		d.errorf(path, "${ starts the name of an environment variable: want ${NAME} of letters, digits and _; put a text that holds ${ into a variable")
		return rest, false
	}
	value, set := d.env(name)
	switch {
	case !set:
		d.errorf(path, "the environment variable %s is not set: set it, or write the value here", name)
		return rest, false
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		d.errorf(path, "the environment variable %s does not hold UTF-8 text", name)
		return rest, false
	}
	d.hide.add(value, "${"+name+"}")
	b.WriteString(value)
	return rest, true
}

// dexReplaces reports whether Dex would replace a dollar followed by text (os.ExpandEnv). The value would not be
// what it was under Dex.
func dexReplaces(text string) bool {
	if text == "" {
		return false
	}
	c := text[0]
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("*#$@!?-", c) >= 0
}

// fromEnv returns the value of the variable that a key of Dex such as secretEnv names.
func (d *decoder) fromEnv(name, path string) string {
	if name == "" {
		return ""
	}
	value, set := d.env(name)
	if !set || value == "" {
		d.errorf(path, "the environment variable %s is not set: set it, or remove the key", name)
		return ""
	}
	d.hide.add(value, "${"+name+"}")
	return value
}

// A jsonWriter writes nodes as JSON, variables replaced, and gathers what is secret by the name of its key.
type jsonWriter struct {
	*decoder
	strings.Builder
	secrets *hidden
}

// write writes n. All of it is secret if a key above it is.
func (w *jsonWriter) write(n *yaml.Node, path string, secret bool) {
	n = deref(n)
	switch n.Kind {
	case yaml.MappingNode:
		w.WriteByte('{')
		sep := ""
		for key, value := range pairs(n) {
			w.WriteString(sep)
			w.key(key, secret)
			w.write(value, child(path, key), secret || secretKey.MatchString(key) && key != "keytabPath") // which is the path alone
			sep = ","
		}
		w.WriteByte('}')
	case yaml.SequenceNode:
		w.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				w.WriteByte(',')
			}
			w.write(item, element(path, i), secret)
		}
		w.WriteByte(']')
	default:
		w.scalar(n, path, secret)
	}
}

func (w *jsonWriter) key(key string, secret bool) {
	w.quote(key)
	w.WriteByte(':')
	if _, text, ok := strings.Cut(key, ":"); ok { // a space was forgotten: the text may be a secret
		w.secrets.add(text, redacted)
	}
	if secret {
		w.secrets.add(key, redacted)
	}
}

func (w *jsonWriter) scalar(n *yaml.Node, path string, secret bool) {
	text, tag := n.Value, n.ShortTag()
	number, isNumber := jsonNumber(n)
	switch {
	case tag == "!!null":
		w.WriteString("null")
	case tag == "!!bool":
		w.WriteString(strconv.FormatBool(strings.EqualFold(n.Value, "true")))
	case isNumber:
		w.WriteString(number)
	case tag == "!!float" || tag == "!!int":
		w.errorf(path, "want a number that is finite and fits into 64 bits")
	case isText(n):
		text, _ = w.expand(n.Value, path)
		w.quote(text)
	default:
		w.errorf(path, "want text, a number, or true or false, got %s", kindOf(n))
	}
	if secret && tag != "!!null" && tag != "!!bool" && text != "true" && text != "false" { // in quotes by mistake: fallbackToPassword
		w.secrets.add(text, redacted)
	}
}

func jsonNumber(n *yaml.Node) (string, bool) {
	var signed int64
	var unsigned uint64
	var float float64
	switch tag := n.ShortTag(); {
	case tag == "!!int" && n.Decode(&signed) == nil:
		return strconv.FormatInt(signed, 10), true
	case tag == "!!int" && n.Decode(&unsigned) == nil:
		return strconv.FormatUint(unsigned, 10), true
	case tag == "!!float" && n.Decode(&float) == nil && !math.IsInf(float, 0) && !math.IsNaN(float):
		return strconv.FormatFloat(float, 'g', -1, 64), true
	}
	return "", false
}

func (w *jsonWriter) quote(s string) {
	quoted, _ := json.Marshal(s) // no error is possible for a string
	w.Write(quoted)
}
