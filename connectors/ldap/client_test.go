package ldap

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/test/fakeldap"
)

const svc, svcPW, alice = "cn=svc,dc=example", "svc-secret", "uid=alice,dc=example"

// a transport to servers, in this order, which have as long as it takes on a machine that stands still now and then.
func to(servers ...*fakeldap.Server) transport {
	t := transport{
		security: plain, bindDN: svc, bindPW: svcPW, headStart: time.Hour, dialTimeout: time.Hour, requestTimeout: time.Hour,
		connections: 4, idle: time.Hour, pageSize: 500,
	}
	for _, s := range servers {
		t.hosts = append(t.hosts, s.Address())
	}
	return t
}

func start(t *testing.T, tr transport) *client {
	t.Helper()
	c := newClient(tr, nil, nil)
	t.Cleanup(c.close)
	return c
}

// within gives up long after anything should have happened: it is for a hanging test, not for measuring.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// hurry lets c wait for no answer longer than d, until it dials that host: for those after that it has the time it takes.
func hurry(c *client, d time.Duration, until string) {
	patient, dial := c.t.requestTimeout, c.dialTCP
	c.t.requestTimeout = d
	var once sync.Once
	c.dialTCP = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == until {
			once.Do(func() { c.t.requestTimeout = patient })
		}
		return dial(ctx, network, addr)
	}
}

func passwords(b fakeldap.Bind) fakeldap.BindAnswer {
	if b.Is(svcPW) && b.Name == svc || b.Is("right") {
		return fakeldap.BindAnswer{}
	}
	return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49, Diagnostic: "80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data 52e, v4563\x00\r\n"}}
}

func found(names ...string) func(fakeldap.Search) fakeldap.SearchAnswer {
	return func(fakeldap.Search) fakeldap.SearchAnswer {
		var a fakeldap.SearchAnswer
		for _, n := range names {
			a.Entries = append(a.Entries, fakeldap.Entry{DN: n, Attributes: []fakeldap.Attribute{{Name: "cn", Values: []string{n}}}})
		}
		return a
	}
}

func serve(t *testing.T, search func(fakeldap.Search) fakeldap.SearchAnswer) *fakeldap.Server {
	t.Helper()
	return fakeldap.Start(t, fakeldap.Options{Bind: passwords, Search: search})
}

func names(es []*entry) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.dn)
	}
	return out
}

// wantFound searches and wants one entry of this name.
func wantFound(t *testing.T, c *client, name string) {
	t.Helper()
	es, err := c.search(within(t), query{base: "dc=example", limit: 5})
	if err != nil || !slices.Equal(names(es), []string{name}) {
		t.Fatalf("found %v, %v; wanted %q", names(es), err, name)
	}
}

// dead is an address where nothing listens.
func dead(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// TestWarm: a sign-in of a warm client dials nothing.
func TestWarm(t *testing.T) {
	s := serve(t, found(alice))
	c := start(t, to(s))
	for range 20 {
		wantFound(t, c, alice)
		if v, err := c.bind(within(t), alice, "right"); err != nil || v.code != 0 {
			t.Fatalf("bind: %+v %v", v, err)
		}
	}
	if got := c.counted(); s.Dials() != 2 || got.serviceDials != 1 || got.userDials != 1 || s.BindsOf(svc) != 1 || s.BindsOf(alice) != 20 {
		t.Errorf("%d dials, %+v, %d binds of the service account; wanted 2, 1 and 1, 1", s.Dials(), got, s.BindsOf(svc))
	}
	if c.host() != s.Address() {
		t.Errorf("host %q, wanted %q", c.host(), s.Address())
	}
}

// TestUserConnections: nothing but binds happens on a connection on which users bind.
func TestUserConnections(t *testing.T) {
	s := serve(t, found(alice))
	c := start(t, to(s))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if i%2 == 0 {
				_, _ = c.bind(within(t), alice, []string{"right", "wrong"}[i/2%2])
				return
			}
			_, _ = c.search(within(t), query{base: "dc=example", limit: 1})
		})
	}
	wg.Wait()
	for _, q := range s.Searches() {
		if q.BoundAs != svc {
			t.Errorf("a search ran as %q", q.BoundAs)
		}
	}
	if s.Dials() > 8 {
		t.Errorf("%d dials, at most 8 wanted", s.Dials())
	}
}

