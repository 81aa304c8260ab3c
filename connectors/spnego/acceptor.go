package spnego

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
)

// A Why says in a bounded set of words why a token was refused, for logs and metrics.
type Why string

// Why tokens are refused.
const (
	Malformed     Why = "malformed"      // no token, or none that a browser sends
	TooLong       Why = "too-long"       // not even looked at
	NTLM          Why = "ntlm"           // the browser has no ticket and tries NTLM, which is not offered
	OldEncryption Why = "old-encryption" // RC4 or DES
	NoKey         Why = "no-key"         // the keytab has no key for the ticket
	BadKey        Why = "bad-key"        // the ticket does not open with the key, or has been tampered with
	WrongService  Why = "wrong-service"  // a ticket for somebody else
	WrongRealm    Why = "wrong-realm"    // the user is of a realm that is not accepted
	NotAUser      Why = "not-a-user"     // the ticket of a service or a computer
	Expired       Why = "expired"
	NotYetValid   Why = "not-yet-valid"
	ClockSkew     Why = "clock-skew"
	Replayed      Why = "replayed"
	Overloaded    Why = "overloaded" // more sign-ins than are remembered against replays
)

// A Refusal is why a token is not accepted. Its text is for the operator.
type Refusal struct {
	Why Why
	Err error
}

func (r *Refusal) Error() string { return fmt.Sprintf("ticket refused: %s: %v", r.Why, r.Err) }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

var errNTLM = errors.New("the browser sent NTLM, since it got no Kerberos ticket for this host: look at its SPN, DNS name and policy")

// A Principal is a user of a realm.
type Principal struct {
	Name, Realm string
	SID         string // of the account, such as S-1-5-21-1-2-3-1104; "" if the KDC does not tell, as those other than Active Directory
}

func (p Principal) String() string { return p.Name + "@" + p.Realm }

// An Acceptor tells from a token whose it is. It is safe for concurrent use.
type Acceptor struct {
	config  Config
	skew    time.Duration
	now     func() time.Time
	keytab  watched
	replays replays
}

