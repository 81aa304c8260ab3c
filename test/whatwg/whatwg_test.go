package whatwg

import "testing"

// TestResolve is what Chromium and Firefox do with a Location header from https://app.example.com/a.
func TestResolve(t *testing.T) {
	here := Place{Scheme: "https", Host: "app.example.com"}
	evil := Place{Scheme: "https", Host: "evil.com"}
	for target, want := range map[string]Place{
		"":                             here,
		"/b":                           here,
		"b?c#d":                        here,
		"?//evil.com":                  here,
		`/%5cevil.com`:                 here,
		"https:b":                      here,
		"https:/b":                     here,
		"https://app.example.com/b":    here,
		"HTTPS://APP.example.com:443/": {Scheme: "https", Host: "app.example.com:443"},
		"//evil.com":                   evil,
		"///evil.com":                  evil,
		`/\evil.com`:                   evil,
		`\\evil.com/x`:                 evil,
		"/\t/evil.com":                 evil,
		" \x01/\n/evil.com\x00":        evil,
		"ht\ntps://evil.com?x":         evil,
		`https:/\evil.com`:             evil,
		"https://app.example.com@evil.com/": {
			Scheme: "https", Host: "evil.com", User: true,
		},
		`https://evil.com\@app.example.com`: evil,
		"http:evil.com":                     {Scheme: "http", Host: "evil.com"},
		"javascript:alert(1)":               {Scheme: "javascript"},
		"java\nscript:alert(1)":             {Scheme: "javascript"},
		"data:text/html,x":                  {Scheme: "data"},
		"1x:y":                              here,
		":x":                                here,
	} {
		if got := Resolve(here, target); got != want {
			t.Errorf("%q: got %+v, want %+v", target, got, want)
		}
	}
}
