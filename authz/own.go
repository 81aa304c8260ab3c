package authz

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
)

// Our own paths, below the prefix.
const (
	pathSession = "/session"
	pathSignIn  = "/sign-in"
	pathSignOut = "/sign-out"
	pathWhoAmI  = "/whoami"
)

// An ownPath is what a path is to Gatehouse itself.
type ownPath uint8

const (
	ownNone    ownPath = iota // an app's
	ownUnknown                // below the prefix, but nothing
	ownSession
	ownSignIn
	ownSignOut
	ownWhoAmI
)

// purposeSignOut is for the token in the action of the sign-out form.
const purposeSignOut seal.Purpose = "sign-out form"

// signOutFormLifetime is how long the page that asks may stay open.
const signOutFormLifetime = time.Hour

// own answers a request for one of our own paths. No body is ever read.
func (c *check) own(ctx context.Context, path ownPath) answer {
	read := c.reads()
	switch {
	case path == ownSession && c.req.Method == http.MethodGet:
		return c.redeem(ctx)
	case path == ownSession:
		return c.refuse(invalidMethod, ProblemMethod, 405, header{"allow", "GET"})
	case path == ownSignIn && read:
		return c.askedSignIn(ctx)
	case path == ownWhoAmI && read:
		return c.whoAmI(ctx)
	case path == ownSignIn, path == ownWhoAmI:
		return c.refuse(invalidMethod, ProblemMethod, 405, header{"allow", "GET, HEAD"})
	case path == ownSignOut && read:
		return c.askSignOut(ctx)
	case path == ownSignOut && c.req.Method == http.MethodPost:
		return c.postSignOut(ctx)
	case path == ownSignOut:
		return c.refuse(invalidMethod, ProblemMethod, 405, header{"allow", "GET, HEAD, POST"})
	}
	return c.refuse(ownNotFound, ProblemNotFound, 404)
}

// parameter returns a query parameter that is there exactly once.
func (c *check) parameter(name string) string {
	_, query, _ := strings.Cut(c.msg.path, "?")
	query, _, _ = strings.Cut(query, "#")
	values, err := url.ParseQuery(query)
	if err != nil || len(values[name]) != 1 {
		return ""
	}
	return values[name][0]
}

// redeem makes a session cookie of a hand-off that the issuer sealed for this host and this browser. A hand-off that is ours but
// is too old, was redeemed already or belongs to another browser starts the sign-in anew, where it would have led.
func (c *check) redeem(ctx context.Context) answer {
	t, err := handoff.OpenTicket(c.server.Ring, c.parameter("t"), c.now)
	expired := errors.Is(err, handoff.ErrExpired)
	if err != nil && !expired || t.Host != c.req.Host {
		return c.refuse(invalidHandoff, ProblemLink, 400)
	}
	back, ok := c.g.returnPath(t.Return, c.req.Host)
	if !ok {
		back = "/"
	}
	signedIn := c.identify(ctx) == nil && c.who != nil // else the hand-off decides
	pre, known := c.jar.preCookie()
	bound := known && pre.Bound(t.Bind)
	switch {
	case signedIn && (expired || !bound):
		return c.redirectTo(ownAlreadySignedIn, back)
	case !known:
		return c.refuse(invalidNoCookie, ProblemNoCookies, 400)
	case pre.Looping(c.now) && !signedIn:
		return c.refuse(invalidLoop, ProblemLoop, 400, c.clearPreCookie())
	case expired: // over and over if the clocks of two replicas differ
		return c.redirectTo(ownHandoffAgain, back, c.keepPreCookie(countRound(pre, c.now)))
	case !bound: // the next one is bound to the cookie that the browser has now
		return c.redirectTo(ownHandoffAgain, back)
	}
	s, err := c.lookup(ctx, t.Session)
	switch {
	case err != nil:
		return c.refuseFailure(ctx, err)
	case s == nil: // signed out within the minute
		return c.redirectTo(ownHandoffAgain, back, c.keepPreCookie(countRound(pre, c.now)))
	}
	c.who = c.g.principal(s)
	value := handoff.SealCookie(c.server.Ring, c.req.Host, s.ID, c.now)
	cookies := []header{
		{"set-cookie", setCookie(c.names.Session, value, c.https, c.g.SameSite)},
		c.keepPreCookie(pre.Next(c.now, signedIn)),
	}
	if c.g.SameSite == http.SameSiteStrictMode {
		origin, _ := c.g.Hosts.Origin(c.req.Host)
		a := handoff.NewArrival(origin + back)
		return c.reply(ownHandoff, http.StatusOK, a.Body, append(cookies, header{"refresh", a.Refresh},
			header{"content-security-policy", a.Policy}, header{"content-type", "text/html; charset=utf-8"}))
	}
	return c.redirectTo(ownHandoff, back, cookies...)
}

