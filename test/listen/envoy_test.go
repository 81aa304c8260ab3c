package listen

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.yaml.in/yaml/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	"gatehouse/internal/demo"
	"gatehouse/internal/demo/process"
	"gatehouse/test/peers"
)

// upstreamTLS returns the block of docs/install.md for the cluster of the check.
func upstreamTLS(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(peers.Root(t), "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "```yaml\ntransport_socket:\n")
	socket, _, end := strings.Cut(after, "```")
	if !found || !end {
		t.Fatal("docs/install.md has no block that begins with transport_socket")
	}
	return socket
}

// envoy starts Envoy with a client certificate, or none, in front of an app.
func (w *world) envoy(t *testing.T, app string, certificate, key []byte, trusted *peers.CA) *http.Transport {
	t.Helper()
	binary, err := demo.FindEnvoy(t.Context(), "", peers.Root(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := peers.Folder(t)
	e := demo.Edge{Listen: peers.FreeAddr(t), Admin: peers.FreeAddr(t), Check: w.ports["gateway.grpc"], Hosts: []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: app}}}}}
	plain, err := demo.EnvoyConfig(e)
	if err != nil {
		t.Fatal(err)
	}
	plain = peers.Patient(plain)
	socket := upstreamTLS(t)
	if certificate == nil {
		before, after, _ := strings.Cut(socket, "      tls_certificates:")
		_, after, _ = strings.Cut(after, "      validation_context:")
		socket = before + "      validation_context:" + after
	} else {
		write(t, dir, "gateway.crt", certificate)
		write(t, dir, "gateway.key", key)
	}
	write(t, dir, "gatehouse-ca.crt", trusted.PEM)
	config := write(t, dir, "envoy.yaml", withSocket(t, plain, strings.ReplaceAll(socket, "/etc/envoy", dir)))
	p, err := process.Start(context.WithoutCancel(t.Context()), process.Spec{Path: binary, Args: demo.EnvoyArgs(config), Dir: dir, Log: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the end of Envoy's log:\n%s", p.Tail(4000))
		}
	})
	peers.Eventually(t, within, "Envoy is ready", func() bool {
		select {
		case <-p.Done():
			t.Fatal(p.Err())
		default:
		}
		_, err := get(t.Context(), "http://"+e.Admin+"/ready")
		return err == nil
	})
	return toward(t, e.Listen)
}

// withSocket gives the cluster of the check a transport socket.
func withSocket(t *testing.T, config []byte, socket string) []byte {
	t.Helper()
	var tree map[string]any
	var s any
	if err := yaml.Unmarshal(config, &tree); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(socket), &s); err != nil {
		t.Fatal(err)
	}
	static, _ := tree["static_resources"].(map[string]any)
	clusters, _ := static["clusters"].([]any)
	for _, c := range clusters {
		if c, ok := c.(map[string]any); ok && c["name"] == "gatehouse-check" {
			c["transport_socket"] = s
			out, err := yaml.Marshal(tree)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	t.Fatal("Envoy's config has no cluster gatehouse-check")
	return nil
}

// TestEnvoySpeaksTLS: the real Envoy asks over mutual TLS. One that is not allowed to gets no answer, and answers 503 itself.
func TestEnvoySpeaksTLS(t *testing.T) {
	w := newWorld(t)
	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	stranger := peers.NewCA(t, "client")
	for _, tt := range []struct {
		name    string
		ca      *peers.CA // nil: no certificate
		names   []string
		trusted *peers.CA
		public  int // status of a path that is open to anyone
		private int // status of one that is not
		reason  string
	}{
		{"right name", w.clientCA, []string{"gateway", gateway}, w.serverCA, http.StatusOK, http.StatusFound, ""},
		{"wrong name", w.clientCA, []string{"gateway", gateway + "2"}, w.serverCA, http.StatusServiceUnavailable, http.StatusServiceUnavailable, "name"},
		{"another CA", stranger, []string{"gateway", gateway}, w.serverCA, http.StatusServiceUnavailable, http.StatusServiceUnavailable, "certificate"},
		{"no certificate", nil, nil, w.serverCA, http.StatusServiceUnavailable, http.StatusServiceUnavailable, "no-certificate"},
		{"does not trust Gatehouse", w.clientCA, []string{"gateway", gateway}, stranger, http.StatusServiceUnavailable, http.StatusServiceUnavailable, "client-refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var certificate, key []byte
			if tt.ca != nil {
				certificate, key = tt.ca.Issue(t, tt.names...)
			}
			before := 0.0
			if tt.reason != "" {
				before = w.metric(t, "gatehouse_tls_handshake_failures_total", "gateway.grpc", tt.reason)
			}
			edge := w.envoy(t, app.Listener.Addr().String(), certificate, key, tt.trusted)
			for path, want := range map[string]int{"/public/headers": tt.public, "/headers": tt.private} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+appHost+path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Accept", "text/html")
				resp, err := edge.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
				}
			}
			if tt.reason != "" {
				peers.Eventually(t, within, "a failure is counted as "+tt.reason, func() bool { // Envoy may know of it first
					return w.metric(t, "gatehouse_tls_handshake_failures_total", "gateway.grpc", tt.reason) > before
				})
				w.gatehouse.Logged(t, `"for":"gateway.grpc","reason":"`+tt.reason+`"`)
			}
		})
	}
}

// An open door lets everything pass.
type openDoor struct {
	authv3.UnimplementedAuthorizationServer
}

// Check implements authv3.AuthorizationServer.
func (openDoor) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{Status: &rpcstatus.Status{}}, nil
}

// TestIdleConnectionsAreSafe holds Envoy to what the gRPC listener's limit for idle connections relies on: of checks that
// come just when a connection is told to go away, none fails.
func TestIdleConnectionsAreSafe(t *testing.T) {
	const idle, checks = 20 * time.Millisecond, 200
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var opened connections
	server := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idle}), grpc.StatsHandler(&opened))
	authv3.RegisterAuthorizationServer(server, openDoor{})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	edge := peers.Envoy(t, demo.Edge{Check: l.Addr().String(), Hosts: []demo.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: app.Listener.Addr().String()}}}}})
	tr := edge.Transport(t)
	for i := range checks {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+appHost+"/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("check %d: got %d, want 200", i, resp.StatusCode)
		}
		<-time.After(idle - 5*time.Millisecond + time.Duration(i%50)*200*time.Microsecond) // 15 to 25 ms
	}
	if n := opened.n.Load(); n < 10 {
		t.Errorf("Envoy has opened %d connections for %d checks: hardly any was told to go away", n, checks)
	}
}

// connections counts those of a gRPC server.
type connections struct{ n atomic.Int64 }

// TagRPC implements stats.Handler.
func (*connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (*connections) HandleRPC(context.Context, stats.RPCStats) {}

// TagConn implements stats.Handler.
func (*connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (c *connections) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ok := s.(*stats.ConnBegin); ok {
		c.n.Add(1)
	}
}
