package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/security"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"gatehouse/test/peers"
)

// patience is how long a page may take.
const patience = time.Minute

// A tab is a tab of a browser, and what its user and its console have seen.
type tab struct {
	ctx     context.Context
	browser context.Context
	profile cdp.BrowserContextID
	shots   string // beginning of the names of its screenshots

	mu         sync.Mutex
	complaints []string // of the console: violations of the policy, failed loads, exceptions
	requests   []string // URLs, redirects included; after a space what it was for, such as Document
}

// newPerson opens a browser without any cookies. It ends with the test.
func newPerson(t *testing.T, browser context.Context, s *stack) *tab {
	t.Helper()
	on := cdp.WithExecutor(browser, chromedp.FromContext(browser).Browser)
	profile, err := target.CreateBrowserContext().Do(on)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := target.DisposeBrowserContext(profile).Do(on); err != nil {
			t.Error(err)
		}
	})
	return openTab(t, browser, profile, s.name)
}

// another opens another tab of the same browser.
func (b *tab) another(t *testing.T) *tab {
	t.Helper()
	return openTab(t, b.browser, b.profile, b.shots)
}

func openTab(t *testing.T, browser context.Context, profile cdp.BrowserContextID, shots string) *tab {
	t.Helper()
	on := cdp.WithExecutor(browser, chromedp.FromContext(browser).Browser)
	// Chromium opens a tab of a new profile only in a window of its own, and chromedp would not ask for one.
	id, err := target.CreateTarget("about:blank").WithBrowserContextID(profile).WithNewWindow(true).Do(on)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithTargetID(id))
	t.Cleanup(cancel)
	b := &tab{ctx: ctx, browser: browser, profile: profile, shots: shots}
	chromedp.ListenTarget(ctx, b.listen)
	err = chromedp.Run(ctx, log.Enable(), runtime.Enable(), network.Enable(), audits.Enable(),
		security.SetIgnoreCertificateErrors(true), // of a CA that only the test knows
		emulation.SetFocusEmulationEnabled(true))  // several tabs are in front at once
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("%s %s: %s (%s)", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, e.ExceptionDetails.Error())
	case *runtime.EventConsoleAPICalled:
		for _, a := range e.Args {
			b.complaints = append(b.complaints, "console: "+string(a.Value))
		}
	case *audits.EventIssueAdded:
		details, err := json.Marshal(e.Issue.Details)
		if err != nil {
			details = []byte(err.Error())
		}
		b.complaints = append(b.complaints, "issue: "+string(e.Issue.Code)+" "+string(details))
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL+" "+string(e.Type))
	}
}

// run does what actions say.
func (b *tab) run(t *testing.T, actions ...chromedp.Action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		t.Fatalf("%v\nthe tab shows %s", err, b.state())
	}
}

// quiet fails the test if the console has complained since the last call about anything but the expected, for which it waits.
func (b *tab) quiet(t *testing.T, expected ...string) {
	t.Helper()
	for _, e := range expected {
		peers.Eventually(t, patience, "the browser complains: "+e, func() bool { return b.complained(e) })
	}
	// Chromium notes that the app's site sets a cookie and redirects, as every sign-in does. It would take away the
	// cookies of a site only if nobody ever used that.
	expected = append(expected, "issue: BounceTrackingIssue")
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		if !slices.ContainsFunc(expected, func(e string) bool { return strings.Contains(c, e) }) {
			t.Errorf("the browser complains: %s", c)
		}
	}
	b.complaints = nil
}

// complained reports whether the console has complained about what.
func (b *tab) complained(what string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.complaints, func(c string) bool { return strings.Contains(c, what) })
}

// takeRequests returns the requests since the last call.
func (b *tab) takeRequests() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.requests
	b.requests = nil
	return taken
}

// open types an address.
func (b *tab) open(t *testing.T, url string) {
	t.Helper()
	b.run(t, chromedp.Navigate(url))
}

// keys presses the keys of each text: text itself, or one of package kb.
func (b *tab) keys(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		b.run(t, chromedp.KeyEvent(text))
	}
}

// click clicks on the link or button with this text.
func (b *tab) click(t *testing.T, text string) {
	t.Helper()
	b.run(t, chromedp.Click(`//*[self::a or self::button][normalize-space()=`+strconv.Quote(text)+`]`, chromedp.BySearch))
}

