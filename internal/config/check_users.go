package config

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/hosts"
)

const (
	localConnector   = "local"     // of the static passwords
	reservedClientID = "gatehouse" // the gateway's own client
)

func (s *Signer) decodeNode(d *decoder, n *yaml.Node, path string) {
	switch kind := lookup(n, "type"); {
	case kind == nil || !isText(kind) || kind.Value == "local":
		d.block(n, settable(s), path)
	case kind.Value == "vault":
		d.errorf(path+".type", "vault is not supported: use local, and gateway.keys.file to seal the keys at rest")
	default:
		d.errorf(path+".type", "want local, got %q", kind.Value)
	}
}

var connectorID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func (k *checker) connectors() {
	if len(k.c.Connectors)+len(k.c.StaticPasswords) == 0 && !k.c.EnablePasswordDB && !k.failed("connectors") && !k.failed("enablePasswordDB") {
		k.errorf("connectors", "nobody could sign in: add a connector, or enablePasswordDB: true with staticPasswords")
	}
	if len(k.c.Connectors)+len(k.c.StaticPasswords) == 0 && k.c.EnablePasswordDB && !k.failedBelow("connectors") && !k.failedBelow("staticPasswords") {
		k.warnf("enablePasswordDB", "nobody can sign in yet: add users to staticPasswords, or a connector")
	}
	seen := map[string]bool{}
	for i := range k.c.Connectors {
		c, path := &k.c.Connectors[i], element("connectors", i)
		k.connectorID(path, c.ID)
		if seen[c.ID] && c.ID != "" {
			k.errorf(path, "there is a connector with the id %q already: give each its own", c.ID)
		}
		seen[c.ID] = true
		k.needs(path, "name", c.Name)
		k.needs(path, "type", c.Type)
		for j, t := range c.GrantTypes {
			k.oneOf(element(path+".grantTypes", j), t, connectorGrants()...)
		}
		if c.Type != "" && k.opts.Connector != nil && !k.failedBelow(path+".config") {
			k.connectorConfig(path, c)
		}
		k.redirectURI(path+".config", c)
		k.kerberos(path+".config", c)
	}
}

func (k *checker) connectorID(path, id string) {
	switch {
	case id == "":
		k.needs(path, "id", id)
	case !connectorID.MatchString(id) || strings.Trim(id, ".") == "":
		k.errorf(path+".id", "want 1 to 64 letters, digits and . _ -, got %q", id)
	case id == localConnector:
		k.errorf(path+".id", "local is the id of the static passwords: take another one")
	case id == "auth" || id == "login":
		k.errorf(path+".id", "%s would clash with a path of the issuer: take another one", id)
	}
}

// needs reports a key of an entry that is missing, unless something is wrong with it already.
func (k *checker) needs(path, key, got string) {
	if got == "" && !k.failed(child(path, key)) {
		k.errorf(path, "needs %s", ours(withArticle(key)))
	}
}

func withArticle(word string) string {
	if strings.ContainsRune("aeio", rune(word[0])) {
		return "an " + word
	}
	return "a " + word
}

func (k *checker) connectorConfig(path string, c *Connector) {
	for _, err := range flatten(k.opts.Connector(c.Type, c.Config.JSON())) {
		msg, at := err.Error(), path
		if f, ok := errors.AsType[fieldError](err); ok && f.Field() != "" {
			at = k.find(path+".config", f.Field())
			msg = strings.TrimPrefix(msg, f.Field()+": ") // the path of the mistake ends in it
		}
		msg = k.hide.clean(c.Config.hide.clean(msg)) // before the message is one line: a secret with a line break would be another text then
		msg = c.Config.hide.clean(strings.Join(strings.Fields(msg), " "))
		m := k.at(at, msg, "%s", []any{msg})
		if at != path && strings.HasPrefix(msg, "unknown field ") { // as of our own blocks: the line is that of the key
			m.Path = k.label(k.blockOf(at, path+".config"))
		}
		k.add(at, m)
	}
}

// blockOf returns the block of the file that holds the key at path, top at the highest. A key may hold dots, and
// even a secret where a space was forgotten.
func (k *checker) blockOf(path, top string) string {
	for {
		path = parent(path)
		if _, there := k.nodes[path]; there || len(path) <= len(top) {
			return path
		}
	}
}

