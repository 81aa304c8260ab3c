package imports

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// A source is the files of one package in one folder; those of a test package (name_test) belong to it.
type source struct {
	folder string
	fset   *token.FileSet
	files  []*ast.File // of the product
	tests  []*ast.File
}

// sources parses every package of the module.
func sources(t *testing.T) (list []source) {
	t.Helper()
	root, byFolder := peers.Root(t), map[string]*source{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && skipped(path, d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		text, err := os.ReadFile(path) // #nosec G304 -- a path of this source tree
		if err != nil {
			return err
		}
		folder := filepath.Dir(path)
		if byFolder[folder] == nil {
			byFolder[folder] = &source{folder: folder, fset: token.NewFileSet()}
		}
		return byFolder[folder].add(path, string(text))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range slices.Sorted(maps.Keys(byFolder)) {
		list = append(list, *byFolder[folder])
	}
	return list
}

// skipped folders hold no package of this module.
func skipped(path, name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "node_modules" {
		return true
	}
	_, err := os.Stat(filepath.Join(path, "go.mod"))
	return err == nil
}

func (s *source) add(path, text string) error {
	f, err := parser.ParseFile(s.fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if strings.HasSuffix(path, "_test.go") {
		s.tests = append(s.tests, f)
	} else {
		s.files = append(s.files, f)
	}
	return nil
}

func (s *source) at(n ast.Node) string {
	p := s.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// comments returns the files with a package comment: those of the product, or of the tests where there is nothing else.
func (s *source) comments() (names []string) {
	files := s.files
	if len(files) == 0 {
		files = s.tests
	}
	for _, f := range files {
		if f.Doc != nil {
			names = append(names, s.at(f))
		}
	}
	return names
}

func TestOnePackageComment(t *testing.T) {
	for _, s := range sources(t) {
		if got := s.comments(); len(got) != 1 {
			t.Errorf("%s: got %d package comments, want 1: %v", s.folder, len(got), got)
		}
	}
}

func TestNoInitAndNoMutableState(t *testing.T) {
	std, helpers := importer.ForCompiler(token.NewFileSet(), "source", nil), filepath.Join(peers.Root(t), "test")
	for _, s := range sources(t) {
		if len(s.files) == 0 || strings.HasPrefix(s.folder, helpers+string(filepath.Separator)) {
			continue // a test helper may keep what is costly to build for all tests of a process
		}
		for _, p := range append(s.inits(), s.mutations(std)...) {
			t.Error(p)
		}
	}
}

// inits returns the init functions of the product: nothing registers itself.
func (s *source) inits() (found []string) {
	for _, f := range s.files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, s.at(fn)+": init function: call it from where it is needed")
			}
		}
	}
	return found
}

// mutations returns where the product changes a package variable, its own or another package's:
// assignments, ++, delete and clear; and package variables of the types that exist to be changed. What is done through
// an address that was taken is not seen.
func (s *source) mutations(std types.Importer) []string {
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	// Imports of modules are not resolved, so there are type errors: names of this package are resolved all the same.
	conf := types.Config{Error: func(error) {}, Importer: standardOnly{std}}
	pkg, _ := conf.Check(s.folder, s.fset, s.files, info) // the error is the first of those
	c := &changes{source: s, info: info, scope: pkg.Scope()}
	for _, f := range s.files {
		ast.Inspect(f, c.visit)
	}
	return c.found
}

// standardOnly imports nothing but what the checks look at: sync and sync/atomic.
type standardOnly struct{ types.Importer }

func (i standardOnly) Import(path string) (*types.Package, error) {
	if path == "sync" || path == "sync/atomic" {
		return i.Importer.Import(path)
	}
	return nil, fmt.Errorf("%s is not looked at", path)
}

type changes struct {
	*source
	info  *types.Info
	scope *types.Scope
	found []string
}

func (c *changes) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			c.report(n.Lhs...)
		}
	case *ast.IncDecStmt:
		c.report(n.X)
	case *ast.RangeStmt:
		if n.Tok == token.ASSIGN {
			c.report(n.Key, n.Value)
		}
	case *ast.CallExpr:
		if fn, ok := n.Fun.(*ast.Ident); ok && (fn.Name == "delete" || fn.Name == "clear") && len(n.Args) > 0 {
			c.report(n.Args[0])
		}
	case *ast.ValueSpec:
		for _, name := range n.Names {
			if v := c.packageVar(name); v != nil && madeToChange(v.Type()) {
				c.found = append(c.found, fmt.Sprintf("%s: package variable %s of type %s: keep it in a value that main makes", c.at(name), name.Name, v.Type()))
			}
		}
	}
	return true
}

