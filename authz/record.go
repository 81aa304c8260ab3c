package authz

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// record counts the check and writes its audit event.
func (c *check) record() {
	end := time.Now()
	c.audit(end)
	c.count(end)
}

func (c *check) count(end time.Time) {
	c.server.metrics.checks[c.out.kind].Inc()
	c.server.metrics.duration.Observe(end.Sub(c.start).Seconds())
}

// Limits of what a client can write into one audit event, in bytes.
const (
	maxAuditPath = 1 << 10
	maxAuditWord = 256
)

// audit writes the event of the decision: a line as slog.JSONHandler writes it, made by hand since it is one of the larger
// costs of a check.
func (c *check) audit(end time.Time) {
	w := c.server.Audit
	if w == nil {
		return
	}
	o := outcomes[c.out.kind]
	b := append(c.line[:0], `{"time":"`...)
	b = append(end.AppendFormat(b, time.RFC3339Nano), `","level":"INFO","msg":"decision","log":"audit","decision":"`...)
	b = append(append(b, o.decision...), `","status":`...)
	b = append(strconv.AppendInt(b, int64(c.out.status), 10), `,"reason":"`...)
	b = append(append(b, o.reason...), '"')
	var user, connector, hash string
	if c.who != nil {
		user, connector, hash = c.who.user, c.who.session.Identity.Connector, c.who.hash
	}
	method, host, path := c.auditRequest()
	for _, f := range [...]header{
		{"rule", c.out.rule},
		{"rule_reason", string(c.out.reason)},
		{"user", user},
		{"connector", connector},
		{"session", hash},
		{"method", method},
		{"host", host},
		{"path", path},
		{"request_id", c.requestID()},
		{"source", c.msg.source},
	} {
		b = append(append(append(b, `,"`...), f.name...), `":`...)
		b = appendJSON(b, f.value)
	}
	b = append(b, `,"duration_us":`...)
	b = append(strconv.AppendInt(b, end.Sub(c.start).Microseconds(), 10), "}\n"...)
	c.line = b
	if _, err := w.Write(b); err != nil {
		c.server.metrics.auditErrors.Inc()
	}
}

// auditRequest returns the request as it was decided on, or, where it could not be parsed, as it was sent. The
// query is never part of it: hand-offs travel there.
func (c *check) auditRequest() (method, host, path string) {
	if c.req.Method != "" {
		return c.req.Method, c.req.Host, clip(c.req.Path, maxAuditPath)
	}
	path, _, _ = strings.Cut(c.msg.path, "?")
	return clip(c.msg.method, maxAuditWord), clip(c.msg.host, maxAuditWord), clip(path, maxAuditPath)
}

func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// appendJSON appends s as a string of JSON (RFC 8259 section 7). What is not UTF-8 becomes U+FFFD.
func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			const digits = "0123456789abcdef"
			if c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' { // the last two end a line in some readers
			b = append(b, s[start:i]...)
			b = append(b, `\u`...)
			b = append(b, map[rune]string{utf8.RuneError: "fffd", '\u2028': "2028", '\u2029': "2029"}[r]...)
			start = i + n
		}
		i += n
	}
	return append(append(b, s[start:]...), '"')
}

// metadata is what the access log of Envoy can show of a check, as %DYNAMIC_METADATA(envoy.filters.http.ext_authz)%: the fields
// of a Struct. The request id stands in it where Envoy does not know it.
type metadata struct {
	list [5]header
	n    int
}

func (c *check) metadata() (m metadata) {
	o := outcomes[c.out.kind]
	m.add("decision", o.decision)
	m.add("reason", o.reason)
	m.add("rule", c.out.rule)
	if c.who != nil {
		m.add("user", c.who.user)
	}
	if c.newID {
		m.add("request_id", c.rid)
	}
	return m
}

// add adds a field, unless it is empty.
func (m *metadata) add(name, value string) {
	if value != "" {
		m.list[m.n] = header{name, strings.ToValidUTF8(value, "?")}
		m.n++
	}
}

// size returns how long the Struct is.
func (m *metadata) size() (n int) {
	for _, f := range m.list[:m.n] {
		n += stringFieldSize(f.name, f.value)
	}
	return n
}

// write writes the field dynamic_metadata of a CheckResponse.
func (m *metadata) write(e encoder) encoder {
	e = e.tag(responseMetadata, m.size())
	for _, f := range m.list[:m.n] {
		e = e.stringField(f.name, f.value)
	}
	return e
}
