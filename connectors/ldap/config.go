package ldap

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/connectors/spnego"
)

// A config is the configuration of a connector as it is written: Dex's keys with Dex's meaning, and ours. docs/ldap.md has all of them.
type config struct {
	Preset string   `json:"preset"`
	Host   string   `json:"host"`
	Hosts  []string `json:"hosts"`
	Domain string   `json:"domain"`
	Site   string   `json:"site"`

	InsecureNoSSL      bool   `json:"insecureNoSSL"`
	InsecureSkipVerify bool   `json:"insecureSkipVerify"`
	StartTLS           bool   `json:"startTLS"`
	RootCA             string `json:"rootCA"`
	RootCAData         []byte `json:"rootCAData"`
	ClientCert         string `json:"clientCert"`
	ClientKey          string `json:"clientKey"`

	BindDN         string         `json:"bindDN"`
	BindPW         string         `json:"bindPW"`
	BindPWFile     string         `json:"bindPWFile"`
	UsernamePrompt string         `json:"usernamePrompt"`
	Kerberos       *spnego.Config `json:"kerberos"`
	NetBIOSName    string         `json:"netbiosName"`

	UserSearch     userSearch     `json:"userSearch"`
	GroupSearch    groupSearch    `json:"groupSearch"`
	RequiredGroups []string       `json:"requiredGroups"`
	LockedSessions string         `json:"lockedSessions"`
	Lockout        lockoutConfig  `json:"lockout"`
	PasswordChange passwordChange `json:"passwordChange"`

	Timeouts    timeouts `json:"timeouts"`
	Connections int      `json:"connections"`
	PageSize    int      `json:"pageSize"`
	Referrals   string   `json:"referrals"`
	Watch       string   `json:"watch"`
}

type userSearch struct {
	BaseDN            string    `json:"baseDN"`
	Filter            string    `json:"filter"`
	Username          usernames `json:"username"`
	Scope             string    `json:"scope"`
	IDAttr            string    `json:"idAttr"`
	EmailAttr         string    `json:"emailAttr"`
	NameAttr          string    `json:"nameAttr"`
	PreferredUsername string    `json:"preferredUsernameAttr"`
	EmailSuffix       string    `json:"emailSuffix"`
}

type groupSearch struct {
	BaseDN             string        `json:"baseDN"`
	Filter             string        `json:"filter"`
	Scope              string        `json:"scope"`
	UserAttr           string        `json:"userAttr"`  // of Dex, before userMatchers
	GroupAttr          string        `json:"groupAttr"` // likewise
	RecursionGroupAttr string        `json:"recursionGroupAttr"`
	UserMatchers       []userMatcher `json:"userMatchers"`
	NameAttr           string        `json:"nameAttr"`
	Nested             string        `json:"nested"`
	Value              string        `json:"value"`
	PrimaryGroup       *bool         `json:"primaryGroup"`
	Allow              []string      `json:"allow"`
	Match              string        `json:"match"`
	StripPrefix        string        `json:"stripPrefix"`
	Limit              int           `json:"limit"`
}

type userMatcher struct {
	UserAttr           string `json:"userAttr"`
	GroupAttr          string `json:"groupAttr"`
	RecursionGroupAttr string `json:"recursionGroupAttr"`
}

type lockoutConfig struct {
	MaxFailures int    `json:"maxFailures"`
	PolicyDN    string `json:"policyDN"`
}

type passwordChange struct {
	Enabled    *bool  `json:"enabled"`
	BindDN     string `json:"bindDN"`
	BindPW     string `json:"bindPW"`
	BindPWFile string `json:"bindPWFile"`
}

type timeouts struct {
	Dial    duration `json:"dial"`
	Request duration `json:"request"`
}

