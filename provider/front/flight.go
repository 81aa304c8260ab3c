package front

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dexidp/dex/storage"
)

// A flight keeps the AuthRequest, and the internal client's AuthCode, of a sign-in that begins and ends within
// one request of the browser: there is no reason to store them. What the browser must come back for
// (a second factor, consent) is stored at the end. A new session is stored once, with all that Dex says of it, before anything that names it.
type flight struct {
	requests map[string]storage.AuthRequest
	session  *storage.AuthSession // not stored yet
	codes    map[string]storage.AuthCode
	authTime time.Time // of the session that is signed on by; zero where a credential was accepted
}

type flightKey struct{}

// withFlight returns a context for one in-process flow. It is used by one goroutine at a time.
func withFlight(ctx context.Context) (context.Context, *flight) {
	f := &flight{requests: map[string]storage.AuthRequest{}, codes: map[string]storage.AuthCode{}}
	return context.WithValue(ctx, flightKey{}, f), f
}

// land stores what the browser has to come back for.
func (f *flight) land(ctx context.Context, s storage.Storage) error {
	ctx = context.WithValue(ctx, flightKey{}, nil) // past the flight
	if v, ok := f.takeSession(); ok {
		if err := s.CreateAuthSession(ctx, v); err != nil { // nothing goes on without it
			return fmt.Errorf("front: store the session: %w", err)
		}
	}
	var errs []error
	for _, a := range f.requests {
		if a.LoggedIn {
			errs = append(errs, s.CreateAuthRequest(ctx, a))
		}
	}
	return errors.Join(errs...)
}

func (f *flight) takeSession() (storage.AuthSession, bool) {
	if f == nil || f.session == nil {
		return storage.AuthSession{}, false
	}
	v := *f.session
	f.session = nil
	return v, true
}

// HoldSession keeps a session that is being made, where it is made by a sign-in within one request: it is stored when that is over, or by whoever
// stores something that names it (TakeSession).
func HoldSession(ctx context.Context, v storage.AuthSession) bool {
	f := inFlight(ctx)
	if f == nil || f.session != nil {
		return false
	}
	v = copySession(v)
	f.session = &v
	return true
}

// HeldSession returns the session that is held, if it is that one.
func HeldSession(ctx context.Context, id string) (storage.AuthSession, bool) {
	f := inFlight(ctx)
	if f == nil || f.session == nil || f.session.ID != id {
		return storage.AuthSession{}, false
	}
	return copySession(*f.session), true
}

// UpdateHeldSession updates the session that is held; false: it is not that one.
func UpdateHeldSession(ctx context.Context, id string, updater func(storage.AuthSession) (storage.AuthSession, error)) (bool, error) {
	v, ok := HeldSession(ctx, id)
	if !ok {
		return false, nil
	}
	v, err := updater(v)
	if err == nil {
		inFlight(ctx).session = &v
	}
	return true, err
}

// TakeSession returns the session that is held, which is the caller's to store.
func TakeSession(ctx context.Context) (storage.AuthSession, bool) { return inFlight(ctx).takeSession() }

// copySession returns one that shares no memory with v.
func copySession(v storage.AuthSession) storage.AuthSession {
	states := make(map[string]*storage.ClientAuthState, len(v.ClientStates))
	for id, s := range v.ClientStates {
		if s != nil {
			c := *s
			states[id] = &c
		}
	}
	v.ClientStates = states
	return v
}

// CodeInFlight reports whether a code is of the sign-in of this request, and not stored.
func CodeInFlight(ctx context.Context, id string) bool {
	f := inFlight(ctx)
	if f == nil {
		return false
	}
	_, ok := f.codes[id]
	return ok
}

// Flights returns s as Dex must see it: whatever belongs to the sign-in of one request is looked up there first.
func Flights(s storage.Storage) storage.Storage { return flights{s} }

// flights is a storage that looks into the flight of a request first.
type flights struct{ storage.Storage }

func inFlight(ctx context.Context) *flight {
	f, _ := ctx.Value(flightKey{}).(*flight)
	return f
}

func (s flights) CreateAuthRequest(ctx context.Context, a storage.AuthRequest) error {
	if f := inFlight(ctx); f != nil {
		f.requests[a.ID] = a
		return nil
	}
	return s.Storage.CreateAuthRequest(ctx, a)
}

func (s flights) GetAuthRequest(ctx context.Context, id string) (storage.AuthRequest, error) {
	if f := inFlight(ctx); f != nil {
		if a, ok := f.requests[id]; ok {
			return a, nil
		}
	}
	return s.Storage.GetAuthRequest(ctx, id)
}

func (s flights) UpdateAuthRequest(ctx context.Context, id string, update func(storage.AuthRequest) (storage.AuthRequest, error)) error {
	if f := inFlight(ctx); f != nil {
		if a, ok := f.requests[id]; ok {
			a, err := update(a)
			if !f.authTime.IsZero() && a.LoggedIn {
				a.AuthTime = f.authTime
			}
			if err == nil {
				f.requests[id] = a
			}
			return err
		}
	}
	return s.Storage.UpdateAuthRequest(ctx, id, update)
}

func (s flights) DeleteAuthRequest(ctx context.Context, id string) error {
	if f := inFlight(ctx); f != nil {
		if _, ok := f.requests[id]; ok {
			delete(f.requests, id)
			return nil
		}
	}
	return s.Storage.DeleteAuthRequest(ctx, id)
}

func (s flights) CreateAuthCode(ctx context.Context, c storage.AuthCode) error {
	if f := inFlight(ctx); f != nil && c.ClientID == GatewayClient {
		f.codes[c.ID] = c
		return nil
	}
	return s.Storage.CreateAuthCode(ctx, c)
}

func (s flights) GetAuthCode(ctx context.Context, id string) (storage.AuthCode, error) {
	if f := inFlight(ctx); f != nil {
		if c, ok := f.codes[id]; ok {
			return c, nil
		}
	}
	return s.Storage.GetAuthCode(ctx, id)
}

func (s flights) DeleteAuthCode(ctx context.Context, id string) error {
	if f := inFlight(ctx); f != nil {
		if _, ok := f.codes[id]; ok {
			delete(f.codes, id)
			return nil
		}
	}
	return s.Storage.DeleteAuthCode(ctx, id)
}
