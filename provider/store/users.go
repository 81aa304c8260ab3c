package store

import "context"

// UsersOf returns the ids of all users who have signed in through a connector, of those whose identity cannot be read, too. It goes through every identity and
// keeps few: it is for the start.
func (s *Store) UsersOf(ctx context.Context, connectorID string) ([]string, error) {
	var ids []string
	for r, err := range s.driver.Driver.Scan(ctx, Query{Kind: KindIdentity}) {
		if err != nil {
			return nil, err
		}
		if user, connector, ok := unpair(r.ID); ok && connector == connectorID {
			ids = append(ids, user)
		}
	}
	return ids, nil
}
