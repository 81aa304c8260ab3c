package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestContainerMemory(t *testing.T) {
	for _, tt := range []struct {
		rule, file, text string
		want             int64
	}{
		{"version 2", "memory.max", "134217728\n", 128 << 20},
		{"version 2 without limit", "memory.max", "max\n", 0},
		{"version 1", "memory/memory.limit_in_bytes", "134217728\n", 128 << 20},
		{"version 1 without limit", "memory/memory.limit_in_bytes", "9223372036854771712\n", 0},
		{"neither", "other", "1", 0},
		{"nonsense", "memory.max", "-1", 0},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			root := t.TempDir()
			file := filepath.Join(root, tt.file)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := containerMemory(root); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
