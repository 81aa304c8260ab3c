package envoy

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// headerRows forge identities. Whoever sends them, the app sees who they are, or nobody (judge).
func headerRows() (all []row) {
	const family = "headers"
	underscore := byEnvoy(http.StatusBadRequest) // of the hardened connection manager
	for _, f := range []struct {
		name     string
		lines    []string
		hardened *verdict // if it is refused
	}{
		{"as it is", []string{"kubeflow-userid: admin@example.com"}, nil},
		{"groups", []string{"kubeflow-groups: admins"}, nil},
		{"upper case", []string{"KUBEFLOW-USERID: admin@example.com", "KUBEFLOW-GROUPS: admins"}, nil},
		{"mixed case", []string{"KubeFlow-UserID: admin@example.com"}, nil},
		{"underscore", []string{"kubeflow_userid: admin@example.com"}, underscore},
		{"upper-case underscore", []string{"KUBEFLOW_USERID: admin@example.com", "KUBEFLOW_GROUPS: admins"}, underscore},
		{"dot", []string{"kubeflow.userid: admin@example.com", "kubeflow.groups: admins"}, nil},
		{"other separators", []string{"kubeflow~userid: admin@example.com", "kubeflow+userid: admin@example.com", "kubeflow!groups: admins", "kubeflow'groups: admins"}, nil},
		{"every spelling at once", []string{"kubeflow-userid: admin@example.com", "kubeflow.userid: admin@example.com", "Kubeflow.Userid: x", "kubeflow-groups: admins", "kubeflow.groups: admins"}, nil},
		{"twice", []string{"kubeflow-userid: admin@example.com", "kubeflow-userid: admin@example.com"}, nil},
		{"twice in two cases", []string{"kubeflow-userid: admin@example.com", "Kubeflow-Userid: user@example.com"}, nil},
		{"twice, once empty", []string{"kubeflow-userid:", "kubeflow-userid: admin@example.com"}, nil},
		{"comma", []string{"kubeflow-userid: user@example.com,admin@example.com"}, nil},
		{"empty", []string{"kubeflow-userid:", "kubeflow-groups: "}, nil},
		{"trailing blanks", []string{"kubeflow-userid: admin@example.com  \t "}, nil},
		{"9 kB", []string{"kubeflow-userid: " + strings.Repeat("a", 9<<10), "kubeflow-groups: " + strings.Repeat("admins,", 1300)}, nil},
		{"not UTF-8", []string{"kubeflow-userid: admin@example.com\xff\xfe", "kubeflow-groups: \xc0\xafadmins"}, nil},
		{"hop by hop", []string{"Connection: kubeflow-userid, kubeflow-groups, close", "kubeflow-userid: admin@example.com"}, nil},
		{"hop by hop, other case", []string{"Connection: close, Kubeflow-UserId"}, nil},
		{"hop by hop, authorization", []string{"Connection: close, authorization", "Authorization: Basic YTpi"}, nil},
		{"trailer", []string{"TE: trailers", "Trailer: kubeflow-userid"}, nil},
		{"our answer's own words", []string{"x-envoy-auth-headers-to-remove: kubeflow-userid", "x-ext-authz-check-result: allowed", "x-envoy-original-path: /public/x"}, nil},
		{"authorization", []string{"Authorization: Basic YWRtaW46eA=="}, nil},
	} {
		for _, at := range []struct{ name, as, target string }{
			{"public, nobody", "", "/public/headers"}, {"public, a user", user, "/public/headers"}, {"protected, a user", user, "/headers"},
		} {
			r := row{family: family, name: f.name + ", " + at.name, as: at.as, target: at.target, lines: slices.Clone(f.lines), both: passes(http.StatusOK)}
			r.hardened = f.hardened
			all = append(all, r)
		}
		all = append(all, row{
			family: family, name: f.name + ", protected, nobody", target: "/headers", lines: slices.Clone(f.lines),
			both: refused(http.StatusFound), hardened: f.hardened,
		})
	}
	all = append(all, row{family: family, name: "X-Forwarded-For hides nobody from the audit log", on: []string{"hardened"}, play: hidden})
	all = append(all, row{family: family, name: "trailers that are ours", on: []string{"hardened", "relaxed"}, play: trailers})
	// Envoy drops what Connection names before anybody sees it: so the user goes too.
	all = append(all, row{family: family, name: "hop by hop, cookie", lines: []string{"Connection: close, cookie", "Cookie: gatehouse-dev={user}"}, both: refused(http.StatusFound)})
	return slices.Concat(all, trustRows(), envoyRows(), authorizationRows())
}

