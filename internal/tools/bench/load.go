package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// load is a set of prepared requests, one for each caller, and the connections
// that carry them. The same token and keys are sent again and again: what the
// server does for them is the same each time, and the client stays cheap.
type load struct {
	http   *http.Client
	conn   *grpc.ClientConn
	url    string // of the CA
	bodies [][]byte
	calls  []*fulciov2.CreateSigningCertificateRequest
	query  []byte // for a timestamp
	keys   []*ecdsa.PrivateKey
	count  atomic.Int64
}

// call asks for one certificate as caller i.
type call func(ctx context.Context, i int) error

const email = "bench@example.com"

// request is what the callers ask with.
type request struct {
	token jose.SignatureAlgorithm
	csr   bool // a certificate request in place of a key and a proof
	// unlogged is of a CA without a log: no SCT is looked for.
	unlogged bool
}

// usual is the request that most figures are of.
var usual = request{token: jose.RS256}

// newLoad prepares so many callers of a CA. The first of them asks for one
// certificate, which is looked at.
func (p plan) newLoad(ctx context.Context, at endpoints, callers int, r request) (*load, error) {
	token, err := p.issuer.token(r.token)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(strings.TrimPrefix(at.GRPC, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	l := &load{
		conn: conn,
		url:  at.HTTP,
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers, MaxConnsPerHost: callers}, Timeout: time.Minute},
	}
	for range callers {
		if err := l.prepare(token, r.csr); err != nil {
			return nil, err
		}
	}
	if l.query, err = timestampQuery(); err != nil {
		return nil, err
	}
	if err := l.check(ctx, r.unlogged); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// prepare makes one caller's key, proof and request.
func (l *load) prepare(token string, csr bool) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	l.keys = append(l.keys, key)
	message := &fulciov2.CreateSigningCertificateRequest{
		Credentials: &fulciov2.Credentials{Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
	}
	if csr {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{EmailAddresses: []string{email}}, key)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		message.Key = &fulciov2.CreateSigningCertificateRequest_CertificateSigningRequest{CertificateSigningRequest: text}
	} else {
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return err
		}
		digest := sha256.Sum256([]byte(email))
		proof, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return err
		}
		public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
		message.Key = &fulciov2.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulciov2.PublicKeyRequest{
			PublicKey:         &fulciov2.PublicKey{Algorithm: fulciov2.PublicKeyAlgorithm_ECDSA, Content: public},
			ProofOfPossession: proof,
		}}
	}
	body, err := protojson.Marshal(message)
	if err != nil {
		return err
	}
	l.calls, l.bodies = append(l.calls, message), append(l.bodies, body)
	return nil
}

// timestampQuery is a request for a timestamp with its certificates (RFC 3161 §2.4.1).
func timestampQuery() ([]byte, error) {
	type imprint struct {
		Algorithm pkix.AlgorithmIdentifier
		Hash      []byte
	}
	digest := sha256.Sum256([]byte("a signature of no importance"))
	return asn1.Marshal(struct {
		Version int
		Imprint imprint
		Certs   bool
	}{1, imprint{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, Parameters: asn1.NullRawValue}, digest[:]}, true})
}

// check asks for one certificate and looks at it: it is for the caller's key, its
// issuer signed it, and an SCT is in it.
func (l *load) check(ctx context.Context, unlogged bool) error {
	answer, err := fulciov2.NewCAClient(l.conn).CreateSigningCertificate(ctx, l.calls[0])
	if err != nil {
		return err
	}
	texts := answer.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates()
	if len(texts) < 2 {
		return fmt.Errorf("an answer with %d certificates", len(texts))
	}
	var chain [2]*x509.Certificate
	for i := range chain {
		block, _ := pem.Decode([]byte(texts[i]))
		if block == nil {
			return errors.New("an answer with a certificate that isn't PEM")
		}
		if chain[i], err = x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
	}
	leaf := chain[0]
	if !l.keys[0].PublicKey.Equal(leaf.PublicKey) {
		return errors.New("a certificate for another key")
	}
	scts := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2} // RFC 6962 §3.3
	if !unlogged && !slices.ContainsFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(scts) }) {
		return errors.New("a certificate without an SCT")
	}
	l.count.Add(1)
	return leaf.CheckSignatureFrom(chain[1])
}

