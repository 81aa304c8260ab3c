package authz

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/seal"
)

const (
	appHost    = "app.example.com"
	appOrigin  = "https://app.example.com"
	issuerHost = "auth.example.com"
)

var epoch = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// fakeSessions holds what a test says.
type fakeSessions struct {
	mu   sync.Mutex
	live map[string]*session.Session
	err  map[string]error
}

func (f *fakeSessions) Lookup(_ context.Context, id string, now time.Time) (*session.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.err[id]; err != nil {
		return nil, err
	}
	if s := f.live[id]; s != nil && now.Before(s.AbsoluteExpiry) {
		return s, nil
	}
	return nil, session.ErrNotFound
}

// SignOut makes fakeSessions an Ender too.
func (f *fakeSessions) SignOut(_ context.Context, id string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.err["sign-out"]; err != nil {
		return "", err
	}
	delete(f.live, id)
	if next := f.err["next"]; next != nil {
		return next.Error(), nil
	}
	return "", nil
}

// textPages writes a page as its data, escaped by JSON.
type textPages struct{}

func (textPages) Page(kind PageKind, d PageData, _ string) []byte {
	b, err := json.Marshal(struct {
		Kind PageKind
		PageData
	}{kind, d})
	if err != nil {
		panic(err)
	}
	return append([]byte("<html>\xff"), b...)
}

type fixture struct {
	*Server
	t        testing.TB
	ring     *seal.Ring
	sessions *fakeSessions
	audit    *bytes.Buffer
	log      *bytes.Buffer
	registry *prometheus.Registry
	now      time.Time
	config   Config
}

func newFixture(t testing.TB, change ...func(*Config)) *fixture {
	t.Helper()
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, Purposes()...)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{
		t: t, ring: ring, now: epoch, audit: &bytes.Buffer{}, log: &bytes.Buffer{}, registry: prometheus.NewRegistry(),
		sessions: &fakeSessions{live: map[string]*session.Session{}, err: map[string]error{}},
	}
	f.config = Config{
		Policy: testPolicy(t), Hosts: testHosts(t), SignInPath: "/auth/local/login", Prefix: "/_gatehouse",
		Issuer: Issuer{Host: issuerHost, Path: "/dex", Origin: "https://auth.example.com"},
		IdentityHeaders: []IdentityHeader{
			{"kubeflow-userid", ClaimEmail},
			{"Kubeflow-Groups", ClaimGroups},
			{"x-auth-display-name", ClaimName},
		},
		OtherCookies: []string{"gatehouse-sso"},
	}
	for _, c := range change {
		c(&f.config)
	}
	f.Server, err = NewServer(Options{
		Ring: ring, Sessions: f.sessions, Ender: f.sessions, Pages: textPages{}, Registerer: f.registry,
		Audit:  f.audit,
		Logger: slog.New(slog.NewJSONHandler(f.log, nil)), Now: func() time.Time { return f.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(&f.config); err != nil {
		t.Fatal(err)
	}
	f.signIn("alice", func(*session.Session) {})
	return f
}

func testPolicy(t testing.TB) *policy.Policy {
	t.Helper()
	p, err := policy.New([]policy.Rule{
		{Name: "public", Line: 3, Paths: []string{"/public/**"}, Anyone: true},
		{Name: "admin", Line: 4, Paths: []string{"/admin/**"}, Groups: []string{"admins"}},
	}, policy.DefaultSignedIn)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testHosts(t testing.TB) *hosts.Set {
	t.Helper()
	h, err := hosts.Parse([]string{appHost, "*.apps.example.com", "http://plain.example.com:8080"}, "https")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// signIn makes a live session with the given id.
func (f *fixture) signIn(id string, change func(*session.Session)) {
	s := &session.Session{
		ID: id, User: session.User{Connector: "local", ID: "u-" + id},
		Identity: policy.Identity{
			Connector: "local", UserID: "u-" + id, Email: id + "@example.com", Name: "Name of " + id,
			Groups: []string{"team-a", "team-b"}, Expiry: epoch.Add(24 * time.Hour),
		},
		SignedInAt: epoch.Add(-time.Minute), LastActivity: epoch, IdleExpiry: epoch.Add(time.Hour), AbsoluteExpiry: epoch.Add(24 * time.Hour),
	}
	change(s)
	f.sessions.live[id] = s
}

// cookie returns a sealed session cookie of the host.
func (f *fixture) cookie(host, id string) string {
	https, _ := f.config.Hosts.Lookup(host)
	return handoff.Names(https).Session + "=" + handoff.SealCookie(f.ring, host, id, f.now)
}

// A request is what a client sends, as Envoy tells it.
type request struct {
	method, host, path string
	headers            map[string]string
}

const (
	browser = "navigate" // a navigation of a browser
	script  = "cors"     // fetch
)

// get returns a request of a browser or script: with name and value pairs as headers.
func get(path, mode string, headers ...string) request {
	r := request{method: "GET", host: appHost, path: path, headers: map[string]string{"x-request-id": "rid-1"}}
	if mode != "" {
		r.headers["sec-fetch-mode"] = mode
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.headers[headers[i]] = headers[i+1]
	}
	return r
}

func (r request) on(host string) request   { r.host = host; return r }
func (r request) by(method string) request { r.method = method; return r }
func (r request) proto() *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.7"},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: r.method, Host: r.host, Path: r.path, Headers: r.headers,
		}},
	}}
}

