package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/text/language"
)

// DefaultLanguage is spoken where nothing better fits. Its catalogue must exist.
const DefaultLanguage = "en"

// A text is a piece of a catalogue: plain text, never markup. It prints itself escaped, so that
// putting one into a template cannot open an element, an attribute or a template action. A name in
// braces is a place for a value; which ones a text must have stands in its field's "places" tag.
type text string

func (t text) String() string {
	return strings.NewReplacer("{", "&#123;", "}", "&#125;").Replace(html.EscapeString(string(t)))
}

// A catalogue has every text in one language. To add a language add one file, texts/<tag>.json: a
// file that lacks a text, or has one too many, stops the start with a list of them all.
type catalogue struct {
	Direction text `json:"direction"` // ltr or rtl
	Common    struct {
		ErrorPrefix text `json:"errorPrefix"`
		RequestID   text `json:"requestID"`
		GoBack      text `json:"goBack"`
	} `json:"common"`
	SignIn    signInTexts    `json:"signIn"`
	Change    changeTexts    `json:"change"`
	Denied    deniedTexts    `json:"denied"`
	SignOut   signOutTexts   `json:"signOut"`
	SignedOut signedOutTexts `json:"signedOut"`
	Account   accountTexts   `json:"account"`
	Error     errorTexts     `json:"error"`
	Approval  approvalTexts  `json:"approval"`
	Device    deviceTexts    `json:"device"`
	TOTP      totpTexts      `json:"totp"`
	Key       keyTexts       `json:"key"`
	Code      struct {
		Title text `json:"title"`
		Text  text `json:"text"`
		Code  text `json:"code"`
	} `json:"code"`
	Home homeTexts `json:"home"`
}

type signInTexts struct {
	Title       text `json:"title"`
	Continue    text `json:"continue" places:"client"`
	Prompt      text `json:"prompt"`
	Email       text `json:"email"`
	Password    text `json:"password"`
	Remember    text `json:"remember"`
	Submit      text `json:"submit"`
	Or          text `json:"or"`
	With        text `json:"with" places:"connector"`
	Other       text `json:"other"`
	OtherWays   text `json:"otherWays"`
	Choose      text `json:"choose"`
	NoWay       text `json:"noWay"`
	Wrong       text `json:"wrong"`
	Throttled   text `json:"throttled" places:"minutes"`
	Expired     text `json:"expired"`
	MustChange  text `json:"mustChange"`
	Disabled    text `json:"disabled"`
	Ended       text `json:"ended"`
	Hours       text `json:"hours"`
	Workstation text `json:"workstation"`
	Unavailable text `json:"unavailable"`
	Busy        text `json:"busy"`
}

type changeTexts struct {
	Title      text `json:"title"`
	Expired    text `json:"expired"`
	MustChange text `json:"mustChange"`
	User       text `json:"user"`
	Current    text `json:"current"`
	New        text `json:"new"`
	Again      text `json:"again"`
	Submit     text `json:"submit"`
	Only       text `json:"only"`
	Back       text `json:"back"`
	Wrong      text `json:"wrong"`
	Differ     text `json:"differ"`
	Same       text `json:"same"`
	TooLong    text `json:"tooLong"`
	Rejected   text `json:"rejected"`
	Said       text `json:"said"`
}

type deniedTexts struct {
	Title     text `json:"title"`
	Text      text `json:"text" places:"user"`
	Help      text `json:"help"`
	Rule      text `json:"rule"`
	OtherUser text `json:"otherUser"`
	Account   text `json:"account"`
}

type signOutTexts struct {
	Title         text `json:"title"`
	Text          text `json:"text" places:"user"`
	AnonymousText text `json:"anonymousText"`
	Submit        text `json:"submit"`
	Stay          text `json:"stay"`
	Account       text `json:"account"`
}

