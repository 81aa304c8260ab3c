package envoy

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// TestRefusesToStart serves configurations that would open something: the binary must end, and say why, in place of serving them.
func TestRefusesToStart(t *testing.T) {
	key := strings.Repeat("QUFB", 10) + "QUE=" // 32 bytes
	for _, c := range []struct{ name, old, fresh, keys, want string }{
		{"truncated key", "", "", key[:20], "want 32"},
		{"empty key file", "", "", " \n", "gateway.keys.file"},
		{"key that is no base64", "", "", "../../etc/passwd", "gateway.keys.file"},
		{"key of zeros for everybody to read", "", "", "world:" + key, "every user"},
		{"admin listener for everybody", "admin: 127.0.0.1:0", "admin: 0.0.0.0:0", "", "gateway.admin"},
		{"known password", "$2a$10$HASH", "$2a$10$33EMT0cVYVlPy6WAMCLsceLYjWhuHpbz5yuZxu/GAFj03J9Lytjuy", "", "hash"},
		{"known client secret", "secret: a-secret-of-our-own-4711", "secret: ZXhhbXBsZS1hcHAtc2VjcmV0", "", "secret"},
		{"rule that is open and guarded", "allow: anyone}", "allow: anyone, groups: [admins]}", "", "exclude each other"},
		{"rule that nobody is named in", "allow: anyone}", "methods: [GET]}", "", "needs allow"},
		{"rule with a pattern that would match nothing", "/public/**", "/public/*x", "", "paths"},
		{"rule with a path that is not normal", "/public/**", "/public//**", "", "paths"},
		{"rule with a misspelt key", "allow: anyone}", "allow: anyone, method: [GET]}", "", "methods"},
		{"rule with a host in upper case", "allow: anyone}", "allow: anyone, hosts: [App.example.test]}", "", "hosts"},
		{"rule with a method in lower case", "allow: anyone}", "allow: anyone, methods: [get]}", "", "methods"},
		{"identity in Authorization", "kubeflow-userid: email", "authorization: email", "", "authorization"},
		{"identity in Cookie", "kubeflow-userid: email", "cookie: email", "", "cookie"},
		{"identity headers that are one to many apps", "kubeflow-userid: email", "kubeflow-userid: email, kubeflow_userid: name", "", "kubeflow"},
		{"own paths below the issuer's", "prefix: /_gatehouse", "prefix: /dex/x", "", "prefix"},
		{"wildcard for all of a top-level domain", "hosts: [app.example.test]", `hosts: ["*.test"]`, "", "hosts"},
		{"wildcard for everything", "hosts: [app.example.test]", `hosts: ["*"]`, "", "hosts"},
		{"a gRPC API of Dex", "enablePasswordDB: true", "enablePasswordDB: true\ngrpc: {addr: 127.0.0.1:0}", "", "grpc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := peers.Folder(t)
			text := startText
			if c.old != "" {
				if strings.Count(text, c.old) != 1 {
					t.Fatalf("%q does not stand once in the configuration", c.old)
				}
				text = strings.Replace(text, c.old, c.fresh, 1)
			}
			mode := os.FileMode(0o600)
			keys, world := strings.CutPrefix(c.keys, "world:")
			if world {
				mode = 0o644
			}
			if keys != "" {
				text += "  keys: {file: keys}\n"
				if err := os.WriteFile(filepath.Join(dir, "keys"), []byte(keys), mode); err != nil {
					t.Fatal(err)
				}
			}
			text = strings.Replace(text, "$2a$10$HASH", hash(t, "a-password-of-our-own"), 1)
			path := filepath.Join(dir, "gatehouse.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			cmd := exec.CommandContext(ctx, peers.Binary(t), "serve", "--config", path)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || ctx.Err() != nil {
				t.Errorf("ended by %v, want exit 1:\n%.600s", err, out)
			}
			if !strings.Contains(string(out), c.want) {
				t.Errorf("does not say %q:\n%.600s", c.want, out)
			}
		})
	}
	t.Run("and what is changed here is otherwise good", func(t *testing.T) {
		path := filepath.Join(peers.Folder(t), "gatehouse.yaml")
		text := strings.Replace(startText, "$2a$10$HASH", hash(t, "a-password-of-our-own"), 1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		gatehouse(t, "check-config", path)
	})
}

const startText = `issuer: https://auth.example.test/dex
storage: {type: memory}
web: {http: 127.0.0.1:0}
telemetry: {http: 127.0.0.1:0}
enablePasswordDB: true
staticPasswords:
- {email: admin@example.com, username: admin, userID: id-admin, groups: [admins], hash: "$2a$10$HASH"}
staticClients:
- {id: outside, name: Outside, secret: a-secret-of-our-own-4711, redirectURIs: ["https://client.example.test/cb"]}
gateway:
  grpc: 127.0.0.1:0
  admin: 127.0.0.1:0
  hosts: [app.example.test]
  prefix: /_gatehouse
  identity: {headers: {kubeflow-userid: email}}
  rules:
  - {name: public, paths: [/public/**], allow: anyone}
  default: signed-in
`
