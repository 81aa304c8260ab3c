package config

import (
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"gatehouse/authz/policy"
	"gatehouse/internal/certs"
	"gatehouse/internal/hosts"
)

// A Config is a whole valid file with every default filled in and every variable replaced. Keys that Dex has too
// mean what they mean to Dex (its cmd/dex/config.go). It is not to be changed.
type Config struct {
	Issuer           string      `yaml:"issuer"`
	Storage          Storage     `yaml:"storage"`
	Web              Web         `yaml:"web"`
	Telemetry        Telemetry   `yaml:"telemetry"`
	Connectors       []Connector `yaml:"connectors"`
	StaticClients    []Client    `yaml:"staticClients"`
	StaticPasswords  []Password  `yaml:"staticPasswords"`
	EnablePasswordDB bool        `yaml:"enablePasswordDB"`
	OAuth2           OAuth2      `yaml:"oauth2"`
	Expiry           Expiry      `yaml:"expiry"`
	Sessions         Sessions    `yaml:"sessions"`
	MFA              MFA         `yaml:"mfa"`
	Frontend         Frontend    `yaml:"frontend"`
	Logger           Logger      `yaml:"logger"`
	Signer           Signer      `yaml:"signer"`
	Gateway          *Gateway    `yaml:"gateway"` // nil: a provider only
	GRPC             Unsupported `yaml:"grpc" fix:"Dex's gRPC API does not exist here: remove the block; gatehouse sessions lists and ends sessions"`

	IssuerURL *url.URL `yaml:"-"` // Issuer: canonical host, no trailing slash

	places map[string]place // of the keys in the file that was parsed
}

func (c *Config) setDefaults() {
	c.Telemetry.HTTP = "0.0.0.0:5558"
	c.Expiry = Expiry{
		IDTokens:       Duration(24 * time.Hour),
		AuthRequests:   Duration(10 * time.Minute),
		DeviceRequests: Duration(5 * time.Minute),
	}
	c.Sessions = Sessions{
		CookieName:                 "gatehouse-sso",
		AbsoluteLifetime:           Duration(168 * time.Hour),
		ValidIfNotUsedFor:          Duration(12 * time.Hour),
		RememberMeCheckedByDefault: true,
		SSOSharedWithDefault:       "none",
	}
	c.Logger = Logger{Level: "info", Format: "json"}
	c.Signer = Signer{Type: "local", Config: SignerConfig{KeysRotationPeriod: Duration(6 * time.Hour), Algorithm: "RS256"}}
	c.OAuth2.ResponseTypes = []string{"code"}
	c.OAuth2.PKCE.CodeChallengeMethodsSupported = []string{"S256", "plain"}
	c.Web.AllowedHeaders = []string{"Authorization"}
}

// Storage says where sessions, keys and tokens are kept.
type Storage struct {
	Type   string        `yaml:"type"` // memory, sqlite, postgres, etcd or kubernetes; sqlite3 has become sqlite
	Config StorageConfig `yaml:"config"`
}

// StorageConfig is what a type of storage needs to know. Only the fields of its type are set.
type StorageConfig struct {
	File string `yaml:"file"` // of sqlite: the path of the database

	// Of postgres.
	Host              string `yaml:"host"` // name, host:port, or the folder of a unix socket; empty: localhost
	Port              int    `yaml:"port"` // 0: 5432
	Database          string `yaml:"database"`
	User              string `yaml:"user"`
	ConnectionTimeout int    `yaml:"connectionTimeout"` // seconds, as ConnMaxLifetime; 0: the driver's default, as in the next three
	MaxOpenConns      int    `yaml:"maxOpenConns"`
	MaxIdleConns      int    `yaml:"maxIdleConns"`
	ConnMaxLifetime   int    `yaml:"connMaxLifetime"`

	// Of etcd.
	Endpoints []string `yaml:"endpoints"`
	Username  string   `yaml:"username"`

	Password  Secret     `yaml:"password"`  // of postgres and etcd
	SSL       StorageSSL `yaml:"ssl"`       // of postgres and etcd
	Namespace string     `yaml:"namespace"` // of etcd: the prefix of the keys; of kubernetes: empty for the one of the configuration

	// Of kubernetes: one of the two.
	KubeConfigFile string `yaml:"kubeConfigFile"`
	InCluster      bool   `yaml:"inCluster"`
}

