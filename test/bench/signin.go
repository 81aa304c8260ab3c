package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// maxPage bounds what is read of a page.
const maxPage = 1 << 20

var formRE = regexp.MustCompile(`(?s)<form[^>]* method="post" action="([^"]+)"`)

// signIn opens a URL in a new browser, signs in on the form that this leads to, and returns the cookies that the browser
// then has for the URL.
func signIn(ctx context.Context, transport http.RoundTripper, target, login, password string) ([]*http.Cookie, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	browser := &http.Client{Transport: transport, Jar: jar}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return nil, err
	}
	page, at, err := open(browser, r)
	if err != nil {
		return nil, err
	}
	m := formRE.FindSubmatch(page)
	if m == nil {
		return nil, fmt.Errorf("%s: no form in %q", at, page)
	}
	action, err := at.Parse(html.UnescapeString(string(m[1])))
	if err != nil {
		return nil, err
	}
	form := url.Values{"login": {login}, "password": {password}}
	if r, err = http.NewRequestWithContext(ctx, http.MethodPost, action.String(), strings.NewReader(form.Encode())); err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", action.Scheme+"://"+action.Host)
	if _, at, err = open(browser, r); err != nil {
		return nil, err
	}
	if at.String() != target {
		return nil, fmt.Errorf("the sign-in ended at %s, want %s", at.Redacted(), target)
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	return jar.Cookies(u), nil
}

// open sends a request as a navigation, follows redirects and returns the page at their end, and where that is.
func open(browser *http.Client, r *http.Request) ([]byte, *url.URL, error) {
	for k, v := range map[string]string{"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"} {
		r.Header.Set(k, v)
	}
	resp, err := browser.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: got %s, want 200: %s", resp.Request.URL.Redacted(), resp.Status, page)
	}
	return page, resp.Request.URL, nil
}

// A gateway is the way to Gatehouse without an Envoy: requests for the app's host become checks, all others go to the
// issuer's port in plain text. The URLs are https ones nevertheless, as in front of a proxy that ends TLS.
type gateway struct {
	check  authv3.AuthorizationClient
	issuer string // address
	http   http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (g gateway) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != host {
		out := r.Clone(r.Context())
		out.Host, out.URL.Scheme, out.URL.Host = r.URL.Host, "http", g.issuer
		resp, err := g.http.RoundTrip(out)
		if resp != nil {
			resp.Request = r
		}
		return resp, err
	}
	if r.Body != nil {
		_ = r.Body.Close()
	}
	var h [][2]string
	for k, v := range r.Header {
		h = append(h, [2]string{strings.ToLower(k), strings.Join(v, ",")})
	}
	answer, err := g.check.Check(r.Context(), checkRequest(r.Method, host, r.URL.RequestURI(), h))
	if err != nil {
		return nil, err
	}
	return response(r, answer)
}

// response is what Envoy makes of an answer: an allowed request gets an empty page.
func response(r *http.Request, answer *authv3.CheckResponse) (*http.Response, error) {
	resp := &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: http.NoBody, Request: r,
	}
	denied := answer.GetDeniedResponse()
	if denied == nil {
		if answer.GetOkResponse() == nil {
			return nil, errors.New("got a CheckResponse that neither allows nor denies")
		}
		return resp, nil
	}
	resp.StatusCode = int(denied.GetStatus().GetCode())
	resp.Status = fmt.Sprint(resp.StatusCode)
	for _, h := range denied.GetHeaders() {
		value := h.GetHeader().GetValue()
		if raw := h.GetHeader().GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		resp.Header.Add(h.GetHeader().GetKey(), value)
	}
	resp.Body = io.NopCloser(bytes.NewReader([]byte(denied.GetBody())))
	return resp, nil
}
