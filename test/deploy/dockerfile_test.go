package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// An instruction is one line of a Dockerfile, with what it is continued by.
type instruction struct {
	word string // RUN, COPY, …
	args string
}

// A stage is what follows one FROM.
type stage struct {
	from, name   string
	instructions []instruction
}

// all returns the arguments of every instruction of one kind.
func (s stage) all(word string) (args []string) {
	for _, i := range s.instructions {
		if i.word == word {
			args = append(args, i.args)
		}
	}
	return args
}

// stages reads the Dockerfile.
func stages(t *testing.T) []stage {
	t.Helper()
	text := strings.ReplaceAll(string(read(t, repo(t, "Dockerfile"))), "\\\n", " ")
	var list []stage
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, args, _ := strings.Cut(line, " ")
		args = strings.TrimSpace(args)
		if word == "FROM" {
			from, name, _ := strings.Cut(args, " AS ")
			list = append(list, stage{from: from, name: name})
			continue
		}
		if len(list) == 0 {
			t.Fatalf("Dockerfile: %s before the first FROM", word)
		}
		last := &list[len(list)-1]
		last.instructions = append(last.instructions, instruction{word, args})
	}
	if len(list) != 2 {
		t.Fatalf("Dockerfile: got %d stages, want 2: build and the image", len(list))
	}
	return list
}

// A copied is a COPY --from=build.
type copied struct {
	from, to, owner string
}

func copies(t *testing.T, image stage) (list []copied) {
	t.Helper()
	for _, args := range image.all("COPY") {
		var c copied
		words := strings.Fields(args)
		for len(words) > 0 && strings.HasPrefix(words[0], "--") {
			flag, value, _ := strings.Cut(words[0], "=")
			switch {
			case flag == "--from" && value == "build":
			case flag == "--chown":
				c.owner = value
			default:
				t.Fatalf("COPY %s: flag %s is not known to the tests", args, words[0])
			}
			words = words[1:]
		}
		if len(words) != 2 {
			t.Fatalf("COPY %s: want one source and one destination", args)
		}
		c.from, c.to = words[0], words[1]
		list = append(list, c)
	}
	return list
}

func words(t *testing.T, execForm string) (w []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(execForm), &w); err != nil {
		t.Fatalf("%s: want the exec form, a JSON array: the image has no shell (%v)", execForm, err)
	}
	return w
}

func TestDockerfile(t *testing.T) {
	all := stages(t)
	build, image := all[0], all[1]
	for _, tc := range []struct {
		rule      string
		got, want any
	}{
		{"nothing that is not ours", image.from, "scratch"},
		{"a user by number", image.all("USER"), []string{"65532:65532"}},
		{"the ports of the contract but admin", image.all("EXPOSE"), []string{"5556 9001 5558"}},
		{"no command at build time", image.all("RUN"), []string(nil)},
		{"no hidden settings", image.all("ENV"), []string(nil)},
		{"no download", slices.Concat(build.all("ADD"), image.all("ADD")), []string(nil)},
		{"the binary", words(t, image.all("ENTRYPOINT")[0]), []string{"/gatehouse"}},
		{"its arguments", words(t, image.all("CMD")[0]), []string{"serve", "--config", "/etc/gatehouse/gatehouse.yaml"}},
		{"the content", copies(t, image), []copied{
			{from: "/etc/ssl/certs/ca-certificates.crt", to: "/etc/ssl/certs/ca-certificates.crt"},
			{from: "/out/gatehouse", to: "/gatehouse"},
			{from: "/out/data", to: "/var/lib/gatehouse", owner: "65532:65532"},
			{from: "/out/tmp", to: "/tmp", owner: "65532:65532"},
		}},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.rule, tc.got, tc.want)
		}
	}
	line := find(t, overlay(t), "Deployment").at("spec.template.spec.containers.0.args").([]any)
	for i, w := range words(t, image.all("CMD")[0]) {
		if len(line) <= i || line[i] != w {
			t.Errorf("the Deployment's arguments are %v, the image's %s", line, image.all("CMD")[0])
		}
	}
}

