package istio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/test/cluster/netns"
	"gatehouse/test/peers"
)

// A node does for the Deployment gatehouse of a namespace what controllers and the kubelet would: it runs one pod of the
// image's file system with the arguments, variables, volumes and the user that the Deployment says, probes it, makes its
// address an endpoint of the Service, follows changed ConfigMaps and Secrets, and reports the state. Recreate is the only
// strategy that it knows.
type node struct {
	api       *api
	namespace string
	root      string // the pod's file system
	binary    string

	mu       sync.Mutex
	pod      *pod
	problem  string // why there is no pod
	paused   bool   // of the probes
	restarts int
}

// A pod is a container that runs.
type pod struct {
	cmd      *exec.Cmd
	done     chan struct{}
	template string // that it was made from
}

// deployment is what a node reads of a Deployment.
type deployment struct {
	Metadata struct{ Generation int64 }
	Spec     struct {
		Replicas int
		Strategy struct{ Type string }
		Template struct {
			Metadata json.RawMessage
			Spec     podSpec
		}
	}
}

type podSpec struct {
	SecurityContext struct{ RunAsUser, RunAsGroup, FSGroup uint32 }
	Containers      []container
	Volumes         []volume
}

type container struct {
	Image   string
	Args    []string
	EnvFrom []struct{ SecretRef source }
	Env     []struct{ Name, Value string }
	Ports   []struct {
		Name          string
		ContainerPort int
	}
	ReadinessProbe struct {
		HTTPGet struct {
			Path string
			Port any
		}
	}
	VolumeMounts []struct{ Name, MountPath string }
}

type volume struct {
	Name      string
	Projected *struct {
		DefaultMode os.FileMode
		Sources     []struct{ ConfigMap, Secret *source }
	}
}

type source struct {
	Name     string
	Optional bool
}

// node follows the Deployment in a namespace until the test ends.
func (c *cluster) node(t *testing.T, namespace string) *node {
	t.Helper()
	n := &node{api: c.api, namespace: namespace, root: filepath.Join(peers.Folder(t), "root"), binary: peers.Binary(t)}
	n.layOut(t)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := n.sync(ctx); err != nil && !errors.Is(err, errNoAnswer) && ctx.Err() == nil {
				n.mu.Lock()
				n.problem = err.Error()
				n.mu.Unlock()
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		n.stop()
		if t.Failed() {
			t.Logf("the node: %s, %d restarts\nthe end of Gatehouse's log:\n%s", n.problem, n.restarts, tail(n.log(), 6000))
		}
		_ = unix.Unmount(filepath.Join(n.root, "proc"), unix.MNT_DETACH)
	})
	return n
}

