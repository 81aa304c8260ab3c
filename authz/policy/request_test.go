package policy

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseRequestRefuses(t *testing.T) {
	long := "/" + strings.Repeat("a", maxPath)
	tests := []struct{ name, method, host, path, want string }{
		{"empty path", "GET", "a.example", "", "path-not-absolute"},
		{"path without slash", "GET", "a.example", "admin", "path-not-absolute"},
		{"asterisk form", "OPTIONS", "a.example", "*", "path-not-absolute"},
		{"absolute form", "GET", "a.example", "http://a.example/admin", "path-not-absolute"},
		{"query only", "GET", "a.example", "?/admin", "path-not-absolute"},
		{"escaped first slash", "GET", "a.example", "%2fadmin", "path-not-absolute"},
		{"one byte too long", "GET", "a.example", long, "path-length"},
		{"two slashes at the start", "GET", "a.example", "//admin", "empty-segment"},
		{"two slashes inside", "GET", "a.example", "/a//b", "empty-segment"},
		{"two slashes at the end", "GET", "a.example", "/a//", "empty-segment"},
		{"dot at the end", "GET", "a.example", "/a/.", "dot-segment"},
		{"dot inside", "GET", "a.example", "/./a", "dot-segment"},
		{"dots at the end", "GET", "a.example", "/a/..", "dot-segment"},
		{"dots inside", "GET", "a.example", "/public/../admin", "dot-segment"},
		{"dots before a query", "GET", "a.example", "/public/..?x=1", "dot-segment"},
		{"escaped dots", "GET", "a.example", "/public/%2e%2e/admin", "encoded-unreserved"},
		{"half escaped dots", "GET", "a.example", "/public/.%2E/admin", "encoded-unreserved"},
		{"escaped letter", "GET", "a.example", "/%61dmin", "encoded-unreserved"},
		{"escaped upper-case letter", "GET", "a.example", "/%41", "encoded-unreserved"},
		{"escaped tilde", "GET", "a.example", "/%7euser", "encoded-unreserved"},
		{"escaped digit", "GET", "a.example", "/%30", "encoded-unreserved"},
		{"escaped slash", "GET", "a.example", "/public%2fadmin", "encoded-slash"},
		{"escaped slash in upper case", "GET", "a.example", "/public%2Fadmin", "encoded-slash"},
		{"escaped backslash", "GET", "a.example", "/public%5cadmin", "encoded-backslash"},
		{"escaped percent", "GET", "a.example", "/%252e%252e/admin", "encoded-percent"},
		{"escaped semicolon", "GET", "a.example", "/admin%3Bx", "encoded-semicolon"},
		{"escaped NUL", "GET", "a.example", "/admin%00.png", "control"},
		{"escaped newline", "GET", "a.example", "/admin%0d%0aX", "control"},
		{"escaped tab", "GET", "a.example", "/%09/evil", "control"},
		{"escaped DEL", "GET", "a.example", "/%7f", "control"},
		{"escaped C1 control", "GET", "a.example", "/%C2%85", "control"},
		{"path parameter", "GET", "a.example", "/admin;a=b", "semicolon"},
		{"path parameter after dots", "GET", "a.example", "/public/..;/admin", "semicolon"},
		{"fragment", "GET", "a.example", "/admin#/public", "fragment"},
		{"fragment before a query", "GET", "a.example", "/admin#?/public", "fragment"},
		{"backslash", "GET", "a.example", `/public\..\admin`, "backslash"},
		{"blank", "GET", "a.example", "/a b", "blank"},
		{"NUL", "GET", "a.example", "/a\x00", "control"},
		{"newline", "GET", "a.example", "/a\nb", "control"},
		{"raw non-ASCII", "GET", "a.example", "/ä", "non-ascii"},
		{"raw invalid UTF-8", "GET", "a.example", "/\xff", "non-ascii"},
		{"overlong dot", "GET", "a.example", "/%c0%ae%c0%ae/admin", "bad-utf8"},
		{"cut UTF-8", "GET", "a.example", "/%C3", "bad-utf8"},
		{"surrogate", "GET", "a.example", "/%ED%A0%80", "bad-utf8"},
		{"escape without digits", "GET", "a.example", "/a%", "bad-escape"},
		{"escape with one digit", "GET", "a.example", "/a%2", "bad-escape"},
		{"escape with other letters", "GET", "a.example", "/a%zz", "bad-escape"},
		{"escape of IIS", "GET", "a.example", "/%u002e", "bad-escape"},
		{"empty host", "GET", "", "/", "host"},
		{"two hosts", "GET", "a.example,b.example", "/", "host"},
		{"userinfo", "GET", "a.example@evil.example", "/", "host"},
		{"two ports", "GET", "a.example:80:90", "/", "host"},
		{"host with a slash", "GET", "a.example/b", "/", "host"},
		{"empty method", "", "a.example", "/", "method"},
		{"method with a blank", "GET ", "a.example", "/", "method"},
		{"two methods", "GET,POST", "a.example", "/", "method"},
		{"method that is too long", strings.Repeat("A", maxMethod+1), "a.example", "/", "method"},
		{"method in lower case", "delete", "a.example", "/", "method-case"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseRequest(tt.method, tt.host, tt.path)
			var ambiguous *AmbiguousError
			if !errors.As(err, &ambiguous) {
				t.Fatalf("got %+v, %v, want an *AmbiguousError", r, err)
			}
			if ambiguous.Reason != tt.want {
				t.Errorf("got reason %q, want %q", ambiguous.Reason, tt.want)
			}
			if r != (Request{}) {
				t.Errorf("got request %+v beside the error, want none", r)
			}
		})
	}
}

