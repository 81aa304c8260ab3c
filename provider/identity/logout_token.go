package identity

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
	"golang.org/x/sync/singleflight"

	"github.com/dexidp/dex/connector/oidc"
	"github.com/dexidp/dex/pkg/httpclient"
)

// What is taken from an OpenID Provider that says that somebody has signed out.
const (
	maxLogoutToken = 16 << 10         // bytes
	maxLogoutName  = 255              // bytes of sub, sid and jti each (OpenID Connect Core 1.0 section 2 for sub)
	maxLogoutAge   = 10 * time.Minute // of iat
	logoutSkew     = time.Minute      // of the provider's clock
	maxDocument    = 256 << 10        // bytes of its metadata and of its keys
	maxKeys        = 100
	maxCandidates  = 8 // keys that one token is tried with
	documentsFor   = time.Hour
	documentsPause = 30 * time.Second // between two questions, whoever makes us ask
	documentsLimit = 5 * time.Second  // for both
)

// logoutEvent is the event of a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.4).
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// ErrUpstreamKeys means that the keys of an OpenID Provider could not be had, so that nobody can say whether its token is good.
var ErrUpstreamKeys = errors.New("identity: the keys of the identity provider cannot be had")

// An UpstreamLogout is what a logout token says. At least one of Subject and SessionID is set.
type UpstreamLogout struct {
	Subject, SessionID string // of the provider
	ID                 string // "jti"
	Expiry             time.Time
	// SubjectIsUser says that Subject is the id of the user. It is not where the connector takes that from another claim (userIDKey).
	SubjectIsUser bool
}

// VerifyLogout verifies a logout token of the upstream (OpenID Connect Back-Channel Logout 1.0 section 2.6), all but whether its ID was there before. ok is false for
// connectors that are not of type oidc. An error is ErrUpstreamKeys, or says what is wrong with the token.
//
// Whoever sends tokens makes us fetch the upstream's keys twice a minute at most, and then only by tokens that would be good but for their signature.
func (d *Door) VerifyLogout(ctx context.Context, raw string) (_ UpstreamLogout, ok bool, err error) {
	if d.Type != typeOIDC {
		return UpstreamLogout{}, false, nil
	}
	v, err := d.handle.logouts(d.stored.Config, cmp.Or(d.doors.opts.DocumentsLimit, documentsLimit))
	if err != nil {
		return UpstreamLogout{}, true, err
	}
	l, err := v.verify(ctx, raw, d.doors.opts.Now())
	return l, true, err
}

// logouts returns the verifier of a connector's logout tokens, which generations of doors share.
func (o *handle) logouts(config []byte, limit time.Duration) (*logoutVerifier, error) {
	o.verifierOnce.Do(func() { o.verifier, o.verifierErr = newLogoutVerifier(config, limit) })
	return o.verifier, o.verifierErr
}

// A logoutVerifier verifies the logout tokens of one OpenID Provider.
type logoutVerifier struct {
	base              string // below it is the metadata, which must name it as the issuer unless that has an alias
	issuer            string // that tokens must name
	clientID, jwksURL string // jwksURL: "" for that of the metadata
	userIsSubject     bool
	http              *http.Client
	flight            singleflight.Group

	mu      sync.Mutex
	keys    jwk.Set // guarded by mu, as what follows; nil: none yet
	fetched time.Time
	tried   time.Time
}

func newLogoutVerifier(config []byte, limit time.Duration) (*logoutVerifier, error) {
	var c oidc.Config
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("identity: connector config: %w", err)
	}
	hc, err := httpclient.NewHTTPClient(c.RootCAs, c.InsecureSkipVerify)
	if err != nil {
		return nil, fmt.Errorf("identity: connector config: %w", err)
	}
	hc.Timeout = limit
	hc.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if first := via[0].URL; len(via) > 3 || r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
			return errors.New("redirected to another host, or too often")
		}
		return nil
	}
	v := &logoutVerifier{
		base: c.Issuer, issuer: c.Issuer, clientID: c.ClientID, jwksURL: c.ProviderDiscoveryOverrides.JWKSURL,
		userIsSubject: c.UserIDKey == "" || c.UserIDKey == "sub", http: hc,
	}
	if c.IssuerAlias != "" { // as in Dex: the metadata may name another issuer than tokens do
		v.issuer = c.IssuerAlias
	}
	return v, nil
}

