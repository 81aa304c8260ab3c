package demo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// allowAll stands for Gatehouse: these tests are about starting, watching and stopping the parts.
type allowAll struct {
	auth.UnimplementedAuthorizationServer
}

func (allowAll) Check(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error) {
	return &auth.CheckResponse{HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{}}}, nil
}

type config struct {
	Issuer string
	Web    struct {
		HTTP           string
		ClientRemoteIP struct {
			Header         string
			TrustedProxies []string `yaml:"trustedProxies"`
		} `yaml:"clientRemoteIP"`
	}
	StaticPasswords []struct {
		Email, Hash string
		Groups      []string
	} `yaml:"staticPasswords"`
	Gateway struct {
		GRPC  string
		Admin string
		Hosts []string
	}
}

func readConfig(path string) (config, error) {
	var c config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	return c, yaml.Unmarshal(b, &c)
}

// serveStandIn does what the demo expects of Gatehouse, at the addresses of the demo's config.
func serveStandIn(ctx context.Context, path string) error {
	c, err := readConfig(path)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	check, err := lc.Listen(ctx, "tcp", c.Gateway.GRPC)
	if err != nil {
		return err
	}
	issuer, err := lc.Listen(ctx, "tcp", c.Web.HTTP)
	if err != nil {
		return errors.Join(err, check.Close())
	}
	s := grpc.NewServer()
	auth.RegisterAuthorizationServer(s, allowAll{})
	web := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/dex/.well-known/openid-configuration" {
			w.WriteHeader(http.StatusNotFound)
		}
	})}
	defer context.AfterFunc(ctx, func() { _ = web.Close(); s.Stop() })()
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(check) }()
	go func() { ended <- web.Serve(issuer) }()
	err = errors.Join(<-ended, <-ended)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// output is a buffer that tells when the demo has said that it is ready.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{}
	once  sync.Once
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if bytes.Contains(p, []byte("Ctrl-C stops everything")) {
		o.once.Do(func() { close(o.ready) })
	}
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// installed returns the Envoy that `make tools` has installed, or one on PATH.
func installed(t *testing.T) string {
	t.Helper()
	path, err := demo.FindEnvoy(t.Context(), "", "../..")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// takePort returns a listener on a free loopback port.
func takePort(t *testing.T) (net.Listener, int) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("listener's address: got %T, want *net.TCPAddr", l.Addr())
	}
	return l, addr.Port
}

