package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwt"

	"gatehouse/internal/config"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// cutoffs is the storage of one configuration that lets nothing begin for whom it has just ended. Whoever cuts a user, a client or a password off
// stores that first, and then ends what there is; whoever makes something stores it first, and then looks whether its maker was
// cut off meanwhile. Whichever is later sees the other: nothing is left over between the two.
type cutoffs struct {
	storage.Storage

	store     *store.Store
	now       func() time.Time
	clients   map[string]string  // prints of the secrets of static clients, by id
	passwords map[string]string  // and of the hashes of static users, by user id
	users     []storage.Password // static
	// outdated ends what a user has that began with a former password of a directory. What fails of it goes on in the background.
	outdated func(ctx context.Context, connectorID, userID string)
}

func newCutoffs(s storage.Storage, st *store.Store, c *config.Config, now func() time.Time) cutoffs {
	return cutoffs{Storage: s, store: st, now: now, clients: clientPrints(c), passwords: passwordPrints(c), users: staticUsers(c)}
}

func clientPrints(c *config.Config) map[string]string {
	prints := map[string]string{}
	for i := range c.StaticClients {
		prints[c.StaticClients[i].ID] = store.Print([]byte(c.StaticClients[i].Secret.Reveal()))
	}
	return prints
}

func passwordPrints(c *config.Config) map[string]string {
	prints := map[string]string{}
	if c.EnablePasswordDB {
		for _, u := range staticUsers(c) {
			prints[u.UserID] = store.Print(u.Hash)
		}
	}
	return prints
}

var (
	errCutOff     = errors.New("provider: the user was cut off meanwhile")
	errOutOfDate  = errors.New("provider: another replica has a newer configuration: this one's file is out of date (or, if it is the right one, restart this replica)")
	errNoAnswer   = errors.New("provider: the storage does not say")
	errReadClient = fmt.Errorf("%w: read the client of a token", errNoAnswer)
	errHasNoUser  = errors.New("provider: no token of a user")
	errNewClients = fmt.Errorf("provider: the client's secret is not the current one: %w", errOutOfDate)
)

// current reports whether a secret of this configuration is the one that holds.
func (s cutoffs) current(ctx context.Context, about, id, secretPrint string) error {
	m, err := s.store.GetMark(ctx, about, id)
	switch {
	case errors.Is(err, storage.ErrNotFound): // it never was another one
		return nil
	case err != nil:
		return fmt.Errorf("%w: read which secret is current: %w", errNoAnswer, err)
	case m.Print != secretPrint:
		return errOutOfDate
	}
	return nil
}

// GetClient implements storage.Storage. A client that another replica knows another secret of, or knows to be gone, is none.
func (s cutoffs) GetClient(ctx context.Context, id string) (storage.Client, error) {
	c, err := s.Storage.GetClient(ctx, id)
	if err != nil {
		return c, err
	}
	secretPrint, static := s.clients[id]
	if !static {
		return c, nil
	}
	if err := s.current(ctx, store.MarkClient, id, secretPrint); err != nil {
		if errors.Is(err, errOutOfDate) {
			err = storage.ErrNotFound
		}
		return storage.Client{}, err
	}
	return c, nil
}

// GetPassword implements storage.Storage. The password of a file that is out of date is none.
func (s cutoffs) GetPassword(ctx context.Context, email string) (storage.Password, error) {
	p, err := s.Storage.GetPassword(ctx, email)
	if err != nil {
		return p, err
	}
	if err := s.currentPassword(ctx, p.UserID); err != nil {
		if errors.Is(err, errOutOfDate) {
			err = storage.ErrNotFound
		}
		return storage.Password{}, err
	}
	return p, nil
}

// ListPasswords implements storage.Storage. With an error that is store.OnlyUnread it returns all but those that cannot be read, where Dex's returns none: one that is
// damaged does not make the others strangers.
func (s cutoffs) ListPasswords(ctx context.Context) ([]storage.Password, error) {
	stored, err := s.store.ListPasswords(ctx)
	if err != nil && !store.OnlyUnread(err) {
		return nil, err
	}
	inFile := map[string]bool{}
	for i := range s.users {
		inFile[strings.ToLower(s.users[i].Email)] = true
	}
	stored = slices.DeleteFunc(stored, func(u storage.Password) bool { return inFile[strings.ToLower(u.Email)] })
	return append(stored, s.users...), err
}

