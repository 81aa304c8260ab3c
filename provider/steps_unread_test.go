package provider

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

var reqFieldRE = regexp.MustCompile(`name="req" value="([^"]+)"`)

// Whichever read of a step of Dex's fails, consent or second factor, the browser keeps its session, and nobody gets a code that is of none.
func TestSessionOutlivesAStepWhoseReadsFail(t *testing.T) {
	for name, tt := range map[string]struct {
		text, prompt, at string
		form             func(w *world, b *browser) url.Values
	}{
		"consent": {
			edited(t, testConfig, "skipApprovalScreen: true", "skipApprovalScreen: false"), "&prompt=consent", "/dex/approval",
			func(_ *world, b *browser) url.Values {
				form := url.Values{"approval": {"approve"}}
				if m := reqFieldRE.FindStringSubmatch(b.page); m != nil {
					form.Set("req", m[1])
				}
				return form
			},
		},
		"second factor": {
			strings.Replace(testConfig, "gateway:\n", withTOTP+"gateway:\n", 1), "", "/dex/mfa/totp",
			func(w *world, _ *browser) url.Values { return url.Values{"totp": {w.code("u1", w.now())}} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			clk, d := &clock{}, &unreadDriver{Driver: store.MemoryDriver()}
			st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, tt.text, st, seal.NewKey(), clk)
			held := 0
			// try takes the step of a browser that is signed in, and reports how many reads it has.
			try := func(n int64, all bool) int64 {
				t.Helper()
				b := w.browser().get("https://app.example.com/")
				if b.signIn("admin@example.com", "password"); b.last.Path == "/dex/mfa/totp" {
					clk.add(time.Minute) // another code
					b.do(http.MethodPost, b.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil)
				}
				if !hello(b) {
					t.Fatalf("not signed in: %d at %s", b.code, b.last)
				}
				if b.get(clientURL("v") + tt.prompt); b.last.Path != tt.at {
					t.Fatalf("at %s, want %s", b.last, tt.at)
				}
				clk.add(time.Minute)
				form := tt.form(w, b)
				d.fail(n, all)
				b.do(http.MethodPost, b.last.String(), form, nil)
				reads := d.reads.Load()
				d.fail(0, false)
				code := b.last.Query().Get("code")
				switch {
				case b.code == http.StatusServiceUnavailable:
					held++
				case code != "":
					if c, err := st.GetAuthCode(t.Context(), code); err != nil || c.SessionID == "" {
						t.Errorf("read %d fails, and those after it (%v): a code of no session: %v", n, all, err)
					}
				}
				if b.get("https://x.apps.example.com/"); !hello(b) {
					t.Errorf("read %d fails, and those after it (%v): the browser's session is lost: %d at %s", n, all, b.code, b.last)
				}
				return reads
			}
			reads := try(0, false)
			for n := int64(1); n <= reads; n++ {
				try(n, false)
				try(n, true)
			}
			if held == 0 {
				t.Errorf("no read of %d failed", reads)
			}
		})
	}
}

// The same holds for single sign-on, which takes no step of the browser's.
func TestSessionOutlivesASingleSignOnWhoseReadsFail(t *testing.T) {
	clk, d := &clock{}, &unreadDriver{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	for name, target := range map[string]string{"a client": clientURL("v"), "a host": "https://y.apps.example.com/"} {
		held := 0
		try := func(n int64, all bool) int64 {
			t.Helper()
			b := w.browser().get("https://app.example.com/")
			if b.signIn("admin@example.com", "password"); !hello(b) {
				t.Fatalf("not signed in: %d at %s", b.code, b.last)
			}
			d.fail(n, all)
			b.get(target)
			reads := d.reads.Load()
			d.fail(0, false)
			if b.code == http.StatusServiceUnavailable {
				held++
			}
			if code := b.last.Query().Get("code"); code != "" {
				if c, err := st.GetAuthCode(t.Context(), code); err != nil || c.SessionID == "" {
					t.Errorf("%s, read %d fails, and those after it (%v): a code of no session: %v", name, n, all, err)
				}
			}
			if b.get("https://x.apps.example.com/"); !hello(b) {
				t.Errorf("%s, read %d fails, and those after it (%v): the browser's session is lost: %d at %s", name, n, all, b.code, b.last)
			}
			return reads
		}
		reads := try(0, false)
		for n := int64(1); n <= reads; n++ {
			try(n, false)
			try(n, true)
		}
		if held == 0 {
			t.Errorf("%s: no read of %d failed", name, reads)
		}
	}
}
