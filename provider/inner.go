package provider

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwt"

	"gatehouse/provider/front"

	"github.com/dexidp/dex/server/signer"
)

// innerKey authenticates the tokens of the gateway's own exchange. They go from Dex to the front door, within one call and this process, and
// nobody else ever sees them: so no public key has to be able to tell them from forgeries, and a signature would be most of what such a sign-in costs. The
// key lives as long as the process. It is in no key set: nothing else accepts it, and what it signs is accepted nowhere else.
type innerKey struct {
	signer jose.Signer
	key    []byte
}

func newInnerKey() (innerKey, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "inner"))
	if err != nil {
		return innerKey{}, fmt.Errorf("provider: key of the gateway's own exchange: %w", err)
	}
	return innerKey{s, key}, nil
}

// innerSigner is Dex's signer, which signs with the inner key what the gateway's own exchange asks for.
type innerSigner struct {
	signer.Signer
	inner innerKey
}

// Sign implements signer.Signer.
func (s innerSigner) Sign(ctx context.Context, payload []byte) (string, error) {
	if !front.OwnExchange(ctx) {
		return s.Signer.Sign(ctx, payload)
	}
	signed, err := s.inner.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("provider: sign for the gateway: %w", err)
	}
	return signed.CompactSerialize()
}

// verify checks an ID Token of the gateway's own exchange as KeySet.Verify does any other.
func (k innerKey) verify(ctx context.Context, s *KeySet, raw, audience string) (IDToken, error) {
	h, err := compact(raw)
	if err != nil {
		return IDToken{}, fmt.Errorf("id token: %w", err)
	}
	if h.algorithm != jwa.HS256.String() {
		return IDToken{}, fmt.Errorf("id token: the header says %.16q, want %s", h.algorithm, jwa.HS256)
	}
	tok, err := jwt.ParseString(raw, s.options(ctx, audience, jwt.WithKey(jwa.HS256, k.key))...)
	if err != nil {
		return IDToken{}, fmt.Errorf("id token: %w", err)
	}
	return idToken(tok)
}
