package authz

import (
	"crypto/rand"
	"net/http"
	"strings"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// read takes from a CheckRequest what a check looks at. It returns false for a request that is none.
func (c *check) read(in *authv3.CheckRequest) bool {
	attrs := in.GetAttributes()
	c.http = attrs.GetRequest().GetHttp()
	c.source = attrs.GetSource().GetAddress().GetSocketAddress().GetAddress()
	if c.http == nil {
		return false
	}
	c.head = c.http.GetHeaders()
	if m := c.http.GetHeaderMap(); len(m.GetHeaders()) > 0 { // encode_raw_headers
		c.head = make(map[string]string, len(m.GetHeaders()))
		for _, h := range m.GetHeaders() {
			v := h.GetValue()
			if raw := h.GetRawValue(); len(raw) > 0 {
				v = string(raw)
			}
			addHeader(c.head, h.GetKey(), v)
		}
	}
	return c.http.GetMethod() != "" && c.http.GetPath() != ""
}

func lowerKeys(in map[string]string) map[string]string {
	out := make(map[string]string, len(in))
	for k, v := range in {
		addHeader(out, k, v)
	}
	return out
}

// addHeader joins the values of one name as a proxy does (RFC 9110 section 5.3).
func addHeader(head map[string]string, key, value string) {
	key = strings.ToLower(key)
	if old, ok := head[key]; ok {
		value = old + "," + value
	}
	head[key] = value
}

func hasUpper(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 'A' && s[i] <= 'Z' {
			return true
		}
	}
	return false
}

// scanHeaders makes all names lower case and finds the headers that an app could read as an identity header. It returns false if one of them has a name
// that no answer could carry, or if the Connection header names an identity header: the next hop would drop it
// (RFC 9110 section 7.6.1).
func (c *check) scanHeaders() bool {
	h := &c.g.headers
	for key := range c.head {
		if hasUpper(key) { // Envoy sends lower case
			c.head, c.aliases = lowerKeys(c.head), nil
			return c.scanHeaders()
		}
		if h.alias(key) {
			if !utf8.ValidString(key) {
				return false
			}
			c.aliases = append(c.aliases, key)
		}
	}
	for name := range strings.SplitSeq(c.head["connection"], ",") {
		if name = trimBlanks(name); name != "" && h.owns(name) {
			return false
		}
	}
	return true
}

// requestID returns the proxy's id of the request, or a new one if that cannot stand in a log and a header.
func (c *check) requestID() string {
	if c.rid == "" {
		if id := c.head["x-request-id"]; saneID(id) {
			c.rid = id
		} else {
			c.rid, c.newID = rand.Text(), true
		}
	}
	return c.rid
}

func saneID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := 0; i < len(id); i++ {
		if c := id[i]; !alphanumeric(c) && c != '-' && c != '_' && c != '.' && c != ':' {
			return false
		}
	}
	return true
}

// hasBearer reports whether one of the credentials of an Authorization header is a bearer token (RFC 6750 section 2.1). A
// proxy joins several headers with commas.
func hasBearer(authorization string) bool {
	for authorization != "" {
		var one string
		one, authorization, _ = strings.Cut(authorization, ",")
		scheme, _, _ := strings.Cut(trimBlanks(one), " ")
		if strings.EqualFold(trimBlanks(scheme), "bearer") {
			return true
		}
	}
	return false
}

// A client is the kind of program that sent a request.
type client uint8

const (
	clientUnknown client = iota
	clientNavigation
	clientScript
)

// client tells a person's navigation from a script. Nothing but the form of a refusal depends on it.
func (c *check) client() client {
	read := c.reads()
	mode, accept := c.head["sec-fetch-mode"], c.head["accept"]
	switch {
	case mode == "navigate" && read:
		return clientNavigation
	case mode != "":
		return clientScript
	case c.head["x-requested-with"] != "",
		containsFold(c.head["upgrade"], "websocket"),
		strings.HasPrefix(c.head["content-type"], "application/grpc"):
		return clientScript
	case containsFold(accept, "text/html"):
		if read {
			return clientNavigation
		}
		return clientScript
	case containsFold(accept, "application/json"), containsFold(accept, "text/event-stream"):
		return clientScript
	}
	return clientUnknown
}

// reads reports whether the method is one that a redirect keeps.
func (c *check) reads() bool {
	return c.req.Method == http.MethodGet || c.req.Method == http.MethodHead
}

// person reports whether a refusal is read by a person: a form that was posted is no navigation that could go
// on after a sign-in, but its answer is shown.
func (c *check) person() bool {
	if mode := c.head["sec-fetch-mode"]; mode != "" {
		return mode == "navigate"
	}
	return c.head["x-requested-with"] == "" && containsFold(c.head["accept"], "text/html")
}

func containsFold(s, lower string) bool {
	return strings.Contains(s, lower) || hasUpper(s) && strings.Contains(strings.ToLower(s), lower)
}
