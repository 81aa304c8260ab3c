package front

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/handoff"
	"gatehouse/internal/inproc"
	"gatehouse/provider/identity"
	"gatehouse/web"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// clientState is the state parameter of the gateway's own authorization request.
type clientState struct {
	Request  handoff.Request `json:"r"`           // with Account its expiry only
	Account  bool            `json:"a,omitempty"` // it is for the account page
	Nonce    string          `json:"n"`
	Verifier string          `json:"v"`
}

func (f *Front) oauth() *oauth2.Config {
	return &oauth2.Config{
		ClientID: GatewayClient, ClientSecret: f.ClientSecret, RedirectURL: f.Issuer.String() + CallbackPath, Scopes: []string{"openid"},
		Endpoint: oauth2.Endpoint{AuthURL: f.Issuer.String() + "/auth", TokenURL: f.Issuer.String() + "/token", AuthStyle: oauth2.AuthStyleInHeader},
	}
}

// request is what the sign-in was for.
func (st *clientState) request() *request {
	if st.Account {
		return &request{account: true}
	}
	return &request{gateway: &st.Request}
}

// authorization returns the query of q's authorization request (OpenID Connect Core 1.0 section 3.1.2.1). Of our own it has state,
// nonce and PKCE. Its scope is only openid: the gateway reads the identity from the store, so there is nothing to
// consent to.
func (f *Front) authorization(q *request) url.Values {
	if !q.own() {
		return cloneQuery(q.query)
	}
	st := clientState{Account: q.account, Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier()}
	if q.account {
		st.Request.Expiry = f.Now().Add(handoff.RequestLifetime)
	} else {
		st.Request = *q.gateway
	}
	u, err := url.Parse(f.oauth().AuthCodeURL(f.seal(PurposeClientState, st),
		oauth2.SetAuthURLParam("nonce", st.Nonce), oauth2.S256ChallengeOption(st.Verifier)))
	if err != nil {
		panic(err) // built from a parsed URL
	}
	return u.Query()
}

// gatewayCallback is the gateway client's redirect URI as a browser reaches it: after a second factor.
func (f *Front) gatewayCallback(w http.ResponseWriter, r *http.Request) {
	f.finishGateway(r.Context(), w, r, r.URL.Query())
}

// finishGateway turns the authorization response q into a session on the app host.
func (f *Front) finishGateway(ctx context.Context, w http.ResponseWriter, r *http.Request, q url.Values) {
	st, err := f.openState(q.Get("state"))
	switch {
	case errors.Is(err, handoff.ErrExpired):
		f.restart(w, r, st.request())
		return
	case err != nil:
		f.fail(w, r, web.ExpiredLink, err)
		return
	}
	tok, err := f.exchange(ctx, q, st)
	if err != nil {
		f.Log.InfoContext(ctx, "sign-in begins again", "request_id", requestID(r), "error", err) // such as a reloaded page, whose code is spent
		f.restart(w, r, st.request())
		return
	}
	s, err := f.Storage.GetAuthSession(ctx, tok.SessionID) // a code outlives its session
	if err != nil {
		f.fail(w, r, f.storageCode(err), err)
		return
	}
	// Dex takes the session from the cookie and the user from the request: they must be the same.
	if sub, err := tokens.GenSubject(s.UserID, s.ConnectorID); err != nil || sub != tok.Subject {
		f.fail(w, r, web.OtherBrowser, errOtherUser)
		return
	}
	f.landFor(w, r, st.request(), s.ID)
}

// landFor brings the browser to where one of our own requests wanted to go.
func (f *Front) landFor(w http.ResponseWriter, r *http.Request, q *request, sid string) {
	if q.account {
		f.landAccount(w, r)
		return
	}
	f.land(w, r, *q.gateway, sid)
}

func (f *Front) openState(sealed string) (clientState, error) {
	var st clientState
	if err := f.unseal(PurposeClientState, sealed, &st); err != nil {
		return st, err
	}
	if !f.Now().Before(st.Request.Expiry.Add(handoff.RequestLifetime)) { // the user may be at a second factor
		return st, handoff.ErrExpired
	}
	return st, nil
}

type ownExchangeKey struct{}

// OwnExchange reports whether a token that is asked for in ctx is the gateway's, and does not leave the process.
func OwnExchange(ctx context.Context) bool { return ctx.Value(ownExchangeKey{}) != nil }

