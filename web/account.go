package web

import (
	"net/http"
	"time"
)

// An AccountDo is what the form of the account page can ask for besides one session, and what the page says was done.
type AccountDo string

// The form's values of `end`, besides the reference of a session.
const (
	AccountOthers AccountDo = "others" // all sessions but the browser's own
	AccountAll    AccountDo = "all"    // it too
	AccountOne    AccountDo = "one"    // said of one session; no value of the form
)

// Account is the page on which users see who they are and where they are signed in. Any text in it may be hostile.
type Account struct {
	Action      string // where the form posts `token` and `end`: an AccountDo, or the Ref of a session
	Token       string // the form's, sealed
	Done        AccountDo
	Name, Email string
	Connector   string // name of what the user signed in with; empty: not told
	Groups      []string
	PasswordURL string           // where a new password is chosen; empty: no link
	Sessions    []AccountSession // the browser's own first
	Count       int              // of all sessions, of which some may not be shown
	Now         time.Time
	Within      time.Duration // how exact LastUse is: later use within this time is not in it
}

// An AccountSession is one signed-in browser.
type AccountSession struct {
	Ref               string // names it in the form, and is no secret
	Current           bool   // it is this browser
	Device            string // see Device; empty: not known
	Address           string // empty: not known
	SignedIn, LastUse time.Time
}

// How many groups stand on the page at once, and how many more in a list that opens.
const (
	groupsShown  = 8
	groupsListed = 5000
)

// accountRow is an AccountSession as the template wants it.
type accountRow struct {
	Ref                     string
	Current                 bool
	Device, Address         string
	SignedInISO, SignedInAt string
	LastISO                 string
	Ago                     string // within, minutes, hours or days
	N                       int
}

// Account renders the account page.
func (p *Pages) Account(lang string, d Account) Page {
	view := struct {
		PostURL, Token         string
		Done                   AccountDo
		Name, Email, Connector string
		Groups, MoreGroups     []string
		GroupCount             int
		PasswordURL            string
		Sessions               []accountRow
		Others                 bool
		Hidden                 int
	}{
		PostURL: d.Action, Token: d.Token, Done: d.Done, Name: d.Name, Email: d.Email, Connector: d.Connector, Groups: d.Groups, GroupCount: len(d.Groups),
		PasswordURL: d.PasswordURL, Others: d.Count > 1, Hidden: max(0, d.Count-len(d.Sessions)),
	}
	if n := len(d.Groups); n > groupsShown {
		view.Groups, view.MoreGroups = d.Groups[:groupsShown], d.Groups[groupsShown:min(n, groupsShown+groupsListed)]
	}
	for _, s := range d.Sessions {
		row := accountRow{
			Ref: s.Ref, Current: s.Current, Device: s.Device, Address: s.Address, SignedInISO: iso(s.SignedIn), SignedInAt: plain(s.SignedIn), LastISO: iso(s.LastUse),
		}
		row.Ago, row.N = ago(d.Now.Sub(s.LastUse), d.Within)
		view.Sessions = append(view.Sessions, row)
	}
	return p.render(lang, "account.html", http.StatusOK, view, "'self'")
}

// iso is a time for programs, and plain one for people wherever they live: the server does not know the browser's time zone.
func iso(t time.Time) string   { return t.UTC().Format(time.RFC3339) }
func plain(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// ago says how long ago something was, in words that need no plural forms. What is not known more exactly than within is not told more exactly.
func ago(d, within time.Duration) (unit string, n int) {
	switch {
	case d <= within:
		return "within", minutes(within)
	case d < time.Hour:
		return "minutes", int(d / time.Minute)
	case d < 48*time.Hour:
		return "hours", int(d / time.Hour)
	}
	return "days", int(d / (24 * time.Hour))
}
