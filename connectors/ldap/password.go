package ldap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"gatehouse/connectors"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// changeable says that a password in this state can be replaced here.
func (c *Connector) changeable(r connectors.Reason) bool {
	s := c.settings
	if !s.change {
		return false
	}
	switch r {
	case connectors.PasswordMustChange:
		return true
	case connectors.PasswordExpired: // its user cannot do it alone; in Active Directory any account can do it for them
		return s.PasswordChange.BindDN != "" || s.BindDN != "" && c.isActiveDirectory()
	default:
		return false
	}
}

// ChangePassword replaces an account's password; the old one is the proof. Every error is a *connectors.Refusal.
func (c *Connector) ChangePassword(ctx context.Context, a *Account, old, changed string) error {
	if !c.settings.change {
		return refuse(connectors.Unavailable, errors.New("ldap: passwords are not changed here: see passwordChange"))
	}
	f, err := c.known(ctx)
	if err != nil {
		return notKnown(err)
	}
	if a.entry != nil && !a.refused && possible(old) && !f.activeDirectory {
		return c.changeByExtension(ctx, a.entry, old, changed)
	}
	if p, err := c.prove(ctx, a, old); err != nil && !p.right { // of nobody's account always
		return err
	}
	if err := c.unfit(a.entry, old, changed); err != nil {
		return err
	}
	return c.changeAD(ctx, a.entry.dn, old, changed)
}

// unfit says why no password of an account is changed, or not into this one. It is for whoever has proven the old one.
func (c *Connector) unfit(e *entry, old, changed string) error {
	if r := stateOf(e, c.now(), c.lockedFor(e)); r == connectors.AccountDisabled || r == connectors.AccountExpired {
		return refuse(r, stateError(r))
	}
	if !possible(changed) || !utf8.ValidString(changed) {
		return c.rejected("", errors.New("ldap: the new password is empty, too long or no text"))
	}
	if changed == old {
		return c.rejected("", errors.New("ldap: the new password is the old one"))
	}
	return nil
}

// changeAD gives the old and the new password in one request, which the directory takes from any account of its own as it does from the user
// (MS-ADTS section 3.1.1.3.1.5): the service account needs no right to set passwords.
func (c *Connector) changeAD(ctx context.Context, dn, old, changed string) error {
	m := ldapv3.NewModifyRequest(dn, nil)
	m.Delete("unicodePwd", []string{unicodePwd(old)})
	m.Add("unicodePwd", []string{unicodePwd(changed)})
	if err := c.changer.service(ctx, func(conn *ldapv3.Conn) error { return conn.Modify(m) }); err != nil {
		return c.changeError(err)
	}
	return nil
}

// unicodePwd is a password in quotes, in UTF-16 with the lower byte first.
func unicodePwd(password string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(`"` + password + `"`)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return string(b)
}

// changeByExtension changes a password by RFC 3062: as the user where the password still binds, so that the directory holds it to all of its
// rules. Proof and change are one bind: each takes one of the grace logins of a password that has expired.
func (c *Connector) changeByExtension(ctx context.Context, e *entry, old, changed string) error {
	v, err := c.client.asUser(ctx, e.dn, old, func(conn *ldapv3.Conn) error {
		if err := c.unfit(e, old, changed); err != nil {
			return err
		}
		_, err := conn.PasswordModify(ldapv3.NewPasswordModifyRequest("", old, changed))
		return err
	})
	if err != nil {
		return c.changeError(err)
	}
	if v.code == ldapv3.LDAPResultSuccess {
		return nil
	}
	r, _ := reasonOf(v)
	if r != connectors.PasswordExpired && r != connectors.PasswordMustChange {
		return c.refusal(r, v.cause())
	}
	if err := c.unfit(e, old, changed); err != nil {
		return err
	}
	return c.changeExpired(ctx, e.dn, old, changed)
}

// changeExpired changes a password that was right and does not bind any more. It is the caller who has seen to it that the directory said so: the
// account that is used here may set anybody's.
func (c *Connector) changeExpired(ctx context.Context, dn, old, changed string) error {
	err := c.changer.service(ctx, func(conn *ldapv3.Conn) error {
		_, err := conn.PasswordModify(ldapv3.NewPasswordModifyRequest(dn, old, changed))
		return err
	})
	if err != nil {
		return c.changeError(err)
	}
	c.own(ctx, dn, changed)
	return nil
}

// own makes a password that another account has set the user's own: with pwdMustChange it would have to be changed once more.
func (c *Connector) own(ctx context.Context, dn, password string) {
	v, err := c.client.bind(ctx, dn, password)
	if r, _ := reasonOf(v); err != nil || r != connectors.PasswordMustChange {
		return
	}
	m := ldapv3.NewModifyRequest(dn, nil)
	m.Delete("pwdReset", nil)
	if err := c.changer.service(ctx, func(conn *ldapv3.Conn) error { return conn.Modify(m) }); err != nil {
		c.log.WarnContext(ctx, "a new password has to be changed once more, since the account that changes passwords may not delete pwdReset", slog.Any("error", err))
	}
}

func (c *Connector) rejected(detail string, err error) *connectors.Refusal {
	r := refuse(connectors.PasswordRejected, err)
	r.Detail, r.Changeable = detail, true
	return r
}

// changeError says why a directory did not take a new password.
func (c *Connector) changeError(err error) *connectors.Refusal {
	e, ok := errors.AsType[*ldapv3.Error](err)
	if !ok || e.Err == nil {
		return notKnown(err)
	}
	text := e.Err.Error()
	switch {
	case strings.Contains(text, "00000056"), e.ResultCode == ldapv3.LDAPResultInvalidCredentials:
		return refuse(connectors.WrongCredentials, err)
	case strings.Contains(text, "0000052D"), e.ResultCode == ldapv3.LDAPResultConstraintViolation:
		return c.rejected(ruleOf(text), err)
	case e.ResultCode == ldapv3.LDAPResultInsufficientAccessRights,
		e.ResultCode == ldapv3.LDAPResultUnwillingToPerform && strings.Contains(text, "old password"): // OpenLDAP of an account that may not compare it
		return refuse(connectors.Unavailable, fmt.Errorf("%w: give the account the right to set passwords, or name another one in passwordChange.bindDN", err))
	}
	return notKnown(err)
}

// ruleOf is what a directory says of the rule that a new password breaks, for the user to read; "" if it says it in numbers only.
func ruleOf(text string) string {
	if _, rule, ok := strings.Cut(text, "check_password_restrictions: "); ok { // Samba
		return printable(rule, maxDetail)
	}
	if strings.Contains(text, "0000052D") {
		return ""
	}
	return printable(text, maxDetail)
}

// maxDetail is how much of what a directory says is shown, in bytes.
const maxDetail = 160
