package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

// generate makes a key and an alias for it: AWS chooses ids by itself. The
// reference that comes back is the key's ARN.
func (r awsReference) generate(ctx context.Context, a Algorithm, o Options) (string, error) {
	at := strings.Index(r.id, "alias/")
	if at < 0 {
		return "", fmt.Errorf("key %s: AWS chooses a new key's id: name an alias, alias/NAME", r)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errOpenTimeout)
	defer cancel()
	k, err := connectAWS(ctx, r, o, judgeAWSMaking)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	defer Close(k)
	err = k.call(ctx, operationKey, k.stands)
	if err == nil || errors.As(err, new(*unusableError)) {
		return "", fmt.Errorf("key %s: %w", r, ErrKeyExists)
	}
	if !awsSays(err, "NotFoundException") {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	arn, err := k.create(ctx, a)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	err = k.call(ctx, operationMake, func(ctx context.Context) error {
		_, err := k.api.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(r.id[at:]), TargetKeyId: &arn})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("key %s: %s was made, and has no alias: use it by that name, or schedule its deletion: %w", r, arn, err)
	}
	return arn, nil
}

// create makes a key, and gives its ARN.
func (k *awsKey) create(ctx context.Context, a Algorithm) (arn string, err error) {
	in := &kms.CreateKeyInput{KeyUsage: types.KeyUsageTypeSignVerify}
	for spec, of := range awsSpecs {
		if of == a {
			in.KeySpec = spec
		}
	}
	err = k.once(ctx, operationMake, func(ctx context.Context) error {
		made, err := k.api.CreateKey(ctx, in)
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

// awsSays reports whether AWS answered with the code.
func awsSays(err error, code string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == code
}

// judgeAWSMaking is judgeAWS with what whoever makes a key must be allowed.
func judgeAWSMaking(err error) (verdict, bool) {
	v, ok := judgeAWS(err)
	if awsSays(err, "AccessDeniedException") {
		v.text = "the principal may not: allow it kms:DescribeKey, kms:CreateKey and kms:CreateAlias"
	}
	return v, ok
}
