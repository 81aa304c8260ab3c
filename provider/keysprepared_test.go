package provider

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"math"
	"testing"
)

// A key that comes from the storage is prepared once, not for each signature: preparing allocates.
func TestSigningKeyIsPrepared(t *testing.T) {
	w, _ := memoryWorld(t)
	keys, err := w.provider.keyCache.GetKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, ok := keys.SigningKey.Key.(*rsa.PrivateKey)
	if !ok {
		t.Fatalf("got a %T", keys.SigningKey.Key)
	}
	hash := sha256.Sum256([]byte("token"))
	sign := func(k *rsa.PrivateKey) float64 {
		least := math.Inf(1)
		for range 10 { // what goes on in the background allocates, too
			least = min(least, testing.AllocsPerRun(5, func() {
				if _, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, hash[:]); err != nil {
					t.Fatal(err)
				}
			}))
		}
		return least
	}
	prepared := *key
	prepared.Precompute()
	if got, want := sign(key), sign(&prepared); got > want {
		t.Errorf("a signature allocates %v times, with a prepared key %v times", got, want)
	}
}
