package authz

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/seal"
)

// TestApplyMistakes pins that a bad configuration changes nothing, and that each mistake is told.
func TestApplyMistakes(t *testing.T) {
	for _, tt := range []struct {
		rule, want string
		change     func(*Config)
	}{
		{"no policy", "policy and hosts", func(c *Config) { c.Policy = nil }},
		{"no hosts", "policy and hosts", func(c *Config) { c.Hosts = nil }},
		{"issuer host with port", `issuer host "a:1"`, func(c *Config) { c.Issuer.Host = "a:1" }},
		{"no issuer host", `issuer host ""`, func(c *Config) { c.Issuer.Host = "" }},
		{"issuer origin with path", "issuer origin", func(c *Config) { c.Issuer.Origin = "https://a/b" }},
		{"issuer origin that ends the content policy", "issuer origin", func(c *Config) { c.Issuer.Origin = "https://a; script-src *" }},
		{"issuer origin of another scheme", "issuer origin", func(c *Config) { c.Issuer.Origin = "ftp://a" }},
		{"issuer path with slash", "issuer path", func(c *Config) { c.Issuer.Path = "/dex/" }},
		{"issuer path of a slash", "issuer path", func(c *Config) { c.Issuer.Path = "/" }},
		{"no sign-in path", "sign-in path", func(c *Config) { c.SignInPath = "" }},
		{"sign-in path with query", "sign-in path", func(c *Config) { c.SignInPath = "/a?b" }},
		{"no prefix", "prefix", func(c *Config) { c.Prefix = "" }},
		{"prefix with dots", "prefix", func(c *Config) { c.Prefix = "/a/../b" }},
		{"prefix that decodes", "prefix", func(c *Config) { c.Prefix = "/%5f" }},
		{"prefix below the issuer", "overlap", func(c *Config) { c.Prefix = "/dex/own" }},
		{"issuer below the prefix", "overlap", func(c *Config) { c.Issuer.Path = "/_gatehouse/dex" }},
		{"same-site none", "sameSite", func(c *Config) { c.SameSite = http.SameSiteNoneMode }},
		{"scripts on pages", "page resources", func(c *Config) { c.PageResources = "script-src *" }},
		{"second header in page resources", "page resources", func(c *Config) { c.PageResources = "a\r\nb" }},
		{"tiny limit", "limit", func(c *Config) { c.MaxHeader = 10 }},
		{"no header name", "not a header name", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"", ClaimEmail}} }},
		{"pseudo header", "not a header name", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{":path", ClaimEmail}} }},
		{"cookie", "meaning of its own", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"Cookie", ClaimEmail}} }},
		{"authorization", "meaning of its own", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"Authorization", ClaimEmail}} }},
		{"alias of a reserved header", "meaning of its own", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"content_length", ClaimEmail}} }},
		{"Envoy's", "meaning of its own", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"x-envoy-user", ClaimEmail}} }},
		{"two names an app takes for one", "keep one", func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"x-user", ClaimEmail}, {"X_User", ClaimName}} }},
		{"unknown claim", `claim "mail"`, func(c *Config) { c.IdentityHeaders = []IdentityHeader{{"x-user", "mail"}} }},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			f := newFixture(t)
			before := f.current.Load()
			bad := f.config
			tt.change(&bad)
			err := f.Apply(&bad)
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
			if f.current.Load() != before {
				t.Error("it is applied")
			}
		})
	}
	f := newFixture(t)
	err := f.Apply(&Config{})
	for _, part := range []string{"policy and hosts", "issuer host", "issuer origin", "sign-in path", "prefix"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want all mistakes at once with %q", err, part)
		}
	}
}

