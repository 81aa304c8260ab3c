// Package handoff is what the gateway and the issuer tell each other through a browser.
//
//	app host  --Request-->  issuer     who asks for a session, and where to return
//	issuer    --Ticket--->  app host   the session, for that host and that browser only
//	app host  --Cookie--->  app host   a reference to the session
//
// All three are sealed. A Request and a Ticket are bound to one browser by a pre-cookie, of which they
// carry only a hash: a link that is stolen or planted does not work elsewhere.
package handoff

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"gatehouse/internal/seal"
)

// The purposes that a seal.Ring needs for this package.
const (
	PurposeRequest seal.Purpose = "sign-in request"
	PurposeTicket  seal.Purpose = "hand-off ticket"
	PurposeCookie  seal.Purpose = "session cookie"
)

// Lifetimes of what travels.
const (
	RequestLifetime = 10 * time.Minute // a sign-in page may stay open this long
	TicketLifetime  = time.Minute
)

// maxSealed bounds what is opened, in bytes.
const maxSealed = 8 << 10

// ErrExpired is returned for a value that was sealed here, but too long ago.
var ErrExpired = errors.New("handoff: expired")

// CookieNames are the names of the cookies on one host.
type CookieNames struct {
	Session     string // the sealed reference to the session, on the app host
	Login       string // the pre-cookie of the app host
	IssuerLogin string // the pre-cookie of the issuer's host
}

// Names returns the cookie names of a host that is served over https or, for development only, http.
// The __Host- prefix (RFC 6265bis section 4.1.3.2) keeps sub-domains from planting them.
func Names(https bool) CookieNames {
	if https {
		return CookieNames{"__Host-gatehouse", "__Host-gatehouse-login", "__Host-gatehouse-issuer-login"}
	}
	return CookieNames{"gatehouse-dev", "gatehouse-dev-login", "gatehouse-dev-issuer-login"}
}

// A Request is the gateway's wish for a session.
type Request struct {
	Host   string    `json:"h"` // canonical, without port
	Return string    `json:"r"` // path and query on Host to return to
	Bind   string    `json:"b"` // Bind of the app host's pre-cookie
	Expiry time.Time `json:"e"`
}

// Seal returns the sealed request.
func (r Request) Seal(ring *seal.Ring) string { return sealJSON(ring, PurposeRequest, r) }

// OpenRequest opens a sealed request that is not expired at now.
func OpenRequest(ring *seal.Ring, s string, now time.Time) (r Request, err error) {
	err = openJSON(ring, PurposeRequest, s, &r, &r.Expiry, now)
	return r, err
}

// A Ticket hands a session to the host that asked for it.
type Ticket struct {
	Session string    `json:"s"`
	Host    string    `json:"h"`
	Return  string    `json:"r"`
	Bind    string    `json:"b"`
	Expiry  time.Time `json:"e"`
}

// Seal returns the sealed ticket.
func (t Ticket) Seal(ring *seal.Ring) string { return sealJSON(ring, PurposeTicket, t) }

// OpenTicket opens a sealed ticket that is not expired at now.
func OpenTicket(ring *seal.Ring, s string, now time.Time) (t Ticket, err error) {
	err = openJSON(ring, PurposeTicket, s, &t, &t.Expiry, now)
	return t, err
}

func sealJSON(ring *seal.Ring, p seal.Purpose, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of strings and times
	}
	return ring.Seal(p, "", b)
}

func openJSON(ring *seal.Ring, p seal.Purpose, s string, v any, expiry *time.Time, now time.Time) error {
	if len(s) > maxSealed {
		return seal.ErrInvalid
	}
	b, err := ring.Open(nil, p, "", s)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("handoff: %w", err)
	}
	if !now.Before(*expiry) {
		return ErrExpired
	}
	return nil
}