func TestParseRequestAccepts(t *testing.T) {
	longest := "/" + strings.Repeat("a", maxPath-1)
	tests := []struct {
		name, method, host, path string
		want                     Request
	}{
		{"root", "GET", "a.example", "/", Request{"GET", "a.example", "/"}},
		{"slash at the end stays", "GET", "a.example", "/a/", Request{"GET", "a.example", "/a/"}},
		{"query is cut", "GET", "a.example", "/admin?x=/public/../%2f#y", Request{"GET", "a.example", "/admin"}},
		{"query at the root", "GET", "a.example", "/?//", Request{"GET", "a.example", "/"}},
		{"escaped blank", "GET", "a.example", "/a%20b", Request{"GET", "a.example", "/a b"}},
		{"escaped letter outside of ASCII", "GET", "a.example", "/%C3%A4", Request{"GET", "a.example", "/ä"}},
		{"escape in lower case", "GET", "a.example", "/%c3%a4", Request{"GET", "a.example", "/ä"}},
		{"escaped question mark and number sign", "GET", "a.example", "/C%23%3F", Request{"GET", "a.example", "/C#?"}},
		{"sub-delims", "GET", "a.example", "/a!$&'()*+,=:@-._~", Request{"GET", "a.example", "/a!$&'()*+,=:@-._~"}},
		{"what browsers do not escape", "GET", "a.example", "/a|b[c]^", Request{"GET", "a.example", "/a|b[c]^"}},
		{"dots that are no dot segment", "GET", "a.example", "/.well-known/..a/...", Request{"GET", "a.example", "/.well-known/..a/..."}},
		{"longest path", "GET", "a.example", longest + "?q", Request{"GET", "a.example", longest}},
		{"host in upper case, with port and dot", "GET", "A.Example.:443", "/", Request{"GET", "a.example", "/"}},
		{"IPv6 host", "GET", "[::1]:80", "/", Request{"GET", "[::1]", "/"}},
		{"extension method", "M-SEARCH", "a.example", "/", Request{"M-SEARCH", "a.example", "/"}},
		{"longest method", strings.Repeat("A", maxMethod), "a.example", "/", Request{strings.Repeat("A", maxMethod), "a.example", "/"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRequest(tt.method, tt.host, tt.path)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestAmbiguousErrorRepeatsNothing(t *testing.T) {
	_, err := ParseRequest("GET", "a.example", "/s3cret\n")
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v, want an error without the path", err)
	}
}

func TestParseRequestAllocations(t *testing.T) {
	got := testing.AllocsPerRun(100, func() {
		if _, err := ParseRequest("GET", "kubeflow.example.com:443", "/jupyter/api/namespaces/team-a/notebooks?x=1"); err != nil {
			t.Error(err)
		}
	})
	if got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

// FuzzParseRequest holds that what is accepted has one reading: that of net/url, with nothing in it that
// another program could still decode, cut or resolve.
func FuzzParseRequest(f *testing.F) {
	for _, p := range []string{
		"/", "/a/b/", "/a%20b?c", "/%C3%A4", "//", "/a/../b", "/%2e", "/%2f", "/a;b", "/a#b", `/\`, "/%", "*", "http://a/b",
		"/%c0%ae", "/%25", "/a/%00", "/C%23", "/...",
	} {
		f.Add("GET", "a.example", p)
	}
	f.Add("PROPFIND", "A.example.:80", "/x")
	f.Fuzz(func(t *testing.T, method, host, raw string) {
		r, err := ParseRequest(method, host, raw)
		if err != nil {
			var ambiguous *AmbiguousError
			if !errors.As(err, &ambiguous) || ambiguous.Reason == "" || len(ambiguous.Reason) > 32 {
				t.Fatalf("got error %v, want an *AmbiguousError with a short reason", err)
			}
			return
		}
		sent, query, _ := strings.Cut(raw, "?")
		u, err := url.ParseRequestURI(sent)
		if err != nil || u.Path != r.Path {
			t.Errorf("%q: got path %q, net/url reads %v, %v", sent, r.Path, u, err)
		}
		if clean := path.Clean(r.Path); clean != r.Path && clean+"/" != r.Path {
			t.Errorf("%q: got path %q, resolved it is %q", sent, r.Path, clean)
		}
		if strings.ContainsAny(r.Path, "\\;%\x00\r\n\x7f") || !utf8.ValidString(r.Path) {
			t.Errorf("%q: got path %q with what can be read again", sent, r.Path)
		}
		if escaped := u.EscapedPath(); len(escaped) > maxPath {
			return // with its escapes it is longer than what is taken
		} else if again, err := ParseRequest(r.Method, r.Host, escaped+"?"+query); err != nil || again != r {
			// EscapedPath may write an escape in upper case or escape a raw [, never change what it means.
			t.Errorf("%q: got %+v, then %+v, %v", sent, r, again, err)
		}
		if strings.Count(r.Path, "/") != strings.Count(sent, "/") {
			t.Errorf("%q: got path %q with other segments", sent, r.Path)
		}
	})
}

func BenchmarkParseRequest(b *testing.B) {
	for _, bm := range []struct{ name, path string }{
		{"plain", "/jupyter/api/namespaces/team-a/notebooks?x=1"},
		{"escapes", "/jupyter/files/my%20notebook%C3%A4.ipynb"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseRequest("GET", "kubeflow.example.com", bm.path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
