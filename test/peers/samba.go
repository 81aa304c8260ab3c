package peers

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"gatehouse/internal/demo/process"
)

const (
	sambaBase     = "DC=ad,DC=example,DC=test"
	sambaProgram  = "/usr/sbin/samba"
	sambaTool     = "/usr/bin/samba-tool"
	sambaPassword = "Str0ng-Passw0rd"
	sambaAdmin    = "Adm1n-Passw0rd"

	// templateAge is how old a prepared domain may be: its passwords expire after 42 days.
	templateAge = 30 * 24 * time.Hour
)

//go:embed samba/seed.py
var sambaSeed []byte

// SambaOptions say what a domain holds beside the users of SambaServer.
type SambaOptions struct {
	// Many is how many groups, m0000 and so on, user many is in. With 2,000 a search by the matching rule in chain takes seconds whoever
	// it is for, since Samba tries it on each group.
	Many int
}

// A SambaServer is a running Active Directory domain controller of the domain ad.example.test (NetBIOS name ADTEST). Its ports are the
// usual ones and cannot be moved, so each server has an address of its own in 127.66.0.0/16, and the test runs as root.
//
// Users, in OU=People; the password is the server's Password:
//
//	alice         is in g3-leaf, which is in g2-mid, which is in g1-top, which is in g0-cycle, which is in g3-leaf
//	bob           is in "odd (name)"
//	many          is in SambaOptions.Many groups
//	u00 to u29    nothing special, and so free to be changed by a test
//	disabled, mustchange, expired (the account), pwexpired, hours (may never sign in), wks (from another computer only)
//	locked        to be locked by MaxFailures wrong passwords
//	svc-ldap, svc-http (Kerberos' HTTP/auth.example.test)
//
// OU=Elsewhere is empty.
type SambaServer struct {
	IP    string
	Host  string // ldaps, ip:port
	Plain string // ldap with StartTLS, ip:port
	URL   string // ldaps://ip:port
	CA    string // path of the certificate authority's PEM

	BaseDN, PeopleDN, GroupsDN string
	Domain, Realm              string // the NetBIOS name and the Kerberos realm
	ServiceDN, ServicePassword string
	AdminName, AdminPassword   string // may do anything
	Password                   string // of every user
	MaxFailures                int    // as many wrong passwords lock an account

	Krb5Config string // path of a krb5.conf for KRB5_CONFIG
	Principal  string // of the web server, which Keytab is for

	dir     string
	pool    *x509.CertPool
	spec    process.Spec
	process *process.Process
	test    testing.TB // that it ends with, though a subtest may start it again
}

// Samba starts a domain controller, waits until it serves, and stops it when the test ends. The domain is prepared once per machine, in
// .tools.
func Samba(t testing.TB, o SambaOptions) *SambaServer {
	t.Helper()
	for _, program := range []string{sambaProgram, sambaTool, "/usr/bin/kinit"} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("%s is not installed: run `make tools` in %s", program, Root(t))
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("Samba's ports cannot be moved and belong to root: run this test as root")
	}
	template := sambaTemplate(t, o)
	for range startTries {
		s, err := startSamba(t, template)
		if err == nil {
			return s
		}
		if !portTaken(err) {
			t.Fatal(err)
		}
	}
	t.Fatal("three addresses in 127.66.0.0/16 were taken")
	return nil
}

func startSamba(t testing.TB, template string) (*SambaServer, error) {
	t.Helper()
	ip, dir := freeIP(t), Folder(t)
	s := &SambaServer{
		test: t,
		IP:   ip, Host: ip + ":636", Plain: ip + ":389", URL: "ldaps://" + ip + ":636", CA: filepath.Join(dir, "tls", "ca.crt"),
		BaseDN: sambaBase, PeopleDN: "OU=People," + sambaBase, GroupsDN: "OU=Groups," + sambaBase,
		Domain: "ADTEST", Realm: "AD.EXAMPLE.TEST", ServiceDN: "CN=svc-ldap,OU=People," + sambaBase, ServicePassword: sambaPassword,
		AdminName: "Administrator@ad.example.test", AdminPassword: sambaAdmin, Password: sambaPassword, MaxFailures: 3,
		Krb5Config: filepath.Join(dir, "krb5.conf"), Principal: "HTTP/auth.example.test", dir: dir,
	}
	// cp keeps the holes of the databases and their extended attributes.
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", "--sparse=always", template+"/.", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the prepared domain: %w\n%s", err, out)
	}
	ca := NewCA(t, "Directory CA")
	s.pool = ca.Pool()
	certificate, key := ca.Issue(t, "dc1.ad.example.test", "localhost", ip)
	for _, folder := range []string{"run", "cache", "log", "ncalrpc", "wb", "ntp"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o750); err != nil {
			return nil, err
		}
	}
	writeFiles(t, dir, map[string][]byte{
		"tls/ca.crt": ca.PEM, "tls/dc1.crt": certificate, "tls/dc1.key": key,
		"etc/smb.conf": sambaConfig(dir, ip), "krb5.conf": krb5Config(ip),
	})
	s.spec = process.Spec{
		Path: sambaProgram, Args: []string{"--configfile=" + s.config(), "--interactive", "--no-process-group", "--debug-stdout"},
		Env: []string{"KRB5_CONFIG=" + s.Krb5Config}, Dir: dir, Log: filepath.Join(dir, "samba.log"),
	}
	return s, s.start()
}

