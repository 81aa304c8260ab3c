// Package whatwg tells where a browser goes: the part of the WHATWG's URL standard that attackers of redirects use. It
// is for tests, whose judge must not be the code that they judge, nor net/url, which reads some targets otherwise.
package whatwg

import "strings"

// A Place is where a browser goes.
type Place struct {
	Scheme string // lower case
	Host   string // lower case, with the port as it is written; "" for schemes without a host
	User   bool   // a user name or password stands in front of the host
}

// Resolve returns where a link or redirect to target leads from a page of base, which has an http or https scheme
// (https://url.spec.whatwg.org/#concept-basic-url-parser).
func Resolve(base Place, target string) Place {
	target = strings.TrimFunc(target, func(c rune) bool { return c <= ' ' })
	target = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(target)
	scheme, rest, ok := cutScheme(target)
	if ok && !special(scheme) {
		return Place{Scheme: scheme}
	}
	slashes := len(rest) - len(strings.TrimLeft(rest, `/\`))
	switch {
	case ok && (scheme != base.Scheme || slashes >= 2), !ok && slashes >= 2: // any number of slashes, of both kinds
		if !ok {
			scheme = base.Scheme
		}
		return authority(scheme, strings.TrimLeft(rest, `/\`))
	}
	return base // a path, a query or a fragment, such as in https:path
}

func special(scheme string) bool {
	switch scheme {
	case "http", "https", "ws", "wss", "ftp", "file":
		return true
	}
	return false
}

func cutScheme(s string) (scheme, rest string, ok bool) {
	scheme, rest, ok = strings.Cut(s, ":")
	if !ok || scheme == "" {
		return "", s, false
	}
	for i, c := range []byte(strings.ToLower(scheme)) {
		if letter := c >= 'a' && c <= 'z'; !letter && (i == 0 || !strings.ContainsRune("0123456789+-.", rune(c))) {
			return "", s, false
		}
	}
	return strings.ToLower(scheme), rest, true
}

func authority(scheme, rest string) Place {
	if end := strings.IndexAny(rest, `/\?#`); end >= 0 {
		rest = rest[:end]
	}
	at := strings.LastIndexByte(rest, '@')
	return Place{Scheme: scheme, Host: strings.ToLower(rest[at+1:]), User: at >= 0}
}
