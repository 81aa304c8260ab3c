package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/spf13/cobra"

	"gatehouse/authz"
	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/config"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/internal/seal"
	"gatehouse/provider/front"
	"gatehouse/web"
)

// explanation is what explain prints, and its JSON.
type explanation struct {
	Decision string            `json:"decision"` // allow, deny or sign-in
	Status   int               `json:"status"`   // of the answer to the browser; 200 where the request passes
	Rule     string            `json:"rule"`
	Line     int               `json:"line"` // of the rule in the file; 0 where none stands there
	Reason   string            `json:"reason"`
	Headers  map[string]string `json:"headers"` // that the app gets
}

func explainCommand() *cobra.Command {
	var path, user, groups, output string
	c := &cobra.Command{
		Use: "explain --config FILE [--user U --groups a,b] METHOD URL", Short: "Say what would happen to a request, by which rule, and why",
		Long: `Decide one request as the gateway would, for a browser, without asking a running gatehouse. Without --user nobody is
signed in. The exit code is 0 whatever the decision.

  gatehouse explain --config gatehouse.yaml GET https://app.example.com/admin/x
  gatehouse explain --config gatehouse.yaml --user alice@example.com --groups admins,dev GET https://app.example.com/admin/x`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := load(c.Context(), c, path)
			if err != nil {
				return err
			}
			cfg := l.cfg
			if cfg.Gateway == nil {
				return errors.New("explain: the file has no gateway block: there are no rules")
			}
			switch {
			case groups != "" && user == "":
				return errors.New("explain: --groups needs --user: groups are somebody's")
			case output != "" && output != "json":
				return fmt.Errorf("explain: -o %q: want json, or nothing", output)
			}
			e, err := explain(c.Context(), cfg, args[0], args[1], identityOf(user, groups))
			if err != nil {
				return err
			}
			if output == "json" {
				return json.NewEncoder(c.OutOrStdout()).Encode(e)
			}
			return e.write(c.OutOrStdout(), path)
		},
	}
	c.Flags().StringVar(&path, "config", "", "the configuration file (required)")
	c.Flags().StringVar(&user, "user", "", "who is signed in: an e-mail address, or connector:userID")
	c.Flags().StringVar(&groups, "groups", "", "the user's groups, separated by commas")
	c.Flags().StringVarP(&output, "output", "o", "", "json for programs")
	_ = c.MarkFlagRequired("config") // the flag is there
	return c
}

// identityOf makes the identity that --user and --groups describe; nil for nobody.
func identityOf(user, groups string) *policy.Identity {
	if user == "" {
		return nil
	}
	id := &policy.Identity{Connector: "local", UserID: user, Email: user, Name: user, Expiry: time.Now().Add(time.Hour)}
	if connector, userID, ok := strings.Cut(user, ":"); ok {
		id.Connector, id.UserID, id.Email = connector, userID, ""
	}
	for g := range strings.SplitSeq(groups, ",") {
		if g = strings.TrimSpace(g); g != "" {
			id.Groups = append(id.Groups, g)
		}
	}
	return id
}

// oneSession is a session.Store's worth of truth for one question.
type oneSession struct{ id *policy.Identity }

const explainSession = "explain"

// Lookup implements authz.Sessions.
func (o oneSession) Lookup(_ context.Context, id string, now time.Time) (*session.Session, error) {
	if o.id == nil || id != explainSession {
		return nil, session.ErrNotFound
	}
	return &session.Session{ID: id, Identity: *o.id, SignedInAt: now, AbsoluteExpiry: o.id.Expiry, IdleExpiry: o.id.Expiry}, nil
}

// SignOut implements authz.Ender.
func (oneSession) SignOut(context.Context, string) (string, error) { return "", nil }

// placeholder stands for tokens that only a running gatehouse can sign.
type placeholder struct{}

// SignAppToken implements authz.Signer.
func (placeholder) SignAppToken(c *authz.TokenClaims) (string, error) {
	return "<token for " + c.Audience + ">", nil
}