// StorageSSL is the TLS of a connection to a database.
type StorageSSL struct {
	Mode       string `yaml:"mode"`       // of postgres: disable, require, verify-ca or verify-full; empty: verify-full
	ServerName string `yaml:"serverName"` // of etcd: the name in the server's certificate; empty: the endpoint's
	CAFile     string `yaml:"caFile"`     // PEM
	KeyFile    string `yaml:"keyFile"`    // PEM, set if CertFile is
	CertFile   string `yaml:"certFile"`   // PEM of a client certificate
}

// Web is the listener of the issuer. At least one of HTTP and HTTPS is set.
type Web struct {
	HTTP           string         `yaml:"http"`
	HTTPS          string         `yaml:"https"`
	TLSCert        string         `yaml:"tlsCert"`
	TLSKey         string         `yaml:"tlsKey"`
	TLSMinVersion  TLSVersion     `yaml:"tlsMinVersion"`  // empty: 1.2
	TLSMaxVersion  TLSVersion     `yaml:"tlsMaxVersion"`  // empty: the highest that Go has
	TLSClientCA    string         `yaml:"tlsClientCA"`    // empty: clients are asked for no certificate
	TLSClientNames []string       `yaml:"tlsClientNames"` // empty: any certificate of TLSClientCA
	Headers        Headers        `yaml:"headers"`
	AllowedOrigins []string       `yaml:"allowedOrigins"`
	AllowedHeaders []string       `yaml:"allowedHeaders"`
	ClientRemoteIP ClientRemoteIP `yaml:"clientRemoteIP"`

	TLS *certs.Material `yaml:"-"` // of the files above; nil without HTTPS
}

// Headers are set on the responses of the provider's routes.
type Headers struct {
	ContentSecurityPolicy   string `yaml:"Content-Security-Policy"`
	XFrameOptions           string `yaml:"X-Frame-Options"`
	XContentTypeOptions     string `yaml:"X-Content-Type-Options"`
	XXSSProtection          string `yaml:"X-XSS-Protection"`
	StrictTransportSecurity string `yaml:"Strict-Transport-Security"`
}

// HTTP returns the headers that are set.
func (h Headers) HTTP() http.Header {
	out := http.Header{}
	for name, value := range h.byKey() {
		if value != "" {
			out.Set(name, value)
		}
	}
	return out
}

func (h Headers) byKey() map[string]string {
	return map[string]string{
		"Content-Security-Policy":   h.ContentSecurityPolicy,
		"X-Frame-Options":           h.XFrameOptions,
		"X-Content-Type-Options":    h.XContentTypeOptions,
		"X-XSS-Protection":          h.XXSSProtection,
		"Strict-Transport-Security": h.StrictTransportSecurity,
	}
}

// ClientRemoteIP says which header holds the address of the browser, and whom to believe it.
type ClientRemoteIP struct {
	Header         string   `yaml:"header"`
	TrustedProxies []string `yaml:"trustedProxies"`

	Prefixes []netip.Prefix `yaml:"-"` // TrustedProxies
}

// Telemetry is the listener of metrics and health. An empty HTTP switches it off.
type Telemetry struct {
	HTTP            string `yaml:"http"`
	EnableProfiling bool   `yaml:"enableProfiling"`
}

// A Connector signs users in somewhere else.
type Connector struct {
	Type       string   `yaml:"type"`
	ID         string   `yaml:"id"`
	Name       string   `yaml:"name"`
	Config     Object   `yaml:"config"`
	GrantTypes []string `yaml:"grantTypes"` // empty: all that oauth2.grantTypes allows

	Files Files `yaml:"-"` // that Config names, as they were read; whoever gives Options.Connector sets it
}