// TestOneGeneration pins that a request is decided by one configuration as a whole, while others are applied.
func TestOneGeneration(t *testing.T) {
	f := newFixture(t)
	f.Audit = nil
	open, err := policy.New([]policy.Rule{{Name: "open", Anyone: true}}, policy.DefaultDeny)
	if err != nil {
		t.Fatal(err)
	}
	h, err := hosts.Parse([]string{"other.example.com"}, "https")
	if err != nil {
		t.Fatal(err)
	}
	// The first lists the host and needs a sign-in; the second is open and does not list it. A mixture allows.
	second := f.config
	second.Policy, second.Hosts = open, h
	req := get("/x", script)
	stop := make(chan struct{})
	var applier sync.WaitGroup
	applier.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			cfg := []*Config{&f.config, &second}[i%2]
			if err := f.Apply(cfg); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2000 {
		if got := f.do(req); got.code != 401 && got.code != 403 {
			t.Errorf("got %d, want 401 or 403", got.code)
			break
		}
	}
	close(stop)
	applier.Wait()
}

// broken panics wherever a test wants it.
type broken struct{ where string }

func (b broken) Lookup(context.Context, string, time.Time) (*session.Session, error) {
	if b.where == "sessions" {
		panic("secret-session-id")
	}
	return nil, session.ErrNotFound
}

func (b broken) Page(PageKind, PageData, string) []byte {
	if b.where == "pages" {
		panic("secret-page")
	}
	return []byte("page")
}

func (b broken) Write(p []byte) (int, error) {
	if b.where == "audit" {
		panic("secret-" + string(p))
	}
	return len(p), nil
}

// TestPanics pins ATTACKS.md rule 9: a panic answers 503 and is counted, wherever it happens.
func TestPanics(t *testing.T) {
	for where, r := range map[string]request{
		"sessions": get("/public/x", ""), "pages": get("/x", browser).by("POST"), "audit": get("/public/x", ""),
	} {
		t.Run(where, func(t *testing.T) {
			f := newFixture(t)
			b := broken{where}
			f.Sessions, f.Pages = b, b
			if where == "audit" {
				f.Audit = b
				f.Logger = slog.New(slog.NewTextHandler(b, nil))
			}
			r.headers["cookie"] = f.cookie(appHost, "alice")
			got := f.do(r)
			if got.code != 503 || got.header("retry-after") == "" {
				t.Errorf("got %d %v, want 503", got.code, got.headers)
			}
			if n := f.count("gatehouse_check_panics_total"); n != 1 {
				t.Errorf("got %v panics counted, want 1", n)
			}
			if n := f.count("gatehouse_checks_total", "decision", "unavailable", "reason", "panic"); n != 1 {
				t.Errorf("got %v checks counted, want 1", n)
			}
			if strings.Contains(f.log.String()+f.audit.String()+got.body, "secret") {
				t.Errorf("the panic's value is told: %s", f.log)
			}
			if where != "audit" && (f.events()[0]["reason"] != "panic" || !strings.Contains(f.log.String(), "panic in a check")) {
				t.Errorf("got audit %s and log %s", f.audit, f.log)
			}
		})
	}
}

// TestNotARequest pins that what is no request is answered.
func TestNotARequest(t *testing.T) {
	f := newFixture(t)
	for rule, in := range map[string]*authv3.CheckRequest{
		"nil": nil, "empty": {}, "no request": {Attributes: &authv3.AttributeContext{}},
		"no http": {Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}},
		"empty http": {Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{},
		}}},
	} {
		if got := f.check(in); got.code != 400 || got.problem(t) != ProblemBadRequest {
			t.Errorf("%s: got %d %s, want 400", rule, got.code, got.body)
		}
	}
}

