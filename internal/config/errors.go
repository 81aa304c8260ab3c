package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// An Error is one mistake: where it is, what was found there, what is wanted and how to mend it.
type Error struct {
	File string
	Line int    // counted from 1; 0 where a mistake has no line
	Path string // such as gateway.rules[1] "admin"; empty for a mistake in the YAML itself
	Msg  string
}

// Error returns FILE:LINE: PATH: MESSAGE.
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(e.Line))
	}
	b.WriteString(": ")
	if e.Path != "" {
		b.WriteString(e.Path)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Errors is every mistake of a file, sorted by line. It is never empty where it is returned as an error.
type Errors []Error

// Error returns one mistake a line.
func (e Errors) Error() string { return lines(e) }

// Warnings are what is allowed and yet worth a word at start, sorted by line.
type Warnings []Error

// String returns one warning a line.
func (w Warnings) String() string { return lines(w) }

func lines(list []Error) string {
	text := make([]string, len(list))
	for i, e := range list {
		text[i] = e.Error()
	}
	return strings.Join(text, "\n")
}

// A report gathers what is wrong with one file. It knows the line of every key, and what must not be shown.
type report struct {
	file  string
	last  int                 // line of the file
	nodes map[string]position // by path
	errs  []mistake
	warns []mistake
	hide  hidden

	wrong map[string]bool // paths with a mistake
	below map[string]bool // the same, and every block around one
}

// A mistake is an Error, and what its message was made of.
type mistake struct {
	Error
	format string // empty: the message is all our own
	args   []any
}

// ours marks an argument of a message that we wrote: no secret can be in it, and its words stay even where a secret
// is the same word.
type ours string

type position struct {
	line int
	null bool   // the key is there and has no value
	name string // of a list entry that has a name, an id or an e-mail address
}

func newReport(file string) *report {
	return &report{file: file, nodes: map[string]position{}, wrong: map[string]bool{}, below: map[string]bool{}}
}

// errorf records a mistake at path, or at the nearest block around it that is in the file.
func (r *report) errorf(path, format string, args ...any) {
	r.add(path, r.at(path, fmt.Sprintf(format, args...), format, args))
}

// fail records a mistake of the file as a whole.
func (r *report) fail(line int, msg string) {
	r.errs = append(r.errs, mistake{Error: Error{File: r.file, Line: line, Msg: msg}})
}

// add records a mistake of what is at path.
func (r *report) add(path string, m mistake) {
	r.errs = append(r.errs, m)
	r.wrong[path] = true
	for ; path != "" && !r.below[path]; path = parent(path) {
		r.below[path] = true
	}
}

// failed reports whether there already is a mistake at path, failedBelow whether there is one at path or in the
// block that it leads to: what follows from a mistake is not worth another.
func (r *report) failed(path string) bool { return r.wrong[path] }

func (r *report) failedBelow(path string) bool { return r.below[path] }

func (r *report) warnf(path, format string, args ...any) {
	r.warns = append(r.warns, r.at(path, fmt.Sprintf(format, args...), format, args))
}

func (r *report) at(path, msg, format string, args []any) mistake {
	return mistake{Error: Error{File: r.file, Line: r.line(path), Path: r.label(path), Msg: msg}, format: format, args: args}
}

func (r *report) line(path string) int {
	for {
		if p, ok := r.nodes[path]; ok {
			return p.line
		}
		if path == "" {
			return 1
		}
		path = parent(path)
	}
}

// label adds the name of the entry to the path of a list entry: gateway.rules[1] "admin".
func (r *report) label(path string) string {
	if p, ok := r.nodes[path]; ok && p.name != "" {
		return path + " " + strconv.Quote(p.name)
	}
	return path
}

// has reports whether the file gives path a value.
func (r *report) has(path string) bool {
	p, ok := r.nodes[path]
	return ok && !p.null
}

func (r *report) sorted() (Errors, Warnings) {
	return Errors(r.finish(r.errs)), Warnings(r.finish(r.warns))
}

// finish sorts, hides and removes doubles: a node behind an alias is read once for each use.
func (r *report) finish(mistakes []mistake) []Error {
	list := make([]Error, len(mistakes))
	for i, m := range mistakes {
		list[i] = m.Error
		list[i].Line = min(m.Line, r.last) // the YAML parser may place the end of the file below it
		if m.format != "" && r.hide.clean(m.Msg) != m.Msg {
			list[i].Msg = fmt.Sprintf(m.format, r.hide.cleanAll(m.args)...)
		}
	}
	slices.SortStableFunc(list, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Path, b.Path))
	})
	return slices.Compact(list)
}

// parent returns the path of the block around path; that of a top-level key is empty.
func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}

func child(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// hidden holds values that no message may show, each with what stands in for it. Messages are built from
// several sources (the validator of a connector among them), so the last word on secrets is here. Only what was
// put into a message is searched, never the words around it: a password may be one of them.
type hidden struct{ values map[string]string }

// minHidden is the length in bytes below which a value is not searched for: shorter ones are part of ordinary words.
const minHidden = 4

func (h *hidden) add(value, standIn string) {
	if len(value) < minHidden {
		return
	}
	if h.values == nil {
		h.values = map[string]string{}
	}
	h.values[value] = standIn
	for _, q := range []string{strconv.Quote(value), jsonText(value, true), jsonText(value, false)} {
		h.values[q[1:len(q)-1]] = standIn
	}
}

// jsonText returns s as a JSON string. A Go program that prints a block as JSON escapes < > & too, or leaves them.
func jsonText(s string, escapeHTML bool) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(escapeHTML)
	_ = e.Encode(s) // no error is possible for a string
	return strings.TrimSuffix(b.String(), "\n")
}

// clean replaces the longest values first, since one may be part of another.
func (h *hidden) clean(text string) string {
	if len(h.values) == 0 {
		return text
	}
	found := make([]string, 0, 1)
	for v := range h.values {
		if strings.Contains(text, v) {
			found = append(found, v)
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b))
	})
	for _, v := range found {
		text = strings.ReplaceAll(text, v, h.values[v])
	}
	return text
}

// cleanAll returns the arguments of a message without what is hidden. What is neither text nor prints itself as
// text is a number of ours.
func (h *hidden) cleanAll(args []any) []any {
	out := make([]any, len(args))
	for i, arg := range args {
		switch a := arg.(type) {
		case ours:
			out[i] = a
		case error:
			out[i] = h.clean(a.Error())
		case Duration:
			out[i] = h.clean(a.String())
		default:
			out[i] = arg
			if v := reflect.ValueOf(arg); v.Kind() == reflect.String {
				out[i] = h.clean(v.String())
			}
		}
	}
	return out
}
