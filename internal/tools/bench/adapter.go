package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	gcpkms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// adapterFigures is the CPU time of one signature in this process: by ca/kms, and
// by what it is made over alone.
type adapterFigures struct {
	vendor, over string
	adapter      time.Duration
	bare         time.Duration
}

// adapters are the backends, and what each is a thin layer over. bare makes one
// signature with that alone.
var adapters = []struct {
	vendor, over string
	bare         func(ctx context.Context, i introduction, digest []byte) (func() error, error)
}{
	{"aws", "aws-sdk-go-v2", bareAWS},
	{"azure", "azkeys", bareAzure},
	{"gcp", "cloud.google.com/go/kms", bareGCP},
	{"vault", "net/http", bareVault},
}

// measureAdapters compares every backend with what it is made over, for d each.
func measureAdapters(ctx context.Context, dir string, d time.Duration) ([]adapterFigures, error) {
	file, err := fileAdapter(ctx, dir, d)
	if err != nil {
		return nil, err
	}
	all := []adapterFigures{file}
	for _, a := range adapters {
		i, stop, err := startStandIn(ctx, a.vendor)
		if err != nil {
			return nil, err
		}
		f := adapterFigures{vendor: a.vendor, over: a.over}
		f.adapter, f.bare, err = compare(ctx, i, a.bare, d)
		if err := errors.Join(err, stop()); err != nil {
			return nil, fmt.Errorf("%s: %w", a.vendor, err)
		}
		all = append(all, f)
	}
	return all, nil
}

func compare(ctx context.Context, i introduction, over func(context.Context, introduction, []byte) (func() error, error), d time.Duration) (adapter, bare time.Duration, err error) {
	s, err := keystore.Open(ctx, i.Ref, i.options())
	if err != nil {
		return 0, 0, err
	}
	defer kms.Close(s)
	digest := sha256.Sum256([]byte("a text of no importance"))
	alone, err := over(ctx, i, digest[:])
	if err != nil {
		return 0, 0, err
	}
	times, err := byTurns(d, func() error { _, err := s.Sign(ctx, digest[:], crypto.SHA256); return err }, alone)
	if err != nil {
		return 0, 0, err
	}
	return times[0], times[1], nil
}

// fileAdapter compares a key in a file with crypto/ecdsa.
func fileAdapter(ctx context.Context, dir string, d time.Duration) (adapterFigures, error) {
	f := adapterFigures{vendor: "file", over: "crypto/ecdsa"}
	path := filepath.Join(dir, "adapter.key.pem")
	key, err := keystore.GenerateFile(path, kms.ECDSAP256, nil)
	if err != nil {
		return f, err
	}
	s, err := keystore.Open(ctx, "file:"+path, kms.Options{})
	if err != nil {
		return f, err
	}
	digest := sha256.Sum256([]byte("a text of no importance"))
	times, err := byTurns(d,
		func() error { _, err := s.Sign(ctx, digest[:], crypto.SHA256); return err },
		func() error { _, err := key.Sign(nil, digest[:], crypto.SHA256); return err })
	if err != nil {
		return f, err
	}
	f.adapter, f.bare = times[0], times[1]
	return f, nil
}

// client is what the bare SDKs get: connections as ca/kms keeps them.
func client(i introduction) (*http.Client, error) {
	t := &http.Transport{MaxIdleConns: 128, MaxIdleConnsPerHost: 128, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if i.Access.CAFile != "" {
		text, err := os.ReadFile(string(i.Access.CAFile))
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text)
	}
	return &http.Client{Transport: t}, nil
}

func bareAWS(ctx context.Context, i introduction, digest []byte) (func() error, error) {
	c, err := client(i)
	if err != nil {
		return nil, err
	}
	api := awskms.New(awskms.Options{
		Region: "eu-central-1", BaseEndpoint: &i.Access.Endpoint, HTTPClient: c, Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: i.Environment["AWS_ACCESS_KEY_ID"], SecretAccessKey: i.Environment["AWS_SECRET_ACCESS_KEY"]}, nil
		}),
	})
	in := &awskms.SignInput{KeyId: &i.Ref, Message: digest, MessageType: types.MessageTypeDigest, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256}
	return func() error { _, err := api.Sign(ctx, in); return err }, nil
}

// fixedToken is a credential that costs nothing.
type fixedToken struct{}

