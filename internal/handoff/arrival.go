package handoff

import "html"

// Arrival is an answer that goes on to a target by itself, in place of a redirect. A browser sends a SameSite=Strict
// cookie only with a navigation that began on the same site, and redirects count from where they began: a link in a
// mail, say. The page begins a new one.
type Arrival struct {
	Refresh string // value of the header of that name
	Policy  string // Content-Security-Policy
	Body    string
}

// NewArrival returns the page for target, a URL that is safe to go to.
func NewArrival(target string) Arrival {
	return Arrival{
		Refresh: "0; url=" + target,
		Policy:  "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		Body: `<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Signed in</title><p><a href="` + html.EscapeString(target) +
			`">You are signed in: go on</a></p></html>`,
	}
}
