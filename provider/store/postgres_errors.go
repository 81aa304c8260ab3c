package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATEs: PostgreSQL's documentation, appendix A.
const (
	pgSerialization   = "40001"
	pgDeadlock        = "40P01"
	pgNoDatabase      = "3D000"
	pgNoRights        = "42501"
	pgBadPassword     = "28P01"
	pgNotAuthorized   = "28000"
	pgTooMany         = "53300"
	pgReadOnly        = "25006"
	pgAdminShutdown   = "57P01"
	pgCrashShutdown   = "57P02"
	pgCannotConnect   = "57P03"
	pgCancelled       = "57014"
	pgDiskFull        = "53100"
	pgUndefinedObject = "42P01"
	pgNoSchema        = "3F000"
	pgNoFunction      = "42883"
)

// sqlState returns the SQLSTATE of an error that the server sent.
func sqlState(err error) (string, bool) {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code, true
	}
	return "", false
}

// isUndone reports whether the server said that a statement failed and thereby undid it. After FATAL it may have been committed before.
func isUndone(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Severity == "ERROR" || ok && e.SeverityUnlocalized == "ERROR"
}

// isRetryable reports whether nothing was done, and would be if it were tried again: the server gave way to another transaction, or nothing
// was sent because the connection was dead already.
func isRetryable(err error) bool {
	if code, ok := sqlState(err); ok {
		return isUndone(err) && (code == pgSerialization || code == pgDeadlock)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false // the caller may have to wait for long: let it decide
	}
	return err != nil && pgconn.SafeToRetry(err)
}

// explain adds to an error what to do about it.
func (c *PostgresConfig) explain(err error) error {
	if fix := c.fix(err); fix != "" {
		return fmt.Errorf("%w: %s", err, fix)
	}
	return err
}

func (c *PostgresConfig) fix(err error) string {
	if code, ok := sqlState(err); ok {
		return c.fixOfState(code)
	}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return "set storage.config.ssl.caFile to the certificate authority of the server"
	case errors.As(err, &name):
		return "set storage.config.host to a name in the server's certificate, or storage.config.ssl.mode to verify-ca"
	case errors.As(err, &invalid):
		return "the server needs a new certificate"
	case errors.As(err, &record), strings.Contains(err.Error(), "server refused TLS connection"):
		return "turn TLS on in the server (ssl = on), or set storage.config.ssl.mode to disable where nobody else reaches the network"
	case strings.Contains(err.Error(), "remote error: tls:"):
		return "the server does not take our certificate: look at storage.config.ssl.certFile and keyFile"
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return "check that PostgreSQL runs there and storage.config.host and port"
	}
	return ""
}

func (c *PostgresConfig) fixOfState(code string) string {
	switch code {
	case pgNoDatabase:
		return fmt.Sprintf("make it: CREATE DATABASE %s OWNER %s", pgName(c.Database), pgName(c.User))
	case pgNoRights:
		return fmt.Sprintf("the schema gatehouse must belong to this user: CREATE SCHEMA gatehouse AUTHORIZATION %s, or GRANT CREATE ON DATABASE %s TO %[1]s", pgName(c.User), pgName(c.Database))
	case pgBadPassword:
		return "check storage.config.user and password"
	case pgNotAuthorized:
		return "check storage.config.user, and that pg_hba.conf lets it in from here with storage.config.ssl as it is"
	case pgTooMany:
		return "lower storage.config.maxOpenConns, or raise max_connections of the server"
	case pgReadOnly:
		return "it is a standby: set storage.config.host to the primary server"
	case pgAdminShutdown, pgCrashShutdown, pgCannotConnect:
		return "the server starts or stops: wait for it"
	case pgCancelled:
		return fmt.Sprintf("it took more than %s: look for who holds the records in pg_stat_activity", pgStatementTimeout)
	case pgDiskFull:
		return "make room on the server's disk"
	case pgUndefinedObject, pgNoSchema, pgNoFunction:
		return "the schema gatehouse was changed or dropped: restart Gatehouse, which makes what is missing, or restore a backup"
	}
	return ""
}

// pgName quotes a name for SQL that a person is to type.
func pgName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
