package front

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"gatehouse/connectors"
	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/provider/identity"
	"gatehouse/web"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/server/oauth2"
)

// authorize is the authorization endpoint (RFC 6749 section 3.1). With "hmac" it is a step of Dex's coming back, with
// "req" a page of ours; anything else is a new request of an outside client.
func (f *Front) authorize(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		f.fail(w, r, web.BadRequest, err)
		return
	}
	f.voidHints(r.Form)
	switch {
	case r.Form.Get("hmac") != "" && r.Form.Get("req") != "":
		f.dexPage(w, r)
	case r.Form.Get("req") != "":
		f.chooser(w, r)
	default:
		f.begin(w, r, r.Form, r.Form.Get("connector_id"))
	}
}

// authorizeWith is the same with a connector chosen: by an outside client, or by a link of our page.
func (f *Front) authorizeWith(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		f.fail(w, r, web.BadRequest, err)
		return
	}
	f.voidHints(r.Form)
	id := r.PathValue("connector")
	if r.Form.Get("req") == "" {
		f.begin(w, r, r.Form, id)
		return
	}
	q, ok := f.pageRequest(w, r)
	if !ok {
		return
	}
	if door, ok := f.choice(w, r, q, id); ok {
		f.enter(w, r, q, door)
	}
}

// begin takes up an authorization request of an outside client.
func (f *Front) begin(w http.ResponseWriter, r *http.Request, query url.Values, chosen string) {
	query = cloneQuery(query)
	query.Del("connector_id")
	if query.Get("client_id") == GatewayClient || len(query.Encode()) > maxQuery {
		f.fail(w, r, web.BadRequest, nil)
		return
	}
	// Dex checks the request; with its choice of connectors always shown, this only reads.
	a, err := f.ask(r.Context(), r, f.base+"/auth?"+query.Encode(), map[string]*http.Cookie{})
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	if a.status >= http.StatusInternalServerError { // Dex could not read the client
		f.fail(w, r, web.Unavailable, fmt.Errorf("front: dex answers an authorization request with %d", a.status))
		return
	}
	w.Header().Set("Content-Security-Policy", f.Pages.CSP()) // of Dex's page about a mistake; a page of ours brings its own
	if a.status != http.StatusOK && !slices.Contains(strings.Fields(query.Get("prompt")), "none") {
		a.relay(w)
		return
	}
	q := &request{query: query}
	if f.signOn(w, r, q, chosen) {
		return
	}
	if a.status != http.StatusOK { // prompt=none and nobody to sign on: Dex has said so to the client
		a.relay(w)
		return
	}
	q = f.sealQuery(query, f.ensurePreCookie(w, r).Bind())
	if chosen == "" {
		f.choose(w, r, q)
	} else if door, ok := f.choice(w, r, q, chosen); ok {
		f.enter(w, r, q, door)
	}
}

// choose sends the browser to the page that fits the connectors.
func (f *Front) choose(w http.ResponseWriter, r *http.Request, q *request) {
	doors, err := f.doorsFor(r, q)
	if err != nil {
		f.fail(w, r, f.storageCode(err), err)
		return
	}
	if len(doors) == 0 {
		f.fail(w, r, web.Unavailable, errNoConnector)
		return
	}
	if door := f.obvious(doors); door != nil {
		f.enter(w, r, q, door)
		return
	}
	redirect(w, f.base+"/auth?req="+url.QueryEscape(q.sealed))
}

// obvious is the connector to begin with: the first that has a password form, else the only one. It is nil where the
// user has to choose.
func (f *Front) obvious(doors []*identity.Door) *identity.Door {
	for _, d := range doors {
		if d.Kind == identity.Password {
			return d
		}
	}
	if len(doors) == 1 && f.SkipChoice {
		return doors[0]
	}
	return nil
}

// enter goes to one connector: its password page, or the upstream.
func (f *Front) enter(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door) {
	switch door.Kind {
	case identity.Password:
		redirect(w, f.loginPath(door.ID, q))
	case identity.Redirect:
		f.startUpstream(w, r, q, door)
	case identity.SAML:
		f.startSAML(w, r, q, door)
	}
}

