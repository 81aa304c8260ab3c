package identity

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"gatehouse/connectors"

	"github.com/dexidp/dex/connector"
)

// errDoor is what Dex gets when somebody tries to go around the sign-in page.
var errDoor = errors.New("this connector is entered through the sign-in page only")

// The parts that a wrapper is put together from; each implements one interface of Dex.
type (
	doorPart     struct{ *Door } // browser flows: proven in process, whatever stands behind
	passwordPart struct{ *Door } // the password grant
	refreshPart  struct{ *Door }
	rest         struct{ *Door } // token exchange and upstream logout, refused where the connector has none
)

// wrapped returns what Dex gets in place of the connector. Whether it has Refresh decides in Dex whether refresh
// tokens are issued, so it is shown only where the connector has it.
func (d *Door) wrapped() connector.Connector {
	_, refresh := d.inner.(connector.RefreshConnector)
	switch {
	case d.Kind == Password && refresh:
		return struct {
			doorPart
			passwordPart
			refreshPart
			rest
		}{doorPart{d}, passwordPart{d}, refreshPart{d}, rest{d}}
	case d.Kind == Password:
		return struct {
			doorPart
			passwordPart
			rest
		}{doorPart{d}, passwordPart{d}, rest{d}}
	case refresh:
		return struct {
			doorPart
			refreshPart
			rest
		}{doorPart{d}, refreshPart{d}, rest{d}}
	}
	return struct {
		doorPart
		rest
	}{doorPart{d}, rest{d}}
}

// LoginURL implements connector.CallbackConnector: the "upstream" is this process.
func (p doorPart) LoginURL(_ connector.Scopes, callbackURL, state string) (string, []byte, error) {
	return callbackURL + "?" + url.Values{"state": {state}}.Encode(), nil, nil
}

// HandleCallback implements connector.CallbackConnector.
func (p doorPart) HandleCallback(_ connector.Scopes, _ []byte, r *http.Request) (connector.Identity, error) {
	proof, ok := r.Context().Value(proofKey{}).(*Proof)
	if !ok || proof.connector != p.ID || !proof.used.CompareAndSwap(false, true) {
		return connector.Identity{}, errDoor
	}
	return proof.identity, nil
}

// Prompt implements connector.PasswordConnector.
func (p passwordPart) Prompt() string { return p.Door.Prompt() }

// Login implements connector.PasswordConnector, for the password grant: with every limit of the sign-in page.
func (p passwordPart) Login(ctx context.Context, s connector.Scopes, user, password string) (connector.Identity, bool, error) {
	// The address is that of the client's server, not of the user: no network is counted.
	id, err := p.CheckPassword(ctx, Login{User: user, Password: password, Scopes: s})
	var no *connectors.Refusal
	switch {
	case errors.As(err, &no) && no.Reason.Untold():
		return connector.Identity{}, false, nil
	case no != nil && (no.Reason == connectors.Busy || no.Reason == connectors.Throttled):
		turnedAway(ctx, p.ID, no)
		return connector.Identity{}, false, no
	case err != nil:
		return connector.Identity{}, false, err
	}
	letIn(ctx, p.ID, id.UserID, id.Evidence)
	return id.Identity, true, nil
}

// Refresh implements connector.RefreshConnector.
func (p refreshPart) Refresh(ctx context.Context, s connector.Scopes, id connector.Identity) (connector.Identity, error) {
	s.Groups = true
	var err error
	if a := p.upstream(); a != nil {
		id, err = a.refreshed(ctx, id)
	} else {
		id, err = p.inner.(connector.RefreshConnector).Refresh(ctx, s, id)
	}
	if err != nil {
		return connector.Identity{}, err
	}
	return id, p.allowed(ctx, id)
}

// TokenIdentity implements connector.TokenIdentityConnector.
func (p rest) TokenIdentity(ctx context.Context, tokenType, token string) (connector.Identity, error) {
	t, ok := p.inner.(connector.TokenIdentityConnector)
	if !ok {
		return connector.Identity{}, errors.New("this connector does not support token exchange")
	}
	id, err := t.TokenIdentity(ctx, tokenType, token)
	if err != nil {
		return connector.Identity{}, err
	}
	return id, p.allowed(ctx, id)
}

// LogoutURL implements connector.LogoutCallbackConnector; "" where the upstream has no logout.
func (p rest) LogoutURL(ctx context.Context, back string) (string, error) {
	return p.Door.LogoutURL(ctx, back)
}

// HandleLogoutCallback implements connector.LogoutCallbackConnector.
func (p rest) HandleLogoutCallback(ctx context.Context, r *http.Request) error {
	if l, ok := p.inner.(connector.LogoutCallbackConnector); ok {
		return l.HandleLogoutCallback(ctx, r)
	}
	return nil
}
