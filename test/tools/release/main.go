// Command release builds what is published: for each architecture one static file and a list of what is in it (a software
// bill of materials in CycloneDX's JSON), and the checksums of all of them.
//
//	go run ./test/tools/release -out bin/release
//
// It builds the commit that is checked out, with the Go that runs it. The same commit and the same Go give the same bytes,
// in any folder and on any machine; docs/release.md tells how to check that.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "bin/release", "the folder to fill; what is in it is removed")
	arch := flags.String("arch", strings.Join(architectures(), ","), "the architectures")
	if err := flags.Parse(args); err != nil {
		return 1
	}
	if err := publish(ctx, ".", *out, strings.Split(*arch, ","), stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "release:", err)
		return 1
	}
	return 0
}

// architectures are those of Linux that we publish for, each with the settings that would else come from whoever builds.
func architectures() []string { return []string{"amd64", "arm64"} }

// settings are the environment of a build: nothing of the builder's gets into it. Instruction sets are the oldest ones. None
// is empty, which would mean what `go env -w` has set.
func settings(arch string) []string {
	return []string{
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-trimpath", "GOFIPS140=off", "GOWORK=off",
	}
}

// publish builds the tree at root for each architecture into the folder out, checks what came of it, and tells in w.
func publish(ctx context.Context, root, out string, arches []string, w io.Writer) error {
	for _, arch := range arches {
		if !slices.Contains(architectures(), arch) {
			return fmt.Errorf("architecture %q: want some of %s", arch, strings.Join(architectures(), ", "))
		}
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { // #nosec G301 -- for everybody to fetch
		return err
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	for _, arch := range arches {
		if err := one(ctx, root, out, arch, w); err != nil {
			return fmt.Errorf("linux/%s: %w", arch, err)
		}
	}
	return checksums(out)
}

// one makes the files of one architecture.
func one(ctx context.Context, root, out, arch string, w io.Writer) error {
	binary := filepath.Join(out, "gatehouse-linux-"+arch)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=true", "-ldflags", "-s -w", "-o", binary, "./cmd/gatehouse") // #nosec G204 -- our own folder
	cmd.Dir, cmd.Env = root, append(os.Environ(), settings(arch)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%sA release is built in a clone with its tags, by git: a worktree or an unpacked archive has no version", err, text)
	}
	info, err := inspect(binary, arch)
	if err != nil {
		return err
	}
	sum, err := sha256Of(binary)
	if err != nil {
		return err
	}
	if err := os.WriteFile(binary+".cdx.json", materials(info, filepath.Base(binary), sum), 0o644); err != nil { // #nosec G306 -- for everybody to fetch
		return err
	}
	if strings.Contains(info.Main.Version, "+dirty") {
		_, _ = fmt.Fprintln(w, "not a release: the tree has changes that are in no commit")
	}
	_, err = fmt.Fprintf(w, "%s  %s  %s %s, %d modules\n", sum, filepath.Base(binary), info.Main.Version, info.GoVersion, len(info.Deps))
	return err
}

// checksums writes SHA256SUMS, as sha256sum does.
func checksums(out string) error {
	files, err := os.ReadDir(out) // sorted by name
	if err != nil {
		return err
	}
	var lines strings.Builder
	for _, f := range files {
		sum, err := sha256Of(filepath.Join(out, f.Name()))
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(&lines, "%s  %s\n", sum, f.Name())
	}
	if lines.Len() == 0 {
		return errors.New("nothing was built")
	}
	return os.WriteFile(filepath.Join(out, "SHA256SUMS"), []byte(lines.String()), 0o644) // #nosec G306 -- for everybody to fetch
}

func sha256Of(path string) (string, error) {
	f, err := os.Open(path) // #nosec G304 -- a file that we made
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
