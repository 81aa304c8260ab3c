package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"gatehouse/internal/config"
	"gatehouse/test/peers"
)

// The store that a file names is opened with what the file says, and takes no lock that would keep a second replica out.
func TestOpenStoreOnPostgres(t *testing.T) {
	server := peers.Postgres(t, peers.PostgresOptions{})
	host, port, err := net.SplitHostPort(server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	open := func(password, ca string) error {
		file := fmt.Sprintf("issuer: https://auth.example.com/dex\nenablePasswordDB: true\nstorage:\n  type: postgres\n"+
			"  config: {host: %s, port: %s, database: postgres, user: %s, password: %s, ssl: {caFile: %s}}\n", host, port, server.User, password, ca)
		cfg, _, err := config.Parse("g.yaml", []byte(file), config.OS())
		if err != nil {
			t.Fatal(err)
		}
		unlock, err := lockStore(cfg)
		if err != nil {
			return err
		}
		t.Cleanup(unlock)
		s, err := openStore(t.Context(), cfg, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = s.Close() })
		return s.Ping(context.WithoutCancel(t.Context()))
	}
	for range 2 {
		if err := open(server.Password, server.CA); err != nil {
			t.Error(err)
		}
	}
	if err := open("kanarienvogel", server.CA); err == nil || !strings.Contains(err.Error(), "check storage.config.user and password") || strings.Contains(err.Error(), "kanarienvogel") {
		t.Errorf("wrong password: got %v", err)
	}
}
