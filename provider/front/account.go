package front

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/provider/identity"
	"gatehouse/web"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// accountPath is the account page, below the issuer's path.
const accountPath = "/account"

// maxShown is how many sessions the account page shows; the form ends the others too.
const maxShown = 100

// noticeFor is how long the account page tells what it did, should it be loaded anew.
const noticeFor = time.Minute

// Account is what the account page needs of the provider.
type Account struct {
	// Sessions are all of a user, expired ones too.
	Sessions func(ctx context.Context, connectorID, userID string) ([]storage.AuthSession, error)
	// EndOthers ends all sessions of a user but one, and what else the user has from a sign-in.
	EndOthers func(ctx context.Context, connectorID, userID, except string) error
}

// AccountPath is the account page on the issuer's host.
func (f *Front) AccountPath() string { return f.base + accountPath }

// AccountURL is the account page.
func (f *Front) AccountURL() string { return f.origin + f.AccountPath() }

// An accountForm is the sealed token of the page's form: a post counts in the session and the browser that the page was made for.
type accountForm struct {
	Session string `json:"s"`
	Bind    string `json:"b"` // of the issuer's pre-cookie
}

// An accountNotice is what the page has done, sealed in its URL, so that no link can claim it.
type accountNotice struct {
	Session string        `json:"n"`
	Done    web.AccountDo `json:"d"`
	Expiry  time.Time     `json:"e"`
}

// A visitor is who opens the account page.
type visitor struct {
	session *storage.AuthSession
	user    storage.UserIdentity
}

// visitor returns the user of the browser's session, nil for none that lives, has passed what a sign-in of the gateway asks for, such as a
// second factor, and whose user may go on. What could not be found out is answered here.
func (f *Front) visitor(w http.ResponseWriter, r *http.Request) (v *visitor, ok bool) {
	s, err := f.session(w, r)
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return nil, false
	}
	if s == nil {
		return nil, true
	}
	switch err := f.Vouch(r.Context(), s.ConnectorID, s.UserID, AuthenticatedAt(s)); {
	case errors.Is(err, identity.ErrEnded):
		return nil, true
	case err != nil:
		f.fail(w, r, web.Unavailable, err)
		return nil, false
	}
	if !throughGateway(s) {
		return nil, true
	}
	u, err := f.Storage.GetUserIdentity(r.Context(), s.UserID, s.ConnectorID)
	switch {
	case errors.Is(err, identity.ErrBlocked), errors.Is(err, storage.ErrNotFound):
		return nil, true
	case err != nil:
		f.fail(w, r, web.Unavailable, err)
		return nil, false
	}
	return &visitor{s, u}, true
}

// accountPage shows who the user is and where they are signed in. Whoever is not signed in gets there by the sign-in page.
func (f *Front) accountPage(w http.ResponseWriter, r *http.Request) {
	v, ok := f.visitorOrSignIn(w, r)
	if !ok {
		return
	}
	all, err := f.sessionsOf(r.Context(), v)
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	f.Pages.Account(f.Pages.Language(r.Header.Get("Accept-Language")), f.accountView(w, r, v, all)).ServeHTTP(w, r)
}

// visitorOrSignIn is visitor, but sends a browser that has none to the sign-in page, from which it comes back.
func (f *Front) visitorOrSignIn(w http.ResponseWriter, r *http.Request) (*visitor, bool) {
	v, ok := f.visitor(w, r)
	if !ok || v != nil {
		return v, ok
	}
	if m := r.Header.Get("Sec-Fetch-Mode"); m != "" && m != "navigate" { // a script cannot sign in
		f.fail(w, r, web.NotSignedIn, nil)
		return nil, false
	}
	f.choose(w, r, f.accountRequest(f.ensurePreCookie(w, r).Bind()))
	return nil, false
}

// accountRequest is a sign-in that leads to the account page, bound to the browser's pre-cookie.
func (f *Front) accountRequest(bind string) *request {
	a := authorization{Account: true, Bind: bind, Expiry: f.Now().Add(handoff.RequestLifetime)}
	return &request{account: true, bind: bind, sealed: f.seal(PurposeAuthorization, a)}
}

// landAccount ends a sign-in at the account page. A browser that keeps coming back is told so.
func (f *Front) landAccount(w http.ResponseWriter, r *http.Request) {
	if c, ok := f.preCookie(r); ok {
		now := f.Now()
		if c.Looping(now) {
			f.fail(w, r, web.Loop, nil)
			return
		}
		next := c.Next(now, false)
		next.Random = c.Random // which sign-ins in other tabs are bound to
		f.setCookie(w, f.cookies.IssuerLogin, next.String(), f.Issuer.Scheme == "https", http.SameSiteLaxMode)
	}
	redirect(w, f.AccountPath())
}

