package web

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"gatehouse/test/whatwg"
)

// FuzzText writes hostile text into every field of every page, of ours and of Dex. It holds that no element, attribute or script comes of it, and that no link or
// form leads anywhere but to an http or https URL.
func FuzzText(f *testing.F) {
	p := newTestPages(f)
	type field struct {
		sample sample
		before string // the elements of the page
		value  reflect.Value
	}
	var fields []field
	for _, s := range samples(f, p) {
		before := skeleton(parse(f, s.render()))
		eachString(reflect.ValueOf(s.data), s.name, func(_ string, v reflect.Value) {
			switch v.Type() {
			case reflect.TypeFor[Failure](), reflect.TypeFor[Code]():
			default:
				if v.Type().PkgPath() != "html/template" { // what Dex marks as safe it has made itself
					fields = append(fields, field{s, before, v})
				}
			}
		})
	}
	for i, text := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' autofocus onfocus='alert(1)`, `</title><svg/onload=alert(1)>`, "</style><style>*{}", "--><!--",
		"javascript:alert(1)", "java\nscript:alert(1)", "\x01javascript:x", "//evil.com", "data:text/html,x", "{{.}}[[.]]", "\x00\xff\xfe", "a\u2028b\u202ec", "&lt;&#x27;&quot", "`${alert(1)}`",
	} {
		for j := range 12 {
			f.Add(uint16(i+16*j), text)
		}
	}
	f.Fuzz(func(t *testing.T, which uint16, text string) {
		one := fields[int(which)%len(fields)]
		old := one.value.String()
		defer one.value.SetString(old)
		for _, v := range []string{text, "x" + text, "/" + text, "https://app.example.com/" + text} {
			if quote(v) == "" {
				continue // an empty field is not shown
			}
			one.value.SetString(v)
			doc := parse(t, one.sample.render())
			if got := skeleton(doc); got != one.before {
				t.Fatalf("%s: %q changes the page:\n%s\nwas\n%s", one.sample.name, v, got, one.before)
			}
			for _, n := range find(doc, "a", "form") {
				link := attr(n, "href") + attr(n, "action")
				if got := whatwg.Resolve(whatwg.Place{Scheme: "https", Host: "app.example.com"}, link); got.Scheme != "https" && got.Scheme != "http" {
					t.Fatalf("%s: %q makes a link to %q", one.sample.name, v, link)
				}
			}
		}
	})
}

// FuzzCSP holds that no form target can add a directive or a second policy, or allow more than itself.
func FuzzCSP(f *testing.F) {
	for _, s := range []string{
		"https://a.example", "https://a.example; script-src *", "https://a.example,script-src *", "'unsafe-inline'", "*", "https:", "javascript:", "JAVASCRIPT:", "com.example.app:", "https://a@b", "http://[::1]:80",
		"https://a.example\n", "https://*.example.com", "https://a.example/x", "\xff", "'self'", "https://a.example:0", "x:y", "data:", "blob:",
	} {
		f.Add(s, "https://b.example")
	}
	p := newTestPages(f)
	bare := strings.Split(p.CSP(), ";")
	f.Fuzz(func(t *testing.T, one, other string) {
		csp := p.CSP(one, other)
		directives := strings.Split(csp, ";")
		if len(directives) != len(bare) || strings.ContainsFunc(csp, func(c rune) bool { return c < ' ' || c > '~' || c == ',' || c == '"' }) {
			t.Fatalf("%q and %q make %q", one, other, csp)
		}
		for i, d := range directives {
			if !strings.HasPrefix(d, " form-action ") {
				if d != bare[i] {
					t.Fatalf("%q and %q make %q of %q", one, other, d, bare[i])
				}
				continue
			}
			for _, s := range strings.Fields(d)[1:] {
				if s != "'none'" && s != one && s != other && s != "http:" && s != "https:" || strings.Contains(s, "*") || strings.Contains(s, "'unsafe") || forbiddenScheme(s) {
					t.Fatalf("%q and %q allow %q", one, other, s)
				}
				if (s == "http:" || s == "https:") && !strings.HasPrefix(one, s+"//[") && !strings.HasPrefix(other, s+"//[") {
					t.Fatalf("%q and %q allow every host", one, other)
				}
			}
		}
	})
}

func forbiddenScheme(s string) bool {
	return slices.Contains([]string{"javascript:", "data:", "blob:", "filesystem:", "about:"}, strings.ToLower(s))
}

// FuzzLanguage holds that any header chooses one of the languages that there are, and that what an identity provider says is cut to one line of plain text.
func FuzzLanguage(f *testing.F) {
	for _, s := range []string{"", "en", "de-CH, en;q=0.5", "*", "en;q=2", "x-y-z", "zz", strings.Repeat("a-", 300), "\xff", "en\r\nx: y", "en-US-u-va-posix", "\u202eevil\u2066"} {
		f.Add(s)
	}
	p := newTestPages(f)
	f.Fuzz(func(t *testing.T, s string) {
		lang := p.Language(s)
		if _, there := p.templates[lang]; !there {
			t.Fatalf("%q chooses %q", s, lang)
		}
		q := quote(s)
		if utf8.RuneCountInString(q) > maxQuote+1 || strings.ContainsFunc(q, func(c rune) bool {
			return c < ' ' || c == 0x7f || c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069
		}) {
			t.Fatalf("%q is quoted as %q", s, q)
		}
	})
}
