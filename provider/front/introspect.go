package front

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"gatehouse/provider/identity"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// An introspection is what is told of a token that is good (RFC 7662 section 2.2), under the names that Dex has.
type introspection struct {
	Active    bool            `json:"active"`
	Scope     string          `json:"scope,omitempty"`
	ClientID  string          `json:"client_id"`
	Subject   string          `json:"sub"`
	Expiry    int64           `json:"exp,omitempty"` // not there: never
	IssuedAt  int64           `json:"iat"`
	NotBefore int64           `json:"nbf"`
	Username  string          `json:"username,omitempty"`
	Audience  json.RawMessage `json:"aud"` // a text or a list of texts, as in the token
	Issuer    string          `json:"iss"`
	TokenID   string          `json:"jti,omitempty"`
	TokenType string          `json:"token_type,omitempty"` // RFC 6749 section 5.1: of an access token
	TokenUse  string          `json:"token_use"`
	Extra     extraClaims     `json:"ext"`
}

// extraClaims are the claims of the token, as they are now.
type extraClaims struct {
	AuthorizedParty   string                    `json:"azp,omitempty"`
	SessionID         string                    `json:"sid,omitempty"`
	Email             string                    `json:"email,omitempty"`
	EmailVerified     *bool                     `json:"email_verified,omitempty"`
	Groups            []string                  `json:"groups,omitempty"`
	Name              string                    `json:"name,omitempty"`
	PreferredUsername string                    `json:"preferred_username,omitempty"`
	Federated         *tokens.FederatedIDClaims `json:"federated_claims,omitempty"`
}

// introspect is token introspection (RFC 7662), for clients only: section 2.1 wants authorization, and Dex asks none. What it tells is true now.
func (f *Front) introspect(w http.ResponseWriter, r *http.Request) {
	f.toPrograms(w, r)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "malformed form", bodyStatus(err))
		return
	}
	c, ok, err := f.confidential(r)
	switch {
	case err != nil:
		f.unknown(w, r, err)
		return
	case !ok:
		w.Header().Set("WWW-Authenticate", `Basic realm="introspection"`)
		f.oauthError(w, http.StatusUnauthorized, "invalid_client", "introspection needs the credentials of a confidential client")
		return
	}
	if len(r.PostForm["token"]) != 1 || r.PostForm.Get("token") == "" {
		f.oauthError(w, http.StatusBadRequest, "invalid_request", "want one token, in a form")
		return
	}
	look := f.introspectRefresh
	if raw := r.PostForm.Get("token"); strings.ContainsAny(raw, ".{") { // a refresh token has neither
		look = f.introspectAccess
	}
	told, err := look(r.Context(), c, r.PostForm.Get("token"))
	switch {
	case errors.Is(err, ErrUnknown):
		f.unknown(w, r, err)
	case err != nil: // section 2.2: nothing more is told of a token that is not good
		f.answerJSON(w, http.StatusOK, map[string]bool{"active": false})
	default:
		f.answerJSON(w, http.StatusOK, told)
	}
}

// confidential returns the client that has sent its secret.
func (f *Front) confidential(r *http.Request) (_ storage.Client, ok bool, _ error) {
	id, secret, basic := r.BasicAuth()
	if basic { // RFC 6749 section 2.3.1: form-encoded within Basic
		id, secret = unescape(id), unescape(secret)
	} else {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	c, err := f.Storage.GetClient(r.Context(), id)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return storage.Client{}, false, err
	}
	return c, err == nil && id != GatewayClient && !c.Public && sameSecret(c.Secret, secret), nil
}

func (f *Front) introspectAccess(ctx context.Context, _ storage.Client, raw string) (*introspection, error) {
	s, err := f.stands(ctx, raw)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(s.now())
	if err != nil {
		return nil, err
	}
	var t struct {
		extraClaims

		Subject  string          `json:"sub"`
		Audience json.RawMessage `json:"aud"`
		Issuer   string          `json:"iss"`
		TokenID  string          `json:"jti"`
		Expiry   int64           `json:"exp"`
		IssuedAt int64           `json:"iat"`
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, errors.Join(ErrUnknown, err)
	}
	switch _, err := f.Storage.GetClient(ctx, s.Client); {
	case errors.Is(err, storage.ErrNotFound): // a token ends with its client
		return nil, errRevoked
	case err != nil:
		return nil, errors.Join(ErrUnknown, err)
	}
	return &introspection{
		Active: true, ClientID: s.Client, Subject: t.Subject, Expiry: t.Expiry, IssuedAt: t.IssuedAt, NotBefore: t.IssuedAt, Username: t.PreferredUsername,
		Audience: t.Audience, Issuer: t.Issuer, TokenID: t.TokenID, TokenType: "Bearer", TokenUse: "access_token", Extra: t.extraClaims,
	}, nil
}

