package store

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/kubernetes"

	"gatehouse/provider/store"
)

// BenchmarkSignIn makes the storage calls of Dex's sign-in, in turns on our store and on plain Dex's own storage of the same API server, and
// reports the medians and their ratio:
//
//	GATEHOUSE_CLUSTER=… go test -run '^$' -bench SignIn -benchtime 200x ./store
func BenchmarkSignIn(b *testing.B) {
	c := newCluster(b)
	plain, err := (&kubernetes.Config{KubeConfigFile: c.Kubeconfig}).Open(slog.New(slog.DiscardHandler))
	must(b, err)
	b.Cleanup(func() { must(b, plain.Close()) })
	c.Kubectl(b, "", "create", "namespace", "bench")
	ours := c.store(b, store.KubernetesConfig{KubeConfigFile: c.Kubeconfig, Namespace: "bench"}, store.Options{}) // as the same user as Dex
	both := []storage.Storage{ours, plain}
	for _, s := range both {
		for i := range 20 { // connections and caches
			signIn(b.Context(), b, s, fmt.Sprintf("warm-%d", i))
		}
	}
	var took [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		for j, s := range both {
			start := time.Now()
			signIn(b.Context(), b, s, fmt.Sprint(i))
			took[j] = append(took[j], time.Since(start))
		}
	}
	gatehouse, dex := median(took[0]).Seconds(), median(took[1]).Seconds()
	b.ReportMetric(gatehouse*1000, "ms-gatehouse")
	b.ReportMetric(dex*1000, "ms-dex")
	b.ReportMetric(gatehouse/dex, "ratio")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// signIn makes what facts of Dex's code flow with sessions say: 9 writes and as many reads.
func signIn(ctx context.Context, b *testing.B, s storage.Storage, id string) {
	b.Helper()
	expiry := time.Now().Add(time.Hour)
	claims := storage.Claims{UserID: id, Username: "alice", Email: "alice@example.com", EmailVerified: true, Groups: []string{"a", "b", "c"}}
	step := func(err error) {
		if err != nil {
			b.Error(err)
		}
	}
	step(s.CreateAuthRequest(ctx, storage.AuthRequest{ID: id, ClientID: "app", Scopes: []string{"openid"}, Expiry: expiry, State: "state"}))
	_, err := s.GetAuthRequest(ctx, id)
	step(err)
	step(s.UpdateAuthRequest(ctx, id, func(a storage.AuthRequest) (storage.AuthRequest, error) {
		a.LoggedIn, a.Claims, a.ConnectorID = true, claims, "ldap"
		return a, nil
	}))
	_, err = s.GetAuthRequest(ctx, id)
	step(err)
	step(s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: id, ConnectorID: "ldap", Claims: claims, Consents: map[string][]string{}}))
	_, err = s.GetUserIdentity(ctx, id, "ldap")
	step(err)
	step(s.CreateAuthSession(ctx, storage.AuthSession{ID: id, UserID: id, ConnectorID: "ldap", ClientStates: map[string]*storage.ClientAuthState{}, IdleExpiry: expiry, AbsoluteExpiry: expiry}))
	step(s.UpdateAuthSession(ctx, id, func(a storage.AuthSession) (storage.AuthSession, error) {
		a.ClientStates["app"] = &storage.ClientAuthState{AuthenticatedAt: expiry}
		return a, nil
	}))
	step(s.CreateAuthCode(ctx, storage.AuthCode{ID: id, ClientID: "app", Claims: claims, Expiry: expiry}))
	step(s.DeleteAuthRequest(ctx, id))
	_, err = s.GetAuthCode(ctx, id)
	step(err)
	step(s.DeleteAuthCode(ctx, id))
	_, err = s.GetAuthSession(ctx, id)
	step(err)
}
