package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/dexidp/dex/storage"
)

// childConfirms creates sessions until it is killed, and writes the ID of each that is stored.
func childConfirms(out io.Writer) error {
	ctx := context.Background()
	s, err := OpenSQLite(ctx, "g.db", Options{})
	if err != nil {
		return err
	}
	failed := make(chan error)
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", w, i)
				err := s.CreateAuthSession(ctx, newSession(id, "alice"))
				if err == nil {
					_, err = fmt.Fprintln(out, id)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

func TestAKilledProcessLosesNothingThatItConfirmed(t *testing.T) {
	dir := t.TempDir()
	cmd, out := child(t, "confirm", dir)
	lines := bufio.NewScanner(out)
	var confirmed []string
	for len(confirmed) < 300 && lines.Scan() {
		confirmed = append(confirmed, lines.Text())
	}
	must(t, cmd.Process.Kill()) // SIGKILL
	for lines.Scan() {
		confirmed = append(confirmed, lines.Text())
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended with %v, want: killed", err)
	}
	if len(confirmed) < 300 {
		t.Fatalf("only %d writes were confirmed: %q", len(confirmed), confirmed)
	}
	s := openFile(t, filepath.Join(dir, "g.db"), Options{})
	for _, id := range confirmed {
		if _, err := s.GetAuthSession(t.Context(), id); err != nil {
			t.Errorf("session %s was confirmed and is lost: %v", id, err)
		}
	}
	must(t, s.Close())
}

// child starts this test binary as something else, in a directory.
func child(t *testing.T, what, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), childEnv+"="+what)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return cmd, out
}

// childOpensUnprivileged writes the errors of opening files as a user to whom modes apply.
func childOpensUnprivileged(out io.Writer) error {
	if os.Getuid() == 0 {
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
	}
	for _, name := range []string{"new.db", "old.db"} {
		s, err := OpenSQLite(context.Background(), name, Options{})
		if err == nil {
			err = errors.Join(errors.New("no error"), s.Close())
		}
		if _, err := fmt.Fprintln(out, err); err != nil {
			return err
		}
	}
	return nil
}

func TestReadOnlyDirectoryIsRefused(t *testing.T) {
	base := t.TempDir()
	must(t, os.Chmod(filepath.Dir(base), 0o755)) // the child must reach it
	must(t, openFile(t, filepath.Join(base, "old.db"), Options{}).Close())
	must(t, os.Chmod(filepath.Join(base, "old.db"), 0o666)) // only the directory is to refuse
	must(t, os.Chmod(base, 0o555))
	cmd, out := child(t, "unprivileged", base)
	said, err := io.ReadAll(out)
	must(t, err)
	must(t, cmd.Wait())
	must(t, os.Chmod(base, 0o755)) // so that it can be removed
	if want := "directory " + base + " is not writable"; strings.Count(string(said), want) != 2 {
		t.Errorf("got %q, want %q for both files", said, want)
	}
}

func TestWhatIsNoDatabaseOfOursIsRefusedAndLeftAlone(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, content, 0o600))
		return path
	}
	foreign := func(name string, statements ...string) string {
		path := filepath.Join(dir, name)
		db, err := openPool(path, 1, nil)
		must(t, err)
		execAll(t, db, statements...)
		return path
	}
	newer := func(name string) string {
		path := filepath.Join(dir, name)
		must(t, openFile(t, path, Options{}).Close())
		return foreign(name, "UPDATE meta SET value = 99 WHERE key = 'schema'")
	}
	for _, tt := range []struct {
		name, path, want string
	}{
		{"text", file("text", bytes.Repeat([]byte("not a database\n"), 100)), "not an SQLite database"},
		{"short text", file("short", []byte("x")), "not an SQLite database"},
		{"Dex's database", foreign("dex.db", "CREATE TABLE client (id TEXT)"), "not one of Gatehouse"},
		{"another program's", foreign("other.db", "PRAGMA application_id = 5"), "not one of Gatehouse"},
		{"another program's with a write-ahead log", foreign("wal.db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (x)"), "not one of Gatehouse"},
		{"newer schema", newer("newer.db"), "schema is version 99 and this Gatehouse knows versions up to 1: run the newer"},
		{"directory", dir, "not a regular file"},
		{"device", os.DevNull, "not a regular file"},
		{"no directory", filepath.Join(dir, "no", "g.db"), "directory " + filepath.Join(dir, "no") + " does not exist: create it"},
		{"file as directory", filepath.Join(file("plain", nil), "g.db"), "is not a directory"},
		{"nothing", "", "set storage.config.file"},
		{":memory:", ":memory:", "storage type memory"},
		{"URI", "file:x?mode=memory", "storage type memory"},
		{"URI of a database in memory", "file::memory:", "storage type memory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := digest(tt.path)
			_, err := OpenSQLite(t.Context(), tt.path, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
			if digest(tt.path) != before {
				t.Error("the file was changed")
			}
		})
	}
}

