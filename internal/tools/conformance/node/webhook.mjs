// A receiver of webhooks, which verifies each with the library of Standard Webhooks
// that this project did not write. It prints its URL on a line of its own once it
// listens, then each message as a line of JSON, {verified, body}, and ends when its
// standard input does. It answers 503 until a GET of /up.
//
//   node webhook.mjs SECRET
import { createServer } from 'node:http';
import { Webhook } from 'standardwebhooks';

const webhook = new Webhook(process.argv[2]);
let up = false;

const server = createServer((request, response) => {
  if (request.method === 'GET') {
    up = request.url === '/up';
    response.end();
    return;
  }
  let body = '';
  request.setEncoding('utf8');
  request.on('data', (part) => {
    body += part;
  });
  request.on('end', () => {
    if (!up) {
      response.writeHead(503).end();
      return;
    }
    let verified = true;
    try {
      webhook.verify(body, request.headers);
    } catch {
      verified = false;
    }
    console.log(JSON.stringify({ verified, body: JSON.parse(body) }));
    response.writeHead(verified ? 204 : 401).end();
  });
});
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/`));
process.stdin.resume().on('end', () => process.exit(0));
