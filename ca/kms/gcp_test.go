package kms_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

const (
	gcpRing  = "projects/mayfly-test/locations/europe-west3/keyRings/ca"
	gcpToken = "ya29.never-shown"
)

// cloudKMS is Google's service over real keys, on Google's own types.
type cloudKMS struct {
	kmspb.UnimplementedKeyManagementServiceServer
	*httptest.Server

	mu    sync.Mutex
	keys  map[string][]*gcpVersion // by resource name; version 1 first
	signs int
	fault func(w http.ResponseWriter, r *http.Request) bool // true when it answered
	spoil func(*kmspb.AsymmetricSignResponse)
}

type gcpVersion struct {
	key       crypto.Signer
	algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm
	state     kmspb.CryptoKeyVersion_CryptoKeyVersionState
}

var gcpAlgorithmOf = map[kms.Algorithm]kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm{
	kms.ECDSAP256: kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256,
	kms.ECDSAP384: kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384,
	kms.RSA2048:   kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256,
	kms.RSA3072:   kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256,
	kms.RSA4096:   kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256,
}

func newCloudKMS(t *testing.T) *cloudKMS {
	k := &cloudKMS{keys: map[string][]*gcpVersion{}}
	k.Server = httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(k.Close)
	return k
}

// serve is the REST binding of the methods that are used: the annotations of
// google/cloud/kms/v1/service.proto. It is the metadata server too.
func (k *cloudKMS) serve(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	fault := k.fault
	k.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	if what, ok := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/instance/service-accounts/default/"); ok {
		w.Header().Set("Metadata-Flavor", "Google")
		if what == "email" {
			_, _ = io.WriteString(w, "ca@mayfly-test.iam.gserviceaccount.com")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": gcpToken, "expires_in": 3600, "token_type": "Bearer"})
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		gcpRefuse(w, status.Error(codes.Unauthenticated, "no token"))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		gcpRefuse(w, err)
		return
	}
	answer, err := k.route(r.Context(), r, strings.TrimPrefix(r.URL.Path, "/v1/"), body)
	if err != nil {
		gcpRefuse(w, err)
		return
	}
	b, err := protojson.Marshal(answer)
	if err != nil {
		gcpRefuse(w, err)
		return
	}
	_, _ = w.Write(b)
}

func (k *cloudKMS) route(ctx context.Context, r *http.Request, path string, body []byte) (proto.Message, error) {
	if name, ok := strings.CutSuffix(path, ":asymmetricSign"); ok {
		in := new(kmspb.AsymmetricSignRequest)
		if err := protojson.Unmarshal(body, in); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		in.Name = name
		return k.AsymmetricSign(ctx, in)
	}
	if name, ok := strings.CutSuffix(path, "/publicKey"); ok {
		return k.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: name})
	}
	if name, ok := strings.CutSuffix(path, "/cryptoKeyVersions"); ok {
		return k.ListCryptoKeyVersions(ctx, &kmspb.ListCryptoKeyVersionsRequest{Parent: name, Filter: r.URL.Query().Get("filter")})
	}
	if name, ok := strings.CutSuffix(path, "/cryptoKeys"); ok {
		in := new(kmspb.CryptoKey)
		if err := protojson.Unmarshal(body, in); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return k.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{Parent: name, CryptoKeyId: r.URL.Query().Get("cryptoKeyId"), CryptoKey: in})
	}
	return k.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: path})
}

