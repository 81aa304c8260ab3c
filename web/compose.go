package web

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"strings"
	"text/template"
)

// A composer turns our sources into html/template sources in one language. Sources are written in two
// layers: [[ ]] is filled in here, once, from the catalogue, the style and the shared parts; {{ }} is
// left for each request. What [[ ]] puts in is our own or prints itself escaped.
type composer struct {
	parts *template.Template
	brand brand
}

// A brand is what does not depend on the language. Style, Icon and Logo are markup.
type brand struct {
	Product text
	Style   string
	Icon    string
	Logo    string
}

// A source is what [[ ]] sees.
type source struct {
	brand
	*catalogue
	Lang    text
	Problem problem // of an error page
}

func newComposer(fsys fs.FS, b brand) (*composer, error) {
	parts, err := template.New("parts").Delims("[[", "]]").Option("missingkey=error").
		Funcs(template.FuncMap{"fill": fill}).ParseFS(fsys, "templates/parts.html")
	if err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	return &composer{parts: parts, brand: b}, nil
}

// compose returns the html/template source of the file name.
func (c *composer) compose(fsys fs.FS, name string, s source) (string, error) {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return "", fmt.Errorf("web: %w", err)
	}
	t, err := c.parts.Clone()
	if err != nil {
		return "", fmt.Errorf("web: %w", err)
	}
	if t, err = t.New(path.Base(name)).Parse(string(data)); err != nil {
		return "", fmt.Errorf("web: %s: %w", name, err)
	}
	s.brand = c.brand
	var b strings.Builder
	if err := t.Execute(&b, s); err != nil {
		return "", fmt.Errorf("web: %s: %w", name, err)
	}
	return squeeze(b.String()), nil
}

// fill puts markup where t has {place}, and escapes the rest.
func fill(t text, place, markup string) (string, error) {
	before, after, ok := strings.Cut(string(t), "{"+place+"}")
	if !ok {
		return "", fmt.Errorf("text %q has no place {%s}", string(t), place)
	}
	return text(before).String() + markup + text(after).String(), nil
}

// squeeze drops indentation and empty lines: no page has an element in which they matter.
func squeeze(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// minify drops comments and white space from a style sheet that has neither strings with comment
// signs in them nor selectors with a blank before a colon.
func minify(css string) string {
	css = regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(css, "")
	css = regexp.MustCompile(`\s+`).ReplaceAllString(css, " ")
	css = regexp.MustCompile(` ?([{};,]) ?|(:) `).ReplaceAllString(css, "$1$2")
	return strings.TrimSpace(strings.ReplaceAll(css, ";}", "}"))
}

// maxLogo caps a custom logo, in bytes of its data URI: it is part of every page.
const maxLogo = 64 << 10

// logoMarkup returns the markup of the logo: our own, or an operator's data URI.
func logoMarkup(own, custom string) (string, error) {
	if custom == "" {
		return own, nil
	}
	if len(custom) > maxLogo {
		return "", fmt.Errorf("web: logo: got %d bytes, want at most %d: it is part of every page", len(custom), maxLogo)
	}
	kind, data, ok := strings.Cut(custom, ";base64,")
	switch kind {
	case "data:image/svg+xml", "data:image/png", "data:image/jpeg", "data:image/gif", "data:image/webp":
	default:
		ok = false
	}
	if _, err := base64.StdEncoding.DecodeString(data); !ok || err != nil {
		return "", fmt.Errorf("web: logo: want data:image/(svg+xml|png|jpeg|gif|webp);base64,…: pages load nothing from elsewhere")
	}
	return `<img src="` + custom + `" alt="">`, nil
}

// iconURI returns the favicon as a data URI, in a colour that shows on light and dark tab bars.
func iconURI(svg string) string {
	svg = strings.ReplaceAll(strings.TrimSpace(svg), "currentColor", "#2a9199")
	return "data:image/svg+xml," + url.PathEscape(svg)
}