func (s *SambaServer) start() (err error) {
	t := s.test
	t.Helper()
	s.process, err = start(t, s.spec, func(*process.Process) bool { return listens(t, s.Host) && listens(t, s.IP+":88") && s.serves() })
	return err
}

// serves reports whether a search is answered: the ports are open a moment earlier.
func (s *SambaServer) serves() bool {
	c, err := ldap.DialURL(s.URL, ldap.DialWithTLSConfig(s.TLS()), ldap.DialWithDialer(&net.Dialer{Timeout: time.Second}))
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	c.SetTimeout(time.Second)
	_, err = c.Search(ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 1, false, "(objectClass=*)", []string{"dnsHostName"}, nil))
	return err == nil
}

// Stop ends the server and its children.
func (s *SambaServer) Stop(t testing.TB) {
	t.Helper()
	if err := s.process.Stop(); err != nil {
		t.Fatal(err)
	}
}

// Start starts the server again after Stop, at the same address and with the same data.
func (s *SambaServer) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// Log returns what the server has written so far.
func (s *SambaServer) Log() string { return s.process.Log() }

func (s *SambaServer) config() string { return filepath.Join(s.dir, "etc", "smb.conf") }

// UserDN returns the name of a user's entry, unless Move has moved it.
func (s *SambaServer) UserDN(name string) string { return "CN=" + name + "," + s.PeopleDN }

// GroupDN returns the name of a group's entry.
func (s *SambaServer) GroupDN(name string) string { return "CN=" + name + "," + s.GroupsDN }

// TLS is what a client trusts the server with.
func (s *SambaServer) TLS() *tls.Config { return &tls.Config{RootCAs: s.pool} }

// Admin returns a connection on which anything is allowed. It is closed when the test ends.
func (s *SambaServer) Admin(t testing.TB) *ldap.Conn {
	t.Helper()
	return directoryAdmin(t, s.URL, s.TLS(), s.AdminName, s.AdminPassword)
}

// SetMember makes a user, or no longer, a direct member of a group.
func (s *SambaServer) SetMember(t testing.TB, group, user string, member bool) {
	t.Helper()
	setMember(t, s.Admin(t), s.GroupDN(group), s.UserDN(user), member)
}

// SetDisabled disables or enables a user.
func (s *SambaServer) SetDisabled(t testing.TB, user string, disabled bool) {
	t.Helper()
	const normal, off = 512, 2 // userAccountControl: NORMAL_ACCOUNT, ACCOUNTDISABLE
	value := normal
	if disabled {
		value |= off
	}
	s.Replace(t, user, "userAccountControl", strconv.Itoa(value))
}

// Unlock forgets the failures and the lock of a user.
func (s *SambaServer) Unlock(t testing.TB, user string) {
	t.Helper()
	s.Replace(t, user, "lockoutTime", "0")
}

// Replace replaces an attribute of a user.
func (s *SambaServer) Replace(t testing.TB, user, attribute string, values ...string) {
	t.Helper()
	r := ldap.NewModifyRequest(s.UserDN(user), nil)
	r.Replace(attribute, values)
	modify(t, s.Admin(t), r)
}

// Move moves a user to another organisational unit, such as Elsewhere.
func (s *SambaServer) Move(t testing.TB, user, ou string) {
	t.Helper()
	if err := s.Admin(t).ModifyDN(ldap.NewModifyDNRequest(s.UserDN(user), "CN="+user, true, "OU="+ou+","+s.BaseDN)); err != nil {
		t.Fatal(err)
	}
}

// Delete deletes a user.
func (s *SambaServer) Delete(t testing.TB, user string) {
	t.Helper()
	if err := s.Admin(t).Del(ldap.NewDelRequest(s.UserDN(user), nil)); err != nil {
		t.Fatal(err)
	}
}

// Keytab returns the path of a new keytab with the keys of Principal.
func (s *SambaServer) Keytab(t testing.TB) string {
	t.Helper()
	path := filepath.Join(Folder(t), "http.keytab")
	cmd := exec.CommandContext(t.Context(), sambaTool, "domain", "exportkeytab", "--configfile="+s.config(), "--principal="+s.Principal, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("export the keytab: %v\n%s", err, out)
	}
	return path
}

