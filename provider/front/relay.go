package front

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/identity"
	"gatehouse/web"

	"github.com/dexidp/dex/storage"
)

// renew sets the absolute expiry of a session anew.
func (f *Front) renew(r *http.Request, sid string, now, until time.Time) error {
	cfg := f.Sessions.Config
	err := f.Storage.UpdateAuthSession(r.Context(), sid, func(s storage.AuthSession) (storage.AuthSession, error) {
		s.AbsoluteExpiry = now.Add(cfg.AbsoluteLifetime)
		if !until.IsZero() && until.Before(s.AbsoluteExpiry) {
			s.AbsoluteExpiry = until
		}
		s.IdleExpiry = expiryOf(s, cfg.ValidIfNotUsedFor, now)
		return s, nil
	})
	if err != nil {
		return fmt.Errorf("renew session: %w", err)
	}
	return nil
}

// pageState is what the sign-in page says besides its form.
type pageState struct {
	status int
	reason connectors.Reason // "" at first
	wait   time.Duration
	login  string
	// remember is whether the box is ticked.
	remember bool
}

// links are the other connectors, as links: the page has one form.
func (f *Front) links(doors []*identity.Door, q *request, except *identity.Door) []web.Connector {
	var out []web.Connector
	for _, d := range doors {
		if d == except {
			continue
		}
		target := f.base + "/auth/" + url.PathEscape(d.ID) + "?req=" + url.QueryEscape(q.sealed)
		if d.Kind == identity.Password {
			target = f.loginPath(d.ID, q)
		}
		out = append(out, web.Connector{Name: d.Name, URL: target})
	}
	return out
}

func (f *Front) oauthError(w http.ResponseWriter, status int, code, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": text}) // the client may be gone
}