func (l *load) close() {
	l.http.CloseIdleConnections()
	_ = l.conn.Close()
}

// issued is the number of certificates so far.
func (l *load) issued() int { return int(l.count.Load()) }

func (l *load) rest(ctx context.Context, i int) error {
	return l.post(ctx, signingCert, "application/json", l.bodies[i])
}

func (l *load) timestamp(ctx context.Context, _ int) error {
	return l.post(ctx, "/api/v1/timestamp", "application/timestamp-query", l.query)
}

const signingCert = "/api/v2/signingCert"

func (l *load) post(ctx context.Context, path, media string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", media)
	_, err = do(l.http, req)
	return err
}

func (l *load) grpc(ctx context.Context, i int) error {
	_, err := fulciov2.NewCAClient(l.conn).CreateSigningCertificate(ctx, l.calls[i])
	return err
}

// figure is what one run under load showed.
type figure struct {
	certificates int
	cpu          time.Duration // of the server, a certificate
	written      int64         // bytes that the server wrote to a disk, a certificate
	wall         time.Duration // of the whole run
	p50, p99     time.Duration // of one request, seen by the client
}

func (f figure) perSecond() float64 { return float64(f.certificates) / f.wall.Seconds() }

// measure runs n calls from so many callers, each waiting for its answer before
// it asks again.
func (l *load) measure(ctx context.Context, s process, c call, callers, n int) (figure, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	before, err := s.cpu()
	if err != nil {
		return figure{}, err
	}
	wrote, err := s.written()
	if err != nil {
		return figure{}, err
	}
	begin := time.Now()
	times := make([]time.Duration, n)
	var next atomic.Int64
	var wait sync.WaitGroup
	for i := range callers {
		wait.Go(func() {
			for ctx.Err() == nil {
				k := int(next.Add(1)) - 1
				if k >= n {
					return
				}
				asked := time.Now()
				if err := c(ctx, i); err != nil {
					cancel(err)
					return
				}
				times[k] = time.Since(asked)
				l.count.Add(1)
			}
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); err != nil {
		return figure{}, err
	}
	f := figure{certificates: n, wall: time.Since(begin)}
	after, err := s.cpu()
	if err != nil {
		return figure{}, err
	}
	all, err := s.written()
	if err != nil {
		return figure{}, err
	}
	if n > 0 {
		f.written = (all - wrote) / int64(n)
		f.cpu, f.p50, f.p99 = (after-before)/time.Duration(n), quantile(times, 0.5), quantile(times, 0.99)
	}
	return f, nil
}

// profile loads the server over REST while its own pprof endpoint records it.
func (l *load) profile(ctx context.Context, s *server, dir string, callers, n int) error {
	got := make(chan error, 1)
	go func() {
		got <- save(ctx, s.Metrics+"/debug/pprof/profile?seconds=5", filepath.Join(dir, fmt.Sprintf("mayfly-%d.pprof", callers)))
	}()
	for {
		if _, err := l.measure(ctx, s.process(), l.rest, callers, n/10); err != nil {
			return err
		}
		select {
		case err := <-got:
			return err
		default:
		}
	}
}

// save writes what url answers with to a file.
func save(ctx context.Context, url, file string) error {
	b, err := fetch(ctx, http.DefaultClient, url)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

func fetch(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return do(c, req)
}

func do(c *http.Client, req *http.Request) ([]byte, error) {
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s: %s: %s", req.URL.Path, resp.Status, body)
	}
	return body, nil
}

// quantile sorts times and gives the q-th of them; zero of none.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[int(q*float64(len(times)-1))]
}

// Where certificates go.
const (
	logged   = "embedded"
	indexed  = "embedded, and the index"
	unlogged = "none"
)

// run is one load on one CA.
type run struct {
	callers int
	over    string // REST or gRPC
	log     string // where certificates go
}

// runs are the loads of the report, in its order. The first of each CA comes after
// a warm-up.
var runs = []run{
	{64, "REST", logged}, {8, "REST", logged}, {1, "REST", logged}, {64, "gRPC", logged}, {8, "gRPC", logged},
	{64, "REST", indexed}, {1, "REST", indexed}, {64, "REST", unlogged}, {1, "REST", unlogged},
}

// certificates are how many of them a run is made of.
func (p plan) certificates(callers int) int {
	if callers == 1 {
		return p.solo
	}
	return p.each
}

// measureCallers makes the runs of a CA whose certificates go to log.
func measureCallers(ctx context.Context, r *report, dir, log string) error {
	p := r.plan
	s, err := p.start(ctx, dir, log)
	if err != nil {
		return err
	}
	defer s.stop()
	l, err := p.newLoad(ctx, s.endpoints, p.callers, request{token: jose.RS256, unlogged: log == unlogged})
	if err != nil {
		return err
	}
	defer l.close()
	calls := map[string]call{"REST": l.rest, "gRPC": l.grpc}
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, p.each/10); err != nil { // warm-up
		return err
	}
	for _, one := range runs {
		if one.log != log {
			continue
		}
		r.step("%d callers over %s, log: %s", one.callers, one.over, log)
		if err := r.flushes(dir, one); err != nil {
			return err
		}
		if r.runs[one], err = l.measure(ctx, s.process(), calls[one.over], one.callers, p.certificates(one.callers)); err != nil {
			return err
		}
		if err := r.flushes(dir, one); err != nil {
			return err
		}
	}
	if log == unlogged {
		return nil
	}
	return measureLife(ctx, r, dir, log, s, l)
}

