package vault

import "testing"

// FuzzAnswer: an answer of any bytes is read or refused.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"data":{"type":"ecdsa-p256","latest_version":1,"keys":{"1":{"public_key":"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"}}}}`))
	f.Add(503, []byte(`{"errors":["Vault is sealed"]}`))
	f.Add(200, []byte(`{"data":{"keys":{"1":0}}}`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		var key keyInfo
		if err := decode(status, answer, &struct{ Data any }{&key}); err != nil {
			return
		}
		if public, err := key.public(key.Latest); (public == nil) == (err == nil) {
			t.Errorf("%v with %v", public, err)
		}
	})
}
