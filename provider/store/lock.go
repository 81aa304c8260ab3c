package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrLocked means that another process serves from a database.
var ErrLocked = errors.New("store: the database is in use")

// maxPID is how many bytes of a lock's file are read for the id of the process.
const maxPID = 20

// A Lock says that one process serves from an SQLite file, until it is closed or the process ends, however it ends. It is
// no lock of SQLite's: others may still read and back up the database.
type Lock struct{ file *os.File }

// LockSQLite takes the lock of the SQLite file at path, which need not exist yet, or fails with ErrLocked at once. The lock
// is on a file beside it that stays. Two names of one database have one lock where they differ by symbolic links; hard
// links are not seen through. Systems without flock(2) have no locks: there LockSQLite always succeeds.
func LockSQLite(path string) (*Lock, error) {
	path, err := checkPath(path)
	if err != nil {
		return nil, err
	}
	name := resolve(path) + ".lock"
	// Never truncated here: the holder's id is in it.
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: lock of sqlite file %s: %w", path, err)
	}
	switch locked, err := flock(f); {
	case err != nil:
		return nil, errors.Join(fmt.Errorf("store: lock of sqlite file %s: %s: %w", path, name, err), f.Close())
	case !locked:
		err := fmt.Errorf("%w: sqlite file %s: another gatehouse uses it%s: stop that first, or set storage.config.file to another file", ErrLocked, path, holder(f))
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Truncate(0), writeID(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("store: lock of sqlite file %s: %w", path, err), f.Close())
	}
	return &Lock{file: f}, nil
}

// Close gives the lock back.
func (l *Lock) Close() error { return l.file.Close() }

func writeID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// holder names the process that has the lock, where its file does.
func holder(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, maxPID))
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return "" // it has only just begun
	}
	return fmt.Sprintf(" (process %d)", pid)
}

// resolve returns where symbolic links lead. The file, unlike its directory, need not exist.
func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return path
}