func TestBind(t *testing.T) {
	s := fakeldap.Start(t, fakeldap.Options{Bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
		a := passwords(b)
		if b.Name != svc {
			a.Policy = &fakeldap.Policy{Expire: -1, Grace: -1, Error: 2}
		}
		return a
	}})
	c := start(t, to(s))
	v, err := c.bind(within(t), alice, "wrong")
	if err != nil || v.code != 49 || !strings.HasSuffix(v.diagnostic, "data 52e, v4563") || v.policy == nil || v.policy.Error != 2 {
		t.Errorf("verdict %+v, %v", v, err)
	}
	if v, err = c.bind(within(t), alice, "right"); err != nil || v.code != 0 || v.policy == nil {
		t.Errorf("verdict %+v, %v", v, err)
	}
	for _, b := range s.Binds() {
		if !b.Policy || b.Empty {
			t.Errorf("bind %+v: without the control of the policy, or empty", b)
		}
	}
	before := len(s.Binds())
	for _, x := range [][2]string{{alice, ""}, {"", "right"}, {"", ""}} {
		if _, err := c.bind(within(t), x[0], x[1]); !errors.Is(err, errEmpty) {
			t.Errorf("bind of %q: %v, wanted %v", x, err, errEmpty)
		}
		if _, err := c.asUser(within(t), x[0], x[1], nil); !errors.Is(err, errEmpty) {
			t.Errorf("asUser of %q: %v, wanted %v", x, err, errEmpty)
		}
	}
	if len(s.Binds()) != before {
		t.Errorf("an empty password or name reached the server")
	}
}

// TestServiceWithoutPassword: a service account without a password is refused here, since a server would call it a success.
func TestServiceWithoutPassword(t *testing.T) {
	s := serve(t, found(alice))
	tr := to(s)
	tr.bindPW = ""
	c := start(t, tr)
	if _, err := c.search(within(t), query{base: "dc=example"}); !errors.Is(err, errEmpty) {
		t.Errorf("%v, wanted %v", err, errEmpty)
	}
	if len(s.Binds()) != 0 {
		t.Error("an unauthenticated bind was sent")
	}
}

// TestAnonymous: without a service account nothing binds.
func TestAnonymous(t *testing.T) {
	s := serve(t, found(alice))
	tr := to(s)
	tr.bindDN, tr.bindPW = "", ""
	wantFound(t, start(t, tr), alice)
	if len(s.Binds()) != 0 {
		t.Error("there was a bind")
	}
}

// TestServiceRefused: a wrong password of the service account is tried once at one host, and not again for a while.
func TestServiceRefused(t *testing.T) {
	a, b := serve(t, nil), serve(t, nil)
	tr := to(a, b)
	tr.bindPW = "old"
	var clock atomic.Int64
	c := newClient(tr, func() time.Time { return time.Unix(clock.Load(), 0) }, nil)
	t.Cleanup(c.close)
	for range 10 {
		_, err := c.search(within(t), query{base: "dc=example"})
		var refused *serviceRefused
		if !errors.As(err, &refused) || codeOf(err) != 49 || errors.Is(err, errNoDirectory) {
			t.Fatalf("%v", err)
		}
	}
	if n := a.BindsOf(svc) + b.BindsOf(svc); n != 1 {
		t.Errorf("%d binds of the service account, wanted 1", n)
	}
	binds := int64(1)
	for _, at := range []struct{ now, more int64 }{{60, 1}, {60 + 60, 0}, {60 + 14*60, 0}, {60 + 16*60, 1}} {
		clock.Store(at.now)
		_, _ = c.search(within(t), query{base: "dc=example"})
		binds += at.more
		if n := int64(a.BindsOf(svc) + b.BindsOf(svc)); n != binds {
			t.Errorf("%d binds of the service account after %d s, wanted %d", n, at.now, binds)
		}
	}
}

