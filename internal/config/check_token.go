package config

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// hostVariable stands for the name of the request's host in gateway.identity.token.audience.
const hostVariable = "{host}"

// maxAudience bounds gateway.identity.token.audience, in bytes.
const maxAudience = 256

func (k *checker) appToken(g *Gateway) {
	const at = "gateway.identity.token"
	t := g.Identity.Token
	if t == nil {
		if _, there := k.nodes[at]; there && !k.failed(at) {
			k.errorf(at, "is empty: add an audience, or remove the line")
		}
		return
	}
	k.tokenHeader(at+".header", g, t.Header)
	k.tokenAudience(at, g, t.Audience)
	idle, idleIsGood := k.c.Sessions.ValidIfNotUsedFor, !k.failed("gateway.session.idle") && !k.failed("sessions.validIfNotUsedFor")
	if idleIsGood && !k.has(at+".ttl") { // the default follows a shorter idle time
		t.TTL = min(t.TTL, idle)
	}
	k.between(at+".ttl", t.TTL, Duration(30*time.Second), Duration(time.Hour))
	if idleIsGood && t.TTL > idle && !k.failed(at+".ttl") {
		k.errorf(at+".ttl", "is longer than gateway.session.idle (%s), which ends a session that is not used: make it shorter", idle)
	}
	if t.TTL > k.c.Expiry.IDTokens && !k.failed(at+".ttl") && !k.failed("expiry.idTokens") {
		k.errorf(at+".ttl", "is longer than expiry.idTokens (%s), which is how long a key stays published that signs no more: make it shorter", k.c.Expiry.IDTokens)
	}
}

func (k *checker) tokenHeader(at string, g *Gateway, name string) {
	if name == "" {
		if !k.failed(at) {
			k.errorf(at, "is empty: set Authorization or a header of your own, or remove the line")
		}
		return
	}
	alias := plain(name)
	switch lower := strings.ToLower(name); {
	case !isHeaderName(lower):
		k.errorf(at, "%q is not the name of a header", name)
	case reservedHeader(alias) && lower != "authorization":
		k.errorf(at, "%s is a header of the connection or of the proxy: take Authorization, or a name of your own such as x-app-token", name)
	}
	for _, other := range slices.Sorted(maps.Keys(g.Identity.Headers)) {
		if plain(other) == alias {
			k.errorf(at, "is the same as %s of gateway.identity.headers to many servers, which take - _ and . for one another: take another name", other)
		}
	}
}

// tokenAudience refuses an audience under which others than apps take tokens of this issuer.
func (k *checker) tokenAudience(block string, g *Gateway, audience string) {
	at := block + ".audience"
	before, after, perHost := strings.Cut(audience, hostVariable)
	switch {
	case audience == "":
		if !k.failed(at) {
			k.errorf(block, "needs an audience, which apps compare with the aud of the token, such as kubeflow-apps")
		}
		return
	case len(audience) > maxAudience, strings.ContainsFunc(audience, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\"'`\\,", c) }):
		k.errorf(at, "want at most %d visible ASCII characters without quotes, commas and backslashes, got %q", maxAudience, audience)
		return
	case strings.ContainsAny(before+after, "{}"):
		k.errorf(at, "want a name, or one with {host} in it, once, for the name of the host that is asked for, got %q", audience)
		return
	}
	for _, taken := range k.takenAudiences() {
		middle, ok := strings.CutPrefix(taken.name, before)
		if ok && perHost {
			if middle, ok = strings.CutSuffix(middle, after); ok && !k.failedBelow("gateway.hosts") {
				_, ok = g.HostSet.Lookup(middle)
			}
		} else {
			ok = taken.name == audience
		}
		if ok {
			k.errorf(at, "%q is %s: a token for an app would be taken there for another one; take a name that is nobody else's", taken.name, ours(taken.whose))
		}
	}
}

type takenName struct{ name, whose string }

func (k *checker) takenAudiences() []takenName {
	all := []takenName{{reservedClientID, "the gateway's own client"}, {k.c.Issuer, "the issuer"}}
	if k.c.IssuerURL != nil && k.c.IssuerURL.String() != k.c.Issuer {
		all = append(all, takenName{k.c.IssuerURL.String(), "the issuer"})
	}
	for i := range k.c.StaticClients {
		if id := k.c.StaticClients[i].ID; id != "" {
			all = append(all, takenName{id, "the id of a client"})
		}
	}
	return all
}
