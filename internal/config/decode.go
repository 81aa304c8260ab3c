package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/nearest"
)

// A decoder writes YAML nodes into structs by the yaml tags of their fields. It converts nothing silently, knows
// every key that there is, and goes on after a mistake.
type decoder struct {
	*report
	env func(string) (string, bool)
}

// A nodeDecoder is a type with a form of its own in the file. path leads to n.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node, path string)
}

// A defaulter is a block that has defaults where the file has the block at all.
type defaulter interface{ setDefaults() }

// decode writes n into v, which must be settable. Nothing (null) leaves v as it is.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, path string) {
	n = deref(n)
	if own, ok := v.Addr().Interface().(nodeDecoder); ok {
		own.decodeNode(d, n, path)
		return
	}
	if isNull(n) {
		return
	}
	switch v.Kind() {
	case reflect.String:
		if text, ok := d.text(n, path); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		d.boolean(n, v, path)
	case reflect.Int:
		d.integer(n, v, path)
	case reflect.Pointer:
		target := reflect.New(v.Type().Elem())
		if block, ok := target.Interface().(defaulter); ok {
			block.setDefaults()
		}
		d.decode(n, target.Elem(), path)
		v.Set(target)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.Map:
		d.table(n, v, path)
	case reflect.Struct:
		d.block(n, v, path)
	default:
		panic("config: no way to decode " + v.Type().String()) // a mistake in the types, found by any test
	}
}

// text returns the text of n with its variables replaced.
func (d *decoder) text(n *yaml.Node, path string) (string, bool) {
	switch {
	case isNull(n):
		return "", false
	case isText(n):
		return d.expand(n.Value, path)
	case n.Kind == yaml.ScalarNode:
		d.errorf(path, "want text, got %s: put it in quotes", kindOf(n))
	default:
		d.errorf(path, "want text, got %s", kindOf(n))
	}
	return "", false
}

func (d *decoder) boolean(n *yaml.Node, v reflect.Value, path string) {
	var b bool
	if n.ShortTag() != "!!bool" || n.Decode(&b) != nil {
		d.errorf(path, "want true or false, got %s%s", kindOf(n), whyText(n))
		return
	}
	v.SetBool(b)
}

func (d *decoder) integer(n *yaml.Node, v reflect.Value, path string) {
	var i int64
	if n.ShortTag() != "!!int" || n.Decode(&i) != nil || v.OverflowInt(i) {
		d.errorf(path, "want a whole number, got %s%s", kindOf(n), whyText(n))
		return
	}
	v.SetInt(i)
}

// whyText says why what looks like a value of another type is text.
func whyText(n *yaml.Node) ours {
	switch {
	case !isText(n):
		return ""
	case strings.Contains(n.Value, "${"):
		return ": a variable is always text, so write the value itself"
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		return ": remove the quotes"
	default:
		return ""
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.errorf(path, "want a list, got %s: write one entry a line with - before it, or [a, b]", kindOf(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		p := element(path, i)
		if isNull(deref(item)) {
			d.errorf(p, "is empty: remove the entry or fill it")
			continue
		}
		d.decode(item, out.Index(i), p)
	}
	v.Set(out)
}

// table decodes a map whose keys are the user's own.
func (d *decoder) table(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.errorf(path, "want a block of keys, got %s", kindOf(n))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	for key, value := range pairs(n) {
		p := child(path, key)
		if isNull(deref(value)) {
			d.errorf(p, "is empty: remove the key or give it a value")
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		d.decode(value, item, p)
		out.SetMapIndex(reflect.ValueOf(key), item)
	}
	v.Set(out)
}

// block decodes a struct.
func (d *decoder) block(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.errorf(path, "want a block of keys, got %s", kindOf(n))
		return
	}
	fields := fieldsOf(v.Type())
	for key, value := range pairs(n) {
		p := child(path, key)
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			d.unknown(p, key, fields, path == "")
			continue
		}
		if f := fields[i]; f.fix == "" {
			d.decode(value, v.Field(f.index), p)
		} else if !isEmpty(deref(value)) {
			d.errorf(p, "%s", ours(f.fix))
		}
	}
}

// pairs yields the keys and values of a block. Keys that the walk has refused are left out.
func pairs(n *yaml.Node) func(yield func(string, *yaml.Node) bool) {
	return func(yield func(string, *yaml.Node) bool) {
		seen := make(map[string]bool, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" || len(key.Value) > maxKey || seen[key.Value] {
				continue
			}
			seen[key.Value] = true
			if !yield(key.Value, n.Content[i+1]) {
				return
			}
		}
	}
}

// isEmpty reports whether n asks for nothing.
func isEmpty(n *yaml.Node) bool {
	return isNull(n) || (n.Kind == yaml.ScalarNode && n.Value == "") || (n.Kind != yaml.ScalarNode && len(n.Content) == 0)
}

// A field is one key of a block.
type field struct {
	key   string
	index int
	fix   string // of an Unsupported key
}

func fieldsOf(t reflect.Type) []field {
	fields := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		if key := f.Tag.Get("yaml"); key != "" && key != "-" {
			fields = append(fields, field{key: key, index: i, fix: f.Tag.Get("fix")})
		}
	}
	return fields
}

// unknown reports a key that is not among fields. path leads to it.
func (d *decoder) unknown(path, key string, fields []field, top bool) {
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.key
	}
	block := strings.TrimSuffix(strings.TrimSuffix(path, key), ".")
	fix := ""
	if name, _, ok := strings.Cut(key, ":"); ok {
		key, fix = name+":…", "a space is missing after the colon" // what follows may be a secret
	} else if near := nearest.Word(key, known); near != "" {
		fix = "did you mean " + strconv.Quote(near) + "?"
		meant := child(block, near)
		d.wrong[meant], d.below[meant] = true, true // that it is missing is not worth another mistake
	} else if top && slices.ContainsFunc(fieldsOf(reflect.TypeFor[Gateway]()), func(f field) bool { return f.key == key }) {
		fix = "it belongs into the gateway block"
	} else if len(known) > 12 {
		fix = "remove it, or see docs/config.md for the keys there are"
	} else {
		fix = "want one of " + strings.Join(known, ", ")
	}
	const format = "unknown field %q: %s"
	m := d.at(path, fmt.Sprintf(format, key, fix), format, []any{key, ours(fix)})
	m.Path = d.label(block) // the line is that of the key
	d.add(block, m)
}

// settable returns the struct that block points to, for a type that decodes itself and then goes on as a block.
func settable[T any](block *T) reflect.Value { return reflect.ValueOf(block).Elem() }
