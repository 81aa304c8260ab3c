package web

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// palettes reads the custom properties of both :root blocks from the style as it is sent.
func palettes(t *testing.T) map[string]map[string]string {
	t.Helper()
	b, err := newBrand(embedded, Options{})
	if err != nil {
		t.Fatal(err)
	}
	light, dark, ok := strings.Cut(b.Style, "@media (prefers-color-scheme:dark)")
	if !ok {
		t.Fatal("the style has no dark scheme")
	}
	read := func(css string) map[string]string {
		_, css, _ = strings.Cut(css, ":root{")
		css, _, _ = strings.Cut(css, "}")
		found := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z-]+):(#[0-9a-f]{6})`).FindAllStringSubmatch(css, -1) {
			found[m[1]] = m[2]
		}
		return found
	}
	return map[string]map[string]string{"light": read(light), "dark": read(dark)}
}

// luminance is the relative luminance of #rrggbb (WCAG 2.2).
func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	var sum float64
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		v, err := strconv.ParseUint(hex[1+2*i:3+2*i], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		c := float64(v) / 255
		if c <= 0.04045 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	la, lb := luminance(t, a), luminance(t, b)
	return (max(la, lb) + 0.05) / (min(la, lb) + 0.05)
}

func TestContrastFormula(t *testing.T) {
	// Known pairs: the extremes, and the greys on both sides of 4.5 on white.
	for pair, want := range map[[2]string]string{
		{"#000000", "#ffffff"}: "21.00", {"#777777", "#ffffff"}: "4.48", {"#767676", "#ffffff"}: "4.54", {"#ffffff", "#ffffff"}: "1.00",
	} {
		if got := fmt.Sprintf("%.2f", contrast(t, pair[0], pair[1])); got != want {
			t.Errorf("%v: got %s, want %s", pair, got, want)
		}
	}
}

func TestContrast(t *testing.T) {
	const text, shape = 4.5, 3.0 // WCAG 2.2, 1.4.3 (AA) and 1.4.11
	pairs := []struct {
		front, back string
		least       float64
	}{
		{"ink", "page", text},
		{"ink", "card", text},
		{"ink", "field-bg", text},
		{"ink", "quiet", text}, // hovered button, quotation
		{"soft", "card", text},
		{"accent", "card", text}, // links
		{"accent-strong", "card", text},
		{"accent-ink", "accent", text}, // main button
		{"accent-ink", "accent-strong", text},
		{"bad", "bad-bg", text},
		{"field", "card", shape}, // outline of a field
		{"field", "field-bg", shape},
		{"bad-line", "card", shape}, // of a wrong field
		{"bad-line", "field-bg", shape},
		{"accent", "page", shape}, // focus, logo
		{"accent", "field-bg", shape},
	}
	for scheme, colours := range palettes(t) {
		for _, p := range pairs {
			front, back := colours[p.front], colours[p.back]
			if front == "" || back == "" {
				t.Errorf("%s: --%s or --%s is missing", scheme, p.front, p.back)
				continue
			}
			if got := contrast(t, front, back); got < p.least {
				t.Errorf("%s: --%s on --%s: contrast %.2f, want at least %.1f", scheme, p.front, p.back, got, p.least)
			}
		}
	}
}

func TestEveryColourHasBothSchemes(t *testing.T) {
	both := palettes(t)
	b, err := newBrand(embedded, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`var\(--([a-z-]+)\)`).FindAllStringSubmatch(b.Style, -1) {
		if m[1] == "shadow" {
			continue
		}
		for scheme, colours := range both {
			if colours[m[1]] == "" {
				t.Errorf("%s: --%s is used and not defined", scheme, m[1])
			}
		}
	}
	if n := len(both["light"]); n != len(both["dark"]) || n < 12 {
		t.Errorf("light has %d colours, dark %d", n, len(both["dark"]))
	}
}

func TestMinify(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"comment over lines", "a{}/* x\n * y */b{}", "a{}b{}"},
		{"two comments keep what is between", "/*1*/a{}/*2*/", "a{}"},
		{"declaration", "a , b > c {\n\tcolor : red ;\n\tmargin: 0 1px;\n}\n", "a,b > c{color :red;margin:0 1px}"},
		{"pseudo class of any element", "a :focus{}", "a :focus{}"},
		{"media", "@media (max-width: 1em) { a { b: c; } }", "@media (max-width:1em){a{b:c}}"},
		{"calc", "a{b:calc(1px + 2px)}", "a{b:calc(1px + 2px)}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := minify(tt.in); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