// explain asks the authorizer itself, with the file's configuration and one made-up session.
func explain(ctx context.Context, cfg *config.Config, method, target string, id *policy.Identity) (*explanation, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("explain: %q: want a whole URL, such as https://app.example.com/path", target)
	}
	srv, ring, err := explainer(cfg, oneSession{id})
	if err != nil {
		return nil, err
	}
	raw := rawPath(target)
	headers := map[string]string{
		":method": method, ":path": raw, ":authority": u.Host, "accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "none",
	}
	if host, ok := hosts.Canonical(u.Host); ok && id != nil {
		https, _ := cfg.Gateway.HostSet.Lookup(host)
		headers["cookie"] = handoff.Names(https).Session + "=" + handoff.SealCookie(ring, host, explainSession, time.Now())
	}
	resp, err := srv.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: method, Path: raw, Host: u.Host, Scheme: u.Scheme, Headers: headers},
	}}})
	if err != nil {
		return nil, err
	}
	e := explained(resp)
	req, err := policy.ParseRequest(method, u.Host, raw)
	switch {
	case err != nil:
		e.Reason += ": " + err.Error()
	case e.Rule != "":
		d := cfg.Gateway.Policy.Decide(req, id, time.Now())
		e.Line, e.Reason = d.Line, string(d.Reason)
	}
	if e.Rule == "" {
		e.Rule = "built-in"
	}
	return e, nil
}

// explainer is an authorizer with the file's configuration that knows one session, and the ring for its cookie.
func explainer(cfg *config.Config, one oneSession) (*authz.Server, *seal.Ring, error) {
	ring, err := seal.NewRing([][]byte{seal.NewKey()}, slices.Concat(front.Purposes(), authz.Purposes())...)
	if err != nil {
		return nil, nil, err
	}
	pages, err := web.New(web.Options{})
	if err != nil {
		return nil, nil, err
	}
	srv, err := authz.NewServer(authz.Options{Ring: ring, Sessions: one, Ender: one, Pages: gatewayPages{pages, "", ""}, Signer: placeholder{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	return srv, ring, srv.Apply(gatewayConfig(cfg, pages, "/auth"))
}

// rawPath is what stands behind the host of a URL, as it was written: url.URL would make it canonical.
func rawPath(target string) string {
	_, rest, _ := strings.Cut(target, "://")
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return rest[i:]
	}
	return "/"
}

// explained reads the authorizer's answer.
func explained(resp *authv3.CheckResponse) *explanation {
	e := &explanation{Decision: "deny", Headers: map[string]string{}}
	meta := resp.GetDynamicMetadata().GetFields()
	e.Rule, e.Reason = meta["rule"].GetStringValue(), meta["reason"].GetStringValue()
	switch d := meta["decision"].GetStringValue(); {
	case resp.GetOkResponse() != nil:
		e.Decision, e.Status = "allow", 200
		for _, h := range resp.GetOkResponse().GetHeaders() {
			e.Headers[h.GetHeader().GetKey()] = headerValue(h.GetHeader().GetValue(), h.GetHeader().GetRawValue())
		}
		delete(e.Headers, "cookie")
	default:
		if d == "sign-in" || d == "unauthenticated" {
			e.Decision = "sign-in"
		}
		e.Status = int(resp.GetDeniedResponse().GetStatus().GetCode())
	}
	return e
}

func headerValue(s string, raw []byte) string {
	if s != "" {
		return s
	}
	return string(raw)
}

func (e *explanation) write(w io.Writer, path string) error {
	where := path
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", path, e.Line)
	}
	_, err := fmt.Fprintf(w, "%s rule %s (%s)\nstatus %d, %s\n", strings.ToUpper(e.Decision), e.Rule, where, e.Status, e.Reason)
	names := make([]string, 0, len(e.Headers))
	for name := range e.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if _, err := fmt.Fprintf(w, "%s: %s\n", name, e.Headers[name]); err != nil {
			return err
		}
	}
	return err
}
