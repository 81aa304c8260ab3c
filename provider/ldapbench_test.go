package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/connector"
	dexldap "github.com/dexidp/dex/connector/ldap"

	"gatehouse/connectors/ldap"
	"gatehouse/test/peers"
)

const benchUsers = 1_000

// A turnstile passes connections on to a server and counts them.
type turnstile struct {
	addr   string
	passed atomic.Int64
}

func newTurnstile(b *testing.B, to string) *turnstile {
	b.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &turnstile{addr: l.Addr().String()}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			s.passed.Add(1)
			var d net.Dialer
			out, err := d.DialContext(b.Context(), "tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		}
	}()
	return s
}

// A contender is a connector at a directory, with the one configuration that both understand.
type contender struct {
	name   string
	dir    *peers.SlapdServer
	gate   *turnstile
	signIn func(ctx context.Context, user, password string) error
	renew  func(ctx context.Context, users []string) error // asks who they are now
}

func contenders(b *testing.B, dir *peers.SlapdServer) []*contender {
	b.Helper()
	config := func(host string) []byte {
		raw, err := json.Marshal(map[string]any{
			"host": host, "rootCA": dir.CA, "bindDN": dir.ServiceDN, "bindPW": dir.ServicePassword,
			"userSearch": map[string]any{"baseDN": dir.PeopleDN, "username": "uid", "idAttr": "uid", "emailAttr": "mail", "nameAttr": "cn"},
			"groupSearch": map[string]any{
				"baseDN": dir.GroupsDN, "filter": "(objectClass=groupOfNames)", "nameAttr": "cn",
				"userMatchers": []map[string]any{{"userAttr": "DN", "groupAttr": "member", "recursionGroupAttr": "member"}},
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		return raw
	}
	return []*contender{gatehouseLDAP(b, dir, config), dexLDAP(b, dir, config)}
}

func gatehouseLDAP(b *testing.B, dir *peers.SlapdServer, config func(host string) []byte) *contender {
	b.Helper()
	c := &contender{name: "gatehouse", dir: dir, gate: newTurnstile(b, dir.Host)}
	l, err := ldap.Open(config(c.gate.addr), ldap.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	c.signIn = func(ctx context.Context, user, password string) error {
		a, err := l.Find(ctx, user)
		if err != nil {
			return err
		}
		_, err = l.Authenticate(ctx, a, password)
		return err
	}
	c.renew = func(ctx context.Context, users []string) error {
		answers, err := l.Lookup(ctx, users)
		for _, a := range answers {
			if a.Err != nil {
				return a.Err
			}
		}
		return err
	}
	return c
}

func dexLDAP(b *testing.B, dir *peers.SlapdServer, config func(host string) []byte) *contender {
	b.Helper()
	c := &contender{name: "dex", dir: dir, gate: newTurnstile(b, dir.Host)}
	var parsed dexldap.Config
	if err := json.Unmarshal(config(c.gate.addr), &parsed); err != nil {
		b.Fatal(err)
	}
	opened, err := parsed.Open("ldap", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	scopes := connector.Scopes{Groups: true, OfflineAccess: true}
	var known sync.Map
	login := func(ctx context.Context, user, password string) error {
		id, ok, err := opened.(connector.PasswordConnector).Login(ctx, scopes, user, password)
		if err == nil && !ok {
			return fmt.Errorf("%s was refused", user)
		}
		known.Store(user, id)
		return err
	}
	c.signIn = login
	c.renew = func(ctx context.Context, users []string) error {
		for _, user := range users {
			id, ok := known.Load(user)
			if !ok { // what it keeps of a user is the entry
				data, err := json.Marshal(map[string]any{"username": user, "entry": map[string]any{"DN": dir.UserDN(user)}})
				if err != nil {
					return err
				}
				id = connector.Identity{UserID: user, Username: user, ConnectorData: data}
			}
			if _, err := opened.(connector.RefreshConnector).Refresh(ctx, scopes, id.(connector.Identity)); err != nil {
				return fmt.Errorf("%s: %w", user, err)
			}
		}
		return nil
	}
	return c
}

// BenchmarkDirectory compares our connector with Dex's of the pinned version, at one directory in one run, when both are warm.
// dials/op are connections with their TLS handshakes, ops/op what the directory has done.
func BenchmarkDirectory(b *testing.B) {
	dir := peers.Slapd(b, peers.SlapdOptions{Users: benchUsers, Groups: 100})
	all := make([]string, benchUsers)
	for i := range all {
		all[i] = fmt.Sprintf("u%05d", i)
	}
	both := contenders(b, dir)
	for _, work := range []struct {
		name string
		do   func(b *testing.B, c *contender, round int) error
	}{
		{"sign-in", func(b *testing.B, c *contender, round int) error {
			return c.signIn(b.Context(), all[round%benchUsers], dir.Password)
		}},
		{"nested-sign-in", func(b *testing.B, c *contender, _ int) error { return c.signIn(b.Context(), "alice", dir.Password) }},
		{"200-sign-ins-at-once", func(b *testing.B, c *contender, _ int) error {
			return atOnce(200, func(i int) error { return c.signIn(b.Context(), all[i], dir.Password) })
		}},
		{"1000-users-asked-about", func(b *testing.B, c *contender, _ int) error { return c.renew(b.Context(), all) }},
	} {
		dials := map[string]float64{}
		for _, c := range both {
			b.Run(work.name+"/"+c.name, func(b *testing.B) {
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				defer cancel()
				if err := c.signIn(ctx, "bob", dir.Password); err != nil { // warm
					b.Fatal(err)
				}
				before, passed := dir.Operations(b), c.gate.passed.Load()
				round := 0
				for b.Loop() {
					if err := work.do(b, c, round); err != nil {
						b.Fatal(err)
					}
					round++
				}
				dials[c.name] = float64(c.gate.passed.Load()-passed) / float64(b.N)
				b.ReportMetric(dials[c.name], "dials/op")
				b.ReportMetric(float64(dir.Operations(b)-before)/float64(b.N), "ops/op")
			})
		}
		if ours, dexs, ok := dials["gatehouse"], dials["dex"], len(dials) == 2; ok && ours >= dexs {
			b.Errorf("%s: %v connections, want fewer than Dex's %v", work.name, ours, dexs)
		}
	}
}

// atOnce calls f n times at once, and returns one of the errors.
func atOnce(n int, f func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var failed error
	for range n {
		if err := <-errs; err != nil {
			failed = err
		}
	}
	return failed
}
