package web

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// now is when the account pages of the tests are shown.
func now() time.Time { return time.Date(2026, 11, 26, 4, 30, 0, 0, time.UTC) }

// fullAccount has everything that the page can show, in one letter.
func fullAccount() Account {
	a := Account{
		Action: "/x", Token: "x", Done: AccountOne, Name: "x", Email: "x", Connector: "x", Groups: slices.Repeat([]string{"x"}, groupsShown+1), PasswordURL: "/x",
		Count: 9, Now: now(), Within: time.Minute,
	}
	for i, last := range []time.Duration{0, 0, time.Minute + 1, time.Hour, 48 * time.Hour} {
		a.Sessions = append(a.Sessions, AccountSession{Ref: "x", Current: i == 0, Device: "x", Address: "x", SignedIn: now(), LastUse: now().Add(-last)})
	}
	return a
}

// sampleAccount is what a person may meet.
func sampleAccount() Account {
	at := func(ago time.Duration) time.Time { return now().Add(-ago) }
	return Account{
		Action: "/x", Token: "x", Name: "Ada Lovelace", Email: "ada.lovelace@example.com", Connector: "Corporate directory",
		Groups: []string{"platform-admins", "kubeflow-users", "analytics"}, PasswordURL: "/x", Count: 4, Now: now(), Within: 36 * time.Minute,
		Sessions: []AccountSession{
			{Ref: "a", Current: true, Device: "Firefox, Windows", Address: "192.0.2.17", SignedIn: at(3 * time.Hour), LastUse: at(0)},
			{Ref: "b", Device: "Safari, iPhone", Address: "2001:db8:12:34:56:78:9abc:def0", SignedIn: at(26 * time.Hour), LastUse: at(12 * time.Minute)},
			{Ref: "c", Device: "Chrome, Mac", Address: "198.51.100.4", SignedIn: at(40 * time.Hour), LastUse: at(9 * time.Hour)},
			{Ref: "d", Address: "203.0.113.250", SignedIn: at(150 * time.Hour), LastUse: at(140 * time.Hour)},
		},
	}
}

// largeAccount is of a user in 2,000 groups with hundreds of sessions and long names.
func largeAccount() Account {
	a := sampleAccount()
	a.Done, a.Count, a.Groups = AccountOthers, 512, nil
	a.Name = strings.Repeat("Wolfeschlegelsteinhausen", 6)
	for i := range 2000 {
		a.Groups = append(a.Groups, fmt.Sprintf("cn=group-%04d,ou=groups,dc=example,dc=com", i))
	}
	a.Sessions[1].Device = Device(strings.Repeat("X", 300))
	return a
}

func TestAccountPage(t *testing.T) {
	page := newTestPages(t).Account("en", sampleAccount())
	if page.Status != 200 || page.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("status %d, Cache-Control %q", page.Status, page.Header.Get("Cache-Control"))
	}
	if csp := page.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self';") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("policy %q", csp)
	}
	doc := parse(t, page.Body)
	main := textOf(find(doc, "main")[0])
	for _, want := range []string{
		"Ada Lovelace", "ada.lovelace@example.com", "Corporate directory", "platform-admins", "Firefox, Windows This browser Signed in2026-11-26 01:30 UTC", "192.0.2.17",
		"Safari, iPhone Last used within the last 36 min", "Chrome, Mac Last used 9 h ago", "Unknown device Last used 5 days ago",
	} {
		if !strings.Contains(main, want) {
			t.Errorf("the page says %q, want %q in it", main, want)
		}
	}
	var buttons []string
	for _, b := range find(doc, "button") {
		described := ""
		for _, n := range find(doc, "h3") {
			if id := attr(n, "id"); id != "" && id == attr(b, "aria-describedby") {
				described = textOf(n)
			}
		}
		buttons = append(buttons, attr(b, "name")+"="+attr(b, "value")+" "+textOf(b)+" "+described)
	}
	want := []string{
		"end=a Sign out Firefox, Windows", "end=b Sign out Safari, iPhone", "end=c Sign out Chrome, Mac", "end=d Sign out Unknown device",
		"end=others Sign out all others ", "end=all Sign out everywhere, here too ",
	}
	if !slices.Equal(buttons, want) {
		t.Errorf("buttons: got %q, want %q", buttons, want)
	}
	if n := len(find(doc, "details")); n != 0 {
		t.Error("three groups are hidden behind a click")
	}

	alone := sampleAccount()
	alone.Sessions, alone.Count = alone.Sessions[:1], 1
	if n := len(find(parse(t, newTestPages(t).Account("en", alone).Body), "button")); n != 2 {
		t.Errorf("%d buttons where there is one session, want two: to sign out, and everywhere, which ends what programs have too", n)
	}
}

