package envoy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// A checker stands in for Envoy's default connection manager at Gatehouse's gRPC port: it asks what Envoy would ask, also about
// requests that Envoy answers by itself, and does what Envoy does with the answer. Requests that pass go to the issuer or to the
// sample app.
type checker struct {
	w    *world
	conn *grpc.ClientConn
	raw  bool // encode_raw_headers: each header line by itself, as the bytes that came
}

func newChecker(t testing.TB, w *world, name, addr string, raw bool) *edge {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &checker{w: w, conn: conn, raw: raw}
	return &edge{name: name, addr: addr, checked: true, http: c, direct: c}
}

// RoundTrip lets browsers use a checker as they use an Envoy.
func (c *checker) RoundTrip(req *http.Request) (*http.Response, error) {
	m := message{method: req.Method, target: req.URL.RequestURI(), host: or(req.Host, req.URL.Host)}
	for name, values := range inOrder(req.Header) {
		for _, v := range values {
			m.lines = append(m.lines, name+": "+v)
		}
	}
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		m.body = string(b)
	}
	p, err := c.send(req.Context(), m)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: p.status, Header: p.header, Body: io.NopCloser(strings.NewReader(p.body)), Request: req}, nil
}

func (c *checker) send(ctx context.Context, m message) (*page, error) {
	in := c.request(m)
	if m.forge != nil {
		m.forge(in)
	}
	wire, err := proto.Marshal(in)
	if err != nil {
		return nil, err
	}
	if m.wire != nil {
		wire = m.wire(wire)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var answer []byte
	if err := c.conn.Invoke(ctx, authv3.Authorization_Check_FullMethodName, &wire, &answer, grpc.ForceCodecV2(bytesCodec{})); err != nil {
		return nil, fmt.Errorf("%w: %w", errRPC, err)
	}
	out := &authv3.CheckResponse{}
	if err := proto.Unmarshal(answer, out); err != nil {
		return nil, err
	}
	p, err := c.obey(ctx, m, in, out)
	if p != nil {
		p.url = &url.URL{Scheme: "http", Host: m.host, Opaque: m.target}
	}
	return p, err
}

// errRPC is a check without an answer: Envoy refuses the request.
var errRPC = errors.New("the check failed")

// bytesCodec leaves messages as they are, well-formed or not.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("got %T, want *[]byte", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("got %T, want *[]byte", v)
	}
	*b = data.Materialize()
	return nil
}

// A field is one header line.
type field struct{ name, value string }

// fields are what Envoy makes of the header lines of a message, and of its target.
func (m message) fields() (host, path string, all []field) {
	host, path = m.host, m.target
	if rest, ok := strings.CutPrefix(path, "http://"); ok && !m.http2 { // absolute form
		host, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	gone := []string{"connection", "host"}
	var hosts []string
	for _, l := range m.lines {
		name, v, _ := strings.Cut(strings.TrimPrefix(l, ":"), ":")
		if strings.HasPrefix(l, ":") {
			continue // a pseudo-header, which a request has a field for
		}
		f := field{strings.ToLower(name), strings.Trim(v, " \t")}
		all = append(all, f)
		switch {
		case f.name == "host" && !m.http2 && path == m.target:
			hosts = append(hosts, f.value)
		case f.name == "connection": // what it names is for one hop only
			for n := range strings.SplitSeq(strings.ToLower(f.value), ",") {
				if n = strings.TrimSpace(n); n != "upgrade" {
					gone = append(gone, n)
				}
			}
		}
	}
	host = strings.Join(append([]string{host}, hosts...), ",")
	if !hasLine(m.lines, "X-Request-Id") {
		all = append(all, field{"x-request-id", rand.Text()})
	}
	return host, path, slices.DeleteFunc(all, func(f field) bool { return slices.Contains(gone, f.name) })
}

// request is what Envoy asks about a message.
func (c *checker) request(m message) *authv3.CheckRequest {
	host, path, fields := m.fields()
	fields = append([]field{{":authority", host}, {":method", m.method}, {":path", path}, {":scheme", "http"}}, fields...)
	h := &authv3.AttributeContext_HttpRequest{
		Id: "1", Method: m.method, Host: sane(host), Path: sane(path), Scheme: "http", Protocol: "HTTP/1.1", Size: int64(len(m.body)),
	}
	if c.raw {
		h.HeaderMap = &corev3.HeaderMap{}
		for _, f := range fields {
			h.HeaderMap.Headers = append(h.HeaderMap.Headers, &corev3.HeaderValue{Key: f.name, RawValue: []byte(f.value)})
		}
	} else {
		h.Headers = map[string]string{}
		for _, f := range fields {
			if old, twice := h.Headers[f.name]; twice && m.http2 && f.name == "cookie" {
				f.value = old + "; " + f.value // RFC 9113 section 8.2.3
			} else if twice {
				f.value = old + "," + f.value
			}
			h.Headers[f.name] = sane(f.value)
		}
	}
	peer := &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 1},
	}}}}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Source: peer, Request: &authv3.AttributeContext_Request{Http: h}}}
}

