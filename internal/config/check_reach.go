package config

import (
	"net"
	"strings"

	"gatehouse/internal/hosts"
	"gatehouse/internal/reach"
)

// reach warns of an issuer that the browsers of the listed hosts cannot follow: the gateway would send them there to
// sign in, and nothing would ever arrive.
func (k *checker) reach() {
	const path = "issuer"
	u := k.c.IssuerURL
	if u == nil || k.failed(path) {
		return
	}
	name, ok := hosts.Canonical(u.Host)
	if !ok {
		return
	}
	scope, gateway := reach.ScopeOf(name), k.c.Gateway != nil
	app := k.appHost()
	fix := ours("set it to the URL by which browsers come through the gateway, such as https://auth.example.com" + u.Path)
	switch {
	case gateway && app == "": // the apps are as near as the issuer
	case gateway && scope != reach.Anywhere:
		k.warnf(path, "only %s can reach %s, and browsers come to %s: %s", ours(scope.String()), u.Host, app, fix)
	case scope == reach.Cluster || scope == reach.Bare:
		k.warnf(path, "only %s can reach %s, not browsers: %s", ours(scope.String()), u.Host, fix)
	case gateway && u.Port() != "" && portOf(k.c.Web.HTTP) == u.Port() && portOf(k.c.Web.HTTPS) != u.Port():
		k.warnf(path, "names port %s, where web.http listens: browsers would go past the gateway; leave the port out where the gateway serves the issuer", u.Port())
	case !k.https && k.secureHost() != "":
		k.warnf(path, "is http, and %s is https: where the gateway speaks TLS for both, write https://%s", k.secureHost(), u.Host+u.Path)
	}
}

// secureHost returns the first listed host that is served over https although the issuer is not.
func (k *checker) secureHost() string {
	if k.c.Gateway == nil {
		return ""
	}
	for _, entry := range k.c.Gateway.Hosts {
		if scheme, name := splitHost(entry, "http"); scheme == "https" {
			return name
		}
	}
	return ""
}

// appHost returns the first listed host, without scheme and port, that any browser may come to. It is empty where
// there is none.
func (k *checker) appHost() string {
	if k.c.Gateway == nil {
		return ""
	}
	for _, entry := range k.c.Gateway.Hosts {
		_, name := splitHost(entry, "")
		if name != "" && reach.ScopeOf(strings.TrimPrefix(name, "*.")) == reach.Anywhere {
			return name
		}
	}
	return ""
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return port
}
