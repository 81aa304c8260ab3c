package front

import (
	"net/http"
	"net/url"
	"strings"

	"gatehouse/connectors"
	"gatehouse/provider/identity"
	"gatehouse/web"

	dexconnectors "github.com/dexidp/dex/server/connectors"
)

// page shows the sign-in page: the form of door, which is nil for none, and links to the other connectors.
func (f *Front) page(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door, st pageState) {
	doors, err := f.doorsFor(r, q)
	if err != nil {
		f.fail(w, r, f.storageCode(err), err)
		return
	}
	v := web.SignIn{
		Connectors: f.links(doors, q, door), Failure: failureOf(st.reason), Wait: st.wait, Login: st.login, Client: f.clientName(r, q),
	}
	if st.reason != "" {
		v.RequestID = requestID(r)
	}
	if door != nil {
		v.Action, v.Prompt = f.loginPath(door.ID, q), door.Prompt()
		if door.Type == dexconnectors.LocalConnector { // its prompt is English
			v.Prompt, v.Email = "", true
		} else if severalForms(doors) {
			v.Way = door.Name
		}
		v.OfferRemember, v.Remember = f.RememberMe, st.remember
		if target := f.target(q); target != "" {
			v.FormAction = []string{target}
		}
	}
	p := f.Pages.SignIn(f.Pages.Language(r.Header.Get("Accept-Language")), v)
	p.Status = st.status
	p.ServeHTTP(w, r)
}

// severalForms reports whether a form alone does not say whose passwords it takes.
func severalForms(doors []*identity.Door) bool {
	forms := 0
	for _, d := range doors {
		if d.Kind == identity.Password {
			forms++
		}
	}
	return forms > 1
}

// failureOf is what the page says about a refusal: no more than its reason, and of an account nothing before its password was right.
func failureOf(reason connectors.Reason) web.Failure {
	switch reason {
	case "", connectors.NegotiateRefused:
		return ""
	case connectors.WrongCredentials, connectors.AccountLocked, connectors.Gone, connectors.ThrottledAccount:
		return web.WrongPassword
	case connectors.Throttled:
		return web.Throttled
	case connectors.Blocked, connectors.NotAllowed, connectors.AccountDisabled:
		return web.AccountDisabled
	case connectors.AccountExpired:
		return web.AccountExpired
	case connectors.PasswordExpired:
		return web.PasswordExpired
	case connectors.PasswordMustChange, connectors.PasswordRejected:
		return web.PasswordMustChange
	case connectors.OutsideHours:
		return web.OutsideHours
	case connectors.OtherWorkstation:
		return web.OtherWorkstation
	case connectors.Busy:
		return web.Busy
	case connectors.Unavailable, connectors.UpstreamRefused, connectors.Unaskable, connectors.PasswordChanged:
		return web.DirectoryUnavailable
	}
	return web.DirectoryUnavailable
}

// clientName is what the page calls the place that the user goes on to.
func (f *Front) clientName(r *http.Request, q *request) string {
	if q.gateway != nil {
		return q.gateway.Host
	}
	if q.account {
		return ""
	}
	c, err := f.Storage.GetClient(r.Context(), q.query.Get("client_id"))
	if err != nil || c.Name == "" {
		return q.query.Get("client_id")
	}
	return c.Name
}

// fail shows an error page; err is for the operator's log only.
func (f *Front) fail(w http.ResponseWriter, r *http.Request, code web.Code, err error) {
	f.failStatus(w, r, web.Error{Code: code}, err)
}

func (f *Front) failStatus(w http.ResponseWriter, r *http.Request, page web.Error, err error) {
	if err != nil {
		f.Log.InfoContext(r.Context(), "request refused", "code", string(page.Code), "path", r.URL.Path, "request_id", requestID(r), "error", err)
	}
	page.RequestID = requestID(r)
	f.Pages.Error(f.Pages.Language(r.Header.Get("Accept-Language")), page).ServeHTTP(w, r)
}

// retry is where a sign-in for q begins anew: the app's page, or ours.
func (f *Front) retry(q *request) string {
	if q.account {
		return f.AccountPath()
	}
	if q.gateway == nil {
		return ""
	}
	origin, ok := f.Hosts.Origin(q.gateway.Host)
	if !ok || !strings.HasPrefix(q.gateway.Return, "/") {
		return ""
	}
	return origin + q.gateway.Return
}

// denied says that the user was proven and is refused.
func (f *Front) denied(w http.ResponseWriter, r *http.Request, err error) {
	f.Log.InfoContext(r.Context(), "sign-in refused", "request_id", requestID(r), "error", err)
	f.Pages.Denied(f.Pages.Language(r.Header.Get("Accept-Language")), web.Denied{RequestID: requestID(r)}).ServeHTTP(w, r)
}

func (f *Front) signedOut(w http.ResponseWriter, r *http.Request) {
	f.Pages.SignedOut(f.Pages.Language(r.Header.Get("Accept-Language")), web.SignedOut{}).ServeHTTP(w, r)
}

// crossSite refuses a form of another site.
func (f *Front) crossSite(w http.ResponseWriter, r *http.Request) {
	f.fail(w, r, web.CrossSite, errCrossSite)
}

// SignedOutURL is the issuer's page after a sign-out, for the gateway.
func (f *Front) SignedOutURL() string {
	u := *f.Issuer
	u.Path, u.RawQuery = f.base+"/logout/callback", url.Values{}.Encode()
	return u.String()
}