func execAll(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := db.ExecContext(t.Context(), s)
		must(t, err)
	}
	must(t, db.Close())
}

func digest(path string) [32]byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(b)
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "g.db")
	check := func(when string) {
		t.Helper()
		for _, name := range []string{path, path + "-wal", path + "-shm"} {
			info, err := os.Stat(name)
			must(t, err)
			if got := info.Mode().Perm(); got != 0o600 {
				t.Errorf("%s: %s has mode %o, want 600", when, filepath.Base(name), got)
			}
		}
	}
	s := openFile(t, path, Options{})
	must(t, s.CreateClient(t.Context(), storage.Client{ID: "a"}))
	check("new")
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		must(t, os.Chmod(name, 0o664)) // as a Kubernetes volume with fsGroup does
	}
	second := openFile(t, path, Options{})
	check("opened after a change of mode")
	must(t, second.Close())
	must(t, s.Close())
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 1 {
		t.Errorf("%d files are left in the directory, want the database only: %v", len(left), left)
	}
}

func TestSettingsThatDurabilityNeeds(t *testing.T) {
	d, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "g.db"), quiet())
	must(t, err)
	defer func() { must(t, d.Close()) }()
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "busy_timeout": "5000"} {
		var got string
		must(t, d.writer.db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got))
		if got != want {
			t.Errorf("%s is %s, want %s", pragma, got, want)
		}
	}
	if _, err := d.reader.ExecContext(t.Context(), "DELETE FROM record"); err == nil {
		t.Error("a reader may write")
	}
}

// The queries that run often must find their rows by an index.
func TestQueriesUseIndexes(t *testing.T) {
	d, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "g.db"), quiet())
	must(t, err)
	defer func() { must(t, d.Close()) }()
	for query, want := range map[string]string{
		sqlRead:      "sqlite_autoindex_record_1 (kind=? AND id=?)",
		sqlScan:      "sqlite_autoindex_record_1 (kind=? AND id>?)",
		sqlScanOwner: "record_owner (kind=? AND owner=? AND id>?)",
		sqlSweep:     "record_expires (kind=? AND expires>? AND expires<?)",
		sqlChanges:   "PRIMARY KEY (seq>? AND seq<?)",
	} {
		plan := explain(t, d.reader, query)
		if !strings.Contains(plan, want) || strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("%s\ngot plan %s\nwant %s", query, plan, want)
		}
	}
}

func explain(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	args := make([]any, strings.Count(query, "?"))
	for i := range args {
		args[i] = i
	}
	rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	must(t, err)
	defer func() { must(t, rows.Close()) }()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		must(t, rows.Scan(&id, &parent, &unused, &detail))
		plan = append(plan, detail)
	}
	must(t, rows.Err())
	return strings.Join(plan, "; ")
}

func TestFileNamesAreTakenAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a b.db", "a?mode=memory", "a#b", "a%20b", "a&_pragma=x", "ä.db", "-"} {
		path := filepath.Join(dir, name)
		s := openFile(t, path, Options{})
		must(t, s.CreateClient(t.Context(), storage.Client{ID: "a"}))
		must(t, s.Close())
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			t.Errorf("%q: no such file, or an empty one: %v", name, err)
		}
		s = openFile(t, path, Options{})
		if _, err := s.GetClient(t.Context(), "a"); err != nil {
			t.Errorf("%q: after reopening: %v", name, err)
		}
		must(t, s.Close())
	}
}

