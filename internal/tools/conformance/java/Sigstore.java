// Signs and verifies with sigstore-java, as the plugins of Maven and Gradle do.
//
//   java -cp 'LIB/*' Sigstore.java sign TRUSTED_ROOT SIGNING_CONFIG TOKEN BUNDLE FILE
//   java -cp 'LIB/*' Sigstore.java verify TRUSTED_ROOT SIGNING_CONFIG ISSUER NAME BUNDLE FILE
//
// TOKEN is a file. Where TRUSTED_ROOT is a URL, it is that of a TUF repository, and
// SIGNING_CONFIG the root file to start from. A refusal ends with status 1, and its
// reasons on one line.
import dev.sigstore.AlgorithmRegistry.SigningAlgorithm;
import dev.sigstore.KeylessSigner;
import dev.sigstore.KeylessVerifier;
import dev.sigstore.SigningConfigProvider;
import dev.sigstore.TrustedRootProvider;
import dev.sigstore.VerificationOptions;
import dev.sigstore.VerificationOptions.CertificateMatcher;
import dev.sigstore.bundle.Bundle;
import dev.sigstore.oidc.client.OidcClients;
import dev.sigstore.oidc.client.TokenStringOidcClient;
import dev.sigstore.strings.StringMatcher;
import dev.sigstore.tuf.RootProvider;
import dev.sigstore.tuf.SigstoreTufClient;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

class Sigstore {
  public static void main(String[] args) {
    try {
      run(args);
    } catch (Exception failure) {
      for (Throwable why = failure; why != null; why = why.getCause()) {
        System.err.print(why + " | ");
      }
      System.exit(1);
    }
  }

  static void run(String[] args) throws Exception {
    var tuf = args[1].startsWith("http") ? tuf(args[1], Path.of(args[2])) : null;
    var root = tuf != null ? TrustedRootProvider.from(tuf) : TrustedRootProvider.from(Path.of(args[1]));
    if (args[0].equals("sign")) {
      var config = tuf != null ? SigningConfigProvider.from(tuf) : SigningConfigProvider.from(Path.of(args[2]));
      sign(root, config, args[3], Path.of(args[4]), Path.of(args[5]));
    } else {
      verify(root, args[3], args[4], Path.of(args[5]), Path.of(args[6]));
    }
  }

  static SigstoreTufClient.Builder tuf(String mirror, Path root) throws Exception {
    return SigstoreTufClient.builder()
        .tufMirror(URI.create(mirror), RootProvider.fromFile(root))
        .tufCacheLocation(Path.of(System.getenv("HOME"), "tuf-java"));
  }

  static void sign(TrustedRootProvider root, SigningConfigProvider config, String token, Path bundle, Path file)
      throws Exception {
    var signer =
        new KeylessSigner.Builder()
            .trustedRootProvider(root)
            .signingConfigProvider(config)
            .enableRekorV2(true)
            .forceCredentialProviders(OidcClients.of(TokenStringOidcClient.from(Files.readString(Path.of(token)).strip())))
            .signingAlgorithm(SigningAlgorithm.PKIX_ECDSA_P256_SHA_256)
            .build();
    Files.writeString(bundle, signer.signFile(file).toJson());
  }

  static void verify(TrustedRootProvider root, String issuer, String name, Path bundle, Path file) throws Exception {
    var signer =
        CertificateMatcher.fulcio()
            .issuer(StringMatcher.string(issuer))
            .subjectAlternativeName(StringMatcher.string(name))
            .build();
    new KeylessVerifier.Builder()
        .trustedRootProvider(root)
        .build()
        .verify(
            file,
            Bundle.from(bundle, StandardCharsets.UTF_8),
            VerificationOptions.builder().addCertificateMatchers(signer).build());
  }
}
