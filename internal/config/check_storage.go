package config

import (
	"errors"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/certs"
	"gatehouse/internal/hosts"
	"gatehouse/internal/nearest"
)

// storageTypes are the types of storage; sqlite3 is Dex's name of sqlite.
func storageTypes() []string { return []string{"memory", "sqlite", "postgres", "etcd", "kubernetes"} }

// storageKeys returns the keys below storage.config of a type.
func storageKeys(typ string) []string {
	switch typ {
	case "sqlite":
		return []string{"file"}
	case "postgres":
		return []string{
			"host", "port", "database", "user", "password", "connectionTimeout", "maxOpenConns", "maxIdleConns", "connMaxLifetime",
			"ssl.mode", "ssl.caFile", "ssl.keyFile", "ssl.certFile",
		}
	case "etcd":
		return []string{"endpoints", "namespace", "username", "password", "ssl.serverName", "ssl.caFile", "ssl.keyFile", "ssl.certFile"}
	case "kubernetes":
		return []string{"kubeConfigFile", "inCluster", "namespace"}
	}
	return nil
}

func (s *Storage) decodeNode(d *decoder, n *yaml.Node, path string) {
	kind := lookup(n, "type")
	if kind == nil || isNull(kind) || !isText(kind) {
		d.block(n, settable(s), path)
		if n.Kind == yaml.MappingNode && (kind == nil || isNull(kind)) {
			d.errorf(path, "needs a type: %s", ours(orList(storageTypes())))
		}
		return
	}
	switch kind.Value {
	case "memory", "sqlite", "sqlite3", "postgres", "etcd", "kubernetes":
		d.block(n, settable(s), path)
		if s.Type == "sqlite3" {
			s.Type = "sqlite"
		}
	case "mysql":
		d.errorf(path+".type", "mysql is not supported: use postgres, etcd, kubernetes or sqlite")
	default:
		hint := ""
		if near := nearest.Word(kind.Value, storageTypes()); near != "" {
			hint = ": did you mean " + near + "?"
		}
		d.errorf(path+".type", "want %s, got %q%s", ours(orList(storageTypes())), kind.Value, ours(hint))
	}
}

func (k *checker) storage() {
	if !k.has("storage") {
		k.errorf("storage", "is missing: add storage: {type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}}")
		return
	}
	s := &k.c.Storage
	if !slices.Contains(storageTypes(), s.Type) {
		return // told already
	}
	k.strangeKeys(s.Type)
	switch s.Type {
	case "memory":
		k.warnf("storage", "memory forgets every session and every key when the process ends: use sqlite for anything but a try")
	case "sqlite":
		k.sqlite(s.Config.File)
	case "postgres":
		k.postgres(&s.Config)
	case "etcd":
		k.etcd(&s.Config)
	case "kubernetes":
		k.kubernetes(&s.Config)
	}
}

// strangeKeys reports the keys of other types of storage.
func (k *checker) strangeKeys(typ string) {
	own := storageKeys(typ)
	var told []string
	for _, other := range storageTypes() {
		for _, key := range storageKeys(other) {
			path := "storage.config." + key
			if slices.Contains(own, key) || slices.Contains(told, key) || !k.has(path) || k.failed(path) {
				continue
			}
			told = append(told, key)
			k.errorf(path, "is not for %s: remove it, or set type: %s", ours(typ), ours(other))
		}
	}
}

func (k *checker) sqlite(file string) {
	const path = "storage.config.file"
	switch {
	case file == "" && !k.failed(path) && !k.failed("storage.config"):
		k.errorf(path, "is missing: set it to the path of the database, such as /var/lib/gatehouse/gatehouse.db")
	case strings.HasPrefix(file, ":"):
		k.errorf(path, "want a path, got %q: for a database in memory set type: memory", file)
	case strings.HasPrefix(file, "file:") || strings.ContainsAny(file, "?#\x00"):
		k.errorf(path, "want a plain path, got %q: a URI or options are not for this key", file)
	case file != "":
		k.directory(path, filepath.Dir(file))
	}
}

