package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"gatehouse/authz"
	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/seal"
)

const (
	serveCommand = "serve"
	host         = "kubeflow.example.com"
	sessions     = 256
)

// ready is what a server writes to its standard output once it listens.
type ready struct {
	Address string
	Cookies []string // of live sessions
}

// serve runs one server, the no-op one or Gatehouse with a number of rules, until its standard input ends.
func serve(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("want one argument: noop, or the number of rules")
	}
	server, cookies, err := newServer(args[0])
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		server.Stop()
	}()
	if err := json.NewEncoder(stdout).Encode(ready{Address: l.Addr().String(), Cookies: cookies}); err != nil {
		return err
	}
	return server.Serve(l)
}

func newServer(kind string) (*grpc.Server, []string, error) {
	if kind == "noop" {
		g := grpc.NewServer()
		authv3.RegisterAuthorizationServer(g, noop{})
		return g, nil, nil
	}
	rules, err := strconv.Atoi(kind)
	if err != nil {
		return nil, nil, fmt.Errorf("number of rules %q: %w", kind, err)
	}
	s, cookies, err := newGatehouse(rules)
	if err != nil {
		return nil, nil, err
	}
	g, _ := authz.NewGRPCServer(s)
	return g, cookies, nil
}

// noop is an ext_authz server as its documentation has it, which lets everybody in.
type noop struct {
	authv3.UnimplementedAuthorizationServer
}

func (noop) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{
		Status: &status.Status{Code: 0},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{
			{Header: &corev3.HeaderValue{Key: "kubeflow-userid", Value: "user@example.com"}},
		}}},
	}, nil
}

// newGatehouse returns the product's server with live sessions, and their cookies.
func newGatehouse(rules int) (*authz.Server, []string, error) {
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, authz.Purposes()...)
	if err != nil {
		return nil, nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := config(rules)
	if err != nil {
		return nil, nil, err
	}
	store, cookies := newStore(ring, time.Now())
	s, err := authz.NewServer(authz.Options{
		Ring: ring, Sessions: session.NewView(store, session.Options{Idle: 12 * time.Hour}),
		Ender: store, Pages: noPages{}, Registerer: prometheus.NewRegistry(),
		Audit: audit.NewWriter(null, 0), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return nil, nil, err
	}
	return s, cookies, s.Apply(cfg)
}

// config returns a configuration whose last rule decides.
func config(rules int) (*authz.Config, error) {
	list := make([]policy.Rule, 0, rules)
	for i := range rules - 1 {
		list = append(list, policy.Rule{Name: fmt.Sprintf("rule-%d", i), Hosts: []string{host}, Paths: []string{fmt.Sprintf("/app-%d/**", i)}, Groups: []string{"nobody"}})
	}
	list = append(list, policy.Rule{Name: "pipelines", Hosts: []string{host}, Paths: []string{"/pipeline/**"}, Groups: []string{"team-a"}})
	p, err := policy.New(list, policy.DefaultDeny)
	if err != nil {
		return nil, err
	}
	h, err := hosts.Parse([]string{host}, "https")
	if err != nil {
		return nil, err
	}
	return &authz.Config{
		Policy: p, Hosts: h, SignInPath: "/auth/local/login", Prefix: "/_gatehouse",
		Issuer: authz.Issuer{Host: "auth.example.com", Path: "/dex", Origin: "https://auth.example.com"},
		IdentityHeaders: []authz.IdentityHeader{
			{Name: "kubeflow-userid", Claim: authz.ClaimEmail}, {Name: "kubeflow-groups", Claim: authz.ClaimGroups},
		},
	}, nil
}

// A store holds sessions in memory, as the provider would.
type store map[string]*session.Session

func newStore(ring *seal.Ring, now time.Time) (store, []string) {
	s := store{}
	var cookies []string
	for i := range sessions {
		id := fmt.Sprintf("session-%022d", i)
		expiry := now.Add(24 * time.Hour)
		s[id] = &session.Session{
			ID: id, User: session.User{Connector: "local", ID: id},
			Identity: policy.Identity{
				Connector: "local", UserID: id, Email: fmt.Sprintf("user%d@example.com", i), Name: "User",
				Groups: []string{"team-a", "team-b", "data-scientists"}, Expiry: expiry,
			},
			SignedInAt: now, LastActivity: now, IdleExpiry: now.Add(12 * time.Hour), AbsoluteExpiry: expiry,
		}
		cookies = append(cookies, handoff.Names(true).Session+"="+handoff.SealCookie(ring, host, id, now))
	}
	return s, cookies
}

// Session implements session.Store.
func (s store) Session(_ context.Context, id string) (*session.Session, error) {
	if v := s[id]; v != nil {
		return v, nil
	}
	return nil, session.ErrNotFound
}

// Touch implements session.Store. The sessions here are used for minutes only.
func (s store) Touch(ctx context.Context, id string, _ time.Time) (*session.Session, error) {
	return s.Session(ctx, id)
}

// Subscribe implements session.Store. Nothing changes here.
func (store) Subscribe(func(session.Change)) func() { return func() {} }

// SignOut implements authz.Ender. Nobody signs out here.
func (store) SignOut(context.Context, string) (string, error) {
	return "", errors.New("no sign-out in a benchmark")
}

// noPages answers the pages that a benchmark never shows with their bare problem.
type noPages struct{}

func (noPages) Page(_ authz.PageKind, d authz.PageData, _ string) []byte { return []byte(d.Problem) }
