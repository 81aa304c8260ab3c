package front

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"gatehouse/web"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

const (
	// answerWithin is how long the question may be thought about, and upstreamWithin how long a browser may stay at the identity provider.
	answerWithin   = time.Hour
	upstreamWithin = time.Hour
	// maxLogoutState bounds the client's state: it travels in URLs, with our own around it. In bytes.
	maxLogoutState = 2 << 10
)

// ErrFormerKey means that a token is of a key that is not published any more, or never was: nobody can say.
var ErrFormerKey = errors.New("the token is of no key that is published")

var errLogout = errors.New("logout request")

// A logoutTarget is where a browser goes after a sign-out: to a URI that its client has registered, or to our own page.
type logoutTarget struct {
	Client   string `json:"c,omitempty"`
	Redirect string `json:"r,omitempty"`
	State    string `json:"s,omitempty"`
}

// url is the URI with the client's state; what is registered stays as it is. "" for our own page.
func (t logoutTarget) url() string {
	u, err := url.Parse(t.Redirect)
	if t.Redirect == "" || err != nil {
		return ""
	}
	if t.State != "" {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += "state=" + url.QueryEscape(t.State)
	}
	return u.String()
}

// A logoutQuestion is what the page asks about, sealed in the action of its form.
type logoutQuestion struct {
	Session string       `json:"i"` // the only one that a yes is for
	Target  logoutTarget `json:"t"`
	Expiry  time.Time    `json:"e"`
}

// A logoutReturn is the state parameter towards an upstream's end_session_endpoint.
type logoutReturn struct {
	Target logoutTarget `json:"t"`
	Expiry time.Time    `json:"e"`
}

// logout is the end_session_endpoint (OpenID Connect RP-Initiated Logout 1.0 section 2).
//
// The browser's cookie says which session ends; a hint is a token that others may hold too. If it is of this very session nobody is asked. The session ends
// first, then what is bound to it, then the other clients are told, and only then the browser goes to the upstream, from where it may never come back.
func (f *Front) logout(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead { // which routes take for a GET
		w.Header().Set("Allow", "GET, POST")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if err := r.ParseForm(); err != nil {
		f.fail(w, r, web.BadRequest, err)
		return
	}
	if r.Method == http.MethodPost && r.URL.Query().Has("req") {
		f.answered(w, r)
		return
	}
	hint := r.Form.Get("id_token_hint")
	if r.Method == http.MethodPost && hint == "" && !f.sameOriginPost(r) {
		f.crossSite(w, r)
		return
	}
	target, vouches, ok := f.logoutRequest(w, r, hint)
	if !ok {
		return
	}
	s, err := f.session(w, r)
	switch {
	case err != nil:
		f.fail(w, r, web.Unavailable, err)
	case s == nil: // so that signing out twice leads to the same place
		f.gone(w, r, target)
	case vouches == nil || !vouches.of(s):
		f.askLogout(w, r, s, target)
	default:
		f.signOut(w, r, s, target)
	}
}

// logoutRequest checks a request, and returns the hint where there is one that can be verified. What is wrong is answered here.
func (f *Front) logoutRequest(w http.ResponseWriter, r *http.Request, hint string) (target logoutTarget, vouches *Token, ok bool) {
	for _, name := range []string{"id_token_hint", "client_id", "post_logout_redirect_uri", "state"} {
		if len(r.Form[name]) > 1 { // RFC 6749 section 3.1: which of them is meant?
			f.fail(w, r, web.BadRequest, errors.Join(errLogout, errors.New(name+" more than once")))
			return target, nil, false
		}
	}
	target = logoutTarget{Client: r.Form.Get("client_id"), Redirect: r.Form.Get("post_logout_redirect_uri"), State: r.Form.Get("state")}
	if hint != "" {
		t, err := f.VerifyHint(r.Context(), hint)
		switch {
		case errors.Is(err, ErrFormerKey): // as if there were none
		case err != nil:
			f.fail(w, r, web.BadRequest, errors.Join(errLogout, err))
			return target, nil, false
		case target.Client != "" && target.Client != t.Client:
			f.fail(w, r, web.BadRequest, errors.Join(errLogout, errors.New("client_id is not that of the hint")))
			return target, nil, false
		default:
			target.Client, vouches = t.Client, &t
		}
	}
	if len(target.State) > maxLogoutState {
		f.fail(w, r, web.BadRequest, errors.Join(errLogout, errors.New("state is too long")))
		return target, nil, false
	}
	if err := f.registered(r.Context(), target); err != nil {
		code := web.BadRequest
		if !errors.Is(err, errLogout) {
			code = web.Unavailable
		}
		f.fail(w, r, code, err)
		return target, nil, false
	}
	return target, vouches, true
}

// registered fails with errLogout where a target is not one that its client has registered, letter by letter.
func (f *Front) registered(ctx context.Context, t logoutTarget) error {
	if t.Redirect == "" {
		return nil
	}
	if t.Client == "" {
		return errors.Join(errLogout, errors.New("post_logout_redirect_uri needs an id_token_hint, or a client_id"))
	}
	c, err := f.Storage.GetClient(ctx, t.Client)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return errors.Join(errLogout, errors.New("no such client"))
	case err != nil:
		return err
	case !slices.Contains(c.PostLogoutRedirectURIs, t.Redirect):
		return errors.Join(errLogout, errors.New("the client has not registered this post_logout_redirect_uri"))
	}
	u, err := url.Parse(t.Redirect)
	if err != nil || u.Scheme == "" || slices.Contains([]string{"javascript", "data", "vbscript"}, strings.ToLower(u.Scheme)) {
		return errors.Join(errLogout, errors.New("the registered post_logout_redirect_uri leads nowhere"))
	}
	return nil
}

