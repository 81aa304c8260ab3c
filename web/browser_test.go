package web

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A tab is one browser tab, and what went wrong in it.
type tab struct {
	context.Context

	mu       sync.Mutex
	problems []string // violations of the policy, exceptions, failed loads
}

// openTab starts a Chromium that ends with the test.
func openTab(t *testing.T) *tab {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Fatal("no Chromium found: run `make tools`, or apt-get install chromium")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // a busy machine has other things to do; it ends a browser that hangs
	t.Cleanup(cancel)
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithBrowserOption(chromedp.WithDialTimeout(time.Minute)))
	t.Cleanup(cancel)
	b := &tab{Context: ctx}
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *log.EventEntryAdded:
			b.note(e.Entry.Text)
		case *runtime.EventExceptionThrown:
			b.note(e.ExceptionDetails.Error())
		}
	})
	b.run(t, log.Enable(), runtime.Enable(), emulation.SetFocusEmulationEnabled(true))
	return b
}

func (b *tab) note(problem string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, problem)
}

// takeProblems returns what has gone wrong since the last call.
func (b *tab) takeProblems() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.problems
	b.problems = nil
	return taken
}

func (b *tab) run(t *testing.T, actions ...chromedp.Action) {
	t.Helper()
	if err := chromedp.Run(b, actions...); err != nil {
		t.Fatal(err)
	}
}

// A site serves pages to a browser on localhost, where security keys work without TLS.
type site struct {
	http.ServeMux

	origin string

	mu       sync.Mutex
	requests []string // method and path, in order of arrival
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := new(site)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		s.ServeMux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.origin = strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	return s
}

func (s *site) takeRequests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.requests
	s.requests = nil
	return taken
}

func sendSample(w http.ResponseWriter, p *Pages, s sample) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", s.csp(p))
	_, _ = w.Write(s.render())
}

func TestPagesInBrowser(t *testing.T) {
	p := newTestPages(t)
	web := newSite(t)
	all := samples(t, p)
	all = append(all, hostileSample(p))
	web.HandleFunc("/page/{i}/x", func(w http.ResponseWriter, r *http.Request) {
		var i int
		if _, err := fmt.Sscan(r.PathValue("i"), &i); err != nil || i < 0 || i >= len(all) {
			http.NotFound(w, r)
			return
		}
		sendSample(w, p, all[i])
	})
	web.Handle("/page/{i}/static/", http.NotFoundHandler())
	b := openTab(t)
	b.run(t, chromedp.EmulateViewport(320, 640))
	for i, s := range all {
		if strings.Contains(s.name, "webauthn") {
			continue // has a script: TestSecurityKeyInBrowser
		}
		t.Run(s.name, func(t *testing.T) {
			var width int64
			var card string
			b.run(t, chromedp.Navigate(fmt.Sprintf("%s/page/%d/x", web.origin, i)),
				chromedp.Evaluate(`document.documentElement.scrollWidth`, &width),
				chromedp.Evaluate(`getComputedStyle(document.querySelector("main")).backgroundColor`, &card))
			if width > 320 {
				t.Errorf("is %d px wide on a screen of 320", width)
			}
			if card != "rgb(255, 255, 255)" {
				t.Errorf("card is %s: the style was not applied", card)
			}
			if got := web.takeRequests(); len(got) != 1 {
				t.Errorf("took the requests %q, want one", got)
			}
			if got := b.takeProblems(); len(got) != 0 {
				t.Errorf("the browser complains: %q", got)
			}
		})
	}
	t.Run("dark", func(t *testing.T) {
		var card string
		dark := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}
		b.run(t, emulation.SetEmulatedMedia().WithFeatures(dark), chromedp.Navigate(web.origin+"/page/0/x"),
			chromedp.Evaluate(`getComputedStyle(document.querySelector("main")).backgroundColor`, &card))
		if card != "rgb(24, 31, 38)" {
			t.Errorf("card is %s, want the dark one", card)
		}
	})
}

// hostileSample has long words everywhere.
func hostileSample(p *Pages) sample {
	long := strings.Repeat("W", 500)
	render := func() Page {
		return p.SignIn("en", SignIn{
			Action: "/x", Prompt: long, Login: long, OfferRemember: true, Client: long, RequestID: long,
			Connectors: []Connector{{long, "/x"}}, Failure: WrongPassword,
		})
	}
	return sample{
		name: "long words", render: func() []byte { return render().Body },
		csp: func(*Pages) string { return render().Header.Get("Content-Security-Policy") },
	}
}

