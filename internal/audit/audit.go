// Package audit writes the audit log without ever making a request wait for it.
package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// DefaultLimit is how many bytes of lines wait to be written at most, unless said otherwise.
const DefaultLimit = 4 << 20

// chunkSize is how many bytes are written at once, as whole lines: what a pipe takes in one piece (PIPE_BUF),
// so that lines stay whole where another program writes to the same pipe. A longer line goes alone.
const chunkSize = 4 << 10

// gatherTime is how long a line waits for others to be written with it: under load there is one write for many lines, and
// nobody is woken for each. A process that is killed loses no more than this.
const gatherTime = 20 * time.Millisecond

// ErrClosed is returned by Write after Close.
var ErrClosed = errors.New("audit: writer is closed")

// A Writer takes whole lines and writes them to another writer from a goroutine of its own. Lines wait in a
// buffer of bounded size; what does not fit is dropped and counted, and a line of its own says so as soon as
// there is room again:
//
//	{"level":"WARN","msg":"audit events dropped","count":3}
//
// It is safe for concurrent use. It is no io.Closer: Close takes a context.
type Writer struct {
	out   io.Writer
	limit int
	wake  chan struct{} // has room for one: a wake-up is never lost
	quit  chan struct{} // closed by Close
	done  chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	waiting  []byte // whole lines
	spare    []byte // the buffer that is not waiting, for reuse
	closed   bool
	dropped  uint64
	reported uint64 // of dropped
}

// NewWriter returns a Writer to out that holds at most limit bytes of waiting lines; 0 means DefaultLimit.
// Close ends its goroutine.
func NewWriter(out io.Writer, limit int) *Writer {
	if limit <= 0 {
		limit = DefaultLimit
	}
	w := &Writer{out: out, limit: limit, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line; it adds the newline if it is missing. It never waits for the underlying writer and
// does not keep p. A dropped line is no error: Dropped counts it. After Close it returns ErrClosed.
func (w *Writer) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		w.dropped++
		return 0, ErrClosed
	}
	if len(w.waiting)+len(p)+1 > w.limit {
		w.dropped++
		return len(p), nil
	}
	w.waiting = append(w.waiting, p...)
	if p[len(p)-1] != '\n' {
		w.waiting = append(w.waiting, '\n')
	}
	w.signal()
	return len(p), nil
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines were not written: for lack of room, after Close, or since the underlying
// writer failed.
func (w *Writer) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// Close stops taking lines and waits until those that wait are written, but no longer than ctx. It may be
// called more than once.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.quit)
		w.signal()
	}
	w.mu.Unlock()
	select {
	case <-w.done:
		return nil
	default:
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		return fmt.Errorf("audit: close: the log takes no more lines, %d bytes are waiting: %w", len(w.waiting), ctx.Err())
	}
}

// run writes what waits until the writer is closed and nothing is left.
func (w *Writer) run() {
	defer close(w.done)
	torn := false // the last write ended inside a line
	gather := time.NewTimer(0)
	defer gather.Stop()
	for range w.wake {
		gather.Reset(gatherTime)
		select {
		case <-gather.C:
		case <-w.quit:
		}
		lines, lost, closed := w.take()
		var failed, unreported int
		failed, torn = w.writeLines(lines, torn)
		if lost > 0 {
			report := append(strconv.AppendUint([]byte(`{"level":"WARN","msg":"audit events dropped","count":`), lost, 10), "}\n"...)
			if unreported, torn = w.writeLines(report, torn); unreported > 0 {
				lost = 0
			}
		}
		w.put(lines, lost, failed, failed+unreported == 0)
		if closed {
			return
		}
	}
}

// take returns what waits, and how many dropped lines the log does not know of yet.
func (w *Writer) take() (lines []byte, lost uint64, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines, w.waiting, w.spare = w.waiting, w.spare[:0], nil
	return lines, w.dropped - w.reported, w.closed
}

// put takes a buffer back, and what became of its lines. works says that the log took all of this round.
func (w *Writer) put(lines []byte, reported uint64, failed int, works bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spare = lines
	w.reported += reported
	w.dropped += uint64(failed) //nolint:gosec // G115: a count
	if works && w.dropped > w.reported {
		w.signal() // lines were dropped while these were written: say so now
	}
}

// writeLines writes lines in chunks. It returns how many lines failed, and whether the last write that did
// anything ended inside a line: then the next one starts with a newline, or it would spoil its first line too.
func (w *Writer) writeLines(lines []byte, torn bool) (failed int, stillTorn bool) {
	for len(lines) > 0 {
		n := chunk(lines)
		if torn {
			if _, err := w.out.Write([]byte("\n")); err != nil {
				return failed + bytes.Count(lines, []byte("\n")), true
			}
			torn = false
		}
		written, err := w.out.Write(lines[:n])
		written = min(max(written, 0), n)
		if err != nil || written < n {
			failed += bytes.Count(lines[written:n], []byte("\n"))
			torn = written > 0 && lines[written-1] != '\n'
		}
		lines = lines[n:]
	}
	return failed, torn
}

// chunk returns the length of the next whole lines to write.
func chunk(lines []byte) int {
	if len(lines) <= chunkSize {
		return len(lines)
	}
	if i := bytes.LastIndexByte(lines[:chunkSize], '\n'); i >= 0 {
		return i + 1
	}
	return bytes.IndexByte(lines, '\n') + 1
}

// Hash returns how a session id appears in logs: it tells sessions apart and is of no use to whoever reads it.
func Hash(id string) string {
	sum := sha256.Sum256([]byte("gatehouse audit session id\x00" + id))
	return hex.EncodeToString(sum[:6])
}
