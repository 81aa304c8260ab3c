package browser

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"gatehouse/test/peers"
)

// inDomain is a stack whose users are those of an Active Directory domain.
func inDomain(t *testing.T, d *peers.SambaServer, fallback bool) *stack {
	t.Helper()
	keytab := d.Keytab(t)
	l := twoSitesOverTLS()
	l.name, l.directory = "kerberos", true
	return serve(t, l, func(string) string {
		return fmt.Sprintf(`connectors:
- type: ldap
  id: staff
  name: Staff
  config:
    preset: activedirectory
    host: %q
    rootCA: %q
    bindDN: %q
    bindPW: %q
    userSearch: {baseDN: %q}
    groupSearch: {baseDN: %q}
    timeouts: {dial: 1m, request: 1m}
    kerberos: {enabled: true, keytabPath: %q, spn: %q, fallbackToPassword: %v}
`, d.Host, d.CA, d.ServiceDN, d.ServicePassword, d.PeopleDN, d.GroupsDN, keytab, d.Principal, fallback)
	})
}

// ticketOf gets a user a ticket and returns the environment in which programs find it.
func ticketOf(t *testing.T, d *peers.SambaServer, user string) []string {
	t.Helper()
	env, err := d.Kinit(t, user, d.Password)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// colleague opens a browser of somebody who is signed in to their computer, if env has a ticket. Its profile is the usual one: in private windows no browser
// passes tickets on.
func colleague(t *testing.T, s *stack, env []string, options ...chromedp.ExecAllocatorOption) *tab {
	t.Helper()
	browser := peers.Chromium(t, names(), append(options, resolving(t), chromedp.Env(env...))...)
	return openTab(t, browser, "", s.name)
}

// trusting makes Chromium pass tickets on to the issuer.
func trusting() chromedp.ExecAllocatorOption {
	return chromedp.Flag("auth-server-allowlist", "*.example.test")
}

// resolving makes Chromium find the hosts in a file of its own. A rule of its resolver would be taken for a CNAME, and a ticket be asked for that of 127.0.0.1.
func resolving(t *testing.T) chromedp.ExecAllocatorOption {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	dir := peers.Folder(t)
	hosts, script := filepath.Join(dir, "hosts"), filepath.Join(dir, "chromium")
	text, rules := "127.0.0.1 localhost\n", "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost"
	for name, ip := range names() {
		text += ip + " " + name + "\n"
		rules += " , EXCLUDE " + name
	}
	run := "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind " + hosts + " /etc/hosts && exec " + program + ` "$@"' chromium "$@"` + "\n"
	if err := errors.Join(os.WriteFile(hosts, []byte(text), 0o644), os.WriteFile(script, []byte(run), 0o755)); err != nil {
		t.Fatal(err)
	}
	return func(a *chromedp.ExecAllocator) {
		chromedp.ExecPath(script)(a)
		chromedp.Flag("host-resolver-rules", rules)(a)
	}
}

// askedForPassword waits for the form.
func askedForPassword(t *testing.T, b *tab, s *stack) {
	t.Helper()
	b.headed(t, s.issuer+"/auth/staff/login?req=", "Sign in")
	b.until(t, "there is a form", `document.querySelector("form input[name=password]")`)
}

// signsIn opens a page until it shows: Chromium does not answer the first question after its start.
func signsIn(t *testing.T, b *tab, page string) {
	t.Helper()
	peers.Eventually(t, patience, "signed in without typing", func() bool {
		b.open(t, page)
		return b.eval(t, `document.querySelector("h1")?.innerText ?? ""`) == appTitle
	})
}

func TestTicketSignsInWithoutTyping(t *testing.T) {
	d := peers.Samba(t, peers.SambaOptions{})
	s := inDomain(t, d, true)

	t.Run("with a ticket", func(t *testing.T) {
		b := colleague(t, s, ticketOf(t, d, "alice"), trusting())
		page := s.app + "/?report=2026"
		signsIn(t, b, page)
		b.at(t, page, appTitle)
		b.shot(t, "app")
		if got := b.eval(t, `document.querySelector("dl").innerText`); !strings.Contains(got, "alice@example.test") || !strings.Contains(got, "g1-top") {
			t.Errorf("the app sees %q, want alice with her nested groups", got)
		}
		for _, name := range []string{sessionCookie(s), ssoCookie(s)} {
			if c := b.cookies(t, s)[name]; c == nil || !c.Secure || !c.HTTPOnly {
				t.Errorf("cookie %s: got %+v, want it as after any sign-in", name, c)
			}
		}
		audited(t, s, "ok", `"user":"alice@example.test"`, `"method":"kerberos"`, `"session":"`)
		b.takeRequests()
		b.open(t, s.wiki+"/")
		b.at(t, s.wiki+"/", appTitle)

		b.open(t, s.app+"/")
		b.click(t, "Sign out")
		b.headed(t, s.issuer+"/logout/callback", "You are signed out")
		b.shot(t, "signed-out")
		b.open(t, page)
		askedForPassword(t, b, s)
		b.shot(t, "form-after-sign-out")
		b.run(t, chromedp.Focus("#login"))
		b.signIn(t, "bob", d.Password)
		b.at(t, page, appTitle)
		if got := b.eval(t, `document.querySelector("dl").innerText`); !strings.Contains(got, "bob@example.test") {
			t.Errorf("the app sees %q, want bob", got)
		}
	})
	t.Run("without a ticket the form", func(t *testing.T) {
		b := colleague(t, s, []string{"KRB5_CONFIG=" + d.Krb5Config, "KRB5CCNAME=FILE:" + filepath.Join(t.TempDir(), "none")}, trusting())
		typesThePassword(t, b, s, d)
	})
	t.Run("in a browser that is not told to pass it on the form", func(t *testing.T) {
		typesThePassword(t, colleague(t, s, ticketOf(t, d, "alice")), s, d)
	})
}

// typesThePassword signs in by the form, the second time it shows too.
func typesThePassword(t *testing.T, b *tab, s *stack, d *peers.SambaServer) {
	t.Helper()
	for range 2 {
		b.open(t, s.app+"/")
		askedForPassword(t, b, s)
	}
	b.shot(t, "form")
	b.signIn(t, "bob", d.Password)
	b.at(t, s.app+"/", appTitle)
}

// audited waits until the audit log has a sign-in with a result and all of parts.
func audited(t *testing.T, s *stack, result string, parts ...string) {
	t.Helper()
	parts = append(parts, `"msg":"sign-in"`, `"result":"`+result+`"`)
	peers.Eventually(t, patience, "a line of the audit log with "+strings.Join(parts, ", "), func() bool {
		for line := range strings.Lines(s.gatehouse.Log()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true
			}
		}
		return false
	})
}

