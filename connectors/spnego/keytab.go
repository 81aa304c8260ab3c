package spnego

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"
)

const maxKeytab = 1 << 20 // bytes

// keys are what a keytab has for this service. They are immutable.
type keys struct {
	entries []key
	realms  []string // of the entries
}

// A key opens the tickets of one service.
type key struct {
	service, realm string
	kvno           uint32
	key            types.EncryptionKey
}

// keySize is the length of the keys of an encryption type of the AES families, in bytes; 0 for any other.
func keySize(etype int32) int {
	switch etype {
	case etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA256_128:
		return 16
	case etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA384_192:
		return 32
	}
	return 0
}

// isAES reports whether an encryption type is of the AES families (RFC 3962, RFC 8009). What is older is refused (RFC 6649, RFC 8429): a ticket
// under RC4 can be cracked offline by whoever may ask for one.
func isAES(etype int32) bool { return keySize(etype) > 0 }

// load reads the keytab. Its errors tell what to do, and never what is in the file.
func (c *Config) load() (*keys, error) {
	broken := fmt.Errorf("%s is not a keytab, or only a part of one: export it again, and copy it as a binary file", c.KeytabPath)
	b, err := readKeytab(c.KeytabPath)
	if err != nil {
		return nil, err
	}
	kt, err := parseKeytab(b)
	if err != nil {
		return nil, broken
	}
	k := &keys{}
	principals := map[string]bool{}
	older := false
	for _, e := range kt.Entries {
		name := strings.Join(e.Principal.Components, "/")
		principals[name+"@"+e.Principal.Realm] = true
		if !c.opens(name, e.Principal.Realm) {
			continue
		}
		if !isAES(e.Key.KeyType) {
			older = true
			continue
		}
		if len(e.Key.KeyValue) != keySize(e.Key.KeyType) {
			return nil, broken
		}
		k.entries = append(k.entries, key{service: name, realm: e.Principal.Realm, kvno: e.KVNO, key: e.Key})
		if !slices.Contains(k.realms, e.Principal.Realm) {
			k.realms = append(k.realms, e.Principal.Realm)
		}
	}
	switch {
	case len(k.entries) > 0:
		return k, nil
	case older:
		return nil, fmt.Errorf("%s has only RC4 or DES keys for %s, which are not accepted: let the account support AES (msDS-SupportedEncryptionTypes 24), set its password anew and export the keytab again",
			c.KeytabPath, c.wanted())
	}
	return nil, fmt.Errorf("%s has no key for %s, but for %s: set spn or keytabPrincipal to one of them, or export the keytab for that principal",
		c.KeytabPath, c.wanted(), listed(slices.Sorted(maps.Keys(principals))))
}

// readKeytab reads a file of bounded size, and a regular one: a pipe would hold up the start.
func readKeytab(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the keytab cannot be read: %w; it must exist and be readable by the user that runs Gatehouse", err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: want a keytab", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeytab+1))
	if err != nil {
		return nil, fmt.Errorf("the keytab cannot be read: %w", err)
	}
	if len(b) > maxKeytab {
		return nil, fmt.Errorf("%s has more than %d bytes: want a keytab of this one service", path, maxKeytab)
	}
	return b, nil
}

var errKeytab = errors.New("spnego: not a keytab")

// parseKeytab never passes the library's errors on: they quote the bytes of the file.
func parseKeytab(b []byte) (kt *keytab.Keytab, err error) {
	defer func() {
		if recover() != nil {
			kt, err = nil, errKeytab
		}
	}()
	kt = keytab.New()
	if kt.Unmarshal(b) != nil {
		return nil, errKeytab
	}
	return kt, nil
}

// opens reports whether the keys of a principal are for this service's tickets.
func (c *Config) opens(principal, realm string) bool {
	if c.KeytabPrincipal != "" {
		name, in := splitRealm(c.KeytabPrincipal)
		return realm != "" && principal == name && (in == "" || in == realm)
	}
	return realm != "" && c.accepts(principal, realm)
}

// accepts reports whether a ticket for a service, issued by a realm, is one for us.
func (c *Config) accepts(service, realm string) bool {
	if c.SPN == "" {
		return isHTTP(service)
	}
	name, in := splitRealm(c.SPN)
	// Host names, and all of a name in Active Directory, are the same in any case.
	return strings.EqualFold(service, name) && (in == "" || in == realm)
}

// splitRealm takes a principal apart; its realm may be left out.
func splitRealm(principal string) (name, realm string) {
	name, realm, _ = strings.Cut(principal, "@")
	return name, realm
}

func (c *Config) wanted() string {
	switch {
	case c.KeytabPrincipal != "":
		return c.KeytabPrincipal
	case c.SPN != "":
		return c.SPN
	}
	return "HTTP/…"
}

func isHTTP(service string) bool {
	return len(service) > len("HTTP/") && strings.EqualFold(service[:len("HTTP/")], "HTTP/") && isService(service)
}

func listed(names []string) string {
	const most = 5
	if len(names) == 0 {
		return "nobody"
	}
	for i, n := range names {
		if len(n) > 256 || strings.ContainsFunc(n, notInNames) {
			names[i] = fmt.Sprintf("%.256q", n)
		}
	}
	if len(names) > most {
		return strings.Join(names[:most], ", ") + " and others"
	}
	return strings.Join(names, ", ")
}

// find returns the keys that may open a ticket: of its encryption type, version and realm.
func (k *keys) find(realm string, etype int32, kvno int) ([]key, error) {
	var found []key
	var versions []uint32
	for _, e := range k.entries {
		if e.realm != realm || e.key.KeyType != etype {
			continue
		}
		// A version may have come through a file format that keeps its lowest byte only.
		if kvno == 0 || e.kvno == uint32(kvno) || e.kvno == uint32(kvno)&0xff { //nolint:gosec // G115: it wraps as it does on the wire
			found = append(found, e)
		} else if !slices.Contains(versions, e.kvno) {
			versions = append(versions, e.kvno)
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case len(versions) > 0:
		return nil, fmt.Errorf("the ticket needs key version %d, and the keytab has %d: the account's password was changed since; export the keytab again", kvno, versions)
	}
	return nil, fmt.Errorf("the keytab has no key of encryption type %d in realm %.100q: export it again with AES keys", etype, realm)
}
