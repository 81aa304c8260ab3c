package store

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/etcd"

	"gatehouse/test/peers"
)

// The store calls of a sign-in by password in Dex, over a session that is new: the same through our store and through Dex's own storage, on
// one server.
func BenchmarkSignInOnEtcd(b *testing.B) {
	server := peers.Etcd(b, peers.EtcdOptions{})
	ours, err := OpenEtcd(b.Context(), etcdAt(server), Options{})
	must(b, err)
	theirs, err := (&etcd.Etcd{Endpoints: []string{server.URL}, Namespace: "dex/"}).Open(quiet())
	must(b, err)
	for _, s := range []struct {
		name  string
		store storage.Storage
	}{{"gatehouse", ours}, {"dex", theirs}} {
		must(b, s.store.CreateClient(b.Context(), storage.Client{ID: "app"}))
		var n atomic.Int64
		b.Run(s.name, func(b *testing.B) {
			for b.Loop() {
				signIn(b, s.store, fmt.Sprint(n.Add(1)))
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sign-ins/s")
		})
		b.Run(s.name+"/parallel", func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					signIn(b, s.store, fmt.Sprint(n.Add(1)))
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sign-ins/s")
		})
		must(b, s.store.Close())
	}
}

func signIn(b *testing.B, s storage.Storage, id string) {
	ctx, later := b.Context(), time.Now().Add(time.Hour)
	user := "user " + id
	claims := storage.Claims{UserID: user, Username: "Alice", Email: id + "@example.com", Groups: []string{"team-a", "team-b"}}
	request := storage.AuthRequest{ID: "r" + id, ClientID: "app", RedirectURI: "https://app.example.com/callback", Scopes: []string{"openid"}, Expiry: later}
	_, err := s.GetClient(ctx, "app")
	check(b, err)
	check(b, s.CreateAuthRequest(ctx, request))
	_, err = s.GetAuthRequest(ctx, request.ID)
	check(b, err)
	check(b, s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: user, ConnectorID: "ad", Claims: claims}))
	check(b, s.UpdateAuthRequest(ctx, request.ID, func(v storage.AuthRequest) (storage.AuthRequest, error) {
		v.LoggedIn, v.Claims, v.ConnectorID = true, claims, "ad"
		return v, nil
	}))
	session := newSession("s"+id, user)
	session.IdleExpiry, session.AbsoluteExpiry = later, later.Add(time.Hour)
	check(b, s.CreateAuthSession(ctx, session))
	request, err = s.GetAuthRequest(ctx, request.ID)
	check(b, err)
	check(b, s.DeleteAuthRequest(ctx, request.ID))
	check(b, s.CreateAuthCode(ctx, storage.AuthCode{ID: "c" + id, ClientID: "app", Claims: request.Claims, ConnectorID: "ad", Expiry: later}))
	_, err = s.GetAuthCode(ctx, "c"+id)
	check(b, err)
	check(b, s.DeleteAuthCode(ctx, "c"+id))
	check(b, s.UpdateAuthSession(ctx, session.ID, func(v storage.AuthSession) (storage.AuthSession, error) {
		v.LastActivity, v.IdleExpiry = later, later.Add(time.Minute)
		return v, nil
	}))
}

func check(b *testing.B, err error) {
	if err != nil {
		b.Error(err)
	}
}
