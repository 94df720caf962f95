package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// The variables of AWS's SDKs: SDKs and Tools reference guide, "Settings reference".
const (
	awsEnvKeyID         = "AWS_ACCESS_KEY_ID"
	awsEnvSecret        = "AWS_SECRET_ACCESS_KEY"
	awsEnvSession       = "AWS_SESSION_TOKEN"
	awsEnvRole          = "AWS_ROLE_ARN"
	awsEnvToken         = "AWS_WEB_IDENTITY_TOKEN_FILE"
	awsEnvSessionName   = "AWS_ROLE_SESSION_NAME"
	awsEnvContainer     = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
	awsEnvContainerFull = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
	awsEnvContainerAuth = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
	awsEnvProfile       = "AWS_PROFILE"
	awsEnvConfig        = "AWS_CONFIG_FILE"
	awsEnvShared        = "AWS_SHARED_CREDENTIALS_FILE"
	awsEnvNoMetadata    = "AWS_EC2_METADATA_DISABLED"
)

// awsContainerHost is where ECS answers tasks: ECS developer guide, "Task IAM role".
const awsContainerHost = "http://169.254.170.2"

// awsCredential is the one credential that was named.
type awsCredential struct {
	source   string // in words, for the log: never a secret
	provider aws.CredentialsProvider
}

// newAWSCredential makes the named credential, which asks nobody yet but reads
// the profile's files.
func newAWSCredential(ctx context.Context, o Options, region string, client *http.Client) (*awsCredential, error) {
	named := o.Access.Credential
	if named == CredentialAuto {
		named = awsAuto(o)
	}
	c, err := awsNamed(ctx, named, o, region, client)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", named, err)
	}
	if o.Access.Credential == CredentialAuto {
		c.source = "auto: " + c.source
	}
	c.provider = aws.NewCredentialsCache(c.provider)
	return c, nil
}

// awsAuto is the first credential that is set up, be it by half: then it fails,
// rather than another being taken without a word.
func awsAuto(o Options) Credential {
	switch {
	case o.Getenv(awsEnvKeyID) != "" || o.Getenv(awsEnvSecret) != "":
		return CredentialEnv
	case o.Getenv(awsEnvRole) != "" || o.Getenv(awsEnvToken) != "" || o.Getenv(awsEnvContainer) != "" || o.Getenv(awsEnvContainerFull) != "":
		return CredentialWorkload
	case o.Getenv(awsEnvProfile) != "":
		return CredentialProfile
	}
	for _, file := range awsFiles(o) {
		if _, err := os.Stat(file); err == nil {
			return CredentialProfile
		}
	}
	return CredentialManaged
}

func awsNamed(ctx context.Context, named Credential, o Options, region string, client *http.Client) (*awsCredential, error) {
	switch named {
	case CredentialEnv:
		id, secret := o.Getenv(awsEnvKeyID), o.Getenv(awsEnvSecret)
		if err := bothSet(awsEnvKeyID, id, awsEnvSecret, secret); err != nil {
			return nil, err
		}
		return &awsCredential{
			source:   "environment, access key " + id, // an id, which AWS's own logs show
			provider: awscredentials.NewStaticCredentialsProvider(id, secret, o.Getenv(awsEnvSession)),
		}, nil
	case CredentialWorkload:
		return awsWorkload(o, region, client)
	case CredentialManaged:
		if strings.EqualFold(o.Getenv(awsEnvNoMetadata), "true") {
			return nil, errors.New(awsEnvNoMetadata + " is true, so the machine isn't asked: unset it")
		}
		api := imds.New(imds.Options{HTTPClient: client, Retryer: aws.NopRetryer{}})
		return &awsCredential{
			source:   "the machine's role (EC2 instance metadata)",
			provider: ec2rolecreds.New(func(r *ec2rolecreds.Options) { r.Client = api }),
		}, nil
	case CredentialProfile:
		return awsProfile(ctx, o, region, client)
	default:
		return nil, awsBackend.refuses(named)
	}
}