func TestAccountPageOfManyGroupsAndSessions(t *testing.T) {
	p := newTestPages(t)
	a := largeAccount()
	body := p.Account("en", a).Body
	doc := parse(t, body)
	details := find(doc, "details")
	if len(details) != 1 || has(details[0], "open") {
		t.Fatalf("%d lists that open, want one, closed", len(details))
	}
	if got := textOf(find(details[0], "summary")[0]); got != "Show all 2000 groups" {
		t.Errorf("the list is called %q", got)
	}
	if n := len(find(details[0], "li")); n != 2000-groupsShown {
		t.Errorf("the list has %d groups, want the other %d", n, 2000-groupsShown)
	}
	if main := textOf(find(doc, "main")[0]); !strings.Contains(main, "There are 508 more") || !strings.Contains(main, "All your other sessions have ended.") {
		t.Error("the page does not tell of the sessions that it does not show, or of what it did")
	}
	if len(body) > 512<<10 {
		t.Errorf("the page has %d bytes", len(body))
	}
	for range 10 {
		a.Groups = append(a.Groups, a.Groups[:2000]...)
	}
	if n := len(find(find(parse(t, p.Account("en", a).Body), "details")[0], "li")); n != groupsListed {
		t.Errorf("of %d groups %d are listed, want at most %d", len(a.Groups), n, groupsListed)
	}
}

func TestAgo(t *testing.T) {
	for _, tt := range []struct {
		name      string
		d, within time.Duration
		want      string
	}{
		{"now", 0, time.Minute, "within 1"},
		{"a clock that is ahead", -time.Hour, time.Minute, "within 1"},
		{"at the step", 36 * time.Minute, 36 * time.Minute, "within 36"},
		{"after the step", 36*time.Minute + 1, 36 * time.Minute, "minutes 36"},
		{"minutes", 59*time.Minute + 59*time.Second, time.Minute, "minutes 59"},
		{"an hour", time.Hour, time.Minute, "hours 1"},
		{"two days less a moment", 48*time.Hour - 1, time.Minute, "hours 47"},
		{"two days", 48 * time.Hour, time.Minute, "days 2"},
		{"step of more than an hour", 90 * time.Minute, 2 * time.Hour, "within 120"},
	} {
		if unit, n := ago(tt.d, tt.within); fmt.Sprint(unit, " ", n) != tt.want {
			t.Errorf("%s: got %s %d, want %s", tt.name, unit, n, tt.want)
		}
	}
}

func TestDevice(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"Firefox", "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0", "Firefox, Windows"},
		{"Chrome", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36", "Chrome, Linux"},
		{"Edge", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0", "Edge, Windows"},
		{"Safari", "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15", "Safari, Mac"},
		{"iPhone", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1", "Safari, iPhone"},
		{"Chrome on an iPhone", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/131.0 Mobile/15E148 Safari/604.1", "Chrome, iPhone"},
		{"Android", "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Mobile Safari/537.36", "Chrome, Android"},
		{"Samsung", "Mozilla/5.0 (Linux; Android 14; SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile Safari/537.36", "Samsung Internet, Android"},
		{"without head", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/131.0.0.0 Safari/537.36", "Chrome, Linux"},
		{"no system", "curl/8.11.0", "curl"},
		{"empty", "", ""},
		{"unknown", "Frobnicator 3", "Frobnicator 3"},
		{"within another word", "NotFirefox/1 xSafari/2", "NotFirefox/1 xSafari/2"},
		{"within another word, then alone", "NotFirefox/1 Firefox/2", "Firefox"},
		{"hostile", "<script>alert(1)</script>", "<script>alert(1)</script>"},
		{"control and direction", "a\x00b\u202ec\r\nSet-Cookie: x", "abc  Set-Cookie: x"},
		{"long", strings.Repeat("ü", 300), strings.Repeat("ü", 80) + "…"},
		{"bad UTF-8", "a\xff", "a\ufffd"},
	} {
		if got := Device(tt.in); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
