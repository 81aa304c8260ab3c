package hosts

import (
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// FuzzHost holds that an accepted host has one spelling, of letters, digits, dots, hyphens and the brackets of an
// address, and that case, port and a trailing dot do not matter.
func FuzzHost(f *testing.F) {
	for _, s := range []string{
		"app.example.com", "APP.example.com.:443", "127.0.0.1", "0x7f.1", "[2001:DB8::1]:443", "[::ffff:1.2.3.4]", "[fe80::1%25eth0]", "[::1]x",
		"a,b.example.com", "user@app.example.com", "app.example.com:80:90", "app.example.com#@evil.com", "evil.com%00.example.com", `a\b`,
		"xn--zo-hia.example.com", "zoë.example.com", "app。example.com", "ａpp.example.com", "\tapp.example.com", "app.example.com\r\n", "K.example.com", "-", "a.-b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		name, ok := Canonical(in)
		if !ok {
			if name != "" {
				t.Fatalf("%q: got %q without ok", in, name)
			}
			return
		}
		if bad := strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-:[]"); bad != "" || strings.HasSuffix(name, ".") || len(name) > 253 {
			t.Fatalf("%q is accepted as %q", in, name)
		}
		bare := strings.Trim(name, "[]")
		if addr, err := netip.ParseAddr(bare); strings.ContainsAny(name, ":[]") && (err != nil || !addr.Is6() || name != "["+bare+"]") {
			t.Fatalf("%q is accepted as %q, which is no address: %v", in, name, err)
		}
		spellings := []string{name, name + ":1", name + ":65535", strings.ToUpper(name)}
		if !strings.HasPrefix(name, "[") && len(name) < 253 {
			spellings = append(spellings, name+".", name+".:443")
		}
		for _, s := range spellings {
			if again, ok := Canonical(s); !ok || again != name {
				t.Fatalf("%q is %q, and %q is %q, %v", in, name, s, again, ok)
			}
		}
		for _, s := range []string{name + ",", "," + name, "a@" + name, name + "/", name + "\\", name + " ", name + "\x00", name + ":", name + "..", name + "%"} {
			if again, ok := Canonical(s); ok {
				t.Fatalf("%q is accepted as %q", s, again)
			}
		}
	})
}

// A listed is an entry of a list as the documentation of Parse reads it.
type listed struct{ scheme, name, port string }

var entrySyntax = regexp.MustCompile(`^(?:(https?)://)?(\*\.[a-z0-9.-]+|[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]+))?$`)

// find returns the entry of name: the exact one, else that of the longest wildcard.
func find(list []listed, name string) (best listed, ok bool) {
	for _, e := range list {
		suffix, wild := strings.CutPrefix(e.name, "*")
		switch {
		case e.name == name:
			return e, true
		case wild && len(name) > len(suffix) && strings.HasSuffix(name, suffix) && len(e.name) > len(best.name):
			best, ok = e, true
		}
	}
	return best, ok
}

// FuzzParse holds that a list of hosts is read as it is documented, that Lookup and Origin agree with a naive reading of it,
// and that an origin leads to that host and to no other.
func FuzzParse(f *testing.F) {
	const list = "app.example.com\nhttp://plain.example.com:8080\n*.apps.example.com\n*.b.apps.example.com:444\nx.apps.example.com:8443\n[::1]:8080"
	for _, name := range []string{
		"app.example.com", "x.apps.example.com", "y.b.apps.example.com", "apps.example.com", ".apps.example.com", "evilapps.example.com", "[::1]", "",
		"app.example.com.evil.com", "a..apps.example.com", "\x00.apps.example.com", "evil.com/.apps.example.com",
	} {
		f.Add(list, name)
	}
	for _, bad := range []string{"*.com", "*", "a.example.com:0", "*.[::ffff:1.2.3.4]", "*.*.example.com", "https://", "a@b", "A", "a.example.com:+80", "a.example.com:080"} {
		f.Add(bad, "a.example.com")
	}
	f.Fuzz(func(t *testing.T, text, lookup string) {
		entries := strings.Split(text, "\n")
		s, err := Parse(entries, "https")
		if err != nil {
			return
		}
		var list []listed
		names := []string{lookup}
		for _, e := range entries {
			m := entrySyntax.FindStringSubmatch(e)
			if m == nil {
				t.Fatalf("%q is accepted", e)
			}
			if m[1] == "" {
				m[1] = "https"
			}
			list = append(list, listed{m[1], m[2], m[3]})
			below := strings.Replace(m[2], "*", "a", 1)
			names = append(names, below, "b."+below, "evil"+below, below+".evil.com")
			if c, ok := Canonical(below); !ok || c != below {
				t.Fatalf("%q is accepted, and no request can have the host %q", e, below)
			}
		}
		for _, name := range names {
			if c, ok := Canonical(name); ok && c == name { // what Lookup takes
				checkLookup(t, s, list, name)
			}
		}
	})
}

func checkLookup(t *testing.T, s *Set, list []listed, name string) {
	t.Helper()
	want, listed := find(list, name)
	https, ok := s.Lookup(name)
	origin, ok2 := s.Origin(name)
	if ok != listed || ok2 != listed || https != (want.scheme == "https") {
		t.Fatalf("%q in %+v: got %v, %v and %q, %v, want %+v, %v", name, list, https, ok, origin, ok2, want, listed)
	}
	if !listed {
		return
	}
	port := want.port
	if (want.scheme == "https" && port == "443") || (want.scheme == "http" && port == "80") {
		port = ""
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != want.scheme || u.Hostname() != strings.Trim(name, "[]") || u.Port() != port || u.Path != "" || u.User != nil {
		t.Fatalf("%q in %+v: got origin %q (%v), want scheme %s and port %q", name, list, origin, err, want.scheme, port)
	}
}
