package directory

import (
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/test/peers"
)

func openLDAP(t *testing.T, dir *peers.SlapdServer, more table) table {
	t.Helper()
	c := documented(t, "openldap", table{
		"domain": "example.test", "host": dir.Host, "rootCA": dir.CA, "bindDN": dir.ServiceDN, "bindPW": dir.ServicePassword,
	})
	maps.Copy(c["config"].(table), more)
	return c
}

func TestOpenLDAP(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{Users: 10_000, Groups: 1_000, Many: 2_000, ManyNames: "department-of-everything-%04d"})
	s := serve(t, openLDAP(t, dir, nil), table{"revalidate": "1h"})
	for _, tt := range []struct {
		name string
		test func(*testing.T, *peers.SlapdServer, *stack)
	}{
		{"nested groups reach the app", nestedGroups},
		{"each state of an account is told and audited", policies},
		{"a password that was reset or has just expired is changed on the page", resetPassword},
		{"two thousand groups fit, as far as a header does", manyGroups},
		{"a member less is seen at once", memberLess},
		{"known users go on while the directory is down", directoryDown},
		{"after that a member less is seen at once again", memberLess},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, dir, s) })
	}
}

func nestedGroups(t *testing.T, dir *peers.SlapdServer, s *stack) {
	for _, name := range []string{"alice", "alice@example.test"} {
		headers := s.signIn(t, name, dir.Password).seen(t)
		groups := strings.Split(headers["kubeflow-groups"], ",")
		slices.Sort(groups)
		if want := []string{"g0-cycle", "g1-top", "g2-mid", "g3-leaf"}; !slices.Equal(groups, want) || headers["kubeflow-userid"] != "alice@example.test" {
			t.Errorf("%s: the app saw %q in %q, want alice@example.test in %q", name, headers["kubeflow-userid"], groups, want)
		}
	}
}

func policies(t *testing.T, dir *peers.SlapdServer, s *stack) {
	unknown := s.newPerson(t, "en").fill(t, "nobody", "guess")
	for _, tt := range []struct {
		name, user, password, result string
		status                       int
		shows                        string
	}{
		{"wrong password", "u00001", "guess", "wrong-credentials", 401, ""},
		{"locked", "locked", dir.Password, "account-locked", 401, ""},
		{"expired for good", "expired", dir.Password, "password-expired", 403, "Your password has expired"},
		{"reset", "reset", dir.Password, "password-must-change", 403, "choose a password of your own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			skip := len(s.gatehouse.Log())
			pg := s.newPerson(t, "en").fill(t, tt.user, tt.password)
			if pg.status != tt.status || !strings.Contains(pg.body, tt.shows) {
				t.Errorf("got status %d, want %d and %q: %s", pg.status, tt.status, tt.shows, pg.body)
			}
			if tt.shows == "" && pg.strange() != unknown.strange() {
				t.Errorf("got\n%s\nwant as for an unknown user\n%s", pg.strange(), unknown.strange())
			}
			s.audited(t, skip, tt.result)
		})
	}
}

func resetPassword(t *testing.T, dir *peers.SlapdServer, s *stack) {
	const fresh = "Correct-Horse-9"
	for user, told := range map[string]string{"reset": "choose a password of your own", "grace": "Your password has expired. Choose a new one"} {
		p := s.newPerson(t, "en")
		form := p.fill(t, user, dir.Password)
		if form.status != http.StatusForbidden || !strings.Contains(form.body, told) {
			t.Errorf("%s: got status %d, want 403 and %q: %s", user, form.status, told, form.body)
		}
		pg := p.do(t, http.MethodPost, form.action(t), url.Values{"login": {user}, "password": {dir.Password}, "new_password": {fresh}, "new_password_again": {fresh}})
		if pg.status != http.StatusOK || pg.url.String() != s.app+"/headers" {
			t.Errorf("%s: got status %d at %s, want the app: %s", user, pg.status, pg.url, pg.body)
			continue
		}
		s.signIn(t, user, fresh)
	}
}