// TestPoolBound: 200 at once use no more connections than there may be.
func TestPoolBound(t *testing.T) {
	s := serve(t, found(alice))
	c := start(t, to(s))
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 200 {
		wg.Go(func() {
			if _, err := c.search(within(t), query{base: "dc=example", limit: 1}); err != nil {
				failed.Add(1)
			}
			if _, err := c.bind(within(t), alice, "right"); err != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 || s.Dials() > 8 {
		t.Errorf("%d failures, %d dials; wanted 0 and at most 8", failed.Load(), s.Dials())
	}
	if got := c.counted(); got.inUse != 0 || got.open > 8 || got.searches != 200 || got.binds != 200 {
		t.Errorf("afterwards: %+v", got)
	}
}

// TestWaiting: whoever waits for a connection waits no longer than his context.
func TestWaiting(t *testing.T) {
	s := serve(t, func(fakeldap.Search) fakeldap.SearchAnswer { return fakeldap.SearchAnswer{Hang: true} })
	tr := to(s)
	tr.connections = 1
	c := start(t, tr)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { _, err := c.search(ctx, query{base: "dc=example"}); first <- err }()
	s.Wait(t, func() bool { return len(s.Searches()) == 1 })
	gone, stop := context.WithCancel(t.Context())
	stop()
	if _, err := c.search(gone, query{base: "dc=example"}); !errors.Is(err, context.Canceled) || !errors.Is(err, errNoDirectory) {
		t.Errorf("the one that has gone: %v", err)
	}
	second, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := c.search(second, query{base: "dc=example"}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errNoDirectory) {
		t.Errorf("the one that waits: %v", err)
	}
	cancel() // frees the other at once, whose connection is not used again
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that searches: %v", err)
	}
	s.Wait(t, func() bool { return s.Open() == 0 })
}

// TestFailover: a host that does not answer costs little, once; then the others are asked first.
func TestFailover(t *testing.T) {
	mute := fakeldap.Start(t, fakeldap.Options{Mute: true})
	for name, first := range map[string]string{"refuses": dead(t), "never answers": mute.Address()} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, found(alice))
			tr := to(s)
			tr.hosts, tr.headStart = []string{first, dead(t), s.Address(), dead(t)}, headStart
			at := time.Now() // whoever is put aside stays there
			c := newClient(tr, func() time.Time { return at }, nil)
			t.Cleanup(c.close)
			before := mute.Dials()
			for range 20 {
				wantFound(t, c, alice)
				c.purge(c.last.Load())
				c.t.headStart = time.Hour // of the one that answers, however long that takes
			}
			if n := mute.Dials() - before; n > 1 {
				t.Errorf("the host that does not answer was dialled %d times in 20", n)
			}
			if got := c.counted(); !got.hosts[0].aside || got.hosts[2].aside || got.failovers == 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestAllAside: when no host is known to work, they are tried all the same.
// Another site's server takes longer to connect to than the near one does, and is no worse for that.
func TestElsewhere(t *testing.T) {
	near := serve(t, found("near"))
	far := fakeldap.Start(t, fakeldap.Options{Search: found("far"), Bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
		<-time.After(2 * headStart)
		return passwords(b)
	}})
	c := start(t, to(near, far))
	q := query{base: "dc=example", limit: 5}
	_, host, err := c.searchAt(within(t), q)
	if err != nil || host.addr != near.Address() {
		t.Fatalf("got the answer of %v, %v", host, err)
	}
	c.t.headStart = headStart
	for range 2 {
		if es, err := c.searchElsewhere(within(t), q, host); err != nil || !slices.Equal(names(es), []string{"far"}) {
			t.Errorf("found %v, %v; wanted what the far one knows", names(es), err)
		}
	}
	wantFound(t, c, "near")
	far.Close()
	if es, err := c.searchElsewhere(within(t), q, host); err == nil {
		t.Errorf("found %v where nobody else answers", names(es))
	}
	if c.hosts.others(host) {
		t.Error("a server that does not answer is not put aside")
	}
	if es, err := c.searchElsewhere(within(t), q, host); err == nil {
		t.Errorf("found %v where there is nobody else", names(es))
	}
	wantFound(t, c, "near")
}

// A server that does not take the service account's password is asked once: more would keep it from all others.
func TestElsewhereIsRefused(t *testing.T) {
	near := serve(t, found("near"))
	far := fakeldap.Start(t, fakeldap.Options{Search: found("far"), Bind: func(fakeldap.Bind) fakeldap.BindAnswer {
		return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49}}
	}})
	at := time.Now()
	c := newClient(to(near, far), func() time.Time { return at }, nil)
	t.Cleanup(c.close)
	q := query{base: "dc=example", limit: 5}
	_, host, err := c.searchAt(within(t), q)
	if err != nil || host.addr != near.Address() {
		t.Fatalf("got the answer of %v, %v", host, err)
	}
	for range 5 {
		if es, err := c.searchElsewhere(within(t), q, host); err == nil {
			t.Errorf("found %v", names(es))
		}
		at = at.Add(time.Hour)
	}
	if n := len(far.Binds()); n != 1 {
		t.Errorf("got %d binds, want 1", n)
	}
	wantFound(t, c, "near")
}

