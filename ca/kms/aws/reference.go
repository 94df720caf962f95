package kms

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// awsReference is a key in AWS KMS. Key ids and aliases are case-sensitive, so
// they stay as they are written.
type awsReference struct {
	id     string // an ARN, alias/NAME, a UUID or mrk-…: what the API takes as KeyId
	region string // of the ARN; "" without one
}

// String is the ARN alone, and everything else after the scheme.
func (r awsReference) String() string {
	if strings.HasPrefix(r.id, "arn:") {
		return r.id
	}
	return "awskms:" + r.id
}

func (r awsReference) open(ctx context.Context, o Options) (Signer, error) {
	return openAWS(ctx, r, o)
}

// The forms that AWS shows: KMS API reference, "KeyId"; IAM user guide, "ARN format".
var (
	awsARN     = regexp.MustCompile(`^arn:(aws[a-z-]*):([a-z0-9-]+):([a-z0-9-]*):([0-9]*):(.*)$`)
	awsRegion  = regexp.MustCompile(`^[a-z]{2,5}(-[a-z]+)+-[0-9]{1,2}$`)
	awsAccount = regexp.MustCompile(`^[0-9]{12}$`)
	awsUUID    = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	awsMRK     = regexp.MustCompile(`^mrk-[0-9a-fA-F]{32}$`)
	awsAlias   = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]{1,250}$`)
)

const awsForms = "write a key or alias ARN, alias/NAME, a key id or mrk-…, alone or after awskms:"

// claimsAWS knows AWS's own forms without a scheme.
func claimsAWS(ref string) bool {
	return strings.HasPrefix(ref, "arn:") || strings.HasPrefix(ref, "alias/") ||
		awsUUID.MatchString(ref) || awsMRK.MatchString(ref)
}

// parseAWS reads what follows awskms:, with the slashes of awskms:// and
// awskms:/// or without, or a bare reference.
func parseAWS(ref string, a Access) (reference, error) {
	id := strings.TrimPrefix(ref, "//")
	if id != ref {
		id = strings.TrimPrefix(id, "/")
	}
	r, err := awsReferenceOf(id)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Region != "" && !awsRegion.MatchString(a.Region):
		return nil, fmt.Errorf("region %q isn't one, such as eu-central-1", abridged(a.Region))
	case r.region != "" && a.Region != "" && r.region != a.Region:
		return nil, fmt.Errorf("the ARN is in %s, but the region is set to %s: remove the region, or name the key's replica there", r.region, a.Region)
	}
	return r, nil
}

func awsReferenceOf(id string) (awsReference, error) {
	switch {
	case id == "":
		return awsReference{}, errors.New("names no key: " + awsForms) //nolint:staticcheck // ST1005: the scheme ends in its colon
	case strings.HasPrefix(id, "arn:"):
		return awsReferenceOfARN(id)
	case strings.HasPrefix(id, "alias/"):
		return awsReference{id: id}, checkAWSAlias(id)
	case awsUUID.MatchString(id), awsMRK.MatchString(id):
		return awsReference{id: id}, nil
	case strings.Contains(id, "="):
		return awsReference{}, errors.New("has attributes: " + awsForms + ", and set the region apart")
	}
	if host, rest, ok := strings.Cut(id, "/"); ok && strings.ContainsAny(host, ".:") {
		if _, err := awsReferenceOf(rest); err == nil {
			return awsReference{}, fmt.Errorf("names the endpoint %s: write awskms:%s and set the endpoint apart", host, rest)
		}
	}
	return awsReference{}, errors.New("isn't a key of AWS KMS: " + awsForms) //nolint:staticcheck // ST1005: the scheme ends in its colon
}

func awsReferenceOfARN(arn string) (awsReference, error) {
	m := awsARN.FindStringSubmatch(arn)
	if m == nil {
		return awsReference{}, errors.New("isn't a whole ARN: arn:aws:kms:REGION:ACCOUNT:key/ID is expected")
	}
	service, region, account, resource := m[2], m[3], m[4], m[5]
	switch {
	case service != "kms":
		return awsReference{}, fmt.Errorf("is an ARN of %s: one of kms is expected", service)
	case !awsRegion.MatchString(region):
		return awsReference{}, fmt.Errorf("has no region that is one (%q)", region)
	case !awsAccount.MatchString(account):
		return awsReference{}, errors.New("has no account of 12 digits")
	}
	r := awsReference{id: arn, region: region}
	if strings.HasPrefix(resource, "alias/") {
		return r, checkAWSAlias(resource)
	}
	id, ok := strings.CutPrefix(resource, "key/")
	if !ok || !awsUUID.MatchString(id) && !awsMRK.MatchString(id) {
		return awsReference{}, errors.New("names neither key/ID nor alias/NAME")
	}
	return r, nil
}

func checkAWSAlias(alias string) error {
	switch {
	case !awsAlias.MatchString(alias):
		return errors.New("has an alias that can't be: letters, digits, '/', '_' and '-' are")
	case strings.HasPrefix(alias, "alias/aws/"):
		return errors.New("is a key that AWS manages, which signs nothing of yours: make a key of your own, of the usage SIGN_VERIFY")
	}
	return nil
}
