package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
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

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// load is a set of prepared requests, one for each caller, and the connections
// that carry them. The same token and keys are sent again and again: what the
// server does for them is the same each time, and the client stays cheap.
type load struct {
	http   *http.Client
	conn   *grpc.ClientConn
	url    string
	bodies [][]byte
	calls  []*fulciov2.CreateSigningCertificateRequest
	count  atomic.Int64
}

// call asks for one certificate as caller i.
type call func(ctx context.Context, i int) error

const email = "bench@example.com"

func newLoad(ctx context.Context, s *server, callers int) (*load, error) {
	token, err := fetch(ctx, http.DefaultClient, s.Issuer+"/dev/token?email="+email)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	conn, err := grpc.NewClient(strings.TrimPrefix(s.GRPC, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	l := &load{
		conn: conn,
		url:  s.HTTP + "/api/v2/signingCert",
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers, MaxConnsPerHost: callers}, Timeout: time.Minute},
	}
	for range callers {
		if err := l.prepare(strings.TrimSpace(string(token))); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// prepare makes one caller's key, proof and request.
func (l *load) prepare(token string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
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
	body, err := json.Marshal(map[string]any{
		"credentials": map[string]any{"oidcIdentityToken": token},
		"publicKeyRequest": map[string]any{
			"publicKey":         map[string]any{"algorithm": "ECDSA", "content": public},
			"proofOfPossession": proof,
		},
	})
	if err != nil {
		return err
	}
	l.bodies = append(l.bodies, body)
	l.calls = append(l.calls, &fulciov2.CreateSigningCertificateRequest{
		Credentials: &fulciov2.Credentials{Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
		Key: &fulciov2.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulciov2.PublicKeyRequest{
			PublicKey:         &fulciov2.PublicKey{Algorithm: fulciov2.PublicKeyAlgorithm_ECDSA, Content: public},
			ProofOfPossession: proof,
		}},
	})
	return nil
}

func (l *load) close() {
	l.http.CloseIdleConnections()
	_ = l.conn.Close()
}

// issued is the number of certificates so far.
func (l *load) issued() int { return int(l.count.Load()) }

func (l *load) rest(ctx context.Context, i int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(l.bodies[i]))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
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
	wall         time.Duration // of the whole run
	p50, p99     time.Duration // of one request, seen by the client
}

func (f figure) perSecond() float64 { return float64(f.certificates) / f.wall.Seconds() }

// measure runs n calls from so many callers, each waiting for its answer before
// it asks again.
func (l *load) measure(ctx context.Context, s *server, c call, callers, n int) (figure, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	before, err := s.cpu()
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
	if n > 0 {
		f.cpu, f.p50, f.p99 = (after-before)/time.Duration(n), quantile(times, 0.5), quantile(times, 0.99)
	}
	return f, nil
}

// profile loads the server over REST while its own pprof endpoint records it.
func (l *load) profile(ctx context.Context, s *server, dir string, callers, n int) error {
	got := make(chan error, 1)
	go func() {
		got <- save(ctx, s.Metrics+"/debug/pprof/profile?seconds=5", filepath.Join(dir, "mayfly.pprof"))
	}()
	for {
		if _, err := l.measure(ctx, s, l.rest, callers, n/10); err != nil {
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
