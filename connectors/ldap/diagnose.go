package ldap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"gatehouse/connectors"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// A Step is something that Diagnose has tried. Its texts are for people; no password is in them.
type Step struct {
	Name   string
	Detail string // what was found; may be ""
	Took   time.Duration
	Err    error  // nil: it went well
	Fix    string // what to do about it, or, without an error, about what will be a surprise; may be ""
}

// Diagnose tries everything that signing a user in takes, step by step, as far as it gets: the configuration, each server, what is searched for, the user
// (unless ""), and, if password is not "", the user's bind, which counts towards the directory's lock-out like any other. It calls report after each step.
func Diagnose(ctx context.Context, raw []byte, o Options, user, password string, report func(Step)) {
	d := &diagnosis{report: report}
	if !d.step("configuration", func() (string, string, error) {
		s, err := parse(raw)
		if err != nil {
			return "", "mend these keys; gatehouse check-config tells their lines", err
		}
		d.Connector = connectorOf(s, o)
		return d.configured(), "", nil
	}) {
		return
	}
	defer func() { _ = d.Close() }()
	if !d.servers(ctx) {
		return
	}
	d.root(ctx)
	if !d.bases(ctx) {
		return
	}
	if user != "" && d.user(ctx, user) {
		d.groups(ctx)
		d.state(ctx)
		if password != "" {
			d.bind(ctx, password)
		}
	}
	d.lockout(ctx)
	d.watch()
}

// connectorOf is a connector that does nothing by itself.
func connectorOf(s *settings, o Options) *Connector {
	c := &Connector{settings: s, now: o.Now, log: o.Log, attributes: s.userAttributes(), stop: func() {}}
	if c.now == nil {
		c.now = time.Now
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.client = newClient(s.transport(), c.now, c.log)
	c.changer = c.client
	return c
}

// A diagnosis is what Diagnose knows so far.
type diagnosis struct {
	*Connector
	report  func(Step)
	rootDSE *entry // nil: not told
	entry   *entry // the user's
}

// step runs and reports one step, and tells whether it went well.
func (d *diagnosis) step(name string, f func() (detail, fix string, err error)) bool {
	start := time.Now()
	detail, fix, err := f()
	d.report(Step{Name: name, Detail: detail, Took: time.Since(start), Err: err, Fix: fix})
	return err == nil
}

func (d *diagnosis) configured() string {
	s := d.settings
	words := []string{"no preset"}
	if s.Preset != "" {
		words[0] = "preset " + s.Preset
	}
	switch s.security() {
	case ldaps:
		words = append(words, "TLS (ldaps)")
	case startTLS:
		words = append(words, "TLS (StartTLS)")
	case plain:
		words = append(words, "NO TLS: passwords can be read on the way")
	}
	if s.InsecureSkipVerify {
		words = append(words, "certificates are NOT verified: passwords can be read on the way")
	}
	if s.BindDN == "" {
		words = append(words, "no service account")
	}
	return strings.Join(words, ", ")
}

// servers looks for the servers and tries each. It tells whether one of them works.
func (d *diagnosis) servers(ctx context.Context) bool {
	var list []*endpoint
	name := "servers"
	if d.client.hosts.domain != "" {
		name = "servers (SRV records of " + d.client.hosts.domain + ")"
	}
	if !d.step(name, func() (string, string, error) {
		var err error
		if list, err = d.client.hosts.order(ctx, nil); err != nil {
			return "", "check domain and site, and that this machine asks the directory's DNS servers; or name the servers under hosts", err
		}
		var addrs []string
		for _, e := range list {
			addrs = append(addrs, e.addr)
		}
		return strings.Join(addrs, ", "), "", nil
	}) {
		return false
	}
	works := false
	for _, e := range list {
		if d.server(ctx, e) {
			works = true
			d.client.hosts.good(e)
		} else {
			d.client.hosts.bad(e, errNoDirectory)
		}
	}
	return works
}

// server dials one server, puts TLS on and binds, each a step of its own.
func (d *diagnosis) server(ctx context.Context, e *endpoint) bool {
	c := d.client
	ctx, cancel := context.WithTimeout(ctx, c.t.dialTimeout+c.t.requestTimeout)
	defer cancel()
	var tcp net.Conn
	if !d.step(e.addr+": connect", func() (string, string, error) {
		within, cancel := context.WithTimeout(ctx, c.t.dialTimeout)
		defer cancel()
		var err error
		if tcp, err = c.dialTCP(within, "tcp", e.addr); err != nil {
			return "", d.fix(err), err
		}
		return "", "", nil
	}) {
		return false
	}
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	defer func() { stop(); _ = tcp.Close() }()
	conn := tcp
	if c.t.security != plain && !d.step(e.addr+": TLS", func() (string, string, error) {
		within, cancel := context.WithTimeout(ctx, c.t.dialTimeout)
		defer cancel()
		_ = tcp.SetDeadline(time.Now().Add(c.t.dialTimeout))
		var err error
		if conn, err = c.secure(within, tcp, e); err != nil {
			return "", d.fix(err), err
		}
		_ = tcp.SetDeadline(time.Time{})
		detail, fix := d.certificate(conn)
		return detail, fix, nil
	}) {
		return false
	}
	k := newConn(e, newWire(conn, tcp), c.t.security != plain)
	if c.t.bindDN == "" {
		return true
	}
	return d.step(e.addr+": service bind", func() (string, string, error) {
		if err := c.refusal.holds(c.now()); err != nil {
			return "", "mend the bind at the server above first: it counts towards the account's lock-out", errors.New("not tried, since another server has refused it")
		}
		if err := c.bindService(ctx, k); err != nil {
			return "", d.fix(err), err
		}
		return "as " + printable(c.t.bindDN, maxDN), "", nil
	})
}

// soon is when a certificate should be renewed.
const soon = 14 * 24 * time.Hour

// certificate describes the certificate of a connection, and tells if it has to be renewed soon.
func (d *diagnosis) certificate(conn net.Conn) (detail, fix string) {
	t, ok := conn.(*tls.Conn)
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		return "", ""
	}
	state := t.ConnectionState()
	leaf := state.PeerCertificates[0]
	left := leaf.NotAfter.Sub(d.now())
	if left < soon {
		fix = "renew the server's certificate soon"
	}
	return fmt.Sprintf("%s; certificate for %s, by %s, until %s (%d days)", tls.VersionName(state.Version), namesOf(leaf), printable(leaf.Issuer.String(), maxText),
		leaf.NotAfter.UTC().Format(time.DateOnly), int(left.Hours()/24)), fix
}

