package web

import "strings"

// maxDevice caps the name of a device that nobody knows, in characters.
const maxDevice = 80

// A mark in a User-Agent header stands for a name.
type mark struct{ part, name string }

// browsers and systems are in the order in which they are looked for: many browsers name those that they are like, too.
func browsers() []mark {
	return []mark{
		{"Edg/", "Edge"},
		{"EdgA/", "Edge"},
		{"EdgiOS/", "Edge"},
		{"OPR/", "Opera"},
		{"SamsungBrowser/", "Samsung Internet"},
		{"Vivaldi/", "Vivaldi"},
		{"FxiOS/", "Firefox"},
		{"Firefox/", "Firefox"},
		{"CriOS/", "Chrome"},
		{"Chromium/", "Chromium"},
		{"HeadlessChrome/", "Chrome"},
		{"Chrome/", "Chrome"},
		{"Safari/", "Safari"},
		{"curl/", "curl"},
		{"Wget/", "Wget"},
		{"python-requests/", "Python"},
		{"Go-http-client/", "Go"},
	}
}

func systems() []mark {
	return []mark{
		{"iPhone", "iPhone"},
		{"iPad", "iPad"},
		{"Android", "Android"},
		{"CrOS", "ChromeOS"},
		{"Windows", "Windows"},
		{"Macintosh", "Mac"},
		{"FreeBSD", "FreeBSD"},
		{"Linux", "Linux"},
	}
}

// Device says in plain words what a User-Agent header (RFC 9110 section 10.1.5) says of a browser, such as "Firefox, Windows"; of one that it does not
// know, the beginning of the header. It is what the browser says of itself: a help to recognise one's own, and no proof.
func Device(userAgent string) string {
	userAgent = quote(userAgent)
	browser, system := named(userAgent, browsers()), named(userAgent, systems())
	if browser != "" {
		return strings.TrimSuffix(browser+", "+system, ", ")
	}
	if r := []rune(userAgent); len(r) > maxDevice {
		return string(r[:maxDevice]) + "…"
	}
	return userAgent
}

// named returns the first name whose mark begins a word of s.
func named(s string, marks []mark) string {
	for _, m := range marks {
		for rest := s; ; {
			i := strings.Index(rest, m.part)
			if i < 0 {
				break
			}
			if i == 0 || strings.IndexByte(" (;", rest[i-1]) >= 0 {
				return m.name
			}
			rest = rest[i+len(m.part):]
		}
	}
	return ""
}
