package store

import (
	"slices"
	"testing"

	"github.com/dexidp/dex/storage"
)

func TestUsersOfOneConnector(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		for _, u := range [][2]string{{"a", "local"}, {"b", "local"}, {"x:local", "ldap"}, {"c", "not:local"}, {"d", "notlocal"}, {"", "local"}} {
			if err := s.CreateUserIdentity(t.Context(), storage.UserIdentity{UserID: u[0], ConnectorID: u[1]}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.UsersOf(t.Context(), "local")
		slices.Sort(got)
		if want := []string{"", "a", "b"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
}