// A Client is an application that signs users in through the issuer. ID and Secret hold what IDEnv and SecretEnv
// name, if those are given.
type Client struct {
	ID                      string                   `yaml:"id"`
	IDEnv                   string                   `yaml:"idEnv"`
	Secret                  Secret                   `yaml:"secret"`
	SecretEnv               string                   `yaml:"secretEnv"`
	Name                    string                   `yaml:"name"`
	LogoURL                 string                   `yaml:"logoURL"`
	Public                  bool                     `yaml:"public"`
	RedirectURIs            []string                 `yaml:"redirectURIs"`
	PostLogoutRedirectURIs  []string                 `yaml:"postLogoutRedirectURIs"`
	BackchannelLogoutURI    string                   `yaml:"backchannelLogoutURI"`
	RefreshTokenLifetime    string                   `yaml:"refreshTokenLifetime"` // empty, standalone or session
	TrustedPeers            []string                 `yaml:"trustedPeers"`
	AllowedConnectors       []string                 `yaml:"allowedConnectors"`
	MFAChain                []string                 `yaml:"mfaChain"`
	SSOSharedWith           []string                 `yaml:"ssoSharedWith"` // nil: Sessions.SSOSharedWithDefault; empty: nobody
	ClientCredentialsClaims *ClientCredentialsClaims `yaml:"clientCredentialsClaims"`
}

// ClientCredentialsClaims go into the tokens that a client gets for itself.
type ClientCredentialsClaims struct {
	Groups []string `yaml:"groups"`
}

// A Password is a user of the connector "local". Hash is a bcrypt hash, of cost 10 to 15.
type Password struct {
	Email             string   `yaml:"email"`
	Username          string   `yaml:"username"`
	Name              string   `yaml:"name"`
	PreferredUsername string   `yaml:"preferredUsername"`
	EmailVerified     *bool    `yaml:"emailVerified"` // nil: true
	UserID            string   `yaml:"userID"`
	Hash              Secret   `yaml:"hash"`
	HashFromEnv       string   `yaml:"hashFromEnv"`
	Groups            []string `yaml:"groups"`
}

// OAuth2 says which flows the issuer offers.
type OAuth2 struct {
	GrantTypes            []string `yaml:"grantTypes"` // empty: those that a sign-in needs; the provider knows which
	ResponseTypes         []string `yaml:"responseTypes"`
	SkipApprovalScreen    bool     `yaml:"skipApprovalScreen"`
	AlwaysShowLoginScreen bool     `yaml:"alwaysShowLoginScreen"`
	PasswordConnector     string   `yaml:"passwordConnector"`
	PKCE                  PKCE     `yaml:"pkce"`
}

// PKCE is RFC 7636.
type PKCE struct {
	Enforce                       bool     `yaml:"enforce"`
	CodeChallengeMethodsSupported []string `yaml:"codeChallengeMethodsSupported"`
}

// Expiry says how long things of the provider are good.
type Expiry struct {
	SigningKeys    Duration      `yaml:"signingKeys"` // 0 where Signer has the period; use Signer.Config.KeysRotationPeriod
	IDTokens       Duration      `yaml:"idTokens"`
	AuthRequests   Duration      `yaml:"authRequests"`
	DeviceRequests Duration      `yaml:"deviceRequests"`
	RefreshTokens  RefreshTokens `yaml:"refreshTokens"`
}

// RefreshTokens says how long a refresh token is good. A zero duration sets no limit.
type RefreshTokens struct {
	DisableRotation   bool     `yaml:"disableRotation"`
	ReuseInterval     Duration `yaml:"reuseInterval"`
	AbsoluteLifetime  Duration `yaml:"absoluteLifetime"`
	ValidIfNotUsedFor Duration `yaml:"validIfNotUsedFor"`
}

// Sessions are the browser sessions of the issuer, which are those of the gateway.
type Sessions struct {
	CookieName                 string   `yaml:"cookieName"`
	AbsoluteLifetime           Duration `yaml:"absoluteLifetime"`  // the same as Gateway.Session.Absolute
	ValidIfNotUsedFor          Duration `yaml:"validIfNotUsedFor"` // the same as Gateway.Session.Idle
	RememberMeCheckedByDefault bool     `yaml:"rememberMeCheckedByDefault"`
	CookieEncryptionKey        Secret   `yaml:"cookieEncryptionKey"` // not used: the cookie always has a key of its own
	SSOSharedWithDefault       string   `yaml:"ssoSharedWithDefault"`
}

