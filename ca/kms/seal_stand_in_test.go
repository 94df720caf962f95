package kms_test

import (
	"crypto/aes"
	"crypto/cipher"
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
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// sealingKey is AES-256-GCM under a key that is computed from a name, as a KMS
// has it in hardware.
func sealingKey(name string) cipher.AEAD {
	key := sha256.Sum256([]byte(name))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// seal seals as the key of that name would.
func seal(name string, plain, about []byte) []byte {
	return sealingKey(name).Seal(nil, nil, plain, about) //nolint:gosec // G407: this AEAD draws its own nonce
}

// sealingStandIn is one vendor's stand-in for keys that seal.
type sealingStandIn struct {
	*cloud

	ref, other    string // two keys
	wrong         string // a key that isn't one to seal with
	pinned        string // what ref is pinned to
	options       kms.Options
	authenticates bool
	codes         map[string]fault
	denied        string // what to allow, in the error
	unseal        string // the operation's name in calls
}

// sealers are the stand-ins that every test of sealing runs with.
var sealers = map[string]func(t *testing.T) *sealingStandIn{
	"aws": newSealingAWS, "azure": newSealingAzure, "azure hsm": newSealingHSM, "gcp": newSealingGCP, "vault": newSealingVault,
}

const awsSealing, awsOther, awsSigning = "arn:aws:kms:eu-central-1:111122223333:key/aaaaaaaa-12ab-34cd-56ef-1234567890ab",
	"arn:aws:kms:eu-central-1:111122223333:key/bbbbbbbb-12ab-34cd-56ef-1234567890ab",
	"arn:aws:kms:eu-central-1:111122223333:key/cccccccc-12ab-34cd-56ef-1234567890ab"

func newSealingAWS(t *testing.T) *sealingStandIn {
	t.Helper()
	c := newCloud(t, kms.ECDSAP256)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sealAWS(t, c, w, r) }))
	c.closing(t, server)
	return &sealingStandIn{
		cloud: c, ref: awsSealing, other: awsOther, wrong: awsSigning, pinned: awsSealing, authenticates: true, unseal: "Decrypt",
		options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL},
			Getenv: environment("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY", "do-not-log-me"),
		},
		codes: map[string]fault{
			"throttled": {status: 400, code: "ThrottlingException"}, "denied": {status: 400, code: "AccessDeniedException"},
			"disabled": {status: 400, code: "DisabledException"}, "internal": {status: 500, code: "KMSInternalException"},
		},
		denied: "allow it kms:DescribeKey and kms:Decrypt, and kms:Encrypt to make a sealed key",
	}
}

func sealAWS(t *testing.T, c *cloud, w http.ResponseWriter, r *http.Request) {
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
		in.KeyID = awsSealing
	}
	out := map[string]any{"KeyId": in.KeyID}
	switch {
	case f.status != 0:
		refuse(f.status, f.code)
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

func newSealingAzure(t *testing.T) *sealingStandIn {
	t.Helper()
	return azureSealer(t, "demo.vault.azure.net", kms.RSA2048)
}

// newSealingHSM is a managed HSM, whose AES keys wrap.
func newSealingHSM(t *testing.T) *sealingStandIn {
	t.Helper()
	return azureSealer(t, "demo.managedhsm.azure.net", kms.ECDSAP256)
}

func azureSealer(t *testing.T, host string, a kms.Algorithm) *sealingStandIn {
	t.Helper()
	c := newCloud(t, a)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, azureTenant) {
			serveEntra(c, w, r)
			return
		}
		sealAzure(t, c, host, w, r)
	}))
	certificate, caFile := serverCertificate(t, host)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.EnableHTTP2 = true
	server.StartTLS()
	c.closing(t, server)
	return &sealingStandIn{
		cloud: c, ref: "https://" + host + "/keys/sealing", other: "https://" + host + "/keys/other", wrong: "https://" + host + "/keys/signing",
		pinned: "https://" + host + "/keys/sealing/" + azureVersion, unseal: "unwrapkey",
		options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL, IdentityEndpoint: server.URL, CAFile: caFile},
			Getenv: environment("AZURE_TENANT_ID", azureTenant, "AZURE_CLIENT_ID", "app", "AZURE_CLIENT_SECRET", "do-not-log-me"),
		},
		codes: map[string]fault{
			"throttled": {status: 429, code: "Throttled"}, "denied": {status: 403, code: "Forbidden"},
			"disabled": {status: 403, code: "KeyDisabled"}, "internal": {status: 500, code: "InternalError"},
		},
		denied: "allow it get and unwrapKey, and wrapKey to make a sealed key",
	}
}

