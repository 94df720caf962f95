package revoke

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Index finds what this CA issued.
type Index interface {
	// Issued are the certificates that a query means, at most so many. The error is a
	// *fault.Error or ours.
	Issued(ctx context.Context, q Query, most int) ([]Certificate, error)
}

// Query says which certificates are meant, whoever made them.
type Query struct {
	Where       []string  // conditions of docs/search.md, all of which hold
	From, Until time.Time // of not_before; zero is open
}

// Certificate is one that can be revoked.
type Certificate struct {
	Authority, Serial    string
	NotBefore            time.Time
	Fingerprint          string
	Issuer, SAN, SANType string // where an index says them
}

// Request is what is asked for. One of Certificates, Serial, Find and Approve is given.
type Request struct {
	Certificates [][]byte // each in PEM or DER
	// Serial is under Authority's key; that may be left out where there is only one.
	Serial, Authority  string
	Find               *Query
	Approve            string // what another person asked for
	Reason             Reason // empty is unspecified
	Comment, Reference string
	DryRun             bool
	Count              int    // of what Find finds, which a dry run says
	Signature          []byte // by the certificate's key over Challenge
}

// Answer says what was found, or done.
type Answer struct {
	Found      []Certificate // what is meant
	Statements [][]byte      // as the log has them
	Proofs     [][][]byte    // of the statements, in the checkpoint's tree; of few statements
	Checkpoint []byte
	Pending    string // what another person approves it by
}

// By is who asks, and by what right. The zero one has none.
type By struct {
	Asker
	who identity.Principal
}

// The rights of an Asker.
const (
	rightAdmin = string(access.Administer)
	rightSelf  = "self-service"
	rightKey   = "key"
)

// Administrator is who was granted the right to administer.
func Administrator(g access.Grant) By {
	if g.Right != access.Administer || g.Rule == "" {
		return By{}
	}
	return By{Asker: Asker{Right: rightAdmin, Rule: g.Rule, Issuer: g.Issuer, SAN: g.SAN, SANType: g.SANType}}
}

// Holder is whom a fresh token vouches for, with everything that issuing asks.
func Holder(who identity.Principal) By {
	return By{Asker: Asker{Right: rightSelf, Issuer: who.Issuer(), SAN: who.SAN().Value, SANType: who.SAN().Kind.String()}, who: who}
}

// KeyHolder is whoever signs with the certificate's key.
func KeyHolder() By { return By{Asker: Asker{Right: rightKey}} }

// Challenge is what the key of a certificate signs to revoke it. There is nothing to
// gain by sending it again.
func Challenge(cert []byte) []byte {
	return []byte("revoke the certificate with the SHA-256 " + chain.Fingerprint(cert))
}

// The bounds of one request.
const (
	maxFound    = 10_000
	maxProofs   = 100
	maxPending  = 16
	pendingTime = 24 * time.Hour
)

// pending is what waits for another person.
type pending struct {
	by     By
	found  []Certificate
	drafts []Statement
	until  time.Time
}

// Revoke revokes what q means, if by may ask for that, or keeps it for another person, or
// only says what it is. What it answers is durable. record is told what is about to be
// done, and nothing is done after its error. The errors are fault.From's to classify.
func (r *Revoker) Revoke(ctx context.Context, by By, q Request, record func(what string) error) (*Answer, error) {
	q.Reason = cmp.Or(q.Reason, "unspecified")
	if _, ok := reasons[q.Reason]; !ok {
		return nil, refuse("the reason must be one of %v", Reasons())
	}
	if err := errors.Join(checkText("comment", q.Comment), checkText("reference", q.Reference)); err != nil {
		return nil, refuse("%v", err)
	}
	given := slices.DeleteFunc([]bool{len(q.Certificates) > 0, q.Serial != "", q.Find != nil, q.Approve != ""}, func(is bool) bool { return !is })
	if len(given) > 1 {
		return nil, refuse("send one of certificates, serial, find and approve: the others would be passed over")
	}
	if q.Approve != "" {
		return r.approve(ctx, by, q, record)
	}
	found, err := r.find(ctx, by, q)
	if err != nil {
		return nil, err
	}
	if q.Find != nil && !q.DryRun && q.Count != len(found) {
		return nil, miscounted(len(found), q.Count)
	}
	var drafts []Statement
	for _, c := range found {
		drafts = append(drafts, Statement{
			Authority: c.Authority, Serial: c.Serial, NotBefore: c.NotBefore, Fingerprint: c.Fingerprint,
			By: by.Asker, Reason: q.Reason, Comment: q.Comment, Reference: q.Reference,
		})
	}
	if err := record(what(drafts)); err != nil {
		return nil, err
	}
	switch {
	case q.DryRun:
		return &Answer{Found: found}, nil
	case r.o.Config.TwoPeople && (q.Find != nil || len(found) > 1):
		id, err := r.keep(by, found, drafts)
		return &Answer{Found: found, Pending: id}, err
	}
	a, err := r.do(ctx, drafts)
	if err == nil {
		a.Found = found
	}
	return a, err
}

