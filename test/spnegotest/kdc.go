// Package spnegotest makes Kerberos tickets for tests: what a KDC makes, and what it never would.
package spnegotest

import (
	"encoding/asn1"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// What a KDC serves.
const (
	Realm   = "AD.EXAMPLE.TEST"
	Service = "HTTP/auth.example.test"
	KVNO    = 3
)

// A KDC issues tickets for services whose keys it shares with a keytab.
type KDC struct {
	t    testing.TB
	path string
	tab  *keytab.Keytab
}

// New returns a KDC with a keytab of Service.
func New(t testing.TB) *KDC {
	k := &KDC{t: t, path: filepath.Join(t.TempDir(), "http.keytab")}
	k.Rekey(KVNO, "a long passphrase of the service", etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA1_96)
	return k
}

// Keytab is the path of the keytab.
func (k *KDC) Keytab() string { return k.path }

// Rekey replaces the keytab by one with keys of one version.
func (k *KDC) Rekey(kvno uint8, passphrase string, etypes ...int32) {
	k.t.Helper()
	tab := keytab.New()
	for _, e := range etypes {
		k.must(tab.AddEntry(Service, Realm, passphrase, time.Unix(1700000000, 0), kvno, e))
	}
	b, err := tab.Marshal()
	k.must(err)
	// As a tool does it that cares: a reader sees the old one or the new one.
	k.must(os.WriteFile(k.path+".new", b, 0o600))
	k.must(os.Rename(k.path+".new", k.path))
	k.tab = tab
}

func (k *KDC) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// A Request says what a token is to be. Good is a good one.
type Request struct {
	User, Realm       string // in the ticket
	Says, SaysRealm   string // what the client says of itself; "": the same
	Service, Issuer   string // and the realm that issued the ticket
	EType             int32
	KVNO              int
	Made              time.Time // of the authenticator
	Start, End        time.Time // of the ticket
	Mutual, Invalid   bool
	UserToUser, NoGSS bool     // NoGSS: without the checksum of RFC 4121 section 4.1.1
	Mechs             []string // "krb5", "mskrb5", "ntlm"; the first is the token's
	Raw               bool     // Kerberos without SPNEGO around it
}

// Good is a request by alice at a time.
func Good(now time.Time) Request {
	return Request{
		User: "alice", Realm: Realm, Service: Service, Issuer: Realm, EType: etypeID.AES256_CTS_HMAC_SHA1_96, KVNO: KVNO,
		Made: now, Start: now.Add(-time.Hour), End: now.Add(9 * time.Hour), Mechs: []string{"krb5"},
	}
}

// A Token is what a client sends, and what it needs to check the reply.
type Token struct {
	Bytes   []byte
	Session types.EncryptionKey
	Made    time.Time
	Cusec   int
}

// Token makes a token.
func (k *KDC) Token(r Request) Token {
	k.t.Helper()
	fl := types.NewKrbFlags()
	if r.Invalid {
		types.SetFlag(&fl, flags.Invalid)
	}
	ticket, session, err := messages.NewTicket(name(r.User), r.Realm, name(r.Service), r.Issuer, fl, k.tab, r.EType, r.KVNO, r.Start, r.Start, r.End, r.End)
	k.must(err)
	says, saysRealm := r.Says, r.SaysRealm
	if says == "" {
		says = r.User
	}
	if saysRealm == "" {
		saysRealm = r.Realm
	}
	auth, err := types.NewAuthenticator(saysRealm, name(says))
	k.must(err)
	made := r.Made.UTC()
	auth.CTime, auth.Cusec = made.Truncate(time.Second), made.Nanosecond()/1000
	if !r.NoGSS {
		auth.Cksum = types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: append([]byte{16, 0, 0, 0}, make([]byte, 20)...)}
	}
	req, err := messages.NewAPReq(ticket, session, auth)
	k.must(err)
	if r.Mutual {
		types.SetFlag(&req.APOptions, flags.APOptionMutualRequired)
	}
	if r.UserToUser {
		types.SetFlag(&req.APOptions, flags.APOptionUseSessionKey)
	}
	ap, err := req.Marshal()
	k.must(err)
	token := k.gss("krb5", append([]byte{1, 0}, ap...))
	if !r.Raw {
		token = k.Negotiate(r.Mechs, token)
	}
	return Token{Bytes: token, Session: session, Made: auth.CTime, Cusec: auth.Cusec}
}

func name(s string) types.PrincipalName {
	return types.PrincipalName{NameType: nametype.KRB_NT_PRINCIPAL, NameString: strings.Split(s, "/")}
}

func oid(mech string) asn1.ObjectIdentifier {
	switch mech {
	case "krb5":
		return asn1.ObjectIdentifier{1, 2, 840, 113554, 1, 2, 2}
	case "mskrb5":
		return asn1.ObjectIdentifier{1, 2, 840, 48018, 1, 2, 2}
	case "ntlm":
		return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 2, 10}
	}
	return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 2} // SPNEGO
}

// gss puts a mechanism in front of a token (RFC 2743 section 3.1).
func (k *KDC) gss(mech string, inner []byte) []byte {
	b, err := asn1.Marshal(oid(mech))
	k.must(err)
	return k.tagged(asn1.ClassApplication, 0, slices.Concat(b, inner))
}

func (k *KDC) tagged(class, tag int, b []byte) []byte {
	out, err := asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: b})
	k.must(err)
	return out
}

// Negotiate is a first SPNEGO token (RFC 4178 section 4.2.1) for mechanisms, with a token of the first one.
func (k *KDC) Negotiate(mechs []string, token []byte) []byte {
	k.t.Helper()
	n := struct {
		MechTypes []asn1.ObjectIdentifier `asn1:"explicit,tag:0"`
		MechToken []byte                  `asn1:"explicit,optional,omitempty,tag:2"`
	}{MechToken: token}
	for _, m := range mechs {
		n.MechTypes = append(n.MechTypes, oid(m))
	}
	b, err := asn1.Marshal(n)
	k.must(err)
	return k.gss("spnego", k.tagged(asn1.ClassContextSpecific, 0, b))
}

// Proves reports whether a reply to a mutual request is from whoever could read the ticket (RFC 4120 section 3.2.5).
func (tok Token) Proves(reply []byte) bool {
	var resp struct {
		State asn1.Enumerated       `asn1:"explicit,tag:0"`
		Mech  asn1.ObjectIdentifier `asn1:"explicit,optional,tag:1"`
		Token []byte                `asn1:"explicit,optional,tag:2"`
	}
	var choice, gss asn1.RawValue
	var mech asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(reply, &choice); err != nil || choice.Tag != 1 {
		return false
	}
	if _, err := asn1.Unmarshal(choice.Bytes, &resp); err != nil || resp.State != 0 {
		return false
	}
	if _, err := asn1.Unmarshal(resp.Token, &gss); err != nil {
		return false
	}
	rest, err := asn1.Unmarshal(gss.Bytes, &mech)
	if err != nil || len(rest) < 2 || rest[0] != 2 || rest[1] != 0 {
		return false
	}
	var rep messages.APRep
	if err := rep.Unmarshal(rest[2:]); err != nil {
		return false
	}
	plain, err := crypto.DecryptEncPart(rep.EncPart, tok.Session, keyusage.AP_REP_ENCPART)
	if err != nil {
		return false
	}
	var part messages.EncAPRepPart
	return part.Unmarshal(plain) == nil && part.CTime.Equal(tok.Made) && part.Cusec == tok.Cusec
}
