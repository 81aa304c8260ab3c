package provider

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"gatehouse/connectors/ldap"
	"gatehouse/test/peers"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/server"
)

// A tap stands between a connector and a directory, and counts what goes through. It ends TLS: requests are in clear on it.
type tap struct {
	addr string
	ca   string // path

	dials, handshakes, binds, searches, others atomic.Int64
}

// counts are what a tap has counted.
type counts struct{ dials, handshakes, binds, searches, others int64 }

func (p *tap) counts() counts {
	return counts{p.dials.Load(), p.handshakes.Load(), p.binds.Load(), p.searches.Load(), p.others.Load()}
}

func (c counts) minus(o counts) counts {
	return counts{c.dials - o.dials, c.handshakes - o.handshakes, c.binds - o.binds, c.searches - o.searches, c.others - o.others}
}

func (c counts) per(n int) string {
	f := func(v int64) float64 { return float64(v) / float64(n) }
	return fmt.Sprintf("%.2f dials, %.2f TLS handshakes, %.2f binds, %.2f searches", f(c.dials), f(c.handshakes), f(c.binds), f(c.searches))
}

func (c counts) requests() int64 { return c.binds + c.searches + c.others }

func newTap(tb testing.TB, to *peers.SlapdServer) *tap {
	tb.Helper()
	ca := peers.NewCA(tb, "Tap CA")
	certificate, key := ca.Issue(tb, "localhost", "127.0.0.1")
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		tb.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &tap{addr: l.Addr().String(), ca: filepath.Join(tb.TempDir(), "ca.crt")}
	if err := os.WriteFile(p.ca, ca.PEM, 0o600); err != nil {
		tb.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	var open sync.WaitGroup
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	tb.Cleanup(func() {
		cancel()
		_ = l.Close()
		open.Wait()
	})
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.dials.Add(1)
			open.Go(func() { p.pass(ctx, tls.Server(c, config), to) })
		}
	})
	return p
}

// pass carries one connection until either end closes it.
func (p *tap) pass(ctx context.Context, from *tls.Conn, to *peers.SlapdServer) {
	defer func() { _ = from.Close() }()
	if from.HandshakeContext(ctx) != nil {
		return
	}
	p.handshakes.Add(1)
	d := tls.Dialer{Config: to.TLS()}
	back, err := d.DialContext(ctx, "tcp", to.Host)
	if err != nil {
		return
	}
	defer func() { _ = back.Close() }()
	defer context.AfterFunc(ctx, func() { _ = from.Close() })()
	go func() {
		_, _ = io.Copy(from, back)
		_ = from.Close()
	}()
	for {
		m, err := readMessage(from)
		if err != nil {
			return
		}
		p.count(m)
		if _, err := back.Write(m); err != nil {
			return
		}
	}
}

// readMessage reads one LDAPMessage (RFC 4511 section 5.1): definite lengths, as every client sends them.
func readMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 2, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := int(head[1])
	if n >= 0x80 {
		more := make([]byte, n-0x80)
		if _, err := io.ReadFull(r, more); err != nil {
			return nil, err
		}
		head, n = append(head, more...), 0
		for _, b := range more {
			n = n<<8 | int(b)
		}
	}
	m := append(head, make([]byte, n)...)
	_, err := io.ReadFull(r, m[len(head):])
	return m, err
}

// count looks at the operation, which follows the message's number.
func (p *tap) count(m []byte) {
	body := 2
	if m[1] >= 0x80 {
		body += int(m[1] - 0x80)
	}
	switch op := m[body+2+int(m[body+1])]; op {
	case 0x60:
		p.binds.Add(1)
	case 0x63:
		p.searches.Add(1)
	case 0x42, 0x50: // unbind and abandon have no answer
	default:
		p.others.Add(1)
	}
}

// A contender is a connector as a sign-in uses it.
type contender struct {
	name   string
	tap    *tap
	signIn func(ctx context.Context, user, password string) ([]string, error)

	own *ldap.Connector // one of these two
	dex connector.PasswordConnector
}

