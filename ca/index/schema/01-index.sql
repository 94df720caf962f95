-- How far each log was followed, and the position that proves it (package ctlog/follow).
CREATE TABLE followed (
  log TEXT PRIMARY KEY, -- its id in hex
  size INTEGER NOT NULL,
  hashes BLOB NOT NULL,
  checkpoint BLOB NOT NULL
);

-- What many certificates have in common: whose they are, who vouched, in which log.
-- domain, identity and workflow are derived from the others (decode.go). Most subjects lack
-- most values: a search says that it wants none that is empty.
CREATE TABLE subjects (
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE, -- over all columns that follow
  log TEXT NOT NULL,
  authority TEXT NOT NULL,
  san TEXT NOT NULL,
  san_type TEXT NOT NULL,
  domain TEXT NOT NULL,
  identity TEXT NOT NULL,
  workflow TEXT NOT NULL,
  issuer TEXT NOT NULL,
  github_trigger TEXT NOT NULL,
  github_workflow TEXT NOT NULL,
  github_repository TEXT NOT NULL,
  github_ref TEXT NOT NULL,
  build_signer_uri TEXT NOT NULL,
  runner_environment TEXT NOT NULL,
  source_repository_uri TEXT NOT NULL,
  source_repository_ref TEXT NOT NULL,
  source_repository_id TEXT NOT NULL,
  source_repository_owner_uri TEXT NOT NULL,
  source_repository_owner_id TEXT NOT NULL,
  build_config_uri TEXT NOT NULL,
  build_trigger TEXT NOT NULL,
  source_repository_visibility TEXT NOT NULL,
  deployment_environment TEXT NOT NULL,
  token_subject TEXT NOT NULL
);
CREATE INDEX subjects_identity_workflow ON subjects (identity, workflow);
CREATE INDEX subjects_identity_runner_environment ON subjects (identity, runner_environment);
CREATE INDEX subjects_identity_issuer ON subjects (identity, issuer);

-- One row an entry of a log, times in seconds since 1970.
CREATE TABLE certificates (
  id INTEGER PRIMARY KEY,
  subject INTEGER NOT NULL,
  log_index INTEGER NOT NULL,
  logged INTEGER NOT NULL,
  not_before INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  serial TEXT NOT NULL,
  key_fingerprint TEXT NOT NULL,
  github_sha TEXT,
  source_repository_digest TEXT,
  build_signer_digest TEXT,
  build_config_digest TEXT,
  run_invocation_uri TEXT
);
CREATE INDEX certificates_time ON certificates (not_before, id);

-- Final certificates, which a log of precertificates doesn't hold, and digests of what
-- they signed: what bundles told. Without a digest it is ''.
CREATE TABLE artifacts (
  digest TEXT NOT NULL,
  certificate_fingerprint TEXT NOT NULL,
  serial TEXT NOT NULL,
  authority TEXT NOT NULL,
  told INTEGER NOT NULL,
  PRIMARY KEY (digest, certificate_fingerprint)
);
CREATE INDEX artifacts_certificate_fingerprint ON artifacts (certificate_fingerprint);

-- What is revoked; it may be known here before its certificate is.
CREATE TABLE revoked (
  serial TEXT NOT NULL,
  authority TEXT NOT NULL,
  revoked_at INTEGER NOT NULL,
  reason TEXT NOT NULL,
  PRIMARY KEY (serial, authority)
);

-- The first use of a workflow, a runner or an issuer by an identity that was known.
CREATE TABLE events (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  identity TEXT NOT NULL,
  value TEXT NOT NULL,
  log TEXT NOT NULL,
  log_index INTEGER NOT NULL,
  serial TEXT NOT NULL,
  happened INTEGER NOT NULL
);
CREATE INDEX events_identity ON events (identity);
