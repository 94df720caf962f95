// Package embedded is a Certificate Transparency log inside this process, for
// one machine: Tessera's files on a local disk. Here are the order of entries, the
// signatures, submission from outside, and recovery, which refuses a second writer, an
// older copy and a damaged disk. Package wal is the write-ahead file, package read serves
// the log, package maintain checks, copies and freezes it, and all stand on package
// logdir, which knows the files.
//
// # The way of an entry
//
// [Log.Submit] stores the issuers and queues the entry (log.go). The sequencer gives a
// batch its indexes and writes it into the write-ahead file and the high-water mark at the
// same time (sequencer.go); then everybody in the batch gets an SCT. Behind that the
// entries become part of the tree (integrate.go), in larger batches, and a checkpoint is
// signed over it (there too); readers see what that covers.
//
// # What holds
//
// An SCT leaves only when its entry, its index, the issuers' certificates and the mark
// are on disk. The tree on disk is always one that the mark covers, and a checkpoint
// always one of a tree on disk. After a storage error nothing is taken until the last
// entries are on disk after all, the state has been read and verified again, and the tree
// has grown; so a full disk costs SCTs only for as long as it is full. An entry may be in
// the log though nobody got its SCT; that is harmless: a logged precertificate without a
// certificate.
//
// # When an entry can be read
//
// The tree grows and a checkpoint is published at most once in an interval, one second by
// default; of the tree, sooner where much waits. An entry is readable, through either API,
// after two intervals at most, and at once in a log that was quiet; its SCT doesn't wait
// for that. What waits is bounded: beyond that callers wait, and are refused, and a log
// whose entries wait for half of the merge delay isn't ready. A log that does not grow
// publishes a fresh checkpoint every ten minutes.
package embedded
