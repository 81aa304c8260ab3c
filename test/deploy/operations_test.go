package deploy

import (
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"gatehouse/test/peers"
)

const operator, operatorPassword = "you@corp.test", "correct horse battery staple"

// An installation is a running Gatehouse with its database in a folder of its own, and one user who has signed in.
type installation struct {
	*peers.GatehouseServer
	data, admin string
	issuer      string
}

func install(t *testing.T) *installation {
	t.Helper()
	data := peers.Folder(t)
	i := installOn(t, fmt.Sprintf("{type: sqlite, config: {file: %s/gatehouse.db}}", data))
	i.data = data
	return i
}

func installOn(t *testing.T, storage string) *installation {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(operatorPassword), bcrypt.MinCost+6)
	if err != nil {
		t.Fatal(err)
	}
	web := peers.FreeAddr(t)
	i := &installation{admin: peers.FreeAddr(t), issuer: "http://" + web + "/dex"}
	i.GatehouseServer = peers.Gatehouse(t, fmt.Sprintf(`
issuer: %s
storage: %s
web: {http: %q}
telemetry: {http: %q}
oauth2: {skipApprovalScreen: true}
enablePasswordDB: true
staticPasswords: [{email: %s, username: you, userID: "1", hash: %q}]
staticClients: [{id: app, name: App, secret: kept-by-this-test-alone-0123456789, redirectURIs: ["http://client.corp.test/cb"]}]
gateway: {grpc: %q, admin: %q, hosts: [app.corp.test]}
`, i.issuer, storage, web, peers.FreeAddr(t), operator, hash, peers.FreeAddr(t), i.admin))
	i.signIn(t)
	return i
}

// signIn takes the user through the pages, as far as the code for a client.
func (i *installation) signIn(t *testing.T) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Timeout: 30 * time.Second, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host == "client.corp.test" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	page, _ := i.ask(t, browser, http.MethodGet, i.issuer+"/auth?"+url.Values{
		"client_id": {"app"}, "redirect_uri": {"http://client.corp.test/cb"}, "response_type": {"code"}, "scope": {"openid"}, "state": {"of-this-test"},
	}.Encode(), "")
	at, back := i.ask(t, browser, http.MethodPost, page, url.Values{"login": {operator}, "password": {operatorPassword}}.Encode())
	if !strings.HasPrefix(back, "http://client.corp.test/cb?code=") {
		t.Fatalf("sign-in: %s leads to %q, want a code for the client", at, back)
	}
}

// ask returns the address of the page that answers, and where that leads to.
func (i *installation) ask(t *testing.T, browser *http.Client, method, target, form string) (page, location string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", strings.TrimSuffix(i.issuer, "/dex"))
	}
	res, err := browser.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return res.Request.URL.String(), res.Header.Get("Location")
}

// sessions are the ids of the user's sessions, as the document's command lists them.
func (i *installation) sessions(t *testing.T) (ids []string) {
	t.Helper()
	out := shellWith(t, t.TempDir(), "", "", `"$PRODUCT" sessions list --admin "$ADMIN"`, "PRODUCT="+peers.Binary(t), "ADMIN="+i.admin)
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == operator {
			ids = append(ids, fields[0])
		}
	}
	return ids
}

func (i *installation) oneSession(t *testing.T, when string) string {
	t.Helper()
	ids := i.sessions(t)
	if len(ids) != 1 {
		t.Fatalf("%s: got sessions %v, want 1", when, ids)
	}
	return ids[0]
}