// SealCookie returns the value of a session cookie for host, canonical and without port.
func SealCookie(ring *seal.Ring, host, session string, issued time.Time) string {
	b := make([]byte, 8, 8+len(session))
	binary.BigEndian.PutUint64(b, uint64(issued.Unix())) //nolint:gosec // G115: not before 1970
	return ring.Seal(PurposeCookie, host, append(b, session...))
}

// OpenCookie returns the session id, appended to dst, and the issue time of a session cookie of host.
func OpenCookie(dst []byte, ring *seal.Ring, host, value string) (session []byte, issued time.Time, err error) {
	if len(value) > 512 {
		return nil, time.Time{}, seal.ErrInvalid
	}
	b, err := ring.Open(dst, PurposeCookie, host, value)
	if err != nil {
		return nil, time.Time{}, err
	}
	b = b[len(dst):]
	if len(b) <= 8 {
		return nil, time.Time{}, seal.ErrInvalid
	}
	return b[8:], time.Unix(int64(binary.BigEndian.Uint64(b)), 0).UTC(), nil //nolint:gosec // G115: sealed by us
}

// A PreCookie binds a browser to its sign-ins. It is no secret of ours: a browser that changes it only
// shuts itself out.
type PreCookie struct {
	Random string
	// Rounds counts hand-offs that did not lead to a session cookie since Since: more than MaxRounds in
	// RoundsWindow is a loop, which is explained to the user instead of going on.
	Rounds int
	Since  time.Time
}

// What counts as a sign-in loop.
const (
	MaxRounds    = 5
	RoundsWindow = time.Minute
)

// NewPreCookie returns a fresh one.
func NewPreCookie(now time.Time) PreCookie { return PreCookie{Random: rand.Text(), Since: now} }

// ParsePreCookie parses a cookie value; ok is false for anything else than what String writes.
func ParsePreCookie(v string) (c PreCookie, ok bool) {
	parts := strings.Split(v, ".")
	if len(v) > 80 || len(parts) != 3 || len(parts[0]) != 26 {
		return PreCookie{}, false
	}
	rounds, err := strconv.ParseUint(parts[1], 10, 8)
	since, err2 := strconv.ParseInt(parts[2], 36, 64)
	if err != nil || err2 != nil {
		return PreCookie{}, false
	}
	c = PreCookie{Random: parts[0], Rounds: int(rounds), Since: time.Unix(since, 0).UTC()}
	if !randomText(c.Random) || c.String() != v { // it goes back into a Set-Cookie header
		return PreCookie{}, false
	}
	return c, true
}

// randomText reports whether s is of the alphabet of crypto/rand.Text, that of base32 (RFC 4648 section 6).
func randomText(s string) bool {
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// String returns the cookie value.
func (c PreCookie) String() string {
	return c.Random + "." + strconv.Itoa(c.Rounds) + "." + strconv.FormatInt(c.Since.Unix(), 36)
}

// Next returns the pre-cookie that replaces c once its ticket is redeemed: a new random value, so that no
// other ticket of c works any more. progress says that the browser already showed a live session cookie.
func (c PreCookie) Next(now time.Time, progress bool) PreCookie {
	n := NewPreCookie(now)
	if !progress && now.Sub(c.Since) < RoundsWindow {
		n.Rounds, n.Since = min(c.Rounds+1, 99), c.Since
	}
	return n
}

// Looping reports whether the browser keeps coming back without a session cookie.
func (c PreCookie) Looping(now time.Time) bool {
	return c.Rounds >= MaxRounds && now.Sub(c.Since) < RoundsWindow
}

// Bind returns the hash of the pre-cookie that Request and Ticket carry.
func (c PreCookie) Bind() string {
	sum := sha256.Sum256([]byte(c.Random))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Bound reports in constant time whether bind is of this pre-cookie.
func (c PreCookie) Bound(bind string) bool {
	return c.Random != "" && subtle.ConstantTimeCompare([]byte(c.Bind()), []byte(bind)) == 1
}