// layOut makes the image: see the Dockerfile, whose own test is another.
func (n *node) layOut(t *testing.T) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(n.root), 0o755); err != nil { // #nosec G302 -- another user runs in it
		t.Fatal(err)
	}
	for _, dir := range []string{"etc/ssl/certs", "etc/gatehouse", "var/lib/gatehouse", "tmp", "proc"} {
		if err := os.MkdirAll(filepath.Join(n.root, dir), 0o755); err != nil { // #nosec G301 -- as in an image
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{n.binary: "gatehouse", "/etc/ssl/certs/ca-certificates.crt": "etc/ssl/certs/ca-certificates.crt"} {
		if out, err := exec.CommandContext(t.Context(), "cp", from, filepath.Join(n.root, to)).CombinedOutput(); err != nil { // #nosec G204 -- the test's own
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := unix.Mount("proc", filepath.Join(n.root, "proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
}

func (n *node) path(kind, name string) string {
	group := map[string]string{"deployments": "/apis/apps/v1", "endpointslices": "/apis/discovery.k8s.io/v1"}[kind]
	if group == "" {
		group = "/api/v1"
	}
	return group + "/namespaces/" + n.namespace + "/" + kind + "/" + name
}

// sync brings the pod to what the Deployment says.
func (n *node) sync(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var d deployment
	code, err := n.api.do(ctx, http.MethodGet, n.path("deployments", "gatehouse"), "", nil, &d)
	switch {
	case err != nil:
		return err
	case code == http.StatusNotFound || d.Spec.Replicas == 0:
		n.stop()
		if code == http.StatusNotFound {
			return nil
		}
		return n.report(ctx, d, false)
	case d.Spec.Replicas != 1 || d.Spec.Strategy.Type != "Recreate" || len(d.Spec.Template.Spec.Containers) != 1:
		return fmt.Errorf("a Deployment of %d replicas by %s, want one by Recreate", d.Spec.Replicas, d.Spec.Strategy.Type)
	}
	template, err := json.Marshal(d.Spec.Template)
	if err != nil {
		return err
	}
	if n.pod != nil && n.pod.template != string(template) {
		if err := n.report(ctx, d, false); err != nil { // no endpoint any more, then SIGTERM
			return err
		}
		n.stop()
	}
	if n.pod != nil && n.pod.ended() {
		n.pod = nil
		n.restarts++
	}
	if err := n.mount(ctx, d.Spec.Template.Spec); err != nil {
		return errors.Join(err, n.report(ctx, d, false))
	}
	if n.pod == nil {
		if err := n.run(ctx, d.Spec.Template.Spec, string(template)); err != nil {
			return errors.Join(err, n.report(ctx, d, false))
		}
	}
	n.problem = ""
	if n.paused {
		return nil
	}
	return n.report(ctx, d, n.probe(d.Spec.Template.Spec.Containers[0]))
}

// probe asks the pod whether it is ready.
func (n *node) probe(c container) bool {
	port := fmt.Sprint(c.ReadinessProbe.HTTPGet.Port)
	for _, p := range c.Ports {
		if p.Name == port {
			port = fmt.Sprint(p.ContainerPort)
		}
	}
	return status("http://"+gatehousePod+":"+port+c.ReadinessProbe.HTTPGet.Path) == http.StatusOK
}

// report writes the endpoints and the status, which `kubectl rollout status` waits for.
func (n *node) report(ctx context.Context, d deployment, ready bool) error {
	ports := []map[string]any{}
	var service struct {
		Spec struct {
			Ports []struct {
				Name, AppProtocol string
				TargetPort        any
			}
		}
	}
	if code, err := n.api.do(ctx, http.MethodGet, n.path("services", "gatehouse"), "", nil, &service); err != nil || code != http.StatusOK {
		return fmt.Errorf("no Service gatehouse: %d, %w", code, errors.Join(err, errNoAnswer))
	}
	for _, p := range service.Spec.Ports {
		number := p.TargetPort
		for _, cp := range d.Spec.Template.Spec.Containers[0].Ports {
			if cp.Name == number {
				number = cp.ContainerPort
			}
		}
		ports = append(ports, map[string]any{"name": p.Name, "appProtocol": p.AppProtocol, "port": number})
	}
	if err := n.api.apply(ctx, n.path("endpointslices", "gatehouse-node"), map[string]any{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata":  map[string]any{"name": "gatehouse-node", "labels": map[string]any{"kubernetes.io/service-name": "gatehouse"}},
		"endpoints": []any{map[string]any{"addresses": []any{gatehousePod}, "conditions": map[string]any{"ready": ready}}},
		"ports":     ports,
	}); err != nil {
		return err
	}
	count := map[bool]int{true: 1}[ready]
	running := map[bool]int{true: 1}[n.pod != nil]
	return n.api.apply(ctx, n.path("deployments", "gatehouse/status"), map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "gatehouse"},
		"status": map[string]any{
			"observedGeneration": d.Metadata.Generation, "replicas": running, "updatedReplicas": running,
			"readyReplicas": count, "availableReplicas": count, "unavailableReplicas": d.Spec.Replicas - count,
		},
	})
}

// entries returns the data of a ConfigMap or Secret, nil if it is missing and may be.
func (n *node) entries(ctx context.Context, kind string, s source) (map[string][]byte, error) {
	var obj struct {
		Data map[string]string
	}
	code, err := n.api.do(ctx, http.MethodGet, n.path(kind, s.Name), "", nil, &obj)
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusNotFound && s.Optional:
		return nil, nil
	case code != http.StatusOK:
		return nil, fmt.Errorf("MountVolume.SetUp failed: %s %q: %d", kind, s.Name, code)
	}
	out := map[string][]byte{}
	for k, v := range obj.Data {
		out[k] = []byte(v)
		if kind == "secrets" {
			var raw []byte
			if err := json.Unmarshal([]byte(`"`+v+`"`), &raw); err != nil {
				return nil, err
			}
			out[k] = raw
		}
	}
	return out, nil
}

// mount writes the projected volumes as the kubelet does: a folder with a name of its own, put in place by the rename of the
// symbolic link ..data, through which the visible names lead.
func (n *node) mount(ctx context.Context, spec podSpec) error {
	for _, m := range spec.Containers[0].VolumeMounts {
		i := slices.IndexFunc(spec.Volumes, func(v volume) bool { return v.Name == m.Name })
		if i < 0 {
			return fmt.Errorf("there is no volume %q", m.Name)
		}
		dir, v := filepath.Join(n.root, m.MountPath), spec.Volumes[i].Projected
		if v == nil { // a claim or an empty folder
			if err := n.chown(dir, 0o770, spec.SecurityContext.FSGroup); err != nil {
				return err
			}
			continue
		}
		files := map[string][]byte{}
		for _, s := range v.Sources {
			kind, src := "configmaps", s.ConfigMap
			if s.Secret != nil {
				kind, src = "secrets", s.Secret
			}
			data, err := n.entries(ctx, kind, *src)
			if err != nil {
				return err
			}
			maps.Copy(files, data)
		}
		if err := n.project(dir, files, v.DefaultMode, spec.SecurityContext.FSGroup); err != nil {
			return err
		}
	}
	return nil
}

// chown gives path to a group, where this process may: the pod has its own user only then.
func (n *node) chown(path string, mode os.FileMode, group uint32) error {
	if os.Getenv(netns.UserNamespace) != "" {
		return os.Chmod(path, mode)
	}
	return errors.Join(os.Chown(path, 0, int(group)), os.Chmod(path, mode))
}

func (n *node) project(dir string, files map[string][]byte, mode os.FileMode, group uint32) error {
	same := true
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		same = same && err == nil && string(got) == string(want)
	}
	if same && len(files) > 0 {
		return nil
	}
	stamp := fmt.Sprintf("..%d", time.Now().UnixNano())
	if err := os.Mkdir(filepath.Join(dir, stamp), 0o755); err != nil { // #nosec G301 -- as the kubelet does
		return err
	}
	for name, text := range files {
		file := filepath.Join(dir, stamp, name)
		if err := os.WriteFile(file, text, mode); err != nil {
			return err
		}
		if err := n.chown(file, mode, group); err != nil {
			return err
		}
		link := filepath.Join(dir, name)
		if _, err := os.Lstat(link); err != nil {
			if err := os.Symlink("..data/"+name, link); err != nil {
				return err
			}
		}
	}
	temporary := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(stamp, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, "..data"))
}

