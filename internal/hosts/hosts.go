// Package hosts is the list of hosts that Gatehouse protects: the only names that it ever builds a URL from.
package hosts

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Set is an immutable list of hosts. Its zero value lists none.
type Set struct {
	exact map[string]origin
	wild  map[string]origin // by the suffix after "*"
}

type origin struct{ scheme, port string }

// Parse reads entries of the form [scheme://]name[:port], where name is a host name, an IP address or
// *.domain (any name below domain, at any depth). The scheme is http or https and defaults to defaultScheme.
// All mistakes are returned, joined; the message of each names the entry and the fix.
func Parse(entries []string, defaultScheme string) (*Set, error) {
	s := &Set{exact: map[string]origin{}, wild: map[string]origin{}}
	var errs []error
	for i, e := range entries {
		if err := s.add(e, defaultScheme); err != nil {
			errs = append(errs, &EntryError{Index: i, Entry: e, Err: err})
		}
	}
	return s, errors.Join(errs...)
}

// An EntryError says which entry is wrong.
type EntryError struct {
	Index int
	Entry string
	Err   error
}

func (e *EntryError) Error() string { return fmt.Sprintf("%q: %v", e.Entry, e.Err) }

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

func (s *Set) add(entry, defaultScheme string) error {
	scheme, rest, ok := strings.Cut(entry, "://")
	if !ok {
		scheme, rest = defaultScheme, entry
	}
	if scheme != "http" && scheme != "https" {
		return fmt.Errorf("scheme %q: want http or https", scheme)
	}
	if strings.ContainsAny(rest, "/?#@ ,") {
		return errors.New("want [scheme://]name[:port] without path, user or spaces")
	}
	name, port, err := splitPort(rest)
	if err != nil {
		return err
	}
	o := origin{scheme: scheme, port: port}
	table, key := s.exact, name
	if suffix, isWild := strings.CutPrefix(name, "*"); isWild {
		if !strings.HasPrefix(suffix, ".") || !strings.Contains(suffix[1:], ".") || strings.HasPrefix(suffix, ".[") {
			return errors.New("a wildcard is *. and a domain of at least two labels, such as *.apps.example.com")
		}
		table, key, name = s.wild, suffix, suffix[1:]
	}
	if c, ok := Canonical(name); !ok || c != name {
		return errors.New("write the host name in lower case, without a trailing dot")
	}
	if old, dup := table[key]; dup {
		if old != o {
			return errors.New("is listed twice with different schemes or ports: cookies do not tell ports apart, so keep one")
		}
		return errors.New("is listed twice: remove one")
	}
	table[key] = o
	return nil
}

func splitPort(s string) (name, port string, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", nil
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || n == 0 {
		return "", "", fmt.Errorf("port %q: want 1 to 65535", s[i+1:])
	}
	return s[:i], s[i+1:], nil
}

// Origin returns the scheme://host[:port] to use in a URL for name, a canonical host without port.
// ok is false for a host that is not listed: no URL may be built from it.
func (s *Set) Origin(name string) (o string, ok bool) {
	if s == nil {
		return "", false
	}
	e, ok := s.exact[name]
	if !ok {
		if e, ok = s.wildcard(name); !ok {
			return "", false
		}
	}
	o = e.scheme + "://" + name
	defaultPort := map[string]string{"http": "80", "https": "443"}[e.scheme]
	if e.port != "" && e.port != defaultPort {
		o += ":" + e.port
	}
	return o, true
}

// Lookup reports whether name, a canonical host without port, is listed, and whether it is served over https.
// It does not allocate.
func (s *Set) Lookup(name string) (https, ok bool) {
	if s == nil {
		return false, false
	}
	e, ok := s.exact[name]
	if !ok {
		e, ok = s.wildcard(name)
	}
	return e.scheme == "https", ok
}

func (s *Set) wildcard(name string) (origin, bool) {
	if len(s.wild) == 0 {
		return origin{}, false
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '.' && i > 0 {
			if e, ok := s.wild[name[i:]]; ok {
				return e, true
			}
		}
	}
	return origin{}, false
}

// Canonical returns the one spelling of a host that policy, cookies and redirects use: lower case, without
// port and trailing dot. ok is false for what is not a plain host name or IP address.
func Canonical(hostport string) (name string, ok bool) {
	name = hostport
	if strings.HasPrefix(name, "[") {
		end := strings.IndexByte(name, ']')
		if end < 0 || !validPort(name[end+1:]) {
			return "", false
		}
		addr, err := netip.ParseAddr(name[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" { // RFC 3986 section 3.2.2
			return "", false
		}
		return "[" + addr.String() + "]", true
	}
	if i := strings.IndexByte(name, ':'); i >= 0 {
		if !validPort(name[i:]) {
			return "", false
		}
		name = name[:i]
	}
	name = strings.TrimSuffix(name, ".")
	if !validName(name) {
		return "", false
	}
	return strings.ToLower(name), true
}

func validPort(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' || len(s) < 2 || len(s) > 6 {
		return false
	}
	for _, c := range []byte(s[1:]) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// validName accepts the names of RFC 1123 section 2.1, at most 253 bytes.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	label := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.':
			if label == 0 || s[i-1] == '-' {
				return false
			}
			label = 0
		case c == '-' && label == 0:
			return false
		case c == '-', c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			if label++; label > 63 {
				return false
			}
		default:
			return false
		}
	}
	return label > 0 && s[len(s)-1] != '-'
}
