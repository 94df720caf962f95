package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

const alice, issuer = "alice@example.com", "https://idp.example.com"

// sigstore is a CA without a log of certificates, and a Rekor.
type sigstore struct {
	root.BaseTrustedMaterial
	ca, rekor *ecdsa.PrivateKey
	root      *x509.Certificate
	begin     time.Time
}

func (s *sigstore) FulcioCertificateAuthorities() []root.CertificateAuthority {
	return []root.CertificateAuthority{&root.FulcioCertificateAuthority{Root: s.root, ValidityPeriodStart: s.begin}}
}

func (s *sigstore) RekorLogs() map[string]*root.TransparencyLog {
	return map[string]*root.TransparencyLog{s.logID(): {
		ValidityPeriodStart: s.begin, HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256, PublicKey: s.rekor.Public(),
	}}
}

func (s *sigstore) logID() string {
	der, _ := x509.MarshalPKIXPublicKey(s.rekor.Public())
	return fmt.Sprintf("%x", sha256.Sum256(der))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newSigstore(t *testing.T) *sigstore {
	t.Helper()
	s := &sigstore{ca: newKey(t), rekor: newKey(t), begin: time.Unix(1_800_000_000, 0)}
	s.root = s.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, Subject: pkix.Name{CommonName: "root"}, KeyUsage: x509.KeyUsageCertSign}, s.ca)
	return s
}