func (s cutoffs) currentPassword(ctx context.Context, userID string) error {
	secretPrint, static := s.passwords[userID]
	if !static {
		return nil
	}
	return s.current(ctx, store.MarkPassword, userID, secretPrint)
}

// allowed fails for a user who is blocked, and for a local one whose password is another by now.
func (s cutoffs) allowed(ctx context.Context, userID, connectorID string) error {
	u, err := s.store.GetIdentity(ctx, userID, connectorID)
	e, shown := identity.EvidenceOf(ctx, connectorID)
	switch {
	case err != nil && !errors.Is(err, storage.ErrNotFound): // as after the password grant, which is no sign-in
		return fmt.Errorf("%w: read user: %w", errNoAnswer, err)
	case err == nil && s.now().Before(u.BlockedUntil):
		return errCutOff
	case err == nil && shown && former(u.Password, e, s.now()):
		return errFormerPassword
	case connectorID == dexconnectors.LocalConnector:
		return s.currentPassword(ctx, userID)
	}
	return nil
}

// CreateAuthSession implements storage.Storage. The session of a sign-in under way is stored later, and once: nobody knows it yet.
func (s cutoffs) CreateAuthSession(ctx context.Context, v storage.AuthSession) error {
	if front.HoldSession(ctx, v) {
		return nil
	}
	return s.storeSession(ctx, v)
}

func (s cutoffs) storeSession(ctx context.Context, v storage.AuthSession) error {
	if err := s.Storage.CreateAuthSession(ctx, v); err != nil {
		return err
	}
	return s.keepSession(ctx, v.ID, v.UserID, v.ConnectorID)
}

var errNoSession = errors.New("provider: the session has ended meanwhile: no code is made without one")

// CreateAuthCode implements storage.Storage. The session that a code names is there before it. There is no code of none: whoever ended the session in the midst of a
// sign-in could not end what comes of that code.
func (s cutoffs) CreateAuthCode(ctx context.Context, c storage.AuthCode) error {
	if c.SessionID == "" {
		return errNoSession
	}
	if v, ok := front.TakeSession(ctx); ok {
		if err := s.storeSession(ctx, v); err != nil {
			return err
		}
	}
	return s.Storage.CreateAuthCode(ctx, c)
}

var errUnread = errors.New("provider: the session of the refresh token could not be read: the token stays")

// unread notes that a refresh token's session could not be read.
func unread(ctx context.Context, err error) {
	if e := front.ExchangeOf(ctx); e != nil && e.Refresh && err != nil && !errors.Is(err, storage.ErrNotFound) {
		e.Unread = true
	}
}

func wasUnread(ctx context.Context) bool {
	e := front.ExchangeOf(ctx)
	return e != nil && e.Unread
}

// GetAuthSession implements storage.Storage.
func (s cutoffs) GetAuthSession(ctx context.Context, id string) (storage.AuthSession, error) {
	if v, ok := front.HeldSession(ctx, id); ok {
		return v, nil
	}
	v, err := s.Storage.GetAuthSession(ctx, id)
	unread(ctx, err)
	if step := front.StepOf(ctx); step != nil && err != nil && !errors.Is(err, storage.ErrNotFound) {
		step.SessionUnread = true
	}
	return v, err
}

// GetOfflineSessions implements storage.Storage. They name the session of a refresh token.
func (s cutoffs) GetOfflineSessions(ctx context.Context, userID, connectorID string) (storage.OfflineSessions, error) {
	v, err := s.Storage.GetOfflineSessions(ctx, userID, connectorID)
	unread(ctx, err)
	return v, err
}

// DeleteRefresh implements storage.Storage.
func (s cutoffs) DeleteRefresh(ctx context.Context, id string) error {
	if wasUnread(ctx) {
		return errUnread
	}
	return s.Storage.DeleteRefresh(ctx, id)
}

