package front

import (
	"context"
	"io"
	"maps"
	"net/http"

	"github.com/dexidp/dex/server/oauth2"
)

// token is Dex's token endpoint (RFC 6749 section 3.2).
func (f *Front) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		f.api(w, r)
		return
	}
	switch r.Form.Get("grant_type") {
	case oauth2.GrantTypePassword:
		f.passwordGrant(w, r)
	default:
		ctx, _ := withExchange(r.Context())
		f.api(w, r.WithContext(ctx))
	}
}

func copyAnswer(w http.ResponseWriter, resp *http.Response) {
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the client may be gone
}

// An Exchange is what one request to the token endpoint does in the storage, which learns it call by call. It is used by one
// goroutine at a time.
type Exchange struct {
	Code string // the authorization code that was spent, as the storage names it; "" for none
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
