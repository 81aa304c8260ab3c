package front

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
	"gatehouse/provider/identity"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/server/reqctx"
	"github.com/dexidp/dex/server/router"
)

// maxQuery bounds what is sealed into a sign-in page's URL, in bytes.
const maxQuery = 4 << 10

// A request is what somebody signs in for: the gateway's wish for a session, the account page, or an authorization request of an
// outside client. Exactly one of the three is set.
type request struct {
	gateway *handoff.Request
	account bool
	query   url.Values // of the client, checked by Dex

	sealed string // as it stands in the page's URL
	bind   string // of the issuer's pre-cookie; empty for the gateway's, which are bound to that of the app host

	until time.Time // when the identity provider's session ends, and ours with it; zero: it does not say
}

// authorization is the sealed form of an outside client's request.
type authorization struct {
	Query   string    `json:"q"`
	Account bool      `json:"a,omitempty"` // and no query: the account page
	Bind    string    `json:"b"`
	Expiry  time.Time `json:"e"`
}

var (
	errOtherBrowser = errors.New("the sign-in page belongs to another browser")
	errNoConnector  = errors.New("no connector is open that may serve this sign-in")
	errCrossSite    = errors.New("form posted from another site")
)

// sealQuery makes a request of an outside client's query, bound to the browser's pre-cookie.
func (f *Front) sealQuery(q url.Values, bind string) *request {
	a := authorization{Query: q.Encode(), Bind: bind, Expiry: f.Now().Add(handoff.RequestLifetime)}
	return &request{query: q, bind: bind, sealed: f.seal(PurposeAuthorization, a)}
}

// seal seals a plain struct for this package itself.
func (f *Front) seal(p seal.Purpose, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, bytes and times
	}
	return f.Ring.Seal(p, "", b)
}

// unseal opens what seal made.
func (f *Front) unseal(p seal.Purpose, sealed string, v any) error {
	if len(sealed) > 4*maxQuery {
		return seal.ErrInvalid
	}
	b, err := f.Ring.Open(nil, p, "", sealed)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// open returns the request in the query parameter "req". With handoff.ErrExpired the request is returned too:
// it can be begun again.
func (f *Front) open(r *http.Request) (*request, error) {
	s := r.URL.Query().Get("req")
	if g, err := handoff.OpenRequest(f.Ring, s, f.Now()); err == nil || errors.Is(err, handoff.ErrExpired) {
		return &request{gateway: &g, sealed: s}, err
	}
	var a authorization
	if err := f.unseal(PurposeAuthorization, s, &a); err != nil {
		return nil, err
	}
	req := &request{account: a.Account, bind: a.Bind, sealed: s}
	if !a.Account {
		q, err := url.ParseQuery(a.Query)
		if err != nil {
			return nil, err
		}
		req.query = q
	}
	if !f.Now().Before(a.Expiry) {
		return req, handoff.ErrExpired
	}
	return req, nil
}

// fromThisBrowser reports whether the browser is the one that the request was made for. A request of the gateway
// is bound to the app host's pre-cookie and checked when its ticket is redeemed; here it needs only some pre-cookie.
func (f *Front) fromThisBrowser(r *http.Request, bind string) bool {
	c, ok := f.preCookie(r)
	return ok && (bind == "" || c.Bound(bind))
}

func (f *Front) preCookie(r *http.Request) (handoff.PreCookie, bool) {
	c, err := r.Cookie(f.cookies.IssuerLogin)
	if err != nil {
		return handoff.PreCookie{}, false
	}
	return handoff.ParsePreCookie(c.Value)
}

// ensurePreCookie returns the browser's pre-cookie, a new one if it has none.
func (f *Front) ensurePreCookie(w http.ResponseWriter, r *http.Request) handoff.PreCookie {
	if c, ok := f.preCookie(r); ok {
		return c
	}
	c := handoff.NewPreCookie(f.Now())
	f.setCookie(w, f.cookies.IssuerLogin, c.String(), f.Issuer.Scheme == "https", http.SameSiteLaxMode)
	return c
}

// setCookie sets a host-only browser-session cookie.
func (f *Front) setCookie(w http.ResponseWriter, name, value string, secure bool, sameSite http.SameSite) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: not Secure on http hosts only, which are for development
		Name: name, Value: value, Path: "/", Secure: secure, HttpOnly: true, SameSite: sameSite,
	})
}