func (f *Front) loginPath(connectorID string, q *request) string {
	return f.base + "/auth/" + url.PathEscape(connectorID) + "/login?req=" + url.QueryEscape(q.sealed)
}

// SignInPath is where the gateway sends browsers, below the issuer's path: straight to the page that fits.
func (f *Front) SignInPath() string {
	var doors []*identity.Door // as doorsFor finds them for the gateway
	for _, d := range f.Doors.All() {
		if dexconnectors.GrantTypeAllowed(d.GrantTypes, oauth2.GrantTypeAuthorizationCode) {
			doors = append(doors, d)
		}
	}
	if d := f.obvious(doors); d != nil && d.Kind == identity.Password {
		return "/auth/" + url.PathEscape(d.ID) + "/login"
	}
	return "/auth"
}

// pageRequest opens the request that a page is for; what cannot be used is answered here.
func (f *Front) pageRequest(w http.ResponseWriter, r *http.Request) (*request, bool) {
	q, err := f.open(r)
	switch {
	case errors.Is(err, handoff.ErrExpired):
		f.restart(w, r, q)
		return nil, false
	case err != nil:
		f.fail(w, r, web.ExpiredLink, err)
		return nil, false
	case q.gateway != nil:
		if _, listed := f.Hosts.Lookup(q.gateway.Host); !listed {
			f.fail(w, r, web.UnknownHost, nil)
			return nil, false
		}
	case !f.fromThisBrowser(r, q.bind):
		f.fail(w, r, web.OtherBrowser, errOtherBrowser)
		return nil, false
	}
	return q, true
}

// chooser is the page without a password form.
func (f *Front) chooser(w http.ResponseWriter, r *http.Request) {
	q, ok := f.pageRequest(w, r)
	if !ok || f.signOn(w, r, q, "") {
		return
	}
	doors, err := f.doorsFor(r, q)
	if err != nil {
		f.fail(w, r, f.storageCode(err), err)
		return
	}
	if len(doors) == 0 {
		f.fail(w, r, web.Unavailable, errNoConnector)
		return
	}
	f.ensurePreCookie(w, r)
	if door := f.obvious(doors); door != nil {
		f.enter(w, r, q, door)
		return
	}
	f.page(w, r, q, nil, pageState{status: http.StatusOK})
}

// signInPage is the page with a connector's password form.
func (f *Front) signInPage(w http.ResponseWriter, r *http.Request) {
	q, ok := f.pageRequest(w, r)
	if !ok {
		return
	}
	chosen := "" // the gateway takes a session of any connector; an outside client may have asked for this one
	if !q.own() {
		chosen = r.PathValue("connector")
	}
	if f.signOn(w, r, q, chosen) {
		return
	}
	door, ok := f.choice(w, r, q, r.PathValue("connector"))
	if !ok {
		return
	}
	f.ensurePreCookie(w, r)
	if door.Kind != identity.Password {
		f.enter(w, r, q, door)
		return
	}
	if f.negotiate(w, r, q, door) {
		return
	}
	f.page(w, r, q, door, pageState{status: http.StatusOK, remember: f.Remembered})
}

// signIn takes the posted form.
func (f *Front) signIn(w http.ResponseWriter, r *http.Request) {
	q, door, ok := f.posted(w, r)
	if !ok {
		return
	}
	in := f.loginOf(r, q)
	id, err := door.CheckPassword(r.Context(), in)
	if err != nil {
		f.refuse(w, r, q, door, in.User, err)
		return
	}
	f.complete(w, r, q, door, id, remembers(r))
}

