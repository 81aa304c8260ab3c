package istio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// A node does for the Deployment gatehouse of a namespace what controllers and the kubelet would: it runs its pods, each with a network of
// its own, with the arguments, variables, volumes, account and user that the Deployment says, probes them, makes their addresses endpoints of the Service,
// replaces them as the strategy says, follows changed ConfigMaps and Secrets, and reports the state. It sees sooner than a kubelet that a
// pod has ended or is ready, and later than most clusters that one is no endpoint any more: endpointLag.
type node struct {
	api       *api
	namespace string
	dir       string // of the pods' file systems
	binary    string
	hosts     string // what the cluster's DNS says
	ca        []byte // of the API server

	mu       sync.Mutex
	pods     []*pod
	problem  string // why there is no pod
	restarts int
}

// endpointLag is how long a pod that was told to end still gets requests. In a cluster nothing says that gateways hear of it before.
const endpointLag = time.Second

// deployment is what a node reads of a Deployment.
type deployment struct {
	Metadata struct{ Generation int64 }
	Spec     struct {
		Replicas int
		Strategy struct {
			Type          string
			RollingUpdate struct{ MaxSurge, MaxUnavailable int } // not percentages
		}
		Template struct {
			Metadata json.RawMessage
			Spec     podSpec
		}
	}
}

// node follows the Deployment in a namespace until the test ends.
func (c *cluster) node(t *testing.T, namespace string) *node {
	t.Helper()
	n := &node{api: c.api, namespace: namespace, dir: peers.Folder(t), binary: peers.Binary(t), hosts: hostsFile, ca: c.ca.PEM}
	if err := os.Chmod(n.dir, 0o755); err != nil { // #nosec G302 -- another user runs in it
		t.Fatal(err)
	}
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
		for _, p := range n.pods {
			p.kill()
		}
		if _, err := n.api.do(context.WithoutCancel(ctx), http.MethodDelete, n.path("endpointslices", "gatehouse-node"), "", nil, nil); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the node: %s, %d restarts\nthe end of Gatehouse's log, without and with decisions:\n%s\n%s", n.problem, n.restarts,
				tail(undecided(n.log()), 6000), tail(n.log(), 3000))
		}
		n.unmount()
	})
	return n
}

func (n *node) path(kind, name string) string {
	group := map[string]string{"deployments": "/apis/apps/v1", "endpointslices": "/apis/discovery.k8s.io/v1"}[kind]
	if group == "" {
		group = "/api/v1"
	}
	return group + "/namespaces/" + n.namespace + "/" + kind + "/" + name
}

// sync brings the pods nearer to what the Deployment says.
func (n *node) sync(ctx context.Context) error {
	var d deployment
	code, err := n.api.do(ctx, http.MethodGet, n.path("deployments", "gatehouse"), "", nil, &d)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reap()
	if code == http.StatusNotFound {
		for _, p := range n.pods {
			p.end()
		}
		return nil
	}
	if len(d.Spec.Template.Spec.Containers) != 1 {
		return fmt.Errorf("a pod of %d containers, want one", len(d.Spec.Template.Spec.Containers))
	}
	template, err := json.Marshal(d.Spec.Template)
	if err != nil {
		return err
	}
	if err := n.replace(d, string(template)); err != nil {
		return err
	}
	var errs []error
	for _, p := range n.pods {
		errs = append(errs, n.keep(ctx, p))
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, n.report(ctx, d, string(template)))
	}
	n.problem = ""
	return n.report(ctx, d, string(template))
}

// reap forgets pods that were to end, and has the others begin anew.
func (n *node) reap() {
	n.pods = slices.DeleteFunc(n.pods, func(p *pod) bool {
		if !p.ended() {
			p.force()
			return false
		}
		if p.ending.IsZero() {
			p.cmd, p.ready = nil, false
			n.restarts++
			return false
		}
		_ = p.network.Close()
		return true
	})
}

// replace makes pods and tells pods to end, as the Deployment's strategy says.
func (n *node) replace(d deployment, template string) error {
	var current, old []*pod
	ready := 0
	for _, p := range n.pods {
		switch {
		case !p.ending.IsZero():
			continue
		case p.template == template:
			current = append(current, p)
		default:
			old = append(old, p)
		}
		if p.ready {
			ready++
		}
	}
	want, surge, gap := d.Spec.Replicas, d.Spec.Strategy.RollingUpdate.MaxSurge, d.Spec.Strategy.RollingUpdate.MaxUnavailable
	switch d.Spec.Strategy.Type {
	case "Recreate": // the volume, too, goes from one to the other
		for _, p := range old {
			p.end()
		}
		if len(n.pods) > len(current) {
			return nil
		}
	case "RollingUpdate":
		for _, p := range old {
			if p.ready && ready <= want-gap {
				continue
			}
			if p.ready {
				ready--
			}
			p.end()
		}
	default:
		return fmt.Errorf("the strategy %q is not known here", d.Spec.Strategy.Type)
	}
	for i := want; i < len(current); i++ {
		current[i].end()
	}
	for have := len(current); have < want && have+len(old) < want+surge; have++ {
		p, err := n.newPod(d.Spec.Template.Spec, template)
		if err != nil {
			return err
		}
		n.pods = append(n.pods, p)
	}
	return nil
}