func (k *checker) postgres(s *StorageConfig) {
	const path = "storage.config"
	readable := !k.failed(path)
	for _, needed := range []struct{ key, got string }{{"database", s.Database}, {"user", s.User}} {
		if readable {
			k.needs(path, needed.key, needed.got)
		}
		if strings.ContainsRune(needed.got, 0) {
			k.errorf(child(path, needed.key), "holds a zero byte, which no name has")
		}
	}
	host := s.Host
	if h, _, err := net.SplitHostPort(s.Host); err == nil {
		host = h
		if s.Port != 0 {
			k.errorf(path+".port", "is given twice, since host %q ends in a port: remove one", s.Host)
		}
	}
	if strings.ContainsAny(host, "@?#, \x00") || strings.Contains(host, "//") {
		k.errorf(path+".host", "want the name or address of one server, or the folder of its unix socket, got %q", withoutUser(s.Host))
	}
	if (s.Port < 0 || s.Port > 65535) && !k.failed(path+".port") {
		k.errorf(path+".port", "want a port from 1 to 65535, got %d", s.Port)
	}
	for key, n := range map[string]int{
		"connectionTimeout": s.ConnectionTimeout, "maxOpenConns": s.MaxOpenConns, "maxIdleConns": s.MaxIdleConns, "connMaxLifetime": s.ConnMaxLifetime,
	} {
		if n < 0 || n > 1_000_000 {
			k.errorf(child(path, key), "want a number from 0 to 1000000, got %d", n)
		}
	}
	k.oneOf(path+".ssl.mode", s.SSL.Mode, "disable", "require", "verify-ca", "verify-full")
	k.storageTLS(&s.SSL)
	elsewhere := host != "" && !strings.HasPrefix(host, "/") && !hosts.Loopback(host)
	switch {
	case s.SSL.Mode == "disable" && elsewhere:
		k.warnf(path+".ssl.mode", clearText+"verify-full, and caFile")
	case s.SSL.Mode == "require" && s.SSL.CAFile == "" && elsewhere:
		k.warnf(path+".ssl.mode", "require does not look who the server is: set verify-full, and caFile")
	}
}

func (k *checker) etcd(s *StorageConfig) {
	const path = "storage.config"
	if len(s.Endpoints) == 0 && !k.failed(path) && !k.failed(path+".endpoints") {
		k.errorf(path, "needs endpoints: a list such as [https://etcd-0:2379]")
	}
	for i, e := range s.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			k.errorf(element(path+".endpoints", i), "want a URL with a port, such as https://etcd-0:2379, got %q", withoutUser(e))
		} else if u.Scheme == "http" && !hosts.Loopback(u.Hostname()) {
			k.warnf(element(path+".endpoints", i), clearText+"https, and ssl.caFile")
		}
	}
	if (s.Username == "") != s.Password.IsZero() && !k.failed(path+".username") && !k.failed(path+".password") {
		k.errorf(path, "needs both username and password, or neither")
	}
	k.storageTLS(&s.SSL)
}

// clearText warns of a connection without TLS; the fix follows.
const clearText = "keys and sessions cross the network in the clear: set "

var kubernetesNamespace = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (k *checker) kubernetes(s *StorageConfig) {
	const path = "storage.config"
	if s.InCluster == (s.KubeConfigFile != "") && !k.failed(path) && !k.failed(path+".kubeConfigFile") && !k.failed(path+".inCluster") {
		k.errorf(path, "needs inCluster: true in a pod, or kubeConfigFile elsewhere, and not both")
	}
	if s.Namespace != "" && !kubernetesNamespace.MatchString(s.Namespace) {
		k.errorf(path+".namespace", "want the name of a namespace, got %q", s.Namespace)
	}
	_, _ = k.file(path+".kubeConfigFile", s.KubeConfigFile)
}

// storageTLS checks the files of a connection to a database.
func (k *checker) storageTLS(s *StorageSSL) {
	const path = "storage.config.ssl"
	if data, ok := k.file(path+".caFile", s.CAFile); ok {
		if _, _, err := certs.ClientCAs(data, k.opts.Now()); err != nil {
			k.errorf(path+".caFile", "%s %s", s.CAFile, ours(certProblem(err)))
		}
	}
	if (s.CertFile == "") != (s.KeyFile == "") && !k.failed(path+".certFile") && !k.failed(path+".keyFile") {
		k.errorf(path, "needs both certFile and keyFile, or neither")
		return
	}
	cert, certOK := k.file(path+".certFile", s.CertFile)
	key, keyOK := k.file(path+".keyFile", s.KeyFile)
	if !certOK || !keyOK {
		return
	}
	if _, err := certs.Pair(cert, key); err != nil {
		k.errorf(path+".certFile", "%s and %s: %s", s.CertFile, s.KeyFile, ours(certProblem(err)))
	}
}

func certProblem(err error) string {
	if p, ok := errors.AsType[*certs.Problem](err); ok {
		return p.Text
	}
	return "cannot be used"
}
