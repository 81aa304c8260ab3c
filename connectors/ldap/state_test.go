package ldap

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gatehouse/connectors"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// texts makes an entry of pairs of names and values.
func texts(pairs ...string) *entry {
	e := &entry{dn: "cn=a,dc=example", attributes: map[string][][]byte{}}
	for i := 0; i < len(pairs); i += 2 {
		e.attributes[strings.ToLower(pairs[i])] = [][]byte{[]byte(pairs[i+1])}
	}
	return e
}

func TestStateOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	filetime := func(t time.Time) string { return fmt.Sprint((t.Unix() + 11644473600) * 1e7) }
	day := now.Unix() / 86400
	for _, tt := range []struct {
		name string
		e    *entry
		want connectors.Reason
	}{
		{"nothing", texts(), ""},
		{"AD, in order", texts("userAccountControl", "512", "msDS-User-Account-Control-Computed", "0", "accountExpires", "9223372036854775807", "pwdLastSet", "133000000000000000"), ""},
		{"AD, never expires", texts("accountExpires", "0"), ""},
		{"AD, disabled", texts("userAccountControl", "514"), connectors.AccountDisabled},
		{"AD, disabled and locked", texts("userAccountControl", "514", "msDS-User-Account-Control-Computed", "16"), connectors.AccountDisabled},
		{"AD, expires now", texts("accountExpires", filetime(now)), connectors.AccountExpired},
		{"AD, expires in a second", texts("accountExpires", filetime(now.Add(time.Second))), ""},
		{"AD, locked", texts("userAccountControl", "512", "msDS-User-Account-Control-Computed", "16"), connectors.AccountLocked},
		{"AD, the locked bit of what is not computed means nothing", texts("userAccountControl", "528"), ""},
		{"AD, password expired", texts("msDS-User-Account-Control-Computed", "8388608", "pwdLastSet", "133000000000000000"), connectors.PasswordExpired},
		{"AD, must change", texts("msDS-User-Account-Control-Computed", "8388608", "pwdLastSet", "0"), connectors.PasswordMustChange},
		{"AD, must change, not computed", texts("pwdLastSet", "0"), connectors.PasswordMustChange},
		{"AD, password never expires", texts("userAccountControl", "66048", "pwdLastSet", "0"), ""},
		{"OpenLDAP, locked by an administrator", texts("pwdAccountLockedTime", "000001010000Z"), connectors.AccountDisabled},
		{"OpenLDAP, locked", texts("pwdAccountLockedTime", "20261125115000Z"), connectors.AccountLocked},
		{"OpenLDAP, was locked", texts("pwdAccountLockedTime", "20261125114459Z"), ""},
		{"OpenLDAP, locked with fractions", texts("pwdAccountLockedTime", "20261125115000.123456Z"), connectors.AccountLocked},
		{"OpenLDAP, reset", texts("pwdReset", "TRUE"), connectors.PasswordMustChange},
		{"OpenLDAP, not reset", texts("pwdReset", "FALSE"), ""},
		{"FreeIPA, disabled", texts("nsAccountLock", "TRUE"), connectors.AccountDisabled},
		{"FreeIPA, in order", texts("nsAccountLock", "FALSE", "krbPrincipalExpiration", "20270101000000Z"), ""},
		{"FreeIPA, expired", texts("krbPrincipalExpiration", "20261125120000Z"), connectors.AccountExpired},
		{"a time that cannot be read", texts("krbPrincipalExpiration", "never"), connectors.AccountExpired},
		{"shadow, never", texts("shadowExpire", "-1"), ""},
		{"shadow, today", texts("shadowExpire", fmt.Sprint(day)), connectors.AccountExpired},
		{"shadow, tomorrow", texts("shadowExpire", fmt.Sprint(day+1)), ""},
	} {
		if got := stateOf(tt.e, now, 15*time.Minute); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := stateOf(texts("pwdAccountLockedTime", "20200101000000Z"), now, 0); got != connectors.AccountLocked {
		t.Errorf("got %q for an account that only somebody unlocks, want %q", got, connectors.AccountLocked)
	}
}

// Only states of an account end its sessions.
func TestEnds(t *testing.T) {
	t.Parallel()
	end, keep := &settings{config: config{LockedSessions: "end"}}, &settings{config: config{LockedSessions: "keep"}}
	for r, want := range map[connectors.Reason][2]bool{
		connectors.AccountDisabled: {true, true}, connectors.AccountExpired: {true, true}, connectors.AccountLocked: {true, false},
		connectors.PasswordExpired: {false, false}, connectors.PasswordMustChange: {false, false}, "": {false, false},
	} {
		if got := [2]bool{end.ends(r), keep.ends(r)}; got != want {
			t.Errorf("%q: got %v, want %v", r, got, want)
		}
	}
}