// posted returns what a form with a password was posted for, and the connector's door; what cannot be used is answered here.
func (f *Front) posted(w http.ResponseWriter, r *http.Request) (*request, *identity.Door, bool) {
	if !f.sameOriginPost(r) {
		f.crossSite(w, r)
		return nil, nil, false
	}
	q, ok := f.pageRequest(w, r)
	if !ok {
		return nil, nil, false
	}
	if r.Header.Get("Origin") == "" && !f.fromThisBrowser(r, q.bind) { // a script that never fetched the page
		f.fail(w, r, web.CookiesBlocked, errOtherBrowser)
		return nil, nil, false
	}
	door, ok := f.choice(w, r, q, r.PathValue("connector"))
	if !ok || door.Kind != identity.Password {
		if ok {
			f.fail(w, r, web.BadRequest, nil)
		}
		return nil, nil, false
	}
	if err := r.ParseForm(); err != nil {
		f.failStatus(w, r, web.Error{Code: web.BadRequest, Status: bodyStatus(err)}, err)
		return nil, nil, false
	}
	return q, door, true
}

func (f *Front) loginOf(r *http.Request, q *request) identity.Login {
	return identity.Login{User: r.PostForm.Get("login"), Password: r.PostForm.Get("password"), Network: f.network(r), Scopes: q.scopes()}
}

