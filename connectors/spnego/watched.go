package spnego

import (
	"log/slog"
	"os"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// lookEvery is how often the keytab's file is looked at, at most: when a token comes.
const lookEvery = 2 * time.Second

// watched is a keytab that is read again when its file changes. What was good last is used until it can be read.
type watched struct {
	path string
	load func() (*keys, error)
	now  func() time.Time
	log  *slog.Logger

	mu     sync.Mutex
	looked time.Time
	stamp  stamp
	keys   *keys
}

// A stamp changes with the file.
type stamp struct {
	modified time.Time
	size     int64
	file     os.FileInfo // for os.SameFile: a new file may have taken the name
}

func (s stamp) same(o stamp) bool {
	return s.file != nil && o.file != nil && s.modified.Equal(o.modified) && s.size == o.size && os.SameFile(s.file, o.file)
}

func (w *watched) get() (*keys, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if age := now.Sub(w.looked); w.keys != nil && age >= 0 && age < lookEvery {
		return w.keys, nil
	}
	w.looked = now
	var at stamp
	if st, err := os.Stat(w.path); err == nil {
		at = stamp{st.ModTime(), st.Size(), st}
	}
	if w.keys != nil && at.same(w.stamp) {
		return w.keys, nil
	}
	k, err := w.load()
	if err != nil {
		if w.keys == nil {
			return nil, err
		}
		w.log.Warn("the keytab cannot be used: the one before goes on", "error", err)
		return w.keys, nil
	}
	if w.keys != nil {
		w.log.Info("the keytab was read again", "path", w.path)
	}
	w.keys, w.stamp = k, at
	return k, nil
}

// printable reports whether s is valid UTF-8 without control characters.
func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
