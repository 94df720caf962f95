package kms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// eachSealer runs a test with every vendor's stand-in.
func eachSealer(t *testing.T, run func(t *testing.T, s *kmstest.Sealing)) {
	t.Helper()
	for name, make := range kmstest.Sealings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, make(t))
		})
	}
}

func openedSealer(t *testing.T, ref string, o kms.Options) kms.Sealer {
	t.Helper()
	s, err := keystore.OpenSealer(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sealed makes a sealed key of the algorithm and gives the options to open it.
func sealed(t *testing.T, s *kmstest.Sealing, a kms.Algorithm) kms.Options {
	t.Helper()
	o := s.Options
	o.SealedKey = setting.Path(filepath.Join(t.TempDir(), "issuing.sealed.json"))
	ref, err := keystore.Generate(t.Context(), s.Ref, a, o)
	if err != nil || ref != s.Pinned {
		t.Fatalf("%q, %v; want %q", ref, err, s.Pinned)
	}
	return o
}

func TestSealerConformance(t *testing.T) {
	t.Parallel()
	eachSealer(t, func(t *testing.T, s *kmstest.Sealing) {
		sealer := openedSealer(t, s.Ref, s.Options)
		if sealer.String() != s.Pinned {
			t.Errorf("pinned %s; want %s", sealer, s.Pinned)
		}
		runSealer(t, sealer, openedSealer(t, s.Other, s.Options), s.Authenticates)
	})
}

// TestSealedKeyConformance: a sealed key signs as any other, in memory: the KMS
// is asked once, at Open, and can be gone after it.
func TestSealedKeyConformance(t *testing.T) {
	t.Parallel()
	eachSealer(t, func(t *testing.T, s *kmstest.Sealing) {
		runSigner(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
			signer := opened(t, s.Ref, sealed(t, s, a))
			return signer
		}, kms.ECDSAP256, kms.RSA3072)
	})
}

func TestSealedKeyNeedsTheKMSAtOpenAlone(t *testing.T) {
	t.Parallel()
	eachSealer(t, func(t *testing.T, s *kmstest.Sealing) {
		o := sealed(t, s, kms.ECDSAP256)
		before := s.Count(s.Unseal)
		signer := opened(t, s.Ref, o)
		if got := s.Count(s.Unseal) - before; got != 1 {
			t.Errorf("%d times unsealed at Open", got)
		}
		calls := s.Count("")
		s.Always(kmstest.Fault{Drop: true})
		for range 100 {
			if err := kms.Try(t.Context(), signer); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Count("") - calls; got != 0 {
			t.Errorf("%d calls to the KMS for 100 signatures", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := keystore.Open(ctx, s.Ref, o)
		var call *kms.CallError
		if !errors.As(err, &call) || call.Host == "" || call.Step == "" {
			t.Errorf("a start without the KMS: %v", err)
		}
	})
}

// TestSealedKeyLater: a KMS that can't be reached is waited for, and what can't work isn't.
func TestSealedKeyLater(t *testing.T) {
	t.Parallel()
	eachSealer(t, func(t *testing.T, s *kmstest.Sealing) {
		o := sealed(t, s, kms.ECDSAP256)
		o.Public, o.Later = opened(t, s.Ref, o).Public(), true
		others := sealed(t, s, kms.ECDSAP256).SealedKey
		for _, code := range []string{"denied", "disabled"} {
			s.Always(s.Codes[code], s.Unseal)
			if _, err := keystore.Open(t.Context(), s.Ref, o); err == nil {
				t.Errorf("%s: opened", code)
			}
		}
		s.Always(kmstest.Fault{Drop: true})
		another := o
		another.Public = kmstest.Key(t, kms.ECDSAP256).Public()
		_, err := keystore.Open(t.Context(), s.Ref, another)
		wantError(t, err, "isn't the certificate's")
		another = o
		another.SealedKey += "x"
		_, err = keystore.Open(t.Context(), s.Ref, another)
		wantError(t, err, "no such file")

		signer := opened(t, s.Ref, o)
		refused := func(n int) int { // and gives how often the KMS was asked
			before := s.Count("")
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					if kms.Try(t.Context(), signer) == nil {
						t.Error("signed by a key that wasn't unsealed")
					}
				})
			}
			all.Wait()
			return s.Count("") - before
		}
		if one, many := refused(1), refused(20); many > 10*one {
			t.Errorf("the KMS is asked %d times for 20 at once, and %d for one", many, one)
		}
		s.Mend()
		before := s.Count(s.Unseal)
		rename := func(from, to setting.Path) {
			if err := os.Rename(string(from), string(to)); err != nil {
				t.Fatal(err)
			}
		}
		rename(o.SealedKey, o.SealedKey+".aside")
		rename(others, o.SealedKey)
		wantError(t, kms.Try(t.Context(), signer), "isn't the certificate's")
		rename(o.SealedKey+".aside", o.SealedKey)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if err := kms.Try(t.Context(), signer); err != nil {
					t.Errorf("not unsealed when it was needed: %v", err)
				}
			})
		}
		all.Wait()
		if got := s.Count(s.Unseal) - before; got != 1 {
			t.Errorf("%d times unsealed", got)
		}
	})
}