// redirectURI warns of a connector that sends people back to where nobody waits for them.
func (k *checker) redirectURI(path string, c *Connector) {
	var config struct{ RedirectURI any }
	if k.c.IssuerURL == nil || k.failed(path) || k.failed(path+".redirectURI") || !k.has(path+".redirectURI") {
		return
	}
	if err := json.Unmarshal(c.Config.JSON(), &config); err != nil {
		return // for the connector to say
	}
	want := k.c.Issuer + "/callback"
	if got, ok := config.RedirectURI.(string); ok && got != want {
		k.warnf(path+".redirectURI", "is not the URL to which people come back: write %s, here and at the other end", want)
	}
}

// kerberos warns of tickets that are never asked for, since they would cross the network in clear.
func (k *checker) kerberos(path string, c *Connector) {
	var config struct{ Kerberos struct{ Enabled bool } }
	if c.Type != "ldap" || k.c.IssuerURL == nil || k.https || json.Unmarshal(c.Config.JSON(), &config) != nil || !config.Kerberos.Enabled {
		return
	}
	if !hosts.Loopback(k.c.IssuerURL.Hostname()) {
		k.warnf(path+".kerberos", "is not used, since tickets would cross the network in clear: give the issuer https")
	}
}

// A fieldError names the field of a connector's block that is wrong, such as userSearch.baseDN.
type fieldError interface {
	error
	Field() string
}

// find returns the path of a field in the file: the same letters first, then in any case, as Dex reads it, then
// the first key of that name deeper down. A field that is not there has the path it would have.
func (k *checker) find(block, field string) string {
	path := child(block, field)
	if _, ok := k.nodes[path]; ok {
		return path
	}
	best, rank, line := path, 0, 0
	for p, n := range k.nodes {
		now := 0
		switch {
		case strings.EqualFold(p, path):
			now = 2
		case strings.HasPrefix(p, block+".") && strings.HasSuffix(p, "."+field):
			now = 1
		}
		if now > rank || now == rank && now > 0 && (n.line < line || n.line == line && p < best) {
			best, rank, line = p, now, n.line
		}
	}
	return best
}

// flatten returns the errors that were joined into err.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var list []error
	for _, e := range joined.Unwrap() {
		list = append(list, flatten(e)...)
	}
	return list
}

func (k *checker) clients() {
	seen := map[string]bool{}
	for i := range k.c.StaticClients {
		c, path := &k.c.StaticClients[i], element("staticClients", i)
		k.clientCredentials(path, c)
		switch {
		case c.ID == reservedClientID:
			k.errorf(path+".id", "gatehouse is the gateway's own client: take another id")
		case seen[c.ID] && c.ID != "":
			k.errorf(path, "there is a client with the id %q already: give each its own", c.ID)
		}
		seen[c.ID] = true
		k.needs(path, "name", c.Name)
		k.oneOf(path+".refreshTokenLifetime", c.RefreshTokenLifetime, "standalone", "session")
		for j, u := range c.RedirectURIs {
			k.uri(element(path+".redirectURIs", j), u)
		}
		for j, u := range c.PostLogoutRedirectURIs {
			k.uri(element(path+".postLogoutRedirectURIs", j), u)
		}
		k.backchannel(path+".backchannelLogoutURI", c.BackchannelLogoutURI)
		for j, id := range c.AllowedConnectors {
			if !k.knownConnectors()[id] {
				k.warnf(element(path+".allowedConnectors", j), "there is no connector %q: nobody signs in to this client with it", id)
			}
		}
		k.authenticators(path+".mfaChain", c.MFAChain)
	}
}

