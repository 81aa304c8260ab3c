package ldap

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A fieldError is a mistake in a configuration.
type fieldError struct{ field, text string }

func (e *fieldError) Error() string { return e.text }

// Field is the key that is wrong, such as userSearch.baseDN.
func (e *fieldError) Field() string { return e.field }

// mistakes gathers all of a configuration.
type mistakes struct {
	errs []error
	at   map[string]bool // the keys that are wrong already: nothing more is said of them
}

// add says what is wrong with a key, and how to put it right.
func (m *mistakes) add(field, format string, args ...any) {
	if m.at[field] {
		return
	}
	m.at[field] = true
	m.errs = append(m.errs, &fieldError{field, field + ": " + fmt.Sprintf(format, args...)})
}

// addUnless is add, but where something else that is wrong already says it.
func (m *mistakes) addUnless(said bool, field, format string, args ...any) {
	if said {
		m.at[field] = true
		return
	}
	m.add(field, format, args...)
}

func (m *mistakes) err() error { return errors.Join(m.errs...) }

// A duration is written as text with a unit, such as 10s.
type duration time.Duration

// usernames is one attribute or a list of them.
type usernames []string

// decode reads a configuration strictly: keys by their exact letters, values of their own type. What is wrong is left out of the result.
func decode(raw []byte, m *mistakes) *config {
	c := &config{}
	if len(raw) == 0 || string(raw) == "null" {
		return c
	}
	var block any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&block); err != nil {
		m.errs = append(m.errs, fmt.Errorf("config: %w", err))
		return c
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		m.errs = append(m.errs, errors.New("config: there is more after its end: want one block of keys"))
	}
	m.set(reflect.ValueOf(c).Elem(), block, "")
	return c
}

// set puts a JSON value where it belongs.
func (m *mistakes) set(to reflect.Value, v any, path string) {
	if v == nil { // as if the key were not there
		return
	}
	switch p := to.Addr().Interface().(type) {
	case *duration:
		m.setDuration(p, v, path)
		return
	case *usernames:
		if s, ok := v.(string); ok {
			if s != "" {
				*p = usernames{s}
			}
			return
		}
	case *[]byte:
		m.setBytes(p, v, path)
		return
	}
	switch want := to.Kind(); v := v.(type) {
	case map[string]any:
		switch want {
		case reflect.Pointer:
			to.Set(reflect.New(to.Type().Elem()))
			m.block(to.Elem(), v, path)
			return
		case reflect.Struct:
			m.block(to, v, path)
			return
		}
	case []any:
		if want == reflect.Slice {
			m.list(to, v, path)
			return
		}
	default:
		if m.scalar(to, v, path) {
			return
		}
	}
	m.wrongType(to.Type(), v, path)
}

func (m *mistakes) scalar(to reflect.Value, v any, path string) bool {
	if to.Kind() == reflect.Pointer { // not set is something else than its zero
		p := reflect.New(to.Type().Elem())
		if !m.scalar(p.Elem(), v, path) {
			return false
		}
		to.Set(p)
		return true
	}
	switch v := v.(type) {
	case string:
		if to.Kind() == reflect.String {
			to.SetString(v)
			return true
		}
	case bool:
		if to.Kind() == reflect.Bool {
			to.SetBool(v)
			return true
		}
	case json.Number:
		if to.Kind() != reflect.Int {
			return false
		}
		n, err := strconv.ParseInt(v.String(), 10, 64)
		if err != nil || n < math.MinInt32 || n > math.MaxInt32 {
			m.add(path, "want a whole number of a sensible size")
			return true
		}
		to.SetInt(n)
		return true
	}
	return false
}

func (m *mistakes) list(to reflect.Value, list []any, path string) {
	out := reflect.MakeSlice(to.Type(), len(list), len(list))
	for i, item := range list {
		at := path + "[" + strconv.Itoa(i) + "]"
		if item == nil {
			m.add(at, "is empty: remove it")
		}
		m.set(out.Index(i), item, at)
	}
	to.Set(out)
}

