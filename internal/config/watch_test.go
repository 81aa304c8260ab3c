package config

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A folder of real files, and a watch of one of them.
type watched struct {
	t     *testing.T
	dir   string
	file  string
	watch *Watch
	reads atomic.Int64 // of the file, by the watch
}

func (w *watched) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) try(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// read says what the file is now, as a reload does, and waits until the watch has compared. What it told before that is of no account.
func (w *watched) read() {
	w.t.Helper()
	f := Files{}
	_, _ = f.Record(OS()).ReadFile(w.file)
	for range 2 { // when the second is taken, the first has been compared
		w.watch.Read(f)
		w.until(func() bool { return len(w.watch.read) == 0 })
	}
	select {
	case <-w.watch.Changed():
	default:
	}
}

func (w *watched) until(what func() bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !what() {
		<-tick.C
	}
}

func (w *watched) wait(what string) {
	w.t.Helper()
	select {
	case <-w.watch.Changed():
	case <-time.After(time.Minute):
		w.t.Fatalf("not told: %s", what)
	}
	w.read()
}

// start watches file, without polling.
func watchFile(t *testing.T, file string, prepare func(w *watched)) *watched {
	t.Helper()
	dir := t.TempDir()
	w := &watched{t: t, dir: dir, file: filepath.Join(dir, file)}
	w.watch = NewWatch(WatchOptions{
		Quiet: 20 * time.Millisecond, Longest: time.Second, Poll: time.Hour, Notify: fsnotify.NewWatcher, Log: slog.New(slog.DiscardHandler),
		ReadFile: func(name string) ([]byte, error) { defer w.reads.Add(1); return os.ReadFile(name) },
	})
	prepare(w)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.watch.Run(ctx) })
	t.Cleanup(running.Wait)
	t.Cleanup(cancel)
	w.read()
	return w
}

func TestWatchTells(t *testing.T) {
	w := watchFile(t, "f.yaml", func(w *watched) { w.write("f.yaml", "1") })
	w.write("f.yaml", "2")
	w.wait("written in place")

	w.write("f.tmp", "3")
	w.try(os.Rename(filepath.Join(w.dir, "f.tmp"), w.file))
	w.wait("another file in its place")
	w.write("f.yaml", "4")
	w.wait("written in place after that")

	w.try(os.Remove(w.file))
	w.wait("removed")
	w.write("f.yaml", "5")
	w.wait("back")

	w.write("beside.db", "x")
	w.write("f.tmp", "5")
	before := w.reads.Load()
	w.try(os.Rename(filepath.Join(w.dir, "f.tmp"), w.file))
	w.until(func() bool { return w.reads.Load() > before })
	select {
	case <-w.watch.Changed():
		t.Error("told of what is no change")
	default:
	}
	w.write("f.yaml", "6")
	w.wait("after what is no change")
}

// As in a volume of a ConfigMap or a Secret: f.yaml -> ..data/f.yaml, ..data -> ..1, and then -> ..2.
func TestWatchFollowsKubernetes(t *testing.T) {
	var version int
	put := func(w *watched, text string) {
		w.t.Helper()
		version++
		folder := ".." + string(rune('0'+version))
		w.try(os.Mkdir(filepath.Join(w.dir, folder), 0o700))
		w.write(folder+"/f.yaml", text)
		link := filepath.Join(w.dir, "..data_tmp")
		w.try(os.Symlink(folder, link))
		w.try(os.Rename(link, filepath.Join(w.dir, "..data")))
		if version == 2 { // that the old one is removed, as there, is no help
			w.try(os.RemoveAll(filepath.Join(w.dir, ".."+string(rune('0'+version-1)))))
		}
	}
	w := watchFile(t, "f.yaml", func(w *watched) {
		put(w, "1")
		w.try(os.Symlink("..data/f.yaml", w.file))
	})
	for _, text := range []string{"2", "3", "4"} {
		put(w, text)
		w.wait("swap to " + text)
		if data, err := os.ReadFile(w.file); err != nil || string(data) != text {
			t.Fatalf("the test's own links: %q, %v", data, err)
		}
	}
}

