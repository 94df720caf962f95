// Signs and verifies with sigstore-js, as npm does.
//
//   node sigstore.mjs sign|attest TRUSTED_ROOT SIGNING_CONFIG TOKEN BUNDLE FILE
//   node sigstore.mjs verify TRUSTED_ROOT SIGNING_CONFIG ISSUER NAME BUNDLE FILE
//
// TOKEN is a file. Where TRUSTED_ROOT is a URL, it is that of a TUF repository, and
// SIGNING_CONFIG the root file to start from. A refusal ends with status 1.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

// All of these are CommonJS packages.
const require = createRequire(import.meta.url);
const { bundleFromJSON, bundleToJSON } = require('@sigstore/bundle');
const { SigningConfig, TrustedRoot } = require('@sigstore/protobuf-specs');
const { bundleBuilderFromSigningConfig } = require('@sigstore/sign');
const { initTUF } = require('@sigstore/tuf');
const { Verifier, toSignedEntity, toTrustMaterial } = require('@sigstore/verify');

async function documents(root, config) {
  if (root.startsWith('http')) {
    const tuf = await initTUF({ mirrorURL: root, rootPath: config, cachePath: join(process.env.HOME, 'tuf-js'), retry: 0 });
    const targets = ['trusted_root.json', 'signing_config.v0.2.json'];
    return Promise.all(targets.map(async (name) => JSON.parse(await tuf.getTarget(name))));
  }
  return [root, config].map((file) => JSON.parse(readFileSync(file, 'utf8')));
}

const [what, root, config, ...args] = process.argv.slice(2);
const [trustedRoot, signingConfig] = await documents(root, config);
if (what === 'verify') {
  verify(...args);
} else {
  await sign(...args);
}

async function sign(token, bundle, file) {
  const builder = bundleBuilderFromSigningConfig({
    signingConfig: SigningConfig.fromJSON(signingConfig),
    identityProvider: { getToken: async () => readFileSync(token, 'utf8').trim() },
    bundleType: what === 'attest' ? 'dsseEnvelope' : 'messageSignature',
    fetchOptions: { retry: 0, timeout: 20_000 },
  });
  const signed = await builder.create({ data: readFileSync(file), type: 'text/plain' });
  writeFileSync(bundle, JSON.stringify(bundleToJSON(signed)));
}

function verify(issuer, name, bundle, file) {
  const trust = TrustedRoot.fromJSON(trustedRoot);
  const verifier = new Verifier(toTrustMaterial(trust), {
    ctlogThreshold: 1,
    tlogThreshold: Math.min(trust.tlogs.length, 1),
    timestampThreshold: 1,
  });
  const json = JSON.parse(readFileSync(bundle, 'utf8'));
  const artifact = readFileSync(file);
  if (json.dsseEnvelope && !artifact.equals(Buffer.from(json.dsseEnvelope.payload, 'base64'))) {
    throw new Error('another file was attested');
  }
  const entity = toSignedEntity(bundleFromJSON(json), json.dsseEnvelope ? undefined : artifact);
  verifier.verify(entity, { subjectAlternativeName: name, extensions: { issuer } });
}
