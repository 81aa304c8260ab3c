package authz

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// comparison holds what a message says of some bytes to what proto.Unmarshal says of them.
func comparison(t *testing.T, wire []byte) {
	t.Helper()
	in := &authv3.CheckRequest{}
	var m message
	if proto.Unmarshal(wire, in) != nil {
		m.read(wire) // must not panic
		return
	}
	if !m.read(wire) {
		t.Fatalf("%x is not taken in: %v", wire, in)
	}
	http := in.GetAttributes().GetRequest().GetHttp()
	for _, f := range []struct{ name, got, want string }{
		{"method", m.method, http.GetMethod()},
		{"path", m.path, http.GetPath()},
		{"host", m.host, http.GetHost()},
		{"source", m.source, in.GetAttributes().GetSource().GetAddress().GetSocketAddress().GetAddress()},
	} {
		if f.got != f.want {
			t.Fatalf("%x: %s: got %q, want %q", wire, f.name, f.got, f.want)
		}
	}
	if raw := http.GetHeaderMap().GetHeaders(); len(raw) > 0 {
		var want headers
		for _, h := range raw {
			want = append(want, header{h.GetKey(), h.GetValue()})
			if len(h.GetRawValue()) > 0 {
				want[len(want)-1].value = string(h.GetRawValue())
			}
		}
		if !slices.Equal(want, headers(m.raw)) {
			t.Fatalf("%x: header map: got %q, want %q", wire, m.raw, want)
		}
		return
	}
	if len(m.raw) > 0 {
		t.Fatalf("%x: header map: got %q, want none", wire, m.raw)
	}
	got := map[string]string{}
	for _, h := range m.list {
		got[h.name] = headers(m.list).get(h.name)
	}
	if !maps.Equal(got, http.GetHeaders()) {
		t.Fatalf("%x: headers: got %q, want %q", wire, got, http.GetHeaders())
	}
	joined := map[string][]string{}
	for name, v := range http.GetHeaders() {
		joined[strings.ToLower(name)] = append(joined[strings.ToLower(name)], v)
	}
	folded := headers(m.list).joined(false)
	if len(folded) != len(joined) {
		t.Fatalf("%x: got %q, want the values of %q", wire, folded, joined)
	}
	for _, h := range folded {
		if want := strings.Join(joined[h.name], ","); !slices.Equal(sortedParts(h.value), sortedParts(want)) {
			t.Fatalf("%x: %s: got %q, want the values of %q", wire, h.name, h.value, want)
		}
	}
}

// sortedParts forgets the order, which a map does not have.
func sortedParts(s string) []string { return slices.Sorted(strings.SplitSeq(s, ",")) }

// FuzzMessage holds for any bytes that reading a CheckRequest says of every field what proto.Unmarshal says.
func FuzzMessage(f *testing.F) {
	for _, r := range []request{get("/x?y", browser, "cookie", "a=b"), get("/x", script, "Cookie", "a=b", "cookie", "c=d").by("POST"), {}} {
		f.Add(r.wire(f))
	}
	f.Add([]byte{0x0a})
	f.Add([]byte{0x8a, 0x80, 0x00, 0x00})
	f.Fuzz(func(t *testing.T, wire []byte) { comparison(t, wire) })
}

// A script of bytes says what message is written: one that goes further than mutated bytes do. Known and unknown fields of every
// level come in any order and number, in pieces, empty, of wrong types, with long tags and lengths, in groups, cut off.
type script2wire struct{ rest []byte }

func (s *script2wire) next(n int) int {
	if len(s.rest) == 0 {
		return 0
	}
	v := int(s.rest[0]) % n
	s.rest = s.rest[1:]
	return v
}

// shape is a message: its fields by number.
type shape map[protowire.Number]any // a shape, or "" for text

func requestShape() shape {
	socket := shape{1: 0, 2: "", 3: 0, 4: ""}
	peer := shape{1: shape{1: socket, 2: shape{1: ""}, 3: shape{1: ""}}, 2: "", 4: ""}
	entry := shape{1: "", 2: ""}
	http := shape{
		1: "", 2: "", 3: entry, 4: "", 5: "", 6: "", 7: "", 8: "", 9: 0, 10: "", 11: "", 12: "",
		13: shape{1: shape{1: "", 2: "", 3: ""}},
	}
	return shape{1: shape{1: peer, 2: peer, 4: shape{1: shape{1: 0, 2: 0}, 2: http}, 10: entry}}
}

