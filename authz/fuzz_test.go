package authz

import (
	"context"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"gatehouse/authz/policy"
	"gatehouse/internal/handoff"
)

// checkAllow holds what DESIGN.md's invariants say of every allow.
func checkAllow(t *testing.T, f *fixture, http *authv3.AttributeContext_HttpRequest, r result) {
	t.Helper()
	p, err := policy.ParseRequest(http.GetMethod(), http.GetHost(), http.GetPath())
	if err != nil {
		t.Fatalf("%q %q %q is ambiguous and allowed", http.GetMethod(), http.GetHost(), http.GetPath())
	}
	g := f.current.Load()
	issuer := g.issuerOwns(p)
	https, listed := f.config.Hosts.Lookup(p.Host)
	if !listed && !issuer {
		t.Fatalf("host %q is not listed and allowed", p.Host)
	}
	if !issuer && g.ownPath(p.Path) != ownNone {
		t.Fatalf("our own path %q is allowed", p.Path)
	}
	alice := f.sessions.live["alice"].Identity
	user, known := r.upstream["kubeflow-userid"]
	if known && (issuer || user != alice.Email) {
		t.Fatalf("the app sees the user %q", user)
	}
	for name, value := range r.upstream {
		if g.headers.alias(name) || !known && g.headers.owns(name) {
			t.Fatalf("header %q: %q reaches the app", name, value)
		}
	}
	if issuer {
		return
	}
	if !known && f.config.Policy.Decide(p, nil, f.now).Effect != policy.Allow {
		t.Fatalf("an anonymous request for %q passes without a rule for anyone", p.Path)
	}
	if _, ok := r.upstream["authorization"]; ok {
		t.Fatal("Authorization reaches the app")
	}
	var j jar
	if j.scan(r.upstream["cookie"], handoff.Names(https), g.cookies); j.ours {
		t.Fatalf("a cookie of ours reaches the app: %q", r.upstream["cookie"])
	}
}

// FuzzCheck holds, for any message on the wire, that Check answers and does not panic, that each allow has passed header
// hygiene, and that a refusal has no redirect but to the issuer or the same host.
func FuzzCheck(f *testing.F) {
	x := newFixture(f)
	x.Audit = nil
	cookie := x.cookie(appHost, "alice")
	for _, r := range []request{
		get("/x", browser), get("/x", script, "cookie", cookie), get("/public/x", "", "kubeflow_userid", "evil", "cookie", cookie+"; a=b"),
		get("/admin/x", browser, "cookie", cookie), get("/_gatehouse/sign-in?rd=/a", browser), get("/_gatehouse/session?t=x", browser),
		get("/dex/auth", browser, "Kubeflow-Userid", "evil").on(issuerHost), get("//x", browser), get("/x", "").on("evil.com"),
		get("/x", "", "authorization", "Bearer x", "connection", "kubeflow-userid"), get("/_gatehouse/sign-out", browser, "cookie", cookie),
	} {
		b, err := proto.Marshal(r.proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		in := &authv3.CheckRequest{}
		if proto.Unmarshal(wire, in) != nil {
			return
		}
		holdCheck(t, x, in)
	})
}

// FuzzCheckFields is FuzzCheck on requests that are made of parts, which gets further than mutated bytes.
func FuzzCheckFields(f *testing.F) {
	x := newFixture(f)
	x.Audit = nil
	f.Add("GET", appHost, "/x", "kubeflow_userid", "evil", "a=b", "", true)
	f.Add("POST", "APP.example.com.:443", "/public/x?y", "Authorization", "Bearer x", "", "navigate", false)
	f.Add("GET", issuerHost, "/dex/keys", "kubeflow-groups", "evil", "gatehouse-sso=1", "cors", true)
	f.Add("HEAD", appHost, "/_gatehouse/session?t=x", "x-auth~display.name", "a\r\nb", ",;=", "navigate", true)
	f.Fuzz(func(t *testing.T, method, host, path, name, value, cookie, mode string, signed bool) {
		r := request{method: method, host: host, path: path, headers: map[string]string{"sec-fetch-mode": mode, "cookie": cookie}}
		if signed {
			r.headers["cookie"] += "; " + x.cookie(appHost, "alice")
		}
		r.headers[name] = value
		holdCheck(t, x, r.proto())
	})
}

func holdCheck(t *testing.T, x *fixture, in *authv3.CheckRequest) {
	t.Helper()
	answer, err := x.Check(context.Background(), in) //nolint:usetesting // the context of a fuzz target is not made for 100,000 runs a second
	if err != nil {
		t.Fatalf("Check returned an error: %v", err)
	}
	http := in.GetAttributes().GetRequest().GetHttp()
	sent := http.GetHeaders()
	if raw := http.GetHeaderMap().GetHeaders(); len(raw) > 0 {
		sent = map[string]string{}
		for _, h := range raw {
			sent[h.GetKey()] = h.GetValue() + string(h.GetRawValue())
		}
	}
	r, err := envoy(sent, answer)
	if err != nil {
		t.Fatal(err)
	}
	if r.code == 503 { // nothing else is out of order here
		t.Fatalf("a panic: %s", x.log)
	}
	if r.upstream != nil {
		checkAllow(t, x, http, r)
		return
	}
	location := r.header("location")
	if location != "" && !strings.HasPrefix(location, "https://auth.example.com/dex/auth/local/login?req=") &&
		!strings.HasPrefix(location, appOrigin+"/") && !strings.HasPrefix(location, "http://plain.example.com:8080/") &&
		!strings.Contains(location, ".apps.example.com/") {
		t.Fatalf("a redirect to %q", location)
	}
	if r.code < 400 && r.code != 302 && r.code != 303 && r.code != 200 {
		t.Fatalf("an answer with %d", r.code)
	}
}
