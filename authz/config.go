package authz

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
)

// A Claim is the part of an identity that a header carries.
type Claim string

// The claims.
const (
	ClaimEmail     Claim = "email"
	ClaimGroups    Claim = "groups" // joined by commas
	ClaimName      Claim = "name"
	ClaimUsername  Claim = "preferred_username"
	ClaimUserID    Claim = "user_id" // unique within the connector
	ClaimConnector Claim = "connector"
)

// Claims returns all claims, for messages and checks of configuration.
func Claims() []Claim {
	return []Claim{ClaimEmail, ClaimGroups, ClaimName, ClaimUsername, ClaimUserID, ClaimConnector}
}

// An IdentityHeader tells an app who the user is.
type IdentityHeader struct {
	Name  string // header name, in any case
	Claim Claim
}

// An Issuer is where the sign-in pages are.
type Issuer struct {
	Host   string // canonical, without port (hosts.Canonical)
	Path   string // such as /dex, or "" for an issuer at the root of its host
	Origin string // scheme://host[:port]
}

// Clients says how to answer a caller without a session that is neither a navigation nor a known script.
type Clients uint8

// The profiles.
const (
	ClientsStrict   Clients = iota // 401
	ClientsKubeflow                // 302 for GET and HEAD, else 403, as Kubeflow's own clients expect
)

// DefaultMaxHeader bounds the value of one identity header in bytes. Envoy accepts 60 KiB of request headers in all.
const DefaultMaxHeader = 48 << 10

// A Config is what one generation of answers is made from. It is not changed once it is applied.
type Config struct {
	Policy *policy.Policy
	Hosts  *hosts.Set
	Issuer Issuer
	// SignInPath is where, below Issuer.Path, a browser signs in. The sealed handoff.Request is added as the
	// query parameter req.
	SignInPath      string
	Prefix          string // of our own paths, such as /_gatehouse
	IdentityHeaders []IdentityHeader
	Token           *AppToken // nil: apps get none
	Clients         Clients
	SameSite        http.SameSite // of the session cookie: 0 or Lax, or Strict
	// OtherCookies are names of cookies that no app may see besides those of package handoff: the issuer's own.
	OtherCookies []string
	// PageResources are the CSP directives for the styles and images of Pages, such as
	// "style-src 'sha256-…'; img-src data:"; "" allows none.
	PageResources string
	MaxHeader     int // bytes in one identity header's value; 0 is DefaultMaxHeader
}

// ErrConfig is wrapped by every error of Server.Apply.
var ErrConfig = errors.New("authz: configuration")

// A generation is a compiled Config: immutable, one for a whole request.
type generation struct {
	Config
	headers       hygiene
	cookies       []string // names that no app may see
	signIn        string   // URL
	own           map[string]ownPath
	large         *cache[*session.Session, *principal] // those with long headers
	pagePolicy    string                               // Content-Security-Policy of pages
	signOutPolicy string                               // and of the page that asks before signing out
}

func compile(cfg *Config, number uint64, signer Signer, tokens *tokenStore, drops *dropCounters) (*generation, error) {
	g := &generation{Config: *cfg, large: newCache[*session.Session, *principal](largeSlots, maxLarge)}
	if g.MaxHeader == 0 {
		g.MaxHeader = DefaultMaxHeader
	}
	if err := errors.Join(append(validateToken(g.Token, signer, g.IdentityHeaders), g.validate())...); err != nil {
		return nil, err
	}
	g.headers = newHygiene(g.IdentityHeaders, newTokenPlan(g.Token, g.MaxHeader), tokens, g.MaxHeader, drops)
	g.headers.number = number
	for _, https := range []bool{true, false} {
		n := handoff.Names(https)
		g.cookies = append(g.cookies, n.Session, n.Login, n.IssuerLogin)
	}
	g.cookies = append(g.cookies, g.OtherCookies...)
	g.signIn = g.Issuer.Origin + g.Issuer.Path + g.SignInPath
	g.own = map[string]ownPath{
		g.Prefix + pathSession: ownSession,
		g.Prefix + pathSignIn:  ownSignIn,
		g.Prefix + pathSignOut: ownSignOut,
		g.Prefix + pathWhoAmI:  ownWhoAmI,
		"/oauth2/start":        ownSignIn,
		"/oauth2/sign_out":     ownSignOut,
	}
	g.pagePolicy = g.contentPolicy("'self'")
	g.signOutPolicy = g.contentPolicy("'none'")
	return g, nil
}

