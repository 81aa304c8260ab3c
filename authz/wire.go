package authz

import (
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

// A message is what a check reads of a CheckRequest, and what it says is what proto.Unmarshal says of these fields: the
// last of several scalars counts, several messages in one place are one, and what has a known number but another wire type
// is unknown. Fields that no check needs are passed over unread, so a message may be taken in which one of them is broken.
//
// Its strings refer to the bytes that it was read from. They are good until the check ends; nothing may keep one.
type message struct {
	method, path, host string
	source             string   // address of the peer that Envoy saw
	peer               int      // which kind of address the source has
	list               []header // headers: of several with one name the last counts
	raw                []header // header_map (encode_raw_headers), which may have a name several times
}

// Numbers of fields, all of them below 16.
const (
	requestAttributes = 1 // CheckRequest
	attributesSource  = 1 // AttributeContext
	attributesRequest = 4
	peerAddress       = 1 // AttributeContext.Peer
	addressSocket     = 1 // config.core.v3.Address, of which one is set
	addressPipe       = 2
	addressInternal   = 3
	socketAddress     = 2 // config.core.v3.SocketAddress
	requestHTTP       = 2 // AttributeContext.Request
	httpMethod        = 2 // AttributeContext.HttpRequest
	httpHeaders       = 3
	httpPath          = 4
	httpHost          = 5
	httpHeaderMap     = 13
	mapKey, mapValue  = 1, 2 // entry of a map
	headerMapHeaders  = 1    // config.core.v3.HeaderMap
	headerKey         = 1    // config.core.v3.HeaderValue
	headerValue       = 2
	headerRawValue    = 3
	optionHeader      = 1 // config.core.v3.HeaderValueOption
	optionAction      = 3
	okHeaders         = 2 // OkHttpResponse
	okHeadersToRemove = 5
	responseStatus    = 1 // CheckResponse
	responseOK        = 3
	responseMetadata  = 4
	structFields      = 1 // protobuf.Struct
	valueString       = 3 // protobuf.Value
)

// fields walks the length-delimited fields of a message and passes over the others.
type fields struct {
	rest   []byte
	broken bool // rest is no message
}

// next returns the next field. ok is false at the end, and where the message is broken.
func (f *fields) next() (num int, value []byte, ok bool) {
	for len(f.rest) > 0 {
		if num, value, ok = f.short(); ok {
			return num, value, true
		}
		number, typ, n := protowire.ConsumeTag(f.rest)
		if n < 0 || number > protowire.MaxValidNumber {
			return f.fail()
		}
		f.rest = f.rest[n:]
		if typ == protowire.BytesType {
			if value, n = protowire.ConsumeBytes(f.rest); n < 0 {
				return f.fail()
			}
			f.rest = f.rest[n:]
			return int(number), value, true
		}
		if n = protowire.ConsumeFieldValue(number, typ, f.rest); n < 0 {
			return f.fail()
		}
		f.rest = f.rest[n:]
	}
	return 0, nil, false
}

// short is next for what nearly all fields are: a tag of one byte, and a length of one or two.
func (f *fields) short() (num int, value []byte, ok bool) {
	const bytesTag = byte(protowire.BytesType)
	b := f.rest
	if len(b) < 3 || b[0]&0x87 != bytesTag || b[0] < 1<<3 {
		return 0, nil, false
	}
	num, length, start := int(b[0]>>3), int(b[1]), 2
	if length >= 0x80 {
		if b[2] >= 0x80 {
			return 0, nil, false
		}
		length, start = length&0x7f|int(b[2])<<7, 3
	}
	if length > len(b)-start {
		return 0, nil, false
	}
	f.rest = b[start+length:]
	return num, b[start : start+length], true
}

func (f *fields) fail() (int, []byte, bool) {
	f.broken = true
	return 0, nil, false
}

// text returns a string field, which must be UTF-8.
func (f *fields) text(value []byte) string {
	s := alias(value)
	f.broken = f.broken || !utf8.ValidString(s)
	return s
}

// alias returns b as a string without copying it: the string changes if b does.
func alias(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // G103: whoever calls it says how long it is good
}

// read takes what is needed from the bytes of a CheckRequest, which must not change before the check ends. It returns
// false if they are none.
func (m *message) read(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		if num == requestAttributes && !m.readAttributes(v) {
			return false
		}
	}
	return !f.broken
}

func (m *message) readAttributes(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		if num == attributesSource && !m.readPeer(v) || num == attributesRequest && !m.readRequest(v) {
			return false
		}
	}
	return !f.broken
}

