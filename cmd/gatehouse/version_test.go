package main

import (
	"runtime/debug"
	"testing"
)

func TestVersionOf(t *testing.T) {
	vcs := func(rev, modified string) []debug.BuildSetting {
		return []debug.BuildSetting{{Key: "-trimpath", Value: "true"}, {Key: "vcs.revision", Value: rev}, {Key: "vcs.modified", Value: modified}}
	}
	for _, tc := range []struct {
		name, module string
		settings     []debug.BuildSetting
		want         string
	}{
		{"a tag", "v1.2.3", vcs("0123456789abcdef0123", "false"), "v1.2.3"},
		{"a tag and a change", "v1.2.3+dirty", vcs("0123456789abcdef0123", "true"), "v1.2.3+dirty"},
		{"a pseudo-version", "v1.2.4-0.20261126004443-431391f00e4d", nil, "v1.2.4-0.20261126004443-431391f00e4d"},
		{"a commit of an older Go", "(devel)", vcs("0123456789abcdef0123", "false"), "devel-0123456789ab"},
		{"a commit and a change", "(devel)", vcs("0123456789abcdef0123", "true"), "devel-0123456789ab+dirty"},
		{"a short revision", "", vcs("0123", "false"), "devel-0123"},
		{"no version control", "(devel)", nil, "devel"},
	} {
		if got := versionOf(&debug.BuildInfo{Main: debug.Module{Version: tc.module}, Settings: tc.settings}); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}
