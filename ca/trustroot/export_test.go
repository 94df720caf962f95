package trustroot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

func edKey(t *testing.T) ed25519.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// TestLegacyTargets: each key and certificate that older clients can use is a target
// once, and what makes them refuse all isn't among them.
func TestLegacyTargets(t *testing.T) {
	t.Parallel()
	h := sample(t)
	h.Authorities[0].Chain[1] = h.Authorities[1].Chain[1] // one root above both
	h.TransparencyLogs = append(h.TransparencyLogs, newRekor(t, 2, edKey(t)))
	got := h.LegacyTargets()
	count := make(map[string]int)
	for i, target := range got {
		custom := target.Custom["sigstore"]
		usage := custom["usage"]
		count[usage]++
		if len(target.Custom) != 1 || len(custom) != 3 || custom["status"] != "Active" || custom["uri"] == "" || !strings.HasPrefix(target.Name, strings.ToLower(usage)+"-") {
			t.Errorf("%s: %v", target.Name, target.Custom)
		}
		if slices.ContainsFunc(got[:i], func(o Target) bool { return o.Name == target.Name }) {
			t.Errorf("%s twice", target.Name)
		}
		if usage == "CTFE" || usage == "Rekor" {
			if _, _, err := pemfile.PublicKey(target.Text); err != nil {
				t.Errorf("%s: %v", target.Name, err)
			}
		}
	}
	if want := map[string]int{"Fulcio": 3, "TSA": 3, "CTFE": 2, "Rekor": 2}; !reflect.DeepEqual(count, want) {
		t.Errorf("%v; want %v", count, want)
	}
	for _, c := range h.TimestampAuthorities[0].Chain { // the one that started last
		if !slices.ContainsFunc(got, func(o Target) bool { return bytes.Equal(o.Text, catest.PEM(c)) }) {
			t.Errorf("no %s", c.Subject)
		}
	}
	if !reflect.DeepEqual(h.LegacyTargets(), got) {
		t.Error("other targets the second time")
	}
	if none := (History{}).LegacyTargets(); len(none) > 0 {
		t.Errorf("%v", none)
	}
}

func unyaml(t *testing.T, b []byte, into any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

// trustRootResource is policy-controller's TrustRoot (policy.sigstore.dev/v1alpha1),
// as far as it is written here.
type trustRootResource struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		Remote     *struct{ Root, Mirror, Targets string }
		Repository *struct {
			Root, Targets string
			MirrorFS      string `yaml:"mirrorFS"`
		}
	}
}

func TestTrustRoot(t *testing.T) {
	t.Parallel()
	root := []byte(`{"signatures":[],"signed":{}}` + "\n")
	is64 := func(text string, want []byte) {
		t.Helper()
		if got, err := base64.StdEncoding.DecodeString(text); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	var remote trustRootResource
	b, err := TrustRootRemote("mayfly", "https://ca.example/tuf", root)
	if err != nil {
		t.Fatal(err)
	}
	unyaml(t, b, &remote)
	if r := remote.Spec.Remote; remote.APIVersion != "policy.sigstore.dev/v1alpha1" || remote.Kind != "TrustRoot" || remote.Metadata.Name != "mayfly" ||
		r == nil || r.Mirror != "https://ca.example/tuf" || r.Targets != "targets" || remote.Spec.Repository != nil {
		t.Errorf("%s", b)
	}
	is64(remote.Spec.Remote.Root, root)

	large := make([]byte, maxPacked)
	_, _ = rand.Read(large)
	files := map[string][]byte{"1.root.json": root, "timestamp.json": []byte("{}"), "targets/ab.trusted_root.json": large, "targets/cd.trusted_root.json": large, "empty": {}}
	if b, err = TrustRootRepository("mayfly", root, files); err != nil {
		t.Fatal(err)
	}
	var repository trustRootResource
	unyaml(t, b, &repository)
	r := repository.Spec.Repository
	if r == nil || r.Targets != "targets" || repository.Spec.Remote != nil {
		t.Fatalf("%s", b)
	}
	is64(r.Root, root)
	if got := unpacked(t, r.MirrorFS); !reflect.DeepEqual(got, files) {
		t.Errorf("%d files", len(got))
	}
	if again, err := TrustRootRepository("mayfly", root, files); err != nil || !bytes.Equal(again, b) {
		t.Errorf("another resource of the same files, %v", err)
	}
	files["targets/ab.trusted_root.json"] = make([]byte, maxPacked+1)
	if _, err := TrustRootRepository("mayfly", root, files); err == nil || !strings.Contains(err.Error(), "targets/ab.trusted_root.json has 32769 bytes") {
		t.Error(err)
	}
}

// unpacked reads as policy-controller does: below /repository/, and each file by one
// call of Read.
func unpacked(t *testing.T, text string) map[string][]byte {
	t.Helper()
	z, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for r := tar.NewReader(z); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content := make([]byte, header.Size)
		if n, err := r.Read(content); int64(n) != header.Size && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %d of %d bytes at once, %v", header.Name, n, header.Size, err)
		}
		name, below := strings.CutPrefix(header.Name, "repository/")
		if !below || header.Typeflag != tar.TypeReg {
			t.Errorf("%s", header.Name)
		}
		files[name] = content
	}
}

