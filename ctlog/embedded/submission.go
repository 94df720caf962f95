package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/tessera/ctonly"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Limits of the submission API.
const (
	maxSubmission  = 512 << 10 // bytes of a request's body
	maxChainLength = 10        // certificates in it
	// How often a body's bytes are in memory: as they came, decoded, parsed, as an entry.
	submissionCopies = 4

	dedupEntries = 1 << 16 // how many of the entries are known for their duplicates

	// Submissions from outside must not crowd out the CA's own.
	submissionRate  = 20  // a second, of everybody together
	submissionBurst = 200 // at once, after a quiet time

	// One address (IPv6: one /64) must not crowd out the others.
	addressRate  = 5
	addressBurst = 50
	maxAddresses = 4096 // that are remembered, those that came last
)

// Submissions are the paths below [Log.Prefix] that take a POST; none unless the
// configuration turns the submission API on.
func (l *Log) Submissions() []string {
	if !l.config.Submission {
		return nil
	}
	return []string{ct.AddChainPath, ct.AddPreChainPath}
}

// posts serve them.
func (l *Log) posts() map[string]read.HandlerFunc {
	posts := make(map[string]read.HandlerFunc)
	for _, path := range l.Submissions() {
		posts[path] = func(w http.ResponseWriter, r *http.Request, p *read.Place) error {
			return l.accept(w, r, p, path == ct.AddPreChainPath)
		}
	}
	return posts
}

func (l *Log) accept(w http.ResponseWriter, r *http.Request, p *read.Place, precert bool) error {
	if !read.LimitOf(l.submitters, read.Network(r), addressRate, addressBurst).AllowN(l.o.Now(), 1) {
		return &read.Refusal{Status: http.StatusTooManyRequests, Text: "too many submissions of this network address; try again later", RetryAfter: 1}
	}
	if !l.submissionLimit.AllowN(l.o.Now(), 1) {
		return &read.Refusal{Status: http.StatusTooManyRequests, Text: "too many submissions; try again later", RetryAfter: 1}
	}
	if err := p.Take(submissionCopies * bodyBytes(r)); err != nil {
		return err
	}
	chain, err := l.readChain(w, r, precert)
	if err != nil {
		return err
	}
	sct, err := l.log(r.Context(), chain, precert)
	var f *fault.Error
	switch {
	case errors.As(err, &f) && f.Kind() == fault.Unavailable:
		l.o.Logger.WarnContext(r.Context(), "submission refused", "error", err)
		return &read.Refusal{Status: http.StatusServiceUnavailable, Text: f.Public, RetryAfter: max(1, int(f.RetryAfter/time.Second))}
	case err != nil:
		return err
	}
	return read.WriteJSON(w, "no-store", ct.AddChainResponse{ // RFC 6962 §4.1: the signature is a DigitallySigned
		SCTVersion: ct.V1, ID: sct.LogID[:], Timestamp: sct.Timestamp,
		Extensions: base64.StdEncoding.EncodeToString(sct.Extensions), Signature: ctlog.AppendSignature(nil, sct.Signature),
	})
}

// bodyBytes is how much of a request's body is read at most.
func bodyBytes(r *http.Request) int {
	if r.ContentLength < 0 || r.ContentLength > maxSubmission {
		return maxSubmission
	}
	return int(r.ContentLength)
}

// readChain reads a request and verifies that it is a code-signing certificate,
// or precertificate, under one of our roots. The chain returned ends in that root.
func (l *Log) readChain(w http.ResponseWriter, r *http.Request, precert bool) ([]*x509.Certificate, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSubmission))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, &read.Refusal{Status: http.StatusRequestEntityTooLarge, Text: fmt.Sprintf("a submission has at most %d bytes", maxSubmission)}
	}
	if err != nil {
		return nil, read.BadRequest("the body can't be read")
	}
	var body ct.AddChainRequest
	if err := json.Unmarshal(raw, &body); err != nil || len(body.Chain) == 0 || len(body.Chain) > maxChainLength {
		return nil, read.BadRequest("want JSON with a chain of 1 to %d certificates in base64", maxChainLength)
	}
	submitted := make([]*x509.Certificate, 0, len(body.Chain))
	for i, der := range body.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, read.BadRequest("chain[%d] is not a certificate", i)
		}
		submitted = append(submitted, c)
	}
	if poisoned := isPrecertificate(submitted[0]); poisoned != precert {
		return nil, read.BadRequest("add-pre-chain takes precertificates, add-chain takes certificates")
	}
	return l.trusted(submitted)
}