func (s *script2wire) text() string {
	words := []string{
		"", "a", "cookie", "Cookie", "GET", "/x", "app.example.com", "x-a", "X-A", "kubeflow_userid", "a=b; c=d", "é", "\xff", "\xc3", "\x00",
		strings.Repeat("z", 127), strings.Repeat("z", 128), strings.Repeat("y", 300), "1.2.3.4", ",",
	}
	return words[s.next(len(words))]
}

func (s *script2wire) tag(num protowire.Number, typ protowire.Type) []byte {
	b := protowire.AppendTag(nil, num, typ)
	if s.next(12) == 0 { // a longer spelling
		b[len(b)-1] |= 0x80
		b = append(b, 0x80, 0x00)
	}
	return b
}

func (s *script2wire) field(b []byte, num protowire.Number, of any, depth int) []byte {
	switch s.next(10) {
	case 0: // another type than the field has
		switch s.next(5) {
		case 0:
			return protowire.AppendVarint(append(b, s.tag(num, protowire.VarintType)...), 1<<s.next(64))
		case 1:
			return protowire.AppendFixed32(append(b, s.tag(num, protowire.Fixed32Type)...), 7)
		case 2:
			return protowire.AppendFixed64(append(b, s.tag(num, protowire.Fixed64Type)...), 7)
		case 3:
			b = append(b, s.tag(num, protowire.StartGroupType)...)
			b = s.field(b, 1, "", depth+1)
			return append(b, s.tag(num, protowire.EndGroupType)...)
		default:
			return append(b, s.tag(num, protowire.Type(s.next(8)))...) // perhaps none
		}
	case 1:
		return protowire.AppendString(append(b, s.tag(num, protowire.BytesType)...), s.text()) // perhaps no message
	}
	b = append(b, s.tag(num, protowire.BytesType)...)
	if inner, ok := of.(shape); ok {
		return protowire.AppendBytes(b, s.message(inner, depth+1))
	}
	return protowire.AppendString(b, s.text())
}

func (s *script2wire) message(of shape, depth int) (b []byte) {
	numbers := slices.Sorted(maps.Keys(of))
	for range 1 + s.next(5) {
		if len(s.rest) == 0 || depth > 12 {
			break
		}
		num := numbers[s.next(len(numbers))]
		switch s.next(16) {
		case 0:
			num = protowire.Number(1 + s.next(40))
		case 1:
			num = protowire.MaxValidNumber - protowire.Number(s.next(2))
		}
		b = s.field(b, num, of[num], depth)
	}
	if s.next(40) == 1 && len(b) > 0 {
		b = b[:s.next(len(b))] // cut off
	}
	return b
}

// FuzzMessageParts is FuzzMessage on messages that are made of parts.
func FuzzMessageParts(f *testing.F) {
	for i := range 64 {
		b := make([]byte, 64+8*i)
		for j := range b {
			b[j] = byte((i+1)*(j+3)*(j+i)>>2 ^ i<<3)
		}
		f.Add(b)
	}
	all := requestShape()
	f.Fuzz(func(t *testing.T, script []byte) {
		s := &script2wire{rest: script}
		comparison(t, s.message(all, 0))
	})
}

