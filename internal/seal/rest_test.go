package seal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

// TestXAES holds the two vectors of the specification (https://c2sp.org/XAES-256-GCM): with the high bit of the subkey and without.
func TestXAES(t *testing.T) {
	const nonce, plain = "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM"
	for _, tt := range []struct {
		key      byte
		ad, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		x, err := newXAES(bytes.Repeat([]byte{tt.key}, KeySize))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(x.aead([]byte(nonce)).Seal(nil, []byte(nonce)[xNonceSize/2:], []byte(plain), []byte(tt.ad))); got != tt.want {
			t.Errorf("key %d: got %s, want %s", tt.key, got, tt.want)
		}
	}
}

func atRest(t testing.TB, keys ...[]byte) *AtRest {
	t.Helper()
	a, err := NewAtRest(keys)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAtRestOpensOnlyWhatItSealed(t *testing.T) {
	old, key, other := NewKey(), NewKey(), NewKey()
	sealed := atRest(t, key).Seal([]byte("head"), []byte("keys/keys"), []byte("secret"))[len("head"):]
	for name, tt := range map[string]struct {
		a    *AtRest
		ad   string
		text []byte
		want error
	}{
		"as sealed":                        {atRest(t, key), "keys/keys", sealed, nil},
		"with the key behind another":      {atRest(t, other, key), "keys/keys", sealed, nil},
		"without the key":                  {atRest(t, other, old), "keys/keys", sealed, ErrNoKey},
		"for another record":               {atRest(t, key), "keys/kexs", sealed, ErrInvalid},
		"a byte less":                      {atRest(t, key), "keys/keys", sealed[:len(sealed)-1], ErrInvalid},
		"only a head":                      {atRest(t, key), "keys/keys", sealed[:idSize+xNonceSize], ErrInvalid},
		"nothing":                          {atRest(t, key), "keys/keys", nil, ErrInvalid},
		"the ciphertext of the other Seal": {atRest(t, key), "keys/keys", append(atRest(t, key).Seal(nil, []byte("keys/keys"), []byte("secret"))[:idSize+xNonceSize:idSize+xNonceSize], sealed[idSize+xNonceSize:]...), ErrInvalid},
	} {
		got, err := tt.a.Open([]byte(tt.ad), tt.text)
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || (err == nil && string(got) != "secret") || (err != nil && got != nil) {
			t.Errorf("%s: got %q, %v, want error %v", name, got, err, tt.want)
		}
	}
	if a := atRest(t, old, key); a.Current(sealed) || !atRest(t, key, old).Current(sealed) || a.Current(nil) {
		t.Error("Current does not tell which key sealed")
	}
}

func TestReplaceTakesEffectAtOnce(t *testing.T) {
	old, key := NewKey(), NewKey()
	r := ring(t, old)
	before := r.Seal("cookie", "h", []byte("session"))
	for _, keys := range [][][]byte{{old, key}, {key, old}, {key}} {
		if err := r.Replace(keys); err != nil {
			t.Fatal(err)
		}
		_, err := r.Open(nil, "cookie", "h", before)
		if want := len(keys) == 2; (err == nil) != want {
			t.Errorf("with %d keys: got %v, want opened %v", len(keys), err, want)
		}
	}
	if _, err := ring(t, key).Open(nil, "cookie", "h", r.Seal("cookie", "h", nil)); err != nil {
		t.Errorf("sealed with the new key: %v", err)
	}
	if r.Replace(nil) == nil || r.Replace([][]byte{{1}}) == nil {
		t.Error("took no key, or a short one")
	}
	if _, err := ring(t, key).Open(nil, "cookie", "h", r.Seal("cookie", "h", nil)); err != nil {
		t.Errorf("after a Replace that failed: %v", err)
	}
}

// FuzzAtRest holds that no change of a sealed value opens, and none of what it was sealed for.
func FuzzAtRest(f *testing.F) {
	a := atRest(f, bytes.Repeat([]byte{1}, KeySize), bytes.Repeat([]byte{2}, KeySize))
	f.Add([]byte("secret"), []byte("kind id"), []byte("kind id2"), uint16(3), byte(1))
	f.Add([]byte{}, []byte{}, []byte{0}, uint16(60), byte(255))
	f.Fuzz(func(t *testing.T, data, ad, otherAD []byte, at uint16, flip byte) {
		sealed := a.Seal(nil, ad, data)
		if got, err := a.Open(ad, sealed); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("got %q, %v, want %q", got, err, data)
		}
		if _, err := a.Open(otherAD, sealed); (err == nil) != bytes.Equal(ad, otherAD) {
			t.Fatalf("for %q, sealed for %q: %v", otherAD, ad, err)
		}
		if _, err := a.Open(ad, sealed[:int(at)%len(sealed)]); err == nil {
			t.Fatal("opens although it was cut")
		}
		if flip != 0 {
			sealed[int(at)%len(sealed)] ^= flip
			if _, err := a.Open(ad, sealed); err == nil {
				t.Fatal("opens although a byte is another")
			}
		}
		if _, err := a.Open(ad, data); err == nil {
			t.Fatalf("opens what nobody sealed: %q", data)
		}
	})
}