// trusted verifies the chain to one of our roots, at the time of its issuance: a
// certificate may be logged after it has expired.
func (l *Log) trusted(submitted []*x509.Certificate) ([]*x509.Certificate, error) {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, der := range l.acceptedRoots() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parsing one of the log's roots: %w", err)
		}
		roots.AddCert(c)
	}
	for _, c := range submitted[1:] {
		intermediates.AddCert(c)
	}
	if len(submitted) > 1 && ctlog.SignsPrecertificates(submitted[1]) {
		return delegated(submitted, roots, intermediates)
	}
	subject := *submitted[0]
	subject.UnhandledCriticalExtensions = slices.DeleteFunc(
		slices.Clone(subject.UnhandledCriticalExtensions), ctlog.OIDPoison.Equal)
	chain, err := pathOf(&subject, roots, intermediates, subject.NotBefore.Add(time.Second))
	if err != nil {
		return nil, err
	}
	if len(chain) < 2 {
		return nil, read.BadRequest("the log takes no root as an entry")
	}
	return inOrder(submitted, chain)
}

// delegated is trusted for a precertificate that a precertificate signing
// certificate signed. That certificate's extended key usage excludes code signing,
// and the issuer's path length may exclude any CA below it, so the path ends for
// the usual checks with the issuer of the final certificate (RFC 6962 §3.1).
func delegated(submitted []*x509.Certificate, roots, intermediates *x509.CertPool) ([]*x509.Certificate, error) {
	if len(submitted) < 3 {
		return nil, read.BadRequest("a precertificate signing certificate is followed by the issuer of the final certificate")
	}
	leaf, signer, issuer := submitted[0], submitted[1], submitted[2]
	at := leaf.NotBefore.Add(time.Second)
	switch {
	case !isPrecertificate(leaf) || leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning):
		return nil, read.BadRequest("chain[0] is not a precertificate for code signing, which is all that chain[1] may sign")
	case len(signer.ExtKeyUsage) > 0 || len(signer.UnknownExtKeyUsage) != 1:
		return nil, read.BadRequest("chain[1] has further key usages beside the signing of precertificates")
	case at.Before(signer.NotBefore) || at.After(signer.NotAfter):
		return nil, read.BadRequest("chain[1] was not valid when chain[0] was issued")
	case !certifies(signer, leaf):
		return nil, read.BadRequest("chain[1] is not the certificate that certifies the one before it")
	case !certifies(issuer, signer):
		return nil, read.BadRequest("chain[2] is not the certificate that certifies the one before it")
	}
	path, err := pathOf(issuer, roots, intermediates, at)
	if err != nil {
		return nil, err
	}
	return inOrder(submitted, append([]*x509.Certificate{leaf, signer}, path...))
}

// pathOf is the path of a certificate for code signing to one of the roots.
func pathOf(c *x509.Certificate, roots, intermediates *x509.CertPool, at time.Time) ([]*x509.Certificate, error) {
	paths, err := c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	if err != nil {
		return nil, read.BadRequest("the chain does not lead to one of the log's roots as a code-signing certificate")
	}
	return paths[0], nil
}

// certifies reports whether parent is a CA that signed child.
func certifies(parent, child *x509.Certificate) bool {
	return bytes.Equal(child.RawIssuer, parent.RawSubject) && child.CheckSignatureFrom(parent) == nil
}

// inOrder is the chain, if it begins with what was submitted (RFC 6962 §3.1: in
// order, each certified by the next).
func inOrder(submitted, chain []*x509.Certificate) ([]*x509.Certificate, error) {
	for i, c := range submitted {
		if i >= len(chain) || !bytes.Equal(c.Raw, chain[i].Raw) {
			return nil, read.BadRequest("chain[%d] is not the certificate that certifies the one before it", i)
		}
	}
	return chain, nil
}

func isPrecertificate(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(ctlog.OIDPoison) {
			return e.Critical && bytes.Equal(e.Value, asn1.NullBytes)
		}
	}
	return false
}

// log records a submitted chain once: the second time it promises the first
// entry again.
func (l *Log) log(ctx context.Context, chain []*x509.Certificate, precert bool) (ctlog.SCT, error) {
	now := l.o.Now()
	if !l.Description().Holds(now) {
		return ctlog.SCT{}, &read.Refusal{Status: http.StatusForbidden, Text: "the log takes no entries at this time"}
	}
	if len(chain[0].Raw) > maxEntry/2 { // a precertificate is in its entry twice
		return ctlog.SCT{}, &read.Refusal{Status: http.StatusRequestEntityTooLarge, Text: fmt.Sprintf("a certificate has at most %d bytes", maxEntry/2)}
	}
	identity := sha256.Sum256(chain[0].Raw)
	if known, ok := l.dedup.Get(identity); ok {
		return l.promise(ctx, known)
	}
	issuers := make([][]byte, 0, len(chain)-1)
	for _, c := range chain[1:] {
		issuers = append(issuers, c.Raw)
	}
	entry := &ctonly.Entry{Timestamp: millis(now), Certificate: chain[0].Raw}
	if precert {
		c, err := ctlog.NewChain(chain[0].Raw, issuers)
		if err != nil {
			return ctlog.SCT{}, read.BadRequest("the precertificate can't be read")
		}
		entry = precertEntry(c, now)
	}
	p, err := l.record(ctx, entry, issuers)
	if err != nil {
		return ctlog.SCT{}, err
	}
	sct, err := l.promise(ctx, p)
	if err == nil {
		l.dedup.Add(identity, p)
	}
	return sct, err
}
