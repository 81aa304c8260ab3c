package web

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
)

// CSP returns the Content-Security-Policy of a page without script (CSP Level 3): nothing may be
// loaded, the one style element is allowed by its hash, and forms may be sent only to formAction.
//
// Each formAction is 'self', an http or https origin, or the scheme of a native app with its colon
// (RFC 8252 section 7.1). A browser applies form-action to the redirects after a POST too, so the
// origin that a form leads to in the end belongs here. Anything else is left out: the form then
// fails, and no directive can be smuggled in. Without any, forms are forbidden.
func (p *Pages) CSP(formAction ...string) string {
	return p.policy("", formAction)
}

// ScriptCSP is CSP for the page that talks to a security key (<issuer>/mfa/webauthn), the only one
// with a script: static/webauthn.js, which fetches from its own origin.
func (p *Pages) ScriptCSP(formAction ...string) string {
	return p.policy("script-src 'self'; connect-src 'self'; ", formAction)
}

// Resources returns the directives for what pages consist of, for a policy that is put together elsewhere.
func (p *Pages) Resources() string { return "style-src '" + p.styleHash + "'; img-src data:" }

func (p *Pages) policy(script string, formAction []string) string {
	var targets []string
	for _, t := range formAction {
		if s := formTarget(t); s != "" {
			targets = append(targets, s)
		}
	}
	if len(targets) == 0 {
		targets = []string{"'none'"}
	}
	return "default-src 'none'; " + script + p.Resources() + "; form-action " +
		strings.Join(targets, " ") + "; frame-ancestors 'none'; base-uri 'none'"
}

var (
	schemeSource = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:$`)
	origin       = regexp.MustCompile(`^https?://([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?$`)
)

// formTarget returns the source expression for one form target, empty if it is not one.
func formTarget(s string) string {
	if s == "'self'" {
		return s
	}
	if schemeSource.MatchString(s) {
		switch s {
		case "javascript:", "data:", "blob:", "filesystem:", "about:", "http:", "https:":
			return ""
		}
		return s
	}
	if !origin.MatchString(s) {
		return ""
	}
	if scheme, _, ok := strings.Cut(s, "//["); ok {
		return scheme // host-source has no form for an IPv6 address
	}
	return s
}

// hashSource returns the CSP hash-source of an inline element's content, without the quotes.
func hashSource(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
