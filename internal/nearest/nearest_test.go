package nearest

import (
	"strings"
	"testing"
)

func TestWord(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{"grups", "groups"},
		{"gropus", "groups"},
		{"GROUPS", "groups"},
		{"group", "groups"},
		{"groupss", "groups"},
		{"user", "users"},
		{"path", "paths"},
		{"g", ""},
		{"allowed", "allow"},
		{"xyz", ""},
		{"", ""},
		{strings.Repeat("g", 200), ""},
	} {
		if got := Word(tt.word, []string{"groups", "users", "paths", "allow"}); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.word, got, tt.want)
		}
	}
}
