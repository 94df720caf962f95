package aws

import (
	"cmp"
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

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// The variables of AWS's SDKs: SDKs and Tools reference guide, "Settings reference".
const (
	envKeyID         = "AWS_ACCESS_KEY_ID"
	envSecret        = "AWS_SECRET_ACCESS_KEY"
	envSession       = "AWS_SESSION_TOKEN"
	envRole          = "AWS_ROLE_ARN"
	envToken         = "AWS_WEB_IDENTITY_TOKEN_FILE"
	envSessionName   = "AWS_ROLE_SESSION_NAME"
	envContainer     = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
	envContainerFull = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
	envContainerAuth = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
	envProfile       = "AWS_PROFILE"
	envConfig        = "AWS_CONFIG_FILE"
	envShared        = "AWS_SHARED_CREDENTIALS_FILE"
	envNoMetadata    = "AWS_EC2_METADATA_DISABLED"
)

// containerHost is where ECS answers tasks: ECS developer guide, "Task IAM role".
const containerHost = "http://169.254.170.2"

// firstSetUp is the first credential that is set up, be it by half.
func firstSetUp(o kms.Options) kms.Credential {
	switch {
	case o.FirstSet(envKeyID, envSecret) != "":
		return kms.CredentialEnv
	case o.FirstSet(envRole, envToken, envContainer, envContainerFull) != "":
		return kms.CredentialWorkload
	case o.Getenv(envProfile) != "":
		return kms.CredentialProfile
	}
	for _, file := range sharedFiles(o) {
		if _, err := os.Stat(file); err == nil {
			return kms.CredentialProfile
		}
	}
	return kms.CredentialManaged
}

// named makes the credential of a name, which asks nobody yet but reads the
// profile's files.
func named(ctx context.Context, name kms.Credential, o kms.Options, region string, client *http.Client) (_ aws.CredentialsProvider, source string, err error) {
	switch name {
	case kms.CredentialEnv:
		values, err := o.AllSet(envKeyID, envSecret)
		id := values[0] // which AWS's own logs show
		return awscredentials.NewStaticCredentialsProvider(id, values[1], o.Getenv(envSession)), "environment, access key " + id, err
	case kms.CredentialWorkload:
		return workload(o, region, client)
	case kms.CredentialManaged:
		if strings.EqualFold(o.Getenv(envNoMetadata), "true") {
			return nil, "", errors.New(envNoMetadata + " is true, so the machine isn't asked: unset it")
		}
		api := imds.New(imds.Options{HTTPClient: client, Retryer: aws.NopRetryer{}})
		return ec2rolecreds.New(func(r *ec2rolecreds.Options) { r.Client = api }), "the machine's role (EC2 instance metadata)", nil
	default:
		return profile(ctx, o, region, client)
	}
}

// workload is a web identity (EKS service accounts), or what ECS or the EKS
// pod identity agent hand out.
func workload(o kms.Options, region string, client *http.Client) (_ aws.CredentialsProvider, source string, err error) {
	if o.FirstSet(envRole, envToken) != "" {
		values, err := o.AllSet(envRole, envToken)
		role, token := values[0], values[1]
		return stscreds.NewWebIdentityRoleProvider(newSTS(o, region, client, nil), role, stscreds.IdentityTokenFile(token), func(w *stscreds.WebIdentityRoleOptions) {
			w.RoleSessionName = o.Getenv(envSessionName)
		}), "web identity " + token + " as " + role, err
	}
	endpoint := o.Getenv(envContainerFull)
	if path := o.Getenv(envContainer); path != "" {
		endpoint = containerHost + path
	}
	if endpoint == "" {
		return nil, "", fmt.Errorf("none is mounted here: %s and %s, or %s, are expected", envRole, envToken, envContainer)
	}
	return endpointcreds.New(endpoint, func(e *endpointcreds.Options) {
		e.HTTPClient, e.Retryer = client, aws.NopRetryer{}
		if file := o.Getenv(envContainerAuth); file != "" {
			e.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
				b, err := os.ReadFile(file)
				return strings.TrimSpace(string(b)), err
			})
		}
	}), "container " + endpoint, checkContainer(endpoint)
}

// checkContainer lets plain http go to this machine, ECS and the EKS agent alone.
func checkContainer(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.User != nil {
		return fmt.Errorf("%s isn't a URL", envContainerFull)
	}
	switch host := u.Hostname(); {
	case u.Scheme == "https", loopback.Host(host), host == "169.254.170.2", host == "169.254.170.23", host == "fd00:ec2::23":
		return nil
	}
	return fmt.Errorf("%s names %s over %s: https is expected", envContainerFull, u.Host, u.Scheme)
}

// profile is one profile of AWS's configuration files, static or by single
// sign-on. What the environment holds doesn't matter to it.
func profile(ctx context.Context, o kms.Options, region string, client *http.Client) (_ aws.CredentialsProvider, source string, err error) {
	name := cmp.Or(o.Access.Profile, o.Getenv(envProfile), "default")
	files := sharedFiles(o)
	loaded, err := config.LoadDefaultConfig(ctx, config.WithSharedConfigProfile(name), config.WithRegion(region),
		config.WithHTTPClient(sdkClient(client)), config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithSharedConfigFiles(files[:1]), config.WithSharedCredentialsFiles(files[1:]))
	if err != nil {
		return nil, "", fmt.Errorf("profile %s: %w", name, err)
	}
	return loaded.Credentials, "profile " + name, nil
}

// sdkClient is client in the one form to which AWS's configuration adds the
// authorities of AWS_CA_BUNDLE, where that is set: without it, it gives up.
func sdkClient(client *http.Client) aws.HTTPClient {
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

// sharedFiles are the configuration and the credentials file.
func sharedFiles(o kms.Options) []string {
	files := []string{config.DefaultSharedConfigFilename(), config.DefaultSharedCredentialsFilename()}
	for i, name := range []string{envConfig, envShared} {
		if set := o.Getenv(name); set != "" {
			files[i] = set
		}
	}
	return files
}
