package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// module writes a module with one package for each test file's text, by folder name.
func module(t *testing.T, tests map[string]string) {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module sample\n\ngo 1.26\n")
	for name, text := range tests {
		write(name+"/x_test.go", "package x\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nvar _ = os.Exit\n\n"+text)
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "-trimpath") // as the Makefile compiles most: less to do again
	t.Setenv("CGO_ENABLED", "0")
}

func TestRun(t *testing.T) {
	const good = "func TestGood(t *testing.T) { t.Run(\"sub\", func(*testing.T) {}) }\nfunc FuzzF(f *testing.F) { f.Add(1); f.Fuzz(func(*testing.T, int) {}) }\nfunc BenchmarkB(b *testing.B) { for b.Loop() {} }\n"
	cases := []struct {
		name  string
		tests map[string]string
		args  []string
		code  int
		last  string
		wants []string
	}{
		{name: "tests, subtests and fuzz seeds count, benchmarks for themselves", tests: map[string]string{"good": good}, args: []string{"-bench", "."}, last: "4 passed, 0 failed, benchmarks: 1", wants: []string{"ok    sample/good"}},
		{
			name: "a failure is told whole and again at the end", code: 1, last: "1 passed, 2 failed",
			tests: map[string]string{"bad": "func TestBad(t *testing.T) { t.Run(\"a\", func(t *testing.T) { t.Log(\"the detail\"); t.Error(\"boom\") }) }\nfunc TestGood(*testing.T) {}\n"},
			wants: []string{"the detail", "boom", "FAIL  sample/bad", "failed: sample/bad TestBad/a\n"},
		},
		{
			name: "a panic is a failure", tests: map[string]string{"bad": "func TestBad(*testing.T) { panic(\"oh no\") }\n"},
			code: 1, last: "0 passed, 1 failed", wants: []string{"oh no"},
		},
		{
			name: "a test that exits did not end", tests: map[string]string{"bad": "func TestBad(*testing.T) { os.Exit(3) }\n"},
			code: 1, last: "0 passed, 1 failed", wants: []string{"did not end: sample/bad TestBad"},
		},
		{
			name: "an exit 0 in the middle is a failure too", tests: map[string]string{"bad": "func TestBad(*testing.T) { os.Exit(0) }\n"},
			code: 1, last: "0 passed, 1 failed", wants: []string{"TestBad"},
		},
		{
			name: "code that does not compile is a failure with its reason", tests: map[string]string{"bad": "func TestBad(*testing.T) { nonsense() }\n", "good": good},
			code: 1, last: "4 passed, 1 failed", wants: []string{"undefined: nonsense"},
		},
		{
			name: "a skipped test is no success", tests: map[string]string{"lazy": "func TestLazy(t *testing.T) { t.Skip(\"some reason\") }\nfunc TestGood(*testing.T) {}\n"},
			code: 1, last: "1 passed, 0 failed, 1 skipped (a skipped test proves nothing: mend or remove it)", wants: []string{"some reason"},
		},
		{name: "a second run adds to the count", tests: map[string]string{"good": good}, args: []string{"-run", "TestGood", "./...", "--", "-run", "FuzzF"}, last: "4 passed, 0 failed"},
		{name: "a second run waits for the first to pass", tests: map[string]string{"lazy": "func TestBad(t *testing.T) { t.Error(\"x\") }\n"}, args: []string{"./...", "--"}, code: 1, last: "0 passed, 1 failed"},
		{name: "a benchmark that fails is a failure", tests: map[string]string{"bad": "func TestGood(*testing.T) {}\nfunc BenchmarkBad(b *testing.B) { b.Error(\"slow\") }\n"}, args: []string{"-bench", "."}, code: 1, last: "1 passed, 1 failed", wants: []string{"slow"}},
		{
			name: "benchmarks alone are a success", args: []string{"-run", "None", "-bench", "."}, last: "0 passed, 0 failed, benchmarks: 2",
			tests: map[string]string{"good": good + "func BenchmarkTalks(b *testing.B) { b.Log(\"words\") }\n"},
		},
		{name: "nothing at all is no success", tests: map[string]string{"good": good}, args: []string{"-run", "None"}, code: 1, last: "0 passed, 0 failed"},
		{name: "a wrong flag is told", tests: map[string]string{"good": good}, args: []string{"-count=x"}, code: 1, last: "0 passed, 0 failed"},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			module(t, tt.tests)
			var out, errs bytes.Buffer
			code := run(t.Context(), append(tt.args, "./..."), &out, &errs)
			if ok := code == 0; ok != (tt.code == 0) {
				t.Errorf("got exit code %d, want %d\n%s%s", code, tt.code, &out, &errs)
			}
			lines := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
			if got := lines[len(lines)-1]; got != tt.last {
				t.Errorf("got last line %q, want %q\n%s%s", got, tt.last, &out, &errs)
			}
			for _, want := range tt.wants {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output has no %q:\n%s", want, &out)
				}
			}
		})
	}
}

// TestProgress: who waits is told now and then what has begun, and is not told of every test.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tally := newTally(&out)
		for _, name := range []string{"TestA", "TestA/soon", "TestA/later", "TestA/soon_after"} {
			if name == "TestA/later" {
				time.Sleep(patience)
			}
			tally.take(event{Action: "run", Package: "p", Test: name})
		}
		if got, want := out.String(), "...   p TestA/later\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
