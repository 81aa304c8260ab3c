package provider

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/jwt"
	"golang.org/x/sync/singleflight"

	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// keyCache is the storage that Dex's signer gets: it serves the keys from memory until they are due for
// rotation, and publishes every new set. Dex's signer would read the storage at each signature.
type keyCache struct {
	*store.Store
	now     func() time.Time
	current atomic.Pointer[store.Keys]
	set     *KeySet

	reading   sync.Mutex // held from a read of the store until it is published: a set that is older never follows a newer one
	mu        sync.Mutex
	withdrawn []func()
}

// publishLead is how long before it signs a key is published beyond the interval in which every replica reads the change log: as long as the
// log may be silent without anybody being told.
const publishLead = 10 * time.Second

// lead is how long before it signs a key is published.
func (c *keyCache) lead() time.Duration { return c.FeedInterval() + publishLead }

func (c *keyCache) GetKeys(ctx context.Context) (storage.Keys, error) {
	if k := c.effective(); k != nil && c.now().Before(k.NextRotation) {
		return published(k), nil
	}
	if _, err, _ := c.set.flight.Do("keys", func() (any, error) { return nil, c.read(context.WithoutCancel(ctx)) }); err != nil {
		return storage.Keys{}, err
	}
	if k := c.effective(); k != nil {
		return published(k), nil
	}
	return storage.Keys{}, nil // not made yet
}

// effective returns the keys as they are now, or nil. The next key signs from its time on.
func (c *keyCache) effective() *store.Keys {
	k := c.current.Load()
	if k == nil || k.Next == nil || c.now().Before(k.Next.SignsFrom) {
		return k
	}
	due := keysAt(*k, c.now())
	c.current.CompareAndSwap(k, &due)
	return &due
}

// read takes the keys from the store: at first, when they are due, and when another replica may have made new ones.
func (c *keyCache) read(ctx context.Context) error {
	c.reading.Lock()
	defer c.reading.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	k, err := c.SigningKeys(ctx)
	if err != nil {
		return err
	}
	return c.publish(keysAt(k, c.now()))
}

// UpdateKeys implements storage.Storage for Dex's signer. A new key of Dex's is published first, and signs later.
func (c *keyCache) UpdateKeys(ctx context.Context, update func(storage.Keys) (storage.Keys, error)) error {
	return c.update(ctx, func(old store.Keys, now time.Time) (store.Keys, error) {
		k, err := update(old.Keys)
		if err != nil {
			return store.Keys{}, err
		}
		if old.SigningKey != nil && k.SigningKey != nil && k.SigningKey.KeyID != old.SigningKey.KeyID {
			return postpone(old, k, now, c.lead()), nil
		}
		return succeed(old, k, now, now), nil
	})
}

// update changes the keys, which the updater gets as they are now, and publishes what is in the store then.
func (c *keyCache) update(ctx context.Context, updater func(old store.Keys, now time.Time) (store.Keys, error)) error {
	err := c.UpdateSigningKeys(ctx, func(old store.Keys) (store.Keys, error) {
		now := c.now()
		return updater(keysAt(old, now), now)
	})
	if err != nil {
		return err
	}
	return c.read(ctx)
}

func (c *keyCache) publish(k store.Keys) error {
	if k.SigningKey == nil || k.SigningKeyPub == nil {
		return nil // not made yet
	}
	precompute(k.SigningKey)
	if k.Next != nil {
		precompute(k.Next.Key)
	}
	for i := range k.Former { // which sign tokens for apps
		precompute(k.Former[i].Key)
	}
	if err := c.set.publish(published(&k)); err != nil {
		return err
	}
	if old := c.current.Swap(&k); old != nil && withdrawnSince(old, &k, c.now()) {
		c.mu.Lock()
		tell := c.withdrawn
		c.mu.Unlock()
		for _, f := range tell {
			f()
		}
	}
	return nil
}

