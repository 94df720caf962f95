// Package audit is the audit trail: one line of JSON for every certificate that
// Mayfly is about to sign, has signed, or has refused, durable before the caller goes on.
//
// A line is a CloudEvents 1.0 event in structured JSON form. Two files are kept,
// so that nobody without a valid token can push the record of a certificate out
// of retention: the trail itself (what carries a serial: intent, issued, and
// failures after the intent) and, beside it, the refusals (all else).
package audit

import (
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Type says what happened; it ends the CloudEvents type.
type Type string

// The types of event. Each has its own CloudEvents type, "dev.mayfly.certificate." + Type.
const (
	// Intent is written before the issuing key is used: no record, no signature.
	Intent Type = "intent"
	// Issued is written before the certificate leaves.
	Issued Type = "issued"
	// Denied is a refusal that is the client's matter.
	Denied Type = "denied"
	// Failed is a failure of ours or of a dependency, after an intent or without one.
	Failed Type = "failed"
	// Probed is the outcome of an intent whose Purpose is PurposeProbe: logs were shown
	// a precertificate, and no certificate follows.
	Probed Type = "probed"
)

// recovered marks the place in a file where an earlier write failed or was cut
// short by a crash. It is written by the package itself, never through Record.
const recovered = "recovered"

// typePrefix begins the CloudEvents type of every record about a certificate.
const typePrefix = "dev.mayfly.certificate."

// recoveredType is the CloudEvents type of the mark that follows a storage failure.
const recoveredType = "dev.mayfly.audit." + recovered

// What a certificate is for, where it isn't a client's: Purpose's values.
const (
	// PurposePrecertificateSigner is a certificate of the CA itself that signs precertificates
	// (RFC 6962 §3.1).
	PurposePrecertificateSigner = "precertificate_signer"
	// PurposeIssuing is a short-lived issuing CA's certificate (mode ephemeral). Its
	// intent has no serial number yet, but the key's fingerprint.
	PurposeIssuing = "issuing_certificate"
	// PurposeProbe is a precertificate of nobody: it shows whether the logs take what
	// such a certificate signs.
	PurposeProbe = "probe"
)

// valid reports whether t is one of the types that callers may record.
func (t Type) valid() bool {
	switch t {
	case Intent, Issued, Denied, Failed, Probed:
		return true
	}
	return false
}

// Event is one record. A zero field is left out of the line. No field may hold a
// token, a key or a secret; strings longer than their limit are cut and end in "…".
type Event struct {
	Type Type
	// Time is when it happened; zero means now.
	Time time.Time
	// RequestID ties the record to the client's answer and the log lines.
	RequestID string
	// Serial is the certificate's serial number in hexadecimal. It decides the
	// file: a Failed event without a serial counts as a refusal.
	Serial string
	// Purpose says what the certificate is for; empty: a client asked for it.
	Purpose string
	// Issuer, IssuerType and Subject come from the verified token.
	Issuer, IssuerType, Subject string
	// SAN is the certified identity and SANType its kind: email, uri or username.
	SAN, SANType string
	// KeyAlgorithm names the client's key ("ECDSA-P256") and KeyFingerprint is
	// the SHA-256 of its SubjectPublicKeyInfo in hexadecimal.
	KeyAlgorithm, KeyFingerprint string
	// NotBefore and NotAfter bound the certificate's validity.
	NotBefore, NotAfter time.Time
	// Fingerprint is the SHA-256 of the certificate's DER in hexadecimal.
	Fingerprint string
	// Authority names the issuing authority.
	Authority string
	// LogID is the log's id in hexadecimal, LogIndex the entry's position where
	// the SCT tells it, SCTTimestamp the SCT's time.
	LogID        string
	LogIndex     *uint64
	SCTTimestamp time.Time
	// LeafHash is the entry's hash in the log's tree, in hexadecimal: with it
	// anybody can ask the log for the entry.
	LeafHash string
	// FurtherSCTs are those of a certificate that is in several logs, after the
	// first one, which the fields above have.
	FurtherSCTs []SCT
	// Rule names the rule of a policy that refused the request.
	Rule string
	// Reason and Message say why a request was refused or failed.
	Reason  fault.Reason
	Message string
	// RemoteAddr is the client's address and Method the API method.
	RemoteAddr, Method string
}

// SCT is what an event says of one SCT, as the event's fields of these names do.
type SCT struct {
	LogID     string
	LogIndex  *uint64
	Timestamp time.Time
	LeafHash  string
}

// refusal reports whether e belongs in the file of refusals: it concerns no
// certificate, so anybody can cause it.
func (e *Event) refusal() bool {
	return e.Type == Denied || e.Type == Failed && e.Serial == ""
}
