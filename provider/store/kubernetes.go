package store

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dexidp/dex/storage"
)

const (
	kubeGroup    = "gatehouse.internal"
	kubeResource = "records" // see deploy/store-kubernetes/crd.yaml
	// kubePage is how many records a scan reads at once.
	kubePage = 200
	// kubeMaxData is the longest Record.Data in bytes. In base64 it fits into the 1.5 MiB that etcd takes in a request by default.
	kubeMaxData = 1 << 20
)

// Labels, by which the API server selects. Their values are hashes, numbers and names of kinds, never a text from outside.
const (
	kubeKind    = kubeGroup + "/kind"    // of a live record; a deleted one has lost it
	kubeOwner   = kubeGroup + "/owner"   // hash of the owner
	kubeExpires = kubeGroup + "/expires" // Unix nanoseconds
	kubeLogged  = kubeGroup + "/logged"  // the last write of the record is in the change log
	kubeGone    = kubeGroup + "/gone"    // when a record that was deleted may be forgotten, as kubeExpires
)

// kubernetesDriver is a Driver over the Kubernetes API: one object of a resource of ours is one record.
//
// The API has no transactions over several objects, so that an entry of the change log is in the object whose change it tells of: one write is both. Record.Version
// and Change.Seq are the object's resourceVersion, which is the revision of etcd: it grows with each write in the cluster, is never used twice, and is compared as a
// number (KEP-5504 "Comparable Resource Version"; API concepts, "Resource versions"). The change log is what a watch tells after a resourceVersion, for as long as
// the API server keeps it (a minute or more): then ErrTrimmed. A record whose deletion is logged becomes an object without data that says so, until Trim.
//
// A Write of several changes is not all or nothing: see Sequential.
type kubernetesDriver struct {
	api *kubeClient

	mu    sync.Mutex
	quiet span // of the change log, which has no entry in it; guarded by mu
}

// A kubeObject is a record as the API has it.
type kubeObject struct {
	APIVersion string   `json:"apiVersion,omitempty"`
	Kind       string   `json:"kind,omitempty"`
	Metadata   kubeMeta `json:"metadata"`
	Spec       kubeSpec `json:"spec"`
}

