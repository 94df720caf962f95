package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// reference is a key in AWS KMS. Key ids and aliases are case-sensitive, so
// they stay as they are written.
type reference struct {
	id     string // an ARN, alias/NAME, a UUID or mrk-…: what the API takes as KeyId
	region string // of the ARN; "" without one
}

// String is the ARN alone, and everything else after the scheme.
func (r reference) String() string {
	if strings.HasPrefix(r.id, "arn:") {
		return r.id
	}
	return "awskms:" + r.id
}

// The forms that AWS shows: KMS API reference, "KeyId"; IAM user guide, "ARN format".
var (
	arnForm     = regexp.MustCompile(`^arn:(aws[a-z-]{0,20}):([a-z0-9-]{1,40}):([a-z0-9-]{0,40}):([0-9]*):(.*)$`)
	regionForm  = regexp.MustCompile(`^[a-z]{2,5}(-[a-z]{1,20}){1,3}-[0-9]{1,2}$`)
	accountForm = regexp.MustCompile(`^[0-9]{12}$`)
	uuidForm    = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	mrkForm     = regexp.MustCompile(`^mrk-[0-9a-fA-F]{32}$`)
	aliasForm   = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]{1,250}$`)
)

const forms = "write a key or alias ARN, alias/NAME, a key id or mrk-…, alone or after awskms:"

// claims knows AWS's own forms without a scheme.
func claims(ref string) bool {
	return strings.HasPrefix(ref, "arn:") || strings.HasPrefix(ref, "alias/") ||
		uuidForm.MatchString(ref) || mrkForm.MatchString(ref)
}

// parse reads what follows awskms:, with the slashes of awskms:// and
// awskms:/// or without, or a bare reference.
func parse(ref string, a kms.Access) (kms.Reference, error) {
	id := strings.TrimPrefix(ref, "//")
	if id != ref {
		id = strings.TrimPrefix(id, "/")
	}
	r, err := parseID(id)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Region != "" && !regionForm.MatchString(a.Region):
		return nil, fmt.Errorf("region %q isn't one, such as eu-central-1", kms.Abridged(a.Region))
	case r.region != "" && a.Region != "" && r.region != a.Region:
		return nil, fmt.Errorf("the ARN is in %s, but the region is set to %s: remove the region, or name the key's replica there", r.region, a.Region)
	}
	return r, nil
}

func parseID(id string) (reference, error) {
	switch {
	case id == "":
		return reference{}, errors.New("names no key: " + forms) //nolint:staticcheck // ST1005: the scheme ends in its colon
	case strings.HasPrefix(id, "arn:"):
		return parseARN(id)
	case strings.HasPrefix(id, "alias/"):
		return reference{id: id}, checkAlias(id)
	case uuidForm.MatchString(id), mrkForm.MatchString(id):
		return reference{id: id}, nil
	case strings.Contains(id, "="):
		return reference{}, errors.New("has attributes: " + forms + ", and set the region apart")
	}
	if host, rest, ok := strings.Cut(id, "/"); ok && strings.ContainsAny(host, ".:") {
		if _, err := parseID(rest); err == nil {
			return reference{}, fmt.Errorf("names the endpoint %s: write awskms:%s and set the endpoint apart", kms.Abridged(host), rest)
		}
	}
	return reference{}, errors.New("isn't a key of AWS KMS: " + forms) //nolint:staticcheck // ST1005: the scheme ends in its colon
}

func parseARN(arn string) (reference, error) {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return reference{}, errors.New("isn't a whole ARN: arn:aws:kms:REGION:ACCOUNT:key/ID is expected")
	}
	service, region, account, resource := m[2], m[3], m[4], m[5]
	switch {
	case service != "kms":
		return reference{}, fmt.Errorf("is an ARN of %s: one of kms is expected", service)
	case !regionForm.MatchString(region):
		return reference{}, fmt.Errorf("has no region that is one (%q)", region)
	case !accountForm.MatchString(account):
		return reference{}, errors.New("has no account of 12 digits")
	}
	r := reference{id: arn, region: region}
	if strings.HasPrefix(resource, "alias/") {
		return r, checkAlias(resource)
	}
	id, ok := strings.CutPrefix(resource, "key/")
	if !ok || !uuidForm.MatchString(id) && !mrkForm.MatchString(id) {
		return reference{}, errors.New("names neither key/ID nor alias/NAME")
	}
	return r, nil
}

func checkAlias(alias string) error {
	switch {
	case !aliasForm.MatchString(alias):
		return errors.New("has an alias that can't be: letters, digits, '/', '_' and '-' are")
	case strings.HasPrefix(alias, "alias/aws/"):
		return errors.New("is a key that AWS manages, which signs nothing of yours: make a key of your own, of the usage SIGN_VERIFY")
	}
	return nil
}