// validate returns all mistakes, joined.
func (g *generation) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	if g.Policy == nil || g.Hosts == nil {
		bad("policy and hosts are needed")
	}
	if c, ok := hosts.Canonical(g.Issuer.Host); !ok || c != g.Issuer.Host {
		bad("issuer host %q: want a canonical host name without port", g.Issuer.Host)
	}
	if scheme, rest, ok := strings.Cut(g.Issuer.Origin, "://"); !ok || (scheme != "https" && scheme != "http") || strings.ContainsAny(rest, "/?#@ ;,'\"") {
		bad("issuer origin %q: want http(s)://host[:port]", g.Issuer.Origin)
	}
	if g.Issuer.Path != "" && !plainPath(g.Issuer.Path) {
		bad("issuer path %q: want /name without a slash at the end, or nothing", g.Issuer.Path)
	}
	if !plainPath(g.SignInPath) {
		bad("sign-in path %q: want /name", g.SignInPath)
	}
	if !plainPath(g.Prefix) {
		bad("prefix %q: want /name without a slash at the end", g.Prefix)
	}
	if g.Issuer.Path != "" && (under(g.Prefix, g.Issuer.Path) || under(g.Issuer.Path, g.Prefix)) {
		bad("prefix %q and the issuer's path %q overlap: choose another prefix", g.Prefix, g.Issuer.Path)
	}
	if g.SameSite != 0 && g.SameSite != http.SameSiteLaxMode && g.SameSite != http.SameSiteStrictMode {
		bad("sameSite: want lax or strict")
	}
	if strings.ContainsAny(g.PageResources, ",\r\n") || strings.Contains(g.PageResources, "script") {
		bad("page resources %q: want CSP directives, on one line and without scripts", g.PageResources)
	}
	if g.MaxHeader < 256 {
		bad("identity header limit %d: want at least 256 bytes", g.MaxHeader)
	}
	return errors.Join(append(errs, validateHeaders(g.IdentityHeaders)...)...)
}

func validateHeaders(list []IdentityHeader) (errs []error) {
	seen := map[string]string{}
	for _, h := range list {
		name := strings.ToLower(h.Name)
		switch {
		case !httpguts.ValidHeaderFieldName(h.Name):
			errs = append(errs, fmt.Errorf("%w: identity header %q is not a header name", ErrConfig, h.Name))
		case reservedHeader(name):
			errs = append(errs, fmt.Errorf("%w: identity header %q has a meaning of its own in HTTP: choose another name", ErrConfig, h.Name))
		case seen[fold(name)] != "":
			errs = append(errs, fmt.Errorf("%w: identity headers %q and %q are the same to many apps: keep one", ErrConfig, seen[fold(name)], h.Name))
		}
		seen[fold(name)] = h.Name
		if !slices.Contains(Claims(), h.Claim) {
			errs = append(errs, fmt.Errorf("%w: identity header %q: claim %q: want one of %v", ErrConfig, h.Name, h.Claim, Claims()))
		}
	}
	return errs
}

func reservedHeader(name string) bool {
	switch fold(name) {
	case "authorization", "connection", "content-length", "content-type", "cookie", "expect", "forwarded", "host",
		"keep-alive", "origin", "proxy-authorization", "proxy-connection", "referer", "set-cookie", "te", "trailer",
		"transfer-encoding", "upgrade", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id":
		return true
	}
	return strings.HasPrefix(fold(name), "x-envoy-") || strings.HasPrefix(fold(name), "sec-")
}

// plainPath accepts /a/b of unreserved characters (RFC 3986 section 2.3), without dot segments.
func plainPath(p string) bool {
	if len(p) < 2 || p[0] != '/' {
		return false
	}
	for seg := range strings.SplitSeq(p[1:], "/") {
		if seg == "" || seg == "." || seg == ".." {
			return false
		}
		for _, c := range []byte(seg) {
			if !alphanumeric(c) && !strings.ContainsRune("-._~", rune(c)) {
				return false
			}
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// under reports whether path is prefix or below it, by whole segments.
func under(path, prefix string) bool {
	return strings.HasPrefix(path, prefix) && (len(path) == len(prefix) || path[len(prefix)] == '/')
}

// issuerOwns reports whether a canonical request is for the issuer itself.
func (g *generation) issuerOwns(r policy.Request) bool {
	return r.Host == g.Issuer.Host && (g.Issuer.Path == "" || under(r.Path, g.Issuer.Path))
}

// ownPath returns what a canonical path is to Gatehouse itself.
func (g *generation) ownPath(path string) ownPath {
	if op, ok := g.own[path]; ok {
		return op
	}
	if under(path, g.Prefix) {
		return ownUnknown
	}
	return ownNone
}

// contentPolicy returns the Content-Security-Policy of a page that the given ancestors may frame. Forms lead to this
// host or, by a redirect, to the issuer.
func (g *generation) contentPolicy(ancestors string) string {
	policy := "default-src 'none'; base-uri 'none'; form-action 'self' " + g.Issuer.Origin + "; frame-ancestors " + ancestors
	if g.PageResources != "" {
		policy += "; " + g.PageResources
	}
	return policy
}