func manyGroups(t *testing.T, dir *peers.SlapdServer, s *stack) {
	const size = `gatehouse_identity_dropped_total{reason="size"}`
	before := s.metric(t, size)
	header := s.signIn(t, "many", dir.Password).seen(t)["kubeflow-groups"]
	groups := strings.Split(header, ",")
	if len(header) > 48<<10 || len(groups) < 1_500 || len(groups) == 2_000 {
		t.Errorf("the app saw %d groups in %d bytes, want as many of 2,000 as fit in 48 KiB", len(groups), len(header))
	}
	if dropped := s.metric(t, size) - before; dropped < float64(2_000-len(groups)) {
		t.Errorf("the metric counts %v groups that did not fit, want %d for each request", dropped, 2_000-len(groups))
	}
}

func memberLess(t *testing.T, dir *peers.SlapdServer, s *stack) {
	p := s.signIn(t, "bob", dir.Password)
	dir.SetMember(t, "g0002", "bob", true)
	in := func() bool { return slices.Contains(strings.Split(p.seen(t)["kubeflow-groups"], ","), "g0002") }
	peers.Eventually(t, 2*time.Minute, "the new group reaches the app", in)
	dir.SetMember(t, "g0002", "bob", false)
	peers.Eventually(t, 2*time.Minute, "the group is gone again", func() bool { return !in() })
}

func directoryDown(t *testing.T, dir *peers.SlapdServer, s *stack) {
	known := s.signIn(t, "u00042", dir.Password)
	dir.Kill(t)
	skip := len(s.gatehouse.Log())
	pg := s.newPerson(t, "en").fill(t, "u00043", dir.Password)
	if pg.status != http.StatusServiceUnavailable {
		t.Errorf("signing in while the directory is down: got status %d, want 503: %s", pg.status, pg.body)
	}
	s.audited(t, skip, "unavailable")
	if got := known.seen(t)["kubeflow-userid"]; got != "u00042@example.test" {
		t.Errorf("a known user: the app saw %q, want u00042@example.test", got)
	}
	dir.Start(t)
	peers.Eventually(t, 2*time.Minute, "signing in works again", func() bool {
		return s.newPerson(t, "en").fill(t, "u00043", dir.Password).status == http.StatusOK
	})
}

// A cutter passes bytes on to a host until it is told to cut.
type cutter struct {
	addr string
	cut  atomic.Bool // with the next bytes of a client
	dead atomic.Bool // it was: nothing is passed on any more

	listener net.Listener

	mu    sync.Mutex
	conns []net.Conn
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: l.Addr().String(), listener: l}
	var all sync.WaitGroup
	t.Cleanup(func() {
		c.end()
		all.Wait()
	})
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			out, err := d.DialContext(t.Context(), "tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			c.keep(in, out)
			all.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
			all.Go(func() { _, _ = io.Copy(out, readFrom{in, c}); _ = out.Close() })
		}
	})
	return c
}

func (c *cutter) keep(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conns...)
	if c.dead.Load() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

func (c *cutter) end() {
	c.dead.Store(true)
	_ = c.listener.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

// readFrom reads a client's bytes.
type readFrom struct {
	net.Conn
	c *cutter
}

func (r readFrom) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	if n > 0 && r.c.cut.Swap(false) {
		r.c.end()
	}
	if r.c.dead.Load() {
		return 0, io.EOF
	}
	return n, err
}

func TestAHostDiesInTheMiddleOfASignIn(t *testing.T) {
	first := peers.Slapd(t, peers.SlapdOptions{})
	second := peers.Slapd(t, peers.SlapdOptions{Peer: first})
	c := newCutter(t, first.Host)
	connector := openLDAP(t, first, table{"hosts": []string{c.addr, second.Host}, "watch": "off"})
	delete(connector["config"].(table), "host")
	s := serve(t, connector, table{"revalidate": "1h"})
	s.signIn(t, "alice", first.Password)
	c.cut.Store(true)
	peers.Eventually(t, 2*time.Minute, "the first host is asked", func() bool { // at once, unless it was slow to connect to
		s.signIn(t, "alice", first.Password)
		return c.dead.Load()
	})
	s.signIn(t, "bob", first.Password)
}
