package front

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"gatehouse/connectors"
	"gatehouse/internal/inproc"
	"gatehouse/web"

	"github.com/dexidp/dex/storage"
)

var errOtherUser = errors.New("the step belongs to another user than the browser's session")

// dexPage passes a browser's step to Dex: consent, second factor, device flow.
func (f *Front) dexPage(w http.ResponseWriter, r *http.Request) {
	a, ok := f.step(w, r)
	if !ok {
		return
	}
	targets := append([]string{"'self'"}, f.stepTargets(a)...)
	csp := f.Pages.CSP(targets...)
	if strings.HasPrefix(r.URL.Path, f.base+"/mfa/webauthn") {
		csp = f.Pages.ScriptCSP(targets...)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", csp)
	if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, f.base+"/mfa/") && a != nil {
		f.secondFactor(w, r, a)
		return
	}
	f.passStep(w, r)
}

// A Step is what one request to a page of Dex's does in the storage.
type Step struct {
	// SessionUnread says that the browser's session could not be read. Dex takes that for its end: it clears the cookie, and goes on without.
	SessionUnread bool
}

type stepKey struct{}

// StepOf returns the step that a call of the storage belongs to, nil if to none.
func StepOf(ctx context.Context) *Step {
	s, _ := ctx.Value(stepKey{}).(*Step)
	return s
}

var (
	errSessionUnread = errors.New("the browser's session could not be read: it keeps its cookie")
	errSessionOver   = errors.New("the browser's session has ended meanwhile")
)

// cleared reports whether Dex has taken the session's cookie from the browser: it found no session, and what it gives out then is of none, so that nobody could end it.
func (f *Front) cleared(c *http.Cookie) bool {
	return c != nil && c.Name == f.Sessions.Config.CookieName && c.MaxAge < 0
}

// passStep passes a step to Dex. Where the storage does not say whether the browser's session goes on, nothing of Dex's answer gets out: the session would be lost to
// the browser, and a code would be of none.
func (f *Front) passStep(w http.ResponseWriter, r *http.Request) {
	s := &Step{}
	resp, err := inproc.Serve(f.Dex, r.WithContext(context.WithValue(r.Context(), stepKey{}, s)))
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	if s.SessionUnread {
		f.fail(w, r, web.Unavailable, errSessionUnread)
		return
	}
	if slices.ContainsFunc(resp.Cookies(), f.cleared) {
		f.fail(w, r, web.ExpiredLink, errSessionOver)
		return
	}
	copyAnswer(w, resp)
}

// step returns the AuthRequest that the request is a step of, nil if it is none. Dex lets whoever has the link go on,
// and takes the session from the browser's cookie at the end: so a step is only for a browser whose session is of
// the user who was proven. What does not fit is answered here.
func (f *Front) step(w http.ResponseWriter, r *http.Request) (a *storage.AuthRequest, ok bool) {
	id := r.FormValue("req") // as Dex reads it
	if id == "" {
		return nil, true
	}
	found, err := f.Storage.GetAuthRequest(r.Context(), id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		f.fail(w, r, web.ExpiredLink, err)
		return nil, false
	case err != nil:
		f.fail(w, r, web.Unavailable, err)
		return nil, false
	}
	s, err := f.session(w, r)
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return nil, false
	}
	if found.LoggedIn && (s == nil || s.UserID != found.Claims.UserID || s.ConnectorID != found.ConnectorID) {
		f.fail(w, r, web.OtherBrowser, errOtherUser)
		return nil, false
	}
	return &found, true
}

// stepTargets are the origins that the flow leads to, for form-action.
func (f *Front) stepTargets(a *storage.AuthRequest) []string {
	if a == nil {
		return nil
	}
	if a.ClientID != GatewayClient {
		return []string{formTarget(a.RedirectURI)}
	}
	st, err := f.openState(a.State)
	if err != nil || st.Account {
		return nil
	}
	origin, ok := f.Hosts.Origin(st.Request.Host)
	if !ok {
		return nil
	}
	return []string{origin}
}

// secondFactor passes a code to Dex, which does not count wrong ones. They are limited as passwords are, by user:
// whoever knows the password can have as many sign-ins as they like.
func (f *Front) secondFactor(w http.ResponseWriter, r *http.Request, a *storage.AuthRequest) {
	if strings.HasPrefix(r.URL.Path, f.base+"/mfa/webauthn/register/") && !f.firstKey(r, a) {
		f.oauthError(w, http.StatusForbidden, "access_denied", "a security key is registered already: sign in with it")
		return
	}
	begin := strings.HasSuffix(r.URL.Path, "/begin")
	if begin {
		f.passStep(w, r)
		return
	}
	done, err := f.Doors.BeginFactor(r.Context(), a.ConnectorID, a.Claims.UserID)
	if err != nil {
		var no *connectors.Refusal
		wait := time.Second
		if errors.As(err, &no) {
			wait = max(no.RetryAfter, time.Second)
		}
		f.result(r, nil, a.ConnectorID, a.Claims.Email, "throttled-second-factor", err, slog.String("user_id", a.Claims.UserID))
		f.failStatus(w, r, web.Error{Code: web.TooManyRequests, Wait: wait}, nil)
		return
	}
	seen := &statusWriter{ResponseWriter: w}
	failed := true // a panic too
	defer func() { done(failed) }()
	f.passStep(seen, r)
	failed = seen.code == http.StatusUnauthorized || seen.code == http.StatusBadRequest
	if failed {
		f.result(r, nil, a.ConnectorID, a.Claims.Email, "wrong-second-factor", nil, slog.String("user_id", a.Claims.UserID))
	}
}

// firstKey reports whether the user has no security key at this authenticator yet. Dex would register another one for whoever knows the
// password, and take that for the second factor.
func (f *Front) firstKey(r *http.Request, a *storage.AuthRequest) bool {
	u, err := f.Storage.GetUserIdentity(r.Context(), a.Claims.UserID, a.ConnectorID)
	return err == nil && a.LoggedIn && len(u.WebAuthnCredentials[r.FormValue("authenticator")]) == 0
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	code int
}

func (s *statusWriter) WriteHeader(code int) {
	if s.code == 0 {
		s.code = code
	}
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// session returns the browser's live session at the issuer, nil if it has none. An error means that it could not be
// found out: the browser keeps its cookie. (Dex's own way would clear it.)
func (f *Front) session(w http.ResponseWriter, r *http.Request) (*storage.AuthSession, error) {
	sessions := *f.Sessions
	if id, _, ok := f.Sessions.ParseCookie(r); ok {
		s, err := f.Storage.GetAuthSession(r.Context(), id)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, fmt.Errorf("front: read the browser's session: %w", err)
		}
		sessions.Storage = readSession{f.Storage, s, err}
	}
	return sessions.ValidSession(r.Context(), w, r), nil
}

// A readSession is a storage whose session was read already: a second read could fail, and that Dex takes for the end of the session.
type readSession struct {
	storage.Storage

	session storage.AuthSession
	err     error
}

// GetAuthSession implements storage.Storage, for the one session.
func (s readSession) GetAuthSession(context.Context, string) (storage.AuthSession, error) {
	return s.session, s.err
}