func (fixedToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "token", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func bareAzure(ctx context.Context, i introduction, digest []byte) (func() error, error) {
	c, err := client(i)
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(i.Access.Endpoint)
	if err != nil {
		return nil, err
	}
	key, err := url.Parse(i.Ref)
	if err != nil {
		return nil, err
	}
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, at.Host)
	}
	api, err := azkeys.NewClient("https://"+key.Host, fixedToken{}, &azkeys.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: c, Retry: policy.RetryOptions{MaxRetries: -1}, Telemetry: policy.TelemetryOptions{Disabled: true},
	}})
	if err != nil {
		return nil, err
	}
	name := filepath.Base(key.Path)
	found, err := api.GetKey(ctx, name, "", nil)
	if err != nil {
		return nil, err
	}
	algorithm, version := azkeys.SignatureAlgorithmES256, found.Key.KID.Version()
	in := azkeys.SignParameters{Algorithm: &algorithm, Value: digest}
	return func() error { _, err := api.Sign(ctx, name, version, in, nil); return err }, nil
}

// bearer adds a token to every request.
type bearer struct {
	next  http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

func bareGCP(ctx context.Context, i introduction, digest []byte) (func() error, error) {
	c, err := client(i)
	if err != nil {
		return nil, err
	}
	c.Transport = bearer{c.Transport, kmstest.GCPToken}
	api, err := gcpkms.NewKeyManagementRESTClient(ctx, option.WithHTTPClient(c), option.WithEndpoint(i.Access.Endpoint))
	if err != nil {
		return nil, err
	}
	in := &kmspb.AsymmetricSignRequest{Name: i.Ref + "/cryptoKeyVersions/1", Digest: &kmspb.Digest{Digest: &kmspb.Digest_Sha256{Sha256: digest}},
		DigestCrc32C: wrapperspb.Int64(int64(crc32.Checksum(digest, crc32.MakeTable(crc32.Castagnoli))))} // the stand-in insists
	return func() error { _, err := api.AsymmetricSign(ctx, in); return err }, nil
}

func bareVault(ctx context.Context, i introduction, digest []byte) (func() error, error) {
	c, err := client(i)
	if err != nil {
		return nil, err
	}
	return func() error {
		body, err := json.Marshal(map[string]any{"input": digest, "prehashed": true, "hash_algorithm": "sha2-256", "key_version": 1, "marshaling_algorithm": "asn1"})
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, i.Access.Endpoint+"/v1/transit/sign/ca", bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("X-Vault-Token", i.Environment["VAULT_TOKEN"])
		answer, err := c.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		var out struct{ Data struct{ Signature string } }
		if err := json.NewDecoder(answer.Body).Decode(&out); err != nil || out.Data.Signature == "" {
			return fmt.Errorf("%s: %w", answer.Status, err)
		}
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}, nil
}

// outside lets the stand-ins of kmstest run outside of a test: what fails in them
// ends the benchmark, and close is the test's end.
type outside struct {
	testing.TB // the rest is never called
	dir        string
	cleanups   []func()
}

func (*outside) Helper()                           {}
func (*outside) Error(args ...any)                 { fmt.Fprintln(os.Stderr, args...) }
func (*outside) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (*outside) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }          //nolint:forbidigo // a test's Fatal never returns
func (*outside) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) } //nolint:forbidigo // a test's Fatal never returns
func (o *outside) Cleanup(f func())                { o.cleanups = append(o.cleanups, f) }
func (o *outside) TempDir() string                 { return o.dir }

func (o *outside) close() {
	for i := len(o.cleanups) - 1; i >= 0; i-- {
		o.cleanups[i]()
	}
}

// introduction is how a stand-in in another process is reached.
type introduction struct {
	Ref         string
	Access      kms.Access
	Environment map[string]string
}

// credentials are the variables that the stand-ins' credentials are in.
var credentials = []string{
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "GCE_METADATA_HOST", "VAULT_TOKEN",
}

func (i introduction) options() kms.Options {
	return kms.Options{Access: i.Access, Getenv: func(name string) string { return i.Environment[name] }}
}

// serveStandIn is this program as a vendor's service: it introduces itself on
// standard output, and ends with its standard input.
func serveStandIn(vendor, dir string) error {
	t := &outside{dir: dir}
	defer t.close()
	s := kmstest.Vendors[vendor](t, kmstest.Key(t, kms.ECDSAP256))
	i := introduction{Ref: s.Ref, Access: s.Options.Access, Environment: make(map[string]string)}
	for _, name := range credentials {
		i.Environment[name] = s.Options.Getenv(name)
	}
	if err := json.NewEncoder(os.Stdout).Encode(i); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// startStandIn starts this program as a vendor's service, so that its CPU time
// isn't ours; stop ends it.
func startStandIn(ctx context.Context, vendor string) (i introduction, stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return i, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-stand-in", vendor)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return i, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return i, nil, err
	}
	if err := cmd.Start(); err != nil {
		return i, nil, err
	}
	stop = func() error { _ = in.Close(); return cmd.Wait() }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &i)
	}
	if err != nil {
		return i, nil, fmt.Errorf("the stand-in for %s: %w (%w)", vendor, err, stop())
	}
	return i, stop, nil
}
