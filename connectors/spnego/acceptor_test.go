package spnego

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"

	"gatehouse/test/spnegotest"
)

// noon is when the tests take place.
var noon = time.Date(2026, 11, 25, 12, 0, 0, 123456000, time.UTC)

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func accepting(t *testing.T, k *spnegotest.KDC, c Config) (*Acceptor, *clock) {
	t.Helper()
	clk := &clock{noon}
	c.KeytabPath = k.Keytab()
	a, err := New(c, clk.now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a, clk
}

func why(err error) Why {
	var no *Refusal
	if errors.As(err, &no) {
		return no.Why
	}
	return ""
}

func TestTicketIsAccepted(t *testing.T) {
	for name, tt := range map[string]struct {
		config Config
		change func(*spnegotest.Request)
	}{
		"by a service of any name":  {},
		"by its name":               {Config{SPN: spnegotest.Service}, nil},
		"by its name with a realm":  {Config{SPN: spnegotest.Service + "@" + spnegotest.Realm}, nil},
		"by its name in other case": {Config{SPN: "http/AUTH.example.test"}, nil},
		"by the keytab's principal": {Config{KeytabPrincipal: spnegotest.Service}, nil},
		"by the realm":              {Config{ExpectedRealm: "ad.example.test"}, nil},
		"with AES-128":              {Config{}, func(r *spnegotest.Request) { r.EType = etypeID.AES128_CTS_HMAC_SHA1_96 }},
		"as Windows asks":           {Config{}, func(r *spnegotest.Request) { r.Mechs = []string{"mskrb5", "krb5", "ntlm"}; r.Mutual = true }},
		"without SPNEGO":            {Config{}, func(r *spnegotest.Request) { r.Raw = true }},
		"at the edge of the skew":   {Config{MaxClockSkew: 60}, func(r *spnegotest.Request) { r.Made = noon.Add(-time.Minute) }},
		"of a realm that is named":  {Config{ExpectedRealm: "OTHER.TEST"}, func(r *spnegotest.Request) { r.Realm = "OTHER.TEST" }},
	} {
		t.Run(name, func(t *testing.T) {
			k := spnegotest.New(t)
			a, _ := accepting(t, k, tt.config)
			r := spnegotest.Good(noon)
			if tt.change != nil {
				tt.change(&r)
			}
			p, _, err := a.Accept(k.Token(r).Bytes)
			if want := (Principal{"alice", r.Realm, ""}); err != nil || p != want {
				t.Fatalf("got %v, %v, want %v", p, err, want)
			}
		})
	}
}

func TestTicketIsRefused(t *testing.T) {
	service := Config{SPN: spnegotest.Service}
	for name, tt := range map[string]struct {
		config Config
		change func(*spnegotest.Request)
		want   Why
	}{
		"of a user of another realm":                  {service, func(r *spnegotest.Request) { r.Realm = "EVIL.TEST" }, WrongRealm},
		"of another realm, whose client says ours":    {service, func(r *spnegotest.Request) { r.Realm, r.SaysRealm = "EVIL.TEST", spnegotest.Realm }, BadKey},
		"of another user than the client says":        {service, func(r *spnegotest.Request) { r.Says = "administrator" }, BadKey},
		"of our realm, where another one is expected": {Config{ExpectedRealm: "OTHER.TEST"}, nil, WrongRealm},
		"of a realm in look-alike letters":            {Config{ExpectedRealm: "K.TEST"}, func(r *spnegotest.Request) { r.Realm = "\u212a.TEST" }, WrongRealm},
		"for another service of this host":            {Config{SPN: "host/auth.example.test", KeytabPrincipal: spnegotest.Service}, nil, WrongService},
		"for another host":                            {Config{SPN: "HTTP/other.example.test", KeytabPrincipal: spnegotest.Service}, nil, WrongService},
		"that has ended":                              {service, func(r *spnegotest.Request) { r.End = noon.Add(-6 * time.Minute) }, Expired},
		"that is not good yet":                        {service, func(r *spnegotest.Request) { r.Start = noon.Add(6 * time.Minute) }, NotYetValid},
		"that is marked invalid":                      {service, func(r *spnegotest.Request) { r.Invalid = true }, NotYetValid},
		"from a clock that is behind":                 {service, func(r *spnegotest.Request) { r.Made = noon.Add(-5*time.Minute - time.Second) }, ClockSkew},
		"from a clock that is ahead":                  {service, func(r *spnegotest.Request) { r.Made = noon.Add(5*time.Minute + time.Second) }, ClockSkew},
		"from a clock beyond a narrower skew":         {Config{MaxClockSkew: 10}, func(r *spnegotest.Request) { r.Made = noon.Add(-11 * time.Second) }, ClockSkew},
		"of a service":                                {service, func(r *spnegotest.Request) { r.User = "HTTP/evil.test" }, NotAUser},
		"of a computer":                               {service, func(r *spnegotest.Request) { r.User = "PC1$" }, NotAUser},
		"of a user with a realm in the name":          {service, func(r *spnegotest.Request) { r.User = "alice@corp.test" }, NotAUser},
		"of a user with a domain in the name":         {service, func(r *spnegotest.Request) { r.User = `CORP\alice` }, NotAUser},
		"of a user with a blank before the name":      {service, func(r *spnegotest.Request) { r.User = " alice" }, NotAUser},
		"of a user with a blank after the name":       {service, func(r *spnegotest.Request) { r.User = "alice " }, NotAUser},
		"of a user with two blanks in the name":       {service, func(r *spnegotest.Request) { r.User = "al  ice" }, NotAUser},
		"of a user with a line break":                 {service, func(r *spnegotest.Request) { r.User = "alice\r\nkubeflow-userid: root" }, NotAUser},
		"of a user with a NUL":                        {service, func(r *spnegotest.Request) { r.User = "alice\x00" }, NotAUser},
		"of a user without a name":                    {service, func(r *spnegotest.Request) { r.User = "" }, NotAUser},
		"of a user of 300 bytes":                      {service, func(r *spnegotest.Request) { r.User = strings.Repeat("a", 300) }, NotAUser},
		"between users":                               {service, func(r *spnegotest.Request) { r.UserToUser = true }, Malformed},
		"of another protocol than GSS-API":            {service, func(r *spnegotest.Request) { r.NoGSS = true }, Malformed},
		"that the client does not begin with":         {service, func(r *spnegotest.Request) { r.Mechs = []string{"spnego", "krb5"} }, Malformed},
		"where the client begins with NTLM":           {service, func(r *spnegotest.Request) { r.Mechs = []string{"ntlm", "krb5"} }, NTLM},
		"without mechanisms":                          {service, func(r *spnegotest.Request) { r.Mechs = nil }, Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			k := spnegotest.New(t)
			a, _ := accepting(t, k, tt.config)
			r := spnegotest.Good(noon)
			if tt.change != nil {
				tt.change(&r)
			}
			p, reply, err := a.Accept(k.Token(r).Bytes)
			if why(err) != tt.want || p != (Principal{}) || reply != nil {
				t.Errorf("got %v, %x, %v, want a refusal: %s", p, reply, err, tt.want)
			}
		})
	}
}

