package authz

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"gatehouse/internal/handoff"
)

// maxCandidates bounds how many cookies of one name are looked at. A browser sends one; more are an attempt to
// confuse, and beyond the bound none of them counts.
const maxCandidates = 4

// A jar is what a Cookie header says that matters here. It refers to the header's bytes.
type jar struct {
	session candidates
	login   candidates
	ours    bool // there are cookies that no app may see
	others  bool // there are cookies besides them
}

type candidates struct {
	list [maxCandidates]string
	n    int // may be more than fit
}

func (c *candidates) add(v string) {
	if c.n < maxCandidates {
		c.list[c.n] = v
	}
	c.n++
}

// values returns the cookies of the name, none if there are suspiciously many.
func (c *candidates) values() []string {
	if c.n > maxCandidates {
		return nil
	}
	return c.list[:c.n]
}

// scan reads the Cookie header of a host with the given cookie names. A proxy joins several Cookie headers with
// a comma, so a cookie may begin behind a comma as well as behind a semicolon.
func (j *jar) scan(cookie string, names handoff.CookieNames, owned []string) {
	for cookie != "" {
		var piece string
		piece, cookie, _ = cutPiece(cookie)
		name, value, _ := strings.Cut(trimBlanks(piece), "=")
		name = trimBlanks(name)
		switch {
		case name == "" && value == "":
		case slices.Contains(owned, name):
			j.ours = true
			switch name {
			case names.Session:
				j.session.add(value)
			case names.Login:
				j.login.add(value)
			}
		default:
			j.others = true
		}
	}
}

// cutPiece returns what stands before the first semicolon or comma, the rest and that separator.
func cutPiece(s string) (piece, rest string, separator byte) {
	for i := 0; i < len(s); i++ {
		if s[i] == ';' || s[i] == ',' {
			return s[:i], s[i+1:], s[i]
		}
	}
	return s, "", 0
}

func trimBlanks(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// cutCookies returns the Cookie header without the owned cookies. What stays keeps its bytes: a comma may be part of an
// app's own cookie.
func cutCookies(cookie string, owned []string) string {
	var out strings.Builder
	out.Grow(len(cookie))
	var before byte // the separator in front of the piece
	cut := false    // something was cut since the last piece that stayed
	for cookie != "" {
		piece, rest, after := cutPiece(cookie)
		name, _, _ := strings.Cut(piece, "=")
		if slices.Contains(owned, trimBlanks(name)) {
			cut = true
		} else {
			switch {
			case out.Len() == 0:
				piece = strings.TrimLeft(piece, " \t")
			case cut:
				out.WriteString("; ")
				piece = strings.TrimLeft(piece, " \t")
			default:
				out.WriteByte(before)
			}
			out.WriteString(piece)
			cut = false
		}
		cookie, before = rest, after
	}
	return strings.TrimRight(out.String(), " \t;")
}

// setCookie returns a Set-Cookie header value (RFC 6265bis section 4.1) for a cookie of the whole host that lasts as
// long as the browser session. Lax is the default of sameSite.
func setCookie(name, value string, https bool, sameSite http.SameSite) string {
	s := name + "=" + value + "; Path=/; HttpOnly"
	if https {
		s += "; Secure"
	}
	if sameSite == http.SameSiteStrictMode {
		return s + "; SameSite=Strict"
	}
	return s + "; SameSite=Lax"
}

// clearCookie returns a Set-Cookie header value that removes a cookie of setCookie.
func clearCookie(name string, https bool) string {
	return setCookie(name, "", https, http.SameSiteLaxMode) + "; Max-Age=0"
}

// preCookie returns the browser's pre-cookie. Where a neighbour has planted a second one, neither counts.
func (j *jar) preCookie() (handoff.PreCookie, bool) {
	var found handoff.PreCookie
	ok := false
	for _, v := range j.login.values() {
		c, valid := handoff.ParsePreCookie(v)
		if !valid {
			continue
		}
		if ok {
			return handoff.PreCookie{}, false
		}
		found, ok = c, true
	}
	return found, ok
}

// countRound returns c with one more fruitless round since the last that was long ago. Its random value stays: sign-ins that
// are under way in other tabs go on.
func countRound(c handoff.PreCookie, now time.Time) handoff.PreCookie {
	if now.Sub(c.Since) >= handoff.RoundsWindow || now.Before(c.Since) {
		c.Rounds, c.Since = 0, now
	}
	c.Rounds = min(c.Rounds+1, 99)
	return c
}
