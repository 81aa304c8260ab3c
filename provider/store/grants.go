package store

import (
	"context"
	"errors"
	"time"

	"github.com/dexidp/dex/storage"
)

// Grants are what an upstream identity provider gave to ask about a user with, and what it said last. One record holds both and the claim of
// whoever asks at present, so that each of them can only change with the others: a rotated refresh token that is used twice signs the user out at
// many providers. They are kept until Expiry, which every answer moves.
type Grants struct {
	UserID, ConnectorID string
	List                []Grant        // the newest sign-in first
	Said                storage.Claims // what was said last, at a sign-in or when asked
	Asked               time.Time      // when that was asked for
	Refused             string         // why the user may not go on, as of Asked; "": they may
	Config              string         // names the connector's configuration that it was asked with
	Claim               string         // names who asks at present; "": nobody does
	Expiry              time.Time
}

// A Grant is of one sign-in.
type Grant struct {
	ID    string
	Data  []byte // Dex's connector data, such as a refresh token
	Since time.Time
}

// grants is never assigned to.
var grants = kind[Grants]{
	name:    KindGrants,
	id:      func(v *Grants) string { return userRecord(v.UserID, v.ConnectorID) },
	user:    func(v *Grants) (string, string) { return v.UserID, v.ConnectorID },
	claims:  func(v *Grants) storage.Claims { return v.Said },
	expires: func(v *Grants) time.Time { return v.Expiry },
}

// GrantsOf returns the grants of a user, expired or not; ErrNotFound if there are none.
func (s *Store) GrantsOf(ctx context.Context, userID, connectorID string) (Grants, error) {
	return get(ctx, s, &grants, userRecord(userID, connectorID))
}

// UpdateGrants updates the grants of a user. If there are none the updater gets none, with the ids set, and what it returns is created. It is
// no change of anything that a session shows: nobody is told.
func (s *Store) UpdateGrants(ctx context.Context, userID, connectorID string, updater func(Grants) (Grants, error)) error {
	return update(ctx, s, &grants, updating{id: userRecord(userID, connectorID), create: true}, func(g Grants) (Grants, error) {
		g.UserID, g.ConnectorID = userID, connectorID
		return updater(g)
	})
}

// DropGrants forgets the grants of a user from before a time, and what was said, if nothing else is left.
func (s *Store) DropGrants(ctx context.Context, userID, connectorID string, before, now time.Time) error {
	errNothing := errors.New("nothing to drop")
	err := s.UpdateGrants(ctx, userID, connectorID, func(g Grants) (Grants, error) {
		var kept []Grant
		for _, one := range g.List {
			if !one.Since.Before(before) {
				kept = append(kept, one)
			}
		}
		if len(g.List) == 0 && g.Expiry.IsZero() || len(kept) == len(g.List) && len(kept) > 0 {
			return g, errNothing
		}
		g.List = kept
		if len(kept) == 0 { // an expired record is as good as none: garbage collection takes it, unless a sign-in comes first
			g = Grants{UserID: userID, ConnectorID: connectorID, Expiry: now}
		}
		return g, nil
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}
