package aws

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

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
