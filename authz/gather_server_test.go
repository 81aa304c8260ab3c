package authz

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// An answering is an authorizer with long answers, which counts them.
type answering struct {
	authv3.UnimplementedAuthorizationServer
	given atomic.Int64
}

// Check implements authv3.AuthorizationServer.
func (a *answering) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.given.Add(1)
	token := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "token", Value: strings.Repeat("x", 2*minGathered)}}
	return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{token}}}}, nil
}

// TestGatherDrains pins that a server that is told to end while many ask gives away every answer, over connections that many
// share.
func TestGatherDrains(t *testing.T) {
	const connections, callers, before = 4, 50, 2000
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	service := &answering{}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, service)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(Gather(l)) }()

	var got atomic.Int64
	var wg sync.WaitGroup
	enough := make(chan struct{})
	for range connections {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		client := authv3.NewAuthorizationClient(conn)
		for range callers {
			wg.Go(func() {
				for {
					if _, err := client.Check(t.Context(), &authv3.CheckRequest{}); err != nil {
						return // the server has ended
					}
					if got.Add(1) == before {
						close(enough)
					}
				}
			})
		}
	}
	<-enough
	server.GracefulStop()
	wg.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got, given := got.Load(), service.given.Load(); got != given {
		t.Errorf("got %d answers, want all %d that were given", got, given)
	}
}
