package eg

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gatehouse/test/peers"
)

// What the overlay promises, by what holes returns where it does not hold.
const (
	signsIn     = "a stranger is led to the sign-in"
	strips      = "identity headers are Gatehouse's alone"
	underscores = "a header with an underscore is refused"
	slashes     = "a path with an escaped slash is refused"
	hung        = "503 while Gatehouse hangs"
	stopped     = "503 while Gatehouse is down"
)

// holes returns the promises that do not hold. Gatehouse hangs, stops and starts again meanwhile.
func (w *world) holes(t *testing.T) (found []string) {
	t.Helper()
	expect := func(promise string, holds func(answer, error) bool, target string, lines ...string) {
		t.Helper()
		a, err := w.ask(t, target, lines...)
		if holds(a, err) {
			return
		}
		t.Logf("%s: got %v, %v", promise, a, err)
		if !slices.Contains(found, promise) {
			found = append(found, promise)
		}
	}
	status := func(want int) func(answer, error) bool {
		return func(a answer, err error) bool { return err == nil && a.status == want }
	}
	leads := func(a answer, err error) bool {
		return err == nil && a.status == http.StatusFound && strings.HasPrefix(a.header.Get("Location"), issuerURL+"/dex/auth")
	}
	expect(signsIn, leads, appURL+"/", navigation...)
	expect(signsIn, status(http.StatusUnauthorized), appURL+"/")
	expect(strips, func(a answer, err error) bool {
		return err == nil && a.seen() != nil && !strings.Contains(a.body, "root")
	}, appURL+"/healthz", "Kubeflow-Userid: root", "Kubeflow.groups: root")
	expect(underscores, rejected, appURL+"/healthz", "kubeflow_userid: root")
	expect(slashes, status(http.StatusBadRequest), appURL+"/a%2Fb")
	unavailable := func(promise string) {
		before := w.app.reached.Load()
		for _, target := range []string{appURL + "/healthz", issuerURL + "/dex/.well-known/openid-configuration"} {
			expect(promise, func(a answer, err error) bool {
				return err == nil && a.status == http.StatusServiceUnavailable && w.app.reached.Load() == before
			}, target)
		}
	}
	resume := freeze(t, w.gatehouse.Pid())
	unavailable(hung)
	resume()
	w.gatehouse.Stop(t)
	unavailable(stopped)
	w.gatehouse.Restart(t)
	return found
}

// freeze stops every thread of a process, as if it hung, until resume is called.
func freeze(t *testing.T, pid int) (resume func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	peers.Eventually(t, wait, "every thread stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("threads of %d: %v, %v", pid, threads, err)
		}
		return !slices.ContainsFunc(threads, func(path string) bool {
			b, err := os.ReadFile(path)
			_, state, ok := strings.Cut(string(b), ") ") // proc_pid_stat(5): the name is in parentheses
			return err != nil || !ok || !strings.HasPrefix(state, "T")
		})
	})
	return func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
}

// TestNothingIsOpen: the overlay keeps its promises, and sessions outlive what happened.
func TestNothingIsOpen(t *testing.T) {
	w := start(t, layout{})
	b := w.signedIn(t)
	if found := w.holes(t); len(found) > 0 {
		t.Errorf("these do not hold: %q", found)
	}
	peers.Eventually(t, wait, "the session goes on", func() bool {
		a, err := ask(t.Context(), b.Client, appURL+"/headers")
		return err == nil && a.seen()["kubeflow-userid"] == user
	})
}

// TestWhatWouldBeOpen takes away from the overlay one thing at a time: each is found, so holes can see it.
func TestWhatWouldBeOpen(t *testing.T) {
	extAuth := func(list map[string]object) object {
		return at(list["SecurityPolicy gatehouse"], "spec", "extAuth").(object)
	}
	headers := func(list map[string]object) object {
		return at(list["ClientTrafficPolicy gatehouse"], "spec", "headers").(object)
	}
	ofRoute := func(merge string) string {
		return `---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {name: app, namespace: apps}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: app}]
  cors: {allowOrigins: ["https://other.corp.test"]}
` + merge
	}
	for _, tc := range []struct {
		name   string
		layout layout
		want   []string
	}{
		{"no SecurityPolicy", layout{change: func(list map[string]object) { delete(list, "SecurityPolicy gatehouse") }}, []string{signsIn, strips, hung, stopped}},
		{"it fails open", layout{change: func(list map[string]object) { extAuth(list)["failOpen"] = true }}, []string{hung, stopped}},
		{"no status for errors", layout{change: func(list map[string]object) { delete(extAuth(list), "statusOnError") }}, []string{hung, stopped}},
		{"no timeout", layout{change: func(list map[string]object) { delete(extAuth(list), "timeout") }}, []string{hung}},
		{"Gatehouse is given cookies alone", layout{change: func(list map[string]object) { extAuth(list)["headersToExtAuth"] = []any{"cookie"} }}, []string{signsIn}},
		{"no ClientTrafficPolicy", layout{change: func(list map[string]object) { delete(list, "ClientTrafficPolicy gatehouse") }}, []string{slashes}},
		{"underscores are taken", layout{change: func(list map[string]object) { headers(list)["withUnderscoresAction"] = "Allow" }}, []string{underscores}},
		{"the app's route has a SecurityPolicy of its own", layout{more: ofRoute("")}, []string{signsIn, strips, hung, stopped}},
		{"and merges it with the Gateway's", layout{more: ofRoute("  mergeType: StrategicMerge\n")}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := start(t, tc.layout).holes(t); !slices.Equal(got, tc.want) {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}

// TestNoEndpoint: Envoy Gateway refuses a policy that leads nowhere, which it does too while Gatehouse's Service has no
// ready pod, and answers 500 for all hosts.
func TestNoEndpoint(t *testing.T) {
	w := start(t, layout{change: func(list map[string]object) { delete(list, "Backend grpc-ext-authz") }})
	for _, target := range []string{appURL + "/", appURL + "/healthz", issuerURL + "/dex/.well-known/openid-configuration"} {
		if a := w.mustAsk(t, target); a.status != http.StatusInternalServerError {
			t.Errorf("%s: got %s, want 500", target, a)
		}
	}
	if n := w.app.reached.Load(); n != 0 {
		t.Errorf("%d requests reached the app unchecked", n)
	}
}
