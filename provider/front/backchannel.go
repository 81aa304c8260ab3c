package front

import (
	"errors"
	"net/http"

	"gatehouse/web"
)

// UpstreamLogoutPath is where an upstream OpenID Provider sends logout tokens, below the issuer's path and before the connector's id
// (its backchannel_logout_uri, OpenID Connect Back-Channel Logout 1.0 section 2.2).
const UpstreamLogoutPath = "/backchannel/"

// What comes of a logout token besides what is wrong with it.
var (
	ErrNoUpstream    = errors.New("there is no such connector, or none of type oidc")
	ErrLogoutUnknown = errors.New("it cannot be done now")
)

// upstreamLogout takes a logout token (OpenID Connect Back-Channel Logout 1.0 sections 2.5 to 2.8). Anybody can send one: before it is verified nothing is stored.
func (f *Front) upstreamLogout(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if err := r.ParseForm(); err != nil {
		f.oauthError(w, bodyStatus(err), "invalid_request", "malformed form")
		return
	}
	if len(r.PostForm["logout_token"]) != 1 {
		f.oauthError(w, http.StatusBadRequest, "invalid_request", "want one logout_token, in a form")
		return
	}
	err := f.UpstreamLogout(r.Context(), r.PathValue("connector"), r.PostForm.Get("logout_token"))
	switch {
	case err == nil:
		w.WriteHeader(http.StatusOK)
		return
	case errors.Is(err, ErrNoUpstream):
		f.fail(w, r, web.NotFound, nil)
		return
	}
	if f.warned.logout.due(f.Now()) {
		f.Log.WarnContext(r.Context(), "a logout token of an identity provider is refused", "connector", clip(r.PathValue("connector")), "request_id", requestID(r), "error", clip(err.Error()))
	}
	if errors.Is(err, ErrLogoutUnknown) {
		w.Header().Set("Retry-After", "30")
		f.oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "try again")
		return
	}
	f.oauthError(w, http.StatusBadRequest, "invalid_request", clip(err.Error()))
}
