package deploy

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"gatehouse/test/peers"
)

// maxBinary is how large the stripped binary may be, in bytes.
const maxBinary = 60 << 20

// TestImage does what a container engine would: it runs the build stage's lines, lays the image out in a folder, and
// starts its command there as its user. As root that folder is the process's whole file system; else the process
// sees the machine's, and runs as the user of the test.
func TestImage(t *testing.T) {
	all := stages(t)
	out := runBuildStage(t, all[0])
	binary := filepath.Join(out, "gatehouse")

	t.Run("static and small", func(t *testing.T) { checkBinary(t, binary) })
	t.Run("shipped config is good", func(t *testing.T) {
		dir := t.TempDir() // in place of the image's data directory
		file := filepath.Join(dir, "gatehouse.yaml")
		text := strings.ReplaceAll(shippedConfigText(t), "/var/lib/gatehouse/", dir+"/")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), binary, "check-config", file) // #nosec G204 -- built by this test
		output, err := cmd.CombinedOutput()
		if err != nil || strings.HasPrefix(string(output), "warning:") {
			t.Errorf("check-config: %v, want no error and no warning\n%s", err, output)
		}
	})
	image := layOut(t, all[1], out)
	t.Run("version", func(t *testing.T) {
		cmd := image.command(t.Context(), "version")
		output, err := cmd.CombinedOutput()
		if want := regexp.MustCompile(`^gatehouse \S+ go1\.\d+\S* linux/\w+\n$`); err != nil || !want.Match(output) {
			t.Errorf("version: got %q, %v, want %s", output, err, want)
		}
	})
	t.Run("serves the shipped config", func(t *testing.T) { serveShipped(t, image) })
}

// runBuildStage runs the RUN lines as they stand, with a folder of the test's in place of /out and the source tree as
// working directory, and returns that folder.
func runBuildStage(t *testing.T, build stage) string {
	t.Helper()
	out := filepath.Join(peers.Folder(t), "out")
	for _, line := range build.all("RUN") {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(line, "/out/", out+"/")) // #nosec G204 -- the shipped Dockerfile
		cmd.Dir = peers.Root(t)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("RUN %s: %v\n%s", line, err, output)
		}
	}
	return out
}

func checkBinary(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary has a %s segment: it needs a dynamic linker, which the image has not", p.Type)
		}
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
		t.Error("the binary has symbols: it is not stripped")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxBinary {
		t.Errorf("the binary has %d bytes, want at most %d", info.Size(), maxBinary)
	}
	t.Logf("the binary has %.1f MB", float64(info.Size())/1e6)
}

// An imageFS is the final stage, laid out.
type imageFS struct {
	root       string
	entrypoint []string
	cmd        []string
	isolated   bool // processes see root as /
}

func layOut(t *testing.T, final stage, out string) *imageFS {
	t.Helper()
	image := &imageFS{
		root:       filepath.Join(filepath.Dir(out), "image"),
		entrypoint: words(t, final.all("ENTRYPOINT")[0]),
		cmd:        words(t, final.all("CMD")[0]),
		isolated:   os.Geteuid() == 0,
	}
	if err := os.Chmod(filepath.Dir(out), 0o755); err != nil { // #nosec G302 -- another user starts a program in it
		t.Fatal(err)
	}
	for _, c := range copies(t, final) {
		from := c.from
		if rest, ok := strings.CutPrefix(from, "/out/"); ok {
			from = filepath.Join(out, rest)
		}
		to := filepath.Join(image.root, c.to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { // #nosec G301 -- as in an image
			t.Fatal(err)
		}
		if output, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil { // #nosec G204 -- as the Dockerfile says
			t.Fatalf("COPY %s: %v\n%s(ca-certificates come with the Debian package of that name)", c.from, err, output)
		}
		if c.owner != "" && image.isolated {
			if err := os.Chown(to, user, user); err != nil {
				t.Fatal(err)
			}
		}
	}
	return image
}

// path is what a path of the image is called by a process of it.
func (i *imageFS) path(p string) string {
	if i.isolated {
		return p
	}
	return filepath.Join(i.root, p)
}

// command is the image's entry point with other arguments.
func (i *imageFS) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, i.path(i.entrypoint[0]), slices.Concat(i.entrypoint[1:], args)...) // #nosec G204 -- as the Dockerfile says
	cmd.Dir, cmd.Env = "/", []string{}
	if i.isolated {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Chroot: i.root, Credential: &syscall.Credential{Uid: user, Gid: user}, Pdeathsig: syscall.SIGKILL,
		}
	}
	return cmd
}