func freePort(t *testing.T) int {
	t.Helper()
	_, text, err := net.SplitHostPort(peers.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// running is a demo that has been started.
type running struct {
	out  *output
	stop context.CancelFunc
	done chan error
}

// start runs the demo with its temporary folder below the test's own.
func start(t *testing.T, port int, envoy string, gatehouse func(context.Context, string) error) running {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	r := running{out: &output{ready: make(chan struct{})}, stop: stop, done: make(chan error, 1)}
	go func() {
		r.done <- demo.Run(ctx, demo.Options{Port: port, Out: r.out, Envoy: envoy, Gatehouse: gatehouse})
	}()
	return r
}

func (r running) awaitReady(t *testing.T) {
	t.Helper()
	select {
	case <-r.out.ready:
	case err := <-r.done:
		t.Fatalf("ended before it was ready: %v", err)
	}
}

func (r running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(2 * time.Minute):
		t.Fatal("the demo did not end within two minutes")
		return nil
	}
}

func TestRunServesTellsAndLeavesNothingBehind(t *testing.T) {
	port := freePort(t)
	r := start(t, port, installed(t), serveStandIn)
	r.awaitReady(t)
	url := "http://localhost:" + strconv.Itoa(port)
	for _, want := range []string{url + "\n", url + "/admin/x", url + "/public/headers", "admin@example.com   password", "user@example.com    password"} {
		if !strings.Contains(r.out.String(), want) {
			t.Errorf("text has no %q:\n%s", want, r.out)
		}
	}
	m := regexp.MustCompile(`Config and logs: (\S+)`).FindStringSubmatch(r.out.String())
	if m == nil {
		t.Fatalf("text names no folder:\n%s", r.out)
	}
	folder := m[1]
	pids := childrenNaming(t, folder)
	if len(pids) != 1 {
		t.Fatalf("got %d programs that name the folder, want 1 (Envoy)", len(pids))
	}
	if code := status(t, port, "/headers"); code != http.StatusOK {
		t.Errorf("/headers: got status %d, want 200", code)
	}
	r.stop()
	if err := r.wait(t); err != nil {
		t.Errorf("after the context's end: got %v, want nil", err)
	}
	if err := syscall.Kill(pids[0], 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("Envoy still runs (%v)", err)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there (%v)", err)
	}
}

// childrenNaming returns the processes whose command line names folder.
func childrenNaming(t *testing.T, folder string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(line, []byte(folder)) {
			continue // gone meanwhile, or another's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func status(t *testing.T, port int, path string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port)+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode
}

func TestRunEndsWhenEnvoyDies(t *testing.T) {
	r := start(t, freePort(t), installed(t), serveStandIn)
	r.awaitReady(t)
	for _, pid := range childrenNaming(t, os.Getenv("TMPDIR")) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.wait(t); err == nil || !strings.Contains(err.Error(), "envoy ended: signal: killed") {
		t.Errorf("got %v, want an error that says how Envoy ended", err)
	}
}

func TestRunTellsWhyEnvoyCouldNotStart(t *testing.T) {
	fake := script(t, "envoy", "echo 'unknown option: --config-path' >&2; exit 1") + "/envoy"
	err := start(t, freePort(t), fake, serveStandIn).wait(t)
	if err == nil || !strings.Contains(err.Error(), "unknown option: --config-path") {
		t.Errorf("got %v, want an error with the end of Envoy's log", err)
	}
}

func TestRunTellsWhyGatehouseEnded(t *testing.T) {
	boom := errors.New("no such key")
	err := start(t, freePort(t), installed(t), func(context.Context, string) error { return boom }).wait(t)
	if !errors.Is(err, boom) {
		t.Errorf("got %v, want %v", err, boom)
	}
	err = start(t, freePort(t), installed(t), func(context.Context, string) error { return nil }).wait(t)
	if err == nil || !strings.Contains(err.Error(), "gatehouse ended by itself") {
		t.Errorf("got %v, want an error that says that it ended", err)
	}
}

func TestRunTriesOtherPortsWhenOneWasTakenMeanwhile(t *testing.T) {
	var tries []string
	r := start(t, freePort(t), installed(t), func(ctx context.Context, path string) error {
		c, err := readConfig(path)
		if err != nil {
			return err
		}
		if tries = append(tries, c.Gateway.GRPC); len(tries) == 1 {
			return &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
		}
		return serveStandIn(ctx, path)
	})
	r.awaitReady(t)
	r.stop()
	if err := r.wait(t); err != nil {
		t.Error(err)
	}
	if len(tries) < 2 || tries[0] == tries[1] { // the second may have been taken meanwhile, too
		t.Errorf("tried %v, want two different addresses", tries)
	}
}

func TestRunNamesATakenPublicPort(t *testing.T) {
	l, port := takePort(t)
	t.Cleanup(func() { _ = l.Close() })
	err := start(t, port, installed(t), serveStandIn).wait(t)
	if err == nil || !strings.Contains(err.Error(), "port "+strconv.Itoa(port)+" is taken") || !strings.Contains(err.Error(), "GATEHOUSE_DEMO_PORT=") {
		t.Errorf("got %v, want an error that names the port and the way out", err)
	}
	for _, bad := range []int{-1, 0, 65536} {
		if err := start(t, bad, "", serveStandIn).wait(t); err == nil || !strings.Contains(err.Error(), "want 1 to 65535") {
			t.Errorf("port %d: got %v, want an error that says the range", bad, err)
		}
	}
}

func TestConfigIsForTheLoopbackAddressOnly(t *testing.T) {
	port := freePort(t)
	r := start(t, port, installed(t), func(ctx context.Context, path string) error {
		c, err := readConfig(path)
		if err != nil {
			return err
		}
		if want := "http://localhost:" + strconv.Itoa(port) + "/dex"; c.Issuer != want {
			t.Errorf("issuer: got %q, want %q", c.Issuer, want)
		}
		if want := "localhost:" + strconv.Itoa(port); len(c.Gateway.Hosts) != 1 || c.Gateway.Hosts[0] != want {
			t.Errorf("hosts: got %q, want [%q]", c.Gateway.Hosts, want)
		}
		if !strings.HasPrefix(c.Web.HTTP, "127.0.0.1:") || !strings.HasPrefix(c.Gateway.GRPC, "127.0.0.1:") || !strings.HasPrefix(c.Gateway.Admin, "unix:"+filepath.Dir(path)) {
			t.Errorf("addresses %q, %q, %q: want all on 127.0.0.1, the last a socket in the folder", c.Web.HTTP, c.Gateway.GRPC, c.Gateway.Admin)
		}
		if ip := c.Web.ClientRemoteIP; ip.Header != "X-Real-IP" || len(ip.TrustedProxies) != 1 || ip.TrustedProxies[0] != "127.0.0.1/32" {
			t.Errorf("clientRemoteIP: got %+v, want the header that Envoy overwrites, from 127.0.0.1/32 only", ip)
		}
		for i, want := range []string{"admin@example.com admins", "user@example.com team-a"} {
			u := c.StaticPasswords[i]
			if got := u.Email + " " + strings.Join(u.Groups, ","); got != want {
				t.Errorf("user %d: got %q, want %q", i, got, want)
			}
			if err := bcrypt.CompareHashAndPassword([]byte(u.Hash), []byte("password")); err != nil {
				t.Errorf("user %d: %v", i, err)
			}
			if cost, err := bcrypt.Cost([]byte(u.Hash)); err != nil || cost != 10 {
				t.Errorf("user %d: cost %d (%v), want 10", i, cost, err)
			}
		}
		return errors.New("seen")
	})
	if err := r.wait(t); err == nil || !strings.Contains(err.Error(), "seen") {
		t.Errorf("got %v", err)
	}
}
