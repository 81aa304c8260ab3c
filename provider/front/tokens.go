package front

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"time"

	"gatehouse/internal/inproc"
	"gatehouse/web"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// A Token is what is known of a verified token of this issuer.
type Token struct {
	Subject, Nonce, SessionID, Client string
	IssuedAt                          time.Time
}

// errRevoked means that a token was good once.
var errRevoked = errors.New("the token's session has ended, its code was used twice, or its user is blocked or may not go on")

// api passes a request of a program to Dex, except those that claim to be the gateway's own client.
func (f *Front) api(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			http.Error(w, "malformed form", http.StatusBadRequest)
			return
		}
		// RFC 6749 section 2.3.1: form-encoded within Basic.
		if user, _, _ := r.BasicAuth(); unescape(user) == GatewayClient || r.Form.Get("client_id") == GatewayClient {
			f.oauthError(w, http.StatusUnauthorized, "invalid_client", "this client is internal")
			return
		}
	}
	f.Dex.ServeHTTP(w, r)
}

// outlives fails with errRevoked unless a client's tokens go on without the session: it has a refresh token for the user, and its
// configuration does not bind that to the session (refreshTokenLifetime).
func (f *Front) outlives(ctx context.Context, client, userID, connectorID string) error {
	c, err := f.Storage.GetClient(ctx, client)
	switch {
	case err != nil && !errors.Is(err, storage.ErrNotFound):
		return errors.Join(ErrUnknown, err)
	case err != nil, c.RefreshBoundToSession():
		return errRevoked
	}
	o, err := f.Storage.GetOfflineSessions(ctx, userID, connectorID)
	switch {
	case err != nil && !errors.Is(err, storage.ErrNotFound):
		return errors.Join(ErrUnknown, err)
	case err != nil, o.Refresh[client] == nil:
		return errRevoked
	}
	return nil
}

// parseSubject reads Dex's "sub": user and connector.
func parseSubject(sub string) (userID, connectorID string, ok bool) {
	userID, connectorID, ok = twoStrings(sub)
	if !ok {
		return "", "", false
	}
	again, err := tokens.GenSubject(userID, connectorID)
	return userID, connectorID, err == nil && again == sub
}

// twoStrings reads the base64 of a message of two strings: Dex's "sub", or one of its refresh tokens, its id and secret.
func twoStrings(raw string) (first, second string, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(raw)
	for err == nil && len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.BytesType {
			return "", "", false
		}
		v, m := protowire.ConsumeString(b[n:])
		if m < 0 {
			return "", "", false
		}
		if num == 1 {
			first = v
		} else if num == 2 {
			second = v
		}
		b = b[n+m:]
	}
	return first, second, err == nil
}

// discovery is Dex's discovery document (OpenID Connect Discovery 1.0 section 4.2) without what is closed here.
func (f *Front) discovery(w http.ResponseWriter, r *http.Request) {
	resp, err := inproc.Serve(f.Dex, r)
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	var doc map[string]json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil || resp.StatusCode != http.StatusOK {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	if !f.Routes.Device {
		delete(doc, "device_authorization_endpoint")
	}
	maps.Copy(w.Header(), resp.Header)
	w.Header().Del("Content-Length")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(doc) // the client may be gone
}