// precompute does once what crypto/rsa would do for every signature with a key that was read from JSON. Nobody else has the key yet.
func precompute(k *jose.JSONWebKey) {
	if key, ok := k.Key.(*rsa.PrivateKey); ok {
		key.Precompute()
	}
}

// onWithdrawal has f called whenever keys were withdrawn before their time, after what they signed is refused.
func (c *keyCache) onWithdrawal(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.withdrawn = append(slices.Clone(c.withdrawn), f)
}

// readTimeout ends a read of keys that hangs: others wait for it.
const readTimeout = 10 * time.Second

// rereadRetry is the pause before changed keys are read again after a failure.
const rereadRetry = time.Second

// follow reads the keys whenever the store tells that they are others, until ctx is done. Those of other replicas are known after one interval of the
// feed, however seldom tokens come; a key that was withdrawn is refused from then on.
func (c *keyCache) follow(ctx context.Context, log *slog.Logger) {
	changed := make(chan struct{}, 1)
	cancel := c.Subscribe(func(ch store.Change) {
		if ch.Kind != store.KindKeys && ch.Kind != "" {
			return
		}
		select {
		case changed <- struct{}{}:
		default: // they are about to be read
		}
	})
	go func() {
		defer cancel()
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			for {
				err := c.read(ctx)
				if err == nil || ctx.Err() != nil {
					break
				}
				log.WarnContext(ctx, "changed signing keys cannot be read; it is tried again", "error", err)
				if !wait(ctx, rereadRetry) {
					return
				}
			}
		}
	}()
}

// wait waits for a time, and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
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
// Connect Core 1.0 section 3.1.3.7). The algorithm is that of the key: a token that says another is refused, and so is any spelling of a
// token but the compact one.
func (s *KeySet) Verify(ctx context.Context, raw, audience string) (IDToken, error) {
	return s.verify(ctx, raw, audience)
}

// errReadKeys means that the store does not tell whether there is another key.
var errReadKeys = errors.New("read keys")

func (s *KeySet) verify(ctx context.Context, raw, audience string, more ...jwt.ParseOption) (IDToken, error) {
	if len(raw) > maxToken {
		return IDToken{}, fmt.Errorf("id token: %d bytes, want at most %d", len(raw), maxToken)
	}
	h, err := compact(raw)
	if err != nil {
		return IDToken{}, fmt.Errorf("id token: %w", err)
	}
	tok, err := s.parse(ctx, raw, h, audience, more...)
	if err != nil && s.unknownKey(h) {
		if _, err, _ := s.flight.Do("keys", func() (any, error) { return nil, s.reread(context.WithoutCancel(ctx)) }); err != nil {
			return IDToken{}, fmt.Errorf("id token: %w: %w", errReadKeys, err)
		}
		tok, err = s.parse(ctx, raw, h, audience, more...)
	}
	if err != nil {
		return IDToken{}, fmt.Errorf("id token: %w", err)
	}
	return idToken(tok)
}

