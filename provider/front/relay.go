package front

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/identity"
	"gatehouse/web"

	"github.com/dexidp/dex/storage"
)

// dexPage passes a browser's step to Dex: consent, second factor, device flow, logout.
func (f *Front) dexPage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	targets := append([]string{"'self'"}, f.stepTargets(r)...)
	csp := f.Pages.CSP(targets...)
	if strings.HasPrefix(r.URL.Path, f.base+"/mfa/webauthn") {
		csp = f.Pages.ScriptCSP(targets...)
	}
	w.Header().Set("Content-Security-Policy", csp)
	f.Dex.ServeHTTP(w, r)
}

// stepTargets are the origins that the flow of the AuthRequest in the query leads to, for form-action.
func (f *Front) stepTargets(r *http.Request) []string {
	id := r.URL.Query().Get("req")
	if id == "" {
		return nil
	}
	a, err := f.Storage.GetAuthRequest(r.Context(), id)
	if err != nil {
		return nil
	}
	if a.ClientID != GatewayClient {
		return []string{formTarget(a.RedirectURI)}
	}
	st, err := f.openState(a.State)
	if err != nil {
		return nil
	}
	origin, ok := f.Hosts.Origin(st.Request.Host)
	if !ok {
		return nil
	}
	return []string{origin}
}

// logoutCallback is where an upstream returns after its logout. Dex finishes those that it began; ours have ended
// before the browser left.
func (f *Front) logoutCallback(w http.ResponseWriter, r *http.Request) {
	if id, secret, ok := f.Sessions.ParseCookie(r); ok {
		s, err := f.Storage.GetAuthSession(r.Context(), id)
		if err == nil && sameSecret(s.Secret, secret) && s.LogoutState != nil {
			f.dexPage(w, r)
			return
		}
	}
	f.signedOut(w, r)
}

// renew sets the absolute expiry of a session anew.
func (f *Front) renew(r *http.Request, sid string, now time.Time) error {
	cfg := f.Sessions.Config
	err := f.Storage.UpdateAuthSession(r.Context(), sid, func(s storage.AuthSession) (storage.AuthSession, error) {
		s.AbsoluteExpiry = now.Add(cfg.AbsoluteLifetime)
		s.IdleExpiry = expiryOf(s, cfg.ValidIfNotUsedFor, now)
		return s, nil
	})
	if err != nil {
		return fmt.Errorf("renew session: %w", err)
	}
	return nil
}

var (
	formActionRE   = regexp.MustCompile(`<form method="post" action="([^"]+)"`)
	inlineScriptRE = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
)

// formAction returns the target of the form in Dex's SAML page.
func formAction(page []byte) (string, bool) {
	m := formActionRE.FindSubmatch(page)
	if m == nil {
		return "", false
	}
	return html.UnescapeString(string(m[1])), true
}

func inlineScriptHash(page []byte) string {
	m := inlineScriptRE.FindSubmatch(page)
	if m == nil {
		return "'none'"
	}
	sum := sha256.Sum256(m[1])
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
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
