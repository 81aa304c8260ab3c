package reach

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	tryTimeout = 5 * time.Second
	maxAnswer  = 64 << 10 // bytes of header, and of body; a discovery document has some 2 kB
	maxGot     = 256      // bytes of what is repeated of an answer
)

// A Verdict is what a try has shown.
type Verdict int

const (
	Unknown   Verdict = iota // nothing that says where the URL leads
	Here                     // to this issuer
	Elsewhere                // to something else
)

// A Finding is the outcome of a try, in words for an operator. Fix is set with Elsewhere only.
type Finding struct {
	Verdict  Verdict
	Got, Fix string
}

// NewClient returns a client that goes to the URL that it is given and no further: it follows no redirect, asks no
// proxy, and keeps no connection.
func NewClient() *http.Client {
	return &http.Client{
		Timeout:       tryTimeout,
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer, TLSHandshakeTimeout: tryTimeout},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Try asks for the discovery document of issuer (OpenID Connect Discovery 1.0 section 4) as any client would. That the
// URL cannot be reached from here is no mistake: many clusters do not let their pods out to their own gateway.
func Try(ctx context.Context, c *http.Client, issuer *url.URL) Finding {
	target := issuer.String() + "/.well-known/openid-configuration"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return Finding{Got: clip(err.Error())}
	}
	req.Header.Set("Accept", "application/json")
	res, err := c.Do(req)
	if err != nil {
		return Finding{Got: clip(err.Error())}
	}
	defer func() { _ = res.Body.Close() }()
	switch {
	case res.StatusCode == http.StatusOK:
		return document(res, issuer)
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return redirect(res, issuer, target)
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout:
		return Finding{Got: res.Status} // a gateway that does not know of this process yet
	}
	return elsewhere(res.Status, unrouted(issuer))
}

func elsewhere(got, fix string) Finding { return Finding{Verdict: Elsewhere, Got: clip(got), Fix: fix} }

// document compares a discovery document with what this process would have answered.
func document(res *http.Response, issuer *url.URL) Finding {
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return Finding{Got: clip(err.Error())}
	}
	var doc struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(body, &doc); err != nil || doc.Issuer == "" {
		return elsewhere(fmt.Sprintf("%s with %q and no discovery document", res.Status, res.Header.Get("Content-Type")), unrouted(issuer))
	}
	if doc.Issuer != issuer.String() {
		return elsewhere("the discovery document of "+doc.Issuer,
			"another provider answers there: let the gateway send "+path(issuer)+" of "+issuer.Host+" to this one, or correct issuer in the file")
	}
	return Finding{Verdict: Here, Got: res.Status}
}

func redirect(res *http.Response, issuer *url.URL, target string) Finding {
	got := fmt.Sprintf("%s to %q", res.Status, res.Header.Get("Location"))
	to, err := res.Location()
	if err == nil && issuer.Scheme == "http" && to.Scheme == "https" && to.Hostname() == issuer.Hostname() {
		secure := *issuer
		secure.Scheme, secure.Host = "https", to.Host
		return elsewhere(got, "the gateway speaks https there: set issuer: "+clip(secure.String()))
	}
	return elsewhere(got, "clients do not follow redirects from "+target+": "+unrouted(issuer))
}

func unrouted(issuer *url.URL) string {
	return "let the gateway send " + path(issuer) + " of " + issuer.Host + " to this process, the path unchanged and no other login before it, or correct issuer in the file"
}

func path(issuer *url.URL) string {
	if issuer.Path == "" {
		return "/"
	}
	return issuer.Path
}

func clip(s string) string {
	if len(s) > maxGot {
		s = s[:maxGot] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}