// A curl is the program with a cookie jar.
type curl struct {
	t   *testing.T
	s   *stack
	env []string
	jar string
}

func newCurl(t *testing.T, s *stack, env []string) *curl {
	t.Helper()
	return &curl{t, s, env, filepath.Join(t.TempDir(), "jar")}
}

// get returns the status and where the answer leads or, without a redirect, its text.
func (c *curl) get(address string, args ...string) (status, text string) {
	c.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	args = append([]string{
		"-sk", "--noproxy", "*", "-b", c.jar, "-c", c.jar, "--resolve", u.Hostname() + ":" + u.Port() + ":127.0.0.1", "-H", "Accept: text/html",
		"-w", "\n%{http_code} %{redirect_url}", address,
	}, args...)
	cmd := exec.CommandContext(ctx, "curl", args...)
	cmd.Env = append(os.Environ(), c.env...)
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("curl: %v", err)
	}
	body, last := string(out), ""
	if i := strings.LastIndexByte(body, '\n'); i >= 0 {
		body, last = body[:i], body[i+1:]
	}
	status, to, _ := strings.Cut(last, " ")
	if to != "" {
		return status, to
	}
	return status, body
}

// page goes to the app and returns the address of the sign-in page, of which it has the cookie.
func (c *curl) page() string {
	c.t.Helper()
	_, to := c.get(c.s.app + "/")
	if !strings.HasPrefix(to, c.s.issuer+"/auth/staff/login?req=") {
		c.t.Fatalf("the app leads to %q", to)
	}
	if status, text := c.get(to); status != "401" || !strings.Contains(text, `name="password"`) {
		c.t.Fatalf("the sign-in page: %s %s", status, text)
	}
	return to
}

