package kmstest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"net/http"
	"path"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// The keys of the AWS stand-in: two that seal, and one that signs.
const (
	AWSSealing = "arn:aws:kms:eu-central-1:111122223333:key/aaaaaaaa-12ab-34cd-56ef-1234567890ab"
	AWSOther   = "arn:aws:kms:eu-central-1:111122223333:key/bbbbbbbb-12ab-34cd-56ef-1234567890ab"
	awsSigning = "arn:aws:kms:eu-central-1:111122223333:key/cccccccc-12ab-34cd-56ef-1234567890ab"
)

// NewSealingAWS is AWS KMS with symmetric keys, and STS.
func NewSealingAWS(t testing.TB) *Sealing {
	t.Helper()
	c, server := newSealingCloud(t, func(c *sealingCloud, w http.ResponseWriter, r *http.Request) { sealAWS(t, c, w, r) })
	server.Start()
	return &Sealing{
		sealingCloud: c, Ref: AWSSealing, Other: AWSOther, Wrong: awsSigning, Pinned: AWSSealing, Authenticates: true, Unseal: "Decrypt",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL},
			Getenv: only("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", sealingSecret),
		},
		Codes: map[string]Trouble{
			"throttled": {Status: 400, Code: "ThrottlingException"}, "denied": {Status: 400, Code: "AccessDeniedException"},
			"disabled": {Status: 400, Code: "DisabledException"}, "internal": {Status: 500, Code: "KMSInternalException"},
		},
		Denied: "allow it kms:DescribeKey and kms:Decrypt, and kms:Encrypt to make a sealed key",
	}
}

func sealAWS(t testing.TB, c *sealingCloud, w http.ResponseWriter, r *http.Request) {
	target, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	if !ok {
		target = "GetCallerIdentity"
	}
	f, answered := c.begin(r, target)
	switch {
	case !answered:
		return
	case !ok:
		fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::111122223333:user/ca</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>`)
		return
	}
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"__type":%q,"message":"as the test says"}`, code)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	var in struct {
		KeyID                     string `json:"KeyId"`
		Plaintext, CiphertextBlob []byte
		EncryptionContext         map[string]string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		t.Error(err)
	}
	about, err := json.Marshal(in.EncryptionContext)
	if err != nil {
		t.Error(err)
	}
	if in.KeyID == "alias/sealing" {
		in.KeyID = AWSSealing
	}
	out := map[string]any{"KeyId": in.KeyID}
	switch {
	case f.Status != 0:
		refuse(f.Status, f.Code)
		return
	case target == "DescribeKey":
		usage, spec := "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"
		if in.KeyID == awsSigning {
			usage, spec = "SIGN_VERIFY", "ECC_NIST_P256"
		}
		out = map[string]any{"KeyMetadata": map[string]any{"Arn": in.KeyID, "KeyId": in.KeyID, "KeySpec": spec, "KeyUsage": usage, "KeyState": "Enabled"}}
	case target == "Encrypt":
		out["CiphertextBlob"] = seal(in.KeyID, in.Plaintext, about)
	case target == "Decrypt":
		plain, err := sealingKey(in.KeyID).Open(nil, nil, in.CiphertextBlob, about)
		if err != nil {
			refuse(http.StatusBadRequest, "InvalidCiphertextException")
			return
		}
		out["Plaintext"] = plain
	}
	_ = json.NewEncoder(w).Encode(out)
}

const (
	sealingTenant  = "11111111-2222-3333-4444-555555555555"
	sealingVersion = "0123456789abcdef0123456789abcdef"
	sealingRing    = "projects/mayfly-test/locations/europe-west3/keyRings/ca"
)

func sealingEntra(c *sealingCloud, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	base := "https://" + r.Host + "/" + sealingTenant
	if strings.HasSuffix(r.URL.Path, "openid-configuration") {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token",
		})
		return
	}
	if _, ok := c.begin(r, "token"); ok {
		claims := base64.RawURLEncoding.EncodeToString([]byte(`{"tid":"` + sealingTenant + `","oid":"the-object","appid":"app"}`))
		fmt.Fprintf(w, `{"token_type":"Bearer","expires_in":3600,"access_token":"e30.%s.sig"}`, claims)
	}
}

// NewSealingAzure is a vault, whose RSA keys wrap, and Entra.
func NewSealingAzure(t testing.TB) *Sealing {
	t.Helper()
	return azureSealer(t, "demo.vault.azure.net", true)
}

