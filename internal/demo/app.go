package demo

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
)

//go:embed app.html.tmpl
var appTemplate string

//go:embed app.css
var appStyle string

// The headers through which the demo's config tells the app who the user is.
const (
	userHeader   = "Kubeflow-Userid"
	groupsHeader = "Kubeflow-Groups"
)

type appPage struct {
	Style   template.CSS
	Title   string
	Lead    string
	User    string
	Groups  []string
	Headers []headerLine
}

type headerLine struct{ Name, Value string }

// SampleApp is an app without any auth logic: it shows what reached it.
//
//	/                          a page with the identity headers and links to try
//	/headers, /public/headers  the request headers as one flat JSON object, lower-case name -> value
//	/admin, /admin/…           a page for administrators; the app itself does not check who asks
//	/favicon.ico               nothing: there is no icon
//	anything else              404 with what arrived, as JSON
//
// It never redirects, not even to a cleaner path, so that what a gateway lets through is seen as it came.
func SampleApp() http.Handler {
	page := template.Must(template.New("app").Parse(appTemplate))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case path == "/":
			showPage(w, r, page, "You are signed in", "This app has no sign-in code. Gatehouse tells it who you are, in request headers.")
		case path == "/admin", strings.HasPrefix(path, "/admin/"):
			showPage(w, r, page, "Administration", "Only the group admins gets here. The app has no line of code for that: Gatehouse's rule “admin” decides.")
		case path == "/headers", path == "/public/headers":
			writeJSON(w, http.StatusOK, flatHeaders(r))
		case path == "/favicon.ico": // browsers ask for it beside a JSON document
			secure(w.Header())
			w.WriteHeader(http.StatusNoContent)
		default:
			writeJSON(w, http.StatusNotFound, echo{
				Error: "the sample app has no such page", Method: r.Method, Host: r.Host, Path: r.RequestURI, Headers: flatHeaders(r),
			})
		}
	})
}

type echo struct {
	Error   string            `json:"error"`
	Method  string            `json:"method"`
	Host    string            `json:"host"`
	Path    string            `json:"path"` // with the query, as it arrived
	Headers map[string]string `json:"headers"`
}

// flatHeaders returns every header of r by its lower-case name; several values are joined by ", ".
func flatHeaders(r *http.Request) map[string]string {
	flat := map[string]string{"host": r.Host}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		key, value := strings.ToLower(name), strings.Join(r.Header[name], ", ")
		if old, ok := flat[key]; ok {
			value = old + ", " + value
		}
		flat[key] = value
	}
	return flat
}

func showPage(w http.ResponseWriter, r *http.Request, page *template.Template, title, lead string) {
	data := appPage{Style: template.CSS(appStyle), Title: title, Lead: lead, User: r.Header.Get(userHeader)} //nolint:gosec // G203: our own file
	for g := range strings.SplitSeq(r.Header.Get(groupsHeader), ",") {
		if g = strings.TrimSpace(g); g != "" {
			data.Groups = append(data.Groups, g)
		}
	}
	flat := flatHeaders(r)
	for _, name := range slices.Sorted(maps.Keys(flat)) {
		data.Headers = append(data.Headers, headerLine{Name: name, Value: flat[name]})
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src '"+styleHash()+"'; img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'")
	secure(h)
	_ = page.Execute(w, data) // a reader that has gone away needs no answer
}

// styleHash names the page's one style element to the browser (CSP Level 3 section 2.3.1, hash-source).
func styleHash() string {
	sum := sha256.Sum256([]byte(appStyle))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	secure(w.Header())
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // a reader that has gone away needs no answer
}

func secure(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
}
