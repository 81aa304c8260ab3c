// Package seal makes values that only this installation can read or change: cookies, the state of a
// sign-in and hand-offs, all of which travel through a browser.
//
// A sealed value is base64url(key id, nonce, AES-256-GCM ciphertext). It is opened only for the purpose
// and the associated data that it was sealed for: a cookie of one host is not a cookie of another, and a
// hand-off is never a cookie. What a database keeps is sealed in the same manner by an [AtRest], as bytes, and for much longer.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
)

// KeySize is the length of a key in bytes.
const KeySize = 32

// Overhead is what sealing adds to a value in bytes, before base64.
const Overhead = idSize + nonceSize + tagSize

const (
	idSize    = 4
	nonceSize = 12
	tagSize   = 16
)

// encoding is strict: a value has one spelling only.
var encoding = base64.RawURLEncoding.Strict()

// A Purpose separates what is sealed with the same key: each has its own derived key.
type Purpose string

// ErrInvalid is returned for whatever does not open: damaged, of another purpose, for other associated data or
// sealed with a key that is not in the ring. Which of these it was is not told.
var ErrInvalid = errors.New("seal: not a value sealed here")

// A Ring seals with its first key and opens with all of its keys. It is safe for concurrent use, Replace included.
type Ring struct {
	purposes []Purpose
	boxes    atomic.Pointer[map[Purpose][]box] // the map is immutable
}

type box struct {
	id   [idSize]byte
	aead cipher.AEAD
}

// NewRing returns a ring of keys for the given purposes, the sealing key first. Every key has KeySize bytes.
func NewRing(keys [][]byte, purposes ...Purpose) (*Ring, error) {
	r := &Ring{purposes: slices.Clone(purposes)}
	if err := r.Replace(keys); err != nil {
		return nil, err
	}
	return r, nil
}

// Replace puts other keys in the place of those of the ring, the sealing key first, from one Seal or Open to the next. An error has
// changed nothing.
func (r *Ring) Replace(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("seal: no key")
	}
	boxes := make(map[Purpose][]box, len(r.purposes))
	for i, key := range keys {
		if len(key) != KeySize {
			return fmt.Errorf("seal: key %d has %d bytes, want %d", i, len(key), KeySize)
		}
		for _, p := range r.purposes {
			if len(boxes[p]) > i {
				continue // named twice
			}
			b, err := newBox(key, p)
			if err != nil {
				return err
			}
			boxes[p] = append(boxes[p], b)
		}
	}
	r.boxes.Store(&boxes)
	return nil
}

// NewKey returns a new random key.
func NewKey() []byte {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails (crypto/rand)
	return key
}

// derive returns the key of a purpose, and its id.
func derive(key []byte, p Purpose) (derived []byte, id [idSize]byte, err error) {
	if derived, err = hkdf.Key(sha256.New, key, nil, "gatehouse seal "+string(p), KeySize); err != nil {
		return nil, id, fmt.Errorf("seal: derive key: %w", err)
	}
	sum := sha256.Sum256(derived)
	return derived, [idSize]byte(sum[:idSize]), nil
}

func newBox(key []byte, p Purpose) (box, error) {
	derived, id, err := derive(key, p)
	if err != nil {
		return box{}, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return box{}, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return box{}, fmt.Errorf("seal: %w", err)
	}
	return box{id: id, aead: aead}, nil
}

// Seal returns value sealed for p and the associated data ad, which is not part of the result.
// It panics if p is not a purpose of the ring: that is a mistake in the program.
func (r *Ring) Seal(p Purpose, ad string, value []byte) string {
	boxes := (*r.boxes.Load())[p]
	if len(boxes) == 0 {
		panic("seal: purpose not in the ring: " + string(p))
	}
	b := boxes[0]
	out := make([]byte, idSize+nonceSize, Overhead+len(value))
	copy(out, b.id[:])
	nonce := out[idSize : idSize+nonceSize]
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	return encoding.EncodeToString(b.aead.Seal(out, nonce, value, []byte(ad)))
}

// Open returns what was sealed for p and ad, appended to dst, or ErrInvalid. It does not allocate if dst has room for about
// twice the length of sealed and for ad; what stands beyond the length of the result is overwritten.
func (r *Ring) Open(dst []byte, p Purpose, ad, sealed string) ([]byte, error) {
	if strings.IndexByte(sealed, '\n') >= 0 || strings.IndexByte(sealed, '\r') >= 0 { // which base64 would pass over
		return nil, ErrInvalid
	}
	start, size := len(dst), encoding.DecodedLen(len(sealed))
	dst = slices.Grow(dst, 2*size+len(ad))
	free := dst[start:cap(dst)]
	raw, free := free[:size:size], free[size:]
	n, err := encoding.Decode(raw, []byte(sealed))
	if err != nil || n < Overhead {
		return nil, ErrInvalid
	}
	id, nonce, text := [idSize]byte(raw[:idSize]), raw[idSize:idSize+nonceSize], raw[idSize+nonceSize:n]
	copy(free, ad)
	data, free := free[:len(ad):len(ad)], free[len(ad):]
	for _, b := range (*r.boxes.Load())[p] {
		if b.id != id {
			continue
		}
		if out, err := b.aead.Open(free[:0], nonce, text, data); err == nil {
			return append(dst[:start], out...), nil
		}
	}
	return nil, ErrInvalid
}