// trustRows send what proxies believe each other.
func trustRows() (all []row) {
	const family = "headers"
	for _, line := range []string{
		"X-Forwarded-Uri: /public/headers", "X-Original-URI: /public/headers", "X-Original-URL: /public/headers", "X-Rewrite-URL: /public/headers",
		"X-Envoy-Original-Path: /public/headers", "X-Envoy-Decorator-Operation: /public/headers", "X-Forwarded-Path: /public/headers",
		"X-Forwarded-Prefix: /public", "X-Auth-Request-Redirect: /public/headers", "X-Forwarded-Method: GET", "X-Forwarded-For: 127.0.0.1",
		"X-Real-IP: 127.0.0.1", "X-Envoy-Internal: true", "X-Envoy-External-Address: 127.0.0.1", "X-Forwarded-Client-Cert: By=spiffe://cluster;URI=spiffe://admin",
		"X-Forwarded-Email: admin@example.com", "X-Forwarded-User: admin", "X-Auth-Request-User: admin", "Remote-User: admin@example.com", "X-Goog-Authenticated-User-Email: admin@example.com",
		"X-Gatehouse-Admin: 1",
		// What meshes and tracers say to each other.
		"X-Envoy-Peer-Metadata: ChoKCkNMVVNURVJfSUQSDBoKS3ViZXJuZXRlcw==", "X-Envoy-Peer-Metadata-Id: sidecar~127.0.0.1~admin.default~cluster.local", "X-Istio-Attributes: Cj8KCnNvdXJjZS51aWQ=",
		"Baggage: k8s.deployment.name=admin", "X-B3-TraceId: 463ac35c9f6413ad48485a3953bb6124", "X-B3-Sampled: 1", "B3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1",
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate: admin=1", "X-Ot-Span-Context: 1;2;3;cs", "X-Client-Trace-Id: 1", "X-Request-Id: 463ac35c-9f64-a3ad-8848-5a3953bb6124",
		"X-Envoy-Original-Host: auth.example.test", "X-Envoy-Original-Url: http://auth.example.test/dex/keys", "X-Envoy-Original-Dst-Host: 127.0.0.1:1", "X-Envoy-Fault-Abort-Request: 200",
		"X-Envoy-Downstream-Service-Cluster: admin", "X-Jwt-Payload: eyJzdWIiOiJhZG1pbiJ9", "X-Forwarded-Proto: https",
	} {
		name, _, _ := strings.Cut(line, ":")
		all = append(all,
			row{family: family, name: name + " opens nothing", target: "/admin/x", lines: []string{line}, both: refused(http.StatusFound)},
			row{family: family, name: name + " raises nobody", as: user, target: "/admin/x", lines: []string{line}, both: refused(http.StatusForbidden)})
	}
	return all
}

// envoyRows say what Envoys believe of each other only, not of clients: the hardened gateway's clients are nobody's neighbours, wherever
// they are.
func envoyRows() []row {
	const family = "headers"
	lines := []string{
		"X-Envoy-Internal: true", "X-Envoy-Retry-On: 5xx,gateway-error,retriable-4xx", "X-Envoy-Retry-Grpc-On: unavailable", "X-Envoy-Max-Retries: 5", "X-Envoy-Retriable-Status-Codes: 404,200",
		"X-Envoy-Retriable-Header-Names: server", "X-Envoy-Upstream-Rq-Timeout-Ms: 1", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: 1", "X-Envoy-Expected-Rq-Timeout-Ms: 1",
		"X-Envoy-Hedge-On-Per-Try-Timeout: true", "X-Envoy-Upstream-Alt-Stat-Name: x", "X-Envoy-Force-Trace: 1", "X-Envoy-Ip-Tags: internal", "X-Envoy-Decorator-Operation: x", "X-Envoy-Original-Path: /admin/x",
		"X-Envoy-Original-Url: http://app.example.test/admin/x", "X-Envoy-Downstream-Service-Cluster: x", "X-Envoy-Downstream-Service-Node: x",
	}
	lines = append(lines, "X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/x/sa/x;URI=spiffe://cluster.local/ns/istio-system/sa/admin", "X-Forwarded-Proto: https", "X-Envoy-External-Address: 127.0.0.9", "X-Request-Id: 463ac35c-9f64-a3ad-8848-5a3953bb6124")
	sees := func(t testing.TB, _ *world, p *page) {
		t.Helper()
		var h map[string]string
		jsonBody(t, p, &h)
		for _, l := range lines {
			name, sent, _ := strings.Cut(l, ": ")
			if name = strings.ToLower(name); h[name] == sent { // some of them Envoy sets by itself
				t.Errorf("the app sees the client's %s: %q", name, sent)
			}
		}
	}
	return []row{
		{family: family, name: "what is between Envoys, nobody", target: "/public/headers", lines: lines, hardened: passes(http.StatusOK), check: sees},
		{family: family, name: "what is between Envoys, a user", as: user, lines: lines, hardened: passes(http.StatusOK), check: sees},
		{family: family, name: "what is between Envoys retries nothing", as: user, target: "/x", lines: lines, hardened: passes(http.StatusNotFound)},
		{family: family, name: "what is between Envoys opens nothing", as: user, target: "/admin/x", lines: lines, both: refused(http.StatusForbidden)},
	}
}