// gcpRefuse is an error in the form of Google's REST APIs: AIP-193.
func gcpRefuse(w http.ResponseWriter, err error) {
	code := map[codes.Code]int{
		codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403,
		codes.NotFound: 404, codes.AlreadyExists: 409, codes.ResourceExhausted: 429, codes.Unavailable: 503,
	}[status.Code(err)]
	if code == 0 {
		code = 500
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": status.Convert(err).Message(), "status": status.Code(err).String()}})
}

// add makes a new version of a key and gives its resource name.
func (k *cloudKMS) add(name string, a kms.Algorithm) string {
	key := generated(a)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[name] = append(k.keys[name], &gcpVersion{key, gcpAlgorithmOf[a], kmspb.CryptoKeyVersion_ENABLED})
	return fmt.Sprintf("%s/cryptoKeyVersions/%d", name, len(k.keys[name]))
}

// version finds a version; the caller holds mu.
func (k *cloudKMS) version(name string) (*gcpVersion, error) {
	key, number, _ := strings.Cut(name, "/cryptoKeyVersions/")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > len(k.keys[key]) {
		return nil, status.Errorf(codes.NotFound, "CryptoKeyVersion %s not found.", name)
	}
	return k.keys[key][n-1], nil
}

func (k *cloudKMS) CreateCryptoKey(_ context.Context, in *kmspb.CreateCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	name := in.GetParent() + "/cryptoKeys/" + in.GetCryptoKeyId()
	for a, algorithm := range gcpAlgorithmOf {
		if algorithm != in.GetCryptoKey().GetVersionTemplate().GetAlgorithm() {
			continue
		}
		key := generated(a)
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.keys[name]) > 0 {
			return nil, status.Errorf(codes.AlreadyExists, "CryptoKey %s already exists.", name)
		}
		k.keys[name] = []*gcpVersion{{key, algorithm, kmspb.CryptoKeyVersion_PENDING_GENERATION}} // as for an HSM
		return &kmspb.CryptoKey{Name: name}, nil
	}
	return nil, status.Error(codes.InvalidArgument, "algorithm")
}

func (k *cloudKMS) ListCryptoKeyVersions(_ context.Context, in *kmspb.ListCryptoKeyVersionsRequest) (*kmspb.ListCryptoKeyVersionsResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if in.GetFilter() != "state=ENABLED" {
		return nil, status.Error(codes.InvalidArgument, "filter")
	}
	out := &kmspb.ListCryptoKeyVersionsResponse{}
	for i, v := range k.keys[in.GetParent()] {
		if v.state == kmspb.CryptoKeyVersion_ENABLED {
			out.CryptoKeyVersions = append(out.CryptoKeyVersions, &kmspb.CryptoKeyVersion{
				Name: fmt.Sprintf("%s/cryptoKeyVersions/%d", in.GetParent(), i+1), State: v.state, Algorithm: v.algorithm})
		}
	}
	return out, nil
}

func (k *cloudKMS) GetCryptoKeyVersion(_ context.Context, in *kmspb.GetCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, err := k.version(in.GetName())
	if err != nil {
		return nil, err
	}
	state := v.state
	if state == kmspb.CryptoKeyVersion_PENDING_GENERATION {
		v.state = kmspb.CryptoKeyVersion_ENABLED // by the next look
	}
	return &kmspb.CryptoKeyVersion{Name: in.GetName(), State: state, Algorithm: v.algorithm}, nil
}

func (k *cloudKMS) GetPublicKey(_ context.Context, in *kmspb.GetPublicKeyRequest) (*kmspb.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, err := k.version(in.GetName())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(v.key.Public())
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return &kmspb.PublicKey{Name: in.GetName(), Pem: string(b), Algorithm: v.algorithm, PemCrc32C: gcpSum(b)}, nil
}

func (k *cloudKMS) AsymmetricSign(_ context.Context, in *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	k.mu.Lock()
	found, err := k.version(in.GetName())
	if err != nil {
		k.mu.Unlock()
		return nil, err
	}
	v, spoil := *found, k.spoil
	k.signs++
	k.mu.Unlock() // signatures are made at the same time
	switch {
	case v.state != kmspb.CryptoKeyVersion_ENABLED:
		return nil, status.Errorf(codes.FailedPrecondition, "%s is not enabled, current state is: %v.", in.GetName(), v.state)
	}
	digest, hash := in.GetDigest().GetSha256(), crypto.SHA256
	if v.algorithm == kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384 {
		digest, hash = in.GetDigest().GetSha384(), crypto.SHA384
	}
	var opts crypto.SignerOpts = hash
	if strings.Contains(v.algorithm.String(), "_PSS_") {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	if len(digest) != hash.Size() || in.GetDigestCrc32C().GetValue() != gcpSum(digest).GetValue() {
		return nil, status.Error(codes.InvalidArgument, "digest")
	}
	sig, err := v.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, err
	}
	out := &kmspb.AsymmetricSignResponse{Name: in.GetName(), Signature: sig, SignatureCrc32C: gcpSum(sig), VerifiedDigestCrc32C: true}
	if spoil != nil {
		spoil(out)
	}
	return out, nil
}

func gcpSum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

func (k *cloudKMS) options() kms.Options {
	return kms.Options{
		Access: kms.Access{Credential: kms.CredentialManaged, Endpoint: k.URL},
		Getenv: func(name string) string {
			return map[string]string{"GCE_METADATA_HOST": strings.TrimPrefix(k.URL, "http://")}[name]
		},
	}
}

