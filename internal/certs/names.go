package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"gatehouse/internal/hosts"
)

// Names are those that a client's certificate may have: one of them is enough. Those of an empty list allow every
// certificate; the zero value allows none.
type Names struct {
	exact map[string]bool // "dns:" or "uri:" and the name
	below []string        // ".example.com" for *.example.com
	any   bool            // none was listed
}

// ParseName says what is wrong with a name: want a DNS name, *. and a DNS name for all below it, or a URI such as a
// SPIFFE ID.
func ParseName(name string) error {
	if strings.Contains(name, ":") {
		u, err := url.Parse(name)
		switch {
		case err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.String() != name || strings.Contains(name, "#"):
			return errors.New("want a URI such as spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway")
		case strings.Contains(name, "*"):
			return errors.New("has a wildcard, which only DNS names may have: list each URI")
		}
		return nil
	}
	base, wild := strings.CutPrefix(name, "*.")
	if canonical, ok := hosts.Canonical(base); !ok || canonical != base || strings.Contains(base, "[") {
		return errors.New("want a DNS name in lower case such as gateway.example.com or *.example.com, or a URI such as spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway")
	}
	if wild && !strings.Contains(base, ".") {
		return errors.New("has a wildcard over a whole top-level domain: want at least two labels after it")
	}
	return nil
}

// NewNames returns the names of a list that ParseName finds nothing wrong with.
func NewNames(list []string) (Names, error) {
	n := Names{exact: map[string]bool{}, any: len(list) == 0}
	for _, name := range list {
		if err := ParseName(name); err != nil {
			return Names{}, fmt.Errorf("%q: %w", name, err)
		}
		base, wild := strings.CutPrefix(name, "*")
		switch {
		case strings.Contains(name, ":"):
			n.exact["uri:"+name] = true
		case wild:
			n.below = append(n.below, base)
		default:
			n.exact["dns:"+name] = true
		}
	}
	return n, nil
}

// Match reports whether a certificate has one of the names, as DNS or URI name (RFC 5280 section 4.2.1.6). Its common
// name does not count. The zero Names match nothing.
func (n Names) Match(c *x509.Certificate) bool {
	if n.any {
		return true
	}
	for _, name := range c.DNSNames {
		name = strings.ToLower(name)
		if canonical, ok := hosts.Canonical(name); !ok || canonical != name { // a wildcard of its own, for instance: nobody is called that
			continue
		}
		if n.exact["dns:"+name] || slices.ContainsFunc(n.below, func(below string) bool { return strings.HasSuffix(name, below) }) {
			return true
		}
	}
	return slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return n.exact["uri:"+u.String()] })
}

// maxSANs bounds what a stranger's certificate can write into a log.
const maxSANs = 8

// SANs returns the DNS, URI and IP names of a certificate, the first eight of them.
func SANs(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, u := range c.URIs {
		all = append(all, u.String())
	}
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	all = all[:min(len(all), maxSANs)]
	for i, name := range all {
		all[i] = strings.ToValidUTF8(name[:min(len(name), 256)], "")
	}
	return all
}
