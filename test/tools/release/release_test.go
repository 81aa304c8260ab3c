package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// runIn runs a program in a folder and returns what it printed.
func runIn(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...) // #nosec G204 -- the test's own
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// clone makes a clone of what is committed here.
func clone(t *testing.T, dir string) string {
	t.Helper()
	runIn(t, peers.Root(t), nil, "git", "clone", "--quiet", ".", dir)
	return dir
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...)) // #nosec G304 -- a file of the test's
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRelease builds what is committed for this machine's architecture, twice: by this program, and in another folder
// by the line of the Dockerfile. Packages that the cache has are not compiled again; docs/release.md has the whole check.
func TestRelease(t *testing.T) {
	dir, arch := peers.Folder(t), runtime.GOARCH
	one, other := clone(t, filepath.Join(dir, "one")), clone(t, filepath.Join(dir, "elsewhere", "and", "deeper"))
	out := filepath.Join(dir, "out")
	t.Setenv("GOFLAGS", "-tags=mine") // of whoever builds: it must not matter
	var said bytes.Buffer
	if err := publish(t.Context(), one, out, []string{arch}, &said); err != nil {
		t.Fatal(err)
	}
	name := "gatehouse-linux-" + arch
	binary := filepath.Join(out, name)

	t.Run("same bytes in another folder, and in the image", func(t *testing.T) {
		image := filepath.Join(dir, "image")
		line := buildLine(t, other) // with Go's defaults, as in its image
		runIn(t, other, []string{"GOFLAGS=-buildvcs=auto", "TARGETOS=linux", "TARGETARCH=" + arch}, "sh", "-c", strings.ReplaceAll(line, "/out/", image+"/"))
		if !bytes.Equal(read(t, binary), read(t, image, "gatehouse")) {
			t.Errorf("%s differs from what the Dockerfile builds in another folder", name)
		}
	})
	t.Run("checksums", func(t *testing.T) {
		got := runIn(t, out, nil, "sha256sum", "--check", "--strict", "SHA256SUMS")
		if want := name + ": OK\n" + name + ".cdx.json: OK\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("the list is that of the binary", func(t *testing.T) { checkMaterials(t, binary) })
	t.Run("the version is the commit's", func(t *testing.T) {
		commit := strings.TrimSpace(runIn(t, one, nil, "git", "rev-parse", "--short=12", "HEAD"))
		got := runIn(t, dir, nil, binary, "version")
		if !strings.HasPrefix(got, "gatehouse v") || !strings.HasSuffix(got, runtime.Version()+" linux/"+arch+"\n") || strings.Contains(got, "dirty") {
			t.Errorf("version: %q", got)
		}
		if tags := runIn(t, one, nil, "git", "tag", "--points-at", "HEAD"); tags == "" && !strings.Contains(got, "-"+commit+" ") {
			t.Errorf("version: %q, want commit %s in it", got, commit)
		}
		if strings.Contains(said.String(), "not a release") || !strings.Contains(said.String(), name) {
			t.Errorf("publish said %q", said.String())
		}
	})
	t.Run("a tag, and a change that is in no commit", func(t *testing.T) {
		runIn(t, other, nil, "git", "tag", "v1.98.7")
		if err := os.WriteFile(filepath.Join(other, "README.md"), []byte("changed\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		dirty := filepath.Join(dir, "dirty")
		var said bytes.Buffer
		if err := publish(t.Context(), other, dirty, []string{arch}, &said); err != nil {
			t.Fatal(err)
		}
		if got := runIn(t, dir, nil, filepath.Join(dirty, name), "version"); !strings.HasPrefix(got, "gatehouse v1.98.7+dirty go") {
			t.Errorf("version: %q, want v1.98.7+dirty", got)
		}
		if !strings.Contains(said.String(), "not a release") {
			t.Errorf("publish said %q, want that it is no release", said.String())
		}
	})
}

// buildLine returns the line of a Dockerfile that compiles.
func buildLine(t *testing.T, root string) string {
	t.Helper()
	for line := range strings.Lines(string(read(t, root, "Dockerfile"))) {
		if run, ok := strings.CutPrefix(line, "RUN "); ok && strings.Contains(run, "go build") {
			return run
		}
	}
	t.Fatal("the Dockerfile has no line that compiles")
	return ""
}

// checkMaterials compares the list with what `go version -m` says of the binary.
func checkMaterials(t *testing.T, binary string) {
	t.Helper()
	text := read(t, binary+".cdx.json")
	var d document
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"std": strings.TrimPrefix(runtime.Version(), "go")}
	version := ""
	for line := range strings.Lines(runIn(t, ".", nil, "go", "version", "-m", binary)) {
		switch f := strings.Split(strings.TrimSpace(line), "\t"); f[0] {
		case "dep":
			want[f[1]] = f[2]
		case "=>":
			t.Fatalf("a module is replaced, which this test does not read: %s", line)
		case "mod":
			version = f[2]
		}
	}
	got := map[string]string{}
	for _, c := range d.Components {
		if _, twice := got[c.Name]; twice {
			t.Errorf("%s is listed twice", c.Name)
		}
		got[c.Name] = c.Version
		if c.Type != "library" || !strings.HasPrefix(c.PURL, "pkg:golang/") || c.Ref != c.PURL || (c.Name != "std" && !strings.HasPrefix(c.Properties[0].Value, "h1:")) {
			t.Errorf("component %+v", c)
		}
	}
	if len(want) < 20 || !reflect.DeepEqual(got, want) {
		t.Errorf("the list has\n%v\nand the binary\n%v", got, want)
	}
	sum, err := sha256Of(binary)
	if err != nil {
		t.Fatal(err)
	}
	p := d.Metadata.Component
	if p.Version != version || p.Name != filepath.Base(binary) || len(p.Hashes) != 1 || p.Hashes[0] != (hash{"SHA-256", sum}) {
		t.Errorf("the list is of %+v, want of %s with %s", p, version, sum)
	}
	if d.Format != "CycloneDX" || d.Spec != "1.6" || len(d.Dependencies) != 1 || len(d.Dependencies[0].On) != len(want) {
		t.Errorf("the list is %s %s with dependencies %+v", d.Format, d.Spec, d.Dependencies)
	}
	for _, moment := range []string{"timestamp", "serialNumber", "urn:uuid", filepath.Dir(binary)} {
		if bytes.Contains(text, []byte(moment)) {
			t.Errorf("the list has %q, which differs from build to build", moment)
		}
	}
}

func TestPackageURL(t *testing.T) {
	for _, tc := range []struct{ path, version, want string }{
		{"github.com/AppsFlyer/go-sundheit", "v0.6.0", "pkg:golang/github.com/appsflyer/go-sundheit@v0.6.0"},
		{"github.com/a/b", "v2.0.0+incompatible", "pkg:golang/github.com/a/b@v2.0.0%2Bincompatible"},
		{"std", "1.26.8", "pkg:golang/std@1.26.8"},
	} {
		if got := purl(tc.path, tc.version); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

// TestOtherArchitectures: each package that the program is made of has files for each architecture. `make release` compiles them.
func TestOtherArchitectures(t *testing.T) {
	for _, arch := range architectures() {
		out := runIn(t, peers.Root(t), settings(arch), "go", "list", "-deps", "-f", "{{.ImportPath}} {{len .GoFiles}} {{.Incomplete}}", "./cmd/gatehouse")
		n := 0
		for line := range strings.Lines(out) {
			n++
			if f := strings.Fields(line); f[0] != "unsafe" && (f[1] == "0" || f[2] != "false") {
				t.Errorf("linux/%s: %s", arch, strings.TrimSpace(line))
			}
		}
		if n < 300 {
			t.Errorf("linux/%s: %d packages, want all", arch, n)
		}
	}
}

// TestRefusals: what is no release is not made.
func TestRefusals(t *testing.T) {
	if err := publish(t.Context(), ".", filepath.Join(t.TempDir(), "out"), []string{"mips"}, io.Discard); err == nil || !strings.Contains(err.Error(), "want some of amd64, arm64") {
		t.Errorf("another architecture: got %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	foreign := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	if _, err := inspect(exe, foreign); err == nil || !strings.Contains(err.Error(), "is for EM_") {
		t.Errorf("a binary of another architecture: got %v", err)
	}
	if _, err := inspect("/bin/sh", runtime.GOARCH); err == nil || !strings.Contains(err.Error(), "not static") {
		t.Errorf("a dynamic binary: got %v", err)
	}
	if _, err := inspect("release_test.go", runtime.GOARCH); err == nil {
		t.Error("no binary: got no error")
	}
}
