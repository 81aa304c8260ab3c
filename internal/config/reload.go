package config

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Changed returns the keys whose values differ between two files, such as gateway.rules. A list is one key. Keys
// of the same name whose file has another content are a difference, too.
func Changed(a, b *Config) []string {
	var keys []string
	changed(reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), "", &keys)
	const ring = "gateway.keys.file"
	if a.Gateway != nil && b.Gateway != nil && !slices.Contains(keys, ring) && !slices.EqualFunc(a.Gateway.Keys.Ring, b.Gateway.Keys.Ring, bytes.Equal) {
		keys = append(keys, ring)
	}
	return keys
}

func changed(a, b reflect.Value, path string, keys *[]string) {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	if fields := blockFields(a.Type()); len(fields) > 0 {
		for _, f := range fields {
			changed(a.Field(f.index), b.Field(f.index), child(path, f.key), keys)
		}
		return
	}
	if !same(a, b) {
		*keys = append(*keys, path)
	}
}

// blockFields returns the fields of a block, none for what is not one.
func blockFields(t reflect.Type) []field {
	if t.Kind() != reflect.Struct {
		return nil
	}
	return fieldsOf(t)
}

// same compares values as the file has them: what is derived, and lines, do not count.
func same(a, b reflect.Value) bool {
	switch x := a.Interface().(type) {
	case Secret:
		y, ok := b.Interface().(Secret)
		return ok && x.Reveal() == y.Reveal()
	case Object:
		y, ok := b.Interface().(Object)
		return ok && bytes.Equal(x.JSON(), y.JSON())
	}
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return same(a.Elem(), b.Elem())
	case reflect.Slice:
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for _, f := range fieldsOf(a.Type()) {
			if !same(a.Field(f.index), b.Field(f.index)) {
				return false
			}
		}
		return true
	default:
		return reflect.DeepEqual(a.Interface(), b.Interface())
	}
}

// restartKeys are the keys, or blocks of keys, that a running process cannot take up, reloadKeys those that it can. Every
// key belongs to one of them. They are never assigned to.
var (
	restartKeys = []string{
		"issuer", "storage",
		"web.http", "web.https", "telemetry", // open ports
		"sessions.cookieName",                                // every browser would be a stranger
		"sessions.validIfNotUsedFor", "gateway.session.idle", // the gateway's view of sessions is made for one
		"gateway.session.cache",                           // and of one size
		"gateway.grpc", "gateway.admin", "gateway.prefix", // open ports, and paths that are half of a sign-in
		"gateway.keys", // a new key would make every browser a stranger
		"frontend.issuer", "logger.format", "logger.excludeFields",
	}
	reloadKeys = []string{
		"web.tlsCert", "web.tlsKey", "web.tlsMinVersion", "web.tlsMaxVersion", "web.tlsClientCA", "web.tlsClientNames", "web.headers", "web.allowedOrigins", "web.allowedHeaders", "web.clientRemoteIP",
		"connectors", "staticClients", "staticPasswords", "enablePasswordDB", "oauth2", "expiry", "mfa", "signer", "logger.level",
		"sessions.absoluteLifetime", "sessions.rememberMeCheckedByDefault", "sessions.ssoSharedWithDefault", "sessions.cookieEncryptionKey",
		"frontend.logoURL", "frontend.theme", "frontend.extra",
		"gateway.hosts", "gateway.cookie", "gateway.session.absolute", "gateway.session.staleIfUnavailable", "gateway.identity",
		"gateway.clients", "gateway.rules", "gateway.default",
		"gateway.tls.cert", "gateway.tls.key", "gateway.tls.clientCA", "gateway.tls.clientNames", "gateway.tls.minVersion",
	}
)

// below reports whether path is one of the keys or in one of the blocks.
func below(keys []string, path string) bool {
	return slices.ContainsFunc(keys, func(k string) bool {
		rest, ok := strings.CutPrefix(path, k)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// NeedRestart returns an error, of type Errors, that names every key in which next differs from what runs and that
// cannot change in a running process. file is the name of the file.
func NeedRestart(file string, running, next *Config) error {
	var errs Errors
	for _, key := range Changed(running, next) {
		msg := "cannot change while gatehouse runs: restart it, or take the change back"
		switch {
		case key == "gateway":
			msg = "a gateway block cannot come or go while gatehouse runs: restart it, or take the change back"
		case key == "gateway.tls":
			msg = "TLS cannot come or go while gatehouse runs: restart it, or take the change back"
		case key == "gateway.keys.file":
			msg = "the keys cannot change while gatehouse runs: restart it, or take the change back"
		case below(reloadKeys, key):
			continue
		}
		errs = append(errs, Error{File: file, Path: key, Msg: msg})
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// Summary says in words what is different in next, without a secret and without a person's name.
func Summary(running, next *Config) []string {
	var out []string
	for _, key := range Changed(running, next) {
		switch key {
		case "connectors":
			out = append(out, "connectors "+named(running.Connectors, next.Connectors, func(c Connector) string { return c.ID }))
		case "staticClients":
			out = append(out, "clients "+counted(running.StaticClients, next.StaticClients, func(c Client) string { return c.ID }))
		case "staticPasswords":
			out = append(out, "users "+counted(running.StaticPasswords, next.StaticPasswords, func(p Password) string { return p.UserID }))
		case "gateway.rules":
			out = append(out, numbers("rules", len(running.Gateway.Rules), len(next.Gateway.Rules)))
		case "gateway.hosts":
			out = append(out, numbers("hosts", len(running.Gateway.Hosts), len(next.Gateway.Hosts)))
		default:
			out = append(out, key)
		}
	}
	return out
}

func numbers(what string, before, after int) string {
	if before == after {
		return what + " changed"
	}
	return fmt.Sprintf("%s %d->%d", what, before, after)
}

// A difference is what has become of the entries of a list, by their ids.
type difference struct{ added, removed, changed []string }

func differences[T any](before, after []T, id func(T) string) (d difference) {
	find := func(list []T, want string) int {
		return slices.IndexFunc(list, func(v T) bool { return id(v) == want })
	}
	for i := range after {
		switch at := find(before, id(after[i])); {
		case at < 0:
			d.added = append(d.added, id(after[i]))
		case !same(reflect.ValueOf(before[at]), reflect.ValueOf(after[i])):
			d.changed = append(d.changed, id(after[i]))
		}
	}
	for i := range before {
		if find(after, id(before[i])) < 0 {
			d.removed = append(d.removed, id(before[i]))
		}
	}
	return d
}

func named[T any](before, after []T, id func(T) string) string {
	d := differences(before, after, id)
	return d.words(func(sign string, ids []string) string { return sign + strings.Join(ids, " "+sign) })
}

func counted[T any](before, after []T, id func(T) string) string {
	d := differences(before, after, id)
	return d.words(func(sign string, ids []string) string { return fmt.Sprintf("%s%d", sign, len(ids)) })
}

// words joins what has happened; an order that has changed is all that is left where nothing has.
func (d difference) words(say func(sign string, ids []string) string) string {
	var parts []string
	for _, p := range []struct {
		sign string
		ids  []string
	}{{"+", d.added}, {"-", d.removed}, {"~", d.changed}} {
		if len(p.ids) > 0 {
			parts = append(parts, say(p.sign, p.ids))
		}
	}
	if len(parts) == 0 {
		return "in another order"
	}
	return strings.Join(parts, " ")
}