// The whole of signing in works without a pointer, in the order in which it is read.
func TestSignInByKeyboard(t *testing.T) {
	p := newTestPages(t)
	web := newSite(t)
	posted := make(chan string, 1)
	web.HandleFunc("GET /dex/auth/local/login", func(w http.ResponseWriter, r *http.Request) {
		p.SignIn("en", SignIn{
			Action: "/dex/auth/local/login?r=1", OfferRemember: true, Connectors: []Connector{{"GitHub", "/dex/auth/github"}},
		}).ServeHTTP(w, r)
	})
	web.HandleFunc("POST /dex/auth/local/login", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		posted <- r.PostForm.Encode()
		p.SignedOut("en", SignedOut{}).ServeHTTP(w, r)
	})
	b := openTab(t)
	focus := func() string {
		var at string
		b.run(t, chromedp.Evaluate(`(e => e.id || e.type || e.textContent.trim())(document.activeElement)`, &at))
		return at
	}
	b.run(t, chromedp.Navigate(web.origin+"/dex/auth/local/login"), chromedp.WaitVisible("#login:focus"))
	for i, want := range []string{"login", "password", "remember_me", "submit", "Continue with GitHub"} {
		if i > 0 {
			b.run(t, chromedp.KeyEvent(kb.Tab))
		}
		if got := focus(); got != want {
			t.Errorf("after %d tabs the focus is on %q, want %q", i, got, want)
		}
		var outline string
		b.run(t, chromedp.Evaluate(`getComputedStyle(document.activeElement).outlineStyle`, &outline))
		if outline != "solid" {
			t.Errorf("the focus on %q is not visible: outline %s", want, outline)
		}
	}
	b.run(t, chromedp.Focus("#login"), chromedp.KeyEvent("ada@example.com"), chromedp.KeyEvent(kb.Tab),
		chromedp.KeyEvent("p&ss wörd"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(" "), chromedp.KeyEvent(kb.Enter),
		chromedp.WaitVisible(`//h1[text()="You are signed out"]`))
	if got, want := <-posted, "login=ada%40example.com&password=p%26ss+w%C3%B6rd&remember_me=on"; got != want {
		t.Errorf("posted %q, want %q", got, want)
	}
	if got := b.takeProblems(); len(got) != 0 {
		t.Errorf("the browser complains: %q", got)
	}
}

// A keyServer answers as Dex does at <issuer>/mfa/webauthn (server/mfa/webauthn.go).
type keyServer struct {
	t      *testing.T
	posted chan keyAnswer
	known  string // id of the registered key
}

// A keyAnswer is what the script posts in the end.
type keyAnswer struct {
	Mode, Query, ID, RawID, Type string
	Response                     map[string]string
}