func TestAllAside(t *testing.T) {
	address := dead(t)
	tr := to()
	tr.hosts = []string{address}
	c := start(t, tr)
	if _, err := c.search(within(t), query{base: "dc=example"}); !errors.Is(err, errNoDirectory) {
		t.Fatalf("%v", err)
	}
	fakeldap.Start(t, fakeldap.Options{Address: address, Search: found(alice)})
	wantFound(t, c, alice)
}

// TestPreferred: after the preferred host has recovered, it is used again.
func TestPreferred(t *testing.T) {
	address, b := dead(t), serve(t, found("cn=b"))
	tr := to()
	tr.hosts = []string{address, b.Address()}
	var clock atomic.Int64
	c := newClient(tr, func() time.Time { return time.Unix(clock.Load(), 0) }, nil)
	t.Cleanup(c.close)
	wantFound(t, c, "cn=b")
	a := fakeldap.Start(t, fakeldap.Options{Address: address, Search: found("cn=a")})
	wantFound(t, c, "cn=b") // it is aside still
	clock.Store(60)
	wantFound(t, c, "cn=b") // the other is tried beside
	a.Wait(t, func() bool { return len(a.Binds()) > 0 })
	for {
		es, err := c.search(within(t), query{base: "dc=example"})
		if err != nil {
			t.Fatal(err)
		}
		if names(es)[0] == "cn=a" {
			return
		}
		runtime.Gosched()
	}
}

// TestDiesInSearch: a host that dies in the middle of an answer costs one more try, at another host.
func TestDiesInSearch(t *testing.T) {
	for name, answer := range map[string]fakeldap.SearchAnswer{
		"middle":      {Entries: found("cn=x", "cn=y")(fakeldap.Search{}).Entries, Die: true},
		"hangs":       {Entries: found("cn=x")(fakeldap.Search{}).Entries, Hang: true},
		"garbage":     {Raw: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
		"huge length": {Raw: []byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 2, 1, 2}},
		"endless":     {Raw: []byte{0x30, 0x80, 2, 1, 2}},
		"not ours":    {Raw: []byte{0x30, 3, 2, 1, 2, 0x30, 1, 0xff}},
		"busy":        {Result: fakeldap.Result{Code: 51}},
	} {
		t.Run(name, func(t *testing.T) {
			a := serve(t, func(fakeldap.Search) fakeldap.SearchAnswer { return answer })
			b := serve(t, found(alice))
			tr := to(a, b)
			tr.bindDN = "" // or it would have to be answered in a hurry, too
			c := start(t, tr)
			if answer.Hang {
				hurry(c, time.Second, b.Address())
			}
			wantFound(t, c, alice)
			wantFound(t, c, alice)
			if len(a.Searches()) != 1 || !c.counted().hosts[0].aside {
				t.Errorf("%d searches at the broken host, wanted 1, and %+v", len(a.Searches()), c.counted())
			}
		})
	}
}