// clientCredentials fills in id and secret from the environment and checks them.
func (k *checker) clientCredentials(path string, c *Client) {
	const both = "is here beside %s: remove one of them"
	if c.ID != "" && c.IDEnv != "" {
		k.errorf(path+".idEnv", both, ours("id"))
	} else if c.IDEnv != "" {
		c.ID = k.fromEnv(c.IDEnv, path+".idEnv")
	} else if c.ID == "" && !k.failed(path+".id") {
		k.errorf(path, "needs an id or idEnv")
	}
	if strings.ContainsFunc(c.ID, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		k.errorf(path+".id", "must not hold spaces or control characters")
	}
	if !c.Secret.IsZero() && c.SecretEnv != "" {
		k.errorf(path+".secretEnv", both, ours("secret"))
	} else if c.SecretEnv != "" {
		c.Secret = NewSecret(k.fromEnv(c.SecretEnv, path+".secretEnv"))
	} else if c.Secret.IsZero() && !c.Public && !k.failed(path+".secret") {
		k.errorf(path, "needs a secret or secretEnv; only a client with public: true has none")
	}
	if slices.Contains(publishedSecrets(), c.Secret.Reveal()) {
		k.published(path+".secret", "this secret is in public documentation: make one of your own with openssl rand -base64 32")
	}
}

// published reports a secret that everybody knows: a mistake, or a warning where the issuer is on http, which is
// for trying things out.
func (k *checker) published(path, msg string) {
	if k.https {
		k.errorf(path, "%s", ours(msg))
		return
	}
	k.warnf(path, "%s", ours(msg))
}

// publishedSecrets are the client secrets of the examples of Dex and Kubeflow.
func publishedSecrets() []string {
	return []string{
		"ZXhhbXBsZS1hcHAtc2VjcmV0",           // Dex, example-app
		"pUBnBOY80SnXgjibTYM9ZWNzY2xreNGQok", // Kubeflow, kubeflow-oidc-authservice
		"restricted-client-secret",           // Dex, config.yaml.dist
		"portal-secret",                      // Dex, config.yaml.dist
	}
}

// publishedHashes are the password hashes of the same examples.
func publishedHashes() []string {
	return []string{
		"$2a$10$2b2cU8CPhOTaGrs1HRQuAueS7JTT5ZHsHSzYiFPm1leZck7Mc8T4W", // Dex, "password"
		"$2a$10$33EMT0cVYVlPy6WAMCLsceLYjWhuHpbz5yuZxu/GAFj03J9Lytjuy", // Dex, "password"
		"$2y$12$4K/VkmDd1q1Orb3xAt82zu8gk7Ad6ReFR4LCP9UeYE90NLiN9Df72", // Kubeflow, "12341234"
	}
}

// uri checks a URI that people are sent to (RFC 6749 section 3.1.2): no fragment, and not relative but for the
// paths on the issuer that Dex has for devices.
func (k *checker) uri(path, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || text == "":
		k.errorf(path, "want a URI such as https://app.example.com/callback, got %q", withoutUser(text))
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		k.errorf(path, "must not have a fragment: remove what follows #")
	case u.Scheme == "" && !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//"):
		k.errorf(path, "want a URI with a scheme, got %q", withoutUser(text))
	}
}

func (k *checker) backchannel(path, text string) {
	if text == "" {
		return
	}
	if u, err := url.Parse(text); err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.Fragment != "" {
		k.errorf(path, "want an absolute URL without a fragment, got %q", withoutUser(text))
	}
}

func (k *checker) passwords() {
	list := k.c.StaticPasswords
	if len(list) > 0 && !k.c.EnablePasswordDB && !k.failed("enablePasswordDB") {
		k.errorf("staticPasswords", "needs enablePasswordDB: true")
	}
	emails, ids := map[string]int{}, map[string]int{}
	for i := range list {
		p, path := &list[i], element("staticPasswords", i)
		k.needs(path, "email", p.Email)
		if strings.ContainsFunc(p.Email, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			k.errorf(path+".email", "must not hold spaces or control characters")
		}
		if first, dup := emails[strings.ToLower(p.Email)]; dup && p.Email != "" {
			k.errorf(path, "has the e-mail address of entry %d: upper and lower case do not count; remove one", first)
		} else {
			emails[strings.ToLower(p.Email)] = i
		}
		if p.UserID == "" && !k.failed(path+".userID") {
			k.errorf(path, "needs a userID that nobody else has and that never changes, such as the output of uuidgen")
		} else if first, dup := ids[p.UserID]; dup && p.UserID != "" {
			k.errorf(path+".userID", "is that of entry %d: to every app they would be one user; change one", first)
		} else {
			ids[p.UserID] = i
		}
		k.passwordHash(path, p)
	}
}

