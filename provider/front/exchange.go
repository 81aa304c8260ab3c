package front

import (
	"context"
	"io"
	"maps"
	"net/http"

	"gatehouse/internal/inproc"
	"gatehouse/web"

	"github.com/dexidp/dex/server/oauth2"
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
	default:
		ctx, _ := withExchange(r.Context())
		f.api(w, r.WithContext(ctx))
	}
}

// refreshGrant is Dex's refresh grant. Of several that use one refresh token at once Dex tells all but the first that the server
// failed (500); but the token is simply used up (RFC 6749 section 5.2, invalid_grant), and the client has to know.
func (f *Front) refreshGrant(w http.ResponseWriter, r *http.Request) {
	ctx, e := withExchange(r.Context())
	resp, err := inproc.Serve(http.HandlerFunc(f.api), r.WithContext(ctx))
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	if e.Claimed && resp.StatusCode == http.StatusInternalServerError {
		f.oauthError(w, http.StatusBadRequest, oauth2.InvalidGrant, "the refresh token was used already, or is revoked")
		return
	}
	copyAnswer(w, resp)
}

func copyAnswer(w http.ResponseWriter, resp *http.Response) {
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the client may be gone
}

// An Exchange is what one request to the token endpoint does in the storage, which learns it call by call. It is used by one
// goroutine at a time.
type Exchange struct {
	Code    string // the authorization code that was spent, as the storage names it; "" for none
	Claimed bool   // the refresh token was gone, or used by another request
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