type signedOutTexts struct {
	Title    text `json:"title"`
	Text     text `json:"text"`
	Upstream text `json:"upstream" places:"connector"`
	Again    text `json:"again"`
	Continue text `json:"continue"`
	None     text `json:"none"`
	NoneText text `json:"noneText"`
}

type accountTexts struct {
	Title      text `json:"title"`
	AllGroups  text `json:"allGroups" places:"count"`
	Password   text `json:"password"`
	Sessions   text `json:"sessions"`
	Advice     text `json:"advice"`
	Current    text `json:"current"`
	Unknown    text `json:"unknown"`
	LastUse    text `json:"lastUse"`
	Within     text `json:"within" places:"minutes"`
	Minutes    text `json:"minutes" places:"minutes"`
	Hours      text `json:"hours" places:"hours"`
	Days       text `json:"days" places:"days"`
	More       text `json:"more" places:"count"`
	Others     text `json:"others"`
	Everywhere text `json:"everywhere"`
	DoneOne    text `json:"doneOne"`
	DoneOthers text `json:"doneOthers"`
}

type errorTexts struct {
	Again    text             `json:"again"`
	Problems map[Code]problem `json:"problems"` // one for every Code
}

// Problem is for templates, which cannot index by a Code.
func (e errorTexts) Problem(code string) (problem, error) {
	p, ok := e.Problems[Code(code)]
	if !ok {
		return problem{}, fmt.Errorf("no texts for the error %q", code)
	}
	return p, nil
}

// A problem says what happened, why, and what to do.
type problem struct {
	Title  text `json:"title"`
	Text   text `json:"text"`
	Action text `json:"action"`
}

type approvalTexts struct {
	Title   text `json:"title"`
	Asks    text `json:"asks" places:"client"`
	Nothing text `json:"nothing" places:"client"`
	User    text `json:"user" places:"user"`
	Approve text `json:"approve"`
	Reject  text `json:"reject"`
}

type deviceTexts struct {
	Title    text `json:"title"`
	Text     text `json:"text"`
	Code     text `json:"code"`
	Submit   text `json:"submit"`
	Invalid  text `json:"invalid"`
	Warning  text `json:"warning"`
	Done     text `json:"done"`
	DoneText text `json:"doneText" places:"client"`
}

type totpTexts struct {
	Title   text `json:"title"`
	Scan    text `json:"scan"`
	Enter   text `json:"enter" places:"issuer"`
	QR      text `json:"qr"`
	Code    text `json:"code"`
	Submit  text `json:"submit"`
	Invalid text `json:"invalid"`
}

type keyTexts struct {
	Title         text `json:"title"`
	Text          text `json:"text"`
	Use           text `json:"use"`
	RegisterTitle text `json:"registerTitle"`
	RegisterText  text `json:"registerText"`
	Register      text `json:"register"`
	Waiting       text `json:"waiting"`
	Cancelled     text `json:"cancelled"`
	NotAllowed    text `json:"notAllowed"`
	Failed        text `json:"failed"`
	Unsupported   text `json:"unsupported"`
	NoScript      text `json:"noScript"`
}

type homeTexts struct {
	Title       text `json:"title"`
	None        text `json:"none"`
	NoneText    text `json:"noneText"`
	Name        text `json:"name"`
	Email       text `json:"email"`
	Verified    text `json:"verified"`
	NotVerified text `json:"notVerified"`
	Connector   text `json:"connector"`
	Since       text `json:"since"`
	Ends        text `json:"ends"`
	EndsIdle    text `json:"endsIdle"`
	Address     text `json:"address"`
	Groups      text `json:"groups"`
	Browser     text `json:"browser"`
	SignOut     text `json:"signOut"`
	Discovery   text `json:"discovery"`
}

