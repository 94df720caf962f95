// Package fault holds the kinds of failure that Mayfly tells a client about.
//
// A failure that a package understands is a *Error with a [Reason] from the
// closed list below; the reason decides the [Kind], and the server's one table
// maps the kind to a gRPC code and an HTTP status. Every other error is ours:
// [From] turns it into Internal, whose public text is fixed.
package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Kind says whose failure it is and whether trying again may help.
// The zero Kind is Internal: an error that nobody classified is ours.
type Kind uint8

// The kinds, each with one gRPC code and one HTTP status in server.
const (
	Internal         Kind = iota // ours; the client reads fixed text
	Malformed                    // the request can't be understood, or its key or proof is unfit
	TooLarge                     // a stated limit is exceeded
	Unauthenticated              // the token is missing or one of its checks failed
	Denied                       // the token is genuine, but isn't allowed this
	RateLimited                  // too many requests; RetryAfter says when
	Unavailable                  // a dependency is down or slow; RetryAfter says when
	DeadlineExceeded             // the request's time ran out
	Canceled                     // the client went away
	NotFound                     // nothing is served at this path
	NotAllowed                   // the path is served, but not with this method
)

// Reason is the machine-readable cause: google.rpc.ErrorInfo.reason on the
// wire, a metric label, and the reason in the audit trail. The list is closed.
type Reason string

// The closed list of reasons.
const (
	ReasonInternal Reason = "INTERNAL"

	RequestMalformed Reason = "REQUEST_MALFORMED"
	RouteUnknown     Reason = "ROUTE_UNKNOWN"
	MethodNotAllowed Reason = "METHOD_NOT_ALLOWED"
	KeyMalformed     Reason = "KEY_MALFORMED"
	KeyUnsupported   Reason = "KEY_UNSUPPORTED"
	KeyWeak          Reason = "KEY_WEAK"
	ProofMissing     Reason = "PROOF_MISSING"
	ProofInvalid     Reason = "PROOF_INVALID"
	CSRMalformed     Reason = "CSR_MALFORMED"
	CSRInvalid       Reason = "CSR_INVALID"

	BodyTooLarge  Reason = "BODY_TOO_LARGE"
	TokenTooLarge Reason = "TOKEN_TOO_LARGE"
	KeyTooLarge   Reason = "KEY_TOO_LARGE"
	ProofTooLarge Reason = "PROOF_TOO_LARGE"

	TokenMissing     Reason = "TOKEN_MISSING"
	TokenMalformed   Reason = "TOKEN_MALFORMED"
	TokenAlgorithm   Reason = "TOKEN_ALGORITHM"
	TokenSignature   Reason = "TOKEN_SIGNATURE"
	TokenAudience    Reason = "TOKEN_AUDIENCE"
	TokenExpired     Reason = "TOKEN_EXPIRED"
	TokenNotYetValid Reason = "TOKEN_NOT_YET_VALID"
	TokenLifetime    Reason = "TOKEN_LIFETIME"
	TokenReplayed    Reason = "TOKEN_REPLAYED"
	IssuerUnknown    Reason = "ISSUER_UNKNOWN"

	ClaimMissing    Reason = "CLAIM_MISSING"
	ClaimInvalid    Reason = "CLAIM_INVALID"
	EmailUnverified Reason = "EMAIL_UNVERIFIED"
	SubjectDomain   Reason = "SUBJECT_DOMAIN"
	PolicyDenied    Reason = "POLICY_DENIED"
	AccessDenied    Reason = "ACCESS_DENIED"

	RateExceeded Reason = "RATE_EXCEEDED"

	IssuerUnavailable Reason = "ISSUER_UNAVAILABLE"
	IssuerKeyUnusable Reason = "ISSUER_KEY_UNUSABLE"
	SignerUnavailable Reason = "SIGNER_UNAVAILABLE"
	SigningQuota      Reason = "SIGNING_QUOTA_EXCEEDED"
	LogUnavailable    Reason = "LOG_UNAVAILABLE"
	AuditUnavailable  Reason = "AUDIT_UNAVAILABLE"
	ReplayUnavailable Reason = "REPLAY_UNAVAILABLE"
	TimeUnavailable   Reason = "TIME_UNAVAILABLE"
	StoreUnavailable  Reason = "STORE_UNAVAILABLE"
	Overloaded        Reason = "OVERLOADED"
	ShuttingDown      Reason = "SHUTTING_DOWN"

	DeadlineReached Reason = "DEADLINE_EXCEEDED"
	ClientGone      Reason = "CLIENT_GONE"
)

