package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Files is what was read of files, by name: a digest of the content, or why there was none.
type Files map[string]string

// Record returns options that note in f what is read.
func (f Files) Record(o Options) Options {
	read := o.withDefaults().ReadFile
	o.ReadFile = func(name string) ([]byte, error) {
		data, err := read(name)
		f[name] = digest(data, err)
		return data, err
	}
	return o
}

// Changed returns the names of files that are not the same in both, sorted.
func (f Files) Changed(other Files) []string {
	var names []string
	for name, d := range f {
		if other[name] != d {
			names = append(names, name)
		}
	}
	for name := range other {
		if _, ok := f[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func digest(data []byte, err error) string {
	switch {
	case err == nil:
		return fmt.Sprintf("%x", sha256.Sum256(data))
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	}
	return "cannot be read"
}

// WatchOptions are the settings of a Watch. All are needed.
type WatchOptions struct {
	Quiet, Longest time.Duration // a change is told after that long without another, at the latest after Longest
	Poll           time.Duration // how often files are read without being told: of network volumes nobody tells
	ReadFile       func(name string) ([]byte, error)
	Notify         func() (*fsnotify.Watcher, error) // an error leaves the polling
	Log            *slog.Logger
}

// A Watch tells that one of a set of files has another content than it had when it was last read.
//
// It watches folders, not files: editors and `kubectl` put another file in the place of the old one, and a Kubernetes
// volume turns a symbolic link (..data) to another folder. Every folder on the way through symbolic links is watched.
type Watch struct {
	o       WatchOptions
	changed chan struct{}
	read    chan Files
	looked  func() // of a test: the places were looked for, and are not watched yet
}

// NewWatch returns a Watch. Run runs it.
func NewWatch(o WatchOptions) *Watch {
	return &Watch{o: o, changed: make(chan struct{}, 1), read: make(chan Files, 1)}
}

// Changed receives when files have changed and it was quiet since. What was read should be told to Read.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Read says which files were read, and how they were. They are the files that are watched from now on.
func (w *Watch) Read(f Files) {
	select {
	case <-w.read:
	default:
	}
	w.read <- maps.Clone(f)
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	var events chan fsnotify.Event
	var errs chan error
	n, err := w.o.Notify()
	if err != nil {
		w.o.Log.WarnContext(ctx, "files cannot be watched: they are read again every now and then", "every", w.o.Poll.String(), "error", err)
	} else {
		defer func() { _ = n.Close() }()
		events, errs = n.Events, n.Errors
	}
	poll := time.NewTicker(w.o.Poll)
	defer poll.Stop()
	var files Files
	var at places
	quiet := newQuiet(w.o.Quiet, w.o.Longest)
	defer quiet.stop()
	for {
		select {
		case files = <-w.read:
			at = w.follow(ctx, n, files)
			w.tell(files) // what has changed since, when nobody watched
		case e := <-events:
			if at.names[e.Name] {
				quiet.disturb()
			}
		case err := <-errs: // such as too many events at once
			w.o.Log.WarnContext(ctx, "watching files", "error", err)
			quiet.disturb()
		case <-poll.C:
			if w.differ(files) { // it may be in the middle of being written
				quiet.disturb()
			}
		case <-quiet.timer.C:
			quiet.stop()
			at = w.follow(ctx, n, files) // links may lead elsewhere now
			w.tell(files)
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watch) tell(files Files) {
	if !w.differ(files) {
		return
	}
	select {
	case w.changed <- struct{}{}:
	default: // it is told already
	}
}

// differ reports whether one of the files is not what it was.
func (w *Watch) differ(files Files) bool {
	for name, was := range files {
		if digest(w.o.ReadFile(name)) != was {
			return true
		}
	}
	return false
}

// quiet waits until nothing happens any more.
type quiet struct {
	timer         *time.Timer
	after, atMost time.Duration
	end           time.Time // zero: it is quiet
}

func newQuiet(after, atMost time.Duration) *quiet {
	q := &quiet{timer: time.NewTimer(atMost), after: after, atMost: atMost}
	q.stop()
	return q
}

func (q *quiet) disturb() {
	now := time.Now()
	if q.end.IsZero() {
		q.end = now.Add(q.atMost)
	}
	q.timer.Reset(max(0, min(q.after, q.end.Sub(now))))
}

func (q *quiet) stop() {
	q.timer.Stop()
	q.end = time.Time{}
}

// places are the folders in which something can happen to a set of files, and the names there that matter.
type places struct{ folders, names map[string]bool }

// followTries bounds how often follow looks again: what changes all the time is told of by events.
const followTries = 10

// follow has n watch the places of files. A folder that came after it was looked for, and before the one above was watched, is told of by no event: it
// looks again until all is as it was.
func (w *Watch) follow(ctx context.Context, n *fsnotify.Watcher, files Files) places {
	p := lookFor(files)
	if n == nil {
		return p
	}
	for try := 1; ; try++ {
		if w.looked != nil {
			w.looked()
		}
		w.watch(ctx, n, p)
		now := lookFor(files)
		if try == followTries || maps.Equal(now.folders, p.folders) && maps.Equal(now.names, p.names) {
			return p
		}
		p = now
	}
}

// watch has n watch the folders of p and no others.
func (w *Watch) watch(ctx context.Context, n *fsnotify.Watcher, p places) {
	watched := map[string]bool{}
	for _, folder := range n.WatchList() {
		watched[folder] = true
		if !p.folders[folder] {
			_ = n.Remove(folder) // it may be gone by itself
		}
	}
	for folder := range p.folders {
		if watched[folder] {
			continue
		}
		if err := n.Add(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.o.Log.WarnContext(ctx, "a folder cannot be watched: its files are read again every now and then", "folder", folder, "every", w.o.Poll.String(), "error", err)
		}
	}
}

// lookFor returns the places of files as they are now.
func lookFor(files Files) places {
	p := places{folders: map[string]bool{}, names: map[string]bool{}}
	for name := range files {
		p.add(name)
	}
	return p
}

// maxLinks bounds the symbolic links on the way to a file.
const maxLinks = 40

// add walks to a file as the system would, and notes each step that may change: a link, a folder that is missing, the file.
func (p places) add(name string) {
	name, err := filepath.Abs(name)
	if err != nil {
		return
	}
	const root = string(filepath.Separator)
	steps := func(path string) []string { return strings.Split(strings.Trim(filepath.Clean(path), root), root) }
	note := func(folder, step string) {
		p.folders[folder], p.names[folder], p.names[step] = true, true, true
	}
	at, rest := root, steps(name)
	for links := 0; len(rest) > 0; {
		step := filepath.Join(at, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(step)
		switch {
		case err != nil || len(rest) == 0 && info.Mode()&fs.ModeSymlink == 0:
			note(at, step)
			return
		case info.Mode()&fs.ModeSymlink == 0:
			at = step
			continue
		}
		note(at, step)
		target, err := os.Readlink(step)
		if links++; err != nil || links > maxLinks {
			return
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(at, target)
		}
		rest = append(steps(target), rest...)
		at = root
	}
}