// TestOperationsBackup backs up while Gatehouse runs. What was ended since is there again after the restore.
func TestOperationsBackup(t *testing.T) {
	i := install(t)
	id, backup, bin := i.oneSession(t, "after the sign-in"), t.TempDir(), t.TempDir()
	at := []string{"/var/lib/gatehouse/", i.data + "/", "/backup/", backup + "/"}
	shell(t, i.data, bin, replaced(t, blockOf(t, "operations.md", ".backup"), at...))
	if info, err := os.Stat(filepath.Join(backup, "gatehouse.db")); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the backup: %v, %v, want a file for its owner only", info, err)
	}
	i.revoke(t, id)
	i.Stop(t)
	// Of the machine: the service's user. A log that was left behind would be applied to the file that is put in place.
	if err := os.WriteFile(filepath.Join(i.data, "gatehouse.db-wal"), []byte("left behind"), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := strconv.Itoa(os.Getuid())
	restore := replaced(t, blockOf(t, "operations.md", "install -m 0600 -o gatehouse"), append(at, "-o gatehouse -g gatehouse", "-o "+owner+" -g "+strconv.Itoa(os.Getgid()))...)
	shell(t, i.data, bin, restore)
	files, err := filepath.Glob(filepath.Join(i.data, "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("after the restore the folder has %v (%v), want the database alone", files, err)
	}
	i.Restart(t)
	if got := i.oneSession(t, "after the restore"); got != id {
		t.Errorf("got session %s, want %s", got, id)
	}
}

func (i *installation) revoke(t *testing.T, id string) {
	t.Helper()
	shellWith(t, t.TempDir(), "", "", `"$PRODUCT" sessions revoke --admin "$ADMIN" "$ID"`, "PRODUCT="+peers.Binary(t), "ADMIN="+i.admin, "ID="+id)
	if ids := i.sessions(t); len(ids) != 0 {
		t.Fatalf("after revoke: got %v, want no session", ids)
	}
}

// TestOperationsAlerts applies the object that the command makes, and finds what to do about each alert. Package render has Prometheus
// itself read the rules.
func TestOperationsAlerts(t *testing.T) {
	dir, bin := copyOfDeploy(t)
	record(t, bin, "kubectl", "cat > applied")
	script := blockOf(t, "operations.md", "kind: PrometheusRule")
	calls := recorded(t, dir, bin, script)
	if want := []string{"kubectl", "-n", "monitoring", "apply", "-f", "-"}; len(calls) != 1 || !slices.Equal(calls[0], want) {
		t.Errorf("got %q, want %q", calls, want)
	}
	applied, rules := parse(t, string(read(t, filepath.Join(dir, "applied")))), parse(t, string(read(t, repo(t, "deploy", "alerts.yaml"))))
	if applied.text("apiVersion") != "monitoring.coreos.com/v1" || applied.text("kind") != "PrometheusRule" || applied.text("metadata.name") != "gatehouse" ||
		!reflect.DeepEqual(applied.at("spec"), any(map[string]any(rules))) {
		t.Errorf("got %v, want a PrometheusRule of deploy/alerts.yaml", applied)
	}
	var alerts, told []string
	for _, rule := range rules.at("groups.0.rules").([]any) {
		alerts = append(alerts, rule.(map[string]any)["alert"].(string))
	}
	for line := range strings.Lines(string(read(t, repo(t, "docs", "operations.md")))) {
		if name, ok := strings.CutPrefix(line, "| `Gatehouse"); ok {
			name, _, _ = strings.Cut(name, "`")
			told = append(told, "Gatehouse"+name)
		}
	}
	if !slices.Equal(alerts, told) {
		t.Errorf("deploy/alerts.yaml has %v, docs/operations.md tells what to do about %v", alerts, told)
	}
}

// copyPod is a kubectl with one volume, the folder DATA, and one Deployment, the process PID.
const copyPod = `
[ "$1 $2" = "-n istio-system" ] || { echo "which namespace? $*" >&2; exit 1; }
shift 2
case $* in
"scale deployment/gatehouse --replicas=0") kill -TERM "$PID"; while kill -0 "$PID" 2>/dev/null; do read -rt 0.05 <> <(:) || true; done;;
"scale deployment/gatehouse --replicas=1") ;;
"wait --for=delete pod -l app.kubernetes.io/name=gatehouse --timeout=2m") ! kill -0 "$PID" 2>/dev/null;;
"apply -f -") cat > pod.yaml;;
"wait --for=condition=Ready pod/gatehouse-copy --timeout=2m") [ -s pod.yaml ];;
"exec gatehouse-copy -- sh -c "*|"exec -i gatehouse-copy -- sh -c "*) exec sh -c "$(printf %s "${@: -1}" | sed "s#/var/lib/gatehouse#$DATA#g")";;
"delete pod gatehouse-copy") [ -s gatehouse.tar ];;
*) echo "unknown: $*" >&2; exit 1;;
esac
`

// TestOperationsBackupInKubernetes copies the database of a stopped pod out of its volume and back. The pod that does it may do no more
// than Gatehouse's own.
func TestOperationsBackupInKubernetes(t *testing.T) {
	i := install(t)
	id := i.oneSession(t, "after the sign-in")
	dir, bin := copyOfDeploy(t)
	record(t, bin, "kubectl", copyPod)
	env := []string{"PID=" + strconv.Itoa(i.Pid()), "DATA=" + i.data}
	backup, restore := blockOf(t, "operations.md", "name: gatehouse-copy"), blockOf(t, "operations.md", "tar xf -")
	calls := recorded(t, dir, bin, backup, env...)
	if last := strings.Join(calls[len(calls)-1], " "); last != "kubectl -n istio-system scale deployment/gatehouse --replicas=1" {
		t.Errorf("the last command is %s, want the pod to run again", last)
	}
	if info, err := os.Stat(filepath.Join(dir, "gatehouse.tar")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v, %v, want a file for its owner only", info, err)
	}
	checkCopyPod(t, parse(t, string(read(t, filepath.Join(dir, "pod.yaml")))))

	i.Restart(t)
	i.revoke(t, id)
	i.Stop(t)
	// "In place of the line with tar": the commands around it are those above.
	recorded(t, dir, bin, restore, env...)
	i.Restart(t)
	if got := i.oneSession(t, "after the restore"); got != id {
		t.Errorf("got session %s, want %s", got, id)
	}
}

// TestOperationsBackupOfPostgres backs up a database that is in use, and restores it while nobody uses it.
func TestOperationsBackupOfPostgres(t *testing.T) {
	server := peers.Postgres(t, peers.PostgresOptions{Settings: []string{"max_wal_size=64MB"}})
	_, port, err := net.SplitHostPort(server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	const password = "database-password-of-a-test"
	dir, bin := copyOfDeploy(t)
	shellWith(t, dir, bin, "CREATE ROLE gatehouse LOGIN PASSWORD '"+password+"';\nCREATE DATABASE gatehouse OWNER gatehouse;\n",
		"psql -v ON_ERROR_STOP=1 -h localhost -p "+port+" -U "+server.User+" postgres", "PGPASSWORD="+server.Password)
	i := installOn(t, fmt.Sprintf("{type: postgres, config: {host: localhost, port: %s, database: gatehouse, user: gatehouse, password: %q, ssl: {caFile: %q}}}", port, password, server.CA))
	id := i.oneSession(t, "after the sign-in")
	record(t, bin, "kubectl", strings.ReplaceAll(copyPod, "--replicas=1", "--replicas=2"))
	env := []string{"PID=" + strconv.Itoa(i.Pid()), "PGPASSWORD=" + password}
	here := func(block string) string {
		return replaced(t, block, "host=db.corp.test", "host=localhost port="+port, "sslrootcert=db-ca.pem", "sslrootcert="+server.CA)
	}
	shellWith(t, dir, bin, "", here(blockOf(t, "operations.md", "pg_dump")), env...)
	if info, err := os.Stat(filepath.Join(dir, "gatehouse.dump")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v, want a file for its owner only", info, err)
	}
	i.revoke(t, id)
	calls := recorded(t, dir, bin, here(blockOf(t, "operations.md", "pg_restore")), env...)
	if last := strings.Join(calls[len(calls)-1], " "); last != "kubectl -n istio-system scale deployment/gatehouse --replicas=2" {
		t.Errorf("the last command is %s, want the pods to run again", last)
	}
	i.Restart(t)
	if got := i.oneSession(t, "after the restore"); got != id {
		t.Errorf("got session %s, want %s", got, id)
	}
}

// checkCopyPod compares a pod with that of the Deployment: the same user, the same volume at the same place, no privilege, no token.
func checkCopyPod(t *testing.T, pod object) {
	t.Helper()
	deployment := find(t, overlay(t), "Deployment")
	const spec = "spec.template.spec."
	container, want := deployment.at(spec+"containers.0.securityContext").(map[string]any), pod.at("spec.containers.0.securityContext").(map[string]any)
	for key, v := range want {
		if !reflect.DeepEqual(v, container[key]) {
			t.Errorf("the pod's container has %s %v, the Deployment's %v", key, v, container[key])
		}
	}
	for _, tc := range []struct {
		what      string
		got, want any
	}{
		{"user and group", pod.at("spec.securityContext"), deployment.at(spec + "securityContext")},
		{"token", pod.at("spec.automountServiceAccountToken"), false},
		{"privilege", want["allowPrivilegeEscalation"], false},
		{"claim", pod.at("spec.volumes.0.persistentVolumeClaim.claimName"), deployment.at(spec + "volumes.1.persistentVolumeClaim.claimName")},
		{"place of the volume", pod.at("spec.containers.0.volumeMounts.0.mountPath"), deployment.at(spec + "containers.0.volumeMounts.1.mountPath")},
		{"proxy", pod.text("metadata.labels.sidecar~1istio~1io/inject"), "false"},
		{"number of containers", len(pod.at("spec.containers").([]any)), 1},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("the pod's %s is %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	// Neither the Service nor the NetworkPolicy may take it for Gatehouse.
	if pod.text("metadata.labels.app~1kubernetes~1io/name") == "gatehouse" {
		t.Error("the pod has the label of Gatehouse's")
	}
}

// TestOperationsKeys: Gatehouse takes the file that is made, and its sessions are sealed with it.
func TestOperationsKeys(t *testing.T) {
	dir := t.TempDir()
	shell(t, dir, "", blockOf(t, "operations.md", "/dev/urandom"))
	file := filepath.Join(dir, "keys")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the keys: %v, %v, want a file for its owner only", info, err)
	}
	config := replaced(t, block(t, "http: 127.0.0.1:5556"), "127.0.0.1:5556", peers.FreeAddr(t), "127.0.0.1:9001", peers.FreeAddr(t), "127.0.0.1:5558", peers.FreeAddr(t),
		"/var/lib/gatehouse/", "", "${YOUR_HASH}", shippedConfig(t).text("staticPasswords.0.hash"), "gateway:\n", "gateway:\n  admin: "+peers.FreeAddr(t)+"\n  keys: {file: "+file+"}\n")
	if log := peers.Gatehouse(t, config).Log(); strings.Contains(log, `"level":"WARN"`) && strings.Contains(log, "keys") {
		t.Errorf("the log warns of the keys:\n%s", log)
	}
}

// TestOperationsSessions lists and ends sessions and blocks a user, on the machine and in the pod.
func TestOperationsSessions(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		places       func(i *installation, id string) []string
	}{
		{"on the machine", blockOf(t, "operations.md", "sessions list --config"), func(i *installation, id string) []string {
			return []string{"/etc/gatehouse/gatehouse.yaml", i.Config, "0123456789abcdef", id}
		}},
		{"in the pod", blockOf(t, "operations.md", "exec deploy/gatehouse"), func(i *installation, _ string) []string {
			return []string{"127.0.0.1:5559", i.admin} // the default of gateway.admin
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i, bin := install(t), t.TempDir()
			id := i.oneSession(t, "after the sign-in")
			if err := os.Symlink(peers.Binary(t), filepath.Join(bin, "gatehouse")); err != nil {
				t.Fatal(err)
			}
			entry := words(t, stages(t)[1].all("ENTRYPOINT")[0])[0]
			program(t, bin, "kubectl", `[ "$1 $2 $3 $4 $5 $6" = "-n istio-system exec deploy/gatehouse -- `+entry+`" ] || exit 1
shift 6
exec gatehouse "$@"
`)
			script := replaced(t, tc.script, append(tc.places(i, id), "alice@example.com", operator)...)
			if out := shellWith(t, t.TempDir(), bin, "", script); strings.Count(out, operator) < 2 {
				t.Errorf("want a list and a block of %s:\n%s", operator, out)
			}
			if ids := i.sessions(t); len(ids) != 0 {
				t.Errorf("got %v, want no session afterwards", ids)
			}
		})
	}
}

// TestOperationsUpgrade: the new version reads the file before it serves it, and its name is in every overlay.
func TestOperationsUpgrade(t *testing.T) {
	t.Run("kubectl", func(t *testing.T) {
		dir, bin := copyOfDeploy(t)
		record(t, bin, "docker", "")
		record(t, bin, "kubectl", "")
		calls, c := recorded(t, dir, bin, blockOf(t, "operations.md", "newTag")), clusterOf(t, "istio")
		var programs []string
		for _, call := range calls {
			programs = append(programs, call[0]+" "+call[1])
			if call[0] == "kubectl" {
				c.holds(t, call)
			}
		}
		if want := []string{"docker build", "docker run", "docker push", "kubectl apply", "kubectl -n"}; !slices.Equal(programs, want) {
			t.Errorf("got %q, want %q", programs, want)
		}
		check := calls[1]
		if image := check[len(check)-3]; image != calls[2][2] || !slices.Equal(check[len(check)-2:], []string{"check-config", "/gatehouse.yaml"}) {
			t.Errorf("%q does not check the file with the image that is pushed, %s", check, calls[2][2])
		}
		for _, name := range []string{"istio", "istio-envoyfilter", "gateway-api", "envoy-gateway"} {
			image := find(t, objects(t, filepath.Join(dir, "deploy", "overlays", name)), "Deployment").text("spec.template.spec.containers.0.image")
			if _, tag, _ := strings.Cut(calls[2][2], "gatehouse:"); !strings.HasSuffix(image, "/gatehouse:"+tag) {
				t.Errorf("overlay %s has image %s, want the tag %s", name, image, tag)
			}
		}
	})
	t.Run("helm", func(t *testing.T) {
		dir, bin := copyOfDeploy(t)
		record(t, bin, "helm", "")
		record(t, bin, "kubectl", "")
		calls := recorded(t, dir, bin, blockOf(t, "operations.md", "helm upgrade gatehouse"))
		if want := []string{"helm", "upgrade", "gatehouse", "deploy/chart", "-n", namespace, "-f", "my-values.yaml", "--set", "image.tag=1.1.0"}; !slices.Equal(calls[0], want) {
			t.Errorf("got %q, want %q", calls[0], want)
		}
		clusterOf(t, "istio").holds(t, calls[1])
	})
	t.Run("systemd", func(t *testing.T) {
		dir, bin := copyOfDeploy(t)
		root := t.TempDir()
		for _, folder := range []string{filepath.Join(dir, "bin"), filepath.Join(root, "usr/local/bin")} {
			if err := os.MkdirAll(folder, 0o750); err != nil {
				t.Fatal(err)
			}
		}
		program(t, filepath.Join(dir, "bin"), "gatehouse", `exec "$PRODUCT" "$@"`)
		record(t, bin, "sudo", sudoIn)
		calls := recorded(t, dir, bin, blockOf(t, "operations.md", "bin/gatehouse version"), "PRODUCT="+peers.Binary(t), "ROOT="+root)
		if info, err := os.Stat(filepath.Join(root, "usr/local/bin/gatehouse")); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("the new version: %v, %v, want a program", info, err)
		}
		if last := calls[len(calls)-1][1:]; !slices.Equal(last, []string{"systemctl", "restart", "gatehouse"}) {
			t.Errorf("got %q at the end, want a restart", last)
		}
	})
}