// TestPlatforms: the build stage runs on the builder's own platform and compiles for the one that is asked for.
func TestPlatforms(t *testing.T) {
	build := stages(t)[0]
	if !strings.HasPrefix(build.from, "--platform=$BUILDPLATFORM golang:") {
		t.Errorf("the build stage is from %q: for another platform the compiler itself would be emulated", build.from)
	}
	if got, want := build.all("ARG"), []string{"TARGETOS TARGETARCH"}; !reflect.DeepEqual(got, want) {
		t.Errorf("the build stage has ARG %q, want %q", got, want)
	}
	dir := peers.Folder(t)
	called := filepath.Join(dir, "called")
	script := "#!/bin/sh\nprintf '%s %s %s %s\\n' \"$CGO_ENABLED\" \"$GOOS\" \"$GOARCH\" \"$1\" >>" + called + "\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o700); err != nil { // #nosec G306 -- in place of the compiler
		t.Fatal(err)
	}
	var want strings.Builder
	for _, target := range []struct{ os, arch string }{{"linux", "amd64"}, {"linux", "arm64"}, {"", ""}} { // the last: a builder that sets nothing
		for _, line := range build.all("RUN") {
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(line, "/out/", dir+"/"+target.arch+"/")) // #nosec G204 -- the shipped Dockerfile
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "TARGETOS="+target.os, "TARGETARCH="+target.arch)
			cmd.Dir = dir
			if err := os.MkdirAll(filepath.Join(dir, target.arch), 0o700); err != nil {
				t.Fatal(err)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", line, err, out)
			}
		}
		want.WriteString(os.Getenv("CGO_ENABLED") + "   mod\n" + "0 " + target.os + " " + target.arch + " build\n")
	}
	if got := string(read(t, called)); got != want.String() {
		t.Errorf("go was called with CGO_ENABLED, GOOS, GOARCH and as\n%s\nwant\n%s", got, want.String())
	}
}

// TestBaseImage: the compiler must not be older than go.mod asks for, and the tag says which one it is.
func TestBaseImage(t *testing.T) {
	_, tag, ok := strings.Cut(stages(t)[0].from, "golang:")
	version, _, _ := strings.Cut(tag, "-")
	if !ok || version == "" {
		t.Fatalf("the build stage is from %q, want golang:VERSION-…", stages(t)[0].from)
	}
	for line := range strings.Lines(string(read(t, repo(t, "go.mod")))) {
		if want, ok := strings.CutPrefix(strings.TrimSpace(line), "go "); ok {
			if !strings.HasPrefix(want+".", version+".") {
				t.Errorf("the build stage has Go %s, go.mod asks for %s", version, want)
			}
			return
		}
	}
	t.Error("go.mod has no go line")
}

// TestBuildContext: .dockerignore hides nothing that the build reads, and hides what may be large.
func TestBuildContext(t *testing.T) {
	var patterns []string
	for line := range strings.Lines(string(read(t, repo(t, ".dockerignore")))) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			patterns = append(patterns, line)
		}
	}
	ignored := func(name string) bool {
		for _, p := range patterns {
			if any, ok := strings.CutPrefix(p, "**/"); ok {
				if slices.Contains(strings.Split(name, "/"), any) {
					return true
				}
				continue
			}
			if matched, err := path.Match(p, strings.SplitN(name, "/", 2)[0]); err != nil || matched {
				return true
			}
		}
		return false
	}
	for name, want := range map[string]bool{
		".tools/bin/envoy": true, "bin/gatehouse": true, "test/tools/oidc-provider/node_modules/x.js": true,
		".git/HEAD": false, "go.mod": false, "go.sum": false, "cmd/gatehouse/main.go": false, "web/static/app.css": false,
	} {
		if got := ignored(name); got != want {
			t.Errorf("%s: ignored is %t, want %t", name, got, want)
		}
	}
	for _, name := range trackedFiles(t) {
		if ignored(name) {
			t.Errorf(".dockerignore hides %s, which is in version control: the binary would call itself changed", name)
		}
	}
}

// trackedFiles lists what is in version control.
func trackedFiles(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z")
	cmd.Dir = peers.Root(t)
	out, err := cmd.Output()
	if err != nil || len(out) == 0 {
		t.Fatalf("git ls-files: %v: run the tests in a clone, with git installed", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
}
