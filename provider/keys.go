package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/jwt"
	"golang.org/x/sync/singleflight"

	"github.com/dexidp/dex/storage"
)

// keyCache is the storage that Dex's signer gets: it serves the keys from memory until they are due for
// rotation, and publishes every new set. Dex's signer would read the storage at each signature.
type keyCache struct {
	storage.Storage
	now     func() time.Time
	current atomic.Pointer[storage.Keys]
	set     *KeySet
}

func (c *keyCache) GetKeys(ctx context.Context) (storage.Keys, error) {
	if k := c.current.Load(); k != nil && c.now().Before(k.NextRotation) {
		return *k, nil
	}
	return c.read(ctx)
}

// read takes the keys from the store: at first, when they are due, and when another replica may have made new ones.
func (c *keyCache) read(ctx context.Context) (storage.Keys, error) {
	k, err := c.Storage.GetKeys(ctx)
	if err != nil {
		return storage.Keys{}, err
	}
	return k, c.publish(k)
}

func (c *keyCache) UpdateKeys(ctx context.Context, update func(storage.Keys) (storage.Keys, error)) error {
	var last storage.Keys
	err := c.Storage.UpdateKeys(ctx, func(old storage.Keys) (storage.Keys, error) {
		k, err := update(old)
		last = k
		return k, err
	})
	if err != nil {
		return err
	}
	return c.publish(last)
}

func (c *keyCache) publish(k storage.Keys) error {
	if k.SigningKey == nil || k.SigningKeyPub == nil {
		return nil // not made yet
	}
	if err := c.set.publish(k); err != nil {
		return err
	}
	c.current.Store(&k)
	return nil
}

// keyed is a generation's storage with the keys that all generations share.
type keyed struct {
	storage.Storage
	keys *keyCache
}

// GetKeys implements storage.Storage.
func (k keyed) GetKeys(ctx context.Context) (storage.Keys, error) { return k.keys.GetKeys(ctx) }

// UpdateKeys implements storage.Storage.
func (k keyed) UpdateKeys(ctx context.Context, update func(storage.Keys) (storage.Keys, error)) error {
	return k.keys.UpdateKeys(ctx, update)
}

// A KeySet is the issuer's public keys in memory. Whoever verifies tokens in this process asks it: no network,
// no cache that could be stale.
type KeySet struct {
	issuer string
	now    func() time.Time
	keys   atomic.Pointer[jwk.Set]
	// reread asks the store again when a key id is unknown: another replica may have rotated.
	reread func(context.Context) error
	flight singleflight.Group
}

func (s *KeySet) publish(k storage.Keys) error {
	set := jwk.NewSet()
	add := func(key any) error {
		raw, err := json.Marshal(key)
		if err != nil {
			return fmt.Errorf("signing keys: %w", err)
		}
		parsed, err := jwk.ParseKey(raw)
		if err != nil {
			return fmt.Errorf("signing keys: %w", err)
		}
		return set.AddKey(parsed)
	}
	if err := add(k.SigningKeyPub); err != nil {
		return err
	}
	for _, v := range k.VerificationKeys {
		if err := add(v.PublicKey); err != nil {
			return err
		}
	}
	s.keys.Store(&set)
	return nil
}

// An IDToken is what is needed of a verified one (OpenID Connect Core 1.0 section 2).
type IDToken struct {
	Subject   string
	Audience  []string
	Nonce     string
	SessionID string // "sid", OpenID Connect Back-Channel Logout 1.0 section 2.4
	Client    string // "azp", or the only audience
	IssuedAt  time.Time
}

// maxToken bounds what is parsed as a token, in bytes.
const maxToken = 16 << 10

// Verify checks an ID Token of this issuer for audience, or "" for any: signature, issuer, audience and times (OpenID
// Connect Core 1.0 section 3.1.3.7). The algorithm is that of the key, never what the token says.
func (s *KeySet) Verify(ctx context.Context, raw, audience string) (IDToken, error) {
	if len(raw) > maxToken {
		return IDToken{}, fmt.Errorf("id token: %d bytes, want at most %d", len(raw), maxToken)
	}
	tok, err := s.parse(ctx, raw, audience)
	if err != nil && s.unknownKey(raw) {
		if _, err, _ := s.flight.Do("keys", func() (any, error) { return nil, s.reread(context.WithoutCancel(ctx)) }); err != nil {
			return IDToken{}, fmt.Errorf("id token: read keys: %w", err)
		}
		tok, err = s.parse(ctx, raw, audience)
	}
	if err != nil {
		return IDToken{}, fmt.Errorf("id token: %w", err)
	}
	out := IDToken{Subject: tok.Subject(), Audience: tok.Audience()}
	out.IssuedAt = tok.IssuedAt()
	out.Nonce, _ = claim(tok, "nonce")
	out.SessionID, _ = claim(tok, "sid")
	if out.Client, _ = claim(tok, "azp"); out.Client == "" && len(out.Audience) == 1 {
		out.Client = out.Audience[0]
	}
	if out.Subject == "" {
		return IDToken{}, errors.New("id token: no subject")
	}
	return out, nil
}

func claim(t jwt.Token, name string) (string, bool) {
	v, _ := t.Get(name)
	s, ok := v.(string)
	return s, ok
}

func (s *KeySet) parse(ctx context.Context, raw, audience string) (jwt.Token, error) {
	keys := s.keys.Load()
	if keys == nil {
		return nil, errors.New("no keys yet")
	}
	opts := []jwt.ParseOption{
		jwt.WithKeySet(*keys, jws.WithRequireKid(true)), jwt.WithIssuer(s.issuer),
		jwt.WithClock(jwt.ClockFunc(s.now)), jwt.WithRequiredClaim(jwt.ExpirationKey), jwt.WithContext(ctx),
	}
	if audience != "" {
		opts = append(opts, jwt.WithAudience(audience))
	}
	return jwt.ParseString(raw, opts...)
}

func (s *KeySet) unknownKey(raw string) bool {
	msg, err := jws.ParseString(raw)
	if err != nil || len(msg.Signatures()) != 1 {
		return false
	}
	h := msg.Signatures()[0].ProtectedHeaders()
	keys := s.keys.Load()
	if keys == nil {
		return true
	}
	_, known := (*keys).LookupKeyID(h.KeyID())
	return !known && (h.Algorithm() == jwa.RS256 || h.Algorithm() == jwa.ES256)
}
