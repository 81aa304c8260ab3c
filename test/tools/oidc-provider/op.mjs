// The upstream identity provider of the tests: oidc-provider, certified, with a scripted user in place of its pages.
//
//   OIDC_PROVIDER_SETTINGS='{"clients": [client metadata], "users": [{sub, email, name, groups}]}' node op.mjs
//
// The first user is signed in until told otherwise. It listens on a free loopback port and
// prints "issuer http://127.0.0.1:PORT". PUT /control {next: {account} | {error, error_description}, users: […]}
// sets what the user does at the following sign-ins, and who exists; each part is optional. {token: ""} has the token endpoint work,
// {token: "down"} fail, {token: "invalid_client"} know the client no more, and {token: "stall"} keep refreshes waiting until that changes: those
// whose client has gone away meanwhile never happen. {revoke: sub} revokes a user's refresh tokens, {revokeLast: sub} those of the last sign-in. GET /control tells of refreshes:
// {refreshes: [{sub, at}], refused: n, reused: n}. With "rotate": true in the settings each refresh token is good once.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';
import Provider, { errors, interactionPolicy } from 'oidc-provider';

const settings = JSON.parse(process.env.OIDC_PROVIDER_SETTINGS);
let users = new Map(settings.users.map((user) => [user.sub, user]));
let next = { account: settings.users[0]?.sub };
let token = '';
let stalled = [];
const seen = { refreshes: [], refused: 0, reused: 0, stalled: 0 };
const grants = new Map(); // of refresh tokens, by user

const server = createServer();
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const issuer = `http://127.0.0.1:${server.address().port}`;

// Asked again whenever the script has changed, even in a browser that is signed in here.
const policy = interactionPolicy.base();
policy.get('login').checks.add(new interactionPolicy.Check('scripted', 'the script decides', (ctx) => (
  Boolean(next.error) || ctx.oidc.session.accountId !== next.account
)));

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const provider = new Provider(issuer, {
  clients: settings.clients,
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid: 'test', alg: 'RS256', use: 'sig' }] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  fetch: (url, options) => globalThis.fetch(url, { ...options, dispatcher: undefined }), // which would not go to a relying party on the loopback
  scopes: ['openid', 'offline_access', 'email', 'profile', 'groups'],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'preferred_username'], groups: ['groups'] },
  conformIdTokenClaims: false, // a relying party finds the claims in the ID Token, as with most providers
  features: {
    devInteractions: { enabled: false },
    revocation: { enabled: true },
    introspection: { enabled: true },
    backchannelLogout: { enabled: true },
    rpInitiatedLogout: {
      // Without a person to ask: the form is sent at once.
      logoutSource: (ctx, form) => {
        ctx.body = `<!doctype html><title>Sign out</title>${form.replace('</form>', '<input type="hidden" name="logout" value="yes"></form>')}`
          + '<script>document.forms[0].submit()</script>';
      },
    },
  },
  pkce: { required: () => false },
  ...(settings.rotate && { rotateRefreshToken: true }),
  ttl: { AccessToken: 3600, AuthorizationCode: 60, IdToken: 3600, Interaction: 600, Session: 86400, Grant: 86400, RefreshToken: 86400 },
  interactions: { policy, url: (_, interaction) => `/interaction/${interaction.uid}` },
  async findAccount(_, sub) {
    const user = users.get(sub);
    return user && {
      accountId: sub,
      claims: () => ({ preferred_username: user.sub, email_verified: true, ...user }),
    };
  },
  // The user has consented to whatever a client asks for.
  async loadExistingGrant(ctx) {
    const grant = new provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
    grant.addOIDCScope('openid offline_access email profile groups');
    await grant.save();
    return grant;
  },
  renderError(ctx, out) {
    ctx.type = 'json';
    ctx.body = out;
  },
});

// The user answers every question at once, as `next` says.
async function interact(req, res) {
  const interaction = await provider.interactionDetails(req, res);
  if (interaction.session?.accountId && interaction.session.accountId !== next.account) {
    // Another user at the same browser: oidc-provider would ask its page's script to sign the first one out.
    const session = await provider.Session.findByUid(interaction.session.uid);
    delete session.accountId;
    delete session.authorizations;
    await session.save(86400);
    delete interaction.session.accountId;
    await interaction.save(600);
  }
  let result = next;
  if (!next.error) result = interaction.prompt.name === 'login' ? { login: { accountId: next.account } } : { consent: {} };
  await provider.interactionFinished(req, res, result, { mergeWithLastSubmission: false });
}

async function control(req, res) {
  const change = JSON.parse(await text(req));
  if (change.next) next = change.next;
  if (change.token !== undefined) {
    token = change.token;
    stalled.splice(0).forEach((go) => go());
  }
  if (change.revoke) {
    for (const id of grants.get(change.revoke) ?? []) await provider.RefreshToken.revokeByGrantId(id);
  }
  if (change.revokeLast) await provider.RefreshToken.revokeByGrantId([...grants.get(change.revokeLast)].at(-1));
  if (change.users) users = new Map(change.users.map((user) => [user.sub, user]));
  res.writeHead(204).end();
}

provider.on('refresh_token.saved', ({ accountId, grantId }) => {
  grants.set(accountId, (grants.get(accountId) ?? new Set()).add(grantId));
});
provider.on('refresh_token.consumed', ({ accountId }) => seen.refreshes.push({ sub: accountId, at: Date.now() }));
provider.on('grant.error', (ctx, err) => {
  if (ctx.oidc.params?.grant_type !== 'refresh_token') return;
  seen.refused += 1;
  if (err.error_detail === 'refresh token already used') seen.reused += 1;
});

// The token endpoint as the script wants it; for the rest of the script it is oidc-provider's.
async function tokenEndpoint(req, res) {
  if (token === 'stall') {
    seen.stalled += 1;
    await new Promise((go) => { stalled.push(go); res.on('close', go); });
    seen.stalled -= 1;
    if (res.destroyed || res.closed) return;
  }
  const failures = { down: [503, 'server_error'], invalid_client: [401, 'invalid_client'] };
  if (!failures[token]) {
    callback(req, res);
    return;
  }
  const [status, error] = failures[token];
  res.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify({ error }));
}

const callback = provider.callback();
server.on('request', (req, res) => {
  const fail = (err) => {
    console.error(err);
    if (!res.headersSent) res.writeHead(err instanceof errors.OIDCProviderError ? err.statusCode : 500);
    res.end(`${err.message}\n`);
  };
  if (req.url.startsWith('/interaction/')) interact(req, res).catch(fail);
  else if (req.url === '/control' && req.method === 'PUT') control(req, res).catch(fail);
  else if (req.url === '/control') res.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(seen));
  else if (req.url === '/token') tokenEndpoint(req, res).catch(fail);
  else callback(req, res);
});
provider.on('server_error', (_, err) => console.error(err));
provider.on('backchannel.error', (_, err) => console.error(err));
process.on('SIGTERM', () => process.exit(0));
console.log(`issuer ${issuer}`);
