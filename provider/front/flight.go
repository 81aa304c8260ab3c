package front

import (
	"context"
	"errors"
	"time"

	"github.com/dexidp/dex/storage"
)

// A flight keeps the AuthRequest, and the internal client's AuthCode, of a sign-in that begins and ends within
// one request of the browser: there is no reason to store them. What the browser must come back for
// (a second factor, consent) is stored at the end.
type flight struct {
	requests map[string]storage.AuthRequest
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
	var errs []error
	for _, a := range f.requests {
		if a.LoggedIn {
			errs = append(errs, s.CreateAuthRequest(ctx, a))
		}
	}
	return errors.Join(errs...)
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
