package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dexidp/dex/storage"
)

var _ storage.Storage = (*Store)(nil)

// SessionsOf returns the sessions of a user, by an index.
func (s *Store) SessionsOf(ctx context.Context, userID, connectorID string) ([]storage.AuthSession, error) {
	return list(ctx, s, &sessions, pair(userID, connectorID))
}

// CreatePassword stores a password. E-mail addresses are stored in lower case: they name a password whatever
// their case.
func (s *Store) CreatePassword(ctx context.Context, p storage.Password) error {
	p.Email = strings.ToLower(p.Email)
	return create(ctx, s, &passwords, &p)
}

// GetPassword finds a password by e-mail, in any case.
func (s *Store) GetPassword(ctx context.Context, email string) (storage.Password, error) {
	return get(ctx, s, &passwords, strings.ToLower(email))
}

// UpdatePassword updates a password found by e-mail, in any case.
func (s *Store) UpdatePassword(ctx context.Context, email string, updater func(storage.Password) (storage.Password, error)) error {
	return update(ctx, s, &passwords, updating{id: strings.ToLower(email)}, updater)
}

// DeletePassword deletes a password found by e-mail, in any case.
func (s *Store) DeletePassword(ctx context.Context, email string) error {
	return remove(ctx, s, &passwords, strings.ToLower(email))
}

// Keys are the issuer's signing keys: Dex's, and of former ones what Dex forgets.
type Keys struct {
	storage.Keys
	Published time.Time   // since when the signing key is published; zero: for long
	Former    []FormerKey // the oldest first
	Next      *NextKey    // published, and signs later; nil: none
}

// A NextKey takes the place of the signing key at a time, wherever it is known, without another write.
type NextKey struct {
	Key         *jose.JSONWebKey // private
	Published   time.Time
	SignsFrom   time.Time
	FormerUntil time.Time // until when the key before it verifies
}

// A FormerKey is a signing key that another one has taken the place of.
type FormerKey struct {
	Key       *jose.JSONWebKey // private
	Published time.Time        // as that of Keys
}

// FeedInterval is how often the change log is read at the latest, by this process and by all that are configured alike.
func (s *Store) FeedInterval() time.Duration { return s.opts.FeedInterval }

// SigningKeys returns no keys and no error before the first update.
func (s *Store) SigningKeys(ctx context.Context) (Keys, error) {
	keys, err := get(ctx, s, &signingKeys, keysID)
	if errors.Is(err, storage.ErrNotFound) {
		return Keys{}, nil
	}
	return keys, err
}

// UpdateSigningKeys creates the keys if there are none: the updater then gets the zero value.
func (s *Store) UpdateSigningKeys(ctx context.Context, updater func(Keys) (Keys, error)) error {
	return update(ctx, s, &signingKeys, updating{id: keysID, create: true}, updater)
}

// GetKeys returns no keys and no error before the first update, as Dex's memory storage does.
func (s *Store) GetKeys(ctx context.Context) (storage.Keys, error) {
	keys, err := s.SigningKeys(ctx)
	return keys.Keys, err
}

// UpdateKeys is UpdateSigningKeys for Dex's part of them.
func (s *Store) UpdateKeys(ctx context.Context, updater func(storage.Keys) (storage.Keys, error)) error {
	return s.UpdateSigningKeys(ctx, func(k Keys) (_ Keys, err error) {
		k.Keys, err = updater(k.Keys)
		return k, err
	})
}

// UpdateRefreshToken updates a refresh token. Dex's updater asks the connector, which may rotate a token of its
// own: the updates of one token take turns within a process, so that it is not asked in vain.
func (s *Store) UpdateRefreshToken(ctx context.Context, id string, updater func(storage.RefreshToken) (storage.RefreshToken, error)) error {
	return update(ctx, s, &refreshTokens, updating{id: id, queued: true}, updater)
}

// CreateAuthRequest stores an auth request.
func (s *Store) CreateAuthRequest(ctx context.Context, v storage.AuthRequest) error {
	return create(ctx, s, &authRequests, &v)
}

// GetAuthRequest returns an auth request.
func (s *Store) GetAuthRequest(ctx context.Context, id string) (storage.AuthRequest, error) {
	return get(ctx, s, &authRequests, id)
}