// TestSealedKeyFaults: what the KMS says at the start, with host and step.
func TestSealedKeyFaults(t *testing.T) {
	t.Parallel()
	eachSealer(t, func(t *testing.T, s *kmstest.Sealing) {
		registry := prometheus.NewRegistry()
		o := sealed(t, s, kms.ECDSAP256)
		o.Metrics = kms.NewMetrics()
		registry.MustRegister(o.Metrics.Collectors()...)
		for name, attempts := range map[string]int{"throttled": 3, "denied": 1, "disabled": 1, "internal": 3} {
			s.Always(s.Codes[name], s.Unseal)
			_, err := keystore.Open(t.Context(), s.Ref, o)
			var call *kms.CallError
			if !errors.As(err, &call) || call.Step != "unseal" || call.Attempts != attempts {
				t.Errorf("%s: %v", name, err)
			}
			wantError(t, err, "sealed key "+string(o.SealedKey)+": decrypting with "+s.Pinned)
			if name == "denied" && !strings.Contains(err.Error(), s.Denied) {
				t.Errorf("%v; want %q", err, s.Denied)
			}
		}
		s.Break(nil)
		opened(t, s.Ref, o) // it comes back by itself
		if got := calls(t, registry, "unseal", "denied"); got < 1 {
			t.Errorf("mayfly_kms_calls_total{operation=unseal,outcome=denied} = %v", got)
		}
		if _, err := keystore.OpenSealer(t.Context(), s.StandIn.Ref, s.Options); err == nil {
			t.Error("a signing key is taken for one that seals")
		} else if strings.Contains(err.Error(), "do-not-log-me") {
			t.Error("a secret is in the error")
		}
	})
}

