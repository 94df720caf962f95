package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	sums       = "SHA256SUMS"
	provenance = "provenance.json"
)

// provenance states, as SLSA v1 has it, what the files of dir were built from and how.
func (b build) provenance(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var subjects []any
	for _, e := range entries {
		if e.IsDir() || e.Name() == sums || strings.HasPrefix(e.Name(), "provenance.") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name())) // #nosec G304 -- of the release
		if err != nil {
			return err
		}
		digest := sha256.Sum256(content)
		subjects = append(subjects, map[string]any{"name": e.Name(), "digest": map[string]string{"sha256": hex.EncodeToString(digest[:])}})
	}
	commit := strings.TrimSuffix(b.commit, "-dirty")
	source := map[string]any{"uri": "git+https://github.com/mayfly-ca/mayfly", "digest": map[string]string{"gitCommit": commit}}
	return writeJSON(filepath.Join(dir, provenance), map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "subject": subjects, "predicateType": "https://slsa.dev/provenance/v1",
		"predicate": map[string]any{
			"buildDefinition": map[string]any{
				"buildType":            "https://github.com/mayfly-ca/mayfly/blob/main/docs/releases.md",
				"externalParameters":   map[string]any{"source": source, "target": "make release", "version": b.version},
				"internalParameters":   map[string]any{"dirty": commit != b.commit, "go": runtime.Version(), "sourceDateEpoch": b.at.Unix()},
				"resolvedDependencies": []any{source},
			},
			"runDetails": map[string]any{"builder": map[string]any{"id": os.Getenv("RELEASE_BUILDER")}},
		},
	})
}

// sign has the Mayfly at MAYFLY_CA certify a key for the token in SIGSTORE_ID_TOKEN, and
// signs checksums and provenance with it: bundles for Sigstore's clients, and of the checksums
// also what openssl alone verifies.
func (b build) sign(ctx context.Context, dir string) error {
	ca, token := os.Getenv("MAYFLY_CA"), strings.TrimSpace(os.Getenv("SIGSTORE_ID_TOKEN"))
	if ca == "" || token == "" {
		return errors.New("MAYFLY_CA and SIGSTORE_ID_TOKEN say who signs as whom")
	}
	signed := func(content sign.Content) (*protobundle.Bundle, error) {
		key, err := sign.NewEphemeralKeypair(nil)
		if err != nil {
			return nil, err
		}
		return sign.Bundle(content, key, sign.BundleOptions{
			CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: ca, Timeout: time.Minute}),
			CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: token},
			TimestampAuthorities:       []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: ca + "/api/v1/timestamp"})},
			Context:                    ctx,
		})
	}
	statement, err := os.ReadFile(filepath.Join(dir, provenance)) // #nosec G304 -- of the release
	if err != nil {
		return err
	}
	bundle, err := signed(&sign.DSSEData{Data: statement, PayloadType: "application/vnd.in-toto+json"})
	if err != nil {
		return fmt.Errorf("signing the provenance: %w", err)
	}
	if err := writeBundle(filepath.Join(dir, "provenance.sigstore.json"), bundle); err != nil {
		return err
	}
	list, err := os.ReadFile(filepath.Join(dir, sums)) // #nosec G304 -- of the release
	if err != nil {
		return err
	}
	if bundle, err = signed(&sign.PlainData{Data: list}); err != nil {
		return fmt.Errorf("signing the checksums: %w", err)
	}
	if err := writeBundle(filepath.Join(dir, sums+".sigstore.json"), bundle); err != nil {
		return err
	}
	return detached(ctx, ca, dir, bundle)
}

func writeBundle(file string, bundle *protobundle.Bundle) error {
	text, err := protojson.Marshal(bundle)
	if err != nil {
		return err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return err
	}
	return os.WriteFile(file, append(compact.Bytes(), '\n'), 0o644)
}

// detached writes the parts of a bundle one by one, with what the CA tells clients to trust.
func detached(ctx context.Context, ca, dir string, bundle *protobundle.Bundle) error {
	stamps := bundle.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps()
	if len(stamps) != 1 {
		return fmt.Errorf("%d timestamps, want one", len(stamps))
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bundle.GetVerificationMaterial().GetCertificate().GetRawBytes()})
	parts := map[string][]byte{
		sums + ".sig": bundle.GetMessageSignature().GetSignature(),
		sums + ".tsr": stamps[0].GetSignedTimestamp(),
		sums + ".crt": leaf,
	}
	for file, path := range map[string]string{
		"trusted_root.json": "/trusted_root.json", "ca.pem": "/api/v1/rootCert", "timestamp.pem": "/api/v1/timestamp/certchain",
	} {
		content, err := fetch(ctx, ca+path)
		if err != nil {
			return err
		}
		parts[file] = content
	}
	for file, content := range parts {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return io.ReadAll(io.LimitReader(response.Body, 1<<20))
}
