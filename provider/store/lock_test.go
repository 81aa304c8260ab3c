//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package store

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestOneProcessServesADatabase(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "g.db")
	first, err := LockSQLite(path) // before the database is there
	must(t, err)
	must(t, openFile(t, path, Options{}).Close()) // reading and backing up go on
	link := filepath.Join(dir, "link.db")
	must(t, os.Symlink("g.db", link))
	for _, name := range []string{path, filepath.Join(dir, ".", "x", "..", "g.db"), link} {
		second, err := LockSQLite(name)
		if !errors.Is(err, ErrLocked) || second != nil {
			t.Fatalf("%s: a second lock: %v, want %v", name, err, ErrLocked)
		}
		for _, want := range []string{filepath.Base(name), "another gatehouse", "process " + strconv.Itoa(os.Getpid()), "storage.config.file"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
	other, err := LockSQLite(filepath.Join(dir, "other.db"))
	if err != nil {
		t.Fatalf("another database: %v", err)
	}
	must(t, other.Close())
	must(t, first.Close())
	again, err := LockSQLite(link) // its file is still there
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	must(t, again.Close())
	if info, err := os.Stat(path + ".lock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock's file: %v, %v; want mode 0600", info, err)
	}
}

// Whatever is in the lock's file, it is no id of a process unless it reads as one.
func TestLockedByNobodyKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	first, err := LockSQLite(path)
	must(t, err)
	defer func() { must(t, first.Close()) }()
	for _, content := range []string{"", "-1", "0", "x\x1b[31m", strings.Repeat("9", 30)} {
		must(t, os.WriteFile(path+".lock", []byte(content), 0o600))
		_, err := LockSQLite(path)
		if !errors.Is(err, ErrLocked) || strings.Contains(err.Error(), "process") {
			t.Errorf("%q: got %v, want %v and no process", content, err, ErrLocked)
		}
	}
}

func TestLockSaysWhatIsWrongWithThePath(t *testing.T) {
	_, err := LockSQLite(filepath.Join(t.TempDir(), "missing", "g.db"))
	if err == nil || !strings.Contains(err.Error(), "does not exist: create it or mount a volume there") {
		t.Errorf("got %v, want what opening says", err)
	}
}
