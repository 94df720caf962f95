package inclusion

import "time"

// Promise is one SCT in a certificate that was issued.
type Promise struct {
	Log, Leaf [32]byte  // the log's id, and the entry's hash in its tree
	Index     *uint64   // of the entry; nil from a log without leaf indices
	Serial    string    // of the certificate
	Promised  time.Time // the SCT's timestamp
	Recorded  time.Time // when the certificate was issued
}

// Trail tells what is on record of promises, from a time on, the oldest first.
type Trail interface {
	// Read yields the promises that came since the last Read, or some of them once
	// there were more than limit. It returns the time of the last record that was
	// read. After an error the next Read goes on from there; a promise may be yielded
	// twice, and none is left out that can be read.
	Read(limit int, yield func(Promise)) (latest time.Time, err error)
	// Close ends the reading; a later Read may yield again what was read before.
	Close()
}
