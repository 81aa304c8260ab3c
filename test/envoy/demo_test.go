package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// A demoWorld is a running `gatehouse demo`.
type demoWorld struct {
	cmd    *exec.Cmd
	exit   chan error
	output *lockedBuffer
	temp   string // folder for its temporary files
	host   string // localhost:port
	w      *world
}

// TestDemo tries what the README tells a newcomer to try, then ends it by Ctrl-C.
func TestDemo(t *testing.T) {
	d := startDemo(t)
	b := d.w.browser(d.w.hardened)
	t.Run("sign-in in 4 requests to the page first asked for", func(t *testing.T) {
		p := must(t)(b.visit(t.Context(), d.url("/headers?x=1")))
		p = must(t)(b.submit(t.Context(), p, d.w.credentials(administrator)))
		p = must(t)(b.follow(t.Context(), p))
		if p.status != http.StatusOK || p.url.String() != d.url("/headers?x=1") || len(b.trail) != 4 {
			t.Errorf("ended at %s after %v", p, b.trail)
		}
	})
	t.Run("the app sees who, and none of our cookies", func(t *testing.T) {
		h := d.headers(t, b, "/headers", "Cookie: theme=dark")
		if h["kubeflow-userid"] != administrator || h["kubeflow-groups"] != "admins" || h["cookie"] != "theme=dark" {
			t.Errorf("the app sees %v", h)
		}
		if p := must(t)(b.step(t.Context(), http.MethodGet, d.url("/"), nil)); p.status != http.StatusOK || !strings.Contains(p.body, administrator) {
			t.Errorf("the app's page: %s", p)
		}
	})
	t.Run("forged headers never arrive", func(t *testing.T) { d.forge(t, b) })
	t.Run("who may not gets 403", func(t *testing.T) {
		if p := must(t)(b.step(t.Context(), http.MethodGet, d.url("/admin/x"), nil)); p.status != http.StatusOK {
			t.Errorf("an administrator: %s", p)
		}
		u := d.w.browser(d.w.hardened)
		if p := must(t)(u.signIn(t.Context(), d.url("/headers"), user)); p.status != http.StatusOK {
			t.Fatal(p)
		}
		p := must(t)(u.step(t.Context(), http.MethodGet, d.url("/admin/x"), nil))
		if p.status != http.StatusForbidden || p.location() != "" || !strings.Contains(p.body, user) {
			t.Errorf("a user: %s", p)
		}
	})
	t.Run("after sign-out the old cookie is refused", func(t *testing.T) {
		old := "Cookie: " + sessionCookie + "=" + b.cookie(d.url("/"), sessionCookie)
		p := must(t)(b.step(t.Context(), http.MethodGet, d.url("/oauth2/sign_out"), nil))
		p = must(t)(b.submit(t.Context(), p, url.Values{}))
		if p = must(t)(b.follow(t.Context(), p)); p.status != http.StatusOK {
			t.Errorf("sign-out: %s", p)
		}
		if p := must(t)(fetch(t.Context(), d.w.hardened.http, http.MethodGet, d.url("/headers"), "", old, "Accept: text/html")); p.status != http.StatusFound {
			t.Errorf("the old cookie: got %s, want 302", p)
		}
	})
	t.Run("Ctrl-C ends everything and leaves nothing", d.interrupt)
}

func startDemo(t *testing.T) *demoWorld {
	t.Helper()
	d := &demoWorld{exit: make(chan error, 1), output: &lockedBuffer{}, temp: peers.Folder(t)}
	addr := peers.FreeAddr(t)
	port := addr[strings.LastIndexByte(addr, ':')+1:]
	d.host = "localhost:" + port
	d.w = &world{
		secrets: &secrets{}, passwords: map[string]string{administrator: "password", user: "password"},
		hosts: []string{"http://" + d.host},
	}
	d.w.hardened = newEdge(t, "demo", addr, nil)
	ctx := context.WithoutCancel(t.Context()) // it is stopped in order below
	d.cmd = exec.CommandContext(ctx, peers.Binary(t), "demo")
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = peers.Root(t), d.output, d.output
	d.cmd.Env = append(os.Environ(), "GATEHOUSE_DEMO_PORT="+port, "TMPDIR="+d.temp)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.exit <- d.cmd.Wait() }()
	t.Cleanup(func() { _ = d.cmd.Process.Kill() }) // it has ended unless the test failed; then its Envoy ends with it
	peers.Eventually(t, 2*within, "the demo prints its URL", func() bool {
		select {
		case err := <-d.exit:
			t.Fatalf("the demo ended: %v\n%s", err, d.output)
		default:
		}
		return strings.Contains(d.output.String(), d.url("")) && strings.Contains(d.output.String(), "Ctrl-C")
	})
	return d
}

func (d *demoWorld) url(path string) string { return "http://" + d.host + path }

// headers returns what reached the app.
func (d *demoWorld) headers(t *testing.T, b *browser, path string, lines ...string) map[string]string {
	t.Helper()
	p := must(t)(b.step(t.Context(), http.MethodGet, d.url(path), nil, lines...))
	var h map[string]string
	if err := json.Unmarshal([]byte(p.body), &h); err != nil || p.status != http.StatusOK {
		t.Fatalf("%v: %s", err, p)
	}
	return h
}

// forge sends identities of its own, signed in and not.
func (d *demoWorld) forge(t *testing.T, signedIn *browser) {
	for _, c := range []struct {
		path, want string
		b          *browser
	}{
		{"/headers", administrator, signedIn}, {"/public/headers", administrator, signedIn}, {"/public/headers", "", d.w.browser(d.w.hardened)},
	} {
		h := d.headers(t, c.b, c.path, "kubeflow-userid: evil@example.com", "Kubeflow.Userid: evil@example.com", "kubeflow-groups: evil")
		for name, value := range h {
			if strings.Contains(value, "evil") || strings.HasPrefix(fold(name), "kubeflow-") && c.want == "" {
				t.Errorf("%s as %q: the app sees %s: %q", c.path, c.want, name, value)
			}
		}
		if h["kubeflow-userid"] != c.want {
			t.Errorf("%s: the app takes %q for the user, want %q", c.path, h["kubeflow-userid"], c.want)
		}
		p := must(t)(c.b.step(t.Context(), http.MethodGet, d.url(c.path), nil, "kubeflow_userid: evil@example.com"))
		if p.status != http.StatusBadRequest {
			t.Errorf("%s with an underscore: got %s, want 400 of Envoy", c.path, p)
		}
	}
}

func (d *demoWorld) interrupt(t *testing.T) {
	if n := processesOf(t, d.temp); n == 0 {
		t.Error("no process names the demo's folder: this test could not see one that is left behind")
	}
	if folders(t, d.temp) == 0 {
		t.Error("the demo has no folder: this test could not see one that is left behind")
	}
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-d.exit:
		if err != nil {
			t.Errorf("exit: %v, want 0\n%s", err, d.output)
		}
	case <-time.After(within):
		t.Fatalf("still running %s after Ctrl-C\n%s", within, d.output)
	}
	if n := processesOf(t, d.temp); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if n := folders(t, d.temp); n != 0 {
		t.Errorf("%d folders are left in %s", n, d.temp)
	}
	if p, err := fetch(t.Context(), d.w.hardened.http, http.MethodGet, d.url("/"), ""); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("somebody still answers: %s, %v", p, err)
	}
}

func folders(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// processesOf counts the processes whose command line names a folder (proc(5)).
func processesOf(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatalf("no processes in /proc: %v", err)
	}
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && strings.Contains(string(line), dir) {
			n++
		}
	}
	return n
}
