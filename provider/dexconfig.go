package provider

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"

	"gatehouse/internal/config"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"

	"github.com/dexidp/dex/server"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/server/mfa"
	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/storage"
)

// dexStorage is what Dex sees of our store: sign-ins under way, static entries, and no blocked users.
func dexStorage(o Options, secret string, log *slog.Logger) (storage.Storage, error) {
	c := o.Config
	s := identity.Guard(front.Flights(o.Store), o.Now)
	clients := []storage.Client{{
		ID: front.GatewayClient, Secret: secret, Name: c.Frontend.Issuer,
		RedirectURIs: []string{c.Issuer + front.CallbackPath}, RefreshTokenLifetime: storage.RefreshTokenLifetimeSession,
	}}
	for i := range c.StaticClients {
		clients = append(clients, client(&c.StaticClients[i]))
	}
	s = storage.WithStaticClients(s, clients)
	var users []storage.Password
	for _, u := range c.StaticPasswords {
		users = append(users, storage.Password{
			Email: u.Email, Hash: []byte(u.Hash.Reveal()), Username: u.Username, Name: u.Name, PreferredUsername: u.PreferredUsername,
			EmailVerified: u.EmailVerified, UserID: u.UserID, Groups: u.Groups,
		})
	}
	if len(users) > 0 {
		s = storage.WithStaticPasswords(s, users, log)
	}
	all := make([]storage.Connector, 0, len(c.Connectors)+1)
	for _, k := range c.Connectors {
		all = append(all, storage.Connector{ID: k.ID, Type: k.Type, Name: k.Name, Config: k.Config.JSON(), GrantTypes: k.GrantTypes, ResourceVersion: "1"})
	}
	if c.EnablePasswordDB {
		all = append(all, storage.Connector{ID: dexconnectors.LocalConnector, Type: dexconnectors.LocalConnector, Name: "Email"})
	}
	if len(all) == 0 {
		return nil, errors.New("provider: no connectors and no enablePasswordDB: nobody could sign in")
	}
	return storage.WithStaticConnectors(s, all), nil
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

var unknownFieldRE = regexp.MustCompile(`^json: unknown field "(.*)"$`)

// CheckConnector checks a connector's type and the keys of its configuration, without connecting to anything.
func CheckConnector(kind string, raw []byte) error {
	open, ok := server.ConnectorsConfig[kind]
	if !ok {
		known := make([]string, 0, len(server.ConnectorsConfig))
		for k := range server.ConnectorsConfig {
			known = append(known, k)
		}
		slices.Sort(known)
		return fmt.Errorf("unknown connector type %q: want one of %v", kind, known)
	}
	if len(raw) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err := dec.Decode(open())
	var wrongType *json.UnmarshalTypeError
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &wrongType):
		return &FieldError{Name: wrongType.Field, Err: fmt.Errorf("%s: got a %s, want %s", wrongType.Field, wrongType.Value, wrongType.Type)}
	}
	if m := unknownFieldRE.FindStringSubmatch(err.Error()); m != nil {
		return &FieldError{Name: m[1], Err: fmt.Errorf("unknown field %q of connector type %q", m[1], kind)}
	}
	return fmt.Errorf("connector type %q: %w", kind, err)
}