// contenders are ours and Dex's, both with the configuration that Dex takes, of which ours takes more.
func contenders(tb testing.TB, s *peers.SlapdServer, groups map[string]any) []contender {
	tb.Helper()
	config := func(p *tap) []byte {
		raw, err := json.Marshal(map[string]any{
			"host": p.addr, "rootCA": p.ca, "bindDN": s.ServiceDN, "bindPW": s.ServicePassword,
			"userSearch":  map[string]any{"baseDN": s.PeopleDN, "username": "uid", "idAttr": "uid", "emailAttr": "mail", "nameAttr": "cn"},
			"groupSearch": groups,
		})
		if err != nil {
			tb.Fatal(err)
		}
		return raw
	}
	mine, theirs := newTap(tb, s), newTap(tb, s)
	own, err := ldap.Open(config(mine), ldap.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = own.Close() })
	open := server.ConnectorsConfig["ldap"]()
	if err := json.Unmarshal(config(theirs), open); err != nil {
		tb.Fatal(err)
	}
	opened, err := open.Open("ldap", slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	dex, ok := opened.(connector.PasswordConnector)
	if !ok {
		tb.Fatal("Dex's connector takes no passwords")
	}
	return []contender{
		{name: "gatehouse", tap: mine, own: own, signIn: func(ctx context.Context, user, password string) ([]string, error) {
			a, err := own.Find(ctx, user)
			if err != nil {
				return nil, err
			}
			id, err := own.Authenticate(ctx, a, password)
			return id.Groups, err
		}},
		{name: "dex", tap: theirs, dex: dex, signIn: func(ctx context.Context, user, password string) ([]string, error) {
			id, ok, err := dex.Login(ctx, connector.Scopes{Groups: true}, user, password)
			if err == nil && !ok {
				err = fmt.Errorf("%s: wrong password", user)
			}
			return id.Groups, err
		}},
	}
}

func directGroups(s *peers.SlapdServer) map[string]any {
	return map[string]any{
		"baseDN": s.GroupsDN, "filter": "(objectClass=groupOfNames)", "nameAttr": "cn",
		"userMatchers": []any{map[string]any{"userAttr": "DN", "groupAttr": "member"}},
	}
}

func nestedGroups(s *peers.SlapdServer) map[string]any {
	g := directGroups(s)
	g["userMatchers"] = []any{map[string]any{"userAttr": "DN", "groupAttr": "member", "recursionGroupAttr": "member"}}
	return g
}

// chain puts a user into one group that is in another, and so on, n deep.
func chain(tb testing.TB, s *peers.SlapdServer, uid string, n int) {
	tb.Helper()
	admin := s.Admin(tb)
	member := s.UserDN(uid)
	for i := range n {
		dn := s.GroupDN(fmt.Sprintf("chain%02d", i))
		r := goldap.NewAddRequest(dn, nil)
		r.Attribute("objectClass", []string{"groupOfNames"})
		r.Attribute("member", []string{member})
		if err := admin.Add(r); err != nil {
			tb.Fatal(err)
		}
		member = dn
	}
}

// BenchmarkDirectorySignIn measures sign-ins of ours and of Dex's connector in turns, against one server. It reports what a sign-in
// takes, and how that compares; what each asks of the directory is in the log (-v).
func BenchmarkDirectorySignIn(b *testing.B) {
	const users, chained = 500, 41
	s := peers.Slapd(b, peers.SlapdOptions{Users: users, Groups: 50})
	chain(b, s, "alice", chained)
	for _, bb := range []struct {
		name     string
		groups   map[string]any
		user     func(i int) string
		parallel int
	}{
		{"one at a time", directGroups(s), func(i int) string { return fmt.Sprintf("u%05d", i%users) }, 1},
		{"200 at once", directGroups(s), func(i int) string { return fmt.Sprintf("u%05d", i%users) }, 200},
		{"41 nested groups", nestedGroups(s), func(int) string { return "alice" }, 1},
	} {
		b.Run(bb.name, func(b *testing.B) {
			all := contenders(b, s, bb.groups)
			took := make([]time.Duration, len(all))
			before := make([]counts, len(all))
			for i, c := range all { // warm: connections are open, templates are read
				signInAll(b, c, bb.user, bb.parallel, bb.parallel)
				before[i] = c.tap.counts()
			}
			n := 0
			for b.Loop() {
				round := max(bb.parallel, 10)
				for i, c := range all {
					start := time.Now()
					signInAll(b, c, bb.user, round, bb.parallel)
					took[i] += time.Since(start)
				}
				n += round
			}
			for i, c := range all {
				b.Logf("%s: per sign-in %s", c.name, c.tap.counts().minus(before[i]).per(n))
				b.ReportMetric(float64(took[i].Nanoseconds())/float64(n), c.name+"-ns/sign-in")
			}
			b.ReportMetric(float64(took[0])/float64(took[1]), "x-dex")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// signInAll signs n users in, so many at once, and fails where the groups are not what they should be.
func signInAll(tb testing.TB, c contender, user func(int) string, n, parallel int) {
	tb.Helper()
	next := atomic.Int64{}
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
				groups, err := c.signIn(ctx, user(int(i)), "password")
				cancel()
				if err != nil {
					tb.Errorf("%s: %s: %v", c.name, user(int(i)), err)
				} else if user(int(i)) == "alice" && !slices.Contains(groups, "chain40") {
					tb.Errorf("%s: alice: got %d groups, want chain40 in them", c.name, len(groups))
				}
			}
		})
	}
	wg.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
}

