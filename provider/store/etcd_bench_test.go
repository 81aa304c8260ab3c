package store

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"

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

// The expiry of a record is moved: by the index, as we do, and by a lease, as etcd would do it. A lease cannot be given another end, only
// be kept alive for as long as it was granted for; so a new one takes the place of the old one.
func BenchmarkMovingAnExpiryInEtcd(b *testing.B) {
	d := openEtcdAt(b, peers.Etcd(b, peers.EtcdOptions{}))
	ctx, data := b.Context(), make([]byte, 500)
	b.Run("index", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			r, err := d.Read(ctx, "k", "index")
			o := Op{Verb: Put, Record: Record{Kind: "k", ID: "index", Version: r.Version, Data: data, Expires: epoch.Add(time.Duration(i) * time.Minute)}}
			if err != nil {
				o.Verb = Create
			}
			_, err = d.Write(ctx, []Op{o})
			check(b, err)
		}
	})
	b.Run("lease", func(b *testing.B) {
		var old clientv3.LeaseID
		for b.Loop() {
			_, err := d.Read(ctx, "k", "lease")
			if !errors.Is(err, storage.ErrNotFound) {
				check(b, err)
			}
			lease, err := d.client.Grant(ctx, 3600)
			check(b, err)
			_, err = d.client.Put(ctx, d.recordKey("k", "lease"), encodeEtcd(Record{Data: data}), clientv3.WithLease(lease.ID))
			check(b, err)
			if old != 0 {
				_, err = d.client.Revoke(ctx, old)
				check(b, err)
			}
			old = lease.ID
		}
	})
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
