package provider

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dexidp/dex/storage"
)

// tokenTime is when tokens are verified.
var tokenTime = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// A mint makes tokens, good and bad. Its current key is for ES256, which signs fast, its previous one for RS256.
type mint struct {
	set      *KeySet
	current  *ecdsa.PrivateKey
	previous *rsa.PrivateKey
	stranger *rsa.PrivateKey
	pem, jwk string // the previous public key, as secrets of HS256
	fetches  atomic.Int64
}

func newMint(f testing.TB) *mint {
	f.Helper()
	m := &mint{}
	var errs [3]error
	m.current, errs[0] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.previous, errs[1] = rsa.GenerateKey(rand.Reader, 2048)
	m.stranger, errs[2] = rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(errs[:]...); err != nil {
		f.Fatal(err)
	}
	old := &jose.JSONWebKey{Key: m.previous.Public(), KeyID: "previous", Algorithm: "RS256", Use: "sig"}
	keys := storage.Keys{
		SigningKey:       &jose.JSONWebKey{Key: m.current, KeyID: "current", Algorithm: "ES256", Use: "sig"},
		SigningKeyPub:    &jose.JSONWebKey{Key: m.current.Public(), KeyID: "current", Algorithm: "ES256", Use: "sig"},
		VerificationKeys: []storage.VerificationKey{{PublicKey: old, Expiry: tokenTime.Add(time.Hour)}},
		NextRotation:     tokenTime.Add(time.Hour),
	}
	m.set = &KeySet{issuer: issuer, now: func() time.Time { return tokenTime }}
	m.set.reread = func(context.Context) error { return m.set.publish(keys) }
	if err := m.set.publish(keys); err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(m.previous.Public())
	if err != nil {
		f.Fatal(err)
	}
	m.pem = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	jwk, err := json.Marshal(old)
	if err != nil {
		f.Fatal(err)
	}
	m.jwk = string(jwk)
	before := http.DefaultTransport
	http.DefaultTransport = roundTripper(func(r *http.Request) (*http.Response, error) {
		m.fetches.Add(1)
		return nil, fmt.Errorf("fetched %s", r.URL)
	})
	f.Cleanup(func() { http.DefaultTransport = before })
	return m
}

// A dice turns bytes into choices.
type dice struct{ data []byte }

