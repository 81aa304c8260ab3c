package demo

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
)

// passwordHash is the bcrypt hash of "password", which the demo prints anyway.
const passwordHash = "$2a$10$W5cWDkjxB/u8KMzAl06FYegI4sx6xUZEeuQnGkv/i0qLVj5nSlwP2" //nolint:gosec // G101: public by purpose

//go:embed gatehouse.yaml.tmpl
var gatehouseTemplate string

// files are the paths of what the demo has written.
type files struct{ gatehouse, envoy string }

// ports are the addresses of Gatehouse, all ip:port on the loopback address.
type ports struct{ Web, GRPC, Telemetry string }

// writeFiles chooses Gatehouse's addresses and writes both config files into dir.
func writeFiles(ctx context.Context, dir string, port int, app string) (files, error) {
	addrs, err := freeAddrs(ctx, 3)
	if err != nil {
		return files{}, err
	}
	p := ports{Web: addrs[0], GRPC: addrs[1], Telemetry: addrs[2]}
	gatehouse, err := gatehouseConfig(dir, port, p)
	if err != nil {
		return files{}, err
	}
	envoy, err := EnvoyConfig(Edge{
		Listen: loopback + ":" + strconv.Itoa(port),
		Check:  p.GRPC,
		Hosts: []VirtualHost{{Name: "demo", Domains: []string{"*"}, Routes: []Route{
			{Prefix: "/dex", Upstream: p.Web},
			{Prefix: "/", Upstream: app},
		}}},
	})
	if err != nil {
		return files{}, err
	}
	f := files{gatehouse: filepath.Join(dir, "gatehouse.yaml"), envoy: filepath.Join(dir, "envoy.yaml")}
	if err := os.WriteFile(f.gatehouse, gatehouse, 0o600); err != nil {
		return files{}, fmt.Errorf("demo config: %w", err)
	}
	if err := os.WriteFile(f.envoy, envoy, 0o600); err != nil {
		return files{}, fmt.Errorf("demo config: %w", err)
	}
	return f, nil
}

func gatehouseConfig(dir string, port int, p ports) ([]byte, error) {
	quote := func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err }
	t, err := template.New("gatehouse.yaml").Funcs(template.FuncMap{"json": quote}).Parse(gatehouseTemplate)
	if err != nil {
		return nil, fmt.Errorf("demo config: %w", err)
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct {
		ports
		Issuer, Host, Database, Admin, Hash string
	}{
		ports:  p,
		Issuer: baseURL(port) + "/dex", Host: "localhost:" + strconv.Itoa(port),
		Database: filepath.Join(dir, "gatehouse.db"), Admin: "unix:" + filepath.Join(dir, "admin.sock"), Hash: passwordHash,
	})
	if err != nil {
		return nil, fmt.Errorf("demo config: %w", err)
	}
	return b.Bytes(), nil
}
