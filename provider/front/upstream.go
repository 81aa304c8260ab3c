package front

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"gatehouse/connectors"
	"gatehouse/internal/handoff"
	"gatehouse/provider/identity"
	"gatehouse/web"
)

// upstreamTimeout is how long an identity provider may take to answer: less than a gateway waits for us.
const upstreamTimeout = 10 * time.Second

// maxUpstreamState is how long a state parameter may get: more than this and some identity providers refuse it.
const maxUpstreamState = 2000

// upstreamState is the state parameter towards an upstream identity provider: all that the sign-in needs when the
// browser returns, so that nothing is stored meanwhile.
type upstreamState struct {
	Gateway   *handoff.Request `json:"g,omitempty"`
	Query     string           `json:"q,omitempty"`
	Account   bool             `json:"a,omitempty"`
	Connector string           `json:"c"`
	Data      []byte           `json:"d,omitempty"` // of the connector: PKCE and such
	Bind      string           `json:"b"`           // of the issuer's pre-cookie
	Expiry    time.Time        `json:"e"`
}

// startUpstream sends the browser to the identity provider behind door.
func (f *Front) startUpstream(w http.ResponseWriter, r *http.Request, q *request, door *identity.Door) {
	u := upstreamState{
		Gateway: q.gateway, Query: q.query.Encode(), Account: q.account, Connector: door.ID,
		Bind: f.ensurePreCookie(w, r).Bind(), Expiry: f.Now().Add(handoff.RequestLifetime),
	}
	const placeholder = "gatehouse-state" // the real one has the connector's data in it, which comes with the URL
	target, data, err := door.StartRedirect(q.scopes(), f.Issuer.String()+"/callback", placeholder)
	if err != nil {
		f.refuse(w, r, q, door, "", err)
		return
	}
	u.Data = data
	loc, err := url.Parse(target)
	if err != nil || loc.Query().Get("state") != placeholder {
		f.fail(w, r, web.Internal, fmt.Errorf("connector %q: its URL has no state parameter", door.ID))
		return
	}
	v := loc.Query()
	v.Set("state", f.sealUpstream(u))
	loc.RawQuery = v.Encode()
	redirect(w, loc.String())
}

// sealUpstream seals u; a return path that makes it too long gives way to a shorter one.
func (f *Front) sealUpstream(u upstreamState) string {
	s := f.seal(PurposeUpstream, u)
	if len(s) > maxUpstreamState && u.toFront() {
		s = f.seal(PurposeUpstream, u)
	}
	return s
}

// toFront makes the sign-in return to the app's front page, if it is the gateway's.
func (u *upstreamState) toFront() bool {
	if u.Gateway == nil {
		return false
	}
	g := *u.Gateway
	g.Return = "/"
	u.Gateway = &g
	return true
}

// request is what the sign-in is for.
func (u *upstreamState) request() (*request, error) {
	if u.Gateway != nil {
		return &request{gateway: u.Gateway}, nil
	}
	if u.Account {
		return &request{account: true}, nil
	}
	q, err := url.ParseQuery(u.Query)
	return &request{query: q}, err
}

// upstreamCallback is the redirect URI that identity providers know.
func (f *Front) upstreamCallback(w http.ResponseWriter, r *http.Request) {
	var u upstreamState
	if err := f.unseal(PurposeUpstream, r.URL.Query().Get("state"), &u); err != nil {
		f.fail(w, r, web.ExpiredLink, err)
		return
	}
	q, err := u.request()
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	switch {
	case !f.fromThisBrowser(r, u.Bind):
		f.fail(w, r, web.OtherBrowser, errOtherBrowser)
		return
	case !f.Now().Before(u.Expiry):
		f.restart(w, r, q)
		return
	}
	door, ok := f.choice(w, r, q, u.Connector)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), upstreamTimeout) // stock connectors have no time limit of their own
	defer cancel()
	ctx = identity.WithUpstreamSession(ctx)
	began := f.Now()
	id, err := door.FinishRedirect(q.scopes(), u.Data, r.WithContext(ctx))
	if err != nil {
		f.refuse(w, r, q, door, "", err)
		return
	}
	from := *identity.UpstreamSessionOf(ctx)
	if from != (identity.UpstreamSession{}) {
		from.Began = began
	}
	f.completeFrom(w, r, q, door, identity.Proven{Identity: id}, f.Remembered, &from)
}

// upstreamFailed tells what came of the trip to the identity provider.
func (f *Front) upstreamFailed(w http.ResponseWriter, r *http.Request, q *request, no *connectors.Refusal) {
	page := web.Error{Code: web.Unavailable, RetryURL: f.retry(q)}
	switch no.Reason {
	case connectors.UpstreamRefused:
		page.Code, page.Upstream = web.UpstreamRefused, no.Detail
	case connectors.Blocked, connectors.NotAllowed:
		f.denied(w, r, no)
		return
	default: // it could not be found out, or the upstream's own pages have told
	}
	f.failStatus(w, r, page, no)
}