// sane is how Envoy fits bytes into a string field.
func sane(s string) string { return strings.ToValidUTF8(s, "!") }

// obey does what Envoy does with an answer.
func (c *checker) obey(ctx context.Context, m message, in *authv3.CheckRequest, out *authv3.CheckResponse) (*page, error) {
	h := in.GetAttributes().GetRequest().GetHttp()
	if ok := out.GetOkResponse(); ok != nil && out.GetStatus().GetCode() == 0 {
		fields, err := mutate(headersOf(h), ok)
		if err != nil {
			return nil, err
		}
		return c.forward(ctx, m, h, fields)
	}
	d := out.GetDeniedResponse()
	if d == nil || out.GetStatus().GetCode() == 0 {
		return nil, fmt.Errorf("neither an allow nor a refusal: %v", out)
	}
	p := &page{status: int(d.GetStatus().GetCode()), header: http.Header{}, body: d.GetBody()}
	for _, o := range d.GetHeaders() {
		p.header.Add(o.GetHeader().GetKey(), o.GetHeader().GetValue())
	}
	if m.method == http.MethodHead {
		p.body = ""
	}
	if strings.HasPrefix(h.GetHeaders()["content-type"], "application/grpc") || c.raw && strings.HasPrefix(valueOf(headersOf(h), "content-type"), "application/grpc") {
		p.header.Set("Grpc-Status", strconv.Itoa(grpcOf(p.status)))
		p.status = http.StatusOK
	}
	return p, nil
}

// grpcOf is Envoy's gRPC status for the HTTP status of a refusal.
func grpcOf(status int) int {
	switch status {
	case http.StatusUnauthorized:
		return 16
	case http.StatusForbidden:
		return 7
	case http.StatusServiceUnavailable:
		return 14
	}
	return 2
}

func headersOf(h *authv3.AttributeContext_HttpRequest) (all []field) {
	for name, v := range inOrder(h.GetHeaders()) {
		all = append(all, field{name, v})
	}
	for _, f := range h.GetHeaderMap().GetHeaders() {
		v := string(f.GetRawValue())
		all = append(all, field{f.GetKey(), or(v, f.GetValue())})
	}
	return slices.DeleteFunc(all, func(f field) bool { return strings.HasPrefix(f.name, ":") })
}

func valueOf(fields []field, name string) string {
	for _, f := range fields {
		if strings.EqualFold(f.name, name) {
			return f.value
		}
	}
	return ""
}

// mutate applies an allow to the headers of a request: first what it sets, then what it removes.
func mutate(fields []field, ok *authv3.OkHttpResponse) ([]field, error) {
	set := map[string]bool{}
	without := func(name string) []field {
		return slices.DeleteFunc(fields, func(f field) bool { return strings.EqualFold(f.name, name) })
	}
	for _, o := range ok.GetHeaders() {
		name, v := o.GetHeader().GetKey(), o.GetHeader().GetValue()
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD || set[name] {
			return nil, fmt.Errorf("%s is added to what the client sent, or set twice", name)
		}
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return nil, fmt.Errorf("%s is set to %q", name, v)
		}
		set[name] = true
		fields = append(without(name), field{name, v})
	}
	for _, name := range ok.GetHeadersToRemove() {
		if set[strings.ToLower(name)] {
			return nil, fmt.Errorf("%s is set and removed", name)
		}
		fields = without(name)
	}
	return fields, nil
}

// forward sends a request on, by the same routes as Envoy.
func (c *checker) forward(ctx context.Context, m message, h *authv3.AttributeContext_HttpRequest, fields []field) (*page, error) {
	path, _, _ := strings.Cut(h.GetPath(), "?")
	if path == "/dex" || strings.HasPrefix(path, "/dex/") {
		on := message{method: h.GetMethod(), target: h.GetPath(), host: h.GetHost(), body: m.body}
		for _, f := range fields {
			if name := fold(f.name); h.GetHost() == issuerHost && (name == "kubeflow-userid" || name == "kubeflow-groups" || name == "kubeflow-name") {
				return nil, fmt.Errorf("the issuer sees %s: %q", f.name, f.value)
			}
			on.lines = append(on.lines, f.name+": "+f.value)
		}
		return c.w.issuer.send(ctx, on)
	}
	req := &http.Request{Method: h.GetMethod(), Host: h.GetHost(), RequestURI: h.GetPath(), Header: http.Header{}, Body: http.NoBody}
	var err error
	if req.URL, err = url.ParseRequestURI(h.GetPath()); err != nil {
		req.URL = &url.URL{Path: path}
	}
	for _, f := range fields {
		req.Header.Add(f.name, f.value)
	}
	rec := httptest.NewRecorder()
	c.w.app.ServeHTTP(rec, req)
	return &page{status: rec.Code, header: rec.Header(), body: rec.Body.String()}, nil
}
