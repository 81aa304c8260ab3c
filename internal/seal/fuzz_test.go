package seal

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// A damage changes a sealed value. Every one of them must make it worthless.
type damage struct {
	name  string
	apply func(sealed, other string, at int, text string) string
}

func damages() []damage {
	return []damage{
		{"another byte", func(s, _ string, at int, text string) string {
			if text == "" {
				return s
			}
			return s[:at] + text[:1] + s[at+1:]
		}},
		{"a flipped bit", func(s, _ string, at int, text string) string {
			b := []byte(s)
			b[at] ^= 1 << (len(text) % 8)
			return string(b)
		}},
		{"cut at the end", func(s, _ string, at int, _ string) string { return s[:at] }},
		{"cut at the beginning", func(s, _ string, at int, _ string) string { return s[at:] }},
		{"more in it", func(s, _ string, at int, text string) string { return s[:at] + text + s[at:] }},
		{"more after it", func(s, _ string, _ int, text string) string { return s + text }},
		{"a byte less", func(s, _ string, at int, _ string) string { return s[:at] + s[at+1:] }},
		{"the head of one, the tail of another", func(s, other string, at int, _ string) string {
			return s[:min(at, len(other))] + other[min(at, len(other)):]
		}},
		{"two in a row", func(s, other string, _ int, _ string) string { return s + other }},
		{"other letters", func(s, _ string, _ int, _ string) string { return strings.ToUpper(s) }},
		{"the other alphabet", func(s, _ string, _ int, _ string) string {
			return strings.NewReplacer("-", "+", "_", "/").Replace(s)
		}},
		{"something else", func(_, _ string, _ int, text string) string { return text }},
	}
}

// FuzzSeal holds that a sealed value opens for what it was sealed for, before and after the key was replaced, and for
// nothing else; and that no change of it opens at all.
func FuzzSeal(f *testing.F) {
	old, key := bytes.Repeat([]byte{1}, KeySize), bytes.Repeat([]byte{2}, KeySize)
	before, after, other := mustRing(f, old), mustRing(f, key, old), mustRing(f, key)
	for i := range damages() {
		f.Add([]byte("session"), "app.example.com", "x.apps.example.com", uint8(i), uint16(7*i), "A")
	}
	f.Add([]byte{}, "", "\x00", uint8(0), uint16(63), "=")
	f.Add([]byte("\r\n"), "a", "aa", uint8(4), uint16(5), "\r\n")
	f.Add(make([]byte, 600), "h", "H", uint8(5), uint16(0), "==")
	f.Fuzz(func(t *testing.T, value []byte, ad, otherAD string, kind uint8, at uint16, text string) {
		sealed := before.Seal("cookie", ad, value)
		for name, r := range map[string]*Ring{"its key": before, "a newer key before its own": after} {
			got, err := r.Open([]byte("dst"), "cookie", ad, sealed)
			if err != nil || string(got) != "dst"+string(value) {
				t.Fatalf("with %s: got %q, %v, want %q", name, got, err, value)
			}
		}
		if ad != otherAD {
			wantInvalid(t, "for another host", before, "cookie", otherAD, sealed)
		}
		wantInvalid(t, "for another purpose", before, "ticket", ad, sealed)
		wantInvalid(t, "for a purpose that the ring lacks", before, "state", ad, sealed)
		wantInvalid(t, "with other keys", other, "cookie", ad, sealed)

		d, another := damages()[int(kind)%len(damages())], before.Seal("cookie", ad, value)
		changed := d.apply(sealed, another, int(at)%len(sealed), text)
		if changed != sealed && changed != another {
			wantInvalid(t, d.name, before, "cookie", ad, changed)
		}
	})
}

func mustRing(f *testing.F, keys ...[]byte) *Ring {
	f.Helper()
	r, err := NewRing(keys, "cookie", "ticket")
	if err != nil {
		f.Fatal(err)
	}
	return r
}

func wantInvalid(t *testing.T, how string, r *Ring, p Purpose, ad, sealed string) {
	t.Helper()
	if got, err := r.Open(nil, p, ad, sealed); !errors.Is(err, ErrInvalid) || got != nil {
		t.Fatalf("%s: %q for %q and %q: got %q, %v, want ErrInvalid", how, sealed, p, ad, got, err)
	}
}
