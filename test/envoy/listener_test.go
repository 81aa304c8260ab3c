package envoy

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// listenerRows speak to the gRPC port as no proxy does.
func listenerRows() []row {
	const family = "raw checks"
	on := []string{"direct"}
	return []row{
		{family: family, name: "gRPC port, other services and methods", on: on, play: otherMethods},
		{family: family, name: "gRPC port, paths without a slash", on: on, play: pathsWithoutSlash},
		{family: family, name: "gRPC port, HTTP/1.1", on: on, play: func(t testing.TB, w *world, e *edge) {
			plain := &edge{name: "gRPC port", addr: e.addr}
			for _, target := range []string{"/", authv3.Authorization_Check_FullMethodName, "/metrics", "/debug/pprof/", "/v1/sessions"} {
				p, err := plain.send(t.Context(), message{method: http.MethodGet, target: target, host: appHost})
				if err == nil && p.status < 400 {
					t.Errorf("%s: got %s", target, p)
				}
			}
		}},
		{family: family, name: "issuer gets no identity headers", target: "/dex/keys", host: issuerHost, lines: []string{
			"kubeflow-userid: " + administrator, "Kubeflow.Userid: x", "kubeflow~groups: admins", "kubeflow_name: x",
		}, direct: refused(http.StatusOK), relaxed: refused(http.StatusOK)},
	}
}

// otherMethods calls what is not served: no reflection, no other service.
func otherMethods(t testing.TB, _ *world, e *edge) {
	for _, method := range []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers",
		"/api.Dex/CreateClient", "/envoy.service.auth.v3.Authorization/check", "/envoy.service.auth.v2.Authorization/Check", "/envoy.service.auth.v3.Authorization/Check/", "//envoy.service.auth.v3.Authorization/Check", "/", "/x",
	} {
		in, out := []byte{}, []byte{}
		err := e.direct.conn.Invoke(t.Context(), method, &in, &out, grpc.ForceCodecV2(bytesCodec{}))
		if c := status.Code(err); c != codes.Unimplemented {
			t.Errorf("%s: got %v, want Unimplemented", method, err)
		}
	}
}

// pathsWithoutSlash are of CVE-2026-33186: an interceptor that compares the path with its slash sees another method.
func pathsWithoutSlash(t testing.TB, _ *world, e *edge) {
	plain := &edge{name: "gRPC port", addr: e.addr}
	for _, path := range []string{"envoy.service.auth.v3.Authorization/Check", "grpc.health.v1.Health/Check", "Check", "", "*", "http://x/envoy.service.auth.v3.Authorization/Check"} {
		p, err := plain.sendHTTP2(t.Context(), message{method: http.MethodPost, target: path, host: appHost, lines: []string{"content-type: application/grpc", "te: trailers"}})
		if err == nil && p.status == http.StatusOK && (p.header.Get("Grpc-Status") == "0" || p.header.Get("Grpc-Status") == "") {
			t.Errorf("%q: got %s, %v", path, p, p.header)
		}
	}
}

// passwordRows show almost the right password.
func passwordRows() []row {
	return []row{
		{family: "identity", name: "almost the right password", on: []string{"hardened"}, play: almostPasswords},
		{family: "hand-off", name: "loop is explained", play: loop},
	}
}

func almostPasswords(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	page := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	right := w.passwords[tricky] // of 72 bytes, all that bcrypt reads
	for name, password := range inOrder(map[string]string{
		"longer than bcrypt reads": right + "x", "null byte behind": right + "\x00", "null bytes behind": right + strings.Repeat("\x00", 80), "10 MB": strings.Repeat(right, 140<<10),
	}) {
		p := must(t)(b.submit(t.Context(), page, url.Values{"login": {tricky}, "password": {password}}))
		if _, set := p.cookie(ssoCookie); set || p.status < 400 || p.status > 499 {
			t.Errorf("%s: got %s, want a refusal", name, p)
		}
	}
	if p := must(t)(b.submit(t.Context(), page, w.credentials(tricky))); p.location() == "" {
		t.Errorf("the right one: %s", p)
	}
}

// loop is a browser that loses its session cookie each time: after some rounds it is told, in place of going round for ever.
func loop(t testing.TB, w *world, e *edge) {
	b := w.knownBrowser(t, e)
	b.forget(appHost, loginCookie, "/")
	for range 10 {
		p := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
		if p.status == http.StatusBadRequest {
			isExplained(t, w, p)
			return
		}
		if p.status != http.StatusOK {
			t.Fatalf("got %s", p)
		}
		b.forgetApp()
	}
	t.Error("ten rounds, and no word about them")
}