func TestGCPConformance(t *testing.T) {
	t.Parallel()
	k := newCloudKMS(t)
	kmstest.Run(t, func(t *testing.T, a kms.Algorithm) kms.Signer {
		generated(a) // beforehand: an RSA key takes longer than a call may
		ref, err := kms.Generate(t.Context(), gcpRing+"/cryptoKeys/"+string(a), a, k.options())
		if err != nil {
			t.Fatal(err)
		}
		return opened(t, ref, k.options())
	}, kms.ECDSAP256, kms.ECDSAP384, kms.RSA2048, kms.RSA3072)
}

func TestGCPGenerate(t *testing.T) {
	t.Parallel()
	k := newCloudKMS(t)
	const name = gcpRing + "/cryptoKeys/issuing"
	if got, err := kms.Generate(t.Context(), name, kms.ECDSAP256, k.options()); err != nil || got != "gcpkms://"+name+"/cryptoKeyVersions/1" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := kms.Generate(t.Context(), name, kms.ECDSAP256, k.options()); !errors.Is(err, kms.ErrKeyExists) {
		t.Errorf("%v; want ErrKeyExists", err)
	}
	if _, err := kms.Generate(t.Context(), name+"2", kms.ECDSAP521, k.options()); err == nil || !strings.Contains(err.Error(), "Google Cloud KMS has no keys of ECDSA-P521") {
		t.Errorf("P-521: %v", err)
	}
}

// TestGCPPinned: a new version changes nothing until it is asked for, and the
// newest that is enabled is taken at the start.
func TestGCPPinned(t *testing.T) {
	t.Parallel()
	k := newCloudKMS(t)
	const name = gcpRing + "/cryptoKeys/issuing"
	k.add(name, kms.ECDSAP256)
	k.add(name, kms.ECDSAP384)
	k.add(name, kms.ECDSAP256)
	k.keys[name][2].state = kmspb.CryptoKeyVersion_DISABLED
	s := opened(t, name, k.options())
	if got, want := fmt.Sprint(s), "gcpkms://"+name+"/cryptoKeyVersions/2"; got != want {
		t.Errorf("pinned %s; want %s", got, want)
	}
	k.add(name, kms.RSA2048)
	if err := kms.Try(t.Context(), s); err != nil {
		t.Error(err)
	}
	signs := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.signs
	}
	before := signs()
	if err := s.(kms.Healthy).Health(t.Context()); err != nil || signs() != before {
		t.Errorf("health: %v, %d signatures", err, signs()-before)
	}
}

