package ldap

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
)

// long is an element of n bytes of content.
func long(tag byte, content []byte) []byte {
	n := len(content)
	return append([]byte{tag, 0x84, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, content...)
}

func TestReadMessage(t *testing.T) {
	deep := []byte{4, 0}
	for range maxDepth + 5 {
		deep = long(0x30, deep)
	}
	id := []byte{2, 1, 1}
	for _, c := range []struct {
		name string
		in   []byte
		most int64
		want error
	}{
		{"a message", []byte{0x30, 5, 2, 1, 1, 0x42, 0}, 100, nil},
		{"a long length", long(0x30, []byte{2, 1, 1, 0x42, 0}), 100, nil},
		{"not a sequence", []byte{0x31, 0}, 100, errGarbage},
		{"text", []byte("HTTP/1.1 200"), 100, errGarbage},
		{"TLS", []byte{0x16, 3, 1, 0, 5}, 100, errGarbage},
		{"indefinite", []byte{0x30, 0x80, 2, 1, 1, 0, 0}, 100, errGarbage},
		{"five bytes of length", []byte{0x30, 0x85, 0, 0, 0, 0, 1, 0}, 100, errGarbage},
		{"2 GB", []byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 2}, math.MaxInt64, errGarbage},
		{"9 MB", []byte{0x30, 0x84, 0, 0x90, 0, 0, 2}, math.MaxInt64, errLarge},
		{"more than is allowed", []byte{0x30, 5, 2, 1, 1, 0x42, 0}, 4, errFlood},
		{"an element longer than the message", []byte{0x30, 5, 2, 1, 1, 0x42, 9}, 100, errGarbage},
		{"an element without a length", []byte{0x30, 4, 2, 1, 1, 0x42}, 100, errGarbage},
		{"a long tag", []byte{0x30, 6, 2, 1, 1, 0x5f, 1, 0}, 100, errGarbage},
		{"deep", long(0x30, append(slices.Clone(id), deep...)), math.MaxInt64, errGarbage},
		{"many elements", long(0x30, append(slices.Clone(id), long(0x64, bytes.Repeat([]byte{5, 0}, maxElements))...)), math.MaxInt64, errLarge},
		{"large controls", long(0x30, slices.Concat(id, []byte{0x42, 0}, long(0xa0, long(4, make([]byte, maxControls))))), math.MaxInt64, errGarbage},
		{"ends early", []byte{0x30, 5, 2, 1, 1}, 100, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := readMessage(bytes.NewReader(c.in), func() int64 { return c.most })
			if !errors.Is(err, c.want) || c.want == nil && (err != nil || !bytes.Equal(m, c.in)) {
				t.Errorf("%x %v, wanted %v", m, err, c.want)
			}
		})
	}
}

// TestAllowed: no more messages come through than were allowed, nor more bytes.
func TestAllowed(t *testing.T) {
	message := []byte{0x30, 5, 2, 1, 1, 0x42, 0}
	for name, allow := range map[string][2]int64{"messages": {1 << 20, 3}, "bytes": {3 * 7, 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer func() { _ = ours.Close() }()
			w := newWire(ours, ours)
			read := make(chan int)
			go func() {
				n, _ := io.Copy(io.Discard, w)
				read <- int(n)
			}()
			w.allow(allow[0], allow[1])
			go func() { _, _ = theirs.Write(bytes.Repeat(message, 5)); _ = theirs.Close() }()
			if n := <-read; n != 3*len(message) || !errors.Is(w.why(), errFlood) {
				t.Errorf("%d bytes, %v; wanted %d and %v", n, w.why(), 3*len(message), errFlood)
			}
		})
	}
}

// FuzzMessage: what comes through is small enough, and package ber takes it.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{0x30, 5, 2, 1, 1, 0x42, 0})
	f.Add([]byte{0x30, 0x80, 2, 1, 1, 0, 0})
	f.Add(long(0x30, []byte{2, 1, 1, 0x61, 7, 10, 1, 0, 4, 0, 4, 0}))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := readMessage(bytes.NewReader(in), func() int64 { return 1 << 16 })
		if err != nil {
			return
		}
		if !bytes.HasPrefix(in, m) || len(m) > 1<<16+6 {
			t.Fatalf("%x of %x", m, in)
		}
		if p, err := ber.DecodePacketErr(m); err == nil && p.Tag != ber.TagSequence {
			t.Fatalf("%x is no sequence", m)
		}
	})
}
