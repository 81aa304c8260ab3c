package identity

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"gatehouse/connectors"

	"github.com/dexidp/dex/connector"
)

// What a failed question says something about.
type subject uint8

const (
	aboutNobody subject = iota // it is not known: nobody is signed out for it
	aboutGrant                 // what was asked with is no good any more; another sign-in's may be
	aboutUser                  // the user may not go on, whatever is asked with
)

// refusals are the error codes of a token endpoint by which it refuses a grant or its user (RFC 6749 section 5.2; OpenID Connect Core 1.0 section
// 3.1.2.6, which some give there too; GitHub's own). All others, such as invalid_client, are about us, or may be: access_denied is what firewalls
// say. Never assigned to.
var refusals = []string{
	"invalid_grant", "interaction_required", "login_required", "consent_required", "account_selection_required", "bad_refresh_token",
}

// Stock connectors make text of most errors. These are theirs, as they begin or end. Never assigned to.
var (
	// tokenError is oauth2.RetrieveError with a code. Nothing of an answer's body comes before it.
	tokenError = regexp.MustCompile(`\boauth2: ("[^"]*"|cannot fetch token)`)
	// unauthorized is the answer of an API that does not know the token any more (RFC 6750 section 3.1).
	unauthorized = regexp.MustCompile(`^[a-z]+: get (user|profile): 401 `)
	unknownUser  = regexp.MustCompile(`^(keystone: user ".*" does not exist$|crowd: get user ".*": 404 )`)
	notInGroup   = regexp.MustCompile(`^(user not a member of allowed groups|[a-z]+: user ".*" is not in any of the required (groups|teams)|oidc: unexpected hd claim .*|github: user ".*" not in required orgs or teams)$`)
)

// judge says what an error of a connector's Refresh is about, and why the user may not go on where it says so.
func judge(err error) (connectors.Reason, subject) {
	var token *oauth2.RetrieveError
	var groups *connector.UserNotInRequiredGroupsError
	text := err.Error()
	switch {
	case errors.Is(err, errOtherUser):
		return connectors.UpstreamRefused, aboutGrant
	case errors.As(err, &groups), notInGroup.MatchString(text):
		return connectors.NotAllowed, aboutUser
	case unknownUser.MatchString(text):
		return connectors.Gone, aboutUser
	case unauthorized.MatchString(text):
		return connectors.UpstreamRefused, aboutGrant
	case errors.As(err, &token):
		return judgeCode(token.ErrorCode)
	case strings.Contains(text, "oauth2: token expired and refresh token is not set"), strings.HasSuffix(text, "no upstream access token found"),
		text == "no refresh or access token found":
		return "", aboutGrant
	}
	if m := tokenError.FindStringSubmatch(text); m != nil {
		return judgeCode(strings.Trim(m[1], `"`))
	}
	return "", aboutNobody
}

func judgeCode(code string) (connectors.Reason, subject) {
	if slices.Contains(refusals, code) {
		return connectors.UpstreamRefused, aboutGrant
	}
	return "", aboutNobody
}
