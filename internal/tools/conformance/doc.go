// Package conformance holds the tests of Mayfly with programs that this project
// did not write: the signing clients (docs/clients.md), two OpenID providers and a
// browser, a timestamp authority, a collector of logs, Rekor, two registries, openssl, and the readers of
// the log: certificate-transparency-go's client and its program ctclient,
// Sunlight's client and Tessera's fsck (whose program reads tlog-tiles alone, so that
// it is its library that reads our static-ct log). The disks that fail with EIO and
// that lose what wasn't flushed are here too, because they are made of somebody
// else's FUSE library. Everything runs on this machine's loopback interface.
//
// It is in a module apart, internal/tools, so that none of these becomes one of the
// product's dependencies. `make conformance` installs what is needed and runs it.
package conformance
