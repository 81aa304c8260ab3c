package envoy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// An aim is a root cause of past holes in authorizers and providers, with what proves that it is none here: rows of the table, as
// family or family/beginning of the name, and tests of other packages, as folder.TestName.
type aim struct {
	cause string
	rows  []string
	tests []string
}

// aims are all that exists to be attacked. What is not there yet has no aim: bearer tokens, the HTTP flavours, other
// stores. A directory is attacked by tests beside the connector, and through pages and gateway in test/directory.
var aims = []aim{
	// Rules for every check.
	{"a path with two readings is refused", []string{"paths/two slashes", "paths/escaped slash", "paths/null byte", "paths/bad UTF-8", "paths/doubly escaped", "raw checks/null byte in the path", "http2/raw non-ASCII"}, []string{"authz/policy.TestParseRequestRefuses"}},
	{"query and fragment take no part, prefixes end at a segment", []string{"paths/query", "paths/fragment", "paths/longer than", "raw checks/query field"}, []string{"authz/policy.TestDecideMatching"}},
	{"one canonical, listed host", []string{"hosts/unlisted", "hosts/comma", "hosts/user", "hosts/good: ", "hosts/two Host headers", "raw checks/null byte in the host"}, []string{"internal/hosts.TestCanonical"}},
	{"no URL from a header", []string{"hosts/X-Forwarded-Host", "hosts/issuer believes no", "http2/scheme decides nothing"}, []string{"internal/hosts.TestOriginIsBuiltFromTheListOnly"}},
	{"every allow strips identity headers, aliases and Authorization", []string{"headers/", "raw checks/every case of our header", "raw checks/issuer gets no identity headers", "http2/forged header"}, []string{"authz.TestHeaderHygiene"}},
	{"our cookies never reach an app", []string{"cookies/ours are cut", "cookies/those for https are cut too", "raw checks/60,000 cookies"}, []string{"authz.TestSessionCookie"}},
	{"several session cookies count only if one is valid", []string{"cookies/two good ones", "cookies/a good one and", "http2/two users", "raw checks/cookie keys in two cases", "raw checks/raw lines: two cookies"}, []string{"authz.TestUnverifiedAmongSeveral"}},
	{"an invalid bearer is 401, never the cookie", []string{"headers/bearer", "headers/several authorizations", "raw checks/authorization", "raw checks/raw lines: a bearer"}, nil},
	{"a token for an app is taken back by nobody", nil, []string{"test/envoy.TestAppToken", "provider.TestAppTokenIsNotTakenBack", "provider.TestTypesOfTokens", "authz.TestTokenIsNoBearer", "authz.TestTokenHeader"}},
	{"an anonymous request stores nothing", []string{"flood/"}, []string{"provider.TestNothingIsStoredBeforeAPasswordIsAccepted"}},
	{"a denial is 403, and programs get no redirect", []string{"clients/"}, []string{"authz.TestAnswers"}},
	{"loops end and are explained", []string{"hand-off/loop is explained", "hand-off/browser without cookies"}, []string{"authz.TestLoops", "authz.TestSkewedClocks"}},
	{"proxy headers are believed from configured places only", []string{"headers/X-Forwarded-For", "headers/X-Forwarded-For hides nobody", "admin/list and revoke", "headers/X-Real-IP", "headers/X-Envoy-Internal", "headers/what is between Envoys", "headers/X-Envoy-Peer-Metadata", "headers/Traceparent"}, []string{"provider.TestClientAddressIsTheLastUntrustedHopOfAllLines"}},
	{"a panic, a store that is down and a bad file refuse", nil, []string{"authz.TestPanics", "authz.TestSessionFailures", "authz/session.TestStoreDown", "test/envoy.TestFaults", "test/envoy.TestRefusesToStart"}},
	{"admin and telemetry are reached by operators only", []string{"admin/", "paths/issuer, admin paths", "raw checks/gRPC port"}, []string{"internal/admin.TestGuard"}},
	{"the gateway's own client is of no use from outside", []string{"provider/refused: "}, []string{"provider.TestInternalClientCannotBeUsedFromOutside"}},
	// Redirects.
	{"after a sign-in nobody is led elsewhere", []string{"redirects/rd ", "redirects/return to", "redirects/two targets"}, []string{"authz.TestReturnTargets"}},
	{"nor after a sign-out", []string{"redirects/sign-out does not lead", "redirects/next at sign-out", "redirects/post-logout: ", "redirects/post_logout_redirect_uri: ", "provider/post-logout"}, []string{"authz.TestSignOutGoesOn"}},
	// Path, query and method.
	{"no rule is passed by a spelling", []string{"paths/dot segments", "paths/parameter", "paths/escaped letters", "paths/the first rule", "raw checks/path without a slash"}, []string{"authz/policy.TestDecideIsFirstMatch"}},
	{"no method is a way round", []string{"methods/OPTIONS", "methods/HEAD", "methods/TRACE", "methods/PROPFIND", "methods/preflight", "methods/override", "methods/PUT /dex/token"}, nil},
	{"health checkers are nobody special", []string{"methods/health checkers", "methods/nor "}, nil},
	{"gRPC paths without a slash", []string{"raw checks/gRPC port, paths", "http2/malformed"}, nil},
	// Header trust.
	{"duplicates, hop-by-hop, odd bytes and sizes", []string{"headers/twice", "headers/hop by hop", "headers/not UTF-8", "headers/9 kB", "headers/trailing blanks", "headers/trailers that are ours", "raw checks/hop by hop", "raw checks/our header with a null byte"}, []string{"authz.TestConnectionHeader", "authz.TestRawHeaders"}},
	{"an identity cannot break out of a header", []string{"identity/name, groups and percent signs"}, []string{"authz.TestHeaderValues", "authz.TestIdentityOfBadUTF8"}},
	{"a message is read as its specification says", []string{"raw checks/wire: "}, nil},
	// Session, cookie, CSRF.
	{"a session id is new at a sign-in", []string{"hand-off/planted session cookies", "hand-off/another user in the same browser"}, []string{"provider.TestSessionIDIsNewUnlessTheSameUserProvesALiveOne"}},
	{"garbage, huge and many cookies", []string{"cookies/garbage", "cookies/empty", "cookies/64 kB", "cookies/200 ", "cookies/damaged", "raw checks/cookie of 900 kB"}, []string{"internal/seal.TestEveryBitCounts"}},
	{"a cookie is of one host and one purpose", []string{"cookies/another host's", "cookies/the issuer's own", "hand-off/on another host", "hand-off/a cookie in its place"}, []string{"internal/seal.TestOpensOnlyWhatItWasSealedFor"}},
	{"a neighbour's cookies sign nobody in", []string{"hand-off/planted in a browser"}, []string{"provider.TestPlantedSessionIsNobodys"}},
	{"login and logout CSRF", []string{"hand-off/form of another site", "hand-off/form without its page", "sign-out/from another site", "session/forged logout"}, []string{"provider.TestForgedLogout"}},
	{"the account page is its user's, and ends no session of another", []string{"methods/PUT /dex/account"}, []string{"provider.TestAccountFormIsRefused", "provider.TestAccountFormIsRefusedElsewhere", "provider.TestAccountFormOfAnEarlierSessionIsRefused", "provider.TestAccountPageAsksForTheSecondFactor", "test/browser.TestAccountPage"}},
	{"an ended session is over everywhere", []string{"sign-out/everywhere", "hand-off/after a sign-out", "admin/list and revoke", "JOSE/JSON serialization, of a session"}, []string{"provider.TestTokensEndWithTheSession", "authz/session.TestChanges"}},
	// Identity matching.
	{"nobody is taken for another", []string{"identity/spellings", "identity/groups that are almost", "identity/e-mail address of a rule", "identity/connector and id"}, []string{"authz/policy.TestDecideWho", "authz/policy.TestWarnings"}},
	{"guesses count together", []string{"identity/guesses count together"}, []string{"provider/identity.TestSpellingsOfOneUserCountTogether"}},
	{"empty, long and almost right passwords", []string{"hand-off/wrong password", "identity/almost the right password"}, []string{"provider.TestHugeUserNameIsClippedEverywhere", "provider.TestWrongPasswordSaysTheSameForEveryone"}},
	// Provider.
	{"consent is not stolen", []string{"provider/consent is not for another browser", "provider/consent to two requests"}, []string{"provider.TestConsentIsAskedForOutsideClients", "provider.TestSecondFactorOfAnotherUserDoesNotCount"}},
	{"a code is of one client, one place and one use", []string{"provider/code replayed", "provider/a replayed code ends", "provider/one code, many at once", "provider/code, PKCE: redirect_uri", "provider/grant: "}, []string{"provider.TestReplayedCodeEndsItsFamilyAlone", "provider.TestCodeInOtherHandsEndsNothing"}},
	{"redirect URIs are exact", []string{"redirects/redirect_uri"}, []string{"provider.TestRedirectURIsAreExact"}},
	{"PKCE is not downgraded", []string{"provider/code, PKCE: ", "provider/PKCE method"}, nil},
	{"refresh tokens rotate", []string{"provider/one refresh token", "provider/an old refresh token", "provider/refresh widens"}, []string{"provider.TestRefreshThreeTimes"}},
	{"closed grants and device endpoints", []string{"provider/grant: token exchange", "provider/grant: device", "methods/GET /dex/device is closed"}, nil},
	{"nothing is fetched for a client", []string{"provider/request objects", "JOSE/another key behind jku", "JOSE/kid that is a URL"}, nil},
	{"a token is checked for issuer, audience and time", nil, []string{"provider.TestVerifyRefuses"}},
	// LDAP.
	{"an empty password reaches no directory", nil, []string{"connectors/ldap.TestPasswordsNotSent", "connectors/ldap.TestBind"}},
	{"no name, id or group breaks out of a filter or a DN", nil, []string{"connectors/ldap.TestFindEscapes", "connectors/ldap.TestBadFilter", "connectors/ldap.TestFoldDN", "connectors/ldap.TestGUID"}},
	{"a name that fits two entries is nobody's", nil, []string{"connectors/ldap.TestFindAmbiguous", "connectors/ldap.TestLookupTwice"}},
	{"null bytes and huge passwords", nil, []string{"connectors/ldap.TestPasswordsNotSent"}},
	{"a referral leads to no stranger", nil, []string{"connectors/ldap.TestReferralToAttacker", "connectors/ldap.TestReferralDepth"}},
	{"TLS is not stripped", nil, []string{"connectors/ldap.TestTLS", "connectors/ldap.TestStartTLSInjected"}},
	{"rings and floods of groups end", nil, []string{"connectors/ldap.TestGroupRing", "connectors/ldap.TestSlapdLoop", "connectors/ldap.TestRangesHostile", "connectors/ldap.TestReadMessage"}},
	{"guesses here lock no account there", nil, []string{"provider/identity.TestLimitStaysBelowTheLockOut", "provider/identity.TestFailuresCountAsLongAsAtTheDirectory", "provider/identity.TestSpellingsOfAnAccountCountTogether", "connectors/ldap.TestDiesInBind", "test/directory.TestActiveDirectory"}},
	{"nobody learns who is there", nil, []string{"connectors/ldap.TestNobody", "provider/identity.TestFailuresTakeEquallyLong", "provider.TestWhatIsNotTold", "test/directory.TestOpenLDAP"}},
	{"a password is changed by its owner only", nil, []string{"connectors/ldap.TestChangeNotProven", "provider.TestChangeFormIsRefused", "provider.TestGuessesAtTheChangeFormCount"}},
	{"what a directory says breaks out of nothing", nil, []string{"connectors/ldap.TestSound", "connectors/ldap.TestIdentityOfBadValues"}},
	{"a directory that hangs, floods or dies", nil, []string{"connectors/ldap.TestHangs", "connectors/ldap.TestResultCodes", "provider/identity.TestDirectoryThatHangsHurtsNobodyElse", "test/directory.TestAHostDiesInTheMiddleOfASignIn"}},
	{"claims and groups are those of now, and who is gone is out", nil, []string{"provider/identity.TestWhenAUserIsAskedAbout", "provider/identity.TestEndedWhileTheStoreIsDown", "provider.TestLiveUsersAtOpenLDAP", "provider.TestLiveUsersAtActiveDirectory", "test/directory.TestWithoutWatching"}},
	{"a ticket is of one realm, one service and one use", nil, []string{"connectors/spnego.TestTicketIsRefused", "connectors/spnego.TestTokenIsAcceptedOnce", "connectors/spnego.TestOldEncryptionIsRefused", "provider.TestTicketOfABlockedUser", "connectors/ldap.TestTicketOutlivesTheAccount"}},
	// SAML as far as there is one.
	{"an answer is of the browser that asked", nil, []string{"provider.TestSAML"}},
	// JOSE.
	{"alg none, key confusion, foreign keys", []string{"JOSE/alg ", "JOSE/HS256", "JOSE/another key", "JOSE/kid ", "JOSE/ES256"}, nil},
	{"truncated, nested, encrypted and huge tokens", []string{"JOSE/half a signature", "JOSE/20,000 dots", "JOSE/encrypted", "JOSE/nested", "JOSE/header nested"}, nil},
	{"another client's token is no bearer", []string{"JOSE/a good token is good at the issuer, and for no app"}, nil},
	// XSS.
	{"no page runs what it shows", []string{"XSS/", "clients/script injection", "raw checks/request id that is a page"}, []string{"provider.TestSignInPageIsLockedDown", "web.TestHostileTextStaysText", "web.TestDevice"}},
}

// TestAims checks that what aims name is there.
func TestAims(t *testing.T) {
	var names []string
	for _, r := range rows() {
		names = append(names, r.family+"/"+r.name)
	}
	for _, a := range aims {
		if len(a.rows)+len(a.tests) == 0 {
			t.Errorf("%s: nothing proves it", a.cause)
		}
		for _, want := range a.rows {
			if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, want) }) {
				t.Errorf("%s: no row begins with %q", a.cause, want)
			}
		}
		for _, want := range a.tests {
			if !hasTest(t, want) {
				t.Errorf("%s: there is no test %s", a.cause, want)
			}
		}
	}
}

// hasTest looks for folder.TestName.
func hasTest(t *testing.T, name string) bool {
	t.Helper()
	folder, test, _ := strings.Cut(name, ".")
	files, err := filepath.Glob(filepath.Join(peers.Root(t), filepath.FromSlash(folder), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(`(?m)^func ` + test + `\(`)
	return slices.ContainsFunc(files, func(file string) bool {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return re.Match(b)
	})
}