// introspectRefresh looks at a refresh token. It is told to its own client only: nobody else is to come by one.
func (f *Front) introspectRefresh(ctx context.Context, c storage.Client, raw string) (*introspection, error) {
	t, err := f.refreshToken(ctx, raw)
	if err != nil {
		return nil, err
	}
	if t.ClientID != c.ID {
		return nil, errRevoked
	}
	sid, err := f.refreshSession(ctx, c, t)
	if err != nil {
		return nil, err
	}
	switch err := f.Vouch(ctx, t.ConnectorID, t.Claims.UserID, t.CreatedAt); {
	case errors.Is(err, identity.ErrEnded):
		return nil, errRevoked
	case err != nil:
		return nil, errors.Join(ErrUnknown, err)
	}
	user, err := f.userNow(ctx, t.Claims.UserID, t.ConnectorID)
	if err != nil {
		return nil, err
	}
	if user == nil {
		user = &t.Claims
	}
	subject, err := tokens.GenSubject(t.Claims.UserID, t.ConnectorID)
	if err != nil {
		return nil, err
	}
	audience, err := json.Marshal(t.ClientID)
	if err != nil {
		return nil, err
	}
	return &introspection{
		Active: true, Scope: strings.Join(t.Scopes, " "), ClientID: t.ClientID, Subject: subject, Expiry: f.refreshExpiry(t), IssuedAt: t.CreatedAt.Unix(), NotBefore: t.CreatedAt.Unix(),
		Audience: audience, Issuer: f.Issuer.String(), TokenUse: "refresh_token",
		Username: scoped(t.Scopes, tokens.ScopeProfile, user.PreferredUsername), Extra: extraOf(t.Scopes, user, sid),
	}, nil
}

// extraOf is what the scopes cover of a user.
func extraOf(scopes []string, u *storage.Claims, sid string) extraClaims {
	e := extraClaims{
		SessionID: sid, Name: scoped(scopes, tokens.ScopeProfile, u.Username), PreferredUsername: scoped(scopes, tokens.ScopeProfile, u.PreferredUsername),
		Email: scoped(scopes, tokens.ScopeEmail, u.Email),
	}
	if slices.Contains(scopes, tokens.ScopeEmail) {
		e.EmailVerified = &u.EmailVerified
	}
	if slices.Contains(scopes, tokens.ScopeGroups) {
		e.Groups = u.Groups
	}
	return e
}

func scoped(scopes []string, scope, value string) string {
	if !slices.Contains(scopes, scope) {
		return ""
	}
	return value
}

// refreshToken returns the refresh token that raw is, as Dex's refresh grant would take it.
func (f *Front) refreshToken(ctx context.Context, raw string) (*storage.RefreshToken, error) {
	id, secret, ok := twoStrings(raw)
	if !ok {
		return nil, errRevoked
	}
	t, err := f.Storage.GetRefresh(ctx, id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, errRevoked
	case err != nil:
		return nil, errors.Join(ErrUnknown, err)
	}
	reused := sameSecret(t.ObsoleteToken, secret) && f.Refresh.AllowedToReuse(t.LastUsed)
	if !sameSecret(t.Token, secret) && !reused || f.Refresh.CompletelyExpired(t.CreatedAt) || f.Refresh.ExpiredBecauseUnused(t.LastUsed) {
		return nil, errRevoked
	}
	return &t, nil
}

// refreshSession is the session that a refresh token came from, "" for none. It fails with errRevoked where that has ended and the client's tokens end with it.
func (f *Front) refreshSession(ctx context.Context, c storage.Client, t *storage.RefreshToken) (sid string, err error) {
	o, err := f.Storage.GetOfflineSessions(ctx, t.Claims.UserID, t.ConnectorID)
	switch {
	case errors.Is(err, storage.ErrNotFound): // Dex's refresh grant takes none without
		return "", errRevoked
	case err != nil:
		return "", errors.Join(ErrUnknown, err)
	}
	ref := o.Refresh[t.ClientID]
	switch {
	case ref == nil, ref.ID != t.ID: // it is not the user's any more
		return "", errRevoked
	case ref.SessionID == "":
		return "", nil
	}
	if !c.RefreshBoundToSession() {
		return ref.SessionID, nil
	}
	lives, err := f.lives(ctx, ref.SessionID)
	if err == nil && !lives {
		err = errRevoked
	}
	return ref.SessionID, err
}

// refreshExpiry is when a refresh token ends by itself if nobody uses it, 0 for never.
func (f *Front) refreshExpiry(t *storage.RefreshToken) int64 {
	var end time.Time
	earliest := func(at time.Time) {
		if end.IsZero() || at.Before(end) {
			end = at
		}
	}
	if d := f.Refresh.AbsoluteLifetime(); d > 0 {
		earliest(t.CreatedAt.Add(d))
	}
	if d := f.RefreshIdle; d > 0 {
		earliest(t.LastUsed.Add(d))
	}
	if end.IsZero() {
		return 0
	}
	return end.Unix()
}
