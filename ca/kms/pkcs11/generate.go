//go:build pkcs11 && cgo

package pkcs11

import (
	"context"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"

	"github.com/miekg/pkcs11"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Generate makes a key pair on the token, which never gives the private
// key out, and returns the URI that names it alone. A key that the URI names
// already is left as it is: the error then wraps ErrKeyExists.
func (u *uri) Generate(ctx context.Context, a kms.Algorithm, o kms.Options) (string, error) {
	switch {
	case u.values[attributeObject] == "":
		return "", fmt.Errorf("key %s: a new key needs a label: add object=LABEL", u)
	case o.Passphrase.IsZero():
		return "", fmt.Errorf("key %s: no PIN: set the passphrase (env or file)", u)
	}
	named := &uri{values: maps.Clone(u.values)}
	if named.values[attributeID] == "" {
		id := make([]byte, 8)
		if _, err := rand.Read(id); err != nil {
			return "", fmt.Errorf("key %s: an id: %w", u, err)
		}
		named.values[attributeID] = string(id)
	}
	k := newKey(u, o.Passphrase)
	_, err := k.call(ctx, func(w *worker) ([]byte, error) {
		if _, err := k.find(w); err != nil {
			return nil, err
		}
		return nil, k.generate(w, named, a)
	})
	if err != nil {
		return "", fmt.Errorf("key %s: %w", u, err)
	}
	return named.String(), nil
}

func (k *key) generate(w *worker, named *uri, a kms.Algorithm) error {
	handle, err := k.module.context.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	w.handle, w.open = handle, true
	defer k.end(w)
	if err := k.login(w.handle, pkcs11.CKU_USER); err != nil {
		return err
	}
	if _, err := k.module.one(w.handle, k.private); !errors.Is(err, errNoObject) {
		return fmt.Errorf("%w: choose another label, or destroy that key first", kms.ErrKeyExists)
	}
	mechanism, kind, err := generation(a)
	if err != nil {
		return err
	}
	both := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(named.values[attributeID])),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, named.values[attributeObject]),
	}
	public := append(kind, both...)
	public = append(public, pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true))
	private := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
	}, both...)
	if _, _, err := k.module.context.GenerateKeyPair(w.handle, []*pkcs11.Mechanism{mechanism}, public, private); err != nil {
		return fmt.Errorf("C_GenerateKeyPair (%s): %w", a, err)
	}
	return nil
}

// generation is the mechanism that makes keys of an algorithm, and what it wants in
// the public key's template: PKCS #11 v2.40 §2.1.4 and §2.3.5.
func generation(a kms.Algorithm) (*pkcs11.Mechanism, []*pkcs11.Attribute, error) {
	if a.Bits() > 0 {
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, a.Bits()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		}, nil
	}
	for _, curve := range pubkey.Curves {
		if curve.Algorithm == string(a) {
			oid, err := asn1.Marshal(curve.OID)
			return pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil), []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, oid)}, err
		}
	}
	return nil, nil, fmt.Errorf("algorithm %q is unknown", string(a))
}
