package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// kubeTimeout ends a call that hangs; a watch has its own end.
	kubeTimeout = 10 * time.Second
	// kubeTries bounds how often a call is repeated that the API server turned away.
	kubeTries = 5
	// kubeMaxWait bounds what a Retry-After may ask for.
	kubeMaxWait = 10 * time.Second
	// kubeMaxAnswer is more than a page of the largest records that we write; an answer that is longer is cut and cannot be read.
	kubeMaxAnswer = 512 << 20

	kubeMetaOnly     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	kubeMetaOnlyList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// A kubeClient calls the API server for one resource in one namespace. It needs a handful of calls of a plain HTTP interface, for which
// k8s.io/client-go would add 4 MB to a binary of 36.5 MB, and 15 modules.
type kubeClient struct {
	collection *url.URL // the resource in its namespace
	http       *http.Client
	token      func(fresh bool) (string, error) // nil: a client certificate says who we are
}

// A kubeCall is one request.
type kubeCall struct {
	method      string
	name        string // of an object; "" for all
	query       url.Values
	contentType string // "": JSON
	accept      string // "": JSON
	body        any    // nil: none
}

// A kubeError is an answer that refuses a call (the API's Status).
type kubeError struct {
	Code     int    `json:"code"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`

	doubtful   bool          // an earlier try of the same call may have been carried out
	retryAfter time.Duration // 0: the server asks for no other try
}

func (e *kubeError) Error() string {
	message := e.Message
	if len(message) > 300 {
		message = message[:300] + "…"
	}
	return fmt.Sprintf("the API server answers %d %s: %q", e.Code, e.Reason, message)
}

// isKube reports whether err is an answer with a code, and is the last word on the call.
func isKube(err error, code int) bool {
	var e *kubeError
	return errors.As(err, &e) && e.Code == code && !e.doubtful
}

// isNoLonger reports whether err says that an object is not what it was, maybe because of an earlier try of the same call.
func isNoLonger(err error) bool {
	var e *kubeError
	return errors.As(err, &e) && (e.Code == http.StatusNotFound || e.Code == http.StatusConflict)
}

// do makes a call within kubeTimeout and reads the answer into a value, unless that is nil. What the server turns away with Retry-After (429, 503) it
// tries again for as long as the context lasts.
func (c *kubeClient) do(ctx context.Context, call kubeCall, into any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	doubtful, refused := false, false
	for try := 1; ; try++ {
		err := c.once(ctx, call, into, refused)
		var e *kubeError
		if !errors.As(err, &e) {
			return err
		}
		e.doubtful = doubtful
		switch {
		case e.Code == http.StatusUnauthorized && !refused:
			refused = true // once more, with the token as it is in the file now
			continue
		case e.retryAfter == 0 || try == kubeTries:
			return err
		}
		// 429 says that nothing was done. 503 may come from something in between that knows no better.
		doubtful = doubtful || (e.Code != http.StatusTooManyRequests && call.method != http.MethodGet)
		if err := sleep(ctx, e.retryAfter+rand.N(e.retryAfter/4+1)); err != nil { //nolint:gosec // G404: spreads load, guards nothing
			return err
		}
	}
}

func (c *kubeClient) once(ctx context.Context, call kubeCall, into any, freshToken bool) error {
	ctx, cancel := context.WithTimeout(ctx, kubeTimeout)
	defer cancel()
	res, err := c.send(ctx, call, freshToken)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if into == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, kubeMaxAnswer)) // so that the connection can be used again
		return err
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, kubeMaxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("the API server's answer: %w", err)
	}
	return nil
}

// send returns an answer that is good, whose body is still to be read, or an error.
func (c *kubeClient) send(ctx context.Context, call kubeCall, freshToken bool) (*http.Response, error) {
	body, err := encodeBody(call.body)
	if err != nil {
		return nil, err
	}
	u := *c.collection
	if call.name != "" {
		u.Path += "/" + call.name
	}
	u.RawQuery = call.query.Encode()
	req, err := http.NewRequestWithContext(ctx, call.method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "gatehouse")
	req.Header.Set("Accept", orJSON(call.accept))
	if body != nil {
		req.Header.Set("Content-Type", orJSON(call.contentType))
	}
	if c.token != nil {
		token, err := c.token(freshToken)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	return nil, refusal(res)
}

func encodeBody(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}

func orJSON(mediaType string) string {
	if mediaType == "" {
		return "application/json"
	}
	return mediaType
}

// refusal reads an answer that is no success. Something else than the API server may have written it.
func refusal(res *http.Response) *kubeError {
	e := &kubeError{}
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil || json.Unmarshal(body, e) != nil || e.Message == "" {
		e.Message = strings.ToValidUTF8(string(body), "?")
	}
	e.Code = res.StatusCode
	if after := res.Header.Get("Retry-After"); after != "" && (e.Code == http.StatusTooManyRequests || e.Code == http.StatusServiceUnavailable) {
		e.retryAfter = time.Second
		if s, err := strconv.Atoi(after); err == nil && s > 0 {
			e.retryAfter = min(time.Duration(min(s, 3600))*time.Second, kubeMaxWait)
		}
	}
	return e
}

// A kubeEvent is one line of a watch.
type kubeEvent struct {
	Type   string `json:"type"` // ADDED MODIFIED DELETED BOOKMARK ERROR
	Object struct {
		kubeObject

		Code    int    `json:"code"` // of ERROR, whose object is a Status
		Message string `json:"message"`
	} `json:"object"`

	version int64 // of the object, or how far the watch has come
}

// watch sends what happens after a place to a channel until the server ends it after some seconds, or ctx is done; then it closes the channel. The
// last thing sent may be an error.
func (c *kubeClient) watch(ctx context.Context, query url.Values, after int64, seconds int) <-chan result[kubeEvent] {
	events := make(chan result[kubeEvent])
	query = maps.Clone(query)
	query.Set("watch", "1")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", strconv.FormatInt(after, 10))
	query.Set("timeoutSeconds", strconv.Itoa(seconds))
	go func() {
		defer close(events)
		// The server's end of a watch comes from the server: this one is for a server that has forgotten it.
		ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+kubeTimeout)
		defer cancel()
		send := func(e kubeEvent, err error) bool {
			select {
			case events <- result[kubeEvent]{e, err}:
				return err == nil
			case <-ctx.Done():
				return false
			}
		}
		res, err := c.send(ctx, kubeCall{method: http.MethodGet, query: query}, false)
		if err != nil {
			send(kubeEvent{}, err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		for lines := json.NewDecoder(res.Body); ; {
			e, err := nextEvent(lines)
			if errors.Is(err, io.EOF) || !send(e, err) {
				return
			}
		}
	}()
	return events
}

// A result is a value or an error.
type result[T any] struct {
	value T
	err   error
}

func nextEvent(lines *json.Decoder) (e kubeEvent, err error) {
	if err := lines.Decode(&e); err != nil {
		return e, err
	}
	if e.Type == "ERROR" {
		return e, &kubeError{Code: e.Object.Code, Reason: "in a watch", Message: e.Object.Message}
	}
	e.version, err = e.Object.version()
	return e, err
}

// sleep waits unless ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
