package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/internal/setting"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// revokedFigures are what issuing costs beside lists of so many certificates.
type revokedFigures struct {
	none, still, signing figure          // nothing revoked; a long list that rests; one that is signed all the time
	listed               []time.Duration // from the answer to a revocation to a list that has it
	listBytes            int
	page                 time.Duration // a page of the feed
	resident             [2]int64      // without a list, and after all
}

// runRevoked measures a CA that has revoked so many certificates, and prints a table.
func runRevoked(ctx context.Context, p plan, entries int, dir string) (string, error) {
	var f revokedFigures
	if err := p.prepare(ctx, dir, logged); err != nil {
		return "", err
	}
	issuing, err := os.ReadFile(filepath.Join(dir, "authority", "chain.pem"))
	if err != nil {
		return "", err
	}
	certs, err := chain.Parse(issuing)
	if err != nil {
		return "", err
	}
	id := revoke.ID(certs[0])
	if f.none, err = f.beside(ctx, p, dir, nil, 0); err != nil {
		return "", err
	}
	const revocations = 10 // while the last figure is taken
	if err := revokeMany(ctx, dir, id, entries-revocations); err != nil {
		return "", err
	}
	if f.still, err = f.beside(ctx, p, dir, nil, 1); err != nil {
		return "", err
	}
	revokeSome := func(ctx context.Context, s *server, l *load) error {
		for range revocations {
			if err := f.revoke(ctx, s, l, id); err != nil {
				return err
			}
		}
		begun := time.Now()
		page, err := fetch(ctx, l.http, s.HTTP+"/revocations/feed.json")
		f.page = time.Since(begun)
		if err == nil && bytes.Count(page, []byte(`"serial"`)) != min(entries, 1000) {
			err = fmt.Errorf("a page of the feed with %d statements", bytes.Count(page, []byte(`"serial"`)))
		}
		return err
	}
	if f.signing, err = f.beside(ctx, p, dir, revokeSome, 1); err != nil {
		return "", err
	}
	return f.table(entries, p.callers), nil
}

// beside loads a CA while something else is asked of it, for as long as that takes.
func (f *revokedFigures) beside(ctx context.Context, p plan, dir string, other func(context.Context, *server, *load) error, memory int) (got figure, err error) {
	s, err := p.dev(ctx, dir)
	if err != nil {
		return got, err
	}
	defer s.stop()
	l, err := p.newLoad(ctx, s.endpoints, p.callers, usual)
	if err != nil {
		return got, err
	}
	defer l.close()
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, p.each); err != nil { // warm-up, while a list of old is signed
		return got, err
	}
	var wait sync.WaitGroup
	var failed error
	done := make(chan struct{})
	wait.Go(func() {
		defer close(done)
		if other != nil {
			failed = other(ctx, s, l)
		}
	})
	var all []figure
	for finished := false; !finished; {
		one, err := l.measure(ctx, s.process(), l.rest, p.callers, p.each)
		if err != nil {
			return got, err
		}
		all = append(all, one)
		select {
		case <-done:
			finished = true
		default:
		}
	}
	wait.Wait()
	if f.resident[memory], err = s.process().resident(); err != nil {
		return got, err
	}
	return mean(all), failed
}

// mean is one figure of several runs of one length.
func mean(all []figure) (m figure) {
	for _, f := range all {
		m.certificates += f.certificates
		m.wall += f.wall
		m.cpu += f.cpu / time.Duration(len(all))
		m.p50 += f.p50 / time.Duration(len(all))
		m.p99 += f.p99 / time.Duration(len(all))
	}
	return m
}

// revokeMany adds statements to the log in dir, whose CA doesn't run.
func revokeMany(ctx context.Context, dir, id string, n int) error {
	o := kms.Options{}
	signer, err := keystore.Open(ctx, "file:"+filepath.Join(dir, "revocations.key.pem"), o)
	if err != nil {
		return err
	}
	r, err := revoke.Open(ctx, revoke.Options{
		Config: revoke.Config{Directory: setting.Path(filepath.Join(dir, "revocations")), MarkFile: setting.Path(filepath.Join(dir, "revocations.mark"))},
		Signer: signer, URL: "http://127.0.0.1", ListOptions: revoke.ListOptions{Now: time.Now, Logger: slog.New(slog.DiscardHandler)},
	})
	if err != nil {
		return err
	}
	defer r.Close()
	for from := 0; from < n; from += 10_000 {
		drafts := make([]revoke.Statement, min(10_000, n-from))
		for i := range drafts {
			drafts[i] = revoke.Statement{
				Authority: id, Serial: new(big.Int).Lsh(big.NewInt(int64(from+i+1)), 96).Text(16), NotBefore: time.Now().UTC().Truncate(time.Second),
				Reason: "keyCompromise", By: revoke.Asker{Right: "admin", Rule: "bench"},
			}
		}
		if _, err := r.Log.Append(drafts); err != nil {
			return err
		}
	}
	return nil
}

// revoke has a certificate made and revoked, and waits for the list that has it.
func (f *revokedFigures) revoke(ctx context.Context, s *server, l *load, id string) error {
	answer, err := fulciov2.NewCAClient(l.conn).CreateSigningCertificate(ctx, l.calls[0])
	if err != nil {
		return err
	}
	body, err := protojson.Marshal(&mayflyv1.RevokeRequest{
		Certificates: [][]byte{[]byte(answer.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates()[0])}, Reason: "keyCompromise",
	})
	if err != nil {
		return err
	}
	url := s.HTTP + "/crl/" + id + ".crl"
	before, _, err := head(ctx, l.http, url)
	if err != nil {
		return err
	}
	if err := l.post(ctx, "/api/v1/mayfly/revocations", "application/json", body); err != nil {
		return err
	}
	begun := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(2 * time.Minute); ; {
		etag, size, err := head(ctx, l.http, url)
		if err != nil {
			return err
		}
		if etag != before {
			f.listed, f.listBytes = append(f.listed, time.Since(begun)), size
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("no other list at %s within two minutes", url)
		}
	}
}

// head is what tells a list from another, and its size, without a fetch of it.
func head(ctx context.Context, c *http.Client, url string) (etag string, size int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get("ETag"), int(resp.ContentLength), err
}

func (f *revokedFigures) table(entries, callers int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Issuing beside lists of %d revoked certificates, REST, %d callers:\n\n| | certificates a second | CPU a certificate | p50 | p99 |\n|---|---|---|---|---|\n", entries, callers)
	for _, row := range []struct {
		what string
		figure
	}{{"nothing revoked", f.none}, {"the list rests", f.still}, {fmt.Sprintf("the list is signed %d times meanwhile", len(f.listed)), f.signing}} {
		fmt.Fprintf(&b, "| %s | %.0f (%.2f) | %v | %v | %v |\n", row.what, row.perSecond(), row.perSecond()/f.none.perSecond(),
			row.cpu.Round(time.Microsecond), row.p50.Round(100*time.Microsecond), row.p99.Round(100*time.Microsecond))
	}
	fmt.Fprintf(&b, "\nFrom a revocation's answer to a list of %.1f MB that has it: median %v, longest %v. A page of the feed: %v. Resident: %d MB without, %d MB after all.\n",
		float64(f.listBytes)/1e6, quantile(f.listed, 0.5).Round(10*time.Millisecond), quantile(f.listed, 1).Round(10*time.Millisecond),
		f.page.Round(time.Millisecond), f.resident[0]>>20, f.resident[1]>>20)
	return b.String()
}