// TestBothDie: there is no third try.
func TestBothDie(t *testing.T) {
	die := func(fakeldap.Search) fakeldap.SearchAnswer { return fakeldap.SearchAnswer{Die: true} }
	a, b := serve(t, die), serve(t, die)
	if _, err := start(t, to(a, b)).search(within(t), query{base: "dc=example"}); !errors.Is(err, errNoDirectory) {
		t.Errorf("%v", err)
	}
	if len(a.Searches()) != 1 || len(b.Searches()) != 1 {
		t.Errorf("%d and %d searches, wanted 1 and 1", len(a.Searches()), len(b.Searches()))
	}
}

// TestDiesInBind: a password that may have been counted is not sent again, to nobody.
func TestDiesInBind(t *testing.T) {
	for name, answer := range map[string]fakeldap.BindAnswer{"dies": {Die: true}, "hangs": {Hang: true}, "unavailable": {Result: fakeldap.Result{Code: 52}}} {
		t.Run(name, func(t *testing.T) {
			a := fakeldap.Start(t, fakeldap.Options{Bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
				if b.Name == svc {
					return fakeldap.BindAnswer{}
				}
				return answer
			}})
			b := serve(t, nil)
			c := start(t, to(a, b))
			if answer.Hang {
				hurry(c, time.Second, b.Address())
			}
			if _, err := c.bind(within(t), alice, "right"); !errors.Is(err, errNoDirectory) {
				t.Errorf("%v", err)
			}
			if n := a.BindsOf(alice) + b.BindsOf(alice); n != 1 {
				t.Errorf("the password was sent %d times, wanted once", n)
			}
			if v, err := c.bind(within(t), alice, "right"); err != nil || v.code != 0 || b.BindsOf(alice) != 1 {
				t.Errorf("the next sign-in: %+v %v", v, err)
			}
		})
	}
}

// TestClosedWhileIdle: connections that the server closed cost nobody anything, and no bind is lost.
func TestClosedWhileIdle(t *testing.T) {
	s := serve(t, found(alice))
	c := start(t, to(s))
	for range 20 {
		wantFound(t, c, alice)
		if v, err := c.bind(within(t), alice, "right"); err != nil || v.code != 0 {
			t.Fatalf("bind: %+v %v", v, err)
		}
		s.Hangup()
		s.Wait(t, func() bool { return s.Open() == 0 })
		noticed(t, c)
	}
	if got := c.counted(); got.hosts[0].aside {
		t.Errorf("the host was put aside: %+v", got)
	}
}

// noticed waits until the client has read the end of all its connections.
func noticed(t *testing.T, c *client) {
	t.Helper()
	ctx := within(t)
	for {
		c.mu.Lock()
		all := true
		for k := range c.live {
			all = all && k.l.IsClosing()
		}
		c.mu.Unlock()
		if all {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("a connection does not notice its end")
		}
		runtime.Gosched()
	}
}

// TestIdle: a connection that nobody needs is closed.
func TestIdle(t *testing.T) {
	s := serve(t, found(alice))
	tr := to(s)
	tr.idle = 20 * time.Millisecond
	c := start(t, tr)
	wantFound(t, c, alice)
	s.Wait(t, func() bool { return s.Open() == 0 })
	wantFound(t, c, alice)
}

// TestHangs: a server that takes connections and never answers holds nobody longer than his deadline, and others not at all.
func TestHangs(t *testing.T) {
	for _, sec := range []security{plain, ldaps, startTLS} {
		t.Run(strconv.Itoa(int(sec)), func(t *testing.T) {
			mute := fakeldap.Start(t, fakeldap.Options{Mute: true})
			tr := to(mute)
			tr.security, tr.dialTimeout, tr.requestTimeout = sec, time.Hour, time.Hour
			c := start(t, tr)
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error)
			go func() { _, err := c.search(ctx, query{base: "dc=example"}); failed <- err }()
			mute.Wait(t, func() bool { return mute.Dials() == 1 })
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			tr.dialTimeout, tr.requestTimeout = 50*time.Millisecond, 50*time.Millisecond
			c = start(t, tr)
			if _, err := c.search(within(t), query{base: "dc=example"}); !errors.Is(err, errNoDirectory) {
				t.Errorf("%v", err)
			}
			if _, err := c.bind(within(t), alice, "right"); !errors.Is(err, errNoDirectory) {
				t.Errorf("%v", err)
			}
		})
	}
}