// UpdateAuthRequest updates an auth request.
func (s *Store) UpdateAuthRequest(ctx context.Context, id string, updater func(storage.AuthRequest) (storage.AuthRequest, error)) error {
	return update(ctx, s, &authRequests, updating{id: id}, updater)
}

// DeleteAuthRequest deletes an auth request.
func (s *Store) DeleteAuthRequest(ctx context.Context, id string) error {
	return remove(ctx, s, &authRequests, id)
}

// CreateClient stores a client.
func (s *Store) CreateClient(ctx context.Context, v storage.Client) error {
	return create(ctx, s, &clients, &v)
}

// GetClient returns a client.
func (s *Store) GetClient(ctx context.Context, id string) (storage.Client, error) {
	return get(ctx, s, &clients, id)
}

// UpdateClient updates a client.
func (s *Store) UpdateClient(ctx context.Context, id string, updater func(storage.Client) (storage.Client, error)) error {
	return update(ctx, s, &clients, updating{id: id}, updater)
}

// DeleteClient deletes a client.
func (s *Store) DeleteClient(ctx context.Context, id string) error {
	return remove(ctx, s, &clients, id)
}

// CreateAuthCode stores an auth code.
func (s *Store) CreateAuthCode(ctx context.Context, v storage.AuthCode) error {
	return create(ctx, s, &authCodes, &v)
}

// GetAuthCode returns an auth code.
func (s *Store) GetAuthCode(ctx context.Context, id string) (storage.AuthCode, error) {
	return get(ctx, s, &authCodes, id)
}

// DeleteAuthCode deletes an auth code.
func (s *Store) DeleteAuthCode(ctx context.Context, id string) error {
	return remove(ctx, s, &authCodes, id)
}

// CreateRefresh stores a refresh token.
func (s *Store) CreateRefresh(ctx context.Context, v storage.RefreshToken) error {
	return create(ctx, s, &refreshTokens, &v)
}

// GetRefresh returns a refresh token.
func (s *Store) GetRefresh(ctx context.Context, id string) (storage.RefreshToken, error) {
	return get(ctx, s, &refreshTokens, id)
}

// DeleteRefresh deletes a refresh token.
func (s *Store) DeleteRefresh(ctx context.Context, id string) error {
	return remove(ctx, s, &refreshTokens, id)
}

// CreateOfflineSessions stores a user's offline sessions.
func (s *Store) CreateOfflineSessions(ctx context.Context, v storage.OfflineSessions) error {
	return create(ctx, s, &offlineSessions, &v)
}

// GetOfflineSessions returns a user's offline sessions.
func (s *Store) GetOfflineSessions(ctx context.Context, userID, connectorID string) (storage.OfflineSessions, error) {
	return get(ctx, s, &offlineSessions, pair(userID, connectorID))
}

// UpdateOfflineSessions updates a user's offline sessions.
func (s *Store) UpdateOfflineSessions(ctx context.Context, userID, connectorID string, updater func(storage.OfflineSessions) (storage.OfflineSessions, error)) error {
	return update(ctx, s, &offlineSessions, updating{id: pair(userID, connectorID)}, updater)
}

// DeleteOfflineSessions deletes a user's offline sessions.
func (s *Store) DeleteOfflineSessions(ctx context.Context, userID, connectorID string) error {
	return remove(ctx, s, &offlineSessions, pair(userID, connectorID))
}

// CreateUserIdentity stores a user identity.
func (s *Store) CreateUserIdentity(ctx context.Context, v storage.UserIdentity) error {
	return create(ctx, s, &identities, &Identity{UserIdentity: v})
}

// GetUserIdentity returns a user identity.
func (s *Store) GetUserIdentity(ctx context.Context, userID, connectorID string) (storage.UserIdentity, error) {
	i, err := s.GetIdentity(ctx, userID, connectorID)
	return i.UserIdentity, err
}

// UpdateUserIdentity is UpdateIdentity for Dex's part of one.
func (s *Store) UpdateUserIdentity(ctx context.Context, userID, connectorID string, updater func(storage.UserIdentity) (storage.UserIdentity, error)) error {
	return s.UpdateIdentity(ctx, userID, connectorID, func(i Identity) (_ Identity, err error) {
		i.UserIdentity, err = updater(i.UserIdentity)
		return i, err
	})
}

