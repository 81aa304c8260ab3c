package web

import (
	"encoding/json"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// shipped copies the embedded files, so that a test can change some.
func shipped(t *testing.T) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	err := fs.WalkDir(embedded, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(embedded, name)
		files[name] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// english returns the English catalogue as plain JSON values.
func english(t *testing.T) map[string]any {
	t.Helper()
	data, err := fs.ReadFile(embedded, "texts/en.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func encode(t *testing.T, v any) *fstest.MapFile {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return &fstest.MapFile{Data: data}
}

// translate puts a word in front of and behind every text.
func translate(v any, word string) any {
	switch v := v.(type) {
	case string:
		return word + v + word
	case map[string]any:
		for key := range v {
			v[key] = translate(v[key], word)
		}
	}
	return v
}

func TestALanguageIsOneFile(t *testing.T) {
	files := shipped(t)
	foreign := translate(english(t), "<b>&Ω").(map[string]any)
	foreign["direction"] = "rtl"
	files["texts/he.json"] = encode(t, foreign)
	p, err := newPages(files, Options{})
	if err != nil {
		t.Fatal(err)
	}
	page := p.SignIn(p.Language("he-IL, en;q=0.5"), SignIn{Action: "/x", Client: "Grafana"})
	doc := parse(t, page.Body)
	root := find(doc, "html")[0]
	if attr(root, "lang") != "he" || attr(root, "dir") != "rtl" || page.Header.Get("Content-Language") != "he" {
		t.Errorf("lang %q, dir %q, Content-Language %q; want he, rtl, he", attr(root, "lang"), attr(root, "dir"), page.Header.Get("Content-Language"))
	}
	if got, want := textOf(find(doc, "h1")[0]), "<b>&ΩSign in<b>&Ω"; got != want {
		t.Errorf("heading: got %q, want %q: a text is no markup", got, want)
	}
	if got, want := textOf(find(doc, "p")[0]), "<b>&Ωto continue to Grafana<b>&Ω"; got != want {
		t.Errorf("paragraph: got %q, want %q", got, want)
	}
	if got := textOf(find(parse(t, p.SignIn("en", SignIn{}).Body), "h1")[0]); got != "Sign in" {
		t.Errorf("English beside it: got %q", got)
	}
	if got := p.SignIn("xx", SignIn{}).Header.Get("Content-Language"); got != "en" {
		t.Errorf("unknown language: got %q, want en", got)
	}
}

// What was left untranslated in German is the same word there.
func TestGermanIsTranslated(t *testing.T) {
	var german map[string]any
	data, err := fs.ReadFile(embedded, "texts/de.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &german); err != nil {
		t.Fatal(err)
	}
	same := map[string]bool{".direction": true, ".device.code": true, ".code.code": true, ".home.name": true, ".home.browser": true}
	var walk func(at string, en, de any)
	walk = func(at string, en, de any) {
		if texts, ok := en.(map[string]any); ok {
			for key := range texts {
				walk(at+"."+key, texts[key], de.(map[string]any)[key])
			}
			return
		}
		if en == de && !same[at] {
			t.Errorf("%s is English: %q", at, de)
		}
		if s := de.(string); strings.ContainsAny(s, "'\"") || strings.Contains(s, "...") {
			t.Errorf("%s: %q: write ’ „ “ …", at, s)
		}
	}
	walk("", english(t), german)
	if got := newTestPages(t).Language("de-CH, en;q=0.5"); got != "de" {
		t.Errorf("a Swiss browser gets %q", got)
	}
}

func TestCatalogueMistakesAreAllListed(t *testing.T) {
	c := english(t)
	delete(c["signIn"].(map[string]any), "title")
	delete(c, "home")
	c["extra"] = "x"
	c["denied"].(map[string]any)["titel"] = "x"
	problems := c["error"].(map[string]any)["problems"].(map[string]any)
	delete(problems, "loop")
	problems["lop"] = map[string]any{}
	problems["internal"].(map[string]any)["text"] = " "
	problems["not-found"] = "x"
	c["totp"].(map[string]any)["scan"] = 1
	c["signIn"].(map[string]any)["continue"] = "to continue"
	c["signIn"].(map[string]any)["with"] = "{connector} and {client}"
	c["signIn"].(map[string]any)["submit"] = "{{.}}"
	c["approval"].(map[string]any)["asks"] = "{client} {client}"
	files := shipped(t)
	files["texts/de.json"] = encode(t, c)
	files["texts/not a tag.json"] = encode(t, english(t))
	files["texts/fr.json"] = &fstest.MapFile{Data: []byte("{")}
	_, err := newPages(files, Options{})
	if err == nil {
		t.Fatal("is accepted")
	}
	for _, want := range []string{
		"texts/de.json: signIn.title: missing",
		"texts/de.json: home.title: missing",
		"texts/de.json: home.discovery: missing",
		"texts/de.json: extra: unknown",
		"texts/de.json: denied.titel: unknown",
		"texts/de.json: error.problems.loop.title: missing",
		"texts/de.json: error.problems.loop.action: missing",
		"texts/de.json: error.problems.lop: unknown",
		"texts/de.json: error.problems.internal.text: want a text",
		"texts/de.json: error.problems.not-found: want an object",
		"texts/de.json: totp.scan: want a text",
		`texts/de.json: signIn.continue: has the places [], want ["{client}"]`,
		`texts/de.json: signIn.with: has the places ["{connector}" "{client}"], want ["{connector}"]`,
		`texts/de.json: signIn.submit: has the places`,
		`texts/de.json: approval.asks: has the places ["{client}" "{client}"], want ["{client}"]`,
		"texts/not a tag.json: name the file by a language tag",
		"texts/fr.json: unexpected end",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestCatalogueThatCannotBeUsed(t *testing.T) {
	sideways := english(t)
	sideways["direction"] = "up"
	tests := []struct {
		name, file string
		content    *fstest.MapFile
		want       string
	}{
		{"not an object", "texts/de.json", &fstest.MapFile{Data: []byte("[]")}, "want an object"},
		{"direction", "texts/de.json", encode(t, sideways), `direction: got "up", want ltr or rtl`},
		{"no English", "texts/en.json", nil, "texts/en.json: missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := shipped(t)
			files[tt.file] = tt.content
			if tt.content == nil {
				delete(files, tt.file)
			}
			if _, err := newPages(files, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q in it", err, tt.want)
			}
		})
	}
}

// A text that no page uses is a burden for translators.
func TestEveryTextIsUsed(t *testing.T) {
	var sources strings.Builder
	for name, file := range shipped(t) {
		if strings.HasSuffix(name, ".html") {
			sources.Write(file.Data)
		}
	}
	used := strings.ToLower(strings.Join(regexp.MustCompile(`\.[A-Za-z]+\.[A-Za-z]+`).FindAllString(sources.String(), -1), " ") + " ")
	for group, texts := range english(t) {
		members, ok := texts.(map[string]any)
		if !ok {
			continue
		}
		for key := range members {
			if key == "problems" {
				continue // each is the text of one error page
			}
			if !strings.Contains(used, strings.ToLower("."+group+"."+key+" ")) {
				t.Errorf("%s.%s is used nowhere", group, key)
			}
		}
	}
}

func TestLanguage(t *testing.T) {
	files := shipped(t)
	for _, tag := range []string{"de", "pt-BR"} {
		files["texts/"+tag+".json"] = encode(t, english(t))
	}
	p, err := newPages(files, Options{})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, header, want string }{
		{"absent", "", "en"},
		{"garbage", "\x00;;,=q", "en"},
		{"attack on the parser", strings.Repeat("a-", 200), "en"},
		{"longest", "de" + strings.Repeat(" ", maxAcceptLanguage-2), "de"},
		{"too long", "de" + strings.Repeat(" ", maxAcceptLanguage-1), "en"},
		{"any", "*", "en"},
		{"exact", "de", "de"},
		{"region falls back", "de-AT", "de"},
		{"region is told apart", "pt-BR", "pt-BR"},
		{"nearest region", "pt", "pt-BR"},
		{"weights", "fr, en;q=0.3, de;q=0.8", "de"},
		{"unknown", "tlh", "en"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := p.Language(tt.header); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
