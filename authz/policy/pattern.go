package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"gatehouse/internal/hosts"
)

// checkHost checks a host pattern: a canonical name, or *. and a domain of at least two labels.
func checkHost(h string) error {
	name, wild := strings.CutPrefix(h, "*.")
	switch {
	case h == "":
		return errors.New("is empty: name a host, or leave hosts out to match every host")
	case h == "*":
		return errors.New("leave hosts out: a rule without hosts matches every host")
	case strings.Contains(name, "*"):
		return errors.New("a wildcard is *. and a domain, such as *.apps.example.com")
	case wild && (!strings.Contains(name, ".") || strings.HasPrefix(name, "[")):
		return errors.New("a wildcard needs a domain of at least two labels, such as *.apps.example.com")
	}
	c, ok := hosts.Canonical(name)
	switch {
	case !ok:
		return errors.New("want a host name without scheme, port, path or spaces, such as app.example.com")
	case c != name:
		return fmt.Errorf("write it as %q: in lower case, without port and trailing dot", strings.TrimSuffix(h, name)+c)
	}
	return nil
}

// checkPath checks a path pattern, see Rule. What no request can have is a mistake: such a pattern would
// guard nothing, silently.
func checkPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("must start with a slash: write %q", "/"+p)
	case shortest(p) > maxPath:
		return fmt.Errorf("needs a request path of %d bytes, want at most %d: blanks and what is not ASCII take three each", shortest(p), maxPath)
	case strings.Contains(p, "?"):
		return errors.New("rules look at the path only: remove the ? and what follows; one segment of any text is *")
	case strings.Contains(p, "%"):
		return errors.New("patterns are compared with the decoded path: write the character itself, not its escape")
	case strings.ContainsAny(p, `;#\`):
		return errors.New(`requests whose path has ; # or \ are refused, so it would never match: remove them`)
	case !utf8.ValidString(p) || !printable(p):
		return errors.New("want printable UTF-8")
	}
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "" && !last:
			return errors.New("requests whose path has // are refused, so it would never match: write one slash")
		case s == "." || s == "..":
			return errors.New("requests whose path has . or .. as a segment are refused, so it would never match: write the path that it stands for")
		case s == "**" && !last:
			return errors.New("** is allowed at the end only; * is one segment anywhere")
		case s != "*" && s != "**" && strings.Contains(s, "*"):
			return errors.New("* is one whole segment and ** at the end is everything below: there are no other wildcards")
		}
	}
	return nil
}

// shortest returns the length of the shortest path that p matches as a client sends it, in bytes. Blanks and bytes outside of ASCII
// can be sent as escapes only; a last ** can be nothing at all.
func shortest(p string) int {
	p = strings.TrimSuffix(p, "/**")
	n := max(len(p), 1)
	for i := range len(p) {
		if p[i] <= ' ' || p[i] >= 0x7f {
			n += 2
		}
	}
	return n
}