// Kinit gets a ticket for a user and returns the environment, as NAME=value, in which Kerberos' clients find it and the domain.
func (s *SambaServer) Kinit(t testing.TB, user, password string) ([]string, error) {
	t.Helper()
	env := []string{"KRB5_CONFIG=" + s.Krb5Config, "KRB5CCNAME=FILE:" + filepath.Join(Folder(t), "ccache")}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/kinit", user+"@"+s.Realm)
	cmd.Env, cmd.Stdin = append(os.Environ(), env...), strings.NewReader(password+"\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("kinit %s: %w: %s", user, err, out)
	}
	return env, nil
}

// freeIP returns an address in 127.66.0.0/16 that no running test has and on which nobody serves LDAP.
func freeIP(t testing.TB) string {
	t.Helper()
	for range 100 {
		ip := fmt.Sprintf("127.66.%d.%d", rand.IntN(256), 1+rand.IntN(254))
		if reserve(ip + ":636") {
			return ip
		}
	}
	t.Fatal("no free address in 127.66.0.0/16 in 100 tries")
	return ""
}

// sambaTemplate returns the folder of a domain that is prepared but never ran: by this call, or by one not long ago.
func sambaTemplate(t testing.TB, o SambaOptions) string {
	t.Helper()
	version, err := exec.CommandContext(t.Context(), sambaProgram, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(append(append([]byte{}, sambaSeed...), version...))
	path := filepath.Join(Root(t), ".tools", fmt.Sprintf("samba-%x-%d", sum[:8], o.Many))
	unlock := lockFile(t, path+".lock")
	defer unlock()
	done := filepath.Join(path, "done")
	switch info, err := os.Stat(done); {
	case err == nil && time.Since(info.ModTime()) < templateAge:
		return path
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := provision(context.WithoutCancel(t.Context()), path, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// lockFile waits until no other test process has the lock.
func lockFile(t testing.TB, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// provision makes the domain in dir. It takes some seconds.
func provision(ctx context.Context, dir string, o SambaOptions) error {
	for _, args := range [][]string{
		{
			sambaTool, "domain", "provision", "--quiet", "--targetdir=" + dir, "--realm=AD.EXAMPLE.TEST", "--domain=ADTEST", "--server-role=dc",
			"--dns-backend=NONE", "--adminpass=" + sambaAdmin, "--host-name=dc1", "--host-ip=127.66.0.1", "--use-rfc2307",
			"--option=interfaces=127.66.0.1/8", "--option=bind interfaces only=yes", "--option=vfs objects=dfs_samba4 acl_xattr",
		},
		{"/usr/bin/python3", "-", dir, strconv.Itoa(o.Many)}, // not PATH's: it has Samba's modules
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(string(sambaSeed))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args[:2], " "), err, out)
		}
	}
	return nil
}

// sambaConfig replaces the config that provisioning wrote, which names the system's folders.
func sambaConfig(dir, ip string) []byte {
	return []byte(strings.NewReplacer("DIR", dir, "IP", ip).Replace(`[global]
 netbios name = DC1
 realm = AD.EXAMPLE.TEST
 workgroup = ADTEST
 server role = active directory domain controller
 server services = ldap, kdc
 interfaces = IP/8
 bind interfaces only = yes
 private dir = DIR/private
 state directory = DIR/state
 cache directory = DIR/cache
 lock directory = DIR
 pid directory = DIR/run
 ncalrpc dir = DIR/ncalrpc
 winbindd socket directory = DIR/wb
 ntp signd socket directory = DIR/ntp
 binddns dir = DIR/bind-dns
 log level = 1
 tls enabled = yes
 tls keyfile = DIR/tls/dc1.key
 tls certfile = DIR/tls/dc1.crt
 tls cafile = DIR/tls/ca.crt
 idmap_ldb:use rfc2307 = yes
 disable netbios = yes
 load printers = no
 prefork children = 1
[sysvol]
 path = DIR/state/sysvol
 read only = no
[netlogon]
 path = DIR/state/sysvol/ad.example.test/scripts
 read only = no
`))
}

// krb5Config keeps Kerberos' clients from asking any DNS.
func krb5Config(ip string) []byte {
	return []byte(strings.ReplaceAll(`[libdefaults]
 default_realm = AD.EXAMPLE.TEST
 dns_lookup_realm = false
 dns_lookup_kdc = false
 dns_canonicalize_hostname = false
 rdns = false
 udp_preference_limit = 0
[realms]
 AD.EXAMPLE.TEST = {
  kdc = IP:88
  kpasswd_server = IP:464
  default_domain = ad.example.test
 }
[domain_realm]
 .example.test = AD.EXAMPLE.TEST
`, "IP", ip))
}
