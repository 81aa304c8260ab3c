package peers

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A Count is a row of the table "What a sign-in takes" of docs/performance.md.
type Count struct {
	Ours   string // what Gatehouse takes
	Theirs string // what Kubeflow's Dex and oauth2-proxy take
}

// Number returns what Theirs begins with.
func (c Count) Number(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(regexp.MustCompile(`^\d+`).FindString(c.Theirs))
	if err != nil {
		t.Fatalf("docs/performance.md: %q does not begin with a number", c.Theirs)
	}
	return n
}

// Counts returns the row of the table whose first cell is what. Tests that count hold it to what they have counted.
func Counts(t testing.TB, what string) Count {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(t), "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## What a sign-in takes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && strings.TrimSpace(cells[1]) == what {
			return Count{Ours: strings.TrimSpace(cells[2]), Theirs: strings.TrimSpace(cells[3])}
		}
	}
	t.Fatalf("docs/performance.md has no row %q under What a sign-in takes", what)
	return Count{}
}
