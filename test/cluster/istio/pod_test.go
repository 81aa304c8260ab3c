package istio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/test/cluster/kube"
	"gatehouse/test/cluster/netns"
)

// A pod is a network of its own and the image's file system, in which a container runs, or is to run as soon as its volumes are there.
type pod struct {
	network  *netns.Pod
	root     string
	template string // that it was made from
	spec     podSpec

	cmd     *exec.Cmd // nil while none runs
	done    chan struct{}
	ready   bool
	stopped bool      // so it is not probed
	ending  time.Time // when it got SIGTERM
}

type podSpec struct {
	ServiceAccountName            string
	AutomountServiceAccountToken  *bool
	TerminationGracePeriodSeconds int
	SecurityContext               struct{ RunAsUser, RunAsGroup, FSGroup uint32 }
	Containers                    []container
	Volumes                       []volume
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

// newPod makes a pod at the first free address. A claim and what is temporary are folders of that address: what was there before is there again.
func (n *node) newPod(spec podSpec, template string) (*pod, error) {
	addr := netip.MustParseAddr(gatehousePod)
	for slices.ContainsFunc(n.pods, func(p *pod) bool { return p.network.Addr == addr }) {
		addr = addr.Next()
	}
	root := filepath.Join(n.dir, addr.String())
	if _, err := os.Stat(root); err != nil {
		if err := n.layOut(root); err != nil {
			return nil, err
		}
	}
	network, err := netns.NewPod(addr)
	if err != nil {
		return nil, err
	}
	return &pod{network: network, root: root, template: template, spec: spec}, nil
}

// layOut makes the image: see the Dockerfile, whose own test is another.
func (n *node) layOut(root string) error {
	for _, dir := range []string{"etc/ssl/certs", "etc/gatehouse", "var/lib/gatehouse", "tmp", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil { // #nosec G301 -- as in an image
			return err
		}
	}
	for from, to := range map[string]string{n.binary: "gatehouse", "/etc/ssl/certs/ca-certificates.crt": "etc/ssl/certs/ca-certificates.crt"} {
		if out, err := exec.Command("cp", from, filepath.Join(root, to)).CombinedOutput(); err != nil { //nolint:noctx // it ends; the test's own
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte(n.hosts), 0o644); err != nil { // #nosec G306 -- as a kubelet makes it
		return err
	}
	return unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, "")
}

func (n *node) unmount() {
	mounts, _ := filepath.Glob(filepath.Join(n.dir, "*", "proc"))
	for _, dir := range mounts {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// keep brings the volumes of a pod up to date, starts its container and probes it.
func (n *node) keep(ctx context.Context, p *pod) error {
	if !p.ending.IsZero() {
		return nil
	}
	if err := n.mount(ctx, p); err != nil {
		return err
	}
	if p.cmd == nil {
		if err := n.run(ctx, p); err != nil {
			return err
		}
	}
	if !p.stopped {
		p.ready = p.probe()
	}
	return nil
}

// probe asks the pod whether it is ready.
func (p *pod) probe() bool {
	c := p.spec.Containers[0]
	port := fmt.Sprint(c.ReadinessProbe.HTTPGet.Port)
	for _, named := range c.Ports {
		if named.Name == port {
			port = fmt.Sprint(named.ContainerPort)
		}
	}
	return status("http://"+p.network.Addr.String()+":"+port+c.ReadinessProbe.HTTPGet.Path) == http.StatusOK
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
func (n *node) mount(ctx context.Context, p *pod) error {
	spec := p.spec
	if a := spec.AutomountServiceAccountToken; a == nil || *a {
		if err := n.account(ctx, p); err != nil {
			return err
		}
	}
	for _, m := range spec.Containers[0].VolumeMounts {
		i := slices.IndexFunc(spec.Volumes, func(v volume) bool { return v.Name == m.Name })
		if i < 0 {
			return fmt.Errorf("there is no volume %q", m.Name)
		}
		dir, v := filepath.Join(p.root, m.MountPath), spec.Volumes[i].Projected
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

// serviceAccount is where a container finds who it is to the API server.
const serviceAccount = "var/run/secrets/kubernetes.io/serviceaccount"

// account puts the token of the pod's service account in place. The tests are over before it would have to be replaced.
func (n *node) account(ctx context.Context, p *pod) error {
	dir := filepath.Join(p.root, serviceAccount)
	if _, err := os.Stat(filepath.Join(dir, "token")); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- as the kubelet does
		return err
	}
	var token struct{ Status struct{ Token string } }
	if _, err := n.api.do(ctx, http.MethodPost, n.path("serviceaccounts", p.spec.ServiceAccountName)+"/token", "application/json", map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{"expirationSeconds": 3600},
	}, &token); err != nil {
		return err
	}
	return n.project(dir, map[string][]byte{"token": []byte(token.Status.Token), "ca.crt": n.ca, "namespace": []byte(n.namespace)}, 0o440, p.spec.SecurityContext.FSGroup)
}

// run starts the container.
func (n *node) run(ctx context.Context, p *pod) error {
	c := p.spec.Containers[0]
	env := []string{"PATH=/", "KUBERNETES_SERVICE_HOST=" + kube.Service, "KUBERNETES_SERVICE_PORT=6443"}
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
	log, err := os.OpenFile(p.root+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("/gatehouse", c.Args...) //nolint:noctx // it outlives this step; as the Deployment says
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: p.root, Setpgid: true}
	if os.Getenv(netns.UserNamespace) == "" {
		cmd.SysProcAttr.Credential = &syscall.Credential{
			Uid: p.spec.SecurityContext.RunAsUser, Gid: p.spec.SecurityContext.RunAsGroup, Groups: []uint32{p.spec.SecurityContext.FSGroup},
		}
	}
	if err := p.network.Run(cmd.Start); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	p.cmd, p.done = cmd, done
	return nil
}

// ended reports that no container runs any more: not that of a pod that waits for its volumes.
func (p *pod) ended() bool {
	if p.cmd == nil {
		return !p.ending.IsZero()
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end tells a pod to end, once.
func (p *pod) end() {
	if !p.ending.IsZero() {
		return
	}
	p.ending = time.Now()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
}

// force kills a pod whose grace period is over.
func (p *pod) force() {
	if !p.ending.IsZero() && time.Since(p.ending) > time.Duration(p.spec.TerminationGracePeriodSeconds)*time.Second {
		_ = p.cmd.Process.Kill()
	}
}

// kill ends a pod at once, and waits.
func (p *pod) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	_ = p.network.Close()
}
