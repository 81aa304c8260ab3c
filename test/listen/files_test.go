package listen

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/test/peers"
)

// TestFewFiles: more connections than the process may have files. All listeners shrink, so that each still takes new ones.
func TestFewFiles(t *testing.T) {
	wrapper := filepath.Join(peers.Folder(t), "gatehouse")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n 64\nexec '%s' \"$@\"\n", peers.Binary(t))
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GATEHOUSE_BIN", wrapper)
	w := newWorld(t)
	a := &attack{end: make(chan struct{})}
	for name := range w.ports {
		for range 80 {
			a.conns = append(a.conns, w.dial(t, name))
		}
	}
	w.serves(t, "meanwhile")
	a.stop()
	w.serves(t, "afterwards")
}
