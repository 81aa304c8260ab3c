package provider

import (
	"context"
	"log/slog"

	"gatehouse/internal/audit"
)

// quiet is the slog.Handler that Dex logs to. Dex writes session ids and, at debug level, upstream tokens.
type quiet struct{ slog.Handler }

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	level := levelOf(r)
	if !q.Enabled(ctx, level) {
		return nil
	}
	clean := slog.NewRecord(r.Time, level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(cleanAttr(a))
		return true
	})
	return q.Handler.Handle(ctx, clean)
}

// levelOf lowers what Dex says too loud: what the audit log tells better, and mistakes that any stranger can make.
func levelOf(r slog.Record) slog.Level {
	switch r.Message {
	case "login successful":
		return slog.LevelDebug
	case "invalid client_id provided", "unregistered redirect_uri", "failed to parse authorization request", "failed to parse arguments":
		return min(r.Level, slog.LevelInfo)
	}
	return r.Level
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = cleanAttr(a)
	}
	return quiet{q.Handler.WithAttrs(clean)}
}

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

func cleanAttr(a slog.Attr) slog.Attr {
	switch a.Key {
	case "session_id", "sid":
		return slog.String(a.Key, hashID(a.Value.String()))
	case "connector_data", "token", "id_token", "access_token", "refresh_token", "code", "state", "secret", "password", "hint":
		return slog.String(a.Key, "[redacted]")
	}
	return a
}

func hashID(id string) string { return audit.Hash(id) }
