package authz

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
)

// A PageKind is a page that people see.
type PageKind uint8

// The pages.
const (
	PageDenied    PageKind = iota // 403
	PageError                     // everything else that went wrong
	PageSignedOut                 // after a sign-out
	PageSignOut                   // asks before a sign-out; has a form
)

// A Problem says what went wrong, in a bounded set of words that texts are kept by.
type Problem string

// The problems.
const (
	ProblemDenied       Problem = "denied"         // the user may not
	ProblemBlocked      Problem = "blocked"        // the user is blocked
	ProblemUnlistedHost Problem = "unlisted-host"  // the host is missing in gateway.hosts
	ProblemBadRequest   Problem = "bad-request"    // the request could be read in two ways
	ProblemUnavailable  Problem = "unavailable"    // the session cannot be verified for now
	ProblemSession      Problem = "session-needed" // a form was sent without a session
	ProblemBearer       Problem = "bearer"         // bearer token that is not valid
	ProblemLoop         Problem = "loop"           // signing in leads back to signing in: cookies or clock
	ProblemNoCookies    Problem = "no-cookies"     // the browser did not keep the cookie of the sign-in
	ProblemLink         Problem = "link"           // a hand-off that is not for this host, damaged or too old
	ProblemForm         Problem = "form"           // a sign-out form of another page or session
	ProblemMethod       Problem = "method"         // the path has no such method
	ProblemNotFound     Problem = "not-found"      // no such path below the prefix
)

// PageData is what a page says. It is text: Pages escapes it.
type PageData struct {
	Status    int
	Problem   Problem // of PageDenied and PageError
	Host      string  // canonical, "" if it could not be parsed
	User      string  // who is signed in: e-mail address or connector:userID, or ""
	Rule      string  // that denied, or ""
	RequestID string
	Action    string // PageSignOut: where its form posts to; a path
	SignIn    string // where to sign in, or back in; a path, or "" where that would not help
	Next      string // PageSignedOut: where the sign-out goes on; a URL, or ""
}

// Pages writes HTML pages without scripts. lang is the browser's Accept-Language, as it sent it.
type Pages interface {
	Page(kind PageKind, data PageData, lang string) []byte
}

type header struct{ name, value string }

// An allowed is a whole answer in one allocation.
type allowed struct {
	response authv3.CheckResponse
	oneof    authv3.CheckResponse_OkResponse
	ok       authv3.OkHttpResponse
	status   status.Status
	list     [1]*corev3.HeaderValueOption // of cookie
	option   corev3.HeaderValueOption
	cookie   corev3.HeaderValue
}

// allowance lets a request pass. What is the same for many requests is encoded already and goes on the wire as it is,
// as the unknown fields of a message do. The request's own are the aliases to remove and, if it is not "", the Cookie header.
func (c *check) allowance(k kind, ready []byte, cookie string) *authv3.CheckResponse {
	c.out.kind, c.out.status = k, 200
	a := &allowed{}
	a.ok.ProtoReflect().SetUnknown(ready)
	a.ok.HeadersToRemove = c.aliases
	if cookie != "" {
		a.cookie.Key, a.cookie.Value = "cookie", cookie
		a.option.Header, a.option.AppendAction = &a.cookie, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		a.list[0] = &a.option
		a.ok.Headers = a.list[:]
	}
	a.oneof.OkResponse = &a.ok
	a.response.Status, a.response.HttpResponse = &a.status, &a.oneof
	if k == allowedIdentity && !c.newID {
		c.report = c.reported()
		a.response.DynamicMetadata = c.report.metadata
	} else {
		a.response.DynamicMetadata = c.metadata()
	}
	return &a.response
}

// allowIssuer lets a request pass to the issuer: nobody is who a header says, and all else is unchanged.
func (c *check) allowIssuer() *authv3.CheckResponse {
	return c.allowance(allowedIssuer, c.g.headers.issuer, "")
}