// awsWorkload is a web identity (EKS service accounts), or what ECS or the EKS
// pod identity agent hand out.
func awsWorkload(o Options, region string, client *http.Client) (*awsCredential, error) {
	role, token := o.Getenv(awsEnvRole), o.Getenv(awsEnvToken)
	if role != "" || token != "" {
		if err := bothSet(awsEnvRole, role, awsEnvToken, token); err != nil {
			return nil, err
		}
		api := sts.New(sts.Options{
			Region: region, BaseEndpoint: optional(o.Access.IdentityEndpoint), HTTPClient: client, Retryer: aws.NopRetryer{},
		})
		return &awsCredential{
			source: "web identity " + token + " as " + role,
			provider: stscreds.NewWebIdentityRoleProvider(api, role, stscreds.IdentityTokenFile(token), func(w *stscreds.WebIdentityRoleOptions) {
				w.RoleSessionName = o.Getenv(awsEnvSessionName)
			}),
		}, nil
	}
	endpoint := o.Getenv(awsEnvContainerFull)
	if path := o.Getenv(awsEnvContainer); path != "" {
		endpoint = awsContainerHost + path
	}
	if endpoint == "" {
		return nil, fmt.Errorf("none is mounted here: %s and %s, or %s, are expected", awsEnvRole, awsEnvToken, awsEnvContainer)
	}
	if err := checkAWSContainer(endpoint); err != nil {
		return nil, err
	}
	return &awsCredential{
		source: "container " + endpoint,
		provider: endpointcreds.New(endpoint, func(e *endpointcreds.Options) {
			e.HTTPClient, e.Retryer = client, aws.NopRetryer{}
			if file := o.Getenv(awsEnvContainerAuth); file != "" {
				e.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
					b, err := os.ReadFile(file)
					return strings.TrimSpace(string(b)), err
				})
			}
		}),
	}, nil
}

// checkAWSContainer lets plain http go to this machine, ECS and the EKS agent alone.
func checkAWSContainer(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.User != nil {
		return fmt.Errorf("%s isn't a URL", awsEnvContainerFull)
	}
	switch host := u.Hostname(); {
	case u.Scheme == "https", loopback.Host(host), host == "169.254.170.2", host == "169.254.170.23", host == "fd00:ec2::23":
		return nil
	}
	return fmt.Errorf("%s names %s over %s: https is expected", awsEnvContainerFull, u.Host, u.Scheme)
}

// awsProfile is one profile of AWS's configuration files, static or by single
// sign-on. What the environment holds doesn't matter to it.
func awsProfile(ctx context.Context, o Options, region string, client *http.Client) (*awsCredential, error) {
	name := o.Access.Profile
	if name == "" {
		name = o.Getenv(awsEnvProfile)
	}
	if name == "" {
		name = "default"
	}
	files := awsFiles(o)
	loaded, err := config.LoadDefaultConfig(ctx, config.WithSharedConfigProfile(name), config.WithRegion(region),
		config.WithHTTPClient(awsClient(client)), config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithSharedConfigFiles(files[:1]), config.WithSharedCredentialsFiles(files[1:]))
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", name, err)
	}
	return &awsCredential{source: "profile " + name, provider: loaded.Credentials}, nil
}

// awsClient is client in the one form to which AWS's configuration adds the
// authorities of AWS_CA_BUNDLE, where that is set: without it, it gives up.
func awsClient(client *http.Client) aws.HTTPClient {
	ours, ok := client.Transport.(*http.Transport)
	if !ok {
		return client
	}
	return awshttp.NewBuildableClient().WithTimeout(client.Timeout).WithTransportOptions(func(t *http.Transport) {
		t.Proxy, t.DialContext, t.TLSHandshakeTimeout, t.HTTP2 = ours.Proxy, ours.DialContext, ours.TLSHandshakeTimeout, ours.HTTP2
		t.TLSClientConfig = ours.TLSClientConfig.Clone()
		if roots := t.TLSClientConfig.RootCAs; roots != nil {
			t.TLSClientConfig.RootCAs = roots.Clone() // the KMS's own certificate is verified by ca_file alone
		}
	})
}

// awsFiles are the configuration and the credentials file.
func awsFiles(o Options) []string {
	files := []string{config.DefaultSharedConfigFilename(), config.DefaultSharedCredentialsFilename()}
	for i, name := range []string{awsEnvConfig, awsEnvShared} {
		if set := o.Getenv(name); set != "" {
			files[i] = set
		}
	}
	return files
}

// bothSet wants two variables that mean nothing alone.
func bothSet(a, aValue, b, bValue string) error {
	switch {
	case aValue == "" && bValue == "":
		return fmt.Errorf("%s and %s aren't set", a, b)
	case aValue == "":
		return fmt.Errorf("%s is set, but %s isn't: set both", b, a)
	case bValue == "":
		return fmt.Errorf("%s is set, but %s isn't: set both", a, b)
	default:
		return nil
	}
}
