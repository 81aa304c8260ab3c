package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync/atomic"
)

// purposeRest is that of an AtRest.
const purposeRest Purpose = "record at rest"

// An AtRest seals what is kept in a database, for as long as that lives: with its first key, opening with all of its keys. A
// sealed value is key id, nonce, XAES-256-GCM ciphertext (C2SP): its nonce of 192 bits may be random however much one key
// seals, where that of AES-GCM is good for 2^32 values only. It is safe for concurrent use, Replace included.
type AtRest struct {
	keys atomic.Pointer[[]restKey]
}

type restKey struct {
	id [idSize]byte
	x  xaes
}

// ErrNoKey means that the key which a value was sealed with is not there. The error that wraps it names the key.
var ErrNoKey = errors.New("seal: sealed with a key that is not there")

// NewAtRest returns an AtRest of keys, the sealing key first. Every key has KeySize bytes.
func NewAtRest(keys [][]byte) (*AtRest, error) {
	a := &AtRest{}
	if err := a.Replace(keys); err != nil {
		return nil, err
	}
	return a, nil
}

// Replace puts other keys in the place of those that are there. An error has changed nothing.
func (a *AtRest) Replace(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("seal: no key")
	}
	list := make([]restKey, len(keys))
	for i, key := range keys {
		if len(key) != KeySize {
			return fmt.Errorf("seal: key %d has %d bytes, want %d", i, len(key), KeySize)
		}
		derived, id, err := derive(key, purposeRest)
		if err != nil {
			return err
		}
		x, err := newXAES(derived)
		if err != nil {
			return err
		}
		list[i] = restKey{id: id, x: x}
	}
	a.keys.Store(&list)
	return nil
}

// IDs returns the names of the keys, in their order. Nobody learns a key from its name.
func (a *AtRest) IDs() []string {
	var out []string
	for _, k := range *a.keys.Load() {
		out = append(out, fmt.Sprintf("%x", k.id))
	}
	return out
}

// Seal returns data sealed for ad, which is not part of the result, appended to dst.
func (a *AtRest) Seal(dst, ad, data []byte) []byte {
	k := &(*a.keys.Load())[0]
	dst = append(dst, k.id[:]...)
	var nonce [xNonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand)
	return k.x.aead(nonce[:]).Seal(append(dst, nonce[:]...), nonce[xNonceSize/2:], data, ad)
}

// Open returns what was sealed for ad: ErrNoKey with the id of the key that is missing, ErrInvalid for what is damaged or was sealed for something else.
func (a *AtRest) Open(ad, sealed []byte) ([]byte, error) {
	if len(sealed) < idSize+xNonceSize+tagSize {
		return nil, ErrInvalid
	}
	id, nonce, text := [idSize]byte(sealed[:idSize]), sealed[idSize:idSize+xNonceSize], sealed[idSize+xNonceSize:]
	known, keys := false, *a.keys.Load()
	for i := range keys {
		k := &keys[i]
		if k.id != id {
			continue
		}
		known = true
		if out, err := k.x.aead(nonce).Open(nil, nonce[xNonceSize/2:], text, ad); err == nil {
			return out, nil
		}
	}
	if !known {
		return nil, fmt.Errorf("%w: %x", ErrNoKey, id)
	}
	return nil, ErrInvalid
}

// Current reports whether a value was sealed with the key that seals now.
func (a *AtRest) Current(sealed []byte) bool {
	return len(sealed) >= idSize && [idSize]byte(sealed[:idSize]) == (*a.keys.Load())[0].id
}

// xNonceSize is the length of a nonce of XAES-256-GCM in bytes.
const xNonceSize = 24

// xaes is XAES-256-GCM (https://c2sp.org/XAES-256-GCM): AES-256-GCM with a key for each nonce, which CMAC (NIST SP 800-108) derives from
// the first half of the nonce; the second half is the nonce of AES-GCM.
type xaes struct {
	block cipher.Block
	k1    [aes.BlockSize]byte
}

func newXAES(key []byte) (xaes, error) {
	var x xaes
	var err error
	if x.block, err = aes.NewCipher(key); err != nil {
		return xaes{}, fmt.Errorf("seal: %w", err)
	}
	x.block.Encrypt(x.k1[:], x.k1[:])
	msb := 0
	for i := len(x.k1) - 1; i >= 0; i-- { // doubling in GF(2^128), as for the subkey K1 of CMAC
		msb, x.k1[i] = int(x.k1[i]>>7), x.k1[i]<<1|byte(msb)
	}
	x.k1[len(x.k1)-1] ^= byte(subtle.ConstantTimeSelect(msb, 0x87, 0)) //nolint:gosec // G115: 0x87 or 0
	return x, nil
}

// aead returns the AES-GCM of a nonce.
func (x *xaes) aead(nonce []byte) cipher.AEAD {
	derived := make([]byte, 0, 2*aes.BlockSize)
	for counter := byte(1); counter <= 2; counter++ {
		m := [aes.BlockSize]byte{1: counter, 2: 'X'} // [counter]_16, label, 0x00
		copy(m[4:], nonce[:xNonceSize/2])
		subtle.XORBytes(m[:], m[:], x.k1[:])
		x.block.Encrypt(m[:], m[:])
		derived = append(derived, m[:]...)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return gcm
}
