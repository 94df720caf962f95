// A certified OpenID provider that this project did not write, on a free port
// of 127.0.0.1, with one client ("sigstore", the audience of every Sigstore
// token) and one account. It prints its issuer URL on a line of its own once
// it listens, and ends when its standard input does.
//
//   node provider.mjs EMAIL [CLAIMS.json]
//
// Beside the provider's own endpoints:
//
//   POST /control/rotate   a new key signs from now on; those before stay published
//   POST /control/retire   only the key that signs stays published
//   GET  /control/reads    how often the published keys were read
//   GET  /job/token?audience=A   what a CI vendor's runner gives a job: a token for A
//                          with the claims of the file (Authorization: Bearer job)
import { generateKeyPair, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { promisify } from 'node:util';
import { Provider } from 'oidc-provider';

const keysPath = '/jwks';
const maxAge = 60; // seconds that readers may keep the keys; rotation_test.go counts on it

const [email, claimsFile] = process.argv.slice(2);
let handler;
let keys = [];
let reads = 0;

// Store keeps codes, grants and sessions outside of a Provider, so that one with
// other keys carries on with them. It forgets nothing: a test is short.
const stored = new Map();
class Store {
  constructor(model) {
    this.model = model;
  }
  async upsert(id, payload) {
    stored.set(`${this.model}:${id}`, payload);
  }
  async find(id) {
    return stored.get(`${this.model}:${id}`);
  }
  async findByUid(uid) {
    return [...stored.values()].find((payload) => payload.uid === uid);
  }
  async consume(id) {
    stored.get(`${this.model}:${id}`).consumed = Math.floor(Date.now() / 1000);
  }
  async destroy(id) {
    stored.delete(`${this.model}:${id}`);
  }
  async revokeByGrantId(grant) {
    for (const [key, payload] of stored) if (payload.grantId === grant) stored.delete(key);
  }
}

// provider has one client, whose id is the audience of its tokens.
function provider(clientID) {
  return new Provider(issuer, {
    adapter: Store,
    jwks: { keys },
    clients: [
      {
        client_id: clientID,
        application_type: 'native', // so that a loopback redirect may have any port
        token_endpoint_auth_method: 'none',
        grant_types: ['authorization_code'],
        response_types: ['code'],
        redirect_uris: ['http://127.0.0.1/callback', 'http://127.0.0.1/login/callback'],
      },
    ],
    claims: { openid: ['sub'], email: ['email', 'email_verified'] },
    conformIdTokenClaims: false, // the e-mail address goes into the ID token, as Sigstore's clients need
    async findAccount(_, id) {
      return { accountId: id, claims: async () => ({ sub: id, email: id === 'mallory' ? 'mallory@example.com' : email, email_verified: true }) };
    },
    cookies: { keys: ['only for this test'] },
  });
}

function serveKeys() {
  handler = provider('sigstore').callback();
}

async function jobToken(request, response) {
  if (request.headers.authorization?.toLowerCase() !== 'bearer job') {
    response.statusCode = 401;
    response.end();
    return;
  }
  const audience = new URL(request.url, issuer).searchParams.get('audience');
  const vendor = provider(audience);
  const { sub, ...claims } = JSON.parse(readFileSync(claimsFile, 'utf8'));
  const token = new vendor.IdToken({ sub }, { client: await vendor.Client.find(audience) });
  token.scope = 'openid';
  for (const [name, value] of Object.entries({ ...claims, sub, jti: randomUUID() })) token.set(name, value);
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify({ value: await token.issue({ use: 'idtoken' }) }));
}

async function rotate() {
  const { privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 2048 });
  keys = [{ ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' }, ...keys];
  serveKeys();
}

async function control(request, response) {
  switch (`${request.method} ${request.url}`) {
    case 'POST /control/rotate':
      await rotate();
      break;
    case 'POST /control/retire':
      keys = keys.slice(0, 1);
      serveKeys();
      break;
    case 'GET /control/reads':
      break;
    default:
      response.statusCode = 404;
  }
  response.end(JSON.stringify({ keys: keys.length, reads }));
}

const server = createServer((request, response) => {
  if (request.url.startsWith('/control/')) {
    control(request, response);
    return;
  }
  if (request.url.startsWith('/job/token?')) {
    jobToken(request, response);
    return;
  }
  if (request.url === keysPath) {
    reads += 1;
    response.setHeader('Cache-Control', `max-age=${maxAge}`);
  }
  handler(request, response);
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
await rotate();

process.stdin.resume().on('end', () => process.exit(0));
console.log(issuer);