func (m *mistakes) block(to reflect.Value, block map[string]any, path string) {
	fields := keys(to.Type())
	for _, key := range slices.Sorted(maps.Keys(block)) {
		at := join(path, key)
		i, ok := fields[key]
		if !ok {
			m.unknown(at, key, slices.Sorted(maps.Keys(fields)))
			continue
		}
		m.set(to.Field(i), block[key], at)
	}
}

func (m *mistakes) unknown(path, key string, known []string) {
	fix := "want one of " + strings.Join(known, ", ")
	if name, _, ok := strings.Cut(key, ":"); ok { // what follows may be a secret
		path = strings.TrimSuffix(path, key) + name
		key, fix = name+":…", "a space is missing after the colon"
	} else if key == "port" {
		fix = "write it in host, such as ldap.example.com:636"
	} else if near := nearest(key, known); near != "" {
		fix = fmt.Sprintf("did you mean %q?", near)
		m.at[strings.TrimSuffix(path, key)+near] = true // is not missing, but misspelt
	} else if homes := places(reflect.TypeFor[config](), key, ""); len(homes) > 0 {
		fix = "it belongs in " + strings.Join(homes, " or ")
	}
	m.at[path] = true
	m.errs = append(m.errs, &fieldError{path, fmt.Sprintf("unknown field %q: %s", key, fix)})
}

func (m *mistakes) setDuration(to *duration, v any, path string) {
	s, ok := v.(string)
	d, err := time.ParseDuration(s)
	if !ok || err != nil || d <= 0 {
		m.add(path, "want a time with its unit in quotes, such as \"10s\"")
		return
	}
	*to = duration(d)
}

func (m *mistakes) setBytes(to *[]byte, v any, path string) {
	s, ok := v.(string)
	b, err := base64.StdEncoding.DecodeString(s)
	if !ok || err != nil {
		m.add(path, "is not base64: encode the content of the file with base64 -w0")
		return
	}
	*to = b
}

func (m *mistakes) wrongType(want reflect.Type, got any, path string) {
	w, g := nameOf(want), kindOf(got)
	fix := "write " + w
	switch {
	case w == "text" && (g == "a number" || g == "true or false"):
		fix = "put it in quotes"
	case w == "true or false" && g == "text":
		fix = "write true or false without quotes"
	case w == "a list":
		fix = "write one entry a line with - before it, or [a, b]"
	case w == "a block of keys":
		fix = "write its keys below it, each on a line of its own and indented"
	}
	if path == "" {
		m.errs = append(m.errs, fmt.Errorf("config: got %s, want %s", g, w))
		return
	}
	m.add(path, "got %s, want %s: %s", g, w, fix)
}

func nameOf(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct:
		return "a block of keys"
	}
	return "text"
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "text"
	case bool:
		return "true or false"
	case json.Number:
		return "a number"
	case []any:
		return "a list"
	}
	return "a block of keys"
}

// keys returns the index of each field of a block by its key.
func keys(t reflect.Type) map[string]int {
	out := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("json"); key != "" {
			out[key] = i
		}
	}
	return out
}

// places returns the blocks that know a key.
func places(t reflect.Type, key, path string) (out []string) {
	for name, i := range keys(t) {
		if name == key {
			out = append(out, cmp.Or(path, "config, beside host"))
		}
		f := t.Field(i).Type
		if f.Kind() == reflect.Slice || f.Kind() == reflect.Pointer {
			f = f.Elem()
		}
		if f.Kind() == reflect.Struct {
			out = append(out, places(f, key, join(path, name))...)
		}
	}
	slices.Sort(out)
	return out
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest returns the known word that a person most likely meant, or "".
func nearest(word string, known []string) string {
	best, limit := "", min(2, len(word)/2)
	for _, k := range known {
		if strings.EqualFold(k, word) {
			return k
		}
		if n := distance(word, k, limit); n <= limit {
			best, limit = k, n-1
		}
	}
	return best
}

// distance is the number of bytes to add, remove, change or swap with their neighbour to get from a to b (optimal string alignment), or
// more than limit if it is that.
func distance(a, b string, limit int) int {
	if len(a) > 64 || max(len(a)-len(b), len(b)-len(a)) > limit {
		return limit + 1
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