// MFA is the second factor.
type MFA struct {
	Authenticators  []Authenticator `yaml:"authenticators"`
	DefaultMFAChain []string        `yaml:"defaultMFAChain"`
}

// An Authenticator is one kind of second factor.
type Authenticator struct {
	ID             string              `yaml:"id"`
	Type           string              `yaml:"type"` // TOTP or WebAuthn
	Config         AuthenticatorConfig `yaml:"config"`
	ConnectorTypes []string            `yaml:"connectorTypes"`
}

// AuthenticatorConfig holds Issuer for TOTP, and everything else for WebAuthn.
type AuthenticatorConfig struct {
	Issuer                  string   `yaml:"issuer"`
	RPDisplayName           string   `yaml:"rpDisplayName"`
	RPID                    string   `yaml:"rpID"`
	RPOrigins               []string `yaml:"rpOrigins"`
	AttestationPreference   string   `yaml:"attestationPreference"`
	UserVerification        string   `yaml:"userVerification"`
	AuthenticatorAttachment string   `yaml:"authenticatorAttachment"`
	Timeout                 Duration `yaml:"timeout"`
}

// Frontend is what people see.
type Frontend struct {
	Issuer  string            `yaml:"issuer"` // the name that pages show
	LogoURL string            `yaml:"logoURL"`
	Theme   string            `yaml:"theme"`
	Extra   map[string]string `yaml:"extra"`
	Dir     Unsupported       `yaml:"dir" fix:"Dex's templates are not used here: remove the key, the pages are built in"`
}

// Logger is what the log looks like.
type Logger struct {
	Level         string   `yaml:"level"`
	Format        string   `yaml:"format"` // json or text
	ExcludeFields []string `yaml:"excludeFields"`

	SlogLevel slog.Level `yaml:"-"` // Level
}

// Signer signs tokens.
type Signer struct {
	Type   string       `yaml:"type"` // local
	Config SignerConfig `yaml:"config"`
}

// SignerConfig is that of the local signer.
type SignerConfig struct {
	KeysRotationPeriod Duration `yaml:"keysRotationPeriod"`
	Algorithm          string   `yaml:"algorithm"` // RS256 or ES256
}

// A Gateway is what Gatehouse adds to Dex: the authorizer and how it is run.
type Gateway struct {
	GRPC     string         `yaml:"grpc"`
	HTTP     Unsupported    `yaml:"http" fix:"the HTTP flavours of ext_authz come with a later version: remove the key and use grpc"`
	TLS      *GatewayTLS    `yaml:"tls"`   // of GRPC; nil: plain text
	Admin    string         `yaml:"admin"` // see AdminListener
	Hosts    []string       `yaml:"hosts"`
	Prefix   string         `yaml:"prefix"`
	Cookie   Cookie         `yaml:"cookie"`
	Keys     Keys           `yaml:"keys"`
	Session  GatewaySession `yaml:"session"`
	Identity Identity       `yaml:"identity"`
	Bearer   Unsupported    `yaml:"bearer" fix:"bearer tokens come with a later version: remove the block"`
	Clients  Clients        `yaml:"clients"`
	Rules    []Rule         `yaml:"rules"`
	Default  string         `yaml:"default"` // signed-in or deny
	Drain    *Duration      `yaml:"drain"`   // see Config.DrainDelay

	HostSet *hosts.Set     `yaml:"-"` // Hosts
	Policy  *policy.Policy `yaml:"-"` // Rules and Default
}

func (g *Gateway) setDefaults() {
	*g = Gateway{
		GRPC:    "0.0.0.0:9001",
		Admin:   "127.0.0.1:5559",
		Prefix:  "/_gatehouse",
		Cookie:  Cookie{SameSite: SameSiteLax},
		Session: GatewaySession{StaleIfUnavailable: Duration(15 * time.Minute), StorageGrace: Duration(10 * time.Minute), Cache: 100_000},
		Identity: Identity{Headers: map[string]Attribute{
			"kubeflow-userid": AttributeEmail,
			"kubeflow-groups": AttributeGroups,
		}},
		Clients: ClientsStrict,
		Default: "signed-in",
	}
}

// defaultDrain is longer than Envoy takes to find out about a replica that does not want requests any more, with the health checks that
// docs/install.md has: one a second, two that fail.
const defaultDrain = Duration(5 * time.Second)

