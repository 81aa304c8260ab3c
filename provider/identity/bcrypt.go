package identity

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strconv"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/blowfish" //nolint:staticcheck // SA1019: bcrypt is made of it
)

// maxBcrypt is how many bytes of a password bcrypt looks at; a longer one would be accepted by its beginning.
const maxBcrypt = 72

// What a bcrypt hash in its modular form consists of, "$2a$10$", salt and digest, in bytes.
const (
	bcryptSalt   = 22
	bcryptDigest = 31
)

// errHash does not name the hash, which is a secret.
var errHash = errors.New("bcrypt: not a hash of the form $2a$10$ with salt and digest")

// bcryptEncoding is base64 with bcrypt's own alphabet.
func bcryptEncoding() *base64.Encoding {
	return base64.NewEncoding("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789").WithPadding(base64.NoPadding)
}

// matches reports whether hash is that of password, as bcrypt.CompareHashAndPassword does (Provos and Mazieres, "A
// Future-Adaptable Password Scheme", 1999). A hash is tens of milliseconds of computing without a pause, for which the
// checks of the gateway would have to wait: so after every step rounds of its 1<<cost it calls rest, and gives up with
// the error that rest returns.
func matches(hash, password []byte, step int, rest func() error) (bool, error) {
	cost, err := bcrypt.Cost(hash)
	if err != nil {
		return false, err
	}
	digest := len(hash) - bcryptDigest
	start := digest - bcryptSalt
	if start < 3 || hash[start-1] != '$' || string(hash[start-3:start-1]) != strconv.Itoa(cost/10)+strconv.Itoa(cost%10) {
		return false, errHash
	}
	salt, err := bcryptEncoding().DecodeString(string(hash[start:digest]))
	if err != nil {
		return false, errHash
	}
	key := append(append(make([]byte, 0, len(password)+1), password...), 0) // as C has it, with the byte that ends a string
	c, err := blowfish.NewSaltedCipher(key, salt)
	if err != nil {
		return false, err
	}
	for i := range 1 << cost {
		blowfish.ExpandKey(key, c)
		blowfish.ExpandKey(salt, c)
		if i%step == step-1 {
			if err := rest(); err != nil {
				return false, err
			}
		}
	}
	got := []byte("OrpheanBeholderScryDoubt")
	for i := 0; i < len(got); i += blowfish.BlockSize {
		for range 64 {
			c.Encrypt(got[i:i+blowfish.BlockSize], got[i:i+blowfish.BlockSize])
		}
	}
	// One byte of the 24 is left out, as in every implementation.
	encoded := bcryptEncoding().EncodeToString(got[:len(got)-1])
	return subtle.ConstantTimeCompare([]byte(encoded), hash[digest:]) == 1, nil
}
