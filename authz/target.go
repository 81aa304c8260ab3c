package authz

import (
	"strings"

	"gatehouse/authz/policy"
)

// maxTarget bounds the path and query that a sign-in returns to, in bytes.
const maxTarget = 4 << 10

// returnPath returns where on host a browser may be sent after a sign-in: the path, query and fragment of target.
// It accepts an absolute path, or a URL whose origin is exactly that of the host, and nothing that a browser could read as
// another host's URL, since an attacker may have written target. What Gatehouse itself answers is no place to
// return to.
func (g *generation) returnPath(target, host string) (string, bool) {
	origin, listed := g.Hosts.Origin(host)
	if !listed || len(target) > maxTarget+len(origin) {
		return "", false
	}
	if rest, ok := strings.CutPrefix(target, origin); ok {
		if rest == "" || rest[0] == '?' || rest[0] == '#' {
			rest = "/" + rest
		}
		target = rest
	}
	if len(target) > maxTarget || !safePath(target) {
		return "", false
	}
	path := target
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	r, err := policy.ParseRequest("GET", host, path)
	if err != nil || g.ownPath(r.Path) != ownNone || g.issuerOwns(r) {
		return "", false
	}
	return target, true
}

// safePath accepts an absolute path, with query and fragment, of bytes that every browser reads in the same way and that may
// stand in a header. The path itself is left to policy.ParseRequest.
func safePath(s string) bool {
	if s == "" || s[0] != '/' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f || strings.IndexByte(`\"<>`, s[i]) >= 0 {
			return false
		}
	}
	return true
}
