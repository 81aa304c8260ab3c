package hosts

import (
	"net/netip"
	"strings"
)

// Loopback reports whether a canonical host is this machine wherever it is used: an address of the loopback network, or localhost and what is below it
// (RFC 6761 section 6.3).
func Loopback(host string) bool {
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && a.IsLoopback()
}
