package istio

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// A checkout is a copy of what the documents' commands change, to run them in. There is no container engine here: docker only
// notes what it was told (the image is the node's affair), and make puts the binary in its place.
type checkout struct {
	c   *cluster
	dir string
	env []string
}

func (c *cluster) checkout(t *testing.T) *checkout {
	t.Helper()
	dir := peers.Folder(t)
	if err := os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(filepath.Join(peers.Root(t), "deploy"))); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "stand-ins")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"docker": `echo "$*" >>` + dir + `/docker.log`,
		"make":   `mkdir -p bin && ln -sf ` + peers.Binary(t) + ` bin/gatehouse`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\nset -e\n"+script+"\n"), 0o700); err != nil { // #nosec G306 -- a program
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "ca.pem"), string(c.ca.PEM))
	return &checkout{c: c, dir: dir, env: append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "CURL_CA_BUNDLE="+filepath.Join(dir, "ca.pem"), "IMAGE=registry.corp.test/gatehouse:1.0.0")}
}

// run runs commands as they stand in a document and returns what they print. Gatehouse asks for the password on a terminal, and
// reads it from its standard input here.
func (w *checkout) run(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*limit) // a rollout may never come
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euc", script) // #nosec G204 -- from the shipped documents
	cmd.WaitDelay = time.Second
	cmd.Dir, cmd.Env = w.dir, w.env
	cmd.Stdin = strings.NewReader(w.c.password)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s\n%v\n%s%s", script, err, out.String(), errs.String())
	}
	return out.String()
}

// edit replaces old in a file of the checkout; old must be there.
func (w *checkout) edit(t *testing.T, file, old, fresh string) {
	t.Helper()
	path := filepath.Join(w.dir, file)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		t.Fatalf("%s has no %q", file, old)
	}
	write(t, path, strings.Replace(string(b), old, fresh, 1))
}

// block returns the one fenced block that has text, below a heading of a document.
func block(t *testing.T, document, heading, text string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(peers.Root(t), document))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut("\n"+string(b), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", document, heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	for _, end := range []string{"\n# ", "\n## ", "\n### "}[:len(level)] {
		rest, _, _ = strings.Cut(rest, end)
	}
	var found []string
	parts := strings.Split(rest, "```")
	for i := 1; i < len(parts); i += 2 {
		if _, code, _ := strings.Cut(parts[i], "\n"); strings.Contains(code, text) {
			found = append(found, code)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s, %s: %d blocks with %q, want 1", document, heading, len(found), text)
	}
	return found[0]
}