func (s *sigstore) issue(t *testing.T, c *x509.Certificate, of *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	c.NotBefore, c.NotAfter = s.begin, s.begin.Add(time.Hour)
	by := s.root
	if by == nil {
		by = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, of.Public(), s.ca)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// simple says that an image is signed, as cosign 2 does.
func simple(digest string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"app"},"image":{"docker-manifest-digest":"%s"},"type":"%s"},"optional":null}`, digest, simpleKind)
}

// sign signs a text and gives the annotations of its layer.
func (s *sigstore) sign(t *testing.T, text []byte) map[string]string {
	t.Helper()
	key := newKey(t)
	leaf := s.issue(t, &x509.Certificate{
		EmailAddresses: []string{alice}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuer)}},
	}, key)
	signed := func(by *ecdsa.PrivateKey, text []byte) []byte {
		sum := sha256.Sum256(text)
		signature, err := by.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	signature, certificate := signed(key, text), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	entry := fmt.Appendf(nil, `{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"%x"}},`+
		`"signature":{"content":"%s","publicKey":{"content":"%s"}}}}`, sha256.Sum256(text), coded(signature), coded(certificate))
	payload := fmt.Sprintf(`{"body":"%s","integratedTime":%d,"logID":"%s","logIndex":7}`, coded(entry), s.begin.Unix()+1, s.logID())
	return map[string]string{
		signatureIn: coded(signature), certificateIn: string(certificate),
		rekorIn: `{"SignedEntryTimestamp":"` + coded(signed(s.rekor, []byte(payload))) + `","Payload":` + payload + `}`,
	}
}

func coded(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// with is notes with another one in its place.
func with(notes map[string]string, name, value string) map[string]string {
	changed := map[string]string{name: value}
	for n, v := range notes {
		if n != name {
			changed[n] = v
		}
	}
	return changed
}

// TestSimpleSignatures verifies what cosign 2 keeps beside an image, of which each layer but
// the first is no good, and doesn't spoil what is.
func TestSimpleSignatures(t *testing.T) {
	t.Parallel()
	s, v := newSigstore(t), verification{options: &options{}}
	var err error
	if v.identity, err = verify.NewShortCertificateIdentity(issuer, "", alice, ""); err != nil {
		t.Fatal(err)
	}
	image, digest := pushed(t)
	text := simple(digest)
	good, again := s.sign(t, text), s.sign(t, text)
	other := simple("sha256:" + strings.Repeat("0", 64))
	attestation := bytes.Replace(text, []byte(simpleKind), []byte("atomic container signature"), 1)
	layers := []struct {
		text  []byte
		notes map[string]string
		fault string
		key   bool // signed the image
	}{
		{text, good, "", true},
		{other, s.sign(t, other), "and no image of " + digest, false},
		{attestation, s.sign(t, attestation), `"atomic container signature"`, false},
		{text, s.sign(t, other), "does not match artifact", false},
		{text, with(good, rekorIn, ""), "not enough verified log entries", true},
		{text, with(good, rekorIn, again[rekorIn]), "transparency log", true},
		{text, with(good, rekorIn, strings.Replace(good[rekorIn], `"logIndex":7`, `"logIndex":8`, 1)), "log", true},
		{text, with(good, rekorIn, "{"), rekorIn, false},
		{text, with(good, timestampIn, "{"), timestampIn, false},
		{text, with(good, certificateIn, ""), "with a key", false},
		{[]byte("{"), s.sign(t, []byte("{")), "JSON", false},
	}
	stored := empty.Image
	for _, l := range layers {
		stored = add(t, stored, l.text, l.notes)
	}
	at := put(t, image, digest, stored)
	beside, err := readImage(t.Context(), at)
	if err != nil || len(beside.found) != len(layers) {
		t.Fatalf("%+v: %v", beside, err)
	}
	for i, l := range layers {
		_, err := v.verify(beside.found[i], s)
		if (err == nil) != (l.fault == "") || err != nil && !strings.Contains(err.Error(), l.fault) {
			t.Errorf("%d: %v, want %q", i, err, l.fault)
		}
		if err := beside.found[i].checkKey(); (err == nil) != l.key {
			t.Errorf("%d: by its key: %v", i, err)
		}
	}

	// The certificates of those that signed it, each once.
	var out, warned bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs([]string{"--certificates", image + ":v1"})
	cmd.SetOut(&out)
	cmd.SetErr(&warned)
	if err := cmd.ExecuteContext(t.Context()); err != nil || out.String() != good[certificateIn] {
		t.Errorf("%v: %s", err, out.String())
	}
	if !strings.Contains(warned.String(), "@"+digest+":\n") || strings.Count(warned.String(), "left out: ") != 7 {
		t.Errorf("%s", warned.String())
	}

	// More than are read.
	for range maxReferrers {
		stored = add(t, stored, text, good)
	}
	put(t, image, digest, stored)
	if _, err := readImage(t.Context(), at); err == nil || !strings.Contains(err.Error(), "more than 200 signatures") {
		t.Error(err)
	}
}

// TestBesideImage reads what others put there, which doesn't spoil a signature: an index, what
// was deleted again, of which a reader hears, and what would be fetched from elsewhere.
func TestBesideImage(t *testing.T) {
	t.Parallel()
	s := newSigstore(t)
	image, digest := pushed(t)
	text := simple(digest)
	of, err := remote.Head(parse(t, image+":v1"), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(parse(t, image+":index"), mutate.Subject(empty.Index, *of).(v1.ImageIndex), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	gone := mutate.Subject(add(t, empty.Image, text, nil), *of).(v1.Image)
	sum, err := gone.Digest()
	if err != nil {
		t.Fatal(err)
	}
	write(t, image+":gone", gone)
	if err := remote.Delete(parse(t, image+"@"+sum.String()), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(text, types.MediaType(simpleType)), URLs: []string{"https://example.com/"}})
	if err != nil {
		t.Fatal(err)
	}
	at := put(t, image, digest, add(t, elsewhere, text, s.sign(t, text)))
	if beside, err := readImage(t.Context(), at); err != nil || len(beside.found) != 2 || beside.found[0].checkKey() != nil || beside.found[1].checkKey() == nil {
		t.Errorf("%+v: %v", beside, err)
	}

	// An index where cosign 2 has its signatures.
	image, digest = pushed(t)
	if err := remote.WriteIndex(parse(t, image+":"+strings.Replace(digest, ":", "-", 1)+".sig"), empty.Index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	if beside, err := readImage(t.Context(), image+"@"+digest); err != nil || len(beside.found) != 0 {
		t.Errorf("%+v: %v", beside, err)
	}
}

func parse(t *testing.T, reference string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTimeout asks what never answers.
func TestTimeout(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(server.Close)
	cmd := newCommand()
	cmd.SetArgs([]string{"--certificates", "--timeout", "100ms", strings.TrimPrefix(server.URL, "http://") + "/app:v1"})
	cmd.SetErr(io.Discard)
	if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a registry: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := (&options{crl: server.URL}).readList(ctx, "aa", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a list: %v", err)
	}
}

// TestFaults: what is no bundle is named, and what is said of it is bounded, though others wrote it.
func TestFaults(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "app.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := verification{options: &options{bundle: file}}
	found, err := v.read(t.Context(), "app")
	if err != nil || len(found) != 1 || !strings.HasPrefix(found[0].fault.Error(), file+": it isn't a Sigstore bundle") {
		t.Errorf("%+v: %v", found, err)
	}
	for _, o := range []options{{tufURL: "https://me:secret@tuf.example.com"}, {crl: "https://me:secret@ca.example.com/crl/"}} {
		if _, _, err := o.trust(t.Context()); err == nil || !strings.Contains(err.Error(), "has a user or a password") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	var said signature
	if err := v.signature(signed{fault: errors.New(strings.Repeat("x", 1<<20))}, &said); err == nil || said.Result != "bad" || len(said.Words) > 2010 {
		t.Errorf("%s, %d bytes: %v", said.Result, len(said.Words), err)
	}
}

// pushed is an image in a registry: its name, and the digest that its tag v1 has.
func pushed(t *testing.T) (image, digest string) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	image = strings.TrimPrefix(server.URL, "http://") + "/app"
	is, err := random.Image(256, 1)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := is.Digest()
	if err != nil {
		t.Fatal(err)
	}
	write(t, image+":v1", is)
	return image, sum.String()
}

func write(t *testing.T, to string, image v1.Image) {
	t.Helper()
	if err := remote.Write(parse(t, to), image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// add adds a layer, as cosign 2 stores a signature.
func add(t *testing.T, to v1.Image, text []byte, notes map[string]string) v1.Image {
	t.Helper()
	image, err := mutate.Append(to, mutate.Addendum{Layer: static.NewLayer(text, types.MediaType(simpleType)), Annotations: notes})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// put puts signatures beside an image, and gives its name by digest.
func put(t *testing.T, image, digest string, signatures v1.Image) string {
	t.Helper()
	write(t, image+":"+strings.Replace(digest, ":", "-", 1)+".sig", signatures)
	return image + "@" + digest
}