// exchange trades the code for the ID Token, without a socket, and verifies it.
func (f *Front) exchange(ctx context.Context, q url.Values, st clientState) (Token, error) {
	if code := q.Get("error"); code != "" {
		return Token{}, fmt.Errorf("authorization: %s: %s", code, q.Get("error_description"))
	}
	hc := &http.Client{Transport: inproc.Transport{Handler: f.Dex}}
	ctx = context.WithValue(ctx, ownExchangeKey{}, true)
	tok, err := f.oauth().Exchange(context.WithValue(ctx, oauth2.HTTPClient, hc), q.Get("code"), oauth2.VerifierOption(st.Verifier))
	if err != nil {
		return Token{}, fmt.Errorf("code exchange: %w", err)
	}
	raw, _ := tok.Extra("id_token").(string)
	t, err := f.Verify(ctx, raw)
	switch {
	case err != nil:
		return Token{}, err
	case t.Nonce != st.Nonce:
		return Token{}, errors.New("id token: nonce of another sign-in")
	case t.SessionID == "":
		return Token{}, errors.New("id token: no session id")
	}
	return t, nil
}

// land brings the session to the app host that asked: as a cookie where that is this host, as a sealed ticket elsewhere.
func (f *Front) land(w http.ResponseWriter, r *http.Request, g handoff.Request, sid string) {
	origin, ok := f.Hosts.Origin(g.Host)
	if !ok || !strings.HasPrefix(g.Return, "/") {
		f.fail(w, r, web.UnknownHost, fmt.Errorf("hand-off to %q, which gateway.hosts does not list", g.Host))
		return
	}
	now := f.Now()
	// A form that another site posts, as in SAML, brings no Lax cookie: the browser has to come by itself.
	posted := r.Method == http.MethodPost && r.URL.Path == f.base+"/callback"
	if g.Host != f.host || posted {
		t := handoff.Ticket{Session: sid, Host: g.Host, Return: g.Return, Bind: g.Bind, Expiry: now.Add(handoff.TicketLifetime)}
		redirect(w, origin+f.Prefix+"/session?t="+url.QueryEscape(t.Seal(f.Ring)))
		return
	}
	https, _ := f.Hosts.Lookup(g.Host)
	names := handoff.Names(https)
	c, err := r.Cookie(names.Login)
	if err != nil {
		f.failStatus(w, r, web.Error{Code: web.CookiesBlocked, RetryURL: origin + g.Return}, nil)
		return
	}
	pre, ok := handoff.ParsePreCookie(c.Value)
	switch {
	case !ok || !pre.Bound(g.Bind): // another tab was faster, or the link is not this browser's: begin again, now with single sign-on
		redirect(w, origin+g.Return)
		return
	case pre.Looping(now):
		f.fail(w, r, web.Loop, nil)
		return
	}
	f.setCookie(w, names.Login, pre.Next(now, f.alreadyIn(r, names.Session)).String(), https, http.SameSiteLaxMode)
	f.setCookie(w, names.Session, handoff.SealCookie(f.Ring, f.host, sid, now), https, f.SameSite)
	if f.SameSite != http.SameSiteStrictMode {
		redirect(w, origin+g.Return)
		return
	}
	a := handoff.NewArrival(origin + g.Return)
	for k, v := range map[string]string{"Refresh": a.Refresh, "Content-Security-Policy": a.Policy, "Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"} {
		w.Header().Set(k, v)
	}
	_, _ = w.Write([]byte(a.Body)) // the browser may be gone
}

// alreadyIn reports whether the browser shows a session cookie of a session that lives.
func (f *Front) alreadyIn(r *http.Request, name string) bool {
	c, err := r.Cookie(name)
	if err != nil {
		return false
	}
	sid, _, err := handoff.OpenCookie(nil, f.Ring, f.host, c.Value)
	if err != nil {
		return false
	}
	_, err = f.Storage.GetAuthSession(r.Context(), string(sid))
	return err == nil
}

// restart sends the browser back to where it wanted to go: the gateway begins a new sign-in there.
func (f *Front) restart(w http.ResponseWriter, r *http.Request, q *request) {
	if q.account {
		redirect(w, f.AccountPath())
		return
	}
	if q.gateway == nil {
		f.fail(w, r, web.ExpiredLink, handoff.ErrExpired)
		return
	}
	origin, ok := f.Hosts.Origin(q.gateway.Host)
	if !ok || !strings.HasPrefix(q.gateway.Return, "/") {
		f.fail(w, r, web.UnknownHost, nil)
		return
	}
	redirect(w, origin+q.gateway.Return)
}

