package provider

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gatehouse/connectors/ldap"
	"gatehouse/internal/config"
	"gatehouse/internal/nearest"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"

	"github.com/dexidp/dex/server"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/server/mfa"
	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/storage"
)

// dexStorage is what Dex sees of our store: sign-ins under way, static entries, no blocked users, and codes that
// were used; and nobody who was cut off.
func (p *Provider) dexStorage(c *config.Config) (cutoffs, error) {
	s := storage.Storage(replays{Storage: identity.Guard(front.Flights(p.store), p.now), store: p.store, now: p.now, tokens: c.Expiry.IDTokens.Std(), audit: p.audit})
	clients := []storage.Client{{
		ID: front.GatewayClient, Secret: p.secret, Name: c.Frontend.Issuer,
		RedirectURIs: []string{c.Issuer + front.CallbackPath}, RefreshTokenLifetime: storage.RefreshTokenLifetimeSession,
	}}
	for i := range c.StaticClients {
		clients = append(clients, client(&c.StaticClients[i]))
	}
	s = storage.WithStaticClients(s, clients)
	users := staticUsers(c)
	if len(users) > 0 {
		s = storage.WithStaticPasswords(s, users, p.dexLog)
	}
	all := staticConnectors(c, users)
	if len(all) == 0 {
		return cutoffs{}, errors.New("provider: no connectors and no enablePasswordDB: nobody could sign in")
	}
	cut := newCutoffs(storage.WithStaticConnectors(s, all), p.store, c, p.now)
	cut.outdated = p.endFormerSoon
	return cut, nil
}

func staticUsers(c *config.Config) []storage.Password {
	users := make([]storage.Password, 0, len(c.StaticPasswords))
	for _, u := range c.StaticPasswords {
		users = append(users, storage.Password{
			Email: u.Email, Hash: []byte(u.Hash.Reveal()), Username: u.Username, Name: u.Name, PreferredUsername: u.PreferredUsername,
			EmailVerified: u.EmailVerified, UserID: u.UserID, Groups: u.Groups,
		})
	}
	return users
}

// staticConnectors returns the connectors of a file. Two of the same resource version are the same connector.
func staticConnectors(c *config.Config, users []storage.Password) []storage.Connector {
	all := make([]storage.Connector, 0, len(c.Connectors)+1)
	for _, k := range c.Connectors {
		all = append(all, storage.Connector{
			ID: k.ID, Type: k.Type, Name: k.Name, Config: k.Config.JSON(), GrantTypes: k.GrantTypes, ResourceVersion: connectorVersion(k),
		})
	}
	if c.EnablePasswordDB {
		all = append(all, storage.Connector{
			ID: dexconnectors.LocalConnector, Type: dexconnectors.LocalConnector, Name: "Email", ResourceVersion: usersVersion(users),
		})
	}
	return all
}

// connectorVersion is another one when the connector's configuration is, or what was in a file that it names when the
// configuration was read: what is there now may be something else, of which nothing is known yet.
func connectorVersion(k config.Connector) string {
	h := sha256.New()
	part := func(b []byte) {
		_ = binary.Write(h, binary.BigEndian, uint64(len(b))) // a hash takes everything
		h.Write(b)
	}
	raw := k.Config.JSON()
	part(raw)
	for _, name := range ConnectorFiles(k.Type, raw) {
		part([]byte(k.Files[name]))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// usersVersion keeps what it is made of to itself: a hash of password hashes.
func usersVersion(users []storage.Password) string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode(users) // plain values
	return hex.EncodeToString(h.Sum(nil))
}

// connectorFiles are the keys by which Dex's connectors name files.
var connectorFiles = []string{"rootCA", "rootCAs", "ca", "clientCert", "clientKey", "keytabPath", "serviceAccountFilePath", "clientAssertion"} // never assigned to

// ConnectorFiles returns the files that a connector's configuration names and that are read when it is opened or later.
func ConnectorFiles(kind string, raw []byte) []string {
	if kind == "ldap" {
		return ldap.Files(raw)
	}
	var block any
	if _, ok := server.ConnectorsConfig[kind]; !ok || json.Unmarshal(raw, &block) != nil {
		return nil
	}
	var names []string
	var walk func(key string, v any)
	walk = func(key string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				walk(k, v[k])
			}
		case []any:
			for _, item := range v {
				walk(key, item)
			}
		case string:
			if slices.Contains(connectorFiles, key) && v != "" && !strings.Contains(v, "-----BEGIN") { // oidc's rootCAs may hold the PEM itself
				names = append(names, v)
			}
		}
	}
	walk("", block)
	return names
}

func client(c *config.Client) storage.Client {
	out := storage.Client{
		ID: c.ID, Secret: c.Secret.Reveal(), Name: c.Name, LogoURL: c.LogoURL, Public: c.Public,
		RedirectURIs: c.RedirectURIs, PostLogoutRedirectURIs: c.PostLogoutRedirectURIs, BackchannelLogoutURI: c.BackchannelLogoutURI,
		RefreshTokenLifetime: c.RefreshTokenLifetime, TrustedPeers: c.TrustedPeers, AllowedConnectors: c.AllowedConnectors,
		MFAChain: c.MFAChain, SSOSharedWith: c.SSOSharedWith,
	}
	if c.ClientCredentialsClaims != nil {
		out.ClientCredentialsClaims = &storage.ClientCredentialsClaims{Groups: c.ClientCredentialsClaims.Groups}
	}
	return out
}

