package peers

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"gatehouse/internal/demo"
	"gatehouse/internal/demo/process"
)

// startTries is how often a program is started that found its port taken by a program outside the tests.
const startTries = 3

// An EnvoyServer is a running Envoy.
type EnvoyServer struct {
	Addr  string // where it listens, ip:port
	Admin string // its admin address: /stats, /config_dump
	Port  string // of Addr

	process *process.Process
}

// Envoy starts a real Envoy with the config of e, waits until it serves, and stops it when the test ends. An empty
// e.Listen is set to a free address; so is e.Admin. Each change is made to the text of the config.
func Envoy(t testing.TB, e demo.Edge, change ...func(config string) string) *EnvoyServer {
	t.Helper()
	binary, err := demo.FindEnvoy(t.Context(), "", Root(t))
	if err != nil {
		t.Fatal(err)
	}
	for range startTries {
		var s *EnvoyServer
		if s, err = startEnvoy(t, binary, e, change); err == nil {
			return s
		}
		if e.Listen != "" || !portTaken(err) { // a given address cannot be changed
			break
		}
	}
	t.Fatal(err)
	return nil
}

func startEnvoy(t testing.TB, binary string, e demo.Edge, change []func(string) string) (*EnvoyServer, error) {
	t.Helper()
	if e.Listen == "" {
		e.Listen = FreeAddr(t)
	}
	if e.Admin == "" {
		e.Admin = FreeAddr(t)
	}
	config, err := demo.EnvoyConfig(e)
	if err != nil {
		return nil, err
	}
	if len(e.Replicas) == 0 { // else it is about a replica that is late
		config = Patient(config)
	}
	for _, f := range change {
		config = []byte(f(string(config)))
	}
	dir := Folder(t)
	path := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return nil, err
	}
	spec := process.Spec{Path: binary, Args: demo.EnvoyArgs(path), Dir: dir, Log: filepath.Join(dir, "log")}
	p, err := start(t, spec, func(*process.Process) bool { return answers(t, "http://"+e.Admin+"/ready") && listens(t, e.Listen) })
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(e.Listen)
	return &EnvoyServer{Addr: e.Listen, Admin: e.Admin, Port: port, process: p}, err
}

// Patient makes the Envoy of a config wait for Gatehouse and the apps as long as a busy machine may stand still: its usual second or two would make
// 503 of that.
func Patient(config []byte) []byte {
	return regexp.MustCompile(`\b((?:connect_|request_headers_)?timeout): \d+s\b`).ReplaceAll(config, []byte("$1: 60s"))
}

// Log returns what Envoy has written so far.
func (s *EnvoyServer) Log() string { return s.process.Log() }

// Transport returns a RoundTripper that reaches this Envoy whatever host a URL names. It keeps cookies and follows
// redirects for nobody: that is for the caller's http.Client.
func (s *EnvoyServer) Transport(t testing.TB) *http.Transport { return transport(t, s.Addr) }

func transport(t testing.TB, addr string) *http.Transport {
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// answers reports whether a GET of url is answered by 200 within a second.
func answers(t testing.TB, url string) bool {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

func listens(t testing.TB, addr string) bool {
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
