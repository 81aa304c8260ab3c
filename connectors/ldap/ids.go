package ldap

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	ldapv3 "github.com/go-ldap/ldap/v3"
	"golang.org/x/text/unicode/norm"
)

// How much is taken of what a directory says, in bytes.
const (
	maxDN    = 4096
	maxID    = 1024
	maxText  = 512
	maxEmail = 320 // RFC 3696, errata
)

// sound returns a text that may be shown and sent on, or "": no other than UTF-8, no control characters, no more than max bytes.
func sound(s string, limit int) string {
	if len(s) > limit || !utf8.ValidString(s) || strings.ContainsFunc(s, unprintable) {
		return ""
	}
	return s
}

// unprintable are control characters, and what separates lines or turns the direction of text around.
func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control)
}

// An encoding is how an attribute's value is written as text.
type encoding uint8

const (
	asText encoding = iota
	asGUID
	asSID
)

// encodingOf tells the attributes of Active Directory whose values are binary.
func encodingOf(attribute string) encoding {
	name, _, _ := strings.Cut(strings.ToLower(attribute), ";")
	switch name {
	case "objectguid", "ms-ds-consistencyguid":
		return asGUID
	case "objectsid":
		return asSID
	}
	return asText
}

// isDN says that an attribute stands for the name of the entry, as in Dex.
func isDN(attribute string) bool { return strings.EqualFold(attribute, "DN") }

// values returns an attribute's values as texts, those of DN being the entry's name. What cannot be one is left out.
func (e *entry) values(attribute string) []string {
	if isDN(attribute) && len(e.raw(attribute)) == 0 {
		return nonEmpty(sound(e.dn, maxDN))
	}
	var out []string
	for _, v := range e.raw(attribute) {
		var s string
		switch encodingOf(attribute) {
		case asGUID:
			s = guidText(v)
		case asSID:
			s = sidText(v)
		default:
			s = sound(string(v), maxDN)
		}
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// value returns the first value of an attribute, "" if there is none or it is longer than limit.
func (e *entry) value(attribute string, limit int) string {
	if v := e.values(attribute); len(v) > 0 && len(v[0]) <= limit {
		return v[0]
	}
	return ""
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// guidText writes a GUID, whose first three parts are little-endian (MS-DTYP section 2.3.4.2); "" if it is none.
func guidText(b []byte) string {
	if len(b) != 16 {
		return ""
	}
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x",
		binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:])
}

// guidBytes reads what guidText writes, and nothing else.
func guidBytes(s string) ([]byte, bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return nil, false
	}
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5], b[6], b[7] = b[5], b[4], b[7], b[6]
	return b, guidText(b) == s
}

// sidText writes a security identifier (MS-DTYP section 2.4.2); "" if it is none.
func sidText(b []byte) string {
	if len(b) < 8 || b[0] != 1 || b[1] > 15 || len(b) != 8+4*int(b[1]) {
		return ""
	}
	authority := binary.BigEndian.Uint64(b[:8]) & (1<<48 - 1)
	var s strings.Builder
	s.WriteString("S-1-" + strconv.FormatUint(authority, 10))
	for sub := b[8:]; len(sub) > 0; sub = sub[4:] {
		s.WriteString("-" + strconv.FormatUint(uint64(binary.LittleEndian.Uint32(sub)), 10))
	}
	return s.String()
}

// sidBytes reads what sidText writes, and nothing else.
func sidBytes(s string) ([]byte, bool) {
	parts := strings.Split(s, "-")
	if len(parts) < 3 || len(parts) > 18 || parts[0] != "S" || parts[1] != "1" {
		return nil, false
	}
	authority, err := strconv.ParseUint(parts[2], 10, 48)
	if err != nil {
		return nil, false
	}
	b := binary.BigEndian.AppendUint64(nil, authority)
	b[0], b[1] = 1, byte(len(parts)-3) //nolint:gosec // G115: at most 15
	for _, p := range parts[3:] {
		sub, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return nil, false
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(sub))
	}
	return b, sidText(b) == s
}

