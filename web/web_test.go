package web

import (
	"bytes"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/net/html"
)

// newTestPages returns the pages as they are shipped.
func newTestPages(t testing.TB) *Pages {
	t.Helper()
	p, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A sample is one page with data: what is drawn into it is data, a pointer to a struct.
type sample struct {
	name   string
	data   any
	render func() []byte // with what data points to now
	csp    func(p *Pages) string
}

// samples returns every page of ours and of Dex, with all its data and with none.
func samples(t testing.TB, p *Pages) []sample {
	t.Helper()
	var all []sample
	for _, full := range []bool{true, false} {
		all = append(all, ownSamples(p, full)...)
		all = append(all, dexSamples(t, p, full)...)
	}
	return all
}

func ownSamples(p *Pages, full bool) []sample {
	var all []sample
	add := func(name string, data any, render func() Page) {
		all = append(all, sample{
			name: fmt.Sprintf("%s/full=%v", name, full), data: data,
			render: func() []byte { return render().Body },
			csp:    func(*Pages) string { return render().Header.Get("Content-Security-Policy") },
		})
	}
	for _, f := range []Failure{
		"", WrongPassword, Throttled, PasswordExpired, PasswordMustChange, AccountDisabled, AccountExpired, OutsideHours, OtherWorkstation, DirectoryUnavailable, Busy,
	} {
		d := &SignIn{Failure: f}
		if full {
			*d = SignIn{
				Action: "/x", Prompt: "Email", Way: "x", Login: "x", OfferRemember: true, Client: "x", RequestID: "x", Failure: f,
				Connectors: []Connector{{Name: "x", URL: "/x"}}, Wait: time.Minute,
			}
		}
		add("sign-in/"+string(f), d, func() Page { return p.SignIn("en", *d) })
	}
	for _, f := range []Failure{
		PasswordExpired, PasswordMustChange, WrongPassword, PasswordsDiffer, PasswordSame, PasswordTooLong, PasswordRejected, Throttled, DirectoryUnavailable, Busy,
	} {
		d := &PasswordChange{Action: "/x", Failure: f}
		if full {
			*d = PasswordChange{Action: "/x", Login: "x", Remember: true, Failure: f, BackURL: "/x", RequestID: "x", Wait: time.Minute}
			if f == PasswordRejected {
				d.Detail = "x"
			}
		}
		add("change/"+string(f), d, func() Page { return p.PasswordChange("en", *d) })
	}
	links := &SignIn{Connectors: []Connector{{Name: "x", URL: "/x"}}}
	add("sign-in/links", links, func() Page { return p.SignIn("en", *links) })
	for _, c := range codes() {
		d := &Error{Code: c}
		if full {
			*d = Error{Code: c, Upstream: "x", RetryURL: "/x", BackURL: "/x", RequestID: "x"}
		}
		add("error/"+string(c), d, func() Page { return p.Error("en", *d) })
	}
	wanted := &PasswordChange{Action: "/x", Wanted: true}
	denied, ask, bye, account := &Denied{}, &SignOutConfirm{Action: "/x"}, &SignedOut{}, &Account{Action: "/x", Token: "x"}
	if full {
		*wanted = PasswordChange{Action: "/x", Wanted: true, Login: "x", BackURL: "/x"}
		*account = fullAccount()
		*denied = Denied{User: "x", Rule: "x", RequestID: "x", SignOutURL: "/x", AccountURL: "/x", BackURL: "/x"}
		*ask = SignOutConfirm{Action: "/x", User: "x", AccountURL: "/x", BackURL: "/x"}
		*bye = SignedOut{SignInURL: "/x", Upstream: "x"}
	}
	add("change/wanted", wanted, func() Page { return p.PasswordChange("en", *wanted) })
	add("account", account, func() Page { return p.Account("en", *account) })
	add("denied", denied, func() Page { return p.Denied("en", *denied) })
	add("sign-out", ask, func() Page { return p.SignOutConfirm("en", *ask) })
	add("signed-out", bye, func() Page { return p.SignedOut("en", *bye) })
	return all
}

// parseDex parses Dex's templates with the functions that Dex adds to sprig's
// (server/templates/templates.go); ours use none of sprig.
func parseDex(t testing.TB, p *Pages) *template.Template {
	t.Helper()
	parsed, err := template.New("").Funcs(template.FuncMap{
		"extra":  func(string) string { return "" },
		"issuer": func() string { return "dex" },
		"logo":   func() string { return "theme/logo.png" },
		"url":    func(_, asset string) string { return "../" + asset },
	}).ParseFS(p.FS(), "templates/*")
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// What Dex hands to its templates: server/templates/templates.go, same names and types.
type (
	dexConnector struct {
		ID, Name string
		URL      template.URL
		Type     string
	}
	dexLogin struct {
		Connectors []dexConnector
		ReqPath    string
	}
	dexPassword struct {
		PostURL, BackLink, Username, UsernamePrompt string
		Invalid                                     bool
		ReqPath                                     string
		ShowRememberMe, RememberMeChecked           bool
	}
	dexApproval struct {
		User, Client, AuthReqID string
		Scopes                  []string
		ReqPath                 string
	}
	dexError  struct{ ErrType, ErrMsg, ReqPath string }
	dexOOB    struct{ Code, ReqPath string }
	dexDevice struct {
		PostURL, UserCode string
		Invalid           bool
		ReqPath           string
	}
	dexDeviceSuccess struct{ ClientName, ReqPath string }
	dexTOTP          struct {
		PostURL                            string
		Invalid                            bool
		Issuer, Connector, QRCode, ReqPath string
	}
	dexWebAuthn struct{ Mode, AuthenticatorID, ReqPath string }
	dexHome     struct {
		LoggedIn                         bool
		Username, Email                  string
		EmailVerified                    bool
		Groups                           []string
		ConnectorName                    string
		SignedInISO, SignedInText        string
		SessionExpiresISO                string
		SessionExpiresText               string
		SessionExpiryIsIdle              bool
		IPAddress, UserAgent             string
		LogoutURL, DiscoveryURL, ReqPath string
	}
	dexLogout struct {
		BackURL                     string
		LoggedOut, ShowConfirmation bool
		ReqPath                     string
	}
)

func dexSamples(t testing.TB, p *Pages, full bool) []sample {
	t.Helper()
	const path = "/dex/x"
	data := map[string][]any{
		"login.html":           {&dexLogin{ReqPath: path}},
		"password.html":        {&dexPassword{PostURL: "/x", ReqPath: path}},
		"approval.html":        {&dexApproval{ReqPath: path}},
		"error.html":           {&dexError{ReqPath: path}},
		"oob.html":             {&dexOOB{ReqPath: path}},
		"device.html":          {&dexDevice{PostURL: "/x", ReqPath: path}},
		"device_success.html":  {&dexDeviceSuccess{ReqPath: path}},
		"totp_verify.html":     {&dexTOTP{PostURL: "/x", ReqPath: path}},
		"webauthn_verify.html": {&dexWebAuthn{Mode: "login", ReqPath: path}},
		"home.html":            {&dexHome{ReqPath: path, DiscoveryURL: "/x"}},
		"logout.html":          {&dexLogout{ReqPath: path}},
	}
	if full {
		data = map[string][]any{
			"login.html":           {&dexLogin{[]dexConnector{{"x", "x", "/x", "oidc"}}, path}},
			"password.html":        {&dexPassword{"/x", "/x", "x", "x", true, path, true, true}},
			"approval.html":        {&dexApproval{"x", "x", "x", []string{"x"}, path}, &dexApproval{"x", "x", "x", nil, path}},
			"error.html":           {&dexError{"x", "x", path}},
			"oob.html":             {&dexOOB{"x", path}},
			"device.html":          {&dexDevice{"/x", "x", true, path}, &dexDevice{"/x", "x", false, path}},
			"device_success.html":  {&dexDeviceSuccess{"x", path}},
			"totp_verify.html":     {&dexTOTP{"/x", true, "x", "x", "eA==", path}, &dexTOTP{"/x", true, "x", "x", "", path}},
			"webauthn_verify.html": {&dexWebAuthn{"register", "x", path}},
			"home.html":            {&dexHome{true, "x", "x", true, []string{"x"}, "x", "x", "x", "x", "x", true, "x", "x", "/x", "/x", path}},
			"logout.html":          {&dexLogout{"/x", true, false, path}, &dexLogout{"/x", false, true, path}},
		}
	}
	parsed := parseDex(t, p)
	var all []sample
	for name, variants := range data {
		for i, d := range variants {
			csp := func(p *Pages) string { return p.CSP("'self'") }
			if name == "webauthn_verify.html" {
				csp = func(p *Pages) string { return p.ScriptCSP("'self'") }
			}
			all = append(all, sample{
				name: fmt.Sprintf("dex/%s/full=%v/%d", name, full, i), data: d, csp: csp,
				render: func() []byte {
					var b bytes.Buffer
					if err := parsed.ExecuteTemplate(&b, name, d); err != nil {
						t.Fatal(err)
					}
					return b.Bytes()
				},
			})
		}
	}
	return all
}

func parse(t testing.TB, body []byte) *html.Node {
	t.Helper()
	doc, err := html.Parse(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// find returns the elements with one of the names, all elements if there are none.
func find(n *html.Node, names ...string) []*html.Node {
	var found []*html.Node
	for d := range n.Descendants() {
		if d.Type == html.ElementNode && (len(names) == 0 || slices.Contains(names, d.Data)) {
			found = append(found, d)
		}
	}
	return found
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func has(n *html.Node, key string) bool {
	return slices.ContainsFunc(n.Attr, func(a html.Attribute) bool { return a.Key == key })
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func TestEveryPageIsWellMade(t *testing.T) {
	p := newTestPages(t)
	for _, s := range samples(t, p) {
		t.Run(s.name, func(t *testing.T) {
			body := s.render()
			doc := parse(t, body)
			if !bytes.HasPrefix(body, []byte("<!DOCTYPE html>\n")) {
				t.Errorf("begins with %.20q, want a doctype", body)
			}
			if len(body) > 12<<10 {
				t.Errorf("has %d bytes, want at most 12 KiB", len(body))
			}
			for _, rest := range []string{"{{", "[[", "ZgotmplZ", "no value", "%!"} {
				if bytes.Contains(body, []byte(rest)) {
					t.Errorf("has %q in it", rest)
				}
			}
			checkLandmarks(t, doc)
			checkNothingActive(t, doc, strings.Contains(s.name, "webauthn"))
			checkNothingExternal(t, doc)
			checkForms(t, doc)
			style := find(doc, "style")[0].FirstChild.Data
			if want := "style-src '" + hashSource(style) + "';"; !strings.Contains(s.csp(p), want) {
				t.Errorf("policy %q does not allow the style of the page: want %q", s.csp(p), want)
			}
		})
	}
}

func checkLandmarks(t *testing.T, doc *html.Node) {
	t.Helper()
	for _, name := range []string{"html", "head", "title", "body", "header", "main", "h1", "style"} {
		if n := len(find(doc, name)); n != 1 {
			t.Fatalf("has %d <%s>, want 1", n, name)
		}
	}
	for _, name := range []string{"title", "h1"} {
		if textOf(find(doc, name)[0]) == "" {
			t.Errorf("<%s> is empty", name)
		}
	}
	root := find(doc, "html")[0]
	if got := attr(root, "lang"); got != "en" {
		t.Errorf("lang: got %q, want en", got)
	}
	if got := attr(root, "dir"); got != "ltr" {
		t.Errorf("dir: got %q, want ltr", got)
	}
	if h := find(find(doc, "main")[0], "h1"); len(h) != 1 {
		t.Error("<h1> is not in <main>")
	}
}

func checkNothingActive(t *testing.T, doc *html.Node, keyPage bool) {
	t.Helper()
	scripts := find(doc, "script")
	if keyPage {
		if len(scripts) != 1 || attr(scripts[0], "src") != "../static/webauthn.js" || scripts[0].FirstChild != nil {
			t.Error("want one script from static/webauthn.js and nothing inline")
		}
	} else if len(scripts) != 0 {
		t.Error("has a script")
	}
	if bad := find(doc, "iframe", "object", "embed", "base", "audio", "video"); len(bad) != 0 {
		t.Errorf("has <%s>", bad[0].Data)
	}
	focused := 0
	for _, n := range find(doc) {
		for _, a := range n.Attr {
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("<%s> has the attribute %s", n.Data, a.Key)
			}
			if a.Key == "tabindex" && a.Val != "0" {
				t.Errorf("<%s> has tabindex %s: the order of focus is the order of the page", n.Data, a.Val)
			}
			if a.Key == "autofocus" {
				focused++
			}
		}
	}
	if focused > 1 {
		t.Errorf("%d elements have autofocus, want at most 1", focused)
	}
}

func checkNothingExternal(t *testing.T, doc *html.Node) {
	t.Helper()
	for _, n := range find(doc) {
		for _, key := range []string{"href", "src", "action", "srcset", "formaction", "poster", "data", "xlink:href"} {
			v := attr(n, key)
			local := strings.HasPrefix(v, "/x") || strings.HasPrefix(v, "/dex/x") || v == "../static/webauthn.js"
			image := strings.HasPrefix(v, "data:image/") && (n.Data == "img" || attr(n, "rel") == "icon")
			if has(n, key) && !local && !image {
				t.Errorf("<%s %s=%q>: pages load nothing and link only where they are told", n.Data, key, v)
			}
		}
		if n.Data == "img" && !has(n, "alt") {
			t.Error("<img> has no alt")
		}
		if n.Data == "link" && attr(n, "rel") != "icon" {
			t.Errorf("has <link rel=%q>", attr(n, "rel"))
		}
	}
	if css := find(doc, "style")[0].FirstChild.Data; strings.Contains(css, "url(") || strings.Contains(css, "@import") {
		t.Error("the style loads something")
	}
}

func checkForms(t *testing.T, doc *html.Node) {
	t.Helper()
	ids := map[string]int{}
	labels := map[string]string{}
	for _, n := range find(doc) {
		if id := attr(n, "id"); id != "" {
			ids[id]++
		}
		if n.Data == "label" {
			labels[attr(n, "for")] = textOf(n)
		}
	}
	for id, n := range ids {
		if n > 1 {
			t.Errorf("id %q is used %d times", id, n)
		}
	}
	for _, n := range find(doc) {
		for _, key := range []string{"aria-describedby", "aria-labelledby", "for"} {
			if v := attr(n, key); v != "" && ids[v] == 0 {
				t.Errorf("<%s %s=%q> points at nothing", n.Data, key, v)
			}
		}
		if n.Data == "input" && attr(n, "type") != "hidden" && labels[attr(n, "id")] == "" {
			t.Errorf("<input id=%q> has no label", attr(n, "id"))
		}
		if n.Data == "input" && attr(n, "type") != "hidden" && attr(n, "type") != "checkbox" && !has(n, "autocomplete") {
			t.Errorf("<input id=%q> has no autocomplete", attr(n, "id"))
		}
		if n.Data == "button" && attr(n, "type") == "" {
			t.Error("<button> has no type")
		}
		if n.Data == "form" && attr(n, "method") != "post" {
			t.Error("<form> does not post")
		}
		if strings.Contains(attr(n, "class"), "alert") && n.Parent.Data != "noscript" && attr(n, "role") != "alert" {
			t.Error("an error message has no role=alert")
		}
	}
}

func TestPasswordFormIsTheFirstForm(t *testing.T) {
	p := newTestPages(t)
	page := p.SignIn("en", SignIn{
		Action: "/dex/auth/local/login?r=a%2Bb&x=1", Prompt: "Email address", Login: "ada@example.com", OfferRemember: true, Remember: true,
		Connectors: []Connector{{"GitHub", "/dex/auth/github?r=1"}}, Failure: WrongPassword,
	})
	doc := parse(t, page.Body)
	forms := find(doc, "form")
	if len(forms) != 1 {
		t.Fatalf("has %d forms, want 1: other connectors are links", len(forms))
	}
	if got, want := attr(forms[0], "action"), "/dex/auth/local/login?r=a%2Bb&x=1"; got != want {
		t.Errorf("action: got %q, want %q", got, want)
	}
	var fields []string
	for _, n := range find(forms[0], "input") {
		fields = append(fields, attr(n, "name")+" "+attr(n, "type")+" "+attr(n, "autocomplete")+" "+attr(n, "value"))
	}
	want := []string{"login text username ada@example.com", "password password current-password ", "remember_me checkbox  on"}
	if !slices.Equal(fields, want) {
		t.Errorf("fields: got %q, want %q", fields, want)
	}
	if !has(find(forms[0], "input")[2], "checked") {
		t.Error("remember_me is not ticked")
	}
	if !has(find(forms[0], "input")[1], "autofocus") {
		t.Error("the login is known, but the password has no focus")
	}
	if got := textOf(find(doc, "label")[0]); got != "Email address" {
		t.Errorf("label: got %q, want the prompt", got)
	}
	links := find(doc, "a")
	if len(links) != 1 || attr(links[0], "href") != "/dex/auth/github?r=1" || textOf(links[0]) != "Continue with GitHub" {
		t.Errorf("links: got %d, want one to GitHub", len(links))
	}
	if got := textOf(find(doc, "title")[0]); got != "Error: Sign in · Gatehouse" {
		t.Errorf("title: got %q, want the error first", got)
	}
}

func TestSignInWithoutPasswordHasNoForm(t *testing.T) {
	page := newTestPages(t).SignIn("en", SignIn{Connectors: []Connector{{"A", "/a"}, {"B", "/b"}}, FormAction: []string{"https://app.example.com"}})
	doc := parse(t, page.Body)
	if n := len(find(doc, "form")); n != 0 {
		t.Errorf("has %d forms, want none", n)
	}
	if n := len(find(doc, "a")); n != 2 {
		t.Errorf("has %d links, want 2", n)
	}
	if csp := page.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'none'") {
		t.Errorf("policy: got %q, want no form allowed", csp)
	}
}

func TestStatus(t *testing.T) {
	p := newTestPages(t)
	tests := []struct {
		name       string
		page       Page
		status     int
		retryAfter string
		shows      string
	}{
		{"sign-in", p.SignIn("en", SignIn{}), 200, "", "Sign in"},
		{"wrong password", p.SignIn("en", SignIn{Failure: WrongPassword}), 401, "", "not right"},
		{"throttled for a second", p.SignIn("en", SignIn{Failure: Throttled, Wait: time.Second}), 429, "1", "Wait 1 min"},
		{"throttled rounds up", p.SignIn("en", SignIn{Failure: Throttled, Wait: time.Minute + time.Nanosecond}), 429, "61", "Wait 2 min"},
		{"throttled without a time", p.SignIn("en", SignIn{Failure: Throttled}), 429, "1", "Wait 1 min"},
		{"expired", p.SignIn("en", SignIn{Failure: PasswordExpired}), 403, "", "expired"},
		{"account expired", p.SignIn("en", SignIn{Failure: AccountExpired}), 403, "", "account has expired"},
		{"disabled", p.SignIn("en", SignIn{Failure: AccountDisabled}), 403, "", "may not sign in"},
		{"must change, but not here", p.SignIn("en", SignIn{Failure: PasswordMustChange}), 403, "", "cannot be chosen here"},
		{"outside hours", p.SignIn("en", SignIn{Failure: OutsideHours}), 403, "", "at this time"},
		{"another workstation", p.SignIn("en", SignIn{Failure: OtherWorkstation}), 403, "", "certain computers"},
		{"change: expired", p.PasswordChange("en", PasswordChange{Failure: PasswordExpired}), 403, "", "has expired"},
		{"change: must", p.PasswordChange("en", PasswordChange{Failure: PasswordMustChange}), 403, "", "of your own"},
		{"change: wrong", p.PasswordChange("en", PasswordChange{Failure: WrongPassword}), 401, "", "not right"},
		{"change: two passwords", p.PasswordChange("en", PasswordChange{Failure: PasswordsDiffer}), 422, "", "not the same"},
		{"change: the old one", p.PasswordChange("en", PasswordChange{Failure: PasswordSame}), 422, "", "same as the current one"},
		{"change: too long", p.PasswordChange("en", PasswordChange{Failure: PasswordTooLong}), 422, "", "too long"},
		{"change: rejected", p.PasswordChange("en", PasswordChange{Failure: PasswordRejected, Detail: "in history"}), 422, "", "reason:in history"},
		{"change: throttled", p.PasswordChange("en", PasswordChange{Failure: Throttled, Wait: 90 * time.Second}), 429, "90", "Wait 2 min"},
		{"change: busy", p.PasswordChange("en", PasswordChange{Failure: Busy, Wait: time.Second}), 503, "1", "Too many people"},
		{"change: directory", p.PasswordChange("en", PasswordChange{Failure: DirectoryUnavailable}), 503, "1", "does not answer"},
		{"change: unknown failure is no success", p.PasswordChange("en", PasswordChange{Failure: "x"}), 401, "", "not right"},
		{"change: wanted", p.PasswordChange("en", PasswordChange{Wanted: true}), 200, "", "Choose a new password"},
		{"change: wanted, and wrong", p.PasswordChange("en", PasswordChange{Wanted: true, Failure: WrongPassword}), 401, "", "not right"},
		{"no session", p.Error("en", Error{Code: NoSession}), 404, "", "ended already"},
		{"change: no failure is no success", p.PasswordChange("en", PasswordChange{}), 401, "", "not right"},
		{"directory", p.SignIn("en", SignIn{Failure: DirectoryUnavailable}), 503, "1", "directory"},
		{"busy", p.SignIn("en", SignIn{Failure: Busy, Wait: 1500 * time.Millisecond}), 503, "2", "Wait a few seconds, then try again"},
		{"unknown failure is no success", p.SignIn("en", SignIn{Failure: "x"}), 401, "", "not right"},
		{"denied", p.Denied("en", Denied{User: "ada", Rule: "admins", RequestID: "r-1"}), 403, "", "ada"},
		{"zero error", p.Error("en", Error{}), 500, "", "Something went wrong"},
		{"unknown error", p.Error("en", Error{Code: "../x"}), 500, "", "Something went wrong"},
		{"internal", p.Error("en", Error{Code: Internal, RequestID: "r-1"}), 500, "", "r-1"},
		{"bad request", p.Error("en", Error{Code: BadRequest}), 400, "", "not valid"},
		{"ambiguous path", p.Error("en", Error{Code: AmbiguousPath}), 400, "", "two ways"},
		{"unknown host", p.Error("en", Error{Code: UnknownHost}), 403, "", "not served here"},
		{"cookies", p.Error("en", Error{Code: CookiesBlocked}), 400, "", "cookie"},
		{"loop", p.Error("en", Error{Code: Loop}), 400, "", "circles"},
		{"expired link", p.Error("en", Error{Code: ExpiredLink}), 400, "", "expired"},
		{"other browser", p.Error("en", Error{Code: OtherBrowser}), 400, "", "another browser"},
		{"too many", p.Error("en", Error{Code: TooManyRequests, Wait: 90 * time.Second}), 429, "90", "Too many"},
		{"not found", p.Error("en", Error{Code: NotFound}), 404, "", "no such page"},
		{"upstream", p.Error("en", Error{Code: UpstreamRefused, Upstream: "access_denied"}), 502, "", "access_denied"},
		{"unavailable", p.Error("en", Error{Code: Unavailable, Wait: time.Millisecond}), 503, "1", "not possible right now"},
		{"given status", p.Error("en", Error{Code: BadRequest, Status: 405}), 405, "", "not valid"},
		{"sign out", p.SignOutConfirm("en", SignOutConfirm{Action: "/x"}), 200, "", "Sign out?"},
		{"signed out", p.SignedOut("en", SignedOut{}), 200, "", "You are signed out"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.page.Status != tt.status {
				t.Errorf("status: got %d, want %d", tt.page.Status, tt.status)
			}
			if got := tt.page.Header.Get("Retry-After"); got != tt.retryAfter {
				t.Errorf("Retry-After: got %q, want %q", got, tt.retryAfter)
			}
			if got := textOf(find(parse(t, tt.page.Body), "main")[0]); !strings.Contains(got, tt.shows) {
				t.Errorf("shows %q, want %q in it", got, tt.shows)
			}
		})
	}
}

// A password manager finds its way by these, and a script by the names.
func TestPasswordChangeForm(t *testing.T) {
	page := newTestPages(t).PasswordChange("en", PasswordChange{
		Action: "/dex/auth/ad/password?req=a%2Bb", Login: "ada", Remember: true, Failure: PasswordExpired, BackURL: "/dex/auth/ad/login?req=a%2Bb",
		FormAction: []string{"https://app.example.com"},
	})
	doc := parse(t, page.Body)
	forms := find(doc, "form")
	if len(forms) != 1 || attr(forms[0], "action") != "/dex/auth/ad/password?req=a%2Bb" {
		t.Fatalf("has %d forms, want one that posts to the given place", len(forms))
	}
	var fields []string
	for _, n := range find(forms[0], "input") {
		fields = append(fields, attr(n, "name")+" "+attr(n, "type")+" "+attr(n, "autocomplete")+" "+attr(n, "value"))
	}
	want := []string{
		"login text username ada", "password password current-password ", "new_password password new-password ", "new_password_again password new-password ",
		"remember_me hidden  on",
	}
	if !slices.Equal(fields, want) {
		t.Errorf("fields: got %q, want %q", fields, want)
	}
	if in := find(forms[0], "input"); !has(in[0], "readonly") || !has(in[1], "autofocus") {
		t.Error("want the name fixed, and the focus on the current password")
	}
	if links := find(doc, "a"); len(links) != 1 || attr(links[0], "href") != "/dex/auth/ad/login?req=a%2Bb" {
		t.Error("want one link, back to the sign-in page")
	}
	if csp := page.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' https://app.example.com") {
		t.Errorf("policy: got %q", csp)
	}
	if got := textOf(find(doc, "title")[0]); got != "Choose a new password · Gatehouse" {
		t.Errorf("title: got %q: nothing has failed yet", got)
	}
}

func TestPromptOfAnEmailAddress(t *testing.T) {
	p := newTestPages(t)
	for _, tt := range []struct {
		name, lang, want string
		page             SignIn
	}{
		{"general", "en", "Email address or username", SignIn{Action: "/x"}},
		{"e-mail", "en", "Email address", SignIn{Action: "/x", Email: true}},
		{"e-mail in German", "de", "E-Mail-Adresse", SignIn{Action: "/x", Email: true}},
		{"configured", "de", "Staff number", SignIn{Action: "/x", Prompt: "Staff number"}},
	} {
		if got := textOf(find(parse(t, p.SignIn(tt.lang, tt.page).Body), "label")[0]); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestDirectorysTextIsTamed(t *testing.T) {
	p := newTestPages(t)
	doc := parse(t, p.PasswordChange("en", PasswordChange{Failure: PasswordRejected, Detail: "a\x00b\u202e" + strings.Repeat("ä", 400)}).Body)
	if got, want := textOf(find(doc, "blockquote")[0]), "ab"+strings.Repeat("ä", 298)+"…"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, f := range []Failure{WrongPassword, PasswordExpired, PasswordsDiffer} {
		if n := len(find(parse(t, p.PasswordChange("en", PasswordChange{Failure: f, Detail: "x"}).Body), "blockquote")); n != 0 {
			t.Errorf("%s: quotes the directory", f)
		}
	}
}

func TestUpstreamTextIsTamed(t *testing.T) {
	p := newTestPages(t)
	tests := []struct{ name, in, want string }{
		{"control characters", "a\x00b\x1bc\u0085d\u202ee\u200bf", "abc def"},
		{"line breaks", "a\r\n\tb", "a b"},
		{"longest", strings.Repeat("ä", 300), strings.Repeat("ä", 300)},
		{"too long", strings.Repeat("ä", 301), strings.Repeat("ä", 300) + "…"},
		{"bad UTF-8", "a\xffb", "a\ufffdb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := parse(t, p.Error("en", Error{Code: UpstreamRefused, Upstream: tt.in}).Body)
			if got := textOf(find(doc, "blockquote")[0]); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	doc := parse(t, p.Error("en", Error{Code: BadRequest, Upstream: "x"}).Body)
	if n := len(find(doc, "blockquote")); n != 0 {
		t.Error("quotes an identity provider on a page that is not about one")
	}
}

func TestServeHTTP(t *testing.T) {
	page := newTestPages(t).Denied("en", Denied{User: "ada"})
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		w := httptest.NewRecorder()
		page.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/", http.NoBody))
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: status %d, want 403", method, w.Code)
		}
		want := map[string]string{
			"Content-Type": "text/html; charset=utf-8", "Content-Language": "en", "Vary": "Accept-Language", "Cache-Control": "no-store",
			"Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "Content-Length": fmt.Sprint(len(page.Body)),
		}
		for name, value := range want {
			if got := w.Header().Get(name); got != value {
				t.Errorf("%s: %s: got %q, want %q", method, name, got, value)
			}
		}
		if sent := w.Body.Len() > 0; sent != (method == http.MethodGet) {
			t.Errorf("%s: sent %d bytes", method, w.Body.Len())
		}
	}
}

// skeleton is what a browser makes of a page, without values: elements, and names of attributes.
func skeleton(doc *html.Node) string {
	var b strings.Builder
	for _, n := range find(doc) {
		b.WriteString(n.Data)
		for _, a := range n.Attr {
			b.WriteString(" " + a.Key)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// shown is every text and attribute value of a page.
func shown(doc *html.Node) string {
	var b strings.Builder
	for n := range doc.Descendants() {
		if n.Type == html.TextNode {
			b.WriteString(n.Data + "\n")
		}
		for _, a := range n.Attr {
			b.WriteString(a.Val + "\n")
		}
	}
	return b.String()
}

// eachString calls f with every non-empty string that v, a pointer to a struct, holds.
func eachString(v reflect.Value, name string, f func(name string, s reflect.Value)) {
	switch v.Kind() {
	case reflect.Pointer:
		eachString(v.Elem(), name, f)
	case reflect.Struct:
		for i := range v.NumField() {
			eachString(v.Field(i), name+"."+v.Type().Field(i).Name, f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachString(v.Index(i), name, f)
		}
	case reflect.String:
		if v.String() != "" {
			f(name, v)
		}
	default:
	}
}

func isURL(field string) bool {
	return strings.HasSuffix(field, "URL") || strings.HasSuffix(field, "Action") || strings.HasSuffix(field, "BackLink") || strings.HasSuffix(field, "ReqPath")
}

// notShown are fields that a page may be given without showing them.
func notShown(field string) bool {
	for _, s := range []string{".ID", ".Type", ".AuthenticatorID", ".Connector", ".QRCode"} {
		if strings.HasSuffix(field, s) {
			return true
		}
	}
	return strings.HasSuffix(field, ".Detail") || strings.HasSuffix(field, ".Upstream") && strings.HasPrefix(field, "error/") || field == "dex/totp_verify.html/full=true/0.Issuer"
}

func TestHostileTextStaysText(t *testing.T) {
	attacks := []string{
		`<script>alert(1)</script>`,
		`"><img src=x onerror=alert(1)>`,
		`' onfocus=alert(1) autofocus='`,
		`</title><svg onload=alert(1)>`,
		`</style><style>*{display:none}`,
		`--><!--`,
		`&lt;b&gt;`,
		`{{.}} [[.]] ${1}`,
		"a\u2028b \u202eevil",
		`javascript:alert(1)`,
	}
	p := newTestPages(t)
	tried := 0
	for _, s := range samples(t, p) {
		before := skeleton(parse(t, s.render()))
		eachString(reflect.ValueOf(s.data), s.name, func(field string, v reflect.Value) {
			chooses := v.Type() == reflect.TypeFor[Failure]() || v.Type() == reflect.TypeFor[Code]() || v.Type() == reflect.TypeFor[AccountDo]()
			if isURL(field) || chooses {
				return
			}
			old := v.String()
			defer v.SetString(old)
			for _, attack := range attacks {
				tried++
				v.SetString(attack)
				doc := parse(t, s.render())
				if got := skeleton(doc); got != before {
					t.Errorf("%s = %q changes the page", field, attack)
				}
				if !notShown(field) && !strings.Contains(shown(doc), attack) {
					t.Errorf("%s = %q is not shown as it is", field, attack)
				}
			}
		})
	}
	if tried < 400 {
		t.Errorf("tried %d attacks: too few to have met every field", tried)
	}
}

func TestHostileTitleStaysText(t *testing.T) {
	want := skeleton(parse(t, newTestPages(t).Denied("en", Denied{}).Body))
	for _, title := range []string{`</title><script>alert(1)</script>`, `{{.}}`, `[[.]]`, `a & "b" <c>`, strings.Repeat("ä", 80)} {
		p, err := New(Options{Title: title})
		if err != nil {
			t.Fatal(err)
		}
		doc := parse(t, p.Denied("en", Denied{}).Body)
		if skeleton(doc) != want {
			t.Errorf("%q changes the page", title)
		}
		if got := textOf(find(doc, "header")[0]); got != title {
			t.Errorf("shows %q, want %q", got, title)
		}
	}
	for _, title := range []string{strings.Repeat("ä", 81), "a\nb"} {
		if _, err := New(Options{Title: title}); err == nil {
			t.Errorf("%q is accepted", title)
		}
	}
}

func TestHostileURLsLeadNowhere(t *testing.T) {
	attacks := []string{
		"javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "\x01javascript:alert(1)",
		"data:text/html,<script>alert(1)</script>", "vbscript:x", "javascript&colon;alert(1)", `"><script>alert(1)</script>`, `/x" onclick="alert(1)`,
	}
	p := newTestPages(t)
	tried := 0
	for _, s := range samples(t, p) {
		before := skeleton(parse(t, s.render()))
		eachString(reflect.ValueOf(s.data), s.name, func(field string, v reflect.Value) {
			// Dex makes the URLs of connectors itself and marks them as safe.
			if !isURL(field) || v.Type() == reflect.TypeFor[template.URL]() {
				return
			}
			old := v.String()
			defer v.SetString(old)
			v.SetString("https://app.example.com/probe")
			if !strings.HasSuffix(field, ".ReqPath") && !strings.Contains(shown(parse(t, s.render())), "https://app.example.com/probe") {
				t.Errorf("%s leads nowhere even when it is good", field)
			}
			for _, attack := range attacks {
				tried++
				v.SetString(attack)
				doc := parse(t, s.render())
				if skeleton(doc) != before {
					t.Errorf("%s = %q changes the page", field, attack)
				}
				for _, n := range find(doc, "a", "form") {
					link := attr(n, "href") + attr(n, "action")
					scheme, _, ok := strings.Cut(link, ":")
					if ok && !strings.ContainsAny(scheme, "/?#%") {
						t.Errorf("%s = %q: <%s> leads to %q", field, attack, n.Data, link)
					}
				}
			}
		})
	}
	if tried < 200 {
		t.Errorf("tried %d attacks: too few to have met every field", tried)
	}
}

func TestLogo(t *testing.T) {
	const good = "data:image/png;base64,eHh4eA=="
	p, err := New(Options{Logo: good})
	if err != nil {
		t.Fatal(err)
	}
	logo := find(find(parse(t, p.Denied("en", Denied{}).Body), "header")[0], "img")
	if len(logo) != 1 || attr(logo[0], "src") != good {
		t.Error("does not show the given logo")
	}
	head := "data:image/png;base64,"
	tests := []struct{ name, logo string }{
		{"elsewhere", "https://example.com/logo.png"},
		{"path", "theme/logo.png"},
		{"html", "data:text/html;base64,eHh4eA=="},
		{"not base64", "data:image/svg+xml,<svg onload=alert(1)>"},
		{"breaks out", `data:image/png;base64,"><script>`},
		{"type breaks out", `data:image/png"><script>;base64,eHh4eA==`},
		{"one byte too long", head + strings.Repeat("A", maxLogo-len(head)+1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(Options{Logo: tt.logo}); err == nil || !strings.Contains(err.Error(), "logo: ") {
				t.Errorf("got error %v, want one about the logo", err)
			}
		})
	}
}

func TestFilesForDex(t *testing.T) {
	p := newTestPages(t)
	want := []string{
		"robots.txt", "static/webauthn.js", "themes/light/logo.svg",
		"templates/approval.html", "templates/device.html", "templates/device_success.html", "templates/error.html",
		"templates/footer.html", "templates/header.html", "templates/home.html", "templates/login.html", "templates/logout.html",
		"templates/oob.html", "templates/password.html", "templates/totp_verify.html", "templates/webauthn_verify.html",
	}
	if err := fstest.TestFS(p.FS(), want...); err != nil {
		t.Error(err)
	}
	var got []string
	if err := fs.WalkDir(p.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files: got %q, want %q", got, want)
	}
}

func TestDexFormsPostWhatDexReads(t *testing.T) {
	p := newTestPages(t)
	tests := []struct {
		page   string
		action string
		fields []string
	}{
		{"dex/password.html/full=true/0", "/x", []string{"login", "password", "remember_me=on"}},
		{"dex/approval.html/full=true/0", "", []string{"req=x", "approval=approve", "approval=rejected"}},
		{"dex/device.html/full=true/0", "/x", []string{"user_code=x"}},
		{"dex/totp_verify.html/full=true/0", "/x", []string{"totp"}},
		{"dex/logout.html/full=true/1", "/dex/x", nil},
	}
	for _, tt := range tests {
		t.Run(tt.page, func(t *testing.T) {
			all := samples(t, p)
			i := slices.IndexFunc(all, func(s sample) bool { return s.name == tt.page })
			if i < 0 {
				t.Fatal("no such page")
			}
			forms := find(parse(t, all[i].render()), "form")
			if len(forms) != 1 || attr(forms[0], "action") != tt.action {
				t.Fatalf("want one form that posts to %q", tt.action)
			}
			var fields []string
			for _, n := range find(forms[0], "input", "button") {
				field := attr(n, "name")
				if v := attr(n, "value"); v != "" && field != "login" {
					field += "=" + v
				}
				if field != "" {
					fields = append(fields, field)
				}
			}
			if !slices.Equal(fields, tt.fields) {
				t.Errorf("fields: got %q, want %q", fields, tt.fields)
			}
		})
	}
}

func TestPartialsMakeAPage(t *testing.T) {
	p := newTestPages(t)
	parsed := template.Must(parseDex(t, p).New("own.html").Parse(`{{ template "header.html" . }}<h1>x</h1>{{ template "footer.html" . }}`))
	var b bytes.Buffer
	if err := parsed.Execute(&b, nil); err != nil {
		t.Fatal(err)
	}
	checkLandmarks(t, parse(t, b.Bytes()))
}

func BenchmarkDenied(b *testing.B) {
	p := newTestPages(b)
	b.ReportAllocs()
	for b.Loop() {
		p.Denied("en", Denied{User: "ada@example.com", Rule: "admins", RequestID: "r-1", SignOutURL: "/x"})
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		if _, err := New(Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