var bcryptHash = regexp.MustCompile(`^\$2[aby]?\$([0-9]{2})\$[./A-Za-z0-9]{53}$`)

// The costs of bcrypt that are taken. Below it is too weak (Dex's server/passwords has the same limit), above it
// each sign-in takes seconds of CPU.
const (
	minCost = 10
	maxCost = 15
)

func (k *checker) passwordHash(path string, p *Password) {
	at := path + ".hash"
	switch {
	case !p.Hash.IsZero() && p.HashFromEnv != "":
		k.warnf(path+".hashFromEnv", "has no effect beside hash: remove one of them")
	case p.Hash.IsZero() && p.HashFromEnv != "":
		at = path + ".hashFromEnv"
		p.Hash = NewSecret(k.fromEnv(p.HashFromEnv, at))
	}
	if p.Hash.IsZero() {
		if !k.failed(at) {
			k.errorf(path, "needs a hash: make one with gatehouse hash-password")
		}
		return
	}
	hash := p.Hash.Reveal()
	if raw, err := base64.StdEncoding.DecodeString(hash); err == nil {
		hash = string(raw) // Dex takes that too
		k.hide.add(hash, redacted)
	}
	m := bcryptHash.FindStringSubmatch(hash)
	if m == nil {
		k.errorf(at, "is not a bcrypt hash: make one with gatehouse hash-password")
		return
	}
	if cost, _ := strconv.Atoi(m[1]); cost < minCost || cost > maxCost {
		k.errorf(at, "has cost %d: want %d to %d; make one with gatehouse hash-password", cost, minCost, maxCost)
		return
	}
	if slices.Contains(publishedHashes(), hash) {
		k.published(at, "this password is in public documentation: make a hash of your own with gatehouse hash-password")
	}
	p.Hash = NewSecret(hash)
}

func (k *checker) mfa() {
	seen := map[string]bool{}
	for i, a := range k.c.MFA.Authenticators {
		path := element("mfa.authenticators", i)
		k.needs(path, "id", a.ID)
		if seen[a.ID] && a.ID != "" {
			k.errorf(path, "there is an authenticator with the id %q already: give each its own", a.ID)
		}
		seen[a.ID] = true
		k.needs(path, "type", a.Type)
		k.oneOf(path+".type", a.Type, "TOTP", "WebAuthn")
		k.authenticatorConfig(path+".config", a)
	}
	k.authenticators("mfa.defaultMFAChain", k.c.MFA.DefaultMFAChain)
}

func (k *checker) authenticatorConfig(path string, a Authenticator) {
	wrong := []string{"rpDisplayName", "rpID", "rpOrigins", "attestationPreference", "userVerification", "authenticatorAttachment", "timeout"}
	if a.Type == "WebAuthn" {
		wrong = []string{"issuer"}
	}
	for _, key := range wrong {
		if k.has(child(path, key)) && a.Type != "" {
			k.errorf(child(path, key), "is not a key of %s: remove it", a.Type)
		}
	}
	c := a.Config
	k.oneOf(path+".attestationPreference", c.AttestationPreference, "none", "indirect", "direct")
	k.oneOf(path+".userVerification", c.UserVerification, "required", "preferred", "discouraged")
	k.oneOf(path+".authenticatorAttachment", c.AuthenticatorAttachment, "platform", "cross-platform")
	for _, key := range []string{"userVerification", "authenticatorAttachment"} {
		if k.has(child(path, key)) {
			k.warnf(child(path, key), "has no effect, as in Dex: remove it")
		}
	}
}

// authenticators reports ids in a chain that no authenticator has.
func (k *checker) authenticators(path string, chain []string) {
	for i, id := range chain {
		if !slices.ContainsFunc(k.c.MFA.Authenticators, func(a Authenticator) bool { return a.ID == id }) {
			k.errorf(element(path, i), "there is no authenticator %q: add it to mfa.authenticators", id)
		}
	}
}
