// A certified OpenID provider that this project did not write, on a free port
// of 127.0.0.1, with one client ("sigstore", the audience of every Sigstore
// token) and one account. It prints its issuer URL on a line of its own once
// it listens, and ends when its standard input does.
//
//   node provider.mjs EMAIL
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const email = process.argv[2];
const server = createServer((request, response) => handler(request, response));
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: 'sigstore',
      application_type: 'native', // so that a loopback redirect may have any port
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code'],
      response_types: ['code'],
      redirect_uris: ['http://127.0.0.1/callback'],
    },
  ],
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  conformIdTokenClaims: false, // the e-mail address goes into the ID token, as Sigstore's clients need
  async findAccount(_, id) {
    return { accountId: id, claims: async () => ({ sub: id, email, email_verified: true }) };
  },
  cookies: { keys: ['only for this test'] },
});
const handler = provider.callback();

process.stdin.resume().on('end', () => process.exit(0));
console.log(issuer);
