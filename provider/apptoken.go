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
}

// publishedFirst is how long a key has been published before it signs tokens for apps, while a former one is at hand. Who verifies
// them at a gateway asks for keys by the clock: Envoy every 10 minutes (remote_jwks, cache_duration), Istio every 20.
const publishedFirst = 30 * time.Minute

// A formerKey is what the current signing key has taken the place of.
type formerKey struct {
	key   *jose.JSONWebKey
	until time.Time
}

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

// forApps returns the key that signs a token for an app: a new one not before everybody can know it.
func (c *keyCache) forApps(expiry time.Time) (*jose.JSONWebKey, error) {
	k := c.current.Load()
	if k == nil {
		return nil, errors.New("no signing key yet")
	}
	key := k.SigningKey
	if f := c.former.Load(); f != nil && c.now().Before(f.until) && verifies(k, f.key.KeyID, expiry) {
		key = f.key
	}
	if key.Algorithm != jwa.RS256.String() && key.Algorithm != jwa.ES256.String() {
		return nil, fmt.Errorf("the signing key is for %.16q: want RS256 or ES256", key.Algorithm)
	}
	return key, nil
}

// verifies reports whether a former key stays published until a token of it expires.
func verifies(k *storage.Keys, id string, expiry time.Time) bool {
	return slices.ContainsFunc(k.VerificationKeys, func(v storage.VerificationKey) bool {
		return v.PublicKey.KeyID == id && !v.Expiry.Before(expiry)
	})
}

// superseded notes the key whose place next takes.
func (c *keyCache) superseded(next *jose.JSONWebKey) {
	if old := c.current.Load(); old != nil && old.SigningKey.KeyID != next.KeyID {
		c.former.Store(&formerKey{key: old.SigningKey, until: c.now().Add(publishedFirst)})
	}
}