// report notes the expressions that change a package variable or a part of it.
func (c *changes) report(changed ...ast.Expr) {
	for _, e := range changed {
		if name := c.root(e); name != "" {
			c.found = append(c.found, fmt.Sprintf("%s: changes package variable %s: package state must not change", c.at(e), name))
		}
	}
}

// root returns the name of the package variable that e is a part of, or "".
func (c *changes) root(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		if v := c.packageVar(e); v != nil {
			return v.Name()
		}
	case *ast.ParenExpr:
		return c.root(e.X)
	case *ast.StarExpr:
		return c.root(e.X)
	case *ast.IndexExpr:
		return c.root(e.X)
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			if imported, ok := c.info.Uses[x].(*types.PkgName); ok {
				return imported.Name() + "." + e.Sel.Name
			}
		}
		return c.root(e.X)
	}
	return ""
}

func (c *changes) packageVar(id *ast.Ident) *types.Var {
	object := c.info.Uses[id]
	if object == nil {
		object = c.info.Defs[id]
	}
	if v, ok := object.(*types.Var); ok && v.Parent() == c.scope {
		return v
	}
	return nil
}

// madeToChange reports a type of sync or sync/atomic, whose methods change it without an assignment, or a channel.
func madeToChange(t types.Type) bool {
	switch t := types.Unalias(t).(type) {
	case *types.Pointer:
		return madeToChange(t.Elem())
	case *types.Chan:
		return true
	case *types.Named:
		return t.Obj().Pkg() != nil && (t.Obj().Pkg().Path() == "sync" || t.Obj().Pkg().Path() == "sync/atomic")
	}
	return false
}

// TestSourceChecksBite shows each check what it is there for, and what it must let pass.
func TestSourceChecksBite(t *testing.T) {
	std := importer.ForCompiler(token.NewFileSet(), "source", nil)
	for _, tc := range []struct {
		name, code string
		want       int
	}{
		{"constant table", "var m = map[string]int{}\nfunc f() int { return m[``] }", 0},
		{"assigned", "var n int\nfunc f() { n = 1 }", 1},
		{"counted", "var n int\nfunc f() { n++ }", 1},
		{"map written", "var m = map[string]int{}\nfunc f() { m[``] = 1 }", 1},
		{"map entry deleted", "var m = map[string]int{}\nfunc f() { delete(m, ``) }", 1},
		{"map cleared", "var m = map[string]int{}\nfunc f() { clear(m) }", 1},
		{"field written", "var v struct{ a struct{ b int } }\nfunc f() { v.a.b = 1 }", 1},
		{"through a pointer", "var p = new(int)\nfunc f() { *p = 1 }", 1},
		{"address taken to read", "type t struct{ name string }\nvar v = t{`a`}\nfunc f(*t) { f(&v) }", 0},
		{"range variable", "var n int\nfunc f() { for n = range 3 {} }", 1},
		{"a local variable of the same name", "var n int\nfunc f() { n := 0; n++; _ = &n }", 0},
		{"a parameter of the same name", "var n int\nfunc f(n int) { n = 1 }", 0},
		{"mutex", "import `sync`\nvar mu sync.Mutex", 1},
		{"pool by address", "import `sync`\nvar pool = &sync.Pool{}", 1},
		{"atomic", "import `sync/atomic`\nvar n atomic.Int64", 1},
		{"computed once", "import `sync`\nvar table = sync.OnceValue(func() int { return 1 })", 0},
		{"channel", "var c = make(chan int)", 1},
		{"another package's variable", "import `net/http`\nfunc f() { http.DefaultClient = nil }", 1},
		{"another package's table", "import `github.com/dexidp/dex/server`\nfunc f() { server.ConnectorsConfig[``] = nil }", 1},
		{"init", "func init() {}", 1},
		{"a method called init", "type T struct{}\nfunc (T) init() {}", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := source{folder: "x", fset: token.NewFileSet()}
			if err := s.add("x.go", "package x\n"+tc.code); err != nil {
				t.Fatal(err)
			}
			if got := append(s.inits(), s.mutations(std)...); len(got) != tc.want {
				t.Errorf("got %d findings, want %d: %v", len(got), tc.want, got)
			}
		})
	}
	for text, want := range map[string]int{"package x": 0, "// Package x is.\npackage x": 1, "// Copyright.\n\npackage x": 0} {
		s := source{fset: token.NewFileSet()}
		if err := s.add("x.go", text); err != nil {
			t.Fatal(err)
		}
		if got := s.comments(); len(got) != want {
			t.Errorf("%q: got %d package comments, want %d", text, len(got), want)
		}
	}
}
