package azure

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

// The variables of Azure's SDKs: azidentity, "Environment variables".
const (
	envTenant   = "AZURE_TENANT_ID"
	envClient   = "AZURE_CLIENT_ID"
	envSecret   = "AZURE_CLIENT_SECRET"
	envCert     = "AZURE_CLIENT_CERTIFICATE_PATH"
	envCertPass = "AZURE_CLIENT_CERTIFICATE_PASSWORD"
	envToken    = "AZURE_FEDERATED_TOKEN_FILE"
)

// authority is where the tokens of a place come from.
func authority(place *place, o kms.Options) cloud.Configuration {
	if o.Access.IdentityEndpoint != "" {
		return cloud.Configuration{ActiveDirectoryAuthorityHost: o.Access.IdentityEndpoint}
	}
	switch place.cloud {
	case "usgovernment":
		return cloud.AzureGovernment
	case "china":
		return cloud.AzureChina
	default:
		return cloud.AzurePublic
	}
}

// firstSetUp is the first credential that is set up, be it by half. A person's own
// login is never taken unless it is named.
func firstSetUp(o kms.Options) kms.Credential {
	switch {
	case o.FirstSet(envSecret, envCert) != "":
		return kms.CredentialEnv
	case o.Getenv(envToken) != "":
		return kms.CredentialWorkload
	case o.Getenv(envTenant) != "" && o.Getenv(envClient) != "":
		return kms.CredentialEnv // without its secret
	default:
		return kms.CredentialManaged
	}
}

// named makes the credential of a name, which asks nobody yet.
func named(name kms.Credential, o kms.Options, client policy.ClientOptions) (_ azcore.TokenCredential, source string, err error) {
	own := o.Access.IdentityEndpoint != "" // an authority that Microsoft's instance discovery doesn't know
	switch name {
	case kms.CredentialEnv:
		return servicePrincipal(o, client, own)
	case kms.CredentialWorkload:
		values, err := o.AllSet(envTenant, envClient, envToken)
		if err != nil {
			return nil, "", err
		}
		c, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: client, TenantID: values[0], ClientID: values[1], TokenFilePath: values[2], DisableInstanceDiscovery: own,
		})
		return c, "workload identity, app " + values[1], err
	case kms.CredentialManaged:
		options := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: client}
		source := "the machine's own managed identity"
		if o.Access.Identity != "" {
			options.ID = azidentity.ClientID(o.Access.Identity)
			source = "managed identity " + o.Access.Identity
		}
		c, err := azidentity.NewManagedIdentityCredential(options)
		return c, source, err
	default:
		c, err := azidentity.NewAzureCLICredential(nil)
		return c, "who is logged in to az", err
	}
}

// servicePrincipal is a service principal with a secret or a certificate.
func servicePrincipal(o kms.Options, client policy.ClientOptions, own bool) (_ azcore.TokenCredential, source string, err error) {
	proof, file := envSecret, o.Getenv(envCert)
	switch {
	case file != "" && o.Getenv(envSecret) != "":
		return nil, "", fmt.Errorf("%s and %s are both set: keep one", envSecret, envCert)
	case file != "":
		proof = envCert
	}
	values, err := o.AllSet(envTenant, envClient, proof)
	if err != nil {
		return nil, "", err
	}
	tenant, app := values[0], values[1]
	if file == "" {
		c, err := azidentity.NewClientSecretCredential(tenant, app, values[2],
			&azidentity.ClientSecretCredentialOptions{ClientOptions: client, DisableInstanceDiscovery: own})
		return c, "environment, secret of app " + app, err
	}
	b, err := secretfile.Read(file)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", envCert, err)
	}
	certificates, key, err := azidentity.ParseCertificates(b, []byte(o.Getenv(envCertPass)))
	if err != nil {
		return nil, "", fmt.Errorf("%s %s: can't be read as a certificate with its key", envCert, file)
	}
	c, err := azidentity.NewClientCertificateCredential(tenant, app, certificates, key,
		&azidentity.ClientCertificateCredentialOptions{ClientOptions: client, DisableInstanceDiscovery: own})
	return c, "environment, certificate of app " + app, err
}

// principal reads a token's claims for the log. Nothing is decided by
// them, so nothing is verified: the vault does that.
func principal(token string) []slog.Attr {
	var claims struct {
		Tenant string `json:"tid"`
		Object string `json:"oid"`
		App    string `json:"appid"`
	}
	if parts := strings.Split(token, "."); len(parts) == 3 {
		b, _ := base64.RawURLEncoding.DecodeString(parts[1])
		_ = json.Unmarshal(b, &claims) // what isn't a token's says nothing
	}
	return []slog.Attr{
		slog.String("tenant", kms.OneLine(claims.Tenant)), slog.String("object", kms.OneLine(claims.Object)), slog.String("app", kms.OneLine(claims.App)),
	}
}
