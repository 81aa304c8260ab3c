package identity

import "net/netip"

// Network is what failures are counted by for a client address: the address itself, or its /64 for IPv6,
// which is what one subscriber has (RFC 6177). It is "" for what is not an address.
func Network(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return ""
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil {
		return ""
	}
	return p.String()
}