func adSays(code string) string {
	return "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data " + code + ", v1db1"
}

func TestReasonOf(t *testing.T) {
	t.Parallel()
	policy := func(e int8, grace int64) *ldapv3.ControlBeheraPasswordPolicy {
		return &ldapv3.ControlBeheraPasswordPolicy{Error: e, Grace: grace, Expire: -1}
	}
	for _, tt := range []struct {
		name   string
		v      verdict
		want   connectors.Reason
		graced bool
	}{
		{"right", verdict{}, "", false},
		{"right, with a policy", verdict{policy: policy(-1, -1)}, "", false},
		{"right, expires soon", verdict{policy: &ldapv3.ControlBeheraPasswordPolicy{Error: -1, Grace: -1, Expire: 10}}, "", false},
		{"reset", verdict{policy: policy(2, -1)}, connectors.PasswordMustChange, false},
		{"grace", verdict{policy: policy(-1, 2)}, "", true},
		{"the last grace", verdict{policy: policy(-1, 0)}, "", true},
		{"wrong", verdict{code: 49}, connectors.WrongCredentials, false},
		{"wrong, with a policy", verdict{code: 49, policy: policy(-1, -1)}, connectors.WrongCredentials, false},
		{"expired", verdict{code: 49, policy: policy(0, -1)}, connectors.PasswordExpired, false},
		{"locked", verdict{code: 49, policy: policy(1, -1)}, connectors.AccountLocked, false},
		{"a policy's error that is none of a bind", verdict{code: 49, policy: policy(5, -1)}, connectors.WrongCredentials, false},
		{"525", verdict{code: 49, diagnostic: adSays("525")}, connectors.WrongCredentials, false},
		{"52e", verdict{code: 49, diagnostic: adSays("52e")}, connectors.WrongCredentials, false},
		{"52E", verdict{code: 49, diagnostic: adSays("52E")}, connectors.WrongCredentials, false},
		{"530", verdict{code: 49, diagnostic: adSays("530")}, connectors.OutsideHours, false},
		{"531", verdict{code: 49, diagnostic: adSays("531")}, connectors.OtherWorkstation, false},
		{"532", verdict{code: 49, diagnostic: adSays("532")}, connectors.PasswordExpired, false},
		{"533", verdict{code: 49, diagnostic: adSays("533")}, connectors.AccountDisabled, false},
		{"701", verdict{code: 49, diagnostic: adSays("701")}, connectors.AccountExpired, false},
		{"773", verdict{code: 49, diagnostic: adSays("773")}, connectors.PasswordMustChange, false},
		{"775", verdict{code: 49, diagnostic: adSays("775")}, connectors.AccountLocked, false},
		{"a code that is not known", verdict{code: 49, diagnostic: adSays("999")}, connectors.WrongCredentials, false},
		{"a number in another text", verdict{code: 49, diagnostic: "data 533, v1db1"}, connectors.WrongCredentials, false},
		{"a code of another result", verdict{code: 53, diagnostic: adSays("773")}, connectors.WrongCredentials, false},
		{"too many failures at 389 Directory Server", verdict{code: 19}, connectors.AccountLocked, false},
		{"no password in the entry", verdict{code: 48}, connectors.WrongCredentials, false},
		{"inactivated, whatever the password", verdict{code: 53}, connectors.WrongCredentials, false},
		{"may not bind", verdict{code: 50}, connectors.WrongCredentials, false},
		{"has just gone", verdict{code: 32}, connectors.WrongCredentials, false},
		{"needs TLS", verdict{code: 13}, connectors.Unavailable, false},
		{"needs more", verdict{code: 8}, connectors.Unavailable, false},
		{"busy", verdict{code: 51}, connectors.Unavailable, false},
		{"refers", verdict{code: 10}, connectors.Unavailable, false},
		{"in progress", verdict{code: 14}, connectors.Unavailable, false},
	} {
		if got, graced := reasonOf(tt.v); got != tt.want || graced != tt.graced {
			t.Errorf("%s: got %q and %v, want %q and %v", tt.name, got, graced, tt.want, tt.graced)
		}
	}
	for code := range uint16(256) {
		if r, _ := reasonOf(verdict{code: code}); (r == "") != (code == 0) {
			t.Errorf("result %d: got %q", code, r)
		}
	}
}