func tlsOf(pool *x509.CertPool, name string) func() (*tls.Config, error) {
	return func() (*tls.Config, error) {
		return &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12}, nil
	}
}

// TestTLS: no password goes anywhere before the server has proven its name.
func TestTLS(t *testing.T) {
	other := fakeldap.Start(t, fakeldap.Options{Mode: fakeldap.LDAPS})
	for _, c := range []struct {
		name string
		mode fakeldap.Mode
		sec  security
		ca   bool
		host string
		want string // part of the error, "": it works
	}{
		{"ldaps", fakeldap.LDAPS, ldaps, true, "", ""},
		{"StartTLS", fakeldap.StartTLS, startTLS, true, "", ""},
		{"wrong CA", fakeldap.LDAPS, ldaps, false, "", "certificate signed by unknown authority"},
		{"wrong CA, StartTLS", fakeldap.StartTLS, startTLS, false, "", "certificate signed by unknown authority"},
		{"wrong name", fakeldap.LDAPS, ldaps, true, "dc1.example", "certificate is valid for localhost, not dc1.example"},
		{"wrong name, StartTLS", fakeldap.StartTLS, startTLS, true, "dc1.example", "certificate is valid for localhost, not dc1.example"},
		{"StartTLS refused", fakeldap.Plain, startTLS, true, "", "does not start TLS"},
		{"plain where TLS is wanted", fakeldap.Plain, ldaps, true, "", "TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fakeldap.Start(t, fakeldap.Options{Mode: c.mode, Search: found(alice)})
			tr := to(s)
			tr.security = c.sec
			pool := other.Pool()
			if c.ca && s.Pool() != nil {
				pool = s.Pool()
			}
			tr.tls = tlsOf(pool, c.host)
			k := start(t, tr)
			_, err := k.search(within(t), query{base: "dc=example"})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, errNoDirectory)) {
				t.Errorf("%v, wanted %q", err, c.want)
			}
			for _, b := range s.Binds() {
				if !b.Secure {
					t.Error("a bind came in plain text")
				}
			}
			if c.want != "" && len(s.Binds()) > 0 {
				t.Error("a bind came to a server that is not trusted")
			}
		})
	}
}

// TestStartTLSInjected: an answer to StartTLS that somebody else sends is no TLS.
func TestStartTLSInjected(t *testing.T) {
	yes := []byte{0x30, 12, 2, 1, 1, 0x78, 7, 10, 1, 0, 4, 0, 4, 0}
	for name, greet := range map[string][]byte{
		"success ahead":        yes,
		"bind answer":          {0x30, 12, 2, 1, 1, 0x61, 7, 10, 1, 0, 4, 0, 4, 0},
		"other message":        {0x30, 12, 2, 1, 0, 0x78, 7, 10, 1, 0, 4, 0, 4, 0},
		"success and a bind's": append(slices.Clone(yes), 0x30, 12, 2, 1, 1, 0x61, 7, 10, 1, 0, 4, 0, 4, 0),
	} {
		t.Run(name, func(t *testing.T) {
			s := fakeldap.Start(t, fakeldap.Options{Greet: greet, Search: found(alice)})
			tr := to(s)
			tr.security = startTLS
			_, err := start(t, tr).search(within(t), query{base: "dc=example"})
			if refused := name == "bind answer" || name == "other message"; !errors.Is(err, errNoDirectory) || errors.Is(err, errStartTLS) != refused {
				t.Errorf("%v", err)
			}
			if len(s.Binds()) > 0 {
				t.Error("a bind came in plain text")
			}
		})
	}
}

