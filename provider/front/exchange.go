package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"

	"gatehouse/internal/inproc"
	"gatehouse/provider/identity"
	"gatehouse/web"

	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/storage"
)

// token is Dex's token endpoint (RFC 6749 section 3.2).
func (f *Front) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		f.api(w, r)
		return
	}
	voidSubjects(r)
	switch r.Form.Get("grant_type") {
	case oauth2.GrantTypePassword:
		f.passwordGrant(w, r)
	case oauth2.GrantTypeRefreshToken:
		f.refreshGrant(w, r)
	case oauth2.GrantTypeDeviceCode:
		f.deviceGrant(w, r)
	case oauth2.GrantTypeAuthorizationCode:
		remembering(f.exchanged)(w, r)
	default:
		f.exchanged(w, r)
	}
}

func (f *Front) exchanged(w http.ResponseWriter, r *http.Request) {
	ctx, _ := withExchange(r.Context())
	f.api(w, r.WithContext(ctx))
}

// refreshGrant is Dex's refresh grant. Of several that use one refresh token at once Dex tells all but the first that the server
// failed (500); but the token is simply used up (RFC 6749 section 5.2, invalid_grant), and the client has to know.
//
// Dex answers from what is stored of the user: who they are now is asked before.
func (f *Front) refreshGrant(w http.ResponseWriter, r *http.Request) {
	switch err := f.vouchRefresh(r); {
	case errors.Is(err, errOddToken):
		f.oauthError(w, http.StatusBadRequest, oauth2.InvalidGrant, "not a refresh token")
		return
	case errors.Is(err, identity.ErrEnded):
		f.oauthError(w, http.StatusBadRequest, oauth2.InvalidGrant, "the user may not go on")
		return
	case err != nil:
		f.Log.WarnContext(r.Context(), "a refresh token is refused for now", "error", err)
		w.Header().Set("Retry-After", "1")
		f.oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "it is not known who the user is now")
		return
	}
	ctx, e := withExchange(r.Context())
	e.Refresh = true
	resp, err := inproc.Serve(http.HandlerFunc(f.api), r.WithContext(ctx))
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	if e.Unread {
		f.Log.WarnContext(r.Context(), "a refresh token is refused for now: the storage does not say whether its session goes on")
		w.Header().Set("Retry-After", "1")
		f.oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "it is not known now whether the token's session goes on")
		return
	}
	if e.Claimed && resp.StatusCode == http.StatusInternalServerError {
		f.oauthError(w, http.StatusBadRequest, oauth2.InvalidGrant, "the refresh token was used already, or is revoked")
		return
	}
	copyAnswer(w, resp)
}

// errOddToken is of a refresh token that Dex might read and we do not: nobody could be asked about its user.
var errOddToken = errors.New("front: not a refresh token")

// vouchRefresh asks who the user of the request's refresh token is now. One that is not good any more is for Dex to refuse.
func (f *Front) vouchRefresh(r *http.Request) error {
	raw := r.Form.Get("refresh_token") // as Dex reads it
	if raw == "" {
		return nil
	}
	id, secret, ok := twoStrings(raw)
	if !ok {
		return errOddToken
	}
	t, err := f.Storage.GetRefresh(r.Context(), id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("front: read refresh token: %w", err)
	case !sameSecret(t.Token, secret) && !sameSecret(t.ObsoleteToken, secret):
		return nil
	}
	return f.Vouch(r.Context(), t.ConnectorID, t.Claims.UserID, t.CreatedAt)
}

func copyAnswer(w http.ResponseWriter, resp *http.Response) {
	cookies := append(w.Header()["Set-Cookie"], resp.Header["Set-Cookie"]...)
	maps.Copy(w.Header(), resp.Header)
	if len(cookies) > 0 {
		w.Header()["Set-Cookie"] = cookies
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the client may be gone
}

// An Exchange is what one request to the token endpoint does in the storage, which learns it call by call. It is used by one
// goroutine at a time.
type Exchange struct {
	Code    string // the authorization code that was spent, as the storage names it; "" for none
	Claimed bool   // the refresh token was gone, or used by another request
	Refresh bool   // it is about a refresh token
	// Unanswered says that the storage did not say what a device's code is good for.
	Unanswered bool
	// Read is the authorization code that the storage has shown: codes do not change.
	Read *storage.AuthCode
	// Unread says that the session of the refresh token could not be read. Dex takes that for its end, and deletes the token: nothing
	// is to be deleted from then on.
	Unread bool
}

type exchangeKey struct{}

func withExchange(ctx context.Context) (context.Context, *Exchange) {
	e := &Exchange{}
	return context.WithValue(ctx, exchangeKey{}, e), e
}

// ExchangeOf returns the exchange that a call of the storage belongs to, nil if to none.
func ExchangeOf(ctx context.Context) *Exchange {
	e, _ := ctx.Value(exchangeKey{}).(*Exchange)
	return e
}
