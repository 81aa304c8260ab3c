package front

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// AppTokenType is the type of a token that the gateway hands to an app, in its JOSE header (RFC 8725 section 3.11). Nothing here takes
// one back: an app that receives it could replay it.
const AppTokenType = "gatehouse-app+jwt" //nolint:gosec // G101: a type, no credential

// LogoutTokenType is the type of a token that tells a client of the end of a session (OpenID Connect Back-Channel Logout 1.0 section 2.4).
const LogoutTokenType = "logout+jwt" //nolint:gosec // G101: a type, no credential

// void takes the place of a token that Dex is not to see. Dex refuses it in its own words.
const void = "void"

// voidHints makes Dex refuse a hint that is no ID Token: Dex looks at the signature and the issuer alone, and so would take a token for
// an app, or one in another spelling that hides what it is.
func (f *Front) voidHints(form url.Values) {
	for i, hint := range form["id_token_hint"] {
		if hint != "" && f.CheckHint(hint) != nil {
			form["id_token_hint"][i] = void
		}
	}
}

// voidSubjects does so for tokens that are to be exchanged (RFC 8693). They may be of another issuer, and of any form but that one.
func voidSubjects(r *http.Request) {
	for _, form := range []url.Values{r.Form, r.PostForm} {
		for _, key := range []string{"subject_token", "actor_token"} {
			for i, raw := range form[key] {
				if Void(raw) {
					form[key][i] = void
				}
			}
		}
	}
}

// Void reports whether a token is not to be exchanged: one that says it is for an app or tells of a logout, and one in a spelling that could hide this and that
// libraries take, with blanks or in the JSON serialization (RFC 7515 section 7.2). No token of RFC 6750 section 2.1 has such characters.
func Void(raw string) bool {
	return typedFor(raw, AppTokenType, LogoutTokenType) || strings.ContainsFunc(raw, func(c rune) bool { return c <= ' ' || c == '{' || c > '~' })
}

// typedFor reports whether a token says that it is of one of these types, in the compact form.
func typedFor(raw string, types ...string) bool {
	head, _, _ := strings.Cut(raw, ".")
	b, err := base64.RawURLEncoding.DecodeString(head)
	var h struct{ Typ string }
	return err == nil && json.Unmarshal(b, &h) == nil && slices.ContainsFunc(types, func(t string) bool {
		return strings.EqualFold(strings.TrimPrefix(strings.ToLower(h.Typ), "application/"), t)
	})
}