// Files returns the files that a configuration names.
func Files(raw []byte) []string {
	c := decode(raw, &mistakes{at: map[string]bool{}})
	names := []string{c.RootCA, c.ClientCert, c.ClientKey, c.BindPWFile, c.PasswordChange.BindPWFile}
	if len(c.RootCAData) > 0 {
		names[0] = "" // is not read
	}
	if c.Kerberos != nil && c.Kerberos.Enabled {
		names = append(names, c.Kerberos.KeytabPath)
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// Check returns every mistake in a configuration (errors.Join), without connecting to anything. Each has a method Field, the key that is wrong.
func Check(raw []byte) error {
	_, err := parse(raw)
	return err
}

// settings are a configuration that is right, with a preset's values filled in and what it says compiled.
type settings struct {
	config
	bindPW, changePW string
	userScope        int
	groupScope       int
	matchers         []userMatcher
	match            *regexp.Regexp // nil: any
	change           bool           // passwords can be changed
}

// activeDirectory says that the directory is known to be one.
func (s *settings) activeDirectory() bool { return s.Preset == presetAD }

// security is how connections are protected. As in Dex, they are unless the configuration says otherwise.
func (s *settings) security() security {
	switch {
	case s.InsecureNoSSL:
		return plain
	case s.StartTLS:
		return startTLS
	}
	return ldaps
}

// transport says how to reach the directory.
func (s *settings) transport() transport {
	hosts := s.Hosts
	if s.Host != "" {
		hosts = []string{s.Host}
	}
	t := transport{
		hosts: hosts, domain: s.Domain, site: s.Site, security: s.security(), bindDN: s.BindDN, bindPW: s.bindPW,
		dialTimeout: time.Duration(s.Timeouts.Dial), requestTimeout: time.Duration(s.Timeouts.Request),
		connections: s.Connections, idle: defaultIdle, pageSize: s.PageSize, follow: s.Referrals == "follow",
	}
	if t.security != plain {
		t.tls = s.tlsConfig
	}
	return t
}

// defaultGroups is groupSearch.limit where a configuration says nothing of it.
const defaultGroups = 5000

// tlsConfig reads the files of TLS. The client sets the server's name.
func (s *settings) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: s.InsecureSkipVerify} //nolint:gosec // G402: only where the configuration says so
	data := s.RootCAData
	if len(data) == 0 && s.RootCA != "" {
		var err error
		if data, err = os.ReadFile(s.RootCA); err != nil {
			return nil, fmt.Errorf("ldap: rootCA: %w", err)
		}
	}
	if len(data) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return nil, errors.New("ldap: rootCA: holds no certificate")
		}
	}
	if s.ClientCert != "" {
		cert, err := tls.LoadX509KeyPair(s.ClientCert, s.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("ldap: clientCert: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// parse reads and checks a configuration.
func parse(raw []byte) (*settings, error) {
	m := &mistakes{at: map[string]bool{}}
	s := &settings{config: *decode(raw, m)}
	m.preset(s)
	m.server(s)
	s.fill()
	m.bind(s)
	m.files(s)
	m.users(s)
	m.groups(s)
	m.kerberos(s.Kerberos)
	m.accounts(s)
	m.limits(s)
	if err := m.err(); err != nil {
		return nil, err
	}
	return s, nil
}

// preset checks the preset, and goes on with the one that is meant: what does not fit without one would be told beside the point.
func (m *mistakes) preset(s *settings) {
	all := []string{presetAD, presetOpenLDAP, presetFreeIPA}
	m.enum("preset", s.Preset, append(all, "")...)
	if near := nearest(s.Preset, all); near != "" {
		s.Preset = near
	}
}

// enum checks that a value is one of some words; the first may be "", the default.
func (m *mistakes) enum(field, got string, want ...string) {
	if slices.Contains(want, got) {
		return
	}
	want = slices.DeleteFunc(want, func(w string) bool { return w == "" })
	if near := nearest(got, want); near != "" {
		m.add(field, "got %q: did you mean %s?", clip(got), near)
		return
	}
	m.add(field, "got %q: want %s", clip(got), strings.Join(want, " or "))
}

// clip shortens what somebody has written, for a message.
func clip(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return s
}

func (m *mistakes) server(s *settings) {
	switch {
	case s.Host != "" && len(s.Hosts) > 0:
		m.add("hosts", "is set, and host too: write all of them in hosts and remove host")
	case s.Host == "" && len(s.Hosts) == 0 && s.Domain == "" && s.Preset == presetAD:
		m.add("domain", "is missing: set it to the DNS name of your domain, such as corp.example.com; servers and the bases of searches are found by it")
	case s.Host == "" && len(s.Hosts) == 0 && s.Domain == "":
		m.add("host", "is missing: set it to your directory server, such as ldap.example.com:636, or set hosts, or domain")
	}
	if s.Host != "" {
		m.host("host", s.Host)
	}
	for i, h := range s.Hosts {
		m.host(fmt.Sprintf("hosts[%d]", i), h)
	}
	if s.Domain != "" && !domainName.MatchString(s.Domain) {
		m.add("domain", "want a DNS name, such as corp.example.com")
	}
	if s.Site != "" && (s.Domain == "" || s.Host != "" || len(s.Hosts) > 0) {
		m.add("site", "chooses among the servers that DNS knows: set domain, and neither host nor hosts")
	} else if s.Site != "" && !siteName.MatchString(s.Site) {
		m.add("site", "want the name of an Active Directory site, of letters, digits and dashes")
	}
	if s.InsecureNoSSL && s.StartTLS {
		m.add("startTLS", "is set, and insecureNoSSL too, with which Dex would use no TLS at all: remove insecureNoSSL")
	}
}

var ( // never assigned to
	domainName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	siteName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	hostName   = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)(:[0-9]{1,5})?$`)
	attrName   = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9-]*|[0-9]+(\.[0-9]+)+)(;[A-Za-z0-9-]+)*$`)
	attrRule   = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9-]*)(:dn)?:([A-Za-z0-9.-]+):$`) // an extensible match (RFC 4515), without its value
)

func (m *mistakes) host(field, h string) {
	switch {
	case h == "":
		m.add(field, "is empty: remove it, or write a host such as ldap.example.com:636")
	case strings.Contains(h, "://"):
		m.add(field, "got a URL: write host:port, such as ldap.example.com:636; startTLS and insecureNoSSL say how to connect")
	case len(h) > 260 || !hostName.MatchString(h):
		m.add(field, "want host or host:port, such as ldap.example.com:636")
	default:
		if _, port, err := net.SplitHostPort(h); err == nil && !possiblePort(port) {
			m.add(field, "got port %s: want 1 to 65535, such as 636", port)
		}
	}
}

func possiblePort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func (m *mistakes) bind(s *settings) {
	m.credentials("", s.BindDN, s.BindPW, s.BindPWFile, &s.bindPW)
	if s.BindDN == "" && (s.Preset == presetAD) {
		m.add("bindDN", "is missing: Active Directory tells nothing to strangers; set it to your service account")
	}
	c := &s.PasswordChange
	m.credentials("passwordChange", c.BindDN, c.BindPW, c.BindPWFile, &s.changePW)
	on := c.Enabled != nil && *c.Enabled
	if on && s.security() == plain {
		m.add("passwordChange.enabled", "needs TLS: remove insecureNoSSL, or set startTLS instead")
	}
	if c.Enabled != nil && !on && c.BindDN != "" {
		m.add("passwordChange.bindDN", "is set, and enabled is false: remove one of them")
	}
	s.change = s.security() != plain && (on || c.Enabled == nil && (s.Preset != "" || c.BindDN != ""))
}

// credentials checks an account of ours and reads its password.
func (m *mistakes) credentials(path, dn, pw, file string, out *string) {
	at := func(key string) string { return join(path, key) }
	if dn != "" && !strings.ContainsAny(dn, `@\`) {
		m.dn(at("bindDN"), dn)
	}
	switch {
	case pw != "" && file != "":
		m.add(at("bindPWFile"), "is set, and bindPW too: remove one of them")
	case dn == "" && (pw != "" || file != ""):
		m.add(at("bindDN"), "is missing, and there is a password for it: set it to the DN of your service account")
	case dn != "" && pw == "" && file == "":
		m.add(at("bindPW"), "is missing: set it, or bindPWFile; with an empty password a directory lets in anybody as nobody")
	case file != "":
		data, err := os.ReadFile(file)
		pw = strings.TrimRight(string(data), "\r\n")
		switch {
		case err != nil:
			m.add(at("bindPWFile"), "cannot be read: %s", cause(err))
		case pw == "" || strings.ContainsAny(pw, "\r\n\x00"):
			m.add(at("bindPWFile"), "want a file with one line, the password")
		}
	}
	*out = pw
}

// cause is an error without the path in it.
func cause(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

func (m *mistakes) dn(field, dn string) {
	if _, err := ldapv3.ParseDN(dn); err != nil || len(dn) > maxDN {
		m.add(field, "want a distinguished name, such as ou=people,dc=example,dc=com")
	}
}

func (m *mistakes) files(s *settings) {
	if len(s.RootCAData) > 0 {
		if !x509.NewCertPool().AppendCertsFromPEM(s.RootCAData) {
			m.add("rootCAData", "holds no certificate: want PEM with CERTIFICATE blocks")
		}
	} else if s.RootCA != "" {
		data, err := os.ReadFile(s.RootCA)
		switch {
		case err != nil:
			m.add("rootCA", "want the path of a PEM file that can be read: %s", cause(err))
		case !x509.NewCertPool().AppendCertsFromPEM(data):
			m.add("rootCA", "holds no certificate: want PEM with CERTIFICATE blocks")
		}
	}
	switch {
	case s.ClientCert == "" && s.ClientKey == "":
	case s.ClientCert == "":
		m.add("clientCert", "is missing, and clientKey is set: want both")
	case s.ClientKey == "":
		m.add("clientKey", "is missing, and clientCert is set: want both")
	default:
		if _, err := tls.LoadX509KeyPair(s.ClientCert, s.ClientKey); err != nil {
			m.add("clientCert", "want PEM files of a certificate and, in clientKey, its key: %s", cause(err))
		}
	}
}

// filter checks a filter as it is used: with more in an (&…).
func (m *mistakes) filter(field, f string) {
	if f == "" {
		return
	}
	if _, err := ldapv3.CompileFilter("(&" + f + ")"); err != nil || f[0] != '(' {
		m.add(field, "is no LDAP filter: want one such as (objectClass=person), with all its parentheses")
	}
}

func (m *mistakes) attribute(field, a string) {
	if a != "" && !attrName.MatchString(a) {
		m.add(field, "got %q: want the name of an attribute, such as uid", clip(a))
	}
}

func (m *mistakes) scope(field, s string) int {
	m.enum(field, s, "", "sub", "one")
	if s == "one" {
		return ldapv3.ScopeSingleLevel
	}
	return ldapv3.ScopeWholeSubtree
}

func (m *mistakes) users(s *settings) {
	u := &s.UserSearch
	if u.BaseDN == "" {
		m.addUnless(m.at["domain"] || m.at["preset"] && s.Domain != "", "userSearch.baseDN", "is missing: set it to where your users are, such as ou=people,dc=example,dc=com%s", orPreset(s))
	} else {
		m.dn("userSearch.baseDN", u.BaseDN)
	}
	if len(u.Username) == 0 {
		m.add("userSearch.username", "is missing: set it to the attribute that users type, such as uid, or set preset")
	}
	for i, a := range u.Username {
		if a == "" {
			m.add(fmt.Sprintf("userSearch.username[%d]", i), "is empty: remove it")
		}
		m.attribute(fmt.Sprintf("userSearch.username[%d]", i), a)
	}
	m.filter("userSearch.filter", u.Filter)
	s.userScope = m.scope("userSearch.scope", u.Scope)
	m.attribute("userSearch.idAttr", u.IDAttr)
	m.attribute("userSearch.emailAttr", u.EmailAttr)
	m.attribute("userSearch.nameAttr", u.NameAttr)
	m.attribute("userSearch.preferredUsernameAttr", u.PreferredUsername)
	switch {
	case strings.Contains(u.EmailSuffix, "@"):
		m.add("userSearch.emailSuffix", "want what follows the @, such as example.com")
	case u.EmailSuffix != "" && u.NameAttr == "":
		m.add("userSearch.nameAttr", "is missing: with emailSuffix its value comes before the @; without it all users would have one e-mail address")
	}
	if s.NetBIOSName != "" && (s.Preset != presetAD || strings.ContainsAny(s.NetBIOSName, `\@/. `)) {
		m.add("netbiosName", "want the name before the backslash in CORP\\alice, with preset: activedirectory")
	}
}

func orPreset(s *settings) string {
	if s.Preset != "" {
		return ", or set domain"
	}
	return ""
}

func (m *mistakes) kerberos(k *spnego.Config) {
	for _, wrong := range k.Check() {
		m.add("kerberos."+wrong.Key, "%s", wrong.Text)
	}
}

func (m *mistakes) accounts(s *settings) {
	m.enum("lockedSessions", s.LockedSessions, "end", "keep")
	if s.Lockout.MaxFailures < 0 {
		m.add("lockout.maxFailures", "got %d: want how many wrong passwords in a row reach the directory, or 0 to ask it", s.Lockout.MaxFailures)
	}
	if s.Lockout.PolicyDN != "" {
		m.dn("lockout.policyDN", s.Lockout.PolicyDN)
	}
	m.enum("watch", s.Watch, "auto", "off")
	m.enum("referrals", s.Referrals, "ignore", "follow")
}

func (m *mistakes) limits(s *settings) {
	within := func(field string, got, least, most int) {
		if got < least || got > most {
			m.add(field, "got %d: want %d to %d", got, least, most)
		}
	}
	within("connections", s.Connections, 1, 256)
	within("pageSize", s.PageSize, 1, 10000)
	within("groupSearch.limit", s.GroupSearch.Limit, 1, maxGroups)
}
