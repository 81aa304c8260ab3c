package front

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"time"

	"gatehouse/internal/handoff"
	"gatehouse/provider/identity"
	"gatehouse/web"
)

// A SAML identity provider answers by a POST from its own site, with a RelayState of at most 80 bytes (SAML 2.0
// Bindings section 3.5.3). So the state of the sign-in is in a cookie that such a POST carries, and the RelayState is
// the id of the request: an answer in a browser that did not ask is refused. A browser has one such sign-in at a time.

// samlState is the state of a SAML sign-in.
type samlState struct {
	upstreamState

	Request string `json:"i"` // id of the AuthnRequest, which is the RelayState
}

// samlCookie is its name, and maxCookie what browsers keep of one, in bytes.
const (
	samlCookie = "__Host-gatehouse-saml"
	maxCookie  = 3800
)

const submitScript = `document.forms[0].submit();`

// startSAML sends the browser to the identity provider by a form that submits itself.
func (f *Front) startSAML(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door) {
	if f.Issuer.Scheme != "https" {
		f.fail(w, r, web.Unavailable, errors.New("saml needs an https issuer: browsers send no cookie with a POST from another site otherwise"))
		return
	}
	st := samlState{Request: "_" + rand.Text(), upstreamState: upstreamState{
		Gateway: q.gateway, Query: q.query.Encode(), Account: q.account, Connector: door.ID, Expiry: f.Now().Add(handoff.RequestLifetime),
	}}
	target, value, err := door.StartSAML(q.scopes(), st.Request)
	if err != nil {
		f.refuse(w, r, q, door, "", err)
		return
	}
	sealed := f.seal(PurposeSAML, st)
	if len(sealed) > maxCookie && st.toFront() {
		sealed = f.seal(PurposeSAML, st)
	}
	if len(sealed) > maxCookie {
		f.fail(w, r, web.BadRequest, fmt.Errorf("saml: the authorization request is too long: its state has %d bytes, a cookie %d", len(sealed), maxCookie))
		return
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: the identity provider posts from its own site
		Name: samlCookie, Value: sealed, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteNoneMode, MaxAge: int(handoff.RequestLifetime / time.Second),
	})
	sum := sha256.Sum256([]byte(submitScript))
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; script-src 'sha256-"+
		base64.StdEncoding.EncodeToString(sum[:])+"'; form-action "+formTarget(target))
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	_ = samlPage().Execute(w, map[string]string{"Target": target, "Value": value, "State": st.Request}) // the browser may be gone
}

// samlPage is seen for a moment, or where there is no JavaScript.
func samlPage() *template.Template {
	return template.Must(template.New("saml").Parse(`<!DOCTYPE html><html lang="en"><title>Sign in</title>
<form method="post" action="{{.Target}}"><input type="hidden" name="SAMLRequest" value="{{.Value}}">
<input type="hidden" name="RelayState" value="{{.State}}"><button>Go on to sign in</button></form>
<script>` + submitScript + `</script></html>`))
}

// samlCallback is the assertion consumer service.
func (f *Front) samlCallback(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		f.failStatus(w, r, web.Error{Code: web.BadRequest, Status: bodyStatus(err)}, err)
		return
	}
	st, err := f.openSAML(r)
	if err != nil {
		f.fail(w, r, web.OtherBrowser, err)
		return
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // G124: as it was set
		Name: samlCookie, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteNoneMode, MaxAge: -1,
	})
	q, err := st.request()
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	if !f.Now().Before(st.Expiry) {
		f.restart(w, r, q)
		return
	}
	door, ok := f.choice(w, r, q, st.Connector)
	if !ok {
		return
	}
	id, end, err := door.FinishSAML(r.Context(), q.scopes(), r.PostForm.Get("SAMLResponse"), st.Request)
	if err != nil {
		f.refuse(w, r, q, door, "", err)
		return
	}
	q.until = end
	f.complete(w, r, q, door, identity.Proven{Identity: id}, f.Remembered)
}

func (f *Front) openSAML(r *http.Request) (st samlState, err error) {
	c, err := r.Cookie(samlCookie)
	if err != nil {
		return st, errOtherBrowser
	}
	if err := f.unseal(PurposeSAML, c.Value, &st); err != nil {
		return st, err
	}
	if subtle.ConstantTimeCompare([]byte(st.Request), []byte(r.PostForm.Get("RelayState"))) != 1 {
		return st, errOtherBrowser
	}
	return st, nil
}
