package envoy

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// An httpRequest is what a check is about.
type httpRequest = authv3.AttributeContext_HttpRequest

// rawRows ask Gatehouse what no Envoy of ours asks: another proxy, an older one or a neighbour that reaches the port could.
func rawRows() (all []row) {
	const family = "raw checks"
	for _, r := range []struct {
		name, as, target string
		forge            func(c *cast, h *httpRequest)
		want             *verdict
		check            func(testing.TB, *world, *page)
	}{
		{"method with a blank", user, "/public/x", func(_ *cast, h *httpRequest) { h.Method = "GET " }, isAmbiguous, nil},
		{"method with a line break", user, "/public/x", func(_ *cast, h *httpRequest) { h.Method = "GET\r\nX: y" }, isAmbiguous, nil},
		{"method of 1 MB less a bit", user, "/public/x", func(_ *cast, h *httpRequest) { h.Method = strings.Repeat("A", 900<<10) }, isAmbiguous, nil},
		{"method in Cyrillic", user, "/public/x", func(_ *cast, h *httpRequest) { h.Method = "GЕT" }, isAmbiguous, nil},
		{"no method", user, "/public/x", func(_ *cast, h *httpRequest) { h.Method = "" }, isAmbiguous, nil},
		{"no path", user, "/public/x", func(_ *cast, h *httpRequest) { h.Path = "" }, isAmbiguous, nil},
		{"no host", user, "/public/x", func(_ *cast, h *httpRequest) { h.Host = "" }, isAmbiguous, nil},
		{"path without a slash", user, "", func(_ *cast, h *httpRequest) { h.Path = "public/x" }, isAmbiguous, nil},
		{"path that is a URL", user, "", func(_ *cast, h *httpRequest) { h.Path = "http://app.example.test/public/x" }, isAmbiguous, nil},
		{"path that is a query", user, "", func(_ *cast, h *httpRequest) { h.Path = "?/public/x" }, isAmbiguous, nil},
		{"null byte in the path", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public/\x00/x" }, isAmbiguous, nil},
		{"null byte behind the path", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public/x\x00" }, isAmbiguous, nil},
		{"tab in the path", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public/\t" }, isAmbiguous, nil},
		{"line break in the path", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public/x HTTP/1.1\r\nHost: evil.example" }, isAmbiguous, nil},
		{"DEL in the path", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public/\x7f" }, isAmbiguous, nil},
		{"full-width solidus", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public／..／admin" }, isAmbiguous, nil},
		{"path of 900 kB", "", "", func(_ *cast, h *httpRequest) { h.Path = "/public/" + strings.Repeat("a", 900<<10) }, isAmbiguous, nil},
		{"query of 900 kB", "", "", func(_ *cast, h *httpRequest) { h.Path = "/admin/x?" + strings.Repeat("a", 900<<10) }, signInFirst, nil},
		{"null byte in the host", user, "/public/x", func(_ *cast, h *httpRequest) { h.Host = "app.example.test\x00.evil.example" }, isAmbiguous, nil},
		{"line break in the host", user, "/public/x", func(_ *cast, h *httpRequest) { h.Host = "app.example.test\r\nX: y" }, isAmbiguous, nil},
		{"slash in the host", user, "/x", func(_ *cast, h *httpRequest) { h.Host = "app.example.test/public" }, isAmbiguous, nil},
		{"host with a dotless i", user, "/public/x", func(_ *cast, h *httpRequest) { h.Host = "portal.examp\u0131e.org" }, isAmbiguous, nil},
		{"host of 900 kB", user, "/public/x", func(_ *cast, h *httpRequest) { h.Host = strings.Repeat("a.", 450<<10) + "apps.example.test" }, isAmbiguous, nil},
		{"authority and host headers do not decide", "", "/public/headers", func(_ *cast, h *httpRequest) { h.Host = unlistedHost; h.Headers["host"] = appHost }, isForbidden, nil},
		{"path header does not decide", "", "/admin/x", func(_ *cast, h *httpRequest) { h.Headers[":path"] = "/public/x" }, signInFirst, nil},
		{"method header does not decide", "", "/healthz", func(_ *cast, h *httpRequest) { h.Method = "PUT"; h.Headers[":method"] = "GET" }, refused(http.StatusUnauthorized), nil},
		{"query field", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Query = "/public/x" }, isForbidden, nil},
		{"fragment field", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Fragment = "/public/x" }, isForbidden, nil},
		{"scheme field", "", "/admin/x", func(_ *cast, h *httpRequest) { h.Scheme = "javascript" }, signInFirst, leadsToIssuer},
		{"protocol field", "", "/admin/x", func(_ *cast, h *httpRequest) { h.Protocol = "HTTP/0.9" }, signInFirst, nil},
		{"size below zero", "", "/admin/x", func(_ *cast, h *httpRequest) { h.Size = -1 }, signInFirst, nil},
		{"body", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Body, h.RawBody = "GET /public/x", []byte{0xff} }, isForbidden, nil},
		{"no headers", "", "/headers", func(_ *cast, h *httpRequest) { h.Headers = nil }, refused(http.StatusUnauthorized), nil},
		{"no headers, where anyone may", "", "/public/headers", func(_ *cast, h *httpRequest) { h.Headers = nil }, passes(http.StatusOK), nil},

		{"cookie key in upper case", user, "/headers", func(c *cast, h *httpRequest) { move(h, "cookie", "COOKIE") }, passes(http.StatusOK), nil},
		{"cookie keys in two cases of two users", user, "/headers", func(c *cast, h *httpRequest) { h.Headers["Cookie"] = c.expand("gatehouse-dev={admin}") }, signInFirst, nil},
		{"cookie keys in two cases, one damaged", user, "/headers", func(c *cast, h *httpRequest) { h.Headers["Cookie"] = c.expand("gatehouse-dev={damaged tag}") }, passes(http.StatusOK), nil},
		{"cookies joined by a comma", "", "/headers", func(c *cast, h *httpRequest) {
			h.Headers["cookie"] = c.expand("gatehouse-dev={user},gatehouse-dev={admin}")
		}, signInFirst, nil},
		{"cookies joined by a comma and our name in blanks", "", "/headers", func(c *cast, h *httpRequest) {
			h.Headers["cookie"] = c.expand("gatehouse-dev={user} , \tgatehouse-dev\t={admin} ")
		}, signInFirst, nil},
		{"null byte in a cookie", "", "/headers", func(c *cast, h *httpRequest) { h.Headers["cookie"] = c.expand("gatehouse-dev={user}\x00") }, signInFirst, nil},
		{"line break in a cookie", "", "/headers", func(c *cast, h *httpRequest) {
			v := c.expand("{user}")
			h.Headers["cookie"] = "gatehouse-dev=" + v[:20] + "\r\n" + v[20:]
		}, signInFirst, nil},
		{"cookie of 900 kB", "", "/headers", func(c *cast, h *httpRequest) {
			h.Headers["cookie"] = "gatehouse-dev=" + strings.Repeat("A", 900<<10) + c.expand("; gatehouse-dev={damaged}")
		}, signInFirst, nil},
		{"60,000 cookies of ours", "", "/public/headers", func(_ *cast, h *httpRequest) { h.Headers["cookie"] = strings.Repeat("gatehouse-dev;", 60000) + "a=1" }, passes(http.StatusOK), appSeesCookie("a=1")},
		{"10,000 headers", "", "/public/headers", func(_ *cast, h *httpRequest) {
			for i := range 10000 {
				h.Headers["x-"+strconv.Itoa(i)] = "v"
			}
			h.Headers["Kubeflow.UserID"] = administrator
		}, passes(http.StatusOK), nil},
		{"every case of our header", "", "/public/headers", func(_ *cast, h *httpRequest) {
			for _, k := range []string{"kubeflow-userid", "Kubeflow-Userid", "KUBEFLOW-USERID", "KUBEFLOW_USERID", "kUBEFLOW.uSERID", "KubeFlow Groups", "kubeflow/groups", "kubeflow:name"} {
				h.Headers[k] = administrator
			}
		}, passes(http.StatusOK), nil},
		{"every case of our header, of a user", user, "/headers", func(_ *cast, h *httpRequest) {
			for _, k := range []string{"KUBEFLOW-USERID", "KUBEFLOW_USERID", "Kubeflow.Groups", "KUBEFLOW~NAME"} {
				h.Headers[k] = administrator
			}
		}, passes(http.StatusOK), nil},
		{"our header with a null byte and 900 kB", user, "/headers", func(_ *cast, h *httpRequest) {
			h.Headers["kubeflow-userid"] = "admin@example.com\x00" + strings.Repeat(",x", 450<<10)
		}, passes(http.StatusOK), nil},
		{"alias with a key of 64 kB", "", "/public/headers", func(_ *cast, h *httpRequest) { h.Headers["kubeflow-userid"+strings.Repeat("-", 64<<10)] = "x" }, passes(http.StatusOK), nil},
		{"authorization key in upper case", user, "/headers", func(_ *cast, h *httpRequest) {
			h.Headers["AUTHORIZATION"] = "Bearer zq86header.zq87claims.zq88signature"
		}, refused(http.StatusUnauthorized), asksForToken},
		{"authorization keys in two cases", user, "/headers", func(_ *cast, h *httpRequest) {
			h.Headers["authorization"], h.Headers["Authorization"] = "Basic YTpi", "Bearer zq86header.zq87claims.zq88signature"
		}, refused(http.StatusUnauthorized), nil},
		{"authorizations joined by a comma", user, "/headers", func(_ *cast, h *httpRequest) { h.Headers["authorization"] = "Basic YTpi,  bearer x, Basic YTpi" }, refused(http.StatusUnauthorized), nil},
		{"authorization in upper case where anyone may", "", "/public/headers", func(_ *cast, h *httpRequest) { h.Headers["AUTHORIZATION"] = "Basic YTpi" }, passes(http.StatusOK), nil},
		{"hop by hop", user, "/headers", func(_ *cast, h *httpRequest) { h.Headers["connection"] = "kubeflow-userid" }, isAmbiguous, nil},
		{"hop by hop, an alias among others", "", "/public/headers", func(_ *cast, h *httpRequest) { h.Headers["Connection"] = "close , KUBEFLOW_GROUPS\t" }, isAmbiguous, nil},
		{"hop by hop, other names", user, "/headers", func(_ *cast, h *httpRequest) { h.Headers["connection"] = "close, x-kubeflow-userid, kubeflow-useri" }, passes(http.StatusOK), nil},
		{"request id that is a page", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Headers["x-request-id"] = "<script>alert(1)</script>" }, isForbidden, hasNoScript},
		{"request id with a line break", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Headers["x-request-id"] = "a\r\nset-cookie: x=y" }, isForbidden, isExplained},
		{"request id of 64 kB", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Headers["x-request-id"] = strings.Repeat("a", 64<<10) }, isForbidden, isExplained},
		{"language of 64 kB", user, "/admin/x", func(_ *cast, h *httpRequest) { h.Headers["accept-language"] = strings.Repeat("de;q=0.1,", 7<<10) }, isForbidden, isExplained},

		{"header map and headers: the raw ones count", user, "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("accept", "text/html", "cookie", "a=1")
		}, signInFirst, nil},
		{"raw value and value: the raw one counts", "", "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("accept", "text/html", "cookie", c.expand("gatehouse-dev={damaged}"))
			h.HeaderMap.Headers[1].Value = c.expand("gatehouse-dev={admin}")
			h.Headers = nil
		}, signInFirst, nil},
		{"raw keys in upper case", user, "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("ACCEPT", "text/html", "COOKIE", c.expand("gatehouse-dev={user}"), "KUBEFLOW-USERID", administrator, "Kubeflow_Groups", "admins")
			h.Headers = nil
		}, passes(http.StatusOK), nil},
		{"raw lines: two cookies of two users", "", "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("accept", "text/html", "cookie", c.expand("gatehouse-dev={user}"), "Cookie", c.expand("gatehouse-dev={admin}"))
			h.Headers = nil
		}, signInFirst, nil},
		{"raw lines: our header twice, not UTF-8", user, "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("cookie", c.expand("gatehouse-dev={user}"), "kubeflow-userid", "\xff\xfe", "kubeflow-userid", administrator, "kubeflow-groups", "\x00admins")
			h.Headers = nil
		}, passes(http.StatusOK), nil},
		{"raw lines: cookies of the app's, not UTF-8", user, "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("cookie", c.expand("a=\xff\xfe; gatehouse-dev={user}"))
			h.Headers = nil
		}, passes(http.StatusOK), nil},
		{"raw lines: two Connection headers", user, "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("cookie", c.expand("gatehouse-dev={user}"), "connection", "close", "connection", "kubeflow-userid")
			h.Headers = nil
		}, isAmbiguous, nil},
		{"raw lines: a bearer in the second", user, "/headers", func(c *cast, h *httpRequest) {
			h.HeaderMap = headerMap("cookie", c.expand("gatehouse-dev={user}"), "authorization", "Basic YTpi", "authorization", "Bearer \xffzq86header.zq87claims.zq88signature")
			h.Headers = nil
		}, refused(http.StatusUnauthorized), nil},
		{"raw lines: an empty key", "", "/public/headers", func(_ *cast, h *httpRequest) {
			h.HeaderMap = headerMap("", "x", "accept", "text/html")
			h.Headers = nil
		}, passes(http.StatusOK), nil},
	} {
		all = append(all, row{family: family, name: r.name, as: r.as, target: r.target, direct: r.want, check: r.check, forge: func(c *cast, in *authv3.CheckRequest) {
			r.forge(c, in.GetAttributes().GetRequest().GetHttp())
		}})
	}
	return append(append(all, attributeRows(family)...), wireRows(family)...)
}