// client names who asked, for the audit log.
func (q *request) client() string {
	switch {
	case q == nil:
		return ""
	case q.gateway != nil:
		return "gateway " + q.gateway.Host
	case q.account:
		return "account"
	}
	return q.query.Get("client_id")
}

// own reports whether the request is ours, which go by the internal client, and not one of an outside client.
func (q *request) own() bool { return q.gateway != nil || q.account }

// scopes is what connectors are asked for.
func (q *request) scopes() connector.Scopes {
	if q.own() {
		return connector.Scopes{Groups: true}
	}
	return connector.Scopes{Groups: true, OfflineAccess: slices.Contains(strings.Fields(q.query.Get("scope")), "offline_access")}
}

// prompt reports whether the client's prompt parameter (OpenID Connect Core 1.0 section 3.1.2.1) has value v.
func (q *request) prompt(v string) bool {
	return !q.own() && slices.Contains(strings.Fields(q.query.Get("prompt")), v)
}

// target is the origin that the browser goes to after the sign-in, as a source of form-action (CSP Level 3):
// Chrome applies form-action to the redirects that follow a POST.
func (f *Front) target(q *request) string {
	if q.gateway != nil {
		origin, _ := f.Hosts.Origin(q.gateway.Host)
		return origin
	}
	if q.account {
		return ""
	}
	return formTarget(q.query.Get("redirect_uri"))
}

func formTarget(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" {
		return ""
	}
	if u.Host == "" { // a native app's own scheme (RFC 8252 section 7.1)
		return u.Scheme + ":"
	}
	return u.Scheme + "://" + u.Host
}

// sameOriginPost reports whether a form came from a page of ours: a browser says so by Origin; a script without
// Origin must at least have fetched the page, so its pre-cookie is checked by the caller.
func (f *Front) sameOriginPost(r *http.Request) bool {
	if o := r.Header.Values("Origin"); len(o) > 0 {
		return len(o) == 1 && o[0] == f.origin
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site == "" || site == "same-origin"
}

// errNoAddress means that a trusted proxy did not say where the client is.
var errNoAddress = errors.New("the header with the client's address is missing or of no use")

// ClientIP returns how to find the client's address. It fails where a trusted proxy does not tell it: the proxy's own address
// would make one client of all.
func ClientIP(header string, trusted []netip.Prefix) func(*http.Request) (string, error) {
	if header == "" {
		return func(r *http.Request) (string, error) {
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			return host, err
		}
	}
	parse := router.ParseRealIP(header, trusted)
	return func(r *http.Request) (string, error) {
		if lines := r.Header.Values(header); len(lines) > 1 { // of which the parser reads one (RFC 9110 section 5.3)
			r.Header.Set(header, strings.Join(lines, ","))
		}
		ip, err := parse(r)
		if err != nil {
			return "", err
		}
		// Only where it finds nobody else does the parser return an address that is trusted: the peer's.
		if a, err := netip.ParseAddr(ip); err != nil || slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return "", errNoAddress
		}
		return ip, nil
	}
}

// network is what the attempts of a request's client are counted by, "" where it is not known.
func (f *Front) network(r *http.Request) string {
	if !f.CountNetworks {
		return ""
	}
	n := identity.Network(remoteIP(r))
	if n == "" && f.warned.address.due(f.Now()) {
		f.Log.WarnContext(r.Context(), "a trusted proxy does not say where a client is: its attempts are counted by user name only; let it set web.clientRemoteIP.header",
			"header", f.IPHeader, "proxy", r.RemoteAddr)
	}
	return n
}

// minutely lets something be said once a minute. The zero value is ready.
type minutely struct{ last atomic.Int64 } // Unix nanoseconds

func (m *minutely) due(now time.Time) bool {
	last := m.last.Load()
	return now.UnixNano()-last >= int64(time.Minute) && m.last.CompareAndSwap(last, now.UnixNano())
}

func remoteIP(r *http.Request) string {
	ip, _ := r.Context().Value(reqctx.RequestKeyRemoteIP).(string)
	return ip
}

// requestID returns the proxy's id of the request where it looks like one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if len(id) > 64 || strings.ContainsFunc(id, func(c rune) bool {
		return c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}) {
		return ""
	}
	return id
}

func sameSecret(want, got string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(got)) == 1
}

func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}
