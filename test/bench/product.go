package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"text/template"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/crypto/bcrypt"

	"gatehouse/internal/handoff"
)

const (
	password = "correct horse battery staple"
	users    = 100
)

// productConfig is a whole configuration: users, SQLite, metrics, and rules of which the last decides.
const productConfig = `
issuer: {{.Issuer}}
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: {{.Web}}}
telemetry: {http: {{.Telemetry}}}
oauth2: {skipApprovalScreen: true}
enablePasswordDB: true
staticPasswords:
{{- range $i, $_ := .Users}}
- {email: user{{$i}}@example.com, username: user{{$i}}, userID: id-{{$i}}, groups: [team-a, team-b, data-scientists], hash: {{$.Hash}}}
{{- end}}
{{- with .Callback}}
staticClients: [{id: oauth2-proxy, name: oauth2-proxy, secret: {{$.Secret}}, redirectURIs: [{{.}}]}]
{{- end}}
{{- with .GRPC}}
gateway:
  grpc: {{.}}
  admin: {{$.Admin}}
  hosts: [{{$.Host}}]
  identity:
    headers: {kubeflow-userid: email, kubeflow-groups: groups}
    {{- if $.Token}}
    token: {audience: kubeflow-apps}
    {{- end}}
  rules:
  {{- range $i, $_ := $.OtherRules}}
  - {name: rule-{{$i}}, hosts: [{{$.Host}}], paths: [/app-{{$i}}/**], groups: [nobody]}
  {{- end}}
  - {name: pipelines, hosts: [{{$.Host}}], paths: [/pipeline/**], groups: [team-a]}
  default: deny
{{- end}}
`

// A product is the built binary with a configuration of its own.
type product struct {
	Issuer, Web, Telemetry, GRPC, Admin, Host, Hash string
	Callback, Secret                                string // of a client; empty: none
	Users, OtherRules                               []struct{}
	Token                                           bool // for apps
	folder                                          string
}

// newProduct returns one that is a gateway with so many rules, unless that is 0, in a new folder.
func newProduct(ctx context.Context, folder string, rules int) (*product, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost) // the lowest that is accepted
	if err != nil {
		return nil, err
	}
	a, err := freeAddresses(ctx, 4)
	if err != nil {
		return nil, err
	}
	p := &product{Issuer: "https://auth.example.com/dex", Web: a[0], Telemetry: a[1], Host: host, Hash: `"` + string(hash) + `"`, Users: make([]struct{}, users)}
	if rules > 0 {
		p.GRPC, p.Admin, p.OtherRules = a[2], a[3], make([]struct{}, rules-1)
	}
	p.folder, err = os.MkdirTemp(folder, "gatehouse-")
	return p, err
}

// start runs the binary.
func (p *product) start(ctx context.Context, binary, name string) (*server, error) {
	t, err := template.New("gatehouse.yaml").Parse(productConfig)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := t.Execute(&text, p); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.folder, "gatehouse.yaml"), text.Bytes(), 0o600); err != nil {
		return nil, err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	answers := func(ctx context.Context) error {
		return fetch(ctx, &http.Client{Transport: transport}, "http://"+p.Telemetry+"/healthz/ready")
	}
	process, err := startProgram(ctx, p.folder, nil, answers, binary, "serve", "--config", "gatehouse.yaml", "--log-level", "error")
	if err != nil {
		return nil, err
	}
	s := &server{name: name, process: process, address: p.GRPC}
	if p.GRPC == "" {
		return s, nil
	}
	return s, s.dial()
}

// signIns signs in n browsers at a running server and returns their session cookies.
func (p *product) signIns(ctx context.Context, s *server, n int) ([]string, error) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	g := gateway{check: authv3.NewAuthorizationClient(s.conn), issuer: p.Web, http: transport}
	return inParallel(runtime.NumCPU(), n, func(i int) (string, error) {
		cookies, err := signIn(ctx, g, "https://"+host+path, fmt.Sprintf("user%d@example.com", i%users), password)
		if err != nil {
			return "", err
		}
		for _, c := range cookies {
			if c.Name == handoff.Names(true).Session {
				return c.Name + "=" + c.Value, nil
			}
		}
		return "", fmt.Errorf("signed in without a session cookie: %v", cookies)
	})
}

// inParallel returns the results of n calls.
func inParallel(workers, n int, f func(i int) (string, error)) ([]string, error) {
	list, errs := make([]string, n), make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += workers {
				list[i], errs[w] = f(i)
			}
		})
	}
	wg.Wait()
	return list, errors.Join(errs...)
}

// copyStorage gives to another product that does not run what this one, which no longer runs, has stored: sessions and the
// keys of their cookies. Another hash would be another password, which ends sessions.
func (p *product) copyStorage(to *product) error {
	to.Hash = p.Hash
	files, err := filepath.Glob(filepath.Join(p.folder, "gatehouse.db*"))
	if err != nil || len(files) == 0 {
		return errors.Join(err, fmt.Errorf("want a database in %s", p.folder))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to.folder, filepath.Base(f)), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// A variant is a configuration of the built binary.
type variant struct {
	rules int
	token bool // for apps
}

func (v variant) String() string {
	if v.token {
		return fmt.Sprintf("gatehouse with a token, %s rules", thousands(v.rules))
	}
	return fmt.Sprintf("gatehouse, %s rules", thousands(v.rules))
}

// variants are those with each number of rules, and last the one with a token.
func variants() (list []variant) {
	for _, n := range rules() {
		list = append(list, variant{rules: n})
	}
	return append(list, variant{rules: rules()[0], token: true})
}

// startProducts signs in once and starts the binary once for each variant, each with all the sessions.
func startProducts(ctx context.Context, folder, binary string, signIns int, log io.Writer) ([]*server, error) {
	first, err := newProduct(ctx, folder, rules()[0])
	if err != nil {
		return nil, err
	}
	s, err := first.start(ctx, binary, "")
	if err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(log, "signing in %d browsers, one password check each\n", signIns)
	cookies, err := first.signIns(ctx, s, signIns)
	if err := errors.Join(err, s.stop()); err != nil {
		return nil, err
	}
	var list []*server
	for i, v := range variants() {
		p := first
		if i > 0 {
			if p, err = newProduct(ctx, folder, v.rules); err != nil {
				return list, err
			}
			p.Token = v.token
			if err := first.copyStorage(p); err != nil {
				return list, err
			}
		}
		s, err := p.start(ctx, binary, v.String())
		if err != nil {
			return list, err
		}
		s.cookies = cookies
		list = append(list, s)
	}
	return list, nil
}

// build compiles a program as `make build` does.
func build(ctx context.Context, module, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-C", module, "-trimpath", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// sourceTree returns the folder of the module's go.mod, at or above the working folder.
func sourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module gatehouse\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod of Gatehouse here or above: run it in the source tree")
		}
		dir = parent
	}
}