// TestMessageParts pins what of a message counts, case by case.
func TestMessageParts(t *testing.T) {
	field := func(num protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), v)
	}
	text := func(num protowire.Number, v string) []byte { return field(num, []byte(v)) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	http := func(parts ...[]byte) []byte { return field(1, field(4, field(2, join(parts...)))) }
	entry := func(k, v string) []byte { return field(3, join(text(1, k), text(2, v))) }
	from := func(parts ...[]byte) []byte { return field(1, field(1, field(1, join(parts...)))) }
	tests := []struct {
		rule string
		wire []byte
		want string // method path host source headers; "-" if it is no message
	}{
		{"the last scalar counts", http(text(2, "GET"), text(2, "POST"), text(4, "/a"), text(4, "/b"), text(5, "h")), "POST /b h  []"},
		{"an empty scalar counts too", http(text(2, "GET"), text(2, "")), "    []"},
		{"messages in pieces are one", join(http(text(2, "GET")), http(text(4, "/a"), entry("a", "1")), http(entry("b", "2"))), "GET /a   [{a 1} {b 2}]"},
		{"the last entry of a name counts", http(entry("a", "1"), entry("b", "2"), entry("a", "3")), "    [{a 3} {b 2}]"},
		{"an entry without value", http(field(3, text(1, "a"))), "    [{a }]"},
		{"an entry without name", http(field(3, text(2, "v"))), "    [{ v}]"},
		{"the last key of an entry counts", http(field(3, join(text(1, "a"), text(1, "b"), text(2, "1"), text(2, "2")))), "    [{b 2}]"},
		{"another wire type is unknown", http(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 5), text(4, "/a")), " /a   []"},
		{"unknown fields are passed over", http(text(99, "\xff"), text(2, "GET")), "GET    []"},
		{"a body is passed over", http(text(11, "body"), field(12, []byte{0xff}), text(2, "GET")), "GET    []"},
		{"header map, with bytes", http(field(13, field(1, join(text(1, "a"), text(2, "v"), field(3, []byte("w")))))), "    [{a w}]"},
		{"header map, with text", http(field(13, field(1, join(text(1, "a"), text(2, "v"), field(3, nil))))), "    [{a v}]"},
		{"header map joins", http(field(13, join(field(1, join(text(1, "A"), text(2, "v"))), field(1, join(text(1, "a"), text(2, "w")))))), "    [{a v,w}]"},
		{"header map instead of headers", http(entry("b", "1"), field(13, field(1, join(text(1, "a"), text(2, "v"))))), "    [{a v}]"},
		{"an empty header map is none", http(entry("b", "1"), field(13, nil)), "    [{b 1}]"},
		{"a socket address", from(field(1, text(2, "1.2.3.4"))), "   1.2.3.4 []"},
		{"the last kind of address counts", from(field(1, text(2, "1.2.3.4")), field(2, text(1, "/p"))), "    []"},
		{"an address after another kind is new", from(field(1, text(2, "1.2.3.4")), field(2, nil), field(1, nil)), "    []"},
		{"not UTF-8", http(text(4, "/\xff")), "-"},
		{"a name that is not UTF-8", http(entry("\xff", "v")), "-"},
		{"bytes of a header map are any", http(field(13, field(1, join(text(1, "a"), field(3, []byte("\xff")))))), "    [{a \xff}]"},
		{"cut off", http(text(2, "GET"))[:5], "-"},
		{"a length one beyond the end", append([]byte{0x0a, 0x03, 0x22, 0x00}, 0)[:4], "-"},
		{"a long length one beyond the end", append([]byte{0x0a, 0x83, 0x00, 0x22, 0x00}, 0)[:5], "-"},
		{"a tag only", []byte{0x0a}, "-"},
		{"field number 0", []byte{0x02, 0x00}, "-"},
		{"a group that does not end", []byte{0x0b}, "-"},
		{"nothing", nil, "    []"},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			comparison(t, tt.wire)
			f := newFixture(t)
			c := &check{server: f.Server, g: f.current.Load()}
			if !c.msg.read(tt.wire) {
				if tt.want != "-" {
					t.Fatalf("got no message, want %q", tt.want)
				}
				if r := f.reply(f.Server.check(t.Context(), tt.wire)); r.code != 400 || r.problem(t) != ProblemBadRequest {
					t.Errorf("got %d %s, want 400", r.code, r.body)
				}
				return
			}
			c.scanHeaders()
			var list []string
			for _, h := range slices.Backward(c.head) { // of one name the last
				if !slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, "{"+h.name+" ") }) {
					list = append(list, "{"+h.name+" "+h.value+"}")
				}
			}
			slices.Sort(list)
			if got := strings.Join([]string{c.msg.method, c.msg.path, c.msg.host, c.msg.source, "[" + strings.Join(list, " ") + "]"}, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// reply reads an answer from the wire, for a request without headers.
func (f *fixture) reply(a answer) result {
	f.t.Helper()
	out := &authv3.CheckResponse{}
	if err := proto.Unmarshal(a, out); err != nil {
		f.t.Fatalf("the answer %x cannot be read: %v", a, err)
	}
	r, err := envoy(nil, out)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// TestEncoder pins what is written by hand to what proto writes, at every border of a length's length.
func TestEncoder(t *testing.T) {
	for _, n := range []int{0, 1, 100, 126, 127, 128, 129, 16383, 16384, 70000} {
		v := strings.Repeat("v", n)
		want := marshal(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{overwrite("cookie", v)}})
		if n == 0 {
			continue // proto leaves an empty value out; a header without value is never set
		}
		if got := (encoder{}).option("cookie", v); !bytes.Equal(got, want) || len(got) != optionSize("cookie", v) {
			t.Errorf("option of %d bytes: got %d bytes, announced %d, want %d", n, len(got), optionSize("cookie", v), len(want))
		}
		want = marshal(&structpb.Struct{Fields: map[string]*structpb.Value{"user": structpb.NewStringValue(v)}})
		if got := (encoder{}).stringField("user", v); !bytes.Equal(got, want) || len(got) != stringFieldSize("user", v) {
			t.Errorf("field of %d bytes: got %d bytes, announced %d, want %d", n, len(got), stringFieldSize("user", v), len(want))
		}
	}
	if want := marshal(&authv3.OkHttpResponse{HeadersToRemove: []string{"cookie"}}); string(want) != dropCookie {
		t.Errorf("dropCookie is %q, want %q", dropCookie, want)
	}
}

// TestAnswersHaveTheirSize pins that an allow is written into memory of exactly its size: a wrong count would cost a copy.
func TestAnswersHaveTheirSize(t *testing.T) {
	f := newFixture(t)
	cookie := f.cookie(appHost, "alice")
	for rule, r := range map[string]request{
		"our cookie only": get("/x", "", "cookie", cookie), "with others": get("/x", "", "cookie", "a=b; "+cookie), "no cookie": get("/public/x", ""),
		"aliases": get("/public/x", "", "kubeflow_userid", "x", "cookie", "a=b; "+cookie), "issuer": get("/dex/keys", "").on(issuerHost),
		"new id": get("/x", "", "x-request-id", "", "cookie", cookie),
	} {
		a := f.Server.check(t.Context(), r.wire(t))
		if !allows(a) || len(a) != cap(a) && cap(a)-len(a) >= 48 { // what the allocator adds
			t.Errorf("%s: %d bytes in memory of %d", rule, len(a), cap(a))
		}
	}
}

// TestNothingIsKept pins that nothing of a request is referred to once it is answered: its memory is used again.
func TestNothingIsKept(t *testing.T) {
	f := newFixture(t)
	requests := map[string]request{
		"allow": get("/x", "", "cookie", "a=b; "+f.cookie(appHost, "alice")), "sign-in": get("/x?y=z", browser, "cookie", "a=b"),
		"denied": get("/admin/x", browser, "cookie", f.cookie(appHost, "alice")), "sign-out": get("/_gatehouse/sign-out", browser, "cookie", f.cookie(appHost, "alice")),
		"not listed": get("/x", browser).on("evil.example.com"), "upper case": get("/x", "", "Cookie", f.cookie(appHost, "alice")),
	}
	for name, r := range requests {
		wire := r.wire(t)
		before := f.Server.check(t.Context(), wire)
		kept := bytes.Clone(before)
		for i := range wire {
			wire[i] = 'x'
		}
		if !bytes.Equal(before, kept) {
			t.Errorf("%s: the answer changes with the request", name)
		}
		if got := f.do(get("/x", "", "cookie", f.cookie(appHost, "alice"))); got.code != 200 || got.upstream["kubeflow-userid"] != "alice@example.com" {
			t.Errorf("after %s: got %d %v", name, got.code, got.upstream)
		}
	}
	if strings.Contains(f.audit.String(), "xxxx") {
		t.Errorf("the audit log changes with the request: %s", f.audit)
	}
}

// TestAuditLineIsJSON pins the line that is written by hand, for whatever stands in a request.
func TestAuditLineIsJSON(t *testing.T) {
	f := newFixture(t)
	for _, host := range []string{"a\"b", "a\\b", "a\nb", "a\x00b", "\u2028", "é", "\x7f", strings.Repeat("ö", 200)} {
		f.audit.Reset()
		f.do(get("/x", "", "x-request-id", "r").on(host))
		want := host
		if len(want) > maxAuditWord {
			want = want[:maxAuditWord] + "…"
		}
		if got := f.events(); len(got) != 1 || got[0]["host"] != want {
			t.Errorf("host %q: got %v", host, got)
		}
	}
	if got := string(appendJSON(nil, "a\xffb\xc3")); got != `"a\ufffdb\ufffd"` {
		t.Errorf("got %s for bytes that are not UTF-8", got)
	}
	if f.Audit = nil; f.do(get("/public/x", "")).code != 200 {
		t.Error("no audit log: refused")
	}
}
