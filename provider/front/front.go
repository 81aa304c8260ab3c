// Package front is the front door: what a browser meets at the issuer.
//
// Dex's own login pages are never reached. Every sign-in, of the gateway and of outside clients alike, begins on
// our page; a user is proven through the connector in process; only then is Dex driven, in process too, through
// authorization, code and token. Before a credential is accepted nothing is stored: what a sign-in page is for
// travels sealed in its URL.
package front

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/connectors"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/seal"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/web"

	"github.com/dexidp/dex/server/reqctx"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// GatewayClient is the OAuth2 client id of the gateway. It exists inside this process only.
const GatewayClient = "gatehouse"

// CallbackPath is the gateway client's redirect URI below the issuer's path.
const CallbackPath = "/gatehouse/callback"

// What this package seals for itself.
const (
	PurposeAuthorization seal.Purpose = "authorization request"
	PurposeUpstream      seal.Purpose = "upstream state"
	PurposeSAML          seal.Purpose = "saml state"
	PurposeClientState   seal.Purpose = "gateway client state"
	PurposeLogout        seal.Purpose = "logout form"
	PurposeLoggedOut     seal.Purpose = "upstream logout state"
	PurposeAccount       seal.Purpose = "account page"
)

// Purposes are what a ring needs for New.
func Purposes() []seal.Purpose {
	return []seal.Purpose{handoff.PurposeRequest, handoff.PurposeTicket, handoff.PurposeCookie, PurposeAuthorization, PurposeUpstream, PurposeSAML, PurposeClientState, PurposeLogout, PurposeLoggedOut, PurposeAccount}
}

// A TokenVerifier checks a token of this issuer.
type TokenVerifier func(ctx context.Context, raw string) (Token, error)

// Options for New. All fields are needed unless they say otherwise.
type Options struct {
	Issuer *url.URL
	Dex    http.Handler
	Doors  *identity.Doors
	// Storage is what Dex sees: blocked users cannot be read.
	Storage  storage.Storage
	Sessions *session.Manager
	// ClientSecret is the gateway client's.
	ClientSecret string
	Verify       TokenVerifier // of the gateway's own ID Token
	VerifyAny    TokenVerifier // of a token for any client; ErrUnknown where nobody can say
	// Vouch asks who a user is now, for a session or token that began at since: identity.ErrEnded where it is over, another error where nobody could
	// say. nil at once where the last answer is young enough.
	Vouch func(ctx context.Context, connectorID, userID string, since time.Time) error
	// LetIn fails where the password that the password grant of ctx has just let a user in with may be a former one by now, or where nobody can say.
	LetIn func(ctx context.Context, connectorID, userID string) error
	// CheckHint refuses what is no ID Token of this issuer by its form.
	CheckHint func(raw string) error
	// VerifyHint checks an ID Token that may have expired: ErrFormerKey where it is of a key that is not published any more.
	VerifyHint TokenVerifier
	// Replayed reports whether a token of a user is void since the code that led to it was used twice.
	Replayed func(ctx context.Context, t Token, userID, connectorID string) (bool, error)
	SignOut  func(ctx context.Context, sessionID string) (next string, err error)
	// PasswordChanged ends what a user has who has just chosen another password, but for one session ("": for none). What fails of it goes on in the
	// background.
	PasswordChanged func(ctx context.Context, connectorID, userID, keptSession string)
	// Link remembers which session of the upstream a session is of, so that the upstream can end it. It fails, and ends the session, if the upstream has ended it
	// since from.Began.
	Link func(ctx context.Context, sessionID, connectorID, userID string, from identity.UpstreamSession) error
	// UpstreamLogout ends the sessions that a logout token of the upstream behind a connector names: ErrNoUpstream where there is none that sends such;
	// ErrLogoutUnknown where it could not be done now; any other error is the token's.
	UpstreamLogout func(ctx context.Context, connectorID, token string) error
	// Account is what the account page needs besides.
	Account  Account
	Ring     *seal.Ring
	Hosts    *hosts.Set // nil: a provider only, without gateway
	Prefix   string     // of the gateway's own paths on app hosts
	SameSite http.SameSite
	Pages    *web.Pages
	// SkipChoice goes straight to the only connector where it is not a password connector.
	SkipChoice bool
	// RememberMe shows the choice, Remembered is its default.
	RememberMe, Remembered bool
	// IPHeader names the header with the client's address that TrustedProxies set. Empty: the peer is the client.
	IPHeader       string
	TrustedProxies []netip.Prefix
	// CountNetworks counts failures by the client's network; only right where the client's address is known.
	CountNetworks bool
	Routes        Routes
	// AllowedOrigins may read the answers to programs (CORS), "*" is all; Headers are set on these.
	AllowedOrigins []string
	Headers        http.Header
	Refresh        *tokens.RefreshStrategy // says which refresh tokens are good
	RefreshIdle    time.Duration           // how long one may go unused; 0: for ever
	// Devices bounds how many devices wait for their user, in all configurations together; DevicesFor is how long one may.
	Devices    *Devices
	DevicesFor time.Duration
	Now        func() time.Time
	Log, Audit *slog.Logger
	Registerer prometheus.Registerer
}

