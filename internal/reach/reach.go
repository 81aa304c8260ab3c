// Package reach tells who can follow the issuer's URL, by its name and by a try. An issuer that only the cluster can
// reach, and a path that the gateway routes elsewhere, are the mistakes of a first install: every sign-in fails, and
// nothing arrives here that could tell why.
package reach

import (
	"net/netip"
	"strings"
)

// A Scope is how far a host name carries.
type Scope int

const (
	Anywhere Scope = iota // as far as the name tells
	Machine               // a loopback name or address: only the same machine
	Cluster               // a Service of Kubernetes: only pods of its cluster
	Bare                  // without a dot: only where a search domain is set for it, as in a namespace or a Compose network
)

// String returns who can reach such a name.
func (s Scope) String() string {
	switch s {
	case Machine:
		return "programs on the same machine"
	case Cluster:
		return "pods of the cluster"
	case Bare:
		return "the namespace or network that it is a short name of"
	case Anywhere:
	}
	return "anybody"
}

// ScopeOf returns the scope of a name without port, as hosts.Canonical returns it.
func ScopeOf(name string) Scope {
	if addr, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		if addr.Unmap().IsLoopback() {
			return Machine
		}
		return Anywhere // private addresses are an intranet's more often than a cluster's
	}
	labels := strings.Split(name, ".")
	last := len(labels) - 1
	switch {
	case labels[last] == "localhost": // RFC 6761 section 6.3
		return Machine
	case last == 0:
		return Bare
	case labels[last] == "svc", last > 2 && labels[2] == "svc", strings.HasSuffix(name, ".cluster.local"):
		return Cluster // NAME.NAMESPACE.svc, with the cluster's domain or without
	}
	return Anywhere
}
