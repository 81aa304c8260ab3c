package ldap

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gatehouse/connectors"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// stateAttributes are what directories say of an account besides who it is. Those that a directory does not know it leaves out.
func stateAttributes() []string {
	return []string{
		"userAccountControl", "msDS-User-Account-Control-Computed", "accountExpires", "pwdLastSet", // Active Directory
		"pwdAccountLockedTime", "pwdReset", "pwdPolicySubentry", "pwdChangedTime", // OpenLDAP's ppolicy
		"nsAccountLock", "krbPrincipalExpiration", "krbLastPwdChange", // FreeIPA, 389 Directory Server
		"shadowExpire", // RFC 2307
	}
}

// Bits of Active Directory's userAccountControl and of its computed form (MS-ADTS section 2.2.16).
const (
	uacDisabled        = 0x2
	uacLocked          = 0x10
	uacNeverExpires    = 0x10000
	uacPasswordExpired = 0x800000
)

// stateOf returns what keeps the user of an entry out as far as the directory tells it without a password, "" if nothing does. lockedFor is how
// long a policy of OpenLDAP locks an account, 0 until somebody unlocks it.
func stateOf(e *entry, now time.Time, lockedFor time.Duration) connectors.Reason {
	uac, computed := number(e, "userAccountControl"), number(e, "msDS-User-Account-Control-Computed")
	lockedAt := e.text("pwdAccountLockedTime")
	switch {
	case uac&uacDisabled != 0, lockedAt == "000001010000Z": // an administrator has locked it (draft-behera-ldap-password-policy section 5.3.3)
		return connectors.AccountDisabled
	case strings.EqualFold(e.text("nsAccountLock"), "TRUE"):
		return connectors.AccountDisabled
	case filetimePassed(number(e, "accountExpires"), now), generalizedPassed(e.text("krbPrincipalExpiration"), now), shadowPassed(e, now):
		return connectors.AccountExpired
	case computed&uacLocked != 0, lockedAt != "" && (lockedFor == 0 || !generalizedPassed(lockedAt, now.Add(-lockedFor))):
		return connectors.AccountLocked
	case computed&uacPasswordExpired != 0 && e.text("pwdLastSet") != "0":
		return connectors.PasswordExpired
	case e.text("pwdLastSet") == "0" && uac&uacNeverExpires == 0, strings.EqualFold(e.text("pwdReset"), "TRUE"):
		return connectors.PasswordMustChange
	}
	return ""
}

// passwordSet is when the password of an entry was set. Directories write that down whoever sets it, and nobody can set it back but with the password.
// Values that cannot be read are not known, nor are those of a clock that is wrong: every change after such a one would seem to be from before it.
func (c *Connector) passwordSet(e *entry) (latest connectors.PasswordSet) {
	if values := e.texts("pwdLastSet"); len(values) > 0 || c.isActiveDirectory() { // every account has one: else the service account may not read it
		latest = filetimeSet(values)
	} else {
		latest = generalizedSet(e)
	}
	if int64(latest) > c.now().Add(24*time.Hour).UnixMicro() {
		return connectors.PasswordUnknown
	}
	return latest
}

func generalizedSet(e *entry) connectors.PasswordSet {
	latest := connectors.PasswordNeverSet
	for _, attribute := range []string{"pwdChangedTime", "krbLastPwdChange"} {
		set, known := timeSet(e.texts(attribute))
		if !known {
			return connectors.PasswordUnknown
		}
		latest = max(latest, set)
	}
	return latest
}

// filetimeOf1970 is 1970 in units of 100 ns since 1601.
const filetimeOf1970 = 116444736000000000

