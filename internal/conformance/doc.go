// Package conformance holds the tests of Mayfly with programs that this project
// did not write: the signing clients cosign (v3 and v2), sigstore-go and
// sigstore-js, two OpenID providers, a timestamp authority, openssl, and two
// readers of the log. Everything runs on this machine's loopback interface.
//
// It is a module of its own, so that none of these becomes a dependency of the
// product. `make conformance` installs what is needed and runs it.
package conformance