func sessionConfig(c *config.Config, key []byte) *session.Config {
	return &session.Config{
		CookieName: c.Sessions.CookieName, CookieEncryptionKey: key,
		AbsoluteLifetime: c.Sessions.AbsoluteLifetime.Std(), ValidIfNotUsedFor: c.Sessions.ValidIfNotUsedFor.Std(),
		RememberMeCheckedByDefault: c.Sessions.RememberMeCheckedByDefault, SSOSharedWithDefault: c.Sessions.SSOSharedWithDefault,
	}
}

// grantTypes are those that the token endpoint answers. Without a list in the configuration it is the two that every
// sign-in needs, and the password grant where a connector for it is named; Dex would open all.
func grantTypes(c *config.Config) []string {
	g := slices.Clone(c.OAuth2.GrantTypes)
	if len(g) == 0 {
		g = []string{oauth2.GrantTypeAuthorizationCode, oauth2.GrantTypeRefreshToken}
		if c.OAuth2.PasswordConnector != "" {
			g = append(g, oauth2.GrantTypePassword)
		}
		if slices.ContainsFunc(c.OAuth2.ResponseTypes, func(t string) bool { return t != oauth2.ResponseTypeCode }) {
			g = append(g, oauth2.GrantTypeImplicit)
		}
	}
	if !slices.Contains(g, oauth2.GrantTypeAuthorizationCode) { // the gateway's own
		g = append(g, oauth2.GrantTypeAuthorizationCode)
	}
	return g
}

func deviceFlow(c *config.Config) bool {
	return slices.Contains(c.OAuth2.GrantTypes, oauth2.GrantTypeDeviceCode)
}

// pkceMethods always has S256, which the gateway's own sign-in uses.
func pkceMethods(c *config.Config) []string {
	m := c.OAuth2.PKCE.CodeChallengeMethodsSupported
	if !slices.Contains(m, oauth2.PKCEMethodS256) {
		m = append(slices.Clone(m), oauth2.PKCEMethodS256)
	}
	return m
}

func secondFactors(c *config.Config) (map[string]mfa.Provider, error) {
	if len(c.MFA.Authenticators) == 0 {
		return nil, nil
	}
	out := map[string]mfa.Provider{}
	for _, a := range c.MFA.Authenticators {
		switch a.Type {
		case "TOTP":
			out[a.ID] = mfa.NewTOTPProvider(a.Config.Issuer, a.ConnectorTypes)
		case "WebAuthn":
			timeout := ""
			if a.Config.Timeout > 0 {
				timeout = a.Config.Timeout.Std().String()
			}
			p, err := mfa.NewWebAuthnProvider(a.Config.RPDisplayName, a.Config.RPID, a.Config.RPOrigins, a.Config.AttestationPreference,
				timeout, c.Issuer, a.ConnectorTypes)
			if err != nil {
				return nil, fmt.Errorf("provider: mfa authenticator %q: %w", a.ID, err)
			}
			out[a.ID] = p
		default:
			return nil, fmt.Errorf("provider: mfa authenticator %q: type %q: want TOTP or WebAuthn", a.ID, a.Type)
		}
	}
	return out, nil
}

// A FieldError is a mistake in a connector's configuration. It tells the configuration's reader where.
type FieldError struct {
	Name string // of the key
	Err  error
}

func (e *FieldError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }

// Field is the key that is wrong.
func (e *FieldError) Field() string { return e.Name }

// fieldErrorf returns a FieldError that starts with the name of the key.
func fieldErrorf(name, format string, args ...any) error {
	return &FieldError{Name: name, Err: fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...))}
}

// CheckConnector checks a connector's type, the keys of its configuration and, where that is possible without
// connecting to anything, what they say. The error tells every mistake (errors.Join).
func CheckConnector(kind string, raw []byte) error {
	open, ok := server.ConnectorsConfig[kind]
	if !ok {
		return unknownType(kind)
	}
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if kind == "ldap" { // our own, not Dex's
		return ldap.Check(raw)
	}
	var block any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&block); err != nil {
		return fmt.Errorf("connector type %q: %w", kind, err)
	}
	var w fieldWalk
	w.walk(reflect.TypeOf(open()), block, "")
	if len(w.errs) > 0 {
		return errors.Join(w.errs...)
	}
	if err := json.Unmarshal(raw, open()); err != nil { // such as a number that is too large
		return unmarshalError(kind, err)
	}
	top, _ := block.(map[string]any)
	if top == nil {
		top = map[string]any{}
	}
	if kind == "oidc" {
		return checkOIDC(top)
	}
	return nil
}

func unknownType(kind string) error {
	known := slices.Sorted(maps.Keys(server.ConnectorsConfig))
	if near := nearest.Word(kind, known); near != "" {
		return fmt.Errorf("unknown connector type %q: did you mean %s?", kind, near)
	}
	return fmt.Errorf("unknown connector type %q: want one of %s", kind, strings.Join(known, ", "))
}