func move(h *httpRequest, from, to string) {
	h.Headers[to] = h.GetHeaders()[from]
	delete(h.GetHeaders(), from)
}

// headerMap returns lines of name, value, name, value and so on in their raw encoding.
func headerMap(lines ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(lines); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: lines[i], RawValue: []byte(lines[i+1])})
	}
	return m
}

// attributeRows change what stands around the request.
func attributeRows(family string) []row {
	type request = authv3.CheckRequest
	return []row{
		{family: family, name: "nothing", direct: isAmbiguous, forge: func(_ *cast, in *request) { in.Attributes = nil }},
		{family: family, name: "no request", direct: isAmbiguous, forge: func(_ *cast, in *request) { in.Attributes.Request = nil }},
		{family: family, name: "no HTTP request", direct: isAmbiguous, forge: func(_ *cast, in *request) { in.Attributes.Request.Http = nil }},
		{family: family, name: "empty HTTP request", direct: isAmbiguous, forge: func(_ *cast, in *request) { in.Attributes.Request.Http = &httpRequest{} }},
		{family: family, name: "no source", as: user, direct: passes(http.StatusOK), forge: func(_ *cast, in *request) { in.Attributes.Source = nil }},
		{family: family, name: "source with a principal opens nothing", as: user, target: "/admin/x", direct: isForbidden, forge: func(_ *cast, in *request) {
			in.Attributes.Source.Principal, in.Attributes.Source.Service = "spiffe://cluster.local/ns/x/sa/admin", administrator
			in.Attributes.Source.Labels = map[string]string{"groups": "admins"}
		}},
		{family: family, name: "context and metadata open nothing", target: "/admin/x", direct: signInFirst, forge: func(_ *cast, in *request) {
			in.Attributes.ContextExtensions = map[string]string{"allow": "true", "rule": "public", "user": administrator, "kubeflow-userid": administrator}
			in.Attributes.MetadataContext = &corev3.Metadata{}
		}},
	}
}