type kubeMeta struct {
	Name            string            `json:"name,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Continue        string            `json:"continue,omitempty"` // of a list
}

type kubeSpec struct {
	Kind    Kind         `json:"kind"`
	ID      string       `json:"id"`
	Owner   string       `json:"owner,omitempty"`
	Expires int64        `json:"expires,omitempty"` // Unix nanoseconds
	Data    []byte       `json:"data,omitempty"`
	Changes []kubeChange `json:"changes,omitempty"`
	// Write is another with each write: the API server does not make an update that changes nothing, and the version would not move.
	Write string `json:"write"`
}

type kubeChange struct {
	Kind        Kind   `json:"kind"`
	ID          string `json:"id"`
	UserID      string `json:"user,omitempty"`
	ConnectorID string `json:"connector,omitempty"`
	Deleted     bool   `json:"deleted,omitempty"`
	At          int64  `json:"at"` // Unix nanoseconds
	Origin      string `json:"origin,omitempty"`
}

type kubeList struct {
	Metadata kubeMeta     `json:"metadata"`
	Items    []kubeObject `json:"items"`
}

// OpenKubernetes returns a Store in the Kubernetes API. Its resource and the rights on it must be there: deploy/store-kubernetes. Errors say what to do.
func OpenKubernetes(ctx context.Context, c KubernetesConfig, o Options) (*Store, error) {
	d, err := OpenKubernetesDriver(ctx, c)
	if err != nil {
		return nil, err
	}
	return newOrClose(ctx, d, o)
}

// OpenKubernetesDriver returns the Driver of OpenKubernetes.
func OpenKubernetesDriver(ctx context.Context, c KubernetesConfig) (Driver, error) {
	api, where, err := c.client()
	if err != nil {
		return nil, fmt.Errorf("store: kubernetes: %w", err)
	}
	d := &kubernetesDriver{api: api}
	_, err = d.Head(ctx)
	switch {
	case isKube(err, http.StatusUnauthorized):
		err = fmt.Errorf("%s: it does not know who we are: check the token: %w", where, err)
	case isKube(err, http.StatusForbidden):
		err = fmt.Errorf("%s: apply deploy/store-kubernetes/rbac.yaml there: %w", where, err)
	case isKube(err, http.StatusNotFound):
		err = fmt.Errorf("%s: apply deploy/store-kubernetes/crd.yaml: %w", where, err)
	case err != nil:
		err = fmt.Errorf("%s: %w", where, err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store: kubernetes: %w", err), d.Close())
	}
	return d, nil
}

// Sequential says what Write is not.
func (d *kubernetesDriver) Sequential() {}

func (d *kubernetesDriver) Close() error {
	d.api.http.CloseIdleConnections()
	return nil
}

// kubeHash makes a name or label of texts from outside: 52 lower-case letters and digits.
func kubeHash(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(t), t) // a hash returns no error
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)))
}

func kubeName(kind Kind, id string) string { return kubeHash(string(kind), id) }

func (o *kubeObject) version() (int64, error) {
	v, err := strconv.ParseInt(o.Metadata.ResourceVersion, 10, 64)
	if err != nil || v <= 0 {
		return 0, fmt.Errorf("the API server's resourceVersion %q is no positive number", o.Metadata.ResourceVersion)
	}
	return v, nil
}

// isGone reports whether the object only says that the record was deleted.
func (o *kubeObject) isGone() bool { return o.Metadata.Labels[kubeKind] == "" }

func (o *kubeObject) record() (Record, error) {
	s := o.Spec
	v, err := o.version()
	if err != nil {
		return Record{}, err
	}
	if kubeName(s.Kind, s.ID) != o.Metadata.Name {
		return Record{}, fmt.Errorf("object %s is not the record that its name says: restore it or delete it", o.Metadata.Name)
	}
	return Record{Kind: s.Kind, ID: s.ID, Owner: s.Owner, Version: v, Expires: fromNanos(s.Expires), Data: s.Data}, nil
}

// objectOf returns the object for a record and what its write says.
func objectOf(op Op) kubeObject {
	r := op.Record
	o := kubeObject{
		APIVersion: kubeGroup + "/v1",
		Kind:       "Record",
		Metadata:   kubeMeta{Name: kubeName(r.Kind, r.ID), Labels: map[string]string{kubeKind: string(r.Kind)}},
		Spec:       kubeSpec{Kind: r.Kind, ID: r.ID, Owner: r.Owner, Expires: toNanos(r.Expires), Data: r.Data, Changes: changesOf(op), Write: nonce()},
	}
	if r.Owner != "" {
		o.Metadata.Labels[kubeOwner] = kubeHash(r.Owner)
	}
	if o.Spec.Expires != 0 {
		o.Metadata.Labels[kubeExpires] = strconv.FormatInt(o.Spec.Expires, 10)
	}
	if len(op.Changes) > 0 {
		o.Metadata.Labels[kubeLogged] = "1"
	}
	return o
}

// nonce differs from that of the write before.
func nonce() string { return strconv.FormatUint(rand.Uint64(), 36) } //nolint:gosec // G404: guards nothing

func changesOf(op Op) (out []kubeChange) {
	for _, c := range op.Changes {
		out = append(out, kubeChange{Kind: c.Kind, ID: c.ID, UserID: c.UserID, ConnectorID: c.ConnectorID, Deleted: c.Deleted, At: c.At.UnixNano(), Origin: c.Origin})
	}
	return out
}

// get returns an object, one that is gone included; storage.ErrNotFound if there is none.
func (d *kubernetesDriver) get(ctx context.Context, name string) (kubeObject, error) {
	var o kubeObject
	err := d.api.do(ctx, kubeCall{method: http.MethodGet, name: name}, &o)
	if isKube(err, http.StatusNotFound) {
		return o, storage.ErrNotFound
	}
	return o, err
}

func (d *kubernetesDriver) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	o, err := d.get(ctx, kubeName(kind, id))
	if errors.Is(err, storage.ErrNotFound) || (err == nil && o.isGone()) {
		return Record{}, storage.ErrNotFound
	}
	var r Record
	if err == nil {
		r, err = o.record()
	}
	if err != nil {
		return Record{}, fmt.Errorf("store: kubernetes: read %s: %w", kind, err)
	}
	return r, nil
}

func (d *kubernetesDriver) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	selector := kubeKind + "=" + string(q.Kind)
	if q.Owner != "" {
		selector += "," + kubeOwner + "=" + kubeHash(q.Owner)
	}
	return func(yield func(Record, error) bool) {
		for page, err := range d.pages(ctx, selector, kubePage, "") {
			if err != nil {
				yield(Record{}, fmt.Errorf("store: kubernetes: list %s: %w", q.Kind, err))
				return
			}
			for i := range page {
				r, err := page[i].record()
				if err != nil {
					yield(Record{}, fmt.Errorf("store: kubernetes: list %s: %w", q.Kind, err))
					return
				}
				if q.Owner != "" && r.Owner != q.Owner {
					continue
				}
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// pages yields the selected objects, some at a time, and ends after an error.
func (d *kubernetesDriver) pages(ctx context.Context, selector string, size int, accept string) iter.Seq2[[]kubeObject, error] {
	return func(yield func([]kubeObject, error) bool) {
		query := url.Values{"labelSelector": {selector}, "limit": {strconv.Itoa(size)}}
		for {
			var list kubeList
			err := d.api.do(ctx, kubeCall{method: http.MethodGet, query: query, accept: accept}, &list)
			// The caller was so slow that the server has forgotten what there was at the beginning: it goes on with what there is now, after the
			// same name (API concepts, "Retrieving large results sets in chunks").
			if e := (*kubeError)(nil); errors.As(err, &e) && e.Code == http.StatusGone && e.Metadata.Continue != "" {
				query.Set("continue", e.Metadata.Continue)
				continue
			}
			if !yield(list.Items, err) || err != nil || list.Metadata.Continue == "" {
				return
			}
			query.Set("continue", list.Metadata.Continue)
		}
	}
}

// Write makes the changes one after the other.
func (d *kubernetesDriver) Write(ctx context.Context, ops []Op) (int64, error) {
	var seq int64
	for i, op := range ops {
		version, err := d.apply(ctx, op)
		switch {
		case err == nil:
		case i > 0 && isOutcome(err):
			return 0, fmt.Errorf("store: kubernetes: change %d of %d was refused (%v) after those before it were made", i+1, len(ops), err) //nolint:errorlint // an outcome would say that nothing was written
		case isOutcome(err):
			return 0, err
		default:
			return 0, fmt.Errorf("store: kubernetes: write %s: %w", op.Record.Kind, err)
		}
		if len(op.Changes) > 0 {
			seq = version
		}
	}
	return seq, nil
}

// apply makes one change and returns the version that it leads to, 0 if it leaves nothing.
func (d *kubernetesDriver) apply(ctx context.Context, op Op) (int64, error) {
	if n := len(op.Record.Data); n > kubeMaxData {
		return 0, fmt.Errorf("it has %d bytes, and at most %d fit into an object: use another storage type", n, kubeMaxData)
	}
	for try := range maxTries {
		var version int64
		var err error
		switch op.Verb {
		case Create:
			version, err = d.create(ctx, op)
		case Put:
			return d.put(ctx, op)
		case Delete:
			version, err = d.remove(ctx, op)
		default:
			return 0, fmt.Errorf("store: unknown verb %d", op.Verb)
		}
		if !errors.Is(err, errKubeRaced) {
			return version, err
		}
		if err := pause(ctx, try); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("the record was changed by others %d times in a row", maxTries)
}

// errKubeRaced means that another was faster in a way that says nothing about the outcome: nothing was written, and it is worth another try.
var errKubeRaced = errors.New("another write came between")

// written makes a call that writes an object and returns its version.
func (d *kubernetesDriver) written(ctx context.Context, call kubeCall) (int64, error) {
	call.accept = kubeMetaOnly
	var o kubeObject
	if err := d.api.do(ctx, call, &o); err != nil {
		return 0, err
	}
	return o.version()
}

func (d *kubernetesDriver) create(ctx context.Context, op Op) (int64, error) {
	o := objectOf(op)
	version, err := d.written(ctx, kubeCall{method: http.MethodPost, body: o})
	if !isKube(err, http.StatusConflict) {
		return version, err
	}
	// There is an object; it may be of a record that is gone.
	old, err := d.get(ctx, o.Metadata.Name)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return 0, errKubeRaced
	case err != nil:
		return 0, err
	case !old.isGone():
		return 0, storage.ErrAlreadyExists
	}
	o.Metadata.ResourceVersion = old.Metadata.ResourceVersion
	version, err = d.written(ctx, kubeCall{method: http.MethodPut, name: o.Metadata.Name, body: o})
	if isKube(err, http.StatusConflict) || isKube(err, http.StatusNotFound) {
		return 0, errKubeRaced
	}
	return version, err
}

func (d *kubernetesDriver) put(ctx context.Context, op Op) (int64, error) {
	o := objectOf(op)
	o.Metadata.ResourceVersion = strconv.FormatInt(op.Record.Version, 10)
	version, err := d.written(ctx, kubeCall{method: http.MethodPut, name: o.Metadata.Name, body: o})
	switch {
	case isKube(err, http.StatusNotFound):
		return 0, storage.ErrNotFound
	case !isKube(err, http.StatusConflict):
		return version, err
	}
	now, err := d.get(ctx, o.Metadata.Name)
	switch {
	case err != nil:
		return 0, err // ErrNotFound as it is
	case now.isGone():
		return 0, storage.ErrNotFound
	}
	return 0, ErrConflict
}

// remove deletes a record. If the log is to tell of it, the object stays behind without its data: the log's entry must be in the same write.
func (d *kubernetesDriver) remove(ctx context.Context, op Op) (int64, error) {
	name := kubeName(op.Record.Kind, op.Record.ID)
	if len(op.Changes) == 0 {
		err := d.api.do(ctx, kubeCall{method: http.MethodDelete, name: name}, nil)
		switch {
		case isKube(err, http.StatusNotFound):
			return 0, storage.ErrNotFound
		case isKube(err, http.StatusConflict):
			return 0, errKubeRaced
		}
		return 0, err
	}
	var at time.Time
	for _, c := range op.Changes {
		if c.At.After(at) {
			at = c.At
		}
	}
	// One call, whatever the version, and only if the record still lives: a JSON patch (RFC 6902) with a test.
	version, err := d.written(ctx, kubeCall{
		method: http.MethodPatch, name: name, contentType: "application/json-patch+json",
		body: []map[string]any{
			{"op": "test", "path": "/metadata/labels/" + strings.ReplaceAll(kubeKind, "/", "~1"), "value": op.Record.Kind},
			{"op": "replace", "path": "/metadata/labels", "value": map[string]string{kubeLogged: "1", kubeGone: strconv.FormatInt(at.UnixNano(), 10)}},
			{"op": "replace", "path": "/spec", "value": kubeSpec{Kind: op.Record.Kind, ID: op.Record.ID, Changes: changesOf(op), Write: nonce()}},
		},
	})
	switch {
	case isKube(err, http.StatusNotFound):
		return 0, storage.ErrNotFound
	case isKube(err, http.StatusConflict):
		return 0, errKubeRaced
	case !isKube(err, http.StatusUnprocessableEntity):
		return version, err
	}
	now, gone := d.get(ctx, name)
	if errors.Is(gone, storage.ErrNotFound) || (gone == nil && now.isGone()) {
		return 0, storage.ErrNotFound
	}
	return 0, errors.Join(err, gone)
}