// BenchmarkDirectoryRevalidation measures what it takes to ask once who each of 1,000 users is now. Of Dex's connector, which is asked for
// one user at a time, a tenth of them is measured.
func BenchmarkDirectoryRevalidation(b *testing.B) {
	const users, sample = 1000, 100
	s := peers.Slapd(b, peers.SlapdOptions{Users: users, Groups: 100})
	all := contenders(b, s, directGroups(s))
	ids := make([]string, users)
	for i := range ids {
		ids[i] = fmt.Sprintf("u%05d", i)
	}
	known := make([]connector.Identity, sample)
	for i := range known {
		var err error
		if known[i], _, err = all[1].dex.Login(b.Context(), connector.Scopes{Groups: true, OfflineAccess: true}, ids[i], "password"); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := all[0].own.Lookup(b.Context(), ids[:1]); err != nil { // warm
		b.Fatal(err)
	}
	before := []counts{all[0].tap.counts(), all[1].tap.counts()}
	var took [2]time.Duration
	n := int64(0)
	for b.Loop() {
		start := time.Now()
		answers, err := all[0].own.Lookup(b.Context(), ids)
		took[0] += time.Since(start)
		if err != nil || len(answers) != users || answers[users-1].Err != nil {
			b.Fatalf("got %d answers, %v", len(answers), err)
		}
		start = time.Now()
		for _, id := range known {
			if _, err := all[1].dex.(connector.RefreshConnector).Refresh(b.Context(), connector.Scopes{Groups: true}, id); err != nil {
				b.Fatal(err)
			}
		}
		took[1] += time.Since(start) * (users / sample)
		n++
	}
	b.ReportMetric(float64(all[0].tap.counts().minus(before[0]).requests()/n), "gatehouse-requests/1000-users")
	b.ReportMetric(float64(all[1].tap.counts().minus(before[1]).requests()/n*(users/sample)), "dex-requests/1000-users")
	b.ReportMetric(float64(all[1].tap.counts().minus(before[1]).dials/n*(users/sample)), "dex-dials/1000-users")
	b.ReportMetric(float64(took[0])/float64(took[1]), "x-dex")
	b.ReportMetric(0, "ns/op")
}

// TestWarmSignInDialsNobody holds what the pool is for.
func TestWarmSignInDialsNobody(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{Users: 10})
	own := contenders(t, s, directGroups(s))[0]
	user := func(i int) string { return fmt.Sprintf("u%05d", i%10) }
	signInAll(t, own, user, 1, 1)
	peers.Eventually(t, time.Minute, "the directory has told about itself", func() bool { return own.own.MaxFailures() > 0 }) // which it is asked in the background
	before := own.tap.counts()
	signInAll(t, own, user, 20, 1)
	got := own.tap.counts().minus(before)
	if got.dials != 0 || got.binds != 20 {
		t.Errorf("20 sign-ins: got %+v, want no dials and one bind each, that of the user", got)
	}
}
