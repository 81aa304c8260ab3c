package front

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"gatehouse/connectors"
	"gatehouse/connectors/spnego"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/provider/identity"
	"gatehouse/web"
)

const (
	negotiateScheme = "Negotiate" // RFC 4559 section 4.1
	// maxNegotiate bounds the credentials of the scheme, in bytes of base64: what is longer is not decoded.
	maxNegotiate = 88 << 10
	// wantsForm is how long after a sign-out the form is shown instead of asking for a ticket, in seconds: so that somebody else can sign in.
	wantsForm = 600
)

// negotiate tries to sign the browser in by its Kerberos ticket. It reports whether it has answered the request; else the page is to be shown.
//
// A browser says nothing by itself: it is asked for a ticket with a 401, whose body is the sign-in page. One that has no ticket, or is not told to send it here,
// shows that page. A token is answered with a session, or with the page: never with a second question, at which browsers ask their user for a password.
func (f *Front) negotiate(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door) bool {
	if !f.mayNegotiate(r, q, door) {
		return false
	}
	token, err := negotiateToken(r)
	switch {
	case errors.Is(err, errNoToken):
		w.Header().Set("WWW-Authenticate", negotiateScheme)
		f.withoutTicket(w, r, q, door, pageState{status: http.StatusUnauthorized, remember: f.Remembered})
		return true
	case err == nil && !f.fromThisBrowser(r, q.bind): // as with a password that is posted without a page
		err = errOtherBrowser
	}
	if err != nil {
		f.refuseTicket(w, r, q, door, &connectors.Refusal{Reason: connectors.NegotiateRefused, Err: err})
		return true
	}
	id, reply, err := door.Negotiate(r.Context(), f.network(r), token)
	if err != nil {
		f.refuseTicket(w, r, q, door, err)
		return true
	}
	if len(reply) > 0 {
		w.Header().Set("WWW-Authenticate", negotiateScheme+" "+base64.StdEncoding.EncodeToString(reply))
	}
	f.complete(w, byKerberos(r), q, door, id, f.Remembered)
	return true
}

// mayNegotiate reports whether to ask for a ticket, or to look at one: on a page that a person opens, where nobody wants another user or a new proof, and where
// the ticket cannot be read on its way.
func (f *Front) mayNegotiate(r *http.Request, q *request, door *identity.Door) bool {
	if r.Method != http.MethodGet || !door.Negotiates() {
		return false
	}
	if !q.own() && (q.prompt("login") || q.prompt("select_account") || q.query.Get("max_age") != "") {
		return false // a ticket says nothing of when its user was last there
	}
	if d := r.Header.Get("Sec-Fetch-Dest"); d != "" && d != "document" {
		return false // a picture or a frame on somebody's page
	}
	if !door.NeedsTicket() && (r.URL.Query().Has("form") || f.lately(r)) {
		return false
	}
	if !f.private() {
		if f.warned.plain.due(f.Now()) {
			f.Log.WarnContext(r.Context(), "the connector's kerberos is not used, since tickets would cross the network readable: give the issuer https", "connector", door.ID)
		}
		return false
	}
	doors, err := f.doorsFor(r, q)
	if err != nil {
		return false // the page tells
	}
	obvious := f.obvious(doors)
	return obvious != nil && obvious.ID == door.ID
}

// private reports whether nobody on the network reads what browsers send to the issuer.
func (f *Front) private() bool {
	return f.Issuer.Scheme == "https" || hosts.Loopback(f.host)
}

var (
	errNoToken  = errors.New("no token")
	errNoBase64 = errors.New("the token is not base64")
)

// negotiateToken returns the token of the request. Credentials of another scheme are not for us.
func negotiateToken(r *http.Request) ([]byte, error) {
	lines := r.Header.Values("Authorization")
	if len(lines) == 0 {
		return nil, errNoToken
	}
	if len(lines) > 1 {
		return nil, &spnego.Refusal{Why: spnego.Malformed, Err: errors.New("several Authorization headers")}
	}
	scheme, value, _ := strings.Cut(lines[0], " ")
	if !strings.EqualFold(scheme, negotiateScheme) {
		return nil, errNoToken
	}
	if len(value) > maxNegotiate {
		return nil, &spnego.Refusal{Why: spnego.TooLong, Err: errors.New("more credentials than a ticket can have")}
	}
	token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if err != nil || len(token) == 0 {
		return nil, &spnego.Refusal{Why: spnego.Malformed, Err: errNoBase64}
	}
	return token, nil
}

// refuseTicket shows the form to whoever came with a token that did not sign them in. Who was proven is told what keeps them out; of a ticket
// that is not good nothing is said: the form says enough.
func (f *Front) refuseTicket(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, err error) {
	no := refusalOf(err)
	var attrs []slog.Attr
	if ticket := (*spnego.Refusal)(nil); errors.As(err, &ticket) {
		attrs = append(attrs, slog.String("why", string(ticket.Why)))
	}
	f.result(byKerberos(r), q, door.ID, "", string(no.Reason), err, attrs...)
	if no.Err != nil && no.Reason != connectors.NegotiateRefused { // anybody can send garbage
		f.Log.LogAttrs(r.Context(), slog.LevelWarn, "sign-in by ticket failed", causeOf(r, door, no)...)
	}
	st := pageState{status: http.StatusOK, reason: no.Reason, remember: f.Remembered}
	switch {
	case no.Reason == connectors.NegotiateRefused:
	case no.Reason.Untold(): // nobody has typed anything that could be wrong
		st.reason = ""
	default:
		st.status, st.wait = answerTo(no)
		retryAfter(w, st.wait)
	}
	if st.status == http.StatusOK && door.NeedsTicket() {
		st.status = http.StatusForbidden
	}
	f.withoutTicket(w, r, q, door, st)
}

// withoutTicket shows the page, or says that a ticket is needed where there is no form.
func (f *Front) withoutTicket(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, st pageState) {
	if !door.NeedsTicket() {
		f.page(w, r, q, door, st)
		return
	}
	f.failStatus(w, r, web.Error{Code: web.NeedsTicket, Status: st.status, RetryURL: f.retry(q)}, nil)
}

type methodKey struct{}

// byKerberos marks a request whose user is proven by a ticket, for the audit log.
func byKerberos(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), methodKey{}, "kerberos"))
}

// methodOf is how the user of a request is proven, where that is not by the connector's usual way.
func methodOf(r *http.Request) (string, bool) {
	m, ok := r.Context().Value(methodKey{}).(string)
	return m, ok
}

// formCookie is the name of the cookie that asks for the form.
func formCookie(https bool) string { return handoff.Names(https).IssuerLogin + "-form" }

// leaving serves a page of signing out. Who signs out does not want to be signed in again at once, by the same ticket: for a while the form is shown. Anybody can
// send a browser here; then its user types a password once.
func (f *Front) leaving(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.leaves(w)
		h(w, r)
	}
}

// leaves notes that the browser has signed out.
func (f *Front) leaves(w http.ResponseWriter) {
	https := f.Issuer.Scheme == "https"
	if slices.ContainsFunc(f.Doors.All(), (*identity.Door).Negotiates) {
		http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: not Secure on http hosts only, which are for development
			Name: formCookie(https), Value: "1", Path: "/", MaxAge: wantsForm, Secure: https, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		})
	}
}

// lately reports whether the browser has signed out lately.
func (f *Front) lately(r *http.Request) bool {
	_, err := r.Cookie(formCookie(f.Issuer.Scheme == "https"))
	return err == nil
}