// NewSealingHSM is a managed HSM, whose AES keys wrap.
func NewSealingHSM(t testing.TB) *Sealing {
	t.Helper()
	return azureSealer(t, "demo.managedhsm.azure.net", false)
}

func azureSealer(t testing.TB, host string, isRSA bool) *Sealing {
	t.Helper()
	c, server := newSealingCloud(t, func(c *sealingCloud, w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, sealingTenant) {
			sealingEntra(c, w, r)
			return
		}
		sealAzure(t, c, host, w, r)
	})
	if isRSA {
		var err error
		if c.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatal(err)
		}
	}
	certificate, caFile := Certificate(t, host)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.EnableHTTP2 = true
	server.StartTLS()
	return &Sealing{
		sealingCloud: c, Ref: "https://" + host + "/keys/sealing", Other: "https://" + host + "/keys/other", Wrong: "https://" + host + "/keys/signing",
		Pinned: "https://" + host + "/keys/sealing/" + sealingVersion, Unseal: "unwrapkey",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL, CAFile: caFile},
			Getenv: only("AZURE_TENANT_ID", sealingTenant, "AZURE_CLIENT_ID", "app", "AZURE_CLIENT_SECRET", sealingSecret),
		},
		Codes: map[string]Trouble{
			"throttled": {Status: 429, Code: "Throttled"}, "denied": {Status: 403, Code: "Forbidden"},
			"disabled": {Status: 403, Code: "KeyDisabled"}, "internal": {Status: 500, Code: "InternalError"},
		},
		Denied: "allow it get and unwrapKey, and wrapKey to make a sealed key",
	}
}

func sealAzure(t testing.TB, c *sealingCloud, host string, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		resource := strings.TrimPrefix(host, "demo.")
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+sealingTenant+`", resource="https://`+resource+`"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // keys NAME VERSION OPERATION
	operation := "get"
	if len(parts) == 4 {
		operation = parts[3]
	}
	f, ok := c.begin(r, operation)
	if !ok {
		return
	}
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"code":%q,"message":"as the test says"}}`, code)
	}
	if f.Status != 0 {
		refuse(f.Status, f.Code)
		return
	}
	if operation == "get" {
		m := map[string]any{"kty": "oct-HSM"}
		if c.rsa != nil {
			b64 := base64.RawURLEncoding.EncodeToString
			m = map[string]any{"kty": "RSA", "n": b64(c.rsa.N.Bytes()), "e": b64(big.NewInt(int64(c.rsa.E)).Bytes())}
		}
		m["kid"], m["key_ops"] = "https://"+host+"/keys/"+parts[1]+"/"+sealingVersion, []string{"wrapKey", "unwrapKey"}
		if parts[1] == "signing" {
			m["key_ops"] = []string{"sign", "verify"}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"key": m, "attributes": map[string]any{"enabled": true}})
		return
	}
	var in struct{ Alg, Value string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		t.Error(err)
	}
	value, err := base64.RawURLEncoding.DecodeString(in.Value)
	if err != nil {
		t.Error(err)
	}
	out, err := azureWrap(c, parts[1], parts[2], operation+" "+in.Alg, value)
	if err != nil {
		refuse(http.StatusBadRequest, "BadParameter")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"kid": "x", "value": base64.RawURLEncoding.EncodeToString(out)})
}

// azureWrap has one RSA key for all names, whose label tells them apart.
func azureWrap(c *sealingCloud, name, version, what string, in []byte) ([]byte, error) {
	if version != sealingVersion {
		return nil, errors.New("not the pinned version")
	}
	switch key := c.rsa; what {
	case "wrapkey RSA-OAEP-256":
		return rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, in, []byte(name))
	case "unwrapkey RSA-OAEP-256":
		return rsa.DecryptOAEP(sha256.New(), nil, key, in, []byte(name))
	case "wrapkey A256KW":
		return keyWrap(name, in), nil
	case "unwrapkey A256KW":
		return keyUnwrap(name, in)
	default:
		return nil, fmt.Errorf("unknown: %s", what)
	}
}

// keyWrap is RFC 3394 §2.2.1, over zeros where a secret isn't of whole blocks.
func keyWrap(name string, in []byte) []byte {
	padded := append(binary.BigEndian.AppendUint64(nil, uint64(len(in))), in...)
	for len(padded)%8 != 0 {
		padded = append(padded, 0)
	}
	block := sealingBlock(name)
	a, n := []byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}, len(padded)/8
	for j := range 6 {
		for i := range n {
			b := append(append([]byte(nil), a...), padded[8*i:8*i+8]...)
			block.Encrypt(b, b)
			a = binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b)^uint64(n*j+i+1))
			copy(padded[8*i:], b[8:])
		}
	}
	return append(a, padded...)
}