// readCatalogues reads every <tag>.json in dir. All mistakes of all files are returned, joined.
func readCatalogues(fsys fs.FS, dir string) (map[language.Tag]*catalogue, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("web: texts: %w", err)
	}
	found := make(map[language.Tag]*catalogue, len(names))
	var errs []error
	for _, name := range names {
		tag, err := language.Parse(strings.TrimSuffix(path.Base(name), ".json"))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: name the file by a language tag, such as de or pt-BR: %w", name, err))
			continue
		}
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c, err := parseCatalogue(name, data)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found[tag] = c
	}
	if len(errs) == 0 && found[language.Make(DefaultLanguage)] == nil {
		errs = append(errs, fmt.Errorf("%s: missing: it is the language of last resort", path.Join(dir, DefaultLanguage+".json")))
	}
	return found, errors.Join(errs...)
}

func parseCatalogue(name string, data []byte) (*catalogue, error) {
	var raw any
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	v := checker{file: name}
	v.check("", raw, reflect.TypeFor[catalogue](), "")
	if len(v.errs) > 0 {
		return nil, errors.Join(v.errs...)
	}
	c := new(catalogue)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if c.Direction != "ltr" && c.Direction != "rtl" {
		return nil, fmt.Errorf("%s: direction: got %q, want ltr or rtl", name, string(c.Direction))
	}
	return c, nil
}

// A checker compares a decoded JSON value with the Go type that it is meant for.
type checker struct {
	file string
	errs []error
}

func (v *checker) fail(at, format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf("%s: %s: %s", v.file, at, fmt.Sprintf(format, args...)))
}

func (v *checker) check(at string, raw any, want reflect.Type, places string) {
	if want == reflect.TypeFor[text]() {
		v.checkText(at, raw, places)
		return
	}
	object, ok := raw.(map[string]any)
	if !ok {
		v.fail(strings.TrimPrefix(at, "."), "want an object")
		return
	}
	known := map[string]bool{}
	for key, member := range members(want) {
		known[key] = true
		inner := strings.TrimPrefix(at+"."+key, ".")
		value, ok := object[key]
		if !ok && member.Type == reflect.TypeFor[text]() {
			v.fail(inner, "missing")
			continue
		}
		if !ok {
			value = map[string]any{} // so that each text that is missing in it is named
		}
		v.check(inner, value, member.Type, member.Tag.Get("places"))
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if !known[key] {
			v.fail(strings.TrimPrefix(at+"."+key, "."), "unknown: remove it")
		}
	}
}

// members yields the JSON names and fields of a struct, or one entry per Code for a map of them.
func members(t reflect.Type) func(yield func(string, reflect.StructField) bool) {
	return func(yield func(string, reflect.StructField) bool) {
		if t.Kind() == reflect.Map {
			for _, code := range codes() {
				if !yield(string(code), reflect.StructField{Type: t.Elem()}) {
					return
				}
			}
			return
		}
		for field := range t.Fields() {
			if !yield(field.Tag.Get("json"), field) {
				return
			}
		}
	}
}

var braces = regexp.MustCompile(`\{[^}]*\}?|\}`)

func (v *checker) checkText(at string, raw any, places string) {
	s, ok := raw.(string)
	if !ok || strings.TrimSpace(s) == "" {
		v.fail(at, "want a text")
		return
	}
	var want []string
	if places != "" {
		want = []string{"{" + places + "}"}
	}
	got := braces.FindAllString(s, -1)
	if !slices.Equal(got, want) {
		v.fail(at, "has the places %q, want %q", got, want)
	}
}

// maxAcceptLanguage caps the header that Language parses, in bytes.
const maxAcceptLanguage = 512

// Language picks the language of a page from an Accept-Language header (RFC 9110 section 12.5.4),
// which may be empty or garbage.
func (p *Pages) Language(acceptLanguage string) string {
	if len(acceptLanguage) > maxAcceptLanguage {
		return DefaultLanguage
	}
	wanted, _, err := language.ParseAcceptLanguage(acceptLanguage)
	if err != nil {
		return DefaultLanguage
	}
	_, i, confidence := p.matcher.Match(wanted...)
	if confidence == language.No {
		return DefaultLanguage
	}
	return p.tags[i].String()
}
