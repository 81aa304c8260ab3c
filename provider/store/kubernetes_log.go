package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// kubeTailSeconds is the shortest watch in which the API server says how far it has come: 2 s before its end (bookmarks, API concepts).
	kubeTailSeconds = 3
	// kubeLinger is how long Changes waits for more once it has something.
	kubeLinger = 10 * time.Millisecond
	// kubeWakeSeconds is how long Wake watches before it begins anew; the server's own limit is longer.
	kubeWakeSeconds = 240
	// kubeDeleters is how many deletions of Sweep and Trim are in flight at once.
	kubeDeleters = 8

	kubeMinPause = 100 * time.Millisecond
	kubeMaxPause = 5 * time.Second
)

// A span of the change log: what comes after from, up to upTo included.
type span struct{ from, upTo int64 }

// Head returns the resourceVersion that the cluster has come to, not that of the last entry: finding that one would mean to read all records.
func (d *kubernetesDriver) Head(ctx context.Context) (int64, error) {
	var list kubeList
	err := d.api.do(ctx, kubeCall{method: http.MethodGet, query: url.Values{"limit": {"1"}}, accept: kubeMetaOnlyList}, &list)
	if err != nil {
		return 0, err
	}
	o := kubeObject{Metadata: list.Metadata}
	return o.version()
}

// Changes watches from a place on until it has found something, or is sure that there was nothing when it was called: it waits, for a second or
// two, until the watch has come to where the cluster was then.
func (d *kubernetesDriver) Changes(ctx context.Context, after int64, limit int) ([]Change, error) {
	page, err := d.changes(ctx, after, limit)
	switch {
	case isKube(err, http.StatusGone):
		return nil, ErrTrimmed
	case err != nil:
		return nil, fmt.Errorf("store: kubernetes: read the change log: %w", err)
	}
	return page, nil
}

func (d *kubernetesDriver) changes(ctx context.Context, after int64, limit int) (page []Change, err error) {
	now, err := d.Head(ctx)
	if err != nil {
		return nil, err
	}
	// To a watch 0 means any place at all. A place that is yet to come is of a cluster that was set back since, by a backup of etcd.
	if after <= 0 || after > now {
		d.nothing(now, now)
		return nil, &kubeError{Code: http.StatusGone}
	}
	for at := d.past(after); ; {
		if at >= now {
			d.nothing(after, at)
			return nil, nil
		}
		if page, at, err = d.tail(ctx, at, now, limit); err != nil || len(page) > 0 {
			return page, err
		}
	}
}

// tail returns the changes of up to limit writes after a place, or how far it has come without finding any.
func (d *kubernetesDriver) tail(ctx context.Context, at, now int64, limit int) (page []Change, come int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := d.api.watch(ctx, url.Values{"labelSelector": {kubeLogged}}, at, kubeTailSeconds)
	for writes := 0; writes < limit && at < now; {
		var enough <-chan time.Time
		if writes > 0 {
			enough = time.After(kubeLinger)
		}
		select {
		case <-enough:
			return page, at, nil
		case e, ok := <-events:
			if !ok {
				return page, at, ctx.Err()
			}
			if e.err != nil {
				return nil, at, e.err
			}
			at = e.value.version
			if told := e.value.changes(); len(told) > 0 {
				page = append(page, told...)
				writes++
			}
		}
	}
	return page, at, nil
}

// changes returns what a line of a watch says in the change log.
func (e *kubeEvent) changes() (out []Change) {
	if e.Type != "ADDED" && e.Type != "MODIFIED" {
		return nil // DELETED: Sweep or Trim, or a write without an entry
	}
	for _, c := range e.Object.Spec.Changes {
		out = append(out, Change{
			Seq: e.version, Kind: c.Kind, ID: c.ID, UserID: c.UserID, ConnectorID: c.ConnectorID, Deleted: c.Deleted, At: time.Unix(0, c.At), Origin: c.Origin,
		})
	}
	return out
}

// past returns a place not before the given one, with nothing in between. Without it a reader in a quiet store would ask for a place that the API server has
// forgotten, since others write to the cluster.
func (d *kubernetesDriver) past(after int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.quiet.from <= after && after < d.quiet.upTo {
		return d.quiet.upTo
	}
	return after
}

// nothing remembers that the log has no entry between two places.
func (d *kubernetesDriver) nothing(after, upTo int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.quiet.from <= after && after <= d.quiet.upTo {
		d.quiet.upTo = max(d.quiet.upTo, upTo)
		return
	}
	d.quiet = span{after, upTo}
}

// Wake watches. It reads nothing of what it sees: Changes does.
func (d *kubernetesDriver) Wake(ctx context.Context, woken func()) {
	for fails := 0; ctx.Err() == nil; {
		if d.wakeOnce(ctx, woken) == nil {
			fails = 0
		}
		limit := min(kubeMaxPause, kubeMinPause<<min(fails, 10))
		_ = sleep(ctx, limit/2+rand.N(limit/2)) //nolint:gosec // G404: spreads load, guards nothing
		fails++
	}
}

// wakeOnce watches once, from now on.
func (d *kubernetesDriver) wakeOnce(ctx context.Context, woken func()) error {
	now, err := d.Head(ctx)
	if err != nil {
		return err
	}
	woken() // of what happened until now
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for e := range d.api.watch(ctx, url.Values{"labelSelector": {kubeLogged}}, now, kubeWakeSeconds) {
		if e.err != nil {
			return e.err
		}
		if len(e.value.changes()) > 0 {
			woken()
		}
	}
	return ctx.Err()
}

func (d *kubernetesDriver) Sweep(ctx context.Context, kind Kind, before time.Time, limit int) (int, error) {
	return d.forget(ctx, kubeKind+"="+string(kind)+","+kubeExpires+"<"+nanosBefore(before), limit)
}

// Trim deletes what is left of deleted records. The rest of the change log the API server forgets by itself.
func (d *kubernetesDriver) Trim(ctx context.Context, before time.Time, limit int) (int, error) {
	return d.forget(ctx, kubeGone+"<"+nanosBefore(before), limit)
}

// nanosBefore is a time in a selector: those whose nanoseconds are less are before it.
func nanosBefore(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }

// forget deletes up to limit of the selected objects and returns how many; one that changes meanwhile stays. It reads no data, and not more than it deletes.
func (d *kubernetesDriver) forget(ctx context.Context, selector string, limit int) (int, error) {
	var n atomic.Int64
	for page, err := range d.pages(ctx, selector, limit, kubeMetaOnlyList) {
		if err != nil {
			return int(n.Load()), fmt.Errorf("store: kubernetes: %w", err)
		}
		page = page[:min(len(page), limit-int(n.Load()))]
		if err := d.deleteAll(ctx, page, &n); err != nil {
			return int(n.Load()), fmt.Errorf("store: kubernetes: %w", err)
		}
		if int(n.Load()) >= limit {
			break
		}
	}
	return int(n.Load()), nil
}

// deleteAll deletes objects that are still of the version that was listed, and counts.
func (d *kubernetesDriver) deleteAll(ctx context.Context, page []kubeObject, n *atomic.Int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(kubeDeleters)
	for _, o := range page {
		g.Go(func() error {
			err := d.api.do(ctx, kubeCall{
				method: http.MethodDelete, name: o.Metadata.Name,
				body: map[string]any{"preconditions": map[string]string{"resourceVersion": o.Metadata.ResourceVersion}},
			}, nil)
			if isNoLonger(err) {
				return nil
			}
			if err == nil {
				n.Add(1)
			}
			return err
		})
	}
	return g.Wait()
}
