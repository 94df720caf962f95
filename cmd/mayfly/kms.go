package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// kmsAccess is how a key is reached, as flags say it.
type kmsAccess struct {
	passphrase setting.Secret
	access     kms.Access
	sealedKey  string
	cmd        *cobra.Command
	prefix     string // of the flags
}

// flags adds the flags; where a command has several keys, prefix tells them
// apart and of says whose they are.
func (a *kmsAccess) flags(cmd *cobra.Command, prefix, of string) {
	a.cmd, a.prefix = cmd, prefix
	f := cmd.Flags()
	text := func(v *string, name, usage string) {
		if prefix != "" {
			usage = "as --" + name + ", for " + of
		}
		f.StringVar(v, prefix+name, "", usage)
	}
	text(&a.passphrase.Env, "passphrase-env", "environment variable with the passphrase of a file or the PIN of a token")
	text((*string)(&a.passphrase.File), "passphrase-file", "file with the passphrase of a file or the PIN of a token")
	text(&a.sealedKey, "sealed-key", "file of a private key that the key in the KMS encrypts and decrypts, in place of signing itself")
	text((*string)(&a.access.Credential), "credential", "where the right to use the key comes from: env, workload, managed-identity, profile, cli, file or auto")
	text(&a.access.Profile, "profile", "the profile of --credential profile")
	text(&a.access.Identity, "identity", "which of the machine's identities, for --credential managed-identity")
	text(&a.access.Region, "region", "AWS region of a key that isn't named by an ARN")
	text(&a.access.Cloud, "cloud", "Azure cloud: public, usgovernment or china")
	text(&a.access.Endpoint, "endpoint", "URL of the KMS, where it isn't the vendor's usual one")
	text(&a.access.IdentityEndpoint, "identity-endpoint", "URL of AWS STS or of Azure's authority host, where it isn't the vendor's usual one")
	text((*string)(&a.access.CAFile), "ca-file", "PEM file that the KMS's certificate is verified by")
	text(&a.access.Vault.Namespace, "vault-namespace", "Vault's namespace")
	text((*string)(&a.access.Vault.TokenFile), "vault-token-file", "file with Vault's token, for --credential file")
	text(&a.access.Vault.Role, "vault-role", "role of Vault's Kubernetes login, for --credential workload")
}

// options are a's, or what is wrong with them.
func (a *kmsAccess) options(ref string) (kms.Options, error) {
	var f setting.Faults
	path := strings.TrimSuffix(a.prefix, "-")
	a.passphrase.Check(setting.Join(path, "passphrase"), &f)
	keystore.CheckAccess(&a.access, path, setting.KeyRef(ref), &f)
	if a.sealedKey != "" {
		if err := keystore.CheckSealing(ref, a.access); err != nil {
			f.Add(setting.Join(path, "sealed-key"), "%v", err)
		}
	}
	if err := f.Err(); err != nil {
		return kms.Options{}, &failure{code: exitUsage, fix: "see `" + a.cmd.CommandPath() + " --help`", err: err}
	}
	return kms.Options{Passphrase: a.passphrase, Access: a.access, SealedKey: setting.Path(a.sealedKey), Logger: slog.New(slog.DiscardHandler)}, nil
}

func newKMSCheckCommand(streams streams) *cobra.Command {
	var a kmsAccess
	var sealing bool
	var asJSON *bool
	cmd := a.command(&cobra.Command{
		Use: "check REF", Short: "Open a key step by step, and say what fails and what to do",
		Long: `Opens a key as the service would, and prints each step with its outcome and the
time that it took: the reference, the credential, the key with its pinned
version, and a trial signature, which is verified. It changes nothing; in a KMS
it costs one signature. The first step that fails ends it, with exit code 1, or
4 where the KMS can't be reached or is overloaded.

With --sealed-key the key REF decrypts that file, and the key in it makes the
trial signature. With --sealing the key REF encrypts and decrypts a few bytes.`,
		Example: `  mayfly kms check file:issuing.key.pem
  mayfly kms check hashivault://transit/keys/issuing --credential env --endpoint https://vault.example.com:8200
  mayfly kms check arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab --credential env --sealed-key issuing.json
  mayfly kms check 'pkcs11:token=ca;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so' --passphrase-file pin`,
	}, func(ctx context.Context, ref string, o kms.Options) error {
		said, steps := telling(streams.Out, *asJSON), []map[string]any{}
		err := check(ctx, said, ref, o, sealing, &steps)
		return cmp.Or(err, show(streams.Out, *asJSON, map[string]any{"reference": ref, "ok": err == nil, "steps": steps}, nil))
	})
	asJSON = jsonFlag(cmd)
	cmd.Flags().BoolVar(&sealing, "sealing", false, "try encryption and decryption, as of a key that is to seal others")
	cmd.MarkFlagsMutuallyExclusive("sealing", "sealed-key")
	return cmd
}

// command has cmd do something with the key that its argument names.
func (a *kmsAccess) command(cmd *cobra.Command, run func(ctx context.Context, ref string, o kms.Options) error) *cobra.Command {
	a.flags(cmd, "", "")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := a.options(args[0])
		if err != nil {
			return err
		}
		return run(cmd.Context(), args[0], o)
	}
	return cmd
}