// send gets an address with credentials, and returns the status and what the answer asks for.
func send(t *testing.T, s *stack, address, authorization string) (status int, asks string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	res, err := insecureTransport(t, s.edge).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	return res.StatusCode, res.Header.Get("WWW-Authenticate")
}

// sendLong is send for credentials that are refused before all of them are sent: a transport may tell of what it could not send in place of the answer.
func sendLong(t *testing.T, s *stack, address, authorization string) (status int) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp", s.edge)
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\n\r\n", u.RequestURI(), u.Host, authorization)
	}()
	defer func() { _ = conn.Close(); <-sent }()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func TestTicketOfAScript(t *testing.T) {
	d := peers.Samba(t, peers.SambaOptions{})
	s := inDomain(t, d, true)
	negotiate := []string{"--negotiate", "-u", ":"}

	t.Run("signs in", func(t *testing.T) {
		c := newCurl(t, s, ticketOf(t, d, "alice"))
		status, to := c.get(c.page(), negotiate...)
		if status != "303" || !strings.HasPrefix(to, s.app+"/_gatehouse/session?t=") {
			t.Fatalf("got %s %s", status, to)
		}
		if status, to = c.get(to); status != "302" && status != "303" {
			t.Fatalf("the hand-off: %s %s", status, to)
		}
		if _, text := c.get(s.app + "/headers"); !strings.Contains(text, "alice@example.test") || !strings.Contains(text, "g1-top") || strings.Contains(text, "Negotiate") {
			t.Errorf("the app got %s", text)
		}
	})
	t.Run("of a user who was disabled since is told so, beside the form", func(t *testing.T) {
		env := ticketOf(t, d, "u10")
		c := newCurl(t, s, env)
		if status, text := c.get(c.page(), negotiate...); status != "303" { // and has the ticket for the service, which the KDC would not give out later
			t.Fatalf("before: %s %s", status, text)
		}
		d.SetDisabled(t, "u10", true)
		c = newCurl(t, s, env)
		status, text := c.get(c.page(), negotiate...)
		if status != "403" || !strings.Contains(text, `name="password"`) || !strings.Contains(text, "may not sign in") {
			t.Errorf("got %s %s", status, text)
		}
		audited(t, s, "account-disabled", `"method":"kerberos"`)
	})
	for name, header := range map[string]string{
		"garbage":  "Negotiate " + base64.StdEncoding.EncodeToString([]byte("garbage")),
		"NTLM":     "Negotiate TlRMTVNTUAABAAAAB4IIogAAAAAAAAAAAAAAAAAAAAAKAGFKAAAADw==",
		"of 50 kB": "Negotiate " + strings.Repeat("YIIB", 12<<10),
	} {
		t.Run(name+" leads to the form", func(t *testing.T) {
			c := newCurl(t, s, nil)
			if status, text := c.get(c.page(), "-H", "Authorization: "+header); status != "200" || !strings.Contains(text, `name="password"`) {
				t.Errorf("got %s %s", status, text)
			}
		})
	}
	t.Run("of a megabyte is refused before", func(t *testing.T) {
		if status := sendLong(t, s, newCurl(t, s, nil).page(), "Negotiate "+strings.Repeat("YIIB", 256<<10)); status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("got %d, want Envoy's 431", status)
		}
	})
	t.Run("is not taken by the gateway itself", func(t *testing.T) {
		for _, path := range []string{"/headers", "/public/headers"} {
			if status, asks := send(t, s, s.app+path, "Negotiate YIIB"); status != http.StatusUnauthorized || strings.Contains(asks, "Negotiate") {
				t.Errorf("%s: got %d, WWW-Authenticate %q", path, status, asks)
			}
		}
	})
}
