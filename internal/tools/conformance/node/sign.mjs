// Signs a file with sigstore-js, as npm does for a package's provenance, and
// verifies the bundle against a trusted root with the same project's verifier.
//
//   node sign.mjs REQUEST.json
//
// REQUEST: {fulcioURL, tsaURL, token, file, trustedRoot, bundle, identity, issuer}
// where file, trustedRoot and bundle (written) are paths. Prints what the
// verifier says of the signer, and ends with status 1 if anything is refused.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

// All of these are CommonJS packages.
const require = createRequire(import.meta.url);
const { sign, attest } = require('sigstore');
const { bundleFromJSON } = require('@sigstore/bundle');
const { TrustedRoot } = require('@sigstore/protobuf-specs');
const { Verifier, toSignedEntity, toTrustMaterial } = require('@sigstore/verify');

const request = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const artifact = readFileSync(request.file);
const options = {
  fulcioURL: request.fulcioURL,
  tsaServerURL: request.tsaURL,
  identityToken: request.token,
  tlogUpload: false,
  retry: 0,
};
const trust = TrustedRoot.fromJSON(JSON.parse(readFileSync(request.trustedRoot, 'utf8')));
const verifier = new Verifier(toTrustMaterial(trust), {
  ctlogThreshold: 1,
  tlogThreshold: 0,
  timestampThreshold: 1,
});

function verify(json, data, policy) {
  return verifier.verify(toSignedEntity(bundleFromJSON(json), data), policy);
}

const policy = {
  subjectAlternativeName: request.identity,
  extensions: { issuer: request.issuer },
};

const signed = await sign(artifact, options);
writeFileSync(request.bundle, JSON.stringify(signed));
const { identity } = verify(signed, artifact, policy);
console.log(JSON.stringify({ signed: identity }));

const attested = await attest(artifact, 'text/plain', options);
verify(attested, undefined, policy);
console.log('attested');

// The verifier refuses what it must: somebody else's identity, and other bytes.
for (const [what, attempt] of [
  ['another identity', () => verify(signed, artifact, { ...policy, subjectAlternativeName: 'mallory@example.com' })],
  ['other bytes', () => verify(signed, Buffer.from('other bytes'), policy)],
]) {
  let refused = false;
  try {
    attempt();
  } catch {
    refused = true;
  }
  if (!refused) {
    console.error(`accepted ${what}`);
    process.exit(1);
  }
}