// TestAudit pins the event of a decision.
func TestAudit(t *testing.T) {
	f := newFixture(t)
	f.do(get("/admin/x?token=secret", script, "cookie", f.cookie(appHost, "alice")))
	e := f.events()[0]
	if d, ok := e["duration_us"].(float64); !ok || d < 0 {
		t.Errorf("got duration %v", e["duration_us"])
	}
	delete(e, "time")
	delete(e, "duration_us")
	want := map[string]any{
		"level": "INFO", "msg": "decision", "log": "audit", "decision": "deny", "status": 403.0, "reason": "rule", "rule": "admin", "rule_reason": "not-in-group",
		"method": "GET", "host": appHost, "path": "/admin/x", "user": "alice@example.com", "connector": "local",
		"session": audit.Hash("alice"), "request_id": "rid-1", "source": "192.0.2.7",
	}
	for k, v := range want {
		if e[k] != v {
			t.Errorf("%s: got %v, want %v", k, e[k], v)
		}
	}
	if len(e) != len(want) {
		t.Errorf("got %d fields %v, want %d", len(e), e, len(want))
	}
	if n := f.count("gatehouse_checks_total", "decision", "deny", "reason", "rule"); n != 1 {
		t.Errorf("got %v counted, want 1", n)
	}
}

// TestRequestIDs pins that an id which cannot stand in a log or a header is replaced, and that one is always there.
func TestRequestIDs(t *testing.T) {
	f := newFixture(t)
	for rule, id := range map[string]string{"none": "", "too long": strings.Repeat("a", 129), "line break": "a\nb", "markup": "<b>", "non-ASCII": "é"} {
		f.audit.Reset()
		r := f.do(get("/x", script, "x-request-id", id))
		got := r.header("x-request-id")
		if len(got) != 26 || got == id || f.events()[0]["request_id"] != got || !strings.Contains(r.body, got) {
			t.Errorf("%s: got id %q, audit %s, body %s", rule, got, f.audit, r.body)
		}
	}
}

// TestMetadata pins what the access log of the proxy can show.
func TestMetadata(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		path string
		want map[string]any
	}{
		{"/public/x", map[string]any{"decision": "allow", "reason": "identity", "rule": "public", "user": "alice@example.com"}},
		{"/public/y", map[string]any{"decision": "allow", "reason": "identity", "rule": "public", "user": "alice@example.com"}},
		{"/x", map[string]any{"decision": "allow", "reason": "identity", "rule": "default", "user": "alice@example.com"}},
		{"/admin/x", map[string]any{"decision": "deny", "reason": "rule", "rule": "admin", "user": "alice@example.com"}},
		{"/_gatehouse/x", map[string]any{"decision": "own", "reason": "not-found"}},
	} {
		got := f.do(get(tt.path, script, "cookie", f.cookie(appHost, "alice"))).response.GetDynamicMetadata().AsMap()
		for k, v := range tt.want {
			if got[k] != v {
				t.Errorf("%s: %s: got %v, want %v", tt.path, k, got[k], v)
			}
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.path, got, tt.want)
		}
	}
}

// TestMetadataHasANewID pins that an id which the proxy does not know can be found in its log.
func TestMetadataHasANewID(t *testing.T) {
	f := newFixture(t)
	for range 2 {
		r := f.do(get("/x", script, "cookie", f.cookie(appHost, "alice"), "x-request-id", ""))
		events := f.events()
		if got := r.response.GetDynamicMetadata().AsMap()["request_id"]; got == nil || got != events[len(events)-1]["request_id"] {
			t.Errorf("got id %v in metadata and %v in the audit", got, events[len(events)-1]["request_id"])
		}
	}
}