// UpdateAuthSession implements storage.Storage. A session that somebody signs in to again is as good as a new one.
func (s cutoffs) UpdateAuthSession(ctx context.Context, id string, updater func(storage.AuthSession) (storage.AuthSession, error)) error {
	if held, err := front.UpdateHeldSession(ctx, id, updater); held {
		return err
	}
	var user, connector string
	err := s.Storage.UpdateAuthSession(ctx, id, func(v storage.AuthSession) (storage.AuthSession, error) {
		user, connector = v.UserID, v.ConnectorID
		return updater(v)
	})
	if err != nil || !identity.Proves(ctx) {
		return err
	}
	return s.keepSession(ctx, id, user, connector)
}

// keepSession deletes a session whose user was cut off while it was made.
func (s cutoffs) keepSession(ctx context.Context, id, userID, connectorID string) error {
	no := s.allowed(store.Fresh(ctx), userID, connectorID)
	if no == nil {
		return nil
	}
	if err := s.store.DeleteAuthSession(context.WithoutCancel(ctx), id); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return errors.Join(no, err)
	}
	return no
}

// CreateOfflineSessions implements storage.Storage.
func (s cutoffs) CreateOfflineSessions(ctx context.Context, v storage.OfflineSessions) error {
	if err := s.seenGranted(ctx, v.UserID, v.ConnID); err != nil {
		return err
	}
	if err := s.Storage.CreateOfflineSessions(ctx, v); err != nil {
		return err
	}
	return s.keepTokens(ctx, v.UserID, v.ConnID, newRefs(nil, v.Refresh))
}

// UpdateOfflineSessions implements storage.Storage. It is how a refresh token becomes one of its user's, whom it ends with: what is made of it afterwards
// is looked at again.
func (s cutoffs) UpdateOfflineSessions(ctx context.Context, userID, connectorID string, updater func(storage.OfflineSessions) (storage.OfflineSessions, error)) error {
	if wasUnread(ctx) {
		return errUnread
	}
	if err := s.seenGranted(ctx, userID, connectorID); err != nil {
		return err
	}
	var fresh []storage.RefreshTokenRef
	err := s.Storage.UpdateOfflineSessions(ctx, userID, connectorID, func(o storage.OfflineSessions) (storage.OfflineSessions, error) {
		before := map[string]bool{}
		for _, ref := range o.Refresh {
			before[ref.ID] = true
		}
		o, err := updater(o)
		fresh = newRefs(before, o.Refresh)
		return o, err
	})
	if err != nil {
		return err
	}
	return s.keepTokens(ctx, userID, connectorID, fresh)
}

func newRefs(before map[string]bool, refs map[string]*storage.RefreshTokenRef) (fresh []storage.RefreshTokenRef) {
	for _, ref := range refs {
		if ref != nil && !before[ref.ID] {
			fresh = append(fresh, *ref)
		}
	}
	return fresh
}

// keepTokens deletes refresh tokens whose user, session or client was cut off while they were made.
func (s cutoffs) keepTokens(ctx context.Context, userID, connectorID string, fresh []storage.RefreshTokenRef) error {
	var errs []error
	for _, ref := range fresh {
		if no := s.tokenStands(ctx, userID, connectorID, ref); no != nil {
			errs = append(errs, no, revokeToken(context.WithoutCancel(ctx), s.store, userID, connectorID, ref))
		}
	}
	return errors.Join(errs...)
}

func (s cutoffs) tokenStands(ctx context.Context, userID, connectorID string, ref storage.RefreshTokenRef) error {
	ctx = store.Fresh(ctx)
	if err := s.allowed(ctx, userID, connectorID); err != nil {
		return err
	}
	if _, err := s.GetClient(ctx, ref.ClientID); err != nil {
		return errNewClients
	}
	if ref.SessionID != "" {
		if _, err := s.store.GetAuthSession(ctx, ref.SessionID); err != nil {
			return fmt.Errorf("provider: the session of the refresh token: %w", err)
		}
	}
	return nil
}

// revokeToken deletes a refresh token, and what refers to it.
func revokeToken(ctx context.Context, s *store.Store, userID, connectorID string, ref storage.RefreshTokenRef) error {
	if err := s.DeleteRefresh(ctx, ref.ID); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	err := s.UpdateOfflineSessions(ctx, userID, connectorID, func(o storage.OfflineSessions) (storage.OfflineSessions, error) {
		if r := o.Refresh[ref.ClientID]; r != nil && r.ID == ref.ID {
			delete(o.Refresh, ref.ClientID)
		}
		return o, nil
	})
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}

