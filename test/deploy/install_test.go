package deploy

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	osuser "os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// TestInstallImage: the image is built from the Dockerfile, and pushed under the name that it was given.
func TestInstallImage(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	record(t, bin, "docker", "")
	calls := recorded(t, dir, bin, block(t, "docker push"))
	want := [][]string{
		{"docker", "build", "-t", "registry.corp.test/gatehouse:1.0.0", "."},
		{"docker", "push", "registry.corp.test/gatehouse:1.0.0"},
	}
	if !reflect.DeepEqual(calls, want) {
		t.Errorf("got %q, want %q", calls, want)
	}
}

// dockerRun is a docker that runs the image's program, as `docker run` would.
const dockerRun = `
[ "$1" = run ] || exit 0
shift
while [ $# -gt 0 ]; do
	case $1 in
	--rm|-it) shift;;
	--user|-v) shift 2;;
	-*) echo "unknown flag $1" >&2; exit 1;;
	*) break;;
	esac
done
[ "$1" = "$IMAGE" ] || { echo "unknown image $1" >&2; exit 1; }
shift
exec "$PRODUCT" "$@"
`

// TestInstallHash: what is printed is a hash for the file.
func TestInstallHash(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	program(t, bin, "docker", dockerRun)
	out := shellWith(t, dir, bin, "correct horse battery staple\n", block(t, "hash-password    # asks"), "PRODUCT="+peers.Binary(t))
	if !bcryptHash.MatchString(strings.TrimSpace(out)) {
		t.Errorf("got %q, want a hash", out)
	}
}

// TestInstallDirectorySecrets: the Secrets are those that the pod takes, and have what the file names.
func TestInstallDirectorySecrets(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	record(t, bin, "kubectl", "")
	pod := find(t, overlay(t), "Deployment")
	config := string(read(t, repo(t, "deploy", "overlays", "ldap", "gatehouse.yaml")))
	comment := string(read(t, repo(t, "deploy", "overlays", "ldap", "kustomization.yaml")))
	script := block(t, "LDAP_PASSWORD=./ldap-password")
	for line := range strings.Lines(script) {
		if !strings.Contains(comment, "#   "+line) {
			t.Errorf("overlays/ldap/kustomization.yaml does not have %s", line)
		}
	}
	var made []string
	for _, call := range recorded(t, dir, bin, script) {
		if len(call) != 8 || !slices.Equal(call[:6], []string{"kubectl", "-n", namespace, "create", "secret", "generic"}) {
			t.Fatalf("got %q, want a generic Secret from one file", call)
		}
		secret, source := call[6], strings.TrimPrefix(call[7], "--from-file=")
		key, _, named := strings.Cut(source, "=")
		want := map[string]string{"gatehouse-env": "${" + key + "}", "gatehouse-files": "/etc/gatehouse/" + source}[secret]
		if want == "" || named != (secret == "gatehouse-env") || !strings.Contains(config, want) {
			t.Errorf("%q: the file has no %q", call, want)
		}
		made = append(made, secret)
	}
	want := []string{
		pod.text("spec.template.spec.containers.0.envFrom.0.secretRef.name"), pod.text("spec.template.spec.volumes.0.projected.sources.1.secret.name"),
	}
	if !slices.Equal(made, want) {
		t.Errorf("got Secrets %v, the pod takes %v", made, want)
	}
}

// TestInstallApply: what is applied is there, what is waited for is in it, and each listener gets its certificate.
func TestInstallApply(t *testing.T) {
	for _, tc := range []struct{ overlay, script string }{
		{"istio", block(t, "apply -k deploy/overlays/istio\n")},
		{"istio", block(t, "istio/hardened-gateway.yaml")},
		{"istio-envoyfilter", block(t, "apply -k deploy/overlays/istio-envoyfilter")},
		{"gateway-api", block(t, "apply -k deploy/overlays/gateway-api")},
		{"envoy-gateway", block(t, "apply -k deploy/overlays/envoy-gateway")},
	} {
		dir, bin := copyOfDeploy(t)
		record(t, bin, "kubectl", "")
		c := clusterOf(t, tc.overlay)
		var secrets []string
		for _, call := range recorded(t, dir, bin, tc.script) {
			c.holds(t, call)
			if strings.Contains(strings.Join(call, " "), " secret tls ") {
				secrets = append(secrets, call[6])
			}
		}
		if strings.Contains(tc.overlay, "-gateway") || tc.overlay == "gateway-api" {
			if want := c.certificates(t); !slices.Equal(secrets, want) {
				t.Errorf("%s: got Secrets %v, the listeners have %v", tc.overlay, secrets, want)
			}
		}
	}
}