func TestTokenThatIsNone(t *testing.T) {
	k := spnegotest.New(t)
	a, _ := accepting(t, k, Config{})
	good := k.Token(spnegotest.Good(noon)).Bytes
	ntlmssp := append([]byte("NTLMSSP\x00"), 1, 0, 0, 0, 7, 0x82, 8, 0xa2)
	for name, tt := range map[string]struct {
		token []byte
		want  Why
	}{
		"nothing":               {nil, Malformed},
		"one byte":              {good[:1], Malformed},
		"half a token":          {good[:len(good)/2], Malformed},
		"something after it":    {append(slices.Clone(good), 0), Malformed},
		"zeros":                 {make([]byte, 4096), Malformed},
		"64 kB and one byte":    {append(slices.Clone(good), make([]byte, maxToken)...), TooLong},
		"a megabyte":            {bytes.Repeat([]byte{0x60}, 1<<20), TooLong},
		"NTLM":                  {ntlmssp, NTLM},
		"NTLM in SPNEGO":        {k.Negotiate([]string{"ntlm"}, ntlmssp), NTLM},
		"NTLM as if Kerberos":   {k.Negotiate([]string{"krb5"}, ntlmssp), NTLM},
		"no token yet":          {k.Negotiate([]string{"krb5"}, nil), Malformed},
		"garbage in SPNEGO":     {k.Negotiate([]string{"krb5"}, []byte("garbage")), Malformed},
		"SPNEGO within SPNEGO":  {k.Negotiate([]string{"krb5"}, good), Malformed},
		"a length of 4 GB":      {[]byte{0x60, 0x84, 0xff, 0xff, 0xff, 0xff}, Malformed},
		"a length without end":  {[]byte{0x60, 0x80, 0, 0}, Malformed},
		"more nesting than air": {bytes.Repeat([]byte{0x60, 0x82, 0xff, 0}, 1000), Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := a.Accept(tt.token); why(err) != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestTamperedTokenIsRefused(t *testing.T) {
	k := spnegotest.New(t)
	a, _ := accepting(t, k, Config{})
	good := k.Token(spnegotest.Good(noon)).Bytes
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x55
		p, _, err := a.Accept(bad)
		// What is not signed may change as long as the user does not: the numbers of protocols that nobody needs.
		if err == nil && p != (Principal{"alice", spnegotest.Realm, ""}) {
			t.Fatalf("byte %d changed: accepted as %v", i, p)
		}
		if err == nil {
			a.replays.current = nil
		}
	}
}

func TestTokenIsAcceptedOnce(t *testing.T) {
	k := spnegotest.New(t)
	a, clk := accepting(t, k, Config{MaxClockSkew: 60})
	token := k.Token(spnegotest.Good(noon.Add(time.Minute))) // made as far ahead as is accepted: good for two minutes
	if _, _, err := a.Accept(token.Bytes); err != nil {
		t.Fatal(err)
	}
	for _, later := range []time.Duration{0, time.Second, time.Minute, 119 * time.Second, 2 * time.Minute} {
		clk.at = noon.Add(later)
		if _, _, err := a.Accept(token.Bytes); why(err) != Replayed {
			t.Errorf("the same token %s later: %v, want %s", later, err, Replayed)
		}
	}
	clk.at = noon.Add(2*time.Minute + time.Second)
	if _, _, err := a.Accept(token.Bytes); why(err) != ClockSkew {
		t.Errorf("the same token after its time: %v, want %s", err, ClockSkew)
	}
	// The same ticket with another authenticator is the user again.
	if _, _, err := a.Accept(k.Token(spnegotest.Good(clk.at)).Bytes); err != nil {
		t.Error(err)
	}
}

func TestTokenInParallelIsAcceptedOnce(t *testing.T) {
	k := spnegotest.New(t)
	a, _ := accepting(t, k, Config{})
	token := k.Token(spnegotest.Good(noon)).Bytes
	results := make(chan error)
	for range 8 {
		go func() {
			_, _, err := a.Accept(token)
			results <- err
		}()
	}
	accepted := 0
	for range 8 {
		if err := <-results; err == nil {
			accepted++
		} else if why(err) != Replayed {
			t.Error(err)
		}
	}
	if accepted != 1 {
		t.Errorf("accepted %d times, want 1", accepted)
	}
}

func TestReplaysAreBounded(t *testing.T) {
	r := &replays{window: time.Minute}
	id := func(n int) [sha256.Size]byte { return sha256.Sum256([]byte{byte(n), byte(n >> 8), byte(n >> 16)}) }
	for n := range maxReplays {
		if seen, ok := r.seen(id(n), noon); seen || !ok {
			t.Fatalf("%d: seen %v, ok %v", n, seen, ok)
		}
	}
	if _, ok := r.seen(id(maxReplays), noon); ok {
		t.Error("remembers more than it may")
	}
	if seen, ok := r.seen(id(0), noon); !seen || !ok {
		t.Error("forgot the first one")
	}
	if seen, ok := r.seen(id(maxReplays), noon.Add(time.Minute)); seen || !ok {
		t.Error("has no room in the next window")
	}
	if seen, _ := r.seen(id(0), noon.Add(time.Minute+59*time.Second)); !seen {
		t.Error("forgot within the window")
	}
	r.seen(id(1), noon.Add(4*time.Minute))
	if len(r.last)+len(r.current) != 1 {
		t.Errorf("remembers %d after two windows without any, want 1", len(r.last)+len(r.current))
	}
}

func TestReplyProvesTheService(t *testing.T) {
	k := spnegotest.New(t)
	a, _ := accepting(t, k, Config{})
	r := spnegotest.Good(noon)
	r.Mutual, r.Mechs = true, []string{"mskrb5", "krb5"}
	token := k.Token(r)
	_, reply, err := a.Accept(token.Bytes)
	if err != nil || !token.Proves(reply) {
		t.Errorf("reply %x, %v: proves nothing", reply, err)
	}
	other := k.Token(r)
	if other.Proves(reply) {
		t.Error("the reply proves anything")
	}
	r.Mutual = false
	_, reply, err = a.Accept(k.Token(r).Bytes)
	if want := []byte{0xa1, 0x14, 0x30, 0x12, 0xa0, 0x03, 0x0a, 0x01, 0x00, 0xa1, 0x0b, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x82, 0xf7, 0x12, 0x01, 0x02, 0x02}; err != nil || !bytes.Equal(reply, want) {
		t.Errorf("without a mutual request: %x, %v, want %x", reply, err, want)
	}
}

func TestOldEncryptionIsRefused(t *testing.T) {
	k := spnegotest.New(t)
	a, clk := accepting(t, k, Config{})
	k.Rekey(spnegotest.KVNO, "a long passphrase of the service", etypeID.RC4_HMAC, etypeID.AES256_CTS_HMAC_SHA1_96)
	clk.at = clk.at.Add(lookEvery)
	r := spnegotest.Good(clk.at)
	r.EType = etypeID.RC4_HMAC
	if _, _, err := a.Accept(k.Token(r).Bytes); why(err) != OldEncryption {
		t.Errorf("got %v, want %s", err, OldEncryption)
	}
	k.Rekey(spnegotest.KVNO, "a long passphrase of the service", etypeID.RC4_HMAC)
	if _, err := New(Config{KeytabPath: k.Keytab()}, nil, nil); err == nil || !strings.Contains(err.Error(), "only RC4 or DES keys") {
		t.Errorf("a keytab with an RC4 key only: %v", err)
	}
}

func TestKeytabIsReadAgain(t *testing.T) {
	k := spnegotest.New(t)
	a, clk := accepting(t, k, Config{})
	k.Rekey(4, "the next passphrase of the service", etypeID.AES256_CTS_HMAC_SHA1_96)
	r := spnegotest.Good(noon)
	r.KVNO = 4
	if _, _, err := a.Accept(k.Token(r).Bytes); why(err) != NoKey || !strings.Contains(err.Error(), "the keytab has [3]") {
		t.Errorf("before the file is looked at: %v, want %s with the versions", err, NoKey)
	}
	clk.at = noon.Add(lookEvery)
	if _, _, err := a.Accept(k.Token(r).Bytes); err != nil {
		t.Errorf("after the file has changed: %v", err)
	}
	// One that is of no use is not taken up.
	if err := os.WriteFile(k.Keytab(), []byte("half a"), 0o600); err != nil {
		t.Fatal(err)
	}
	clk.at = clk.at.Add(lookEvery)
	r.Made = clk.at
	if _, _, err := a.Accept(k.Token(r).Bytes); err != nil {
		t.Errorf("with a broken file: %v, want the keys of before", err)
	}
}

func TestUsername(t *testing.T) {
	k := spnegotest.New(t)
	for mapping, want := range map[string]string{
		"": "alice", "localpart": "alice", "sAMAccountName": "alice", "userPrincipalName": "alice@AD.EXAMPLE.TEST", "USERPRINCIPALNAME": "alice@AD.EXAMPLE.TEST",
	} {
		a, _ := accepting(t, k, Config{UsernameFromPrincipal: mapping})
		if got := a.Username(Principal{"alice", spnegotest.Realm, ""}); got != want {
			t.Errorf("%q: %q, want %q", mapping, got, want)
		}
	}
}

func FuzzAccept(f *testing.F) {
	k := spnegotest.New(f)
	r := spnegotest.Good(noon)
	f.Add(k.Token(r).Bytes)
	r.Mechs, r.Mutual = []string{"mskrb5", "krb5", "ntlm"}, true
	f.Add(k.Token(r).Bytes)
	r.Raw = true
	f.Add(k.Token(r).Bytes)
	f.Add([]byte("NTLMSSP\x00"))
	f.Add(k.Negotiate([]string{"krb5"}, nil))
	f.Add(k.Negotiate([]string{"krb5"}, []byte{0x60, 0}))
	clk := &clock{noon}
	a, err := New(Config{KeytabPath: k.Keytab()}, clk.now, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		a.replays.current, a.replays.last = nil, nil
		p, reply, err := a.Accept(token)
		if err == nil {
			if p != (Principal{"alice", spnegotest.Realm, ""}) {
				t.Fatalf("accepted as %v", p)
			}
			return
		}
		if why(err) == "" || p != (Principal{}) || reply != nil {
			t.Fatalf("got %v, %x, %v", p, reply, err)
		}
		if strings.Contains(err.Error(), "cannot be read (") {
			t.Logf("the library panicked: %v", err)
		}
	})
}
