package authz

import (
	"context"
	"runtime"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

// Limits of the gRPC listener.
const (
	maxMessage = 1 << 20  // bytes; Envoy's default for all headers of a request is 60 KiB
	maxStreams = 1000     // checks at once on one connection; Envoy opens another for more
	maxHeaders = 64 << 10 // bytes of the call's own header, in which Envoy sends some hundred

	// A connection without a check is told to go away after maxIdle (GOAWAY): Envoy opens a new one when it needs it, and no
	// check is lost. Strangers do not stay.
	maxIdle = 15 * time.Minute

	// Flow control windows in bytes (RFC 9113 section 5.2): what is received ahead of the reader.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
)

// NewGRPCServer returns a gRPC server with the Authorization service and grpc.health.v1, bounded and with
// keep-alive. The health server says SERVING for "" and for Authorization until it is told otherwise. Options
// are added to ours; an interceptor would not see the checks.
func NewGRPCServer(s *Server, options ...grpc.ServerOption) (*grpc.Server, *health.Server) {
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		// Goroutines that are kept save growing a new stack for every check: a tenth of the CPU time. While all of them wait, for
		// the store for instance, grpc starts new ones as it would without.
		grpc.NumStreamWorkers(uint32(8 * runtime.GOMAXPROCS(0))), //nolint:gosec // G115: some dozens
		// Windows of a fixed size: grpc would else measure the connection with pings of its own.
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}, options...)...)
	desc := authv3.Authorization_ServiceDesc
	desc.Methods = []grpc.MethodDesc{{MethodName: "Check", Handler: handleCheck}}
	g.RegisterService(&desc, s)
	h := health.NewServer()
	h.SetServingStatus(authv3.Authorization_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(g, h)
	return g, h
}

// A codec hands the bytes of a CheckRequest and of its answer over as they are. All other messages are proto's.
type codec struct{ encoding.CodecV2 }

// A received is a message whose bytes are still those that came in. They are freed by whoever reads them.
type received struct{ buffer mem.Buffer }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*received); ok {
		r.buffer = data.MaterializeToBuffer(mem.DefaultBufferPool()) // of one piece no copy is made
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if a, ok := v.(answer); ok {
		return mem.BufferSlice{mem.SliceBuffer(a)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// handleCheck is the method Check of the Authorization service.
func handleCheck(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // grpc's order
	var in received
	if err := decode(&in); err != nil {
		return nil, err // grpc's own limits: the connection or the message is unfit
	}
	defer in.buffer.Free()
	return srv.(*Server).check(ctx, in.buffer.ReadOnlyData()), nil
}