func (m *message) readPeer(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		if num == peerAddress && !m.readAddress(v) {
			return false
		}
	}
	return !f.broken
}

// readAddress reads a oneof: an address of another kind replaces the one before.
func (m *message) readAddress(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		switch num {
		case addressSocket, addressPipe, addressInternal:
			if m.peer != num {
				m.peer, m.source = num, ""
			}
			if num == addressSocket && !m.readSocket(v) {
				return false
			}
		}
	}
	return !f.broken
}

func (m *message) readSocket(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		if num == socketAddress {
			m.source = f.text(v)
		}
	}
	return !f.broken
}

func (m *message) readRequest(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		if num == requestHTTP && !m.readHTTP(v) {
			return false
		}
	}
	return !f.broken
}

func (m *message) readHTTP(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		good := true
		switch num {
		case httpMethod:
			m.method = f.text(v)
		case httpHeaders:
			good = m.readHeader(v)
		case httpPath:
			m.path = f.text(v)
		case httpHost:
			m.host = f.text(v)
		case httpHeaderMap:
			good = m.readHeaderMap(v)
		}
		if !good {
			return false
		}
	}
	return !f.broken
}

// readHeader reads an entry of the map of headers.
func (m *message) readHeader(b []byte) bool {
	var h header
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		switch num {
		case mapKey:
			h.name = f.text(v)
		case mapValue:
			h.value = f.text(v)
		}
	}
	m.list = append(m.list, h)
	return !f.broken
}

func (m *message) readHeaderMap(b []byte) bool {
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		if num == headerMapHeaders && !m.readRawHeader(v) {
			return false
		}
	}
	return !f.broken
}

// readRawHeader reads a header whose value stands in value or, as bytes of any kind, in raw_value.
func (m *message) readRawHeader(b []byte) bool {
	var h header
	raw := ""
	f := fields{rest: b}
	for num, v, ok := f.next(); ok; num, v, ok = f.next() {
		switch num {
		case headerKey:
			h.name = f.text(v)
		case headerValue:
			h.value = f.text(v)
		case headerRawValue:
			raw = alias(v)
		}
	}
	if raw != "" {
		h.value = raw
	}
	m.raw = append(m.raw, h)
	return !f.broken
}

// maxKept bounds the memory that a message keeps for the next one, in headers.
const maxKept = 256

// reset makes m ready for another message.
func (m *message) reset() {
	clear(m.list) // strings that are not good any more
	clear(m.raw)
	next := message{list: m.list[:0], raw: m.raw[:0]}
	if cap(next.list) > maxKept {
		next.list = nil
	}
	if cap(next.raw) > maxKept {
		next.raw = nil
	}
	*m = next
}

// An encoder writes messages that go on the wire as they are. Its numbers of fields are below 16.
type encoder []byte

// sized returns how long a length-delimited field of n bytes is.
func sized(n int) int { return 1 + protowire.SizeBytes(n) }

func (e encoder) tag(num, length int) encoder {
	return protowire.AppendVarint(append(e, byte(num)<<3|byte(protowire.BytesType)), uint64(length)) //nolint:gosec // G115: lengths of what is in memory
}

func (e encoder) text(num int, s string) encoder {
	return append(e.tag(num, len(s)), s...)
}

// overwriteAction is HeaderValueOption.append_action with OVERWRITE_IF_EXISTS_OR_ADD.
const overwriteAction = "\x18\x02"

// option writes a header that replaces what the client sent, into an OkHttpResponse.
func (e encoder) option(name, value string) encoder {
	inner := sized(len(name)) + sized(len(value))
	e = e.tag(okHeaders, sized(inner)+len(overwriteAction)).tag(optionHeader, inner)
	return append(e.text(headerKey, name).text(headerValue, value), overwriteAction...)
}

// optionSize returns how many bytes option writes.
func optionSize(name, value string) int {
	return sized(sized(sized(len(name))+sized(len(value))) + len(overwriteAction))
}

// stringField writes a field of a Struct that holds a string.
func (e encoder) stringField(name, value string) encoder {
	inner := sized(len(value))
	return e.tag(structFields, sized(len(name))+sized(inner)).text(mapKey, name).tag(mapValue, inner).text(valueString, value)
}

// stringFieldSize returns how many bytes stringField writes.
func stringFieldSize(name, value string) int {
	return sized(sized(len(name)) + sized(sized(len(value))))
}