// allow lets a request pass to an app: as who, or as nobody.
func (c *check) allow(k kind) *authv3.CheckResponse {
	ready := &c.g.headers.anonymous
	if c.who != nil {
		ready = &c.who.headers
	}
	if !c.jar.ours {
		return c.allowance(k, ready.keep, "")
	}
	kept := ""
	if c.jar.others {
		kept = strings.ToValidUTF8(cutCookies(c.head["cookie"], c.g.cookies), "!")
	}
	if kept == "" {
		return c.allowance(k, ready.cut, "")
	}
	return c.allowance(k, ready.keep, kept)
}

// authenticate answers a caller who must sign in first, by the kind of client.
func (c *check) authenticate() *authv3.CheckResponse {
	if c.bearer {
		return c.unauthenticated(unauthenticatedBearer, ProblemBearer)
	}
	switch c.client() {
	case clientNavigation:
		return c.startSignIn(signInNavigation, c.http.GetPath())
	case clientScript:
		return c.unauthenticated(unauthenticatedNone, ProblemSession)
	case clientUnknown:
	}
	if c.g.Clients != ClientsKubeflow {
		return c.unauthenticated(unauthenticatedNone, ProblemSession)
	}
	if c.reads() {
		return c.startSignIn(signInNavigation, c.http.GetPath())
	}
	return c.refuse(deniedClient, ProblemSession, 403)
}

// maxSealedRequest keeps the redirect well below what browsers, proxies and handoff.OpenRequest accept.
const maxSealedRequest = 7 << 10

// startSignIn sends the browser to the issuer, to return to target or else to /. Nothing is stored: the browser
// carries the request, bound to its pre-cookie. A browser that has one keeps it, so that many tabs can sign in at once.
func (c *check) startSignIn(k kind, target string) *authv3.CheckResponse {
	pre, known := c.jar.preCookie()
	if known && pre.Looping(c.now) {
		return c.refuse(invalidLoop, ProblemLoop, 400, c.clearPreCookie())
	}
	var headers []header
	if !known {
		pre = handoff.NewPreCookie(c.now)
		headers = append(headers, c.keepPreCookie(pre))
	}
	back, ok := c.g.returnPath(target, c.req.Host)
	if !ok {
		back = "/"
	}
	r := handoff.Request{Host: c.req.Host, Return: back, Bind: pre.Bind(), Expiry: c.now.Add(handoff.RequestLifetime)}
	sealed := r.Seal(c.server.Ring)
	if len(sealed) > maxSealedRequest {
		r.Return = "/"
		sealed = r.Seal(c.server.Ring)
	}
	return c.redirect(k, 302, c.g.signIn+"?req="+sealed, headers...)
}

func (c *check) keepPreCookie(p handoff.PreCookie) header {
	return header{"set-cookie", setCookie(c.names.Login, p.String(), c.https, 0)}
}

func (c *check) clearPreCookie() header {
	return header{"set-cookie", clearCookie(c.names.Login, c.https)}
}

// redirect sends the browser to a URL that was built from listed hosts or by the issuer.
func (c *check) redirect(k kind, code int, location string, headers ...header) *authv3.CheckResponse {
	return c.reply(k, code, "", append(headers, header{"location", location}))
}

// redirectTo sends the browser to a path of the request's host.
func (c *check) redirectTo(k kind, path string, headers ...header) *authv3.CheckResponse {
	origin, _ := c.g.Hosts.Origin(c.req.Host)
	return c.redirect(k, 303, origin+path, headers...)
}

// unauthenticated is 401 with a challenge (RFC 9110 section 11.6.1, RFC 6750 section 3).
func (c *check) unauthenticated(k kind, p Problem) *authv3.CheckResponse {
	challenge := `Bearer realm="gatehouse"`
	if k == unauthenticatedBearer {
		challenge += `, error="invalid_token", error_description="this gateway accepts no bearer tokens"`
	}
	return c.refuse(k, p, 401, header{"www-authenticate", challenge})
}