// flushes measures the disk, right before and right after the run whose latency is
// compared with it.
func (r *report) flushes(dir string, of run) error {
	if of != (run{1, "REST", logged}) {
		return nil
	}
	times, err := fsyncTimes(dir, 300)
	r.fsyncs = append(r.fsyncs, times...)
	return err
}

// measureLife has the CA issue until its memory is read, and starts the one without an
// index again.
func measureLife(ctx context.Context, r *report, dir, log string, s *server, l *load) error {
	p := r.plan
	if p.profile != "" && log == logged {
		for _, callers := range []int{p.callers, 8, 1} {
			r.step("profile of %d callers", callers)
			if err := l.profile(ctx, s, p.profile, callers, p.certificates(callers)); err != nil {
				return err
			}
		}
	}
	r.step("soak: %d certificates", p.soak)
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, max(0, p.soak-l.issued())); err != nil {
		return err
	}
	var err error
	if r.resident[log], err = s.process().resident(); err != nil || log == indexed {
		return err
	}
	r.soaked = l.issued()
	if p.profile != "" {
		if err := save(ctx, s.Metrics+"/debug/pprof/heap", filepath.Join(p.profile, "mayfly-heap.pprof")); err != nil {
			return err
		}
	}
	s.stop()

	r.step("start to first certificate, with an existing CA")
	begin := time.Now()
	again, err := p.start(ctx, dir, logged)
	if err != nil {
		return err
	}
	defer again.stop()
	first, err := p.newLoad(ctx, again.endpoints, 1, usual) // asks for one
	if err != nil {
		return err
	}
	r.start = time.Since(begin)
	first.close()
	return nil
}

// callersTable is the table of the runs.
func (r *report) callersTable() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
## By callers

Each caller waits for its answer before it asks again. The bare cryptography of one
certificate, %s, is an RS256 and two P-256 verifications and three P-256 signatures;
without a log it is one of each less. What is written to disk is what the kernel
counts for the process, whole pages of 4 kB, of which each flush writes one at
least. Without a log that is the audit trail alone. The index (section `+"`store`"+`, SQLite)
follows the log in the same process.

| Callers | Over | Log | Certificates a second | Latency, median / p99 | CPU a certificate | over bare | Written to disk a certificate |
|---|---|---|---|---|---|---|---|
`, micros(r.bare.usual()))
	for _, one := range runs {
		f, bare := r.runs[one], r.bare.usual()
		if one.log == unlogged {
			bare -= r.bare[p256Sign] + r.bare[p256Verify]
		}
		if one.callers == 64 {
			one.callers = r.plan.callers
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %.0f | %s / %s | %s | %s | %s |\n", one.callers, one.over, one.log, f.perSecond(), micros(f.p50), micros(f.p99),
			micros(f.cpu), ratio(f.cpu, bare), kilobytes(f.written))
	}
	return b.String()
}
