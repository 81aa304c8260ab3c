package ldap

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGUID(t *testing.T) {
	t.Parallel()
	raw := unhex(t, "dd52cc3a 7ba1 bb4e 9c2e 0123456789ab")
	const text = "3acc52dd-a17b-4ebb-9c2e-0123456789ab"
	if got := guidText(raw); got != text {
		t.Errorf("got %s, want %s", got, text)
	}
	if got, ok := guidBytes(text); !ok || !bytes.Equal(got, raw) {
		t.Errorf("got %x and %v, want %x", got, ok, raw)
	}
	if got, want := equals("objectGUID", text), `(objectGUID=\dd\52\cc\3a\7b\a1\bb\4e\9c\2e\01\23\45\67\89\ab)`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, bad := range []string{"", "x", text[1:], text + "0", strings.ToUpper(text), "{" + text + "}", strings.ReplaceAll(text, "-", ""), "3acc52dda17b-4ebb-9c2e-0123456789ab", text[:35] + "*"} {
		if equals("objectguid", bad) != "" {
			t.Errorf("%q was taken for a GUID", bad)
		}
	}
	for _, bad := range [][]byte{nil, raw[1:], append(slices.Clone(raw), 0)} {
		if guidText(bad) != "" {
			t.Errorf("%x was taken for a GUID", bad)
		}
	}
}

func TestSID(t *testing.T) {
	t.Parallel()
	for text, raw := range map[string]string{
		"S-1-5-21-1004336348-1177238915-682003330-512": "01 05 000000000005 15000000 dcf4dc3b 833d2b46 828ba628 00020000",
		"S-1-5-32-545":              "01 02 000000000005 20000000 21020000",
		"S-1-1-0":                   "01 01 000000000001 00000000",
		"S-1-281474976710655":       "01 00 ffffffffffff",
		"S-1-5-21-4294967295-0-0-1": "01 05 000000000005 15000000 ffffffff 00000000 00000000 01000000",
	} {
		if got := sidText(unhex(t, raw)); got != text {
			t.Errorf("got %s, want %s", got, text)
		}
		if got, ok := sidBytes(text); !ok || !bytes.Equal(got, unhex(t, raw)) {
			t.Errorf("%s: got %x and %v, want %s", text, got, ok, raw)
		}
	}
	for _, bad := range []string{
		"", "S-1", "S-1-", "S-2-5-1", "s-1-5-1", "S-1-5-", "S-1-5-21--1", "S-1-5-01", "S-1-5-4294967296", "S-1-281474976710656", "S-1-5-+1", "S-1-5-1 ",
		"S-1-5" + strings.Repeat("-1", 16), "S-1-5-*",
	} {
		if equals("objectSid", bad) != "" {
			t.Errorf("%q was taken for a SID", bad)
		}
	}
	for _, bad := range []string{"", "01", "01 01 000000000005", "02 01 000000000005 00000000", "01 10 000000000005", "01 01 000000000005 00000000 00"} {
		if sidText(unhex(t, bad)) != "" {
			t.Errorf("%s was taken for a SID", bad)
		}
	}
}

func FuzzIDs(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), "S-1-5-21-1")
	f.Add(make([]byte, 12), "00000000-0000-0000-0000-000000000000")
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		if s := guidText(raw); s != "" {
			if back, ok := guidBytes(s); !ok || !bytes.Equal(back, raw) {
				t.Errorf("%x: got %x from %s", raw, back, s)
			}
		}
		if s := sidText(raw); s != "" {
			if back, ok := sidBytes(s); !ok || !bytes.Equal(back, raw) {
				t.Errorf("%x: got %x from %s", raw, back, s)
			}
		}
		for _, attribute := range []string{"uid", "objectGUID", "objectSid"} {
			if f := equals(attribute, text); f != "" {
				p, err := ldapv3.CompileFilter(f)
				if err != nil || p.Tag != ldapv3.FilterEqualityMatch {
					t.Errorf("%q became the filter %s: %v", text, f, err)
				}
			}
		}
	})
}

