package service

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestWhatCantIssueServesTheRest: documents, the log's reads, the signed trust root and
// the lists of revoked certificates come from a service that isn't ready.
func TestWhatCantIssueServesTheRest(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(r *rig, c *config.Config) {
		r.issuer.Break(issuerDiscovery, failing(http.StatusServiceUnavailable))
		revoking(t, r, c)
		published(t, r, c)
	})
	issuing, err := x509.ParseCertificate(r.Service.issuer.Authorities().Active.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	r.list(t, issuing, 0)
	for _, path := range []string{
		"/healthz", "/trusted_root.json", "/signing_config.json", "/api/v2/trustBundle", "/api/v1/rootCert", "/tuf/1.root.json", "/tuf/timestamp.json",
		revoke.FeedPath + "checkpoint", "/ctlog/" + time.Now().UTC().Format("2006") + "/checkpoint", "/ctlog/" + time.Now().UTC().Format("2006") + "/ct/v1/get-sth",
	} {
		if code, text, err := get(t.Context(), r.url+path); err != nil || code != http.StatusOK {
			t.Errorf("%s: %d %s, %v", path, code, text, err)
		}
	}
	if code, text := r.readiness(t); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz: %d %s", code, text)
	}
}

// published adds a signed trust root to a rig's configuration.
func published(t *testing.T, r *rig, c *config.Config) {
	t.Helper()
	file := filepath.Join(r.dir, "tuf.online.key.pem")
	if _, err := keystore.GenerateFile(file, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	online, root := kms.InMemory(readKey(t, file)), kms.InMemory(newKey(t))
	text, err := os.ReadFile(filepath.Join(r.dir, authorityName, "chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var ders [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		ders = append(ders, block.Bytes)
	}
	chain, err := trustroot.ParseChain(ders)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	documents, err := trustroot.Render(trustroot.History{Authorities: []trustroot.Authority{{Chain: chain, URL: c.Server.PublicURL, Start: chain[0].NotBefore}}})
	if err != nil {
		t.Fatal(err)
	}
	only := []crypto.PublicKey{root.Public()}
	draft, err := tuf.Init(tuf.Keys{Root: only, Targets: only, Threshold: 1, Online: online.Public()}, documents, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := draft.Sign(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	c.TUF = tuf.Config{Directory: setting.Path(filepath.Join(r.dir, "tuf")), Key: setting.KeyRef("file:" + file), MarkFile: setting.Path(filepath.Join(r.dir, "tuf.mark"))}
	if _, err := tuf.Publish(t.Context(), string(c.TUF.Directory), draft, online, now); err != nil {
		t.Fatal(err)
	}
}
