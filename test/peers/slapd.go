package peers

import (
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"gatehouse/internal/demo/process"
)

const (
	slapdBase = "dc=example,dc=test"

	// slapdProgram stands where few users have a PATH to.
	slapdProgram = "/usr/sbin/slapd"
)

// SlapdOptions say what an OpenLDAP server holds. Besides, each has the people of slapdPeople and the groups of slapdGroups.
type SlapdOptions struct {
	Users  int // u00000 and so on
	Groups int // g0000 and so on, each with up to 20 of these users
	Many   int // groups m0000 and so on, in which user many is

	ManyNames string // of these groups, with a verb for their number; empty: m%04d

	// Peer, if not nil, is a server whose certificate authority this one shares: a second host of one directory. They do not replicate.
	Peer *SlapdServer
}

// A SlapdServer is a running OpenLDAP server of dc=example,dc=test. It takes simple binds under TLS only and none without a name, tells
// at most 500 entries of a search that does not ask for pages, keeps memberOf, locks an account after five wrong passwords, and tells of
// changes by RFC 4533.
type SlapdServer struct {
	Host  string // ldaps, ip:port
	Plain string // ldap with StartTLS, ip:port
	URL   string // ldaps://ip:port
	CA    string // path of the certificate authority's PEM

	BaseDN, PeopleDN, GroupsDN string
	ServiceDN, ServicePassword string // may read everything but passwords
	AdminDN, AdminPassword     string // may do anything
	Password                   string // of every user
	MaxFailures                int    // as many wrong passwords lock an account

	ca      *CA
	pool    *x509.CertPool
	spec    process.Spec
	process *process.Process
	test    testing.TB // that it ends with, though a subtest may start it again
}

// slapdPeople are users for one thing each. Their password is the server's Password.
//
//	alice      is in g3-leaf, which is in g2-mid, which is in g1-top, which is in g0-cycle, which is in g3-leaf
//	bob        is in "odd (name)"
//	many       is in SlapdOptions.Many groups
//	expired    has an expired password and no grace logins: a bind with it fails
//	grace      has an expired password and two grace logins, one to be told so and one to change it: a bind with it succeeds
//	reset      has a password that was reset: a bind succeeds, and nothing but a change of the password is allowed
//	locked     was locked by an administrator
func slapdPeople() map[string]string {
	const old = "pwdChangedTime: 20200101000000Z\n"
	return map[string]string{
		"alice": "", "bob": "", "many": "",
		"expired": old + "pwdPolicySubentry: cn=expiring,ou=policies," + slapdBase + "\n",
		"grace":   old + "pwdPolicySubentry: cn=grace,ou=policies," + slapdBase + "\n",
		"reset":   "pwdReset: TRUE\n",
		"locked":  "pwdAccountLockedTime: 000001010000Z\n", // for ever: draft-behera-ldap-password-policy-10 section 5.3.3
	}
}

// slapdGroups are the groups beside the numbered ones, with their members as parts of a DN.
func slapdGroups() map[string][]string {
	return map[string][]string{
		"g3-leaf":    {"uid=alice,ou=people", "cn=g0-cycle,ou=groups"},
		"g2-mid":     {"cn=g3-leaf,ou=groups"},
		"g1-top":     {"cn=g2-mid,ou=groups"},
		"g0-cycle":   {"cn=g1-top,ou=groups"},
		"odd (name)": {"uid=bob,ou=people"},
	}
}

// slapdData holds what slapadd has made of SlapdOptions, once per test process: a database file is copied in an instant.
var slapdData sync.Map // SlapdOptions without a peer -> func() ([]byte, error)

// Slapd starts an OpenLDAP server on free ports, waits until it serves, and stops it when the test ends.
func Slapd(t testing.TB, o SlapdOptions) *SlapdServer {
	t.Helper()
	if _, err := os.Stat(slapdProgram); err != nil {
		t.Fatalf("%s is not installed: run `make tools` in %s", slapdProgram, Root(t))
	}
	s := &SlapdServer{
		test:   t,
		BaseDN: slapdBase, PeopleDN: "ou=people," + slapdBase, GroupsDN: "ou=groups," + slapdBase,
		ServiceDN: "cn=svc," + slapdBase, ServicePassword: "service-password", AdminDN: "cn=admin," + slapdBase, AdminPassword: "admin-password",
		Password: "password", MaxFailures: 5,
	}
	if s.ca = NewCA(t, "Directory CA"); o.Peer != nil {
		s.ca = o.Peer.ca
	}
	s.pool = s.ca.Pool()
	dir := Folder(t)
	s.CA = filepath.Join(dir, "ca.crt")
	certificate, key := s.ca.Issue(t, "localhost", "127.0.0.1")
	writeFiles(t, dir, map[string][]byte{"ca.crt": s.ca.PEM, "tls.crt": certificate, "tls.key": key, "db/data.mdb": slapdDatabase(t, o), "slapd.conf": slapdConfig(dir)})
	for range startTries {
		s.Host, s.Plain = FreeAddr(t), FreeAddr(t)
		s.URL = "ldaps://" + s.Host
		s.spec = process.Spec{
			Path: slapdProgram, Dir: dir, Log: filepath.Join(dir, "log"),
			Args: []string{"-d", "none", "-f", filepath.Join(dir, "slapd.conf"), "-h", "ldap://" + s.Plain + " " + s.URL}, // -d: in the foreground
		}
		err := s.start()
		if err == nil {
			return s
		}
		if !portTaken(err) {
			t.Fatal(err)
		}
	}
	t.Fatal("three free ports were taken before slapd took them")
	return nil
}