func (k *keyServer) begin(w http.ResponseWriter, r *http.Request) {
	challenge := base64.RawURLEncoding.EncodeToString([]byte("challenge\xff\xfe?"))
	options := map[string]any{"challenge": challenge, "rpId": "localhost", "timeout": 20000}
	if r.PathValue("mode") == "register" {
		options = map[string]any{
			"challenge": challenge, "rp": map[string]string{"id": "localhost", "name": "Gatehouse"},
			"user":             map[string]string{"id": "dXNlcnxsb2NhbA", "name": "ada", "displayName": "Ada"},
			"pubKeyCredParams": []map[string]any{{"type": "public-key", "alg": -7}},
		}
	} else if k.known == "" {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"error":"No WebAuthn credentials registered."}`))
		return
	} else {
		options["allowCredentials"] = []map[string]string{{"type": "public-key", "id": k.known}}
	}
	if err := json.NewEncoder(w).Encode(map[string]any{"publicKey": options}); err != nil {
		k.t.Error(err)
	}
}

func (k *keyServer) finish(w http.ResponseWriter, r *http.Request) {
	answer := keyAnswer{Mode: r.PathValue("mode"), Query: r.URL.RawQuery}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		k.t.Error(err)
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		k.t.Errorf("Content-Type: got %q, want application/json", got)
	}
	k.posted <- answer
	_, _ = w.Write([]byte(`{"status":"ok","redirect":"/dex/done"}`))
}

func TestSecurityKeyInBrowser(t *testing.T) {
	p := newTestPages(t)
	web := newSite(t)
	mode := "register"
	key := &keyServer{t: t, posted: make(chan keyAnswer, 1)}
	parsed := parseDex(t, p)
	web.HandleFunc("GET /dex/mfa/webauthn", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", p.ScriptCSP())
		if err := parsed.ExecuteTemplate(w, "webauthn_verify.html", dexWebAuthn{mode, "key", "/dex/mfa/webauthn"}); err != nil {
			t.Error(err)
		}
	})
	web.HandleFunc("POST /dex/mfa/webauthn/{mode}/begin", key.begin)
	web.HandleFunc("POST /dex/mfa/webauthn/{mode}/finish", key.finish)
	static, err := fs.Sub(p.FS(), "static")
	if err != nil {
		t.Fatal(err)
	}
	// The template function of the test makes "../static/webauthn.js"; the page is in /dex/mfa/.
	web.Handle("GET /dex/static/", http.StripPrefix("/dex/static/", http.FileServerFS(static)))
	web.HandleFunc("GET /dex/done", func(w http.ResponseWriter, r *http.Request) { p.SignedOut("en", SignedOut{}).ServeHTTP(w, r) })
	b := openTab(t)
	var device webauthn.AuthenticatorID
	b.run(t, webauthn.Enable(), chromedp.ActionFunc(func(ctx context.Context) error {
		var err error
		device, err = webauthn.AddVirtualAuthenticator(&webauthn.VirtualAuthenticatorOptions{
			Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportUsb,
			AutomaticPresenceSimulation: true,
		}).Do(ctx)
		return err
	}))
	page := web.origin + "/dex/mfa/webauthn?req=r%2B1&hmac=h%26&authenticator=key&state=x"

	// Registering waits for the click.
	b.run(t, chromedp.Navigate(page), chromedp.WaitVisible("#key-button"))
	if got := web.takeRequests(); !slices.Equal(got, []string{"GET /dex/mfa/webauthn", "GET /dex/static/webauthn.js"}) {
		t.Errorf("before the click: requests %q", got)
	}
	b.run(t, chromedp.Click("#key-button"), chromedp.WaitVisible(`//h1[text()="You are signed out"]`))
	made := checkKeyAnswer(t, <-key.posted, "register", []string{"attestationObject", "clientDataJSON"})

	// A refusal of the server is told, and another try is offered.
	mode = "login"
	b.run(t, chromedp.Navigate(page), chromedp.WaitVisible(`//*[@id="key-error" and text()="No WebAuthn credentials registered."]`), chromedp.WaitVisible("#key-button:focus"))
	b.takeProblems() // the browser notes the 400

	// Signing in asks for the key at once; the key gives no user handle.
	key.known = made.ID
	b.run(t, chromedp.Navigate(page), chromedp.WaitVisible(`//h1[text()="You are signed out"]`))
	used := checkKeyAnswer(t, <-key.posted, "login", []string{"authenticatorData", "clientDataJSON", "signature", "userHandle"})
	if used.ID != made.ID {
		t.Errorf("signed in with the key %q, want %q", used.ID, made.ID)
	}
	if got := b.takeProblems(); len(got) != 0 {
		t.Errorf("the browser complains: %q", got)
	}

	// A key that is not there any more: the browser gives up, and says why in our words.
	b.run(t, webauthn.SetUserVerified(device, false), webauthn.RemoveVirtualAuthenticator(device),
		chromedp.ActionFunc(func(ctx context.Context) error {
			_, err := webauthn.AddVirtualAuthenticator(&webauthn.VirtualAuthenticatorOptions{
				Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportUsb, AutomaticPresenceSimulation: true,
			}).Do(ctx)
			return err
		}),
		chromedp.Navigate(page), chromedp.WaitVisible(`//*[@id="key-error" and contains(text(), "cancelled or took too long")]`))
}

// checkKeyAnswer checks what both ceremonies post, and returns it.
func checkKeyAnswer(t *testing.T, got keyAnswer, mode string, names []string) keyAnswer {
	t.Helper()
	if got.Mode != mode || got.Query != "req=r%2B1&hmac=h%26&authenticator=key" {
		t.Errorf("posted to %s?%s, want %s and exactly req, hmac and authenticator of the page", got.Mode, got.Query, mode)
	}
	if got.Type != "public-key" || got.ID == "" || got.ID != got.RawID {
		t.Errorf("%s: type %q, id %q, rawId %q", mode, got.Type, got.ID, got.RawID)
	}
	if len(got.Response) != len(names) {
		t.Errorf("%s: response has %d members, want %q", mode, len(got.Response), names)
	}
	for _, name := range names {
		data, err := base64.RawURLEncoding.DecodeString(got.Response[name])
		if err != nil || len(data) == 0 && name != "userHandle" {
			t.Errorf("%s: %s is %q: want base64url", mode, name, got.Response[name])
		}
	}
	var client struct{ Challenge, Type string }
	data, _ := base64.RawURLEncoding.DecodeString(got.Response["clientDataJSON"])
	if err := json.Unmarshal(data, &client); err != nil {
		t.Errorf("%s: clientDataJSON: %v", mode, err)
	}
	if want := base64.RawURLEncoding.EncodeToString([]byte("challenge\xff\xfe?")); client.Challenge != want {
		t.Errorf("%s: the key signed the challenge %q, want %q", mode, client.Challenge, want)
	}
	return got
}