// DrainDelay returns for how long the process goes on serving after SIGTERM, though it says that it does not want requests any more. Where
// nobody else could take them, the storage being for one process, it would only make the gap longer.
func (c *Config) DrainDelay() time.Duration {
	switch {
	case c.Gateway != nil && c.Gateway.Drain != nil:
		return c.Gateway.Drain.Std()
	case c.Storage.Type == "memory" || c.Storage.Type == "sqlite":
		return 0
	}
	return defaultDrain.Std()
}

// AdminListener returns the arguments of net.Listen for the admin listener.
func (g *Gateway) AdminListener() (network, address string) { return splitAdmin(g.Admin) }

// GatewayTLS is what Envoy meets at the gRPC listener.
type GatewayTLS struct {
	Cert        string     `yaml:"cert"`
	Key         string     `yaml:"key"`
	ClientCA    string     `yaml:"clientCA"`    // empty: clients are asked for no certificate
	ClientNames []string   `yaml:"clientNames"` // empty: any certificate of ClientCA
	MinVersion  TLSVersion `yaml:"minVersion"`  // empty: 1.2

	Material *certs.Material `yaml:"-"` // of the files above
}

// Cookie is the gateway's own.
type Cookie struct {
	SameSite SameSite `yaml:"sameSite"`
}

// SameSite is the attribute of RFC 6265bis section 5.6.7.
type SameSite string

// The values of SameSite.
const (
	SameSiteLax    SameSite = "lax"
	SameSiteStrict SameSite = "strict"
)

// Keys are what cookies and secrets at rest are sealed with.
type Keys struct {
	File string `yaml:"file"` // empty: keys are made once and kept in the storage

	Ring SealKeys `yaml:"-"` // of File, the sealing key first
}

// GatewaySession says how long a session lives.
type GatewaySession struct {
	Idle               Duration `yaml:"idle"`
	Absolute           Duration `yaml:"absolute"`
	StaleIfUnavailable Duration `yaml:"staleIfUnavailable"`
	StorageGrace       Duration `yaml:"storageGrace"` // how long the change log may be out of reach before no session is verified
	Cache              int      `yaml:"cache"`        // sessions in memory
	Revalidate         Duration `yaml:"revalidate"`   // how old an answer about a user gets before another is asked for; 0: the connector's own
}

// Identity says how an app learns who the user is.
type Identity struct {
	Headers map[string]Attribute `yaml:"headers"` // by lower-case header name
	Token   *AppToken            `yaml:"token"`   // nil: apps get no token
}

// An AppToken is a signed token that tells an app who the user is.
type AppToken struct {
	Header   string   `yaml:"header"`   // in any case
	Audience string   `yaml:"audience"` // may have {host} in it, once
	TTL      Duration `yaml:"ttl"`
}

func (t *AppToken) setDefaults() {
	*t = AppToken{Header: "Authorization", TTL: Duration(5 * time.Minute)}
}

// An Attribute is what a header says of a user.
type Attribute string

// The attributes there are.
const (
	AttributeEmail             Attribute = "email"
	AttributeName              Attribute = "name"
	AttributePreferredUsername Attribute = "preferred_username"
	AttributeGroups            Attribute = "groups"
	AttributeUserID            Attribute = "user_id"
	AttributeConnector         Attribute = "connector"
)

// Clients says what callers get that are neither a navigation nor a known script.
type Clients string

// The values of Clients.
const (
	ClientsStrict   Clients = "strict"   // 401
	ClientsKubeflow Clients = "kubeflow" // 302 for GET and HEAD, else 403
)

// A Rule opens or guards what it matches; see policy.Rule.
type Rule struct {
	Name    string      `yaml:"name"`
	Hosts   []string    `yaml:"hosts"`
	Paths   []string    `yaml:"paths"`
	Methods []string    `yaml:"methods"`
	Allow   string      `yaml:"allow"` // anyone, or empty
	Groups  []string    `yaml:"groups"`
	Users   []string    `yaml:"users"`
	When    Unsupported `yaml:"when" fix:"conditions come with a later version: remove the key"`

	Line int `yaml:"-"`
}