// calls is mayfly_kms_calls_total of an operation and outcome.
func calls(t *testing.T, r prometheus.Gatherer, operation, outcome string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if family.GetName() == "mayfly_kms_calls_total" && labels["operation"] == operation && labels["outcome"] == outcome {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestSealedKeyFile: every change of the file is found, and says what to do.
func TestSealedKeyFile(t *testing.T) {
	t.Parallel()
	s := kmstest.Sealings["vault"](t)
	o := sealed(t, s, kms.ECDSAP384)
	good, err := os.ReadFile(string(o.SealedKey))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(string(o.SealedKey)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	o2 := sealed(t, s, kms.ECDSAP384)
	second, err := os.ReadFile(string(o2.SealedKey))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(field string, value any) func(map[string]any) {
		return func(m map[string]any) { m[field] = value }
	}
	from := func(field string) func(map[string]any) {
		var other map[string]any
		if err := json.Unmarshal(second, &other); err != nil {
			t.Fatal(err)
		}
		return edit(field, other[field])
	}
	for name, tt := range map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"a newer format":          {edit("format", "mayfly-sealed-key/2"), `has the format "mayfly-sealed-key/2", and this Mayfly reads "mayfly-sealed-key/1"`},
		"another KMS key":         {edit("kms_key", "hashivault://transit/keys/other?version=3"), "was sealed by the key hashivault://transit/keys/other?version=3, not by hashivault://transit/keys/sealing"},
		"another version":         {edit("kms_key", "hashivault://transit/keys/sealing?version=2"), "another key encrypted it, or it was changed since: restore the file from a copy"},
		"no KMS key":              {edit("kms_key", "hashivault://"), "names no KMS key that is one"},
		"another algorithm":       {edit("algorithm", "ECDSA-P256"), "another key encrypted it, or it was changed since: restore the file from a copy"},
		"no algorithm":            {edit("algorithm", "Ed25519"), "is damaged"},
		"another fingerprint":     {from("spki_sha256"), "message authentication failed"}, // Vault authenticates it
		"another data key":        {from("data_key"), "message authentication failed"},
		"another nonce":           {from("nonce"), "another key encrypted it, or it was changed since"},
		"another key":             {from("private_key"), "another key encrypted it, or it was changed since"},
		"a short nonce":           {edit("nonce", "AAAA"), "is damaged"},
		"a field that isn't":      {edit("comment", "x"), "isn't a sealed key"},
		"a field of another kind": {edit("nonce", 7), "isn't a sealed key"},
	} {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		tt.change(m)
		if err := openWith(t, s, canonical(t, m)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	for name, tt := range map[string]struct {
		file []byte
		want string
	}{
		"empty":             {nil, "isn't a sealed key"},
		"a PEM key":         {[]byte("-----BEGIN PRIVATE KEY-----\n"), "isn't a sealed key"},
		"trailing bytes":    {append(bytes.Clone(good), '\n'), "was changed since Mayfly wrote it"},
		"Windows' line end": {bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), "was changed since Mayfly wrote it"},
		"a field twice":     {bytes.Replace(good, []byte("{\n"), []byte("{\n  \"nonce\": \"AAAA\",\n"), 1), "was changed since Mayfly wrote it"},
		"half of it":        {good[:len(good)/2], "isn't a sealed key"},
	} {
		err := openWith(t, s, tt.file)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	if err := openWith(t, s, good); err != nil {
		t.Errorf("untouched: %v", err)
	}
}

// canonical is m as the file's fields stand.
func canonical(t *testing.T, m map[string]any) []byte {
	t.Helper()
	var lines []string
	for _, name := range []string{"format", "kms_key", "algorithm", "spki_sha256", "data_key", "nonce", "private_key", "comment"} {
		if v, ok := m[name]; ok {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, "  \""+name+"\": "+string(b))
		}
	}
	return []byte("{\n" + strings.Join(lines, ",\n") + "\n}\n")
}

// openWith opens a sealed key's file of these bytes.
func openWith(t *testing.T, s *kmstest.Sealing, b []byte) error {
	t.Helper()
	o := s.Options
	o.SealedKey = setting.Path(filepath.Join(t.TempDir(), "key.json"))
	if err := os.WriteFile(string(o.SealedKey), b, 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := keystore.Open(t.Context(), s.Ref, o)
	if err == nil {
		kms.Close(signer)
	}
	return err
}

// TestSealedKeyIsNeverOverwritten, nor readable by others.
func TestSealedKeyIsNeverOverwritten(t *testing.T) {
	t.Parallel()
	s := kmstest.Sealings["aws"](t)
	o := sealed(t, s, kms.ECDSAP256)
	before, err := os.ReadFile(string(o.SealedKey))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Generate(t.Context(), s.Ref, kms.ECDSAP256, o); !errors.Is(err, kms.ErrKeyExists) {
		t.Errorf("%v; want ErrKeyExists", err)
	}
	if after, err := os.ReadFile(string(o.SealedKey)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was touched: %v", err)
	}
	if err := os.Chmod(string(o.SealedKey), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = keystore.Open(t.Context(), s.Ref, o)
	wantError(t, err, "everybody may use it (mode 0644): chmod 600")
}

// TestSealedKeyReferences: which references open what a key sealed.
func TestSealedKeyReferences(t *testing.T) {
	t.Parallel()
	aws, azure, vault := kmstest.Sealings["aws"](t), kmstest.Sealings["azure"](t), kmstest.Sealings["vault"](t)
	aws.Options.Access.Region = "eu-central-1"
	mrk := "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
	for _, tt := range []struct {
		s         *kmstest.Sealing
		ref, want string
	}{
		{aws, "alias/sealing", ""},
		{aws, aws.Ref, ""},
		{aws, aws.Other, "was sealed by the key " + aws.Ref + ", not by " + aws.Other + ": name that key, or another file"},
		{aws, mrk, "was sealed by the key"},
		{aws, "file:key.pem", "a file can't seal"},
		{aws, aws.StandIn.Ref, "was sealed by the key"},
		{azure, azure.Pinned, ""},
		{azure, azure.Ref + "/" + strings.Repeat("f", 32), "was sealed by the key"},
		{azure, azure.Other, "was sealed by the key"},
		{vault, vault.Pinned, ""},
		{vault, vault.Ref + "?version=2", "was sealed by the key"},
	} {
		o := sealed(t, tt.s, kms.ECDSAP256)
		switch _, err := keystore.Open(t.Context(), tt.ref, o); {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.ref, err)
		case tt.want != "":
			wantError(t, err, tt.want)
		}
	}
	o := kmstest.Sealings["gcp"](t)
	_, err := keystore.OpenSealer(t.Context(), o.Ref+"/cryptoKeyVersions/1", o.Options)
	wantError(t, err, "a key that seals is named without a version")
}

// TestSealedKeyReplicas: the second place opens what the first can't at the moment.
func TestSealedKeyReplicas(t *testing.T) {
	t.Parallel()
	s, dead := kmstest.Sealings["aws"](t), kmstest.Sealings["aws"](t)
	o := sealed(t, s, kms.ECDSAP256)
	dead.Always(kmstest.Fault{Drop: true})
	endpoint := o.Access.Endpoint
	o.Access.Endpoint = dead.Options.Access.Endpoint
	o.Access.Replicas = []kms.Replica{{Key: setting.KeyRef(s.Ref), Endpoint: endpoint}}
	if err := kms.Try(t.Context(), opened(t, s.Ref, o)); err != nil {
		t.Error(err)
	}
}

func TestGCPSealerChecksums(t *testing.T) {
	t.Parallel()
	s := kmstest.Sealings["gcp"](t)
	o := sealed(t, s, kms.ECDSAP256)
	s.Always(kmstest.Fault{Spoil: func(answer any) { answer.(*kmspb.DecryptResponse).Plaintext[0] ^= 1 }}, "decrypt")
	_, err := keystore.Open(t.Context(), s.Ref, o)
	wantError(t, err, "a checksum (CRC32C) or name doesn't match")
}