// run starts the container.
func (n *node) run(ctx context.Context, spec podSpec, template string) error {
	c := spec.Containers[0]
	env := []string{"PATH=/"}
	for _, e := range c.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	for _, from := range c.EnvFrom {
		data, err := n.entries(ctx, "secrets", from.SecretRef)
		if err != nil {
			return err
		}
		for k, v := range data {
			env = append(env, k+"="+string(v))
		}
	}
	log, err := os.OpenFile(n.root+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("/gatehouse", c.Args...) //nolint:noctx // it outlives this step; as the Deployment says
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: n.root, Setpgid: true}
	if os.Getenv(netns.UserNamespace) == "" {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: spec.SecurityContext.RunAsUser, Gid: spec.SecurityContext.RunAsGroup, Groups: []uint32{spec.SecurityContext.FSGroup}}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &pod{cmd: cmd, done: make(chan struct{}), template: template}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	n.pod = p
	return nil
}

func (p *pod) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends the pod as the kubelet does: SIGTERM, and SIGKILL after the grace period.
func (n *node) stop() {
	p := n.pod
	n.pod = nil
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	grace := time.NewTimer(30 * time.Second)
	defer grace.Stop()
	select {
	case <-p.done:
	case <-grace.C:
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// signal sends a signal to the process of the pod, and keeps the node from taking it for dead while it is stopped.
func (n *node) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pod == nil {
		t.Fatal("there is no pod")
	}
	n.paused = s == syscall.SIGSTOP
	if err := n.pod.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if s == syscall.SIGSTOP { // a thread goes on until it has been told
		peers.Eventually(t, limit, "every thread has stopped", func() bool { return stopped(t, n.pod.cmd.Process.Pid) })
	}
}

// stopped reports that all threads of a process are in the state T of proc_pid_stat(5), which is behind the name in parentheses.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads of %d, %v", pid, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if i := strings.LastIndexByte(string(b), ')'); err == nil && (i < 0 || !strings.HasPrefix(string(b[i:]), ") T")) {
			return false
		}
	}
	return true
}

// restarted returns how often the pod has ended by itself.
func (n *node) restarted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.restarts
}

func (n *node) log() string {
	b, err := os.ReadFile(n.root + ".log")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func tail(s string, max int) string {
	if len(s) > max {
		s = s[len(s)-max:]
		if i := strings.IndexByte(s, '\n'); i >= 0 {
			s = s[i+1:]
		}
	}
	return s
}
