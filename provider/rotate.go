package provider

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/lestrrat-go/jwx/v2/jwa"

	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// A Rotation says what became of the signing keys.
type Rotation struct {
	KeyID     string    // of the new key
	SignsFrom time.Time // when it begins to sign
	Withdrawn []string  // ids of the keys that verify nothing any more
}

// RotateKeys makes a new signing key. It is published first, and signs once every replica must know it; what earlier keys signed stays
// good until it expires. With now it signs at once, and the earlier keys are withdrawn: whatever they signed is refused from
// now on, on every replica. Sessions go on either way: they do not rest on tokens.
//
// While a new key is published and does not sign yet, another rotation without now returns that one. Keys for cookies that are kept in the storage
// follow in both cases, without anybody being signed out. An error with a Rotation is of these: the signing keys are changed.
func (p *Provider) RotateKeys(ctx context.Context, now bool) (Rotation, error) {
	c := p.current.Load().config
	made, err := newSigningKey(c.Signer.Config.Algorithm)
	if err != nil {
		return Rotation{}, err
	}
	var r Rotation
	err = p.keyCache.update(ctx, func(old store.Keys, at time.Time) (store.Keys, error) {
		after := old.Keys
		after.SigningKey, after.SigningKeyPub, after.NextRotation = made, public(made), at.Add(c.Signer.Config.KeysRotationPeriod.Std())
		var k store.Keys
		if now || old.SigningKey == nil {
			r = Rotation{KeyID: made.KeyID, SignsFrom: at, Withdrawn: idsOf(&old)}
			after.VerificationKeys = nil
			k = store.Keys{Keys: after, Published: at}
			return k, nil
		}
		after.VerificationKeys = append(slices.Clone(old.VerificationKeys), storage.VerificationKey{PublicKey: old.SigningKeyPub, Expiry: at.Add(c.Expiry.IDTokens.Std())})
		k = postpone(old, after, at, p.keyCache.lead())
		r = Rotation{KeyID: k.Next.Key.KeyID, SignsFrom: k.Next.SignsFrom}
		return k, nil
	})
	if err != nil {
		return Rotation{}, fmt.Errorf("provider: rotate keys: %w", err)
	}
	p.audit.InfoContext(ctx, "keys rotated", "by", byOperator, "key", r.KeyID, "signs_from", r.SignsFrom, "withdrawn", append([]string{}, r.Withdrawn...))
	if ring := p.options.StoredRing; ring != nil {
		if err := ring.rotate(ctx, c.Sessions.AbsoluteLifetime.Std()); err != nil {
			return r, err
		}
	}
	return r, nil
}

// OnKeysWithdrawn has f called whenever signing keys were withdrawn before their time, here or by another replica, after what
// they signed is refused here.
func (p *Provider) OnKeysWithdrawn(f func()) { p.keyCache.onWithdrawal(f) }

// newSigningKey makes a private key, as Dex does.
func newSigningKey(algorithm string) (*jose.JSONWebKey, error) {
	var key crypto.Signer
	var err error
	switch algorithm {
	case jwa.RS256.String():
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case jwa.ES256.String():
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		err = fmt.Errorf("algorithm %q: want RS256 or ES256", algorithm)
	}
	if err != nil {
		return nil, fmt.Errorf("provider: make a signing key: %w", err)
	}
	id := make([]byte, 20)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	return &jose.JSONWebKey{Key: key, KeyID: hex.EncodeToString(id), Algorithm: algorithm, Use: "sig"}, nil
}

// public returns the public half of a key.
func public(private *jose.JSONWebKey) *jose.JSONWebKey {
	k := private.Public()
	return &k
}

// postpone returns old keys with the signing key of next as the one that signs after a lead. If one waits already, it stays that one. No error of a clock lasts: one
// that waits for what is far off signs after the lead, too.
func postpone(old store.Keys, next storage.Keys, now time.Time, lead time.Duration) store.Keys {
	k := old
	k.NextRotation = next.NextRotation
	k.VerificationKeys = nil
	until := now
	for _, v := range next.VerificationKeys {
		if v.PublicKey.KeyID == old.SigningKey.KeyID {
			until = v.Expiry
			continue
		}
		k.VerificationKeys = append(k.VerificationKeys, v)
	}
	key, published := next.SigningKey, now
	switch {
	case k.Next == nil:
	case k.Next.SignsFrom.After(now.Add(lead + clockOff)): // it is of a clock that was ahead, and would keep all others waiting until then
		key, published = k.Next.Key, earlier(k.Next.Published, now)
	default:
		return k
	}
	k.Next = &store.NextKey{Key: key, Published: published, SignsFrom: now.Add(lead), FormerUntil: until.Add(lead)}
	return k
}

// clockOff is how far the clocks of replicas may be apart before what one of them has planned is planned anew.
const clockOff = time.Hour

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// keysAt returns keys as they are at a time: a next key has taken its place, at its own time, whoever looks and whenever.
func keysAt(k store.Keys, now time.Time) store.Keys {
	n := k.Next
	if n == nil || now.Before(n.SignsFrom) || k.SigningKey == nil {
		return k
	}
	next := k.Keys
	next.VerificationKeys = append(slices.Clone(k.VerificationKeys), storage.VerificationKey{PublicKey: k.SigningKeyPub, Expiry: n.FormerUntil})
	next.SigningKey, next.SigningKeyPub = n.Key, public(n.Key)
	k.Next = nil
	return succeed(k, next, n.Published, n.SignsFrom)
}

// published returns what is published of keys, the next one among them.
func published(k *store.Keys) storage.Keys {
	if k.Next == nil {
		return k.Keys
	}
	out := k.Keys
	out.VerificationKeys = append(slices.Clone(out.VerificationKeys), storage.VerificationKey{PublicKey: public(k.Next.Key), Expiry: k.Next.FormerUntil})
	return out
}

// idsOf returns the ids of all keys that are published.
func idsOf(k *store.Keys) []string {
	var ids []string
	if k.SigningKeyPub != nil {
		ids = append(ids, k.SigningKeyPub.KeyID)
	}
	for _, v := range published(k).VerificationKeys {
		ids = append(ids, v.PublicKey.KeyID)
	}
	return ids
}

// withdrawnSince reports whether a key that was still needed is published no more.
func withdrawnSince(old, now *store.Keys, at time.Time) bool {
	left := idsOf(now)
	gone := func(id string) bool { return !slices.Contains(left, id) }
	return gone(old.SigningKeyPub.KeyID) || slices.ContainsFunc(old.VerificationKeys, func(v storage.VerificationKey) bool {
		return at.Before(v.Expiry) && gone(v.PublicKey.KeyID)
	})
}