func TestPrimarySID(t *testing.T) {
	t.Parallel()
	e := &entry{attributes: map[string][][]byte{"objectsid": {unhex(t, "01 05 000000000005 15000000 dcf4dc3b 833d2b46 828ba628 50040000")}, "primarygroupid": {[]byte("513")}}}
	if got, want := primarySID(e), "S-1-5-21-1004336348-1177238915-682003330-513"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, id := range []string{"", "-1", "x", "4294967296"} {
		e.attributes["primarygroupid"] = [][]byte{[]byte(id)}
		if got := primarySID(e); got != "" {
			t.Errorf("%q: got %s, want none", id, got)
		}
	}
}

func TestFoldDN(t *testing.T) {
	t.Parallel()
	same := []string{"CN=Zoë Weiß,OU=People,DC=example,DC=com", "cn=zoë weiß, ou=people, dc=example, dc=com", `CN=Zo\c3\ab  Wei\C3\9F,OU=People,DC=Example,DC=com`}
	for _, dn := range same {
		if got, want := foldDN(dn), foldDN(same[0]); got != want {
			t.Errorf("%s: got %s, want %s", dn, got, want)
		}
	}
	for _, dn := range []string{`CN=a\,OU=People,DC=example`, `CN=a,OU=People,DC=example`, `CN=a\,OU\=People,DC=example`, `CN=a+OU=People,DC=example`} {
		for _, other := range []string{"cn=a,dc=example", "cn=b,ou=people,dc=example"} {
			if foldDN(dn) == foldDN(other) {
				t.Errorf("%s and %s were taken for one", dn, other)
			}
		}
	}
	if foldDN(`CN=a\,OU\=People,DC=example`) == foldDN(`CN=a,OU=People,DC=example`) {
		t.Error("an escaped comma was taken for one that separates")
	}
	// Active Directory and Samba have entries of both names beside each other.
	for _, other := range []string{"admin①", "ａdmin1", "admin¹", "admin\u20091", "admın1"} {
		if foldDN("cn="+other+",dc=example") == foldDN("cn=admin1,dc=example") {
			t.Errorf("%s was taken for admin1", other)
		}
	}
	if foldDN("cn=\u212aube,dc=example") == foldDN("cn=kube,dc=example") {
		t.Error("the Kelvin sign was taken for a k")
	}
}

func TestDomainOf(t *testing.T) {
	t.Parallel()
	for dn, want := range map[string][2]string{
		"OU=People,DC=Corp,DC=example,DC=com": {"dc=Corp,dc=example,dc=com", "corp.example.com"},
		"o=example":                           {"", ""},
		"dc=a,ou=b,dc=c":                      {"dc=c", "c"},
		"no DN":                               {"", ""},
		"":                                    {"", ""},
	} {
		if got := [2]string{domainOf(dn), dnsDomain(dn)}; got != want {
			t.Errorf("%q: got %q, want %q", dn, got, want)
		}
	}
	if got := dnsDomain(domainDN("corp.example.com")); got != "corp.example.com" {
		t.Errorf("got %q back from a domain's DN", got)
	}
}

// What a directory says is text for headers and pages, or nothing.
func TestSound(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Zoë": "Zoë", "a b": "a b", "a\nb": "", "a\x00b": "", "a\x7f": "", "\xff": "", "a\u2028b": "", "a\u202eb": "", "a\u0085b": "",
		strings.Repeat("x", 17): "", strings.Repeat("x", 16): strings.Repeat("x", 16),
	} {
		if got := sound(in, 16); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	e := &entry{dn: "cn=a", attributes: map[string][][]byte{"cn": {[]byte("\xff\xfe"), []byte("good"), {}}}}
	if got := e.values("cn"); !slices.Equal(got, []string{"good"}) {
		t.Errorf("got %q, want what is text", got)
	}
	if got := e.values("dn"); !slices.Equal(got, []string{"cn=a"}) {
		t.Errorf("got %q, want the name of the entry", got)
	}
}
