package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// patience is how long whoever reads a list may take for the next part of it.
const patience = time.Minute

// list sends the items of a JSON array as they come, as many as the query's limit says: nothing of it is held. What fails before anything
// was sent is a refusal; later the connection breaks, so that half a list is never taken for all of it, and the log says why.
func list[T any](log *slog.Logger, w http.ResponseWriter, r *http.Request, items iter.Seq2[T, error]) {
	limit, err := limitOf(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	parts := &patient{ResponseWriter: w, conn: http.NewResponseController(w)}
	out := bufio.NewWriterSize(parts, 32<<10)
	n := 0
	for item, err := range items {
		var b []byte
		if err == nil {
			b, err = json.Marshal(item)
		}
		switch {
		case err == nil:
		case !parts.sent:
			fail(w, err)
			return
		default:
			if r.Context().Err() == nil { // else the operator is gone
				log.ErrorContext(r.Context(), "a list for an operator ends before its time", "path", r.URL.Path, "listed", n, "error", err)
			}
			panic(http.ErrAbortHandler)
		}
		between := ",\n"
		if n++; n == 1 {
			between = "[\n"
		}
		_, _ = out.WriteString(between) // an error stays with out
		if _, err := out.Write(b); err != nil {
			return // the operator is gone
		}
		if n == limit {
			break
		}
	}
	end := "\n]\n"
	if n == 0 {
		end = "[]\n"
	}
	_, _ = out.WriteString(end)
	_ = out.Flush()
}

// limitOf is how many items a query wants at most; 0: all.
func limitOf(query url.Values) (int, error) {
	text := query.Get("limit")
	if text == "" {
		return 0, nil
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 1 {
		return 0, fmt.Errorf(`admin: "limit": got %.20q, want a number from 1 on`, text)
	}
	return limit, nil
}

// patient gives each part of an answer a time of its own, where the server has one for all of it.
type patient struct {
	http.ResponseWriter
	conn *http.ResponseController
	sent bool // something of the answer
}

// Write implements io.Writer.
func (p *patient) Write(b []byte) (int, error) {
	p.sent = true
	if err := p.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// fetch yields the items of a list as they come, at most limit of them (0: all).
func fetch[T any](ctx context.Context, c *Client, path string, query url.Values, limit int) iter.Seq2[T, error] {
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return func(yield func(T, error) bool) {
		var zero T
		resp, err := c.send(ctx, http.MethodGet, path, nil)
		if err != nil {
			yield(zero, err)
			return
		}
		defer resp.Body.Close()
		d := json.NewDecoder(resp.Body)
		if _, err := d.Token(); err != nil {
			yield(zero, cutShort(err))
			return
		}
		for d.More() {
			var item T
			if err := d.Decode(&item); err != nil {
				yield(zero, cutShort(err))
				return
			}
			if !yield(item, nil) {
				return
			}
		}
		if _, err := d.Token(); err != nil {
			yield(zero, cutShort(err))
		}
	}
}

func cutShort(err error) error {
	return fmt.Errorf("admin: the list is not complete: see the log of gatehouse: %w", err)
}

// Sessions yields the sessions of the listener as they come, at most limit of them (0: all). It ends after an error.
func (c *Client) Sessions(ctx context.Context, limit int) iter.Seq2[Session, error] {
	return fetch[Session](ctx, c, "/v1/sessions", url.Values{}, limit)
}

// Users yields the users of the listener as Sessions does sessions: all, or those who are blocked.
func (c *Client) Users(ctx context.Context, blocked bool, limit int) iter.Seq2[User, error] {
	query := url.Values{}
	if blocked {
		query.Set("blocked", "true")
	}
	return fetch[User](ctx, c, "/v1/users", query, limit)
}