func (s *SlapdServer) start() (err error) {
	t := s.test
	t.Helper()
	s.process, err = start(t, s.spec, func(*process.Process) bool { return listens(t, s.Host) && listens(t, s.Plain) })
	return err
}

// Kill ends the server as a crash would.
func (s *SlapdServer) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Signal sends sig to the running server: SIGSTOP and SIGCONT make it a host that accepts and never answers for a while.
func (s *SlapdServer) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := s.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Start starts the server again after Kill, on the same ports and data.
func (s *SlapdServer) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// Log returns what the server has written so far.
func (s *SlapdServer) Log() string { return s.process.Log() }

// UserDN returns the name of a user's entry.
func (s *SlapdServer) UserDN(uid string) string { return "uid=" + uid + "," + s.PeopleDN }

// GroupDN returns the name of a group's entry.
func (s *SlapdServer) GroupDN(cn string) string { return "cn=" + cn + "," + s.GroupsDN }

// TLS is what a client trusts the server with.
func (s *SlapdServer) TLS() *tls.Config { return &tls.Config{RootCAs: s.pool} }

// Admin returns a connection on which anything is allowed. It is closed when the test ends.
func (s *SlapdServer) Admin(t testing.TB) *ldap.Conn {
	t.Helper()
	return directoryAdmin(t, s.URL, s.TLS(), s.AdminDN, s.AdminPassword)
}

// SetMember makes a user, or no longer, a direct member of a group.
func (s *SlapdServer) SetMember(t testing.TB, group, uid string, member bool) {
	t.Helper()
	setMember(t, s.Admin(t), s.GroupDN(group), s.UserDN(uid), member)
}

