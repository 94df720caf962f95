package trustroot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/ca/chain"
)

// Target is one key or certificate in a file of its own: clients older than the
// trusted root (cosign 2, gitsign) look for those in a TUF repository.
type Target struct {
	Name   string
	Text   []byte                       // PEM
	Custom map[string]map[string]string // the custom metadata by which they find it
}

// LegacyTargets are the keys and certificates of h that such clients can use. They
// know no windows, and want one timestamp authority and no Rekor key but ECDSA: with
// another among them they refuse everything.
func (h History) LegacyTargets() (all []Target) {
	h = h.ordered()
	add := func(usage, uri, kind string, der []byte) {
		sum := sha256.Sum256(der)
		// What has ended is Active too: it verifies what was signed in its time, and of
		// any other status clients tell at each use.
		t := Target{
			fmt.Sprintf("%s-%x.pem", strings.ToLower(usage), sum[:6]), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}),
			map[string]map[string]string{"sigstore": {"usage": usage, "status": "Active", "uri": uri}},
		}
		if !slices.ContainsFunc(all, func(o Target) bool { return o.Name == t.Name }) { // authorities may share a root
			all = append(all, t)
		}
	}
	authorities := func(usage string, list []Authority) {
		for _, a := range list {
			for _, c := range a.Chain {
				add(usage, a.URL, "CERTIFICATE", c.Raw)
			}
		}
	}
	authorities("Fulcio", h.Authorities)
	authorities("TSA", h.TimestampAuthorities[max(0, len(h.TimestampAuthorities)-1):])
	for _, l := range h.CTLogs {
		add("CTFE", l.URL, "PUBLIC KEY", l.SPKI)
	}
	for _, l := range h.TransparencyLogs {
		if l.isECDSA() {
			add("Rekor", l.URL, "PUBLIC KEY", l.SPKI)
		}
	}
	return all
}

// TrustRootRemote is a resource for policy-controller that follows the TUF repository
// at mirror from root, its first root.json.
func TrustRootRemote(name, mirror string, root []byte) ([]byte, error) { //nolint:revive // TrustRoot is the resource
	return trustRoot(name, "remote", root, "mirror", mirror)
}

// TrustRootRepository is a resource for policy-controller with the whole TUF repository
// in it, for clusters that reach nothing: files are its contents, by their path.
func TrustRootRepository(name string, root []byte, files map[string][]byte) ([]byte, error) { //nolint:revive // TrustRoot is the resource
	packed, err := pack(files)
	if err != nil {
		return nil, err
	}
	return trustRoot(name, "repository", root, "mirrorFS", base64.StdEncoding.EncodeToString(packed))
}

func trustRoot(name, source string, root []byte, field, value string) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion": "policy.sigstore.dev/v1alpha1", "kind": "TrustRoot", "metadata": map[string]string{"name": name},
		"spec": map[string]any{source: map[string]string{"root": base64.StdEncoding.EncodeToString(root), field: value, "targets": "targets"}},
	})
}

// maxPacked is how much of a file policy-controller reads: what one call of gzip's
// reader gives, its window at most.
const maxPacked = 32 << 10

// pack is a tar.gz as policy-controller reads it, the same for the same files. Each
// file's contents begin a gzip member, or the window's end could cut them short.
func pack(files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if n := len(files[path]); n > maxPacked {
			return nil, fmt.Errorf("trustroot: %s has %d bytes, and policy-controller reads at most %d of a file that is in the resource: have it follow the repository instead", path, n, maxPacked)
		}
		errs = append(errs, t.WriteHeader(&tar.Header{Name: "repository/" + path, Mode: 0o644, Size: int64(len(files[path]))}), z.Close())
		z.Reset(&b)
		_, err := t.Write(files[path])
		errs = append(errs, err)
	}
	err := errors.Join(append(errs, t.Close(), z.Close())...)
	return b.Bytes(), err
}

// KyvernoAttestor is an entry of spec.attestors of Kyverno's ImageValidatingPolicy: it
// lets in what subject of issuer signed, and follows the TUF repository at mirror from
// root, its first root.json.
func KyvernoAttestor(mirror string, root []byte, issuer, subject string) ([]byte, error) {
	return entryFor(issuer, subject, map[string]any{"name": "mayfly", "cosign": map[string]any{
		"tuf":     map[string]any{"mirror": mirror, "root": map[string]string{"data": base64.StdEncoding.EncodeToString(root)}},
		"keyless": map[string]any{"identities": []map[string]string{{"issuer": issuer, "subject": subject}}},
	}})
}

// KyvernoKeyless is an entry of attestors[].entries of Kyverno's ClusterPolicy, which
// takes no TUF repository and one key of each kind: those in force at now.
func (h History) KyvernoKeyless(issuer, subject string, now time.Time) ([]byte, error) {
	h = h.ordered()
	var roots []byte
	for _, a := range h.Authorities {
		roots = append(roots, chain.PEM(a.Chain)...)
	}
	ct, rekor := map[string]any{"ignoreSCT": true}, map[string]any{"ignoreTlog": true}
	key := func(spki []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	}
	for _, l := range h.CTLogs {
		if l.Holds(now) {
			ct = map[string]any{"pubkey": key(l.SPKI)}
		}
	}
	for _, l := range h.TransparencyLogs {
		if l.APIVersion < 2 && l.isECDSA() && l.Holds(now) {
			rekor = map[string]any{"url": l.URL, "pubkey": key(l.SPKI)}
		}
	}
	for _, a := range h.TimestampAuthorities {
		if a.Holds(now) {
			ct["tsaCertChain"] = string(chain.PEM(a.Chain))
		}
	}
	return entryFor(issuer, subject, map[string]any{"keyless": map[string]any{
		"issuer": issuer, "subject": subject, "roots": string(roots), "ctlog": ct, "rekor": rekor,
	}})
}

// entryFor is an element of a list that lets subject of issuer in.
func entryFor(issuer, subject string, entry any) ([]byte, error) {
	if issuer == "" || subject == "" {
		return nil, errors.New("trustroot: a policy needs an issuer and a subject: without them Kyverno lets in what anybody signed")
	}
	return yaml.Marshal([]any{entry})
}
