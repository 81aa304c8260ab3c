package provider

import (
	"context"

	"github.com/lestrrat-go/jwx/v2/jwt"

	"gatehouse/provider/front"
)

// verifyHint checks an ID Token as a hint (OpenID Connect RP-Initiated Logout 1.0 section 2): as KeySet.Verify, but that it may have expired.
func (p *Provider) verifyHint(ctx context.Context, raw string) (front.Token, error) {
	t, err := p.keys.verify(ctx, raw, "", jwt.WithAcceptableSkew(never))
	if err == nil {
		return tokenOf(t), nil
	}
	if h, malformed := compact(raw); malformed == nil && len(raw) <= maxToken && p.keys.unknownKey(h) {
		return front.Token{}, front.ErrFormerKey
	}
	return front.Token{}, err
}

func tokenOf(t IDToken) front.Token {
	return front.Token{Subject: t.Subject, Nonce: t.Nonce, SessionID: t.SessionID, Client: t.Client, IssuedAt: t.IssuedAt}
}
