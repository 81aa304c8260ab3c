// Package authz answers Envoy's external authorization (ext_authz v3, gRPC): it turns a CheckRequest into
// an answer, with the session view, the policy and the pages that it is given.
//
// # One request
//
// A request is normalised first: what two programs could read differently is refused with 400, a host that is
// not listed with 403. Then, in this order: the issuer's own path on the issuer's own host passes for anyone;
// Gatehouse's own paths are answered here and never reach an app; for everything else the caller is found out,
// the policy decides, and the answer is 200 with identity headers, a redirect to sign in, 401, 403 or 503. Check never
// returns a gRPC error, since the failure mode of the proxy would then decide.
//
// What comes over the network is not made a message: the few fields that a check needs are read from its bytes in place, with
// the meaning that proto.Unmarshal gives them, and the answer is written by hand. A check allocates the answer and, where the
// request has other cookies than ours, the Cookie header; a test holds it to that.
//
// # What an app sees
//
// On every allow each identity header is set from the session or removed, never left as the client sent it; so
// are all names that an app could read as one of them (kubeflow_userid, kubeflow.userid). Our cookies are cut
// out of Cookie. The issuer's own path gets Cookie and Authorization unchanged.
//
// Values of identity headers are printable ASCII. A byte outside 0x21 to 0x7e and the percent sign are written
// as %XX (inner spaces stay), always, so that two users never share a value and an app may simply
// percent-decode. Groups are joined by commas; a group whose name has a comma or a control character is left out
// and counted, since it could be read as two groups.
//
// # The token for the app
//
// With Config.Token an app gets a signed token as well, in a header that is ours like the others: set for a user, removed for
// everybody else. A Signer makes it when a session first needs one, and behind the checks from half of its life on; it is kept with
// the session, by host where each has its own audience. Without it a user's request is refused (503), never passed. Here it is no
// credential: as a bearer token it is invalid like any other.
//
// # Authorization
//
// No audience for bearer tokens can be configured here, so every bearer token is invalid: a request that carries one
// and needs a sign-in gets 401, with a good session cookie too (no silent fall back from one credential to
// another). Where a rule allows anyone, it passes as anonymous. On every allow outside the issuer's path the
// client's Authorization header is removed, or has the token for the app in its place, whatever its scheme: an app behind the gateway must not take for
// checked what nobody checked.
//
// # Sign-out by GET
//
// A GET of the sign-out path shows a page that asks, unless the browser says that the navigation of a whole tab
// was started by a page of the same origin (Sec-Fetch-Site: same-origin, Sec-Fetch-Mode: navigate,
// Sec-Fetch-Dest: document): that signs out at once, because Kubeflow's dashboard signs out by such a GET.
// Another site cannot send these headers, nor can an image or a frame.
//
// # Answers by kind of client
//
// A navigation (GET or HEAD) is redirected to sign in. A script (fetch, XMLHttpRequest, WebSocket, gRPC) gets 401 with
// a JSON body that names the login URL; Envoy turns 401 into the gRPC status UNAUTHENTICATED for a gRPC client.
// Config.Clients decides for a caller that is neither.
package authz
