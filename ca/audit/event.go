// Package audit is the audit trail: one line of JSON for every certificate that
// Mayfly is about to sign, has signed, or has refused, durable before the caller goes on.
//
// A line is a CloudEvents 1.0 event in structured JSON form. Two files are kept,
// so that nobody without a valid token can push the record of a certificate out
// of retention: the trail itself (intents and what came of them) and, beside it, the
// refusals (all else).
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Type says what happened; it ends the CloudEvents type.
type Type string

// The types of event. Each has its own CloudEvents type: typePrefix and the Type, or
// auditPrefix and the Type for what isn't about one certificate.
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
	// Admin is an act of whoever administers the CA: By did Act to What. It is written
	// before the act, and once more, with a message, where the act then failed.
	Admin Type = "admin"
)

// Types that the package itself writes, never through Record: recovered marks the place
// in a file where an earlier write failed or was cut short by a crash, and head is a
// signature over all that stands before it.
const (
	recovered Type = "recovered"
	head      Type = "head"
)

// typePrefix begins the CloudEvents type of every record about a certificate.
const typePrefix = "dev.mayfly.certificate."

// auditPrefix begins the CloudEvents type of every other record.
const auditPrefix = "dev.mayfly.audit."

// name is the CloudEvents type.
func (t Type) name() string {
	switch t {
	case Admin, recovered, head:
		return auditPrefix + string(t)
	}
	return typePrefix + string(t)
}

// What a certificate is for, where it isn't a client's: Purpose's values.
const (
	// PurposePrecertificateSigner is a certificate of the CA itself that signs precertificates
	// (RFC 6962 §3.1).
	PurposePrecertificateSigner = "precertificate_signer"
	// PurposeIssuing is a short-lived issuing CA's certificate (mode ephemeral). Its
	// intent has no serial number yet, but the key's fingerprint.
	PurposeIssuing = "issuing_certificate"
	// PurposeProbe is a precertificate that names no person: it shows whether the logs
	// take what such a certificate signs.
	PurposeProbe = "probe"
)

// valid reports whether t is one of the types that callers may record.
func (t Type) valid() bool {
	return slices.Contains(types[:], t)
}

// Event is one record. A zero field is left out of the line. No field may hold a
// token, a key or a secret; strings longer than their limit are cut and end in "…".
// The names of fields in the line are those of the tags; encode.go writes them.
type Event struct {
	Type Type `json:"-"`
	// Time is when it happened; zero means now.
	Time time.Time `json:"-"`
	// RequestID ties the record to the client's answer and the log lines.
	RequestID string `json:"request_id"`
	// Serial is the certificate's serial number in hexadecimal. A Failed event without
	// it is a refusal, unless it has a Purpose.
	Serial string `json:"serial"`
	// Purpose says what the certificate is for; empty: a client asked for it. What has
	// one is recorded after its intent.
	Purpose string `json:"purpose"`
	// Issuer, IssuerType and Subject come from the verified token.
	Issuer     string `json:"issuer"`
	IssuerType string `json:"issuer_type"`
	Subject    string `json:"subject"`
	// SAN is the certified identity and SANType its kind: email, uri or username.
	SAN     string `json:"san"`
	SANType string `json:"san_type"`
	// KeyAlgorithm names the client's key ("ECDSA-P256") and KeyFingerprint is
	// the SHA-256 of its SubjectPublicKeyInfo in hexadecimal.
	KeyAlgorithm   string `json:"key_algorithm"`
	KeyFingerprint string `json:"key_fingerprint"`
	// NotBefore and NotAfter bound the certificate's validity.
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// Fingerprint is the SHA-256 of the certificate's DER in hexadecimal.
	Fingerprint string `json:"fingerprint"`
	// Authority names the issuing authority.
	Authority string `json:"authority"`
	// SCT is that of a certificate that is in a log.
	SCT
	// FurtherSCTs are those of a certificate that is in several logs, after the
	// first one.
	FurtherSCTs []SCT `json:"further_scts"`
	// Rule names the rule of a policy that refused the request.
	Rule string `json:"rule"`
	// Reason and Message say why a request was refused or failed.
	Reason  fault.Reason `json:"reason"`
	Message string       `json:"message"`
	// Act is what an administrator does, By who it is where no token says so, and What
	// it is done to.
	Act  string `json:"act"`
	By   string `json:"by"`
	What string `json:"what"`
	// RemoteAddr is the client's address and Method the API method.
	RemoteAddr string `json:"remote_addr"`
	Method     string `json:"method"`
}

// SCT is what an event says of one SCT.
type SCT struct {
	// LogID is the log's id in hexadecimal.
	LogID string `json:"log_id"`
	// LogIndex is the entry's position where the SCT tells it.
	LogIndex     *uint64   `json:"log_index"`
	SCTTimestamp time.Time `json:"sct_timestamp"`
	// LeafHash is the entry's hash in the log's tree, in hexadecimal: with it
	// anybody can ask the log for the entry.
	LeafHash string `json:"leaf_hash"`
}

// UnmarshalJSON reads a line of the trail. A line that the package wrote for itself is
// read as an event of the type "recovered" or "head" with nothing else.
func (e *Event) UnmarshalJSON(line []byte) error {
	type fields Event // without this method
	var record struct {
		Type string    `json:"type"`
		Time time.Time `json:"time"`
		Data fields    `json:"data"`
	}
	if err := json.Unmarshal(line, &record); err != nil {
		return err
	}
	*e = Event(record.Data)
	e.Type, e.Time = Type(record.Type[strings.LastIndexByte(record.Type, '.')+1:]), record.Time
	if e.Type.name() != record.Type {
		return fmt.Errorf("a record of the type %q", record.Type)
	}
	return nil
}

// SCTs are all of the event's.
func (e *Event) SCTs() []SCT { return append([]SCT{e.SCT}, e.FurtherSCTs...) }

// refusal reports whether e belongs in the file of refusals: it follows no intent, so
// anybody can cause it. An intent of PurposeIssuing has no serial, but a purpose.
func (e *Event) refusal() bool {
	return e.Type == Denied || e.Type == Failed && e.Serial == "" && e.Purpose == ""
}

// Recorder makes a record durable before it returns: after a crash the record
// is there. An error says that it may not be, and the caller must not go on.
type Recorder interface {
	Record(ctx context.Context, e Event) error
}

// outcomeTime is how long a failure's record may take once its request is over.
const outcomeTime = 5 * time.Second

// Trail is the audit trail as what signs uses it: an intent before, an outcome
// after.
type Trail struct {
	Recorder Recorder
	Now      func() time.Time
	Logger   *slog.Logger
}

// Record writes an event and classifies its failure.
func (t Trail) Record(ctx context.Context, e Event) error {
	err := t.Recorder.Record(ctx, e)
	var classified *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &classified), ctx.Err() != nil:
		return fmt.Errorf("ca: recording the %s: %w", e.Type, err)
	default:
		return unavailable(err)
	}
}

// Failed writes the outcome of an issuance that failed after its intent, also
// where the request's own time is over.
func (t Trail) Failed(ctx context.Context, intent Event, cause error) {
	f := fault.From(cause)
	e := intent
	e.Type, e.Time, e.Reason, e.Message = Failed, t.Now(), f.Reason, f.Public
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomeTime)
	defer cancel()
	if err := t.Recorder.Record(ctx, e); err != nil {
		t.Logger.ErrorContext(ctx, "a failed issuance has no outcome in the audit trail",
			slog.String("request_id", e.RequestID), slog.String("serial", e.Serial), slog.Any("error", err))
	}
}
