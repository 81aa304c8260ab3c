package web

import (
	"bytes"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A Page is an answer ready to be sent, over HTTP or in a denied check.
type Page struct {
	Status int
	Header http.Header // complete but for Content-Length; the caller may add to it
	Body   []byte
}

// ServeHTTP sends the page.
func (p Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), p.Header)
	w.Header().Set("Content-Length", strconv.Itoa(len(p.Body)))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(p.Body) // a browser that went away is no error of ours
	}
}

// A Failure is why a sign-in did not work. Empty means that it has not been tried.
type Failure string

// What the sign-in page can say. Where an account's state is told, its password was right.
const (
	WrongPassword        Failure = "wrong"           // 401; the same for an unknown user
	Throttled            Failure = "throttled"       // 429, with SignIn.Wait
	PasswordExpired      Failure = "expired"         // 403
	PasswordMustChange   Failure = "must-change"     // 403
	AccountDisabled      Failure = "disabled"        // 403
	AccountExpired       Failure = "account-expired" // 403
	OutsideHours         Failure = "hours"           // 403
	OtherWorkstation     Failure = "workstation"     // 403
	DirectoryUnavailable Failure = "unavailable"     // 503
	Busy                 Failure = "busy"            // 503, with SignIn.Wait
)

// What besides the page for a new password can say of it.
const (
	PasswordsDiffer  Failure = "differ"   // 422
	PasswordSame     Failure = "same"     // 422: as the current one
	PasswordTooLong  Failure = "too-long" // 422
	PasswordRejected Failure = "rejected" // 422, with PasswordChange.Detail
)

func (f Failure) status() int {
	switch f {
	case "":
		return http.StatusOK
	case Throttled:
		return http.StatusTooManyRequests
	case DirectoryUnavailable, Busy:
		return http.StatusServiceUnavailable
	case PasswordExpired, PasswordMustChange, AccountDisabled, AccountExpired, OutsideHours, OtherWorkstation:
		return http.StatusForbidden
	case PasswordsDiffer, PasswordSame, PasswordTooLong, PasswordRejected:
		return http.StatusUnprocessableEntity
	case WrongPassword:
		return http.StatusUnauthorized
	default:
		return http.StatusUnauthorized
	}
}

// A Connector is a way to sign in, shown as a link.
type Connector struct {
	Name string
	URL  string
}

// SignIn is the page with the password form and links to all other connectors. Any text in it may be
// hostile; a URL that is neither relative nor http nor https is made harmless.
type SignIn struct {
	Action        string   // where the form posts `login`, `password` and, if ticked, `remember_me=on`; empty: no form
	FormAction    []string // besides 'self', the origins that a successful post leads to; see Pages.CSP
	Prompt        string   // label of the login field, such as "Staff number"; empty: a general one
	Way           string   // name of the connector that the form is for, where there are several forms; empty: not told
	Email         bool     // the general one asks for an e-mail address only
	Login         string   // what was typed into it before
	OfferRemember bool     // show the box
	Remember      bool     // tick it
	Client        string   // name of what the user goes on to; empty: not told
	Connectors    []Connector
	Failure       Failure
	Wait          time.Duration // until the next attempt is allowed, for Throttled, shown in minutes, rounded up; or is likely to succeed, for Busy
	RequestID     string
}

// SignIn renders the sign-in page.
func (p *Pages) SignIn(lang string, d SignIn) Page {
	view := struct {
		// Names that Dex's password page has too: both share the form.
		PostURL, Username, UsernamePrompt          string
		ShowRememberMe, RememberMeChecked, Invalid bool

		Email      bool
		Way        string
		Client     string
		Connectors []Connector
		Failure    Failure
		Minutes    int
		RequestID  string
	}{
		d.Action, d.Login, d.Prompt, d.OfferRemember, d.Remember, d.Failure == WrongPassword,
		d.Email, d.Way, d.Client, d.Connectors, d.Failure, minutes(d.Wait), d.RequestID,
	}
	var targets []string
	if d.Action != "" {
		targets = append([]string{"'self'"}, d.FormAction...)
	}
	page := p.render(lang, "signin.html", d.Failure.status(), view, targets...)
	if d.Failure == Throttled || d.Failure == Busy || d.Failure == DirectoryUnavailable {
		page.retryAfter(d.Wait)
	}
	return page
}

// minutes rounds up: whoever comes back then is not too early.
func minutes(wait time.Duration) int { return max(1, int((wait+time.Minute-1)/time.Minute)) }