// of reports whether a hint is of a session. Tokens of the password grant and such have no session: they vouch for none.
func (t *Token) of(s *storage.AuthSession) bool {
	subject, err := tokens.GenSubject(s.UserID, s.ConnectorID)
	return err == nil && t.Subject == subject && t.SessionID == s.ID
}

// askLogout asks whether to sign out: a link or an image of another site would do it otherwise.
func (f *Front) askLogout(w http.ResponseWriter, r *http.Request, s *storage.AuthSession, target logoutTarget) {
	q := logoutQuestion{Session: s.ID, Target: target, Expiry: f.Now().Add(answerWithin)}
	page := web.SignOutConfirm{Action: f.base + "/logout?req=" + url.QueryEscape(f.seal(PurposeLogout, q)), User: f.email(r.Context(), s)}
	if target.Redirect != "" {
		page.FormAction = []string{formTarget(target.Redirect)}
	}
	f.Pages.SignOutConfirm(f.Pages.Language(r.Header.Get("Accept-Language")), page).ServeHTTP(w, r)
}

// answered takes the form of askLogout.
func (f *Front) answered(w http.ResponseWriter, r *http.Request) {
	if !f.sameOriginPost(r) {
		f.crossSite(w, r)
		return
	}
	var q logoutQuestion
	if err := f.unseal(PurposeLogout, r.URL.Query().Get("req"), &q); err != nil || !f.Now().Before(q.Expiry) {
		f.fail(w, r, web.ExpiredLink, errors.Join(errLogout, err))
		return
	}
	if err := f.registered(r.Context(), q.Target); err != nil { // it may not be any more
		q.Target = logoutTarget{}
	}
	s, err := f.session(w, r)
	switch {
	case err != nil:
		f.fail(w, r, web.Unavailable, err)
	case s == nil:
		f.gone(w, r, q.Target)
	case s.ID != q.Session: // the question was about another one
		f.askLogout(w, r, s, q.Target)
	default:
		f.signOut(w, r, s, q.Target)
	}
}

// signOut ends a session and sends the browser on.
func (f *Front) signOut(w http.ResponseWriter, r *http.Request, s *storage.AuthSession, target logoutTarget) {
	next, err := f.SignOut(r.Context(), s.ID)
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	f.Sessions.ClearCookie(w)
	u, err := url.Parse(next)
	if next == "" || err != nil || strings.HasPrefix(next, f.Issuer.String()+"/") { // our own page, which is shown here
		f.gone(w, r, target)
		return
	}
	if target.Redirect != "" {
		q := u.Query()
		q.Set("state", f.seal(PurposeLoggedOut, logoutReturn{Target: target, Expiry: f.Now().Add(upstreamWithin)}))
		u.RawQuery = q.Encode()
	}
	if r.Method == http.MethodPost { // Chrome applies form-action to all redirects that follow, and nobody knows the upstream's
		w.Header().Set("Refresh", "0; url="+u.String())
		f.Pages.SignedOut(f.Pages.Language(r.Header.Get("Accept-Language")), web.SignedOut{ContinueURL: u.String()}).ServeHTTP(w, r)
		return
	}
	redirect(w, u.String())
}

// gone sends a browser on whose session is over.
func (f *Front) gone(w http.ResponseWriter, r *http.Request, target logoutTarget) {
	if to := target.url(); to != "" {
		redirect(w, to)
		return
	}
	f.signedOut(w, r)
}

// logoutCallback is where an upstream returns after its logout. Ours was over before the browser left. The state only says where it goes on: whoever has
// one can send a browser to a page that its client has registered, as they can anyway.
func (f *Front) logoutCallback(w http.ResponseWriter, r *http.Request) {
	var back logoutReturn
	sealed := r.URL.Query().Get("state")
	if sealed == "" || f.unseal(PurposeLoggedOut, sealed, &back) != nil || !f.Now().Before(back.Expiry) || f.registered(r.Context(), back.Target) != nil {
		back.Target = logoutTarget{}
	}
	f.gone(w, r, back.Target)
}