// what says what is to be revoked, for the record.
func what(drafts []Statement) string {
	if len(drafts) == 1 {
		return drafts[0].Serial
	}
	return fmt.Sprintf("%d certificates", len(drafts))
}

func miscounted(meant, count int) error {
	return refuse("%d certificates are meant, and count says %d: look at the list of a dry run, and repeat its count", meant, count).With("expected", strconv.Itoa(meant))
}

// find is what q means, as far as by may ask for it.
func (r *Revoker) find(ctx context.Context, by By, q Request) ([]Certificate, error) {
	switch {
	case by.Right == "":
		return nil, fault.New(fault.AccessDenied, "nobody has shown a right to revoke")
	case by.Right != rightAdmin && !r.o.Config.SelfService:
		return nil, fault.New(fault.AccessDenied, "only administrators revoke certificates here: ask them, or have them set revocation.self_service")
	case by.Right != rightAdmin && len(q.Certificates) != 1:
		return nil, fault.New(fault.AccessDenied, "without the right to administer, one certificate is revoked at a time, and has to be sent")
	case len(q.Certificates) > 0:
		return r.sent(by, q)
	case q.Serial != "":
		return r.bySerial(q)
	case q.Find == nil:
		return nil, refuse("send certificates, a serial number, or what to find")
	case r.o.Index == nil:
		return nil, refuse("nothing can be searched for here, as there is no index (store): name certificates or serial numbers")
	case len(q.Find.Where) == 0:
		return nil, refuse("say at least one condition, such as san=alice@example.com")
	}
	found, err := r.o.Index.Issued(ctx, *q.Find, maxFound+1)
	if err == nil && len(found) > maxFound {
		err = refuse("more than %d certificates are meant: narrow it in time", maxFound)
	}
	return r.ours(found), err
}

// ours are the certificates of our authorities, each once: several logs may have it, and
// a log that is shared has others' too.
func (r *Revoker) ours(found []Certificate) (ours []Certificate) {
	known := map[[2]string]bool{}
	for _, issuer := range r.o.Issuers() {
		known[[2]string{ID(issuer)}] = true
	}
	for _, c := range found {
		if one := [2]string{c.Authority, c.Serial}; known[[2]string{c.Authority}] && !known[one] {
			known[one], ours = true, append(ours, c)
		}
	}
	return ours
}

// sent are the certificates of q, which one of our authorities has issued.
func (r *Revoker) sent(by By, q Request) ([]Certificate, error) {
	var found []Certificate
	for _, data := range q.Certificates {
		if block, _ := pem.Decode(data); block != nil {
			data = block.Bytes
		}
		cert, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, refuse("the certificate can't be read: send it in PEM or DER").Because(err)
		}
		issuer := r.issuerOf(cert)
		if issuer == nil {
			return nil, refuse("the certificate with the serial number %s wasn't issued by an authority that this CA lists", cert.SerialNumber.Text(16))
		}
		if err := by.mayRevoke(cert, q.Signature); err != nil {
			return nil, err
		}
		c := Certificate{Authority: ID(issuer), Serial: cert.SerialNumber.Text(16), NotBefore: cert.NotBefore, Fingerprint: chain.Fingerprint(cert.Raw)}
		says, err := extension.Parse(cert.Extensions)
		if err == nil {
			c.Issuer = says.Issuer
		}
		if names := extension.SANs(cert); len(names) > 0 {
			c.SAN, c.SANType = names[0].Value, names[0].Type
		}
		found = append(found, c)
	}
	return found, nil
}

func (r *Revoker) issuerOf(cert *x509.Certificate) *x509.Certificate {
	for _, issuer := range r.o.Issuers() {
		if bytes.Equal(cert.AuthorityKeyId, issuer.SubjectKeyId) && cert.CheckSignatureFrom(issuer) == nil {
			return issuer
		}
	}
	return nil
}

