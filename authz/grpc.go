package authz

import (
	"runtime"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// Limits of the gRPC listener.
const (
	maxMessage = 1 << 20  // bytes; Envoy's default for all headers of a request is 60 KiB
	maxStreams = 1000     // checks at once on one connection; Envoy opens another for more
	maxHeaders = 64 << 10 // bytes of the call's own header, in which Envoy sends some hundred

	// A connection without a check is told to go away after maxIdle (GOAWAY): Envoy opens a new one when it needs it, and no
	// check is lost. Strangers do not stay.
	maxIdle = 15 * time.Minute
)

// NewGRPCServer returns a gRPC server with the Authorization service and grpc.health.v1, bounded and with
// keep-alive. The health server says SERVING for "" and for Authorization until it is told otherwise. Options
// are added to ours.
func NewGRPCServer(s *Server, options ...grpc.ServerOption) (*grpc.Server, *health.Server) {
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		// Goroutines that are kept save growing a new stack for every check: a tenth of the CPU time. While all of them wait, for
		// the store for instance, grpc starts new ones as it would without.
		grpc.NumStreamWorkers(uint32(8 * runtime.GOMAXPROCS(0))), //nolint:gosec // G115: some dozens
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}, options...)...)
	authv3.RegisterAuthorizationServer(g, s)
	h := health.NewServer()
	h.SetServingStatus(authv3.Authorization_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(g, h)
	return g, h
}
