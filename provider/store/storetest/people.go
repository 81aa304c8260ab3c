package storetest

import (
	"context"
	"time"

	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// A Person is a user who has signed in.
type Person struct {
	Connector, ID, Email string
	Groups               []string
	LastLogin            time.Time
}

// AddPerson stores a user, for those who may not know Dex.
func AddPerson(ctx context.Context, s *store.Store, p Person) error {
	return s.CreateUserIdentity(ctx, storage.UserIdentity{
		UserID: p.ID, ConnectorID: p.Connector, Claims: storage.Claims{UserID: p.ID, Email: p.Email, Groups: p.Groups},
		CreatedAt: p.LastLogin, LastLogin: p.LastLogin,
	})
}

// AddSession stores a session of a user that lives until expiry.
func AddSession(ctx context.Context, s *store.Store, id string, of Person, expiry time.Time) error {
	return s.CreateAuthSession(ctx, storage.AuthSession{
		ID: id, Secret: "x", UserID: of.ID, ConnectorID: of.Connector, CreatedAt: of.LastLogin, LastActivity: of.LastLogin,
		IdleExpiry: expiry, AbsoluteExpiry: expiry,
	})
}
