package front

import (
	"io"
	"maps"
	"net/http"

	"github.com/dexidp/dex/server/oauth2"
)

// token is Dex's token endpoint (RFC 6749 section 3.2).
func (f *Front) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err == nil && r.Form.Get("grant_type") == oauth2.GrantTypePassword {
		f.passwordGrant(w, r)
		return
	}
	f.api(w, r)
}

func copyAnswer(w http.ResponseWriter, resp *http.Response) {
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the client may be gone
}
