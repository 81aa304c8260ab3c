package config

import (
	"io/fs"
	"strings"
	"testing"
)

func TestAdminListenerIsReadFromAFileWithMistakes(t *testing.T) {
	const rest = "issuer: ${NOT_SET}\nstorage: {typ: 7}\nconnectors: nothing\n"
	for name, tt := range map[string]struct{ file, want string }{
		"mistakes elsewhere":       {rest + "gateway: {admin: 127.0.0.1:7000, rules: x, hosts: ['${NOT_SET}']}", "tcp 127.0.0.1:7000"},
		"a socket":                 {rest + "gateway: {admin: 'unix:/run/gatehouse/admin.sock'}", "unix /run/gatehouse/admin.sock"},
		"a variable that is there": {rest + "gateway: {admin: '${ADMIN}'}", "tcp 127.0.0.1:7001"},
		"the default":              {rest + "gateway: {hosts: 7}", "tcp 127.0.0.1:5559"},
		"twice elsewhere":          {"issuer: a\nissuer: b\ngateway: {admin: 127.0.0.1:7000}", "tcp 127.0.0.1:7000"},

		"a variable that is not":     {rest + "gateway: {admin: '${NOT_SET}'}", "gatehouse.yaml:4: gateway.admin: the environment variable NOT_SET is not set"},
		"no loopback address":        {rest + "gateway: {admin: 0.0.0.0:7000}", "gatehouse.yaml:4: gateway.admin: want a loopback address"},
		"a relative path":            {rest + "gateway: {admin: 'unix:admin.sock'}", "gatehouse.yaml:4: gateway.admin: want unix: and a clean absolute path"},
		"a number":                   {rest + "gateway: {admin: 7000}", "gatehouse.yaml:4: gateway.admin: want text, got a number"},
		"empty":                      {rest + "gateway: {admin: ''}", "gatehouse.yaml:4: gateway.admin: is empty"},
		"twice":                      {"gateway: {admin: 127.0.0.1:7000, admin: 127.0.0.1:7001}", "gatehouse.yaml:1: gateway.admin: is here twice"},
		"two gateway blocks":         {"gateway: {admin: 127.0.0.1:7000}\ngateway: {admin: 127.0.0.1:7001}", "gatehouse.yaml:2: gateway: is here twice"},
		"no gateway":                 {rest, "gatehouse.yaml: has no gateway block"},
		"a gateway that is no block": {rest + "gateway: [admin]", "gatehouse.yaml:4: gateway: want a block"},
		"not YAML":                   {"gateway: {admin: 127.0.0.1:7000", "gatehouse.yaml:"},
		"nothing":                    {"", "gatehouse.yaml: the file is empty"},
	} {
		network, address, err := AdminListener("gatehouse.yaml", Options{
			Lookup:   func(name string) (string, bool) { return "127.0.0.1:7001", name == "ADMIN" },
			ReadFile: func(string) ([]byte, error) { return []byte(tt.file), nil },
		})
		got := network + " " + address
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
	if _, _, err := AdminListener("gatehouse.yaml", Options{ReadFile: func(string) ([]byte, error) { return nil, fs.ErrNotExist }}); err == nil {
		t.Error("a file that does not exist has a listener")
	}
}
