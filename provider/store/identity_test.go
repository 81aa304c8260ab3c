package store

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
)

// What is known of a password stays with a user whom Dex stores anew, and a record from before there was such a thing is one.
func TestIdentityKeepsThePassword(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx, s := t.Context(), newStore(d, Options{}, 0)
		want := KnownPassword{Set: 7, Reset: true, Since: time.Now().UTC().Truncate(time.Microsecond), Pending: true, Own: true, Except: "s", TokensOver: time.Now().UTC().Truncate(time.Microsecond), OwnUntil: time.Now().UTC().Truncate(time.Microsecond)}
		must(t, s.CreateIdentity(ctx, Identity{UserIdentity: storage.UserIdentity{UserID: "ann", ConnectorID: "ad", Claims: storage.Claims{UserID: "ann"}}, Password: &want}))
		must(t, s.UpdateUserIdentity(ctx, "ann", "ad", func(u storage.UserIdentity) (storage.UserIdentity, error) {
			u.Claims.Email = "ann@example.com"
			return u, nil
		}))
		got, err := s.GetIdentity(ctx, "ann", "ad")
		must(t, err)
		if got.Password == nil || *got.Password != want || got.Claims.Email != "ann@example.com" {
			t.Errorf("got %+v, %+v", got.Password, got.Claims)
		}
		must(t, s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "bob", ConnectorID: "ad"}))
		if got, err := s.GetIdentity(ctx, "bob", "ad"); err != nil || got.Password != nil || got.UserID != "bob" {
			t.Errorf("without: got %+v, %v", got, err)
		}
		all, err := s.ListUserIdentities(ctx)
		must(t, err)
		seen := map[string]string{}
		for _, u := range all {
			seen[u.UserID] = u.Claims.Email
		}
		if len(seen) != 2 || seen["ann"] != "ann@example.com" {
			t.Errorf("listed %v", seen)
		}
		if u, err := s.GetUserIdentity(ctx, "ann", "ad"); err != nil || u.Claims.Email != "ann@example.com" {
			t.Errorf("dex gets %+v, %v", u, err)
		}
	})
}

// While versions are replaced one after the other, one that knows Dex's part only reads and stores identities, too: it loses the rest and nothing else.
func TestIdentityOfAnOlderVersion(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	fresh := Identity{
		UserIdentity: storage.UserIdentity{UserID: "ann", ConnectorID: "ad", Claims: storage.Claims{UserID: "ann", Email: "ann@example.com"}, BlockedUntil: now},
		Password:     &KnownPassword{Set: 7, Since: now, Pending: true, TokensOver: now}, BlockOver: now,
	}
	record, err := identities.encode(&fresh)
	must(t, err)
	var old storage.UserIdentity
	must(t, json.Unmarshal(record.Data, &old))
	record.Data, err = json.Marshal(old)
	must(t, err)
	got, err := identities.decode(record)
	must(t, err)
	if got.Password != nil || !got.BlockOver.IsZero() || got.Claims.Email != "ann@example.com" || !got.BlockedUntil.Equal(now) {
		t.Errorf("got %+v", got)
	}
}
