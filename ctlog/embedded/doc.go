// Package embedded is a Certificate Transparency log inside this process, for
// one machine: Tessera's files on a local disk, with what Tessera leaves to its
// user — the signatures, group commit, the guards against a second writer, an
// older copy and a damaged disk, and the read and submission APIs.
//
// # What holds
//
// An SCT leaves only when its entry, the tree over it, the issuers' certificates
// and the high-water mark are on disk. After any storage error the state on disk
// is read and verified again before the next entry is taken, so a full disk costs
// SCTs only for as long as it is full. An entry may be in the log though nobody got
// its SCT; that is harmless: a logged precertificate without a certificate.
//
// # When an entry can be read
//
// Checkpoints are published at an interval, one second by default. An entry is
// readable, through either API, after two intervals at most; its SCT doesn't wait
// for that. A log that does not grow publishes a fresh checkpoint every ten minutes.
package embedded