// TestE1GCP: each fault's words and that the key comes back by itself.
func TestE1GCP(t *testing.T) {
	t.Parallel()
	refuse := func(code codes.Code, text string) func(*cloudKMS, *gcpVersion) {
		return func(k *cloudKMS, _ *gcpVersion) {
			k.fault = func(w http.ResponseWriter, _ *http.Request) bool {
				gcpRefuse(w, status.Error(code, text))
				return true
			}
		}
	}
	spoil := func(how func(*kmspb.AsymmetricSignResponse)) func(*cloudKMS, *gcpVersion) {
		return func(k *cloudKMS, _ *gcpVersion) { k.spoil = how }
	}
	for _, tt := range []struct {
		name, want string
		fault      func(*cloudKMS, *gcpVersion)
	}{
		{"throttled", "sign: a quota is used up: Quota exceeded (3 attempts, ", refuse(codes.ResourceExhausted, "Quota exceeded")},
		{"unavailable", "sign: try later (3 attempts, ", refuse(codes.Unavailable, "try later")},
		{"denied", "sign: permission denied: grant roles/cloudkms.signerVerifier and roles/cloudkms.viewer on the key: no (1 attempt, ", refuse(codes.PermissionDenied, "no")},
		{"token refused", "sign: the credential isn't accepted: expired (1 attempt, ", refuse(codes.Unauthenticated, "expired")},
		{"disabled", "is not enabled, current state is: DISABLED. (1 attempt, ", func(_ *cloudKMS, v *gcpVersion) { v.state = kmspb.CryptoKeyVersion_DISABLED }},
		{"destroyed", "current state is: DESTROYED.", func(_ *cloudKMS, v *gcpVersion) { v.state = kmspb.CryptoKeyVersion_DESTROYED }},
		{"deleted", "sign: there is no such key: ", func(k *cloudKMS, _ *gcpVersion) { k.keys = map[string][]*gcpVersion{} }},
		{"another key", "doesn't verify under the key that was found at the start", func(_ *cloudKMS, v *gcpVersion) { v.key = generated(kms.ECDSAP256) }},
		{"signature corrupted by the service", "doesn't verify under the key that was found at the start", spoil(func(r *kmspb.AsymmetricSignResponse) {
			r.Signature[len(r.Signature)-1] ^= 1
			r.SignatureCrc32C = gcpSum(r.GetSignature())
		})},
		{"signature damaged on the way", "a checksum (CRC32C) or name doesn't match", spoil(func(r *kmspb.AsymmetricSignResponse) { r.Signature[9] ^= 1 })},
		{"checksum left out", "a checksum (CRC32C) or name doesn't match", spoil(func(r *kmspb.AsymmetricSignResponse) { r.SignatureCrc32C = nil })},
		{"digest's checksum not verified", "a checksum (CRC32C) or name doesn't match", spoil(func(r *kmspb.AsymmetricSignResponse) { r.VerifiedDigestCrc32C = false })},
		{"another version's signature", "a checksum (CRC32C) or name doesn't match", spoil(func(r *kmspb.AsymmetricSignResponse) { r.Name += "1" })},
		{"hanging", "sign: the time for it ran out (", func(k *cloudKMS, _ *gcpVersion) {
			k.fault = func(_ http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body) // or the server doesn't see the caller go
				<-r.Context().Done()
				return true
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newCloudKMS(t)
			const name = gcpRing + "/cryptoKeys/issuing"
			k.add(name, kms.ECDSAP256)
			s := opened(t, name, k.options())
			k.mu.Lock()
			v := k.keys[name][0]
			kept := *v
			k.mu.Unlock()
			change := func(f func()) {
				k.mu.Lock()
				defer k.mu.Unlock()
				f()
			}
			change(func() { tt.fault(k, v) })
			within := 2 * time.Second
			if tt.name == "hanging" {
				within = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			err := kms.Try(ctx, s)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), strings.TrimPrefix(k.URL, "http://")) || strings.Contains(err.Error(), gcpToken) {
				t.Errorf("%v; want %q, the host, and no token", err, tt.want)
			}
			change(func() {
				k.fault, k.spoil, *v = nil, nil, kept
				k.keys = map[string][]*gcpVersion{name: {v}}
			})
			if err := kms.Try(t.Context(), s); err != nil {
				t.Errorf("no recovery: %v", err)
			}
		})
	}
}

func TestGCPCredentials(t *testing.T) {
	t.Parallel()
	k := newCloudKMS(t)
	const name = gcpRing + "/cryptoKeys/issuing"
	k.add(name, kms.ECDSAP256)
	der, err := x509.MarshalPKCS8PrivateKey(generated(kms.RSA2048))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	credential := func(file string, fields map[string]string) string {
		b, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	account := credential("account.json", map[string]string{
		"type": "service_account", "client_email": "ca@mayfly-test.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": k.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	person := credential("application_default_credentials.json", map[string]string{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"})
	for _, tt := range []struct {
		name       string
		credential kms.Credential
		env        map[string]string
		want       string // in the error; "" opens
	}{
		{"a service account's key", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": account}, ""},
		{"env that isn't set, with somebody logged in", kms.CredentialEnv, map[string]string{"CLOUDSDK_CONFIG": dir}, "GOOGLE_APPLICATION_CREDENTIALS isn't set"},
		{"a person's as env", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": person}, `is of type "authorized_user", which isn't one of [service_account impersonated_service_account]`},
		{"a key file as workload", kms.CredentialWorkload, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": account}, `is of type "service_account", which isn't one of [external_account]`},
		{"cli not logged in", kms.CredentialCLI, map[string]string{"HOME": "/nowhere"}, "/nowhere/.config/gcloud/application_default_credentials.json"},
		{"a file that is none", kms.CredentialEnv, map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": "/proc/self/exe"}, "larger than 65536 bytes"},
		{"none named", "", nil, "needs a credential: set it to one of env, workload, managed-identity, cli"},
		{"auto", kms.CredentialAuto, nil, `has no credential "auto"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := kms.Open(t.Context(), name, kms.Options{
				Access: kms.Access{Credential: tt.credential, Endpoint: k.URL}, Getenv: func(name string) string { return tt.env[name] },
			})
			if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}
