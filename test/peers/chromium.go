package peers

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// browserTimeout ends a browser that hangs.
const browserTimeout = 15 * time.Minute

// Chromium starts a headless Chromium with an empty profile and returns the context of its first tab for chromedp.
// names maps host names to loopback addresses, such as app.example.test to 127.0.0.1; no other name resolves, so the
// browser can reach nothing but the test. more is what else it is started with. It is stopped when the test ends.
func Chromium(t testing.TB, names map[string]string, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	profile := Folder(t)
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(findChromium(t)),
		chromedp.UserDataDir(profile),
		chromedp.WindowSize(1280, 900),
		chromedp.WSURLReadTimeout(startTimeout),
		chromedp.Flag("host-resolver-rules", resolverRules(names)),
		chromedp.Flag("proxy-server", "direct://"),
	)
	options = append(options, more...)
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's sandbox refuses to run as root
	}
	timed, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), browserTimeout)
	t.Cleanup(cancel)
	allocator, cancelAllocator := chromedp.NewExecAllocator(timed, options...)
	t.Cleanup(cancelAllocator)
	tab, cancelTab := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		if err := chromedp.Cancel(tab); err != nil {
			t.Logf("stop chromium: %v", err)
		}
		cancelTab()
	})
	if err := chromedp.Run(tab); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return tab
}

func findChromium(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("chromium is not installed: run `make tools` in %s, or apt-get install chromium", Root(t))
	return ""
}

// resolverRules is Chromium's --host-resolver-rules: the first MAP that matches a name decides.
func resolverRules(names map[string]string) string {
	var rules []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		rules = append(rules, "MAP "+name+" "+names[name])
	}
	return strings.Join(append(rules, "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"), " , ")
}
