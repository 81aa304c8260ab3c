package peers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func gatehouseConfig(t *testing.T) string {
	t.Helper()
	web, check, telemetry, admin := FreeAddr(t), FreeAddr(t), FreeAddr(t), FreeAddr(t)
	return fmt.Sprintf(`
issuer: http://%s/dex
storage: {type: sqlite, config: {file: gatehouse.db}}
web: {http: %s}
telemetry: {http: %s}
enablePasswordDB: true
gateway:
  grpc: %s
  admin: %s
  hosts: [localhost]
  default: signed-in
`, web, web, telemetry, check, admin)
}

func TestGatehouseSurvivesKillAndRestart(t *testing.T) {
	s := Gatehouse(t, gatehouseConfig(t))
	first := s.Pid()
	s.Kill(t)
	select {
	case <-s.Done():
	default:
		t.Error("Kill returned before the process had ended")
	}
	if answers(t, "http://"+s.Telemetry+"/healthz/ready") {
		t.Error("something still answers after Kill")
	}
	s.Restart(t)
	if s.Pid() == first {
		t.Error("Restart started no new process")
	}
	Eventually(t, Patience, "ready after Restart", func() bool { return answers(t, "http://"+s.Telemetry+"/healthz/ready") })
	s.Restart(t) // in place of the running one
	Eventually(t, Patience, "live after the second Restart", func() bool { return answers(t, "http://"+s.Telemetry+"/healthz/live") })
	s.Stop(t)
	if strings.Count(s.Log(), "\n") == 0 {
		t.Error("the log is empty")
	}
}

func TestTreesThatShareToolsHaveBinariesOfTheirOwn(t *testing.T) {
	tools, seen := t.TempDir(), map[string]string{}
	if err := os.Mkdir(filepath.Join(tools, "test"), 0o750); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		root := t.TempDir()
		if err := os.Symlink(tools, filepath.Join(root, ".tools")); err != nil {
			t.Fatal(err)
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(binaryPath(root)))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, filepath.Base(binaryPath(root)))
		if other, ok := seen[file]; ok {
			t.Errorf("%s and %s both build %s", root, other, file)
		}
		seen[file] = root
	}
}
