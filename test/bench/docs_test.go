package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// TestTheDocumentedAllocationTestsExist holds the table of docs/performance.md to the source.
func TestTheDocumentedAllocationTestsExist(t *testing.T) {
	root := peers.Root(t)
	text, err := os.ReadFile(filepath.Join(root, "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\| `(Test\\w+)` \\|").FindAllStringSubmatch(string(text), -1)
	if len(rows) < 5 {
		t.Errorf("got %d rows of allocation tests, want at least 5", len(rows))
	}
	for _, row := range rows {
		if !countsAllocations(t, filepath.Join(root, row[1]), row[2]) {
			t.Errorf("docs/performance.md names %s of %s, which is not there or does not count allocations", row[2], row[1])
		}
	}
}

// countsAllocations reports whether a folder has a test of that name that calls testing.AllocsPerRun.
func countsAllocations(t *testing.T, folder, name string) bool {
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(b), "\nfunc "+name+"(")
		body, _, _ := strings.Cut(rest, "\n}\n")
		if found && strings.Contains(body, "testing.AllocsPerRun(") {
			return true
		}
	}
	return false
}