// TestInstallReplicas: what is edited is there, the Secrets are those that the pod takes and that the file names, and the cluster's resource
// comes before what needs it. What comes of it package render compares, and test/cluster installs.
func TestInstallReplicas(t *testing.T) {
	for _, tc := range []struct {
		script, storage, component string
		calls                      []string
	}{
		{
			block(t, "GATEHOUSE_DB_PASSWORD="), "postgres", "store-postgres", []string{
				"kubectl -n istio-system create secret generic gatehouse-env --from-file=GATEHOUSE_DB_PASSWORD=./db-password",
				"kubectl -n istio-system create secret generic gatehouse-files --from-file=db-ca.pem",
			},
		},
		{
			block(t, "store-kubernetes/crd.yaml"), "kubernetes", "store-kubernetes", []string{
				"kubectl apply -f deploy/store-kubernetes/crd.yaml",
				"kubectl wait --for=condition=Established crd/records.gatehouse.internal --timeout=1m",
			},
		},
	} {
		dir, bin := copyOfDeploy(t)
		record(t, bin, "kubectl", "")
		var got []string
		for _, call := range recorded(t, dir, bin, tc.script) {
			got = append(got, strings.Join(call, " "))
		}
		want := append(tc.calls, "kubectl apply -k deploy/overlays/ha", "kubectl -n istio-system rollout status deployment/gatehouse")
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		file := string(read(t, filepath.Join(dir, "deploy/base/gatehouse.yaml")))
		if config := parse(t, file); config.text("storage.type") != tc.storage || strings.Contains(file, "sqlite") {
			t.Errorf("the file has storage %v, want %s", config.at("storage"), tc.storage)
		} else if tc.storage == "postgres" && (config.text("storage.config.password") != "${GATEHOUSE_DB_PASSWORD}" || config.text("storage.config.ssl.caFile") != "/etc/gatehouse/db-ca.pem") {
			t.Errorf("the file does not name what the Secrets have: %v", config.at("storage"))
		}
		overlay := parse(t, string(read(t, filepath.Join(dir, "deploy/overlays/ha/kustomization.yaml"))))
		if got := overlay.text("components.0"); got != "../../"+tc.component || overlay.text("namespace") != namespace {
			t.Errorf("the overlay has component %s in namespace %s, want %s in %s", got, overlay.text("namespace"), tc.component, namespace)
		}
	}
	crd := documents(t, repo(t, "deploy", "store-kubernetes", "crd.yaml"))
	if len(crd) != 1 || name(crd[0]) != "CustomResourceDefinition records.gatehouse.internal" {
		t.Errorf("crd.yaml has %d objects, the first %s", len(crd), name(crd[0]))
	}
}

// TestInstallHelm: the chart, the namespace that it wants, and after it the volume that it leaves. That the values are good, package
// render says.
func TestInstallHelm(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	record(t, bin, "helm", "")
	record(t, bin, "kubectl", "")
	calls := recorded(t, dir, bin, block(t, "helm install gatehouse"))
	calls = append(calls, recorded(t, dir, bin, block(t, "helm uninstall gatehouse"))...)
	want := [][]string{
		{"helm", "install", "gatehouse", "deploy/chart", "-n", namespace, "-f", "my-values.yaml"},
		{"helm", "uninstall", "gatehouse", "-n", namespace},
		{"kubectl", "-n", namespace, "delete", "pvc", "gatehouse"},
	}
	if !reflect.DeepEqual(calls, want) {
		t.Fatalf("got %q, want %q", calls, want)
	}
	clusterOf(t, "istio").holds(t, calls[2])
}

// TestInstallLook asks a real Gatehouse behind the shipped Envoy config, both with the names of the document.
func TestInstallLook(t *testing.T) {
	e := startShippedFor(t, "corp.test")
	config := strings.ReplaceAll(block(t, "http: 127.0.0.1:5556"), "example.com", "corp.test")
	config = replaced(t, config, "127.0.0.1:5556", e.issuer, "127.0.0.1:9001", e.check, "127.0.0.1:5558", e.health,
		"/var/lib/gatehouse/", "", "gateway:\n", "gateway:\n  admin: "+peers.FreeAddr(t)+"\n", "${YOUR_HASH}", shippedConfig(t).text("staticPasswords.0.hash"))
	peers.Gatehouse(t, config)
	peers.Eventually(t, time.Minute, "Envoy has found Gatehouse", func() bool {
		return e.ask(t, "GET /dex/.well-known/openid-configuration HTTP/1.1\r\nHost: auth.corp.test\r\n\r\n") == http.StatusOK
	})

	dir, bin := copyOfDeploy(t)
	program(t, bin, "curl", fmt.Sprintf(`PATH=${PATH#*:} exec curl --insecure --connect-to ::%s "$@"`, e.secure))
	lines := strings.Split(strings.TrimSpace(block(t, "curl -s")), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %d commands, want 3", len(lines))
	}
	for i, want := range []string{`"issuer":"https://auth.corp.test/dex"`, "302 https://auth.corp.test/dex/", "401\n"} {
		out := shellWith(t, dir, bin, "", lines[i])
		if !strings.Contains(strings.ReplaceAll(out, `": "`, `":"`), want) {
			t.Errorf("%s\ngot %q, want %q", lines[i], out, want)
		}
	}
}

