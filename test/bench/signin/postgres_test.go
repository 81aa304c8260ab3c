package signin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/jackc/pgx/v5"

	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

func byName(ours *store.Store, dex storage.Storage) map[string]storage.Storage {
	return map[string]storage.Storage{"ours": ours, "dex": dex}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

var expiry = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)

// signIn makes the calls of Dex's server for a first sign-in with a session and its code exchange, each user having its own records.
func signIn(ctx context.Context, s storage.Storage, n int64) error {
	id, user := fmt.Sprintf("r%d", n), fmt.Sprintf("u%d", n)
	claims := storage.Claims{UserID: user, Username: user, Email: user + "@example.test", EmailVerified: true, Groups: []string{"a", "b", "c"}}
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	client := func() { _, err := s.GetClient(ctx, "app"); do(err) }
	client()
	do(s.CreateAuthRequest(ctx, storage.AuthRequest{ID: id, ClientID: "app", ResponseTypes: []string{"code"}, Scopes: []string{"openid"}, RedirectURI: "https://app.test/", HMACKey: []byte("k"), Expiry: expiry}))
	_, err := s.GetAuthRequest(ctx, id)
	do(err)
	do(s.UpdateAuthRequest(ctx, id, func(a storage.AuthRequest) (storage.AuthRequest, error) {
		a.LoggedIn, a.Claims, a.ConnectorID = true, claims, "ad"
		return a, nil
	}))
	do(s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: user, ConnectorID: "ad", Claims: claims, Consents: map[string][]string{}, CreatedAt: expiry, LastLogin: expiry}))
	do(s.CreateAuthSession(ctx, storage.AuthSession{ID: id, Secret: "s", UserID: user, ConnectorID: "ad", ClientStates: map[string]*storage.ClientAuthState{}, CreatedAt: expiry, LastActivity: expiry, IdleExpiry: expiry, AbsoluteExpiry: expiry}))
	client()
	_, err = s.GetAuthRequest(ctx, id)
	do(err)
	do(s.UpdateAuthSession(ctx, id, func(v storage.AuthSession) (storage.AuthSession, error) {
		v.ClientStates = map[string]*storage.ClientAuthState{"app": {AuthenticatedAt: expiry}}
		return v, nil
	}))
	do(s.CreateAuthCode(ctx, storage.AuthCode{ID: id, ClientID: "app", RedirectURI: "https://app.test/", Nonce: "n", Scopes: []string{"openid"}, ConnectorID: "ad", Claims: claims, Expiry: expiry}))
	do(s.DeleteAuthRequest(ctx, id))
	client()
	_, err = s.GetAuthCode(ctx, id)
	do(err)
	do(s.DeleteAuthCode(ctx, id))
	_, err = s.GetAuthSession(ctx, id)
	do(err)
	return errors.Join(errs...)
}

// BenchmarkSignIn gives the 15 store calls of a sign-in, one user after the other and 16 at a time.
func BenchmarkSignIn(b *testing.B) {
	both := byName(stores(b, peers.Postgres(b, peers.PostgresOptions{Durable: true})))
	for _, name := range []string{"dex", "ours"} {
		s := both[name]
		must(b, s.CreateClient(b.Context(), storage.Client{ID: "app", Name: "App", RedirectURIs: []string{"https://app.test/"}}))
		var n, failed atomic.Int64
		b.Run("one/"+name, func(b *testing.B) {
			for b.Loop() {
				must(b, signIn(b.Context(), s, n.Add(1)))
			}
		})
		b.Run("many/"+name, func(b *testing.B) {
			b.SetParallelism(16)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if signIn(b.Context(), s, n.Add(1)) != nil {
						failed.Add(1) // Dex does not repeat a transaction that gave way to another
					}
				}
			})
			b.ReportMetric(float64(failed.Swap(0))/float64(b.N), "failed/op")
		})
	}
}

// BenchmarkGarbageCollection gives the time to delete 50,000 expired auth requests among as many that live.
func BenchmarkGarbageCollection(b *testing.B) {
	expired := 50_000
	if testing.Short() {
		expired = 500
	}
	server := peers.Postgres(b, peers.PostgresOptions{})
	both := byName(stores(b, server))
	for _, name := range []string{"dex", "ours"} {
		s, admin := both[name], connect(b, server, name)
		must(b, s.CreateAuthRequest(b.Context(), storage.AuthRequest{ID: "pattern", ClientID: "app", Scopes: []string{"openid"}, HMACKey: []byte("k"), Expiry: expiry}))
		b.Run(name, func(b *testing.B) {
			round := 0
			for b.Loop() {
				b.StopTimer()
				round++
				fill(b, admin, name, 2*expired, round)
				b.StartTimer()
				r, err := s.GarbageCollect(b.Context(), expiry.Add(-time.Hour))
				must(b, err)
				if r.AuthRequests != int64(expired) {
					b.Fatalf("deleted %d, want %d", r.AuthRequests, expired)
				}
			}
		})
	}
}

func connect(b *testing.B, s *peers.PostgresServer, database string) *pgx.Conn {
	b.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	must(b, err)
	c, err := pgx.Connect(b.Context(), fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s sslmode=disable", host, port, s.User, s.Password, database))
	must(b, err)
	b.Cleanup(func() { _ = c.Close(context.WithoutCancel(b.Context())) })
	return c
}

// fill copies the auth request "pattern" n times, every other one expired.
func fill(b *testing.B, c *pgx.Conn, name string, n, round int) {
	b.Helper()
	past := expiry.Add(-2 * time.Hour)
	var err error
	if name == "dex" {
		_, err = c.Exec(b.Context(), `INSERT INTO auth_request SELECT (jsonb_populate_record(a, jsonb_build_object('id', $1::text || i, 'expiry', CASE i % 2 WHEN 0 THEN $2::timestamptz ELSE a.expiry END))).*
			FROM auth_request a, generate_series(1, $3::int) i WHERE a.id = 'pattern'`, fmt.Sprintf("%d-", round), past, n)
	} else {
		_, err = c.Exec(b.Context(), `INSERT INTO gatehouse.record SELECT kind, convert_to($1::text || i, 'UTF8'), owner, version, CASE i % 2 WHEN 0 THEN $2::bigint ELSE expires END, data
			FROM gatehouse.record, generate_series(1, $3::int) i WHERE kind = 'auth_request' AND id = 'pattern'`, fmt.Sprintf("%d-", round), past.UnixNano(), n)
	}
	must(b, err)
}
