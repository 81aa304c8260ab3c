package config

import (
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gatehouse/internal/hosts"
	"gatehouse/internal/nearest"
)

// A checker looks at what a decoded file says: values, references, and what does not go together. It fills in
// what is derived.
type checker struct {
	*decoder
	opts Options
	c    *Config

	https bool // the issuer is served over https
}

func (k *checker) check() {
	k.issuer()
	k.storage()
	k.web()
	k.sessions() // before the gateway, which has the same lifetimes
	k.mfa()
	k.connectors()
	k.clients()
	k.passwords()
	k.oauth2()
	k.expiry()
	k.frontend()
	k.logger()
	k.gateway()
	k.listeners()
	k.reach()
}

// oneOf reports a value that is not among those wanted. A value that is not there passes.
func (k *checker) oneOf(path, got string, wanted ...string) {
	if got == "" || slices.Contains(wanted, got) {
		return
	}
	hint := ""
	if near := nearest.Word(got, wanted); near != "" && len(wanted) > 2 {
		hint = ": did you mean " + near + "?"
	}
	k.errorf(path, "want %s, got %q%s", ours(orList(wanted)), got, ours(hint))
}

func orList(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func (k *checker) between(path string, got, low, high Duration) {
	if !k.failed(path) && (got < low || got > high) {
		k.errorf(path, "want %s to %s, got %s", ours(low.String()), ours(high.String()), got)
	}
}

var cleanPath = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)*$`)

func (k *checker) issuer() {
	const path = "issuer"
	issuer := k.c.Issuer
	if issuer == "" {
		if !k.failed(path) {
			k.errorf(path, "is missing: set it to the URL under which browsers and apps reach Gatehouse, such as https://auth.example.com/dex")
		}
		return
	}
	u, err := url.Parse(issuer)
	if err != nil || u.Opaque != "" || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		k.errorf(path, "want an absolute URL such as https://auth.example.com/dex, got %q", withoutUser(issuer))
		return
	}
	k.c.IssuerURL, k.https = u, u.Scheme == "https"
	before := len(k.errs)
	if u.User != nil {
		k.errorf(path, "holds a user name: remove it")
	}
	if u.RawQuery != "" || u.ForceQuery || strings.Contains(issuer, "#") {
		k.errorf(path, "must not have a query or a fragment: remove what follows the path")
	}
	k.issuerHost(u)
	if clean := strings.TrimRight(u.Path, "/"); clean != u.Path {
		k.errorf(path, "must not end in a slash: write %s", withoutUser(strings.TrimRight(issuer, "/")))
	} else if u.RawPath != "" || !cleanPath.MatchString(u.Path) || hasDotSegment(u.Path) {
		k.errorf(path, "want a path of letters, digits and . _ ~ - between single slashes, got %q", u.EscapedPath())
	}
	if !k.https && before == len(k.errs) {
		k.warnf(path, "is served over http: passwords and cookies cross the network in clear; use https for anything but a try")
	}
}

func (k *checker) issuerHost(u *url.URL) {
	const path = "issuer"
	if name, ok := hosts.Canonical(u.Host); !ok || name != strings.TrimSuffix(u.Host, portSuffix(u)) {
		k.errorf(path, "want a host name in lower case without a trailing dot, got %q", u.Host)
		return
	}
	port := u.Port()
	if n, err := strconv.Atoi(port); port != "" && (err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != port) {
		k.errorf(path, "want a port of 1 to 65535, got %q", port)
	}
	if port == "443" && k.https || port == "80" && !k.https {
		k.errorf(path, "must not name the default port: browsers leave it out; remove :%s", port)
	}
	if strings.HasSuffix(u.Host, ":") {
		k.errorf(path, "has a colon without a port: remove it")
	}
}

func portSuffix(u *url.URL) string {
	if port := u.Port(); port != "" {
		return ":" + port
	}
	if strings.HasSuffix(u.Host, ":") {
		return ":"
	}
	return ""
}

func hasDotSegment(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// withoutUser hides what may be a password in a URL that is shown.
func withoutUser(u string) string {
	if i := strings.LastIndexByte(u, '@'); i >= 0 {
		scheme, _, ok := strings.Cut(u[:i], "://")
		if !ok {
			return "[redacted]" + u[i:]
		}
		return scheme + "://[redacted]" + u[i:]
	}
	return u
}

// directory warns of a directory that is not there: it may be made before the start, or be on another machine.
func (k *checker) directory(path, dir string) {
	switch mode, err := k.opts.Mode(dir); {
	case errors.Is(err, fs.ErrNotExist):
		k.warnf(path, "the directory %s does not exist: make it, or gatehouse serve will not start", dir)
	case err == nil && !mode.IsDir():
		k.warnf(path, "%s is not a directory: gatehouse serve will not start; choose another path", dir)
	}
}

func (k *checker) web() {
	w := &k.c.Web
	if w.HTTP == "" && w.HTTPS == "" && !k.failed("web.http") && !k.failed("web.https") {
		w.HTTP = "0.0.0.0:5556"
	}
	k.webTLS(w)
	for name, value := range w.Headers.byKey() {
		if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }) {
			k.errorf(child("web.headers", name), "want visible ASCII on one line")
		}
	}
	k.oneOf("web.headers.X-Frame-Options", strings.ToLower(w.Headers.XFrameOptions), "deny", "sameorigin")
	k.oneOf("web.headers.X-Content-Type-Options", strings.ToLower(w.Headers.XContentTypeOptions), "nosniff")
	k.clientRemoteIP(&w.ClientRemoteIP)
	if k.c.Telemetry.EnableProfiling {
		k.errorf("telemetry.enableProfiling", "the telemetry port has metrics and health only: remove the key")
	}
}

func (k *checker) clientRemoteIP(ip *ClientRemoteIP) {
	const path = "web.clientRemoteIP"
	for i, text := range ip.TrustedProxies {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			k.errorf(element(path+".trustedProxies", i), "want a network such as 10.0.0.0/8, got %q", text)
			continue
		}
		ip.Prefixes = append(ip.Prefixes, prefix.Masked())
	}
	if ip.Header != "" && !isHeaderName(strings.ToLower(ip.Header)) {
		k.errorf(path+".header", "want the name of a header such as X-Forwarded-For, got %q", ip.Header)
	}
	switch {
	case ip.Header != "" && len(ip.TrustedProxies) == 0:
		k.warnf(path+".header", "has no effect without trustedProxies, since any client could send the header: name the networks of your proxies")
	case ip.Header == "" && len(ip.TrustedProxies) > 0:
		k.warnf(path+".trustedProxies", "has no effect without header: name the header that they set, such as X-Forwarded-For")
	}
}

// sessions joins the lifetimes of sessions and gateway.session: Dex's session is the gateway's.
func (k *checker) sessions() {
	s := &k.c.Sessions
	var own GatewaySession
	if k.c.Gateway != nil {
		own = k.c.Gateway.Session
	}
	const idlePath, absolutePath = "gateway.session.idle", "gateway.session.absolute"
	k.join(&s.AbsoluteLifetime, own.Absolute, "sessions.absoluteLifetime", absolutePath)
	k.join(&s.ValidIfNotUsedFor, own.Idle, "sessions.validIfNotUsedFor", idlePath)
	idleAt, absoluteAt := k.given(idlePath, "sessions.validIfNotUsedFor"), k.given(absolutePath, "sessions.absoluteLifetime")
	k.between(absoluteAt, s.AbsoluteLifetime, Duration(5*time.Minute), Duration(8760*time.Hour))
	switch {
	case idleAt == "": // the default follows a shorter absolute lifetime
		s.ValidIfNotUsedFor = min(s.ValidIfNotUsedFor, s.AbsoluteLifetime)
	case s.ValidIfNotUsedFor > s.AbsoluteLifetime:
		k.errorf(idleAt, "is %s, longer than the absolute lifetime of %s: shorten it", s.ValidIfNotUsedFor, s.AbsoluteLifetime)
	default:
		k.between(idleAt, s.ValidIfNotUsedFor, Duration(time.Minute), Duration(8760*time.Hour))
	}
	if k.c.Gateway != nil {
		k.c.Gateway.Session.Idle, k.c.Gateway.Session.Absolute = s.ValidIfNotUsedFor, s.AbsoluteLifetime
	}
	k.cookieName(s.CookieName)
	if !s.CookieEncryptionKey.IsZero() {
		k.warnf("sessions.cookieEncryptionKey", "has no effect: the cookie is always encrypted, with a key derived from those of gateway.keys.file or the storage; remove it")
	}
	k.oneOf("sessions.ssoSharedWithDefault", s.SSOSharedWithDefault, "none", "all")
}

// join lets own take the place of dex, whose default stands where the file has neither.
func (k *checker) join(dex *Duration, own Duration, dexPath, ownPath string) {
	switch {
	case !k.has(ownPath) || k.failed(ownPath):
	case k.has(dexPath) && own != *dex:
		k.errorf(ownPath, "is %s, but %s is %s: they are one setting, so remove one of them", own, ours(dexPath), *dex)
	default:
		*dex = own
	}
}

// given returns the first of paths that the file has, or "".
func (k *checker) given(paths ...string) string {
	for _, p := range paths {
		if k.has(p) {
			return p
		}
	}
	return ""
}

func (k *checker) cookieName(name string) {
	const path = "sessions.cookieName"
	switch lower := strings.ToLower(name); {
	case !isToken(name):
		k.errorf(path, "want a cookie name of letters, digits and - _ ., got %q", name)
	case strings.HasPrefix(lower, "__host-"), strings.HasPrefix(lower, "__secure-"):
		k.errorf(path, "must not start with __Host- or __Secure-: the cookie is for the issuer's path only; remove the prefix")
	case lower == "gatehouse-dev", strings.HasPrefix(lower, "gatehouse-dev-"):
		k.errorf(path, "%q is the name of the gateway's own cookie: take another one, such as gatehouse-sso", name)
	}
}

func (k *checker) oauth2() {
	o := &k.c.OAuth2
	for i, t := range o.GrantTypes {
		k.oneOf(element("oauth2.grantTypes", i), t, append(connectorGrants(), "client_credentials")...)
	}
	for i, t := range o.ResponseTypes {
		k.oneOf(element("oauth2.responseTypes", i), t,
			"code", "token", "id_token", "code token", "code id_token", "id_token token", "code id_token token")
	}
	for i, m := range o.PKCE.CodeChallengeMethodsSupported {
		k.oneOf(element("oauth2.pkce.codeChallengeMethodsSupported", i), m, "S256", "plain")
	}
	if id := o.PasswordConnector; id != "" && !k.knownConnectors()[id] {
		k.errorf("oauth2.passwordConnector", "there is no connector %q: want %s", id, k.connectorNames())
	}
}

// connectorGrants returns the grant types that may be listed for a connector.
func connectorGrants() []string {
	return []string{
		"authorization_code", "implicit", "password", "refresh_token",
		"urn:ietf:params:oauth:grant-type:device_code", "urn:ietf:params:oauth:grant-type:token-exchange",
	}
}

func (k *checker) knownConnectors() map[string]bool {
	known := make(map[string]bool, len(k.c.Connectors)+1)
	for _, c := range k.c.Connectors {
		known[c.ID] = true
	}
	if k.c.EnablePasswordDB {
		known[localConnector] = true
	}
	return known
}

func (k *checker) connectorNames() string {
	ids := slices.Sorted(maps.Keys(k.knownConnectors()))
	if len(ids) == 0 {
		return "a connector of this file"
	}
	return "one of " + strings.Join(ids, ", ")
}

func (k *checker) expiry() {
	const year = Duration(8760 * time.Hour)
	e, s := &k.c.Expiry, &k.c.Signer
	k.between("expiry.idTokens", e.IDTokens, Duration(time.Minute), year)
	k.between("expiry.authRequests", e.AuthRequests, Duration(time.Minute), Duration(168*time.Hour))
	k.between("expiry.deviceRequests", e.DeviceRequests, Duration(time.Minute), Duration(24*time.Hour))
	period := "signer.config.keysRotationPeriod"
	switch {
	case e.SigningKeys == 0:
	case k.has(period):
		k.warnf("expiry.signingKeys", "has no effect beside %s: remove it", ours(period))
	default:
		k.warnf("expiry.signingKeys", "is the old name of %s: move it there", ours(period))
		s.Config.KeysRotationPeriod = e.SigningKeys
		period = "expiry.signingKeys"
	}
	e.SigningKeys = 0
	k.between(period, s.Config.KeysRotationPeriod, Duration(30*time.Second), year)
	k.oneOf("signer.config.algorithm", s.Config.Algorithm, "RS256", "ES256")
	if s.Config.Algorithm == "ES256" {
		k.warnf("signer.config.algorithm", "ES256 breaks id_token_hint at the authorization endpoint, which knows RS256 only: use RS256")
	}
}

const maxTitle = 80 // characters

func (k *checker) frontend() {
	f := &k.c.Frontend
	if utf8.RuneCountInString(f.Issuer) > maxTitle || strings.ContainsFunc(f.Issuer, unicode.IsControl) {
		k.errorf("frontend.issuer", "want at most %d characters on one line", maxTitle)
	}
	for path, set := range map[string]bool{
		"frontend.logoURL": f.LogoURL != "",
		"frontend.theme":   f.Theme != "",
		"frontend.extra":   len(f.Extra) > 0,
	} {
		if set {
			k.warnf(path, "has no effect: it belongs to Dex's pages, and Gatehouse has its own; remove it")
		}
	}
}

func (k *checker) logger() {
	l := &k.c.Logger
	if err := l.SlogLevel.UnmarshalText([]byte(l.Level)); err != nil {
		k.errorf("logger.level", "want debug, info, warn or error, got %q", l.Level)
	}
	l.Format = strings.ToLower(l.Format)
	k.oneOf("logger.format", l.Format, "json", "text")
}

// A listener is an address that the process listens on.
type listener struct{ path, host, port string }

// listeners checks the addresses, and that no two of them claim the same port.
func (k *checker) listeners() {
	addresses := [][2]string{
		{"web.http", k.c.Web.HTTP}, {"web.https", k.c.Web.HTTPS}, {"telemetry.http", k.c.Telemetry.HTTP},
	}
	if g := k.c.Gateway; g != nil {
		addresses = append(addresses, [2]string{"gateway.grpc", g.GRPC})
		if network, address := splitAdmin(g.Admin); network == "tcp" {
			addresses = append(addresses, [2]string{"gateway.admin", address})
		}
	}
	var seen []listener
	for _, a := range addresses {
		l, ok := k.listener(a[0], a[1])
		if !ok {
			continue
		}
		for _, other := range seen {
			if !l.overlaps(other) {
				continue
			}
			here, there := l.path, other.path
			if !k.has(here) { // a default; the line to change is the other one
				here, there = there, here+" does by default"
			}
			k.errorf(here, "listens on port %s, as %s: give one of them another port", l.port, ours(there))
		}
		seen = append(seen, l)
	}
}

func (k *checker) listener(path, address string) (listener, bool) {
	if address == "" || k.failed(path) {
		return listener{}, false
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		k.errorf(path, "want an address and a port such as 127.0.0.1:8080 or :8080, got %q", address)
		return listener{}, false
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 || strconv.Itoa(n) != port {
		k.errorf(path, "want a port of 1 to 65535 (or 0 for any that is free), got %q", port)
		return listener{}, false
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		if name, ok := hosts.Canonical(host); !ok || strings.ContainsAny(name, "[:") {
			k.errorf(path, "want an IP address or a host name before the port, got %q", host)
			return listener{}, false
		}
	}
	return listener{path: path, host: host, port: port}, true
}

// overlaps reports whether both cannot be listened on: names may stand for any address.
func (l listener) overlaps(other listener) bool {
	if l.port != other.port || l.port == "0" {
		return false
	}
	a, errA := netip.ParseAddr(l.host)
	b, errB := netip.ParseAddr(other.host)
	return errA != nil || errB != nil || a.IsUnspecified() || b.IsUnspecified() || a == b
}