// wireRows are messages that are none, and those that Protocol Buffers read in a way of their own: the last value of a field counts,
// and pieces of a message are one (encoding guide, "Last One Wins" and "Merge").
func wireRows(family string) []row {
	either := &verdict{status: http.StatusBadRequest, failed: true}
	path := func(p string) []byte {
		b, err := proto.Marshal(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &httpRequest{Path: p}}}})
		if err != nil {
			panic(err) // never: it is valid
		}
		return b
	}
	replace := func(old, fresh string) func([]byte) []byte { // of the same length
		return func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), old, fresh)) }
	}
	return []row{
		{family: family, name: "wire: cut in the middle", direct: either, wire: func(b []byte) []byte { return b[:len(b)/2] }},
		{family: family, name: "wire: garbage", direct: either, wire: func([]byte) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }},
		{family: family, name: "wire: nothing", direct: isAmbiguous, wire: func([]byte) []byte { return nil }},
		{family: family, name: "wire: more than 1 MB", target: "/public/headers", direct: &verdict{failed: true}, wire: func(b []byte) []byte {
			return append(b, protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, 1<<20))...)
		}},
		{family: family, name: "wire: path that is not UTF-8", target: "/public/zz", direct: either, wire: replace("/public/zz", "/public/\xff\xfe")},
		{family: family, name: "wire: host that is not UTF-8", target: "/public/x", direct: either, wire: replace("app.example.test", "app.exampl\xff.test")},
		{family: family, name: "wire: key of our header that is not UTF-8", target: "/public/headers", lines: []string{"kubeflow=userid: " + administrator}, direct: either, wire: replace("kubeflow=userid", "kubeflow\xffuserid")},
		{family: family, name: "wire: a second path counts", target: "/public/headers", direct: signInFirst, wire: func(b []byte) []byte { return append(b, path("/admin/x")...) }},
		{family: family, name: "wire: a second path counts, of many", target: "/public/headers", as: user, direct: isForbidden, wire: func(b []byte) []byte {
			for range 100 {
				b = append(append(b, path("/public/headers")...), path("/admin/x")...)
			}
			return b
		}},
		{family: family, name: "wire: a path before the others does not count", target: "/admin/x", direct: signInFirst, wire: func(b []byte) []byte { return append(path("/public/headers"), b...) }},
		{family: family, name: "wire: path of another type does not count", target: "/admin/x", direct: signInFirst, wire: func(b []byte) []byte { return append(b, otherType()...) }},
		{family: family, name: "wire: unknown fields do not count", target: "/admin/x", direct: signInFirst, wire: func(b []byte) []byte {
			b = protowire.AppendVarint(protowire.AppendTag(b, 536870911, protowire.VarintType), 1)
			return protowire.AppendBytes(protowire.AppendTag(b, 15, protowire.BytesType), []byte("/public/headers"))
		}},
	}
}

// otherType is a check with a number for a path: attributes 1, request 4, http 2, path 5.
func otherType() []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 5, protowire.VarintType), 1)
	for _, n := range []protowire.Number{2, 4, 1} {
		b = protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	return b
}