// refuse answers with a page for a person and JSON for a program. Both have the request's id.
func (c *check) refuse(k kind, p Problem, code int, headers ...header) *authv3.CheckResponse {
	if code == 503 {
		headers = append(headers, header{"retry-after", "5"})
	}
	if c.person() {
		page := PageError
		if code == 403 {
			page = PageDenied
		}
		data := PageData{Problem: p, Rule: c.ruleShown(k)}
		if code != 403 || c.who == nil {
			data.SignIn = c.signInPath()
		}
		return c.page(k, page, code, data, headers...)
	}
	body := struct {
		Error     string `json:"error"`
		LoginURL  string `json:"login_url,omitempty"`
		Rule      string `json:"rule,omitempty"`
		RequestID string `json:"request_id"`
	}{Error: string(p), Rule: c.ruleShown(k), RequestID: c.requestID()}
	if code == 401 {
		origin, _ := c.g.Hosts.Origin(c.req.Host)
		body.LoginURL = origin + c.signInPath()
	}
	return c.json(k, code, body, headers...)
}

// ruleShown returns the rule that a refusal may name: the one that refused somebody who is signed in.
func (c *check) ruleShown(k kind) string {
	if k == deniedRule && c.who != nil {
		return c.out.rule
	}
	return ""
}

// signInPath is where to sign in on the request's host, "" if there is no such place.
func (c *check) signInPath() string {
	if _, listed := c.g.Hosts.Lookup(c.req.Host); !listed {
		return ""
	}
	return c.g.Prefix + pathSignIn
}

func (c *check) page(k kind, page PageKind, code int, d PageData, headers ...header) *authv3.CheckResponse {
	d.Status, d.Host, d.RequestID = code, c.req.Host, c.requestID()
	if c.who != nil && page != PageSignedOut {
		d.User = c.who.user
	}
	policy := c.g.pagePolicy
	if page == PageSignOut {
		policy = c.g.signOutPolicy
	}
	headers = append(headers, header{"content-type", "text/html; charset=utf-8"}, header{"content-security-policy", policy})
	body := c.server.Pages.Page(page, d, c.head["accept-language"])
	return c.reply(k, code, strings.ToValidUTF8(string(body), "?"), headers)
}

func (c *check) json(k kind, code int, body any, headers ...header) *authv3.CheckResponse {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // plain structs of strings and times
	}
	return c.reply(k, code, string(b), append(headers, header{"content-type", "application/json"}))
}

// reply is every answer of our own.
func (c *check) reply(k kind, code int, body string, headers []header) *authv3.CheckResponse {
	c.out.kind, c.out.status = k, code
	r := denied(code, body, append(headers,
		header{"cache-control", "no-store"},
		header{"x-content-type-options", "nosniff"},
		header{"referrer-policy", "same-origin"},
		header{"x-request-id", c.requestID()}))
	r.DynamicMetadata = c.metadata()
	return r
}

// denied makes Envoy answer by itself. A header that stands here twice is sent twice. It is never an error_response,
// which a proxy that fails open would let pass.
func denied(code int, body string, headers []header) *authv3.CheckResponse {
	options := make([]*corev3.HeaderValueOption, len(headers))
	for i, h := range headers {
		options[i] = &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: h.name, Value: h.value}}
	}
	return &authv3.CheckResponse{
		Status: &status.Status{Code: rpcCode(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(code)}, //nolint:gosec // G115: a status of three digits
			Headers: options, Body: body,
		}},
	}
}

// rpcCode returns a gRPC status for an answer of our own. Every one but OK makes Envoy refuse.
func rpcCode(code int) int32 {
	switch code {
	case 400:
		return int32(codes.InvalidArgument)
	case 401:
		return int32(codes.Unauthenticated)
	case 503:
		return int32(codes.Unavailable)
	}
	return int32(codes.PermissionDenied)
}

// bareUnavailable is the answer where nothing else can be relied on.
func bareUnavailable() *authv3.CheckResponse {
	return denied(503, `{"error":"`+string(ProblemUnavailable)+`"}`, []header{
		{"content-type", "application/json"}, {"cache-control", "no-store"}, {"retry-after", strconv.Itoa(5)},
	})
}

// refuseFailure answers a session that could not be looked up.
func (c *check) refuseFailure(ctx context.Context, err error) *authv3.CheckResponse {
	if errors.Is(err, session.ErrBlocked) {
		return c.refuse(deniedBlocked, ProblemBlocked, 403)
	}
	c.server.fault(ctx, c, err)
	return c.refuse(failedSession, ProblemUnavailable, 503)
}