// kinds is the whole of the closed list; Reasons and Kind read it.
var kinds = map[Reason]Kind{
	ReasonInternal: Internal,

	RequestMalformed: Malformed, KeyMalformed: Malformed, KeyUnsupported: Malformed, KeyWeak: Malformed,
	ProofMissing: Malformed, ProofInvalid: Malformed, CSRMalformed: Malformed, CSRInvalid: Malformed,

	BodyTooLarge: TooLarge, TokenTooLarge: TooLarge, KeyTooLarge: TooLarge, ProofTooLarge: TooLarge,

	TokenMissing: Unauthenticated, TokenMalformed: Unauthenticated, TokenAlgorithm: Unauthenticated,
	TokenSignature: Unauthenticated, TokenAudience: Unauthenticated, TokenExpired: Unauthenticated,
	TokenNotYetValid: Unauthenticated, TokenLifetime: Unauthenticated, TokenReplayed: Unauthenticated,
	IssuerUnknown: Unauthenticated,

	ClaimMissing: Denied, ClaimInvalid: Denied, EmailUnverified: Denied, SubjectDomain: Denied, PolicyDenied: Denied, AccessDenied: Denied,

	RateExceeded: RateLimited,

	IssuerUnavailable: Unavailable, IssuerKeyUnusable: Unavailable, SignerUnavailable: Unavailable, SigningQuota: Unavailable, LogUnavailable: Unavailable,
	AuditUnavailable: Unavailable, ReplayUnavailable: Unavailable, TimeUnavailable: Unavailable, StoreUnavailable: Unavailable, Overloaded: Unavailable, ShuttingDown: Unavailable,

	DeadlineReached: DeadlineExceeded, ClientGone: Canceled,

	RouteUnknown: NotFound, MethodNotAllowed: NotAllowed,
}

// Kind is the kind that the reason belongs to; Internal for a reason outside the list.
func (r Reason) Kind() Kind { return kinds[r] }

// Reasons is the closed list, in no order.
func Reasons() []Reason { return slices.Collect(maps.Keys(kinds)) }

// Error is a classified failure. Public and Metadata reach the client; Cause
// reaches only the log. None of them ever holds a token, a key or a secret.
type Error struct {
	Reason     Reason
	Public     string            // one or two sentences: what is wrong, what was expected, what to do next
	Metadata   map[string]string // google.rpc.ErrorInfo.metadata: claim, dependency, limit, expected, actual
	RetryAfter time.Duration     // for RateLimited and Unavailable; zero lets the server choose, NoRetry sends none
	Cause      error
}

// NoRetry is the RetryAfter of a failure that ends at no known time.
const NoRetry time.Duration = -1

// New makes a classified failure whose text the client reads.
func New(reason Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Public: fmt.Sprintf(format, args...)}
}

// Because returns a copy of e with the cause that goes to the log.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.Cause = cause
	return &c
}

// With returns a copy of e with one more entry of public metadata.
func (e *Error) With(key, value string) *Error {
	c := *e
	c.Metadata = maps.Collect(maps.All(e.Metadata))
	c.Metadata[key] = value
	return &c
}

// After returns a copy of e that tells the client when to try again.
func (e *Error) After(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// Kind is the kind of e's reason.
func (e *Error) Kind() Kind { return e.Reason.Kind() }

// Error is the text for the log: reason, public text and cause.
func (e *Error) Error() string {
	if e.Cause == nil {
		return string(e.Reason) + ": " + e.Public
	}
	return string(e.Reason) + ": " + e.Public + ": " + e.Cause.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// From classifies any error. A *Error anywhere in the chain is taken as it is;
// a context error becomes DeadlineReached or ClientGone; all else is Internal
// with fixed public text and err as the cause. From(nil) is nil.
func From(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Reason: DeadlineReached, Public: "the request's time ran out; try again", Cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{Reason: ClientGone, Public: "the client went away", Cause: err}
	default:
		return &Error{Reason: ReasonInternal, Public: "internal error", Cause: err}
	}
}
