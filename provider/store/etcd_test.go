package store

import (
	"log/slog"
	"testing"

	"gatehouse/test/peers"
)

func etcdAt(s *peers.EtcdServer) EtcdOptions {
	return EtcdOptions{Endpoints: []string{s.URL}, Namespace: "test/"}
}

func openEtcdAt(t testing.TB, s *peers.EtcdServer, log *slog.Logger) *etcdDriver {
	t.Helper()
	d, err := openEtcd(t.Context(), etcdAt(s), log)
	must(t, err)
	return d
}