// A logoutToken is a logout token as it came.
type logoutToken struct {
	raw    string
	alg    jwa.SignatureAlgorithm
	keyID  string
	claims map[string]json.RawMessage
}

func (v *logoutVerifier) verify(ctx context.Context, raw string, now time.Time) (UpstreamLogout, error) {
	t, err := parseLogoutToken(raw)
	if err != nil {
		return UpstreamLogout{}, err
	}
	l, err := v.check(t.claims, now) // first, since it costs nothing
	if err != nil {
		return UpstreamLogout{}, err
	}
	keys, err := v.known(ctx, now)
	if err != nil {
		return UpstreamLogout{}, err
	}
	if signedBy(keys, t) {
		return l, nil
	}
	if again, err := v.renewed(ctx, keys, now); err == nil && again != nil && signedBy(again, t) {
		return l, nil
	}
	return UpstreamLogout{}, errors.New("logout token: the signature is of no key of the identity provider")
}

// algorithms are those that a logout token may be signed with: a shared secret, and none, prove nothing. Never assigned to.
var algorithms = []jwa.SignatureAlgorithm{jwa.RS256, jwa.RS384, jwa.RS512, jwa.PS256, jwa.PS384, jwa.PS512, jwa.ES256, jwa.ES384, jwa.ES512, jwa.EdDSA}

// parseLogoutToken reads a token in the compact serialisation (RFC 7515 section 7.1), in its only spelling.
func parseLogoutToken(raw string) (logoutToken, error) {
	t := logoutToken{raw: raw}
	if len(raw) > maxLogoutToken {
		return t, fmt.Errorf("logout token: %d bytes, want at most %d", len(raw), maxLogoutToken)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || strings.ContainsAny(raw, "\r\n") { // which the decoder would pass over
		return t, errors.New("logout token: want three parts of base64url")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return t, errors.New("logout token: want base64url without padding")
		}
	}
	var head map[string]json.RawMessage
	for i, to := range []*map[string]json.RawMessage{&head, &t.claims} {
		if b := decoded[i]; !utf8.Valid(b) || !bytes.HasPrefix(b, []byte("{")) || !bytes.HasSuffix(b, []byte("}")) || json.Unmarshal(b, to) != nil {
			return t, errors.New("logout token: want one JSON object in the header, and one in the payload")
		}
	}
	var alg, typ string
	_, critical := head["crit"]
	switch {
	case critical:
		return t, errors.New("logout token: the header has crit, and there is no extension that we know")
	case text(head["alg"], &alg) != nil, !slices.Contains(algorithms, jwa.SignatureAlgorithm(alg)):
		return t, fmt.Errorf("logout token: alg %.16q, want an asymmetric one", alg)
	case head["kid"] != nil && text(head["kid"], &t.keyID) != nil:
		return t, errors.New("logout token: kid is no text")
	case head["typ"] != nil && text(head["typ"], &typ) != nil, !slices.Contains([]string{"", "jwt", "logout+jwt", "application/logout+jwt"}, strings.ToLower(typ)):
		return t, fmt.Errorf("logout token: typ %.32q, want logout+jwt", typ)
	}
	t.alg = jwa.SignatureAlgorithm(alg)
	return t, nil
}

// text reads a JSON text that is not empty and not too long.
func text(raw json.RawMessage, to *string) error {
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, to) != nil || *to == "" || len(*to) > maxLogoutName {
		return fmt.Errorf("want a text of 1 to %d bytes", maxLogoutName)
	}
	return nil
}

