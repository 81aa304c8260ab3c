// Package passwords compares passwords with bcrypt hashes in processes of their own. A comparison is tens of milliseconds of
// computing without a pause. In the process of the gateway it would take a processor of Go's scheduler for that long, and the
// checks behind it would wait; a process of low priority has what they leave.
package passwords

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// maxPart bounds a hash and a password, in bytes. bcrypt takes 72 of a password.
const maxPart = 1 << 10

// What a process answers.
const (
	answerNo byte = iota
	answerYes
	answerBadHash
)

// errHash does not name the hash, which is a secret.
var errHash = errors.New("passwords: not a bcrypt hash")

// Match compares here and now. Its error says that hash is none of bcrypt's.
func Match(_ context.Context, hash, password []byte) (bool, error) {
	switch err := bcrypt.CompareHashAndPassword(hash, password); {
	case err == nil:
		return true, nil
	case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword):
		return false, nil
	}
	return false, errHash
}

// Serve is the other process: it answers what comes in until that ends. It lowers the priority of its thread for good.
func Serve(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	lowerPriority()
	var head [4]byte
	var buf [2 * maxPart]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		h, p := int(binary.BigEndian.Uint16(head[:])), int(binary.BigEndian.Uint16(head[2:]))
		if h > maxPart || p > maxPart {
			return fmt.Errorf("passwords: a hash of %d bytes and a password of %d, want at most %d", h, p, maxPart)
		}
		if _, err := io.ReadFull(in, buf[:h+p]); err != nil {
			return err
		}
		answer := answerNo
		switch ok, err := Match(context.Background(), buf[:h], buf[h:h+p]); {
		case err != nil:
			answer = answerBadHash
		case ok:
			answer = answerYes
		}
		clear(buf[:h+p])
		if _, err := out.Write([]byte{answer}); err != nil {
			return err
		}
	}
}

// Options of a Pool.
type Options struct {
	// Command returns a program that calls Serve with its standard input and output. It is not started yet.
	Command func() *exec.Cmd
	Most    int           // processes at once
	Idle    time.Duration // after it a process that has nothing to do is ended; the next comparison starts one
	// Failed is told why a process could not be used. The comparison is then made in this one.
	Failed func(error)
}

// A Pool keeps processes that compare. It is safe for concurrent use.
type Pool struct {
	o     Options
	slots chan struct{} // one element per process in use

	mu     sync.Mutex
	idle   []*process // the one used last is the last
	closed bool
}

// New returns a pool without a process: the first comparison starts one.
func New(o Options) *Pool { return &Pool{o: o, slots: make(chan struct{}, max(1, o.Most))} }

// A process is another one, and what it is asked through.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	unused *time.Timer
}

// Match reports whether hash is that of password. It waits for a process that is free, and gives up with ctx's error when that
// ends first; a comparison that has begun goes on without it.
func (p *Pool) Match(ctx context.Context, hash, password []byte) (bool, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	type result struct {
		ok  bool
		err error
	}
	done := make(chan result, 1)
	request := encode(hash, password) // of its own: the caller may be gone before it is sent
	go func() {
		defer func() { <-p.slots }()
		defer clear(request)
		ok, err := p.match(ctx, request, len(hash))
		done <- result{ok, err}
	}()
	select {
	case r := <-done:
		return r.ok, r.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func encode(hash, password []byte) []byte {
	b := make([]byte, 4, 4+len(hash)+len(password))
	binary.BigEndian.PutUint16(b, uint16(min(len(hash), 1<<16-1)))
	binary.BigEndian.PutUint16(b[2:], uint16(min(len(password), 1<<16-1)))
	return append(append(b, hash...), password...)
}

// match asks a process, and compares by itself if there is none that works.
func (p *Pool) match(ctx context.Context, request []byte, hashLen int) (bool, error) {
	hash, password := request[4:4+hashLen], request[4+hashLen:]
	if len(hash) > maxPart || len(password) > maxPart {
		return false, fmt.Errorf("passwords: a hash of %d bytes and a password of %d, want at most %d", len(hash), len(password), maxPart)
	}
	w, err := p.take()
	if err == nil {
		var answer byte
		if answer, err = w.ask(request); err == nil {
			p.put(w)
			switch answer {
			case answerYes:
				return true, nil
			case answerNo:
				return false, nil
			}
			return false, errHash
		}
		w.end()
	}
	p.o.Failed(err)
	return Match(ctx, hash, password)
}

// take returns a process that has nothing to do, or starts one.
func (p *Pool) take() (*process, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		w.unused.Stop()
		return w, nil
	}
	p.mu.Unlock()
	cmd := p.o.Command()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, in: in, out: out}, nil
}

// put keeps a process for the next comparison.
func (p *Pool) put(w *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		go w.end()
		return
	}
	w.unused = time.AfterFunc(p.o.Idle, func() {
		if p.remove(w) {
			w.end()
		}
	})
	p.idle = append(p.idle, w)
}

// remove takes a process out of those that have nothing to do; false if it is in use again.
func (p *Pool) remove(w *process) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.idle {
		if other == w {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return true
		}
	}
	return false
}

// Close ends the processes that have nothing to do, and the others once they have answered.
func (p *Pool) Close() {
	p.mu.Lock()
	all := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, w := range all {
		w.unused.Stop()
		w.end()
	}
}

// ask sends a comparison and waits for its answer. A process that does not answer is killed.
func (w *process) ask(request []byte) (byte, error) {
	kill := time.AfterFunc(askTimeout, func() { _ = w.cmd.Process.Kill() })
	defer kill.Stop()
	if _, err := w.in.Write(request); err != nil {
		return 0, fmt.Errorf("passwords: ask: %w", err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(w.out, answer[:]); err != nil {
		return 0, fmt.Errorf("passwords: answer: %w", err)
	}
	return answer[0], nil
}

// end closes the input of a process, which ends it, and waits. One that does not end is killed.
func (w *process) end() {
	_ = w.in.Close() // it may be gone already
	kill := time.AfterFunc(endTimeout, func() { _ = w.cmd.Process.Kill() })
	defer kill.Stop()
	_ = w.cmd.Wait() // how it ended does not matter
}

// Both are longer than any comparison takes, on a busy machine too.
const (
	askTimeout = time.Minute
	endTimeout = 10 * time.Second
)
