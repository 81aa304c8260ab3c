// Package web is what people see: pages, styles and texts in every language that we speak.
//
// A page is one request: its style is an inline element that the Content-Security-Policy allows by
// hash, its logo is inline SVG and its icon a data URI. So the gateway can answer with one on an
// app's host, where no route leads to us. No page needs JavaScript, but for Dex's security keys.
//
// Sources are in templates/ (ours) and dex/ (for Dex), style.css and texts/. They are composed once,
// at the start, into html/template sources per language; see composer.
package web

import (
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing/fstest"
	"unicode"

	"golang.org/x/text/language"
)

//go:embed style.css logo.svg templates texts dex
var embedded embed.FS

// Options is how pages present themselves. The zero value is good.
type Options struct {
	Title string // name of the service, at most 80 characters; "Gatehouse" by default
	Logo  string // a data:image/…;base64,… URI of at most 64 KiB; ours by default
}

// Pages renders pages. It is immutable and safe for concurrent use.
type Pages struct {
	styleHash string
	templates map[string]*template.Template // by language
	tags      []language.Tag                // what matcher knows, the default first
	matcher   language.Matcher
	dex       fstest.MapFS // in memory; nothing of package testing comes with it
}

// New composes all pages in all languages. An error is a mistake in Options, or lists every mistake
// in the embedded texts and templates.
func New(o Options) (*Pages, error) {
	return newPages(embedded, o)
}

func newPages(fsys fs.FS, o Options) (*Pages, error) {
	b, err := newBrand(fsys, o)
	if err != nil {
		return nil, err
	}
	catalogues, err := readCatalogues(fsys, "texts")
	if err != nil {
		return nil, err
	}
	c, err := newComposer(fsys, b)
	if err != nil {
		return nil, err
	}
	p := &Pages{styleHash: hashSource(b.Style), templates: map[string]*template.Template{}, tags: tagsOf(catalogues)}
	p.matcher = language.NewMatcher(p.tags)
	for _, tag := range p.tags {
		s := source{catalogue: catalogues[tag], Lang: text(tag.String())}
		if p.templates[tag.String()], err = ownTemplates(c, fsys, s); err != nil {
			return nil, err
		}
	}
	// Dex's templates are not told the language of a request.
	s := source{catalogue: catalogues[p.tags[0]], Lang: text(p.tags[0].String())}
	if p.dex, err = dexFiles(c, fsys, s); err != nil {
		return nil, err
	}
	return p, nil
}

// tagsOf returns the languages, the default first, the others in a fixed order.
func tagsOf(catalogues map[language.Tag]*catalogue) []language.Tag {
	first := language.Make(DefaultLanguage)
	tags := slices.SortedFunc(maps.Keys(catalogues), func(a, b language.Tag) int {
		return strings.Compare(a.String(), b.String())
	})
	return append([]language.Tag{first}, slices.DeleteFunc(tags, func(t language.Tag) bool { return t == first })...)
}

func newBrand(fsys fs.FS, o Options) (brand, error) {
	title := o.Title
	if title == "" {
		title = "Gatehouse"
	}
	if n := len([]rune(title)); n > 80 || strings.ContainsFunc(title, unicode.IsControl) {
		return brand{}, fmt.Errorf("web: title: got %d characters, want at most 80 and no control characters", n)
	}
	css, err := fs.ReadFile(fsys, "style.css")
	if err != nil {
		return brand{}, fmt.Errorf("web: %w", err)
	}
	svg, err := fs.ReadFile(fsys, "logo.svg")
	if err != nil {
		return brand{}, fmt.Errorf("web: %w", err)
	}
	logo, err := logoMarkup(strings.TrimSpace(string(svg)), o.Logo)
	if err != nil {
		return brand{}, err
	}
	return brand{Product: text(title), Style: minify(string(css)), Icon: iconURI(string(svg)), Logo: logo}, nil
}

// ownTemplates composes and parses our pages in one language: error.html once per Code.
func ownTemplates(c *composer, fsys fs.FS, s source) (*template.Template, error) {
	all := template.New("pages")
	add := func(name, file string, s source) error {
		src, err := c.compose(fsys, path.Join("templates", file), s)
		if err != nil {
			return err
		}
		if _, err := all.New(name).Parse(src); err != nil {
			return fmt.Errorf("web: %s: %w", file, err)
		}
		return nil
	}
	for _, name := range []string{"signin.html", "change.html", "denied.html", "signout.html", "signedout.html", "account.html"} {
		if err := add(name, name, s); err != nil {
			return nil, err
		}
	}
	for _, code := range codes() {
		s.Problem = s.Error.Problems[code]
		if err := add(problemName(code), "error.html", s); err != nil {
			return nil, err
		}
	}
	return all, rehearse(all)
}

// dexFiles composes dex/templates and takes the rest of dex/ as it is.
func dexFiles(c *composer, fsys fs.FS, s source) (fstest.MapFS, error) {
	files := fstest.MapFS{}
	err := fs.WalkDir(fsys, "dex", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel := strings.TrimPrefix(name, "dex/")
		if path.Dir(rel) == "templates" {
			src, err := c.compose(fsys, name, s)
			files[rel] = &fstest.MapFile{Data: []byte(src), Mode: 0o444}
			return err
		}
		data, err := fs.ReadFile(fsys, name)
		files[rel] = &fstest.MapFile{Data: data, Mode: 0o444}
		return err
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}

// rehearse runs every template once without data: html/template checks its contexts only then.
func rehearse(t *template.Template) error {
	var errs []error
	for _, one := range t.Templates() {
		if one.Tree == nil {
			continue // the root, which only holds the others
		}
		if err := one.Execute(io.Discard, map[string]any(nil)); err != nil {
			errs = append(errs, fmt.Errorf("web: %w", err))
		}
	}
	return errors.Join(errs...)
}

// FS returns the files of Dex's own pages (server.WebConfig.WebFS): templates, static, themes,
// robots.txt. They look like ours, speak the default language, and need CSP, or ScriptCSP for the
// page of a security key. Listings of static/ are the front's to refuse.
func (p *Pages) FS() fs.FS { return p.dex }