// keyUnwrap is RFC 3394 §2.2.2.
func keyUnwrap(name string, in []byte) ([]byte, error) {
	if len(in) < 24 || len(in)%8 != 0 {
		return nil, errors.New("length")
	}
	block := sealingBlock(name)
	a, r := append([]byte(nil), in[:8]...), append([]byte(nil), in[8:]...)
	n := len(r) / 8
	for j := 5; j >= 0; j-- {
		for i := n - 1; i >= 0; i-- {
			b := append(binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(a)^uint64(n*j+i+1)), r[8*i:8*i+8]...)
			block.Decrypt(b, b)
			a = append([]byte(nil), b[:8]...)
			copy(r[8*i:], b[8:])
		}
	}
	size := binary.BigEndian.Uint64(r)
	if hex.EncodeToString(a) != "a6a6a6a6a6a6a6a6" || size > uint64(len(r)-8) {
		return nil, errors.New("integrity")
	}
	return r[8 : 8+size], nil
}

// NewSealingGCP is Cloud KMS over REST, and the metadata server.
func NewSealingGCP(t testing.TB) *Sealing {
	t.Helper()
	c, server := newSealingCloud(t, func(c *sealingCloud, w http.ResponseWriter, r *http.Request) { sealGCP(t, c, w, r) })
	server.Start()
	key := func(name string) string { return "gcpkms://" + sealingRing + "/cryptoKeys/" + name }
	return &Sealing{
		sealingCloud: c, Ref: key("sealing"), Other: key("other"), Wrong: key("signing"), Pinned: key("sealing"), Authenticates: true, Unseal: "decrypt",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialManaged, Endpoint: server.URL},
			Getenv: only("GCE_METADATA_HOST", strings.TrimPrefix(server.URL, "http://")),
		},
		Codes: map[string]Trouble{
			"throttled": {Status: 8}, "denied": {Status: 7}, "disabled": {Status: 9}, "internal": {Status: 14},
		},
		Denied: "grant roles/cloudkms.cryptoKeyDecrypter and roles/cloudkms.viewer, and cryptoKeyEncrypter to make a sealed key,",
	}
}

func sealGCP(t testing.TB, c *sealingCloud, w http.ResponseWriter, r *http.Request) {
	if what, ok := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/instance/service-accounts/default/"); ok {
		w.Header().Set("Metadata-Flavor", "Google")
		if what == "email" {
			_, _ = io.WriteString(w, "ca@mayfly-test.iam.gserviceaccount.com")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": sealingSecret, "expires_in": 3600, "token_type": "Bearer"})
		return
	}
	name, operation, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), ":")
	if !ok {
		operation = "get"
	}
	f, answered := c.begin(r, operation)
	if !answered {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	answer, err := answerGCP(name, operation, body)
	if f.Status != 0 {
		err = status.Error(codes.Code(f.Status), "as the test says")
	}
	if err != nil {
		refuseSealingGCP(w, err)
		return
	}
	b, err := protojson.Marshal(answer)
	if err != nil {
		t.Error(err)
	}
	if f.Corrupt { // on the way: the checksum stays
		b = []byte(strings.Replace(string(b), `"plaintext":"`, `"plaintext":"AAAA`, 1))
	}
	_, _ = w.Write(b) //nolint:gosec // G705: what is answered is JSON, to a test
}