// TestInstallAnyEnvoy runs what the document says with the file that it shows, up to the Envoy, which TestEnvoyConfig starts.
func TestInstallAnyEnvoy(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	telemetry := peers.FreeAddr(t)
	config := replaced(t, block(t, "http: 127.0.0.1:5556"), "127.0.0.1:5556", peers.FreeAddr(t), "127.0.0.1:9001", peers.FreeAddr(t), "127.0.0.1:5558", telemetry,
		"/var/lib/gatehouse", filepath.Join(dir, "data"), "gateway:\n", "gateway:\n  admin: "+peers.FreeAddr(t)+"\n")
	if err := os.WriteFile(filepath.Join(dir, "gatehouse.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, bin, "make", `[ "$*" = build ] && mkdir bin && cp "$PRODUCT" bin/gatehouse`)
	program(t, bin, "sudo", `exec "$@"`)
	// The Envoy is well if its file is there, and Gatehouse is ready behind it.
	program(t, bin, "envoy", `[ "$1" = -c ] && [ -f "$2" ] || exit 1
for _ in $(seq 600); do
	if curl -sf "http://$TELEMETRY/healthz/ready" >/dev/null; then echo "$YOUR_HASH"; exit; fi
	read -rt 0.1 <> <(:) || true
done
exit 1
`)
	script := replaced(t, block(t, "sudo envoy"), "/var/lib/gatehouse", filepath.Join(dir, "data")) + "\nkill $!; wait $!\n"
	out := shellWith(t, dir, bin, "correct horse battery staple\n", script, "PRODUCT="+peers.Binary(t), "TELEMETRY="+telemetry, "USER="+currentUser(t))
	for _, want := range []string{"gatehouse.yaml: good", "\"msg\":\"ready\""} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands did not print %s:\n%s", want, out)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "data", "gatehouse.db")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the database: %v, %v, want one for its owner only", info, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "data")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of the database: %v, %v, want one for its owner only", info, err)
	}
	if !slices.ContainsFunc(strings.Split(out, "\n"), bcryptHash.MatchString) {
		t.Errorf("no hash reached the file by its variable:\n%s", out)
	}
}

// TestInstallSystemd runs the commands with a root of their own. What they put in place is where the unit looks for it.
func TestInstallSystemd(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	root := t.TempDir()
	for _, folder := range []string{"etc/systemd/system", "usr/local/bin"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o750); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"bin/gatehouse", "gatehouse.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	record(t, bin, "sudo", sudoIn)
	calls := recorded(t, dir, bin, block(t, "systemctl enable --now gatehouse"), "ROOT="+root, "YOUR_HASH=$2a$12$x'y")
	unit := string(read(t, repo(t, "deploy", "systemd", "gatehouse.service")))
	for _, tc := range []struct {
		path, names string // in the unit
		mode        fs.FileMode
	}{
		{"/usr/local/bin/gatehouse", "ExecStart=/usr/local/bin/gatehouse serve", 0o755},
		{"/etc/gatehouse/gatehouse.yaml", "--config /etc/gatehouse/gatehouse.yaml", 0o640},
		{"/etc/gatehouse/environment", "EnvironmentFile=-/etc/gatehouse/environment", 0o600},
		{"/etc/systemd/system/gatehouse.service", "[Unit]", 0o644},
	} {
		info, err := os.Stat(filepath.Join(root, tc.path))
		if err != nil || info.Mode().Perm() != tc.mode {
			t.Errorf("%s: %v, %v, want mode %o", tc.path, info, err, tc.mode)
		}
		if !strings.Contains(unit, tc.names) {
			t.Errorf("the unit does not have %s", tc.names)
		}
	}
	if got, want := string(read(t, filepath.Join(root, "etc/gatehouse/environment"))), "YOUR_HASH='$2a$12$x'y'\n"; got != want {
		t.Errorf("the environment is %q, want %q", got, want)
	}
	first, last := calls[0], calls[len(calls)-1]
	if first[1] != "useradd" || !strings.Contains(unit, "User="+first[len(first)-1]+"\n") || !slices.Equal(last[1:], []string{"systemctl", "enable", "--now", "gatehouse"}) {
		t.Errorf("got %q … %q", first, last)
	}
}

// sudoIn is a sudo whose root is the folder ROOT, and which has no other users.
const sudoIn = `
case $1 in
useradd|systemctl) exit;;
install)
	args=()
	while [ $# -gt 0 ]; do
		case $1 in
		-g|-o) [ "$2" = gatehouse ] || exit 1; shift 2; continue;;
		/dev/*) args+=("$1");;
		/*) args+=("$ROOT$1");;
		*) args+=("$1");;
		esac
		shift
	done
	exec "${args[@]}";;
*) echo "unknown: $*" >&2; exit 1;;
esac
`

func currentUser(t *testing.T) string {
	t.Helper()
	u, err := osuser.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}
