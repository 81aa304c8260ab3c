package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"gatehouse/internal/reach"
)

// gatewayDelay is how long a gateway may take until it sends requests to a process that has just become ready.
const gatewayDelay = 15 * time.Second

// tryIssuer asks for the issuer's own discovery document over the network, and tells in the log where its URL leads. What
// is not right at once is asked for once more after delay. It holds up nothing, and changes nothing.
func tryIssuer(ctx context.Context, log *slog.Logger, c *http.Client, issuer *url.URL, delay time.Duration) {
	f := reach.Try(ctx, c, issuer)
	if f.Verdict != reach.Here {
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		f = reach.Try(ctx, c, issuer)
	}
	switch {
	case ctx.Err() != nil:
	case f.Verdict == reach.Here:
		log.InfoContext(ctx, "the issuer's URL leads here", "issuer", issuer.String())
	case f.Verdict == reach.Elsewhere:
		log.WarnContext(ctx, "the issuer's URL leads elsewhere, as seen from this process: where browsers see the same, nobody can sign in",
			"issuer", issuer.String(), "got", f.Got, "want", "the discovery document of this issuer", "fix", f.Fix)
	default:
		log.InfoContext(ctx, "the issuer's URL could not be tried: it does not answer this process, as is usual where pods cannot reach their own gateway; browsers must reach it",
			"issuer", issuer.String(), "got", f.Got)
	}
}