// identifyUnblocked is identify, to which a blocked user is nobody: who is blocked may sign out or sign in as somebody else.
func (c *check) identifyUnblocked(ctx context.Context) error {
	if err := c.identify(ctx); !errors.Is(err, session.ErrBlocked) {
		return err
	}
	return nil
}

// askedSignIn starts a sign-in that the user or an app asked for, and returns to the parameter rd.
func (c *check) askedSignIn(ctx context.Context) answer {
	target := c.parameter("rd")
	if err := c.identifyUnblocked(ctx); err != nil {
		return c.refuseFailure(ctx, err)
	}
	if c.who == nil {
		return c.startSignIn(signInAsked, target)
	}
	back, ok := c.g.returnPath(target, c.req.Host)
	if !ok {
		back = "/"
	}
	return c.redirectTo(ownAlreadySignedIn, back)
}

// whoAmI tells a program who is signed in.
func (c *check) whoAmI(ctx context.Context) answer {
	if c.bearer = hasBearer(c.head.get(authorization)); c.bearer {
		return c.unauthenticated(unauthenticatedBearer, ProblemBearer)
	}
	if err := c.identify(ctx); err != nil {
		return c.refuseFailure(ctx, err)
	}
	if c.who == nil {
		return c.unauthenticated(unauthenticatedNone, ProblemSession)
	}
	s := c.who.session
	type about struct {
		Hash       string    `json:"id_hash"`
		SignedInAt time.Time `json:"signed_in_at"`
		ExpiresAt  time.Time `json:"expires_at"`
	}
	return c.json(ownWho, 200, struct {
		User      string   `json:"user"`
		Email     string   `json:"email"`
		Name      string   `json:"name"`
		Groups    []string `json:"groups"`
		Connector string   `json:"connector"`
		Session   about    `json:"session"`
	}{
		User: s.Identity.UserID, Email: s.Identity.Email, Name: s.Identity.Name,
		Groups: append([]string{}, s.Identity.Groups...), Connector: s.Identity.Connector,
		Session: about{Hash: c.who.hash, SignedInAt: s.SignedInAt.UTC(), ExpiresAt: expiry(s).UTC()},
	})
}

// expiry is when a session ends without further activity.
func expiry(s *session.Session) time.Time {
	if !s.IdleExpiry.IsZero() && s.IdleExpiry.Before(s.AbsoluteExpiry) {
		return s.IdleExpiry
	}
	return s.AbsoluteExpiry
}