// PasswordChange is the page on which users choose a new password before they can go on. Any text in it may be hostile.
type PasswordChange struct {
	Action     string   // where the form posts `login`, `password`, `new_password`, `new_password_again` and, with Remember, `remember_me=on`
	FormAction []string // besides 'self', the origins that a successful post leads to; see Pages.CSP
	Login      string
	Remember   bool
	Wanted     bool    // by the user, who goes on where they were: the name can be changed, and no failure is none
	Failure    Failure // PasswordExpired or PasswordMustChange at first; then why it did not work
	Detail     string  // what the directory said, for PasswordRejected; shown as a quotation, cut to 300 characters
	Wait       time.Duration
	BackURL    string // of the sign-in page; empty: no link
	RequestID  string
}

// PasswordChange renders the page for a new password.
func (p *Pages) PasswordChange(lang string, d PasswordChange) Page {
	if d.Failure == "" && !d.Wanted {
		d.Failure = WrongPassword
	}
	view := struct {
		PostURL, Username               string
		Remember, Wanted                bool
		Failure                         Failure
		Due, InvalidCurrent, InvalidNew bool
		Detail                          string
		Minutes                         int
		BackURL, RequestID              string
	}{
		PostURL: d.Action, Username: d.Login, Remember: d.Remember, Wanted: d.Wanted, Failure: d.Failure, Minutes: minutes(d.Wait), BackURL: d.BackURL, RequestID: d.RequestID,
	}
	switch d.Failure {
	case PasswordExpired, PasswordMustChange, "":
		view.Due = true
	case PasswordRejected:
		view.InvalidNew, view.Detail = true, quote(d.Detail)
	case PasswordsDiffer, PasswordSame, PasswordTooLong:
		view.InvalidNew = true
	case WrongPassword:
		view.InvalidCurrent = true
	default: // nothing of what was typed
	}
	page := p.render(lang, "change.html", d.Failure.status(), view, append([]string{"'self'"}, d.FormAction...)...)
	if d.Failure == Throttled || d.Failure == Busy || d.Failure == DirectoryUnavailable {
		page.retryAfter(d.Wait)
	}
	return page
}

// Denied is the page for a signed-in user whom a rule refuses (403). It tells no more than is in it.
type Denied struct {
	User       string // as they know themselves, such as their e-mail address
	Rule       string // name of the rule that decided
	RequestID  string
	SignOutURL string // leads to signing in as another user; empty: no link
	AccountURL string // of the account page; empty: no link
	BackURL    string // empty: no link
}

// Denied renders the page that says no.
func (p *Pages) Denied(lang string, d Denied) Page {
	return p.render(lang, "denied.html", http.StatusForbidden, d)
}

// A Code is a kind of error. Each has its own texts and a usual status.
type Code string

// The kinds of errors that people meet.
const (
	Internal        Code = "internal"          // 500; also meant by the empty and by an unknown Code
	BadRequest      Code = "bad-request"       // 400
	AmbiguousPath   Code = "ambiguous-path"    // 400
	UnknownHost     Code = "unknown-host"      // 403
	CookiesBlocked  Code = "cookies-blocked"   // 400
	Loop            Code = "loop"              // 400
	ExpiredLink     Code = "expired-link"      // 400
	OtherBrowser    Code = "other-browser"     // 400
	CrossSite       Code = "cross-site"        // 403
	NotSignedIn     Code = "not-signed-in"     // 401
	NeedsTicket     Code = "needs-ticket"      // 401: the browser sent no Kerberos ticket, and there is no form
	TooManyRequests Code = "too-many-requests" // 429
	NotFound        Code = "not-found"         // 404
	NoSession       Code = "no-session"        // 404: of the user
	UpstreamRefused Code = "upstream-refused"  // 502
	Unavailable     Code = "unavailable"       // 503
)

func codes() []Code {
	return []Code{
		Internal, BadRequest, AmbiguousPath, UnknownHost, CookiesBlocked, Loop, ExpiredLink, OtherBrowser, CrossSite, NotSignedIn,
		NeedsTicket, TooManyRequests, NotFound, NoSession, UpstreamRefused, Unavailable,
	}
}

