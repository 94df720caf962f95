package kms_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// making is what the vendors' services do with requests for new keys, by operation.
var making = map[string]map[string]func(t testing.TB, s *kmstest.StandIn, r *http.Request, body []byte) (status int, answer any){
	"aws":   {"CreateKey": awsCreateKey, "CreateAlias": awsCreateAlias},
	"azure": {"create": azureCreate},
	"gcp":   {"create": gcpCreate},
	"vault": {"create": vaultCreate},
}

// teach has a stand-in make keys as its vendor does, but for operations with a fault.
func teach(t testing.TB, vendor string, s *kmstest.StandIn, faults map[string]kmstest.Fault) {
	s.Break(func(operation string, _ int) kmstest.Fault {
		if f, ok := faults[operation]; ok {
			return f
		}
		does := making[vendor][operation]
		if does == nil {
			return kmstest.Fault{}
		}
		return kmstest.Fault{Answer: func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			status, answer := does(t, s, r, body)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if status != http.StatusNoContent {
				_ = json.NewEncoder(w).Encode(answer) // the client may have gone
			}
		}}
	})
}

// read decodes a request.
func read(t testing.TB, body []byte, in any) {
	if err := json.Unmarshal(body, in); err != nil {
		t.Errorf("%s: %v", body, err)
	}
}

func awsCreateKey(t testing.TB, s *kmstest.StandIn, _ *http.Request, body []byte) (int, any) {
	var in struct{ KeySpec, KeyUsage string }
	read(t, body, &in)
	a := map[string]kms.Algorithm{
		"ECC_NIST_P256": kms.ECDSAP256, "ECC_NIST_P384": kms.ECDSAP384, "ECC_NIST_P521": kms.ECDSAP521,
		"RSA_2048": kms.RSA2048, "RSA_3072": kms.RSA3072, "RSA_4096": kms.RSA4096,
	}[in.KeySpec]
	if a == "" || in.KeyUsage != "SIGN_VERIFY" {
		return http.StatusBadRequest, map[string]string{"__type": "ValidationException"}
	}
	id := fmt.Sprintf("00000000-0000-4000-8000-%012d", s.Count("CreateKey"))
	s.Add(id, kmstest.Key(t, a))
	return http.StatusOK, map[string]any{"KeyMetadata": map[string]string{"Arn": strings.TrimSuffix(s.Pinned, s.Name) + id, "KeyId": id}}
}

func awsCreateAlias(t testing.TB, s *kmstest.StandIn, _ *http.Request, body []byte) (int, any) {
	var in struct {
		AliasName   string
		TargetKeyID string `json:"TargetKeyId"`
	}
	read(t, body, &in)
	id := strings.TrimPrefix(in.TargetKeyID, strings.TrimSuffix(s.Pinned, s.Name))
	if len(s.Versions(id)) == 0 {
		return http.StatusBadRequest, map[string]string{"__type": "NotFoundException"}
	}
	s.Alias(in.AliasName, id)
	return http.StatusOK, struct{}{}
}

// azureCreate makes a new version of a key that there may be already, as a vault does.
func azureCreate(t testing.TB, s *kmstest.StandIn, r *http.Request, body []byte) (int, any) {
	var in struct {
		Kty, Crv string
		Size     int      `json:"key_size"`
		Ops      []string `json:"key_ops"`
	}
	read(t, body, &in)
	if len(in.Ops) == 0 {
		t.Error("a key for every operation: sign and verify are enough")
	}
	if r.Host != s.Host {
		t.Errorf("the vault is asked as %s", r.Host)
	}
	name := path.Base(path.Dir(r.URL.Path))
	for _, a := range kms.Algorithms() {
		if curve := a.Curve(); curve != nil && in.Kty == "EC-HSM" && in.Crv == curve.Params().Name || in.Kty == "RSA-HSM" && in.Size > 0 && in.Size == a.Bits() {
			version := fmt.Sprintf("%032x", 0xa000+s.Add(name, kmstest.Key(t, a))) // as the stand-in names them
			return http.StatusOK, map[string]any{"key": map[string]string{"kid": "https://" + s.Host + "/keys/" + name + "/" + version, "kty": in.Kty}}
		}
	}
	return http.StatusBadRequest, map[string]any{"error": map[string]string{"code": "BadParameter"}}
}

// gcpCreate makes a key in an HSM, which takes until it is looked at.
func gcpCreate(t testing.TB, s *kmstest.StandIn, r *http.Request, body []byte) (int, any) {
	var in kmspb.CryptoKey
	if err := protojson.Unmarshal(body, &in); err != nil || !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		t.Errorf("%s: %v, or it has no token", body, err)
	}
	name := strings.TrimPrefix(r.URL.Path, "/v1/") + "/" + r.URL.Query().Get("cryptoKeyId")
	if len(s.Versions(name)) > 0 {
		return http.StatusConflict, map[string]any{"error": map[string]any{"code": http.StatusConflict, "status": "ALREADY_EXISTS", "message": "already exists"}}
	}
	a, ok := map[kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm]kms.Algorithm{
		kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256: kms.ECDSAP256, kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384: kms.ECDSAP384,
		kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256: kms.RSA2048, kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256: kms.RSA3072,
	}[in.GetVersionTemplate().GetAlgorithm()]
	if !ok {
		t.Errorf("a key of algorithm %v", in.GetVersionTemplate().GetAlgorithm())
	}
	s.Change(name, s.Add(name, kmstest.Key(t, a)), func(v *kmstest.Version) { v.Pending = true })
	return http.StatusOK, map[string]string{"name": name}
}

func vaultCreate(t testing.TB, s *kmstest.StandIn, r *http.Request, body []byte) (int, any) {
	var in struct {
		Type       string
		Exportable bool
	}
	read(t, body, &in)
	if in.Exportable {
		return http.StatusBadRequest, map[string]any{"errors": []string{"bad request"}}
	}
	if r.Header.Get("X-Vault-Token") != kmstest.VaultToken {
		return http.StatusForbidden, map[string]any{"errors": []string{"permission denied"}}
	}
	s.Add(path.Base(r.URL.Path), kmstest.Key(t, kms.Algorithm(strings.ToUpper(in.Type))))
	return http.StatusNoContent, nil
}
