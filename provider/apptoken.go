package provider

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/lestrrat-go/jwx/v2/jwa"

	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// An AppToken is what a token says that the gateway hands to an app (front.AppTokenType).
type AppToken struct {
	ConnectorID, UserID            string
	Email, Name, PreferredUsername string
	Groups                         []string
	Audience                       string
	IssuedAt, Expiry               time.Time
}

// appClaims are the claims as they stand in the token. There is no session id: whoever reads a token is not to learn it.
type appClaims struct {
	Issuer            string   `json:"iss"`
	Subject           string   `json:"sub"`
	Audience          string   `json:"aud"`
	Expiry            int64    `json:"exp"`
	IssuedAt          int64    `json:"iat"`
	Email             string   `json:"email,omitempty"`
	Name              string   `json:"name,omitempty"`
	PreferredUsername string   `json:"preferred_username,omitempty"`
	Groups            []string `json:"groups"`
	Federated         struct {
		Connector string `json:"connector_id"`
		UserID    string `json:"user_id"`
	} `json:"federated_claims"` // as Dex has them in an ID Token of the scope federated:id
}

// publishedFirst is how long a key has been published before it signs tokens for apps, while another one is at hand. Who verifies
// them at a gateway asks for keys by the clock: Envoy every 10 minutes (remote_jwks, cache_duration), Istio every 20.
const publishedFirst = 30 * time.Minute

// maxAppTokenLife is the longest life of a token for an app (gateway.identity.token.ttl).
const maxAppTokenLife = time.Hour

// maxFormerKeys bounds the former keys that are kept for signing: one that signs, and the one that follows it. Were keys made every
// minute, those between them would never sign a token for an app.
const maxFormerKeys = 2

// SignAppToken signs a token for an app. Its subject is that of the user's ID Tokens. It reads nothing but memory.
func (p *Provider) SignAppToken(t *AppToken) (string, error) {
	subject, err := tokens.GenSubject(t.UserID, t.ConnectorID)
	if err != nil {
		return "", fmt.Errorf("app token: subject: %w", err)
	}
	claims := appClaims{
		Issuer: p.keys.issuer, Subject: subject, Audience: t.Audience, Expiry: t.Expiry.Unix(), IssuedAt: t.IssuedAt.Unix(),
		Email: t.Email, Name: t.Name, PreferredUsername: t.PreferredUsername, Groups: t.Groups,
	}
	claims.Federated.Connector, claims.Federated.UserID = t.ConnectorID, t.UserID
	if claims.Groups == nil {
		claims.Groups = []string{}
	}
	payload, err := marshal(claims)
	if err != nil {
		return "", fmt.Errorf("app token: %w", err)
	}
	key, err := p.keyCache.forApps(t.Expiry)
	if err != nil {
		return "", fmt.Errorf("app token: %w", err)
	}
	opts := (&jose.SignerOptions{}).WithType(front.AppTokenType)
	signer, err := jose.NewSigner(jose.SigningKey{Key: key, Algorithm: jose.SignatureAlgorithm(key.Algorithm)}, opts)
	if err != nil {
		return "", fmt.Errorf("app token: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("app token: %w", err)
	}
	return signed.CompactSerialize()
}

// marshal is json.Marshal without its escapes for HTML: groups such as "R&D" would be longer by five bytes each.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// forApps returns the key that signs a token for an app: of those that stay published until it expires, the newest that everybody can know, or
// else the one that is published for the longest time.
func (c *keyCache) forApps(expiry time.Time) (*jose.JSONWebKey, error) {
	k := c.effective()
	if k == nil {
		return nil, errors.New("no signing key yet")
	}
	key, published := k.SigningKey, k.Published
	known := c.now().Add(-publishedFirst)
	for _, f := range slices.Backward(k.Former) {
		if !published.After(known) {
			break
		}
		if verifies(&k.Keys, f.Key.KeyID, expiry) {
			key, published = f.Key, f.Published
		}
	}
	if key.Algorithm != jwa.RS256.String() && key.Algorithm != jwa.ES256.String() {
		return nil, fmt.Errorf("the signing key is for %.16q: want RS256 or ES256", key.Algorithm)
	}
	return key, nil
}

// verifies reports whether a former key stays published until then.
func verifies(k *storage.Keys, id string, until time.Time) bool {
	return slices.ContainsFunc(k.VerificationKeys, func(v storage.VerificationKey) bool {
		return v.PublicKey.KeyID == id && !v.Expiry.Before(until)
	})
}

// succeed returns the keys that follow old ones, with the former ones that may still sign tokens for apps: Dex throws a signing key away
// when it makes a new one, and publishes it only as long as ID Tokens need it. What is published no more is not kept. A new signing key is published since
// the given time.
func succeed(old store.Keys, next storage.Keys, published, now time.Time) store.Keys {
	k := store.Keys{Keys: next, Published: old.Published, Former: slices.Clone(old.Former), Next: old.Next}
	k.VerificationKeys = slices.Clone(next.VerificationKeys)
	switch {
	case old.SigningKey == nil:
		k.Published = published
	case next.SigningKey == nil || next.SigningKey.KeyID != old.SigningKey.KeyID:
		k.Published = published
		k.Former = append(k.Former, store.FormerKey{Key: old.SigningKey, Published: old.Published})
	}
	k.Former = slices.DeleteFunc(k.Former, func(f store.FormerKey) bool { return !verifies(&next, f.Key.KeyID, now) })
	for len(k.Former) > 1 && !k.Former[1].Published.After(now.Add(-publishedFirst)) { // it signs in place of the first
		k.Former = k.Former[1:]
	}
	k.Former = k.Former[:min(len(k.Former), maxFormerKeys)]
	for i, v := range k.VerificationKeys {
		needed := now.Add(publishedFirst + maxAppTokenLife)
		signs := slices.ContainsFunc(k.Former, func(f store.FormerKey) bool { return f.Key.KeyID == v.PublicKey.KeyID })
		if signs && v.Expiry.Before(needed) {
			k.VerificationKeys[i].Expiry = needed
		}
	}
	return k
}
