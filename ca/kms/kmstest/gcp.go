package kmstest

import (
	"cmp"
	"crypto"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

const (
	// GCPRing is the key ring of the stand-in.
	GCPRing = "projects/mayfly-test/locations/europe-west3/keyRings/ca"
	// GCPToken is what its metadata server gives out.
	GCPToken = "ya29." + Secret
)

// gcp is Google's service, on Google's own types.
type gcp struct{ *Cloud }

// gcpAlgorithms are what versions of the kinds of key sign.
var gcpAlgorithms = map[kms.Algorithm]kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm{
	kms.ECDSAP256: kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256,
	kms.ECDSAP384: kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384,
	kms.RSA2048:   kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256,
	kms.RSA3072:   kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256,
	kms.RSA4096:   kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256,
}

// NewGCP is a stand-in for Google Cloud KMS, and for the metadata server.
func NewGCP(t testing.TB, key crypto.Signer) *StandIn {
	t.Helper()
	c := &gcp{newCloud(t)}
	c.start(c, nil)
	name := GCPRing + "/cryptoKeys/issuing"
	c.Add(name, key)
	c.Add(GCPRing+"/cryptoKeys/sealing", nil)
	c.Add(GCPRing+"/cryptoKeys/other", nil)
	host := strings.TrimPrefix(c.URL, "http://")
	return &StandIn{
		Cloud: c.Cloud, Ref: name, Pinned: "gcpkms://" + name + "/cryptoKeyVersions/1", Name: name,
		Host: host, Get: "get", Sign: "asymmetricSign",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialManaged, Endpoint: c.URL},
			Getenv: Environment("GCE_METADATA_HOST", host),
		},
		Codes: map[string]Fault{
			"throttled": {Status: 429, Code: codes.ResourceExhausted.String()},
			"denied":    {Status: 403, Code: codes.PermissionDenied.String()},
			"disabled":  {Status: 400, Code: codes.FailedPrecondition.String()},
			"deleted":   {Status: 404, Code: codes.NotFound.String()},
			"internal":  {Status: 500, Code: codes.Internal.String()},
		},
		sealing: Sealing{
			Ref: "gcpkms://" + GCPRing + "/cryptoKeys/sealing", Pinned: "gcpkms://" + GCPRing + "/cryptoKeys/sealing", Other: "gcpkms://" + GCPRing + "/cryptoKeys/other",
			Authenticates: true, Unseal: "decrypt",
			Denied: "grant roles/cloudkms.cryptoKeyDecrypter and roles/cloudkms.viewer, and cryptoKeyEncrypter to make a sealed key,",
		},
	}
}

const gcpAccounts = "/computeMetadata/v1/instance/service-accounts/default/"

// operation is the method, by the REST binding of google/cloud/kms/v1/service.proto.
func (c *gcp) operation(r *http.Request) string {
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/computeMetadata/"):
		return "token"
	case strings.Contains(path, ":"):
		return path[strings.LastIndexByte(path, ':')+1:] // asymmetricSign, encrypt, decrypt
	case strings.HasSuffix(path, "/publicKey"):
		return "publicKey"
	case strings.HasSuffix(path, "/cryptoKeyVersions"):
		return "list"
	case strings.HasSuffix(path, "/cryptoKeys"):
		return "create"
	default:
		return "get"
	}
}

// refuse is an error in the form of Google's REST APIs: AIP-193.
func (c *gcp) refuse(w http.ResponseWriter, f Fault) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": f.Status, "message": cmp.Or(f.Text, "as the test says"), "status": f.Code,
	}})
}

// gcpFault is a refusal with one of Google's codes.
func gcpFault(code codes.Code, format string, args ...any) Fault {
	status := map[codes.Code]int{
		codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.Unauthenticated: 401, codes.NotFound: 404,
	}[code]
	return Fault{Status: status, Code: code.String(), Text: fmt.Sprintf(format, args...)}
}