// TestTLSReload: the configuration is asked for anew for each connection.
func TestTLSReload(t *testing.T) {
	s := fakeldap.Start(t, fakeldap.Options{Mode: fakeldap.LDAPS, Search: found(alice)})
	pool := x509.NewCertPool()
	tr := to(s)
	tr.security = ldaps
	tr.tls = func() (*tls.Config, error) { return &tls.Config{RootCAs: pool}, nil }
	c := start(t, tr)
	if _, err := c.search(within(t), query{base: "dc=example"}); !errors.Is(err, errNoDirectory) {
		t.Fatalf("%v", err)
	}
	pool = s.Pool()
	wantFound(t, c, alice)
}

// TestOwn: connections for somebody alone are bound as wanted, and end.
func TestOwn(t *testing.T) {
	s := serve(t, found(alice))
	c := start(t, to(s))
	search := func(l *ldapv3.Conn) error {
		_, err := l.Search(&ldapv3.SearchRequest{BaseDN: "dc=example", Filter: "(cn=*)"})
		return err
	}
	if err := c.service(within(t), search); err != nil {
		t.Fatal(err)
	}
	if v, err := c.asUser(within(t), alice, "right", search); err != nil || v.code != 0 {
		t.Fatal(v, err)
	}
	if v, err := c.asUser(within(t), alice, "wrong", func(*ldapv3.Conn) error { t.Error("called"); return nil }); err != nil || v.code != 49 {
		t.Fatal(v, err)
	}
	if q := s.Searches(); q[0].BoundAs != svc || q[1].BoundAs != alice {
		t.Errorf("%+v", q)
	}
	s.Wait(t, func() bool { return s.Open() == 0 })
	mine := errors.New("mine")
	if err := c.service(within(t), func(*ldapv3.Conn) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("%v, wanted the caller's own error", err)
	}
}

// TestLeaks: nothing is left of a client that is closed, whatever it was doing.
func TestLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	hang := serve(t, func(fakeldap.Search) fakeldap.SearchAnswer { return fakeldap.SearchAnswer{Hang: true} })
	mute := fakeldap.Start(t, fakeldap.Options{Mute: true})
	good := serve(t, found(alice))
	var wg sync.WaitGroup
	for s, dials := range map[*fakeldap.Server]int{hang: 5, mute: 8, good: 2} { // at least, since connections that are given back are used again
		c := newClient(to(s), nil, nil)
		for range 8 {
			wg.Go(func() { _, _ = c.search(t.Context(), query{base: "dc=example"}) })
			wg.Go(func() { _, _ = c.bind(t.Context(), alice, "right") })
		}
		s.Wait(t, func() bool { return s.Dials() >= dials })
		c.close()
		s.Wait(t, func() bool { return s.Open() == 0 })
	}
	wg.Wait()
	idle := newClient(to(good), nil, nil)
	wantFound(t, idle, alice)
	idle.close()
	good.Wait(t, func() bool { return good.Open() == 0 })
	for _, s := range []*fakeldap.Server{hang, mute, good} {
		s.Close()
	}
	ctx := within(t)
	for runtime.NumGoroutine() > before {
		if ctx.Err() != nil {
			b := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
		runtime.Gosched()
	}
}

// TestLog: neither passwords nor what a server says in bytes that a terminal obeys get into the log.
func TestLog(t *testing.T) {
	var b bytes.Buffer
	tr := to()
	tr.hosts = []string{dead(t)}
	c := newClient(tr, nil, slog.New(slog.NewTextHandler(&b, nil)))
	t.Cleanup(c.close)
	_, _ = c.search(within(t), query{base: "dc=example"})
	if !strings.Contains(b.String(), "put aside") || strings.Contains(b.String(), svcPW) {
		t.Errorf("%s", b.String())
	}
	if got := clean("a\x00b\x1b[31m\xff" + strings.Repeat("x", 1000)); strings.ContainsFunc(got, unicode.IsControl) || !utf8.ValidString(got) || len(got) > maxDiagnostic {
		t.Errorf("%q", got)
	}
}