func TestWatchSurvivesItsFolder(t *testing.T) {
	w := watchFile(t, "a/b/f.yaml", func(w *watched) {
		w.try(os.MkdirAll(filepath.Join(w.dir, "a/b"), 0o700))
		w.write("a/b/f.yaml", "1")
	})
	w.try(os.Rename(filepath.Join(w.dir, "a/b"), filepath.Join(w.dir, "gone")))
	w.wait("its folder was moved away")
	w.try(os.RemoveAll(filepath.Join(w.dir, "a")))
	w.try(os.MkdirAll(filepath.Join(w.dir, "a/b"), 0o700))
	w.write("a/b/f.yaml", "2")
	w.wait("its folder is back")
	w.write("a/b/f.yaml", "3")
	w.wait("written there")
}

// A folder that comes when the watch has just looked for it, and does not watch the one above yet, is told of by no event.
func TestWatchSeesWhatCameWhileItLooked(t *testing.T) {
	var came atomic.Int64 // how many reads there had been, and one
	w := watchFile(t, "a/b/f.yaml", func(w *watched) {
		w.watch.looked = func() {
			if err := os.Mkdir(filepath.Join(w.dir, "a/b"), 0o700); err == nil {
				came.Store(w.reads.Load() + 1)
			}
		}
	})
	w.try(os.Mkdir(filepath.Join(w.dir, "a"), 0o700))
	w.until(func() bool { n := came.Load(); return n > 0 && w.reads.Load() >= n })
	w.write("a/b/f.yaml", "1")
	w.wait("written in the folder that came")
}

// What changed between the reading and the watching must not be missed.
func TestWatchComparesWithWhatWasRead(t *testing.T) {
	w := watchFile(t, "f.yaml", func(w *watched) { w.write("f.yaml", "1") })
	w.watch.Read(Files{w.file: digest([]byte("0"), nil)})
	w.wait("changed before it was watched")
}

func TestWatchWaitsUntilItIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuiet(200*time.Millisecond, 2*time.Second)
		defer q.stop()
		start := time.Now()
		q.disturb()
		time.Sleep(150 * time.Millisecond)
		q.disturb()
		<-q.timer.C
		if got := time.Since(start); got != 350*time.Millisecond {
			t.Errorf("two changes: told after %s, want 350ms", got)
		}
		q.stop()
		start = time.Now()
		for range 30 { // somebody writes without end
			q.disturb()
			select {
			case <-q.timer.C:
			case <-time.After(100 * time.Millisecond):
				continue
			}
			break
		}
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("changes without end: told after %s, want 2s", got)
		}
	})
}

// Where nothing tells of changes the files are read every now and then.
func TestWatchPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		content := "1"
		w := NewWatch(WatchOptions{
			Quiet: 200 * time.Millisecond, Longest: 2 * time.Second, Poll: 30 * time.Second, Log: slog.New(slog.DiscardHandler),
			ReadFile: func(string) ([]byte, error) { mu.Lock(); defer mu.Unlock(); return []byte(content), nil },
			Notify:   func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") },
		})
		ctx, cancel := context.WithCancel(t.Context())
		go w.Run(ctx)
		w.Read(Files{"f": digest([]byte("1"), nil)})
		time.Sleep(5 * time.Minute)
		select {
		case <-w.Changed():
			t.Error("told of nothing")
		default:
		}
		mu.Lock()
		content = "2"
		mu.Unlock()
		start := time.Now()
		<-w.Changed()
		if got := time.Since(start); got > 31*time.Second {
			t.Errorf("told after %s, want at most 31s", got)
		}
		cancel()
		synctest.Wait()
	})
}

func TestFiles(t *testing.T) {
	read := func(content map[string]string) Files {
		f := Files{}
		o := f.Record(Options{ReadFile: func(name string) ([]byte, error) {
			if text, ok := content[name]; ok {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		}})
		for _, name := range []string{"a", "b", "c"} {
			_, _ = o.ReadFile(name)
		}
		return f
	}
	before := read(map[string]string{"a": "1", "b": "2"})
	if got := before.Changed(read(map[string]string{"a": "1", "b": "2"})); len(got) != 0 {
		t.Errorf("the same: %v", got)
	}
	if got := before.Changed(read(map[string]string{"a": "1", "b": "3", "c": ""})); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("one changed and one new: %v", got)
	}
}
