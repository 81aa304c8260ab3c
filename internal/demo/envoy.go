package demo

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// An Edge is an Envoy in front of apps. Addresses are ip:port.
type Edge struct {
	Listen    string
	Admin     string    // Envoy's own admin address; empty: none
	Check     string    // Gatehouse's gRPC address; empty: no check
	Replicas  []Replica // of Gatehouse, in place of Check: for tests only
	AccessLog string    // a file; empty: none
	Relaxed   bool      // Envoy's default connection manager in place of the hardened one: for tests only
	Hosts     []VirtualHost
}

// A Replica is one of several Gatehouses, whose health Envoy looks at once a second.
type Replica struct {
	Check  string // gRPC
	Issuer string // for routes to Issuer
	Health string // telemetry
}

// Issuer is the Upstream of routes to the issuer where there are Replicas.
const Issuer = "issuer"

// A VirtualHost routes the requests of some host names.
type VirtualHost struct {
	Name    string
	Domains []string // with and without port, as Envoy wants them; "*" is every host
	Routes  []Route  // the first that matches
}

// A Route sends what is at or below Prefix to an upstream.
type Route struct {
	Prefix    string // whole segments: /dex is /dex and /dex/x, never /dexter; "/" is everything
	Upstream  string // ip:port
	Unchecked bool   // passes without asking Gatehouse
}

//go:embed envoy.yaml.tmpl
var envoyTemplate string

// address is an ip:port in Envoy's two fields.
type address struct {
	Host string
	Port uint16
}

type envoyCluster struct {
	Name string
	Addr *address
}

type envoyReplica struct{ Check, Issuer, Health *address }

type envoyRoute struct {
	Route
	Cluster string
}

type envoyHost struct {
	Name    string
	Domains []string
	Routes  []envoyRoute
}

type envoyModel struct {
	Listen, Admin, Check *address
	AccessLog            string
	Relaxed              bool
	Hosts                []envoyHost
	Clusters             []envoyCluster
	Replicas             []envoyReplica
}

// Checks are the addresses that are asked before a request passes.
func (m envoyModel) Checks() (all []*address) {
	if m.Check != nil {
		return []*address{m.Check}
	}
	for _, r := range m.Replicas {
		all = append(all, r.Check)
	}
	return all
}

// EnvoyConfig returns the bootstrap file of e for Envoy 1.37 or later. All mistakes are returned, joined.
func EnvoyConfig(e Edge) ([]byte, error) {
	m := envoyModel{AccessLog: e.AccessLog, Relaxed: e.Relaxed}
	var errs []error
	parse := func(what, addr string) *address {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s address %q: want ip:port", what, addr))
			return nil
		}
		return &address{Host: ap.Addr().String(), Port: ap.Port()}
	}
	m.Listen = parse("listen", e.Listen)
	if e.Admin != "" {
		m.Admin = parse("admin", e.Admin)
	}
	if e.Check != "" {
		m.Check = parse("check", e.Check)
	}
	names := map[string]string{} // upstream -> cluster
	for _, r := range e.Replicas {
		m.Replicas = append(m.Replicas, envoyReplica{parse("check", r.Check), parse("issuer", r.Issuer), parse("health", r.Health)})
		names[Issuer] = "gatehouse-issuer"
	}
	for _, h := range e.Hosts {
		host := envoyHost{Name: h.Name, Domains: h.Domains}
		for _, r := range h.Routes {
			if r.Prefix != "/" && (!strings.HasPrefix(r.Prefix, "/") || strings.HasSuffix(r.Prefix, "/")) {
				errs = append(errs, fmt.Errorf("route %q of host %q: want / or a path that starts with a slash and ends without one", r.Prefix, h.Name))
			}
			name, ok := names[r.Upstream]
			if !ok {
				name = "upstream-" + strconv.Itoa(len(names)+1)
				names[r.Upstream] = name
				m.Clusters = append(m.Clusters, envoyCluster{Name: name, Addr: parse("upstream", r.Upstream)})
			}
			host.Routes = append(host.Routes, envoyRoute{Route: r, Cluster: name})
		}
		m.Hosts = append(m.Hosts, host)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return m.render()
}

func (m envoyModel) render() ([]byte, error) {
	// JSON is YAML: a quoted value can never end early, whatever it holds.
	quote := func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err }
	t, err := template.New("envoy.yaml").Funcs(template.FuncMap{"json": quote}).Parse(envoyTemplate)
	if err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, m); err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	return b.Bytes(), nil
}

// EnvoyArgs are the arguments to run Envoy with the bootstrap file path.
func EnvoyArgs(path string) []string {
	return []string{"--config-path", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"}
}

// minEnvoy is the oldest Envoy 1.x that the config is made for.
const minEnvoy = 37

// FindEnvoy returns the path of an Envoy binary: given if it is not empty, else .tools/bin/envoy in one of the
// folders, else one on PATH of version 1.37 or later. The error says how to get one.
func FindEnvoy(ctx context.Context, given string, folders ...string) (string, error) {
	if given != "" {
		return exec.LookPath(given)
	}
	for _, dir := range folders {
		p, err := filepath.Abs(filepath.Join(dir, ".tools", "bin", "envoy"))
		if err != nil {
			continue
		}
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	const hint = "run `make tools` in Gatehouse's source folder (it installs Envoy into .tools/), or put Envoy 1.37 or later on PATH"
	p, err := exec.LookPath("envoy")
	if err != nil {
		return "", errors.New("no envoy found: " + hint)
	}
	minor, err := envoyVersion(ctx, p)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, hint)
	}
	if minor < minEnvoy {
		return "", fmt.Errorf("%s is version 1.%d, want 1.%d or later: %s", p, minor, minEnvoy, hint)
	}
	return p, nil
}

// envoyVersion asks the binary for its minor version: 40 for 1.40.0.
func envoyVersion(ctx context.Context, path string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	m := regexp.MustCompile(`/1\.(\d+)\.\d+`).FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s --version: got %q, want a version 1.x.y", path, strings.TrimSpace(string(out)))
	}
	return strconv.Atoi(string(m[1]))
}
