package authz

import (
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/audit"
)

// dropCounters counts what an identity has that no header can carry.
type dropCounters struct {
	separator prometheus.Counter // groups with a comma or a control character
	size      prometheus.Counter // groups and values beyond the limit
}

// hygiene holds the identity headers that are ours: their names and everything that an app could read as one of them.
type hygiene struct {
	number  uint64 // of the generation, unique in a process
	headers []ownedHeader
	owned   []string   // names of those, and of the token's
	token   *tokenPlan // nil: apps get no token
	tokens  *tokenStore
	max     int
	drops   *dropCounters
	// anonymous removes every name and its usual aliases, and Authorization.
	anonymous []byte // a part of an OkHttpResponse, as is issuer
	issuer    []byte // as anonymous, but without Authorization
	anyLength uint64 // bit n: a name has length n, for n below 64
}

func encodeOK(set []*corev3.HeaderValueOption, remove []string) []byte {
	return marshal(&authv3.OkHttpResponse{Headers: set, HeadersToRemove: remove})
}

// marshal encodes a message that was made of valid UTF-8 only. It panics on another, which Check answers with 503.
func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

type ownedHeader struct {
	name    string // lower case
	claim   Claim
	aliases []string // the usual ones; others are found in the request
}

const authorization = "authorization"

func newHygiene(list []IdentityHeader, token *tokenPlan, tokens *tokenStore, limit int, drops *dropCounters) hygiene {
	h := hygiene{token: token, tokens: tokens, max: limit, drops: drops}
	var names []string
	for _, e := range list {
		name := strings.ToLower(e.Name)
		h.headers = append(h.headers, ownedHeader{name: name, claim: e.Claim, aliases: usualAliases(name)})
		h.own(name)
		names = append(append(names, name), usualAliases(name)...)
	}
	if token != nil {
		h.own(token.header)
		if token.header != authorization { // which the issuer reads
			names = append(append(names, token.header), usualAliases(token.header)...)
		}
	}
	h.issuer = encodeOK(nil, names)
	h.anonymous = encodeOK(nil, append(names, authorization))
	return h
}

// own makes a header ours.
func (h *hygiene) own(name string) {
	h.owned = append(h.owned, name)
	h.anyLength |= lengthBit(name)
}

func lengthBit(name string) uint64 { return 1 << min(len(name), 63) }

// usualAliases returns the spellings with one other separator throughout.
func usualAliases(name string) (out []string) {
	for _, sep := range []string{"-", "_", "."} {
		alias := strings.NewReplacer("-", sep, "_", sep, ".", sep).Replace(name)
		if alias != name {
			out = append(out, alias)
		}
	}
	return out
}

// fold returns the name under which an app may find a header: servers that turn header names into variables
// (RFC 3875 section 4.1.18 and its imitators) make one character of every separator.
func fold(name string) string {
	b := []byte(name)
	for i, c := range b {
		b[i] = foldByte(c)
	}
	return string(b)
}

func foldByte(c byte) byte {
	switch {
	case c >= 'A' && c <= 'Z':
		return c + 'a' - 'A'
	case alphanumeric(c):
		return c
	}
	return '-'
}

// alias reports whether a header of the request could be read as an identity header without being one.
func (h *hygiene) alias(key string) bool {
	if h.anyLength&lengthBit(key) == 0 {
		return false
	}
	for _, name := range h.owned {
		if key != name && foldEqual(key, name) {
			return true
		}
	}
	return false
}

// owns reports whether a header name is or could be read as an identity header.
func (h *hygiene) owns(key string) bool {
	for _, name := range h.owned {
		if foldEqual(key, name) {
			return true
		}
	}
	return false
}

func foldEqual(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if foldByte(a[i]) != foldByte(b[i]) {
			return false
		}
	}
	return true
}

// A principal is a session and what is made of it for one generation. It is immutable, but for the tokens.
type principal struct {
	session *session.Session
	of      uint64     // number of the generation that made it: a pointer would keep that alive as long as the session
	headers []byte     // a part of an OkHttpResponse: sets those that the identity has a value for, removes the others, aliases and, unless the token is there, Authorization
	tokens  *appTokens // nil: apps get none
	hash    string     // of the session id, for logs
	user    string     // userName
}

