package store

import (
	"errors"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
)

func TestGrants(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx, start := t.Context(), time.Now().UTC().Truncate(time.Second)
		s := newStore(d, Options{}, 0)
		told := 0
		defer s.Subscribe(func(Change) { told++ })()
		ids := func() (got []string) {
			t.Helper()
			g, err := s.GrantsOf(ctx, "ada", "company")
			must(t, err)
			for _, one := range g.List {
				got = append(got, one.ID)
			}
			return got
		}
		must(t, s.DropGrants(ctx, "ada", "company", start, start))
		if _, err := s.GrantsOf(ctx, "ada", "company"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("to drop nothing made a record: %v", err)
		}
		for i, id := range []string{"old", "new"} {
			must(t, s.UpdateGrants(ctx, "ada", "company", func(g Grants) (Grants, error) {
				g.List = append([]Grant{{ID: id, Data: []byte(id), Since: start.Add(time.Duration(i) * time.Hour)}}, g.List...)
				g.Said, g.Expiry = storage.Claims{UserID: "ada", Groups: []string{"staff"}}, start.Add(24*time.Hour)
				return g, nil
			}))
		}
		must(t, s.DropGrants(ctx, "ada", "company", start.Add(time.Hour), start))
		if got := ids(); len(got) != 1 || got[0] != "new" {
			t.Errorf("after dropping what is older than an hour: got %v, want the new one", got)
		}
		_, err := s.GarbageCollect(ctx, start.Add(time.Hour))
		must(t, err)
		ids()
		must(t, s.DropGrants(ctx, "ada", "company", start.Add(2*time.Hour), start.Add(time.Hour)))
		if g, err := s.GrantsOf(ctx, "ada", "company"); err != nil || len(g.List) != 0 || g.Said.UserID != "" {
			t.Errorf("after dropping all: got %+v, %v", g, err)
		}
		_, err = s.GarbageCollect(ctx, start.Add(2*time.Hour))
		must(t, err)
		if _, err := s.GrantsOf(ctx, "ada", "company"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("after the garbage collection: got %v, want nothing", err)
		}
		if told != 0 {
			t.Errorf("%d changes were told", told)
		}
	})
}