// Routes says which of Dex's optional routes are open.
type Routes struct{ Device bool }

// Front is the http.Handler of the issuer.
type Front struct {
	Options
	base     string // the issuer's path
	origin   string // the issuer's scheme://host[:port]
	host     string // the issuer's canonical host
	cookies  handoff.CookieNames
	clientIP func(*http.Request) (string, error)
	signIns  *prometheus.CounterVec
	astray   *prometheus.CounterVec
	mux      *http.ServeMux
	warned   struct { // of
		address, devices, plain minutely // a missing client address, too many devices, and Kerberos over plain http
		app, near, other        minutely // requests under another host: an app's, one that browsers cannot know, any other
		path, scheme            minutely // a path that was cut on the way, and https before an issuer on http
		logout                  minutely // a logout token that is not good
	}
}

// New returns the front door.
func New(o Options) (*Front, error) {
	host, ok := hosts.Canonical(o.Issuer.Host)
	if !ok {
		return nil, errors.New("front: the issuer's host is not a host name: " + o.Issuer.Host)
	}
	f := &Front{
		Options: o,
		base:    strings.TrimSuffix(o.Issuer.Path, "/"),
		origin:  o.Issuer.Scheme + "://" + o.Issuer.Host,
		host:    host,
		cookies: handoff.Names(o.Issuer.Scheme == "https"),
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_sign_ins_total", Help: "Sign-ins by connector and result: ok, sso, or the reason of the refusal.",
		}, []string{"connector", "result"}),
		astray: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_issuer_misdirected_total", Help: "Requests for the issuer's pages that came under another host than its own (app-host, near-host, other-host) or without its path (path).",
		}, []string{"reason"}),
	}
	if err := f.register(o.Registerer); err != nil {
		return nil, err
	}
	f.clientIP = ClientIP(o.IPHeader, o.TrustedProxies)
	f.mux = f.routes()
	return f, nil
}

// maxBody is what is read of any request to the issuer, in bytes; maxAssertion of a SAML response, which may name a user's
// many groups.
const (
	maxBody      = 64 << 10
	maxAssertion = 256 << 10
)

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	limit := int64(maxBody)
	if r.Method == http.MethodPost && r.URL.Path == f.base+"/callback" {
		limit = maxAssertion
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	ip, err := f.clientIP(r)
	if err != nil {
		ip = ""
	}
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	r = r.WithContext(reqctx.WithRemoteIP(r.Context(), ip))
	if requestID(r) == "" { // no proxy has given one
		r.Header.Set("X-Request-Id", rand.Text())
	}
	f.inward(r)
	if inner, outer := f.Sessions.Config.CookieName, f.outerName(); inner != outer {
		w = &outward{ResponseWriter: w, inner: inner, outer: outer}
	}
	f.mux.ServeHTTP(w, r)
}