func (c *gcp) answer(q request) (any, error) {
	switch {
	case q.operation == "token":
		return http.HandlerFunc(metadata), nil
	case !strings.HasPrefix(q.Header.Get("Authorization"), "Bearer "):
		return nil, gcpFault(codes.Unauthenticated, "no token")
	}
	answer, err := c.do(strings.TrimPrefix(q.URL.Path, "/v1/"), q)
	if err != nil {
		return nil, err
	}
	if q.fault.Spoil != nil {
		q.fault.Spoil(answer)
	}
	text, err := protojson.Marshal(answer)
	return string(text), err
}

func metadata(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Metadata-Flavor", "Google")
	if r.URL.Path == gcpAccounts+"email" {
		_, _ = io.WriteString(w, "ca@mayfly-test.iam.gserviceaccount.com")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": GCPToken, "expires_in": 3600, "token_type": "Bearer"})
}

func (c *gcp) do(path string, q request) (proto.Message, error) {
	name, _, _ := strings.Cut(path, ":")
	switch q.operation {
	case "asymmetricSign":
		return decoded(q, func(in *kmspb.AsymmetricSignRequest) (proto.Message, error) { return c.sign(name, in, q.fault) })
	case "encrypt":
		return decoded(q, func(in *kmspb.EncryptRequest) (proto.Message, error) { return c.encrypt(name, in) })
	case "decrypt":
		return decoded(q, func(in *kmspb.DecryptRequest) (proto.Message, error) { return c.decrypt(name, in) })
	case "publicKey":
		return c.public(strings.TrimSuffix(path, "/publicKey"))
	case "list":
		return c.list(strings.TrimSuffix(path, "/cryptoKeyVersions"), q.URL.Query().Get("filter"))
	default:
		if !strings.Contains(path, "/cryptoKeyVersions/") {
			return c.cryptoKey(path)
		}
		v, err := c.version(path)
		if err != nil {
			return nil, err
		}
		out := &kmspb.CryptoKeyVersion{Name: path, State: gcpState(v), Algorithm: gcpAlgorithms[algorithmOf(c.t, v.Key)]}
		if v.Pending {
			key, number, _ := strings.Cut(path, "/cryptoKeyVersions/")
			n, _ := strconv.Atoi(number)
			c.Change(key, n, func(v *Version) { v.Pending = false }) // by the next look
		}
		return out, nil
	}
}

// decoded does what the body of q says.
func decoded[M any, P interface {
	*M
	proto.Message
}](q request, do func(P) (proto.Message, error)) (proto.Message, error) {
	in := P(new(M))
	if err := protojson.Unmarshal(q.body, in); err != nil {
		return nil, gcpFault(codes.InvalidArgument, "%v", err)
	}
	return do(in)
}

// cryptoKey is a key without a version.
func (c *gcp) cryptoKey(name string) (proto.Message, error) {
	v, ok := c.at(name, 1)
	switch {
	case !ok:
		return nil, gcpFault(codes.NotFound, "CryptoKey %s not found.", name)
	case v.Key == nil:
		return &kmspb.CryptoKey{Name: name, Purpose: kmspb.CryptoKey_ENCRYPT_DECRYPT}, nil
	default:
		return &kmspb.CryptoKey{Name: name, Purpose: kmspb.CryptoKey_ASYMMETRIC_SIGN}, nil
	}
}

// version finds a version by its resource name.
func (c *gcp) version(name string) (Version, error) {
	key, number, _ := strings.Cut(name, "/cryptoKeyVersions/")
	n, err := strconv.Atoi(number)
	v, ok := c.at(key, n)
	if err != nil || !ok {
		return v, gcpFault(codes.NotFound, "CryptoKeyVersion %s not found.", name)
	}
	return v, nil
}

func gcpState(v Version) kmspb.CryptoKeyVersion_CryptoKeyVersionState {
	switch {
	case v.Pending:
		return kmspb.CryptoKeyVersion_PENDING_GENERATION
	case v.Disabled:
		return kmspb.CryptoKeyVersion_DISABLED
	default:
		return kmspb.CryptoKeyVersion_ENABLED
	}
}

func (c *gcp) list(key, filter string) (proto.Message, error) {
	if filter != "state=ENABLED" {
		return nil, gcpFault(codes.InvalidArgument, "filter")
	}
	out := &kmspb.ListCryptoKeyVersionsResponse{}
	for i, v := range c.Versions(key) {
		if state := gcpState(v); state == kmspb.CryptoKeyVersion_ENABLED {
			out.CryptoKeyVersions = append(out.CryptoKeyVersions, &kmspb.CryptoKeyVersion{
				Name: fmt.Sprintf("%s/cryptoKeyVersions/%d", key, i+1), State: state, Algorithm: gcpAlgorithms[algorithmOf(c.t, v.Key)],
			})
		}
	}
	return out, nil
}

func (c *gcp) public(name string) (proto.Message, error) {
	v, err := c.version(name)
	if err != nil {
		return nil, err
	}
	b := catest.PublicPEM(c.t, v.Key.Public())
	return &kmspb.PublicKey{Name: name, Pem: string(b), Algorithm: gcpAlgorithms[algorithmOf(c.t, v.Key)], PemCrc32C: GCPSum(b)}, nil
}

func (c *gcp) sign(name string, in *kmspb.AsymmetricSignRequest, f Fault) (proto.Message, error) {
	v, err := c.version(name)
	if err != nil {
		return nil, err
	}
	if state := gcpState(v); state != kmspb.CryptoKeyVersion_ENABLED {
		return nil, gcpFault(codes.FailedPrecondition, "%s is not enabled, current state is: %v.", name, state)
	}
	digest, hash := in.GetDigest().GetSha256(), crypto.SHA256
	if algorithmOf(c.t, v.Key) == kms.ECDSAP384 {
		digest, hash = in.GetDigest().GetSha384(), crypto.SHA384
	}
	if len(digest) != hash.Size() || in.GetDigestCrc32C().GetValue() != GCPSum(digest).GetValue() {
		return nil, gcpFault(codes.InvalidArgument, "digest")
	}
	sig, err := c.signature(f, v.Key, digest, hash)
	if err != nil {
		return nil, err
	}
	return &kmspb.AsymmetricSignResponse{Name: name, Signature: sig, SignatureCrc32C: GCPSum(sig), VerifiedDigestCrc32C: true}, nil
}

// GCPSum is the checksum of all of Google's answers.
func GCPSum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

func (c *gcp) encrypt(name string, in *kmspb.EncryptRequest) (proto.Message, error) {
	if !proto.Equal(in.GetPlaintextCrc32C(), GCPSum(in.GetPlaintext())) ||
		!proto.Equal(in.GetAdditionalAuthenticatedDataCrc32C(), GCPSum(in.GetAdditionalAuthenticatedData())) {
		return nil, gcpFault(codes.InvalidArgument, "checksum")
	}
	sealed := c.seal(name, in.GetPlaintext(), in.GetAdditionalAuthenticatedData())
	return &kmspb.EncryptResponse{
		Name: name + "/cryptoKeyVersions/1", Ciphertext: sealed, CiphertextCrc32C: GCPSum(sealed),
		VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
	}, nil
}

func (c *gcp) decrypt(name string, in *kmspb.DecryptRequest) (proto.Message, error) {
	if !proto.Equal(in.GetCiphertextCrc32C(), GCPSum(in.GetCiphertext())) {
		return nil, gcpFault(codes.InvalidArgument, "checksum")
	}
	plain, err := c.unseal(name, in.GetCiphertext(), in.GetAdditionalAuthenticatedData())
	if err != nil {
		return nil, gcpFault(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}
	return &kmspb.DecryptResponse{Plaintext: plain, PlaintextCrc32C: GCPSum(plain)}, nil
}
