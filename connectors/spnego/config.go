// Package spnego accepts the Kerberos tickets that browsers send by themselves: HTTP Negotiate (RFC 4559) with SPNEGO (RFC 4178) and Kerberos V5
// (RFC 4120, RFC 4121). It says whose ticket it was and nothing more.
package spnego

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Config is the block "kerberos" of Dex's ldap connector, with Dex's keys and their meaning.
type Config struct {
	Enabled bool `json:"enabled"`
	// KeytabPath is the file with the service's keys. It is read again when it changes.
	KeytabPath string `json:"keytabPath"`
	// SPN is the service that tickets must be for, such as HTTP/auth.example.com. Empty: any HTTP/… in the keytab.
	SPN string `json:"spn"`
	// KeytabPrincipal is whose keys of the keytab open the tickets, such as the account that has the SPN. Empty: the service's own.
	// Both may name their realm.
	KeytabPrincipal string `json:"keytabPrincipal"`
	// MaxClockSkew is by how many seconds the clocks of the browser's machine and ours may differ. 0: 300.
	MaxClockSkew int `json:"maxClockSkew"`
	// ExpectedRealm is the realm that users must be of. Empty: the realm of the keytab's keys.
	ExpectedRealm string `json:"expectedRealm"`
	// UsernameFromPrincipal makes the directory's user name of alice@REALM: "localpart" (alice; "sAMAccountName" is the same),
	// or "userPrincipalName" (alice@REALM). Case does not matter. Empty: localpart.
	UsernameFromPrincipal string `json:"usernameFromPrincipal"`
	// FallbackToPassword shows the form to whoever has no ticket; without it they are told that they need one.
	FallbackToPassword bool `json:"fallbackToPassword"`
}

const (
	defaultSkew = 5 * time.Minute // as Kerberos everywhere
	maxSkew     = time.Hour       // what is remembered against replays grows with it
)

// A Mistake is a wrong value in a Config.
type Mistake struct{ Key, Text string }

func (m *Mistake) Error() string { return m.Key + ": " + m.Text }

// Field is the key that is wrong, within the block.
func (m *Mistake) Field() string { return m.Key }

// Check returns every mistake; those of the keytab where Kerberos is enabled.
func (c *Config) Check() []*Mistake {
	if c == nil {
		return nil
	}
	var all []*Mistake
	add := func(key, format string, args ...any) {
		all = append(all, &Mistake{key, fmt.Sprintf(format, args...)})
	}
	if name, realm := splitRealm(c.SPN); c.SPN != "" && (!isService(name) || strings.ContainsFunc(realm, notInNames)) {
		add("spn", "got %q, want the service's name, such as HTTP/auth.example.com", c.SPN)
	}
	if p := c.KeytabPrincipal; strings.ContainsFunc(p, notInNames) || strings.HasPrefix(p, "@") {
		add("keytabPrincipal", "got %q, want a principal of the keytab, such as svc-http or HTTP/auth.example.com; `klist -k FILE` lists them", p)
	}
	if skew := time.Duration(c.MaxClockSkew) * time.Second; c.MaxClockSkew < 0 || c.MaxClockSkew > int(maxSkew/time.Second) || skew > maxSkew {
		add("maxClockSkew", "got %d, want 0 (meaning %d) to %d seconds; rather let the machines' clocks be set by NTP",
			c.MaxClockSkew, int(defaultSkew/time.Second), int(maxSkew/time.Second))
	}
	if r := c.ExpectedRealm; strings.ContainsAny(r, "@/") || strings.ContainsFunc(r, notInNames) {
		add("expectedRealm", "got %q, want a realm, such as AD.EXAMPLE.COM", r)
	}
	if _, ok := c.mapping(); !ok {
		add("usernameFromPrincipal", "got %q, want localpart or userPrincipalName", c.UsernameFromPrincipal)
	}
	if c.Enabled && (len(all) == 0 || c.KeytabPath == "") {
		if m := c.checkKeytab(); m != nil {
			all = append(all, m)
		}
	}
	return all
}

func (c *Config) checkKeytab() *Mistake {
	if c.KeytabPath == "" {
		return &Mistake{"keytabPath", "is missing: want the file with the service's keys; make one with ktpass, msktutil or samba-tool domain exportkeytab"}
	}
	if _, err := c.load(); err != nil {
		return &Mistake{"keytabPath", err.Error()}
	}
	return nil
}

// mapping reports whether principals keep their realm.
func (c *Config) mapping() (withRealm, ok bool) {
	switch strings.ToLower(c.UsernameFromPrincipal) {
	case "", "localpart", "samaccountname":
		return false, true
	case "userprincipalname":
		return true, true
	}
	return false, false
}

func (c *Config) skew() time.Duration {
	if c.MaxClockSkew <= 0 {
		return defaultSkew
	}
	return time.Duration(c.MaxClockSkew) * time.Second
}

// isService reports whether s is the name of a service on a host, without a realm.
func isService(s string) bool {
	service, host, ok := strings.Cut(s, "/")
	return ok && service != "" && host != "" && !strings.ContainsAny(host, "/@") && !strings.ContainsFunc(s, notInNames)
}

func notInNames(r rune) bool {
	return r > unicode.MaxASCII || !unicode.IsGraphic(r) || r == ' ' || r == '\\'
}