func sealAzure(t *testing.T, c *cloud, host string, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		resource := strings.TrimPrefix(host, "demo.")
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+azureTenant+`", resource="https://`+resource+`"`)
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
	if f.status != 0 {
		refuse(f.status, f.code)
		return
	}
	if operation == "get" {
		m := map[string]any{"kty": "oct-HSM"}
		if _, ok := c.public().(*rsa.PublicKey); ok {
			m = jwk(t, c.public())
		}
		m["kid"], m["key_ops"] = "https://"+host+"/keys/"+parts[1]+"/"+azureVersion, []string{"wrapKey", "unwrapKey"}
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
	fmt.Fprintf(w, `{"kid":"x","value":%q}`, base64.RawURLEncoding.EncodeToString(out))
}

// azureWrap has one RSA key for all names, whose label tells them apart.
func azureWrap(c *cloud, name, version, what string, in []byte) ([]byte, error) {
	if version != azureVersion {
		return nil, errors.New("not the pinned version")
	}
	key, _ := c.key.(*rsa.PrivateKey)
	switch what {
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
	key := sha256.Sum256([]byte(name))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
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
	key := sha256.Sum256([]byte(name))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
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

func newSealingGCP(t *testing.T) *sealingStandIn {
	t.Helper()
	c := newCloud(t, kms.ECDSAP256)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sealGCP(t, c, w, r) }))
	c.closing(t, server)
	key := func(name string) string { return "gcpkms://" + gcpRing + "/cryptoKeys/" + name }
	return &sealingStandIn{
		cloud: c, ref: key("sealing"), other: key("other"), wrong: key("signing"), pinned: key("sealing"), authenticates: true, unseal: "decrypt",
		options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialManaged, Endpoint: server.URL},
			Getenv: environment("GCE_METADATA_HOST", strings.TrimPrefix(server.URL, "http://")),
		},
		codes: map[string]fault{
			"throttled": {status: 8}, "denied": {status: 7}, "disabled": {status: 9}, "internal": {status: 14},
		},
		denied: "grant roles/cloudkms.cryptoKeyDecrypter and roles/cloudkms.viewer, and cryptoKeyEncrypter to make a sealed key,",
	}
}