func bodyStatus(err error) int {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

// refuse shows the page again, with what may be said, or the form for a new password where that is what is missing.
func (f *Front) refuse(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, login string, err error) {
	no := refusalOf(err)
	f.result(r, q, door.ID, login, string(no.Reason), err)
	if no.Err != nil {
		f.Log.LogAttrs(r.Context(), slog.LevelWarn, "sign-in failed", causeOf(r, door, no)...)
	}
	f.refused(w, r, q, door, login, no)
}

// refused shows the page that tells a refusal.
func (f *Front) refused(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, login string, no *connectors.Refusal) {
	if door.Kind != identity.Password {
		_, wait := answerTo(no)
		retryAfter(w, wait)
		f.upstreamFailed(w, r, q, no)
		return
	}
	failure := failureOf(no.Reason)
	if no.Changeable && door.Changes() && (failure == web.PasswordExpired || failure == web.PasswordMustChange) {
		f.changeForm(w, r, q, door, web.PasswordChange{Failure: failure})
		return
	}
	st := pageState{reason: no.Reason, login: clip(login), remember: remembers(r)}
	st.status, st.wait = answerTo(no)
	retryAfter(w, st.wait)
	f.page(w, r, q, door, st)
}

func retryAfter(w http.ResponseWriter, wait time.Duration) {
	if wait > 0 {
		w.Header().Set("Retry-After", seconds(wait))
	}
}

// complete signs a proven user in: Dex's own flow, in process, with the proof in the context.
func (f *Front) complete(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, id identity.Proven, remember bool) {
	f.completeFrom(w, r, q, door, id, remember, nil)
}

// completeFrom is complete for a sign-in that is of a session of the upstream.
func (f *Front) completeFrom(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, id identity.Proven, remember bool, from *identity.UpstreamSession) {
	if err := f.supersede(w, r, door.ID, id.UserID); err != nil {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	query := f.authorization(q)
	query.Del("connector_id")
	// Without prompt=login Dex would take a live session, even of another user, instead of who was just proven.
	prompts := []string{"login"}
	for p := range strings.FieldsSeq(query.Get("prompt")) {
		if p != "login" && p != "select_account" && p != "none" {
			prompts = append(prompts, p)
		}
	}
	query.Set("prompt", strings.Join(prompts, " "))

	ctx, fly := withFlight(r.Context())
	ctx, proof := identity.WithProof(ctx, door.ID, id)
	a, err := f.drive(ctx, r, fly, f.authPath(door.ID, query), true)
	if err == nil && !proof.Used() {
		err = errors.New("dex did not take the proven identity")
	}
	sid := ""
	if err == nil {
		sid, err = f.settle(r, a, remember, q.until)
	}
	if err == nil && from != nil && *from != (identity.UpstreamSession{}) {
		err = f.Link(r.Context(), sid, door.ID, id.UserID, *from)
	}
	if err != nil {
		f.result(r, q, door.ID, id.Email, "failed", err)
		f.failStatus(w, r, web.Error{Code: web.Unavailable, RetryURL: f.retry(q)}, err)
		return
	}
	f.result(r, q, door.ID, id.Email, "ok", nil, slog.String("user_id", id.UserID), sessionAttr(sid))
	f.deliver(ctx, w, r, q, a)
}

// supersede ends the session of another user in this browser, in order and with notice; Dex would only drop it.
func (f *Front) supersede(w http.ResponseWriter, r *http.Request, connectorID, userID string) error {
	s, err := f.session(w, r)
	if err != nil || s == nil || s.UserID == userID && s.ConnectorID == connectorID {
		return err
	}
	_, err = f.SignOut(r.Context(), s.ID)
	return err
}

// settle finds the session that Dex made or continued, makes its cookie last as the user chose, and renews the
// absolute lifetime, since a credential was just accepted; it ends at until, if that is not zero.
func (f *Front) settle(r *http.Request, a *answer, remember bool, until time.Time) (sid string, err error) {
	cfg := f.Sessions.Config
	c, ok := a.cookies[cfg.CookieName]
	if !ok || c.MaxAge < 0 {
		return "", errors.New("no session was stored")
	}
	sid, _, ok = f.Sessions.ParseCookie(&http.Request{Header: http.Header{"Cookie": {c.Name + "=" + c.Value}}})
	if !ok {
		return "", errors.New("the session cookie does not parse")
	}
	s, err := f.Storage.GetAuthSession(r.Context(), sid)
	if err != nil {
		return "", fmt.Errorf("read the new session: %w", err)
	}
	if now := f.Now(); s.AbsoluteExpiry.Before(now.Add(cfg.AbsoluteLifetime-time.Minute)) || !until.IsZero() {
		if err := f.renew(r, sid, now, until); err != nil {
			return "", err
		}
	}
	c.MaxAge = 0
	if remember && f.RememberMe {
		c.MaxAge = int(cfg.AbsoluteLifetime / time.Second)
	}
	return sid, nil
}

// choice returns the connector of that id if it may serve q.
func (f *Front) choice(w http.ResponseWriter, r *http.Request, q *request, id string) (*identity.Door, bool) {
	doors, err := f.doorsFor(r, q)
	if err != nil {
		f.fail(w, r, f.storageCode(err), err)
		return nil, false
	}
	for _, d := range doors {
		if d.ID == id {
			return d, true
		}
	}
	f.fail(w, r, web.NotFound, fmt.Errorf("no connector %q for this client", id))
	return nil, false
}

// doorsFor returns the connectors that may serve q: by the client's list and by their grant types, as in Dex.
func (f *Front) doorsFor(r *http.Request, q *request) ([]*identity.Door, error) {
	var allowed []string
	grant := oauth2.GrantTypeAuthorizationCode
	if !q.own() {
		c, err := f.Storage.GetClient(r.Context(), q.query.Get("client_id"))
		if err != nil {
			return nil, err
		}
		allowed = c.AllowedConnectors
		grant = grantOf(q.query)
	}
	var out []*identity.Door
	for _, d := range f.Doors.All() {
		if dexconnectors.ConnectorAllowed(allowed, d.ID) && dexconnectors.GrantTypeAllowed(d.GrantTypes, grant) {
			out = append(out, d)
		}
	}
	return out, nil
}

// grantOf is the grant type that Dex sees in an authorization request.
func grantOf(q url.Values) string {
	switch types := strings.Fields(q.Get("response_type")); {
	case strings.HasSuffix(q.Get("redirect_uri"), oauth2.DeviceCallbackURI):
		return oauth2.GrantTypeDeviceCode
	case slices.Contains(types, oauth2.ResponseTypeToken), slices.Contains(types, oauth2.ResponseTypeIDToken):
		return oauth2.GrantTypeImplicit
	}
	return oauth2.GrantTypeAuthorizationCode
}

func sessionAttr(id string) slog.Attr { return slog.String("session", audit.Hash(id)) }
