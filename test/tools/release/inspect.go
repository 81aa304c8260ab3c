package main

import (
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"strings"
)

// machines are what the ELF header calls our architectures.
func machines() map[string]elf.Machine {
	return map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
}

// inspect returns the build info of a binary that is for arch, needs nothing else to run, and knows its version.
func inspect(path, arch string) (*buildinfo.BuildInfo, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if f.Machine != machines()[arch] {
		return nil, fmt.Errorf("%s is for %v", path, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return nil, fmt.Errorf("%s has a %v segment: it is not static", path, p.Type)
		}
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if strings.Contains(info.GoVersion, " ") { // go1.26.8 X:experiment
		return nil, fmt.Errorf("the compiler is %s: build without GOEXPERIMENT", info.GoVersion)
	}
	if info.Main.Version == "" || info.Main.Version == "(devel)" {
		return nil, errors.New("the binary has no version: build in a clone by git")
	}
	return info, nil
}