// mayRevoke is nil when by may revoke cert: an administrator; who would get the same
// name from the same issuer now; or who has its key.
func (by By) mayRevoke(cert *x509.Certificate, signature []byte) error {
	switch by.Right {
	case rightAdmin:
		return nil
	case rightKey:
		if cert.CheckSignature(algorithmOf(cert), Challenge(cert.Raw), signature) != nil {
			return fault.New(fault.ProofInvalid, "the signature isn't by the certificate's key over %q", Challenge(cert.Raw))
		}
		return nil
	}
	says, err := extension.Parse(cert.Extensions)
	want, err2 := ca.EncodeSAN(by.who.SAN())
	if err != nil || err2 != nil || by.who.IsZero() || says.Issuer != by.who.Issuer() ||
		!slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(extension.OIDSAN) && bytes.Equal(e.Value, want) }) {
		return fault.New(fault.AccessDenied, "the certificate isn't for the identity that the token vouches for, by name and issuer")
	}
	return nil
}

// algorithmOf is how a certificate's key signs its Challenge.
func algorithmOf(cert *x509.Certificate) x509.SignatureAlgorithm {
	switch cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return x509.ECDSAWithSHA256
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	}
	return x509.PureEd25519
}

// bySerial is a certificate of which its number is known alone. Its own begin is as
// good as its issuer's: listed is listed.
func (r *Revoker) bySerial(q Request) ([]Certificate, error) {
	n, err := parseSerial(q.Serial)
	if err != nil {
		return nil, refuse("%v", err)
	}
	var of []*x509.Certificate
	for _, issuer := range r.o.Issuers() {
		if q.Authority == "" || q.Authority == ID(issuer) {
			of = append(of, issuer)
		}
	}
	if len(of) != 1 {
		return nil, refuse("say whose serial number it is, as this CA lists %d authorities that it may be of: authority, the issuing certificate's subject key identifier in hexadecimal", len(of))
	}
	return []Certificate{{Authority: ID(of[0]), Serial: n.String(), NotBefore: of[0].NotBefore}}, nil
}

func refuse(format string, args ...any) *fault.Error {
	return fault.New(fault.RequestMalformed, format, args...)
}

// keep keeps what one person asked for until another approves it, and gives its name.
func (r *Revoker) keep(by By, found []Certificate, drafts []Statement) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.o.Now()
	maps.DeleteFunc(r.pending, func(_ string, p pending) bool { return now.After(p.until) })
	if len(r.pending) >= maxPending {
		return "", refuse("%d requests wait for another person already: approve them, or ask again tomorrow", len(r.pending))
	}
	id := rand.Text()
	r.pending[id] = pending{by, found, drafts, now.Add(pendingTime)}
	return id, nil
}

// approve revokes what another person asked for.
func (r *Revoker) approve(ctx context.Context, by By, q Request, record func(what string) error) (*Answer, error) {
	r.mu.Lock()
	asked, ok := r.pending[q.Approve]
	r.mu.Unlock()
	switch {
	case by.Right != rightAdmin:
		return nil, fault.New(fault.AccessDenied, "administrators alone approve what others ask for")
	case !ok || r.o.Now().After(asked.until):
		return nil, refuse("nothing waits for an approval under this name any more: ask anew")
	case asked.by.Issuer == by.Issuer && asked.by.SAN == by.SAN:
		return nil, fault.New(fault.AccessDenied, "another person has to approve what you ask for")
	case !q.DryRun && q.Count != len(asked.drafts):
		return nil, miscounted(len(asked.drafts), q.Count)
	}
	drafts := slices.Clone(asked.drafts)
	for i := range drafts {
		drafts[i].ApprovedBy = &by.Asker
	}
	if err := record(what(drafts)); err != nil {
		return nil, err
	}
	if q.DryRun {
		return &Answer{Found: asked.found}, nil
	}
	a, err := r.do(ctx, drafts)
	if err == nil {
		r.mu.Lock()
		delete(r.pending, q.Approve)
		r.mu.Unlock()
	}
	return a, err
}

// do makes the statements, and proves that they are in the log.
func (r *Revoker) do(ctx context.Context, drafts []Statement) (*Answer, error) {
	indexes, err := r.Log.Append(drafts)
	if err != nil {
		return nil, err
	}
	r.Lists.wake()
	head, err := r.Log.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	a := &Answer{Checkpoint: head.Raw}
	for i, index := range indexes {
		line, err := r.Log.Line(index)
		if err != nil {
			return nil, err
		}
		a.Statements = append(a.Statements, line)
		if i >= maxProofs {
			continue
		}
		proof, err := r.Log.Proof(index, head.Size)
		if err != nil {
			return nil, err
		}
		a.Proofs = append(a.Proofs, proof)
	}
	return a, nil
}