func sealGCP(t *testing.T, c *cloud, w http.ResponseWriter, r *http.Request) {
	if what, ok := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/instance/service-accounts/default/"); ok {
		w.Header().Set("Metadata-Flavor", "Google")
		if what == "email" {
			_, _ = io.WriteString(w, "ca@mayfly-test.iam.gserviceaccount.com")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": gcpToken, "expires_in": 3600, "token_type": "Bearer"})
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
	if f.status != 0 {
		err = status.Error(codes.Code(f.status), "as the test says")
	}
	if err != nil {
		gcpRefuse(w, err)
		return
	}
	b, err := protojson.Marshal(answer)
	if err != nil {
		t.Error(err)
	}
	if f.corrupt { // on the way: the checksum stays
		b = []byte(strings.Replace(string(b), `"plaintext":"`, `"plaintext":"AAAA`, 1))
	}
	_, _ = w.Write(b)
}

func answerGCP(name, operation string, body []byte) (proto.Message, error) {
	invalid := func(what string) error { return status.Error(codes.InvalidArgument, what) }
	switch operation {
	case "encrypt":
		in := new(kmspb.EncryptRequest)
		if err := protojson.Unmarshal(body, in); err != nil {
			return nil, invalid(err.Error())
		}
		if in.GetPlaintextCrc32C().GetValue() != gcpSum(in.GetPlaintext()).GetValue() ||
			in.GetAdditionalAuthenticatedDataCrc32C().GetValue() != gcpSum(in.GetAdditionalAuthenticatedData()).GetValue() {
			return nil, invalid("checksum")
		}
		sealed := seal(name, in.GetPlaintext(), in.GetAdditionalAuthenticatedData())
		return &kmspb.EncryptResponse{
			Name: name + "/cryptoKeyVersions/1", Ciphertext: sealed, CiphertextCrc32C: gcpSum(sealed),
			VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
		}, nil
	case "decrypt":
		in := new(kmspb.DecryptRequest)
		if err := protojson.Unmarshal(body, in); err != nil {
			return nil, invalid(err.Error())
		}
		if in.GetCiphertextCrc32C().GetValue() != gcpSum(in.GetCiphertext()).GetValue() {
			return nil, invalid("checksum")
		}
		plain, err := sealingKey(name).Open(nil, nil, in.GetCiphertext(), in.GetAdditionalAuthenticatedData())
		if err != nil {
			return nil, invalid("Decryption failed: the ciphertext is invalid.")
		}
		return &kmspb.DecryptResponse{Plaintext: plain, PlaintextCrc32C: gcpSum(plain)}, nil
	default:
		purpose := kmspb.CryptoKey_ENCRYPT_DECRYPT
		if path.Base(name) == "signing" {
			purpose = kmspb.CryptoKey_ASYMMETRIC_SIGN
		}
		return &kmspb.CryptoKey{Name: name, Purpose: purpose}, nil
	}
}

func newSealingVault(t *testing.T) *sealingStandIn {
	t.Helper()
	c := newCloud(t, kms.ECDSAP256)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sealVault(c, w, r) }))
	c.closing(t, server)
	return &sealingStandIn{
		cloud: c, ref: "hashivault://transit/keys/sealing", other: "hashivault://transit/keys/other", wrong: "hashivault://transit/keys/signing",
		pinned: "hashivault://transit/keys/sealing?version=3", authenticates: true, unseal: "decrypt",
		options: kms.Options{
			Access: kms.Access{Credential: kms.CredentialEnv, Endpoint: server.URL},
			Getenv: environment("VAULT_TOKEN", vaultTestToken),
		},
		codes: map[string]fault{
			"throttled": {status: 429}, "denied": {status: 403}, "disabled": {status: 404}, "internal": {status: 500},
		},
		denied: "its policy lacks `read` on transit/keys/sealing and `update` on transit/decrypt/sealing, and on transit/encrypt/sealing to make a sealed key,",
	}
}

func sealVault(c *cloud, w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/") // MOUNT OPERATION NAME
	f, ok := c.begin(r, parts[1])
	switch {
	case !ok:
		return
	case f.status != 0:
		refuseVault(w, f.status, "as the test says")
		return
	case parts[0] == "auth":
		answerVault(w, map[string]any{"display_name": "token"})
		return
	}
	var in struct {
		Plaintext  []byte
		Ciphertext string
		About      []byte `json:"associated_data"`
		Version    int    `json:"key_version"`
	}
	if r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(&in) != nil {
		refuseVault(w, http.StatusBadRequest, "bad request")
		return
	}
	switch parts[1] {
	case "encrypt":
		sealed := seal(fmt.Sprint(parts[2], in.Version), in.Plaintext, in.About)
		answerVault(w, map[string]any{"ciphertext": fmt.Sprintf("vault:v%d:%s", in.Version, base64.StdEncoding.EncodeToString(sealed))})
	case "decrypt":
		version, text, _ := strings.Cut(strings.TrimPrefix(in.Ciphertext, "vault:v"), ":")
		sealed, err := base64.StdEncoding.DecodeString(text)
		var plain []byte
		if err == nil {
			plain, err = sealingKey(parts[2]+version).Open(nil, nil, sealed, in.About)
		}
		if err != nil {
			refuseVault(w, http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		answerVault(w, map[string]any{"plaintext": plain})
	default: // a symmetric key's `keys` are times
		kind := "aes256-gcm96"
		if parts[2] == "signing" {
			kind = "ecdsa-p256"
		}
		answerVault(w, map[string]any{"type": kind, "latest_version": 3, "keys": map[string]any{"1": 1700000000, "2": 1700000001, "3": 1700000002}})
	}
}
