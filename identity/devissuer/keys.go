package devissuer

import (
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

const keyBits = 2048

// use has the tokens signed with the key.
func (i *Issuer) use(key *rsa.PrivateKey) error {
	if key == nil {
		return errors.New("devissuer: no signing key was given")
	}
	if bits := key.N.BitLen(); bits < keyBits {
		return fmt.Errorf("devissuer: the signing key has %d bits: expected %d or more", bits, keyBits)
	}
	i.public = jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.RS256), Use: "sig"}
	thumbprint, err := i.public.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return fmt.Errorf("devissuer: the signing key's thumbprint: %w", err)
	}
	i.public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	// RS256 because cosign takes tokens in other algorithms from files only.
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: i.public.KeyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fmt.Errorf("devissuer: making a signer: %w", err)
	}
	return nil
}
