package policy

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"gatehouse/internal/hosts"
)

// Limits of a request, in bytes.
const (
	maxMethod = 32
	maxPath   = 8 << 10 // as sent, without query
)

// An AmbiguousError says why a request is refused before any rule is looked at: the caller answers 400.
type AmbiguousError struct {
	// Reason is one of a bounded set of words, for metrics and audit: method, method-case, host,
	// path-not-absolute, path-length, empty-segment, dot-segment, semicolon, fragment, backslash, blank,
	// control, non-ascii, bad-escape, bad-utf8, encoded-slash, encoded-backslash, encoded-percent,
	// encoded-semicolon, encoded-unreserved.
	Reason string
}

// Error never repeats what the client sent.
func (e *AmbiguousError) Error() string {
	return "policy: request could be read in two ways: " + e.Reason
}

func ambiguous(reason string) error { return &AmbiguousError{Reason: reason} }

// ParseRequest makes a Request of what a client sent; path may carry a query, which is cut off. It fails with
// an *AmbiguousError for whatever two programs could read differently. It does not allocate for a lower-case
// host and a path without escapes.
//
// The path must be its own normal form (RFC 3986 section 6.2.2), save that the digits of an escape may be in
// lower case: no empty or dot segments, no escaped letters, digits and -._~, and nothing that programs are
// known to disagree on: ; # \ and control characters, the escapes of / \ % ; and of control characters, raw
// bytes outside of ASCII, and what is not UTF-8 once decoded. Other escapes are decoded.
//
// The method must be a token (RFC 9110 section 5.6.2) without lower-case letters: methods are case-sensitive,
// but not every program behind us knows.
func ParseRequest(method, host, path string) (Request, error) {
	if !token(method) || len(method) > maxMethod {
		return Request{}, ambiguous("method")
	}
	for i := range len(method) {
		if method[i] >= 'a' && method[i] <= 'z' {
			return Request{}, ambiguous("method-case")
		}
	}
	name, ok := hosts.Canonical(host)
	if !ok {
		return Request{}, ambiguous("host")
	}
	if i := strings.IndexByte(path, '?'); i >= 0 {
		path = path[:i]
	}
	decoded, reason := normal(path)
	if reason != "" {
		return Request{}, ambiguous(reason)
	}
	return Request{Method: method, Host: name, Path: decoded}, nil
}

// token reports whether s is a token of RFC 9110 section 5.6.2.
func token(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// normal returns the decoded path, or why it is not its own normal form.
func normal(path string) (decoded, reason string) {
	switch {
	case !strings.HasPrefix(path, "/"):
		return "", "path-not-absolute"
	case len(path) > maxPath:
		return "", "path-length"
	}
	escapes, start := 0, 1
	for i := 1; i < len(path); i++ {
		switch c := path[i]; {
		case c == '/':
			if i == start {
				return "", "empty-segment"
			}
			if dots(path[start:i]) {
				return "", "dot-segment"
			}
			start = i + 1
		case c == '%':
			escapes++
		case c <= ' ', c >= 0x7f, c == ';', c == '#', c == '\\':
			return "", badByte(c)
		}
	}
	switch {
	case dots(path[start:]):
		return "", "dot-segment"
	case escapes > 0:
		return unescape(path, escapes)
	}
	return path, ""
}

func dots(segment string) bool { return segment == "." || segment == ".." }

func badByte(c byte) string {
	switch {
	case c == ';':
		return "semicolon"
	case c == '#':
		return "fragment"
	case c == '\\':
		return "backslash"
	case c == ' ':
		return "blank"
	case c >= 0x80:
		return "non-ascii"
	}
	return "control"
}

// unescape decodes a path that is normal but for its escapes, of which it has n.
func unescape(path string, n int) (decoded, reason string) {
	var b strings.Builder
	b.Grow(max(0, len(path)-2*n))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) {
				return "", "bad-escape"
			}
			hi, ok := unhex(path[i+1])
			lo, ok2 := unhex(path[i+2])
			if !ok || !ok2 {
				return "", "bad-escape"
			}
			c = hi<<4 | lo
			if reason := badEscape(c); reason != "" {
				return "", reason
			}
			i += 2
		}
		b.WriteByte(c)
	}
	decoded = b.String()
	switch {
	case !utf8.ValidString(decoded):
		return "", "bad-utf8"
	case strings.ContainsFunc(decoded, unicode.IsControl): // those of U+0080 to U+009F
		return "", "control"
	}
	return decoded, ""
}

func unhex(c byte) (v byte, ok bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// badEscape says why c may not be escaped, if so.
func badEscape(c byte) string {
	switch {
	case c == '/':
		return "encoded-slash"
	case c == '\\':
		return "encoded-backslash"
	case c == '%':
		return "encoded-percent"
	case c == ';':
		return "encoded-semicolon"
	case c < ' ', c == 0x7f:
		return "control"
	case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', strings.IndexByte("-._~", c) >= 0:
		return "encoded-unreserved"
	}
	return ""
}
