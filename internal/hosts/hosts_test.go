package hosts

import (
	"errors"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	tests := []struct {
		in, want string
		ok       bool
	}{
		{"app.example.com", "app.example.com", true},
		{"APP.Example.COM", "app.example.com", true},
		{"app.example.com.", "app.example.com", true},
		{"app.example.com:8443", "app.example.com", true},
		{"localhost:8080", "localhost", true},
		{"127.0.0.1:80", "127.0.0.1", true},
		{"[2001:DB8::1]:443", "[2001:db8::1]", true},
		{"[::1]", "[::1]", true},
		{"", "", false},
		{".", "", false},
		{"app.example.com..", "", false},
		{"a..b", "", false},
		{":80", "", false},
		{"app.example.com:80:90", "", false},
		{"app.example.com:", "", false},
		{"app.example.com:8x", "", false},
		{"app.example.com:123456", "", false},
		{"a.example.com,b.example.com", "", false},
		{"user@app.example.com", "", false},
		{"app.example.com/evil", "", false},
		{"app.example.com\\evil", "", false},
		{"app_x.example.com", "", false},
		{"-a.example.com", "", false},
		{"a-.example.com", "", false},
		{"a-", "", false},
		{"zoë.example.com", "", false},
		{"a\x00b", "", false},
		{"[::1", "", false},
		{"[fe80::1%eth0]", "", false},
		{strings.Repeat("a", 64) + ".example.com", "", false},
		{strings.Repeat("a.", 127), strings.Repeat("a.", 126) + "a", true},
		{strings.Repeat("a.", 130) + "com", "", false},
	}
	for _, tt := range tests {
		got, ok := Canonical(tt.in)
		if got != tt.want && ok || ok != tt.ok {
			t.Errorf("Canonical(%q) = %q, %v; want %q, %v", tt.in, got, ok, tt.want, tt.ok)
		}
	}
}

func TestOriginIsBuiltFromTheListOnly(t *testing.T) {
	s, err := Parse([]string{"app.example.com", "http://plain.example.com:8080", "*.apps.example.com", "https://secure.example.com:443", "x.apps.example.com:8443"}, "https")
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"app.example.com":          "https://app.example.com",
		"plain.example.com":        "http://plain.example.com:8080",
		"secure.example.com":       "https://secure.example.com",
		"a.apps.example.com":       "https://a.apps.example.com",
		"a.b.apps.example.com":     "https://a.b.apps.example.com",
		"x.apps.example.com":       "https://x.apps.example.com:8443", // the exact entry wins
		"apps.example.com":         "",
		"evilapps.example.com":     "",
		"example.com":              "",
		"app.example.com.evil.com": "",
		"":                         "",
	} {
		got, ok := s.Origin(host)
		if got != want || ok != (want != "") {
			t.Errorf("Origin(%q) = %q, %v; want %q", host, got, ok, want)
		}
	}
	if _, ok := (*Set)(nil).Origin("app.example.com"); ok {
		t.Error("no list lists a host")
	}
}

func TestParseTellsEveryMistake(t *testing.T) {
	bad := []string{"ftp://a.example.com", "a.example.com/path", "*.com", "*x.example.com", "A.example.com", "a.example.com:0", "a.example.com:99999", "a b", "user@a.example.com", ""}
	_, err := Parse(bad, "https")
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != len(bad) {
		t.Fatalf("got %v, want %d errors", err, len(bad))
	}
	for i, e := range joined.Unwrap() {
		var entry *EntryError
		if !errors.As(e, &entry) || entry.Index != i {
			t.Errorf("error %d is %v", i, e)
		}
	}
}

func TestOneNameHasOnePort(t *testing.T) {
	for _, twice := range [][]string{{"a.example.com", "a.example.com:8443"}, {"a.example.com", "http://a.example.com"}, {"*.a.example.com", "*.a.example.com:1"}, {"a.example.com", "a.example.com"}} {
		if _, err := Parse(twice, "https"); err == nil {
			t.Errorf("%v is accepted", twice)
		}
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	s, err := Parse([]string{"app.example.com", "*.apps.example.com"}, "https")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { s.Lookup("a.b.apps.example.com") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"app.example.com:80", "[::1]:80", "a..b", "A.", "a,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		name, ok := Canonical(in)
		if !ok {
			return
		}
		if again, ok := Canonical(name); !ok || again != name {
			t.Errorf("%q -> %q -> %q, %v: not canonical", in, name, again, ok)
		}
		if strings.ContainsAny(name, "/\\@, ?#%;\r\n") {
			t.Errorf("%q -> %q", in, name)
		}
	})
}
