package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"unicode"

	"gatehouse/internal/seal"
)

// SealKeys are keys of seal.KeySize bytes, the sealing key first. They print as [redacted].
type SealKeys [][]byte

// String returns [redacted].
func (SealKeys) String() string { return redacted }

// GoString returns [redacted].
func (SealKeys) GoString() string { return redacted }

// Format prints [redacted] whatever the verb.
func (SealKeys) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON returns "[redacted]".
func (SealKeys) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML returns [redacted].
func (SealKeys) MarshalYAML() (any, error) { return redacted, nil }

// LogValue returns [redacted].
func (SealKeys) LogValue() slog.Value { return slog.StringValue(redacted) }

const (
	maxKeyFile = 64 << 10 // bytes
	maxKeys    = 32
)

const howToMakeKey = "make one with: openssl rand -base64 32"

func (k *checker) keys(g *Gateway) {
	const at = "gateway.keys.file"
	file := g.Keys.File
	if file == "" {
		return
	}
	mode, err := k.opts.Mode(file)
	if err != nil {
		k.errorf(at, "%s: %s", file, ours(fileProblem(err)))
		return
	}
	if mode.Perm()&0o007 != 0 {
		k.errorf(at, "%s is open to every user (mode %04o): chmod o-rwx %s, or defaultMode: 0440 for a Kubernetes Secret", file, mode.Perm(), file)
	}
	data, err := k.opts.ReadFile(file)
	if err != nil {
		k.errorf(at, "%s: %s", file, ours(fileProblem(err)))
		return
	}
	keys, problems := parseKeys(data)
	for _, p := range problems {
		k.errorf(at, "%s: %s", file, ours(p))
	}
	g.Keys.Ring = keys
}

// parseKeys reads one key a line, as base64 or hex. Empty lines and what follows # do not count. No problem shows
// anything of a key.
func parseKeys(data []byte) (keys SealKeys, problems []string) {
	if len(data) > maxKeyFile {
		return nil, []string{fmt.Sprintf("has %d bytes: want at most %d", len(data), maxKeyFile)}
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, problem := parseKey(line)
		if problem == "" && slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			problem = "is there twice: remove one"
		}
		if problem != "" {
			problems = append(problems, fmt.Sprintf("the key at line %d %s", n, problem))
			continue
		}
		keys = append(keys, key)
	}
	switch {
	case len(keys) == 0 && len(problems) == 0:
		problems = append(problems, "holds no key: "+howToMakeKey)
	case len(keys) > maxKeys:
		problems = append(problems, fmt.Sprintf("holds %d keys: want at most %d; remove the oldest, which are last", len(keys), maxKeys))
	}
	return keys, problems
}

func parseKey(text string) (key []byte, problem string) {
	key, err := hex.DecodeString(text)
	if err != nil {
		plain := strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
		if key, err = base64.RawStdEncoding.DecodeString(plain); err != nil {
			return nil, "is neither base64 nor hex: " + howToMakeKey
		}
	}
	switch {
	case len(key) != seal.KeySize:
		return nil, fmt.Sprintf("has %d bytes: want %d; %s", len(key), seal.KeySize, howToMakeKey)
	case predictable(key):
		return nil, "is not random, as keys of examples are: " + howToMakeKey
	}
	return key, ""
}

// predictable reports keys that no random source gives: zeroes, counting up, text, few different bytes. A random
// key of 32 bytes is taken for one of them with a chance below 2^-40.
func predictable(key []byte) bool {
	different := map[byte]bool{}
	steps := map[byte]bool{}
	text := true
	for i, c := range key {
		different[c] = true
		if i > 0 {
			steps[c-key[i-1]] = true
		}
		text = text && c < unicode.MaxASCII && unicode.IsPrint(rune(c))
	}
	return text || len(different) < 12 || len(steps) < 4
}