// DeleteUserIdentity deletes a user identity.
func (s *Store) DeleteUserIdentity(ctx context.Context, userID, connectorID string) error {
	return remove(ctx, s, &identities, pair(userID, connectorID))
}

// CreateAuthSession stores an auth session.
func (s *Store) CreateAuthSession(ctx context.Context, v storage.AuthSession) error {
	return create(ctx, s, &sessions, &v)
}

// GetAuthSession returns an auth session.
func (s *Store) GetAuthSession(ctx context.Context, id string) (storage.AuthSession, error) {
	return get(ctx, s, &sessions, id)
}

// UpdateAuthSession updates an auth session.
func (s *Store) UpdateAuthSession(ctx context.Context, id string, updater func(storage.AuthSession) (storage.AuthSession, error)) error {
	return update(ctx, s, &sessions, updating{id: id}, updater)
}

// DeleteAuthSession deletes an auth session.
func (s *Store) DeleteAuthSession(ctx context.Context, id string) error {
	return remove(ctx, s, &sessions, id)
}

// CreateConnector stores a connector.
func (s *Store) CreateConnector(ctx context.Context, v storage.Connector) error {
	return create(ctx, s, &connectors, &v)
}

// GetConnector returns a connector.
func (s *Store) GetConnector(ctx context.Context, id string) (storage.Connector, error) {
	return get(ctx, s, &connectors, id)
}

// UpdateConnector updates a connector.
func (s *Store) UpdateConnector(ctx context.Context, id string, updater func(storage.Connector) (storage.Connector, error)) error {
	return update(ctx, s, &connectors, updating{id: id}, updater)
}

// DeleteConnector deletes a connector.
func (s *Store) DeleteConnector(ctx context.Context, id string) error {
	return remove(ctx, s, &connectors, id)
}

// CreateDeviceRequest stores a device request.
func (s *Store) CreateDeviceRequest(ctx context.Context, v storage.DeviceRequest) error {
	return create(ctx, s, &deviceRequests, &v)
}

// GetDeviceRequest returns a device request.
func (s *Store) GetDeviceRequest(ctx context.Context, id string) (storage.DeviceRequest, error) {
	return get(ctx, s, &deviceRequests, id)
}

// CreateDeviceToken stores a device token.
func (s *Store) CreateDeviceToken(ctx context.Context, v storage.DeviceToken) error {
	return create(ctx, s, &deviceTokens, &v)
}

// GetDeviceToken returns a device token.
func (s *Store) GetDeviceToken(ctx context.Context, id string) (storage.DeviceToken, error) {
	return get(ctx, s, &deviceTokens, id)
}

// UpdateDeviceToken updates a device token.
func (s *Store) UpdateDeviceToken(ctx context.Context, id string, updater func(storage.DeviceToken) (storage.DeviceToken, error)) error {
	return update(ctx, s, &deviceTokens, updating{id: id}, updater)
}

// ListClients returns all clients.
func (s *Store) ListClients(ctx context.Context) ([]storage.Client, error) {
	return list(ctx, s, &clients, "")
}

// ListRefreshTokens returns all refresh tokens.
func (s *Store) ListRefreshTokens(ctx context.Context) ([]storage.RefreshToken, error) {
	return list(ctx, s, &refreshTokens, "")
}

// ListPasswords returns all passwords.
func (s *Store) ListPasswords(ctx context.Context) ([]storage.Password, error) {
	return list(ctx, s, &passwords, "")
}

// ListConnectors returns all connectors.
func (s *Store) ListConnectors(ctx context.Context) ([]storage.Connector, error) {
	return list(ctx, s, &connectors, "")
}

// ListUserIdentities returns all user identities.
func (s *Store) ListUserIdentities(ctx context.Context) ([]storage.UserIdentity, error) {
	all, err := list(ctx, s, &identities, "")
	var users []storage.UserIdentity
	for i := range all {
		users = append(users, all[i].UserIdentity)
	}
	return users, err
}

// ListAuthSessions returns all auth sessions, expired ones too.
func (s *Store) ListAuthSessions(ctx context.Context) ([]storage.AuthSession, error) {
	return list(ctx, s, &sessions, "")
}