// GetDeviceToken implements storage.Storage. Dex makes a device's tokens when its user agrees, and hands them out when the device asks: those of who was cut
// off in between are not there.
func (s cutoffs) GetDeviceToken(ctx context.Context, deviceCode string) (storage.DeviceToken, error) {
	t, err := s.Storage.GetDeviceToken(ctx, deviceCode)
	if err == nil {
		if err = s.deviceStands(ctx, &t); err != nil && !errors.Is(err, errNoAnswer) {
			err = storage.ErrNotFound
		}
	}
	if err != nil {
		unanswered(ctx, err)
		return storage.DeviceToken{}, err
	}
	return t, nil
}

// unanswered notes that the storage did not say whether a device may have its tokens, or have them yet.
func unanswered(ctx context.Context, err error) {
	if e := front.ExchangeOf(ctx); e != nil && !errors.Is(err, storage.ErrNotFound) {
		e.Unanswered = true
	}
}

// UpdateDeviceToken implements storage.Storage. Where nobody can say whether the user was cut off, the tokens stay: that is asked again when the device fetches them.
func (s cutoffs) UpdateDeviceToken(ctx context.Context, deviceCode string, updater func(storage.DeviceToken) (storage.DeviceToken, error)) error {
	var t storage.DeviceToken
	err := s.Storage.UpdateDeviceToken(ctx, deviceCode, func(old storage.DeviceToken) (_ storage.DeviceToken, err error) {
		t, err = updater(old)
		return t, err
	})
	if err != nil {
		unanswered(ctx, err)
		return err
	}
	no := s.deviceStands(ctx, &t)
	if no == nil || errors.Is(no, errNoAnswer) {
		return nil
	}
	err = s.store.DeleteDeviceTokens(context.WithoutCancel(ctx), func(o *storage.DeviceToken) bool { return o.DeviceCode == deviceCode })
	return errors.Join(no, err)
}

// deviceStands fails for a device whose tokens are made already, for a user or client that was cut off.
func (s cutoffs) deviceStands(ctx context.Context, d *storage.DeviceToken) error {
	ctx = store.Fresh(ctx)
	if d.Token == "" {
		return nil
	}
	t, err := readDeviceToken(d.Token)
	if err != nil {
		return err
	}
	userID, connectorID, ok := front.ParseSubject(t.Subject)
	if !ok {
		return errHasNoUser
	}
	if err := s.allowed(ctx, userID, connectorID); err != nil {
		return err
	}
	return s.clientStands(ctx, t)
}

// clientStands fails for a token of a client that is gone, or was issued while it had another secret; with errReadClient where nobody can say.
func (s cutoffs) clientStands(ctx context.Context, t front.Token) error {
	_, err := s.Storage.GetClient(ctx, t.Client)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return fmt.Errorf("provider: the client of the token: %w", err)
	case err != nil:
		return fmt.Errorf("%w: %w", errReadClient, err)
	}
	m, err := s.store.GetMark(ctx, store.MarkClient, t.Client)
	secretPrint, static := s.clients[t.Client]
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("%w: since when its secret holds: %w", errReadClient, err)
	case static && m.Print != secretPrint, !m.Since.IsZero() && !t.IssuedAt.After(m.Since): // issued in whole seconds: of that one, too
		return errNewClients
	}
	return nil
}

// readDeviceToken reads the ID Token of a token response that Dex has stored. It comes from the store: it is not verified.
func readDeviceToken(stored string) (front.Token, error) {
	var answer struct {
		IDToken string `json:"id_token"`
	}
	if err := json.Unmarshal([]byte(stored), &answer); err != nil {
		return front.Token{}, err
	}
	id, err := jwt.ParseInsecure([]byte(answer.IDToken))
	if err != nil {
		return front.Token{}, err
	}
	t := front.Token{Subject: id.Subject(), IssuedAt: id.IssuedAt()}
	if t.Client, _ = claim(id, "azp"); t.Client == "" && len(id.Audience()) == 1 {
		t.Client = id.Audience()[0]
	}
	return t, nil
}