// A result is what becomes of a request behind Envoy.
type result struct {
	code     int
	upstream map[string]string // headers that reach the app; nil if it is not reached
	headers  map[string][]string
	body     string
	response *authv3.CheckResponse
}

func (f *fixture) do(r request) result {
	f.t.Helper()
	return f.check(r.proto())
}

// damaged returns s with another letter at i: one that it does not have there, whatever it is.
func damaged(s string, i int) string {
	letter := "A"
	if s[i] == 'A' {
		letter = "B"
	}
	return s[:i] + letter + s[i+1:]
}

func (f *fixture) check(in *authv3.CheckRequest) result {
	f.t.Helper()
	answer, err := f.Check(f.t.Context(), in)
	if err != nil {
		f.t.Fatalf("Check returned an error: %v", err)
	}
	res, err := envoy(in.GetAttributes().GetRequest().GetHttp().GetHeaders(), answer)
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

// envoy receives an answer and applies it as Envoy 1.40 does: headers are set, then others removed.
func envoy(sent map[string]string, made *authv3.CheckResponse) (result, error) {
	wire, err := proto.Marshal(made)
	if err != nil {
		return result{}, fmt.Errorf("the answer cannot be sent: %w", err)
	}
	answer := &authv3.CheckResponse{}
	if err := proto.Unmarshal(wire, answer); err != nil {
		return result{}, fmt.Errorf("the answer cannot be read: %w", err)
	}
	r := result{response: answer, headers: map[string][]string{}}
	if ok := answer.GetOkResponse(); ok != nil {
		if answer.GetStatus().GetCode() != 0 {
			return r, errors.New("an allow has a status that is not OK")
		}
		r.code, r.upstream = 200, map[string]string{}
		for k, v := range sent {
			r.upstream[strings.ToLower(k)] = v
		}
		touched := map[string]bool{}
		for _, h := range ok.GetHeaders() {
			if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
				return r, fmt.Errorf("header %q is not overwritten", h.GetHeader().GetKey())
			}
			if touched[h.GetHeader().GetKey()] {
				return r, fmt.Errorf("header %q is set twice", h.GetHeader().GetKey())
			}
			touched[h.GetHeader().GetKey()] = true
			r.upstream[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
		}
		for _, name := range ok.GetHeadersToRemove() {
			if touched[name] {
				return r, fmt.Errorf("header %q is both set and removed", name)
			}
			delete(r.upstream, strings.ToLower(name))
		}
		return r, nil
	}
	no := answer.GetDeniedResponse()
	if no == nil || answer.GetStatus().GetCode() == 0 {
		return r, fmt.Errorf("neither an allow nor a refusal: %v", answer)
	}
	r.code, r.body = int(no.GetStatus().GetCode()), no.GetBody()
	for _, h := range no.GetHeaders() {
		k, v := h.GetHeader().GetKey(), h.GetHeader().GetValue()
		if strings.ContainsAny(v, "\r\n\x00") {
			return r, fmt.Errorf("header %q has a control character: %q", k, v)
		}
		r.headers[k] = append(r.headers[k], v)
	}
	return r, nil
}

func (r result) header(name string) string { return strings.Join(r.headers[name], " | ") }

// set returns the value of a cookie that the answer sets; "" if it does not or clears it.
func (r result) set(name string) string {
	for _, v := range r.headers["set-cookie"] {
		if rest, ok := strings.CutPrefix(v, name+"="); ok {
			value, _, _ := strings.Cut(rest, ";")
			return value
		}
	}
	return ""
}

// problem returns the problem that a page or JSON tells of.
func (r result) problem(t testing.TB) Problem {
	t.Helper()
	var v struct {
		Error   Problem `json:"error"`
		Problem Problem
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.body, "<html>?")), &v); err != nil {
		t.Fatalf("body %q: %v", r.body, err)
	}
	return v.Error + v.Problem
}

// asked returns the sealed request of a redirect to the issuer.
func (f *fixture) asked(r result) handoff.Request {
	f.t.Helper()
	const start = "https://auth.example.com/dex/auth/local/login?req="
	sealed, ok := strings.CutPrefix(r.header("location"), start)
	if r.code != 302 || !ok {
		f.t.Fatalf("got %d to %q, want 302 to %s", r.code, r.header("location"), start)
	}
	req, err := handoff.OpenRequest(f.ring, sealed, f.now)
	if err != nil {
		f.t.Fatal(err)
	}
	return req
}

// ticket returns the path of a hand-off.
func (f *fixture) ticket(t handoff.Ticket) string {
	if t.Expiry.IsZero() {
		t.Expiry = f.now.Add(handoff.TicketLifetime)
	}
	return "/_gatehouse/session?t=" + url.QueryEscape(t.Seal(f.ring))
}

func (f *fixture) events() (list []map[string]any) {
	f.t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(f.audit.String()), "\n") {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			f.t.Fatalf("audit line %q: %v", line, err)
		}
		list = append(list, e)
	}
	return list
}

// count returns the value of a counter.
func (f *fixture) count(name string, labels ...string) float64 {
	f.t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	metric:
		for _, m := range family.GetMetric() {
			for i := 0; i+1 < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue metric
				}
			}
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}
