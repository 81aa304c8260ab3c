package front

import (
	"cmp"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/identity"
	"gatehouse/web"
)

// maxNewPassword bounds a new password, in bytes: a longer one would not be accepted at the next sign-in.
const maxNewPassword = 1024

// passwordPath is where the form for a new password posts.
func (f *Front) passwordPath(connectorID string, q *request) string {
	return f.base + "/auth/" + url.PathEscape(connectorID) + "/password?req=" + url.QueryEscape(q.sealed)
}

// errNoChange is for a connector without passwords, or that only others can change.
var errNoChange = errors.New("passwords cannot be changed at this connector")

// passwordPage has no form by itself: who may choose a new password is known once the old one was right. From the account page it is.
func (f *Front) passwordPage(w http.ResponseWriter, r *http.Request) {
	q, ok := f.pageRequest(w, r)
	switch {
	case !ok:
	case q.account:
		f.wantedPassword(w, r, q)
	default:
		redirect(w, f.loginPath(r.PathValue("connector"), q))
	}
}

// changePassword takes the posted form for a new password, and signs in with it. Whatever began with the old one ends.
func (f *Front) changePassword(w http.ResponseWriter, r *http.Request) {
	q, door, ok := f.posted(w, r)
	if !ok {
		return
	}
	if !door.Changes() {
		f.fail(w, r, web.NotFound, errNoChange)
		return
	}
	in := f.loginOf(r, q)
	changed := r.PostForm.Get("new_password")
	if problem := problemOf(in.Password, changed, r.PostForm.Get("new_password_again")); problem != "" {
		f.changeForm(w, r, q, door, web.PasswordChange{Failure: problem})
		return
	}
	userID, err := door.ChangePassword(r.Context(), in, changed)
	if err != nil {
		f.refuseChange(w, r, q, door, in.User, err)
		return
	}
	f.changed(r, q, door.ID, in.User, "ok", nil)
	s, err := f.session(w, r)
	kept := "" // this browser's session goes on, if it is this user's
	if s != nil && s.UserID == userID && s.ConnectorID == door.ID {
		kept = s.ID
	}
	if userID != "" { // else nobody can sign in with the account
		f.PasswordChanged(r.Context(), door.ID, userID, kept) // before the directory is asked again: it may not answer
	}
	if err != nil {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	in.Password = changed
	id, err := door.CheckPassword(r.Context(), in)
	if err != nil {
		f.refuse(w, r, q, door, in.User, err)
		return
	}
	f.complete(w, r, q, door, id, remembers(r))
}

// problemOf is what is wrong with the new password before anybody is asked.
func problemOf(old, changed, again string) web.Failure {
	switch {
	case changed != again:
		return web.PasswordsDiffer
	case len(changed) > maxNewPassword:
		return web.PasswordTooLong
	case changed == old && changed != "":
		return web.PasswordSame
	}
	return ""
}

// refuseChange says why the password was not changed.
func (f *Front) refuseChange(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, login string, err error) {
	no := refusalOf(err)
	f.changed(r, q, door.ID, login, string(no.Reason), err)
	if no.Err != nil {
		f.Log.LogAttrs(r.Context(), slog.LevelWarn, "password change failed", causeOf(r, door, no)...)
	}
	form := web.PasswordChange{Detail: no.Detail, Wait: no.RetryAfter}
	switch {
	case no.Reason == connectors.PasswordRejected:
		form.Failure = web.PasswordRejected
	case no.Reason.Untold():
		form.Failure = web.WrongPassword
	case no.Reason == connectors.Throttled:
		form.Failure = web.Throttled
	case no.Reason == connectors.Busy:
		form.Failure = web.Busy
	case no.Reason == connectors.Unavailable:
		form.Failure = web.DirectoryUnavailable
	default: // a state of the account that a new password does not mend
		f.refused(w, r, q, door, login, no)
		return
	}
	f.changeForm(w, r, q, door, form)
}

// changeForm shows the form for a new password. What was typed into its password fields is never sent back.
func (f *Front) changeForm(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, form web.PasswordChange) {
	form.Action, form.BackURL = f.passwordPath(door.ID, q), f.loginPath(door.ID, q)
	if target := f.target(q); target != "" {
		form.FormAction = []string{target}
	}
	form.Login, form.Remember, form.RequestID = cmp.Or(form.Login, clip(r.PostForm.Get("login"))), remembers(r), requestID(r)
	if q.account && form.Failure != web.PasswordExpired && form.Failure != web.PasswordMustChange {
		form.Wanted, form.BackURL = true, f.AccountPath()
	}
	if form.Failure == "" {
		form.RequestID = ""
	}
	if form.Failure == web.PasswordExpired || form.Failure == web.PasswordMustChange {
		form.RequestID = "" // nothing went wrong
	}
	f.Pages.PasswordChange(f.Pages.Language(r.Header.Get("Accept-Language")), form).ServeHTTP(w, r)
}

func remembers(r *http.Request) bool { return r.PostForm.Get("remember_me") == "on" }

func refusalOf(err error) *connectors.Refusal {
	if no, ok := errors.AsType[*connectors.Refusal](err); ok {
		return no
	}
	return &connectors.Refusal{Reason: connectors.Unavailable, Err: err}
}

// causeOf is what the operator's log tells about a refusal.
func causeOf(r *http.Request, door *identity.Door, no *connectors.Refusal) []slog.Attr {
	return []slog.Attr{
		slog.String("connector", door.ID), slog.String("reason", string(no.Reason)), slog.String("request_id", requestID(r)), slog.String("error", clip(no.Err.Error())),
	}
}

// answerTo is the status that tells a refusal, and when to come again.
func answerTo(no *connectors.Refusal) (status int, wait time.Duration) {
	switch no.Reason {
	case connectors.Throttled:
		return http.StatusTooManyRequests, no.RetryAfter
	case connectors.Busy, connectors.Unavailable:
		return http.StatusServiceUnavailable, max(no.RetryAfter, time.Second)
	case connectors.WrongCredentials, connectors.AccountLocked, connectors.Gone, connectors.ThrottledAccount, connectors.UpstreamRefused,
		connectors.NegotiateRefused:
		return http.StatusUnauthorized, 0
	case connectors.Blocked, connectors.NotAllowed, connectors.AccountDisabled, connectors.AccountExpired, connectors.PasswordExpired,
		connectors.PasswordMustChange, connectors.PasswordRejected, connectors.OutsideHours, connectors.OtherWorkstation:
		return http.StatusForbidden, 0
	default:
		return http.StatusUnauthorized, 0
	}
}
