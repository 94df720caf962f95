package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// awsContext is the name under which AWS's encryption context holds what a secret
// is about: CloudTrail shows it, and a key policy can ask for it.
const awsContext = "mayfly"

// awsRights are of IAM: KMS developer guide, "Actions, resources and condition keys".
var awsRights = rights{
	signing: "allow it kms:DescribeKey, kms:GetPublicKey and kms:Sign",
	sealing: "allow it kms:DescribeKey and kms:Decrypt, and kms:Encrypt to make a sealed key",
}

// openSealer names the credential, finds the key and pins it by its ARN.
func (r awsReference) openSealer(ctx context.Context, o Options) (Sealer, error) {
	k, err := connectAWS(ctx, r, o, awsRights.judge(judgeAWS))
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	err = o.step("key", func() (string, error) {
		err := k.call(ctx, operationKey, func(ctx context.Context) error {
			found, err := k.metadata(ctx, types.KeyUsageTypeEncryptDecrypt)
			if err != nil {
				return err
			}
			if found.KeySpec != types.KeySpecSymmetricDefault {
				return &unusableError{fmt.Sprintf("its key spec %s doesn't seal here: make one of SYMMETRIC_DEFAULT", found.KeySpec)}
			}
			k.id = aws.ToString(found.Arn)
			return nil
		})
		return k.id, err
	})
	if err != nil {
		Close(k)
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	return &remoteSealer{service: k.service, name: k.id, seal: k.encrypt, unseal: k.decrypt}, nil
}

// sealedBy takes an ARN for the same key as the ARN of its replica in another
// region, and leaves an alias or id to what AWS says it is.
func (r awsReference) sealedBy(pinned reference) (sealing, bool) {
	p, ok := pinned.(awsReference)
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
	m := awsARN.FindStringSubmatch(arn)
	if m == nil {
		return ""
	}
	return m[1] + ":" + m[4] + ":" + m[5]
}

func (k *awsKey) encrypt(ctx context.Context, secret []byte, about string) ([]byte, error) {
	answer, err := k.api.Encrypt(ctx, &kms.EncryptInput{
		KeyId: &k.id, Plaintext: secret, EncryptionContext: map[string]string{awsContext: about},
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	})
	if err != nil {
		return nil, err
	}
	return answer.CiphertextBlob, nil
}

func (k *awsKey) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	answer, err := k.api.Decrypt(ctx, &kms.DecryptInput{
		KeyId: &k.id, CiphertextBlob: sealed, EncryptionContext: map[string]string{awsContext: about},
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	})
	var invalid *types.InvalidCiphertextException
	var incorrect *types.IncorrectKeyException
	switch {
	case errors.As(err, &invalid), errors.As(err, &incorrect):
		return nil, &sealedError{err}
	case err != nil:
		return nil, err
	}
	return answer.Plaintext, nil
}
