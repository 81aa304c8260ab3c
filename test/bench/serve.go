package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
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

const serveCommand = "serve"

// ready is what a server writes to a file once it listens.
type ready struct {
	Address string
	Cookies []string // of live sessions
}

// A recipe says which server to run.
type recipe struct {
	rules    int // of Gatehouse; 0 means the no-op server
	sessions int // live ones in the store
	capacity int // of the view of them
	gc       int // percentage, as GOGC
}

// serve runs one server until ctx ends.
func serve(ctx context.Context, args []string) error {
	var r recipe
	flags := flag.NewFlagSet(serveCommand, flag.ContinueOnError)
	file := flags.String("ready", "", "")
	flags.IntVar(&r.rules, "rules", 0, "")
	flags.IntVar(&r.sessions, "sessions", 0, "")
	flags.IntVar(&r.capacity, "capacity", 0, "")
	flags.IntVar(&r.gc, "gc", 100, "")
	profile := flags.String("profile", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	debug.SetGCPercent(r.gc)
	server, cookies, err := newServer(r)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, server.Stop)
	stopProfile, err := startProfile(*profile)
	if err != nil {
		return err
	}
	defer stopProfile()
	if err := writeReady(*file, ready{Address: l.Addr().String(), Cookies: cookies}); err != nil {
		return err
	}
	return server.Serve(l)
}

// startProfile writes a CPU profile to a file until it is stopped; "" writes none.
func startProfile(file string) (stop func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close() // a file that is cut short is told by whoever reads it
	}, nil
}

// writeReady writes the file so that nobody reads a part of it.
func writeReady(file string, r ready) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func newServer(r recipe) (*grpc.Server, []string, error) {
	if r.rules == 0 {
		g := grpc.NewServer()
		authv3.RegisterAuthorizationServer(g, noop{})
		return g, nil, nil
	}
	s, cookies, err := newGatehouse(r)
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

// newGatehouse returns the product's authorizer with live sessions, joined as `gatehouse serve` joins it but without a
// provider, and the sessions' cookies.
func newGatehouse(r recipe) (*authz.Server, []string, error) {
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, authz.Purposes()...)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := config(r.rules)
	if err != nil {
		return nil, nil, err
	}
	store, cookies := newStore(ring, r.sessions, utc())
	s, err := authz.NewServer(authz.Options{
		Ring: ring, Sessions: session.NewView(store, session.Options{Capacity: r.capacity, Idle: 12 * time.Hour, Now: utc}),
		Ender: store, Pages: noPages{}, Registerer: prometheus.NewRegistry(), Now: utc,
		Audit: audit.NewWriter(os.Stdout, 8<<20), Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil)),
	})
	if err != nil {
		return nil, nil, err
	}
	return s, cookies, s.Apply(cfg)
}

func utc() time.Time { return time.Now().UTC() }

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

// A store has sessions without keeping them: each is made when it is read, as from a file, so that in memory there are only
// those of the view.
type store struct {
	sessions int
	start    time.Time
}

const sessionID = "session-%022d"

func newStore(ring *seal.Ring, sessions int, now time.Time) (store, []string) {
	var cookies []string
	for i := range sessions {
		cookies = append(cookies, handoff.Names(true).Session+"="+handoff.SealCookie(ring, host, fmt.Sprintf(sessionID, i), now))
	}
	return store{sessions, now}, cookies
}

// Session implements session.Store.
func (s store) Session(_ context.Context, id string) (*session.Session, error) {
	i, err := strconv.Atoi(strings.TrimPrefix(id, "session-"))
	if err != nil || i < 0 || i >= s.sessions || fmt.Sprintf(sessionID, i) != id {
		return nil, session.ErrNotFound
	}
	expiry := s.start.Add(24 * time.Hour)
	return &session.Session{
		ID: id, User: session.User{Connector: "local", ID: id},
		Identity: policy.Identity{
			Connector: "local", UserID: id, Email: fmt.Sprintf("user%d@example.com", i), Name: "User",
			Groups: []string{"team-a", "team-b", "data-scientists"}, Expiry: expiry,
		},
		SignedInAt: s.start, LastActivity: s.start, IdleExpiry: s.start.Add(12 * time.Hour), AbsoluteExpiry: expiry,
	}, nil
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