func namesOf(c *x509.Certificate) string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no name at all (its CN " + printable(c.Subject.CommonName, maxText) + " does not count)"
	}
	return printable(strings.Join(names, ", "), maxText)
}

// root asks the server about itself (RFC 4512 section 5.1).
func (d *diagnosis) root(ctx context.Context) {
	d.step("directory", func() (string, string, error) {
		var err error
		d.rootDSE, err = d.one(ctx, "", "namingContexts", "defaultNamingContext", "supportedControl", "supportedCapabilities", "vendorName", "objectClass", "dnsHostName")
		switch {
		case err != nil:
			return "", d.fix(err), err
		case d.rootDSE == nil:
			return "tells nothing of itself", "", nil
		}
		what := "a directory"
		switch r := d.rootDSE; {
		case slices.Contains(r.texts("supportedCapabilities"), capability):
			what = "Active Directory"
			if !d.settings.activeDirectory() {
				return what, "set preset: activedirectory, which knows its accounts' states, ids and nested groups", nil
			}
		case r.text("vendorName") != "":
			what = printable(r.text("vendorName"), maxText)
		case slices.Contains(r.texts("objectClass"), "OpenLDAProotDSE"):
			what = "OpenLDAP"
		}
		if d.settings.activeDirectory() && what != "Active Directory" {
			return what + ", no Active Directory", "set preset: openldap or freeipa, or none: nothing is found by the names that Active Directory has", nil
		}
		return fmt.Sprintf("%s at %s, with %s", what, d.client.host(), d.contexts()), "", nil
	})
}

func (d *diagnosis) contexts() string {
	if d.rootDSE == nil || len(d.rootDSE.texts("namingContexts")) == 0 {
		return "no naming contexts that are told"
	}
	return printable(strings.Join(d.rootDSE.texts("namingContexts"), "; "), maxText)
}

// bases looks for the entries that searches begin at.
func (d *diagnosis) bases(ctx context.Context) bool {
	good := d.base(ctx, "userSearch.baseDN", d.settings.UserSearch.BaseDN)
	if g := d.settings.GroupSearch.BaseDN; g != "" {
		good = d.base(ctx, "groupSearch.baseDN", g) && good
	}
	return good
}

func (d *diagnosis) base(ctx context.Context, key, dn string) bool {
	return d.step(key, func() (string, string, error) {
		e, err := d.one(ctx, dn, noAttributes)
		if err != nil {
			return "", d.fix(err), err
		}
		if e != nil {
			return printable(e.dn, maxDN), "", nil
		}
		fix := "the server holds " + d.contexts() + ": set " + key + " to an entry below"
		for up := parentOf(dn); up != "" && ctx.Err() == nil; up = parentOf(up) {
			if e, err := d.one(ctx, up, noAttributes); err == nil && e != nil {
				fix = "the nearest entry above that is there: " + printable(e.dn, maxDN) + "; check what stands before it in " + key
				break
			}
		}
		return "", fix + "; or the service account may not see it", fmt.Errorf("there is no entry %q", printable(dn, maxDN))
	})
}