func check(ctx context.Context, out io.Writer, ref string, o kms.Options, sealing bool, steps *[]map[string]any) error {
	failed := ""
	o.Watch = func(s kms.Step) {
		outcome, detail := "ok", s.Detail
		if s.Err != nil {
			outcome, detail, failed = "FAILED", "", s.Name
		}
		*steps = append(*steps, map[string]any{"step": s.Name, "ok": s.Err == nil, "detail": detail, "seconds": s.Elapsed.Seconds()})
		line := fmt.Sprintf("%-6s  %-10s  %8s  %s", outcome, s.Name, s.Elapsed.Round(time.Millisecond), detail)
		fmt.Fprintln(out, terminal.Line(strings.TrimRight(line, " ")))
	}
	began := time.Now()
	if sealing {
		s, err := keystore.OpenSealer(ctx, ref, o)
		if err == nil {
			failed, err = "seal", kms.TrySealer(ctx, s)
		}
		if err != nil {
			return kmsFailure(failed, err)
		}
		fmt.Fprintf(out, "the key seals: %s, tried in %v\n", terminal.Line(s.String()), time.Since(began).Round(time.Millisecond))
		return nil
	}
	s, err := keystore.Open(ctx, ref, o)
	if err != nil {
		return kmsFailure(failed, err)
	}
	defer kms.Close(s)
	algorithm, err := kms.AlgorithmOf(s.Public())
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "the key signs: %s, opened in %v\n", algorithm, time.Since(began).Round(time.Millisecond))
	return nil
}

// kmsFixes say what to look at first where a step fails; the error says more.
var kmsFixes = map[string]string{
	"reference":  "write the reference as the message says",
	"credential": "set up the credential that --credential names, or name another",
	"token":      "check that the library, the token and its PIN are those of the reference",
	"sealed key": "name the file that `mayfly kms keygen --sealed-key` wrote, or restore it from a copy",
	"unseal":     "check that REF is the key that sealed the file, and that the credential may decrypt with it",
	"seal":       "check that the credential may encrypt and decrypt with the key, and that the key is made for it",
	"key":        "check that the key is there and enabled, and that the credential may read it",
	"sign":       "check that the credential may sign with the key, and that the key is made for signing",
}

// kmsFailure is the error of a command that ended at a step.
func kmsFailure(step string, err error) error {
	code, fix := exitFailed, kmsFixes[step]
	var call *kms.CallError
	if errors.As(err, &call) && call.Temporary() || errors.Is(err, context.DeadlineExceeded) {
		code = exitUnavailable
	}
	switch {
	case call == nil:
	case call.Unreached():
		fix = "check the host's name and the way to it: resolver, routes, firewall, proxy, certificates"
	case step == "token": // of a credential, and not that of a PKCS #11 library
		fix = kmsFixes["credential"]
	}
	return &failure{code: code, fix: fix, err: err}
}

func newKMSKeygenCommand(streams streams) *cobra.Command {
	var a kmsAccess
	algorithm := string(kms.ECDSAP256)
	cmd := a.command(&cobra.Command{
		Use: "keygen REF", Short: "Make a signing key in a file, a KMS or an HSM",
		Long: `Makes a new key where REF says and prints the reference to open it by. The
private key never leaves a KMS or an HSM. What is there already is never touched.

With --sealed-key the key is made on this machine, for an authority of the mode
sealed: it is written to that file, encrypted by the key REF, which must exist
and is what the configuration names as key. Keep a copy of the file.`,
		Example: `  mayfly kms keygen file:root.key.pem --algorithm ECDSA-P384 --passphrase-file passphrase
  mayfly kms keygen hashivault://transit/keys/root --algorithm ECDSA-P384 --credential env --endpoint https://vault.example.com:8200
  mayfly kms keygen hashivault://transit/keys/sealing --credential env --endpoint https://vault.example.com:8200 --sealed-key issuing.json`,
	}, func(ctx context.Context, ref string, o kms.Options) error {
		ref, err := keystore.Generate(ctx, ref, kms.Algorithm(algorithm), o)
		if err != nil {
			return kmsFailure("", err)
		}
		fmt.Fprintln(streams.Out, ref)
		return nil
	})
	cmd.Flags().StringVar(&algorithm, "algorithm", algorithm, "kind of key: "+kmsAlgorithms())
	return cmd
}

func newKMSPublicCommand(streams streams) *cobra.Command {
	return new(kmsAccess).command(&cobra.Command{
		Use: "public REF", Short: "Print the public half of a key, in PEM",
		Long:    "Opens a key as mayfly kms check does and prints its public half, as mayfly tuf init takes it.",
		Example: "  mayfly kms public file:alice.key.pem > alice.pem",
	}, func(ctx context.Context, ref string, o kms.Options) error {
		s, err := keystore.Open(ctx, ref, o)
		if err != nil {
			return kmsFailure("", err)
		}
		defer kms.Close(s)
		text, err := publicPEM(s.Public())
		if err == nil {
			_, err = streams.Out.Write(text)
		}
		return err
	})
}

// publicPEM is the public half of a key.
func publicPEM(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
}

func kmsAlgorithms() string { return setting.List(kms.Algorithms()) }

// readPublic reads the public half of a key.
func readPublic(file string) (crypto.PublicKey, error) {
	return readAs(nil, file, "give the public half alone: mayfly kms public REF", func(b []byte) (crypto.PublicKey, error) {
		_, key, err := pemfile.PublicKey(b)
		return key, err
	})
}
