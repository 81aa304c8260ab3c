package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSystemdUnit: what operators rely on is in the unit, and systemd takes it, where there is one to ask.
func TestSystemdUnit(t *testing.T) {
	text := string(read(t, repo(t, "deploy", "systemd", "gatehouse.service")))
	lines := strings.Split(text, "\n")
	for _, want := range []string{
		"User=gatehouse", "ExecReload=/bin/kill -HUP $MAINPID", "StateDirectory=gatehouse", "StateDirectoryMode=0700", "LimitNOFILE=65536", "MemoryMax=768M",
		"NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "UMask=0077", "SystemCallFilter=@system-service",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the unit does not have the line %s", want)
		}
	}
	install := block(t, "systemctl enable --now gatehouse")
	for _, want := range []string{"deploy/systemd/gatehouse.service /etc/systemd/system/", "/usr/local/bin/", "/etc/gatehouse/gatehouse.yaml"} {
		if !strings.Contains(install, want) {
			t.Errorf("docs/install.md does not put %s in place:\n%s", want, install)
		}
	}

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // the rest only systemd can say
	}
	if !strings.Contains(text, "ExecStart=/usr/local/bin/gatehouse ") {
		t.Fatal("the unit does not start /usr/local/bin/gatehouse")
	}
	unit := filepath.Join(t.TempDir(), "gatehouse.service")
	text = strings.ReplaceAll(text, "=/usr/local/bin/gatehouse ", "=/bin/true ") // which is there to be found
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput() // #nosec G204 -- of the system
	if err != nil || strings.Contains(string(out), unit) {
		t.Errorf("systemd-analyze verify: %v, want no error and no word about the unit\n%s", err, out)
	}
}