// report writes the endpoints and the status, which `kubectl rollout status` waits for.
func (n *node) report(ctx context.Context, d deployment, template string) error {
	ports, err := n.ports(ctx, d)
	if err != nil {
		return err
	}
	endpoints := []any{}
	var running, updated, ready int
	for _, p := range n.pods {
		if p.ready && (p.ending.IsZero() || time.Since(p.ending) < endpointLag) {
			endpoints = append(endpoints, map[string]any{"addresses": []any{p.network.Addr.String()}, "conditions": map[string]any{"ready": true}})
		}
		if !p.ending.IsZero() {
			continue
		}
		running++
		if p.template == template {
			updated++
		}
		if p.ready {
			ready++
		}
	}
	if err := n.api.apply(ctx, n.path("endpointslices", "gatehouse-node"), map[string]any{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata":  map[string]any{"name": "gatehouse-node", "labels": map[string]any{"kubernetes.io/service-name": "gatehouse"}},
		"endpoints": endpoints,
		"ports":     ports,
	}); err != nil {
		return err
	}
	return n.api.apply(ctx, n.path("deployments", "gatehouse/status"), map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "gatehouse"},
		"status": map[string]any{
			"observedGeneration": d.Metadata.Generation, "replicas": running, "updatedReplicas": updated,
			"readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": max(0, d.Spec.Replicas-ready),
		},
	})
}

// ports are those of the Service, as numbers of the container.
func (n *node) ports(ctx context.Context, d deployment) ([]map[string]any, error) {
	var service struct {
		Spec struct {
			Ports []struct {
				Name, AppProtocol string
				TargetPort        any
			}
		}
	}
	if code, err := n.api.do(ctx, http.MethodGet, n.path("services", "gatehouse"), "", nil, &service); err != nil || code != http.StatusOK {
		return nil, fmt.Errorf("no Service gatehouse: %d, %w", code, errors.Join(err, errNoAnswer))
	}
	ports := []map[string]any{}
	for _, p := range service.Spec.Ports {
		number := p.TargetPort
		for _, cp := range d.Spec.Template.Spec.Containers[0].Ports {
			if cp.Name == number {
				number = cp.ContainerPort
			}
		}
		ports = append(ports, map[string]any{"name": p.Name, "appProtocol": p.AppProtocol, "port": number})
	}
	return ports, nil
}

// pids are the processes of the pods that are not to end, by their address.
func (n *node) pids() map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[string]int{}
	for _, p := range n.pods {
		if p.cmd != nil && p.ending.IsZero() {
			all[p.network.Addr.String()] = p.cmd.Process.Pid
		}
	}
	return all
}

// addresses are those of the pods that are not to end, in their order.
func (n *node) addresses() []string {
	var all []string
	for addr := range n.pids() {
		all = append(all, addr)
	}
	slices.Sort(all)
	return all
}

// signal sends a signal to the process of a pod, and keeps the node from taking it for dead while it is stopped.
func (n *node) signal(t *testing.T, addr string, s syscall.Signal) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.at(t, addr)
	p.stopped = s == syscall.SIGSTOP
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if p.stopped { // a thread goes on until it has been told
		peers.Eventually(t, limit, "every thread has stopped", func() bool { return stopped(t, p.cmd.Process.Pid) })
	}
}

// at is the pod at an address.
func (n *node) at(t *testing.T, addr string) *pod {
	t.Helper()
	for _, p := range n.pods {
		if p.network.Addr.String() == addr && p.cmd != nil {
			return p
		}
	}
	t.Fatalf("there is no pod at %s", addr)
	return nil
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

// restarted returns how often a pod has ended by itself.
func (n *node) restarted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.restarts
}

// log is what all pods have written, each with those before it at its address.
func (n *node) log() string {
	files, err := filepath.Glob(filepath.Join(n.dir, "*.log"))
	if err != nil {
		return err.Error()
	}
	var all strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err.Error()
		}
		all.Write(b)
	}
	return all.String()
}

// undecided is a log without the audit's decisions, of which there are many.
func undecided(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `"msg":"decision"`) {
			b.WriteString(line)
		}
	}
	return b.String()
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