// filetimeSet reads pwdLastSet, units of 100 ns since 1601, as timeSet does its times: a connector may come to mean another directory. 0 is for a password
// that must be changed.
func filetimeSet(values []string) connectors.PasswordSet {
	if len(values) != 1 {
		return connectors.PasswordUnknown
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	if err == nil && n == 0 {
		return connectors.PasswordReset
	}
	micro := (n - filetimeOf1970) / 10
	if err != nil || n < 0 || micro <= int64(connectors.PasswordNeverSet) {
		return connectors.PasswordUnknown
	}
	return connectors.PasswordSet(micro)
}

// timeSet reads a GeneralizedTime as microseconds since 1970; 0 for none. known is false for what cannot be read.
func timeSet(values []string) (set connectors.PasswordSet, known bool) {
	if len(values) == 0 {
		return 0, true
	}
	t, ok := generalized(values[0])
	if len(values) > 1 || !ok || t.UnixMicro() <= int64(connectors.PasswordNeverSet) {
		return 0, false
	}
	return connectors.PasswordSet(t.UnixMicro()), true
}

// ends says that a state of an account ends its user's sessions: those of the account do, those of the password only keep the user from signing in.
func (s *settings) ends(r connectors.Reason) bool {
	switch r {
	case connectors.AccountDisabled, connectors.AccountExpired:
		return true
	case connectors.AccountLocked:
		return s.LockedSessions != "keep"
	default:
		return false
	}
}

func number(e *entry, attribute string) int64 {
	n, err := strconv.ParseInt(e.text(attribute), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// filetimePassed reads a time in units of 100 ns since 1601; 0 and the largest number are never (MS-ADTS section 2.2.1).
func filetimePassed(t int64, now time.Time) bool {
	const epoch = 11644473600 // 1970, in seconds since 1601
	if t <= 0 || t == 1<<63-1 {
		return false
	}
	return !time.Unix(t/1e7-epoch, t%1e7*100).After(now)
}

// generalizedPassed reads a GeneralizedTime (RFC 4517 section 3.3.13). One that cannot be read has passed.
func generalizedPassed(s string, now time.Time) bool {
	if s == "" {
		return false
	}
	t, ok := generalized(s)
	return !ok || !t.After(now)
}

func generalized(s string) (time.Time, bool) {
	for _, layout := range []string{"20060102150405Z0700", "20060102150405.999999999Z0700", "200601021504Z0700"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// shadowPassed reads a day since 1970; a negative one is never (shadow(5)).
func shadowPassed(e *entry, now time.Time) bool {
	s := e.text("shadowExpire")
	day, err := strconv.ParseInt(s, 10, 32)
	return s != "" && err == nil && day >= 0 && !time.Unix(day*86400, 0).After(now)
}

// adCode finds the code in what Active Directory says of a bind that it refuses: "… AcceptSecurityContext error, data 533, v1db1".
var adCode = regexp.MustCompile(`AcceptSecurityContext error, data ([0-9a-fA-F]{1,8}),`) // never assigned to

// adReasons are the codes that are told only after the right password, but for 525, 52e and 775 (Windows system error codes).
func adReason(code string) (connectors.Reason, bool) {
	switch strings.ToLower(code) {
	case "525", "52e": // no such user, wrong password
		return connectors.WrongCredentials, true
	case "530":
		return connectors.OutsideHours, true
	case "531":
		return connectors.OtherWorkstation, true
	case "532":
		return connectors.PasswordExpired, true
	case "533":
		return connectors.AccountDisabled, true
	case "701":
		return connectors.AccountExpired, true
	case "773":
		return connectors.PasswordMustChange, true
	case "775":
		return connectors.AccountLocked, true
	}
	return "", false
}

// Errors of the password policy control (draft-behera-ldap-password-policy section 6.2).
const (
	policyExpired          = 0
	policyLocked           = 1
	policyChangeAfterReset = 2
)

// reasonOf returns why a bind was refused, "" if it was not. graced says that the password has expired and the directory took it nevertheless.
func reasonOf(v verdict) (r connectors.Reason, graced bool) {
	policy := ldapv3.ControlBeheraPasswordPolicy{Error: -1, Grace: -1}
	if v.policy != nil {
		policy = *v.policy
	}
	switch v.code {
	case ldapv3.LDAPResultSuccess:
		if policy.Error == policyChangeAfterReset {
			return connectors.PasswordMustChange, false
		}
		return "", policy.Grace >= 0
	case ldapv3.LDAPResultInvalidCredentials:
		if m := adCode.FindStringSubmatch(v.diagnostic); m != nil {
			if r, ok := adReason(m[1]); ok {
				return r, false
			}
		}
		switch policy.Error {
		case policyExpired:
			return connectors.PasswordExpired, false
		case policyLocked:
			return connectors.AccountLocked, false
		}
		return connectors.WrongCredentials, false
	case ldapv3.LDAPResultConstraintViolation: // 389 Directory Server after too many failures
		return connectors.AccountLocked, false
	case ldapv3.LDAPResultInsufficientAccessRights, ldapv3.LDAPResultInappropriateAuthentication, ldapv3.LDAPResultNoSuchObject,
		ldapv3.LDAPResultUnwillingToPerform: // 53: 389 Directory Server of an inactivated account, before it looks at the password
		return connectors.WrongCredentials, false
	}
	return connectors.Unavailable, false
}

// cause is what a directory said of a bind, for the log.
func (v verdict) cause() error {
	text := v.diagnostic
	if text == "" {
		text = ldapv3.LDAPResultCodeMap[v.code]
	}
	return fmt.Errorf("ldap: bind: result %d: %s", v.code, printable(text, 256))
}

// printable makes a text of a directory fit for a log or a page: one line, at most limit bytes.
func printable(s string, limit int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r == ' ' || unprintable(r) }), " ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

func refuse(r connectors.Reason, err error) *connectors.Refusal {
	return &connectors.Refusal{Reason: r, Err: err}
}

// notKnown says that the directory could not be asked.
func notKnown(err error) *connectors.Refusal {
	if r, ok := errors.AsType[*connectors.Refusal](err); ok {
		return r
	}
	return refuse(connectors.Unavailable, err)
}
