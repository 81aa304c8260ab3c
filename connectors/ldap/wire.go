package ldap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
)

// What a directory may send in one message. A group of 100,000 members by their DNs is about 6 MB of 100,000 elements. go-ldap spends some 400 bytes on an
// element of two, so that elements are counted before it sees them.
const (
	maxMessage  = 8 << 20
	maxElements = 200_000
	maxDepth    = 32
	maxControls = 64 << 10
)

var (
	errFlood   = errors.New("ldap: the directory sends more than was asked for")
	errGarbage = errors.New("ldap: the directory does not speak LDAP")
	errLarge   = errors.New("ldap: a message that is larger than is read") // an entry may be, by the doing of whoever writes to it
)

// A wire is a connection as go-ldap reads it. Only whole messages that look like LDAP come through, none larger than go-ldap takes well, and for each request
// only as many bytes and messages as it is allowed. The limits of package ber are variables of the whole process.
type wire struct {
	net.Conn          // TLS, or tcp itself
	tcp      net.Conn // closed at once, where closing TLS would write first
	in       *bufio.Reader
	rest     []byte // of the message being read

	bytes, messages atomic.Int64 // that may still come
	received        atomic.Int64 // messages
	sent            atomic.Int64 // messages that were written whole; one that was not cannot have been understood
	aborted         atomic.Bool

	mu    sync.Mutex
	fault error // why reading ended, where it is more than the end of the connection
}

func newWire(conn, tcp net.Conn) *wire {
	w := &wire{Conn: conn, tcp: tcp, in: bufio.NewReader(conn)}
	w.allow(math.MaxInt64, math.MaxInt64)
	return w
}

// allow says what may come from now on.
func (w *wire) allow(bytes, messages int64) {
	w.bytes.Store(bytes)
	w.messages.Store(messages)
}

// abort ends the connection at once: what waits for it fails.
func (w *wire) abort() {
	w.aborted.Store(true)
	_ = w.tcp.Close()
}

func (w *wire) Close() error { w.abort(); return nil }

func (w *wire) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}

func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	if err == nil {
		w.sent.Add(1)
	}
	return n, err
}

func (w *wire) Read(b []byte) (int, error) {
	if len(w.rest) == 0 {
		m, err := readMessage(w.in, w.bytes.Load)
		if err == nil && w.messages.Add(-1) < 0 {
			err = errFlood
		}
		if err != nil {
			if errors.Is(err, errFlood) || errors.Is(err, errGarbage) || errors.Is(err, errLarge) {
				w.mu.Lock()
				w.fault = err
				w.mu.Unlock()
			}
			return 0, err
		}
		w.bytes.Add(-int64(len(m)))
		w.received.Add(1)
		w.rest = m
	}
	n := copy(b, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// readMessage reads an LDAPMessage (RFC 4511 section 4.1.1, encoded as section 5.1 says) of at most so many bytes, asked for when one begins. It reads no byte
// beyond it where r does not.
func readMessage(r io.Reader, most func() int64) ([]byte, error) {
	var head [6]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return nil, err
	}
	if head[0] != 0x30 {
		return nil, fmt.Errorf("%w: a message begins with %#x, wanted 0x30", errGarbage, head[0])
	}
	n := 2
	if head[1] > 0x80 && head[1] <= 0x84 {
		n += int(head[1] & 0x7f)
		if _, err := io.ReadFull(r, head[2:n]); err != nil {
			return nil, err
		}
	}
	length, _, ok := berLength(head[1:n])
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: the length of a message begins with %#x", errGarbage, head[1])
	case length > maxBytes:
		return nil, fmt.Errorf("%w: a message of %d bytes", errGarbage, length)
	case length > maxMessage:
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", errLarge, length, maxMessage)
	case int64(length) > most():
		return nil, errFlood
	}
	var m bytes.Buffer // grows with what comes, not with what is announced
	m.Write(head[:n])
	if _, err := io.CopyN(&m, r, int64(length)); err != nil {
		return nil, err
	}
	return m.Bytes(), checkMessage(m.Bytes()[n:])
}

// checkMessage looks at the elements of a message.
func checkMessage(b []byte) error {
	left := maxElements
	for i := 0; len(b) > 0; i++ {
		e, rest, err := element(b)
		if err != nil {
			return err
		}
		// Values of controls are decoded a second time.
		if i >= 2 && len(e.content) > maxControls {
			return fmt.Errorf("%w: controls of %d bytes, at most %d are read", errGarbage, len(e.content), maxControls)
		}
		if left--; e.constructed {
			if left, err = checkElements(e.content, left, 1); err != nil {
				return err
			}
		}
		b = rest
	}
	return nil
}

func checkElements(b []byte, left, depth int) (int, error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("%w: elements nested deeper than %d", errGarbage, maxDepth)
	}
	for len(b) > 0 {
		if left--; left < 0 {
			return 0, fmt.Errorf("%w: more than %d elements", errLarge, maxElements)
		}
		e, rest, err := element(b)
		if err != nil {
			return 0, err
		}
		if e.constructed {
			if left, err = checkElements(e.content, left, depth+1); err != nil {
				return 0, err
			}
		}
		b = rest
	}
	return left, nil
}

type berElement struct {
	constructed bool
	content     []byte
}

// element splits the first element off. LDAP has no tag above 30 and no indefinite length.
func element(b []byte) (berElement, []byte, error) {
	if b[0]&0x1f == 0x1f {
		return berElement{}, nil, fmt.Errorf("%w: a long tag", errGarbage)
	}
	n, read, ok := berLength(b[1:])
	if !ok || n > len(b)-1-read {
		return berElement{}, nil, fmt.Errorf("%w: an element is longer than what holds it", errGarbage)
	}
	b, tag := b[1+read:], b[0]
	return berElement{constructed: tag&0x20 != 0, content: b[:n]}, b[n:], nil
}

// berLength reads a definite length of at most four bytes, and how many bytes it takes.
func berLength(b []byte) (length, read int, ok bool) {
	switch {
	case len(b) == 0:
		return 0, 0, false
	case b[0] < 0x80:
		return int(b[0]), 1, true
	}
	n := int(b[0] & 0x7f)
	if n == 0 || n > 4 || len(b) < 1+n {
		return 0, 0, false
	}
	for _, v := range b[1 : 1+n] {
		length = length<<8 | int(v)
	}
	return length, 1 + n, true
}