func (d *dice) roll(n int) int {
	if len(d.data) == 0 {
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return int(b) % n
}

func (d *dice) of(list ...string) string { return list[d.roll(len(list))] }

// header returns a JOSE header (RFC 7515 section 4). The first of all choices is the one of a good token.
func (m *mint) header(d *dice, raw string) string {
	var h strings.Builder
	h.WriteString(`"alg":` + d.of(`"ES256"`, `"RS256"`, `"none"`, `"HS256"`, `"None"`, `"PS256"`, `"ES384"`, `""`, `null`, `["ES256"]`, `"RSA-OAEP"`))
	switch d.roll(8) {
	case 0, 1, 2:
		h.WriteString(`,"kid":"current"`)
	case 3, 4:
		h.WriteString(`,"kid":"previous"`)
	case 5:
		h.WriteString(`,"kid":` + d.of(`"../previous"`, `""`, `"Current"`, `["current"]`, `"current\u0000"`, `"unknown"`))
	case 6:
		h.WriteString(`,"kid":"current","kid":"previous"`)
	}
	stranger, _ := json.Marshal(&jose.JSONWebKey{Key: m.stranger.Public(), KeyID: "current", Algorithm: "RS256"}) // of our own making
	for range d.roll(3) {
		h.WriteString("," + d.of(`"typ":"JWT"`, `"jku":"https://evil.com/keys"`, `"x5u":"https://evil.com/chain"`, `"jwk":`+string(stranger), `"x5c":["AAAA"]`,
			`"crit":["exp"],"exp":1`, `"b64":false,"crit":["b64"]`, `"zip":"DEF"`, `"enc":"A256GCM"`, `"p2s":"AAAA","p2c":2147483647`, `"cty":"JWT"`, raw))
	}
	return "{" + h.String() + "}"
}

func (m *mint) payload(d *dice, raw string) string {
	now := tokenTime.Unix()
	at := func(after int64) string { return fmt.Sprint(now + after) }
	claims := []string{
		d.of(`"iss":"`+issuer+`"`, `"iss":"`+issuer+`"`, `"iss":"`+issuer+`/"`, `"iss":"https://evil.com"`, `"iss":["`+issuer+`"]`, `"x":1`, `"iss":"https://evil.com","iss":"`+issuer+`"`),
		d.of(`"aud":"gatehouse"`, `"aud":"gatehouse"`, `"aud":["gatehouse"]`, `"aud":["x","gatehouse"]`, `"aud":"x"`, `"aud":["gatehouse","gatehouse"],"azp":"x"`, `"aud":[]`, `"aud":1`, `"x":2`, `"aud":"gatehouse "`),
		d.of(`"exp":`+at(60), `"exp":`+at(1), `"exp":`+at(0), `"exp":`+at(-1), `"exp":`+at(0)+`.5`, `"exp":1e300`, `"exp":"`+at(60)+`"`, `"x":3`, `"exp":-1`, `"exp":null`),
		d.of(`"sub":"subject"`, `"sub":"subject"`, `"sub":""`, `"sub":1`, `"x":4`),
		d.of(`"x":5`, `"nbf":`+at(0), `"nbf":`+at(1), `"nbf":`+at(-1), `"nbf":`+at(3600), `"nbf":"x"`),
		d.of(`"x":6`, `"iat":`+at(0), `"iat":`+at(1), `"iat":`+at(3600), `"iat":-1`),
		d.of(`"sid":"session"`, `"nonce":"n","sid":1`, `"azp":["gatehouse"]`),
	}
	if d.roll(6) == 5 {
		claims = append(claims, raw)
	}
	return "{" + strings.Join(claims, ",") + "}"
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign signs as one of those who could try.
func (m *mint) sign(d *dice, input string) string {
	sum := sha256.Sum256([]byte(input))
	mac := func(secret string) string {
		h := hmac.New(sha256.New, []byte(secret))
		h.Write([]byte(input))
		return string(h.Sum(nil))
	}
	rsaSign := func(key *rsa.PrivateKey) string {
		s, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
		if err != nil {
			panic(err)
		}
		return string(s)
	}
	switch d.roll(12) {
	case 6:
		return rsaSign(m.previous)
	case 7:
		return rsaSign(m.stranger)
	case 8:
		return mac(m.pem)
	case 9:
		return mac(m.jwk)
	case 10:
		return ""
	case 11:
		return string(sum[:])
	}
	r, s, err := ecdsa.Sign(rand.Reader, m.current, sum[:])
	if err != nil {
		panic(err)
	}
	return string(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// serialise writes a token, mostly in the compact form.
func serialise(d *dice, header, payload, signature string) string {
	compact := header + "." + payload + "." + signature
	switch d.roll(24) {
	case 8:
		return `{"payload":"` + payload + `","protected":"` + header + `","signature":"` + signature + `"}`
	case 9:
		return `{"payload":"` + payload + `","signatures":[{"protected":"` + header + `","signature":"` + signature + `"}]}`
	case 10:
		return " " + compact
	case 11:
		return compact + "\n"
	case 12:
		return header + "." + payload + "." + signature + "=="
	case 13:
		return strings.NewReplacer("-", "+", "_", "/").Replace(compact)
	case 14:
		return compact + "."
	case 15:
		return compact + ".a.b"
	case 16:
		return strings.Repeat(".", 64)
	case 17:
		return header + "\r\n." + payload + "." + signature
	case 18:
		return header + "." + payload + "." + header + "." + payload + "." + signature
	case 19:
		return compact[:len(compact)-1] + "_" // other bits at the end that decode to nothing
	case 20:
		return header + "." + payload + "."
	case 21:
		return `"` + compact + `"`
	case 22:
		return b64(`{"alg":"ES256","kid":"current","cty":"JWT"}`) + "." + b64(compact) + "." + signature
	}
	return compact
}

// judge returns why a token must not be accepted, as RFC 7515, RFC 7519 and OpenID Connect Core 1.0 section 3.1.3.7 have it. It uses the
// standard library only. The algorithm is that of the key, and the header must say so.
func (m *mint) judge(raw, audience string) error {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return errors.New("not of three parts")
	}
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil || strings.ContainsAny(p, "\r\n") {
			return fmt.Errorf("part %d is not base64url in its only spelling", i)
		}
	}
	var h map[string]any // the last one of a name counts, in these very letters
	if err := json.Unmarshal(decoded[0], &h); err != nil {
		return err
	}
	if h["crit"] != nil {
		return errors.New("an extension that must be understood")
	}
	kid, _ := h["kid"].(string)
	if alg := map[string]string{"current": "ES256", "previous": "RS256"}[kid]; h["alg"] != alg {
		return fmt.Errorf("algorithm %v with the key %q", h["alg"], kid)
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	switch sig := decoded[2]; kid {
	case "current":
		if len(sig) != 64 || !ecdsa.Verify(&m.current.PublicKey, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
			return errors.New("not signed by the current key")
		}
	case "previous":
		if err := rsa.VerifyPKCS1v15(&m.previous.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
			return err
		}
	default:
		return fmt.Errorf("no key of ours is %q", kid)
	}
	return judgeClaims(decoded[1], audience)
}

func judgeClaims(payload []byte, audience string) error {
	var c struct {
		Iss, Sub string
		Aud      json.RawMessage

		Exp, Nbf, Iat json.RawMessage
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return err
	}
	var aud []string
	if json.Unmarshal(c.Aud, &aud) != nil {
		aud = make([]string, 1)
		if err := json.Unmarshal(c.Aud, &aud[0]); err != nil && audience != "" {
			return err
		}
	}
	exp, expErr := numericDate(c.Exp)
	nbf, nbfErr := numericDate(c.Nbf)
	_, iatErr := numericDate(c.Iat)
	now := float64(tokenTime.Unix())
	switch {
	case c.Iss != issuer:
		return fmt.Errorf("issuer %q", c.Iss)
	case c.Sub == "":
		return errors.New("no subject")
	case audience != "" && !slices.Contains(aud, audience):
		return fmt.Errorf("audience %q", aud)
	case expErr != nil || exp <= now:
		return errors.New("expired")
	case c.Nbf != nil && (nbfErr != nil || nbf > now):
		return errors.New("not yet valid")
	case c.Iat != nil && iatErr != nil:
		return errors.New("issued at no time")
	}
	return nil
}

// numericDate reads a NumericDate, a JSON number (RFC 7519 section 2).
func numericDate(raw json.RawMessage) (float64, error) { return strconv.ParseFloat(string(raw), 64) }

// FuzzVerify holds that what verifies was signed by a key of ours with that key's algorithm, over these very bytes, for
// us and now; that a good token does; and that nothing is fetched on the way.
func FuzzVerify(f *testing.F) {
	m := newMint(f)
	f.Add([]byte{}, `"typ":"JWT"`, `"x":0`, uint16(0))
	for i := range 24 { // each form of a good token
		f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(i)}, "", "", uint16(0))
	}
	for i := range 11 { // each algorithm, with each signature
		f.Add([]byte{byte(i), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(i + 1), 0}, "", "", uint16(0))
		f.Add([]byte{byte(i), 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(i + 1), 0}, "", "", uint16(0))
		f.Add([]byte{0, 0, 1, byte(i), 0, 0, byte(i), 0, 0, 0, 0, 0, 0}, `"alg":"none"`, `"exp":1`, uint16(0))
		f.Add([]byte{0, 0, 0, byte(i % 7), byte(i), byte(i), byte(i % 5), byte(i % 6), byte(i % 5), 0, 5, 0, 0}, "", `"aud":"x"`, uint16(3*i))
	}
	for claim := range 7 { // each claim, alone, in each form
		for form := range 10 {
			choices := make([]byte, 13)
			choices[3+claim] = byte(form)
			f.Add(choices, "", "", uint16(0))
		}
	}
	f.Fuzz(func(t *testing.T, choices []byte, rawHeader, rawClaim string, flip uint16) {
		d := &dice{choices}
		header, payload := b64(m.header(d, rawHeader)), b64(m.payload(d, rawClaim))
		raw := serialise(d, header, payload, b64(m.sign(d, header+"."+payload)))
		if at := int(flip) - 1; at >= 0 && at < len(raw) {
			raw = raw[:at] + string(raw[at]^1) + raw[at+1:]
		}
		for _, audience := range []string{"gatehouse", ""} {
			tok, err := m.set.Verify(context.Background(), raw, audience) //nolint:usetesting // the context of a fuzz target is not made for 10,000 runs a second
			if bad := m.judge(raw, audience); err == nil && bad != nil {
				t.Fatalf("%s\nis accepted for %q as %+v: %v", raw, audience, tok, bad)
			}
			if err != nil && (tok.Subject != "" || tok.SessionID != "" || tok.Client != "") {
				t.Fatalf("%s: got %+v beside %v", raw, tok, err)
			}
			if len(choices) == 0 && flip == 0 && (err != nil || tok.Subject != "subject" || tok.SessionID != "session" || tok.Client != "gatehouse") {
				t.Fatalf("a good token: %s: got %+v, %v", raw, tok, err)
			}
		}
		if n := m.fetches.Load(); n != 0 {
			t.Fatalf("%s: %d fetches", raw, n)
		}
	})
}

// FuzzVerifyBytes holds that of what a client makes up, or makes of a good token by one change, nothing is accepted.
func FuzzVerifyBytes(f *testing.F) {
	m := newMint(f)
	d := &dice{}
	header, payload := b64(m.header(d, "")), b64(m.payload(d, ""))
	good := header + "." + payload + "." + b64(m.sign(d, header+"."+payload))
	if _, err := m.set.Verify(context.Background(), good, "gatehouse"); err != nil {
		f.Fatal(err)
	}
	for i, s := range []string{"", ".", "..", "A", "=", " ", "\n", "....", "-", "+"} {
		f.Add(s, uint16(0), uint16(0))
		f.Add(s, uint16(71*i), uint16(71*i))
		f.Add(s, uint16(len(good)), uint16(len(good)))
	}
	f.Fuzz(func(t *testing.T, text string, from, to uint16) {
		a := min(int(from), len(good))
		b := max(a, min(int(to), len(good)))
		for _, raw := range []string{text, good[:a] + text + good[b:]} {
			if _, err := m.set.Verify(context.Background(), raw, ""); err == nil && raw != good { //nolint:usetesting // as above
				t.Fatalf("%q is accepted; the good one is %q", raw, good)
			}
		}
	})
}
