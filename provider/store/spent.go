package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/dexidp/dex/storage"
)

// A SpentCode is an authorization code that was exchanged: what a second request for it would have to match, and what the first
// led to. It is kept until the code would have expired.
type SpentCode struct {
	ID                                    string // hash of the code
	ClientID, RedirectURI                 string
	PKCE                                  storage.PKCE
	UserID, ConnectorID, SessionID, Nonce string
	Spent, Expiry                         time.Time
	TokensFor                             time.Duration // lifetime of the tokens that it was exchanged for
	RefreshID                             string        // of the refresh token; "" for none
	Replayed                              bool
}

// A Replay says which tokens are not good any more since their code was used twice: those of a client for a user in a session, with
// a nonce, that were issued in a span of time. It is kept until they would have expired.
type Replay struct {
	ID                                              string // of the SpentCode
	ClientID, UserID, ConnectorID, SessionID, Nonce string
	From, Until, Expiry                             time.Time
}

// Both are never assigned to.
var (
	spentCodes = kind[SpentCode]{
		name:    KindSpentCode,
		id:      func(v *SpentCode) string { return v.ID },
		user:    func(v *SpentCode) (string, string) { return v.UserID, v.ConnectorID },
		expires: func(v *SpentCode) time.Time { return v.Expiry },
	}
	replays = kind[Replay]{
		name:    KindReplay,
		id:      func(v *Replay) string { return v.ID },
		user:    func(v *Replay) (string, string) { return v.UserID, v.ConnectorID },
		expires: func(v *Replay) time.Time { return v.Expiry },
		owned:   true,
	}
)

// SpentCodeID is the ID of the SpentCode of a code, from which nobody learns the code.
func SpentCodeID(code string) string {
	sum := sha256.Sum256([]byte(code))
	return hex.EncodeToString(sum[:])
}

// SpendAuthCode deletes an authorization code and records v in its place, both or neither. Of several that spend it at once exactly
// one succeeds; the others get ErrNotFound. (Over a Sequential driver an error may leave neither: the deletion, which decides, comes first, and nobody
// gets tokens.)
func (s *Store) SpendAuthCode(ctx context.Context, code string, v SpentCode) error {
	v.ID = SpentCodeID(code)
	r, err := spentCodes.encode(&v)
	if err != nil {
		return err
	}
	_, err = s.driver.Write(ctx, []Op{{Verb: Delete, Record: Record{Kind: KindAuthCode, ID: code}}, {Verb: Create, Record: r}})
	return err
}

// GetSpentCode returns the record of a spent code, expired or not.
func (s *Store) GetSpentCode(ctx context.Context, id string) (SpentCode, error) {
	return get(ctx, s, &spentCodes, id)
}

// UpdateSpentCode updates the record of a spent code.
func (s *Store) UpdateSpentCode(ctx context.Context, id string, updater func(SpentCode) (SpentCode, error)) error {
	return update(ctx, s, &spentCodes, updating{id: id}, updater)
}

// CreateReplay stores a replay.
func (s *Store) CreateReplay(ctx context.Context, v Replay) error {
	return create(ctx, s, &replays, &v)
}

// ReplaysOf returns the replays of a user's codes, by an index.
func (s *Store) ReplaysOf(ctx context.Context, userID, connectorID string) ([]Replay, error) {
	return list(ctx, s, &replays, pair(userID, connectorID))
}