// What the directory says of a new password, for its user to read.
func TestRuleOf(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Password fails quality checking policy":                                                     "Password fails quality checking policy",
		"0000052D: SvcErr: DSID-031A1236, problem 5003 (WILL_NOT_PERFORM), data 0":                   "",
		"0000052D: Constraint violation - check_password_restrictions: the password is too\n short!": "the password is too short!",
		"a\x00b\u202e" + strings.Repeat("c", 200):                                                    "a b " + strings.Repeat("c", 156),
	} {
		if got := ruleOf(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestPasswordSet(t *testing.T) {
	t.Parallel()
	both := texts("pwdLastSet", "133000000000000000")
	both.attributes["pwdlastset"] = append(both.attributes["pwdlastset"], []byte("133000000000000001"))
	for _, tt := range []struct {
		name   string
		preset string
		e      *entry
		want   connectors.PasswordSet
	}{
		{"AD", presetAD, texts("pwdLastSet", "133000000000000000"), 1655526400000000},
		{"AD without a preset", "", texts("pwdLastSet", "133000000000000000"), 1655526400000000},
		{"AD, must change", presetAD, texts("pwdLastSet", "0"), connectors.PasswordReset},
		{"AD, not readable", presetAD, texts(), connectors.PasswordUnknown},
		{"AD, whatever else is there", presetAD, texts("pwdChangedTime", "20261125115000Z"), connectors.PasswordUnknown},
		{"AD, as AD is told to set now", presetAD, texts("pwdLastSet", "-1"), connectors.PasswordUnknown},
		{"AD, no number", presetAD, texts("pwdLastSet", "yesterday"), connectors.PasswordUnknown},
		{"AD, empty", presetAD, texts("pwdLastSet", ""), connectors.PasswordUnknown},
		{"AD, too large", presetAD, texts("pwdLastSet", "9223372036854775808"), connectors.PasswordUnknown},
		{"AD, never", presetAD, texts("pwdLastSet", "9223372036854775807"), connectors.PasswordUnknown},
		{"AD, in a day", presetAD, texts("pwdLastSet", "134402538000000000"), 1795780200000000},
		{"AD, of a clock that is wrong", presetAD, texts("pwdLastSet", "134402538000000010"), connectors.PasswordUnknown},
		{"AD, before 1970", presetAD, texts("pwdLastSet", "116444736000000010"), connectors.PasswordUnknown},
		{"AD, at the time of another directory's", presetAD, texts("pwdLastSet", "134400810000000000"), 1795607400000000},
		{"AD, after every other time", presetAD, texts("pwdLastSet", "2650467744000000000"), connectors.PasswordUnknown},
		{"AD, what is no time here", presetAD, texts("pwdLastSet", "1"), connectors.PasswordUnknown},
		{"AD, two of them", presetAD, both, connectors.PasswordUnknown},
		{"OpenLDAP", presetOpenLDAP, texts("pwdChangedTime", "20261125115000Z"), 1795607400000000},
		{"OpenLDAP, a microsecond later", presetOpenLDAP, texts("pwdChangedTime", "20261125115000.000001Z"), 1795607400000001},
		{"OpenLDAP, of a clock that is wrong", presetOpenLDAP, texts("pwdChangedTime", "20261127115001Z"), connectors.PasswordUnknown},
		{"OpenLDAP, never", presetOpenLDAP, texts("uid", "a"), connectors.PasswordNeverSet},
		{"OpenLDAP, no time", presetOpenLDAP, texts("pwdChangedTime", "now"), connectors.PasswordUnknown},
		{"OpenLDAP, before 1970", presetOpenLDAP, texts("pwdChangedTime", "19691231235959Z"), connectors.PasswordUnknown},
		{"FreeIPA", presetFreeIPA, texts("krbLastPwdChange", "20261125115000Z"), 1795607400000000},
		{"the later of two", "", texts("krbLastPwdChange", "20261125115000Z", "pwdChangedTime", "20261125115001Z"), 1795607401000000},
		{"and the other way round", "", texts("krbLastPwdChange", "20261125115001Z", "pwdChangedTime", "20261125115000Z"), 1795607401000000},
		{"one of two cannot be read", "", texts("krbLastPwdChange", "20261125115001Z", "pwdChangedTime", "\xff"), connectors.PasswordUnknown},
	} {
		c := &Connector{settings: &settings{config: config{Preset: tt.preset}}, now: func() time.Time { return time.Date(2026, 11, 26, 11, 50, 0, 0, time.UTC) }}
		if got := c.passwordSet(tt.e); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}