// Operations returns how many operations the server has completed since it started, this question included.
func (s *SlapdServer) Operations(t testing.TB) int {
	t.Helper()
	res, err := s.Admin(t).Search(ldap.NewSearchRequest("cn=Operations,cn=Monitor", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, false,
		"(objectClass=*)", []string{"monitorOpCompleted"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(res.Entries[0].GetAttributeValue("monitorOpCompleted"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Unlock forgets the failures and locks of a user.
func (s *SlapdServer) Unlock(t testing.TB, uid string) {
	t.Helper()
	r := ldap.NewModifyRequest(s.UserDN(uid), nil)
	r.Replace("pwdAccountLockedTime", nil)
	modify(t, s.Admin(t), r)
}

func directoryAdmin(t testing.TB, url string, tlsConfig *tls.Config, name, password string) *ldap.Conn {
	t.Helper()
	c, err := ldap.DialURL(url, ldap.DialWithTLSConfig(tlsConfig))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the server may be gone
	c.SetTimeout(30 * time.Second)
	if err := c.Bind(name, password); err != nil {
		t.Fatalf("bind as %s: %v", name, err)
	}
	return c
}

func setMember(t testing.TB, c *ldap.Conn, group, dn string, member bool) {
	t.Helper()
	r := ldap.NewModifyRequest(group, nil)
	if member {
		r.Add("member", []string{dn})
	} else {
		r.Delete("member", []string{dn})
	}
	modify(t, c, r)
}

func modify(t testing.TB, c *ldap.Conn, r *ldap.ModifyRequest) {
	t.Helper()
	if err := c.Modify(r); err != nil {
		t.Fatalf("modify %s: %v", r.DN, err)
	}
}

// writeFiles writes files below dir by their paths in it, for their owner only.
func writeFiles(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func slapdDatabase(t testing.TB, o SlapdOptions) []byte {
	t.Helper()
	o.Peer = nil
	ctx := context.WithoutCancel(t.Context())
	once, _ := slapdData.LoadOrStore(o, sync.OnceValues(func() ([]byte, error) { return slapadd(ctx, o) }))
	data, err := once.(func() ([]byte, error))()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// slapadd returns a new database file with the entries of o.
func slapadd(ctx context.Context, o SlapdOptions) ([]byte, error) {
	dir, err := os.MkdirTemp("", "gh-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "slapd.conf")
	if err := os.WriteFile(config, slapdConfig(dir), 0o600); err != nil {
		return nil, err
	}
	// -w: the change number, from which clients that follow changes start, is that of the newest entry.
	cmd := exec.CommandContext(ctx, "/usr/sbin/slapadd", "-w", "-f", config)
	cmd.Stdin = strings.NewReader(slapdEntries(o))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("slapadd: %w\n%s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "db", "data.mdb"))
}

func slapdConfig(dir string) []byte {
	tlsKeys := ""
	if _, err := os.Stat(filepath.Join(dir, "db")); err != nil { // not for slapadd
		tlsKeys = strings.ReplaceAll(`TLSCACertificateFile DIR/ca.crt
TLSCertificateFile DIR/tls.crt
TLSCertificateKeyFile DIR/tls.key
TLSProtocolMin 3.3
TLSVerifyClient try
`, "DIR", dir)
	}
	return []byte(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload refint
moduleload ppolicy
moduleload syncprov
` + tlsKeys + `security simple_bind=128
disallow bind_anon
sizelimit size.soft=500 size.hard=500 size.pr=500 size.prtotal=unlimited
access to attrs=userPassword by anonymous auth by self write by * none
access to * by users read by * none
database mdb
suffix ` + slapdBase + `
rootdn cn=admin,` + slapdBase + `
rootpw admin-password
directory ` + dir + `/db
maxsize 1073741824
dbnosync
index objectClass,uid,mail,cn,member,memberOf,entryUUID,entryCSN eq
overlay memberof
memberof-group-oc groupOfNames
memberof-refint TRUE
overlay refint
refint_attributes member
refint_nothing cn=admin,` + slapdBase + `
overlay ppolicy
ppolicy_default cn=default,ou=policies,` + slapdBase + `
ppolicy_use_lockout
ppolicy_hash_cleartext
overlay syncprov
syncprov-sessionlog 1000
database monitor
`)
}

// slapdEntries returns the directory as LDIF. memberOf is computed here: slapadd runs no overlay.
func slapdEntries(o SlapdOptions) string {
	groups := slapdGroups()
	for i := range o.Groups {
		var members []string
		for k := range min(20, o.Users) {
			members = append(members, fmt.Sprintf("uid=u%05d,ou=people", (i*10+k*7)%o.Users))
		}
		groups[fmt.Sprintf("g%04d", i)] = members
	}
	for i := range o.Many {
		groups[fmt.Sprintf(cmp.Or(o.ManyNames, "m%04d"), i)] = []string{"uid=many,ou=people"}
	}
	memberOf := map[string]string{}
	for name, members := range groups {
		for _, m := range members {
			memberOf[m] += "memberOf: cn=" + name + ",ou=groups," + slapdBase + "\n"
		}
	}
	var b strings.Builder
	b.WriteString("dn: " + slapdBase + "\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n\n")
	for _, ou := range []string{"people", "groups", "policies"} {
		fmt.Fprintf(&b, "dn: ou=%s,%s\nobjectClass: organizationalUnit\nou: %[1]s\n\n", ou, slapdBase)
	}
	fmt.Fprintf(&b, "dn: cn=svc,%s\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: svc\nuserPassword: %s\n\n", slapdBase, ssha("service-password"))
	for name, more := range map[string]string{"default": "", "expiring": "pwdMaxAge: 86400\n", "grace": "pwdMaxAge: 86400\npwdGraceAuthNLimit: 2\n"} {
		fmt.Fprintf(&b, "dn: cn=%s,ou=policies,%s\nobjectClass: device\nobjectClass: pwdPolicy\ncn: %[1]s\npwdAttribute: userPassword\n"+
			"pwdLockout: TRUE\npwdMaxFailure: 5\npwdMustChange: TRUE\npwdMinLength: 8\npwdCheckQuality: 1\n%[3]s\n", name, slapdBase, more)
	}
	hash := ssha("password") // the same for all: hashing would dominate
	person := func(uid, name, more string) {
		fmt.Fprintf(&b, "dn: uid=%s,ou=people,%s\nobjectClass: inetOrgPerson\nuid: %[1]s\ncn: %[3]s\nsn: Test\nmail: %[1]s@example.test\nuserPassword: %[4]s\n%[5]s%[6]s\n",
			uid, slapdBase, name, hash, more, memberOf["uid="+uid+",ou=people"])
	}
	for uid, state := range slapdPeople() {
		person(uid, strings.ToUpper(uid[:1])+uid[1:]+" Test", state)
	}
	for i := range o.Users {
		person(fmt.Sprintf("u%05d", i), fmt.Sprintf("User %d", i), "")
	}
	for name, members := range groups {
		fmt.Fprintf(&b, "dn: cn=%s,ou=groups,%s\nobjectClass: groupOfNames\ncn: %[1]s\n", name, slapdBase)
		for _, m := range members {
			b.WriteString("member: " + m + "," + slapdBase + "\n")
		}
		b.WriteString(memberOf["cn="+name+",ou=groups"] + "\n")
	}
	return b.String()
}

// ssha is a password as OpenLDAP stores it by default.
func ssha(password string) string {
	salt := "salt"
	sum := sha1.Sum([]byte(password + salt))
	return "{SSHA}" + base64.StdEncoding.EncodeToString(append(sum[:], salt...))
}
