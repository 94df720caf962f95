-- Times are in milliseconds since 1970.

-- One row: the last number that an alert got, since when there are alerts, and how many
-- statements of revocation were looked at.
CREATE TABLE alerts_state (
  id INTEGER PRIMARY KEY,
  last INTEGER NOT NULL,
  began INTEGER NOT NULL,
  statements INTEGER NOT NULL
);

-- How many entries of each log were looked at: an index that is made anew tells nobody twice.
CREATE TABLE alerts_logs (
  log TEXT PRIMARY KEY,
  entries INTEGER NOT NULL
);

-- What waits to be sent: CloudEvents in JSON, in queues of a target and a recipient ('' but
-- for an owner). Numbers are in the order of commits. due is when it may be sent; whoever
-- sends the first of a queue moves it on before, and has the queue meanwhile.
CREATE TABLE alerts_outbox (
  id INTEGER PRIMARY KEY,
  target TEXT NOT NULL,
  recipient TEXT NOT NULL,
  created INTEGER NOT NULL,
  due INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  event TEXT NOT NULL
);
CREATE INDEX alerts_outbox_queue ON alerts_outbox (target, recipient, id, created);
CREATE INDEX alerts_outbox_created ON alerts_outbox (created);

-- When a rule about silence last held for an identity, and whether its silence was told (1).
CREATE TABLE alerts_seen (
  rule TEXT NOT NULL,
  identity TEXT NOT NULL,
  owner TEXT NOT NULL, -- its mail address, or ''
  seen INTEGER NOT NULL,
  told INTEGER NOT NULL,
  PRIMARY KEY (rule, identity)
);
CREATE INDEX alerts_seen_told ON alerts_seen (rule, told, seen);
