// Package embedded is a Certificate Transparency log inside this process, for
// one machine: Tessera's files on a local disk, with what Tessera leaves to its
// user. That is here the signatures, group commit, submission from outside, and
// recovery, which refuses a second writer, an older copy and a damaged disk. Package
// read serves the log, package maintain checks, copies and freezes it, and both stand
// on package logdir, which knows the files.
//
// # The way of an entry
//
// [Log.Submit] stores the issuers and queues the entry (log.go). The sequencer gathers
// a batch (sequencer.go) and has Tessera make it part of the tree (integrate.go); then
// the high-water mark goes up, and everybody in the batch gets an SCT. Beside that
// Tessera has a checkpoint signed from time to time (checkpoint.go), and readers see
// what it covers.
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
