package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/connector/oidc"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// typeOIDC is Dex's type of connector for any OpenID Provider.
const typeOIDC = "oidc"

// An UpstreamSession is what an ID Token of an OpenID Provider calls the session that a sign-in is of. A logout token names one or the other.
type UpstreamSession struct {
	ID      string // "sid", OpenID Connect Back-Channel Logout 1.0 section 2.1; "" where the provider says none
	Subject string // "sub"
	// Began is when the browser came back from the provider, by our clock: before the provider was asked for the ID Token. Whoever finishes the sign-in sets it.
	Began time.Time
}

type upstreamSessionKey struct{}

// WithUpstreamSession returns a context in which Door.FinishRedirect says what session of the upstream it was. It stays empty for connectors that are not of type oidc.
func WithUpstreamSession(ctx context.Context) context.Context {
	return context.WithValue(ctx, upstreamSessionKey{}, &UpstreamSession{})
}

// UpstreamSessionOf returns what FinishRedirect has said, nil outside of such a context.
func UpstreamSessionOf(ctx context.Context) *UpstreamSession {
	s, _ := ctx.Value(upstreamSessionKey{}).(*UpstreamSession)
	return s
}

// An oidcUpstream is Dex's connector for an OpenID Provider, which verifies an ID Token and then keeps "sid" and "sub" to itself. But it can be told to make a group out
// of a claim: so it is, under a name that nobody can guess, and every such group is taken out again here.
type oidcUpstream struct {
	oidcConnector

	mark string
}

// An oidcConnector is all that Dex's is.
type oidcConnector interface {
	connector.CallbackConnector
	connector.RefreshConnector
	connector.TokenIdentityConnector
	connector.LogoutCallbackConnector
	io.Closer
}

// openOIDC opens a connector of type oidc.
func openOIDC(open dexconnectors.ResolveFunc, c storage.Connector) (connector.Connector, error) {
	var config oidc.Config
	if err := json.Unmarshal(c.Config, &config); err != nil {
		return nil, fmt.Errorf("parse connector config: %w", err)
	}
	mark := rand.Text() + " "
	for _, claim := range []string{"sid", "sub"} {
		config.ClaimMutations.NewGroupFromClaims = append(config.ClaimMutations.NewGroupFromClaims, oidc.NewGroupFromClaims{Claims: []string{claim}, Delimiter: "=", Prefix: mark + claim})
	}
	marked, err := json.Marshal(config) //nolint:gosec // G117: it goes to the connector that it came from
	if err != nil {
		return nil, fmt.Errorf("connector config: %w", err)
	}
	c.Config = marked
	inner, err := open(c)
	if err != nil {
		return nil, err
	}
	o, ok := inner.(oidcConnector)
	if !ok {
		return nil, fmt.Errorf("connector %q: %T is not what Dex's connector for OpenID Providers was", c.ID, inner)
	}
	return &oidcUpstream{oidcConnector: o, mark: mark}, nil
}

// unmark takes the groups out that were made of claims, and returns these.
func (o *oidcUpstream) unmark(id connector.Identity) (connector.Identity, UpstreamSession) {
	var s UpstreamSession
	id.Groups = slices.DeleteFunc(slices.Clone(id.Groups), func(g string) bool {
		claim, marked := strings.CutPrefix(g, o.mark)
		if !marked {
			return false
		}
		name, value, _ := strings.Cut(claim, "=")
		switch name {
		case "sid":
			s.ID = value
		case "sub":
			s.Subject = value
		}
		return true
	})
	if len(id.Groups) == 0 {
		id.Groups = nil
	}
	return id, s
}

// HandleCallback implements connector.CallbackConnector.
func (o *oidcUpstream) HandleCallback(s connector.Scopes, data []byte, r *http.Request) (connector.Identity, error) {
	id, err := o.oidcConnector.HandleCallback(s, data, r)
	id, session := o.unmark(id)
	if to := UpstreamSessionOf(r.Context()); to != nil && err == nil {
		*to = session
	}
	return id, err
}

// Refresh implements connector.RefreshConnector.
func (o *oidcUpstream) Refresh(ctx context.Context, s connector.Scopes, id connector.Identity) (connector.Identity, error) {
	id, err := o.oidcConnector.Refresh(ctx, s, id)
	id, _ = o.unmark(id)
	return id, err
}

// TokenIdentity implements connector.TokenIdentityConnector.
func (o *oidcUpstream) TokenIdentity(ctx context.Context, tokenType, token string) (connector.Identity, error) {
	id, err := o.oidcConnector.TokenIdentity(ctx, tokenType, token)
	id, _ = o.unmark(id)
	return id, err
}
