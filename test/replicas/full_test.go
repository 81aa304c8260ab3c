package replicas

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	_ "modernc.org/sqlite" // to look into the product's database

	"gatehouse/test/peers"
)

// TestFullDisk fills the disk that SQLite writes to, frees it, fills it again and kills the process.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := peers.Folder(t)
	mount(t, disk, "size=4m")
	f := newFleet(t, 1, table{"type": "sqlite", "config": table{"file": filepath.Join(disk, "gatehouse.db")}}, nil)
	working, r := f.signedIn(t, ada), f.replicas[0]
	f.known(t, ada, working)
	confirmed := []*browser{working}
	for range 10 {
		confirmed = append(confirmed, f.signedIn(t, ada))
	}
	for _, how := range []string{"freed again", "killed"} {
		free := fill(t, disk)
		refusals, tries := 0, 0
		for ; refusals < 3 && tries < 200; tries++ { // what is written may find a place in the file for a while
			b := f.browser(t)
			form, err := b.visit(t.Context(), http.MethodGet, f.app+"/headers", nil)
			if err != nil {
				t.Fatal(err)
			}
			p, err := b.submit(t.Context(), form, ada)
			switch {
			case err == nil && p.status == http.StatusSeeOther:
				confirmed = append(confirmed, b)
			case err == nil && p.saysLater():
				refusals++
			default:
				t.Fatalf("a sign-in with a full disk: got %v and %v, want a page that says so with 503", p, err)
			}
			stays(t, "who is signed in", working, ada)
		}
		if refusals == 0 {
			t.Fatalf("%d sign-ins found a place on the full disk: the test shows nothing", tries)
		}
		r.Logged(t, "is full")
		if how == "killed" {
			r.Kill(t)
		}
		free()
		if how == "killed" {
			r.restart()
			f.allHealthy(t)
		}
		if err := lost(t, f, confirmed); err != nil {
			t.Errorf("%s: a confirmed session is lost: %v", how, err)
		}
		f.signedIn(t, bob)
		t.Logf("full and %s: %d of %d sign-ins were told to try again, all of the %d confirmed sessions are there", how, refusals, tries, len(confirmed))
	}
	r.Stop(t)
	integrity(t, filepath.Join(disk, "gatehouse.db"))
}

// lost says which of the confirmed sessions is gone.
func lost(t *testing.T, f *fleet, confirmed []*browser) error {
	t.Helper()
	for _, b := range confirmed {
		p, err := b.visit(t.Context(), http.MethodGet, f.app+"/headers", nil)
		if err == nil {
			err = b.isAt(p, ada)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mount mounts a file system in memory, as small as options say, until the test ends.
func mount(t *testing.T, dir, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		t.Fatalf("mount a small disk: %v: run the tests as root, as `make test` says", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill writes until there is no place left, and returns what frees it.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	w, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: got %v, want %v", err, syscall.ENOSPC)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// zeros have no end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// integrity has SQLite look at the whole database.
func integrity(t *testing.T, file string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var result string
	if err := db.QueryRowContext(context.WithoutCancel(t.Context()), "PRAGMA integrity_check").Scan(&result); err != nil || result != "ok" {
		t.Errorf("integrity_check: %q, %v", result, err)
	}
	t.Logf("PRAGMA integrity_check: %s", result)
}