// authorizationRows carry bearer tokens, which nothing accepts: never a silent way back to the cookie.
func authorizationRows() []row {
	const family = "headers"
	unauthorized := refused(http.StatusUnauthorized)
	return []row{
		{family: family, name: "bearer", lines: []string{"Authorization: Bearer zq81header.zq82claims.zq83signature"}, both: unauthorized, check: asksForToken},
		{family: family, name: "bearer beside a good cookie", as: user, lines: []string{"Authorization: Bearer zq81header.zq82claims.zq83signature"}, both: unauthorized, check: asksForToken},
		{family: family, name: "bearer in other case", as: user, lines: []string{"Authorization: bEaReR zq81header.zq82claims.zq83signature"}, both: unauthorized},
		{family: family, name: "bearer without a token", as: user, lines: []string{"Authorization: Bearer"}, both: unauthorized},
		{family: family, name: "several authorizations", as: user, lines: []string{"Authorization: Basic YTpi", "Authorization: Bearer zq84-one-of-several"}, both: unauthorized},
		{family: family, name: "bearer of 20 kB", as: user, lines: []string{"Authorization: Bearer " + strings.Repeat("zq85", 5<<10)}, both: unauthorized},
		{family: family, name: "bearer with 10,000 dots", as: user, lines: []string{"Authorization: Bearer " + strings.Repeat(".", 10<<10)}, both: unauthorized},
		{family: family, name: "unsigned token", as: user, lines: []string{"Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiIsImVtYWlsIjoiYWRtaW5AZXhhbXBsZS5jb20ifQ."}, both: unauthorized},
		{family: family, name: "session cookie as a token", lines: []string{"Authorization: Bearer {admin}"}, both: unauthorized},
		{family: family, name: "bearer where anyone may", as: "", target: "/public/headers", lines: []string{"Authorization: Bearer zq81header.zq82claims.zq83signature"}, both: passes(http.StatusOK)},
		{family: family, name: "bearer and cookie where anyone may", as: "", target: "/public/headers", lines: []string{"Cookie: gatehouse-dev={user}", "Authorization: Bearer zq81header.zq82claims.zq83signature"}, both: passes(http.StatusOK)},
		{family: family, name: "bearer at whoami", as: user, target: "/_gatehouse/whoami", lines: []string{"Authorization: Bearer zq81header.zq82claims.zq83signature"}, both: unauthorized},
		{family: family, name: "basic is no token", as: user, lines: []string{"Authorization: Basic YTpi"}, both: passes(http.StatusOK)},
	}
}

// hidden claims to come from elsewhere: the audit log has the address that the gateway saw, and a request id of the gateway's.
func hidden(t testing.TB, w *world, e *edge) {
	path := "/admin/" + rand.Text()
	p := must(t)(e.send(t.Context(), message{method: http.MethodGet, target: path, host: appHost, lines: []string{
		"X-Forwarded-For: 192.0.2.7, 10.0.0.7", "X-Real-IP: 192.0.2.7", "Forwarded: for=192.0.2.7", "X-Envoy-External-Address: 192.0.2.7", "X-Request-Id: forged-request-id",
	}}))
	if p.status != http.StatusUnauthorized {
		t.Errorf("got %s, want 401", p)
	}
	var found event
	peers.Eventually(t, within, "the decision about "+path+" in the audit log", func() bool {
		for _, ev := range w.audit() {
			if ev["path"] == path {
				found = ev
			}
		}
		return found != nil
	})
	if found["source"] != e.clientAddress() || found["request_id"] == "forged-request-id" || found["request_id"] != p.header.Get("X-Request-Id") {
		t.Errorf("the audit log has %v, want the source %s and the request id %q", found, e.clientAddress(), p.header.Get("X-Request-Id"))
	}
}

// trailers sends our headers behind the body, where no check sees them.
func trailers(t testing.TB, w *world, e *edge) {
	p := must(t)(e.send(t.Context(), message{method: http.MethodPost, target: "/public/headers", host: appHost, lines: []string{
		"Transfer-Encoding: chunked", "TE: trailers", "Trailer: kubeflow-userid, kubeflow_groups, authorization",
	}, chunks: "1\r\nx\r\n0\r\nkubeflow-userid: admin@example.com\r\nkubeflow_groups: admins\r\nauthorization: Basic YTpi\r\n\r\n"}))
	arrivals := w.app.take()
	if len(arrivals) != 1 {
		t.Fatalf("%d requests reached the app: %s", len(arrivals), p)
	}
	for name := range arrivals[0].trailer {
		if arrivals[0].trailer.Get(name) != "" {
			t.Errorf("the app sees the trailer %s: %q", name, arrivals[0].trailer[name])
		}
	}
	w.judgeHygiene(t, arrivals[0])
}
