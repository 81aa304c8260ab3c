// Package front is the front door: what a browser meets at the issuer.
//
// Dex's own login pages are never reached. Every sign-in, of the gateway and of outside clients alike, begins on
// our page; a user is proven through the connector in process; only then is Dex driven, in process too, through
// authorization, code and token. Before a credential is accepted nothing is stored: what a sign-in page is for
// travels sealed in its URL.
package front

import (
	"context"
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
	"gatehouse/web"

	"github.com/dexidp/dex/server/reqctx"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/storage"
)

// GatewayClient is the OAuth2 client id of the gateway. It exists inside this process only.
const GatewayClient = "gatehouse"

// CallbackPath is the gateway client's redirect URI below the issuer's path.
const CallbackPath = "/gatehouse/callback"

// PurposeAuthorization and PurposeState are for what this package seals for itself.
const (
	PurposeAuthorization seal.Purpose = "authorization request"
	PurposeUpstream      seal.Purpose = "upstream state"
	PurposeClientState   seal.Purpose = "gateway client state"
)

// Purposes are what a ring needs for New.
func Purposes() []seal.Purpose {
	return []seal.Purpose{handoff.PurposeRequest, handoff.PurposeTicket, handoff.PurposeCookie, PurposeAuthorization, PurposeUpstream, PurposeClientState}
}

// A TokenVerifier checks an ID Token of this issuer for the gateway's client and returns its nonce and session id.
type TokenVerifier func(ctx context.Context, raw string) (nonce, sessionID string, err error)

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
	Verify       TokenVerifier
	SignOut      func(ctx context.Context, sessionID string) (next string, err error)
	Ring         *seal.Ring
	Hosts        *hosts.Set // nil: a provider only, without gateway
	Prefix       string     // of the gateway's own paths on app hosts
	SameSite     http.SameSite
	Pages        *web.Pages
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
	Now           func() time.Time
	Log, Audit    *slog.Logger
	Registerer    prometheus.Registerer
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
	mux      *http.ServeMux
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
	}
	if err := o.Registerer.Register(f.signIns); err != nil {
		return nil, err
	}
	f.clientIP = realIP(o.IPHeader, o.TrustedProxies)
	f.mux = f.routes()
	return f, nil
}

// maxBody is what is read of any request to the issuer, in bytes.
const maxBody = 64 << 10

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	ip, err := f.clientIP(r)
	if err != nil {
		ip = ""
	}
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	f.mux.ServeHTTP(w, r.WithContext(reqctx.WithRemoteIP(r.Context(), ip)))
}

// routes is the allowlist of what the issuer serves. Pages belong to the issuer's own host; what other programs
// call is answered under any name that leads here.
func (f *Front) routes() *http.ServeMux {
	m := http.NewServeMux()
	page := func(pattern string, h http.HandlerFunc) {
		method, path, _ := strings.Cut(pattern, " ")
		m.HandleFunc(method+" "+f.base+path, f.ownHost(h))
	}
	page("GET /auth", f.authorize)
	page("POST /auth", f.authorize)
	page("GET /auth/{connector}", f.authorizeWith)
	page("GET /auth/{connector}/login", f.signInPage)
	page("POST /auth/{connector}/login", f.signIn)
	page("GET /callback", f.upstreamCallback)
	page("POST /callback", f.dexPage) // SAML's POST binding
	page("GET "+CallbackPath, f.gatewayCallback)
	page("GET /logout/callback", f.logoutCallback)
	page("GET /logout", f.dexPage)
	page("POST /logout", f.dexPage)
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
		m.HandleFunc("POST "+f.base+"/device/code", f.api)
	}
	for _, p := range []string{
		"GET /.well-known/openid-configuration", "OPTIONS /.well-known/openid-configuration", "GET /keys", "OPTIONS /keys",
		"POST /token", "OPTIONS /token", "GET /userinfo", "POST /userinfo", "OPTIONS /userinfo",
	} {
		method, path, _ := strings.Cut(p, " ")
		m.HandleFunc(method+" "+f.base+path, f.api)
	}
	m.HandleFunc("POST "+f.base+"/token/introspect", f.introspect)
	page("GET /static/{file}", f.static)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { f.fail(w, r, web.NotFound, nil) })
	return m
}

// ownHost refuses pages under any other name than the issuer's: cookies and Origin checks would not hold there.
func (f *Front) ownHost(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if host, ok := hosts.Canonical(r.Host); !ok || host != f.host {
			http.Error(w, "this issuer is "+f.Issuer.String(), http.StatusMisdirectedRequest)
			return
		}
		h(w, r)
	}
}

// static serves the files of Dex's pages, one by one: no listing.
func (f *Front) static(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=3600")
	f.Dex.ServeHTTP(w, r)
}

// api passes a request of a program to Dex, except those that claim to be the gateway's own client.
func (f *Front) api(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			http.Error(w, "malformed form", http.StatusBadRequest)
			return
		}
		// RFC 6749 section 2.3.1: form-encoded within Basic.
		if user, _, _ := r.BasicAuth(); unescape(user) == GatewayClient || r.Form.Get("client_id") == GatewayClient {
			f.oauthError(w, http.StatusUnauthorized, "invalid_client", "this client is internal")
			return
		}
	}
	f.Dex.ServeHTTP(w, r)
}

// introspect is Dex's token introspection for clients only (RFC 7662 section 2.1 wants authorization, Dex asks none).
func (f *Front) introspect(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "malformed form", http.StatusBadRequest)
		return
	}
	id, secret, basic := r.BasicAuth()
	if basic { // RFC 6749 section 2.3.1: form-encoded within Basic
		id, secret = unescape(id), unescape(secret)
	} else {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	c, err := f.Storage.GetClient(r.Context(), id)
	if err != nil || id == GatewayClient || c.Public || !sameSecret(c.Secret, secret) {
		w.Header().Set("WWW-Authenticate", `Basic realm="introspection"`)
		f.oauthError(w, http.StatusUnauthorized, "invalid_client", "introspection needs the credentials of a confidential client")
		return
	}
	f.Dex.ServeHTTP(w, r)
}

// result counts and records one sign-in.
func (f *Front) result(r *http.Request, req *request, connector, login, result string, err error, attrs ...slog.Attr) {
	f.signIns.WithLabelValues(connector, result).Inc()
	level := slog.LevelInfo
	attrs = append([]slog.Attr{
		slog.String("result", result), slog.String("connector", connector), slog.String("user", login), slog.String("client", req.client()),
		slog.String("ip", remoteIP(r)), slog.String("request_id", requestID(r)),
	}, attrs...)
	if err != nil {
		level = slog.LevelWarn
		var no *connectors.Refusal
		if !errors.As(err, &no) || no.Err != nil {
			attrs = append(attrs, slog.String("error", err.Error()))
		}
	}
	f.Audit.LogAttrs(r.Context(), level, "sign-in", attrs...)
}
