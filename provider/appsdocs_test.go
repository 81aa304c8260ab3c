package provider

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// snippet is the only block of a language in docs/apps.md.
func snippet(t *testing.T, language string) string {
	t.Helper()
	b, err := os.ReadFile("../docs/apps.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(b), "```"+language+"\n")
	if len(parts) != 2 {
		t.Fatalf("got %d blocks of %s, want one", len(parts)-1, language)
	}
	code, _, ok := strings.Cut(parts[1], "```")
	if !ok {
		t.Fatalf("the block of %s has no end", language)
	}
	return code
}

// goMain, pythonMain and javaMain call the examples with arguments: issuer, audience and an Authorization header.
const (
	goMain = `package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
)

func main() {
	verify, err := verifier(context.Background(), os.Args[1], os.Args[2])
	if err != nil {
		panic(err)
	}
	tok, err := verify(&http.Request{Header: http.Header{"Authorization": {os.Args[3]}}})
	if err != nil {
		fmt.Println("401")
		return
	}
	email, _ := tok.Get("email")
	fmt.Println(email)
}
`
	pythonMain = `
import sys
try:
    print(Verifier(sys.argv[1], sys.argv[2]).claims(sys.argv[3])["email"])
except jwt.PyJWTError:
    print("401")
`
	javaMain = `
import com.nimbusds.jose.*;
import com.nimbusds.jose.jwk.source.*;
import com.nimbusds.jose.proc.*;
import com.nimbusds.jose.util.*;
import com.nimbusds.jwt.*;
import com.nimbusds.jwt.proc.*;
import java.net.URL;
import java.text.ParseException;
import java.util.Set;

record Request(String header) {
    String getHeader(String name) { return name.equals("Authorization") ? header : null; }
}

class App {
    public static void main(String[] args) throws Exception {
        try {
            System.out.println(email(args[0], args[1], new Request(args[2])));
        } catch (BadJOSEException | ParseException e) {
            System.out.println("401");
        }
    }

    static Object email(String issuer, String audience, Request request) throws Exception {
        // the example
        return claims.getClaim("email");
    }
}
`
)

// TestAppExamples runs the examples of docs/apps.md with tokens of a real issuer, and others that it signed. That in Java is left out, and the log says so,
// where there is no JDK, or no Maven that fetches its library: `make tools` does not install them.
func TestAppExamples(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	url := "http://" + server.Listener.Addr().String() + "/dex"
	text := strings.NewReplacer(issuer, url, "hosts: [sso.example.com, app", "hosts: [app").Replace(testConfig)
	clk := &clock{}
	w := newWorld(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	server.Config.Handler = w.provider.Handler()
	server.Start()
	defer server.Close()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	examples := map[string]func(t *testing.T) []string{
		"go": func(t *testing.T) []string {
			t.Helper()
			binary := filepath.Join(dir, "app")
			build := exec.CommandContext(t.Context(), "go", "build", "-pgo=off", "-o", binary, write("app.go", snippet(t, "go")), write("main.go", goMain))
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return []string{binary}
		},
		"python": func(t *testing.T) []string {
			t.Helper()
			return []string{pythonWithJWT(t.Context(), t), write("app.py", snippet(t, "python")+pythonMain)}
		},
	}
	if jar, missing := javaLibrary(t.Context(), t.TempDir()); missing != "" {
		t.Log("the example in Java is not run:", missing)
	} else {
		examples["java"] = func(t *testing.T) []string {
			t.Helper()
			file := write("App.java", strings.Replace(javaMain, "// the example", snippet(t, "java"), 1))
			if out, err := exec.CommandContext(t.Context(), "javac", "-cp", jar, "-d", dir, file).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return []string{"java", "-cp", jar + string(os.PathListSeparator) + dir, "App"}
		}
	}
	for language, prepare := range examples {
		t.Run(language, func(t *testing.T) {
			command := prepare(t)
			good := w.appToken() // now: it is good for minutes, and to compile may take as long
			typed := func(typ string) string { return w.resigned(good, typ) }
			i := strings.LastIndexByte(good, '.')
			forged := good[:i+1] + strings.Repeat("A", len(good)-i-1)
			for rule, tt := range map[string]struct{ audience, header, want string }{
				"a good token":           {"apps", "Bearer " + good, "admin@example.com"},
				"a forged signature":     {"apps", "Bearer " + forged, "401"},
				"another app's audience": {"others", "Bearer " + good, "401"},
				"no token":               {"apps", "Basic YTpi", "401"},
				"the type once more":     {"apps", "Bearer " + typed(front.AppTokenType), "admin@example.com"},
				"the type of others":     {"apps", "Bearer " + typed("JWT"), "401"},
				"no type, as ID Tokens":  {"apps", "Bearer " + typed(""), "401"},
			} {
				cmd := exec.CommandContext(t.Context(), command[0], append(command[1:len(command):len(command)], url, tt.audience, tt.header)...)
				out, err := cmd.CombinedOutput()
				if got := strings.TrimSpace(string(out)); err != nil || got != tt.want {
					t.Errorf("%s: got %q (%v), want %q", rule, got, err, tt.want)
				}
			}
		})
	}
}

// resigned is a token with another type, or none, that the issuer has signed.
func (w *world) resigned(raw, typ string) string {
	w.t.Helper()
	parts := strings.Split(raw, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		w.t.Fatal(err)
	}
	opts := &jose.SignerOptions{}
	if typ != "" {
		opts = opts.WithType(jose.ContentType(typ))
	}
	key := w.provider.keyCache.current.Load().SigningKey
	sign, err := jose.NewSigner(jose.SigningKey{Key: key, Algorithm: jose.SignatureAlgorithm(key.Algorithm)}, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	signed, err := sign.Sign(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// javaLibrary is the library of the example in Java, which Maven fetches into a folder, or says what is missing.
func javaLibrary(ctx context.Context, dir string) (jar, missing string) {
	for _, name := range []string{"java", "javac", "mvn"} {
		if _, err := exec.LookPath(name); err != nil {
			return "", "there is no " + name
		}
	}
	const artifact, version = "nimbus-jose-jwt", "10.10"
	cmd := exec.CommandContext(ctx, "mvn", "-q", "-B", "dependency:copy", "-Dartifact=com.nimbusds:"+artifact+":"+version, "-DoutputDirectory="+dir)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Sprintf("Maven fetches no %s: %v: %.500s", artifact, err, out)
	}
	return filepath.Join(dir, artifact+"-"+version+".jar"), ""
}

// pythonWithJWT is a Python that has PyJWT with its cryptography.
func pythonWithJWT(ctx context.Context, t *testing.T) string {
	t.Helper()
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(ctx, name, "-c", "import jwt, cryptography; jwt.PyJWKClient").Run() == nil {
			return name
		}
	}
	t.Fatalf("there is no Python with PyJWT and cryptography: run `make tools` in %s", peers.Root(t))
	return ""
}
