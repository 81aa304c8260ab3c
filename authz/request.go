package authz

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// headers are those of a request; of several with one name the last counts.
type headers []header

// get returns the value of a header, by its lower-case name; "" if there is none.
func (h headers) get(name string) string {
	v, _ := h.find(name)
	return v
}

func (h headers) find(name string) (value string, ok bool) {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].name == name {
			return h[i].value, true
		}
	}
	return "", false
}

// joined makes all names lower case and joins the values of one name, as a proxy does (RFC 9110 section 5.3). Unless
// several of one name are several headers, the last of them counts.
func (h headers) joined(several bool) headers {
	last := make(map[string]int, len(h))
	for i := range h {
		last[h[i].name] = i
	}
	var order []string
	values := make(map[string][]string, len(h))
	for i := range h {
		if !several && last[h[i].name] != i {
			continue
		}
		name := strings.ToLower(h[i].name)
		if values[name] == nil {
			order = append(order, name)
		}
		values[name] = append(values[name], h[i].value)
	}
	out := make(headers, 0, len(order))
	for _, name := range order {
		out = append(out, header{name, strings.Join(values[name], ",")})
	}
	return out
}

func hasUpper(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 'A' && s[i] <= 'Z' {
			return true
		}
	}
	return false
}

// scanHeaders takes the headers of the message, with names in lower case, and finds those that an app could read as an
// identity header. It returns false if one of them has a name that no answer could carry, or if the Connection header names
// an identity header: the next hop would drop it (RFC 9110 section 7.6.1).
func (c *check) scanHeaders() bool {
	c.head = c.msg.list
	if len(c.msg.raw) > 0 {
		c.head = headers(c.msg.raw).joined(true)
	} else if slices.ContainsFunc(c.msg.list, func(h header) bool { return hasUpper(h.name) }) { // Envoy sends lower case
		c.head = headers(c.msg.list).joined(false)
	}
	g := &c.g.headers
	for i := range c.head {
		if name := c.head[i].name; g.alias(name) {
			if !utf8.ValidString(name) {
				return false
			}
			c.aliases = append(c.aliases, name)
		}
	}
	for name := range strings.SplitSeq(c.head.get("connection"), ",") {
		if name = trimBlanks(name); name != "" && g.owns(name) {
			return false
		}
	}
	return true
}

// requestID returns the proxy's id of the request, or a new one if that cannot stand in a log and a header.
func (c *check) requestID() string {
	if c.rid == "" {
		if id := c.head.get("x-request-id"); saneID(id) {
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
	mode, accept := c.head.get("sec-fetch-mode"), c.head.get("accept")
	switch {
	case mode == "navigate" && read:
		return clientNavigation
	case mode != "":
		return clientScript
	case c.head.get("x-requested-with") != "",
		containsFold(c.head.get("upgrade"), "websocket"),
		strings.HasPrefix(c.head.get("content-type"), "application/grpc"):
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
	if mode := c.head.get("sec-fetch-mode"); mode != "" {
		return mode == "navigate"
	}
	return c.head.get("x-requested-with") == "" && containsFold(c.head.get("accept"), "text/html")
}

func containsFold(s, lower string) bool {
	return strings.Contains(s, lower) || hasUpper(s) && strings.Contains(strings.ToLower(s), lower)
}
