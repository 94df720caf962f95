package aws

import (
	"context"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// contextName is the name under which AWS's encryption context holds what a
// secret is about: CloudTrail shows it, and a key policy can ask for it.
const contextName = "mayfly"

// SealingKey finds the key and pins it by its ARN.
func (c *client) SealingKey(ctx context.Context) (kms.SealingKey, error) {
	err := c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		found, err := c.metadata(ctx, types.KeyUsageTypeEncryptDecrypt)
		if err != nil {
			return err
		}
		if found.KeySpec != types.KeySpecSymmetricDefault {
			return kms.Unusable("its key spec %s doesn't seal here: make one of SYMMETRIC_DEFAULT", found.KeySpec)
		}
		c.id = aws.ToString(found.Arn)
		return nil
	})
	return kms.SealingKey{Name: c.id, Seal: c.encrypt, Unseal: c.decrypt}, err
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
