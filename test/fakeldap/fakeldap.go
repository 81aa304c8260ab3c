// Package fakeldap is a small LDAP server for tests (RFC 4511). It knows no directory: handlers say what it answers. It exists for what
// real servers do not do on demand: to hang, to die in the middle of an answer, to refuse StartTLS, to flood, to refer to strangers.
package fakeldap

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatehouse/test/peers"
)

// A Mode is how connections are protected.
type Mode int

const (
	Plain    Mode = iota // no TLS, and StartTLS is answered as unknown
	LDAPS                // TLS from the first byte
	StartTLS             // TLS after a StartTLS request (RFC 4511 section 4.14)
)

// Options of a server. The zero value answers every bind with success and every search with nothing, without TLS.
type Options struct {
	Address string // to listen on; "": a free port of 127.0.0.1
	Mode    Mode
	Names   []string    // of its certificate; nil: localhost and 127.0.0.1
	TLS     *tls.Config // nil: a certificate of a new CA, see Server.CA
	Mute    bool        // takes connections and bytes, and never answers
	Greet   []byte      // sent at once to whoever connects, ahead of everything

	Bind   func(Bind) BindAnswer     // nil: success
	Search func(Search) SearchAnswer // nil: nothing found
	Other  func(Other) Result        // any other request, such as modify or password modify; nil: success
}

// A Bind is a simple bind. Its password is there for the handler only, see Is: the server does not keep it.
type Bind struct {
	Connection int // counted from 1
	Name       string
	Empty      bool // the password was empty
	Policy     bool // the control of the password policy was sent
	Secure     bool // under TLS

	password string
}

// Is tells whether the password of the bind is p.
func (b Bind) Is(p string) bool { return b.password == p }

// A BindAnswer answers a bind.
type BindAnswer struct {
	Result
	Policy *Policy // nil: no control
	Hang   bool    // no answer
	Die    bool    // the connection is closed instead
}

// A Policy is the answer control of draft-behera-ldap-password-policy-10 section 6.2. -1 leaves a part out.
type Policy struct{ Expire, Grace, Error int }

// A Result is an LDAPResult (RFC 4511 section 4.1.9).
type Result struct {
	Code       int
	Matched    string
	Diagnostic string
	Referral   []string
}

// A Search is a search request.
type Search struct {
	Connection int
	BoundAs    string // the name of the last successful bind of the connection
	Base       string
	Scope      int
	SizeLimit  int
	Filter     string
	Attributes []string
	PageSize   int // -1: without the control of RFC 2696
	Cookie     string
}

// An Entry is an entry found.
type Entry struct {
	DN         string
	Attributes []Attribute
}

// An Attribute has the name that is sent, options included, such as "member;range=0-1499".
type Attribute struct {
	Name   string
	Values []string
}

// A SearchAnswer answers a search: entries, references, then the result.
type SearchAnswer struct {
	Entries    []Entry
	References [][]string
	Result
	Paged  bool // the control of RFC 2696 is sent, with Cookie
	Cookie string
	Hang   bool   // nothing is sent, or no more after the entries
	Die    bool   // the connection is closed in the middle of the last entry
	Flood  bool   // the entries are sent again and again, until the connection ends
	Raw    []byte // sent in place of everything
}

// An Other is any other request.
type Other struct {
	Connection int
	BoundAs    string
	Operation  int    // the application tag, RFC 4511 section 4.2 and on: 6 modify, 23 extended
	Name       string // the DN of a modify, the OID of an extended request
}

// A Server is a running server. It ends with its test.
type Server struct {
	o        Options
	listener net.Listener
	tls      *tls.Config
	ca       []byte
	pool     *x509.CertPool

	mu                sync.Mutex
	dials, handshakes int
	binds             []Bind
	searches          []Search
	others            []Other
	open              map[net.Conn]bool
	mute              bool
	done              sync.WaitGroup
	changed           chan struct{} // closed and made anew whenever something is counted
}

// Start starts a server.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	s := &Server{o: o, open: map[net.Conn]bool{}, mute: o.Mute, changed: make(chan struct{})}
	if s.tls = o.TLS; s.tls == nil && o.Mode != Plain {
		if o.Names == nil {
			o.Names = []string{"localhost", "127.0.0.1"}
		}
		ca := peers.NewCA(t, "fakeldap CA")
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ca.Pair(t, o.Names...)}}
		s.ca, s.pool = ca.PEM, ca.Pool()
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", o.Address)
	if err != nil {
		t.Fatal(err)
	}
	s.listener = l
	s.done.Go(s.accept)
	t.Cleanup(s.Close)
	return s
}

// Address is host:port.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Port is the port.
func (s *Server) Port() string { _, p, _ := net.SplitHostPort(s.Address()); return p }

// CA is the certificate of the CA that the server's own comes from, as PEM; Pool holds it. Nil with Options.TLS and without TLS.
func (s *Server) CA() []byte { return s.ca }

func (s *Server) Pool() *x509.CertPool { return s.pool }

// Dials and Handshakes count connections taken and TLS handshakes that succeeded.
func (s *Server) Dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

func (s *Server) Handshakes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handshakes
}

// Open is how many connections are open now.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Binds returns the binds that came, in order; Searches and Others do likewise.
func (s *Server) Binds() []Bind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.binds)
}

func (s *Server) Searches() []Search {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.searches)
}

func (s *Server) Others() []Other {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.others)
}

// BindsOf counts the binds of a name, in any case.
func (s *Server) BindsOf(name string) int {
	n := 0
	for _, b := range s.Binds() {
		if strings.EqualFold(b.Name, name) {
			n++
		}
	}
	return n
}

// Mute makes the server deaf (bytes are taken, nothing is answered) or lets it answer again what comes from then on.
func (s *Server) Mute(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = on
}

// Hangup closes the connections that are open.
func (s *Server) Hangup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
}

// Close ends the server and its connections.
func (s *Server) Close() {
	_ = s.listener.Close()
	s.Hangup()
	s.done.Wait()
}

// Wait waits until f holds, which is asked again whenever the server has counted something, or fails the test when its context ends.
func (s *Server) Wait(t testing.TB, f func() bool) {
	t.Helper()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if f() {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("fakeldap: what was waited for did not happen")
		}
	}
}

// note changes a counter.
func (s *Server) note(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) muted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mute
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		n := 0
		s.note(func() { s.dials++; n = s.dials; s.open[c] = true })
		s.done.Go(func() {
			defer func() { _ = c.Close(); s.note(func() { delete(s.open, c) }) }()
			_ = s.serve(&session{Server: s, raw: c, conn: c, id: n})
		})
	}
}

var errEnd = errors.New("fakeldap: the connection ends")

// serve answers one connection until it ends.
func (s *Server) serve(c *session) error {
	if len(s.o.Greet) > 0 {
		if _, err := c.conn.Write(s.o.Greet); err != nil {
			return err
		}
	}
	if s.muted() {
		_, err := io.Copy(io.Discard, c.conn)
		return err
	}
	if s.o.Mode == LDAPS {
		if err := c.handshake(); err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
	}
	for {
		if err := c.request(); err != nil {
			return err
		}
	}
}