func (c Code) status() int {
	switch c {
	case BadRequest, AmbiguousPath, CookiesBlocked, Loop, ExpiredLink, OtherBrowser:
		return http.StatusBadRequest
	case UnknownHost, CrossSite:
		return http.StatusForbidden
	case NotSignedIn, NeedsTicket:
		return http.StatusUnauthorized
	case NotFound, NoSession:
		return http.StatusNotFound
	case TooManyRequests:
		return http.StatusTooManyRequests
	case UpstreamRefused:
		return http.StatusBadGateway
	case Unavailable:
		return http.StatusServiceUnavailable
	case Internal:
		return http.StatusInternalServerError
	default:
		return http.StatusInternalServerError
	}
}

// Error is a page about what went wrong and what to do.
type Error struct {
	Code      Code
	Status    int           // 0: the usual one of Code
	Upstream  string        // what an identity provider answered, for UpstreamRefused; shown as a quotation, cut to 300 characters
	RetryURL  string        // empty: no link
	BackURL   string        // empty: no link
	Wait      time.Duration // sent as Retry-After if positive
	RequestID string
}

// Error renders an error page.
func (p *Pages) Error(lang string, d Error) Page {
	status := d.Status
	if status == 0 {
		status = d.Code.status()
	}
	if d.Code != UpstreamRefused {
		d.Upstream = ""
	}
	d.Upstream = quote(d.Upstream)
	name := problemName(d.Code)
	if d.Code.status() == http.StatusInternalServerError {
		name = problemName(Internal)
	}
	page := p.render(lang, name, status, d)
	if d.Wait > 0 {
		page.retryAfter(d.Wait)
	}
	return page
}

// problemName is the template of an error page.
func problemName(c Code) string { return "error-" + string(c) + ".html" }

// maxQuote caps a foreign text on a page, in characters.
const maxQuote = 300

// quote drops control and format characters (they can reorder a text) and cuts what is too long.
func quote(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if unicode.IsSpace(r) {
			r = ' '
		}
		if unicode.In(r, unicode.C) {
			continue
		}
		if n == maxQuote {
			b.WriteRune('…')
			break
		}
		b.WriteRune(r)
		n++
	}
	return strings.TrimSpace(b.String())
}

// SignOutConfirm is the page that asks before signing out.
type SignOutConfirm struct {
	Action     string   // where the form posts nothing but the click; a sealed token belongs in its query
	FormAction []string // besides 'self', the origins that the post leads to; see Pages.CSP
	User       string
	AccountURL string // of the account page; empty: no link
	BackURL    string // empty: no link
}

// SignOutConfirm renders the question.
func (p *Pages) SignOutConfirm(lang string, d SignOutConfirm) Page {
	view := struct{ PostURL, User, AccountURL, BackURL string }{d.Action, d.User, d.AccountURL, d.BackURL}
	return p.render(lang, "signout.html", http.StatusOK, view, append([]string{"'self'"}, d.FormAction...)...)
}

// SignedOut is the page after signing out.
type SignedOut struct {
	SignInURL   string // empty: no link
	ContinueURL string // where the identity provider ends its own session; empty: no link
	Upstream    string // name of an identity provider where the user may still be signed in; empty: not told
}

// SignedOut renders the farewell.
func (p *Pages) SignedOut(lang string, d SignedOut) Page {
	return p.render(lang, "signedout.html", http.StatusOK, d)
}

// pageSize is enough for most pages, with their styles: a buffer that grows is copied many times.
const pageSize = 12 << 10

// render falls back to the default language, and to a bare 500 if a template fails: New has run each
// template once, so that is a bug.
func (p *Pages) render(lang, name string, status int, data any, formAction ...string) Page {
	templates, ok := p.templates[lang]
	if !ok {
		lang = DefaultLanguage
		templates = p.templates[lang]
	}
	header := http.Header{
		"Content-Type":            {"text/html; charset=utf-8"},
		"Content-Language":        {lang},
		"Vary":                    {"Accept-Language"},
		"Content-Security-Policy": {p.CSP(formAction...)},
		"Cache-Control":           {"no-store"},
		"Referrer-Policy":         {"same-origin"},
		"X-Content-Type-Options":  {"nosniff"},
	}
	var b bytes.Buffer
	b.Grow(pageSize)
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return Page{Status: http.StatusInternalServerError, Header: header, Body: []byte("<!DOCTYPE html><title>Error</title><h1>Something went wrong</h1>")}
	}
	return Page{Status: status, Header: header, Body: b.Bytes()}
}

func (p Page) retryAfter(wait time.Duration) {
	seconds := max(1, int64((wait+time.Second-1)/time.Second))
	p.Header.Set("Retry-After", strconv.FormatInt(seconds, 10))
}
