package config

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const redacted = "[redacted]"

// A Secret is text that is never printed: every format, encoding and log shows [redacted]. The text is behind a
// pointer, so that a print of a struct that holds a Secret in an unexported field shows an address at most.
// The zero value is no secret at all.
type Secret struct{ text *string }

// NewSecret returns a Secret of text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text. Call it where the secret is used, and nowhere else.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no text.
func (s Secret) IsZero() bool { return s.text == nil }

// String returns [redacted].
func (Secret) String() string { return redacted }

// GoString returns [redacted].
func (Secret) GoString() string { return redacted }

// Format prints [redacted] whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON returns "[redacted]".
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns [redacted].
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalYAML returns [redacted].
func (Secret) MarshalYAML() (any, error) { return redacted, nil }

// LogValue returns [redacted].
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

func (s *Secret) decodeNode(d *decoder, n *yaml.Node, path string) {
	text, ok := d.text(n, path)
	if !ok {
		return
	}
	d.hide.add(text, redacted)
	*s = NewSecret(text)
}

// A Duration is written as Go writes it: 90s, 1h30m, 168h. There is no unit above the hour, as in Dex.
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns the shortest form that a file could hold: 12h, not 12h0m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText returns the form of String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Duration) decodeNode(dec *decoder, n *yaml.Node, path string) {
	const want ours = "want a duration with a unit, such as 30s, 15m or 12h"
	if isNull(n) {
		return
	}
	if n.Kind != yaml.ScalarNode || !isText(n) {
		dec.errorf(path, "%s, got %s", want, kindOf(n))
		return
	}
	text, ok := dec.text(n, path)
	if !ok || text == "" { // Dex takes an empty duration for one that is not there
		return
	}
	v, err := time.ParseDuration(text)
	switch {
	case err != nil && strings.HasSuffix(text, "d"):
		dec.errorf(path, "%s, got %q: there is no unit for days, write 24h for each", want, text)
	case err != nil:
		dec.errorf(path, "%s, got %q", want, text)
	case v < 0:
		dec.errorf(path, "%s, got %q: it must not be negative", want, text)
	default:
		*d = Duration(v)
	}
}

// A TLSVersion is "1.2" or "1.3". Dex's own examples write it without quotes, so a number will do.
type TLSVersion string

func (v *TLSVersion) decodeNode(d *decoder, n *yaml.Node, path string) {
	if isNull(n) {
		return
	}
	text := n.Value
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!float" {
		var ok bool
		if text, ok = d.text(n, path); !ok {
			return
		}
	}
	if text != "" && text != "1.2" && text != "1.3" {
		d.errorf(path, `want "1.2" or "1.3", got %q`, text)
		return
	}
	*v = TLSVersion(text)
}

// An Object is a block whose keys belong to somebody else, such as a connector: its variables are replaced and
// its secrets are as hidden as a Secret.
type Object struct {
	json *string
	hide hidden // its secrets
}

// JSON returns the block as a JSON object, with numbers, booleans and the order of the keys as in the file.
func (o Object) JSON() []byte {
	if o.json == nil {
		return []byte("{}")
	}
	return []byte(*o.json)
}

// String returns [redacted].
func (Object) String() string { return redacted }

// GoString returns [redacted].
func (Object) GoString() string { return redacted }

// Format prints [redacted] whatever the verb.
func (Object) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON returns "[redacted]".
func (Object) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML returns [redacted].
func (Object) MarshalYAML() (any, error) { return redacted, nil }

// LogValue returns [redacted].
func (Object) LogValue() slog.Value { return slog.StringValue(redacted) }

func (o *Object) decodeNode(d *decoder, n *yaml.Node, path string) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.errorf(path, "want a block of keys, got %s", kindOf(n))
		return
	}
	w := jsonWriter{decoder: d, secrets: &o.hide}
	w.write(n, path, false)
	text := w.String()
	o.json = &text
}

// Unsupported marks a key that is known and does nothing here. An empty value is let pass; any other is a
// mistake, and the fix stands in the tag of the field.
type Unsupported struct{}