// serveShipped starts the image's own command on the ConfigMap's file, which only root may change, on other ports.
func serveShipped(t *testing.T, image *imageFS) {
	t.Helper()
	issuer, telemetry := peers.FreeAddr(t), peers.FreeAddr(t)
	config := shippedConfig(t)
	config["web"] = map[string]any{"http": issuer}
	config["telemetry"] = map[string]any{"http": telemetry}
	config["storage"] = map[string]any{"type": "sqlite", "config": map[string]any{"file": image.path("/var/lib/gatehouse/gatehouse.db")}}
	gateway := config["gateway"].(map[string]any)
	gateway["grpc"], gateway["admin"] = peers.FreeAddr(t), peers.FreeAddr(t)
	file := filepath.Join(image.root, image.cmd[len(image.cmd)-1])
	writeConfig(t, file, config)

	args := slices.Clone(image.cmd)
	args[len(args)-1] = image.path(args[len(args)-1])
	p := startImage(t, image.command(context.WithoutCancel(t.Context()), args...))
	peers.Eventually(t, time.Minute, "ready", func() bool {
		if p.ended() {
			t.Fatalf("serve ended: %v\n%s", p.err, p.log.String())
		}
		code, _ := get(t, "http://"+telemetry+"/healthz/ready", "")
		return code == http.StatusOK
	})
	checkRunning(t, image, "http://"+telemetry, "http://"+issuer)
	checkMemory(t, p.cmd.Process.Pid)

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// terminationGracePeriodSeconds of the Deployment, after which it would be killed.
	peers.Eventually(t, 30*time.Second, "end after SIGTERM", p.ended)
	if p.err != nil {
		t.Errorf("after SIGTERM: %v, want exit code 0\n%s", p.err, p.log.String())
	}
}

// maxIdle is how much memory the idle process may have resident, in kB.
const maxIdle = 50 << 10

// checkMemory waits until the process has given back what its start needed: it answers before that.
func checkMemory(t *testing.T, pid int) {
	t.Helper()
	kb := 0
	peers.Eventually(t, time.Minute, fmt.Sprintf("an idle process of at most %d kB resident", maxIdle), func() bool {
		kb = resident(t, pid)
		return kb <= maxIdle
	})
	t.Logf("idle: %d kB resident", kb)
}

// resident is how much memory a process has resident, in kB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no VmRSS in\n%s", status)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb
}

// A running is a started command. log and err may be read once it has ended.
type running struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
	err  error
}

func startImage(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	p := &running{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if it has not ended
		<-p.done
	})
	return p
}

func (p *running) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func checkRunning(t *testing.T, image *imageFS, telemetry, issuer string) {
	t.Helper()
	if code, _ := get(t, telemetry+"/healthz/live", ""); code != http.StatusOK {
		t.Errorf("/healthz/live: got %d, want 200", code)
	}
	code, body := get(t, issuer+"/dex/.well-known/openid-configuration", "auth.example.com")
	var discovery struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(body, &discovery); err != nil || code != http.StatusOK || discovery.Issuer != "https://auth.example.com/dex" {
		t.Errorf("discovery: got %d, issuer %q (%v), want 200 and https://auth.example.com/dex", code, discovery.Issuer, err)
	}
	info, err := os.Stat(filepath.Join(image.root, "var/lib/gatehouse/gatehouse.db"))
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		t.Errorf("the database, which holds keys, has mode %o: others may read it", mode)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; image.isolated && owner != user {
		t.Errorf("the database belongs to user %d, want %d", owner, user)
	}
}

func writeConfig(t *testing.T, file string, config object) {
	t.Helper()
	text, err := yaml.Marshal(map[string]any(config))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { // #nosec G301 -- as a mounted ConfigMap
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o444); err != nil { // #nosec G306 -- as a mounted ConfigMap
		t.Fatal(err)
	}
}

// get returns the status of an answer, or 0, and its body.
func get(t *testing.T, url, host string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host, req.Close = host, true
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Append(nil, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return 0, fmt.Append(nil, err)
	}
	return res.StatusCode, body
}