// signOn ends the sign-in of a browser that has a live session; false: it has none that serves for q, and nothing was
// answered yet.
func (f *Front) signOn(w http.ResponseWriter, r *http.Request, q *request, connector string) bool {
	if q.prompt("login") || q.prompt("select_account") {
		return false
	}
	s, err := f.session(w, r)
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return true
	}
	if s == nil || connector != "" && connector != s.ConnectorID || f.tooOld(q, s) {
		return false
	}
	switch err := f.Vouch(r.Context(), s.ConnectorID, s.UserID, AuthenticatedAt(s)); {
	case errors.Is(err, identity.ErrEnded):
		return false
	case err != nil:
		f.fail(w, r, web.Unavailable, err)
		return true
	}
	if q.own() && f.knowsGateway(r.Context(), s) {
		f.result(r, q, s.ConnectorID, f.email(r.Context(), s), "sso", nil, slog.String("user_id", s.UserID), sessionAttr(s.ID))
		f.landFor(w, r, q, s.ID)
		return true
	}
	query := f.authorization(q)
	query.Del("connector_id")
	ctx, fly := withFlight(r.Context())
	fly.authTime = AuthenticatedAt(s)
	a, err := f.drive(ctx, r, fly, f.authPath(s.ConnectorID, query), false)
	if err == nil && f.cleared(a.cookies[f.Sessions.Config.CookieName]) {
		err = errSessionOver
	}
	switch {
	case errors.Is(err, errSessionUnread):
		f.fail(w, r, web.Unavailable, err)
		return true
	case err != nil:
		if !errors.Is(err, errWantsCredentials) {
			f.Log.WarnContext(r.Context(), "single sign-on failed", "error", err)
		}
		return false // Dex wants credentials: max_age, not shared, blocked
	}
	f.result(r, q, s.ConnectorID, f.email(r.Context(), s), "sso", nil, slog.String("user_id", s.UserID), sessionAttr(s.ID))
	f.deliver(ctx, w, r, q, a)
	return true
}

// AuthenticatedAt is when a credential was last accepted in this session. Dex would take when the user last signed in
// anywhere.
func AuthenticatedAt(s *storage.AuthSession) time.Time {
	at := s.CreatedAt
	for _, c := range s.ClientStates {
		if c != nil && !c.ViaSSO && c.AuthenticatedAt.After(at) {
			at = c.AuthenticatedAt
		}
	}
	return at
}

// tooOld reports whether the client asks for a younger authentication (max_age, OpenID Connect Core 1.0 section 3.1.2.1).
func (f *Front) tooOld(q *request, s *storage.AuthSession) bool {
	if q.own() || q.query.Get("max_age") == "" {
		return false
	}
	seconds, err := strconv.ParseInt(q.query.Get("max_age"), 10, 32)
	return err != nil || f.Now().Sub(AuthenticatedAt(s)) > time.Duration(seconds)*time.Second
}

// email is that of the session's user, for the audit log.
func (f *Front) email(ctx context.Context, s *storage.AuthSession) string {
	u, err := f.Storage.GetUserIdentity(ctx, s.UserID, s.ConnectorID)
	if err != nil {
		return ""
	}
	return u.Claims.Email
}

// knowsGateway reports whether the session already came through the gateway's client, with its second factor, and
// its user is not blocked.
func (f *Front) knowsGateway(ctx context.Context, s *storage.AuthSession) bool {
	if !throughGateway(s) {
		return false
	}
	_, err := f.Storage.GetUserIdentity(ctx, s.UserID, s.ConnectorID)
	return err == nil
}

func throughGateway(s *storage.AuthSession) bool {
	c := s.ClientStates[GatewayClient]
	return c != nil && !c.LastTokenIssuedAt.IsZero()
}

// deliver hands Dex's last answer on: the gateway's own is finished here, others belong to the browser.
func (f *Front) deliver(ctx context.Context, w http.ResponseWriter, r *http.Request, q *request, a *answer) {
	target, own := strings.CutPrefix(a.location(), f.Issuer.String()+CallbackPath+"?")
	if !q.own() || !own {
		a.relay(w)
		return
	}
	query, err := url.ParseQuery(target)
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	a.relayCookies(w)
	f.finishGateway(ctx, w, r, query)
}

func redirect(w http.ResponseWriter, target string) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusSeeOther)
}

// storageCode is the page for a failed read of the store.
func (f *Front) storageCode(err error) web.Code {
	if errors.Is(err, storage.ErrNotFound) {
		return web.ExpiredLink
	}
	return web.Unavailable
}

// expiryOf is when a session that is used at now ends by idleness.
func expiryOf(s storage.AuthSession, idle time.Duration, now time.Time) time.Time {
	if e := now.Add(idle); s.AbsoluteExpiry.IsZero() || e.Before(s.AbsoluteExpiry) {
		return e
	}
	return s.AbsoluteExpiry
}
