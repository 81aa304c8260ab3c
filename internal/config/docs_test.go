package config

import (
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

type fileMode = fs.FileMode

func configType() reflect.Type { return reflect.TypeFor[Config]() }

// keysOf yields every key that a file may have below path, with the type of its value: list entries as list[],
// keys of the user's own as table.*.
func keysOf(t reflect.Type, path string) iter.Seq2[string, reflect.Type] {
	return func(yield func(string, reflect.Type) bool) {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		own := reflect.PointerTo(t).Implements(reflect.TypeFor[nodeDecoder]()) && t != reflect.TypeFor[Storage]() && t != reflect.TypeFor[Signer]()
		switch {
		case own || t == reflect.TypeFor[Unsupported]() || t.Kind() != reflect.Struct && !isBlockList(t):
			yield(path, t)
		case t.Kind() == reflect.Slice:
			for p, typ := range keysOf(t.Elem(), path+"[]") {
				if !yield(p, typ) {
					return
				}
			}
		default:
			for _, f := range fieldsOf(t) {
				for p, typ := range keysOf(t.Field(f.index).Type, child(path, f.key)) {
					if !yield(p, typ) {
						return
					}
				}
			}
		}
	}
}

func isBlockList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct
}

// typeName is what docs/config.md calls a type.
func typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Unsupported]():
		return "refused"
	case t == reflect.TypeFor[Secret]():
		return "secret"
	case t == reflect.TypeFor[Duration]():
		return "duration"
	case t == reflect.TypeFor[Object]():
		return "block"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "number"
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "table of " + typeName(t.Elem())
	}
	return ""
}

var docRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\| ([^|]*) \\| ([^|]+) \\|$")

// TestDocs holds docs/config.md to the types: every key is there, with its type and default, and no other.
func TestDocs(t *testing.T) {
	text := readDocs(t)
	known := maps.Collect(keysOf(configType(), ""))
	defaults := defaultValues(t)
	seen := map[string]bool{}
	for _, row := range docRow.FindAllStringSubmatch(text, -1) {
		key, typ, def := row[1], row[2], row[3]
		kt, ok := known[key]
		if !ok {
			t.Errorf("%s: is documented and does not exist", key)
			continue
		}
		if seen[key] {
			t.Errorf("%s: is documented twice", key)
		}
		seen[key] = true
		if want := typeName(kt); typ != want {
			t.Errorf("%s: got type %q, want %q", key, typ, want)
		}
		want, ok := defaults[key]
		if got := strings.ReplaceAll(def, "`", ""); ok && got != want || !ok && strings.Contains(def, "`") {
			t.Errorf("%s: got default %q, want %q", key, got, want)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if !seen[key] {
			t.Errorf("%s: is not documented", key)
		}
	}
	if got := strings.Count(text, "\n| `"); got != len(seen) {
		t.Errorf("got %d rows that start with a key, and %d of the form of a row", got, len(seen))
	}
}

func readDocs(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// defaultValues returns what a file gets that says the least, by key. Keys that it must have, and keys without a
// default, are not among them.
func defaultValues(t *testing.T) map[string]string {
	t.Helper()
	c, _ := parseFile(t, "minimal.yaml")
	c.EnablePasswordDB = false // needed by the file
	values := map[string]string{}
	collect(reflect.ValueOf(*c), "", values)
	for _, needed := range []string{"issuer", "storage.type", "storage.config.file", "gateway.hosts"} {
		delete(values, needed)
	}
	return values
}

func collect(v reflect.Value, path string, into map[string]string) {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	switch {
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[Unsupported]() && v.Type() != reflect.TypeFor[Secret]() && v.Type() != reflect.TypeFor[Object]():
		for _, f := range fieldsOf(v.Type()) {
			collect(v.Field(f.index), child(path, f.key), into)
		}
	case v.Kind() == reflect.Bool:
		into[path] = fmt.Sprint(v)
	case v.IsZero():
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		into[path] = strings.Join(v.Interface().([]string), ", ")
	case v.Kind() == reflect.Map:
		var items []string
		for _, key := range v.MapKeys() {
			items = append(items, fmt.Sprintf("%v: %v", key, v.MapIndex(key)))
		}
		slices.Sort(items)
		into[path] = strings.Join(items, ", ")
	default:
		into[path] = fmt.Sprint(v)
	}
}

// Every example of the docs that is a whole file is a valid one, and without a warning on https.
func TestDocsExamples(t *testing.T) {
	opts := testOptions()
	opts.Lookup = func(name string) (string, bool) { return "value-of-" + strings.ToLower(name), true }
	n := 0
	for part := range strings.SplitSeq(readDocs(t), "```yaml\n") {
		example, _, _ := strings.Cut(part, "```")
		if !strings.HasPrefix(example, "issuer:") {
			continue
		}
		n++
		if _, warnings, err := Parse("docs/config.md", []byte(example), opts); err != nil || len(warnings) > 0 && !strings.HasPrefix(example, "issuer: http:") {
			t.Errorf("got %v and %v, want a valid file and no warning on https:\n%s", err, warnings, example)
		}
	}
	if n < 3 {
		t.Errorf("got %d examples, want at least 3", n)
	}
}
