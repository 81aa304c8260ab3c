package authz

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
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

// An answer is a CheckResponse as it goes on the wire.
type answer []byte

// dropCookie is a part of an OkHttpResponse: it removes the header Cookie.
const dropCookie = "\x2a\x06cookie"

// allowance lets a request pass. ready, a part of an OkHttpResponse, is the same for many requests: encoding it for each would
// cost more than all the rest of a check. So is token, which has a life of its own. The request's own are more of them: to set its Cookie header, or to remove it, and the aliases.
func (c *check) allowance(k kind, ready, token []byte, cookie string, drop bool) answer {
	c.out.kind, c.out.status = k, 200
	size := len(ready) + len(token)
	if drop {
		size += len(dropCookie)
	} else if cookie != "" {
		size += optionSize("cookie", cookie)
	}
	for _, name := range c.aliases {
		size += sized(len(name))
	}
	m := c.metadata()
	e := make(encoder, 0, sized(0)+sized(size)+sized(m.size()))
	e = append(append(e.tag(responseStatus, 0).tag(responseOK, size), ready...), token...)
	if drop {
		e = append(e, dropCookie...)
	} else if cookie != "" {
		e = e.option("cookie", cookie)
	}
	for _, name := range c.aliases {
		e = e.text(okHeadersToRemove, name)
	}
	return answer(m.write(e))
}

// allowIssuer lets a request pass to the issuer: nobody is who a header says, and all else is unchanged.
func (c *check) allowIssuer() answer {
	return c.allowance(allowedIssuer, c.g.headers.issuer, nil, "", false)
}

// allow lets a request pass to an app: as who, or as nobody. Our cookies stay here.
func (c *check) allow(k kind, token []byte) answer {
	ready, kept := c.g.headers.anonymous, ""
	if c.who != nil {
		ready = c.who.headers
	}
	if c.jar.ours && c.jar.others {
		kept = strings.ToValidUTF8(cutCookies(c.head.get("cookie"), c.g.cookies), "!")
	}
	return c.allowance(k, ready, token, kept, c.jar.ours && kept == "")
}

// allowUser lets a request pass as who. An app that is to get a token gets one, or no request.
func (c *check) allowUser(ctx context.Context) answer {
	if c.who == nil || c.who.tokens == nil {
		return c.allow(allowedIdentity, nil)
	}
	token, err := c.token()
	if err != nil {
		if s := c.server; s.logs(c) {
			s.Logger.LogAttrs(ctx, slog.LevelWarn, "token for an app cannot be signed", slog.String("request_id", c.requestID()), slog.Any("error", err))
		}
		if errors.Is(err, errTokenBudget) {
			return c.refuse(failedTokenBudget, ProblemUnavailable, 503)
		}
		return c.refuse(failedToken, ProblemUnavailable, 503)
	}
	return c.allow(allowedIdentity, token)
}

// authenticate answers a caller who must sign in first, by the kind of client.
func (c *check) authenticate() answer {
	if c.bearer {
		return c.unauthenticated(unauthenticatedBearer, ProblemBearer)
	}
	switch c.client() {
	case clientNavigation:
		return c.startSignIn(signInNavigation, c.msg.path)
	case clientScript:
		return c.unauthenticated(unauthenticatedNone, ProblemSession)
	case clientUnknown:
	}
	if c.g.Clients != ClientsKubeflow {
		return c.unauthenticated(unauthenticatedNone, ProblemSession)
	}
	if c.reads() {
		return c.startSignIn(signInNavigation, c.msg.path)
	}
	return c.refuse(deniedClient, ProblemSession, 403)
}

// maxSealedRequest keeps the redirect well below what browsers, proxies and handoff.OpenRequest accept.
const maxSealedRequest = 7 << 10

// startSignIn sends the browser to the issuer, to return to target or else to /. Nothing is stored: the browser
// carries the request, bound to its pre-cookie. A browser that has one keeps it, so that many tabs can sign in at once.
func (c *check) startSignIn(k kind, target string) answer {
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
func (c *check) redirect(k kind, code int, location string, headers ...header) answer {
	return c.reply(k, code, "", append(headers, header{"location", location}))
}

// redirectTo sends the browser to a path of the request's host.
func (c *check) redirectTo(k kind, path string, headers ...header) answer {
	origin, _ := c.g.Hosts.Origin(c.req.Host)
	return c.redirect(k, 303, origin+path, headers...)
}

// unauthenticated is 401 with a challenge (RFC 9110 section 11.6.1, RFC 6750 section 3).
func (c *check) unauthenticated(k kind, p Problem) answer {
	challenge := `Bearer realm="gatehouse"`
	if k == unauthenticatedBearer {
		challenge += `, error="invalid_token", error_description="this gateway accepts no bearer tokens"`
	}
	return c.refuse(k, p, 401, header{"www-authenticate", challenge})
}

// refuse answers with a page for a person and JSON for a program. Both have the request's id.
func (c *check) refuse(k kind, p Problem, code int, headers ...header) answer {
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

func (c *check) page(k kind, page PageKind, code int, d PageData, headers ...header) answer {
	d.Status, d.Host, d.RequestID = code, c.req.Host, c.requestID()
	if c.who != nil && page != PageSignedOut {
		d.User = c.who.user
	}
	policy := c.g.pagePolicy
	if page == PageSignOut {
		policy = c.g.signOutPolicy
	}
	headers = append(headers, header{"content-type", "text/html; charset=utf-8"}, header{"content-security-policy", policy})
	body := c.server.Pages.Page(page, d, c.head.get("accept-language"))
	return c.reply(k, code, strings.ToValidUTF8(string(body), "?"), headers)
}

func (c *check) json(k kind, code int, body any, headers ...header) answer {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // plain structs of strings and times
	}
	return c.reply(k, code, string(b), append(headers, header{"content-type", "application/json"}))
}

// reply is every answer of our own.
func (c *check) reply(k kind, code int, body string, headers []header) answer {
	c.out.kind, c.out.status = k, code
	e := encoder(denied(code, body, append(headers,
		header{"cache-control", "no-store"},
		header{"x-content-type-options", "nosniff"},
		header{"referrer-policy", "same-origin"},
		header{"x-request-id", c.requestID()})))
	m := c.metadata()
	return answer(m.write(e))
}

// denied makes Envoy answer by itself. A header that stands here twice is sent twice. It is never an error_response,
// which a proxy that fails open would let pass.
func denied(code int, body string, headers []header) answer {
	options := make([]*corev3.HeaderValueOption, len(headers))
	for i, h := range headers {
		options[i] = &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: h.name, Value: h.value}}
	}
	return marshal(&authv3.CheckResponse{
		Status: &status.Status{Code: rpcCode(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(code)}, //nolint:gosec // G115: a status of three digits
			Headers: options, Body: body,
		}},
	})
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
func bareUnavailable() answer {
	return denied(503, `{"error":"`+string(ProblemUnavailable)+`"}`, []header{
		{"content-type", "application/json"}, {"cache-control", "no-store"}, {"retry-after", strconv.Itoa(5)},
	})
}

// refuseFailure answers a session that could not be looked up.
func (c *check) refuseFailure(ctx context.Context, err error) answer {
	if errors.Is(err, session.ErrBlocked) {
		return c.refuse(deniedBlocked, ProblemBlocked, 403)
	}
	c.server.fault(ctx, c, err)
	return c.refuse(failedSession, ProblemUnavailable, 503)
}
