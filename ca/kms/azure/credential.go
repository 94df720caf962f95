package kms

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// The variables of Azure's SDKs: azidentity, "Environment variables".
const (
	azureEnvTenant   = "AZURE_TENANT_ID"
	azureEnvClient   = "AZURE_CLIENT_ID"
	azureEnvSecret   = "AZURE_CLIENT_SECRET"
	azureEnvCert     = "AZURE_CLIENT_CERTIFICATE_PATH"
	azureEnvCertPass = "AZURE_CLIENT_CERTIFICATE_PASSWORD"
	azureEnvToken    = "AZURE_FEDERATED_TOKEN_FILE"
)

// azureCredential is the one credential that was named.
type azureCredential struct {
	azcore.TokenCredential

	source string // in words, for the log: never a secret
}

// azureCloud is where the tokens of a place come from.
func azureCloud(place *azurePlace, o Options) cloud.Configuration {
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

// newAzureCredential makes the named credential, which asks nobody yet.
func newAzureCredential(o Options, client policy.ClientOptions) (*azureCredential, error) {
	named := o.Access.Credential
	if named == CredentialAuto {
		named = azureAuto(o)
	}
	c, err := azureNamed(named, o, client)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", named, err)
	}
	if o.Access.Credential == CredentialAuto {
		c.source = "auto: " + c.source
	}
	return c, nil
}

// azureAuto is the first credential that is set up, be it by half: then it
// fails, rather than another being taken without a word. A person's own login is
// never taken unless it is named.
func azureAuto(o Options) Credential {
	switch {
	case o.Getenv(azureEnvSecret) != "" || o.Getenv(azureEnvCert) != "":
		return CredentialEnv
	case o.Getenv(azureEnvToken) != "":
		return CredentialWorkload
	case o.Getenv(azureEnvTenant) != "" && o.Getenv(azureEnvClient) != "":
		return CredentialEnv // without its secret
	default:
		return CredentialManaged
	}
}

func azureNamed(named Credential, o Options, client policy.ClientOptions) (*azureCredential, error) {
	own := o.Access.IdentityEndpoint != "" // an authority that Microsoft's instance discovery doesn't know
	switch named {
	case CredentialEnv:
		return azureEnv(o, client, own)
	case CredentialWorkload:
		tenant, app, file := o.Getenv(azureEnvTenant), o.Getenv(azureEnvClient), o.Getenv(azureEnvToken)
		if err := allSet([]string{azureEnvTenant, azureEnvClient, azureEnvToken}, tenant, app, file); err != nil {
			return nil, err
		}
		c, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: client, ClientID: app, TenantID: tenant, TokenFilePath: file, DisableInstanceDiscovery: own,
		})
		return &azureCredential{c, "workload identity, app " + app}, err
	case CredentialManaged:
		options := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: client}
		source := "the machine's own managed identity"
		if o.Access.Identity != "" {
			options.ID = azidentity.ClientID(o.Access.Identity)
			source = "managed identity " + o.Access.Identity
		}
		c, err := azidentity.NewManagedIdentityCredential(options)
		return &azureCredential{c, source}, err
	case CredentialCLI:
		c, err := azidentity.NewAzureCLICredential(nil)
		return &azureCredential{c, "who is logged in to az"}, err
	default:
		return nil, azureBackend.refuses(named)
	}
}

// azureEnv is a service principal with a secret or a certificate.
func azureEnv(o Options, client policy.ClientOptions, own bool) (*azureCredential, error) {
	tenant, app, secret, file := o.Getenv(azureEnvTenant), o.Getenv(azureEnvClient), o.Getenv(azureEnvSecret), o.Getenv(azureEnvCert)
	switch {
	case secret != "" && file != "":
		return nil, fmt.Errorf("%s and %s are both set: keep one", azureEnvSecret, azureEnvCert)
	case file != "":
		if err := allSet([]string{azureEnvTenant, azureEnvClient, azureEnvCert}, tenant, app, file); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", azureEnvCert, err)
		}
		certificates, key, err := azidentity.ParseCertificates(b, []byte(o.Getenv(azureEnvCertPass)))
		if err != nil {
			return nil, fmt.Errorf("%s %s: can't be read as a certificate with its key", azureEnvCert, file)
		}
		c, err := azidentity.NewClientCertificateCredential(tenant, app, certificates, key,
			&azidentity.ClientCertificateCredentialOptions{ClientOptions: client, DisableInstanceDiscovery: own})
		return &azureCredential{c, "environment, certificate of app " + app}, err
	}
	if err := allSet([]string{azureEnvTenant, azureEnvClient, azureEnvSecret}, tenant, app, secret); err != nil {
		return nil, err
	}
	c, err := azidentity.NewClientSecretCredential(tenant, app, secret,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: client, DisableInstanceDiscovery: own})
	return &azureCredential{c, "environment, secret of app " + app}, err
}

// allSet wants several variables that mean nothing one by one.
func allSet(names []string, values ...string) error {
	var missing []string
	for i, name := range names {
		if values[i] == "" {
			missing = append(missing, name)
		}
	}
	switch len(missing) {
	case 0:
		return nil
	case len(names):
		return fmt.Errorf("%s aren't set", strings.Join(missing, ", "))
	default:
		return fmt.Errorf("half of it is set: %s is missing", strings.Join(missing, ", "))
	}
}

// azurePrincipal is what a token says of whose it is.
type azurePrincipal struct {
	Tenant string `json:"tid"`
	Object string `json:"oid"`
	App    string `json:"appid"`
}

func (p azurePrincipal) String() string {
	return "tenant " + p.Tenant + ", object " + p.Object + ", app " + p.App
}

// azurePrincipalOf reads a token's claims for the log. Nothing is decided by
// them, so nothing is verified: the vault does that.
func azurePrincipalOf(token string) azurePrincipal {
	var p azurePrincipal
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return p
	}
	if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil && json.Unmarshal(b, &p) != nil {
		return azurePrincipal{}
	}
	p.Tenant, p.Object, p.App = abridged(p.Tenant), abridged(p.Object), abridged(p.App)
	return p
}

// payload is the body of an answer, which the SDK has read already.
func payload(answer *http.Response) ([]byte, error) {
	if answer == nil {
		return nil, errors.New("no answer")
	}
	return runtime.Payload(answer)
}