func answerGCP(name, operation string, body []byte) (proto.Message, error) {
	invalid := func(what string) error { return status.Error(codes.InvalidArgument, what) }
	switch operation {
	case "encrypt":
		in := new(kmspb.EncryptRequest)
		if err := protojson.Unmarshal(body, in); err != nil {
			return nil, invalid(err.Error())
		}
		if in.GetPlaintextCrc32C().GetValue() != sealingSum(in.GetPlaintext()).GetValue() ||
			in.GetAdditionalAuthenticatedDataCrc32C().GetValue() != sealingSum(in.GetAdditionalAuthenticatedData()).GetValue() {
			return nil, invalid("checksum")
		}
		sealed := seal(name, in.GetPlaintext(), in.GetAdditionalAuthenticatedData())
		return &kmspb.EncryptResponse{
			Name: name + "/cryptoKeyVersions/1", Ciphertext: sealed, CiphertextCrc32C: sealingSum(sealed),
			VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
		}, nil
	case "decrypt":
		in := new(kmspb.DecryptRequest)
		if err := protojson.Unmarshal(body, in); err != nil {
			return nil, invalid(err.Error())
		}
		if in.GetCiphertextCrc32C().GetValue() != sealingSum(in.GetCiphertext()).GetValue() {
			return nil, invalid("checksum")
		}
		plain, err := sealingKey(name).Open(nil, nil, in.GetCiphertext(), in.GetAdditionalAuthenticatedData())
		if err != nil {
			return nil, invalid("Decryption failed: the ciphertext is invalid.")
		}
		return &kmspb.DecryptResponse{Plaintext: plain, PlaintextCrc32C: sealingSum(plain)}, nil
	default:
		purpose := kmspb.CryptoKey_ENCRYPT_DECRYPT
		if path.Base(name) == "signing" {
			purpose = kmspb.CryptoKey_ASYMMETRIC_SIGN
		}
		return &kmspb.CryptoKey{Name: name, Purpose: purpose}, nil
	}
}

// NewSealingVault is a transit engine.
func NewSealingVault(t testing.TB) *Sealing {
	t.Helper()
	c, server := newSealingCloud(t, sealVault)
	server.Start()
	return &Sealing{
		sealingCloud: c, Ref: "hashivault://transit/keys/sealing", Other: "hashivault://transit/keys/other", Wrong: "hashivault://transit/keys/signing",
		Pinned: "hashivault://transit/keys/sealing?version=3", Authenticates: true, Unseal: "decrypt",
		Options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL},
			Getenv: only("VAULT_TOKEN", sealingSecret),
		},
		Codes: map[string]Trouble{
			"throttled": {Status: 429}, "denied": {Status: 403}, "disabled": {Status: 404}, "internal": {Status: 500},
		},
		Denied: "its policy lacks `read` on transit/keys/sealing and `update` on transit/decrypt/sealing, and on transit/encrypt/sealing to make a sealed key,",
	}
}

func sealVault(c *sealingCloud, w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/") // MOUNT OPERATION NAME
	f, ok := c.begin(r, parts[1])
	switch {
	case !ok:
		return
	case f.Status != 0:
		refuseSealingVault(w, f.Status, "as the test says")
		return
	case parts[0] == "auth":
		answerSealingVault(w, map[string]any{"display_name": "token"})
		return
	}
	var in struct {
		Plaintext  []byte
		Ciphertext string
		About      []byte `json:"associated_data"`
		Version    int    `json:"key_version"`
	}
	if r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(&in) != nil {
		refuseSealingVault(w, http.StatusBadRequest, "bad request")
		return
	}
	switch parts[1] {
	case "encrypt":
		sealed := seal(fmt.Sprint(parts[2], in.Version), in.Plaintext, in.About)
		answerSealingVault(w, map[string]any{"ciphertext": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sealed))})
	case "decrypt":
		version, text, _ := strings.Cut(strings.TrimPrefix(in.Ciphertext, "vault:v"), ":")
		sealed, err := base64.StdEncoding.DecodeString(text)
		var plain []byte
		if err == nil {
			plain, err = sealingKey(parts[2]+version).Open(nil, nil, sealed, in.About)
		}
		if err != nil {
			refuseSealingVault(w, http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		answerSealingVault(w, map[string]any{"plaintext": plain})
	default: // a symmetric key's `keys` are times
		kind := "aes256-gcm96"
		if parts[2] == "signing" {
			kind = "ecdsa-p256"
		}
		answerSealingVault(w, map[string]any{"type": kind, "latest_version": 3, "keys": map[string]any{"1": 1700000000, "2": 1700000001, "3": 1700000002}})
	}
}

func answerSealingVault(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func refuseSealingVault(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{text}})
}

// refuseSealingGCP is an error in the form of Google's REST APIs: AIP-193.
func refuseSealingGCP(w http.ResponseWriter, err error) {
	code := map[codes.Code]int{
		codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.PermissionDenied: 403,
		codes.NotFound: 404, codes.ResourceExhausted: 429, codes.Unavailable: 503,
	}[status.Code(err)]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": status.Convert(err).Message(), "status": status.Code(err).String()}})
}

func sealingSum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}
