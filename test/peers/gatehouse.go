package peers

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/demo/process"
)

// binaries holds the product's binary once per test process: linking it takes seconds.
var binaries sync.Map // module folder -> func() (string, error)

// Binary returns the path of the built product: GATEHOUSE_BIN if that is set (as `make test` does), else it is built
// once per test process, as the Makefile builds it but for the profile, with which every package is compiled anew.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("GATEHOUSE_BIN"); path != "" {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("GATEHOUSE_BIN: %v: run `make build`, or unset it", err)
		}
		return path
	}
	root, ctx := Root(t), context.WithoutCancel(t.Context())
	once, _ := binaries.LoadOrStore(root, sync.OnceValues(func() (string, error) { return build(ctx, root) }))
	path, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// build puts the binary in its place by a rename, so that another test process may do the same meanwhile.
func build(ctx context.Context, root string) (string, error) {
	path := binaryPath(root)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return "", err
	}
	fresh := fmt.Sprintf("%s-%d", path, os.Getpid())
	cmd := exec.CommandContext(ctx, "go", "build", "-pgo=off", "-trimpath", "-o", fresh, "./cmd/gatehouse")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/gatehouse: %w\n%s", err, out)
	}
	return path, os.Rename(fresh, path)
}

// binaryPath is where the binary of a working tree is built. Several trees may share one .tools: each has a binary of its own there.
func binaryPath(root string) string {
	sum := sha256.Sum256([]byte(root))
	return filepath.Join(root, ".tools", "test", fmt.Sprintf("gatehouse-%x", sum[:6]))
}

// A GatehouseServer is the built binary serving a config file.
type GatehouseServer struct {
	Config    string // path of the config file
	Folder    string // that it stands in: for the test's other files
	Telemetry string // address of /metrics and /healthz/ready

	process *process.Process
	spec    process.Spec
}

// Gatehouse writes config, the text of a config file with at least telemetry.http, into a new folder, runs
// `gatehouse serve --config` on it, waits until it is ready, and stops it when the test ends. Relative paths in config
// are relative to that folder. env is added to the environment, as NAME=value.
func Gatehouse(t testing.TB, config string, env ...string) *GatehouseServer {
	t.Helper()
	var keys struct {
		Telemetry struct {
			HTTP string `yaml:"http"`
		} `yaml:"telemetry"`
	}
	if err := yaml.Unmarshal([]byte(config), &keys); err != nil || keys.Telemetry.HTTP == "" {
		t.Fatalf("the test's config needs telemetry: {http: ip:port}, which tells when it is ready (%v)", err)
	}
	dir := Folder(t)
	s := &GatehouseServer{Config: filepath.Join(dir, "gatehouse.yaml"), Folder: dir, Telemetry: keys.Telemetry.HTTP}
	if err := os.WriteFile(s.Config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.spec = process.Spec{
		Path: Binary(t), Args: []string{"serve", "--config", s.Config}, Env: env, Dir: dir, Log: filepath.Join(dir, "gatehouse.log"),
	}
	s.start(t)
	return s
}

func (s *GatehouseServer) start(t testing.TB) {
	t.Helper()
	p, err := start(t, s.spec, func(*process.Process) bool { return answers(t, "http://"+s.Telemetry+"/healthz/ready") })
	if err != nil {
		t.Fatal(err)
	}
	s.process = p
}

// Kill ends the process as a crash would, with SIGKILL, and waits until it is gone.
func (s *GatehouseServer) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the process as an orchestrator would, with SIGTERM, and waits until it is gone. It fails the test if the
// process has to be killed.
func (s *GatehouseServer) Stop(t testing.TB) {
	t.Helper()
	if err := s.process.Stop(); err != nil {
		t.Fatal(err)
	}
}

// Restart starts the process again on the same config and folder, after Kill or Stop or in place of the running one,
// and waits until it is ready.
func (s *GatehouseServer) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	s.start(t)
}

// Signal sends sig, such as SIGHUP, to the running process.
func (s *GatehouseServer) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := s.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Done is closed when the process that runs now has ended.
func (s *GatehouseServer) Done() <-chan struct{} { return s.process.Done() }

// Pid is the id of the process that runs now.
func (s *GatehouseServer) Pid() int { return s.process.Pid() }

// Log returns what the process, and those before a Restart, have written so far.
func (s *GatehouseServer) Log() string { return s.process.Log() }

// Logged waits until the process has written each of want: it gathers lines before it writes them, and some are of what goes on in the background.
func (s *GatehouseServer) Logged(t testing.TB, want ...string) {
	t.Helper()
	for _, text := range want {
		Eventually(t, time.Minute, "the log has "+text, func() bool { return strings.Contains(s.Log(), text) })
	}
}
