package config

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"gatehouse/internal/certs"
)

// Changed returns the keys whose values differ between two files, such as gateway.rules. A list is one key. Keys
// of the same name whose file has another content are a difference, too.
func Changed(a, b *Config) []string {
	var keys []string
	changed(reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), "", &keys)
	if a.Gateway != nil && b.Gateway != nil && !slices.Contains(keys, keyFile) && !slices.EqualFunc(a.Gateway.Keys.Ring, b.Gateway.Keys.Ring, bytes.Equal) {
		keys = append(keys, keyFile)
	}
	return keys
}

// keyFile is the key of the file whose keys are a part of the configuration.
const keyFile = "gateway.keys.file"

// comesOrGoes reports whether the key file is set in one of two configurations only: then keys are in another place, and the storage is sealed or not.
func comesOrGoes(key string, a, b *Config) bool {
	return key == keyFile && (a.Gateway.Keys.File == "") != (b.Gateway.Keys.File == "")
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

// reloadKeys are the keys, or blocks of keys, that a running process can take up; a change of any other needs a restart. They
// are never assigned to.
var reloadKeys = []string{
	"web.tlsCert", "web.tlsKey", "web.tlsMinVersion", "web.tlsMaxVersion", "web.tlsClientCA", "web.tlsClientNames", "web.headers", "web.allowedOrigins", "web.allowedHeaders", "web.clientRemoteIP",
	"connectors", "staticClients", "staticPasswords", "enablePasswordDB", "oauth2", "expiry", "mfa", "signer", "logger.level",
	"sessions.absoluteLifetime", "sessions.rememberMeCheckedByDefault", "sessions.ssoSharedWithDefault", "sessions.cookieEncryptionKey",
	"frontend.logoURL", "frontend.theme", "frontend.extra",
	"gateway.hosts", "gateway.cookie", "gateway.session.absolute", "gateway.session.staleIfUnavailable", "gateway.session.storageGrace", "gateway.session.revalidate", "gateway.identity",
	"gateway.keys.file", "gateway.clients", "gateway.rules", "gateway.default", "gateway.drain",
	"gateway.tls.cert", "gateway.tls.key", "gateway.tls.clientCA", "gateway.tls.clientNames", "gateway.tls.minVersion",
}

// below reports whether path is one of the keys or in one of the blocks.
func below(keys []string, path string) bool {
	return slices.ContainsFunc(keys, func(k string) bool {
		rest, ok := strings.CutPrefix(path, k)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// NeedRestart returns an error, of type Errors, that names every key in which next differs from what runs and that
// cannot change in a running process, with both values. file is the name of the file.
func NeedRestart(file string, running, next *Config) error {
	const fix = "restart it, or take the change back"
	var errs Errors
	for _, key := range Changed(running, next) {
		if below(reloadKeys, key) && !comesOrGoes(key, running, next) {
			continue
		}
		old, found := running.places[key].text, next.places[key].text
		msg := "cannot change while gatehouse runs: " + fix
		switch {
		case key == "gateway":
			msg = "a gateway block cannot come or go while gatehouse runs: " + fix
		case key == "gateway.tls":
			msg = "TLS cannot come or go while gatehouse runs: " + fix
		case key == keyFile:
			msg = "the key file cannot come or go while gatehouse runs: " + fix
		case old != found:
			msg = fmt.Sprintf("cannot change while gatehouse runs, from %s to %s: %s", old, found, fix)
		}
		errs = append(errs, Error{File: file, Line: next.places[key].line, Path: key, Msg: msg})
	}
	return sorted(errs)
}

// sorted returns errs by line, and nil where there is none.
func sorted(errs Errors) error {
	if len(errs) == 0 {
		return nil
	}
	slices.SortStableFunc(errs, func(a, b Error) int { return cmp.Compare(a.Line, b.Line) })
	return errs
}

// OutOfDate returns an error, of type Errors, that names every certificate of a listener that is valid now in what runs and
// is not in next. At a start it is a warning only: there, nothing better is to be had.
func OutOfDate(file string, running, next *Config, now time.Time) error {
	var errs Errors
	check := func(key, name string, running, next *certs.Material, line int) {
		if running == nil || next == nil {
			return
		}
		old, leaf := running.Certificate.Leaf, next.Certificate.Leaf
		if now.Before(old.NotBefore) || now.After(old.NotAfter) {
			return
		}
		msg := ""
		switch {
		case now.After(leaf.NotAfter):
			msg = "expired on " + utc(leaf.NotAfter) + ": put a valid one in its place"
		case now.Before(leaf.NotBefore):
			msg = "is not valid before " + utc(leaf.NotBefore) + ": look at the clock, or send SIGHUP then"
		default:
			return
		}
		msg = fmt.Sprintf("%s %s; the one that runs is valid until %s", name, msg, utc(old.NotAfter))
		errs = append(errs, Error{File: file, Line: line, Path: key, Msg: msg})
	}
	check("web.tlsCert", next.Web.TLSCert, running.Web.TLS, next.Web.TLS, next.places["web.tlsCert"].line)
	if a, b := running.Gateway, next.Gateway; a != nil && b != nil && a.TLS != nil && b.TLS != nil {
		check("gateway.tls.cert", b.TLS.Cert, a.TLS.Material, b.TLS.Material, next.places["gateway.tls.cert"].line)
	}
	return sorted(errs)
}

func utc(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

// A place is where a key stands in a file, and its value as a message may show it.
type place struct {
	line int    // that of the block around it where the key is not there; 0 where that is not there either
	text string // empty for what is secret, for blocks, and for keys that reload
}

// placesOf returns the places of all keys of c but for those in lists.
func placesOf(c *Config, r *report) map[string]place {
	places := map[string]place{}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		if v.Kind() == reflect.Pointer && !v.IsNil() {
			if path != "" {
				places[path] = place{line: r.lineIn(path)}
			}
			v = v.Elem()
		}
		if fields := blockFields(v.Type()); len(fields) > 0 {
			for _, f := range fields {
				walk(v.Field(f.index), child(path, f.key))
			}
			return
		}
		at := place{line: r.lineIn(path)}
		if !below(reloadKeys, path) {
			at.text = r.hide.clean(shown(v))
		}
		places[path] = at
	}
	walk(reflect.ValueOf(c).Elem(), "")
	return places
}

// shown is a value as a person writes it, "" for secrets and blocks of any content.
func shown(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case Secret, Object:
		return ""
	case fmt.Stringer:
		return x.String()
	}
	switch v.Kind() {
	case reflect.String, reflect.Slice:
		return fmt.Sprintf("%q", v.Interface())
	case reflect.Bool, reflect.Int:
		return fmt.Sprint(v.Interface())
	default:
		return ""
	}
}

// lineIn is line, but 0 where neither the key nor a block around it is in the file.
func (r *report) lineIn(path string) int {
	for ; path != ""; path = parent(path) {
		if p, ok := r.nodes[path]; ok {
			return p.line
		}
	}
	return 0
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