func TestKyverno(t *testing.T) {
	t.Parallel()
	h := sample(t)
	h.TransparencyLogs = append(h.TransparencyLogs, newRekor(t, 1, edKey(t)))
	root := []byte(`{"signatures":[]}`)
	b, err := KyvernoAttestor("https://ca.example/tuf", root, "https://issuer.example", "alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	var attestors []struct {
		Name   string
		Cosign struct {
			TUF struct {
				Mirror string
				Root   struct{ Data string }
			} `yaml:"tuf"`
			Keyless struct {
				Identities []struct{ Issuer, Subject string }
			}
		}
	}
	unyaml(t, b, &attestors)
	cosign := attestors[0].Cosign
	if cosign.TUF.Mirror != "https://ca.example/tuf" || cosign.TUF.Root.Data != base64.StdEncoding.EncodeToString(root) ||
		fmt.Sprint(cosign.Keyless.Identities) != "[{https://issuer.example alice@example.com}]" {
		t.Errorf("%s", b)
	}

	keyless := func(h History, now time.Time) (k struct {
		Issuer, Subject, Roots string
		CTLog                  struct {
			Pubkey       string
			IgnoreSCT    bool   `yaml:"ignoreSCT"`
			TSACertChain string `yaml:"tsaCertChain"`
		} `yaml:"ctlog"`
		Rekor struct {
			URL, Pubkey string
			IgnoreTlog  bool `yaml:"ignoreTlog"`
		}
	},
	) {
		t.Helper()
		b, err := h.KyvernoKeyless("https://issuer.example", "alice@example.com", now)
		if err != nil {
			t.Fatal(err)
		}
		into := []map[string]any{{"keyless": &k}}
		var entries []struct{ Keyless yaml.Node }
		unyaml(t, b, &entries)
		if err := entries[0].Keyless.Decode(into[0]["keyless"]); err != nil {
			t.Fatal(err)
		}
		return k
	}
	isKey := func(text string, spki []byte) {
		t.Helper()
		if got, _, err := pemfile.PublicKey([]byte(text)); err != nil || !bytes.Equal(got, spki) {
			t.Errorf("another key, %v", err)
		}
	}
	at := keyless(h, epoch.AddDate(1, 0, 0))
	if want := string(catest.PEM(slices.Concat(h.Authorities[1].Chain, h.Authorities[0].Chain)...)); at.Issuer != "https://issuer.example" || at.Subject != "alice@example.com" || at.Roots != want {
		t.Errorf("%+v", at)
	}
	isKey(at.CTLog.Pubkey, h.CTLogs[0].SPKI)
	isKey(at.Rekor.Pubkey, h.TransparencyLogs[1].SPKI)
	if at.Rekor.URL != "https://rekor.example" || at.CTLog.TSACertChain != string(catest.PEM(h.TimestampAuthorities[0].Chain...)) || at.CTLog.IgnoreSCT || at.Rekor.IgnoreTlog {
		t.Errorf("%+v", at)
	}
	isKey(keyless(h, epoch).CTLog.Pubkey, h.CTLogs[1].SPKI) // before the change
	h.CTLogs, h.TransparencyLogs, h.TimestampAuthorities = nil, nil, nil
	if none := keyless(h, epoch); !none.CTLog.IgnoreSCT || !none.Rekor.IgnoreTlog || none.CTLog.TSACertChain != "" {
		t.Errorf("%+v", none)
	}
	for _, who := range [][2]string{{"", "alice@example.com"}, {"https://issuer.example", ""}} {
		if _, err := KyvernoAttestor("https://ca.example/tuf", root, who[0], who[1]); err == nil || !strings.Contains(err.Error(), "lets in what anybody signed") {
			t.Error(err)
		}
		if _, err := h.KyvernoKeyless(who[0], who[1], epoch); err == nil {
			t.Error("a policy for anybody")
		}
	}
}