// numericDate reads a NumericDate (RFC 7519 section 2).
func numericDate(raw json.RawMessage) (time.Time, error) {
	var n float64
	if len(raw) == 0 || raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') || json.Unmarshal(raw, &n) != nil || math.Abs(n) > 1e11 {
		return time.Time{}, errors.New("want a number of seconds")
	}
	return time.Unix(int64(n), 0), nil
}

// check is OpenID Connect Back-Channel Logout 1.0 section 2.6 but for the signature and the replay.
func (v *logoutVerifier) check(c map[string]json.RawMessage, now time.Time) (UpstreamLogout, error) {
	l := UpstreamLogout{SubjectIsUser: v.userIsSubject}
	var iss string
	if err := text(c["iss"], &iss); err != nil || iss != v.issuer {
		return l, fmt.Errorf("logout token: iss %.100q, want %q", iss, v.issuer)
	}
	if !v.addressed(c["aud"]) {
		return l, fmt.Errorf("logout token: aud is not %q", v.clientID)
	}
	iat, err := numericDate(c["iat"])
	if err != nil {
		return l, fmt.Errorf("logout token: iat: %w", err)
	}
	exp, err := numericDate(c["exp"])
	if err != nil {
		return l, fmt.Errorf("logout token: exp: %w", err)
	}
	switch {
	case iat.After(now.Add(logoutSkew)):
		return l, errors.New("logout token: iat is in the future: is a clock wrong?")
	case iat.Before(now.Add(-maxLogoutAge)):
		return l, fmt.Errorf("logout token: iat is more than %s ago: is a clock wrong?", maxLogoutAge)
	case !now.Before(exp.Add(logoutSkew)):
		return l, errors.New("logout token: it has expired: is a clock wrong?")
	case c["nonce"] != nil:
		return l, errors.New("logout token: it has a nonce, as ID Tokens have")
	}
	if nbf, there := c["nbf"]; there {
		if at, err := numericDate(nbf); err != nil || at.After(now.Add(logoutSkew)) {
			return l, errors.New("logout token: it is not good yet (nbf)")
		}
	}
	var events map[string]json.RawMessage
	if json.Unmarshal(c["events"], &events) != nil || !bytes.HasPrefix(events[logoutEvent], []byte("{")) {
		return l, fmt.Errorf("logout token: events has no object %q", logoutEvent)
	}
	if err := text(c["jti"], &l.ID); err != nil {
		return l, fmt.Errorf("logout token: jti: %w", err)
	}
	for name, to := range map[string]*string{"sub": &l.Subject, "sid": &l.SessionID} {
		if raw, there := c[name]; there {
			if err := text(raw, to); err != nil {
				return l, fmt.Errorf("logout token: %s: %w", name, err)
			}
		}
	}
	if l.Subject == "" && l.SessionID == "" {
		return l, errors.New("logout token: it has neither sub nor sid")
	}
	l.Expiry = iat.Add(maxLogoutAge) // whatever exp says, it is refused then
	return l, nil
}

// addressed reports whether a token is for us ("aud", a text or a list of texts).
func (v *logoutVerifier) addressed(aud json.RawMessage) bool {
	var one string
	if json.Unmarshal(aud, &one) == nil {
		return one == v.clientID && one != ""
	}
	var list []string
	return json.Unmarshal(aud, &list) == nil && v.clientID != "" && slices.Contains(list, v.clientID)
}

// signedBy reports whether a token is signed by one of the keys. The algorithm must be one of the key's type, and the key's own where it names one.
func signedBy(keys jwk.Set, t logoutToken) bool {
	tried := 0
	for i := range keys.Len() {
		k, _ := keys.Key(i)
		if t.keyID != "" && k.KeyID() != t.keyID || k.KeyUsage() != "" && k.KeyUsage() != string(jwk.ForSignature) {
			continue
		}
		if own := k.Algorithm().String(); own != "" && own != t.alg.String() {
			continue
		}
		if fits, err := jws.AlgorithmsForKey(k); err != nil || !slices.Contains(fits, t.alg) {
			continue
		}
		if tried++; tried > maxCandidates {
			return false
		}
		if _, err := jws.Verify([]byte(t.raw), jws.WithKey(t.alg, k)); err == nil {
			return true
		}
	}
	return false
}