// New returns an acceptor. It fails where the configuration has mistakes; now and log may be nil.
func New(c Config, now func() time.Time, log *slog.Logger) (*Acceptor, error) {
	c.Enabled = true
	var all []error
	for _, m := range c.Check() {
		all = append(all, m)
	}
	if len(all) > 0 {
		return nil, errors.Join(all...)
	}
	if now == nil {
		now = time.Now
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Acceptor{config: c, skew: c.skew(), now: now}
	a.replays.window = 2 * a.skew
	a.keytab.load = c.load
	a.keytab.path, a.keytab.now, a.keytab.log = c.KeytabPath, now, log
	if _, err := a.keytab.get(); err != nil {
		return nil, &Mistake{"keytabPath", err.Error()}
	}
	return a, nil
}

// Username is what the directory calls a principal, by the configuration.
func (a *Acceptor) Username(p Principal) string {
	if withRealm, _ := a.config.mapping(); withRealm {
		return p.String()
	}
	return p.Name
}

// Fallback reports whether those without a ticket get the form.
func (a *Acceptor) Fallback() bool { return a.config.FallbackToPassword }

// Accept says whose a token is, and what to answer with it. A token is accepted once. Every error is a *Refusal.
func (a *Acceptor) Accept(token []byte) (p Principal, reply []byte, err error) {
	defer func() {
		if e := recover(); e != nil { // the library reads what strangers send
			p, reply, err = Principal{}, nil, &Refusal{Malformed, fmt.Errorf("the token cannot be read (%T)", e)}
		}
	}()
	req, err := parse(token)
	if err != nil {
		return Principal{}, nil, err
	}
	if err := a.open(req); err != nil {
		return Principal{}, nil, err
	}
	if p, err = a.who(req); err != nil {
		return Principal{}, nil, err
	}
	if err := a.fresh(req); err != nil {
		return Principal{}, nil, err
	}
	if reply, err = req.reply(); err != nil {
		return Principal{}, nil, &Refusal{Malformed, err}
	}
	return p, reply, nil
}

// minCipher is below what any message of an AES encryption type has, in bytes: a confounder and a checksum.
const minCipher = 16 + 12

// open decrypts the ticket with the service's key, and the authenticator with the ticket's (RFC 4120 section 3.2.3).
func (a *Acceptor) open(req *apReq) error {
	t := &req.Ticket
	service := strings.Join(t.SName.NameString, "/")
	switch {
	case !a.config.accepts(service, t.Realm):
		return &Refusal{WrongService, fmt.Errorf("the ticket is for %.200q, want %s", service, a.config.serviceName())}
	case !isAES(t.EncPart.EType):
		return &Refusal{OldEncryption, fmt.Errorf("the ticket has encryption type %d, want AES: let the service's account support it", t.EncPart.EType)}
	case len(t.EncPart.Cipher) < minCipher || len(req.EncryptedAuthenticator.Cipher) < minCipher:
		return &Refusal{Malformed, errors.New("the ticket is cut short")}
	}
	keys, err := a.keytab.get()
	if err != nil {
		return &Refusal{NoKey, err}
	}
	found, err := keys.find(t.Realm, t.EncPart.EType, t.EncPart.KVNO)
	if err != nil {
		return &Refusal{NoKey, err}
	}
	if err := decryptTicket(t, found); err != nil {
		return err
	}
	if !isAES(t.DecryptedEncPart.Key.KeyType) {
		return &Refusal{OldEncryption, fmt.Errorf("the session key has encryption type %d, want AES: let the service's account and the client support it", t.DecryptedEncPart.Key.KeyType)}
	}
	if err := req.DecryptAuthenticator(t.DecryptedEncPart.Key); err != nil {
		return &Refusal{BadKey, errors.New("the authenticator does not open with the key in the ticket")}
	}
	if got := req.Authenticator.Cksum.CksumType; got != chksumtype.GSSAPI {
		return &Refusal{Malformed, fmt.Errorf("the request is of another protocol than GSS-API: its checksum is of type %d", got)}
	}
	return nil
}

func decryptTicket(t *messages.Ticket, keys []key) error {
	for _, k := range keys {
		plain, err := crypto.DecryptEncPart(t.EncPart, k.key, keyusage.KDC_REP_TICKET)
		if err != nil {
			continue
		}
		if err := t.DecryptedEncPart.Unmarshal(plain); err != nil {
			return &Refusal{Malformed, errors.New("what is in the ticket cannot be read")}
		}
		return nil
	}
	return &Refusal{BadKey, errors.New("the ticket does not open with the keytab's key of that version: export the keytab again")}
}

// maxName bounds a user's name, in bytes.
const maxName = 256

// who returns the user of an opened ticket. The KDC says who it is; what the client says of itself has to be the same, realm and all.
func (a *Acceptor) who(req *apReq) (Principal, error) {
	t, auth := &req.Ticket.DecryptedEncPart, &req.Authenticator
	if !auth.CName.Equal(t.CName) || auth.CRealm != t.CRealm {
		return Principal{}, &Refusal{BadKey, errors.New("the ticket and its authenticator name different users")}
	}
	if !a.ofOurs(t.CRealm) {
		return Principal{}, &Refusal{WrongRealm, fmt.Errorf("the user is of realm %.200q, want %s", t.CRealm, a.realm())}
	}
	if len(t.CName.NameString) != 1 {
		return Principal{}, &Refusal{NotAUser, fmt.Errorf("the ticket is of a service: %.200q", strings.Join(t.CName.NameString, "/"))}
	}
	name := t.CName.NameString[0]
	switch {
	case name == "" || len(name) > maxName || strings.ContainsAny(name, `@\`) || !printable(name), strings.Join(strings.Fields(name), " ") != name:
		// A directory would take what is before a backslash for a domain, and does not see blanks: the name would be another one's.
		return Principal{}, &Refusal{NotAUser, errors.New("the ticket's user has a name that no directory knows")}
	case strings.HasSuffix(name, "$"):
		return Principal{}, &Refusal{NotAUser, fmt.Errorf("the ticket is of a computer: %q", name)}
	}
	sid, err := accountOf(t.AuthorizationData)
	if err != nil {
		return Principal{}, &Refusal{Malformed, err}
	}
	return Principal{Name: name, Realm: t.CRealm, SID: sid}, nil
}

// ofOurs reports whether users of a realm are accepted: those of expectedRealm, else those of the keytab's realms. A realm that one of them trusts
// is another one.
func (a *Acceptor) ofOurs(realm string) bool {
	if strings.ContainsFunc(realm, notInNames) { // such as a letter that is a K in another case
		return false
	}
	if want := a.config.ExpectedRealm; want != "" {
		return strings.EqualFold(realm, want)
	}
	keys, err := a.keytab.get()
	if err != nil {
		return false
	}
	return slices.Contains(keys.realms, realm)
}

// fresh checks the times of a ticket and its authenticator, and that it comes the first time.
func (a *Acceptor) fresh(req *apReq) error {
	now, t := a.now(), &req.Ticket.DecryptedEncPart
	start := t.StartTime
	if start.IsZero() {
		start = t.AuthTime
	}
	made := req.Authenticator.CTime.Add(time.Duration(req.Authenticator.Cusec) * time.Microsecond)
	switch {
	case isSet(t.Flags.Bytes, flags.Invalid), start.Sub(now) > a.skew:
		return &Refusal{NotYetValid, fmt.Errorf("the ticket is good from %s", start.UTC().Format(time.RFC3339))}
	case now.Sub(t.EndTime) > a.skew:
		return &Refusal{Expired, fmt.Errorf("the ticket was good until %s", t.EndTime.UTC().Format(time.RFC3339))}
	case now.Sub(made) > a.skew, made.Sub(now) > a.skew:
		return &Refusal{ClockSkew, fmt.Errorf("the clocks of the client and of this machine differ by %s, want at most %s: set both by NTP", now.Sub(made).Round(time.Second), a.skew)}
	}
	switch seen, ok := a.replays.seen(sha256.Sum256(req.EncryptedAuthenticator.Cipher), now); {
	case !ok:
		return &Refusal{Overloaded, fmt.Errorf("more than %d sign-ins within %s", maxReplays, 2*a.replays.window)}
	case seen:
		return &Refusal{Replayed, errors.New("the same request came a second time")}
	}
	return nil
}

func (c *Config) serviceName() string {
	if c.SPN != "" {
		return c.SPN
	}
	return "HTTP/…"
}

func (a *Acceptor) realm() string {
	if r := a.config.ExpectedRealm; r != "" {
		return r
	}
	return "that of the keytab; expectedRealm names another one"
}
