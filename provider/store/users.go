package store

import (
	"context"
	"strings"
)

// UsersOf returns the ids of all users who have signed in through a connector. It reads every identity and keeps few:
// it is for the start.
func (s *Store) UsersOf(ctx context.Context, connectorID string) ([]string, error) {
	var ids []string
	for r, err := range s.driver.Scan(ctx, Query{Kind: KindIdentity}) {
		if err != nil {
			return nil, err
		}
		if !strings.HasSuffix(r.ID, ":"+connectorID) { // see pair
			continue
		}
		u, err := identities.decode(r)
		if err != nil {
			return nil, err
		}
		if u.ConnectorID == connectorID {
			ids = append(ids, u.UserID)
		}
	}
	return ids, nil
}