func TestSeveralMayMakeTheFileAtOnce(t *testing.T) {
	for range 5 {
		path := filepath.Join(t.TempDir(), "g.db")
		inParallel(t, 6, func(i int) error {
			s, err := OpenSQLite(t.Context(), path, Options{})
			if err != nil {
				return err
			}
			if err := s.CreateClient(t.Context(), storage.Client{ID: fmt.Sprint(i)}); err != nil {
				return err
			}
			return s.Close()
		})
		s := openFile(t, path, Options{})
		all, err := s.ListClients(t.Context())
		must(t, err)
		if len(all) != 6 {
			t.Errorf("got %d clients, want 6", len(all))
		}
		must(t, s.Close())
	}
}

func TestWritesThatWaitShareACommit(t *testing.T) {
	d, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "g.db"), quiet())
	must(t, err)
	defer func() { must(t, d.Close()) }()
	write(t, d, op(Create, "taken", "", "", 0))
	ctx, cancel := context.WithCancel(t.Context())

	d.writer.turn <- struct{}{} // somebody commits
	results := map[string]chan error{"a": nil, "taken": nil, "b": nil, "withdrawn": nil}
	for id := range results {
		done := make(chan error, 1)
		results[id] = done
		c := t.Context()
		if id == "withdrawn" {
			c = ctx
		}
		go func() {
			_, err := d.Write(c, []Op{op(Create, id, "", "", 0)})
			done <- err
		}()
	}
	waitFor(t, func() bool { return d.writer.waits() == len(results) })
	cancel()
	wantErr(t, <-results["withdrawn"], context.Canceled)
	waitFor(t, func() bool { return d.writer.waits() == len(results)-1 })
	<-d.writer.turn

	must(t, <-results["a"])
	must(t, <-results["b"])
	wantErr(t, <-results["taken"], storage.ErrAlreadyExists)
	_, err = d.Read(t.Context(), "k", "withdrawn")
	wantErr(t, err, storage.ErrNotFound)
	if head, err := d.Head(t.Context()); err != nil || head != 3 {
		t.Errorf("the change log is at %d (%v), want 3: failed writes must leave nothing out", head, err)
	}
}

func (w *groupWriter) waits() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiting)
}

// waitFor waits for what other goroutines are about to do.
func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	for !what() {
		if t.Context().Err() != nil {
			t.Fatal("the test has ended")
		}
		runtime.Gosched()
	}
}

// When the commit fails, everybody hears of it, even who had failed for a reason that is undone now.
func TestFailedCommitFailsAll(t *testing.T) {
	d, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "g.db"), quiet())
	must(t, err)
	_, err = d.writer.db.ExecContext(t.Context(), "PRAGMA query_only = 1")
	must(t, err)
	defer func() { must(t, d.Close()) }()
	for range 3 {
		if _, err := d.Write(t.Context(), []Op{op(Create, "a", "", "", 0)}); err == nil || isOutcome(err) {
			t.Errorf("got %v, want an error of the database", err)
		}
	}
	_, err = d.writer.db.ExecContext(t.Context(), "PRAGMA query_only = 0")
	must(t, err)
	write(t, d, op(Create, "a", "", "", 0))
}

func TestFullDiskRefusesAndLosesNothing(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "g.db")
	d, err := openSQLite(ctx, path, quiet())
	must(t, err)
	var pages int
	must(t, d.writer.db.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages))
	limit := func(n int) {
		must(t, d.writer.db.QueryRowContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", n)).Scan(&n))
	}
	limit(pages + 20)
	var stored, refused atomic.Int64
	inParallel(t, 8, func(w int) error {
		for i := range 10 {
			id := fmt.Sprintf("%d-%d", w, i)
			_, err := d.Write(ctx, []Op{op(Create, id, "", strings.Repeat("x", 4000), 0)})
			switch _, got := d.Read(ctx, "k", id); {
			case err == nil && got != nil:
				return fmt.Errorf("%s was confirmed and is lost: %w", id, got)
			case err == nil:
				stored.Add(1)
			case isOutcome(err):
				return err
			default:
				refused.Add(1)
			}
		}
		return nil
	})
	if stored.Load() == 0 || refused.Load() == 0 {
		t.Errorf("stored %d and refused %d, want some of each", stored.Load(), refused.Load())
	}
	limit(1 << 30)
	write(t, d, op(Create, "after", "", "", 0))
	must(t, d.Close())
	d, err = openSQLite(ctx, path, quiet())
	must(t, err)
	if got := int64(count(t, d, "")); got != stored.Load()+1 {
		t.Errorf("got %d records after reopening, want %d", got, stored.Load()+1)
	}
	must(t, d.Close())
}