// idToken is what a verified token says.
func idToken(tok jwt.Token) (IDToken, error) {
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

// A header is what is asked of a token's JOSE header (RFC 7515 section 4).
type header struct{ keyID, algorithm string }

// compact reads the header of a token that is of the compact serialisation (RFC 7515 section 7.1) in its only spelling. jwx takes others for
// it: the JSON serialisation, blanks, padding, the other alphabet, text behind the header and times in quotes. Under these, one token would
// have many names, and what is in front of us could read it differently.
func compact(raw string) (header, error) {
	parts := strings.SplitN(raw, ".", 4)
	if len(parts) != 3 || strings.ContainsAny(raw, "\r\n") { // which the decoder would pass over
		return header{}, errors.New("want three parts of base64url in one line, with a dot between them")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return header{}, errors.New("want base64url without padding in each part, in its only spelling")
		}
	}
	// Maps, since a struct would take a name in any case. Of a name that is there twice, the last one counts, as for jwx.
	var h, claims map[string]json.RawMessage
	if !braced(decoded[0]) || !braced(decoded[1]) || json.Unmarshal(decoded[0], &h) != nil || json.Unmarshal(decoded[1], &claims) != nil {
		return header{}, errors.New("want one JSON object in the header, and one in the payload")
	}
	if _, there := h["crit"]; there {
		return header{}, errors.New("the header has crit, and there is no extension that we know (RFC 7515 section 4.1.11)")
	}
	for _, name := range []string{jwt.ExpirationKey, jwt.IssuedAtKey, jwt.NotBeforeKey} {
		if v, there := claims[name]; there && v[0] != '-' && (v[0] < '0' || v[0] > '9') {
			return header{}, fmt.Errorf("%s is not a number (NumericDate, RFC 7519 section 2)", name)
		}
	}
	if err := typed(h); err != nil {
		return header{}, err
	}
	var out header
	if json.Unmarshal(h[jws.KeyIDKey], &out.keyID) != nil || json.Unmarshal(h[jws.AlgorithmKey], &out.algorithm) != nil {
		return header{}, errors.New("want kid and alg in the header, as texts")
	}
	return out, nil
}

// typed refuses a token that says it is of another type than JWT. Ours say nothing, but for those that are handed to apps
// (front.AppTokenType): these are signed by the same keys, and prove nothing to us.
func typed(h map[string]json.RawMessage) error {
	raw, there := h[jws.TypeKey]
	if !there {
		return nil
	}
	var typ string
	if json.Unmarshal(raw, &typ) != nil || !strings.EqualFold(typ, "JWT") {
		return fmt.Errorf("the header has typ %.32s, want JWT or none", raw)
	}
	return nil
}

// CheckHint refuses what is no ID Token that could be a hint (id_token_hint), by its form. Whoever takes it verifies the rest.
func CheckHint(raw string) error {
	if len(raw) > maxToken {
		return fmt.Errorf("%d bytes, want at most %d", len(raw), maxToken)
	}
	_, err := compact(raw)
	return err
}

// braced reports whether nothing stands around an object, not even a blank: what is signed would still be the object for jwx.
func braced(b []byte) bool { return bytes.HasPrefix(b, []byte("{")) && bytes.HasSuffix(b, []byte("}")) }

func claim(t jwt.Token, name string) (string, bool) {
	v, _ := t.Get(name)
	s, ok := v.(string)
	return s, ok
}

func (s *KeySet) parse(ctx context.Context, raw string, h header, audience string, more ...jwt.ParseOption) (jwt.Token, error) {
	keys := s.keys.Load()
	if keys == nil {
		return nil, errors.New("no keys yet")
	}
	key, known := (*keys).LookupKeyID(h.keyID)
	switch {
	case !known:
		return nil, fmt.Errorf("no key of ours is %.64q", h.keyID)
	case h.algorithm != key.Algorithm().String():
		return nil, fmt.Errorf("the header says %.16q, want %s, the algorithm of the key", h.algorithm, key.Algorithm())
	}
	return jwt.ParseString(raw, append(s.options(ctx, audience, jwt.WithKeySet(*keys, jws.WithRequireKid(true))), more...)...)
}

// options are what any token of the issuer is checked for, by a key.
func (s *KeySet) options(ctx context.Context, audience string, key jwt.ParseOption) []jwt.ParseOption {
	opts := []jwt.ParseOption{
		key, jwt.WithIssuer(s.issuer), jwt.WithClock(jwt.ClockFunc(s.now)), jwt.WithRequiredClaim(jwt.ExpirationKey), jwt.WithContext(ctx),
	}
	if audience != "" {
		opts = append(opts, jwt.WithAudience(audience))
	}
	return opts
}

func (s *KeySet) unknownKey(h header) bool {
	keys := s.keys.Load()
	if keys == nil {
		return true
	}
	_, known := (*keys).LookupKeyID(h.keyID)
	return !known && (h.algorithm == jwa.RS256.String() || h.algorithm == jwa.ES256.String())
}