// noAttributes asks for none (RFC 4511 section 4.5.1.8).
const noAttributes = "1.1"

// parentOf is the name of the entry above, "" at the end.
func parentOf(dn string) string {
	p, err := ldapv3.ParseDN(dn)
	if err != nil || len(p.RDNs) < 2 {
		return ""
	}
	return (&ldapv3.DN{RDNs: p.RDNs[1:]}).String()
}

// user looks for the account of a name, as signing in does.
func (d *diagnosis) user(ctx context.Context, name string) bool {
	return d.step("user "+printable(name, maxName), func() (string, string, error) {
		a, err := d.Find(ctx, name)
		if err != nil {
			return "", d.fix(err), err
		}
		if a.entry == nil {
			return d.nobodyFound(ctx, name)
		}
		d.entry = a.entry
		id, err := d.person(a.entry)
		if err != nil {
			return printable(a.entry.dn, maxDN), "", err
		}
		return fmt.Sprintf("%s, by %s; id %s, name %q, e-mail %s", printable(a.entry.dn, maxDN), d.matched(a.entry, name), id.UserID, id.Name, id.Email), "", nil
	})
}

// nobodyFound tells why a name is nobody's.
func (d *diagnosis) nobodyFound(ctx context.Context, name string) (string, string, error) {
	u := &d.settings.UserSearch
	filters, err := d.nameFilters(ctx, name)
	if err != nil {
		return "", d.fix(err), err
	}
	if len(filters) == 0 {
		return "", `no attribute of userSearch.username can have this value; a name like CORP\alice needs the domain's own NetBIOS name, see netbiosName`, errors.New("the name cannot be anybody's")
	}
	filter := anyOf(filters)
	all := allOf(u.Filter, filter)
	found, err := d.client.search(ctx, query{base: u.BaseDN, scope: d.settings.userScope, filter: all, attributes: []string{noAttributes}, limit: 8})
	switch {
	case errors.Is(err, errTooMany) || err == nil && len(found) > 1:
		var dns []string
		for _, e := range found {
			dns = append(dns, printable(e.dn, maxText))
		}
		return strings.Join(dns, "  "), "narrow userSearch.filter or userSearch.username, so that one entry is left: " + printable(all, maxText), errors.New("the name belongs to several entries, so that nobody is signed in with it")
	case err != nil:
		return "", d.fix(err), err
	}
	fix := fmt.Sprintf("searched for %s below %s: check the name, userSearch.username, userSearch.filter and what the service account may read", printable(all, maxText), printable(u.BaseDN, maxText))
	if u.Filter != "" {
		if found, err = d.client.search(ctx, query{base: u.BaseDN, scope: d.settings.userScope, filter: filter, attributes: []string{noAttributes}, limit: 8}); err == nil && len(found) > 0 {
			fix = fmt.Sprintf("%s is there, and userSearch.filter leaves it out: %s", printable(found[0].dn, maxText), printable(u.Filter, maxText))
		}
	}
	return "", fix, errors.New("the name belongs to nobody")
}