// known returns the provider's keys, fetched if there are none yet or they are old.
func (v *logoutVerifier) known(ctx context.Context, now time.Time) (jwk.Set, error) {
	v.mu.Lock()
	keys, old := v.keys, now.Sub(v.fetched) >= documentsFor || now.Before(v.fetched)
	v.mu.Unlock()
	if keys != nil && !old {
		return keys, nil
	}
	fresh, err := v.renewed(ctx, keys, now)
	switch {
	case fresh != nil:
		return fresh, nil
	case keys != nil: // old ones are better than none: the provider signs with one of them, or is refused
		return keys, nil
	case err == nil:
		err = errors.New("they were asked for a moment ago")
	}
	return nil, errors.Join(ErrUpstreamKeys, err)
}

// renewed fetches the keys again, unless somebody has a moment ago: then they are those, if they are others than had, or nil.
func (v *logoutVerifier) renewed(ctx context.Context, had jwk.Set, now time.Time) (jwk.Set, error) {
	got, err, _ := v.flight.Do("", func() (any, error) {
		v.mu.Lock()
		keys, since := v.keys, now.Sub(v.tried)
		if since >= documentsPause || since < 0 {
			v.tried = now
			v.mu.Unlock()
			fetched, err := v.fetch(context.WithoutCancel(ctx))
			if err != nil {
				return nil, err
			}
			v.mu.Lock()
			keys, v.keys, v.fetched = fetched, fetched, now
		}
		v.mu.Unlock()
		return keys, nil
	})
	if err != nil {
		return nil, err
	}
	keys, _ := got.(jwk.Set)
	if keys == had {
		return nil, nil
	}
	return keys, nil
}

// fetch reads the keys from where the provider's metadata says (OpenID Connect Discovery 1.0 section 4).
func (v *logoutVerifier) fetch(ctx context.Context) (jwk.Set, error) {
	ctx, cancel := context.WithTimeout(ctx, v.http.Timeout)
	defer cancel()
	address := v.jwksURL
	if address == "" {
		b, err := v.document(ctx, strings.TrimSuffix(v.base, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, err
		}
		var meta struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(b, &meta); err != nil {
			return nil, fmt.Errorf("metadata: %w", err)
		}
		if v.issuer == v.base && meta.Issuer != v.base {
			return nil, fmt.Errorf("metadata: issuer %.100q, want %q", meta.Issuer, v.base)
		}
		if address, err = sameProtection(v.base, meta.Keys); err != nil {
			return nil, err
		}
	}
	b, err := v.document(ctx, address)
	if err != nil {
		return nil, err
	}
	keys, err := jwk.Parse(b, jwk.WithIgnoreParseError(true)) // RFC 7517 section 5: keys of unknown types are passed over
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if keys.Len() > maxKeys {
		return nil, fmt.Errorf("keys: %d, want at most %d", keys.Len(), maxKeys)
	}
	return keys, nil
}

// sameProtection refuses an address that is less protected than the issuer's.
func sameProtection(issuer, address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(issuer, "https:")) {
		return "", fmt.Errorf("metadata: jwks_uri %.200q, want an https URL", address)
	}
	return address, nil
}

func (v *logoutVerifier) document(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := v.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d", address, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err == nil && len(b) > maxDocument {
		err = fmt.Errorf("%s is longer than %d bytes", address, maxDocument)
	}
	return b, err
}

// HearsLogout reports whether the upstream may send logout tokens.
func (d *Door) HearsLogout() bool { return d.Type == typeOIDC }
