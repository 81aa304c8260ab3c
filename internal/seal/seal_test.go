package seal

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func ring(t *testing.T, keys ...[]byte) *Ring {
	t.Helper()
	r, err := NewRing(keys, "cookie", "ticket")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOpensOnlyWhatItWasSealedFor(t *testing.T) {
	old, key, other := NewKey(), NewKey(), NewKey()
	sealed := ring(t, key).Seal("cookie", "a.example.com", []byte("session"))
	tests := []struct {
		name    string
		ring    *Ring
		purpose Purpose
		ad      string
		value   string
		ok      bool
	}{
		{"as sealed", ring(t, key), "cookie", "a.example.com", sealed, true},
		{"with the key among older ones", ring(t, old, key), "cookie", "a.example.com", sealed, true},
		{"of another host", ring(t, key), "cookie", "b.example.com", sealed, false},
		{"for another purpose", ring(t, key), "ticket", "a.example.com", sealed, false},
		{"for a purpose that the ring lacks", ring(t, key), "state", "a.example.com", sealed, false},
		{"with another key", ring(t, other), "cookie", "a.example.com", sealed, false},
		{"empty", ring(t, key), "cookie", "a.example.com", "", false},
		{"cut", ring(t, key), "cookie", "a.example.com", sealed[:len(sealed)-4], false},
		{"with blanks", ring(t, key), "cookie", "a.example.com", sealed + "\n", false},
		{"in the other base64 alphabet", ring(t, key), "cookie", "a.example.com", strings.Repeat("+", 80), false},
		{"64 kB of nothing", ring(t, key), "cookie", "a.example.com", strings.Repeat("A", 64<<10), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.ring.Open(nil, tt.purpose, tt.ad, tt.value)
			if (err == nil) != tt.ok {
				t.Fatalf("Open: %v, want ok %v", err, tt.ok)
			}
			if !tt.ok && !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v, want ErrInvalid", err)
			}
			if tt.ok && string(got) != "session" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestEveryBitCounts(t *testing.T) {
	r := ring(t, NewKey())
	raw, err := base64.RawURLEncoding.DecodeString(r.Seal("cookie", "", []byte("session")))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if _, err := r.Open(nil, "cookie", "", base64.RawURLEncoding.EncodeToString(raw)); err == nil {
				t.Fatalf("bit %d of byte %d does not matter", bit, i)
			}
			raw[i] ^= 1 << bit
		}
	}
}

func TestNewRingRefuses(t *testing.T) {
	for name, keys := range map[string][][]byte{"no key": nil, "a short key": {make([]byte, 31)}, "a long key": {NewKey(), make([]byte, 33)}} {
		if _, err := NewRing(keys, "cookie"); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzOpen(f *testing.F) {
	key := bytes.Repeat([]byte{7}, KeySize)
	r, err := NewRing([][]byte{key}, "cookie")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("", "")
	f.Add(r.Seal("cookie", "h", []byte("session")), "h")
	f.Fuzz(func(t *testing.T, sealed, ad string) {
		value, err := r.Open(nil, "cookie", ad, sealed)
		if err != nil {
			return
		}
		// What opens was sealed here: by the seed only.
		if ad != "h" || string(value) != "session" {
			t.Errorf("forged: %q for %q gives %q", sealed, ad, value)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	r, err := NewRing([][]byte{NewKey()}, "cookie")
	if err != nil {
		b.Fatal(err)
	}
	sealed := r.Seal("cookie", "app.example.com", make([]byte, 34))
	var buf [128]byte
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Open(buf[:0], "cookie", "app.example.com", sealed); err != nil {
			b.Fatal(err)
		}
	}
}