// matched tells by which attribute an entry was found.
func (d *diagnosis) matched(e *entry, name string) string {
	_, short, _ := strings.Cut(name, `\`)
	before, _, _ := cutLast(name, "@")
	for _, typed := range []string{name, short, before} {
		for _, a := range d.settings.UserSearch.Username {
			if typed != "" && slices.ContainsFunc(e.values(a), func(v string) bool { return foldText(v) == foldText(typed) }) {
				return a
			}
		}
	}
	return strings.Join(d.settings.UserSearch.Username, " or ")
}

const groupsShown = 20

func (d *diagnosis) groups(ctx context.Context) {
	d.step("groups", func() (string, string, error) {
		s := d.settings
		if s.GroupSearch.BaseDN == "" {
			return "none: groupSearch is not configured", "", nil
		}
		all, err := d.groupsOf(ctx, []*entry{d.entry})
		if err != nil {
			return "", d.fix(err), err
		}
		list := all[0]
		if !s.admits(list) {
			return groupList(list), "add the user to one of requiredGroups: " + printable(strings.Join(s.RequiredGroups, ", "), maxText), errors.New("the user is in none of requiredGroups, and may not sign in")
		}
		detail := groupList(list) + ", " + d.how()
		if len(list) == 0 {
			return detail, "if there should be some: check groupSearch.baseDN, filter, allow, match and stripPrefix, and that the service account may read groups", nil
		}
		if len(list) == s.GroupSearch.Limit {
			return detail, "groupSearch.limit may leave some out: raise it, or narrow groupSearch.filter, allow or match", nil
		}
		return detail, "", nil
	})
}

func groupList(list []string) string {
	shown := make([]string, 0, groupsShown)
	for _, g := range list[:min(len(list), groupsShown)] {
		shown = append(shown, printable(g, maxText))
	}
	if len(list) > groupsShown {
		shown = append(shown, "…")
	}
	return strings.TrimSuffix(fmt.Sprintf("%d: %s", len(list), strings.Join(shown, ", ")), ": ")
}

// how tells in words how groups are found.
func (d *diagnosis) how() string {
	g := &d.settings.GroupSearch
	switch {
	case len(d.settings.matchers) > 0:
		var by []string
		for _, m := range d.settings.matchers {
			by = append(by, fmt.Sprintf("%s of groups = %s of the user", m.GroupAttr, m.UserAttr))
		}
		return "by " + strings.Join(by, ", ")
	case g.Nested != "":
		return "by nested: " + g.Nested
	}
	return "by memberOf"
}

func (d *diagnosis) state(ctx context.Context) {
	d.step("account", func() (string, string, error) {
		_, _ = d.known(ctx) // for how long a policy locks; the step on lock-out tells if it cannot be read
		r := stateOf(d.entry, d.now(), d.lockedFor(d.entry))
		if r == "" {
			return "nothing in the entry keeps the user out; " + told(d.passwordSet(d.entry)), "", nil
		}
		return "", stateFix(r), fmt.Errorf("%s", r)
	})
}

// told says whether the directory tells of another password.
func told(set connectors.PasswordSet) string {
	switch set {
	case connectors.PasswordUnknown:
		return "when the password was set cannot be read, so that another one ends no session"
	case connectors.PasswordNeverSet:
		return "it has no time at which the password was changed (pwdChangedTime, krbLastPwdChange)"
	default:
		return "it tells when the password was set"
	}
}

// stateFix tells an operator what to do about a state of an account.
func stateFix(r connectors.Reason) string {
	switch r {
	case connectors.WrongCredentials:
		return "the password is wrong; this failure counts towards the account's lock-out"
	case connectors.AccountDisabled:
		return "enable the account in the directory"
	case connectors.AccountExpired:
		return "move the day on which the account expires"
	case connectors.AccountLocked:
		return "unlock the account, or wait until the directory does; if it comes back, look for a device with an old password"
	case connectors.PasswordExpired, connectors.PasswordMustChange:
		return "the user chooses a new password on the sign-in page, if passwordChange is enabled, or in the directory"
	case connectors.OutsideHours:
		return "the account may not sign in at this time: see its logon hours"
	case connectors.OtherWorkstation:
		return "the account may sign in from named computers only: see its logon workstations"
	default:
		return "see what the directory says of the account"
	}
}

func (d *diagnosis) bind(ctx context.Context, password string) {
	d.step("the user's bind", func() (string, string, error) {
		if !possible(password) || d.entry.dn == "" {
			return "", "want a password of 1 to 1024 bytes without NUL", errors.New("this password is never sent to a directory")
		}
		v, err := d.client.bind(ctx, d.entry.dn, password)
		if err != nil {
			return "", d.fix(err), err
		}
		r, graced := reasonOf(v)
		switch {
		case r != "":
			return "", stateFix(r), fmt.Errorf("%s: %w", r, v.cause())
		case graced:
			return "right", "the password has expired, and is taken for the last times", nil
		}
		return "right", "", nil
	})
}

func (d *diagnosis) lockout(ctx context.Context) {
	d.step("lock-out", func() (string, string, error) {
		if n := d.settings.Lockout.MaxFailures; n > 0 {
			return fmt.Sprintf("at most %d failures reach the directory (lockout.maxFailures)", n), "", nil
		}
		f, err := d.known(ctx)
		if err != nil {
			return "", d.fix(err), err
		}
		if f.maxFailures == 0 {
			return "the directory locks no account, or does not tell", "if it does lock accounts, set lockout.maxFailures to one less than its threshold, or lockout.policyDN", nil
		}
		return fmt.Sprintf("the directory locks an account after %d failures; at most %d reach it", f.maxFailures, d.MaxFailures()), "", nil
	})
}

// The controls by which directories tell of changes: MS-ADTS section 3.1.1.3.4.1.9 and RFC 4533.
const (
	notificationControl = "1.2.840.113556.1.4.528"
	syncControl         = "1.3.6.1.4.1.4203.1.9.1.1"
)

func (d *diagnosis) watch() {
	d.step("changes", func() (string, string, error) {
		var controls []string
		if d.rootDSE != nil {
			controls = d.rootDSE.texts("supportedControl")
		}
		switch {
		case d.settings.Watch == "off":
			return "are not watched (watch: off): users are asked for again at intervals", "", nil
		case slices.Contains(controls, notificationControl):
			return "the directory tells of them (change notification)", "", nil
		case slices.Contains(controls, syncControl):
			return "the directory tells of them (RFC 4533)", "", nil
		}
		return "the directory does not tell of them: users are asked for again at intervals", "", nil
	})
}

// fix tells what to do about an error of a connection or of a request, "" if it is not known.
func (d *diagnosis) fix(err error) string {
	if f := tlsFix(err); f != "" {
		return f
	}
	if f := netFix(err); f != "" {
		return f
	}
	var refused *serviceRefused
	isService := errors.As(err, &refused)
	switch code := codeOf(err); code {
	case ldapv3.LDAPResultStrongAuthRequired, ldapv3.LDAPResultConfidentialityRequired:
		return "the server takes passwords under TLS only: remove insecureNoSSL (ldaps, port 636), or set startTLS: true (port 389)"
	case ldapv3.LDAPResultInvalidCredentials:
		if isService {
			return "check bindDN and bindPW" + adMeaning(err)
		}
	case ldapv3.LDAPResultInvalidDNSyntax:
		return "bindDN or a baseDN is no DN to this server: write it whole, such as cn=svc,dc=example,dc=com"
	case ldapv3.LDAPResultInappropriateAuthentication, ldapv3.LDAPResultUnwillingToPerform, ldapv3.LDAPResultNoSuchObject:
		if isService {
			return "the server does not let this account bind: check bindDN, and that the account has a password and is enabled"
		}
	case ldapv3.LDAPResultInsufficientAccessRights, ldapv3.LDAPResultOperationsError:
		return "the directory tells nothing to strangers, or not to this account: set bindDN and bindPW, and let the account read users and groups"
	case ldapv3.LDAPResultSizeLimitExceeded:
		return "lower pageSize, or raise the server's size limit for the service account"
	}
	return ""
}

// adMeaning tells what the code means that Active Directory puts into the text of a refused bind.
func adMeaning(err error) string {
	m := adCode.FindStringSubmatch(err.Error())
	if m == nil {
		return ""
	}
	words := map[string]string{
		"525": "there is no such account", "52e": "the name or the password is wrong", "530": "it may not sign in at this time", "531": "it may not sign in from this computer",
		"532": "its password has expired", "533": "it is disabled", "701": "it has expired", "773": "its password must be changed first", "775": "it is locked",
	}
	if w := words[strings.ToLower(m[1])]; w != "" {
		return "; Active Directory says: " + w
	}
	return ""
}

func tlsFix(err error) string {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is for " + namesOf(e.Certificate) + ": write one of these under host"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return fmt.Sprintf("the certificate is good from %s until %s: renew it, or set the clock", e.Cert.NotBefore.UTC().Format(time.DateOnly), e.Cert.NotAfter.UTC().Format(time.DateOnly))
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		by := ""
		if e.Cert != nil {
			by = " (" + printable(e.Cert.Issuer.String(), maxText) + ")"
		}
		return "set rootCA to the file of your CA" + by
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the server does not speak TLS at this port: ldaps is usually port 636; at port 389 set startTLS: true"
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return "the server refuses the handshake: if it wants a client certificate, set clientCert and clientKey"
	}
	if errors.Is(err, errStartTLS) {
		return "the server offers no StartTLS: give it a certificate, or remove startTLS and use ldaps (port 636)"
	}
	return ""
}

func netFix(err error) string {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return "the name " + printable(e.Name, maxText) + " does not resolve: check host, and the DNS servers of this machine"
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: check the port (ldaps 636, ldap and StartTLS 389) and that the server runs"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no way to this address from here: check host, routes and firewalls"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "no answer in time: check host and firewalls, or raise timeouts.dial and timeouts.request"
	case errors.Is(err, errGarbage):
		return "what answers is no LDAP server, or speaks TLS from the start: at port 636 remove startTLS and insecureNoSSL"
	case errors.Is(err, syscall.ECONNRESET), strings.HasSuffix(err.Error(), "EOF"):
		return "the server closed the connection: check the port (ldaps 636, ldap and StartTLS 389) and the server's log"
	}
	return ""
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
