package front

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"gatehouse/provider/identity"

	"github.com/dexidp/dex/storage"
)

// ErrUnknown means that nobody can say now whether a token is good: it is not to be thrown away. Options.VerifyAny fails with it, too.
var ErrUnknown = errors.New("it is not known now whether the token is good")

// A standing is a token that is good, and who its user is now.
type standing struct {
	Token
	claims map[string]json.RawMessage // of the token
	user   *storage.Claims            // nil where nothing is known but the token: no user stands behind it, or they came by the password grant
}

// stands looks at an access token or an ID Token. It fails with ErrUnknown, or because the token is not of this issuer, its session has ended, its code was used twice, or
// its user is blocked or may not go on.
func (f *Front) stands(ctx context.Context, raw string) (standing, error) {
	t, err := f.VerifyAny(ctx, raw)
	if err != nil {
		return standing{}, err
	}
	s := standing{Token: t}
	if s.claims, err = payload(raw); err != nil {
		return standing{}, err
	}
	userID, connectorID, ok := parseSubject(t.Subject)
	if !ok {
		return s, nil // of a client for itself: no user stands behind it
	}
	if t.SessionID != "" {
		switch lives, err := f.lives(ctx, t.SessionID); {
		case err != nil:
			return standing{}, err
		case !lives:
			if err := f.outlives(ctx, t.Client, userID, connectorID); err != nil {
				return standing{}, err
			}
		}
	}
	switch void, err := f.Replayed(ctx, t, userID, connectorID); {
	case err != nil:
		return standing{}, errors.Join(ErrUnknown, err)
	case void:
		return standing{}, errRevoked
	}
	switch err := f.Vouch(ctx, connectorID, userID, t.IssuedAt); {
	case errors.Is(err, identity.ErrEnded):
		return standing{}, errRevoked
	case err != nil:
		return standing{}, errors.Join(ErrUnknown, err)
	}
	s.user, err = f.userNow(ctx, userID, connectorID)
	return s, err
}

// lives reports whether a session goes on. It fails with ErrUnknown, where Dex would take a storage that fails for the end of the session.
func (f *Front) lives(ctx context.Context, id string) (bool, error) {
	s, err := f.Storage.GetAuthSession(ctx, id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return false, nil
	case err != nil:
		return false, errors.Join(ErrUnknown, err)
	}
	now := f.Now()
	over := func(at time.Time) bool { return !at.IsZero() && now.After(at) } // as Dex reads it
	return !over(s.IdleExpiry) && !over(s.AbsoluteExpiry), nil
}

// userNow is what is stored of a user, nil where that is nothing. It fails with errRevoked for a user who is blocked, and with ErrUnknown.
func (f *Front) userNow(ctx context.Context, userID, connectorID string) (*storage.Claims, error) {
	u, err := f.Storage.GetUserIdentity(ctx, userID, connectorID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, nil
	case errors.Is(err, identity.ErrBlocked):
		return nil, errors.Join(errRevoked, err)
	case err != nil:
		return nil, errors.Join(ErrUnknown, err)
	case u.LastLogin.IsZero(): // made by a block, of somebody who never signed in: it knows nothing of them
		return nil, nil
	}
	return &u.Claims, nil
}

// payload reads the claims of a token in the compact form, which was verified.
func payload(raw string) (map[string]json.RawMessage, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, errors.New("want a token in the compact form")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	var claims map[string]json.RawMessage
	if err := json.Unmarshal(b, &claims); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	return claims, nil
}

// now puts who the user is now in the place of who they were when the token was issued. A token tells what its scopes cover: a claim that it does not have is not
// added, but for those that come with it (OpenID Connect Core 1.0 section 5.4).
func (s *standing) now() map[string]json.RawMessage {
	if s.user == nil {
		return s.claims
	}
	has := func(name string) bool { _, ok := s.claims[name]; return ok }
	set := func(name string, v any, empty bool) {
		if empty {
			delete(s.claims, name)
			return
		}
		s.claims[name], _ = json.Marshal(v) // texts and such
	}
	u := s.user
	if has("email_verified") || has("email") {
		set("email", u.Email, u.Email == "")
		set("email_verified", u.EmailVerified, false)
	}
	if has("name") || has("preferred_username") {
		set("name", u.Username, u.Username == "")
		set("preferred_username", u.PreferredUsername, u.PreferredUsername == "")
	}
	if has("groups") {
		set("groups", u.Groups, len(u.Groups) == 0)
	}
	return s.claims
}

// answerJSON answers a program. Nobody keeps the answer.
func (f *Front) answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache") // RFC 6749 section 5.1
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// toPrograms sets the headers of an answer to a program: those of the configuration, and which scripts may read it (Fetch, "CORS protocol"), as Dex does.
func (f *Front) toPrograms(w http.ResponseWriter, r *http.Request) {
	for name, v := range f.Headers {
		w.Header()[name] = slices.Clone(v)
	}
	if len(f.AllowedOrigins) == 0 {
		return
	}
	all := slices.Contains(f.AllowedOrigins, "*")
	if !all {
		w.Header().Add("Vary", "Origin")
	}
	switch origin := r.Header.Get("Origin"); {
	case origin == "":
	case all:
		w.Header().Set("Access-Control-Allow-Origin", "*")
	case slices.Contains(f.AllowedOrigins, origin):
		w.Header().Set("Access-Control-Allow-Origin", origin)
	}
}

// userinfo is the UserInfo endpoint (OpenID Connect Core 1.0 section 5.3): who the user of an access token is now. Dex tells what is in the token, and goes on
// after a sign-out.
func (f *Front) userinfo(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodOptions:
		f.Dex.ServeHTTP(w, r)
		return
	case http.MethodGet, http.MethodPost, http.MethodHead:
	default:
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		f.oauthError(w, http.StatusMethodNotAllowed, "invalid_request", "want GET or POST")
		return
	}
	f.toPrograms(w, r)
	// The scheme's name is in any case (RFC 9110 section 11.1).
	scheme, raw, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || raw == "" {
		w.Header().Set("WWW-Authenticate", "Bearer") // RFC 6750 section 3.1: no error code where there was no token
		f.oauthError(w, http.StatusUnauthorized, "invalid_request", "want Authorization: Bearer and an access token")
		return
	}
	s, err := f.stands(r.Context(), raw)
	switch {
	case errors.Is(err, ErrUnknown):
		f.unknown(w, r, err)
	case err != nil:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		f.oauthError(w, http.StatusUnauthorized, "invalid_token", "the token is not valid, or not any more")
	default:
		f.answerJSON(w, http.StatusOK, s.now())
	}
}

// unknown says that nobody can say, which is no reason for a client to throw its token away.
func (f *Front) unknown(w http.ResponseWriter, r *http.Request, err error) {
	f.Log.WarnContext(r.Context(), "nobody can say whether a token is good", "path", r.URL.Path, "request_id", requestID(r), "error", err)
	w.Header().Set("Retry-After", "5")
	f.oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "it is not known now whether the token is good")
}