func unmarshalError(kind string, err error) error {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		return fieldErrorf(wrong.Field, "the value does not fit here: write another one")
	}
	return fmt.Errorf("connector type %q: %w", kind, err)
}

func checkOIDC(block map[string]any) error {
	issuer, _ := block["issuer"].(string)
	if issuer == "" {
		return fieldErrorf("issuer", "is missing: set it to the issuer of your provider, such as https://accounts.example.com")
	}
	if u, err := url.Parse(issuer); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fieldErrorf("issuer", "want an absolute URL, such as https://accounts.example.com")
	}
	return nil
}

// A fieldWalk holds a decoded JSON value to the type that it is meant for, and gathers every mistake. It reads keys
// by their exact letters, where encoding/json takes them in any case.
type fieldWalk struct{ errs []error }

func (w *fieldWalk) walk(t reflect.Type, v any, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil { // as if the key were not there
		return
	}
	want := kindOfType(t)
	if want == "" {
		return
	}
	got := kindOfValue(v)
	if got != want {
		w.errs = append(w.errs, wrongType(path, got, want))
		return
	}
	switch v := v.(type) {
	case map[string]any:
		w.block(t, v, path)
	case []any:
		for i, item := range v {
			w.walk(t.Elem(), item, path+"["+strconv.Itoa(i)+"]")
		}
	case string:
		if t.Kind() != reflect.Slice {
			return
		}
		if _, err := base64.StdEncoding.DecodeString(v); err != nil {
			w.errs = append(w.errs, fieldErrorf(path, "is not base64: encode the content of the file with base64 -w0"))
		}
	}
}

func wrongType(path, got, want string) error {
	if path == "" {
		return fmt.Errorf("config: got %s, want %s", got, want)
	}
	return fieldErrorf(path, "got %s, want %s: %s", got, want, fixOf(got, want))
}

// block walks the keys of a struct, or of a map.
func (w *fieldWalk) block(t reflect.Type, block map[string]any, path string) {
	var fields map[string]reflect.Type
	if t.Kind() == reflect.Struct {
		fields = jsonFields(t)
	}
	for _, key := range slices.Sorted(maps.Keys(block)) {
		p := key
		if path != "" {
			p = path + "." + key
		}
		switch ft, ok := fields[key]; {
		case t.Kind() == reflect.Map:
			w.walk(t.Elem(), block[key], p)
		case ok:
			w.walk(ft, block[key], p)
		default:
			w.errs = append(w.errs, unknownField(p, key, slices.Sorted(maps.Keys(fields))))
		}
	}
}

// maxNamed is how many keys a message lists.
const maxNamed = 12

func unknownField(path, key string, known []string) error {
	fix := "remove it, or see Dex's documentation of this connector for its keys"
	if name, _, ok := strings.Cut(key, ":"); ok {
		key, fix = name+":…", "a space is missing after the colon" // what follows may be a secret
	} else if near := nearest.Word(key, known); near != "" {
		fix = fmt.Sprintf("did you mean %q?", near)
	} else if len(known) == 0 {
		fix = "there are no keys here, so remove it"
	} else if len(known) <= maxNamed {
		fix = "want one of " + strings.Join(known, ", ")
	}
	return &FieldError{Name: path, Err: fmt.Errorf("unknown field %q: %s", key, fix)}
}

// jsonFields returns the types of the fields that encoding/json writes to, by key.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || f.Tag.Get("json") == "-" || f.Anonymous && name == "" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		fields[name] = f.Type
	}
	return fields
}

const (
	aText   = "text"
	aNumber = "a number"
	aBool   = "true or false"
	aList   = "a list"
	aBlock  = "a block of keys"
)

// kindOfType returns what a person writes for a value of type t, or "" where anything goes.
func kindOfType(t reflect.Type) string {
	switch k := t.Kind(); {
	case k == reflect.String, k == reflect.Slice && t.Elem().Kind() == reflect.Uint8: // bytes are base64
		return aText
	case k == reflect.Bool:
		return aBool
	case k >= reflect.Int && k <= reflect.Float64:
		return aNumber
	case k == reflect.Slice, k == reflect.Array:
		return aList
	case k == reflect.Struct, k == reflect.Map:
		return aBlock
	}
	return ""
}

func kindOfValue(v any) string {
	switch v.(type) {
	case string:
		return aText
	case bool:
		return aBool
	case json.Number:
		return aNumber
	case []any:
		return aList
	default:
		return aBlock
	}
}

// fixOf says how to make what was written what is wanted.
func fixOf(got, want string) string {
	switch {
	case want == aText && (got == aNumber || got == aBool):
		return "put it in quotes"
	case want == aText:
		return "write one value"
	case want == aBool && got == aText:
		return "write true or false without quotes"
	case want == aBool:
		return "write true or false"
	case want == aNumber:
		return "write a number without quotes"
	case want == aList:
		return "write one entry a line with - before it, or [a, b]"
	default:
		return "write its keys below it, each on a line of its own and indented"
	}
}