// eval evaluates JavaScript in the page, as the page itself could.
func (b *tab) eval(t *testing.T, script string) string {
	t.Helper()
	var got string
	b.run(t, chromedp.Evaluate(script, &got, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	return got
}

// state says what the tab shows.
func (b *tab) state() string {
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	var s string
	if err := chromedp.Run(ctx, chromedp.Evaluate(`document.readyState + " " + location.href + "\n" + document.body?.innerText`, &s)); err != nil {
		return err.Error()
	}
	return s
}

// until waits until a page has loaded of which condition, in JavaScript, is true.
func (b *tab) until(t *testing.T, what, condition string) {
	t.Helper()
	reached := false
	defer func() {
		if !reached {
			t.Logf("the tab shows %s", b.state())
		}
	}()
	peers.Eventually(t, patience, what, func() bool {
		ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
		defer cancel()
		// Between two pages this fails: then it is asked again.
		err := chromedp.Run(ctx, chromedp.Evaluate(`document.readyState === "complete" && Boolean(`+condition+`)`, &reached))
		return err == nil && reached
	})
}

// at waits for the page at exactly this URL with this heading.
func (b *tab) at(t *testing.T, url, heading string) {
	t.Helper()
	b.until(t, fmt.Sprintf("%q at %s", heading, url),
		`location.href === `+quote(url)+` && document.querySelector("h1")?.innerText === `+quote(heading))
}

// headed waits for a page with this heading at or below an address.
func (b *tab) headed(t *testing.T, under, heading string) {
	t.Helper()
	b.until(t, fmt.Sprintf("%q below %s", heading, under),
		`location.href.startsWith(`+quote(under)+`) && document.querySelector("h1")?.innerText === `+quote(heading))
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return string(b)
}

// asked waits for the sign-in page.
func (b *tab) asked(t *testing.T, s *stack) {
	t.Helper()
	b.headed(t, s.issuer+"/auth/local/login?req=", "Sign in")
}

// signIn fills in the sign-in page by keyboard alone.
func (b *tab) signIn(t *testing.T, user, pass string) {
	t.Helper()
	b.focused(t, "login")
	b.keys(t, user, kb.Tab)
	b.focused(t, "password")
	b.keys(t, pass, kb.Enter)
}

// remember ticks or unticks the box of the sign-in page, and puts the focus back into the first field.
func (b *tab) remember(t *testing.T, want bool) {
	t.Helper()
	b.run(t, chromedp.Focus("#remember_me"))
	if b.eval(t, `String(document.activeElement.checked)`) != strconv.FormatBool(want) {
		b.keys(t, " ")
	}
	b.until(t, "the box is as wanted", `document.querySelector("#remember_me").checked === `+strconv.FormatBool(want))
	b.run(t, chromedp.Focus("#login"))
}

// focused checks where the keyboard is.
func (b *tab) focused(t *testing.T, id string) {
	t.Helper()
	b.until(t, "the focus is on "+id, `(document.activeElement.id || document.activeElement.type) === `+quote(id))
}

// signedOut waits for the page after a sign-out. Without Sec-Fetch-Site the app's own link is asked about first.
func (b *tab) signedOut(t *testing.T, s *stack) {
	t.Helper()
	if !s.secure {
		b.headed(t, s.app+"/_gatehouse/sign-out", "Sign out?")
		b.click(t, "Sign out")
	}
	b.headed(t, s.app+"/_gatehouse/sign-out", "You are signed out")
}

// cookies returns the browser's cookies for the issuer and the app, by name.
func (b *tab) cookies(t *testing.T, s *stack) map[string]*network.Cookie {
	t.Helper()
	all := map[string]*network.Cookie{}
	b.run(t, chromedp.ActionFunc(func(ctx context.Context) error {
		list, err := network.GetCookies().WithURLs([]string{s.issuer + "/auth", s.app + "/"}).Do(ctx)
		for _, c := range list {
			all[c.Name] = c
		}
		return err
	}))
	return all
}

// shot takes a screenshot if they are wanted.
func (b *tab) shot(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("GATEHOUSE_SCREENSHOTS")
	if dir == "" {
		return
	}
	var png []byte
	b.run(t, chromedp.FullScreenshot(&png, 100))
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, b.shots+"-"+name+".png"), png, 0o600); err != nil {
		t.Fatal(err)
	}
}

// visited reports whether a request went to an address, whatever its query.
func visited(requests []string, address string) bool {
	return slices.ContainsFunc(requests, func(r string) bool {
		path, _, _ := strings.Cut(strings.Fields(r)[0], "?")
		return path == address || strings.HasPrefix(path, address+"/")
	})
}