// askSignOut shows the page that asks, or signs out at once if a page of this very origin led the tab here.
func (c *check) askSignOut(ctx context.Context) answer {
	if err := c.identifyUnblocked(ctx); err != nil {
		return c.refuseFailure(ctx, err)
	}
	direct := c.req.Method == http.MethodGet && c.head.get("sec-fetch-site") == "same-origin" &&
		c.head.get("sec-fetch-mode") == "navigate" && c.head.get("sec-fetch-dest") == "document"
	if c.who == nil || direct {
		return c.signOut(ctx)
	}
	value := binary.BigEndian.AppendUint64(nil, uint64(c.now.Add(signOutFormLifetime).Unix())) //nolint:gosec // G115: not before 1970
	token := c.server.Ring.Seal(purposeSignOut, c.req.Host, append(value, c.who.session.ID...))
	return c.page(ownSignOutAsked, PageSignOut, 200, PageData{Action: c.g.Prefix + pathSignOut + "?k=" + token})
}

// postSignOut takes the form of askSignOut. A page of another origin cannot send it.
func (c *check) postSignOut(ctx context.Context) answer {
	if !c.sameOrigin() {
		return c.refuse(invalidForm, ProblemForm, 403)
	}
	if err := c.identifyUnblocked(ctx); err != nil {
		return c.refuseFailure(ctx, err)
	}
	if c.who != nil && !c.formOf(c.who.session.ID) {
		return c.refuse(invalidForm, ProblemForm, 403)
	}
	return c.signOut(ctx)
}

// sameOrigin reports whether a POST comes from a page of this origin, or from no page at all.
func (c *check) sameOrigin() bool {
	own, _ := c.g.Hosts.Origin(c.req.Host)
	if origin, present := c.head.find("origin"); present {
		return origin == own
	}
	switch c.head.get("sec-fetch-site") {
	case "", "none", "same-origin":
		return true
	}
	return false
}

// formOf reports whether the request's token is of this session.
func (c *check) formOf(id string) bool {
	k := c.parameter("k")
	if k == "" || len(k) > 1<<10 {
		return false
	}
	value, err := c.server.Ring.Open(nil, purposeSignOut, c.req.Host, k)
	if err != nil || len(value) <= 8 {
		return false
	}
	expiry := time.Unix(int64(binary.BigEndian.Uint64(value)), 0) //nolint:gosec // G115: sealed by us
	return c.now.Before(expiry) && string(value[8:]) == id
}

// signOut ends the session, if there is one, and clears our cookies.
func (c *check) signOut(ctx context.Context) answer {
	next := ""
	if c.who != nil {
		var err error
		if next, err = c.server.Ender.SignOut(ctx, c.who.session.ID); err != nil {
			c.server.Logger.LogAttrs(ctx, slog.LevelError, "sign-out failed", slog.String("session", c.who.hash),
				slog.String("request_id", c.requestID()), slog.Any("error", err))
			return c.refuse(failedSignOut, ProblemUnavailable, 503)
		}
	}
	var cleared []header
	if c.jar.session.n > 0 { // only what the browser showed: another site's request shows nothing
		cleared = []header{{"set-cookie", clearCookie(c.names.Session, c.https)}, c.clearPreCookie()}
	}
	data := PageData{SignIn: c.signInPath()}
	if next = absoluteURL(next); next != "" {
		if c.req.Method == http.MethodGet || c.formMayLeadTo(next) {
			return c.redirect(ownSignedOut, 303, next, cleared...)
		}
		// Chrome applies form-action of the page with the form to redirects too (CSP level 3 section 6.4.1).
		data.Next = next
		cleared = append(cleared, header{"refresh", "0; url=" + next})
	}
	return c.page(ownSignedOut, PageSignedOut, 200, data, cleared...)
}

// formMayLeadTo reports whether the content policy lets a form's answer redirect to a URL.
func (c *check) formMayLeadTo(next string) bool {
	own, _ := c.g.Hosts.Origin(c.req.Host)
	for _, origin := range []string{own, c.g.Issuer.Origin} {
		if rest, ok := strings.CutPrefix(next, origin); ok && (rest == "" || rest[0] == '/' || rest[0] == '?') {
			return true
		}
	}
	return false
}

// absoluteURL returns s if it is an http or https URL that can stand in a header, else "".
func absoluteURL(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return ""
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return ""
	}
	return s
}
