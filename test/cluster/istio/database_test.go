package istio

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/test/cluster/netns"
	"gatehouse/test/peers"
)

// onPostgres installs two replicas on a PostgreSQL server, by the document's commands.
func (c *cluster) onPostgres(t *testing.T) {
	server := c.database(t)
	s := c.install(t, c.ingressGateway(t), func(w *checkout) {
		w.names(t)
		w.provider(t)
		write(t, filepath.Join(w.dir, "db-password"), databasePassword)
		write(t, filepath.Join(w.dir, "db-ca.pem"), string(c.ca.PEM))
		w.run(t, block(t, "docs/install.md", "## Two replicas", "GATEHOUSE_DB_PASSWORD="))
	})
	s.two(t)
	t.Run("no token of the API server", func(t *testing.T) {
		one, _ := s.replicas(t)
		if _, err := os.Stat(filepath.Join(s.node.dir, one, serviceAccount)); err == nil {
			t.Error("the pod has a token that it does not need")
		}
	})
	t.Run("database away", func(t *testing.T) {
		s.storageAway(t, func() {
			if err := server.Stop(); err != nil {
				t.Fatal(err)
			}
		}, func() {
			if err := server.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("API server away", s.apiAway) // which is needed for nothing
	t.Run("removed", s.removed)
}

const databasePassword = "database-password-of-a-test"

// database is a PostgreSQL server at the address that the documents' name has here, with the role and the database that they have an operator make.
func (c *cluster) database(t *testing.T) *peers.PostgresServer {
	t.Helper()
	certificate, key := c.ca.Issue(t, databaseHost)
	s, err := peers.StartPostgres(context.WithoutCancel(t.Context()), peers.PostgresOptions{Durable: true}, map[string][]byte{"ca.crt": c.ca.PEM, "tls.crt": certificate, "tls.key": key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "psql", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", port, "-U", s.User, "postgres") // #nosec G204 -- the test's own
	cmd.Env = append(os.Environ(), "PGPASSWORD="+s.Password)
	cmd.Stdin = strings.NewReader(strings.Replace(block(t, "docs/config.md", "### PostgreSQL", "CREATE ROLE"), "'…'", "'"+databasePassword+"'", 1))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	forward(t, netns.Node+":5432", s.Addr)
	return s
}

// forward leads connections from one address to another, as a Service does.
func forward(t *testing.T, from, to string) {
	t.Helper()
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = client.Close() }()
				var d net.Dialer
				server, err := d.DialContext(context.WithoutCancel(t.Context()), "tcp", to)
				if err != nil {
					return
				}
				defer func() { _ = server.Close() }()
				go func() {
					_, _ = io.Copy(server, client)
					_ = server.Close()
				}()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
}
