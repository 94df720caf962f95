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
CREATE INDEX subjects_log ON subjects (log) WHERE log <> '';
CREATE INDEX subjects_authority ON subjects (authority) WHERE authority <> '';
CREATE INDEX subjects_san ON subjects (san) WHERE san <> '';
CREATE INDEX subjects_domain ON subjects (domain) WHERE domain <> '';
CREATE INDEX subjects_identity_workflow ON subjects (identity, workflow);
CREATE INDEX subjects_identity_runner_environment ON subjects (identity, runner_environment);
CREATE INDEX subjects_identity_issuer ON subjects (identity, issuer);
CREATE INDEX subjects_workflow ON subjects (workflow) WHERE workflow <> '';
CREATE INDEX subjects_issuer ON subjects (issuer) WHERE issuer <> '';
CREATE INDEX subjects_github_trigger ON subjects (github_trigger) WHERE github_trigger <> '';
CREATE INDEX subjects_github_workflow ON subjects (github_workflow) WHERE github_workflow <> '';
CREATE INDEX subjects_github_repository ON subjects (github_repository) WHERE github_repository <> '';
CREATE INDEX subjects_github_ref ON subjects (github_ref) WHERE github_ref <> '';
CREATE INDEX subjects_build_signer_uri ON subjects (build_signer_uri) WHERE build_signer_uri <> '';
CREATE INDEX subjects_runner_environment ON subjects (runner_environment) WHERE runner_environment <> '';
CREATE INDEX subjects_source_repository_uri ON subjects (source_repository_uri) WHERE source_repository_uri <> '';
CREATE INDEX subjects_source_repository_ref ON subjects (source_repository_ref) WHERE source_repository_ref <> '';
CREATE INDEX subjects_source_repository_id ON subjects (source_repository_id) WHERE source_repository_id <> '';
CREATE INDEX subjects_source_repository_owner_uri ON subjects (source_repository_owner_uri) WHERE source_repository_owner_uri <> '';
CREATE INDEX subjects_source_repository_owner_id ON subjects (source_repository_owner_id) WHERE source_repository_owner_id <> '';
CREATE INDEX subjects_build_config_uri ON subjects (build_config_uri) WHERE build_config_uri <> '';
CREATE INDEX subjects_build_trigger ON subjects (build_trigger) WHERE build_trigger <> '';
CREATE INDEX subjects_source_repository_visibility ON subjects (source_repository_visibility) WHERE source_repository_visibility <> '';
CREATE INDEX subjects_deployment_environment ON subjects (deployment_environment) WHERE deployment_environment <> '';
CREATE INDEX subjects_token_subject ON subjects (token_subject) WHERE token_subject <> '';

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
CREATE INDEX certificates_subject ON certificates (subject, not_before, id);
CREATE INDEX certificates_serial ON certificates (serial);
CREATE INDEX certificates_key_fingerprint ON certificates (key_fingerprint);
CREATE INDEX certificates_github_sha ON certificates (github_sha) WHERE github_sha IS NOT NULL;
CREATE INDEX certificates_source_repository_digest ON certificates (source_repository_digest) WHERE source_repository_digest IS NOT NULL;
CREATE INDEX certificates_build_signer_digest ON certificates (build_signer_digest) WHERE build_signer_digest IS NOT NULL;
CREATE INDEX certificates_build_config_digest ON certificates (build_config_digest) WHERE build_config_digest IS NOT NULL;
CREATE INDEX certificates_run_invocation_uri ON certificates (run_invocation_uri) WHERE run_invocation_uri IS NOT NULL;

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