// principal makes one; former is that of another generation, or nil.
func (h *hygiene) principal(s *session.Session, former *principal) *principal {
	p := &principal{session: s, of: h.number, user: userName(&s.Identity)}
	var set []*corev3.HeaderValueOption
	var remove []string
	for i := range h.headers {
		e := &h.headers[i]
		if v := h.value(&s.Identity, e.claim); v != "" {
			set = append(set, overwrite(e.name, v))
		} else {
			remove = append(remove, e.name)
		}
		remove = append(remove, e.aliases...)
	}
	if h.token != nil {
		p.tokens = h.tokensOf(p, former)
		remove = append(remove, usualAliases(h.token.header)...)
	}
	if h.token == nil || h.token.header != authorization {
		remove = append(remove, authorization)
	}
	headers := encodeOK(set, remove)
	all := append(slices.Grow(headers, hashSize), audit.Hash(s.ID)...) // of one piece: there are many principals
	p.headers, p.hash = all[:len(headers):len(headers)], alias(all[len(headers):])
	return p
}

// hashSize is the length of audit.Hash.
const hashSize = 12

func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// value returns the header value of a claim, "" if there is none that a header can carry.
func (h *hygiene) value(id *policy.Identity, c Claim) string {
	var v string
	switch c {
	case ClaimGroups:
		return h.groups(id.Groups)
	case ClaimEmail:
		v = id.Email
	case ClaimName:
		v = id.Name
	case ClaimUsername:
		v = id.PreferredUsername
	case ClaimUserID:
		v = id.UserID
	case ClaimConnector:
		v = id.Connector
	}
	v = encodeValue(v)
	if len(v) > h.max { // a part of a name could be another's name
		h.drops.size.Inc()
		return ""
	}
	return v
}

// groups joins the groups that fit.
func (h *hygiene) groups(groups []string) string {
	var b strings.Builder
	for _, g := range groups {
		if g == "" {
			continue
		}
		if strings.ContainsFunc(g, func(r rune) bool { return r == ',' || r < 0x20 || r == 0x7f }) {
			h.drops.separator.Inc()
			continue
		}
		v := encodeValue(g)
		if b.Len()+1+len(v) > h.max {
			h.drops.size.Inc()
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(v)
	}
	return b.String()
}

// encodeValue returns v with every byte that is not printable ASCII, each percent sign and outer spaces percent-encoded. No two
// values have the same encoding.
func encodeValue(v string) string {
	plain := true
	for i := 0; i < len(v) && plain; i++ {
		plain = plainByte(v, i)
	}
	if plain {
		return v
	}
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, len(v)+16)
	for i := 0; i < len(v); i++ {
		if plainByte(v, i) {
			out = append(out, v[i])
		} else {
			out = append(out, '%', digits[v[i]>>4], digits[v[i]&15])
		}
	}
	return string(out)
}

func plainByte(v string, i int) bool {
	if v[i] == ' ' {
		return i > 0 && i < len(v)-1
	}
	return v[i] > 0x20 && v[i] < 0x7f && v[i] != '%'
}

// userName is what people know a user by. It is valid UTF-8, whatever a directory holds: no message could carry
// another.
func userName(id *policy.Identity) string {
	if id.Email != "" {
		return strings.ToValidUTF8(id.Email, "?")
	}
	return strings.ToValidUTF8(id.Connector+":"+id.UserID, "?")
}

// How principals are remembered: those with few headers for as long as the session is in memory, longer ones in a
// cache, so that the memory stays bounded: users of a directory have dozens of groups, and where apps get tokens a miss costs a signature.
const (
	maxMemo    = 2 << 10  // bytes of headers, with a token
	maxLarge   = 64 << 20 // bytes of headers in the cache, with tokens
	largeSlots = 16 << 10
)

// weight is how many bytes of headers a principal keeps, at most.
func (p *principal) weight() int {
	if p.tokens == nil || p.tokens.plan.perHost { // which are elsewhere
		return len(p.headers)
	}
	return len(p.headers) + p.tokens.weight
}

// principal returns what is made of s in this generation.
func (g *generation) principal(s *session.Session) *principal {
	memo, _ := s.Memo.Load().(*principal)
	if memo != nil && memo.of == g.headers.number && memo.session == s {
		return memo
	}
	p, slot, ok := g.large.find(s)
	if ok {
		return p
	}
	p = g.headers.principal(s, memo)
	if size := p.weight(); size <= maxMemo {
		s.Memo.Store(p)
	} else {
		g.large.put(slot, s, p, int64(size))
	}
	return p
}
