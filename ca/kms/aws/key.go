package aws

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// SigningKey describes the key and fetches its public key. It pins the key by its ARN.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	found, err := c.metadata(ctx, types.KeyUsageTypeSignVerify)
	if err != nil {
		return key, err
	}
	if specs[found.KeySpec] == "" {
		return key, kms.Unusable("its key spec %s isn't supported: use ECC_NIST_P256, P384 or P521, or RSA_2048, 3072 or 4096", found.KeySpec)
	}
	c.id = *found.Arn
	answer, err := c.api.GetPublicKey(ctx, &awskms.GetPublicKeyInput{KeyId: &c.id})
	if err != nil {
		return key, err
	}
	public, err := kms.ParsePublic(answer.PublicKey)
	return kms.SigningKey{
		Name: c.id, Public: public, Sign: c.sign, Describe: c.describe,
		Supports: func(s kms.SignatureScheme) string {
			if name := schemeName(s); slices.Contains(answer.SigningAlgorithms, types.SigningAlgorithmSpec(name)) {
				return name
			}
			return ""
		},
	}, err
}

// metadata is the description of a key that may be used that way now.
func (c *client) metadata(ctx context.Context, usage types.KeyUsageType) (*types.KeyMetadata, error) {
	answer, err := c.api.DescribeKey(ctx, &awskms.DescribeKeyInput{KeyId: &c.id})
	if err != nil {
		return nil, err
	}
	switch found := answer.KeyMetadata; {
	case found == nil || found.Arn == nil:
		return nil, errors.New("its description is empty")
	case found.KeyUsage != usage:
		return nil, kms.Unusable("its usage is %s: make one of the usage %s", found.KeyUsage, usage)
	case found.KeyState != types.KeyStateEnabled:
		return nil, kms.Unusable("its state is %s: enable it (or cancel its deletion)", found.KeyState)
	default:
		return found, nil
	}
}

func (c *client) describe(ctx context.Context) error {
	_, err := c.metadata(ctx, types.KeyUsageTypeSignVerify)
	return err
}

func (c *client) sign(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	answer, err := c.api.Sign(ctx, &awskms.SignInput{
		KeyId: &c.id, Message: digest, MessageType: types.MessageTypeDigest,
		SigningAlgorithm: types.SigningAlgorithmSpec(scheme),
	})
	if err != nil {
		return nil, err
	}
	return answer.Signature, nil
}

// contextName is the name under which AWS's encryption context holds what a
// secret is about: CloudTrail shows it, and a key policy can ask for it.
const contextName = "mayfly"

// SealingKey finds the key and pins it by its ARN.
func (c *client) SealingKey(ctx context.Context) (key kms.SealingKey, err error) {
	found, err := c.metadata(ctx, types.KeyUsageTypeEncryptDecrypt)
	if err != nil {
		return key, err
	}
	if found.KeySpec != types.KeySpecSymmetricDefault {
		return key, kms.Unusable("its key spec %s doesn't seal here: make one of SYMMETRIC_DEFAULT", found.KeySpec)
	}
	c.id = *found.Arn
	return kms.SealingKey{Name: c.id, Detail: string(found.KeySpec), Seal: c.encrypt, Unseal: c.decrypt}, nil
}

// Unsealer takes an ARN for the same key as the ARN of its replica in another
// region, and leaves an alias or id to what AWS says it is.
func (r reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(reference)
	if !ok {
		return nil, false
	}
	if !strings.HasPrefix(r.id, "arn:") || !strings.Contains(r.id, ":key/") {
		return r, true
	}
	return r, p.id == r.id || strings.Contains(r.id, ":key/mrk-") && regionless(p.id) == regionless(r.id)
}

// regionless is an ARN without its region: multi-Region keys have one id in all.
func regionless(arn string) string {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return ""
	}
	return m[1] + ":" + m[4] + ":" + m[5]
}

func (c *client) encrypt(ctx context.Context, secret []byte, about string) ([]byte, error) {
	answer, err := c.api.Encrypt(ctx, &awskms.EncryptInput{
		KeyId: &c.id, Plaintext: secret, EncryptionContext: map[string]string{contextName: about},
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	})
	if err != nil {
		return nil, err
	}
	return answer.CiphertextBlob, nil
}

func (c *client) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	answer, err := c.api.Decrypt(ctx, &awskms.DecryptInput{
		KeyId: &c.id, CiphertextBlob: sealed, EncryptionContext: map[string]string{contextName: about},
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	})
	switch {
	case says(err, "InvalidCiphertextException"), says(err, "IncorrectKeyException"):
		return nil, kms.NotSealed(err)
	case err != nil:
		return nil, err
	}
	return answer.Plaintext, nil
}

// CheckNew wants an alias, since AWS chooses ids by itself.
func (r reference) CheckNew(kms.Algorithm) error {
	if r.alias() == "" {
		return errors.New("AWS chooses a new key's id: name an alias, alias/NAME")
	}
	return nil
}

// alias is the alias that r names, "" for none.
func (r reference) alias() string {
	if at := strings.Index(r.id, "alias/"); at >= 0 {
		return r.id[at:]
	}
	return ""
}

// Make makes a key and an alias for it, and returns the key's ARN.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	err := c.Absent(ctx, c.describe, func(err error) bool { return says(err, "NotFoundException") })
	if err != nil {
		return "", err
	}
	arn, err := c.create(ctx, a)
	if err != nil {
		return "", err
	}
	err = c.Call(ctx, kms.OperationMake, func(ctx context.Context) error {
		_, err := c.api.CreateAlias(ctx, &awskms.CreateAliasInput{AliasName: aws.String(c.ref.alias()), TargetKeyId: &arn})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("%s was made, and has no alias: use it by that name, or schedule its deletion: %w", arn, err)
	}
	return arn, nil
}

// create makes a key, and gives its ARN.
func (c *client) create(ctx context.Context, a kms.Algorithm) (arn string, err error) {
	in := &awskms.CreateKeyInput{KeyUsage: types.KeyUsageTypeSignVerify}
	for spec, of := range specs {
		if of == a {
			in.KeySpec = spec
		}
	}
	err = c.Once(ctx, kms.OperationMake, func(ctx context.Context) error {
		made, err := c.api.CreateKey(ctx, in)
		if err != nil {
			return err
		}
		if made.KeyMetadata == nil || made.KeyMetadata.Arn == nil {
			return errors.New("the answer doesn't name the new key")
		}
		arn = *made.KeyMetadata.Arn
		return nil
	})
	return arn, err
}