// TestAuditFails pins that an event which cannot be written is counted.
func TestAuditFails(t *testing.T) {
	f := newFixture(t)
	f.Audit = fullDisk{}
	if r := f.do(get("/public/x", "")); r.code != 200 || f.count("gatehouse_audit_errors_total") != 1 {
		t.Errorf("got %d and %v errors counted, want 200 and 1", r.code, f.count("gatehouse_audit_errors_total"))
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestNoSecretsAnywhere pins that no cookie, hand-off, token or session id stands in a log, a metric or a page.
func TestNoSecretsAnywhere(t *testing.T) {
	f := newFixture(t)
	const id = "the-session-id"
	f.signIn(id, func(s *session.Session) {
		s.Identity.Email, s.Identity.Name, s.Identity.UserID = "carol@example.com", "Carol", "carol"
	})
	cookie := f.cookie(appHost, id)
	pre := handoff.NewPreCookie(epoch)
	ticket := f.ticket(handoff.Ticket{Session: id, Host: appHost, Return: "/a?password=hunter2", Bind: pre.Bind()})
	var pages strings.Builder
	for _, r := range []request{
		get("/x?password=hunter2", script), get("/admin/x", browser), get(ticket, browser), get(ticket+"x", browser),
		get("/_gatehouse/session?t=x", browser), get("/_gatehouse/whoami", script), get("/x", browser, "authorization", "Bearer hunter2"),
		get("//x?password=hunter2", browser), get("/x", browser).on("evil.com"), get("/_gatehouse/sign-out", browser),
		get("/_gatehouse/sign-out", browser, "sec-fetch-site", "same-origin", "sec-fetch-dest", "document"),
	} {
		r.headers["cookie"] = cookie + "; " + loginCookie + "=" + pre.String()
		pages.WriteString(f.do(r).body)
	}
	all := f.audit.String() + f.log.String() + pages.String()
	for what, secret := range map[string]string{
		"session id": id, "cookie": strings.TrimPrefix(cookie, "__Host-gatehouse="), "pre-cookie": pre.Random,
		"hand-off": strings.TrimPrefix(ticket, "/_gatehouse/session?t="), "query or token": "hunter2",
	} {
		if strings.Contains(all, secret) {
			t.Errorf("%s is told: %s", what, all)
		}
	}
}

// TestNewServer pins that a server without its parts does not start.
func TestNewServer(t *testing.T) {
	f := newFixture(t)
	for rule, change := range map[string]func(*Options){
		"ring": func(o *Options) { o.Ring = nil }, "sessions": func(o *Options) { o.Sessions = nil },
		"ender": func(o *Options) { o.Ender = nil }, "pages": func(o *Options) { o.Pages = nil },
		"metrics that are registered already": func(*Options) {},
	} {
		o := f.Options
		change(&o)
		if _, err := NewServer(o); err == nil {
			t.Errorf("%s: got no error", rule)
		}
	}
	o := Options{Ring: f.ring, Sessions: f.sessions, Ender: f.sessions, Pages: textPages{}}
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Check(t.Context(), nil); err != nil || r.GetDeniedResponse().GetStatus().GetCode() != 503 {
		t.Errorf("without logs and metrics: got %v, %v", r, err)
	}
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, handoff.PurposeCookie)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a ring without all purposes is taken")
		}
	}()
	o.Ring = ring
	_, _ = NewServer(o)
}

// TestLabels pins that outcomes are named, each once.
func TestLabels(t *testing.T) {
	seen := map[[2]string]bool{}
	for _, l := range Labels() {
		if l[0] == "" || l[1] == "" || seen[l] {
			t.Errorf("label %v is empty or used twice", l)
		}
		seen[l] = true
	}
	if !slices.Contains(Labels(), [2]string{"allow", "identity"}) {
		t.Error("allow by identity is missing")
	}
}

// TestGRPC runs a check, the health service and an oversized message through the real server.
func TestGRPC(t *testing.T) {
	f := newFixture(t)
	g, _ := NewGRPCServer(f.Server)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeOrFail(t, conn) })
	client := authv3.NewAuthorizationClient(conn)
	r, err := client.Check(t.Context(), get("/x", "", "cookie", f.cookie(appHost, "alice")).proto())
	if err != nil || r.GetOkResponse() == nil {
		t.Errorf("got %v, %v, want an allow", r, err)
	}
	h, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: authv3.Authorization_ServiceDesc.ServiceName})
	if err != nil || h.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("got health %v, %v", h, err)
	}
	_, err = client.Check(t.Context(), get("/x", "", "a", strings.Repeat("x", maxMessage)).proto())
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an oversized message: got %v", err)
	}
}

func closeOrFail(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
