package web

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// axeSource is what finds barriers on a page.
func axeSource(t *testing.T) string {
	t.Helper()
	source, err := os.ReadFile(filepath.FromSlash("../test/tools/axe-core/node_modules/axe-core/axe.min.js"))
	if err != nil {
		t.Fatalf("no axe-core found: run `make tools`: %v", err)
	}
	return string(source)
}

// A violation is a rule of WCAG that a page breaks.
type violation struct {
	ID    string   `json:"id"`
	Help  string   `json:"help"`
	Nodes []string `json:"nodes"`
}

// runAxe holds the page to WCAG 2.1, levels A and AA.
const runAxe = `axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
	.then(r => r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.map(n => n.html)})))`

func (b *tab) violations(t *testing.T, axe string) (found []violation) {
	t.Helper()
	awaited := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	b.run(t, chromedp.Evaluate(axe, nil), chromedp.Evaluate(runAxe, &found, awaited))
	return found
}

// A view is one page of ours with what a person meets on it.
type view struct {
	name   string
	render func(lang string) Page
}

func views(p *Pages) []view {
	failed := func(f Failure) func(string) Page {
		return func(lang string) Page {
			return p.SignIn(lang, SignIn{
				Action: "/x", Way: "Staff", Login: "ada", OfferRemember: true, Client: "kubeflow.example.com", Failure: f, Wait: 4 * time.Minute, RequestID: "0f3c2b6e-4c1d",
				Connectors: []Connector{{"GitHub", "/x"}, {"Example Bank", "/x"}},
			})
		}
	}
	change := func(f Failure) func(string) Page {
		return func(lang string) Page {
			return p.PasswordChange(lang, PasswordChange{
				Action: "/x", Login: "ada.lovelace@example.com", Failure: f, Detail: "Password is in history of old passwords", BackURL: "/x", RequestID: "0f3c2b6e-4c1d",
			})
		}
	}
	return []view{
		{"sign-in", func(lang string) Page {
			return p.SignIn(lang, SignIn{Action: "/x", OfferRemember: true, Client: "kubeflow.example.com"})
		}},
		{"sign-in-wrong", failed(WrongPassword)},
		{"sign-in-throttled", failed(Throttled)},
		{"sign-in-disabled", failed(AccountDisabled)},
		{"sign-in-hours", failed(OutsideHours)},
		{"sign-in-unavailable", failed(DirectoryUnavailable)},
		{"sign-in-choice", func(lang string) Page {
			return p.SignIn(lang, SignIn{Connectors: []Connector{{"GitHub", "/x"}, {"Example Bank", "/x"}}})
		}},
		{"change-expired", change(PasswordExpired)},
		{"change-must", change(PasswordMustChange)},
		{"change-wrong", change(WrongPassword)},
		{"change-rejected", change(PasswordRejected)},
		{"error", func(lang string) Page {
			return p.Error(lang, Error{Code: CookiesBlocked, RetryURL: "/x", RequestID: "0f3c2b6e-4c1d"})
		}},
		{"denied", func(lang string) Page {
			return p.Denied(lang, Denied{User: "ada@example.com", Rule: "admins", RequestID: "0f3c2b6e-4c1d", SignOutURL: "/x", AccountURL: "/x", BackURL: "/x"})
		}},
		{"sign-out", func(lang string) Page {
			return p.SignOutConfirm(lang, SignOutConfirm{Action: "/x", User: "ada@example.com", AccountURL: "/x", BackURL: "/x"})
		}},
		{"account", func(lang string) Page { return p.Account(lang, sampleAccount()) }},
		{"account-many", func(lang string) Page { return p.Account(lang, largeAccount()) }},
		{"change-wanted", func(lang string) Page {
			return p.PasswordChange(lang, PasswordChange{Action: "/x", Wanted: true, Login: "ada.lovelace@example.com", BackURL: "/x"})
		}},
		{"signed-out", func(lang string) Page { return p.SignedOut(lang, SignedOut{SignInURL: "/x", Upstream: "Example Bank"}) }},
	}
}

// Every page can be used by everybody: in each language, on a phone and on a desk, light and dark. GATEHOUSE_SCREENSHOTS names a folder for pictures.
func TestPagesHaveNoBarriers(t *testing.T) {
	p, axe := newTestPages(t), axeSource(t)
	web := newSite(t)
	all := views(p)
	web.HandleFunc("GET /{lang}/{i}", func(w http.ResponseWriter, r *http.Request) {
		var i int
		if _, err := fmt.Sscan(r.PathValue("i"), &i); err != nil || i < 0 || i >= len(all) {
			http.NotFound(w, r)
			return
		}
		page := all[i].render(r.PathValue("lang"))
		page.Status = http.StatusOK // the browser notes every other one
		page.ServeHTTP(w, r)
	})
	web.HandleFunc("GET /bad", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(`<!DOCTYPE html><p style="color:#bbb;background:#fff">pale<input><img src="data:,">`))
	})
	for _, scheme := range []string{"light", "dark"} {
		b := openTab(t)
		for _, width := range []int64{390, 1280} {
			features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}
			b.run(t, chromedp.EmulateViewport(width, 900), emulation.SetEmulatedMedia().WithFeatures(features))
			for _, tag := range p.tags {
				for i, v := range all {
					name := fmt.Sprintf("%s-%s-%s-%d", v.name, tag, scheme, width)
					var wide int64
					b.run(t, chromedp.Navigate(fmt.Sprintf("%s/%s/%d", web.origin, tag, i)), chromedp.Evaluate(`document.documentElement.scrollWidth`, &wide))
					if wide > width {
						t.Errorf("%s: is %d px wide", name, wide)
					}
					for _, found := range b.violations(t, axe) {
						t.Errorf("%s: %s: %s: %s", name, found.ID, found.Help, strings.Join(found.Nodes, " | "))
					}
					b.picture(t, name)
				}
			}
		}
		if got := b.takeProblems(); len(got) != 0 {
			t.Errorf("the browser complains: %q", got)
		}
		b.run(t, chromedp.Navigate(web.origin+"/bad"))
		if got := b.violations(t, axe); len(got) < 4 {
			t.Errorf("on a bad page only %v was found", got)
		}
		if err := chromedp.Cancel(b); err != nil {
			t.Error(err)
		}
	}
}

// picture saves what the tab shows, where somebody wants it.
func (b *tab) picture(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("GATEHOUSE_SCREENSHOTS")
	if dir == "" {
		return
	}
	var png []byte
	b.run(t, chromedp.FullScreenshot(&png, 100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600); err != nil {
		t.Fatal(err)
	}
}