// sessionsOf returns the user's sessions that live: the browser's own first, then the one used last.
func (f *Front) sessionsOf(ctx context.Context, v *visitor) ([]storage.AuthSession, error) {
	all, err := f.Account.Sessions(ctx, v.session.ConnectorID, v.session.UserID)
	if err != nil {
		return nil, err
	}
	now := f.Now()
	all = slices.DeleteFunc(all, func(s storage.AuthSession) bool { return !now.Before(s.IdleExpiry) || !now.Before(s.AbsoluteExpiry) })
	slices.SortFunc(all, func(a, b storage.AuthSession) int {
		if own := v.session.ID; (a.ID == own) != (b.ID == own) {
			if a.ID == own {
				return -1
			}
			return 1
		}
		return cmp.Or(b.LastActivity.Compare(a.LastActivity), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

func (f *Front) accountView(w http.ResponseWriter, r *http.Request, v *visitor, all []storage.AuthSession) web.Account {
	form := accountForm{Session: v.session.ID, Bind: f.ensurePreCookie(w, r).Bind()}
	page := web.Account{
		Action: f.AccountPath(), Token: f.seal(PurposeAccount, form), Done: f.noticeOf(r, v),
		Name: cmp.Or(v.user.Claims.Username, v.user.Claims.PreferredUsername), Email: v.user.Claims.Email, Groups: v.user.Claims.Groups,
		Count: len(all), Now: f.Now(), Within: max(time.Minute, f.Sessions.Config.ValidIfNotUsedFor/20), // as often as use is written down
	}
	if d, ok := f.Doors.Door(v.session.ConnectorID); ok {
		if d.Type != dexconnectors.LocalConnector { // whose name is no choice of anybody's
			page.Connector = d.Name
		}
		if d.Kind == identity.Password && d.Changes() {
			page.PasswordURL = f.AccountPath() + "/password"
		}
	}
	for i := range all[:min(len(all), maxShown)] {
		s := &all[i]
		page.Sessions = append(page.Sessions, web.AccountSession{
			Ref: audit.Hash(s.ID), Current: s.ID == v.session.ID, Device: web.Device(s.UserAgent), Address: clip(s.IPAddress),
			SignedIn: AuthenticatedAt(s), LastUse: s.LastActivity,
		})
	}
	return page
}

// noticeOf is what the page was opened to tell.
func (f *Front) noticeOf(r *http.Request, v *visitor) web.AccountDo {
	sealed := r.URL.Query().Get("n")
	var n accountNotice
	if sealed == "" || f.unseal(PurposeAccount, sealed, &n) != nil || n.Session != v.session.ID || !f.Now().Before(n.Expiry) {
		return ""
	}
	return n.Done
}

// endSessions takes the account page's form.
func (f *Front) endSessions(w http.ResponseWriter, r *http.Request) {
	if !f.sameOriginPost(r) {
		f.crossSite(w, r)
		return
	}
	if err := r.ParseForm(); err != nil {
		f.failStatus(w, r, web.Error{Code: web.BadRequest, Status: bodyStatus(err)}, err)
		return
	}
	v, ok := f.visitor(w, r)
	if !ok {
		return
	}
	if v == nil {
		f.failStatus(w, r, web.Error{Code: web.NotSignedIn, RetryURL: f.AccountPath()}, nil)
		return
	}
	var form accountForm
	if err := f.unseal(PurposeAccount, r.PostForm.Get("token"), &form); err != nil || form.Session != v.session.ID || form.Bind == "" || !f.fromThisBrowser(r, form.Bind) {
		f.failStatus(w, r, web.Error{Code: web.CrossSite, BackURL: f.AccountPath()}, errors.New("the form of the account page is of another session or browser"))
		return
	}
	f.end(w, r, v, r.PostForm.Get("end"))
}

// end ends what the form says: the session of a reference, all others, or all.
func (f *Front) end(w http.ResponseWriter, r *http.Request, v *visitor, what string) {
	s := v.session
	switch do := web.AccountDo(what); do {
	case web.AccountOthers, web.AccountAll:
		if err := f.Account.EndOthers(r.Context(), s.ConnectorID, s.UserID, s.ID); err != nil {
			f.endFailed(w, r, v, what, err)
			return
		}
		if do == web.AccountAll { // last: until then the user can try again
			f.endOwn(w, r, v, what)
			return
		}
		f.ended(w, r, v, do, "")
	default:
		if what == audit.Hash(s.ID) {
			f.endOwn(w, r, v, what)
			return
		}
		f.endOne(w, r, v, what)
	}
}

// endOne ends another session of the same user. One of another user is none.
func (f *Front) endOne(w http.ResponseWriter, r *http.Request, v *visitor, ref string) {
	all, err := f.sessionsOf(r.Context(), v)
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	i := slices.IndexFunc(all, func(s storage.AuthSession) bool { return audit.Hash(s.ID) == ref })
	if i < 0 {
		f.failStatus(w, r, web.Error{Code: web.NoSession, BackURL: f.AccountPath()}, nil)
		return
	}
	if _, err := f.SignOut(r.Context(), all[i].ID); err != nil {
		f.endFailed(w, r, v, ref, err)
		return
	}
	f.ended(w, r, v, web.AccountOne, ref)
}

// endOwn ends the browser's own session, and goes on to the identity provider's.
func (f *Front) endOwn(w http.ResponseWriter, r *http.Request, v *visitor, what string) {
	next, err := f.SignOut(r.Context(), v.session.ID)
	if err != nil {
		f.endFailed(w, r, v, what, err)
		return
	}
	f.recordEnd(r, v, what, nil)
	f.leaves(w)
	f.Sessions.ClearCookie(w)
	if f.listed(f.host) { // an app's session of the same name
		https, _ := f.Hosts.Lookup(f.host)
		f.dropCookie(w, r, handoff.Names(https).Session, https)
	}
	u, err := url.Parse(next)
	if err != nil || next == "" || u.Scheme+"://"+u.Host == f.origin {
		redirect(w, cmp.Or(next, f.SignedOutURL()))
		return
	}
	// Chrome applies form-action of the page with the form to redirects too (CSP Level 3 section 6.4.1).
	page := f.Pages.SignedOut(f.Pages.Language(r.Header.Get("Accept-Language")), web.SignedOut{ContinueURL: next})
	w.Header().Set("Refresh", "0; url="+u.String())
	page.ServeHTTP(w, r)
}

// dropCookie removes a cookie that the browser has shown.
func (f *Front) dropCookie(w http.ResponseWriter, r *http.Request, name string, secure bool) {
	if _, err := r.Cookie(name); err != nil {
		return
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: not Secure on http hosts only, which are for development
		Name: name, Path: "/", MaxAge: -1, Secure: secure, HttpOnly: true, SameSite: f.SameSite,
	})
}

// ended goes back to the page, which tells what was done. ref is of the one session that it was.
func (f *Front) ended(w http.ResponseWriter, r *http.Request, v *visitor, done web.AccountDo, ref string) {
	f.recordEnd(r, v, cmp.Or(ref, string(done)), nil)
	n := accountNotice{Session: v.session.ID, Done: done, Expiry: f.Now().Add(noticeFor)}
	redirect(w, f.AccountPath()+"?n="+url.QueryEscape(f.seal(PurposeAccount, n)))
}

// endFailed says that sessions may still be there.
func (f *Front) endFailed(w http.ResponseWriter, r *http.Request, v *visitor, what string, err error) {
	f.recordEnd(r, v, what, err)
	f.Log.ErrorContext(r.Context(), "sessions could not be ended from the account page", "request_id", requestID(r), "error", err)
	f.failStatus(w, r, web.Error{Code: web.Unavailable, BackURL: f.AccountPath(), Wait: time.Second}, nil)
}

// recordEnd records what a user ended at the account page, and from which session. What ended is in events of its own.
func (f *Front) recordEnd(r *http.Request, v *visitor, what string, err error) {
	level, result := slog.LevelInfo, "ok"
	if err != nil {
		level, result = slog.LevelWarn, "failed"
	}
	f.Audit.LogAttrs(r.Context(), level, "account-sign-out", slog.String("result", result), slog.String("end", what),
		slog.String("connector", v.session.ConnectorID), slog.String("user", clip(v.user.Claims.Email)), slog.String("user_id", v.session.UserID),
		sessionAttr(v.session.ID), slog.String("ip", remoteIP(r)), slog.String("request_id", requestID(r)))
}

// newPassword leads to the form for a new password of the user's connector.
func (f *Front) newPassword(w http.ResponseWriter, r *http.Request) {
	v, ok := f.visitorOrSignIn(w, r)
	if !ok {
		return
	}
	q := f.accountRequest(f.ensurePreCookie(w, r).Bind())
	door, ok := f.choice(w, r, q, v.session.ConnectorID)
	if !ok {
		return
	}
	if door.Kind != identity.Password || !door.Changes() {
		f.fail(w, r, web.NotFound, errNoChange)
		return
	}
	redirect(w, f.passwordPath(door.ID, q))
}

// wantedPassword shows the form for a new password to a user who asked for it. What they type at their sign-in is not known: most likely it
// is one of their names.
func (f *Front) wantedPassword(w http.ResponseWriter, r *http.Request, q *request) {
	door, ok := f.choice(w, r, q, r.PathValue("connector"))
	if !ok {
		return
	}
	if door.Kind != identity.Password || !door.Changes() {
		f.fail(w, r, web.NotFound, errNoChange)
		return
	}
	v, ok := f.visitorOrSignIn(w, r)
	if !ok {
		return
	}
	f.changeForm(w, r, q, door, web.PasswordChange{Login: cmp.Or(v.user.Claims.PreferredUsername, v.user.Claims.Email)})
}