// routes is the allowlist of what the issuer serves. Pages belong to the issuer's own host; what other programs
// call is answered under any name that leads here.
func (f *Front) routes() *http.ServeMux {
	m := http.NewServeMux()
	page := func(pattern string, h http.HandlerFunc) {
		method, path, _ := strings.Cut(pattern, " ")
		m.HandleFunc(method+" "+f.base+path, f.ownHost(h))
	}
	page("GET /auth", remembering(f.authorize))
	page("POST /auth", remembering(f.authorize))
	page("GET /auth/{connector}", remembering(f.authorizeWith))
	page("GET /auth/{connector}/login", remembering(f.signInPage))
	page("POST /auth/{connector}/login", remembering(f.signIn))
	page("GET "+accountPath, f.accountPage)
	page("POST "+accountPath, f.endSessions)
	page("GET "+accountPath+"/password", f.newPassword)
	page("GET /auth/{connector}/password", f.passwordPage)
	page("POST /auth/{connector}/password", f.changePassword)
	page("GET /callback", remembering(f.upstreamCallback))
	page("POST /callback", remembering(f.samlCallback))
	page("GET "+CallbackPath, remembering(f.gatewayCallback))
	page("GET /logout/callback", f.leaving(f.logoutCallback))
	page("GET /logout", f.leaving(f.logout))
	page("POST /logout", f.leaving(f.logout))
	m.HandleFunc("POST "+f.base+UpstreamLogoutPath+"{connector}", f.upstreamLogout)
	for _, p := range []string{
		"/approval", "/mfa", "/mfa/totp", "/mfa/webauthn", "/mfa/webauthn/register/begin",
		"/mfa/webauthn/register/finish", "/mfa/webauthn/login/begin", "/mfa/webauthn/login/finish",
	} {
		page("GET "+p, f.dexPage)
		page("POST "+p, f.dexPage)
	}
	if f.Routes.Device {
		for _, p := range []string{"GET /device", "POST /device", "POST /device/auth/verify_code", "GET /device/callback"} {
			page(p, f.dexPage)
		}
		m.HandleFunc("POST "+f.base+"/device/code", f.deviceCode)
	}
	for _, p := range []string{
		"OPTIONS /.well-known/openid-configuration", "GET /keys", "OPTIONS /keys",
		"OPTIONS /token",
	} {
		method, path, _ := strings.Cut(p, " ")
		m.HandleFunc(method+" "+f.base+path, f.api)
	}
	m.HandleFunc("GET "+f.base+"/.well-known/openid-configuration", f.discovery)
	m.HandleFunc("POST "+f.base+"/token", f.token)
	m.HandleFunc(f.base+"/userinfo", f.userinfo)
	m.HandleFunc("POST "+f.base+"/token/introspect", f.introspect)
	page("GET /static/{file}", f.static)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.withoutPath(r)
		f.fail(w, r, web.NotFound, nil)
	})
	return m
}

// remembering serves a step of a sign-in: what it has read it does not read again, until it writes.
func remembering(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, done := store.Remember(r.Context())
		defer done()
		h(w, r.WithContext(ctx))
	}
}

// ownHost refuses pages under any other name than the issuer's: cookies and Origin checks would not hold there.
func (f *Front) ownHost(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if host, ok := hosts.Canonical(r.Host); !ok || host != f.host {
			f.underHost(r, host)
			http.Error(w, "this issuer is "+f.Issuer.String(), http.StatusMisdirectedRequest)
			return
		}
		f.overHTTPS(r)
		h(w, r)
	}
}

// static serves the files of Dex's pages, one by one: no listing.
func (f *Front) static(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=3600")
	f.Dex.ServeHTTP(w, r)
}

// result counts and records one sign-in.
func (f *Front) result(r *http.Request, req *request, connector, login, result string, err error, attrs ...slog.Attr) {
	f.signIns.WithLabelValues(connector, result).Inc()
	level, attrs := eventOf(r, req, connector, login, result, err, attrs)
	f.Audit.LogAttrs(r.Context(), level, "sign-in", attrs...)
}

// changed records one new password, or why there is none.
func (f *Front) changed(r *http.Request, req *request, connector, login, result string, err error) {
	level, attrs := eventOf(r, req, connector, login, result, err, nil)
	f.Audit.LogAttrs(r.Context(), level, "password-change", attrs...)
}

// eventOf is what an audit event tells about a user at a connector.
func eventOf(r *http.Request, req *request, connector, login, result string, err error, more []slog.Attr) (slog.Level, []slog.Attr) {
	attrs := append([]slog.Attr{
		slog.String("result", result), slog.String("connector", connector), slog.String("user", clip(login)), slog.String("client", clip(req.client())),
		slog.String("ip", remoteIP(r)), slog.String("request_id", requestID(r)),
	}, more...)
	if m, ok := methodOf(r); ok {
		attrs = append(attrs, slog.String("method", m))
	}
	if err == nil {
		return slog.LevelInfo, attrs
	}
	if no, ok := errors.AsType[*connectors.Refusal](err); !ok || no.Err != nil {
		attrs = append(attrs, slog.String("error", clip(err.Error())))
	}
	return slog.LevelWarn, attrs
}

// maxLogged bounds what a stranger can write into one field of the audit log, in bytes.
const maxLogged = 256

func clip(s string) string {
	if len(s) > maxLogged {
		return strings.ToValidUTF8(s[:maxLogged], "") + "…"
	}
	return s
}