// primarySID is the SID of the group that is a user's primary one: the user's own domain with the group's number. "" if it is not known.
func primarySID(e *entry) string {
	domain, _, ok := cutLast(e.value("objectSid", maxID), "-")
	n, err := strconv.ParseUint(e.text("primaryGroupID"), 10, 32)
	if !ok || err != nil {
		return ""
	}
	return domain + "-" + strconv.FormatUint(n, 10)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// escaped writes bytes for a filter (RFC 4515 section 3), each of them as \xx.
func escaped(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, `\%02x`, c)
	}
	return s.String()
}

// equals is a filter for an attribute's value as this package writes it; "" if it cannot be one.
func equals(attribute, value string) string {
	var raw []byte
	var ok bool
	switch encodingOf(attribute) {
	case asGUID:
		raw, ok = guidBytes(value)
	case asSID:
		raw, ok = sidBytes(value)
	default:
		return "(" + attribute + "=" + ldapv3.EscapeFilter(value) + ")"
	}
	if !ok {
		return ""
	}
	return "(" + attribute + "=" + escaped(raw) + ")"
}

// anyOf is a filter that any of some filters fulfils.
func anyOf(filters []string) string {
	if len(filters) == 1 {
		return filters[0]
	}
	return "(|" + strings.Join(filters, "") + ")"
}

// allOf is a filter that fulfils what the configuration asks for, if anything, and f.
func allOf(configured, f string) string {
	if configured == "" {
		return f
	}
	return "(&" + configured + f + ")"
}

// foldDN writes a distinguished name so that its spellings are one: case, spaces and escapes apart. What is no such name is itself. It folds no more than every
// directory does: groups and users whose names are only alike, such as "admin①" and "admin1", are not the same.
func foldDN(dn string) string { return foldedDN(dn, foldValue) }

// alikeDN is the same for names that some directory may take for one.
func alikeDN(dn string) string { return foldedDN(dn, foldText) }

func foldedDN(dn string, fold func(string) string) string {
	d, err := ldapv3.ParseDN(dn)
	if err != nil {
		return fold(dn)
	}
	for _, r := range d.RDNs {
		for _, a := range r.Attributes {
			a.Value = fold(a.Value) // String writes what is not ASCII in hexadecimal
		}
	}
	return d.String()
}

// foldValue folds case where two letters are each other's only other case (the Kelvin sign is no k), and runs of spaces.
func foldValue(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' }), " ")
	return strings.Map(func(r rune) rune {
		if l := unicode.ToLower(r); unicode.ToUpper(l) == r {
			return l
		}
		return r
	}, s)
}

// foldText writes a text so that its spellings are one to most rules of matching (RFC 4518): case, blanks, forms of characters.
func foldText(s string) string {
	return strings.ToLower(norm.NFKC.String(strings.Join(strings.Fields(s), " ")))
}

// domainOf is the part of a distinguished name that names the domain, dc=example,dc=com; "" if it has none.
func domainOf(dn string) string {
	d, err := ldapv3.ParseDN(dn)
	if err != nil {
		return ""
	}
	n := len(d.RDNs)
	for n > 0 && len(d.RDNs[n-1].Attributes) == 1 && strings.EqualFold(d.RDNs[n-1].Attributes[0].Type, "dc") {
		n--
	}
	return (&ldapv3.DN{RDNs: d.RDNs[n:]}).String()
}

// dnsDomain is the DNS name of a domain: example.com of dc=example,dc=com.
func dnsDomain(dn string) string {
	d, err := ldapv3.ParseDN(domainOf(dn))
	if err != nil {
		return ""
	}
	labels := make([]string, 0, len(d.RDNs))
	for _, r := range d.RDNs {
		labels = append(labels, strings.ToLower(r.Attributes[0].Value))
	}
	return strings.Join(labels, ".")
}
